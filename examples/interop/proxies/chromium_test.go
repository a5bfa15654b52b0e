package proxies

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
	"github.com/seed22e817d0/sse/examples/page"
)

// TestChromium has a page in Chromium follow two streams through each proxy, one
// of Broker.Serve and one of Broker.Detach, over HTTP/2 if the proxy speaks it to
// browsers. With -v it prints a table.
func TestChromium(t *testing.T) {
	var rows strings.Builder
	rows.WriteString("| proxy | Chromium speaks | onopen: Serve | event | onopen: Detach | event | answers while the program is down |\n|---|---|---|---|---|---|---|\n")
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) {
			site := &site{addr: "127.0.0.1:" + tools.FreePort(t), requests: make(chan string, 100)}
			site.start(t)
			s := p.startBefore(t, site.addr)
			protocol, address := "h2", s.urls["HTTP/2"]
			if !strings.HasPrefix(address, "https:") { // browsers speak HTTP/2 only with TLS
				protocol, address = "http/1.1", s.urls["HTTP/1.1"]
			}
			query := url.Values{"stream": {"/serve", "/detach"}}
			page := tools.OpenPage(t, address+"/?"+query.Encode())

			// The first bytes are there though there is no event, nor a keep-alive.
			page.WaitFor("window.streams?.length === 2 && streams.every(s => s.openAfter)")
			if got := eval[string](t, page, `performance.getEntriesByType("navigation")[0].nextHopProtocol`); got != protocol {
				t.Errorf("the page came by %s, want %s", got, protocol)
			}

			// Each event is there before the next one is published.
			publish := func() {
				site.publish()
				page.WaitFor(fmt.Sprintf("streams.every(s => s.got.at(-1) === %d)", site.n))
			}
			for range 20 {
				publish()
			}

			// A new program takes over at once, and the connections to the old one
			// are cut.
			site.restart(t, nil)
			site.wantRequests(t, "header: 20")
			publish()

			// The program is down for a while, and the proxy answers for it.
			answer, wantRequest := "none", "header: 22"
			site.restart(t, func() {
				r, err := http.NewRequestWithContext(t.Context(), "GET", s.urls["HTTP/1.1"]+"/serve", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Accept", "text/event-stream")
				// With no answer at all, from Varnish's pipe, an EventSource goes on trying.
				if resp, err := newClient(t, "HTTP/1.1").Do(r); err == nil {
					resp.Body.Close()
					answer, wantRequest = "status "+resp.Status[:3], "query: 22"
				}
				page.WaitFor("streams.every(s => s.errors >= 3 || s.sources > 1)")
			})
			site.wantRequests(t, wantRequest)
			publish()

			var numbers []int
			for i := range site.n {
				numbers = append(numbers, i+1)
			}
			fmt.Fprintf(&rows, "| %s | %s |", p.name, protocol)
			for i, path := range query["stream"] {
				if got := eval[[]int](t, page, fmt.Sprintf("streams[%d].got", i)); !slices.Equal(got, numbers) {
					t.Errorf("%s: got events %v, want %v", path, got, numbers)
				}
				opened := eval[float64](t, page, fmt.Sprintf("streams[%d].openAfter", i))
				delay := eval[float64](t, page, fmt.Sprintf("streams[%d].delays.slice(0, 20).sort((a, b) => a - b)[10]", i))
				fmt.Fprintf(&rows, " %.0f ms | %.1f ms |", opened, delay)
			}
			fmt.Fprintf(&rows, " %s |\n", answer)
		})
	}
	if testing.Verbose() && !t.Failed() {
		fmt.Print(rows.String())
	}
}

func eval[T any](t *testing.T, page *tools.Page, js string) T {
	t.Helper()
	v, err := tools.Eval[T](page, js)
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	return v
}

// A site is a program that can be restarted. What it publishes has numbers for
// IDs, and a new one begins with what the old one published, as from a log.
type site struct {
	addr     string
	requests chan string // where each client that comes back asks to go on, and how

	n      int // events published so far
	broker *sse.Broker
	ln     net.Listener
	cut    func() // closes all connections
}

func (s *site) start(t *testing.T) {
	t.Helper()
	s.broker = &sse.Broker{KeepAlive: -1, Retry: 300 * time.Millisecond}
	for i := range s.n {
		s.publishNumber(i + 1)
	}
	mux := http.NewServeMux()
	html, err := os.ReadFile("follow.html")
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/", page.Handler(string(html)))
	mux.Handle("/serve", s.noting(plain.handler(s.broker, make(chan error, 100))))
	mux.Handle("/detach", s.noting(detached.handler(s.broker, make(chan error, 100))))
	broker, srv := s.broker, &http.Server{Handler: mux}
	s.cut = func() {
		srv.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		broker.Shutdown(ctx) // for those that were detached
	}
	t.Cleanup(s.cut)
	s.ln = tools.Listen(t, s.addr)
	go srv.Serve(s.ln)
}

// noting is middleware that fills requests.
func (s *site) noting(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get("Last-Event-ID"); r.Method == http.MethodHead {
			// follow.js asks whether it is welcome.
		} else if id != "" {
			s.requests <- "header: " + id
		} else if id := r.FormValue("lastEventId"); id != "" {
			s.requests <- "query: " + id
		}
		h.ServeHTTP(w, r)
	})
}

func (s *site) publish() {
	s.n++
	s.publishNumber(s.n)
}

func (s *site) publishNumber(n int) {
	at := float64(time.Now().UnixMicro()) / 1000
	s.broker.Publish(sse.Event{ID: strconv.Itoa(n), Data: fmt.Sprintf("%d %.3f", n, at)})
}

// restart ends the program and starts it again, with an event more than clients
// have. What it calls in between happens while the program is down. If that is nil
// it never is: the next one listens before the connections are cut.
func (s *site) restart(t *testing.T, down func()) {
	t.Helper()
	cut := s.cut
	s.ln.Close()
	if down != nil {
		cut()
		down()
	}
	s.n++
	s.start(t)
	cut()
}

// wantRequests waits until both streams are asked for again.
func (s *site) wantRequests(t *testing.T, want string) {
	t.Helper()
	for range 2 {
		select {
		case got := <-s.requests:
			if got != want {
				t.Errorf("asked to go on by %s, want %s", got, want)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("a client did not come back")
		}
	}
}
