package proxies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// TestClient has a Client follow a program through each proxy: with HTTP/1.1 and
// with HTTP/2, from Broker.Serve and from Broker.Detach. The program is shut down in
// good order, killed, and away for a while. Each loop gets every event
// once and in order.
func TestClient(t *testing.T) {
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			program := &program{addr: "127.0.0.1:" + tools.FreePort(t)}
			program.start(t)
			s := p.startBefore(t, program.addr)

			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var followers []*follower
			var running sync.WaitGroup
			for _, protocol := range p.protocols() {
				for _, path := range []string{"/serve", "/detach"} {
					f := &follower{name: protocol + path, reasons: map[string]int{}}
					followers = append(followers, f)
					http := newClient(t, protocol)
					running.Go(func() { f.follow(ctx, t, http, s.urls[protocol]+path) })
				}
			}
			defer running.Wait()
			defer cancel()
			publish := func(n int) {
				for range n {
					program.publish()
					time.Sleep(time.Millisecond)
				}
			}
			// Everybody has everything, after what happened.
			wait := func(what string) {
				t.Helper()
				for _, f := range followers {
					if !f.wait(ctx, program.n) {
						t.Fatalf("after %s, %s: got events up to %d, want %d; reconnected after %v", what, f.name, f.got(), program.n, f.why())
					}
				}
			}
			program.waitForClients(t, len(followers)) // who begin with the next event
			publish(100)
			wait("the start")
			for range 2 {
				publish(20)
				program.stop(syscall.SIGTERM)
				program.start(t)
				publish(20)
				wait("a shutdown")
			}
			for range 2 {
				publish(20)
				program.stop(syscall.SIGKILL)
				program.start(t)
				publish(20)
				wait("SIGKILL")
			}
			publish(20)
			program.stop(syscall.SIGKILL)
			time.Sleep(2 * time.Second) // the proxy answers 502 or 503, or nothing
			program.n += 20
			program.start(t)
			publish(20)
			wait("two seconds without the program")
			for _, f := range followers {
				t.Logf("%s reconnected after %v", f.name, f.why())
			}
		})
	}
}

// A follower is a loop over Client.Events, which must yield the numbers from 1 on.
type follower struct {
	name string

	mu      sync.Mutex
	last    int
	reasons map[string]int // to reconnect
}

func (f *follower) follow(ctx context.Context, t *testing.T, h *http.Client, url string) {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Error(err)
		return
	}
	c := &sse.Client{HTTPClient: h, Retry: 100 * time.Millisecond, MaxWait: 500 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
	c.CheckRetry = func(_ *http.Request, err error) error {
		reason := "a cut"
		var answer *sse.ResponseError
		if errors.As(err, &answer) {
			reason = strconv.Itoa(answer.StatusCode)
		} else if err == io.EOF {
			reason = "the end"
		}
		f.mu.Lock()
		f.reasons[reason]++
		f.mu.Unlock()
		return nil
	}
	for e, err := range c.Events(r) {
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("%s: %v", f.name, err)
			}
			return
		}
		f.mu.Lock()
		f.last++
		want := strconv.Itoa(f.last)
		f.mu.Unlock()
		if e.ID != want || e.Data != want {
			t.Errorf("%s: got %+v, want event %s", f.name, e, want)
			return
		}
	}
}

func (f *follower) got() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func (f *follower) why() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(f.reasons)
}

// wait waits until event n is there.
func (f *follower) wait(ctx context.Context, n int) bool {
	for limit := time.Now().Add(2 * time.Minute); f.got() < n; time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(limit) {
			return false
		}
	}
	return true
}

// A program is this test, run as a server of its own: see serveProgram.
type program struct {
	addr string
	cmd  *exec.Cmd
	n    int // events published so far
}

// start runs it with the n events so far.
func (p *program) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), programVariable+"="+p.addr+" "+strconv.Itoa(p.n))
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := p.cmd
	t.Cleanup(func() { cmd.Process.Kill() })
	for range 1000 {
		if conn, err := net.Dial("tcp", p.addr); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program does not listen")
}

func (p *program) stop(how os.Signal) {
	p.cmd.Process.Signal(how)
	p.cmd.Wait()
}

func (p *program) waitForClients(t *testing.T, n int) {
	t.Helper()
	got := ""
	for range 1000 {
		if resp, err := http.Get("http://" + p.addr + "/clients"); err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if got = string(body); got == strconv.Itoa(n) {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("got %s clients, want %d", got, n)
}

func (p *program) publish() {
	p.n++
	if resp, err := http.Post("http://"+p.addr+"/publish", "", nil); err == nil {
		resp.Body.Close()
	}
}

const programVariable = "SSE_TEST_PROGRAM"

// serveProgram serves streams of numbers at the address, the first n of which are
// the history. POST /publish publishes one more.
func serveProgram(addr string, n int) error {
	broker := &sse.Broker{Retry: 200 * time.Millisecond}
	publish := func(n int) { broker.Publish(sse.Event{ID: strconv.Itoa(n), Data: strconv.Itoa(n)}) }
	for i := range n {
		publish(i + 1)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/serve", func(w http.ResponseWriter, r *http.Request) { broker.Serve(w, r) })
	mux.HandleFunc("/detach", func(w http.ResponseWriter, r *http.Request) { broker.Detach(w, r, nil) })
	mux.HandleFunc("/clients", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, broker.Stats().Clients) })
	mux.HandleFunc("POST /publish", func(http.ResponseWriter, *http.Request) { n++; publish(n) })
	srv := &http.Server{Addr: addr, Handler: mux}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		late, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		broker.Shutdown(late)
		srv.Shutdown(late)
	}()
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	<-done
	return nil
}
