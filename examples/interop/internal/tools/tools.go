// Package tools finds and runs the programs that the tests need.
package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Path returns where the named program is. If it is missing the test is
// skipped, or fails in CI.
func Path(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	// Debian keeps servers where a user's PATH does not lead.
	if _, err := os.Stat("/usr/sbin/" + name); err == nil {
		return "/usr/sbin/" + name
	}
	Missing(t, "%s is not installed; .apt lists the Debian packages", name)
	return ""
}

// Missing skips the test, or fails it in CI, because something is not installed.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on, and that no
// other caller gets, in this process or another, until this one ends: some
// servers share a port without a word. It is not one of those that the kernel
// gives to outgoing connections.
func FreePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(20000 + rand.IntN(12000))
		claim, err := net.Listen("tcp", "127.0.0.2:"+port)
		if err != nil {
			continue
		}
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			claim.Close()
			continue
		}
		claims.Store(port, claim)
		return port
	}
	t.Fatal("no free port")
	return ""
}

// claims keeps the listeners of FreePort from being collected.
var claims sync.Map

// Listen listens at addr, where another listener may have been closed just now. A
// program that is being started has a copy of that one, for a moment, so that the
// address can still be in use.
func Listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return ln
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A Process is a program that Start started.
type Process struct {
	name      string
	process   *os.Process
	out, errs buffer        // what it has printed so far
	done      chan struct{} // closed when it has ended
	err       error         // how it has ended
}

// A buffer can be read while it is written to.
type buffer struct {
	mu  sync.Mutex
	buf []byte
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	return len(p), nil
}

// from returns what was written from offset n on.
func (b *buffer) from(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf[n:]
}

// Start runs the program in dir, which is its home as well, until the test ends,
// and its children with it. What it printed is logged if the test fails.
func Start(t testing.TB, dir, name string, args ...string) *Process {
	t.Helper()
	cmd := exec.Command(Path(t, name), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir)
	cmd.SysProcAttr = children()
	p := &Process{name: name, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.errs
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.process = cmd.Process
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		kill(cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(2 * time.Second):
		}
		kill(cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		if t.Failed() {
			t.Logf("%s printed:\n%s", name, p.Output())
		}
	})
	return p
}

// Signal sends the signal and returns how the program ended.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.process.Signal(sig); err != nil {
		return err
	}
	<-p.done
	return p.err
}

// Lines calls f with each line that the program prints to its standard output,
// until the test ends.
func (p *Process) Lines(t testing.TB, f func(line string)) {
	var reader sync.WaitGroup
	ended := make(chan struct{})
	reader.Go(func() {
		for n := 0; ; {
			text := p.out.from(n)
			text = text[:bytes.LastIndexByte(text, '\n')+1]
			for line := range bytes.Lines(text) {
				f(strings.TrimSuffix(string(line), "\n"))
			}
			n += len(text)
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { close(ended); reader.Wait() })
}

// Output returns what the program has printed so far.
func (p *Process) Output() string {
	return strings.TrimSpace(string(p.out.from(0)) + string(p.errs.from(0)))
}

// Listening waits until the program accepts connections at addr.
func (p *Process) Listening(t testing.TB, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended at once: %v\n%s", p.name, p.err, p.Output())
		case <-ctx.Done():
			t.Fatal(fmt.Errorf("%s does not listen at %s: %w\n%s", p.name, addr, err, p.Output()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
