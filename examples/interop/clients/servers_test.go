package clients

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	ldsse "github.com/launchdarkly/eventsource"
	r3labs "github.com/r3labs/sse/v2"
	tmaxsse "github.com/tmaxmax/go-sse"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// A server is one of another library. It publishes the numbers from 1 on, each as
// the data and, if it can, the ID of an event, one every few milliseconds.
type server struct {
	name    string
	start   func(t *testing.T) (url string, cut func()) // cut closes all connections
	replays bool                                        // what a client missed
}

var servers = []server{
	{"r3labs", startR3labs, true},
	{"tmaxmax", startTmaxmax, true},
	{"launchdarkly", startLaunchDarkly, true},
	{"better-sse in Node", startBetterSSE, false},
}

// TestServers reads the stream of each server with the Client, and cuts it off
// several times.
func TestServers(t *testing.T) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			url, cut := s.start(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			var reasons []error
			c := &sse.Client{
				Retry:   50 * time.Millisecond,
				MaxWait: 200 * time.Millisecond,
				Logger:  slog.New(slog.DiscardHandler),
				CheckRetry: func(_ *http.Request, err error) error {
					reasons = append(reasons, err)
					return nil
				},
			}
			last, events := 0, 0
			for e, err := range c.Events(r) {
				if err != nil {
					t.Fatalf("after %d events, %d and %v: %v", events, last, reasons, err)
				}
				if e.Data == "" {
					continue // a block that only sets an ID
				}
				n, err := strconv.Atoi(e.Data)
				if err != nil || e.Type != "" && e.Type != "message" {
					t.Fatalf("got %+v, want a number", e)
				}
				repeated := n == last && len(reasons) > 0
				if !repeated && n <= last || last > 0 && n > last+1 && (s.replays || len(reasons) == 0) {
					t.Fatalf("got %d after %d, over connections that ended with %v", n, last, reasons)
				}
				last = n
				if events++; events == 200 {
					break
				}
				if events%50 == 0 {
					cut()
				}
			}
			if len(reasons) < 3 {
				t.Errorf("got reconnections for %v, want three", reasons)
			}
		})
	}
}

// serveNumbers serves with the handler, and publishes until the test ends.
func serveNumbers(t *testing.T, handler http.Handler, path string, publish func(n int)) (url string, cut func()) {
	s := httptest.NewServer(handler)
	ctx, cancel := context.WithCancel(context.Background())
	var publisher sync.WaitGroup
	publisher.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			publish(n)
			time.Sleep(5 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		cancel()
		publisher.Wait()
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL + path, s.CloseClientConnections
}

func startR3labs(t *testing.T) (string, func()) {
	s := r3labs.New()
	s.CreateStream("numbers")
	return serveNumbers(t, s, "/?stream=numbers", func(n int) {
		// It chooses the IDs itself.
		s.Publish("numbers", &r3labs.Event{Data: []byte(strconv.Itoa(n))})
	})
}

func startTmaxmax(t *testing.T) (string, func()) {
	replayer, err := tmaxsse.NewFiniteReplayer(10_000, false)
	if err != nil {
		t.Fatal(err)
	}
	s := &tmaxsse.Server{Provider: &tmaxsse.Joe{Replayer: replayer}}
	return serveNumbers(t, s, "/", func(n int) {
		m := &tmaxsse.Message{ID: tmaxsse.ID(strconv.Itoa(n))}
		m.AppendData(strconv.Itoa(n))
		if err := s.Publish(m); err != nil {
			t.Error(err)
		}
	})
}

func startLaunchDarkly(t *testing.T) (string, func()) {
	s := ldsse.NewServer()
	s.ReplayAll = true
	repository := ldsse.NewSliceRepository()
	s.Register("numbers", repository)
	return serveNumbers(t, s.Handler("numbers"), "/", func(n int) {
		e := numbered{n}
		repository.Add("numbers", e)
		s.Publish([]string{"numbers"}, e)
	})
}

// numbered is an event for a repository that orders IDs as text.
type numbered struct{ n int }

func (e numbered) Id() string    { return fmt.Sprintf("%012d", e.n) }
func (e numbered) Event() string { return "" }
func (e numbered) Data() string  { return strconv.Itoa(e.n) }

func startBetterSSE(t *testing.T) (string, func()) {
	if _, err := os.Stat("../node_modules/better-sse"); err != nil {
		tools.Missing(t, "run npm ci in examples/interop first: %v", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	port := tools.FreePort(t)
	p := tools.Start(t, dir, "node", "better-sse.mjs", port)
	addr := "127.0.0.1:" + port
	p.Listening(t, addr)
	return "http://" + addr + "/", func() {
		if resp, err := http.Get("http://" + addr + "/cut"); err == nil {
			resp.Body.Close()
		}
	}
}
