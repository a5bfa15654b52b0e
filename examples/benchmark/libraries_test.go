package benchmark

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/donovanhide/eventsource"
	r3labs "github.com/r3labs/sse/v2"
	tmaxmax "github.com/tmaxmax/go-sse"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
)

// A library is one way to send events, used as its documentation shows.
type library struct {
	name string

	// start returns a server. It is to keep that many events for clients that
	// come back, or what it keeps if not told otherwise.
	start func(keep int) *server

	// topics returns a server of these topics, each client of which gets the one
	// that is the value of stream in its query. Nil if the library has none.
	topics func(names []string) *server

	path     string // of its stream; "" is "/events"
	replays  bool   // clients that come back get what they missed
	doubles  int64  // events that such a client gets although it had them
	inMemory bool   // serves a client without a connection
	noHead   bool   // sends no head before the first event
	hijacks  bool   // always takes the connection over, which HTTP/2 does not allow

	missing func() error // why it is not there; nil: it is
}

// A server is a library at work.
type server struct {
	handler http.Handler
	publish func(batch []message) // to all clients, one after the other
	close   func()                // after all clients have left

	publishTo func(m message, topic string)

	// Of one that runs in processes of its own, and has no handler.
	addr string
	cpu  func() time.Duration
}

// A message is an event, as the program that publishes it has it.
type message struct {
	number int64
	data   string
}

// id returns the event's ID. Not every library lets the program choose it.
func (m message) id() string { return strconv.FormatInt(m.number, 10) }

var libraries = []library{
	{name: "ours", start: startOurs, topics: oursTopics, replays: true, inMemory: true},
	{name: "ours-detach", start: startDetach, replays: true},
	{name: "naive", start: startNaive, inMemory: true},
	{name: "r3labs", start: startR3labs, topics: r3labsTopics, path: "/events?stream=messages", replays: true, doubles: 1, inMemory: true},
	{name: "tmaxmax", start: startTmaxmax, topics: tmaxmaxTopics, replays: true, inMemory: true, noHead: true},
	{name: "donovanhide", start: startDonovanhide, topics: donovanhideTopics, replays: true, doubles: 1, inMemory: true},
	{name: "nchan", start: startNchan, missing: nchanMissing},
	{name: "floor", start: startFloor, hijacks: true},
}

func startOurs(keep int) *server {
	broker := &sse.Broker{History: keep}
	return &server{handler: broker, publish: publisher(broker), close: shutdown(broker)}
}

func startDetach(keep int) *server {
	broker := &sse.Broker{History: keep}
	if keep > 0 {
		// Nothing is written to these clients after the replay that would tell
		// that they have left, and the next ones need the files.
		broker.KeepAlive = time.Second
	}
	handler := func(w http.ResponseWriter, r *http.Request) { broker.Detach(w, r, nil) }
	return &server{handler: http.HandlerFunc(handler), publish: publisher(broker), close: shutdown(broker)}
}

func oursTopics(names []string) *server {
	broker := &sse.Broker{}
	handler := func(w http.ResponseWriter, r *http.Request) { broker.Serve(w, r, r.FormValue("stream")) }
	publishTo := func(m message, topic string) { publish(broker, m, topic) }
	return &server{
		handler:   http.HandlerFunc(handler),
		publish:   toEach(names, publishTo),
		publishTo: publishTo,
		close:     shutdown(broker),
	}
}

// toEach returns a function that publishes to each of the topics.
func toEach(topics []string, publish func(message, string)) func([]message) {
	return func(batch []message) {
		for _, m := range batch {
			for _, topic := range topics {
				publish(m, topic)
			}
		}
	}
}

func publish(broker *sse.Broker, m message, topics ...string) {
	_, err := broker.Publish(sse.Event{Data: m.data}, topics...)
	must(err)
}

func publisher(broker *sse.Broker) func([]message) {
	return func(batch []message) {
		for _, m := range batch {
			publish(broker, m)
		}
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func shutdown(broker *sse.Broker) func() {
	return func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // waits for nobody
		broker.Shutdown(ctx)
	}
}

// startR3labs keeps all events, whatever keep is, which is the default.
func startR3labs(int) *server {
	s := r3labs.New()
	s.CreateStream("messages")
	publish := func(batch []message) {
		for _, m := range batch {
			s.Publish("messages", &r3labs.Event{ID: []byte(m.id()), Data: []byte(m.data)})
		}
	}
	return &server{handler: s, publish: publish, close: s.Close}
}

func r3labsTopics(names []string) *server {
	s := r3labs.New()
	for _, name := range names {
		s.CreateStream(name)
	}
	publishTo := func(m message, topic string) {
		s.Publish(topic, &r3labs.Event{ID: []byte(m.id()), Data: []byte(m.data)})
	}
	return &server{handler: s, publish: toEach(names, publishTo), publishTo: publishTo, close: s.Close}
}

func startTmaxmax(keep int) *server {
	joe := &tmaxmax.Joe{}
	if keep > 0 {
		replayer, err := tmaxmax.NewFiniteReplayer(keep, false)
		must(err)
		joe.Replayer = replayer
	}
	return tmaxmaxServer(&tmaxmax.Server{Provider: joe})
}

// tmaxmaxTopics has another topic that all clients listen to.
func tmaxmaxTopics([]string) *server {
	return tmaxmaxServer(&tmaxmax.Server{
		Provider: &tmaxmax.Joe{},
		OnSession: func(_ http.ResponseWriter, r *http.Request) (topics []string, allowed bool) {
			return []string{r.FormValue("stream"), tmaxmax.DefaultTopic}, true
		},
	})
}

func tmaxmaxServer(s *tmaxmax.Server) *server {
	publishTo := func(m message, topic string) {
		message := &tmaxmax.Message{ID: tmaxmax.ID(m.id())}
		message.AppendData(m.data)
		must(s.Publish(message, topic))
	}
	publish := func(batch []message) {
		for _, m := range batch {
			publishTo(m, tmaxmax.DefaultTopic)
		}
	}
	return &server{handler: s, publish: publish, publishTo: publishTo, close: func() { s.Shutdown(context.Background()) }}
}

func startDonovanhide(keep int) *server {
	s := eventsource.NewServer()
	repository := eventsource.NewSliceRepository()
	s.Register("messages", repository)
	publish := func(batch []message) {
		for _, m := range batch {
			e := sortedEvent{fmt.Sprintf("%012d", m.number), m.data}
			if keep > 0 {
				repository.Add("messages", e)
			}
			s.Publish([]string{"messages"}, e)
		}
	}
	return &server{handler: s.Handler("messages"), publish: publish, close: s.Close}
}

func donovanhideTopics(names []string) *server {
	s := eventsource.NewServer()
	handler := func(w http.ResponseWriter, r *http.Request) { s.Handler(r.FormValue("stream"))(w, r) }
	publishTo := func(m message, topic string) { s.Publish([]string{topic}, sortedEvent{m.id(), m.data}) }
	return &server{handler: http.HandlerFunc(handler), publish: toEach(names, publishTo), publishTo: publishTo, close: s.Close}
}

// A sortedEvent is an event for a repository that orders IDs as text.
type sortedEvent struct{ id, data string }

func (e sortedEvent) Id() string    { return e.id }
func (e sortedEvent) Event() string { return "" }
func (e sortedEvent) Data() string  { return e.data }

// A naive is what one writes after reading how simple the format is: a map of
// channels, and a line of fmt.Fprintf. It keeps nothing, drops events for those
// that are slow, and passes line ends in the data on as they are.
type naive struct {
	mu      sync.Mutex
	clients map[chan message]bool
}

func startNaive(int) *server {
	n := &naive{clients: map[chan message]bool{}}
	return &server{handler: n, publish: n.publish, close: func() {}}
}

func (n *naive) publish(batch []message) {
	for _, m := range batch {
		n.mu.Lock()
		for ch := range n.clients {
			select {
			case ch <- m:
			default:
			}
		}
		n.mu.Unlock()
	}
}

func (n *naive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ch := make(chan message, 64)
	n.mu.Lock()
	n.clients[ch] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.clients, ch)
		n.mu.Unlock()
	}()

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	flusher := w.(http.Flusher)
	flusher.Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case m := <-ch:
			fmt.Fprintf(w, "id: %s\ndata: %s\n\n", m.id(), m.data)
			flusher.Flush()
		}
	}
}

// A floor is not a library but the least that any can do: what was encoded once
// goes to each connection in one system call, from one goroutine, with nothing
// to fall back on where a client is slow.
type floor struct {
	mu    sync.Mutex
	conns []net.Conn
}

func startFloor(int) *server {
	f := &floor{}
	return &server{handler: f, publish: f.publish, close: f.close}
}

func (f *floor) publish(batch []message) {
	var p []byte
	for _, m := range batch {
		p = fmt.Appendf(p, "id: %s\ndata: %s\n\n", m.id(), m.data)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.conns[:0]
	for _, conn := range f.conns {
		if _, err := conn.Write(p); err != nil {
			conn.Close()
			continue
		}
		kept = append(kept, conn)
	}
	f.conns = kept
}

func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, conn)
	fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
}

func (f *floor) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, conn := range f.conns {
		conn.Close()
	}
}

func find(name string) (library, error) {
	for _, lib := range libraries {
		if lib.name == name {
			return lib, nil
		}
	}
	return library{}, fmt.Errorf("no library %q", name)
}

// apart tells whether the library runs in processes of its own.
func (l library) apart() bool { return l.missing != nil }

// serves tells whether the library can be compared over the network.
func (l library) serves(network string) bool {
	switch network {
	case load.H2:
		return !l.apart() && !l.hijacks
	case load.TLS:
		return !l.apart()
	}
	return true
}

// streamPath returns the path and query of the library's stream.
func (l library) streamPath() string { return cmp.Or(l.path, "/events") }
