// Package stall makes clients that ask for a stream and then read nothing of it,
// and tells when a server can write nothing more to them.
package stall

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ethernetMSS is what a connection over Ethernet has. With the 64 KiB of the
// loopback interface the kernel would take megabytes for each client that does
// not read.
const ethernetMSS = 1460

// Clients are connections of which nothing is read.
type Clients struct{ fds []int }

// Connect connects n clients to addr, host and port, and sends the request of
// each.
func Connect(addr, path string, n int) (*Clients, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if !to.Addr().Is4() {
		return nil, fmt.Errorf("%v is not an IPv4 address", to)
	}
	c := &Clients{}
	for range n {
		if err := c.connect(to, path); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

func (c *Clients) connect(to netip.AddrPort, path string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.fds = append(c.fds, fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil { // as small as it gets
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, ethernetMSS); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(writer(fd), "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", path, to)
	return err
}

// A writer is a file descriptor to write to.
type writer int

func (w writer) Write(p []byte) (int, error) { return unix.Write(int(w), p) }

// Close closes the connections.
func (c *Clients) Close() {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	c.fds = nil
}

// Full returns how many connections of this process would have to wait for their
// peer to read before they take more. It asks the kernel, since no library tells.
func Full() (n int, err error) {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		fd, err := strconv.Atoi(file.Name())
		if err != nil {
			return 0, err
		}
		if _, err := unix.Getpeername(fd); err != nil {
			continue // no connection, or none any more
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		ready, err := unix.Poll(p, 0)
		if err == nil && ready == 0 { // what has broken is ready too
			n++
		}
	}
	return n, nil
}
