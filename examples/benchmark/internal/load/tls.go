package load

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
)

// A tlsNet is a network of HTTP/1.1 connections over TLS, each with a goroutine
// that reads it.
type tlsNet struct {
	fleet *Fleet
	conns []*tls.Conn // of each client, guarded by the Fleet's mu
}

func (n *tlsNet) dial(i int, lastID string) error {
	conn, err := net.Dial("tcp", n.fleet.opts.Addr)
	if err != nil {
		return err
	}
	conn.(*net.TCPConn).SetLinger(0) // a connection that is closed leaves nothing behind
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	for len(n.conns) <= i {
		n.conns = append(n.conns, nil)
	}
	n.conns[i] = secure(conn, "http/1.1")
	go n.read(i, n.conns[i], lastID)
	return nil
}

func (n *tlsNet) flush() error { return nil }

func (n *tlsNet) hangUp(i int) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.hangUpLocked(i)
}

func (n *tlsNet) hangUpLocked(i int) {
	if i >= len(n.conns) || n.conns[i] == nil {
		return
	}
	n.conns[i].NetConn().Close() // without the last word of TLS, which may wait
	n.conns[i] = nil
	n.fleet.end(&n.fleet.clients[i])
}

func (n *tlsNet) close() {
	for i := range n.conns {
		n.hangUp(i)
	}
}

// read sends the request of a client and takes what comes until the connection
// ends.
func (n *tlsNet) read(i int, conn *tls.Conn, lastID string) {
	_, err := io.WriteString(conn, n.fleet.request(lastID)) // and shakes hands
	more := n.take(i, conn, err, func(c *client) error { n.fleet.asked(c); return nil })
	buf := make([]byte, 16<<10)
	for more {
		var k int
		k, err = conn.Read(buf)
		more = n.take(i, conn, nil, func(c *client) error {
			if bad := n.fleet.feedHTTP1(c, buf[:k]); bad != nil {
				return bad
			}
			if err != nil {
				return io.EOF
			}
			return nil
		})
	}
}

// take calls f with the client, unless that has hung up or there is an error
// already. It returns false if nothing more is to be read.
func (n *tlsNet) take(i int, conn *tls.Conn, err error, f func(*client) error) (more bool) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	if n.conns[i] != conn {
		return false
	}
	if err == nil {
		err = f(&n.fleet.clients[i])
	}
	if err == nil {
		return true
	}
	n.hangUpLocked(i)
	if err != io.EOF {
		n.fleet.fail(fmt.Errorf("client %d: %w", i, err))
	}
	return false
}
