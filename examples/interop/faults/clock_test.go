package faults

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// HistoryAge and KeepAlive, on a clock that is exact.
func TestHistoryAgeAndKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &sse.Broker{HistoryAge: time.Hour, KeepAlive: time.Minute, WriteTimeout: -1} // a Recorder has no deadlines
		first := b.LastEventID()
		if _, err := b.Publish(sse.Event{Data: "old"}); err != nil {
			t.Fatal(err)
		}
		next := func() string {
			for e, err := range b.Subscribe(t.Context(), first) {
				if err != nil {
					t.Fatal(err)
				}
				return e.Type + e.Data
			}
			return ""
		}
		time.Sleep(time.Hour)
		atAge := next()
		time.Sleep(time.Nanosecond)
		if past := next(); atAge != "old" || past != "gap"+first {
			t.Errorf("at HistoryAge got %q, past it %q, want the event, and a gap", atAge, past)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		ended := make(chan error)
		go func() { ended <- b.Serve(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil)) }()
		time.Sleep(24*time.Hour + time.Second)
		cancel()
		<-ended
		if got := strings.Count(w.Body.String(), ":\n"); got != 24*60 {
			t.Errorf("got %d keep-alives in a day, want %d", got, 24*60)
		}
		t.Log("an event was replayed at the age of exactly HistoryAge, and a gap told 1 ns later; a day had 1,440 keep-alives of a minute")
	})
}

// The wall clock jumps, by an hour forth and two hours back, under a running
// broker. No test may set the clock of the machine it runs on, so the program is
// built with a package time whose wall clock jumps; the monotonic clock, and all
// of net and net/http above it, are as they are.
func TestWallClockJump(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w way) {
		t.Parallel()
		program := buildJumping(t)
		out, err := exec.Command(program, "/"+strings.ToLower(w.name)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var got struct {
			Jumps            []time.Duration
			Replayed         []int
			GapWhenOld       bool
			KeepAlives       int
			LongestKeepAlive time.Duration
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s", out)
		if len(got.Jumps) != 2 || got.Jumps[0] != time.Hour || got.Jumps[1] != -2*time.Hour {
			t.Fatalf("the clock jumped by %v, want 1h and -2h", got.Jumps)
		}
		if got.Replayed[0] != 10 || got.Replayed[1] != 10 || !got.GapWhenOld {
			t.Errorf("got %v events replayed after the jumps and a gap when they were old: %t; want 10, 10, true", got.Replayed, got.GapWhenOld)
		}
		if got.KeepAlives < 20 || got.LongestKeepAlive > 3*time.Second {
			t.Errorf("got %d keep-alives, the longest after %v, want one each 100 ms", got.KeepAlives, got.LongestKeepAlive)
		}
	})
}

// buildJumping builds testdata/clockjump with a wall clock that jumps.
func buildJumping(t *testing.T) string {
	goTool := tools.Path(t, "go")
	dir := t.TempDir()
	goroot, err := exec.Command(goTool, "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const reading = "	mono -= startNano\n"
	if strings.Count(string(text), reading) != 1 {
		t.Fatalf("time.Now of %s is not what this test knows", runtime.Version())
	}
	jumping := strings.Replace(string(text), reading, reading+`	switch {
	case mono > 2e9:
		sec -= 3600
	case mono > 1e9:
		sec += 3600
	}
`, 1)
	changed := filepath.Join(dir, "time.go")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{changed: jumping, filepath.Join(dir, "overlay.json"): string(overlay)} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "clockjump")
	build := exec.Command(goTool, "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "./testdata/clockjump")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}
