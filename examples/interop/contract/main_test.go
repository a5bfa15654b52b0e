package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// soon is more than anything here takes on a busy machine.
const soon = 2 * time.Minute

func TestStatus(t *testing.T) {
	h := newHarness(t)
	resp, err := http.Get(h.service)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var status struct {
		Name         string
		Capabilities []string
	}
	err = json.NewDecoder(resp.Body).Decode(&status)
	want := []string{"bom", "headers", "last-event-id", "post", "read-timeout", "report", "server-directed-shutdown-request"}
	if err != nil || resp.StatusCode != 200 || status.Name == "" || !slices.Equal(status.Capabilities, want) {
		t.Errorf("got status %d, %+v, %v, want 200 and the capabilities %q", resp.StatusCode, status, err, want)
	}
}

func TestStop(t *testing.T) {
	h := newHarness(t)
	h.do("DELETE", h.service, "", 200)
	select {
	case <-h.stopped:
	default:
		t.Error("the service goes on")
	}
}

func TestBadRequests(t *testing.T) {
	h := newHarness(t)
	h.do("POST", h.service, "{", 400)
	h.do("POST", h.service, `{"streamUrl": ":", "callbackUrl": "x"}`, 400)
	h.do("POST", h.service, `{"streamUrl": "http://sse.test/", "callbackUrl": "x", "method": "A B"}`, 400)
	h.do("DELETE", h.service+"/streams/1", "", 404)
}

func TestDeleteClosesTheStream(t *testing.T) {
	h := newHarness(t)
	stream := h.open(nil)
	c := h.connection()
	h.do("DELETE", stream, "", 204)
	select {
	case <-c.r.Context().Done():
	case <-time.After(soon):
		t.Error("the connection is still there")
	}
	h.do("DELETE", stream, "", 404)
	h.noConnection()
	if len(h.reports) > 0 {
		t.Errorf("got the report %v, want none", <-h.reports)
	}
}

func TestParsing(t *testing.T) {
	many, manyWant := "", []string(nil)
	for i := range 100 {
		many += fmt.Sprintf("data: message %d\n\n", i)
		manyWant = append(manyWant, fmt.Sprintf("message||message %d", i))
	}
	long := strings.Repeat("0123456789", 100_000)
	for _, tt := range []struct {
		name   string
		stream []string // each in a write of its own
		want   []string // type, ID and data
	}{
		{"one line", []string{"data: Hello\n\n"}, []string{"message||Hello"}},
		{"one line in two chunks", []string{"data: Hel", "lo\n\n"}, []string{"message||Hello"}},
		{"two events in one chunk", []string{"data: Hello\n\ndata: World\n\n"}, []string{"message||Hello", "message||World"}},
		{"two lines", []string{"data: Hello\ndata:World\n\n"}, []string{"message||Hello\nWorld"}},
		{"empty data", []string{"data:\n\n"}, []string{"message||"}},
		{"type", []string{"event: greeting\ndata: Hello\n\n"}, []string{"greeting||Hello"}},
		{"ID", []string{"id: abc\ndata: Hello\n\n"}, []string{"message|abc|Hello"}},
		{"all fields in reverse order", []string{"data: Hello\nid: abc\nevent: greeting\n\n"}, []string{"greeting|abc|Hello"}},
		{"unknown field", []string{"event: greeting\ncolor: blue\ndata: Hello\n\n"}, []string{"greeting||Hello"}},
		{"no blank", []string{"event:greeting\ndata:Hello\n\n"}, []string{"greeting||Hello"}},
		{"two blanks", []string{"event:  greeting\ndata:  Hello\n\n"}, []string{" greeting|| Hello"}},
		{"ID with NUL", []string{"id: a\x00b\ndata: Hello\n\n"}, []string{"message||Hello"}},
		{"other than ASCII", []string{"data: €豆腐\n\n"}, []string{"message||€豆腐"}},
		{"other than ASCII in pieces", pieces("data: €豆腐\n\n", 1), []string{"message||€豆腐"}},
		{"comments", []string{":Hello\ndata: World\n:\n\n:\n\n"}, []string{"message||World"}},
		{"many events", []string{many}, manyWant},
		{"large event", []string{"data: " + long + "\n\n"}, []string{"message||" + long}},
		{"large event in chunks", pieces("data: "+long+"\n\n", 10_000), []string{"message||" + long}},
		{"byte order mark", []string{"\ufeffdata: Hello\n\ndata: World\n\n"}, []string{"message||Hello", "message||World"}},
		{"byte order mark in pieces", pieces("\ufeffdata: Hello\n\n", 1), []string{"message||Hello"}},
		{"byte order mark in the middle", []string{"data: Hello\n\n\ufeffdata: World\n\ndata: x\n\n"}, []string{"message||Hello", "message||x"}},
		{"CR at the end of a chunk", []string{"data: Hello\r", "\ndata: World\r", "\n\r\ndata: OK\r", "\n", "\r", "\n"},
			[]string{"message||Hello\nWorld", "message||OK"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.open(nil)
			c := h.connection()
			for _, piece := range tt.stream {
				c.send(piece)
			}
			h.wantEvents(tt.want...)
		})
	}
}

func TestLineEnds(t *testing.T) {
	for name, end := range map[string]string{"LF": "\n", "CRLF": "\r\n", "CR": "\r"} {
		for _, size := range []int{1, 2, 1 << 20} {
			t.Run(fmt.Sprintf("%s in chunks of %d", name, size), func(t *testing.T) {
				h := newHarness(t)
				h.open(nil)
				c := h.connection()
				stream := strings.ReplaceAll("data: 1\n\ndata: 2\ndata: 3\n\ndata:\ndata: 4\n\ndata: 5\ndata:\ndata: 6\n\n\ndata: 7\n\n\n\ndata: 8\n\n", "\n", end)
				for _, piece := range pieces(stream, size) {
					c.send(piece)
				}
				h.wantEvents("message||1", "message||2\n3", "message||\n4", "message||5\n\n6", "message||7", "message||8")
			})
		}
	}
}

func TestRequests(t *testing.T) {
	h := newHarness(t)
	h.open(nil)
	c := h.connection()
	for name, want := range map[string]string{"Accept": "text/event-stream", "Cache-Control": "no-cache", "Last-Event-Id": ""} {
		if got := c.r.Header.Get(name); got != want {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
	if c.r.Method != "GET" || c.r.ContentLength != 0 {
		t.Errorf("got method %s and length %d, want GET and 0", c.r.Method, c.r.ContentLength)
	}
	h.open(map[string]any{"headers": map[string]string{"header-name-1": "value-1", "header-name-2": "value-2"}, "lastEventId": "abc"})
	c = h.connection()
	for name, want := range map[string]string{"Header-Name-1": "value-1", "Header-Name-2": "value-2", "Last-Event-Id": "abc"} {
		if got := c.r.Header.Get(name); got != want {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
}

func TestRequestsWithABody(t *testing.T) {
	for _, method := range []string{"POST", "REPORT"} {
		t.Run(method, func(t *testing.T) {
			h := newHarness(t)
			h.open(map[string]any{"method": method, "body": `{"hello": "world"}`, "initialDelayMs": 0,
				"headers": map[string]string{"content-type": "application/json; charset=utf-8"}})
			for range 3 {
				c := h.connection()
				if got := c.r.Header.Get("Content-Type"); c.r.Method != method || c.body != `{"hello": "world"}` || got != "application/json; charset=utf-8" {
					t.Errorf("got %s with %q of type %q, want %s with the body", c.r.Method, c.body, got, method)
				}
				c.cut()
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	for _, status := range []int{301, 307} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			h := newHarness(t)
			there := h.stream.URL + "/there"
			redirecting := h.answering(func(w http.ResponseWriter) { w.Header().Set("Location", there); w.WriteHeader(status) })
			h.open(map[string]any{"streamUrl": redirecting})
			c := h.connection()
			c.send("data: hello\n\n")
			h.wantEvents("message||hello")
			for _, location := range [][]string{{""}, nil} {
				before := h.answered
				redirecting = h.answering(func(w http.ResponseWriter) { w.Header()["Location"] = location; w.WriteHeader(status) })
				h.open(map[string]any{"streamUrl": redirecting, "initialDelayMs": 0})
				h.wantError(fmt.Sprint("server answered ", status))
				h.noConnection()
				if got := h.answered - before; got != 1 {
					t.Errorf("Location %q: got %d requests, want 1", location, got)
				}
			}
		})
	}
}

func TestServerDirectedShutdown(t *testing.T) {
	h := newHarness(t)
	h.open(map[string]any{"streamUrl": h.answering(func(w http.ResponseWriter) { w.WriteHeader(204) }), "initialDelayMs": 0})
	h.wantError("ended for good")
	h.noConnection()
	if h.answered != 1 {
		t.Errorf("got %d requests, want 1", h.answered)
	}
}

func TestReconnection(t *testing.T) {
	h := newHarness(t)
	h.open(map[string]any{"initialDelayMs": 0})
	for i, step := range []struct {
		lastID string // sent by the client
		stream string
		want   []string
	}{
		{"", "id: abc\ndata: Hello\n\n", []string{"message|abc|Hello"}},
		{"abc", "data: World\n\n", []string{"message|abc|World"}},
		{"abc", "data: again\n\nid: def\ndata: partial", []string{"message|abc|again"}},
		{"abc", "id: ghi\n\n", nil},
		{"ghi", "id: \ndata: emptied\n\n", []string{"message||emptied"}},
		{"", "id: jkl\ndata: OK\n\n", []string{"message|jkl|OK"}},
	} {
		c := h.connection()
		if got, sent := c.r.Header["Last-Event-Id"]; sent != (step.lastID != "") || sent && got[0] != step.lastID {
			t.Errorf("connection %d: got Last-Event-ID %q, want %q", i, got, step.lastID)
		}
		c.send(step.stream)
		h.wantEvents(step.want...)
		c.cut()
	}
}

func TestReadTimeout(t *testing.T) {
	h := newHarness(t)
	h.open(map[string]any{"initialDelayMs": 0, "readTimeoutMs": 300})
	c := h.connection()
	c.send("data: Hello\n\n")
	h.wantEvents("message||Hello")
	h.wantError("no byte within 300ms")
	h.connection()
}

func TestRetryOfTheStream(t *testing.T) {
	h := newHarness(t)
	h.open(map[string]any{"initialDelayMs": 0})
	c := h.connection()
	c.send("retry: 500\ndata: Hello\n\n")
	h.wantEvents("message||Hello")
	began := time.Now()
	c.cut()
	h.connection()
	if got := time.Since(began); got < 500*time.Millisecond {
		t.Errorf("got a wait of %v, want 500ms", got)
	}
}

func pieces(s string, size int) (parts []string) {
	for part := range slices.Chunk([]byte(s), size) {
		parts = append(parts, string(part))
	}
	return parts
}

// A harness is what the tests are for the service: it tells it to open streams,
// serves them, and takes its reports.
type harness struct {
	t           *testing.T
	service     string // its URL
	stopped     chan struct{}
	stream      *httptest.Server
	callbacks   *httptest.Server
	connections chan *connection
	reports     chan report

	mu       sync.Mutex
	paths    map[string]func(http.ResponseWriter) // of the stream server, answered without a stream
	answered int
	last     map[string]int // the number of the last report, by callback URL
}

type report struct {
	Kind  string
	Event struct{ Type, ID, Data string }
	Error string
}

func newHarness(t *testing.T) *harness {
	h := &harness{t: t, stopped: make(chan struct{}), connections: make(chan *connection, 100), reports: make(chan report, 1000),
		paths: map[string]func(http.ResponseWriter){}, last: map[string]int{}}
	ctx, stop := context.WithCancel(t.Context())
	service := httptest.NewServer(newService(ctx, func() { close(h.stopped) }))
	h.service = service.URL
	h.stream = httptest.NewServer(http.HandlerFunc(h.serveStream))
	h.callbacks = httptest.NewServer(http.HandlerFunc(h.take))
	t.Cleanup(func() {
		stop()
		h.stream.CloseClientConnections()
		for _, s := range []*httptest.Server{service, h.stream, h.callbacks} {
			s.Close()
		}
	})
	return h
}

// open asks for a stream, and returns the URL of what the service has for it.
func (h *harness) open(params map[string]any) (location string) {
	h.t.Helper()
	all := map[string]any{"streamUrl": h.stream.URL, "callbackUrl": h.callbacks.URL + fmt.Sprint("/", time.Now().UnixNano()), "tag": h.t.Name()}
	maps.Copy(all, params)
	body, err := json.Marshal(all)
	if err != nil {
		h.t.Fatal(err)
	}
	location = h.do("POST", h.service, string(body), 201).Get("Location")
	if !strings.HasPrefix(location, h.service+"/") {
		h.t.Fatalf("got Location %q, want a URL of the service", location)
	}
	return location
}

func (h *harness) do(method, url, body string, want int) http.Header {
	h.t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		h.t.Fatalf("%s %s: got status %d, want %d", method, url, resp.StatusCode, want)
	}
	return resp.Header
}

// answering returns a URL that is answered without a stream.
func (h *harness) answering(answer func(http.ResponseWriter)) (url string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	path := fmt.Sprint("/answer/", len(h.paths))
	h.paths[path] = answer
	return h.stream.URL + path
}

func (h *harness) serveStream(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	answer := h.paths[r.URL.Path]
	if answer != nil {
		h.answered++
	}
	h.mu.Unlock()
	if answer != nil {
		answer(w)
		return
	}
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.(http.Flusher).Flush()
	c := &connection{r: r, body: string(body), pieces: make(chan string)}
	h.connections <- c
	for {
		select {
		case piece, ok := <-c.pieces:
			if !ok {
				return
			}
			io.WriteString(w, piece)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// take takes a report, which must have the number after the last one.
func (h *harness) take(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slash := strings.LastIndex(r.URL.Path, "/")
	base, number := r.URL.Path[:slash], r.URL.Path[slash+1:]
	h.last[base]++
	if want := fmt.Sprint(h.last[base]); number != want || r.Method != "POST" {
		h.t.Errorf("got report %s by %s, want %s by POST", number, r.Method, want)
	}
	var got report
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		h.t.Error(err)
	}
	h.reports <- got
}

func (h *harness) report() (got report) {
	h.t.Helper()
	select {
	case got = <-h.reports:
	case <-time.After(soon):
		h.t.Fatal("no report came")
	}
	return got
}

func (h *harness) wantEvents(want ...string) {
	h.t.Helper()
	for _, want := range want {
		got := h.report()
		if text := got.Event.Type + "|" + got.Event.ID + "|" + got.Event.Data; got.Kind != "event" || text != want {
			h.t.Fatalf("got %.200s, want the event %.200q", fmt.Sprintf("%+v", got), want)
		}
	}
}

func (h *harness) wantError(text string) {
	h.t.Helper()
	if got := h.report(); got.Kind != "error" || !strings.Contains(got.Error, text) {
		h.t.Errorf("got %+v, want an error with %q", got, text)
	}
}

func (h *harness) connection() *connection {
	h.t.Helper()
	select {
	case c := <-h.connections:
		return c
	case <-time.After(soon):
		h.t.Fatal("no connection came")
		return nil
	}
}

// noConnection gives the client time for a reconnection that must not come.
func (h *harness) noConnection() {
	h.t.Helper()
	select {
	case c := <-h.connections:
		h.t.Errorf("got a connection with the headers %v, want none", c.r.Header)
	case <-time.After(100 * time.Millisecond):
	}
}

// A connection is one that the service has made for a stream.
type connection struct {
	r      *http.Request
	body   string
	pieces chan string
}

func (c *connection) send(text string) {
	select {
	case c.pieces <- text:
	case <-c.r.Context().Done():
	}
}

func (c *connection) cut() { close(c.pieces) }
