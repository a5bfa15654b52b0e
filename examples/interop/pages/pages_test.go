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
// connections are cut, and when a proxy answers 502 for it for a while.
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
			s := &site{t: t, addr: "127.0.0.1:" + tools.FreePort(t), name: test.name, event: test.event}
			s.start()
			p := tools.OpenPage(t, "http://"+s.addr)
			const shown = `[...document.querySelectorAll("#list li")].map(li => Number(li.querySelector("b").innerText))`
			publish := func(n int) {
				for range n {
					s.publish()
				}
				p.WaitFor(fmt.Sprintf(`%s.at(-1) === %d`, shown, s.n))
			}
			publish(10)

			s.stop()
			s.n++
			s.start()
			publish(10)

			s.stop()
			refused := s.badGateway()
			s.n++
			for range 2 {
				select {
				case <-refused:
				case <-time.After(2 * time.Minute):
					t.Fatal("the page did not come back to a 502")
				}
			}
			s.stop()
			s.start()
			publish(10)

			var want []int
			for n := range s.n {
				want = append(want, n+1)
			}
			if got, err := tools.Eval[[]int](p, shown); err != nil || !slices.Equal(got, want) {
				t.Errorf("got %v, %v, want %v", got, err, want)
			}
			const texts = `[...new Set([...document.querySelectorAll("#list pre")].map(pre => pre.textContent))]`
			if got, err := tools.Eval[[]string](p, texts); err != nil || !slices.Equal(got, []string{text}) {
				t.Errorf("got texts %q, %v, want %q", got, err, text)
			}
		})
	}
}

// A site is a program that can be restarted. Its events have numbers for IDs, and a
// new one begins with what the old one published, as from a log.
type site struct {
	t     *testing.T
	addr  string
	name  string
	event func(n int) sse.Event

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
	mux.Handle("/", page.Handler(string(html)))
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

// badGateway answers in place of the program as a proxy does, and tells refused.
func (s *site) badGateway() (refused chan bool) {
	refused = make(chan bool, 100)
	s.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "bad gateway", http.StatusBadGateway)
		refused <- true
	}))
	return refused
}

func (s *site) serve(handler http.Handler) {
	s.t.Helper()
	ln := tools.Listen(s.t, s.addr)
	srv := &http.Server{Handler: handler}
	go srv.Serve(ln)
	s.stop = func() { srv.Close() }
	s.t.Cleanup(s.stop)
}

func (s *site) publish() {
	s.n++
	s.publishNumber(s.n)
}

func (s *site) publishNumber(n int) {
	e := s.event(n)
	e.ID = strconv.Itoa(n)
	if _, err := s.broker.Publish(e); err != nil {
		s.t.Error(err)
	}
}
