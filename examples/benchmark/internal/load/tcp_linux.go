package load

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	// perSource is how many connections come from one address: fewer than the
	// ports that the kernel hands out, 28,232 unless told otherwise.
	perSource = 20_000

	stop = -1 // instead of a client's number
)

// A tcp is a network of sockets, all read by one goroutine.
type tcp struct {
	fleet   *Fleet
	server  unix.SockaddrInet4
	epoll   int
	stopper int           // a descriptor that can be read when all is to end
	stopped chan struct{} // closed when nobody reads any more
	buf     []byte

	socks []sock // of each client, guarded by the Fleet's mu
}

type sock struct {
	fd      int    // 0: none
	request string // that is still to be written
}

func newTCP(f *Fleet) (network, error) {
	addr, err := netip.ParseAddrPort(f.opts.Addr)
	if err != nil {
		return nil, err
	}
	if !addr.Addr().Is4() || !addr.Addr().IsLoopback() {
		return nil, fmt.Errorf("%v is not an IPv4 loopback address", addr)
	}
	t := &tcp{
		fleet:   f,
		server:  unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()},
		stopped: make(chan struct{}),
		buf:     make([]byte, 256<<10),
	}
	if t.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if t.stopper, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, err
	}
	if err := t.watch(unix.EPOLL_CTL_ADD, t.stopper, stop, unix.EPOLLIN); err != nil {
		return nil, err
	}
	go t.read()
	return t, nil
}

func (t *tcp) dial(i int, lastID string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// The port is chosen only by connect, which takes any that is free for this
	// destination; and a connection that is closed leaves nothing behind.
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	source := unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(1 + i/perSource)}}
	if err := unix.Bind(fd, &source); err != nil {
		return err
	}
	if err := unix.Connect(fd, &t.server); err != nil && err != unix.EINPROGRESS {
		return err
	}
	t.fleet.mu.Lock()
	defer t.fleet.mu.Unlock()
	for len(t.socks) <= i {
		t.socks = append(t.socks, sock{})
	}
	t.socks[i] = sock{fd: fd, request: t.fleet.request(lastID)}
	return t.watch(unix.EPOLL_CTL_ADD, fd, i, unix.EPOLLOUT)
}

func (t *tcp) watch(op, fd, i int, events uint32) error {
	return unix.EpollCtl(t.epoll, op, fd, &unix.EpollEvent{Events: events, Fd: int32(i), Pad: int32(fd)})
}

func (t *tcp) flush() error { return nil }

func (t *tcp) hangUp(i int) {
	t.fleet.mu.Lock()
	defer t.fleet.mu.Unlock()
	t.hangUpLocked(i)
}

func (t *tcp) hangUpLocked(i int) {
	if i >= len(t.socks) || t.socks[i].fd == 0 {
		return
	}
	unix.Close(t.socks[i].fd)
	t.socks[i] = sock{}
	t.fleet.end(&t.fleet.clients[i])
}

func (t *tcp) close() {
	unix.Write(t.stopper, []byte{7: 1}) // in any byte order, this is not 0
	<-t.stopped
	for i := range t.socks {
		t.hangUp(i)
	}
	unix.Close(t.epoll)
	unix.Close(t.stopper)
}

// read handles all sockets that are ready, until it is stopped.
func (t *tcp) read() {
	defer close(t.stopped)
	ready := make([]unix.EpollEvent, 1024)
	for {
		n, err := unix.EpollWait(t.epoll, ready, -1)
		if err != nil && err != unix.EINTR {
			t.fail(err)
			return
		}
		for _, e := range ready[:max(n, 0)] {
			if e.Fd == stop {
				return
			}
			if err := t.handle(int(e.Fd), int(e.Pad)); err != nil {
				t.fail(fmt.Errorf("client %d: %w", e.Fd, err))
			}
		}
	}
}

func (t *tcp) fail(err error) {
	t.fleet.mu.Lock()
	defer t.fleet.mu.Unlock()
	t.fleet.fail(err)
}

func (t *tcp) handle(i, fd int) error {
	t.fleet.mu.Lock()
	defer t.fleet.mu.Unlock()
	s := &t.socks[i]
	if s.fd != fd {
		return nil // closed since
	}
	if s.request != "" {
		_, err := unix.Write(fd, []byte(s.request))
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			t.hangUpLocked(i)
			return err
		}
		s.request = ""
		t.fleet.asked(&t.fleet.clients[i])
		return t.watch(unix.EPOLL_CTL_MOD, fd, i, unix.EPOLLIN)
	}
	n, err := unix.Read(fd, t.buf)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return nil
	case err != nil || n == 0:
		t.hangUpLocked(i)
		return nil
	}
	err = t.fleet.feedHTTP1(&t.fleet.clients[i], t.buf[:n])
	if err == io.EOF {
		t.hangUpLocked(i)
		return nil
	}
	return err
}
