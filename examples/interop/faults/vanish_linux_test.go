package faults

import (
	"cmp"
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

// listenWithTimeout returns a listener for Broker.Serve. Linux breaks off its connections if
// what was sent, a keep-alive say, remains unconfirmed for the timeout.
func listenWithTimeout(addr string, timeout time.Duration) (net.Listener, error) {
	const tcpUserTimeout = 18 // TCP_USER_TIMEOUT; package syscall does not name it
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { // accepted connections have it from here
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(timeout.Milliseconds()))
		})
		return cmp.Or(controlErr, err)
	}}
	return config.Listen(context.Background(), "tcp", addr)
}

// A vanishing is how clients vanish without a FIN.
type vanishing struct {
	name                    string
	way                     way
	option                  bool // on the listener
	http2                   bool
	every                   time.Duration // between events, of 100 bytes; 0: none
	keepAlive, writeTimeout time.Duration
}

func TestVanishedPeer(t *testing.T) {
	for _, v := range []vanishing{
		// net/http has the connection, so the program sets the option itself.
		{name: "Serve", way: ways[0], option: true},
		{name: "Serve, events", way: ways[0], option: true, every: 100 * time.Millisecond},
		// Detach has it, and asks the kernel.
		{name: "Detach", way: ways[1]},
		{name: "Detach, events", way: ways[1], every: 100 * time.Millisecond},
		// Several streams share it; http.Server's own pings show that it is dead.
		{name: "HTTP2", way: ways[0], http2: true},
	} {
		t.Run(v.name, func(t *testing.T) {
			v.keepAlive, v.writeTimeout = either(time.Second, 15*time.Second), either(2*time.Second, 10*time.Second)
			noticed, r := v.run(t, 200, patience)
			bound := v.keepAlive + v.writeTimeout
			last := noticed[len(noticed)-1]
			// The machine may take its time, but a second such wait is one too many.
			if last > 2*bound {
				t.Errorf("noticed after up to %v, want KeepAlive + WriteTimeout, %v", last, bound)
			}
			t.Logf("200 clients vanished; KeepAlive %v, WriteTimeout %v, events every %v: noticed after %v to %v; %v",
				v.keepAlive, v.writeTimeout, v.every, noticed[0].Round(10*time.Millisecond), last.Round(10*time.Millisecond), r)
		})
	}
}

// Without the option, TCP goes on trying.
func TestVanishedPeerWithoutTheOption(t *testing.T) {
	t.Parallel()
	v := vanishing{way: ways[0], keepAlive: time.Second, writeTimeout: 2 * time.Second}
	within := either(6*time.Second, 45*time.Second)
	if noticed, _ := v.run(t, 200, within); len(noticed) > 0 {
		t.Errorf("%d clients were noticed, the first after %v", len(noticed), noticed[0])
	}
	t.Logf("200 clients vanished; KeepAlive %v, WriteTimeout %v, no option: none noticed within %v", v.keepAlive, v.writeTimeout, within)
}

// run has n clients vanish, and returns after how long each was noticed, in order.
func (v vanishing) run(t *testing.T, n int, within time.Duration) ([]time.Duration, *reasons) {
	near, far := wire(t)
	var ln net.Listener
	var err error
	near.in(func() {
		if v.option {
			ln, err = listenWithTimeout("192.0.2.1:0", v.writeTimeout)
		} else {
			ln, err = net.Listen("tcp", "192.0.2.1:0")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &sse.Broker{KeepAlive: v.keepAlive, WriteTimeout: v.writeTimeout}
	var r reasons
	gone := make(chan time.Time, n)
	srv := &http.Server{Protocols: &http.Protocols{}}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	srv.ErrorLog = log.New(io.Discard, "", 0) // it has a line for each ping without an answer
	srv.HTTP2 = &http.HTTP2Config{SendPingTimeout: v.keepAlive, PingTimeout: v.writeTimeout}
	srv.Handler = v.way.handler(b, func(err error) { r.count(err); gone <- time.Now() })
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
		defer conn.Close()
		conns = append(conns, conn)
		if v.http2 {
			_, err = conn.Write(h2Request(1))
		} else {
			_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all clients are there", func() bool { return b.Stats().Clients == n })
	with := use()
	far.ip(t, "link set client0 down")
	vanished := time.Now()
	stop := func() int { return 0 }
	if v.every > 0 {
		stop = publishing(t, b, v.every, 100)
	}
	var noticed []time.Duration
	late := time.After(within)
	for len(noticed) < n {
		select {
		case at := <-gone:
			noticed = append(noticed, at.Sub(vanished))
		case <-late:
			return noticed, &r
		}
	}
	stop()
	eventually(t, "no client is left", func() bool { return b.Stats().Clients == 0 })
	for _, conn := range conns {
		conn.Close()
	}
	now := settled(t, use, was)
	t.Logf("before: %v; with %d clients: %v; after: %v", was, n, with, now)
	return noticed, &r
}

// A reader that pauses for longer than WriteTimeout, and has something waiting, is
// broken off by the option too. Detach tells it from one that vanished.
func TestOptionBreaksOffReaderThatPauses(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	each(t, func(t *testing.T, w way) {
		t.Parallel()
		b := &sse.Broker{KeepAlive: timeout / 5, WriteTimeout: timeout}
		ended := make(chan error, 1)
		ln := listen(t)
		if !w.detach {
			ln.Close()
			var err error
			if ln, err = listenWithTimeout("127.0.0.1:0", timeout); err != nil {
				t.Fatal(err)
			}
		}
		start(t, ln, w.handler(b, func(err error) { ended <- err }))
		cl, err := openOn(dialNarrow(t, ln.Addr().String()), "/", "")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the client is there", func() bool { return b.Stats().Clients == 1 })
		// The server's buffer holds it, the client's does not.
		if _, err := b.Publish(sse.Event{Data: strings.Repeat("x", 64<<10)}); err != nil {
			t.Fatal(err)
		}
		if !w.detach {
			select {
			case err := <-ended:
				t.Logf("the option: broken off with %v", err)
			case <-time.After(patience):
				t.Error("the option did not break it off")
			}
			return
		}
		select {
		case err := <-ended:
			t.Errorf("Detach: %v", err)
		case <-time.After(6 * timeout):
		}
		if e, err := cl.Decode(); err != nil || len(e.Data) != 64<<10 {
			t.Errorf("got %d bytes, error %v, want them all", len(e.Data), err)
		}
	})
}
