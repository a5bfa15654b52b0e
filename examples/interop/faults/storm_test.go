package faults

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A follower reads a stream as a browser does: it comes back after the time it
// was told, with the ID it has.
type follower struct {
	addr string

	mu    sync.Mutex
	view  view
	came  []time.Time     // when each answer began
	told  []time.Duration // how long to wait after each
	conn  *client
	ended bool
}

// follow runs until stop.
func follow(addr string) *follower {
	f := &follower{addr: addr}
	go f.run()
	return f
}

func (f *follower) run() {
	lastID, retry := "", 100*time.Millisecond
	for {
		c, err := open(f.addr, "/events", lastID)
		f.mu.Lock()
		if f.ended {
			f.mu.Unlock()
			if err == nil {
				c.conn.Close()
			}
			return
		}
		if f.conn = c; err == nil {
			f.came = append(f.came, time.Now())
		}
		f.mu.Unlock()
		if err == nil {
			for e, err := range c.All() {
				if err != nil {
					break
				}
				f.mu.Lock()
				f.view.see(e)
				f.mu.Unlock()
			}
			c.conn.Close()
			if id := c.LastEventID(); id != "" {
				lastID = id
			}
			if c.Retry() > 0 {
				retry = c.Retry()
			}
			f.mu.Lock()
			f.told = append(f.told, retry)
			f.mu.Unlock()
		}
		time.Sleep(retry)
	}
}

func (f *follower) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	if f.conn != nil {
		f.conn.conn.Close()
	}
}

// seen returns the view so far, and how often the follower got an answer.
func (f *follower) seen() (view, []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view, slices.Clone(f.came)
}

// followers starts n of them, no more than some at a time.
func followers(t *testing.T, c *child, n int) []*follower {
	t.Helper()
	var all []*follower
	for part := range slices.Chunk(make([]struct{}, n), 500) {
		for range part {
			f := follow(c.Addr)
			t.Cleanup(f.stop)
			all = append(all, f)
		}
		c.waitFor(t, len(all))
	}
	return all
}

// All clients are cut off at once by Shutdown, while a new broker takes over.
func TestReconnectStorm(t *testing.T) {
	each(t, func(t *testing.T, w way) {
		n, retry := either(1000, 10_000), either(500*time.Millisecond, 3*time.Second)
		c := run(t, serverConfig{Detach: w.detach, Retry: retry})
		all := followers(t, c, n)
		c.post(t, "/publish?n=10")
		cut := time.Now()
		shutdown := c.post(t, "/swap")
		c.post(t, "/publish?n=10")
		c.waitFor(t, n)
		c.post(t, "/publish?n=10")
		const want = 30
		eventually(t, "all clients have all events", func() bool {
			for _, f := range all {
				if v, _ := f.seen(); v.err == nil && v.events < want {
					return false
				}
			}
			return true
		})
		var arrivals, told []time.Duration
		for i, f := range all {
			v, came := f.seen()
			if v.err != nil || v.events != want || v.last != want || v.told > 0 || len(came) != 2 {
				t.Fatalf("client %d: %d events, %d gaps, %d connections, error %v; want %d, none, 2, none",
					i, v.events, v.told, len(came), v.err, want)
			}
			arrivals = append(arrivals, came[1].Sub(cut))
			told = append(told, f.told[0])
		}
		t.Logf("%d clients cut by Shutdown, which took %v; each came back once, with none of %d events lost or doubled; all live after %v",
			n, shutdown.Round(time.Millisecond), want, slices.Max(arrivals).Round(time.Millisecond))
		plot(t, arrivals, retry)
		// What they were told, and not when they came: that is up to the machine too.
		for tenth := range 10 {
			from := retry + time.Duration(tenth)*retry/10
			share := 0.0
			for _, wait := range told {
				if wait < retry || wait > 2*retry {
					t.Fatalf("a client was told to wait for %v, Retry is %v", wait, retry)
				}
				if wait >= from && wait < from+retry/10 {
					share += 1 / float64(n)
				}
			}
			if share < 0.05 || share > 0.2 {
				t.Errorf("%.0f %% of the clients were told to come within a tenth of the time, from %v on; want 10 %%", 100*share, from)
			}
		}
	})
}

// plot shows how many came back when.
func plot(t *testing.T, arrivals []time.Duration, retry time.Duration) {
	counts := map[int]int{}
	last := 0
	for _, at := range arrivals {
		i := int(at * 10 / retry)
		counts[i]++
		last = max(last, i)
	}
	var text strings.Builder
	for i := 9; i <= last; i++ {
		share := float64(counts[i]) / float64(len(arrivals))
		fmt.Fprintf(&text, "\n%8v %5d %s", time.Duration(i)*retry/10, counts[i], strings.Repeat("#", int(share*200)))
	}
	t.Logf("arrivals after the cut, by tenths of Retry:%s", text.String())
}
