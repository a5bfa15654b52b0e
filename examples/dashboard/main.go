// Dashboard shows live figures of the server itself, a hundred times a second.
// A browser that connects gets the last twenty seconds in one event first, and
// one that was cut off for less than that gets what it missed.
//
//	go run ./examples/dashboard
//	curl -N localhost:8080/events
//	curl -X POST localhost:8080/load
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"iter"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
)

//go:embed index.html
var html string

const window = 20 * time.Second // that the page shows

type sample struct {
	Time       int64   `json:"time"`       // milliseconds since 1970
	Deliveries float64 `json:"deliveries"` // per second: one event sent to three clients is three
	Clients    int     `json:"clients"`
	Goroutines uint64  `json:"goroutines"`
	Heap       uint64  `json:"heap"` // bytes

	delivered int64
}

type monitor struct {
	broker sse.Broker
	every  time.Duration // from one sample to the next

	// mu guards samples. It is held while publishing as well, so that they
	// always end with the broker's newest event.
	mu      sync.Mutex
	samples []sample
}

func newMonitor(every time.Duration) *monitor {
	m := &monitor{every: every, samples: []sample{}}
	m.broker.HistoryAge = window // who is away for longer is better served by catchUp
	m.broker.CatchUp = m.catchUp
	return m
}

func (m *monitor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", page.Handler(html))
	mux.Handle("GET /events", &m.broker)
	mux.HandleFunc("POST /load", load)
	// Or else any page that somebody has open could put load on the server.
	return http.NewCrossOriginProtection().Handler(mux)
}

// watch takes a sample at each tick, until ctx ends.
func (m *monitor) watch(ctx context.Context) {
	ticks := time.NewTicker(m.every)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticks.C:
			m.take(now)
		}
	}
}

func (m *monitor) take(now time.Time) {
	figures := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(figures)
	stats := m.broker.Stats()
	s := sample{
		Time:       now.UnixMilli(),
		Clients:    stats.Clients,
		Goroutines: figures[0].Value.Uint64(),
		Heap:       figures[1].Value.Uint64(),
		delivered:  stats.Delivered,
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.samples); n > 0 {
		before := m.samples[max(0, n-max(1, int(time.Second/m.every)))]
		s.Deliveries = 1000 * float64(s.delivered-before.delivered) / float64(s.Time-before.Time)
	}
	m.samples = append(m.samples, s)
	m.samples = m.samples[max(0, len(m.samples)-int(window/m.every)):]
	if ev, err := sse.JSON(s); err == nil {
		m.broker.Publish(ev) // fails only as the server stops
	}
}

// catchUp gives all samples there are, in one event. Its ID says which place in
// the stream that is, and the client goes on from there.
func (m *monitor) catchUp(context.Context, sse.Missed) iter.Seq2[sse.Event, error] {
	return func(yield func(sse.Event, error) bool) {
		m.mu.Lock()
		ev, err := sse.JSON(m.samples)
		ev.Type, ev.ID = "samples", m.broker.LastEventID()
		m.mu.Unlock()
		yield(ev, err)
	}
}

// load makes the figures move: 100 goroutines hold 100 KiB each, for one to four
// seconds.
func load(w http.ResponseWriter, r *http.Request) {
	for range 100 {
		go func() {
			memory := make([]byte, 100<<10)
			time.Sleep(time.Second + rand.N(3*time.Second))
			runtime.KeepAlive(memory)
		}()
	}
	w.WriteHeader(http.StatusAccepted)
}

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to serve at")
	every := flag.Duration("every", 10*time.Millisecond, "time from one sample to the next")
	flag.Parse()
	if *every < time.Millisecond || *every > window {
		log.Fatalf("-every=%v is not between %v and %v", *every, time.Millisecond, window)
	}
	interrupted, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	m := newMonitor(*every)
	go m.watch(interrupted)

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("The dashboard is at http://%v\n", listener.Addr())
	go http.Serve(listener, m.handler())

	<-interrupted.Done()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	m.broker.Shutdown(ctx) // sends browsers what they are owed, and when to come back
}
