package browser

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// The pages of these tests have an EventSource and nothing else: no script closes
// it, so only the server's answers can keep the browser from coming back.

// An answer is what the server gave to one request.
type answer struct {
	LastEventID string // of the request
	Status      int
}

// answers notes each request, and its answer.
type answers struct {
	http.Handler
	mu  sync.Mutex
	all []answer // Status is 0 until the handler says, or has returned
}

func (as *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	as.mu.Lock()
	n := len(as.all)
	as.all = append(as.all, answer{LastEventID: r.Header.Get("Last-Event-ID")})
	as.mu.Unlock()
	note := func(status int) {
		as.mu.Lock()
		defer as.mu.Unlock()
		if as.all[n].Status == 0 {
			as.all[n].Status = status
		}
	}
	defer note(http.StatusOK)
	as.Handler.ServeHTTP(statusWriter{w, note}, r)
}

func (as *answers) get() []answer {
	as.mu.Lock()
	defer as.mu.Unlock()
	return slices.Clone(as.all)
}

// A statusWriter tells of the status.
type statusWriter struct {
	http.ResponseWriter
	note func(status int)
}

func (w statusWriter) WriteHeader(status int) {
	w.note(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// wantStop fails the test unless the page sees these things happen to its
// EventSource, the last of which closes it, and the server gave these answers, after
// which the browser makes no other request.
func wantStop(p *page, stream *answers, seen []sighting, given []answer) {
	p.t.Helper()
	// It opens, fails, and then fails again, which closes it, or else opens again.
	p.waitFor(`seen.filter(s => s.Kind !== "event").length >= 3`)
	p.run(`new Promise(done => setTimeout(done, 2500))`) // longer than a browser waits that was told 50 ms
	if got := eval[int](p, `source.readyState`); got != closed {
		p.t.Errorf("got readyState %d, want %d", got, closed)
	}
	if got := p.seen(); !slices.Equal(got, seen) {
		p.t.Errorf("the page saw\n%s\nwant\n%s", list(got), list(seen))
	}
	if got := stream.get(); !slices.Equal(got, given) {
		p.t.Errorf("the server gave %d answers\n%s\nwant %d\n%s", len(got), list(got), len(given), list(given))
	}
}

// list prints the first of them, each in a line.
func list[T any](all []T) (lines string) {
	for _, v := range all[:min(len(all), 10)] {
		lines += fmt.Sprintf("\t%+v\n", v)
	}
	return lines
}

const soon = 50 * time.Millisecond // when a browser is to come back

// The values of seen where a stream begins, and where it is ended for good.
var (
	opened    = sighting{Kind: "open", Type: "open", State: connected}
	ended     = sighting{Kind: "event", Type: "end", ID: "sse-end", State: connected}
	comesBack = sighting{Kind: "error", Type: "error", State: connecting}
	givesUp   = sighting{Kind: "error", Type: "error", State: closed}
)

func message(id, data string) sighting {
	return sighting{Kind: "event", Type: "message", Data: data, ID: id, State: connected}
}

// A browser asks once more after the event end, and never again.
func TestEndStopsAPageThatDoesNotClose(t *testing.T) {
	const topic = "job/7"
	for _, test := range []struct {
		name string
		// serve answers with two events, the second of which is published once next
		// is closed, and the end.
		serve func(broker *sse.Broker, next chan bool) http.HandlerFunc
	}{
		{"Broker.Serve", func(broker *sse.Broker, _ chan bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { broker.Serve(w, r, topic) }
		}},
		{"Broker.Detach", func(broker *sse.Broker, _ chan bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if !broker.Detach(w, r, nil, topic) && sse.LastEventID(r) == "" {
					t.Error("the client was not detached")
				}
			}
		}},
		{"Serve", func(_ *sse.Broker, next chan bool) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				sse.Serve(w, r, func(yield func(sse.Event, error) bool) {
					if !yield(sse.Event{Retry: soon, ID: "1", Data: "one"}, nil) {
						return
					}
					select {
					case <-next:
					case <-r.Context().Done():
						return
					}
					_ = yield(sse.Event{ID: "2", Data: "two"}, nil) && yield(sse.Event{}, sse.ErrEnded)
				})
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
				broker, next := &sse.Broker{Retry: soon}, make(chan bool)
				stream := &answers{Handler: test.serve(broker, next)}
				p := open(t, plain.serve(t, stream).URL)
				p.listen("/events", "end")
				p.waitFor(`seen.length > 0`) // connected
				if _, err := broker.Publish(sse.Event{ID: "1", Data: "one"}, topic); err != nil {
					t.Fatal(err)
				}
				p.events(1)
				if _, err := broker.Publish(sse.Event{ID: "2", Data: "two"}, topic); err != nil {
					t.Fatal(err)
				}
				if err := broker.End(topic); err != nil {
					t.Fatal(err)
				}
				close(next)
				wantStop(p, stream,
					[]sighting{opened, message("1", "one"), message("2", "two"), ended, comesBack, givesUp},
					[]answer{{"", http.StatusOK}, {"sse-end", http.StatusNoContent}})
			})
		})
	}
}

// A page that comes too late for a job, and has no ID, gets all of it and the end.
func TestEndBeforeThePageConnects(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: soon}
		want := []sighting{opened}
		for i := range 100 {
			id, data := fmt.Sprint(i), fmt.Sprint(i, "%")
			if _, err := broker.Publish(sse.Event{ID: id, Data: data}, "job/7"); err != nil {
				t.Fatal(err)
			}
			want = append(want, message(id, data))
		}
		if err := broker.End("job/7"); err != nil {
			t.Fatal(err)
		}
		stream := &answers{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { broker.Serve(w, r, "job/7") })}
		p := open(t, plain.serve(t, stream).URL)
		p.listen("/events", "end")
		wantStop(p, stream, append(want, ended, comesBack, givesUp),
			[]answer{{"", http.StatusOK}, {"sse-end", http.StatusNoContent}})
	})
}

// A browser that Disconnect sends away comes back, and gives up where it is refused.
func TestEndOfASession(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: soon}
		var sessions sync.Map
		sessions.Store("7", true)
		stream := &answers{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, found := sessions.Load("7"); !found {
				http.Error(w, "log in first", http.StatusUnauthorized)
				return
			}
			broker.Serve(w, r, "news", "user/7")
		})}
		p := open(t, plain.serve(t, stream).URL)
		p.listen("/events", "end")
		p.waitFor(`seen.length > 0`) // connected
		if _, err := broker.Publish(sse.Event{ID: "1", Data: "one"}, "news"); err != nil {
			t.Fatal(err)
		}
		p.events(1)
		sessions.Delete("7")
		if n := broker.Disconnect("user/7"); n != 1 {
			t.Errorf("got %d disconnected, want 1", n)
		}
		if _, err := broker.Publish(sse.Event{ID: "2", Data: "for those who may read it"}, "news"); err != nil {
			t.Fatal(err)
		}
		wantStop(p, stream,
			[]sighting{opened, message("1", "one"), comesBack, givesUp},
			[]answer{{"", http.StatusOK}, {"1", http.StatusUnauthorized}})
	})
}
