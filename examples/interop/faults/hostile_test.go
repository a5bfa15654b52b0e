package faults

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/seed22e817d0/sse"
)

// noID is for a gap that is told without the client's ID.
const noID = "none"

// Requests that are meant to do harm, or might.
func TestHostileRequests(t *testing.T) {
	each(t, func(t *testing.T, w way) {
		c := run(t, serverConfig{Detach: w.detach, KeepAlive: 300 * time.Millisecond, WriteTimeout: 2 * settleTime})
		honest, err := open(c.Addr, "/events", "")
		if err != nil {
			t.Fatal(err)
		}
		defer honest.conn.Close()
		c.waitFor(t, 1)
		lastID := func(id string) string {
			return "GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + id + "\r\n\r\n"
		}
		query := func(id string) string {
			return "GET /events?lastEventId=" + url.QueryEscape(id) + " HTTP/1.1\r\nHost: x\r\n\r\n"
		}
		topics := func(n int) string {
			var b strings.Builder
			for i := range n {
				fmt.Fprintf(&b, "topic=%d&", i)
			}
			return "GET /events?" + b.String() + " HTTP/1.1\r\nHost: x\r\n\r\n"
		}
		flood := func(n int) string {
			return "GET /events HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Flood: 0123456789012345678901234567890123456789\r\n", n) + "\r\n"
		}
		nasty := "1\r\n\r\nevent: forged\ndata: \x00\x01\x7f\u0085\u2028\r"
		for _, h := range []struct {
			name, request string
			times, status int
			gap           string // the gap's data; "": no gap
			topics        int    // that are there meanwhile
		}{
			{"Last-Event-ID of 1 MB", lastID(strings.Repeat("a", 1e6)), 20, 200, strings.Repeat("a", 1024), 1},
			{"Last-Event-ID of 2 MB", lastID(strings.Repeat("a", 2e6)), 20, 431, "", 1},
			{"Last-Event-ID with a control character", lastID("a\x01b"), 20, 400, "", 1},
			{"Last-Event-ID with NUL", lastID("a\x00b"), 20, 400, "", 1},
			{"lastEventId of control characters in the query", query(nasty), 20, 200, noID, 1},
			{"Last-Event-ID of invalid UTF-8", lastID("a\xff\xc0\xaf\xed\xa0\x80z"), 20, 200, "a\ufffdz", 1},
			{"5,000 topics in the query", topics(5000), 20, 200, "", 5001},
			{"10,000 topics in the query, the most that net/url takes", topics(9999), 20, 200, "", 10_000},
			{"header flood of 1 MB", flood(20_000), 20, 200, "", 1},
			{"header flood of 5 MB", flood(100_000), 20, 431, "", 1},
		} {
			was := c.report(t).Usage
			c.peak(t)
			before := c.peak(t)
			var all sync.WaitGroup
			var conns []net.Conn
			var mu sync.Mutex
			unread := 0
			for range h.times {
				all.Go(func() {
					conn, err := request(c.Addr, h.request, h.status, h.gap)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						conns = append(conns, conn)
					case h.status == http.StatusRequestHeaderFieldsTooLarge && !errors.Is(err, errStatus):
						unread++ // the server does not read to the end, and a reset may overtake its answer
					default:
						t.Errorf("%s: %v", h.name, err)
					}
				})
			}
			all.Wait()
			if unread == h.times {
				t.Errorf("%s: nobody got status %d", h.name, h.status)
			}
			during := c.report(t)
			if during.Stats.Topics != h.topics {
				t.Errorf("%s: %d topics, want %d", h.name, during.Stats.Topics, h.topics)
			}
			for _, conn := range conns {
				conn.Close()
			}
			peak := c.peak(t) - before
			alive(t, c, honest)
			now := settled(t, c.usage(t), was)
			if n := c.report(t).Stats.Topics; n != 1 {
				t.Errorf("%s: %d topics are left, want 1", h.name, n)
			}
			t.Logf("%s, %d at once: status %d; per request while served %.0f kB of heap, %.0f kB at the peak; after: %+.1f MB heap",
				h.name, h.times, h.status, float64(during.Usage.Heap-was.Heap)/1e3/float64(h.times),
				float64(peak)/1e3/float64(h.times), float64(now.Heap-was.Heap)/1e6)
		}
		rapidReset(t, c)
		alive(t, c, honest)
	})
}

// alive makes sure that an honest client still gets events.
func alive(t *testing.T, c *child, honest *client) {
	t.Helper()
	c.post(t, "/publish?n=1")
	honest.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := honest.Decode(); err != nil {
		t.Fatalf("the honest client: %v", err)
	}
	c.waitFor(t, 1)
}

// request sends a request and checks the answer, up to the gap if there is to be
// one, or else up to the place that a new client is told.
func request(addr, text string, status int, gap string) (net.Conn, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	go io.WriteString(conn, text) // the answer may come before all is sent
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	switch {
	case err != nil:
		return conn, err
	case resp.StatusCode != status:
		return conn, fmt.Errorf("got %w %s, want %d", errStatus, resp.Status, status)
	case status != http.StatusOK:
		return conn, nil
	case gap == "":
		_, err := r.Peek(1)
		return conn, err
	case gap == noID:
		gap = ""
	}
	e, err := sse.NewDecoder(resp.Body).Decode()
	if err == nil && (e.Type != "gap" || e.Data != gap || !utf8.ValidString(e.Data)) {
		err = fmt.Errorf("got %.40q of type %q, want a gap %.40q", e.Data, e.Type, gap)
	}
	return conn, err
}

// Many clients send their request a byte at a time.
func TestSlowHeaders(t *testing.T) {
	const n = 500
	c := run(t, serverConfig{ReadHeaderTimeout: time.Second})
	was := c.report(t).Usage
	var all sync.WaitGroup
	var mu sync.Mutex
	var lasted []time.Duration
	began := time.Now()
	for range n {
		all.Go(func() {
			conn, err := net.Dial("tcp", c.Addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			go func() {
				for _, b := range []byte("GET /events HTTP/1.1\r\nHost: x\r\nX-Slow: " + strings.Repeat("a", 100)) {
					if _, err := conn.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}()
			conn.SetReadDeadline(time.Now().Add(patience))
			_, err = io.Copy(io.Discard, conn)
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Errorf("not closed within %v", patience)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			lasted = append(lasted, time.Since(began))
		})
	}
	time.Sleep(500 * time.Millisecond)
	during := c.report(t).Usage
	all.Wait()
	now := settled(t, c.usage(t), was)
	t.Logf("slow headers, %d at once, ReadHeaderTimeout 1 s: closed after %v to %v; %.1f kB heap each meanwhile; after: %v",
		n, quantile(lasted, 0).Round(time.Millisecond), quantile(lasted, 1).Round(time.Millisecond),
		float64(during.Heap-was.Heap)/1e3/n, now)
}

// rapidReset opens streams on one HTTP/2 connection and resets each at once.
func rapidReset(t *testing.T, c *child) {
	const n = 20_000
	was := c.report(t).Usage
	c.peak(t)
	before := c.peak(t)
	conn, err := net.Dial("tcp", c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	go func() {
		w := bufio.NewWriter(conn)
		w.Write(h2Request(1))
		for i := range uint32(n) {
			if i > 0 {
				w.Write(h2Get(2*i + 1))
			}
			w.Write(h2Frame(h2RSTStream, 0, 2*i+1, []byte{0, 0, 0, 8})) // CANCEL
		}
		w.Write(h2Frame(h2Ping, 0, 0, make([]byte, 8)))
		w.Flush() // fails if the server has enough of it
	}()
	began := time.Now()
	outcome := ""
	answers := 0
	for r := bufio.NewReader(conn); outcome == ""; {
		kind, flags, payload, err := h2Read(r)
		switch {
		case err != nil:
			outcome = err.Error()
		case kind == h2Headers:
			answers++
		case kind == h2GoAway:
			outcome = fmt.Sprintf("GOAWAY with error %d", binary.BigEndian.Uint32(payload[4:]))
		case kind == h2Ping && flags&1 != 0:
			outcome = "all taken, the connection lives on"
		}
	}
	took := time.Since(began)
	conn.Close()
	peak := c.peak(t) - before
	now := settled(t, c.usage(t), was)
	t.Logf("HTTP/2 rapid reset of %d streams: %s after %v; %d were answered before their reset; %s at the peak; before: %v; after: %v",
		n, outcome, took.Round(time.Millisecond), answers, bytesText(peak), was, now)
}
