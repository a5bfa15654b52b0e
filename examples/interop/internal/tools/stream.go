package tools

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// Soon is more than any delay on the way, on a busy machine, and less than
// what a buffer that is not full takes.
const Soon = 3 * time.Second

// A Stream is an answer that is being read.
type Stream struct {
	Coding string // its content coding
	Leave  func()

	first  chan struct{} // closed when the first byte of the body is there
	events chan sse.Event
	err    error // why events was closed
}

// Get asks for a stream as a browser would, with more header fields, names and
// values in turn, and returns when the headers are there.
func Get(t testing.TB, client *http.Client, url string, header ...string) (resp *http.Response, leave func(), err error) {
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Accept-Encoding", "gzip, deflate, br")
	r.Header.Set("Cache-Control", "no-cache")
	for field := range slices.Chunk(header, 2) {
		r.Header.Set(field[0], field[1])
	}
	late := time.AfterFunc(Soon, cancel)
	resp, err = client.Do(r)
	switch {
	case !late.Stop():
		err = fmt.Errorf("no headers within %v", Soon)
	case err == nil && resp.StatusCode != http.StatusOK:
		text, _ := io.ReadAll(resp.Body)
		err = fmt.Errorf("status %s: %s", resp.Status, text)
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	t.Cleanup(cancel)
	return resp, cancel, nil
}

// Open begins to read what Get gets. The client must not undo compression
// itself.
func Open(t testing.TB, client *http.Client, url string, header ...string) (*Stream, error) {
	resp, leave, err := Get(t, client, url, header...)
	if err != nil {
		return nil, err
	}
	s := &Stream{
		Coding: resp.Header.Get("Content-Encoding"),
		Leave:  leave,
		first:  make(chan struct{}),
		events: make(chan sse.Event, 100),
	}
	go func() {
		defer resp.Body.Close()
		s.read(bufio.NewReader(resp.Body))
	}()
	return s, nil
}

func (s *Stream) read(body *bufio.Reader) {
	defer close(s.events)
	if s.Coding == "gzip" {
		unzipped, err := gzip.NewReader(body)
		if err != nil {
			s.err = err
			return
		}
		body = bufio.NewReader(unzipped)
	}
	if _, s.err = body.Peek(1); s.err != nil {
		return
	}
	close(s.first)
	for d := sse.NewDecoder(body); ; {
		var e sse.Event
		if e, s.err = d.Decode(); s.err != nil {
			return
		}
		s.events <- e
	}
}

// Begun waits for the first byte.
func (s *Stream) Begun() error {
	select {
	case <-s.first:
		return nil
	case <-time.After(Soon):
		return fmt.Errorf("no first byte within %v", Soon)
	}
}

// ErrNoEvent is Next's error if there was none in time.
var ErrNoEvent = errors.New("no event")

// Next returns the next event.
func (s *Stream) Next(within time.Duration) (sse.Event, error) {
	select {
	case e, ok := <-s.events:
		if !ok {
			return e, fmt.Errorf("the stream ended: %w", s.err)
		}
		return e, nil
	case <-time.After(within):
		return sse.Event{}, fmt.Errorf("%w within %v", ErrNoEvent, within)
	}
}

// Want makes sure that the next event, Soon, has this data.
func (s *Stream) Want(data string) error { return s.WantWithin(Soon, data) }

func (s *Stream) WantWithin(within time.Duration, data string) error {
	e, err := s.Next(within)
	if err == nil && e.Data != data {
		err = fmt.Errorf("got event %.40q, want %.40q", e.Data, data)
	}
	return err
}
