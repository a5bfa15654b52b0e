package sse_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"io"
	"iter"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed22e817d0/sse"
)

// A complete server. Every client that connects receives what is published from
// then on.
func Example() {
	broker := &sse.Broker{}
	mux := http.NewServeMux()
	mux.Handle("GET /events", broker)
	srv := httptest.NewServer(mux) // a program calls http.ListenAndServe
	defer srv.Close()

	resp, err := http.Get(srv.URL + "/events")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	broker.Publish(sse.Event{Data: "hello"})

	ev, err := sse.NewDecoder(resp.Body).Decode()
	fmt.Println(ev.Data, err)
	// Output: hello <nil>
}

// Code before the call of Serve decides who may read which topics. Code after it
// runs when the client has left.
func ExampleBroker_Serve() {
	broker := &sse.Broker{}
	mayRead := func(r *http.Request, room string) bool {
		return r.URL.Query().Get("key") == "key-of-"+room
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /rooms/{room}/events", func(w http.ResponseWriter, r *http.Request) {
		room := r.PathValue("room")
		if !mayRead(r, room) {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		err := broker.Serve(w, r, "room/"+room, "announcements")
		slog.Debug("client left", "room", room, "reason", err)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()

	resp, err := http.Get(srv.URL + "/rooms/42/events?key=key-of-43")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)

	resp, err = http.Get(srv.URL + "/rooms/42/events?key=key-of-42")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	broker.Publish(sse.Event{Data: "for room 42"}, "room/42")
	broker.Publish(sse.Event{Data: "for room 43"}, "room/43")
	broker.Publish(sse.Event{Data: "for all rooms"}, "announcements")
	broker.Shutdown(context.Background()) // ends the stream once all is sent
	for ev := range sse.NewDecoder(resp.Body).All() {
		fmt.Println(ev.Data)
	}
	// Output:
	// 403 Forbidden
	// 200 OK
	// for room 42
	// for all rooms
}

// A stream ends when the context of its request is done. The browser comes back and
// is refused.
func ExampleBroker_Serve_revoke() {
	broker := &sse.Broker{}
	session, revoke := context.WithCancel(context.Background()) // one for each session

	handler := func(w http.ResponseWriter, r *http.Request) {
		if session.Err() != nil {
			http.Error(w, "session is over", http.StatusUnauthorized)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(session, cancel)()
		broker.Serve(w, r.WithContext(ctx), "user/7")
	}
	srv := httptest.NewServer(http.HandlerFunc(handler))
	defer srv.Close()

	resp, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	revoke()
	_, err = sse.NewDecoder(resp.Body).Decode()
	resp.Body.Close()
	fmt.Println(resp.Status, "then", err)

	resp, err = http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)
	// Output:
	// 200 OK then EOF
	// 401 Unauthorized
}

// A detached client needs no goroutine. The function given to Detach runs when the
// client has left.
func ExampleBroker_Detach() {
	broker := &sse.Broker{}
	var online atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /prices", func(w http.ResponseWriter, r *http.Request) {
		online.Add(1)
		broker.Detach(w, r, func(error) { online.Add(-1) }, "prices")
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()

	resp, err := http.Get(srv.URL + "/prices")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	broker.Publish(sse.Event{Data: "42"}, "prices")
	ev, err := sse.NewDecoder(resp.Body).Decode()
	fmt.Println(ev.Data, err)
	fmt.Println(online.Load(), "online")
	broker.Shutdown(context.Background())
	fmt.Println(online.Load(), "online")
	// Output:
	// 42 <nil>
	// 1 online
	// 0 online
}

// An event with an ID of its own reaches every client once, even if it is published
// twice, for example by a queue that delivers at least once.
func ExampleBroker_Publish() {
	broker := &sse.Broker{}
	for range 2 {
		_, err := broker.Publish(sse.Event{ID: "orders-4711", Data: "paid"}, "orders")
		if errors.Is(err, sse.ErrDuplicateID) {
			fmt.Println("known already:", err)
		} else if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(broker.Stats().Published, "published")
	// Output:
	// known already: sse: duplicate event ID "orders-4711"
	// 1 published
}

// Other parts of the program subscribe as clients do, without HTTP.
func ExampleBroker_Subscribe() {
	broker := &sse.Broker{}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()

	start := broker.LastEventID()
	broker.Publish(sse.Event{Data: "an order"}, "orders")
	broker.Publish(sse.Event{Data: "a visit"}, "visits")
	broker.Publish(sse.Event{Data: "a large order"}, "orders")

	orders := 0
	for ev, err := range broker.Subscribe(ctx, start, "orders") {
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Println(ev.Data)
		if orders++; orders == 2 {
			stop() // the loop ends with the context's error
		}
	}
	// Output:
	// an order
	// a large order
	// context canceled
}

// A test of code that publishes needs no server: it takes the last ID, runs the
// code, and reads on from there.
func ExampleBroker_Subscribe_testing() {
	broker := &sse.Broker{}
	sell := func(item string) { // the code under test
		broker.Publish(sse.Event{Type: "sold", Data: item}, "shop")
	}

	before, start := broker.Stats().Published, broker.LastEventID()
	sell("umbrella")
	fmt.Println(broker.Stats().Published-before, "published")
	for ev, err := range broker.Subscribe(context.Background(), start, "shop") {
		fmt.Println(ev.Type, ev.Data, err)
		break
	}
	// Output:
	// 1 published
	// sold umbrella <nil>
}

// A page is rendered with the current state and the last event ID. Its stream then
// has exactly the events published since.
func ExampleBroker_LastEventID() {
	broker := &sse.Broker{}
	broker.Publish(sse.Event{Data: "before the page"})
	mux := http.NewServeMux()
	mux.Handle("GET /events", broker)
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, r *http.Request) {
		lastID := broker.LastEventID() // first the ID, then the state
		// <script>new EventSource("/events?lastEventId={{.}}")</script>
		io.WriteString(w, lastID)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()

	page, err := http.Get(srv.URL + "/page")
	if err != nil {
		log.Fatal(err)
	}
	defer page.Body.Close()
	lastID, _ := io.ReadAll(page.Body)
	broker.Publish(sse.Event{Data: "while the page loads"})

	resp, err := http.Get(srv.URL + "/events?lastEventId=" + string(lastID))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	ev, err := sse.NewDecoder(resp.Body).Decode()
	fmt.Println(ev.Data, err)
	// Output: while the page loads <nil>
}

// A client that connects for the first time, or has been away for too long, receives
// a snapshot of the current state and then the changes.
func ExampleBroker_catchUp() {
	var mu sync.Mutex
	stock := map[string]int{"umbrellas": 3}

	broker := &sse.Broker{}
	broker.CatchUp = func(ctx context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
		return func(yield func(sse.Event, error) bool) {
			mu.Lock()
			snapshot, err := sse.JSON(stock)
			mu.Unlock()
			snapshot.Type = "stock"
			yield(snapshot, err)
		}
	}
	// What is published between the snapshot and the subscription is sent as
	// well, so an event says how many there are, not how many fewer.
	sell := func() {
		mu.Lock()
		defer mu.Unlock()
		stock["umbrellas"]--
		broker.Publish(sse.Event{Type: "umbrellas", Data: strconv.Itoa(stock["umbrellas"])})
	}

	srv := httptest.NewServer(broker)
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	events := sse.NewDecoder(resp.Body)
	ev, err := events.Decode()
	fmt.Println(ev.Type, ev.Data, err)
	sell()
	ev, err = events.Decode()
	fmt.Println(ev.Type, ev.Data, err)
	// Output:
	// stock {"umbrellas":3} <nil>
	// umbrellas 2 <nil>
}

// An http.Server that shuts down waits for its handlers, so the Broker is shut down
// first. Clients still receive what was published.
func ExampleBroker_Shutdown() {
	broker := &sse.Broker{}
	srv := &http.Server{Handler: broker}
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(listener) }()

	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	broker.Publish(sse.Event{Data: "we are closing"})

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	broker.Shutdown(ctx)
	srv.Shutdown(ctx)

	fmt.Println(<-served)
	for ev := range sse.NewDecoder(resp.Body).All() {
		fmt.Println(ev.Data)
	}
	// Output:
	// http: Server closed
	// we are closing
}

// A stream for one client needs no Broker. A browser reconnects whenever its stream
// ends; status 204 stops it.
func ExampleNewWriter() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		if sse.LastEventID(r) == "end" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		out, err := sse.NewWriter(w, r)
		if err != nil {
			return // NewWriter has answered
		}
		for word := range strings.SplitSeq("once upon a time", " ") {
			if err := out.Send(sse.Event{Data: word}); err != nil {
				return // the client has left
			}
		}
		out.Send(sse.Event{ID: "end", Type: "end", Data: "4 words"})
	}
	srv := httptest.NewServer(http.HandlerFunc(handler))
	defer srv.Close()

	resp, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	io.Copy(os.Stdout, resp.Body)
	resp.Body.Close()

	again, err := http.Get(srv.URL + "?lastEventId=end")
	if err != nil {
		log.Fatal(err)
	}
	again.Body.Close()
	fmt.Println(again.Status)
	// Output:
	// :
	// data: once
	//
	// data: upon
	//
	// data: a
	//
	// data: time
	//
	// id: end
	// event: end
	// data: 4 words
	//
	// 204 No Content
}

// Serve sends the events that an iterator yields and keeps the connection alive in
// between. ErrEnded ends the stream for good, so that the browser does not reconnect.
func ExampleServe() {
	count := func(ctx context.Context) iter.Seq2[sse.Event, error] {
		return func(yield func(sse.Event, error) bool) {
			for step := range 3 {
				select {
				case <-time.After(10 * time.Millisecond): // some work
				case <-ctx.Done(): // the client has left
					return
				}
				if !yield(sse.Event{Data: fmt.Sprintf("step %d of 3", step+1)}, nil) {
					return
				}
			}
			yield(sse.Event{}, sse.ErrEnded)
		}
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		sse.Serve(w, r, count(r.Context()))
	}
	srv := httptest.NewServer(http.HandlerFunc(handler))
	defer srv.Close()

	resp, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	events := sse.NewDecoder(resp.Body)
	for ev := range events.All() {
		fmt.Printf("%q %q\n", ev.Type, ev.Data)
	}

	again, err := http.Get(srv.URL + "?lastEventId=" + events.LastEventID())
	if err != nil {
		log.Fatal(err)
	}
	again.Body.Close()
	fmt.Println(again.Status)
	// Output:
	// "" "step 1 of 3"
	// "" "step 2 of 3"
	// "" "step 3 of 3"
	// "end" ""
	// 204 No Content
}

// An iterator that receives from a channel must also watch the request's context.
func ExampleServe_channel() {
	ticks := make(chan sse.Event)
	handler := func(w http.ResponseWriter, r *http.Request) {
		sse.Serve(w, r, func(yield func(sse.Event, error) bool) {
			for {
				select {
				case ev, ok := <-ticks:
					if !ok || !yield(ev, nil) {
						return
					}
				case <-r.Context().Done():
					return
				}
			}
		})
	}
	srv := httptest.NewServer(http.HandlerFunc(handler))
	defer srv.Close()

	resp, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	go func() {
		defer close(ticks)
		for _, tick := range []string{"tick", "tock"} {
			ticks <- sse.Event{Data: tick}
		}
	}()
	for ev := range sse.NewDecoder(resp.Body).All() {
		fmt.Println(ev.Data)
	}
	// Output:
	// tick
	// tock
}

func ExampleJSON() {
	ev, err := sse.JSON(map[string]int{"clients": 3})
	if err != nil {
		log.Fatal(err)
	}
	ev.Type = "stats"
	text, err := ev.AppendText(nil)
	fmt.Print(string(text), err)
	// Output:
	// event: stats
	// data: {"clients":3}
	//
	// <nil>
}

// Data may be any text. An ID or a type cannot contain another field.
func ExampleEvent_AppendText() {
	text, err := sse.Event{ID: "7", Data: "two\nlines"}.AppendText(nil)
	fmt.Print(string(text), err, "\n\n")

	_, err = sse.Event{Type: "note\ndata: forged"}.AppendText(nil)
	fmt.Println(err)
	// Output:
	// id: 7
	// data: two
	// data: lines
	//
	// <nil>
	//
	// sse: event type "note\ndata: forged" contains CR, LF or NUL
}

func ExampleDecoder_All() {
	stream := strings.NewReader("id: 1\ndata: hello\n\n: a comment\n\nevent: note\ndata: two\ndata: lines\n\n")
	for ev, err := range sse.NewDecoder(stream).All() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q %q %q\n", ev.ID, ev.Type, ev.Data)
	}
	// Output:
	// "1" "" "hello"
	// "1" "note" "two\nlines"
}

// A loop that reconnects and resumes by hand, as a Client does by itself.
func ExampleDecoder_LastEventID() {
	broker := &sse.Broker{}
	srv := httptest.NewServer(broker)
	defer srv.Close()
	connect := func(lastID string) *http.Response {
		req, err := http.NewRequest("GET", srv.URL, nil)
		if err != nil {
			log.Fatal(err)
		}
		if lastID != "" {
			req.Header.Set("Last-Event-ID", lastID)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		return resp
	}

	resp := connect("")
	broker.Publish(sse.Event{Data: "one"})
	broker.Publish(sse.Event{Data: "two"})
	events := sse.NewDecoder(resp.Body)
	ev, _ := events.Decode()
	fmt.Println(ev.Data, "and then the line is cut")
	resp.Body.Close()

	broker.Publish(sse.Event{Data: "three"})
	resp = connect(events.LastEventID())
	defer resp.Body.Close()
	events = sse.NewDecoder(resp.Body)
	for range 2 {
		ev, err := events.Decode()
		fmt.Println(ev.Data, err)
	}
	// Output:
	// one and then the line is cut
	// two <nil>
	// three <nil>
}

// Pages of one other origin may read the stream with cookies. They call
// new EventSource(url, {withCredentials: true}).
func Example_crossOrigin() {
	allow := func(origin string, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Vary", "Origin")
			if r.Header.Get("Origin") == origin {
				w.Header().Set("Access-Control-Allow-Origin", origin)
				w.Header().Set("Access-Control-Allow-Credentials", "true")
			}
			next.ServeHTTP(w, r)
		})
	}
	srv := httptest.NewServer(allow("https://app.example", &sse.Broker{}))
	defer srv.Close()

	for _, origin := range []string{"https://app.example", "https://other.example"} {
		req, err := http.NewRequest("GET", srv.URL, nil)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Printf("%s: %q\n", origin, resp.Header.Get("Access-Control-Allow-Origin"))
	}
	// Output:
	// https://app.example: "https://app.example"
	// https://other.example: ""
}

// numbers is the handler in the examples of Client. It sends two numbers for each
// connection, up to six.
func numbers(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(sse.LastEventID(r))
	if n == 6 {
		w.WriteHeader(http.StatusNoContent) // this is all: do not come back
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, "retry: 10\nid: %d\ndata: %[1]d\n\nid: %d\ndata: %[2]d\n\n", n+1, n+2)
}

// A loop over the events of a stream, across connections, until the server ends it
// for good.
func ExampleClient() {
	srv := httptest.NewServer(http.HandlerFunc(numbers))
	defer srv.Close()

	read := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			return err
		}
		client := &sse.Client{Logger: slog.New(slog.DiscardHandler)}
		for ev, err := range client.Events(req) {
			if errors.Is(err, sse.ErrEnded) {
				return nil
			}
			if err != nil {
				return err // the Client has given up
			}
			fmt.Print(ev.Data, " ")
		}
		return nil
	}
	fmt.Println(read(context.Background()))
	// Output: 1 2 3 4 5 6 <nil>
}

// CheckRetry limits the number of failures in a row.
func ExampleClient_limit() {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close() // nobody listens there

	failed := 0
	client := &sse.Client{
		Retry:  time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
		CheckRetry: func(r *http.Request, err error) error {
			if failed++; failed == 5 {
				return fmt.Errorf("giving up after %d connections: %w", failed, err)
			}
			return nil
		},
	}
	req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	for ev, err := range client.Events(req) {
		if err != nil {
			fmt.Println(err.Error()[:len("giving up after 5 connections")])
			break
		}
		failed = 0
		fmt.Println(ev.Data)
	}
	// Output: giving up after 5 connections
}

// A program stores its place in the stream and resumes there after a restart.
func ExampleClient_place() {
	srv := httptest.NewServer(http.HandlerFunc(numbers))
	defer srv.Close()
	place := filepath.Join(os.TempDir(), fmt.Sprint("place-", os.Getpid()))
	defer os.Remove(place)

	run := func() {
		req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
		if err != nil {
			log.Fatal(err)
		}
		if id, err := os.ReadFile(place); err == nil {
			req.Header.Set("Last-Event-ID", string(id))
		}
		client := &sse.Client{Logger: slog.New(slog.DiscardHandler)}
		for ev, err := range client.Events(req) {
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(ev.Data)
			if err := os.WriteFile(place, []byte(ev.ID), 0o600); err != nil { // after the work is done
				log.Fatal(err)
			}
			if ev.ID == "3" || ev.ID == "5" {
				return // the program ends
			}
		}
	}
	run()
	run()
	// Output:
	// 1
	// 2
	// 3
	// 4
	// 5
}

// tokens is a RoundTripper that gives each request a fresh token.
type tokens struct {
	base  http.RoundTripper
	token func(context.Context) (string, error)
}

func (t tokens) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := t.token(r.Context())
	if err != nil {
		return nil, err // the Client tries again later
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return t.base.RoundTrip(r)
}

// Each connection has a fresh token, the first one included.
func ExampleClient_token() {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Header.Get("Authorization"))
		numbers(w, r)
	}))
	defer srv.Close()

	n := 0
	token := func(context.Context) (string, error) { n++; return fmt.Sprint("token-", n), nil }
	client := &sse.Client{
		HTTPClient: &http.Client{Transport: tokens{http.DefaultTransport, token}},
		Logger:     slog.New(slog.DiscardHandler),
	}
	req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	for ev := range client.Events(req) {
		if ev.ID == "3" {
			break
		}
	}
	// Output:
	// Bearer token-1
	// Bearer token-2
}

// A loop around the loop logs in again when the session has ended.
func ExampleClient_login() {
	sessions := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := sse.LastEventID(r); sessions == 0 || id == "4" && sessions == 1 {
			http.Error(w, "log in first", http.StatusUnauthorized)
			return
		}
		numbers(w, r)
	}))
	defer srv.Close()
	login := func() { sessions++; fmt.Println("logged in") }

	client := &sse.Client{Logger: slog.New(slog.DiscardHandler)}
	req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	for {
		var err error
		for ev, e := range client.Events(req) {
			if err = e; err == nil {
				fmt.Println(ev.Data)
				req.Header.Set("Last-Event-ID", ev.ID) // where the next loop begins
			}
		}
		var answer *sse.ResponseError
		if !errors.As(err, &answer) || answer.StatusCode != http.StatusUnauthorized {
			fmt.Println(err)
			return
		}
		login()
	}
	// Output:
	// logged in
	// 1
	// 2
	// 3
	// 4
	// logged in
	// 5
	// 6
	// sse: stream has ended for good
}

// http.Server.Shutdown waits for handlers, and the streams of Serve and NewWriter do
// not end by themselves. Here a context that RegisterOnShutdown cancels ends them.
func ExampleServe_shutdown() {
	closing, closeStreams := context.WithCancel(context.Background())
	ticks := func(ctx context.Context) iter.Seq2[sse.Event, error] {
		return func(yield func(sse.Event, error) bool) {
			for {
				select {
				case now := <-time.After(time.Minute):
					if !yield(sse.Event{Data: now.Format(time.TimeOnly)}, nil) {
						return
					}
				case <-ctx.Done(): // the client has left
					return
				case <-closing.Done(): // the client comes back after its reconnection time
					return
				}
			}
		}
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sse.Serve(w, r, ticks(r.Context()))
	})}
	srv.RegisterOnShutdown(closeStreams)
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		log.Fatal(err)
	}
	go srv.Serve(listener)

	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	fmt.Println("server:", srv.Shutdown(ctx))
	_, err = sse.NewDecoder(resp.Body).Decode()
	fmt.Println("client:", err) // io.EOF: the stream ended, and was not cut
	// Output:
	// server: <nil>
	// client: EOF
}

// A filter for each client is an iterator around that of Subscribe. The handler gives
// a newcomer the current ID, so that a client that is cut off before any event passed
// misses nothing when it comes back.
func ExampleServe_filter() {
	broker := &sse.Broker{}
	above := func(limit int, orders iter.Seq2[sse.Event, error]) iter.Seq2[sse.Event, error] {
		return func(yield func(sse.Event, error) bool) {
			for ev, err := range orders {
				amount, _ := strconv.Atoi(ev.Data)
				passes := amount > limit || ev.Type == "gap" || err != nil
				if passes && !yield(ev, err) {
					return
				}
			}
		}
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		if sse.LastEventID(r) == "" {
			r.Header.Set("Last-Event-ID", broker.LastEventID())
		}
		limit, _ := strconv.Atoi(r.FormValue("above"))
		orders := broker.Subscribe(r.Context(), sse.LastEventID(r), "orders")
		sse.Serve(w, r, above(limit, orders))
	}
	srv := httptest.NewServer(http.HandlerFunc(handler))
	defer srv.Close()
	defer broker.Shutdown(context.Background())

	// A browser takes note of the ID that a stream begins with, and sends it when it
	// comes back. So does a Client.
	client := &sse.Client{Logger: slog.New(slog.DiscardHandler), Retry: 10 * time.Millisecond, CheckRetry: func(*http.Request, error) error {
		_, err := broker.Publish(sse.Event{Data: "2000"}, "orders") // while it is away
		return err
	}}
	go func() {
		for broker.Stats().Subscribers == 0 {
			time.Sleep(time.Millisecond)
		}
		broker.Publish(sse.Event{Data: "10"}, "orders")
		srv.CloseClientConnections()
	}()
	req, err := http.NewRequest("GET", srv.URL+"?above=1000", nil)
	if err != nil {
		log.Fatal(err)
	}
	for ev, err := range client.Events(req) {
		fmt.Println(ev.Data, err)
		break
	}
	// Output: 2000 <nil>
}

// A user with too many streams receives status 200 and a reconnection time, because a
// browser gives up for good at any other status, such as 429. Do not end the user's
// oldest stream instead: its client comes back and ends the next.
func ExampleBroker_Clients_limit() {
	broker := &sse.Broker{}
	const limit = 2 // requests at the same moment may exceed it
	handler := func(w http.ResponseWriter, r *http.Request) {
		user := "user/" + r.FormValue("user") // the session knows it
		if broker.Clients(user) >= limit {
			if out, err := sse.NewWriter(w, r); err == nil {
				out.Send(sse.Event{Retry: time.Minute})
			}
			return
		}
		broker.Serve(w, r, user, "news")
	}
	srv := httptest.NewServer(http.HandlerFunc(handler))
	defer srv.Close()
	defer broker.Shutdown(context.Background())

	for range 3 {
		resp, err := http.Get(srv.URL + "?user=7")
		if err != nil {
			log.Fatal(err)
		}
		defer resp.Body.Close()
		if broker.Clients("user/7") < limit {
			continue
		}
		text := bufio.NewScanner(resp.Body)
		for text.Scan() && !strings.HasPrefix(text.Text(), "retry") {
		}
		fmt.Println(resp.Status, "and", text.Text())
	}
	// Output:
	// 200 OK and retry: 3000
	// 200 OK and retry: 60000
}

// Without a history, a client receives a snapshot on every connection and then the
// changes.
func ExampleBroker_catchUp_snapshot() {
	var stock atomic.Int64
	stock.Store(3)
	now := func() sse.Event { return sse.Event{Data: strconv.FormatInt(stock.Load(), 10) + " umbrellas"} }
	broker := &sse.Broker{
		History: -1,
		Retry:   10 * time.Millisecond,
		CatchUp: func(context.Context, sse.Missed) iter.Seq2[sse.Event, error] {
			return func(yield func(sse.Event, error) bool) { yield(now(), nil) }
		},
	}
	srv := httptest.NewServer(broker)
	defer srv.Close()
	defer broker.Shutdown(context.Background())

	client := &sse.Client{Logger: slog.New(slog.DiscardHandler), CheckRetry: func(*http.Request, error) error {
		stock.Add(-1)
		_, err := broker.Publish(now()) // while it is away
		return err
	}}
	req, err := http.NewRequest("GET", srv.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	got := 0
	for ev, err := range client.Events(req) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s, ID %q\n", ev.Data, ev.ID)
		switch got++; got {
		case 1:
			stock.Add(-1)
			broker.Publish(now())
		case 2:
			srv.CloseClientConnections()
		default:
			return
		}
	}
	// Output:
	// 3 umbrellas, ID ""
	// 2 umbrellas, ID ""
	// 1 umbrellas, ID ""
}

// IDs are unique in the whole Broker. Counters of different topics collide unless the
// ID names the topic.
func ExampleBroker_Publish_topics() {
	broker := &sse.Broker{}
	for _, room := range []string{"room1", "room2"} {
		_, err := broker.Publish(sse.Event{ID: "7", Data: "hello"}, room)
		fmt.Println(room, err)
		id, err := broker.Publish(sse.Event{ID: room + "-7", Data: "hello"}, room)
		fmt.Println(room, id, err)
	}
	// Output:
	// room1 <nil>
	// room1 room1-7 <nil>
	// room2 sse: duplicate event ID "7"
	// room2 room2-7 <nil>
}

// The statistics of a Broker are among the variables at /debug/vars.
func ExampleBroker_Stats() {
	broker := &sse.Broker{}
	if expvar.Get("sse") == nil { // a name can be published once only
		expvar.Publish("sse", expvar.Func(func() any { return broker.Stats() }))
	}
	broker.Publish(sse.Event{Data: "hello"})

	var vars struct{ SSE sse.Stats }
	resp := httptest.NewRecorder()
	expvar.Handler().ServeHTTP(resp, httptest.NewRequest("GET", "/debug/vars", nil))
	err := json.NewDecoder(resp.Body).Decode(&vars)
	fmt.Println(vars.SSE.Published, "published", err)
	// Output: 1 published <nil>
}
