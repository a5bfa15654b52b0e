package faults

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// A namespace is a thread with a network of its own, which goes with the thread
// and the sockets opened there.
type namespace struct {
	tid   int
	calls chan func()
}

func newNamespace(t *testing.T) *namespace {
	ns := &namespace{calls: make(chan func())}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		ns.tid = syscall.Gettid()
		begun <- syscall.Unshare(syscall.CLONE_NEWNET)
		for f := range ns.calls {
			f()
		}
	}()
	if err := <-begun; err != nil {
		tools.Missing(t, "no network namespace: %v; it takes root", err)
	}
	t.Cleanup(func() { close(ns.calls) })
	return ns
}

// in runs f in the namespace.
func (ns *namespace) in(f func()) {
	done := make(chan struct{})
	ns.calls <- func() { f(); close(done) }
	<-done
}

// ip runs the command of that name in the namespace.
func (ns *namespace) ip(t *testing.T, args string) {
	t.Helper()
	var out []byte
	var err error
	ns.in(func() { out, err = exec.Command("ip", strings.Fields(args)...).CombinedOutput() })
	if err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// wire returns two namespaces with a link between them.
func wire(t *testing.T) (server, far *namespace) {
	tools.Path(t, "ip")
	if os.Geteuid() != 0 {
		tools.Missing(t, "network namespaces take root")
	}
	server, far = newNamespace(t), newNamespace(t)
	server.ip(t, fmt.Sprintf("link add server0 type veth peer name client0 netns %d", far.tid))
	for _, end := range []struct {
		ns       *namespace
		name, ip string
	}{{server, "server0", "192.0.2.1/24"}, {far, "client0", "192.0.2.2/24"}} {
		end.ns.ip(t, "addr add "+end.ip+" dev "+end.name)
		end.ns.ip(t, "link set "+end.name+" up")
	}
	return server, far
}

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux: how long data that was sent, a
// keep-alive say, may remain unacknowledged before the connection is broken off.
const tcpUserTimeout = 18

// listenWithTimeout returns a listener whose connections have the option set,
// which accepted ones have from it.
func listenWithTimeout(addr string, timeout time.Duration) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if timeout > 0 {
			c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(timeout.Milliseconds()))
			})
		}
		return err
	}}
	return config.Listen(context.Background(), "tcp", addr)
}

const (
	vanishKeepAlive = time.Second
	vanishTimeout   = 2 * time.Second
)

// Clients vanish without a FIN while the stream is quiet.
func TestVanishedPeer(t *testing.T) {
	for _, c := range []struct {
		name   string
		way    way
		option bool
		http2  bool
	}{
		// net/http has the connection, so the program sets the option itself.
		{name: "Serve", way: ways[0], option: true},
		// Detach has it, and sets the option.
		{name: "Detach", way: ways[1]},
		// Several streams share it; http.Server's own pings show that it is dead.
		{name: "HTTP2", way: ways[0], http2: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			option := time.Duration(0)
			if c.option {
				option = vanishTimeout
			}
			noticed, r := vanish(t, c.way, option, c.http2, 200, 2*vanishKeepAlive+vanishTimeout+time.Second)
			t.Logf("200 clients vanished; KeepAlive %v, WriteTimeout %v: noticed after %v to %v; %v",
				vanishKeepAlive, vanishTimeout, noticed[0].Round(time.Millisecond),
				noticed[len(noticed)-1].Round(time.Millisecond), r)
		})
	}
}

// vanish has n clients vanish, and returns after how long each was noticed, in order.
func vanish(t *testing.T, w way, option time.Duration, http2 bool, n int, within time.Duration) ([]time.Duration, *reasons) {
	near, far := wire(t)
	var ln net.Listener
	var err error
	near.in(func() { ln, err = listenWithTimeout("192.0.2.1:0", option) })
	if err != nil {
		t.Fatal(err)
	}
	b := &sse.Broker{KeepAlive: vanishKeepAlive, WriteTimeout: vanishTimeout}
	var r reasons
	gone := make(chan time.Time, n)
	srv := &http.Server{Protocols: &http.Protocols{}}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	srv.ErrorLog = log.New(io.Discard, "", 0) // it has a line for each ping without an answer
	srv.HTTP2 = &http.HTTP2Config{SendPingTimeout: vanishKeepAlive, PingTimeout: vanishTimeout}
	srv.Handler = w.handler(b, func(err error) { r.count(err); gone <- time.Now() })
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })

	was := steady()
	var conns []net.Conn
	for range n {
		var conn net.Conn
		far.in(func() { conn, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)) })
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if http2 {
			_, err = conn.Write(h2Request(1))
		} else {
			_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "all clients are there", func() bool { return b.Stats().Clients == n })
	with := use()
	far.ip(t, "link set client0 down")
	vanished := time.Now()
	var noticed []time.Duration
	late := time.After(within)
	for len(noticed) < n {
		select {
		case at := <-gone:
			noticed = append(noticed, at.Sub(vanished))
		case <-late:
			t.Fatalf("%d of %d vanished clients noticed within %v", len(noticed), n, within)
		}
	}
	eventually(t, time.Second, "no client is left", func() bool { return b.Stats().Clients == 0 })
	for _, conn := range conns {
		conn.Close()
	}
	now := settled(t, use, was)
	t.Logf("before: %v; with %d clients: %v; after: %v", was, n, with, now)
	return noticed, &r
}
