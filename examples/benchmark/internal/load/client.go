package load

import (
	"bytes"
	"fmt"
	"io"
)

// A client reads one event stream. It keeps from it what tells whether an event
// was lost, doubled, moved or damaged, and the last event ID.
type client struct {
	state   state
	waiting bool   // holds up other requests
	number  int64  // of the newest event
	id      []byte // the last event ID

	chunked bool
	chunk   int    // HTTP/1.1: bytes that are left of the chunk
	size    int    // of the next one, as far as its line was read
	sizing  bool   // a digit of that was read
	pending []byte // the beginning of the response's head, or of a line

	// Of the event that is being read.
	newID   []byte
	hasData bool
	event   int64
	nanos   int64
	damaged bool
}

type state uint8

const (
	away      state = iota // not connected
	asking                 // the response's head is still to come
	streaming              // the head said 200
)

var headEnd = []byte("\r\n\r\n")

// feedHTTP1 takes bytes of an HTTP/1.1 response as they came. It returns io.EOF
// at the end of one that says where that is.
func (f *Fleet) feedHTTP1(c *client, p []byte) error {
	if c.state == streaming {
		return f.feedBody(c, p)
	}
	c.pending = append(c.pending, p...)
	head, rest, ok := bytes.Cut(c.pending, headEnd)
	if !ok {
		return nil
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		return fmt.Errorf("the answer is %q", line)
	}
	c.chunked = bytes.Contains(bytes.ToLower(head), []byte("\r\ntransfer-encoding: chunked"))
	c.pending = nil
	f.begin(c)
	return f.feedBody(c, rest)
}

// feedBody takes bytes of the body and removes the chunked coding.
func (f *Fleet) feedBody(c *client, p []byte) error {
	if !c.chunked {
		f.feed(c, p)
		return nil
	}
	for len(p) > 0 {
		if c.chunk > 0 {
			n := min(c.chunk, len(p))
			f.feed(c, p[:n])
			c.chunk -= n
			p = p[n:]
			continue
		}
		// A chunk's size in hexadecimal between line ends.
		switch b := p[0] | 0x20; {
		case b >= '0' && b <= '9':
			c.size, c.sizing = c.size<<4+int(b-'0'), true
		case b >= 'a' && b <= 'f':
			c.size, c.sizing = c.size<<4+int(b-'a')+10, true
		case p[0] == '\n' && c.sizing:
			if c.size == 0 {
				return io.EOF
			}
			c.chunk, c.size, c.sizing = c.size, 0, false
		}
		p = p[1:]
	}
	return nil
}

// feed takes bytes of the event stream.
func (f *Fleet) feed(c *client, p []byte) {
	for {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			c.pending = append(c.pending, p...)
			return
		}
		line := p[:end]
		if len(c.pending) > 0 {
			c.pending = append(c.pending, line...)
			line = c.pending
		}
		f.line(c, line)
		c.pending = c.pending[:0]
		p = p[end+1:]
	}
}

// line takes one line of the event stream. The events of a benchmark have their
// data in one.
func (f *Fleet) line(c *client, line []byte) {
	switch {
	case len(line) == 0:
		if len(c.newID) > 0 {
			c.id, c.newID = c.newID, c.id[:0]
		}
		if c.hasData {
			f.count(c)
		}
		c.hasData = false
	case bytes.HasPrefix(line, []byte("data:")):
		var ok bool
		c.event, c.nanos, ok = parsePayload(value(line, "data:"), f.payload)
		c.damaged = !ok || c.hasData
		c.hasData = true
	case bytes.HasPrefix(line, []byte("id:")):
		c.newID = append(c.newID[:0], value(line, "id:")...)
	}
}

func value(line []byte, field string) []byte {
	return bytes.TrimPrefix(line[len(field):], []byte(" "))
}
