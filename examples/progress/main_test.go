package main

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A page that comes at any moment gets the newest state of each job, and as it comes
// back the newest of those that have changed.
func TestPageHasTheNewestOfEachJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t.Context(), time.Second)
		pages := []view{open(t, s)}
		request(t, s, "POST", "/jobs/3/start", "same-origin", 202)
		for range 8 {
			time.Sleep(10 * time.Second)
			pages = append(pages, open(t, s))
		}
		if first, fourth := pages[0].jobs[3], pages[3].jobs[3]; first.State != "waiting" || fourth.State != "running" || fourth.Done < 10 {
			t.Errorf("got %+v first, and %+v after 30 seconds", first, fourth)
		}
		time.Sleep(time.Hour)
		for _, p := range append(pages, open(t, s)) {
			finished := p.jobs[3].State == "finished"
			if sent := p.comeBack(t, s); sent > 1 || finished && sent > 0 {
				t.Errorf("got %d events, want the newest of one job", sent)
			}
			if got, want := p.jobs[3], (job{3, "Check the backups", "finished", 60, 60, 0}); len(p.jobs) != 4 || got != want {
				t.Errorf("got %d jobs and %+v, want 4 and %+v", len(p.jobs), got, want)
			}
		}
	})
}

func TestFinishedStaysFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t.Context(), time.Millisecond)
		request(t, s, "POST", "/jobs/0/start", "same-origin", 202)
		request(t, s, "POST", "/jobs/0/start", "same-origin", 409)
		time.Sleep(time.Hour)
		if got, want := open(t, s).jobs[0], (job{0, "Shrink the photos", "finished", 120, 120, 0}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		request(t, s, "POST", "/jobs/0/start", "same-origin", 202)
		if got, want := open(t, s).jobs[0], (job{0, "Shrink the photos", "running", 0, 120, 0}); got != want {
			t.Errorf("started again: got %+v, want %+v", got, want)
		}
	})
}

// The stream of one job ends for good, also for those who come late.
func TestStreamOfOneJobEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t.Context(), time.Second)
		for run := range 2 { // the second run is not mixed up with the first
			if run > 0 {
				request(t, s, "POST", "/jobs/3/start", "same-origin", 202)
			}
			early := make(chan string)
			go func() { early <- request(t, s, "GET", "/jobs/3/events", "none", 200) }()
			synctest.Wait()
			if run == 0 {
				request(t, s, "POST", "/jobs/3/start", "same-origin", 202)
			}
			for i, body := range []string{<-early, request(t, s, "GET", "/jobs/3/events", "none", 200)} {
				// Who comes early gets the state before, the start and each step; who is late, the last.
				want := []int{62, 1}[i]
				if run > 0 && i == 0 {
					want = 61
				}
				steps := strings.Count(body, "data: {")
				if steps != want || !strings.HasSuffix(body, "id: sse-end\nevent: end\ndata: \n\n") {
					t.Errorf("run %d, stream %d: got %d states and the end %q, want %d and an event end", run, i, steps, body[max(0, len(body)-80):], want)
				}
			}
			request(t, s, "GET", "/jobs/3/events?lastEventId=sse-end", "none", 204)
		}
		request(t, s, "GET", "/jobs/9/events", "none", 404)
	})
}

func TestJobsEndWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newServer(ctx, time.Minute)
		request(t, s, "POST", "/jobs/2/start", "same-origin", 202)
		time.Sleep(time.Hour)
		before := open(t, s).jobs[2]
		cancel()
		time.Sleep(time.Hour)
		if got := open(t, s).jobs[2]; before.Done == 0 || got != before {
			t.Errorf("got %+v an hour after the end, want %+v", got, before)
		}
	})
}

func TestRefusals(t *testing.T) {
	s := newServer(t.Context(), time.Hour)
	request(t, s, "POST", "/jobs/0/start", "cross-site", 403)
	request(t, s, "POST", "/jobs/4/start", "same-origin", 404)
	request(t, s, "POST", "/jobs/-1/start", "same-origin", 404)
	request(t, s, "POST", "/jobs/x/start", "same-origin", 404)
	request(t, s, "GET", "/jobs/0/start", "none", 404)
	request(t, s, "GET", "/elsewhere", "none", 404)
	for _, job := range open(t, s).jobs {
		if job.State != "waiting" {
			t.Errorf("got %+v, want all jobs waiting", job)
		}
	}
}

// request asks as a browser does for a page of this site, and returns the body.
func request(t *testing.T, s *server, method, path, site string, want int) string {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Sec-Fetch-Site", site)
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, r)
	if w.Code != want {
		t.Fatalf("%s %s: got status %d %q, want %d", method, path, w.Code, w.Body, want)
	}
	return w.Body.String()
}

// A view is what a page has been sent, the newest of each job.
type view struct {
	jobs        map[int]job
	lastEventID string
}

func open(t *testing.T, s *server) view {
	t.Helper()
	p := view{jobs: map[int]job{}}
	p.comeBack(t, s)
	return p
}

// comeBack adds what the page's stream brings until it is quiet, and returns how many
// events that were.
func (p *view) comeBack(t *testing.T, s *server) (sent int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Microsecond)
	defer cancel()
	for e, err := range s.broker.Subscribe(ctx, p.lastEventID, "jobs") {
		if err != nil {
			break
		}
		var j job
		if err := json.Unmarshal([]byte(e.Data), &j); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
		p.jobs[j.ID], p.lastEventID = j, e.ID
		sent++
	}
	return sent
}
