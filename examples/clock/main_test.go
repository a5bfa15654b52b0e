package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// With this variable set the test binary is the clock.
const beClock = "SSE_TEST_BE_CLOCK"

func TestMain(m *testing.M) {
	if os.Getenv(beClock) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// clock returns a command that runs the clock.
func clock(t *testing.T, args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), beClock+"=1", "GORACE=atexit_sleep_ms=0")
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	return cmd, stderr
}

// start starts the clock on a free port and returns its address. The test fails
// if Ctrl-C, pressed by stop, does not end it well.
func start(t *testing.T, args ...string) (url string, stop func() time.Duration) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a Windows process cannot press Ctrl-C for another")
	}
	cmd, stderr := clock(t, append(args, "-addr=localhost:0")...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	if _, err := fmt.Sscanf(line, "The clock is at %s\n", &url); err != nil {
		t.Fatalf("it printed %q: %v\n%s", line, err, stderr)
	}
	return url, func() time.Duration {
		t.Helper()
		began := time.Now()
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, stderr)
		}
		return time.Since(began)
	}
}

func TestStreamsTheTime(t *testing.T) {
	url, stop := start(t, "-every=10ms")
	defer stop()
	resp, err := http.Get(url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	last := 0
	for event, err := range sse.NewDecoder(resp.Body).All() {
		if err != nil {
			t.Fatal(err)
		}
		var tick struct {
			N    int
			Time time.Time
		}
		if err := json.Unmarshal([]byte(event.Data), &tick); err != nil {
			t.Fatal(err)
		}
		if age := time.Since(tick.Time); age < 0 || age > time.Minute {
			t.Errorf("tick %d says it is %v", tick.N, tick.Time)
		}
		if last > 0 && tick.N != last+1 {
			t.Errorf("got tick %d after tick %d", tick.N, last)
		}
		if last = tick.N; last >= 10 {
			return
		}
	}
	t.Errorf("the stream ended after tick %d", last)
}

func TestStops(t *testing.T) {
	url, stop := start(t)
	resp, err := http.Get(url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	// As browsers do: a connection in advance, without a request.
	idle, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if took := stop(); took > 15*time.Second {
		t.Errorf("it took %v to stop", took)
	}
}

func TestRefusesWhatItCannotDo(t *testing.T) {
	taken, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct{ arg, want string }{
		{"-addr=" + taken.Addr().String(), "address already in use"},
	} {
		cmd, stderr := clock(t, test.arg)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s: got %v, want exit status 1", test.arg, err)
		}
		if text := stderr.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, test.want) || len(out) > 0 {
			t.Errorf("%s: it printed %q and the error %q, want one line with %q", test.arg, out, text, test.want)
		}
	}
}
