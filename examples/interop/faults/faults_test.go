// Package faults shows what becomes of clients and server when the network, a
// client or the server itself does what it should not. README.md has the
// figures, and the commands that print them.
package faults

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

var long = flag.Bool("long", false, "run the long versions, with the figures of README.md")

func TestMain(m *testing.M) {
	if config := os.Getenv(serverEnv); config != "" {
		if err := runServer(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// either returns short, or in a run with -long the other.
func either[T any](short, inLong T) T {
	if *long {
		return inLong
	}
	return short
}

// A way is one of the two to serve a client.
type way struct {
	name   string
	detach bool
}

var ways = []way{{"Serve", false}, {"Detach", true}}

// each runs the test once for each way.
func each(t *testing.T, test func(t *testing.T, w way)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) { test(t, w) })
	}
}

// handler serves the broker's topics that the query names, and tells done how
// each stream ended.
func (w way) handler(b *sse.Broker, done func(error)) http.HandlerFunc {
	if done == nil {
		done = func(error) {}
	}
	return func(rw http.ResponseWriter, r *http.Request) {
		topics := r.URL.Query()["topic"]
		if w.detach {
			b.Detach(rw, r, done, topics...)
			return
		}
		done(b.Serve(rw, r, topics...))
	}
}

// start serves h at the listener until the test ends.
func start(t *testing.T, ln net.Listener, h http.Handler) *http.Server {
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return srv
}

func listen(t *testing.T) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// A client reads one stream.
type client struct {
	*sse.Decoder
	conn net.Conn
}

// open asks for a stream and returns when its headers are there.
func open(addr, path, lastID string) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return openOn(conn, path, lastID)
}

var errStatus = errors.New("status")

func openOn(conn net.Conn, path, lastID string) (*client, error) {
	if lastID != "" {
		lastID = "Last-Event-ID: " + lastID + "\r\n"
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: faults\r\nAccept: text/event-stream\r\n%s\r\n", path, lastID)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%w %s", errStatus, resp.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetReadDeadline(time.Time{})
	d := sse.NewDecoder(resp.Body)
	d.MaxEventBytes = -1
	return &client{d, conn}, nil
}

// A view is what a client made of a stream of events whose data begin with
// consecutive numbers.
type view struct {
	last, events, told int
	inGap              bool // a gap was told since last
	err                error
}

// see takes in one event, and makes err of one that is doubled, out of order, or
// comes after some that were lost without a word.
func (v *view) see(e sse.Event) {
	if e.Type == "gap" {
		v.told++
		v.inGap = true
		return
	}
	digits, _, _ := strings.Cut(e.Data, " ")
	n, err := strconv.Atoi(digits)
	switch {
	case v.err != nil:
	case err != nil:
		v.err = err
	case v.events > 0 && n <= v.last:
		v.err = fmt.Errorf("got event %d after %d", n, v.last)
	case v.events > 0 && n > v.last+1 && !v.inGap:
		v.err = fmt.Errorf("lost events %d to %d, and no gap was told", v.last+1, n-1)
	}
	v.last, v.inGap = n, false
	v.events++
}

// patience bounds every wait. It is long, because a busy machine is no failure.
const patience = time.Minute

// eventually waits for what other programs or the kernel have to bring about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// usage is what a process holds.
type usage struct {
	Goroutines, Files int
	Heap              int64 // in use after a collection, in bytes
}

func use() usage {
	runtime.GC()
	runtime.GC() // what a sync.Pool held survives one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd")
	return usage{runtime.NumGoroutine(), len(files), int64(m.HeapAlloc)}
}

// steady returns the usage once it has stopped falling, which what an earlier
// test left takes a moment to do.
func steady() usage {
	for last := use(); ; {
		time.Sleep(200 * time.Millisecond)
		now := use()
		if now.Heap > last.Heap-100_000 && now.Goroutines >= last.Goroutines {
			return now
		}
		last = now
	}
}

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d files, %s heap", u.Goroutines, u.Files, bytesText(u.Heap))
}

func bytesText(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// settleTime is how long settled waits. A test has a longer WriteTimeout, or what
// a forgotten deadline holds until it fires would not show.
const settleTime = 20 * time.Second

// settled waits until no more is held than before, give or take a few, and 1 MB.
func settled(t *testing.T, measure func() usage, was usage) usage {
	t.Helper()
	var now usage
	for end := time.Now().Add(settleTime); ; time.Sleep(50 * time.Millisecond) {
		now = measure()
		if now.Goroutines <= was.Goroutines+2 && now.Files <= was.Files+2 && now.Heap <= was.Heap+1<<20 {
			return now
		}
		if time.Now().After(end) {
			t.Errorf("leak: before: %v; after: %v", was, now)
			return now
		}
	}
}

// quantile returns the q-quantile of d, which it sorts.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

// reasons counts why streams ended.
type reasons struct {
	left, slow, closed, full, other atomic.Int64
}

func (r *reasons) count(err error) {
	counter := &r.other
	switch {
	case errors.Is(err, sse.ErrClientLeft):
		counter = &r.left
	case errors.Is(err, sse.ErrTooSlow):
		counter = &r.slow
	case errors.Is(err, sse.ErrClosed):
		counter = &r.closed
	case errors.Is(err, sse.ErrFull):
		counter = &r.full
	}
	counter.Add(1)
}

func (r *reasons) String() string {
	return fmt.Sprintf("%d left, %d too slow, %d closed, %d full, %d other",
		r.left.Load(), r.slow.Load(), r.closed.Load(), r.full.Load(), r.other.Load())
}

// ratio returns that of two times, of which those below floor count as floor: what
// a busy machine cannot tell apart has the ratio 1.
func ratio(with, without, floor time.Duration) float64 {
	return float64(max(with, floor)) / float64(max(without, floor))
}
