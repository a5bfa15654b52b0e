// Package clients tests what real clients make of a stream.
package clients

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ldsse "github.com/launchdarkly/eventsource"
	tmaxsse "github.com/tmaxmax/go-sse"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// patience bounds every wait. It is long, because a busy machine is no failure.
const patience = 2 * time.Minute

// types are those that the events have; "" is "message".
var types = []string{"", "update", "Ärger", "with blank", "a:b", "x"}

// An event is what a client reports.
type event struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Data string `json:"data"`
}

func (e event) String() string {
	return fmt.Sprintf("%s %q %.60q (%d bytes)", e.ID, e.Type, e.Data, len(e.Data))
}

// A client begins to read the stream at url, which reconnects by itself, and
// reports each event until the test ends.
type client struct {
	name string
	run  func(t *testing.T, url string, report func(event))

	// linesOnly: it shows text of one line, and no types.
	linesOnly bool

	// blanks: it reports an empty message for a block that the standard has
	// clients dispatch nothing for, a lone ID or reconnection time say. These
	// cannot be told from events with empty data, so a program ignores both.
	blanks bool

	// keeps returns what it does not lose of data. Nil is all.
	keeps func(data string) string

	// needsEvent: it takes note of an ID only together with an event, so if it
	// is cut off before its first it begins anew.
	needsEvent bool
}

var clients = []client{
	{name: "Chromium", run: func(t *testing.T, url string, report func(event)) {
		runPage(t, url, "eventsource.html", report)
	}},
	{name: "fetch-event-source in Chromium", run: func(t *testing.T, url string, report func(event)) {
		runPage(t, url, "fetch-event-source.html", report)
	}, blanks: true, keeps: keptByFetchEventSource},
	{name: "eventsource in Node", run: func(t *testing.T, url string, report func(event)) {
		runNode(t, report, append([]string{"eventsource.mjs", url, "message"}, types[1:]...)...)
	}, needsEvent: true},
	{name: "eventsource-parser in Node", run: func(t *testing.T, url string, report func(event)) {
		runNode(t, report, "eventsource-parser.mjs", url)
	}, needsEvent: true},
	{name: "curl", run: runCurl, linesOnly: true},
	{name: "tmaxmax go-sse", run: runTmaxmax, blanks: true},
	{name: "launchdarkly eventsource", run: runLaunchDarkly, blanks: true},
	{name: "Client", run: runClient},
}

// runPage opens a page of this directory with a list named got.
func runPage(t *testing.T, stream, page string, report func(event)) {
	query := url.Values{"stream": {stream}, "type": append([]string{"message"}, types[1:]...)}
	base, _, _ := strings.Cut(stream, "/events")
	p := tools.OpenPage(t, base+"/"+page+"?"+query.Encode())
	var reader sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); reader.Wait() })
	reader.Go(func() {
		for n := 0; ctx.Err() == nil; {
			// In pieces, because a page hands over everything at once.
			events, err := tools.Eval[[]event](p, fmt.Sprintf("window.got ? got.slice(%d, %d) : []", n, n+100))
			if err != nil {
				return
			}
			for _, e := range events {
				report(e)
			}
			if n += len(events); len(events) == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
}

// keptByFetchEventSource returns data without a byte order mark that begins a
// line, and without empty lines at the beginning.
func keptByFetchEventSource(data string) string {
	lines := strings.Split(data, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "\ufeff")
	}
	return strings.TrimLeft(strings.Join(lines, "\n"), "\n")
}

// runNode runs a program of this directory that prints each event as JSON.
func runNode(t *testing.T, report func(event), args ...string) {
	if _, err := os.Stat("../node_modules/eventsource"); err != nil {
		tools.Missing(t, "run npm ci in examples/interop first: %v", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	p := tools.Start(t, dir, "node", args...)
	p.Lines(t, func(line string) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%v: %s", err, line)
			return
		}
		report(e)
	})
}

func runCurl(t *testing.T, url string, report func(event)) {
	tools.Path(t, "curl")
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	p := tools.Start(t, dir, "bash", "follow.sh", url)
	p.Lines(t, func(line string) {
		id, data, _ := strings.Cut(line, "\t")
		report(event{id, "message", data})
	})
}

func runTmaxmax(t *testing.T, url string, report func(event)) {
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := tmaxsse.NewConnection(r)
	c.Buffer(nil, 1<<20)
	c.SubscribeToAll(func(e tmaxsse.Event) {
		report(event{e.LastEventID, message(e.Type), e.Data})
	})
	background(t, func() {
		if err := c.Connect(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func runLaunchDarkly(t *testing.T, url string, report func(event)) {
	s, err := ldsse.SubscribeWithURL(url, ldsse.StreamOptionErrorHandler(func(error) ldsse.StreamErrorHandlerResult {
		return ldsse.StreamErrorHandlerResult{} // go on
	}))
	if err != nil {
		t.Fatal(err)
	}
	background(t, func() {
		for e := range s.Events {
			report(event{e.Id(), message(e.Event()), e.Data()})
		}
	})
	t.Cleanup(s.Close)
}

func runClient(t *testing.T, url string, report func(event)) {
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &sse.Client{Logger: slog.New(slog.DiscardHandler)}
	background(t, func() {
		for e, err := range c.Events(r) {
			if err == nil {
				report(event{e.ID, message(e.Type), e.Data})
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

// background runs f, and waits for it as the test ends.
func background(t *testing.T, f func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	t.Cleanup(wg.Wait)
}

func message(typ string) string {
	if typ == "" {
		return "message"
	}
	return typ
}

// start has the client report what a program would not ignore.
func (c client) start(t *testing.T, url string, report func(event)) {
	c.run(t, url, func(e event) {
		if !c.blanks || e.Data != "" || e.Type != "message" {
			report(e)
		}
	})
}

// A source is a program with one stream. It can be stopped, and started at the
// same address, and keeps its events in something that outlives it.
type source struct {
	t      *testing.T
	url    string
	detach bool

	mu     sync.Mutex
	log    []sse.Event
	broker *sse.Broker
	srv    *http.Server
	ln     net.Listener
	taken  []net.Conn // from srv, by Detach

	asked atomic.Int64 // calls of catchUp
	begun atomic.Int64 // streams of Serve whose first bytes were written
}

func newSource(t *testing.T, detach bool) *source {
	s := &source{t: t, detach: detach}
	ln := tools.Listen(t, "127.0.0.1:"+tools.FreePort(t))
	s.url = "http://" + ln.Addr().String() + "/events"
	s.newBroker()
	s.serve(ln)
	t.Cleanup(s.cut)
	return s
}

// newBroker begins with an empty history.
func (s *source) newBroker() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broker = &sse.Broker{
		History: 100_000, HistoryBytes: -1,
		Retry:   100 * time.Millisecond,
		CatchUp: s.catchUp,
	}
}

// catchUp yields the events after the client's last one from the log.
func (s *source) catchUp(_ context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
	s.asked.Add(1)
	return func(yield func(sse.Event, error) bool) {
		s.mu.Lock()
		log := s.log
		s.mu.Unlock()
		i := slices.IndexFunc(log, func(e sse.Event) bool { return e.ID == missed.LastEventID })
		if i < 0 { // it has seen none
			return
		}
		for _, e := range log[i+1:] {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// serve serves at ln.
func (s *source) serve(ln net.Listener) {
	mux := http.NewServeMux()
	broker := s.broker
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		if s.detach {
			broker.Detach(w, r, nil)
		} else {
			broker.Serve(noted{w, sync.OnceFunc(func() { s.begun.Add(1) })}, r)
		}
	})
	mux.Handle("GET /", http.FileServer(http.Dir(".")))
	mux.HandleFunc("GET /fetch-event-source/{module}", fetchEventSourceModule)
	s.srv = &http.Server{Handler: mux, ConnState: func(c net.Conn, state http.ConnState) {
		if state == http.StateHijacked {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.taken = append(s.taken, c)
		}
	}}
	s.ln = ln
	go s.srv.Serve(ln)
}

// fetchEventSourceModule serves the package's modules, which name each other without
// ".js".
func fetchEventSourceModule(w http.ResponseWriter, r *http.Request) {
	http.ServeFile(w, r, filepath.Join("../node_modules/@microsoft/fetch-event-source/lib/esm", r.PathValue("module")+".js"))
}

// listen is serve at the same address as before.
func (s *source) listen() {
	s.t.Helper()
	_, addr, _ := strings.Cut(strings.TrimSuffix(s.url, "/events"), "://")
	s.serve(tools.Listen(s.t, addr))
}

// cut closes the server and every connection.
func (s *source) cut() {
	s.ln.Close() // which srv does not know before Serve has begun
	s.srv.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.taken {
		c.Close()
	}
	s.taken = nil
}

// restart ends the program and starts it again: it has lost its history.
func (s *source) restart() {
	s.t.Helper()
	s.cut()
	s.publish(20)
	s.newBroker()
	s.listen()
}

// shutdown is an orderly end.
func (s *source) shutdown() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.broker.Shutdown(ctx); err != nil {
		s.t.Error(err)
	}
	if err := s.srv.Shutdown(ctx); err != nil {
		s.t.Error(err)
	}
}

// publish appends n numbered events to the log and publishes them.
func (s *source) publish(n int) {
	for range n {
		s.mu.Lock()
		number := strconv.Itoa(len(s.log) + 1)
		e := sse.Event{ID: number, Data: number}
		s.log = append(s.log, e)
		// An event that comes while no broker runs is in the log.
		if _, err := s.broker.Publish(e); err != nil && !errors.Is(err, sse.ErrClosed) {
			s.t.Error(err)
		}
		s.mu.Unlock()
	}
}

// noted is a ResponseWriter that tells of its flushes.
type noted struct {
	http.ResponseWriter
	flushed func()
}

func (w noted) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w noted) FlushError() error {
	defer w.flushed()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// waitForClient waits until n clients read. A client is counted before CatchUp is
// called for it, from when on it gets what is published, and before its place is
// written, without which it begins anew when it is cut off.
func (s *source) waitForClient(n int) {
	s.t.Helper()
	for range patience / (10 * time.Millisecond) {
		reads := s.begun.Load() > 0
		if s.broker.CatchUp != nil {
			reads = s.asked.Load() > 0
		}
		if s.broker.Stats().Clients == n && (n == 0 || reads) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("got %d clients, want %d", s.broker.Stats().Clients, n)
}

// A reports is what a client reported.
type reports struct {
	mu     sync.Mutex
	events []event
}

func (r *reports) report(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// wait waits until there are n events and returns all there are.
func (r *reports) wait(n int) []event {
	for range patience / (10 * time.Millisecond) {
		r.mu.Lock()
		events := r.events
		r.mu.Unlock()
		if len(events) >= n {
			return events
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events
}

// TestMain lets several tests run at once: they wait more than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestReconnect cuts each client off in several ways while events are published.
func TestReconnect(t *testing.T) {
	for _, detach := range []bool{false, true} {
		for _, c := range clients {
			t.Run(fmt.Sprintf("%s/detach=%t", c.name, detach), func(t *testing.T) {
				t.Parallel()
				s := newSource(t, detach)
				var got reports
				c.start(t, s.url, got.report)
				s.waitForClient(1)
				expect := func(after string) {
					t.Helper()
					events := got.wait(len(s.log))
					for i, e := range events {
						if want := strconv.Itoa(i + 1); e.ID != want || e.Data != want || e.Type != "message" {
							t.Fatalf("after %s: event %s is %s", after, want, e)
						}
					}
					if len(events) != len(s.log) {
						t.Fatalf("after %s: got %d events, want %d", after, len(events), len(s.log))
					}
				}
				s.publish(20)
				expect("the start")

				s.cut()
				s.publish(20)
				s.listen()
				expect("cut connections")

				s.restart()
				s.publish(20)
				expect("a restart")

				for range 3 {
					var publisher sync.WaitGroup
					publisher.Go(func() {
						for range 100 {
							s.publish(1)
							time.Sleep(time.Millisecond)
						}
					})
					s.cut()
					s.listen()
					publisher.Wait()
				}
				expect("cuts while events came")

				s.shutdown()
				s.publish(20)
				s.newBroker()
				s.listen()
				expect("Shutdown")
			})
		}
	}
}

// TestCutBeforeFirstEvent: the broker tells a client its place as it comes.
func TestCutBeforeFirstEvent(t *testing.T) {
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSource(t, false)
			s.broker.CatchUp = nil
			var got reports
			c.start(t, s.url, got.report)
			s.waitForClient(1)
			s.cut()
			s.waitForClient(0)
			s.publish(3)
			s.listen()
			s.waitForClient(1)
			s.publish(3)
			want := s.log
			if c.needsEvent {
				want = want[3:]
			}
			events := got.wait(len(want))
			if len(events) != len(want) {
				t.Fatalf("got %d events, want %d", len(events), len(want))
			}
			for i, e := range events {
				if e.Data != want[i].Data {
					t.Errorf("got event %s, want %s", e, want[i].Data)
				}
			}
		})
	}
}

// TestFetchEventSourceWithJSON takes away, one after the other, the lines that a
// program with @microsoft/fetch-event-source must have.
func TestFetchEventSourceWithJSON(t *testing.T) {
	page, err := os.ReadFile("fetch-event-source-json.html")
	if err != nil {
		t.Fatal(err)
	}
	const empty = "if (!m.data) {\n\t\t\t\treturn // no event: an ID, a reconnection time\n\t\t\t}"
	const finished = "if (response.status === 204) {\n\t\t\t\tstop.abort() // finished for good; otherwise the package asks again\n\t\t\t}"
	for _, test := range []struct {
		name, without string
		stream        string
		want          []int
		requests      int // at least
		more          bool
	}{
		{"a broker", "", "/events/broker", []int{1, 2, 3}, 1, false},
		// The package leaves each connection open, and over HTTP/1.1 a browser has six.
		{"a broker, without the return", empty, "/events/broker", []int{}, 6, false},
		{"a broker, without the return, over HTTP/2", empty, "/events/broker", []int{}, 20, true},
		{"a finished stream", "", "/events/finished", []int{1, 2, 3}, 2, false},
		{"a finished stream, without the 204", finished, "/events/finished", []int{1, 2, 3}, 5, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(string(page), test.without) {
				t.Fatalf("the page has no %q", test.without)
			}
			broker := &sse.Broker{Retry: 50 * time.Millisecond}
			var mu sync.Mutex
			requests := 0
			asked := func() int {
				mu.Lock()
				defer mu.Unlock()
				return requests
			}
			mux := http.NewServeMux()
			mux.HandleFunc("GET /events/{stream}", func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				requests++
				mu.Unlock()
				if r.PathValue("stream") == "broker" {
					broker.Serve(w, r)
					return
				}
				sse.Serve(w, r, func(yield func(sse.Event, error) bool) {
					yield(sse.Event{Retry: 50 * time.Millisecond}, nil)
					for _, data := range []string{"1", "2", "3"} {
						yield(sse.Event{Data: data}, nil)
					}
					yield(sse.Event{}, sse.ErrEnded)
				})
			})
			mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprint(w, strings.Replace(string(page), test.without, "", 1))
			})
			mux.HandleFunc("GET /fetch-event-source/{module}", fetchEventSourceModule)
			srv := httptest.NewUnstartedServer(mux)
			if strings.Contains(test.name, "HTTP/2") {
				srv.EnableHTTP2 = true
				srv.StartTLS()
			} else {
				srv.Start()
			}
			t.Cleanup(srv.CloseClientConnections)
			p := tools.OpenPage(t, srv.URL+"/?stream="+test.stream)
			waitFor(t, fmt.Sprintf("request %d", test.requests), func() bool { return asked() >= test.requests })
			if test.stream == "/events/broker" {
				waitFor(t, "client of the broker for each request", func() bool { return broker.Stats().Clients >= test.requests })
			}
			for _, data := range []string{"1", "2", "3"} {
				if _, err := broker.Publish(sse.Event{Data: data}); err != nil {
					t.Fatal(err)
				}
			}
			p.WaitFor(fmt.Sprintf("window.got?.length === %d", len(test.want)))
			if test.more {
				n := asked()
				waitFor(t, "further request", func() bool { return asked() > n+3 })
			} else {
				time.Sleep(time.Second) // twenty times what it was told to wait
				if got := asked(); got != test.requests {
					t.Errorf("got %d requests, want %d", got, test.requests)
				}
			}
			got, err := tools.Eval[[]int](p, "got")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// waitFor waits until the condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there was no %s within %v", what, patience)
		}
	}
}

// TestTurnedAway: what an EventSource does with a status that says "too many", and
// with 200 and a reconnection time.
func TestTurnedAway(t *testing.T) {
	for _, test := range []struct {
		name  string
		away  func(w http.ResponseWriter, r *http.Request)
		comes bool
	}{
		{"429", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}, false},
		{"200 and a reconnection time", func(w http.ResponseWriter, r *http.Request) {
			if out, err := sse.NewWriter(w, r); err == nil {
				out.Send(sse.Event{Retry: 200 * time.Millisecond})
			}
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			broker := &sse.Broker{}
			// The user has a stream already, in another tab.
			ctx, closeTab := context.WithCancel(t.Context())
			defer closeTab()
			var turnedAway atomic.Int64
			mux := http.NewServeMux()
			mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
				if broker.Clients("user/7") >= 1 {
					turnedAway.Add(1)
					test.away(w, r)
					return
				}
				broker.Serve(w, r, "user/7")
			})
			mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				io.WriteString(w, `<script>window.got = []; window.source = new EventSource("/events")
					source.onmessage = e => got.push(e.data)</script>`)
			})
			srv := httptest.NewServer(mux)
			t.Cleanup(srv.CloseClientConnections)
			r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/events", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()

			p := tools.OpenPage(t, srv.URL)
			if !test.comes {
				p.WaitFor("window.source?.readyState === EventSource.CLOSED")
				if got := turnedAway.Load(); got != 1 {
					t.Errorf("it was turned away %d times, want once", got)
				}
				return
			}
			waitFor(t, "third request", func() bool { return turnedAway.Load() >= 3 })
			closeTab()
			waitFor(t, "end of the other tab's stream, and one for the page", func() bool {
				broker.Publish(sse.Event{Data: "hello"}, "user/7")
				n, err := tools.Eval[int](p, "got.length")
				return err == nil && n > 0
			})
		})
	}
}

// TestIDThatIsNotASCII: what a client sends when it comes back after such an ID.
// The standard has it encode the ID as UTF-8, which fetch does not: it refuses some
// characters, and sends others as Latin-1. So the programs that are made of fetch
// come back with another ID, or never.
func TestIDThatIsNotASCII(t *testing.T) {
	for _, test := range []struct {
		client string
		id     string
		want   string // what comes back; "": nothing ever
	}{
		{"Chromium", "plain-1", "plain-1"},
		{"Chromium", "prix-12-€", "prix-12-€"},
		{"Chromium", "café", "café"},
		{"eventsource in Node", "plain-1", "plain-1"},
		{"eventsource in Node", "prix-12-€", ""},
		{"eventsource in Node", "café", "caf\xe9"},
		{"eventsource-parser in Node", "prix-12-€", ""},
		{"eventsource-parser in Node", "café", "caf\xe9"},
		{"fetch-event-source in Chromium", "prix-12-€", ""},
		{"fetch-event-source in Chromium", "café", "caf\xe9"},
		{"Client", "prix-12-€", "prix-12-€"},
	} {
		t.Run(test.client+"/"+test.id, func(t *testing.T) {
			t.Parallel()
			requests := make(chan string, 100)
			mux := http.NewServeMux()
			mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
				requests <- r.Header.Get("Last-Event-ID")
				sse.Serve(w, r, func(yield func(sse.Event, error) bool) {
					yield(sse.Event{ID: test.id, Data: "hello", Retry: 50 * time.Millisecond}, nil)
				})
			})
			mux.Handle("GET /", http.FileServer(http.Dir(".")))
			mux.HandleFunc("GET /fetch-event-source/{module}", fetchEventSourceModule)
			srv := httptest.NewServer(mux)
			t.Cleanup(srv.CloseClientConnections)
			got := reports{}
			i := slices.IndexFunc(clients, func(c client) bool { return c.name == test.client })
			clients[i].start(t, srv.URL+"/events", got.report)
			if events := got.wait(1); len(events) == 0 || events[0].ID != test.id {
				t.Fatalf("got events %v, want one with ID %q", events, test.id)
			}
			<-requests // the first, without an ID
			if test.want == "" {
				select {
				case id := <-requests:
					t.Errorf("it came back, with ID %q", id)
				case <-time.After(2 * time.Second): // forty times what it was told to wait
				}
				return
			}
			select {
			case id := <-requests:
				if id != test.want {
					t.Errorf("it came back with ID %q, want %q", id, test.want)
				}
			case <-time.After(patience):
				t.Error("it did not come back")
			}
		})
	}
}

// TestRandomEvents publishes events with all that text can hold.
func TestRandomEvents(t *testing.T) {
	seed := randomSeed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	events := make([]sse.Event, 3000)
	want := make([]event, len(events))
	for i := range events {
		id := strconv.Itoa(i + 1)
		events[i] = sse.Event{ID: id, Type: types[random.IntN(len(types))], Data: randomText(random)}
		want[i] = event{id, message(events[i].Type), strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(events[i].Data)}
	}
	for _, c := range clients {
		if c.linesOnly {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSource(t, false)
			var got reports
			c.start(t, s.url, got.report)
			s.waitForClient(1)
			for _, e := range events {
				if _, err := s.broker.Publish(e); err != nil {
					t.Fatal(err)
				}
			}
			want := slices.Clone(want)
			if c.keeps != nil {
				for i := range want {
					want[i].Data = c.keeps(want[i].Data)
				}
			}
			if c.blanks {
				want = slices.DeleteFunc(want, func(e event) bool { return e.Data == "" && e.Type == "message" })
			}
			compare(t, got.wait(len(want)), want)
		})
	}
}

func compare(t *testing.T, got, want []event) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("event %d:\ngot  %s\nwant %s", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("got %d events, want %d", len(got), len(want))
	}
}

var seedFlag = flag.Uint64("seed", 0, "repeat the random tests with this seed")

func randomSeed(t *testing.T) uint64 {
	seed := cmp.Or(*seedFlag, rand.Uint64())
	t.Logf("seed %d", seed)
	return seed
}

// texts are what random text is made of.
var texts = []string{"\n", "\r", "\r\n", "\n\n", " ", "\t", "\x00", ":", "\ufeff", "\u2028", "\u0085", "\x7f",
	"data:", "id: 7", "event: x", "retry: 1", "a", "some text", "Ärger", "日本語", "🙂", "e\u0301", "\U0010ffff", `{"a":"\n"}`}

// randomText returns any text, now and then a long one.
func randomText(random *rand.Rand) string {
	var b strings.Builder
	for range random.IntN(12) {
		b.WriteString(texts[random.IntN(len(texts))])
	}
	if random.IntN(200) == 0 {
		b.WriteString(strings.Repeat("long ", random.IntN(20_000)))
	}
	return b.String()
}

// TestRandomStreams compares what Chromium and eventsource-parser make of streams
// that no encoder would write with what Decoder makes of them.
func TestRandomStreams(t *testing.T) {
	seed := randomSeed(t)
	var mu sync.Mutex
	streams := map[string][][]byte{} // in pieces
	srv := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		pieces := streams[r.URL.Path]
		delete(streams, r.URL.Path) // whoever comes back gets nothing
		mu.Unlock()
		if pieces == nil {
			http.FileServer(http.Dir(".")).ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, p := range pieces {
			w.Write(p)
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })

	for _, c := range []client{clients[0], clients[3]} {
		for n := range 5 {
			t.Run(fmt.Sprintf("%s/%d", c.name, n), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, uint64(n)))
				// eventsource-parser forgets an ID without an event.
				stream := randomStream(random, c.name == "Chromium")
				var want []event
				for e, err := range sse.NewDecoder(bytes.NewReader(stream)).All() {
					if err != nil {
						t.Fatal(err)
					}
					if slices.Contains(types[1:], e.Type) || message(e.Type) == "message" {
						want = append(want, event{e.ID, message(e.Type), e.Data})
					}
				}
				path := fmt.Sprintf("/events/%s/%d", url.PathEscape(c.name), n)
				mu.Lock()
				streams[strings.ReplaceAll(path, "%20", " ")] = randomPieces(random, stream)
				mu.Unlock()
				var got reports
				c.run(t, "http://"+ln.Addr().String()+path, func(e event) {
					if slices.Contains(types[1:], e.Type) || e.Type == "message" {
						got.report(e)
					}
				})
				compare(t, got.wait(len(want)), want)
			})
		}
	}
}

// randomStream returns a stream with every kind of line, line end and mistake.
func randomStream(random *rand.Rand, idOnly bool) []byte {
	var b bytes.Buffer
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	end := func() { b.WriteString(pick("\n", "\n", "\r", "\r\n")) }
	value := func() string {
		text := strings.NewReplacer("\r", "", "\n", "").Replace(randomText(random))
		if random.IntN(10) == 0 {
			text += pick("\xff", "\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xed\xa0\x80", "\xc0\xaf", "\xf8") // no UTF-8
		}
		return text
	}
	if random.IntN(2) == 0 {
		// Chromium takes a line end right after the mark for part of the line that
		// follows, which the standard does not.
		b.WriteString("\ufeffdata: after the mark\n")
	}
	for range 1000 {
		data := false
		for range random.IntN(6) {
			switch random.IntN(10) {
			default:
				b.WriteString(pick("data:", "data: ", "data:  ") + value())
				data = true
			case 0:
				b.WriteString("data")
				data = true
			case 1:
				b.WriteString(pick("event:", "event: ") + types[random.IntN(len(types))])
			case 2:
				b.WriteString(pick(":", ": ") + value())
			case 3:
				b.WriteString(pick("Data: x", " data: x", "data : x", "unknown", "unknown: x", "event", "retry: x", "retry: 1x", "retry: -1", "\ufeffdata: x"))
			case 4:
				if idOnly || data {
					b.WriteString(pick("id:", "id: ") + strings.Trim(value(), "\x00"))
				} else {
					b.WriteString("id: with\x00NUL")
				}
			}
			end()
		}
		end()
	}
	b.WriteString("\n\ndata: end\n\n")
	return b.Bytes()
}

// randomPieces cuts the stream anywhere, also within a character.
func randomPieces(random *rand.Rand, stream []byte) (pieces [][]byte) {
	for len(stream) > 0 {
		n := min(len(stream), 1+random.IntN(300))
		pieces, stream = append(pieces, stream[:n]), stream[n:]
	}
	return pieces
}
