package benchmark

import (
	"bytes"
	"context"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
)

// A crowd is a number of clients in this process, without connections: each is
// a ResponseWriter, and a goroutine that runs the library's handler.
type crowd struct {
	tb      testing.TB
	server  *server
	clients []*memoryWriter
	topics  []string // of each client, if each has one of its own
	bytes   int      // of an event's data
	number  int64    // of the last event published
	calling time.Duration
	round   atomic.Pointer[round]
	strays  atomic.Int64 // events at clients that should not have them
	timer   *time.Timer
	cancel  context.CancelFunc
	gone    sync.WaitGroup
}

// A round is the way of an event, or of several, to the clients.
type round struct {
	number int64         // of the event that is waited for
	events int           // if not 0: so many are, whatever their numbers
	only   *memoryWriter // nil: for all clients
	left   atomic.Int64  // clients that do not have them yet
	done   chan struct{}
}

func newRound(left int) *round {
	r := &round{done: make(chan struct{})}
	r.left.Store(int64(left))
	return r
}

// had notes that one more client has what the round is about.
func (r *round) had() {
	if r.left.Add(-1) == 0 {
		close(r.done)
	}
}

// newCrowd returns n clients, each of which has had an event.
func newCrowd(tb testing.TB, lib library, n, bytes int) *crowd {
	tb.Helper()
	c := &crowd{tb: tb, server: lib.start(0), bytes: bytes}
	c.gather(n, func(int) string { return lib.streamPath() })
	return c
}

// newTopicCrowd is newCrowd for clients that have each a topic of their own.
func newTopicCrowd(tb testing.TB, lib library, n, bytes int) *crowd {
	tb.Helper()
	c := &crowd{tb: tb, bytes: bytes}
	for i := range n {
		c.topics = append(c.topics, "topic-"+strconv.Itoa(i))
	}
	c.server = lib.topics(c.topics)
	c.gather(n, func(i int) string { return "/events?stream=" + c.topics[i] })
	return c
}

func (c *crowd) gather(n int, path func(i int) string) {
	c.tb.Helper()
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(context.Background())
	c.timer = time.NewTimer(0)
	c.tb.Cleanup(c.close)
	c.round.Store(&round{})
	for i := range n {
		request, err := http.NewRequestWithContext(ctx, "GET", path(i), nil)
		if err != nil {
			c.tb.Fatal(err)
		}
		w := &memoryWriter{crowd: c, header: http.Header{}}
		c.clients = append(c.clients, w)
		c.gone.Go(func() { c.server.handler.ServeHTTP(w, request) })
	}
	// Handlers tell nobody when they have subscribed.
	for wait := 50 * time.Millisecond; wait < patience; wait += wait / 2 {
		if c.publish(wait) == 0 {
			c.calling = 0
			return
		}
	}
	c.tb.Fatalf("%d of %d clients get no events", c.round.Load().left.Load(), n)
}

// publish publishes an event to all clients, waits until they have it, and
// returns how many do not.
func (c *crowd) publish(patience time.Duration) (left int64) {
	return c.send(newRound(len(c.clients)), patience, func(m message) { c.server.publish([]message{m}) })
}

// publishTo is publish for the topic of one client.
func (c *crowd) publishTo(client int, patience time.Duration) (left int64) {
	r := newRound(1)
	r.only = c.clients[client]
	return c.send(r, patience, func(m message) { c.server.publishTo(m, c.topics[client]) })
}

func (c *crowd) send(r *round, patience time.Duration, publish func(message)) (left int64) {
	c.number++
	r.number = c.number
	m := message{c.number, load.Payload(c.number, c.bytes)}
	return c.await(r, patience, func() { publish(m) })
}

// await returns how many clients do not have what publish publishes, when all of
// them have it or patience runs out.
func (c *crowd) await(r *round, patience time.Duration, publish func()) (left int64) {
	c.round.Store(r)
	start := time.Now()
	publish()
	c.calling += time.Since(start)
	if r.left.Load() == 0 {
		return 0 // all have it already, or there is nobody
	}
	c.timer.Reset(patience)
	select {
	case <-r.done:
		return 0
	case <-c.timer.C:
		return r.left.Load()
	}
}

// batches returns events for several publishers, in equal parts.
func (c *crowd) batches(publishers, events int) [][]message {
	all := make([][]message, publishers)
	for i := range all {
		for range events / publishers {
			c.number++
			all[i] = append(all[i], message{c.number, load.Payload(c.number, c.bytes)})
		}
	}
	return all
}

// rush has each batch published by a goroutine of its own, all at once, and
// returns how many clients do not have all of these events.
func (c *crowd) rush(batches [][]message, patience time.Duration) (left int64) {
	r := newRound(len(c.clients))
	for _, batch := range batches {
		r.events += len(batch)
	}
	return c.await(r, patience, func() {
		var publishers sync.WaitGroup
		for _, batch := range batches {
			publishers.Go(func() { c.server.publish(batch) })
		}
		publishers.Wait()
	})
}

func (c *crowd) close() {
	c.cancel()
	c.server.close() // before the handlers end: donovanhide's have no other way
	c.gone.Wait()
	if strays := c.strays.Load(); strays > 0 {
		c.tb.Errorf("%d events came to clients that should not have them", strays)
	}
	runtime.GC()
}

// A memoryWriter is the ResponseWriter of one client of a crowd. Libraries write
// an event's data in one call.
type memoryWriter struct {
	crowd  *crowd
	header http.Header
	number int64  // of the newest event
	round  *round // what had counts for
	had    int
}

func (w *memoryWriter) Header() http.Header { return w.header }
func (w *memoryWriter) WriteHeader(int)     {}
func (w *memoryWriter) Flush()              {}

// CloseNotify is what donovanhide/eventsource insists on.
func (w *memoryWriter) CloseNotify() <-chan bool { return nil }

var mark = []byte{load.Mark}

func (w *memoryWriter) Write(p []byte) (int, error) {
	r := w.crowd.round.Load()
	if r.events > 0 {
		w.count(r, bytes.Count(p, mark))
	} else {
		w.look(r, load.LastNumber(p))
	}
	return len(p), nil
}

// look notes the event of a round. One that is newer stands for those before it.
func (w *memoryWriter) look(r *round, number int64) {
	if number <= w.number {
		return
	}
	w.number = number
	switch {
	case r.only != nil && r.only != w:
		w.crowd.strays.Add(1)
	case number == r.number:
		r.had()
	}
}

// count notes events of a round that has several.
func (w *memoryWriter) count(r *round, events int) {
	if events == 0 {
		return
	}
	if w.round != r {
		w.round, w.had = r, 0
	}
	before := w.had
	w.had += events
	if before < r.events && w.had >= r.events {
		r.had()
	}
	w.crowd.strays.Add(int64(max(0, w.had-max(before, r.events))))
}
