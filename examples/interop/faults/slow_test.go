package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// listenNarrow returns a listener whose connections hold little of what was not
// read yet, so that a slow client shows after seconds and not after minutes.
func listenNarrow(t *testing.T) net.Listener { return narrow{listen(t)} }

type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(8 << 10)
	}
	return conn, err
}

// dialNarrow is its like for the client's side.
func dialNarrow(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	tcp := conn.(*net.TCPConn)
	tcp.SetReadBuffer(4 << 10)
	return tcp
}

// publishing publishes numbered events of this size until the test or stop ends.
func publishing(t *testing.T, b *sse.Broker, every time.Duration, size int) (stop func() (last int)) {
	ctx, cancel := context.WithCancel(t.Context())
	fill := strings.Repeat("x", size)
	done := make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				n++
				if _, err := b.Publish(sse.Event{Data: fmt.Sprintf("%d %s", n, fill)}); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	var once sync.Once
	last := 0
	stop = func() int { once.Do(func() { cancel(); last = <-done }); return last }
	t.Cleanup(func() { stop() })
	return stop
}

// A client that reads one byte a second is cut off after WriteTimeout.
func TestOneByteASecond(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w way) {
		t.Parallel()
		timeout := either(2*time.Second, 10*time.Second)
		b := &sse.Broker{WriteTimeout: timeout}
		ended := make(chan error, 1)
		ln := listenNarrow(t)
		start(t, ln, w.handler(b, func(err error) { ended <- err }))
		conn := dialNarrow(t, ln.Addr().String())
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		go func() {
			for p := make([]byte, 1); ; time.Sleep(time.Second) {
				if _, err := conn.Read(p); err != nil {
					return
				}
			}
		}()
		eventually(t, "the client is there", func() bool { return b.Stats().Clients == 1 })
		began := time.Now()
		publishing(t, b, 10*time.Millisecond, 1000)
		select {
		case err := <-ended:
			if !errors.Is(err, sse.ErrTooSlow) {
				t.Errorf("got %v, want ErrTooSlow", err)
			}
		case <-time.After(timeout + patience):
			t.Fatalf("not cut off within WriteTimeout %v and %v", timeout, patience)
		}
		t.Logf("100 kB/s to one byte a second, WriteTimeout %v: cut off %v after the first event",
			timeout, time.Since(began).Round(time.Millisecond))
	})
}

// A client that stops for a while gets the rest, or is told of a gap, when it
// goes on: in place if it was within WriteTimeout, else as it comes back.
func TestPausingReader(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		timeout  time.Duration // negative: none
		history  int
		cut, gap bool
	}{
		{"patient broker", -1, 100_000, false, false},
		{"short history", -1, 300, false, true},
		{"cut off", time.Second, 100_000, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, w way) {
				t.Parallel()
				pause := either(4*time.Second, time.Minute)
				b := &sse.Broker{WriteTimeout: c.timeout, History: c.history, HistoryBytes: -1}
				var r reasons
				ln := listenNarrow(t)
				start(t, ln, w.handler(b, r.count))
				path := "/"
				cl, err := openOn(dialNarrow(t, ln.Addr().String()), path, "")
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "the client is there", func() bool { return b.Stats().Clients == 1 })
				stop := publishing(t, b, 2*time.Millisecond, 1000)
				var v view
				for v.events < 100 {
					see(t, cl, &v)
				}
				time.Sleep(pause)
				last := stop()
				cl.conn.(*net.TCPConn).SetReadBuffer(1 << 20) // it reads as others do again
				connections := 1
				for v.last < last {
					e, err := cl.Decode()
					if err == nil {
						v.see(e)
						continue
					}
					if connections++; connections > 3 {
						t.Fatal(err)
					}
					if cl, err = open(ln.Addr().String(), path, cl.LastEventID()); err != nil {
						t.Fatal(err)
					}
				}
				cl.conn.Close()
				if v.err != nil || (v.told > 0) != c.gap || (connections > 1) != c.cut {
					t.Errorf("%d gaps told, %d connections, error %v; want a gap: %t, to be cut off: %t",
						v.told, connections, v.err, c.gap, c.cut)
				}
				t.Logf("paused %v at 500 events/s, history %d, WriteTimeout %v: %d of %d events, %d gaps told, %d connections",
					pause, c.history, c.timeout, v.events, last, v.told, connections)
			})
		})
	}
}

func see(t *testing.T, c *client, v *view) {
	t.Helper()
	e, err := c.Decode()
	if err != nil {
		t.Fatal(err)
	}
	v.see(e)
}

// Slow clients beside good ones cost these nothing, nor the publisher.
func TestSlowBesideGood(t *testing.T) {
	each(t, func(t *testing.T, w way) {
		n := either(300, 1000)
		span := either(time.Second, 15*time.Second)
		// Long enough that slow ones stay, and short enough that they cannot be
		// what is measured: a publisher that waits for one takes this long.
		b := &sse.Broker{WriteTimeout: time.Minute, History: 1000, KeepAlive: -1}
		ln := listenNarrow(t)
		start(t, ln, w.handler(b, nil))
		good := &goods{}
		for range n {
			c, err := open(ln.Addr().String(), "/", "")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.conn.Close() })
			go good.read(c)
		}
		eventually(t, "good clients are there", func() bool { return b.Stats().Clients == n })
		good.measure(t, b, n, span/3) // warms up
		var publish, deliver [2][]time.Duration
		for round := range 3 {
			for with := range 2 {
				var leave func()
				if with == 1 {
					leave = slowOnes(t, b, ln.Addr().String(), n)
				}
				p, d := good.measure(t, b, n, span)
				publish[with] = append(publish[with], p...)
				deliver[with] = append(deliver[with], d...)
				if want := len(p) * n; len(d) != want {
					t.Fatalf("round %d: good clients got %d events, want %d", round, len(d), want)
				}
				if with == 1 {
					blocked := b.Stats()
					if blocked.Clients != 2*n {
						t.Fatalf("%d clients are there, want %d", blocked.Clients, 2*n)
					}
					leave()
					eventually(t, "the slow ones have left", func() bool { return b.Stats().Clients == n })
				}
			}
		}
		for _, c := range []struct {
			name string
			d    [2][]time.Duration
		}{{"publish", publish}, {"good clients' delivery", deliver}} {
			var p50, p99 [2]time.Duration
			for with := range 2 {
				p50[with], p99[with] = quantile(c.d[with], 0.5), quantile(c.d[with], 0.99)
			}
			r := ratio(p99[1], p99[0], time.Millisecond)
			t.Logf("%d good clients, without and with %d slow ones: %s p50 %v, %v; p99 %v, %v: ratio %.2f",
				n, n, c.name, p50[0], p50[1], p99[0], p99[1], float64(p99[1])/float64(p99[0]))
			// A short run on a busy machine says nothing of a hundredth of its
			// events, but who waits for a slow client waits for WriteTimeout.
			if *long && r > 4 {
				t.Errorf("%s: p99 is %.1f times as long with slow clients", c.name, r)
			}
			if worst := slices.Max(c.d[1]); worst > b.WriteTimeout/2 {
				t.Errorf("%s: took up to %v with slow clients", c.name, worst)
			}
		}
	})
}

// goods are the good clients, and what they measured.
type goods struct {
	mu        sync.Mutex
	delivered []time.Duration
}

var epoch = time.Now()

func (g *goods) read(c *client) {
	for e, err := range c.All() {
		if err != nil {
			return
		}
		var at int64
		fmt.Sscan(e.Data, &at)
		if took := time.Since(epoch) - time.Duration(at); at > 0 {
			g.mu.Lock()
			g.delivered = append(g.delivered, took)
			g.mu.Unlock()
		}
	}
}

// measure publishes 20 events a second for so long, and returns how long each
// call took, and each event's way to each of the n good clients.
func (g *goods) measure(t *testing.T, b *sse.Broker, n int, span time.Duration) (publish, delivered []time.Duration) {
	t.Helper()
	g.mu.Lock()
	g.delivered = nil
	g.mu.Unlock()
	fill := strings.Repeat("x", 1000)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(span); time.Now().Before(end); <-tick.C {
		began := time.Now()
		b.Publish(sse.Event{Data: fmt.Sprint(int64(began.Sub(epoch)), " ", fill)})
		publish = append(publish, time.Since(began))
	}
	eventually(t, "the good ones have all events", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.delivered) >= len(publish)*n
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	return publish, g.delivered
}

// slowOnes connects n clients, half of which read a byte a second and half
// nothing, and returns when all of them are in the way of a write.
func slowOnes(t *testing.T, b *sse.Broker, addr string, n int) (leave func()) {
	t.Helper()
	before := b.Stats()
	var conns []net.Conn
	for range n {
		conn := dialNarrow(t, addr)
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		conns = append(conns, conn)
	}
	eventually(t, "slow clients are there", func() bool { return b.Stats().Clients == before.Clients+n })
	// One event that no slow client's buffers hold, and not the good ones' to measure.
	big := sse.Event{Data: "0 " + strings.Repeat("x", 200_000)}
	if _, err := b.Publish(big); err != nil {
		t.Fatal(err)
	}
	// It is handed out to all, and the next only to those who took it.
	all, good := int64(before.Clients+n), int64(before.Clients)
	delivered := func() int64 { return b.Stats().Delivered - before.Delivered }
	eventually(t, "all are sent the large event", func() bool { return delivered() >= all })
	if _, err := b.Publish(sse.Event{Data: "0 x"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the good ones have the next event", func() bool { return delivered() >= all+good })
	time.Sleep(200 * time.Millisecond)
	if got := delivered(); got != all+good {
		t.Fatalf("%d clients took the large event, want %d", got-all, good)
	}
	quit := make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for p := make([]byte, 1); ; {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for _, conn := range conns[:n/2] {
				conn.SetReadDeadline(time.Now().Add(time.Millisecond))
				conn.Read(p)
			}
		}
	}()
	return func() {
		close(quit)
		for _, conn := range conns {
			conn.Close()
		}
	}
}
