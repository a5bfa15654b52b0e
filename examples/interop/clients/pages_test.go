package clients

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// A page with @microsoft/fetch-event-source goes on by itself, and has every event
// once, when nginx answers 502 for ten seconds. (That of an EventSource is there to
// show one that does not.)
func TestPagesAfterBadGateway(t *testing.T) {
	if _, err := os.Stat("../node_modules/@microsoft/fetch-event-source"); err != nil {
		tools.Missing(t, "run npm ci in examples/interop first: %v", err)
	}
	for _, name := range []string{"fetch-event-source.html", "fetch-event-source-json.html"} {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for browser, open := range tools.Browsers {
			t.Run(name+"/"+browser, func(t *testing.T) {
				t.Parallel()
				reports := tools.NewReports[[]string](t)
				broker := &sse.Broker{Retry: 100 * time.Millisecond}
				mux := http.NewServeMux()
				mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
					if sse.LastEventID(r) == "" { // the page may come when the first event is there
						r.Header.Set("Last-Event-ID", sse.Earliest)
					}
					broker.Serve(w, r)
				})
				mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "text/html")
					w.Write(page)
					io.WriteString(w, reports.Script(`got.map(e => e.data ?? String(e)).filter(data => data)`))
				})
				mux.HandleFunc("GET /fetch-event-source/{module}", fetchEventSourceModule)
				addr := "127.0.0.1:" + tools.FreePort(t)
				ln := tools.Listen(t, addr)
				go http.Serve(ln, mux)
				t.Cleanup(func() { ln.Close(); broker.Shutdown(t.Context()) })
				line := tools.Nginx(t, addr)

				var want []string
				publish := func(n int) {
					t.Helper()
					for range n {
						want = append(want, fmt.Sprint(len(want)+1))
						if _, err := broker.Publish(sse.Event{Data: want[len(want)-1]}); err != nil {
							t.Fatal(err)
						}
					}
				}
				shown := func() []string {
					t.Helper()
					last := want[len(want)-1]
					return reports.WaitFor("event "+last, func(got []string) bool { return slices.Contains(got, last) })
				}
				open(t, line.URL+"/?stream=/events")
				publish(10)
				shown()
				line.Cut()
				publish(10)
				time.Sleep(10 * time.Second)
				if refused := line.Mend(); refused < 2 {
					t.Errorf("nginx answered 502 %d times, want the page to have come back more often", refused)
				}
				shown()
				publish(10)
				if got := shown(); !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}
