package benchmark

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
	serveIdle()
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
	for _, lib := range libraries {
		t.Run(lib.name, func(t *testing.T) {
			s := newSite(t, lib, 0, 100)
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
	r := &round{number: 5, done: make(chan struct{})}
	r.left.Store(1)
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
	got, least := idleMemory(t, lib, 500), idleMemory(t, bare, 500)
	if least < 500 || got < least+8000 {
		t.Errorf("got %.0f bytes for each connection, and %.0f without a handler", got, least)
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
	http    *http.Server
	conns   atomic.Int64 // that net/http has
	clients *load.Process
	number  int64 // of the last event published
}

// newSite starts the library in this process, which ends together with the
// test. The clients are another process.
func newSite(tb testing.TB, lib library, keep, bytes int) *site {
	tb.Helper()
	requireLinux(tb)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &site{tb: tb, lib: lib, bytes: bytes, server: lib.start(keep)}
	s.http = &http.Server{Handler: s.server.handler, ConnState: s.connState}
	go s.http.Serve(listener)
	s.clients, err = load.Start(load.Options{
		Network: "tcp",
		Addr:    listener.Addr().String(),
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

// close ends everything, so that the next benchmark has the process for itself.
// The clients go first: not every library can close before them without leaving
// goroutines behind.
func (s *site) close() {
	if err := s.clients.Close(); err != nil {
		s.tb.Errorf("clients: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.tb.Errorf("%s has handlers that do not end: %v", s.lib.name, err)
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
		if err := s.clients.Rung(); err != nil {
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
	s := newSite(tb, lib, 2*events, bytes)
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

// A crowd is a number of clients in this process, without connections: each is
// a ResponseWriter, and a goroutine that runs the library's handler.
type crowd struct {
	tb     testing.TB
	server *server
	n      int
	bytes  int
	number int64
	round  atomic.Pointer[round]
	timer  *time.Timer
	cancel context.CancelFunc
	gone   sync.WaitGroup
}

// A round is the way of one event to all clients.
type round struct {
	number int64
	left   atomic.Int64 // clients that do not have it yet
	done   chan struct{}
}

func newCrowd(tb testing.TB, lib library, n, bytes int) *crowd {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{tb: tb, server: lib.start(0), n: n, bytes: bytes, timer: time.NewTimer(0), cancel: cancel}
	tb.Cleanup(c.close)
	c.round.Store(&round{})
	for range n {
		request, err := http.NewRequestWithContext(ctx, "GET", lib.streamPath(), nil)
		if err != nil {
			tb.Fatal(err)
		}
		w := &memoryWriter{crowd: c, header: http.Header{}}
		c.gone.Go(func() { c.server.handler.ServeHTTP(w, request) })
	}
	for range 100 {
		if c.publish(200*time.Millisecond) == 0 {
			return c
		}
	}
	tb.Fatalf("%d of %d clients get no events", c.round.Load().left.Load(), n)
	return nil
}

// publish publishes an event, waits until all clients have it, and returns how
// many do not.
func (c *crowd) publish(patience time.Duration) (left int64) {
	c.number++
	r := &round{number: c.number, done: make(chan struct{})}
	r.left.Store(int64(c.n))
	c.round.Store(r)
	c.timer.Reset(patience)
	c.server.publish([]message{{c.number, load.Payload(c.number, c.bytes)}})
	select {
	case <-r.done:
		return 0
	case <-c.timer.C:
		return r.left.Load()
	}
}

func (c *crowd) close() {
	c.cancel()
	c.server.close() // before the handlers end: donovanhide's have no other way
	c.gone.Wait()
	runtime.GC()
}

// A memoryWriter is the ResponseWriter of one client of a crowd. Libraries write
// an event's data in one call, so the last event in each is all that it looks for.
type memoryWriter struct {
	crowd  *crowd
	header http.Header
	number int64 // of the newest event
}

func (w *memoryWriter) Header() http.Header { return w.header }
func (w *memoryWriter) WriteHeader(int)     {}
func (w *memoryWriter) Flush()              {}

// CloseNotify is what donovanhide/eventsource insists on.
func (w *memoryWriter) CloseNotify() <-chan bool { return nil }

func (w *memoryWriter) Write(p []byte) (int, error) {
	number := load.LastNumber(p)
	if number <= w.number {
		return len(p), nil
	}
	w.number = number
	if r := w.crowd.round.Load(); number == r.number && r.left.Add(-1) == 0 {
		close(r.done)
	}
	return len(p), nil
}

// serverEnv names the library that a process is to serve.
const serverEnv = "BENCHMARK_SERVER"

// serveIdle runs a server for the measurement of memory, if that is what the
// process was started for, and ends it. It obeys lines: "publish" publishes an
// event, "usage" tells what the process has used.
func serveIdle() {
	name := os.Getenv(serverEnv)
	if name == "" {
		return
	}
	if err := serveLines(name, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveLines(name string, r io.Reader, w io.Writer) error {
	lib, err := find(name)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := lib.start(0)
	go http.Serve(listener, server.handler)
	answers := json.NewEncoder(w)
	answers.Encode(listener.Addr().String())
	number := int64(0)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		switch lines.Text() {
		case "publish":
			number++
			server.publish([]message{{number, load.Payload(number, 100)}})
			answers.Encode(number)
		case "usage":
			// Garbage is not what a connection costs.
			debug.FreeOSMemory()
			usage, err := meter.Now()
			if err != nil {
				return err
			}
			answers.Encode(usage)
		}
	}
	return lines.Err()
}

func find(name string) (library, error) {
	for _, lib := range libraries {
		if lib.name == name {
			return lib, nil
		}
	}
	return library{}, fmt.Errorf("no library %q", name)
}

// idleMemory returns how many bytes a connection costs in a server that serves
// nobody else, when its client has had an event.
func idleMemory(tb testing.TB, lib library, n int) float64 {
	tb.Helper()
	requireLinux(tb)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+lib.name)
	cmd.Stderr = os.Stderr
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		tb.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("server: %v", err)
		}
	}()
	answers := json.NewDecoder(stdout)
	read := func(answer any) {
		tb.Helper()
		if err := answers.Decode(answer); err != nil {
			tb.Fatal(err)
		}
	}
	var addr string
	read(&addr)
	clients, err := load.Start(load.Options{Network: "tcp", Addr: addr, Path: lib.streamPath(), Payload: 100, NoHead: lib.noHead})
	if err != nil {
		tb.Fatal(err)
	}
	defer clients.Close()

	var before, after meter.Usage
	fmt.Fprintln(stdin, "usage")
	read(&before)
	warmUp(tb, clients, n, func() (number int64) {
		fmt.Fprintln(stdin, "publish")
		read(&number)
		return number
	})
	fmt.Fprintln(stdin, "usage")
	read(&after)
	return float64(after.RSS-before.RSS) / float64(n)
}
