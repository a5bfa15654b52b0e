package browser

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/seed22e817d0/sse"
)

// A sighting is something that a page saw happen to its EventSource.
type sighting struct {
	Kind  string // "event", or "open" or "error" of the connection itself
	Type  string // of the event
	Data  string
	ID    string
	State int // the EventSource's readyState
}

// The values of readyState.
const (
	connecting = iota
	connected
	closed
)

// listen opens an EventSource in the page. It listens to the types too.
func (p *page) listen(url string, types ...string) {
	p.t.Helper()
	if types == nil {
		types = []string{}
	}
	list, _ := json.Marshal(types)
	p.run(fmt.Sprintf(`
		window.seen = []
		window.events = 0
		window.source = new EventSource(%q)
		window.see = e => {
			const isEvent = e instanceof MessageEvent
			if (isEvent) events++
			seen.push({Kind: isEvent ? "event" : e.type, Type: e.type, Data: e.data, ID: e.lastEventId, State: source.readyState})
		}
		for (const type of new Set(["open", "error", "message", "gap", ...%s])) source.addEventListener(type, see)`,
		url, list))
}

// settle is listen, and waits until the stream has told the page more than its
// headers, which no script can see: the ID that it is to resume at.
func (p *page) settle(url string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	data := chromedp.Events(ctx, network.DataReceived)
	p.listen(url)
	for _, err := range data {
		if err != nil {
			p.t.Fatal(err)
		}
		break
	}
	p.waitFor(`seen.length > 0`)
}

// seen returns what the page has seen since listen.
func (p *page) seen() []sighting {
	p.t.Helper()
	return eval[[]sighting](p, `seen`)
}

// events returns the events among what the page has seen, once they are n.
func (p *page) events(n int) []sighting {
	p.t.Helper()
	p.waitFor(fmt.Sprintf(`events >= %d`, n))
	return slices.DeleteFunc(p.seen(), func(s sighting) bool { return s.Kind != "event" })
}

// data returns the data of the page's events, once they are n.
func (p *page) data(n int) []string {
	p.t.Helper()
	var data []string
	for _, e := range p.events(n) {
		data = append(data, e.Data)
	}
	return data
}

// A way is how a stream comes from the broker to the browser.
type way struct {
	name       string
	tls, http2 bool
	detached   bool // by Broker.Detach
}

var plain = way{name: "HTTP1"}

// everyWay runs the test for each way there is.
func everyWay(t *testing.T, test func(t *testing.T, by way)) {
	t.Parallel()
	for _, by := range []way{
		plain,
		{name: "HTTP1Detached", detached: true},
		{name: "HTTPSDetached", detached: true, tls: true},
		{name: "HTTP2", tls: true, http2: true},
	} {
		t.Run(by.name, func(t *testing.T) {
			t.Parallel()
			test(t, by)
		})
	}
}

// handler returns the handler of the broker's default topic.
func (by way) handler(broker *sse.Broker) http.Handler {
	if !by.detached {
		return broker
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { broker.Detach(w, r, nil) })
}

// serve serves the stream at /events, and an empty page at any other path. It
// returns the line there.
func (by way) serve(t *testing.T, stream http.Handler) *line {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/events", stream)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><title>test</title>`+firefoxTag())
	})
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = by.http2
	if by.tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return newLine(t, server.URL)
}

func publish(t *testing.T, broker *sse.Broker, events ...sse.Event) {
	t.Helper()
	for _, e := range events {
		if _, err := broker.Publish(e); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenFiresBeforeTheFirstEvent(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{History: -1, Retry: -1} // which says nothing before the first event
		line := by.serve(t, by.handler(broker))
		p := open(t, line.URL)
		p.listen("/events")
		p.waitFor(`seen.length > 0`)
		if got, want := p.seen(), []sighting{{Kind: "open", Type: "open", State: connected}}; !slices.Equal(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		publish(t, broker, sse.Event{Data: "first"})
		if got := p.data(1); !slices.Equal(got, []string{"first"}) {
			t.Errorf("got %q", got)
		}
		if protocol, want := eval[string](p, `performance.getEntriesByType("navigation")[0].nextHopProtocol`),
			map[bool]string{false: "http/1.1", true: "h2"}[by.http2]; protocol != want {
			t.Errorf("the page came by %q, want %s", protocol, want)
		}
	})
}

// oddEvents returns events with all that is unusual in data, types and IDs.
func oddEvents() []sse.Event {
	var events []sse.Event
	// All texts of up to four of what matters to the format.
	texts := []string{""}
	for from := 0; len(texts[from]) < 4; from++ {
		for _, c := range []string{"\n", "\r", " ", ":", "a"} {
			texts = append(texts, texts[from]+c)
		}
	}
	texts = append(texts,
		"data: x", "data: x\n\ndata: y", "id: 7\nevent: x\nretry: 1", ": comment", ":", "a\n\n\nb", "\r\n\r\n", "\n\r", "\r\r\n\n",
		"\t", "\ta\t", "  two blanks  ", "\v\f", "\x00", "a\x00b", "\x00\n\x00", "\x01\x02\x1b\x7f", "\u0080\u0085\u009f", "\u00a0",
		"\u2028", "a\u2029b", "\ufeff", "\ufeffa", "a\ufeff", "\ufeff\ufeff\n\ufeff", "\ufffd", "\ufffe\uffff", "\U0010ffff",
		"日本語", "한국어\nالعربية", "e\u0301 é", "👩‍👩‍👧‍👦 🇨🇭", "\u202eabc", "𝄞\r𝄞", "ß\r\nẞ",
		`{"a":"<b>&amp;\n"}`, "<script>alert(1)</script>", "%0a%0d", `\n`, "a;b,c=d",
		strings.Repeat("x", 1<<20),
		strings.Repeat("日本", 200_000)+"\n"+strings.Repeat("é\r\n", 1000),
		strings.Repeat("\n", 100_000),
		strings.Repeat("line\r", 20_000),
		strings.Repeat("\ufeff", 10_000),
	)
	random := rand.New(rand.NewPCG(1, 2))
	alphabet := []rune("\n\n\r\r \t:aé日😀\x00\ufeff\u2028")
	for range 100 {
		text := make([]rune, random.IntN(400))
		for i := range text {
			text[i] = alphabet[random.IntN(len(alphabet))]
		}
		texts = append(texts, string(text))
	}
	for _, text := range texts {
		events = append(events, sse.Event{Data: text})
	}
	for _, name := range []string{
		"message", "error", "open", "close", " blank", "blank ", "\ttab", "a:b", ":", "日本語", "👍", "\ufeff", "\u2028", "\x01",
		"data", "constructor", "__proto__", strings.Repeat("t", 5000),
	} {
		events = append(events, sse.Event{Type: name, Data: "x"}, sse.Event{Type: name})
	}
	for _, id := range oddIDs {
		events = append(events, sse.Event{ID: id, Data: "x"}, sse.Event{Data: "its own ID is another"})
	}
	return append(events, sse.Event{ID: "an ID and nothing else"}, sse.Event{Retry: time.Second, Data: "x"})
}

var oddIDs = []string{
	"7", "0", "a b", "a: b", ":", "日本語", "👍", "\ufeff", "\u00a0", "\u2028", "a,b;c=d", `"`, "%20", "é", "null", "undefined",
	strings.Repeat("i", 1024), strings.Repeat("日", 341),
}

func TestBrowserSeesWhatWasPublished(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{HistoryBytes: -1}
		line := by.serve(t, by.handler(broker))
		p := open(t, line.URL)
		events := oddEvents()
		var types []string
		for _, e := range events {
			types = append(types, e.Type)
		}
		p.listen("/events", types...)
		p.waitFor(`seen.length > 0`)

		normalise := strings.NewReplacer("\r\n", "\n", "\r", "\n")
		var want []sighting
		for _, e := range append(events, sse.Event{Data: "end"}) {
			publish(t, broker, e)
			want = append(want, sighting{
				Kind: "event", Type: cmp.Or(e.Type, "message"), Data: normalise.Replace(e.Data),
				ID: cmp.Or(e.ID, broker.LastEventID()), State: connected,
			})
		}
		got := p.events(len(want))
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || got[i] != want[i] {
				t.Fatalf("event %d: got %.300s, want %.300s", i,
					fmt.Sprintf("%+q", got[min(i, len(got)):min(i+1, len(got))]),
					fmt.Sprintf("%+q", want[min(i, len(want)):min(i+1, len(want))]))
			}
		}
		t.Logf("%d events are the same", len(got))
	})
}

// A client that was told its place, and nothing else, resumes there.
func TestCutBeforeTheFirstEventMissesNothing(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{Retry: 100 * time.Millisecond}
		publish(t, broker, sse.Event{Data: "from before"})
		line := by.serve(t, by.handler(broker))
		p := open(t, line.URL)
		p.settle("/events")
		line.interrupt()
		publish(t, broker, sse.Event{Data: "1"}, sse.Event{Data: "2"}, sse.Event{Data: "3"})
		if got, want := p.data(3), []string{"1", "2", "3"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if got, want := p.seen()[:2], []sighting{
			{Kind: "open", Type: "open", State: connected},
			{Kind: "error", Type: "error", State: connecting},
		}; !slices.Equal(got, want) {
			t.Errorf("got %+v first, want %+v", got, want)
		}
	})
}

// Promise 1, as a browser sees it.
func TestEachEventOnceAndInOrderThroughManyCuts(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{Retry: time.Millisecond}
		line := by.serve(t, by.handler(broker))
		p := open(t, line.URL)
		p.settle("/events")
		const cuts, each = 30, 50
		n := 0
		for range cuts {
			for range each {
				n++
				publish(t, broker, sse.Event{Data: fmt.Sprint(n)})
				if n%each == each/2 {
					line.interrupt()
				}
			}
			// Let it come as far as some of them, or it might sleep through all.
			p.waitFor(fmt.Sprintf(`events >= %d`, n-each))
		}
		for i, data := range p.data(n) {
			if data != fmt.Sprint(i+1) {
				t.Fatalf("event %d is %s", i+1, data)
			}
		}
		errors := 0
		for _, s := range p.seen() {
			if s.Kind == "error" {
				errors++
			}
		}
		if errors < cuts/2 {
			t.Errorf("the page noticed %d of %d cuts: that proves little", errors, cuts)
		}
	})
}

// A page that is busy takes nothing, until the server cannot write any more.
func TestBusyPageGetsEverythingInTheEnd(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{HistoryBytes: -1}
		p := open(t, by.serve(t, by.handler(broker)).URL)
		p.run(`
			window.got = ""
			window.opened = 0
			window.source = new EventSource("/events")
			source.onopen = () => opened++
			source.onmessage = e => {
				const first = e.data[0]
				got += e.data === first.repeat(1 << 20) ? first : "?"
				for (const end = Date.now() + 40; Date.now() < end;);
			}`)
		p.waitFor(`opened > 0`)
		const want = "abcdefghijkl"
		for _, c := range want {
			publish(t, broker, sse.Event{Data: strings.Repeat(string(c), 1<<20)})
		}
		p.waitFor(`got.length >= 12`)
		if got := eval[string](p, `got`); got != want {
			t.Errorf("got events of %s, want %s", got, want)
		}
		if opened := eval[int](p, `opened`); opened > 1 {
			t.Errorf("the page connected %d times", opened)
		}
	})
}

// requests notes when each request came, and what its Last-Event-ID header was.
type requests struct {
	http.Handler
	ids   chan string
	times chan time.Time
}

func watch(handler http.Handler) *requests {
	return &requests{handler, make(chan string, 1000), make(chan time.Time, 1000)}
}

func (rs *requests) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rs.ids <- r.Header.Get("Last-Event-ID")
	rs.times <- time.Now()
	rs.Handler.ServeHTTP(w, r)
}

// next returns what comes next, which must not take longer than patience.
func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatal("the browser made no request")
		panic("unreachable")
	}
}

func TestOddIDsComeBack(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{Retry: time.Millisecond}
		stream := watch(by.handler(broker))
		line := by.serve(t, stream)
		p := open(t, line.URL)
		p.listen("/events")
		next(t, stream.ids)
		p.waitFor(`seen.length > 0`)
		for i, id := range oddIDs {
			publish(t, broker, sse.Event{ID: id, Data: id})
			p.events(i + 1)
			line.interrupt()
			if got := next(t, stream.ids); got != id {
				t.Fatalf("after the event %q the browser came back with %q", id, got)
			}
		}
		if got := p.data(len(oddIDs)); !slices.Equal(got, oddIDs) {
			t.Errorf("got %q, want %q", got, oddIDs)
		}
	})
}

func TestRetryIsHonored(t *testing.T) {
	t.Parallel()
	const long = 6 * time.Second // untold, it would wait for 3 s
	broker := &sse.Broker{Retry: long}
	stream := watch(broker)
	line := plain.serve(t, stream)
	p := open(t, line.URL)
	p.listen("/events")
	next(t, stream.times)
	comeBack := func() time.Duration {
		cut := time.Now()
		line.interrupt()
		return next(t, stream.times).Sub(cut)
	}
	p.waitFor(`seen.length > 0`)
	if took := comeBack(); took < long {
		t.Errorf("told %v as it connected, the browser came back after %v", long, took)
	}
	p.waitFor(`seen.length >= 3`)
	publish(t, broker, sse.Event{Retry: 50 * time.Millisecond}, sse.Event{Data: "x"})
	p.events(1)
	if took := comeBack(); took < 50*time.Millisecond || took > long {
		t.Errorf("told 50ms by an event, the browser came back after %v", took)
	}
}

func TestBrowserComesBackToAFullServer(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		broker := &sse.Broker{MaxClients: 1, Retry: 300 * time.Millisecond, KeepAlive: 100 * time.Millisecond}
		stream := watch(by.handler(broker))
		line := by.serve(t, stream)
		first := open(t, line.URL)
		first.listen("/events")
		first.waitFor(`seen.length > 0`)
		next(t, stream.times)

		second := open(t, line.URL)
		second.listen("/events?lastEventId=" + broker.LastEventID())
		before := next(t, stream.times)
		var waits []time.Duration
		for range 3 {
			now := next(t, stream.times)
			waits = append(waits, now.Sub(before))
			before = now
		}
		// It was told from 300 to 600 ms; untold, it would wait for 3 s each time.
		if shortest := slices.Min(waits); shortest < 300*time.Millisecond || shortest > 2500*time.Millisecond {
			t.Errorf("turned away, the browser came back after %v", waits)
		}
		publish(t, broker, sse.Event{Data: "hello"})
		first.run(`source.close()`)
		if got := second.data(1); !slices.Equal(got, []string{"hello"}) {
			t.Errorf("got %q", got)
		}
		for _, s := range second.seen() {
			if s.Kind == "error" && s.State != connecting {
				t.Errorf("the browser gave up: %+v", s)
			}
		}
	})
}

func TestBrowserComesBackAfterShutdown(t *testing.T) {
	everyWay(t, func(t *testing.T, by way) {
		brokers := []*sse.Broker{{Retry: 100 * time.Millisecond}, {Retry: 100 * time.Millisecond}}
		var current atomic.Pointer[sse.Broker]
		current.Store(brokers[0])
		line := by.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			by.handler(current.Load()).ServeHTTP(w, r)
		}))
		p := open(t, line.URL)
		p.listen("/events")
		p.waitFor(`seen.length > 0`)
		publish(t, brokers[0], sse.Event{Data: "owed"})
		lastID := brokers[0].LastEventID()
		if err := brokers[0].Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		// It is turned away at least once before there is another broker.
		p.waitFor(`seen.filter(s => s.Kind === "error").length >= 2`)
		publish(t, brokers[1], sse.Event{Data: "missed"})
		current.Store(brokers[1])
		if got, want := p.data(3), []string{"owed", lastID, "missed"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if gap := p.events(3)[1]; gap.Type != "gap" {
			t.Errorf("got %+v, want a gap event", gap)
		}
	})
}

// This is why the broker answers with status 200 whenever a client is to come
// back.
func TestBrowserGivesUpOnAnyOtherStatus(t *testing.T) {
	for _, status := range []int{http.StatusNoContent, http.StatusServiceUnavailable} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			p := open(t, plain.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				w.WriteHeader(status)
			})).URL)
			p.listen("/events")
			p.waitFor(`seen.length > 0`)
			if got, want := p.seen(), []sighting{{Kind: "error", Type: "error", State: closed}}; !slices.Equal(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// By HTTP/1.1 a browser opens six connections to a server and no more.
func TestManyStreamsOnOnePageByHTTP2(t *testing.T) {
	t.Parallel()
	var broker sse.Broker
	p := open(t, way{tls: true, http2: true}.serve(t, &broker).URL)
	p.run(`
		window.opened = 0
		window.got = 0
		for (let i = 0; i < 50; i++) {
			const source = new EventSource("/events")
			source.onopen = () => opened++
			source.onmessage = () => got++
		}`)
	p.waitFor(`opened === 50`)
	publish(t, &broker, sse.Event{Data: "x"})
	p.waitFor(`got === 50`)
}

func TestPageResumesWhereItWasRendered(t *testing.T) {
	t.Parallel()
	var broker sse.Broker
	p := open(t, plain.serve(t, &broker).URL)
	publish(t, &broker, sse.Event{Data: "in the page already"})
	rendered := broker.LastEventID()
	publish(t, &broker, sse.Event{Data: "1"}, sse.Event{Data: "2"})
	p.listen("/events?lastEventId=" + url.QueryEscape(rendered))
	if got, want := p.data(2), []string{"1", "2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
