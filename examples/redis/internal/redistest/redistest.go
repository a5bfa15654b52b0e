// Package redistest runs a Redis of a test's own.
package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Server is a redis-server with its own port and directory, and with the
// append-only file on, so that it may be killed.
type Server struct {
	Addr   string
	dir    string
	cmd    *exec.Cmd
	client *redis.Client
}

// New returns a Server that is not running yet.
func New(t testing.TB) *Server {
	t.Helper()
	NeedTool(t, "redis-server")
	s := &Server{Addr: FreeAddr(t), dir: t.TempDir()}
	s.client = redis.NewClient(s.Options())
	t.Cleanup(func() { s.client.Close() })
	return s
}

// Start runs the Server until the test ends, or Stop.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	_, port, _ := net.SplitHostPort(s.Addr)
	s.cmd = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", s.dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "always")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := s.cmd
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	WaitUntil(t, "Redis answers", func() bool { return s.client.Ping(context.Background()).Err() == nil })
}

// Stop ends the Server with this signal and waits until it has ended.
func (s *Server) Stop(t testing.TB, how os.Signal) {
	t.Helper()
	s.Signal(t, how)
	s.cmd.Wait()
}

// Signal sends the Server a signal.
func (s *Server) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Empty throws away what a stopped Server has on disk.
func (s *Server) Empty(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(s.dir, "appendonlydir")); err != nil {
		t.Fatal(err)
	}
}

// Do sends a command and returns the answer as text.
func (s *Server) Do(t testing.TB, args ...any) string {
	t.Helper()
	v, err := s.client.Do(context.Background(), args...).Result()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(v)
}

// Info returns a figure that Redis tells of itself.
func (s *Server) Info(t testing.TB, name string) float64 {
	t.Helper()
	for line := range strings.Lines(s.Do(t, "INFO")) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("Redis tells no %s", name)
	return 0
}

// Stream returns all entries of a stream.
func (s *Server) Stream(t testing.TB, key string) []redis.XMessage {
	t.Helper()
	entries, err := s.client.XRange(context.Background(), key, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// Options returns what a client needs.
func (s *Server) Options() *redis.Options { return &redis.Options{Addr: s.Addr} }

// NeedTool fails the test in CI, and skips it elsewhere, if the tool is missing.
func NeedTool(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is missing: install the Debian package of that name", name)
	default:
		t.Skipf("%s is missing: install the Debian package of that name", name)
	}
}

// FreeAddr returns an address on which nobody listens.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// WaitUntil waits for what another process or goroutine is about to do.
func WaitUntil(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
