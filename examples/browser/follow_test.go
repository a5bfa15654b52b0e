package browser

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/seed22e817d0/sse"
	script "github.com/seed22e817d0/sse/examples/page"
)

// followHTML is a page that notes what follow tells it, and which EventSources it
// made for that.
const followHTML = `<!doctype html>
<link rel="icon" href="data:,">
<title>follow</title>
<script type="module">
	import { follow } from "./follow.js"
	window.sources = []
	window.EventSource = class extends EventSource {
		constructor(...args) { super(...args); sources.push(this) }
	}
	window.leads = () => sources.some(s => s.readyState === EventSource.OPEN)
	window.start = (url, options) => {
		window.got = []
		window.states = []
		const hear = e => got.push({ID: e.lastEventId, Type: e.type, Data: e.data})
		window.stream = follow(url, {
			on: {message: hear, price: hear, gap: hear, snapshot: hear, end: hear, open: hear, error: hear},
			open: () => states.push("open"),
			away: () => states.push("away"),
			refused: status => states.push("refused " + status),
			...options,
		})
	}
</script>
`

// A followSite is a server of followHTML, and of a stream at /events, with nginx in
// front of it.
type followSite struct {
	URL   string
	front *line // from browsers to nginx
	back  *line // from nginx to the server: while it is cut, nginx answers 502
	open  atomic.Int64
	most  atomic.Int64 // streams that were open at once
	reqs  atomic.Int64 // requests for the stream so far
}

func newFollowSite(t *testing.T, stream http.Handler) *followSite {
	t.Helper()
	s := &followSite{}
	mux := http.NewServeMux()
	mux.Handle("/", script.Handler(followHTML))
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		s.reqs.Add(1)
		if r.Method == "GET" {
			open := s.open.Add(1)
			defer s.open.Add(-1)
			for most := s.most.Load(); open > most && !s.most.CompareAndSwap(most, open); most = s.most.Load() {
			}
		}
		stream.ServeHTTP(w, r)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	s.back = newLine(t, server.URL)
	s.front = behindNginx(t, s.back.URL)
	s.URL = s.front.URL
	return s
}

// wantOne fails the test unless there is one stream before long: nginx may tell the
// server late that a client left.
func (s *followSite) wantOne(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); s.open.Load() != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("got %d connections in the end, want 1", s.open.Load())
		}
	}
}

// behindNginx returns a line to an nginx in front of the server. It may change the
// pages that pass: texts and replacements are given in turn.
func behindNginx(t *testing.T, serverURL string, changes ...string) *line {
	t.Helper()
	path := lookPath(t, "nginx")
	var filters []string
	for change := range slices.Chunk(changes, 2) {
		filters = append(filters, fmt.Sprintf("sub_filter '%s' '%s';", change[0], change[1]))
	}
	dir, err := os.MkdirTemp("", "sse-nginx-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := fmt.Sprintf(`
		user root;
		daemon off;
		pid %[1]s/pid;
		error_log %[1]s/error.log;
		events {}
		http {
			access_log off;
			client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
			server {
				listen unix:%[1]s/socket;
				location / {
					proxy_pass %[2]s;
					proxy_set_header Host $http_host;
					proxy_set_header Accept-Encoding "";
					sub_filter '</title>' '</title>%[3]s';
					%[4]s
				}
			}
		}`, dir, serverURL, firefoxTag(), strings.Join(filters, "\n"))
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd := exec.Command(path, "-e", dir+"/error.log", "-c", dir+"/conf")
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	front := newLine(t, "unix://"+dir+"/socket")
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(dir + "/socket"); err == nil {
			return front
		}
		if time.Now().After(end) {
			t.Fatalf("nginx does not listen:\n%s", stderr.String())
		}
	}
}

// lookPath returns where a server is that the test needs.
func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name // where a user's PATH does not lead
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("this test needs %s; .apt lists the Debian packages", name)
	}
	return path
}

// heard returns what the page heard, once that is n events.
func heard(p *page, n int) []sse.Event {
	p.t.Helper()
	p.waitFor(fmt.Sprintf(`got.length >= %d`, n))
	return eval[[]sse.Event](p, `got`)
}

// follow has the page begin to follow the stream; options is JavaScript.
func follow(p *page, options string) {
	p.t.Helper()
	p.waitFor(`window.start`)
	p.run(`start("/events", ` + options + `)`)
}

// wantHeard fails the test unless the page hears these events and no others.
func wantHeard(p *page, want []sse.Event) {
	p.t.Helper()
	got := heard(p, len(want))
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			p.t.Fatalf("event %d of %d: got %+v, want %+v", i, len(want), got[min(i, len(got)):min(i+3, len(got))], want[min(i, len(want)):min(i+3, len(want))])
		}
	}
}

// send publishes events as they are, and returns them as pages hear them.
func send(t *testing.T, broker *sse.Broker, events ...sse.Event) []sse.Event {
	t.Helper()
	for i, e := range events {
		publish(t, broker, e)
		events[i].ID = broker.LastEventID()
		if e.Type == "" {
			events[i].Type = "message"
		}
	}
	return events
}

// An EventSource gives up at a proxy's 502. A page that uses follow does not, and
// goes on after the last event, of whatever type that was.
func TestFollowAfterBadGateway(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		for _, options := range []string{`{}`, `{shared: true}`} {
			t.Run(options, func(t *testing.T) {
				t.Parallel()
				broker := &sse.Broker{Retry: 100 * time.Millisecond}
				site := newFollowSite(t, broker)
				p := open(t, site.URL)
				follow(p, options)
				p.waitFor(`states.length === 1`)
				want := send(t, broker, sse.Event{Data: "1"}, sse.Event{Type: "price", Data: "2"})
				wantHeard(p, want)
				site.back.cut()
				want = append(want, send(t, broker, sse.Event{Data: "3"}, sse.Event{Type: "price", Data: "4"})...)
				p.waitFor(`sources.length >= 3 && sources.at(-1).readyState === EventSource.CLOSED`)
				site.back.mend()
				wantHeard(p, want)
				wantHeard(p, append(want, send(t, broker, sse.Event{Type: "open", Data: "5"}, sse.Event{Type: "error", Data: "6"}, sse.Event{})...))
				if got, want := eval[[]string](p, `states`), []string{"open", "away", "open"}; !slices.Equal(got, want) {
					t.Errorf("got states %v, want %v", got, want)
				}
			})
		}
	})
}

// Before the first event there is no ID to go on from: what was published meanwhile may
// be missed, and the page is told so, unless it said where to begin.
func TestFollowAfterBadGatewayBeforeTheFirstEvent(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		for _, options := range []string{`{}`, `{shared: true}`, `{lastEventId: "begin"}`} {
			t.Run(options, func(t *testing.T) {
				t.Parallel()
				broker := &sse.Broker{Retry: 100 * time.Millisecond}
				if _, err := broker.Publish(sse.Event{ID: "begin"}); err != nil {
					t.Fatal(err)
				}
				site := newFollowSite(t, broker)
				p := open(t, site.URL)
				follow(p, options)
				p.waitFor(`states.length === 1`)
				site.back.cut()
				want := send(t, broker, sse.Event{Data: "1"})
				p.waitFor(`sources.length >= 3 && sources.at(-1).readyState === EventSource.CLOSED`)
				site.back.mend()
				p.waitFor(`states.length === 3`)
				if !strings.Contains(options, "begin") {
					want = []sse.Event{{Type: "gap"}}
				}
				wantHeard(p, append(want, send(t, broker, sse.Event{Data: "2"})...))
			})
		}
	})
}

func TestFollowTellsOfAGap(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: 100 * time.Millisecond, History: 2}
		site := newFollowSite(t, broker)
		p := open(t, site.URL)
		follow(p, `{}`)
		p.waitFor(`states.length === 1`)
		first := send(t, broker, sse.Event{Data: "1"})
		wantHeard(p, first)
		site.back.cut()
		last := send(t, broker, make([]sse.Event, 1000)...)
		site.back.mend()
		got := heard(p, 3)
		if got[1].Type != "gap" || got[1].Data != first[0].ID || got[len(got)-1] != last[len(last)-1] {
			t.Errorf("got %+v, want a gap after %s, and events up to %s", got, first[0].ID, last[len(last)-1].ID)
		}
	})
}

// Where a stream is finished for good, or refused, nobody asks for it again.
func TestFollowStopsForGood(t *testing.T) {
	const finished = "retry: 10\n\ndata: 1\nid: 1\n\nevent: end\nid: sse-end\ndata: \n\n"
	for _, test := range []struct {
		name, options    string
		stream           func(w http.ResponseWriter, n int64) // n is the number of the request
		events, requests int
		states           string
	}{
		{"the event end", `{}`, func(w http.ResponseWriter, n int64) { io.WriteString(w, finished) }, 2, 1, "[open]"},
		{"the event end, shared", `{shared: true}`, func(w http.ResponseWriter, n int64) { io.WriteString(w, finished) }, 2, 1, "[open]"},
		{"it was known to be finished", `{lastEventId: "sse-end"}`, func(w http.ResponseWriter, n int64) { io.WriteString(w, finished) }, 1, 0, "[]"},
		{"another event end", `{}`, func(w http.ResponseWriter, n int64) {
			io.WriteString(w, "retry: 10\n\nevent: end\nid: 7\ndata: \n\n")
			if n == 3 {
				io.WriteString(w, finished)
			}
		}, 5, 3, "[open away open away open]"},
		{"204", `{}`, func(w http.ResponseWriter, n int64) { w.WriteHeader(http.StatusNoContent) }, 1, 2, "[away]"},
		{"401", `{}`, func(w http.ResponseWriter, n int64) { w.WriteHeader(http.StatusUnauthorized) }, 0, 2, "[away refused 401]"},
		{"401, shared", `{shared: true}`, func(w http.ResponseWriter, n int64) { w.WriteHeader(http.StatusUnauthorized) }, 0, 2, "[away refused 401]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
				var site *followSite
				site = newFollowSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "text/event-stream")
					test.stream(w, site.reqs.Load())
				}))
				p := open(t, site.URL)
				follow(p, test.options)
				p.waitFor(`stream.closed`)
				if got := eval[int](p, `got.length`); got != test.events {
					t.Errorf("got %d events, want %d", got, test.events)
				}
				if got := fmt.Sprint(eval[[]string](p, `states`)); got != test.states {
					t.Errorf("got states %s, want %s", got, test.states)
				}
				p.run(`new Promise(done => setTimeout(done, 2500))`) // longer than it would wait
				if got := int(site.reqs.Load()); got != test.requests {
					t.Errorf("got %d requests, want %d", got, test.requests)
				}
			})
		})
	}
}

// openTabs opens so many tabs of one browser, which all follow the stream.
func openTabs(t *testing.T, open func(*testing.T, string) *page, url string, n int, options string) []*page {
	t.Helper()
	first := open(t, url) // which does nothing, and stays when others are closed
	var tabs []*page
	for range n {
		tabs = append(tabs, first.openBeside(url))
	}
	for _, p := range tabs {
		follow(p, options)
	}
	for _, p := range tabs {
		p.waitFor(`states.at(-1) === "open"`)
	}
	return tabs
}

// crash ends the process of a page in Chromium, which does not answer that.
func (p *page) crash() {
	ctx, cancel := context.WithTimeout(p.ctx, time.Second)
	defer cancel()
	chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, cdppage.Crash, cdp.Empty{})
		return err
	}))
}

// A tab that shares is told of the state when it has joined, since a newcomer gets the
// events from then on.
func TestFollowSharedIsOpenWhenItHasJoined(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		site := newFollowSite(t, &sse.Broker{})
		leading := open(t, site.URL)
		p := leading.openBeside(site.URL)
		leading.waitFor(`window.start`)
		leading.run(`new Promise(done => {
			const name = ["follow", new URL("/events", location).href, "end", "error", "gap", "message", "open", "price", "snapshot"].join(" ")
			window.channel = new BroadcastChannel(name)
			channel.onmessage = e => { window.asked ??= e.data.ask }
			navigator.locks.request(name, () => { done(); return new Promise(() => {}) })
		})`)
		follow(p, `{shared: true}`)
		leading.waitFor(`window.asked`)
		leading.run(`channel.postMessage({ state: ["open"] })`)
		leading.run(`channel.postMessage({ to: asked, events: [{ n: 0, lastEventId: "" }], state: ["away"] })`)
		p.waitFor(`states.length > 0`)
		if got := fmt.Sprint(eval[[]string](p, `states`)); got != "[away]" {
			t.Errorf("got states %s, want [away] alone", got)
		}
	})
}

// Tabs that share have one connection, and all events. Over HTTP/1.1 a browser opens
// six to a server, so that twelve tabs could not each have its own.
func TestFollowShared(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		for _, n := range []int{6, 12} {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				broker := &sse.Broker{Retry: 100 * time.Millisecond}
				site := newFollowSite(t, broker)
				tabs := openTabs(t, open, site.URL, n, `{shared: true}`)
				var want []sse.Event
				for i := range 100 {
					want = append(want, send(t, broker, sse.Event{Data: fmt.Sprint(i)})...)
				}
				for _, p := range tabs {
					wantHeard(p, want)
				}
				site.back.cut()
				want = append(want, send(t, broker, sse.Event{Data: "missed"}, sse.Event{Type: "price", Data: "missed"})...)
				for _, p := range tabs {
					p.waitFor(`states.at(-1) === "away"`)
				}
				site.back.mend()
				for _, p := range tabs {
					wantHeard(p, want)
					if got := fmt.Sprint(eval[[]string](p, `states`)); got != "[open away open]" {
						t.Errorf("got states %s, want [open away open]", got)
					}
				}
				if got := site.most.Load(); got != 1 {
					t.Errorf("%d tabs had %d connections at once, want 1", n, got)
				}
			})
		}
	})
}

// The tab that has the connection goes away, twenty times, while events come. A tab
// takes its place each time.
func TestFollowSharedThroughTwentyKills(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: 100 * time.Millisecond}
		site := newFollowSite(t, broker)
		tabs := openTabs(t, open, site.URL, 6, `{shared: true}`)
		began := map[*page]int{} // how many events there had been as the tab came
		var want []sse.Event
		for kill := range 20 {
			leader := slices.IndexFunc(tabs, func(p *page) bool { return eval[bool](p, `leads()`) })
			if leader < 0 {
				t.Fatal("no tab has the connection")
			}
			middle, sent := make(chan bool), make(chan bool)
			go func() {
				defer close(sent)
				for i := range 300 {
					want = append(want, send(t, broker, sse.Event{Data: fmt.Sprint(kill, " ", i)})...)
					if i == 100 {
						close(middle)
					}
					time.Sleep(time.Millisecond / 5)
				}
			}()
			<-middle
			if p := tabs[leader]; p.tab == nil && kill%2 == 0 {
				p.crash()
			}
			tabs[leader].close()
			<-sent
			tabs = slices.Delete(tabs, leader, leader+1)
			for _, p := range tabs {
				wantHeard(p, want[began[p]:])
			}
			p := tabs[0].openBeside(site.URL)
			follow(p, `{shared: true}`)
			p.waitFor(`states.at(-1) === "open"`)
			began[p] = len(want)
			tabs = append(tabs, p)
		}
		if got := site.most.Load(); got > 3 {
			t.Errorf("the tabs had %d connections at once, want 1, and few more as one takes over", got)
		}
		t.Logf("%d tabs heard %d events through 20 kills; %d requests", len(tabs), len(want), site.reqs.Load())
	})
}

// A tab that comes later begins where it says, or with a newcomer's snapshot, as it
// would with a connection of its own.
func TestFollowSharedLater(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: 100 * time.Millisecond}
		var all []sse.Event
		site := newFollowSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if sse.LastEventID(r) == "" && r.FormValue("snapshot") != "" {
				snapshot := fmt.Sprintf("data: %d so far\nid: %s\n\n", len(all), broker.LastEventID())
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, snapshot)
				r.Header.Set("Last-Event-ID", broker.LastEventID())
			}
			broker.Serve(w, r)
		}))
		say := func(n int) {
			for range n {
				all = append(all, send(t, broker, sse.Event{Data: fmt.Sprint(len(all))})...)
			}
		}
		say(300)
		rendered := broker.LastEventID()
		first := open(t, site.URL)
		follow(first, fmt.Sprintf(`{shared: true, lastEventId: %q}`, all[199].ID))
		wantHeard(first, all[200:])

		later := func(options string) *page {
			p := first.openBeside(site.URL)
			follow(p, options)
			p.waitFor(`states.at(-1) === "open"`)
			return p
		}
		// What the leading tab has had, what it was rendered with, and what it never had.
		same := later(fmt.Sprintf(`{shared: true, lastEventId: %q}`, rendered))
		middle := later(fmt.Sprintf(`{shared: true, lastEventId: %q}`, all[250].ID))
		begin := later(fmt.Sprintf(`{shared: true, lastEventId: %q}`, all[199].ID))
		early := later(fmt.Sprintf(`{shared: true, lastEventId: %q}`, all[10].ID))
		wantHeard(early, all[11:])
		say(10)
		for p, from := range map[*page]int{first: 200, same: 300, middle: 251, begin: 200, early: 11} {
			wantHeard(p, all[from:])
		}
		if got := site.most.Load(); got != 2 {
			t.Errorf("got %d connections at once, want 2: that of all and one to catch up", got)
		}
		site.wantOne(t)
	})
}

func TestFollowSharedSnapshot(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("busy=%t", busy), func(t *testing.T) {
				t.Parallel()
				var n atomic.Int64 // what the snapshot says, and each event after it
				broker := &sse.Broker{Retry: 100 * time.Millisecond}
				var mu sync.Mutex
				say := func() {
					mu.Lock()
					defer mu.Unlock()
					publish(t, broker, sse.Event{Data: fmt.Sprint(n.Add(1))})
				}
				broker.CatchUp = snapshotOf(broker, &mu, &n)
				site := newFollowSite(t, broker)
				stop, stopped := make(chan bool), make(chan bool)
				say()
				go func() {
					defer close(stopped)
					for busy {
						select {
						case <-stop:
							return
						case <-time.After(3 * time.Millisecond):
							say()
						}
					}
				}()
				var tabs []*page
				for range 8 {
					if tabs == nil {
						tabs = append(tabs, open(t, site.URL))
					} else {
						tabs = append(tabs, tabs[0].openBeside(site.URL))
					}
					follow(tabs[len(tabs)-1], `{shared: true, snapshot: true}`)
				}
				for _, p := range tabs {
					p.waitFor(`got.length > 0`)
				}
				if busy {
					p := tabs[len(tabs)-1]
					p.waitFor(`got.length > 300`)
				}
				close(stop)
				<-stopped
				say()
				for i, p := range tabs {
					p.waitFor(fmt.Sprintf(`got.at(-1).Data === "%d"`, n.Load()))
					got := eval[[]sse.Event](p, `got`)
					if got[0].Type != "snapshot" {
						t.Errorf("tab %d: got %+v first, want a snapshot", i, got[0])
					}
					for j := range got[1:] {
						if a, b := got[j].Data, got[j+1].Data; fmt.Sprint(number(a)+1) != b {
							t.Errorf("tab %d: got %s after %s", i, b, a)
						}
					}
				}
				// The server may notice late that one has ended.
				if got := site.most.Load(); got > 3 {
					t.Errorf("got %d connections at once, want 2 or 3", got)
				}
				site.wantOne(t)
			})
		}
	})
}

func number(s string) (n int) {
	fmt.Sscan(s, &n)
	return n
}

func snapshotOf(broker *sse.Broker, mu *sync.Mutex, n *atomic.Int64) func(context.Context, sse.Missed) iter.Seq2[sse.Event, error] {
	return func(context.Context, sse.Missed) iter.Seq2[sse.Event, error] {
		return func(yield func(sse.Event, error) bool) {
			mu.Lock()
			e := sse.Event{Type: "snapshot", Data: fmt.Sprint(n.Load()), ID: broker.LastEventID()}
			mu.Unlock()
			yield(e, nil)
		}
	}
}

// A stream of another origin: a browser gives up at once where the proxy's answer
// lacks the CORS header, and Firefox also when the connection is refused.
func TestFollowAnotherOrigin(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: 100 * time.Millisecond}
		pages := newFollowSite(t, http.NotFoundHandler())
		var refused atomic.Bool
		streams := newFollowSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
			w.Header().Set("Access-Control-Allow-Credentials", "true")
			if refused.Load() {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			broker.Serve(w, r)
		}))
		p := open(t, pages.URL)
		p.waitFor(`window.start`)
		p.run(`start("` + streams.URL + `/events", {withCredentials: true})`)
		p.waitFor(`states.length === 1`)
		want := send(t, broker, sse.Event{Data: "1"})
		wantHeard(p, want)
		for i, line := range []*line{streams.back, streams.front} {
			line.cut()
			want = append(want, send(t, broker, sse.Event{Data: "missed"})...)
			p.waitFor(fmt.Sprintf(`states.length >= %d`, 2*i+2))
			p.run(`new Promise(done => setTimeout(done, 1000))`)
			line.mend()
			wantHeard(p, want)
		}
		refused.Store(true)
		streams.front.interrupt()
		p.waitFor(`stream.closed`)
		if got, want := eval[[]string](p, `states`), []string{"open", "away", "open", "away", "open", "away", "refused 401"}; !slices.Equal(got, want) {
			t.Errorf("got states %v, want %v", got, want)
		}
	})
}

// What one tab tells another may be lost or doubled as a tab takes over.
func TestFollowSharedLostAndDoubled(t *testing.T) {
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		broker := &sse.Broker{Retry: 100 * time.Millisecond}
		site := newFollowSite(t, broker)
		tabs := openTabs(t, open, site.URL, 3, `{shared: true}`)
		for _, p := range tabs {
			p.run(`{
				const post = BroadcastChannel.prototype.postMessage
				let n = 0
				BroadcastChannel.prototype.postMessage = function (message) {
					if (!message.event || ++n % 4 != 2) post.call(this, message)
					if (message.event && n % 4 == 1) post.call(this, message)
				}
			}`)
		}
		var want []sse.Event
		for i := range 30 {
			want = append(want, send(t, broker, sse.Event{Data: fmt.Sprint(i)})...)
			if i%4 == 3 {
				for _, p := range tabs {
					wantHeard(p, want)
				}
			}
		}
		want = append(want, send(t, broker, sse.Event{Data: "the last"})...)
		for _, p := range tabs {
			wantHeard(p, want)
		}
		if got := site.most.Load(); got != 1 {
			t.Errorf("the tabs had %d connections at once, want 1", got)
		}
	})
}
