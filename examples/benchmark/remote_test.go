package benchmark

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/stall"
)

// serverEnv names the library that a process is to serve, and the network.
const serverEnv = "BENCHMARK_SERVER"

// serveRemote runs a server that is a [remote], if that is what the process was
// started for, and ends it.
func serveRemote() {
	name, network, ok := strings.Cut(os.Getenv(serverEnv), " over ")
	if !ok {
		return
	}
	if err := serveLines(name, network, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveLines serves, and obeys lines: "publish 16 100" publishes so many events
// of so many bytes, "usage" tells what the process has used, "full" how many
// connections there are to which nothing more can be written.
func serveLines(name, network string, r io.Reader, w io.Writer) error {
	lib, err := find(name)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := lib.start(0)
	go load.Serve(&http.Server{Handler: server.handler}, listener, network)
	answers := json.NewEncoder(w)
	answers.Encode(listener.Addr().String())
	number := int64(0)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		switch command, args, _ := strings.Cut(lines.Text(), " "); command {
		case "publish":
			var n, size int
			if _, err := fmt.Sscan(args, &n, &size); err != nil {
				return err
			}
			batch := make([]message, n)
			for i := range batch {
				number++
				batch[i] = message{number, load.Payload(number, size)}
			}
			server.publish(batch)
			answers.Encode(number)
		case "usage":
			// Garbage is not what a connection costs.
			debug.FreeOSMemory()
			usage, err := meter.Now()
			if err != nil {
				return err
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			answers.Encode(memory{usage.RSS, int64(m.StackInuse), int64(m.HeapAlloc)})
		case "full":
			n, err := stall.Full()
			if err != nil {
				return err
			}
			answers.Encode(n)
		default:
			return fmt.Errorf("no command %q", command)
		}
	}
	return nil
}

// A remote is a library's server in a process of its own, where it can be
// measured alone and may come to any end, and clients in another.
type remote struct {
	tb      testing.TB
	addr    string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  *os.File
	stderr  bytes.Buffer // complete when cmd.Wait has returned
	answers *json.Decoder
	clients *load.Process
}

// newRemote starts the processes. They end together with the test.
func newRemote(tb testing.TB, lib library, network string, bytes int) *remote {
	tb.Helper()
	requireLinux(tb)
	r := &remote{tb: tb, cmd: exec.Command(os.Args[0])}
	r.cmd.Env = append(os.Environ(), serverEnv+"="+lib.name+" over "+network)
	r.cmd.Stderr = &r.stderr
	var w *os.File
	var err1, err2 error
	r.stdin, err1 = r.cmd.StdinPipe()
	r.stdout, w, err2 = os.Pipe()
	r.cmd.Stdout, r.answers = w, json.NewDecoder(r.stdout)
	err := errors.Join(err1, err2, r.cmd.Start())
	w.Close()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.close)
	if err := r.answer(&r.addr, patience); err != nil {
		tb.Fatal(err)
	}
	r.clients, err = load.Start(load.Options{
		Network: network,
		Addr:    r.addr,
		Path:    lib.streamPath(),
		Payload: bytes,
		NoHead:  lib.noHead,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// close ends the processes. The server's may hang, or be gone already.
func (r *remote) close() {
	r.stdin.Close()
	r.cmd.Process.Kill()
	r.cmd.Wait()
	r.stdout.Close()
	if r.clients == nil {
		return
	}
	if err := r.clients.Close(); err != nil {
		r.tb.Errorf("clients: %v", err)
	}
}

// errSilent is why there is no answer in time.
var errSilent = errors.New("the server's process does not answer")

// errCrashed is why there will never be one.
var errCrashed = errors.New("crashed")

// call has the server's process do something. The error wraps errSilent or
// errCrashed; after the first the remote is of no more use.
func (r *remote) call(answer any, patience time.Duration, command string, args ...any) error {
	fmt.Fprintln(r.stdin, append([]any{command}, args...)...) // if it has gone, there is no answer
	return r.answer(answer, patience)
}

func (r *remote) answer(answer any, patience time.Duration) error {
	r.stdout.SetReadDeadline(time.Now().Add(patience))
	err := r.answers.Decode(answer)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w within %v", errSilent, patience)
	}
	err = errors.Join(err, r.cmd.Wait())
	for line := range strings.Lines(r.stderr.String()) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "server: ") {
			return fmt.Errorf("%w: %s", errCrashed, strings.TrimSpace(line))
		}
	}
	return fmt.Errorf("%w: %w", errCrashed, err)
}

// must is call where nothing can go wrong.
func (r *remote) must(answer any, command string, args ...any) {
	r.tb.Helper()
	if err := r.call(answer, patience, command, args...); err != nil {
		r.tb.Fatal(err)
	}
}

// connect connects n clients, each of which has had an event when it returns.
func (r *remote) connect(n, bytes int) {
	r.tb.Helper()
	warmUp(r.tb, r.clients, n, func() (number int64) {
		r.must(&number, "publish", 1, bytes)
		return number
	})
}

// A memory is what a server's process uses, in bytes: in all, and of that for
// stacks of goroutines and for what they have allocated.
type memory struct{ RSS, Stacks, Heap int64 }

// idleMemory returns what a connection costs in a server that serves nobody else,
// when its client has had an event.
func idleMemory(tb testing.TB, lib library, network string, n int) (each memory) {
	tb.Helper()
	r := newRemote(tb, lib, network, 100)
	var before, after memory
	r.must(&before, "usage")
	r.connect(n, 100)
	r.must(&after, "usage")
	of := func(before, after int64) int64 { return (after - before) / int64(n) }
	return memory{of(before.RSS, after.RSS), of(before.Stacks, after.Stacks), of(before.Heap, after.Heap)}
}

const (
	// Whoever has not had a burst after this time waits for the clients that do
	// not read. No library cuts those off so soon.
	stallPatience = 2 * time.Second

	leastToFill = 128 // bursts before the time is taken, however few are stalled
	mostToFill  = 200 // bursts, after which each connection must be full
	afterFull   = 32  // bursts, which fill the queues in front of the connections
)

// A jam is clients that read, beside clients that do not.
type jam struct {
	*remote
	readers, stalled int
	bytes            int // of an event's data
	patience         time.Duration
	number           int64
}

// errWait is what a benchmark finds if clients that read must wait for others.
var errWait = errors.New("all wait")

// newJam connects the clients, and publishes until those that do not read have
// had all that the server can write to them, and what it keeps for them is full
// as well. It returns why it could not come to that.
func newJam(tb testing.TB, lib library, readers, stalled, bytes int, patience time.Duration) (*jam, error) {
	tb.Helper()
	j := &jam{remote: newRemote(tb, lib, load.TCP, bytes), readers: readers, stalled: stalled, bytes: bytes, patience: patience}
	j.connect(readers, bytes)
	clients, err := stall.Connect(j.addr, lib.streamPath(), stalled)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(clients.Close)
	j.must(&j.number, "publish", 0, bytes) // nothing, and tells where it is
	if err := j.clients.Bell(j.number, burst); err != nil {
		tb.Fatal(err)
	}
	for n, sinceFull := 0, 0; n < mostToFill; n++ {
		full, err := j.full()
		if err != nil {
			return nil, err
		}
		if full < stalled {
			sinceFull = 0
		} else if sinceFull++; sinceFull > afterFull && n >= leastToFill {
			return j, nil
		}
		if err := j.burst(); err != nil {
			return nil, err
		}
	}
	tb.Fatalf("after %d bursts not all of the %d clients that do not read are stalled", mostToFill, stalled)
	return nil, nil
}

// full tells how many clients are stalled now.
func (j *jam) full() (n int, err error) {
	err = j.call(&n, j.patience, "full")
	return n, err
}

// burst publishes a burst and waits until those that read have it.
func (j *jam) burst() error {
	err := j.call(&j.number, j.patience, "publish", burst, j.bytes)
	if errors.Is(err, errSilent) {
		return fmt.Errorf("%w; publishing took more than %v", errWait, j.patience)
	}
	if err != nil {
		return err
	}
	err = j.clients.Rung(j.patience)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if _, err := j.full(); err != nil {
		return err // which is why
	}
	r, _, err := j.clients.Report()
	if err != nil {
		return err
	}
	return fmt.Errorf("%w; %v after a burst %d of %d clients that read had it", errWait, j.patience, r.Have, j.readers)
}

// check fails the test unless the clients that do not read are stalled to this
// moment, and the others have got everything.
func (j *jam) check() load.Report {
	j.tb.Helper()
	full, err := j.full()
	if err != nil {
		j.tb.Fatal(err)
	}
	if full != j.stalled {
		j.tb.Errorf("%d of %d clients are stalled: the others were cut off before the end, which a shorter -benchtime may prevent", full, j.stalled)
	}
	r, _, err := j.clients.Report()
	if err != nil {
		j.tb.Fatal(err)
	}
	if r.Clients != j.readers || r.Lost+r.Doubled+r.Damaged != 0 {
		j.tb.Errorf("got %+v, want %d clients that lost nothing", r, j.readers)
	}
	return r
}
