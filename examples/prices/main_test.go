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

// With this variable set the test binary is the prices.
const bePrices = "SSE_TEST_BE_PRICES"

func TestMain(m *testing.M) {
	if os.Getenv(bePrices) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// prices returns a command that runs the program.
func prices(t *testing.T, args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), bePrices+"=1", "GORACE=atexit_sleep_ms=0")
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	return cmd, stderr
}

// start starts it on a free port and returns its address. The test fails
// if Ctrl-C, pressed by stop, does not end it well.
func start(t *testing.T, args ...string) (url string, stop func() time.Duration) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a Windows process cannot press Ctrl-C for another")
	}
	cmd, stderr := prices(t, append(args, "-addr=localhost:0")...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	if _, err := fmt.Sscanf(line, "The prices are at %s\n", &url); err != nil {
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

// A price is what an event says.
type price struct {
	N      int
	Symbol string
	Cents  int
}

// read returns the first n prices of a stream.
func read(t *testing.T, url string, n int) (prices []price) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for event, err := range sse.NewDecoder(resp.Body).All() {
		if err != nil {
			t.Fatal(err)
		}
		var p price
		if err := json.Unmarshal([]byte(event.Data), &p); err != nil || p.Cents <= 0 {
			t.Fatalf("got the price %q, %v", event.Data, err)
		}
		if prices = append(prices, p); len(prices) == n {
			break
		}
	}
	return prices
}

func TestNewcomerGetsEachSymbolOnceAndThenWhatChanges(t *testing.T) {
	url, stop := start(t)
	defer stop()
	got := read(t, url+"/events", 80)
	symbols := map[string]bool{}
	for i, p := range got {
		if i > 0 && p.N <= got[i-1].N {
			t.Errorf("got price %d after price %d", p.N, got[i-1].N)
		}
		if i < 50 {
			symbols[p.Symbol] = true
		}
	}
	// It is spared a price that is replaced within a moment.
	if spared := got[79].N - got[49].N - 30; spared > 3 {
		t.Errorf("got 30 prices after the state and not %d others, want nearly all of them", spared)
	}
	if len(symbols) != 50 {
		t.Errorf("the first 50 prices are of %d symbols, want all 50", len(symbols))
	}
}

func TestSlowReaderIsSparedPrices(t *testing.T) {
	t.Parallel()
	url, stop := start(t, "-every=1ms", "-pause=500ms")
	defer stop()
	got := read(t, url+"/slow", 140) // the state, and then two times almost each
	first, last := got[0].N, got[len(got)-1].N
	if published := last - first; published < 400 {
		t.Errorf("it got %d prices while %d were published, want to be spared most", len(got), published)
	}
}

func TestStopsWithClientsConnected(t *testing.T) {
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
		cmd, stderr := prices(t, test.arg)
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
