package benchmark

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

// patience is how long anything may take before it has failed.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	load.Main()
	serveRemote()
	readRemote()
	flag.Parse()
	if bench := flag.Lookup("test.bench"); bench.Value.String() != "" {
		describe()
	}
	os.Exit(m.Run())
}

// describe prints what the results do not say, in lines that benchstat passes
// over and the table command does not.
func describe() {
	command := []string{"go test"}
	for _, arg := range os.Args[1:] {
		switch name, value, _ := strings.Cut(arg, "="); {
		case name == "-test.paniconexit0" || name == "-test.testlogfile" || arg == "-test.timeout=10m0s":
			// go test adds these by itself
		case strings.ContainsAny(value, "^$|*()[]"):
			command = append(command, fmt.Sprintf("%s='%s'", strings.Replace(name, "-test.", "-", 1), value))
		default:
			command = append(command, strings.Replace(arg, "-test.", "-", 1))
		}
	}
	fmt.Printf("# command: %s\n", strings.Join(command, " "))
	fmt.Printf("# date: %s\n", time.Now().Format(time.DateOnly))
	fmt.Printf("# machine: %s\n", meter.Machine())
}

// The tests hold the benchmarks to what they say: each library really delivers,
// and what is lost or doubled is counted.

func TestEachLibraryDeliversEveryEventOnceAndInOrder(t *testing.T) {
	const (
		clients = 20
		bursts  = 5
	)
	for _, network := range []string{load.TCP, load.TLS, load.H2} {
		for _, lib := range libraries {
			if !lib.serves(network) {
				continue
			}
			t.Run(network+"/"+lib.name, func(t *testing.T) {
				s := newSite(t, lib, network, 0, 100)
				s.connect(clients)
				before := s.await().Received
				s.bursts(burst, times(bursts))
				r := s.await()
				s.check(r, 0)
				if got, want := r.Received-before, int64(clients*bursts*burst); got != want {
					t.Errorf("got %d deliveries, want %d", got, want)
				}
			})
		}
	}
}

func TestEachLibraryReplaysWhatClientsMissed(t *testing.T) {
	const (
		clients = 10
		events  = 300
		rounds  = 2
	)
	for _, lib := range libraries {
		if !lib.replays {
			continue
		}
		t.Run(lib.name, func(t *testing.T) {
			r := newReplay(t, lib, events, 100)
			before := r.report().Received
			for range rounds {
				r.round(clients)
			}
			after := r.report()
			r.check(after, lib.doubles*clients*rounds)
			if got, want := after.Received-before, int64(clients*events*rounds); got != want {
				t.Errorf("got %d events, want %d", got, want)
			}
		})
	}
}

func TestEachLibraryServesACrowd(t *testing.T) {
	for _, lib := range libraries {
		if !lib.inMemory {
			continue
		}
		t.Run(lib.name, func(t *testing.T) {
			c := newCrowd(t, lib, 50, 100)
			for range 20 {
				if left := c.publish(patience); left != 0 {
					t.Fatalf("event %d did not reach %d clients", c.number, left)
				}
			}
		})
	}
}

func TestACrowdNoticesWhatDoesNotArrive(t *testing.T) {
	lossy := func(int) *server {
		s := startNaive(0)
		publish := s.publish
		s.publish = func(batch []message) {
			if batch[0].number%10 != 0 {
				publish(batch)
			}
		}
		return s
	}
	c := newCrowd(t, library{start: lossy}, 3, 100)
	for c.number < 9 {
		c.publish(patience)
	}
	if left := c.publish(50 * time.Millisecond); left != 3 {
		t.Errorf("got %d clients without the event, want 3", left)
	}
}

func TestACrowdWaitsForTheNewestEvent(t *testing.T) {
	c := &crowd{}
	r := newRound(1)
	r.number = 5
	c.round.Store(r)
	w := &memoryWriter{crowd: c}
	for _, number := range []int64{3, 4, 5} {
		select {
		case <-r.done:
			t.Fatalf("event %d was not waited for", number)
		default:
		}
		fmt.Fprintf(w, "id: %d\ndata: %s\n\n", number, load.Payload(number, 100))
	}
	select {
	case <-r.done:
	default:
		t.Error("event 5 was not noticed")
	}
}

func TestACrowdWaitsForAllEventsOfARush(t *testing.T) {
	c := &crowd{}
	w := &memoryWriter{crowd: c}
	for range 2 {
		r := newRound(1)
		r.events = 4
		c.round.Store(r)
		for i, events := range []int{1, 2, 1} {
			if r.left.Load() != 1 {
				t.Fatalf("write %d was not waited for", i)
			}
			fmt.Fprint(w, "id: 1\n", strings.Repeat("data: "+load.Payload(1, 100)+"\n\n", events))
		}
		if left := r.left.Load(); left != 0 {
			t.Fatalf("got %d clients that do not have all, want 0", left)
		}
	}
	if got := c.strays.Load(); got != 0 {
		t.Errorf("got %d strays, want 0", got)
	}
	fmt.Fprint(w, strings.Repeat("data: "+load.Payload(1, 100)+"\n\n", 3))
	if got := c.strays.Load(); got != 3 {
		t.Errorf("got %d strays, want the 3 that were too many", got)
	}
}

func TestACrowdNoticesWhatComesToAnotherTopic(t *testing.T) {
	c := &crowd{}
	r := newRound(1)
	r.number, r.only = 1, &memoryWriter{crowd: c}
	c.round.Store(r)
	fmt.Fprintf(&memoryWriter{crowd: c}, "data: %s\n\n", load.Payload(1, 100))
	if left, strays := r.left.Load(), c.strays.Load(); left != 1 || strays != 1 {
		t.Errorf("got %d clients left and %d strays, want 1 and 1", left, strays)
	}
	fmt.Fprintf(r.only, "data: %s\n\n", load.Payload(1, 100))
	if left, strays := r.left.Load(), c.strays.Load(); left != 0 || strays != 1 {
		t.Errorf("got %d clients left and %d strays, want 0 and 1", left, strays)
	}
}

func TestEachLibraryWithTopicsServesThemApart(t *testing.T) {
	const topics = 30
	for _, lib := range libraries {
		if lib.topics == nil {
			continue
		}
		t.Run(lib.name, func(t *testing.T) {
			c := newTopicCrowd(t, lib, topics, 100)
			for i := range 3 * topics {
				if left := c.publishTo(i%topics, patience); left != 0 {
					t.Fatalf("event %d did not come to topic %d", c.number, i%topics)
				}
			}
			// What came to others would have done so before this.
			if left := c.publish(patience); left != 0 {
				t.Fatalf("event %d did not reach %d clients", c.number, left)
			}
		})
	}
}

func TestEachLibraryTakesEventsFromSeveralPublishers(t *testing.T) {
	for _, lib := range libraries {
		if !lib.inMemory {
			continue
		}
		for _, subscribers := range []int{0, 10} {
			t.Run(fmt.Sprintf("%s/%d", lib.name, subscribers), func(t *testing.T) {
				c := newCrowd(t, lib, subscribers, 100)
				batches := c.batches(8, 64)
				for range 20 {
					if left := c.rush(batches, patience); left != 0 {
						t.Fatalf("%d clients did not get all events", left)
					}
				}
			})
		}
	}
}

func TestClientsThatDoNotReadAreStalledAndHoldUpNobodyElse(t *testing.T) {
	const (
		readers = 20
		stalled = 5
		bursts  = 10
	)
	for _, name := range []string{"ours", "ours-detach", "naive"} {
		t.Run(name, func(t *testing.T) {
			lib, err := find(name)
			if err != nil {
				t.Fatal(err)
			}
			j, err := newJam(t, lib, readers, stalled, 1000, patience)
			if err != nil {
				t.Fatal(err)
			}
			before := j.check().Received
			for range bursts {
				if err := j.burst(); err != nil {
					t.Fatal(err)
				}
			}
			if got, want := j.check().Received-before, int64(readers*bursts*burst); got != want {
				t.Errorf("got %d deliveries, want %d", got, want)
			}
		})
	}
}

func TestALibraryForWhichAllWaitIsFoundOut(t *testing.T) {
	for _, name := range []string{"tmaxmax", "floor"} {
		t.Run(name, func(t *testing.T) {
			lib, err := find(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := newJam(t, lib, 20, 1, 1000, 500*time.Millisecond); !errors.Is(err, errWait) {
				t.Errorf("got error %v, want %v", err, errWait)
			}
		})
	}
}

func TestAServerThatCrashesIsFoundOut(t *testing.T) {
	lib, err := find("ours")
	if err != nil {
		t.Fatal(err)
	}
	r := newRemote(t, lib, load.TCP, 100)
	var answer any
	if err := r.call(&answer, patience, "jump"); !errors.Is(err, errCrashed) || !strings.Contains(err.Error(), `no command "jump"`) {
		t.Errorf("got error %v, want %v and its reason", err, errCrashed)
	}
}

func TestMemoryOfIdleClients(t *testing.T) {
	lib, err := find("ours")
	if err != nil {
		t.Fatal(err)
	}
	bare, err := find("floor")
	if err != nil {
		t.Fatal(err)
	}
	// A handler that runs has two goroutines with stacks of 2 KiB at least, and
	// 8 KiB of buffers; a connection that was taken over has none of that.
	for _, network := range []string{load.TCP, load.TLS} {
		got, least := idleMemory(t, lib, network, 500), idleMemory(t, bare, network, 500)
		if least.RSS < 500 || got.RSS < least.RSS+8000 || got.Stacks < least.Stacks+4000 || got.Heap < least.Heap+8000 {
			t.Errorf("over %s got %+v bytes for each connection, and %+v without a handler", network, got, least)
		}
	}
	// A stream of HTTP/2 has one such goroutine, and 4 KiB of buffers.
	if got := idleMemory(t, lib, load.H2, 500); got.RSS < 6000 || got.Stacks < 2000 || got.Heap < 4000 {
		t.Errorf("over %s got %+v bytes for each stream", load.H2, got)
	}
}

func TestCodecsAgree(t *testing.T) {
	m := message{7, load.Payload(7, 100)}
	for _, codec := range codecs {
		if codec.encode == nil {
			continue
		}
		var w bytes.Buffer
		if err := codec.encode(&w, m); err != nil {
			t.Errorf("%s: %v", codec.name, err)
		}
		if got, want := w.String(), "id: 7\ndata: "+m.data+"\n\n"; got != want {
			t.Errorf("%s encodes\n%q, want\n%q", codec.name, got, want)
		}
	}
	var want []string
	var stream bytes.Buffer
	for i := range int64(100) {
		m := message{i, load.Payload(i, 100)}
		want = append(want, m.data)
		if err := encodeOurs(&stream, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, codec := range codecs {
		if codec.decode == nil {
			continue
		}
		var got []string
		err := codec.decode(bytes.NewReader(stream.Bytes()), func(data string) { got = append(got, data) })
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s decodes %d events, error %v, want the %d that were encoded", codec.name, len(got), err, len(want))
		}
	}
}

// A site is a library behind an http.Server, and its clients.
type site struct {
	tb      testing.TB
	lib     library
	bytes   int // of an event's data
	server  *server
	http    *http.Server // nil if the library runs apart
	conns   atomic.Int64 // that net/http has
	clients *load.Process
	number  int64 // of the last event published
}

// newSite starts the library, which ends together with the test: in this process,
// if it can. The clients are another process, and connect over the network.
func newSite(tb testing.TB, lib library, network string, keep, bytes int) *site {
	tb.Helper()
	requireLinux(tb)
	if lib.missing != nil {
		require(tb, lib.missing())
	}
	s := &site{tb: tb, lib: lib, bytes: bytes, server: lib.start(keep)}
	addr := s.server.addr
	if s.server.handler != nil {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		addr = listener.Addr().String()
		s.http = &http.Server{Handler: s.server.handler, ConnState: s.connState}
		go load.Serve(s.http, listener, network)
	}
	var err error
	s.clients, err = load.Start(load.Options{
		Network: network,
		Addr:    addr,
		Path:    lib.streamPath(),
		Payload: bytes,
		NoHead:  lib.noHead,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.close)
	return s
}

func requireLinux(tb testing.TB) {
	tb.Helper()
	if meter.Supported != nil {
		tb.Skip(meter.Supported)
	}
}

// require passes over a test of what is missing, unless everything is to be
// tested.
func require(tb testing.TB, missing error) {
	tb.Helper()
	if missing == nil {
		return
	}
	if b, ok := tb.(*testing.B); ok {
		noResult(b, missing)
	}
	if os.Getenv("CI") == "true" {
		tb.Fatal(missing)
	}
	tb.Skip(missing)
}

// cpu returns the time that the library has used until now.
func (s *site) cpu() time.Duration {
	if s.server.cpu != nil {
		return s.server.cpu()
	}
	return meter.CPU()
}

// close ends everything, so that the next benchmark has the process for itself.
// The clients go first: not every library can close before them without leaving
// goroutines behind.
func (s *site) close() {
	if err := s.clients.Close(); err != nil {
		s.tb.Errorf("clients: %v", err)
	}
	if s.http != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			s.tb.Errorf("%s has handlers that do not end: %v", s.lib.name, err)
		}
	}
	s.server.close()
	debug.FreeOSMemory()
}

func (s *site) publish(n int) {
	batch := make([]message, n)
	for i := range batch {
		s.number++
		batch[i] = message{s.number, load.Payload(s.number, s.bytes)}
	}
	s.server.publish(batch)
}

// connect connects n clients, each of which has had an event when it returns.
func (s *site) connect(n int) {
	s.tb.Helper()
	warmUp(s.tb, s.clients, n, func() int64 {
		s.publish(1)
		return s.number
	})
}

// warmUp connects n clients and publishes single events until all have had one.
// There are libraries that tell nobody, by an answer's head say, that they have
// a client.
func warmUp(tb testing.TB, clients *load.Process, n int, publish func() (number int64)) {
	tb.Helper()
	if files, err := meter.Files(); err != nil || n+100 > files {
		tb.Skipf("%d clients need more than %d open files (%v)", n, files, err)
	}
	r, err := clients.Connect(n, load.Place{Number: load.Unknown}, patience)
	for range 50 {
		if err != nil {
			tb.Fatal(err)
		}
		if r, err = clients.Await(publish(), time.Second); err == nil && r.Have == n {
			return
		}
	}
	tb.Fatalf("%d of %d clients get events", r.Have, n)
}

// await waits until all clients have the last event, and returns the report.
func (s *site) await() load.Report {
	s.tb.Helper()
	r, err := s.clients.Await(s.number, patience)
	if err != nil {
		s.tb.Fatal(err)
	}
	if r.Have < r.Clients || r.Clients == 0 {
		s.tb.Fatalf("%d of %d clients have event %d: %+v", r.Have, r.Clients, s.number, r)
	}
	return r
}

// check fails the test if anything went wrong with an event on its way, but for
// the given number of doubled ones.
func (s *site) check(r load.Report, doubled int64) {
	s.tb.Helper()
	if r.Lost != 0 || r.Damaged != 0 || r.Doubled != doubled {
		s.tb.Errorf("got %d events lost, %d doubled, %d damaged, want 0, %d, 0", r.Lost, r.Doubled, r.Damaged, doubled)
	}
}

// bursts calls next as often as it returns true, and publishes a burst each time
// that all clients have the one before.
func (s *site) bursts(events int, next func() bool) {
	s.tb.Helper()
	if err := s.clients.Bell(s.number, events); err != nil {
		s.tb.Fatal(err)
	}
	for next() {
		s.publish(events)
		if err := s.clients.Rung(patience); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// times returns a function that returns true n times.
func times(n int) func() bool {
	return func() bool { n--; return n >= 0 }
}

// A replay is a site that has events for clients that come back.
type replay struct {
	*site
	from   load.Place // before those
	events int
}

// newReplay publishes the events, and what comes before them.
func newReplay(tb testing.TB, lib library, events, bytes int) *replay {
	tb.Helper()
	s := newSite(tb, lib, load.TCP, 2*events, bytes)
	s.connect(1)
	_, id, err := s.clients.Report()
	if err != nil {
		tb.Fatal(err)
	}
	if id == "" {
		tb.Fatal("the client was told no ID")
	}
	r := &replay{s, load.Place{LastID: id, Number: s.number}, events}
	s.hangUp()
	s.publish(events)
	return r
}

// report tells what the clients have got by now.
func (s *site) report() load.Report {
	s.tb.Helper()
	r, _, err := s.clients.Report()
	if err != nil {
		s.tb.Fatal(err)
	}
	return r
}

// hangUp has all clients leave, and waits until the handlers have noticed:
// donovanhide's server panics if a client that left misses 128 events first.
func (s *site) hangUp() {
	s.tb.Helper()
	if err := s.clients.HangUp(); err != nil {
		s.tb.Fatal(err)
	}
	for deadline := time.Now().Add(patience); s.conns.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.tb.Fatalf("%d connections are still there", s.conns.Load())
		}
	}
}

func (s *site) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateHijacked, http.StateClosed:
		s.conns.Add(-1)
	}
}

// round has n clients come back, get what they missed, and leave.
func (r *replay) round(n int) load.Report {
	r.tb.Helper()
	if _, err := r.clients.Connect(n, r.from, patience); err != nil {
		r.tb.Fatal(err)
	}
	report := r.await()
	r.hangUp()
	return report
}
