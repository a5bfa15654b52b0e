package main

import (
	"context"
	"encoding/json"
	"iter"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed22e817d0/sse"
)

func TestNewcomerGetsTheCurrentStateFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := watched(t, 10*time.Millisecond)
		for _, test := range []struct {
			wait time.Duration
			want int // samples so far
		}{{0, 0}, {time.Second, 200}, {time.Minute, 2000}} {
			time.Sleep(test.wait)
			synctest.Wait()
			events := m.listen(t, "", time.Second)
			state, live := events[0], events[1:]
			if state.Type != "samples" || state.Data[0] != '[' || len(live) != 100 {
				t.Fatalf("got %.40v and %d more, want samples in an array and 100 more", state, len(live))
			}
			times := timesOf(t, state)
			if len(times) != test.want {
				t.Errorf("after %v: got a state of %d samples, want %d", test.wait, len(times), test.want)
			}
			evenly(t, append(times, timesOf(t, live...)...), 10)
		}
	})
}

// What is published while the state is being taken comes neither twice nor never.
func TestSamplesDuringCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(10 * time.Millisecond)
		m.broker.CatchUp = func(ctx context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
			time.Sleep(55 * time.Millisecond)
			return m.catchUp(ctx, missed)
		}
		go m.watch(t.Context())
		time.Sleep(time.Second)
		events := m.listen(t, "", time.Second)
		times := timesOf(t, events[0])
		if len(times) != 105 {
			t.Errorf("got a state of %d samples, want 105", len(times))
		}
		evenly(t, append(times, timesOf(t, events[1:]...)...), 10)
	})
}

func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := watched(t, 10*time.Millisecond)
		before := m.listen(t, "", time.Second)
		last := before[len(before)-1]

		time.Sleep(10 * time.Second)
		events := m.listen(t, last.ID, time.Second)
		if len(events) != 1100 || events[0].Type != "" {
			t.Errorf("after 10 s: got %d events, want the 1100 since then", len(events))
		}
		evenly(t, timesOf(t, append(before[1:], events...)...), 10)

		time.Sleep(time.Minute)
		events = m.listen(t, last.ID, time.Second)
		if len(events) != 101 || events[0].Type != "samples" || len(timesOf(t, events[0])) != 2000 {
			t.Errorf("after a minute: got %d events, want the state and 100 more", len(events))
		}
		evenly(t, append(timesOf(t, events[0]), timesOf(t, events[1:]...)...), 10)
	})
}

func TestDeliveriesPerSecond(t *testing.T) {
	for _, every := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 700 * time.Millisecond, 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			m := watched(t, every)
			for range 3 {
				go m.listen(t, "", 20*time.Second)
			}
			time.Sleep(19 * time.Second)
			synctest.Wait()
			m.mu.Lock()
			defer m.mu.Unlock()
			got, want := m.samples[len(m.samples)-1].Deliveries, 3*float64(time.Second)/float64(every)
			if got < .99*want || got > 1.01*want {
				t.Errorf("3 clients and a sample every %v: got %v deliveries per second, want %v", every, got, want)
			}
		})
	}
}

// The rate is that of the last second, or it would jump about.
func TestDeliveriesOfTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := watched(t, 10*time.Millisecond)
		time.Sleep(5 * time.Second)
		go m.listen(t, "", 2*time.Second)
		time.Sleep(time.Second / 2)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if got := m.samples[len(m.samples)-1].Deliveries; got < 48 || got > 52 {
			t.Errorf("after half a second of 100 events per second: got %v, want about 50", got)
		}
	})
}

func TestFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := watched(t, 10*time.Millisecond)
		sampled := func() sample {
			runtime.GC() // of what other tests left
			time.Sleep(time.Second)
			synctest.Wait()
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.samples[len(m.samples)-1]
		}
		before := sampled()
		w := httptest.NewRecorder()
		m.handler().ServeHTTP(w, httptest.NewRequest("POST", "/load", nil))
		during := sampled()
		if w.Code != 202 || during.Goroutines < before.Goroutines+90 || during.Heap < before.Heap+5<<20 {
			t.Errorf("status %d, and load made %+v of %+v, want 100 goroutines and 10 MB more", w.Code, during, before)
		}
		time.Sleep(time.Minute)
		if after := sampled(); after.Goroutines > before.Goroutines+10 {
			t.Errorf("after the load: got %d goroutines, want about %d", after.Goroutines, before.Goroutines)
		}
	})
}

func TestForeignPageCannotAddLoad(t *testing.T) {
	w, r := httptest.NewRecorder(), httptest.NewRequest("POST", "/load", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	newMonitor(time.Second).handler().ServeHTTP(w, r)
	if w.Code != 403 {
		t.Errorf("got status %d, want 403", w.Code)
	}
}

func watched(t *testing.T, every time.Duration) *monitor {
	m := newMonitor(every)
	go m.watch(t.Context())
	return m
}

// listen returns what a client gets that connects and stays for some time.
func (m *monitor) listen(t *testing.T, lastEventID string, stay time.Duration) (events []sse.Event) {
	ctx, cancel := context.WithTimeout(t.Context(), stay+time.Millisecond)
	defer cancel()
	for e, err := range m.broker.Subscribe(ctx, lastEventID) {
		if err != nil {
			break
		}
		events = append(events, e)
	}
	return events
}

// timesOf returns the times of the samples in the events, in milliseconds.
func timesOf(t *testing.T, events ...sse.Event) (times []int64) {
	t.Helper()
	for _, e := range events {
		data := e.Data
		if e.Type == "" {
			data = "[" + data + "]"
		}
		var samples []sample
		if err := json.Unmarshal([]byte(data), &samples); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		for _, s := range samples {
			times = append(times, s.Time)
		}
	}
	return times
}

// evenly fails the test if a time is missing, or there twice.
func evenly(t *testing.T, times []int64, step int64) {
	t.Helper()
	for i, got := range times {
		if want := times[0] + int64(i)*step; got != want {
			t.Fatalf("sample %d is of %d, want %d", i, got, want)
		}
	}
}
