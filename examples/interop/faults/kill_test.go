package faults

import (
	"path/filepath"
	"testing"
	"time"
)

// The server is killed and started again, while events go on.
func TestKilledServer(t *testing.T) {
	for _, c := range []struct {
		name    string
		catchUp bool
	}{{"memory only", false}, {"CatchUp from a log", true}} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, w way) { killed(t, w, c.catchUp) })
		})
	}
}

func killed(t *testing.T, w way, catchUp bool) {
	t.Parallel()
	const clients = 50
	kills := either(4, 30)
	c := run(t, serverConfig{
		Detach: w.detach, Retry: 50 * time.Millisecond, Every: time.Millisecond,
		Log: filepath.Join(t.TempDir(), "log"), CatchUp: catchUp,
	})
	all := followers(t, c, clients)
	for range kills {
		time.Sleep(time.Second) // the life of a process, which knows no fake time
		c.kill()
		c.start(t)
	}
	c.waitFor(t, clients)
	time.Sleep(500 * time.Millisecond)
	events, told, connections := 0, 0, 0
	for i, f := range all {
		f.stop()
		v, came := f.seen()
		events, told, connections = events+v.events, told+v.told, connections+len(came)
		switch {
		case v.err != nil:
			t.Errorf("client %d: %v", i, v.err)
		case catchUp && v.told > 0:
			t.Errorf("client %d was told of %d gaps, want none", i, v.told)
		case v.events < 10*kills:
			t.Errorf("client %d got %d events only", i, v.events)
		case len(came) <= kills/2:
			t.Errorf("client %d connected %d times only", i, len(came))
		}
	}
	if !catchUp && told == 0 {
		t.Error("no client was told of a gap, want some")
	}
	t.Logf("%d kills, %d clients, %d connections: %d events, %d gaps told, none lost without a word, none doubled",
		kills, clients, connections, events, told)
}
