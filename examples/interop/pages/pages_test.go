// Package pages tests streams with the libraries that people have in their pages,
// and with the clients of language model APIs.
package pages

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/evanw/esbuild/pkg/api"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
	"github.com/seed22e817d0/sse/examples/page"
)

// text has what a fragment of HTML may lose on its way: line ends, and blanks.
const text = "two\n\n  lines"

// fragment is an item of the list in HTML of several lines.
func fragment(n int) string {
	return fmt.Sprintf("<li>\n  <b>%d</b>\n  <pre>%s</pre>\n</li>", n, text)
}

// Each page has every event once and in order, when the program is replaced and its
// connections are cut, and when nginx answers 502 for it for ten seconds.
func TestPages(t *testing.T) {
	for _, test := range []struct {
		name  string
		event func(n int) sse.Event
	}{
		{"htmx", func(n int) sse.Event {
			return sse.Event{Data: fragment(n)}
		}},
		{"turbo", func(n int) sse.Event {
			return sse.Event{Data: "<turbo-stream action=\"append\" target=\"list\">\n<template>" + fragment(n) + "</template>\n</turbo-stream>"}
		}},
		{"datastar", func(n int) sse.Event {
			lines := strings.ReplaceAll("\n"+fragment(n), "\n", "\nfragments ")
			return sse.Event{Type: "datastar-merge-fragments", Data: "selector #list\nmergeMode append" + lines}
		}},
		{"react", func(n int) sse.Event {
			e, err := sse.JSON(map[string]any{"n": n, "text": text})
			if err != nil {
				t.Error(err)
			}
			return e
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := os.Stat("../node_modules/" + map[string]string{"htmx": "htmx.org", "turbo": "@hotwired/turbo", "datastar": "@starfederation/datastar", "react": "react"}[test.name]); err != nil {
				tools.Missing(t, "%s is not installed: npm ci", test.name)
			}
			for browser, open := range tools.Browsers {
				t.Run(browser, func(t *testing.T) {
					t.Parallel()
					s := &site{t: t, addr: "127.0.0.1:" + tools.FreePort(t), name: test.name, event: test.event, reports: tools.NewReports[report](t)}
					s.start()
					line := tools.Nginx(t, s.addr)
					open(t, line.URL)
					page := s.reports.WaitFor("the page", func(r report) bool { return r.Loaded > 0 }).Loaded
					s.show(10)

					s.stop()
					s.n++
					s.start()
					s.show(10)

					line.Cut()
					s.n++
					s.stop()
					s.start()
					time.Sleep(10 * time.Second)
					if refused := line.Mend(); refused < 2 {
						t.Errorf("nginx answered 502 %d times, want the page to have come back more often", refused)
					}
					got := s.show(10)

					if got.Loaded != page {
						t.Error("the page was loaded anew")
					}
					var want []int
					for n := range s.n {
						want = append(want, n+1)
					}
					if !slices.Equal(got.Numbers, want) {
						t.Errorf("got %v, want %v", got.Numbers, want)
					}
					if !slices.Equal(got.Texts, []string{text}) {
						t.Errorf("got texts %q, want %q", got.Texts, text)
					}
				})
			}
		})
	}
}

// A report is what a page shows in its list.
type report struct {
	Numbers []int
	Texts   []string // the different ones
	Loaded  float64  // when
}

const reported = `{
	numbers: [...document.querySelectorAll("#list li")].map(li => Number(li.querySelector("b").innerText)),
	texts: [...new Set([...document.querySelectorAll("#list pre")].map(pre => pre.textContent))],
	loaded: performance.timeOrigin,
}`

// A site is a program that can be restarted. Its events have numbers for IDs, and a
// new one begins with what the old one published, as from a log.
type site struct {
	t     *testing.T
	addr  string
	name  string
	event func(n int) sse.Event

	reports *tools.Reports[report]

	n      int // events published so far
	broker *sse.Broker
	stop   func()
}

func (s *site) start() {
	s.t.Helper()
	s.broker = &sse.Broker{Retry: 100 * time.Millisecond}
	for i := range s.n {
		s.publishNumber(i + 1)
	}
	html, err := os.ReadFile(s.name + ".html")
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", page.Handler(string(html)+s.reports.Script(reported)))
	mux.Handle("/npm/", http.StripPrefix("/npm/", http.FileServer(http.Dir("../node_modules"))))
	mux.HandleFunc("/react.js", func(w http.ResponseWriter, r *http.Request) {
		result := api.Build(api.BuildOptions{
			EntryPoints: []string{"react.jsx"}, Bundle: true, JSX: api.JSXAutomatic,
			Define: map[string]string{"process.env.NODE_ENV": `"development"`},
		})
		if len(result.Errors) > 0 {
			s.t.Errorf("%+v", result.Errors)
			return
		}
		w.Header().Set("Content-Type", "text/javascript")
		w.Write(result.OutputFiles[0].Contents)
	})
	broker := s.broker
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		if sse.LastEventID(r) == "" { // the page may come when the first event is there
			r.Header.Set("Last-Event-ID", sse.Earliest)
		}
		broker.Serve(w, r)
	})
	s.serve(mux)
}

func (s *site) serve(handler http.Handler) {
	s.t.Helper()
	ln := tools.Listen(s.t, s.addr)
	srv := &http.Server{Handler: handler}
	go srv.Serve(ln)
	s.stop = func() { srv.Close() }
	s.t.Cleanup(s.stop)
}

// show publishes so many events, and waits until the page shows the last of them.
func (s *site) show(n int) report {
	s.t.Helper()
	for range n {
		s.n++
		s.publishNumber(s.n)
	}
	return s.reports.WaitFor(fmt.Sprintf("event %d", s.n), func(r report) bool {
		return len(r.Numbers) > 0 && r.Numbers[len(r.Numbers)-1] == s.n
	})
}

func (s *site) publishNumber(n int) {
	e := s.event(n)
	e.ID = strconv.Itoa(n)
	if _, err := s.broker.Publish(e); err != nil {
		s.t.Error(err)
	}
}
