package main

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A page rendered at any moment, and what its stream brings then, are together
// each step of the job, once.
func TestPageGoesOnAtTheRightPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t.Context(), time.Second)
		pages := []view{open(t, s)}
		request(t, s, "POST", "/jobs/3/start", "same-origin", 202)
		for range 8 {
			time.Sleep(10 * time.Second)
			pages = append(pages, open(t, s))
		}
		time.Sleep(time.Hour)
		for _, p := range append(pages, open(t, s)) {
			job := p.jobs[3]
			for _, got := range p.follow(t, s) {
				want := job
				want.State = "running"
				if job.State == "running" {
					want.Done++
				}
				if want.Done == want.Total {
					want.State = "finished"
				}
				if got != want {
					t.Fatalf("after %+v: got %+v, want %+v", job, got, want)
				}
				job = got
			}
			if job.State != "finished" {
				t.Errorf("the page that began with %+v ends with %+v", p.jobs[3], job)
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
		p := open(t, s)
		if got, want := p.jobs[0], (job{0, "Shrink the photos", "finished", 120, 120, 0}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got := p.follow(t, s); len(got) != 0 {
			t.Errorf("a page rendered after the end got %+v", got)
		}

		request(t, s, "POST", "/jobs/0/start", "same-origin", 202)
		if got, want := open(t, s).jobs[0], (job{0, "Shrink the photos", "running", 0, 120, 0}); got != want {
			t.Errorf("started again: got %+v, want %+v", got, want)
		}
	})
}

// The stream of one job brings all of it, also to those who come late, and ends for good.
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
				steps := strings.Count(body, "data: {")
				if steps != 61 || !strings.HasSuffix(body, "id: sse-end\nevent: end\ndata: \n\n") {
					t.Errorf("run %d, stream %d: got %d steps and the end %q, want 61 and an event end", run, i, steps, body[max(0, len(body)-80):])
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
	request(t, s, "GET", "/jobs/0/start", "none", 405)
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

// A view is what a browser knows when it has loaded the page.
type view struct {
	jobs        []job
	lastEventID string
}

var (
	jobsInPage = regexp.MustCompile(`for \(const job of (.*?)\) showJob`)
	idInPage   = regexp.MustCompile(`lastEventId = (".*?")`)
)

func open(t *testing.T, s *server) (p view) {
	t.Helper()
	html := request(t, s, "GET", "/", "none", 200)
	for pattern, v := range map[*regexp.Regexp]any{jobsInPage: &p.jobs, idInPage: &p.lastEventID} {
		found := pattern.FindStringSubmatch(html)
		if found == nil {
			t.Fatalf("no %s in %s", pattern, html)
		}
		if err := json.Unmarshal([]byte(found[1]), v); err != nil {
			t.Fatalf("%s: %v", found[1], err)
		}
	}
	return p
}

// follow returns the jobs that the page's stream brings until it is quiet.
func (p view) follow(t *testing.T, s *server) (jobs []job) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for e, err := range s.broker.Subscribe(ctx, p.lastEventID, "jobs") {
		if err != nil {
			break
		}
		var j job
		if err := json.Unmarshal([]byte(e.Data), &j); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
		jobs = append(jobs, j)
	}
	return jobs
}
