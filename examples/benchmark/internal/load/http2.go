package load

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// window is how much a server may send before it hears from the client again.
const window = 1 << 30

// An http2Net is a network of HTTP/2 connections, each with the streams of several
// clients and a goroutine that reads it.
type http2Net struct {
	fleet *Fleet
	conns []*http2Conn // that of client i is at i/Streams
	dirty *http2Conn   // has requests that were not sent yet
}

type http2Conn struct {
	fleet *Fleet
	conn  net.Conn

	mu     sync.Mutex // guards writing
	w      *bufio.Writer
	framer *http2.Framer // which may be read from at the same time
	header bytes.Buffer  // of one request, encoded
	hpack  *hpack.Encoder
	next   uint32 // the next stream's ID

	// Guarded by the Fleet's mu.
	clients map[uint32]int // of open streams
	dead    bool
}

func newHTTP2(f *Fleet) network {
	f.opts.Streams = cmp.Or(f.opts.Streams, 100)
	return &http2Net{fleet: f}
}

func (n *http2Net) dial(i int, lastID string) error {
	k := i / n.fleet.opts.Streams
	for len(n.conns) <= k {
		n.conns = append(n.conns, nil)
	}
	if n.conns[k] == nil || n.conns[k].isDead() {
		c, err := n.connect()
		if err != nil {
			return err
		}
		n.conns[k] = c
	}
	if n.dirty != n.conns[k] {
		if err := n.flush(); err != nil {
			return err
		}
		n.dirty = n.conns[k]
	}
	return n.dirty.ask(i, lastID)
}

func (n *http2Net) flush() error {
	if n.dirty == nil {
		return nil
	}
	c := n.dirty
	n.dirty = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.Flush()
}

func (n *http2Net) hangUp(i int) {
	if k := i / n.fleet.opts.Streams; k < len(n.conns) && n.conns[k] != nil {
		n.conns[k].end()
		n.conns[k] = nil
	}
}

func (n *http2Net) close() {
	for _, c := range n.conns {
		if c != nil {
			c.end()
		}
	}
}

func (n *http2Net) connect() (*http2Conn, error) {
	conn, err := net.Dial("tcp", n.fleet.opts.Addr)
	if err != nil {
		return nil, err
	}
	if encrypted(n.fleet.opts.Network) {
		over := secure(conn, "h2")
		if err := over.Handshake(); err != nil {
			return nil, err
		}
		conn = over
	}
	c := &http2Conn{fleet: n.fleet, conn: conn, w: bufio.NewWriter(conn), next: 1, clients: map[uint32]int{}}
	c.framer = http2.NewFramer(c.w, bufio.NewReaderSize(conn, 32<<10))
	c.framer.SetReuseFrames()
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.hpack = hpack.NewEncoder(&c.header)
	c.w.WriteString(http2.ClientPreface)
	c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	c.framer.WriteWindowUpdate(0, window)
	go c.read()
	return c, nil
}

func (c *http2Conn) isDead() bool {
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	return c.dead
}

// ask writes a client's request, on a new stream.
func (c *http2Conn) ask(i int, lastID string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.next
	c.next += 2
	c.fleet.mu.Lock()
	c.clients[id] = i
	c.fleet.asked(&c.fleet.clients[i])
	c.fleet.mu.Unlock()

	c.header.Reset()
	field := func(name, value string) { c.hpack.WriteField(hpack.HeaderField{Name: name, Value: value}) }
	field(":method", "GET")
	field(":scheme", c.scheme())
	field(":authority", c.fleet.opts.Addr)
	field(":path", c.fleet.opts.Path)
	field("accept", "text/event-stream")
	if lastID != "" {
		field("last-event-id", lastID)
	}
	return c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID:      id,
		BlockFragment: c.header.Bytes(),
		EndStream:     true,
		EndHeaders:    true,
	})
}

func (c *http2Conn) scheme() string {
	if encrypted(c.fleet.opts.Network) {
		return "https"
	}
	return "http"
}

// end closes the connection, and with it all its streams.
func (c *http2Conn) end() {
	c.conn.Close()
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	c.dead = true
	for id := range c.clients {
		c.endStream(id)
	}
}

// endStream ends one client. The Fleet's mu is held.
func (c *http2Conn) endStream(id uint32) {
	c.fleet.end(&c.fleet.clients[c.clients[id]])
	delete(c.clients, id)
}

// read handles what the server sends until the connection ends.
func (c *http2Conn) read() {
	defer c.end()
	received := 0
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		if err := c.handle(frame); err != nil {
			c.fleet.mu.Lock()
			c.fleet.fail(err)
			c.fleet.mu.Unlock()
			return
		}
		// One stream of a benchmark never fills its window, all together may.
		if received += int(frame.Header().Length); received >= window/2 {
			c.answer(func() error { return c.framer.WriteWindowUpdate(0, uint32(received)) })
			received = 0
		}
	}
}

func (c *http2Conn) handle(frame http2.Frame) error {
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if frame.IsAck() {
			return nil
		}
		return c.answer(c.framer.WriteSettingsAck)
	case *http2.PingFrame:
		if frame.IsAck() {
			return nil
		}
		return c.answer(func() error { return c.framer.WritePing(true, frame.Data) })
	}
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	id := frame.Header().StreamID
	i, ok := c.clients[id]
	if !ok {
		return nil
	}
	switch frame := frame.(type) {
	case *http2.MetaHeadersFrame:
		if status := frame.PseudoValue("status"); status != "200" {
			return fmt.Errorf("client %d: the answer is %s", i, status)
		}
		c.fleet.begin(&c.fleet.clients[i])
		if frame.StreamEnded() {
			c.endStream(id)
		}
	case *http2.DataFrame:
		c.fleet.feed(&c.fleet.clients[i], frame.Data())
		if frame.StreamEnded() {
			c.endStream(id)
		}
	case *http2.RSTStreamFrame:
		c.endStream(id)
	}
	return nil
}

// answer writes a frame that the server needs at once.
func (c *http2Conn) answer(write func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := write(); err != nil {
		return err
	}
	return c.w.Flush()
}
