// Progress shows how far long jobs on the server are, in every browser that
// looks. A page is rendered with the jobs as they are, and its stream begins
// right there, so it may be reloaded or cut off at any time.
//
//	go run ./examples/progress
//	curl -N localhost:8080/events
//	curl -X POST localhost:8080/jobs/0/start
package main

import (
	"bytes"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/seed22e817d0/sse"
)

//go:embed index.html
var source string

var page = template.Must(template.New("page").Parse(source))

type job struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"` // waiting, running or finished
	Done  int    `json:"done"`  // of Total steps
	Total int    `json:"total"`
}

type server struct {
	broker sse.Broker
	ctx    context.Context // ends the jobs
	step   time.Duration   // what a step takes, on average

	// mu guards jobs. It is held while publishing as well, so that they are
	// always those of the broker's newest event.
	mu   sync.Mutex
	jobs []job
}

func newServer(ctx context.Context, step time.Duration) *server {
	return &server{ctx: ctx, step: step, jobs: []job{
		{0, "Shrink the photos", "waiting", 0, 120},
		{1, "Index the documents", "waiting", 0, 400},
		{2, "Copy the archive", "waiting", 0, 800},
		{3, "Check the backups", "waiting", 0, 60},
	}}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.index)
	mux.Handle("GET /events", &s.broker)
	mux.HandleFunc("POST /jobs/{id}/start", s.start)
	// Or else any page that somebody has open could start jobs here.
	return http.NewCrossOriginProtection().Handler(mux)
}

// index renders the jobs, and the ID of the event up to which this is the truth.
func (s *server) index(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer // so that a slow client does not hold the lock
	s.mu.Lock()
	err := page.Execute(&b, map[string]any{"Jobs": s.jobs, "LastEventID": s.broker.LastEventID()})
	s.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(b.Bytes())
}

func (s *server) start(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 0 || id >= len(s.jobs) {
		http.NotFound(w, r)
		return
	}
	started := s.update(id, func(j *job) bool {
		if j.State == "running" {
			return false
		}
		j.State, j.Done = "running", 0
		return true
	})
	if !started {
		http.Error(w, "the job is running already", http.StatusConflict)
		return
	}
	go s.work(id)
	w.WriteHeader(http.StatusAccepted)
}

// work does a job. It stands for any that takes long.
func (s *server) work(id int) {
	for running := true; running; {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(rand.N(2 * s.step)):
		}
		s.update(id, func(j *job) bool {
			if j.Done++; j.Done == j.Total {
				j.State, running = "finished", false
			}
			return true
		})
	}
}

// update publishes a job if change changed it, and returns whether it did.
func (s *server) update(id int, change func(*job) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !change(&s.jobs[id]) {
		return false
	}
	if ev, err := sse.JSON(s.jobs[id]); err == nil {
		s.broker.Publish(ev) // fails only as the server stops
	}
	return true
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "progress:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "localhost:8080", "the address to serve at")
	step := flag.Duration("step", 100*time.Millisecond, "what one step of a job takes, on average")
	flag.Parse()
	if *step <= 0 {
		return fmt.Errorf("-step=%v is not positive", *step)
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Printf("The jobs are at http://%v\n", listener.Addr())
	s := newServer(interrupted, *step)
	srv := &http.Server{Handler: s.handler()}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()

	select {
	case err := <-failed:
		return err
	case <-interrupted.Done():
	}
	stop() // a second Ctrl-C ends the program at once
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	s.broker.Shutdown(ctx) // first, since the server waits for streams to end
	if srv.Shutdown(ctx) != nil {
		// Browsers like to open a connection in advance, for which Shutdown
		// would wait five seconds.
		return srv.Close()
	}
	return nil
}
