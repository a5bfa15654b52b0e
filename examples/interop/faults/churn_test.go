package faults

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// Clients connect and leave as fast as they can, while events are published.
func TestChurn(t *testing.T) {
	each(t, func(t *testing.T, w way) {
		b := &sse.Broker{History: 1000, KeepAlive: 200 * time.Millisecond, WriteTimeout: 2 * settleTime}
		var r reasons
		ln := listen(t)
		start(t, ln, w.handler(b, r.count))
		addr := ln.Addr().String()
		stop := publishing(t, b, time.Millisecond, 100)
		churn(addr, time.Second) // fills pools and the history
		eventually(t, "all have left", func() bool { return b.Stats().Clients == 0 })
		was := steady()
		span := either(3*time.Second, 30*time.Second)
		clients := churn(addr, span)
		eventually(t, "all have left", func() bool { return b.Stats().Clients == 0 })
		now := settled(t, use, was)
		stop()
		s := b.Stats()
		if s.Topics > 1+64 || clients < 100 {
			t.Errorf("%d clients, %d topics", clients, s.Topics)
		}
		if other := r.other.Load() + r.slow.Load(); other > 0 {
			t.Errorf("got streams that ended otherwise: %v", &r)
		}
		t.Logf("%d clients in %v (%.0f/s), %d events; before: %v; after: %v; ends: %v",
			clients, span, float64(clients)/span.Seconds(), s.Delivered, was, now, &r)
	})
}

// churn has 32 clients at a time come and go, each in one of the ways that there
// are to leave, and returns how many there were.
func churn(addr string, span time.Duration) int64 {
	var count atomic.Int64
	var all sync.WaitGroup
	end := time.Now().Add(span)
	for range 32 {
		all.Go(func() {
			for p := make([]byte, 4096); time.Now().Before(end); {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				count.Add(1)
				// Most leave with a reset, or the ports would run out.
				if rand.IntN(10) > 0 {
					conn.(*net.TCPConn).SetLinger(0)
				}
				switch rand.IntN(5) {
				case 0: // without a word
				case 1: // in the middle of the request
					io.WriteString(conn, "GET / HTT")
				case 2: // right after it
					fmt.Fprintf(conn, "GET /?topic=&topic=%d HTTP/1.1\r\nHost: x\r\n\r\n", rand.IntN(64))
				case 3: // with the head
					fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
					conn.Read(p)
				default: // with an event or two
					fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
					for range 3 {
						conn.Read(p)
					}
				}
				conn.Close()
			}
		})
	}
	all.Wait()
	return count.Load()
}
