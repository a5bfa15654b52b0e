// Package memnet is a network in memory: a [net.Listener] whose connections
// cost no file descriptor and, as long as nothing is under way, a few hundred
// bytes. An http.Server notices no difference.
//
// The client's side is made for very many clients: none needs a goroutine, each
// calls a function when there is something to take.
package memnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// bufferBytes is how much a server may write before it waits for the client,
// about what a socket takes.
const bufferBytes = 64 << 10

// Addr is the address of everything in this network.
type Addr struct{}

func (Addr) Network() string { return "memory" }
func (Addr) String() string  { return "memory" }

// A Listener takes connections from Dial. Make one with [Listen].
type Listener struct {
	queue  chan *Conn
	closed chan struct{}
	once   sync.Once
}

// Listen returns a Listener.
func Listen() *Listener {
	return &Listener{queue: make(chan *Conn, 256), closed: make(chan struct{})}
}

// Accept waits for the next connection and returns the server's end of it.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close makes Accept and Dial fail.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the address.
func (l *Listener) Addr() net.Addr { return Addr{} }

// Dial returns the client's end of a new connection, on which it has written
// the request. It calls ready whenever there is something to take after there
// was nothing. It must not block, nor call the Peer.
func (l *Listener) Dial(request string, ready func()) (*Peer, error) {
	c := &Conn{in: []byte(request), ready: ready}
	c.cond.L = &c.mu
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case l.queue <- c:
		return (*Peer)(c), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// A Conn is the server's end of a connection.
type Conn struct {
	ready func()

	mu            sync.Mutex // guards the fields below
	cond          sync.Cond  // one of them has changed
	in            []byte     // that the server has not read
	out           []byte     // that the client has not taken; from buffers
	readDeadline  time.Time
	writeDeadline time.Time
	closed        bool // by the server
	left          bool // the client has closed its end
}

// buffers holds what is under way, so that an idle connection has none of it.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Read waits for the client to send something.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.wait(&c.readDeadline, func() bool { return len(c.in) > 0 || c.left }); err != nil {
		return 0, err
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in)
	if c.in = c.in[n:]; len(c.in) == 0 {
		c.in = nil
	}
	return n, nil
}

// Write waits until the client has room for all of p.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		if err := c.wait(&c.writeDeadline, func() bool { return len(c.out) < bufferBytes || c.left }); err != nil {
			return n, err
		}
		if c.left {
			return n, io.ErrClosedPipe
		}
		k := min(len(p), bufferBytes-len(c.out))
		was := len(c.out)
		if c.out == nil {
			c.out = (*buffers.Get().(*[]byte))[:0]
		}
		c.out = append(c.out, p[:k]...)
		p = p[k:]
		n += k
		if was == 0 && k > 0 {
			c.ready()
		}
	}
	return n, nil
}

// wait waits with mu held until the condition holds. The deadline may change in
// the meantime. There is a timer only while somebody waits.
func (c *Conn) wait(deadline *time.Time, condition func() bool) error {
	for {
		switch {
		case c.closed:
			return net.ErrClosed
		case !deadline.IsZero() && !time.Now().Before(*deadline):
			return os.ErrDeadlineExceeded
		case condition():
			return nil
		}
		var timer *time.Timer
		if !deadline.IsZero() {
			timer = time.AfterFunc(time.Until(*deadline), c.expire)
		}
		c.cond.Wait()
		if timer != nil {
			timer.Stop()
		}
	}
}

// expire wakes who waits; with mu, so that it comes after the waiting began.
func (c *Conn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cond.Broadcast()
}

// Close ends the connection. What was written before can still be taken.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.cond.Broadcast()
	if len(c.out) == 0 {
		c.ready()
	}
	return nil
}

func (c *Conn) LocalAddr() net.Addr  { return Addr{} }
func (c *Conn) RemoteAddr() net.Addr { return Addr{} }

func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *Conn) SetReadDeadline(t time.Time) error  { return c.setDeadline(&c.readDeadline, t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeDeadline, t) }

func (c *Conn) setDeadline(deadline *time.Time, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	*deadline = t
	c.cond.Broadcast()
	return nil
}

// A Peer is the client's end of a connection.
type Peer Conn

// Take hands what has come to use, which must not keep it. It returns io.EOF
// if nothing will come after that.
func (p *Peer) Take(use func([]byte)) error {
	c := (*Conn)(p)
	c.mu.Lock()
	taken := c.out
	c.out = nil
	end := c.closed
	c.cond.Broadcast()
	c.mu.Unlock()
	if len(taken) > 0 {
		use(taken)
		buffers.Put(&taken)
	}
	if end {
		return io.EOF
	}
	return nil
}

// Close ends the connection.
func (p *Peer) Close() {
	c := (*Conn)(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
	c.out = nil
	c.cond.Broadcast()
}
