package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

func TestMain(m *testing.M) {
	load.Main()
	os.Exit(m.Run())
}

func TestEveryScenarioLosesAndDoublesNothing(t *testing.T) {
	if meter.Supported != nil {
		t.Skip(meter.Supported)
	}
	c := config{Clients: 300, Streams: 100, KeepAlive: 100 * time.Millisecond, Idle: 300 * time.Millisecond, Addr: "127.0.0.1:0"}
	for _, name := range scenarios {
		t.Run(name, func(t *testing.T) {
			r, err := measure(name, c, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			wantEvents := int64(tries + tries*burst + burst + 1)
			if r.Events != wantEvents || r.Received != wantEvents*int64(c.Clients) {
				t.Errorf("got %d events and %d deliveries, want %d and %d", r.Events, r.Received, wantEvents, wantEvents*int64(c.Clients))
			}
			if r.Lost != 0 || r.Doubled != 0 || r.Damaged != 0 {
				t.Errorf("got %d events lost, %d doubled, %d damaged, want none", r.Lost, r.Doubled, r.Damaged)
			}
			wantConns := c.Clients
			if strings.HasPrefix(name, "h2c") {
				wantConns = 3
			}
			if r.Conns != wantConns {
				t.Errorf("got %d connections, want %d", r.Conns, wantConns)
			}
			for what, d := range map[string]time.Duration{
				"Connect": r.Connect, "One": r.One.Last, "Burst": r.Burst.Last, "Shutdown": r.Shutdown, "Return": r.Return,
			} {
				if d <= 0 {
					t.Errorf("%s took %v", what, d)
				}
			}
		})
	}
}

func TestAnUnknownScenarioIsAnError(t *testing.T) {
	for _, name := range []string{"", "tcp", "tcp/both", "h2c/detach"} {
		if _, err := measure(name, config{}, io.Discard); err == nil {
			t.Errorf("got no error for %q", name)
		}
	}
}
