package faults

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// An event of 10 MB reaches everybody whole, and small ones come after it.
func TestHugeEvent(t *testing.T) {
	each(t, func(t *testing.T, w way) {
		const clients, size = 20, 10 << 20
		b := &sse.Broker{}
		ln := listen(t)
		start(t, ln, w.handler(b, nil))
		var all []*client
		for range clients {
			c, err := open(ln.Addr().String(), "/", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.conn.Close()
			all = append(all, c)
		}
		eventually(t, "all are there", func() bool { return b.Stats().Clients == clients })
		data := strings.Repeat(strings.Repeat("x", 1023)+"\n", size/1024)
		want := sha256.Sum256([]byte(data))
		was := use()
		began := time.Now()
		if _, err := b.Publish(sse.Event{Data: data}); err != nil {
			t.Fatal(err)
		}
		published := time.Since(began)
		b.Publish(sse.Event{Data: "small"})
		var wg sync.WaitGroup
		for i, c := range all {
			wg.Go(func() {
				c.conn.SetReadDeadline(time.Now().Add(patience))
				e, err := c.Decode()
				if err != nil || sha256.Sum256([]byte(e.Data)) != want {
					t.Errorf("client %d: got %d bytes, error %v; want those published", i, len(e.Data), err)
				}
				if e, err = c.Decode(); err != nil || e.Data != "small" {
					t.Errorf("client %d: got %.20q, error %v, want \"small\"", i, e.Data, err)
				}
				*c.Decoder = sse.Decoder{} // is the client's memory, not the server's
			})
		}
		wg.Wait()
		took := time.Since(began)
		kept := use().Heap - was.Heap
		// A second one drives out the first, since HistoryBytes is 16 MiB.
		for i := range 300 {
			b.Publish(sse.Event{Data: data[:100_000] + strconv.Itoa(i)})
		}
		after := use().Heap - was.Heap
		if after > 20<<20 {
			t.Errorf("%s are held after 300 events of 100 kB, HistoryBytes is 16 MiB", bytesText(after))
		}
		t.Logf("10 MB to %d clients: Publish took %v, the last client had it after %v; %s kept for the history, %s after it was driven out",
			clients, published.Round(time.Microsecond), took.Round(time.Millisecond), bytesText(kept), bytesText(after))
	})
}

// Events are published in a tight loop.
func TestBurst(t *testing.T) {
	n, many := either(10_000, 100_000), either(100, 1000)
	history := n / 10
	for _, c := range []struct {
		name             string
		clients, history int
		chunk            int
		noGaps           bool
	}{
		{"one client", 1, history, 0, false},
		{"many clients", many, history, 0, false},
		{"many clients, history of the burst", many, n + 1, 0, true},
		{"many clients, paced", many, history, history / 4, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, w way) {
				server := run(t, serverConfig{Detach: w.detach, History: c.history})
				var wg sync.WaitGroup
				views := make([]view, c.clients)
				var cut atomic.Int64
				for i := range views {
					cl, err := open(server.Addr, "/events", "")
					if err != nil {
						t.Fatal(err)
					}
					wg.Go(func() {
						v := &views[i]
						for times := 0; v.last < n && v.err == nil; {
							e, err := cl.Decode()
							if err == nil {
								v.see(e)
								continue
							}
							// Cut off: on this machine, it may not have had a turn for WriteTimeout.
							cl.conn.Close()
							cut.Add(1)
							if times++; times > 10 {
								v.err = err
								return
							}
							if cl, err = open(server.Addr, "/events", cl.LastEventID()); err != nil {
								v.err = err
								return
							}
						}
						cl.conn.Close()
					})
				}
				server.waitFor(t, c.clients)
				began := time.Now()
				publish := server.post(t, fmt.Sprintf("/publish?n=%d&chunk=%d", n, c.chunk))
				wg.Wait()
				took := time.Since(began)
				gapped, least, sum := 0, n, 0
				for i, v := range views {
					if v.err != nil {
						t.Fatalf("client %d: %v", i, v.err)
					}
					if v.told > 0 {
						gapped++
					} else if v.events != n {
						t.Errorf("client %d: got %d events and no gap, want %d", i, v.events, n)
					}
					least, sum = min(least, v.events), sum+v.events
				}
				if c.noGaps && gapped > 0 {
					t.Errorf("%d clients were told of a gap, want none", gapped)
				}
				t.Logf("%d events to %d clients, history %d, chunks of %d: Publish %.2f µs each, all done after %v (%.2f µs per delivery); %d clients with a gap, the worst got %d events; cut off and back: %d",
					n, c.clients, c.history, c.chunk, float64(publish.Nanoseconds())/1e3/float64(n), took.Round(time.Millisecond),
					float64(took.Nanoseconds())/1e3/float64(sum), gapped, least, cut.Load())
			})
		})
	}
}
