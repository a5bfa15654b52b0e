// Progress shows how far long jobs on the server are, in every browser that looks.
// The newest state of each job is what the broker keeps, so a page may be reloaded
// or cut off at any time.
//
//	go run ./examples/progress
//	curl -X POST localhost:8080/jobs/3/start
//	curl -N localhost:8080/jobs/3/events    # one job, until it is finished
//	curl -N localhost:8080/events           # all jobs
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
)

//go:embed index.html
var html string

type job struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"` // waiting, running or finished
	Done  int    `json:"done"`  // of Total steps
	Total int    `json:"total"`

	run int // how often it was started
}

// topic is that of the present run, or of the next one if there was none yet. It ends
// with the run, so each has a name of its own.
func (j job) topic() string { return fmt.Sprintf("job/%d/%d", j.ID, max(1, j.run)) }

type server struct {
	broker sse.Broker
	ctx    context.Context // ends the jobs
	step   time.Duration   // what a step takes, on average

	// mu guards jobs. It is held while publishing as well, so that the broker has
	// what happens to a job in order.
	mu   sync.Mutex
	jobs []job
}

func newServer(ctx context.Context, step time.Duration) *server {
	s := &server{ctx: ctx, step: step, jobs: []job{
		{0, "Shrink the photos", "waiting", 0, 120, 0},
		{1, "Index the documents", "waiting", 0, 400, 0},
		{2, "Copy the archive", "waiting", 0, 800, 0},
		{3, "Check the backups", "waiting", 0, 60, 0},
	}}
	for id := range s.jobs {
		s.update(id, func(*job) bool { return true })
	}
	return s
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", page.Handler(html))
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { s.broker.Serve(w, r, "jobs") })
	mux.HandleFunc("GET /jobs/{id}/events", s.follow)
	mux.HandleFunc("POST /jobs/{id}/start", s.start)
	// Or else any page that somebody has open could start jobs here.
	return http.NewCrossOriginProtection().Handler(mux)
}

// find returns the job that is asked for. If there is none it answers, and is not ok.
func (s *server) find(w http.ResponseWriter, r *http.Request) (id int, ok bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 0 || id >= len(s.jobs) {
		http.NotFound(w, r)
		return 0, false
	}
	return id, true
}

// follow streams a job until it is finished, for good: a client that comes back after
// that is not served again.
func (s *server) follow(w http.ResponseWriter, r *http.Request) {
	id, ok := s.find(w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	topic := s.jobs[id].topic()
	s.mu.Unlock()
	s.broker.Serve(w, r, topic)
}

func (s *server) start(w http.ResponseWriter, r *http.Request) {
	id, ok := s.find(w, r)
	if !ok {
		return
	}
	started := s.update(id, func(j *job) bool {
		if j.State == "running" {
			return false
		}
		j.State, j.Done, j.run = "running", 0, j.run+1
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
	job := s.jobs[id]
	if ev, err := sse.JSON(job); err == nil {
		s.broker.Set(strconv.Itoa(id), ev, "jobs", job.topic()) // fails only as the server stops
	}
	if job.State == "finished" {
		s.broker.End(job.topic())
	}
	return true
}

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to serve at")
	step := flag.Duration("step", 100*time.Millisecond, "what one step of a job takes, on average")
	flag.Parse()
	if *step <= 0 {
		log.Fatalf("-step=%v is not positive", *step)
	}
	interrupted, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	s := newServer(interrupted, *step)

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("The jobs are at http://%v\n", listener.Addr())
	go http.Serve(listener, s.handler())

	<-interrupted.Done()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	s.broker.Shutdown(ctx) // sends browsers what they are owed, and when to come back
}
