package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// serverEnv makes the test binary a server, configured by its value. It is a
// process of its own where it is to be killed, to have its memory measured, or
// to have 10,000 files besides those of as many clients.
const serverEnv = "SSE_FAULTS_SERVER"

type serverConfig struct {
	Addr              string
	Detach            bool
	History           int
	Retry, KeepAlive  time.Duration
	WriteTimeout      time.Duration
	ReadHeaderTimeout time.Duration

	Log     string        // the file with the events published so far; "": no publisher
	Every   time.Duration // time between its events
	CatchUp bool          // events have their number in Log for an ID, and missed ones come from there
}

type server struct {
	serverConfig
	mu     sync.Mutex
	broker *sse.Broker
	fed    []sse.Event // by publish, the last of them
	n      int         // the number of the last one
}

func runServer(config string) error {
	s := &server{}
	if err := json.Unmarshal([]byte(config), &s.serverConfig); err != nil {
		return err
	}
	s.broker = s.newBroker()
	if s.Log != "" {
		if err := s.feed(); err != nil {
			return err
		}
	}
	ln, err := net.Listen("tcp", s.Addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		b := s.broker
		s.mu.Unlock()
		way{detach: s.Detach}.handler(b, nil)(w, r)
	})
	mux.HandleFunc("POST /publish", s.publish)
	mux.HandleFunc("POST /swap", s.swap)
	mux.HandleFunc("GET /report", s.report)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: s.ReadHeaderTimeout, Protocols: &http.Protocols{}}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the test
		os.Exit(0)
	}()
	return srv.Serve(ln)
}

func (s *server) newBroker() *sse.Broker {
	b := &sse.Broker{History: s.History, Retry: s.Retry, KeepAlive: s.KeepAlive, WriteTimeout: s.WriteTimeout}
	if s.CatchUp {
		b.CatchUp = func(_ context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
			return s.catchUp(b, missed.LastEventID)
		}
	}
	return b
}

const lineBytes = 10 // of a number in the log, so that a line is found by its number

// feed publishes numbers, each of which it appends to the log first.
func (s *server) feed() error {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	info, err := log.Stat()
	if err != nil {
		return err
	}
	n := int(info.Size() / lineBytes) // a last line that was cut off is written again
	if s.CatchUp && n > 0 {
		if err := s.broker.Reset(strconv.Itoa(n)); err != nil {
			return err
		}
	}
	go func() {
		for range time.Tick(s.Every) {
			n++
			line := fmt.Sprintf("%0*d\n", lineBytes-1, n)
			if _, err := log.WriteAt([]byte(line), int64(n-1)*lineBytes); err != nil {
				panic(err)
			}
			ev := sse.Event{Data: strconv.Itoa(n)}
			if s.CatchUp {
				ev.ID = ev.Data
			}
			if _, err := s.broker.Publish(ev); err != nil {
				panic(err)
			}
		}
	}()
	return nil
}

// catchUp yields what the log has after lastID, up to what the broker has.
func (s *server) catchUp(b *sse.Broker, lastID string) iter.Seq2[sse.Event, error] {
	return func(yield func(sse.Event, error) bool) {
		after, err := strconv.Atoi(lastID)
		if err != nil {
			return // it has seen none
		}
		upTo, _ := strconv.Atoi(b.LastEventID())
		log, err := os.ReadFile(s.Log)
		if err != nil {
			yield(sse.Event{}, err)
			return
		}
		for n := after + 1; n <= upTo && n*lineBytes <= len(log); n++ {
			line := strings.TrimLeft(string(log[(n-1)*lineBytes:n*lineBytes-1]), "0")
			if !yield(sse.Event{ID: line, Data: line}, nil) {
				return
			}
		}
	}
}

// publish publishes n events of about size bytes in a loop, in chunks if chunk
// says so: after each it waits until all clients have it, at most until one that
// does not read is cut off.
func (s *server) publish(w http.ResponseWriter, r *http.Request) {
	number := func(name string) int { n, _ := strconv.Atoi(r.FormValue(name)); return n }
	s.mu.Lock()
	defer s.mu.Unlock()
	fill := strings.Repeat("x", number("size"))
	chunk := number("chunk")
	began := time.Now()
	before := s.broker.Stats().Delivered
	for i := range number("n") {
		if chunk > 0 && i%chunk == 0 {
			s.await(before, i)
		}
		s.n++
		data := strconv.Itoa(s.n)
		if fill != "" {
			data += " " + fill
		}
		ev := sse.Event{ID: strconv.Itoa(s.n), Data: data}
		if _, err := s.broker.Publish(ev); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if s.fed = append(s.fed, ev); len(s.fed) > 100 {
			s.fed = s.fed[1:]
		}
	}
	json.NewEncoder(w).Encode(time.Since(began))
}

// await waits until each client was given n events since before were delivered.
func (s *server) await(before int64, n int) {
	for range 10_000 {
		if now := s.broker.Stats(); now.Delivered-before >= int64(n)*int64(now.Clients) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// swap puts a new broker in the place of the old one and shuts that down. The new
// one is fed the last events again, as by the tail of a log.
func (s *server) swap(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.broker
	s.broker = s.newBroker()
	for _, ev := range s.fed {
		s.broker.Publish(ev)
	}
	began := time.Now()
	old.Shutdown(r.Context())
	json.NewEncoder(w).Encode(time.Since(began))
}

type report struct {
	Usage usage
	Stats sse.Stats
}

func (s *server) report(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	b := s.broker
	s.mu.Unlock()
	json.NewEncoder(w).Encode(report{use(), b.Stats()})
}

// A child is a server in a process of its own.
type child struct {
	serverConfig
	cmd *exec.Cmd
}

// run starts a server, which ends with the test.
func run(t *testing.T, config serverConfig) *child {
	t.Helper()
	config.Addr = "127.0.0.1:" + tools.FreePort(t)
	c := &child{serverConfig: config}
	c.start(t)
	t.Cleanup(func() { c.kill() })
	return c
}

func (c *child) start(t *testing.T) {
	t.Helper()
	config, err := json.Marshal(c.serverConfig)
	if err != nil {
		t.Fatal(err)
	}
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), serverEnv+"="+string(config))
	c.cmd.Stderr = os.Stderr
	if _, err := c.cmd.StdinPipe(); err != nil { // its end is this process's
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server listens", func() bool {
		conn, err := net.Dial("tcp", c.Addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// post and report talk to the server.
func (c *child) post(t *testing.T, path string) (took time.Duration) {
	t.Helper()
	c.ask(t, http.MethodPost, path, &took)
	return took
}

func (c *child) report(t *testing.T) (r report) {
	t.Helper()
	c.ask(t, http.MethodGet, "/report", &r)
	return r
}

func (c *child) usage(t *testing.T) func() usage {
	return func() usage { return c.report(t).Usage }
}

func (c *child) ask(t *testing.T, method, path string, answer any) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+c.Addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		t.Fatalf("%s %s: %s: %v", method, path, resp.Status, err)
	}
}

// peak returns the most memory the server had, in bytes, since the last call.
func (c *child) peak(t *testing.T) int64 {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", c.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kB int64
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	return kB * 1024
}

// waitFor waits until the server has n clients.
func (c *child) waitFor(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the server has %d clients", n), func() bool {
		return c.report(t).Stats.Clients == n
	})
}
