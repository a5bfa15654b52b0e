// Package load is the other side of the benchmarks: any number of clients that
// read event streams and check every event, at little cost. They run in a
// process of their own, see [Start], so that the CPU time and the memory of the
// process under test are the server's alone.
package load

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Options tell how a Fleet connects.
type Options struct {
	Network string // TCP, TLS, H2C or H2
	Addr    string // host and port of the server
	Path    string // and query
	Streams int    // H2C, H2: of one connection; 0: 100
	Payload int    // bytes of each event's data
	Keep    bool   // clients that connect again know what they had
	NoHead  bool   // the server sends nothing before the first event
}

// unanswered is how many requests may wait for their answer's head at a time: as
// much as a server has to expect, and not what its queues overflow from.
const unanswered = 256

// A Place is where a client begins in the stream.
type Place struct {
	LastID string // of the last event that it has had, to tell the server
	Number int64  // of that event; Unknown if the first one may have any
}

// Unknown is the number of an event that may be any.
const Unknown = -1

// A Report tells what the clients have got by now, since they were made.
type Report struct {
	Clients   int   // that are connected, or are about to be
	Streaming int   // of these, the ones whose answer began
	Have      int   // of all, those that have the event that was waited for
	Received  int64 // events
	Lost      int64 // events that a later one was received instead of
	Doubled   int64 // events that were received before, or too late
	Damaged   int64 // events that were not as they were sent

	Delays []time.Duration // at 50, 99 and 100 percent of the events since Time
}

// A Fleet is a number of clients in this process.
type Fleet struct {
	opts    Options
	payload int
	net     network
	room    chan struct{} // has an element for each request that is not answered

	mu      sync.Mutex // guards what follows, and the clients
	clients []client
	report  Report
	want    int64 // number of the event that is waited for
	step    int64 // what to add to want when all have it; 0: wait no more
	reached func()
	delays  []time.Duration
	timing  bool
	done    func() bool // what wait waits for
	ended   chan struct{}
	failed  error         // what went wrong with a client, or the network
	broken  chan struct{} // closed when that is set
}

// A network carries a Fleet's requests. It is called by one goroutine at a time,
// without the Fleet's lock, and calls the Fleet's methods with the lock held.
type network interface {
	dial(client int, lastID string) error // begins to connect
	flush() error                         // sends what dial may have kept back
	hangUp(client int)
	close()
}

var errStopped = errors.New("clients stopped")

// New returns a Fleet without clients.
func New(opts Options) (*Fleet, error) {
	f := newFleet(opts)
	var err error
	switch opts.Network {
	case TCP:
		f.net, err = newTCP(f)
	case TLS:
		f.net = &tlsNet{fleet: f}
	case H2C, H2:
		f.net = newHTTP2(f)
	default:
		err = errNetwork(opts.Network)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func newFleet(opts Options) *Fleet {
	return &Fleet{opts: opts, payload: opts.Payload, room: make(chan struct{}, unanswered), broken: make(chan struct{})}
}

// Connect connects until n clients are connected, and returns when the answers
// to all of them have begun, or after the given time. With NoHead it waits for
// none of them. New clients begin at the given place.
func (f *Fleet) Connect(n int, from Place, patience time.Duration) (Report, error) {
	f.mu.Lock()
	for len(f.clients) < n {
		f.clients = append(f.clients, client{number: from.Number, id: []byte(from.LastID)})
	}
	type dial struct {
		client int
		lastID string
	}
	var dials []dial
	for i := range f.clients[:n] {
		c := &f.clients[i]
		if c.state == away {
			*c = client{state: asking, number: c.number, id: c.id}
			dials = append(dials, dial{i, string(c.id)})
			f.report.Clients++
		}
	}
	f.mu.Unlock()
	start := time.Now()
	for _, d := range dials {
		if err := f.mayAsk(d.client, patience); err != nil {
			return f.Report(), err
		}
		if err := f.net.dial(d.client, d.lastID); err != nil {
			return f.Report(), f.cause(fmt.Errorf("client %d: %w", d.client, err))
		}
	}
	if err := f.net.flush(); err != nil {
		return f.Report(), f.cause(err)
	}
	return f.wait(patience-time.Since(start), func() bool { return f.opts.NoHead || f.report.Streaming >= f.report.Clients })
}

// cause returns what went wrong before err, if something did: an answer that closed the
// connection on which a request then could not be sent.
func (f *Fleet) cause(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(f.failed, err)
}

// mayAsk waits until a client may send its request.
func (f *Fleet) mayAsk(client int, patience time.Duration) error {
	if len(f.room) == cap(f.room) {
		if err := f.net.flush(); err != nil {
			return f.cause(err)
		}
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case f.room <- struct{}{}:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.clients[client].waiting = true
		return nil
	case <-f.broken:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.failed
	case <-timeout.C:
		return fmt.Errorf("no answer to %d requests within %v", unanswered, patience)
	}
}

// Await waits until every client has the event with this number.
func (f *Fleet) Await(number int64, patience time.Duration) (Report, error) {
	f.mu.Lock()
	f.expect(number, 0, nil)
	f.mu.Unlock()
	return f.wait(patience, func() bool { return f.report.Have == len(f.clients) })
}

// AwaitEnd waits until no client is connected any more.
func (f *Fleet) AwaitEnd(patience time.Duration) (Report, error) {
	return f.wait(patience, func() bool { return f.report.Clients == 0 })
}

// Bell calls ring each time that every client has the next events, beginning
// with that after the given number, until another method waits for something.
func (f *Fleet) Bell(number int64, events int, ring func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expect(number+int64(events), int64(events), ring)
}

// expect begins to count the clients that have an event.
func (f *Fleet) expect(number, step int64, reached func()) {
	f.want, f.step, f.reached = number, step, reached
	f.report.Have = 0
	for i := range f.clients {
		if f.clients[i].number >= number {
			f.report.Have++
		}
	}
}

// Time begins to take the time from publishing to reading, or ends it.
func (f *Fleet) Time(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timing, f.delays = on, nil
}

// HangUp closes all connections. The clients are forgotten unless the options
// keep them.
func (f *Fleet) HangUp() {
	for i := range f.clients {
		f.net.hangUp(i)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.opts.Keep {
		f.clients = f.clients[:0]
	}
}

// Close ends the Fleet.
func (f *Fleet) Close() error {
	f.net.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail(errStopped)
	return nil
}

// LastID returns the last event ID of the first client.
func (f *Fleet) LastID() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.clients) == 0 {
		return ""
	}
	return string(f.clients[0].id)
}

// Report tells how things stand.
func (f *Fleet) Report() Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reportLocked()
}

func (f *Fleet) reportLocked() Report {
	r := f.report
	if n := len(f.delays); n > 0 {
		slices.Sort(f.delays)
		r.Delays = []time.Duration{f.delays[n/2], f.delays[n*99/100], f.delays[n-1]}
	}
	return r
}

// wait waits until done, which is asked with mu held whenever something has
// changed, or as long as patience lasts. That it ran out is no error.
func (f *Fleet) wait(patience time.Duration, done func() bool) (Report, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done, f.ended = done, make(chan struct{})
	f.changed()
	ended := f.ended
	f.mu.Unlock()
	timeout := time.NewTimer(patience)
	select {
	case <-ended:
	case <-timeout.C:
	}
	timeout.Stop()
	f.mu.Lock()
	f.done = nil
	return f.reportLocked(), f.failed
}

// What follows is called with mu held.

func (f *Fleet) changed() {
	if f.done != nil && (f.failed != nil || f.done()) {
		f.done = nil
		close(f.ended)
	}
}

// fail makes whoever waits return err.
func (f *Fleet) fail(err error) {
	if f.failed == nil {
		f.failed = err
		close(f.broken)
	}
	f.changed()
}

// asked notes that the request of c was sent.
func (f *Fleet) asked(c *client) {
	if f.opts.NoHead {
		f.answered(c)
	}
}

// answered lets another request be sent.
func (f *Fleet) answered(c *client) {
	if c.waiting {
		c.waiting = false
		<-f.room
	}
}

// begin notes that the answer to c has begun.
func (f *Fleet) begin(c *client) {
	f.answered(c)
	c.state = streaming
	f.report.Streaming++
	f.changed()
}

// end notes that the connection of c is no more.
func (f *Fleet) end(c *client) {
	if c.state == away {
		return
	}
	f.answered(c)
	if c.state == streaming {
		f.report.Streaming--
	}
	c.state = away
	c.pending = nil
	f.report.Clients--
	f.changed()
}

// count counts an event that c has read.
func (f *Fleet) count(c *client) {
	if c.damaged {
		f.report.Damaged++
		return
	}
	before := c.number
	if before != Unknown {
		if c.event <= before {
			f.report.Doubled++
			return
		}
		f.report.Lost += c.event - before - 1
	}
	c.number = c.event
	f.report.Received++
	if f.timing {
		f.delays = append(f.delays, time.Duration(f.now()-c.nanos))
	}
	if before < f.want && c.event >= f.want {
		f.report.Have++
		if f.report.Have == len(f.clients) {
			f.allHave()
		}
	}
}

func (f *Fleet) allHave() {
	if f.step > 0 {
		f.want += f.step
		f.report.Have = 0
		f.reached()
	}
	f.changed()
}

// now is read for each event, and not once for what came together, since that
// is when a program would have the event in its hands.
func (f *Fleet) now() int64 { return time.Now().UnixNano() }

// request returns what an HTTP/1.1 client writes.
func (f *Fleet) request(lastID string) string {
	request := "GET " + f.opts.Path + " HTTP/1.1\r\nHost: " + f.opts.Addr + "\r\nAccept: text/event-stream\r\n"
	if lastID != "" {
		request += "Last-Event-ID: " + lastID + "\r\n"
	}
	return request + "\r\n"
}
