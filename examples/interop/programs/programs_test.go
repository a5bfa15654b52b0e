// Package programs tests what a program does around its streams: how it ends them,
// and what a filter for each client costs.
package programs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed22e817d0/sse"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// TestServerWaitsForStreams: http.Server.Shutdown waits for streams of Serve and
// NewWriter until its context ends, unless the handler ends them.
func TestServerWaitsForStreams(t *testing.T) {
	silence := func(r *http.Request, closing <-chan struct{}) {
		select {
		case <-r.Context().Done():
		case <-closing:
		}
	}
	for _, stream := range []struct {
		name   string
		handle func(w http.ResponseWriter, r *http.Request, closing <-chan struct{})
	}{
		{"Serve", func(w http.ResponseWriter, r *http.Request, closing <-chan struct{}) {
			sse.Serve(w, r, func(func(sse.Event, error) bool) { silence(r, closing) })
		}},
		{"NewWriter", func(w http.ResponseWriter, r *http.Request, closing <-chan struct{}) {
			if _, err := sse.NewWriter(w, r); err == nil {
				silence(r, closing)
			}
		}},
	} {
		for _, test := range []struct {
			name  string
			tells bool
			want  error
		}{
			{"as it is", false, context.DeadlineExceeded},
			{"RegisterOnShutdown", true, nil},
		} {
			t.Run(stream.name+"/"+test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					closing := make(chan struct{})
					s := serve(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						stream.handle(w, r, closing)
					})})
					if test.tells {
						s.RegisterOnShutdown(func() { close(closing) })
					}
					resp := s.get(t)
					ended := make(chan error, 1)
					go func() {
						_, err := sse.NewDecoder(resp.Body).Decode()
						ended <- err
					}()
					began := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
					defer cancel()
					if got := s.Shutdown(ctx); !errors.Is(got, test.want) {
						t.Errorf("got error %v after %v, want %v", got, time.Since(began), test.want)
					}
					if test.tells {
						if err := <-ended; err != io.EOF {
							t.Errorf("the client got %v, want the end of the stream", err)
						}
					}
					s.Close()
				})
			})
		}
	}
}

// TestBaseContextThatEndsFirst: a program whose BaseContext ends at SIGINT cuts its
// clients off before Broker.Shutdown can send them what they are owed.
func TestBaseContextThatEndsFirst(t *testing.T) {
	const events = 200
	for _, test := range []struct {
		name       string
		ends       bool // the BaseContext, at SIGINT
		everything bool
	}{
		{"that goes on", false, true},
		{"that ends", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sigint, stop := context.WithCancel(context.Background())
				defer stop()
				base := context.Background()
				if test.ends {
					base = sigint
				}
				broker := &sse.Broker{HistoryBytes: -1}
				s := serve(t, &http.Server{Handler: broker, BaseContext: func(net.Listener) context.Context { return base }})
				resp := s.get(t)
				for i := range events {
					broker.Publish(sse.Event{Data: strconv.Itoa(i) + strings.Repeat(" ", 10_000)})
				}
				synctest.Wait() // the client does not read yet

				stop()
				synctest.Wait()
				read := make(chan int)
				go func() {
					n := 0
					for _, err := range sse.NewDecoder(resp.Body).All() {
						if err == nil {
							n++
						}
					}
					read <- n
				}()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := broker.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				if err := s.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				if got := <-read; (got == events) != test.everything {
					t.Errorf("the client got %d of %d events, want all: %t", got, events, test.everything)
				} else {
					t.Logf("the client got %d of %d events", got, events)
				}
			})
		})
	}
}

// A server is an http.Server without a network, for a bubble of fake time.
type server struct {
	*http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func serve(t *testing.T, srv *http.Server) *server {
	s := &server{Server: srv, conns: make(chan net.Conn), closed: make(chan struct{})}
	go srv.Serve(listener{s})
	t.Cleanup(func() { srv.Close() })
	return s
}

type listener struct{ s *server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.conns:
		return c, nil
	case <-l.s.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { l.s.once.Do(func() { close(l.s.closed) }); return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{} }

// get asks for the stream, from where the client's last event ID says.
func (s *server) get(t *testing.T, lastEventID ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest("GET", "http://server/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range lastEventID {
		r.Header.Set("Last-Event-ID", id)
	}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		s.conns <- server
		return client, nil
	}}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// filtered serves the broker's events that pass to one client, as in the example of
// Serve. If every is positive, each such event that does not pass becomes one that
// nobody listens for.
func filtered(broker *sse.Broker, every int, passes func(sse.Event) bool) http.HandlerFunc {
	filter := func(events iter.Seq2[sse.Event, error]) iter.Seq2[sse.Event, error] {
		return func(yield func(sse.Event, error) bool) {
			held := 0
			for ev, err := range events {
				if err == nil && ev.Type != "gap" && !passes(ev) {
					if held++; every == 0 || held%every > 0 {
						continue
					}
					ev = sse.Event{ID: ev.ID, Type: "place"}
				}
				if !yield(ev, err) {
					return
				}
			}
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if sse.LastEventID(r) == "" {
			r.Header.Set("Last-Event-ID", broker.LastEventID())
		}
		sse.Serve(w, r, filter(broker.Subscribe(r.Context(), sse.LastEventID(r))))
	}
}

// TestFilterIsNotCounted: what is served by a filter is a subscriber, not a client.
func TestFilterIsNotCounted(t *testing.T) {
	broker := &sse.Broker{MaxClients: 1}
	srv := httptest.NewServer(filtered(broker, 0, func(sse.Event) bool { return true }))
	defer srv.Close()
	defer broker.Shutdown(t.Context())
	for range 2 {
		resp, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	for end := time.Now().Add(2 * time.Minute); broker.Stats().Subscribers < 2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if s := broker.Stats(); s.Subscribers != 2 || s.Clients != 0 || broker.Clients("") != 0 || s.TurnedAway != 0 {
		t.Errorf("got %d subscribers, %d clients, %d of the topic, %d turned away, want 2, 0, 0, 0",
			s.Subscribers, s.Clients, broker.Clients(""), s.TurnedAway)
	}
}

// TestFilterAndTheHistory: a client to whom nothing passes keeps the ID that its
// stream began with. Once that has left the history, it is told of a gap when it
// comes back, though it missed nothing, unless an event moves its place on.
func TestFilterAndTheHistory(t *testing.T) {
	for _, test := range []struct {
		published, every int
		want             string // the first event after it came back
	}{
		{90, 0, "passes"},
		{400, 0, "gap"},
		{400, 20, "passes"},
	} {
		t.Run(fmt.Sprintf("%d events, every %d", test.published, test.every), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &sse.Broker{History: 100}
				s := serve(t, &http.Server{Handler: filtered(broker, test.every, func(ev sse.Event) bool { return ev.Data == "passes" })})
				var last string
				resp := s.get(t)
				read := make(chan struct{})
				go func() {
					defer close(read)
					d := sse.NewDecoder(resp.Body)
					for ev, err := range d.All() {
						if err == nil && ev.Type != "place" {
							t.Errorf("got event %v, want none", ev)
						}
					}
					last = d.LastEventID()
				}()
				synctest.Wait()
				for range test.published {
					broker.Publish(sse.Event{Data: "does not pass"})
					synctest.Wait()
				}
				resp.Body.Close() // the client is cut off
				<-read
				broker.Publish(sse.Event{Data: "passes"})
				ev, err := sse.NewDecoder(s.get(t, last).Body).Decode()
				if got := ev.Type + ev.Data; err != nil || !strings.HasPrefix(got, test.want) {
					t.Errorf("got %q, %v, want %q", got, err, test.want)
				}
				broker.Shutdown(t.Context())
				s.Close()
			})
		})
	}
}

// BenchmarkFilter publishes bursts of 64 events to clients of Broker.Serve, and to
// those of a filter through which all of them pass. What differs is that Serve
// flushes each event by itself.
func BenchmarkFilter(b *testing.B) {
	const clients, burst = 100, 64
	for _, name := range []string{"Broker.Serve", "filter"} {
		b.Run(name, func(b *testing.B) {
			broker := &sse.Broker{}
			handler := http.Handler(broker)
			if name == "filter" {
				handler = filtered(broker, 0, func(sse.Event) bool { return true })
			}
			var writes atomic.Int64
			srv := httptest.NewUnstartedServer(handler)
			srv.Listener = countingListener{srv.Listener, &writes}
			srv.Start()
			defer srv.Close()
			defer broker.Shutdown(context.Background())
			var got sync.WaitGroup
			for range clients {
				resp, err := http.Get(srv.URL)
				if err != nil {
					b.Fatal(err)
				}
				defer resp.Body.Close()
				go func() {
					for _, err := range sse.NewDecoder(resp.Body).All() {
						if err != nil {
							return
						}
						got.Done()
					}
				}()
			}
			for s := broker.Stats(); s.Clients+s.Subscribers < clients; s = broker.Stats() {
				time.Sleep(time.Millisecond)
			}
			writes.Store(0)
			deliveries := 0
			for b.Loop() {
				got.Add(clients * burst)
				for i := range burst {
					broker.Publish(sse.Event{Data: fmt.Sprintf("%0100d", i)})
				}
				got.Wait()
				deliveries += clients * burst
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(deliveries), "ns/delivery")
			b.ReportMetric(float64(writes.Load())/float64(deliveries), "writes/delivery")
		})
	}
}

type countingListener struct {
	net.Listener
	writes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.writes}, err
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}
