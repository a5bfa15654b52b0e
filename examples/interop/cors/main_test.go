package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// TestProgram signs in at the page of the program.
func TestProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "cors")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	app, api := "localhost:"+tools.FreePort(t), "localhost:"+tools.FreePort(t)
	p := tools.Start(t, t.TempDir(), program, "-app", app, "-api", api)
	p.Listening(t, api)

	page := tools.OpenPage(t, "http://"+app)
	page.Screenshot(t, "cors-before")
	page.Do(chromedp.Click("#sign-in"))
	page.WaitFor(`document.querySelector("#state").textContent == "connected"`)
	page.WaitFor(`document.querySelector("#time").textContent != ""`)
	page.Screenshot(t, "cors")

	out, err := exec.Command(program, "-app", app, "-api", api).CombinedOutput()
	if want := "cors: listen tcp"; err == nil || !strings.HasPrefix(string(out), want) || strings.Count(string(out), "\n") != 1 {
		t.Errorf("with an address in use got %v and %q, want a line with %q", err, out, want)
	}

	began := time.Now()
	if err := p.Signal(os.Interrupt); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("Ctrl-C took %v", took)
	}
}

// shown is the state that a page shows, and the times that it has shown.
type shown struct {
	State string
	Times []string
}

// The page goes on by itself when nginx answers 502 for ten seconds, without the
// header that CORS wants, and has every event once. Signed out, it says so.
func TestPageAfterBadGateway(t *testing.T) {
	for name, open := range tools.Browsers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reports := tools.NewReports[shown](t)
			addrs := [2]string{"127.0.0.1:" + tools.FreePort(t), "127.0.0.1:" + tools.FreePort(t)}
			app, api := tools.Nginx(t, addrs[0]), tools.Nginx(t, addrs[1])
			broker := &sse.Broker{Retry: 100 * time.Millisecond}
			var signedOut atomic.Bool
			withCookie := stream(broker)
			for i, handler := range []http.Handler{
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					pages(api.URL).ServeHTTP(w, r)
					if r.URL.Path == "/" {
						io.WriteString(w, `<script type="module">
							window.times = []
							new MutationObserver(all => { for (const m of all) for (const n of m.addedNodes) times.push(n.data) })
								.observe(document.getElementById("time"), {childList: true})
							document.getElementById("sign-in").click()
						</script>`+reports.Script(`{state: document.getElementById("state").textContent, times}`))
					}
				}),
				cors(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if signedOut.Load() {
						r.Header.Del("Cookie")
					}
					withCookie.ServeHTTP(w, r)
				}), app.URL),
			} {
				ln := tools.Listen(t, addrs[i])
				t.Cleanup(func() { ln.Close() })
				go http.Serve(ln, handler)
			}
			t.Cleanup(func() { broker.Shutdown(context.Background()) })

			open(t, app.URL)
			waitFor := func(state string, n int) shown {
				t.Helper()
				return reports.WaitFor(fmt.Sprint(state, " and ", n, " events"), func(s shown) bool { return s.State == state && len(s.Times) >= n })
			}
			waitFor("connected", 0)
			var want []string
			publish := func() {
				want = append(want, fmt.Sprint(len(want)+1))
				broker.Publish(sse.Event{Data: want[len(want)-1]})
			}
			publish()
			waitFor("connected", 1)
			api.Cut()
			for range 5 {
				publish()
			}
			waitFor("cut off, reconnecting", 1)
			time.Sleep(10 * time.Second)
			if refused := api.Mend(); refused < 2 {
				t.Errorf("nginx answered 502 %d times, want the page to have come back more often", refused)
			}
			waitFor("connected", 6)
			publish()
			if got := waitFor("connected", 7); !slices.Equal(got.Times, want) {
				t.Errorf("got %v, want %v", got.Times, want)
			}

			signedOut.Store(true)
			api.Cut()
			api.Mend()
			waitFor("signed out", 7)
		})
	}
}

// TestOrigins opens streams of another origin in Chromium.
func TestOrigins(t *testing.T) {
	broker := &sse.Broker{Retry: 50 * time.Millisecond}
	var preflights atomic.Int64
	pages := httptest.NewServer(http.NotFoundHandler())
	defer pages.Close()
	strangers := httptest.NewServer(http.NotFoundHandler())
	defer strangers.Close()
	handler := cors(stream(broker), local(pages.URL))
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			preflights.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	defer api.Close()
	defer broker.Shutdown(t.Context())

	page := tools.OpenPage(t, local(pages.URL))
	stranger := tools.OpenPage(t, local(strangers.URL))
	for _, p := range []*tools.Page{page, stranger} {
		// A server cannot tell a stranger's page from a form; that is not what
		// CORS is for.
		must[any](t, p, `fetch("%s/login", {method: "POST", credentials: "include", mode: "no-cors"}).then(() => 0)`, local(api.URL))
	}

	const state = `new Promise(resolve => {
		const source = new EventSource("%s/events", {withCredentials: %t})
		source.onopen = () => { source.close(); resolve("open") }
		source.onerror = () => resolve(source.readyState == EventSource.CLOSED ? "refused" : "reconnecting")
	})`
	for _, test := range []struct {
		name        string
		page        *tools.Page
		credentials bool
		want        string
	}{
		{"page with its cookie", page, true, "open"},
		{"page without its cookie", page, false, "refused"},
		{"stranger with its cookie", stranger, true, "refused"},
		{"stranger without its cookie", stranger, false, "refused"},
	} {
		if got := must[string](t, test.page, state, local(api.URL), test.credentials); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}

	must[any](t, page, `(() => {
		window.got = []
		const source = new EventSource("%s/events", {withCredentials: true})
		source.onopen = () => window.isOpen = true
		source.onmessage = e => got.push(e.data)
		source.addEventListener("gap", e => got.push("gap"))
	})()`, local(api.URL))
	page.WaitFor("window.isOpen")
	for n := range 5 {
		broker.Publish(sse.Event{Data: fmt.Sprint(n, " live")})
		page.WaitFor(fmt.Sprintf("got.length == %d", 2*n+1))
		api.CloseClientConnections()
		broker.Publish(sse.Event{Data: fmt.Sprint(n, " missed")})
		page.WaitFor(fmt.Sprintf("got.length == %d", 2*n+2))
	}
	got := must[string](t, page, "JSON.stringify(got)")
	want := `["0 live","0 missed","1 live","1 missed","2 live","2 missed","3 live","3 missed","4 live","4 missed"]`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if n := preflights.Load(); n != 0 {
		t.Errorf("Chromium asked %d times before it connected an EventSource, want 0", n)
	}

	id, err := json.Marshal(broker.LastEventID())
	if err != nil {
		t.Fatal(err)
	}
	const status = `fetch("%s/events", {credentials: "include", headers: {"Last-Event-ID": %s}}).then(r => String(r.status), e => "refused")`
	if got := must[string](t, page, status, local(api.URL), id); got != "200" {
		t.Errorf("fetch with Last-Event-ID: got %s, want 200", got)
	}
	if preflights.Load() == 0 {
		t.Error("Chromium did not ask before a fetch with Last-Event-ID")
	}
	if got := must[string](t, stranger, status, local(api.URL), id); got != "refused" {
		t.Errorf("fetch by a stranger: got %s, want refused", got)
	}
}

// local names the host as a user would. Cookies do not tell ports apart, origins
// do.
func local(url string) string { return strings.Replace(url, "127.0.0.1", "localhost", 1) }

// must returns the value of a JavaScript expression.
func must[T any](t *testing.T, p *tools.Page, format string, args ...any) T {
	t.Helper()
	v, err := tools.Eval[T](p, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return v
}
