// Chat is a chat with rooms. Each room is a topic of one broker: a
// newcomer gets the room's last messages, and who is cut off misses none.
//
//	go run ./examples/chat
//
// Open http://localhost:8080 in two windows, or take part with curl:
//
//	curl -N 'localhost:8080/rooms/lobby/events?name=Ann'
//	curl localhost:8080/rooms/lobby/messages -d name=Bob -d text=Hello
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
)

//go:embed index.html
var html string

const keep = 50 // messages of a room that a newcomer gets

type message struct {
	Name string    `json:"name"`
	Text string    `json:"text"`
	Time time.Time `json:"time"`
}

type room struct {
	Here     map[string]int `json:"here"` // each name's connections
	Messages []message      `json:"messages"`
}

type chat struct {
	broker sse.Broker
	rooms  map[string]*room // which rooms there are never changes

	// mu guards what is in the rooms. It is held while publishing as well, so
	// that the rooms are always those of the broker's newest event.
	mu sync.Mutex
}

func newChat() *chat {
	c := &chat{rooms: map[string]*room{}}
	for _, name := range []string{"lobby", "kitchen", "garden"} {
		c.rooms[name] = &room{map[string]int{}, []message{}}
	}
	c.broker.CatchUp = c.catchUp
	return c
}

func (c *chat) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", page.Handler(html))
	mux.HandleFunc("GET /rooms/{room}/events", c.events)
	mux.HandleFunc("POST /rooms/{room}/messages", c.post)
	// Or else any page that somebody has open could post in their name.
	return http.NewCrossOriginProtection().Handler(mux)
}

// events streams a room. What runs before and after Serve knows who is here.
func (c *chat) events(w http.ResponseWriter, r *http.Request) {
	topic, name := r.PathValue("room"), r.FormValue("name")
	if !c.mayEnter(topic, name) {
		http.Error(w, "no such room, or no name", http.StatusForbidden)
		return
	}
	c.presence(topic, name, +1)
	defer c.presence(topic, name, -1)
	err := c.broker.Serve(w, r, topic, "rooms")
	slog.Info("left", "room", topic, "name", name, "reason", err)
}

// mayEnter is where a program with accounts asks its session instead.
func (c *chat) mayEnter(topic, name string) bool {
	return c.rooms[topic] != nil && strings.TrimSpace(name) != "" && len(name) <= 80
}

// presence counts a connection in or out and tells the room who is here.
func (c *chat) presence(topic, name string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	here := c.rooms[topic].Here
	if here[name] += n; here[name] == 0 {
		delete(here, name)
	}
	c.publishLocked(topic, "here", here) // fails only as the server stops
}

// watch tells all rooms how many are in each, if that has changed.
func (c *chat) watch(ctx context.Context) {
	var before map[string]int
	for ticks := time.Tick(time.Second / 2); ctx.Err() == nil; <-ticks {
		now := map[string]int{}
		for name := range c.rooms {
			now[name] = c.broker.Clients(name)
		}
		if !maps.Equal(now, before) {
			c.mu.Lock()
			c.publishLocked("rooms", "clients", now)
			c.mu.Unlock()
		}
		before = now
	}
}

func (c *chat) post(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	topic, m := r.PathValue("room"), message{r.FormValue("name"), r.FormValue("text"), time.Now()}
	switch {
	case !c.mayEnter(topic, m.Name):
		http.Error(w, "no such room, or no name", http.StatusForbidden)
		return
	case strings.TrimSpace(m.Text) == "" || len(m.Text) > 4<<10:
		http.Error(w, "the text is missing or too long", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.publishLocked(topic, "message", m); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	room := c.rooms[topic]
	room.Messages = append(room.Messages, m)
	room.Messages = room.Messages[max(0, len(room.Messages)-keep):]
	w.WriteHeader(http.StatusNoContent)
}

func (c *chat) publishLocked(topic, kind string, v any) error {
	ev, err := sse.JSON(v)
	if err != nil {
		return err
	}
	ev.Type = kind
	_, err = c.broker.Publish(ev, topic)
	return err
}

// catchUp shows the whole room to a newcomer, in one event. Its ID says which
// place in the stream that is, and the client goes on from there: nothing is
// missing and nothing comes twice.
func (c *chat) catchUp(_ context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
	return func(yield func(sse.Event, error) bool) {
		c.mu.Lock()
		ev, err := sse.JSON(c.rooms[missed.Topics[0]])
		ev.Type, ev.ID = "room", c.broker.LastEventID()
		c.mu.Unlock()
		yield(ev, err)
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "localhost:8080", "`address` to serve at")
	flag.Parse()
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Printf("The chat is at http://%v\n", listener.Addr())
	c := newChat()
	go c.watch(interrupted)
	srv := &http.Server{Handler: c.handler()}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()

	select {
	case err := <-failed:
		return err
	case <-interrupted.Done():
	}
	stop() // a second Ctrl-C ends the program at once

	// The broker is first, since the server waits for its streams. Each client gets
	// what it is owed, and is told when to come back. Then the messages that are
	// being posted have the rest of the time.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	if err := c.broker.Shutdown(ctx); err != nil {
		slog.Warn("clients were cut off", "reason", err)
	}
	if srv.Shutdown(ctx) != nil {
		// Browsers like to open a connection in advance, for which Shutdown
		// would wait five seconds.
		return srv.Close()
	}
	return nil
}
