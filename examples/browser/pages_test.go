package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// Every page goes on by itself, with nothing lost or doubled, when nginx in front of
// its server answers 502 for ten seconds.
func TestPagesAfterBadGateway(t *testing.T) {
	const pause = `new Promise(done => setTimeout(done, %d))`
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		tests := []struct {
			name string
			args []string

			// What has the page do something; what it shows then, in an array of numbers
			// that grow by step; and how many that are at least once it has gone on.
			begin, shown string
			step         int
			want         int
			places       func(t *testing.T, serverURL string) map[int]int // of what is shown, if that is no number

			server string
			back   *line
			page   *page
		}{
			{name: "clock", args: []string{"-every=100ms"}, begin: `0`,
				shown: `[...document.querySelectorAll("#ticks li")].reverse().map(li => Number(li.dataset.n))`, step: 1, want: 115},
			{name: "chat", begin: `document.querySelector("#name").value = "Ann",
					document.querySelector("#name").dispatchEvent(new Event("change")), 0`,
				shown: `[...document.querySelectorAll("#messages li")].map(li => Number(li.lastChild.data))`, step: 1, want: 50},
			{name: "progress", args: []string{"-step=20ms"}, begin: `window.seen = [], window.parse = JSON.parse, JSON.parse = text => {
					const v = parse(text)
					if (v?.id === 2 && v.done > 0) seen.push(v.done) // and not what is drawn, which may leave out a step
					return v
				}, document.querySelector("[data-start='2']").click(), 0`,
				shown: `seen.at(-1) === 800 ? seen.filter((n, i) => n < 800 || i === seen.indexOf(800)) : []`, step: 1, want: 1},
			{name: "dashboard", args: []string{"-every=100ms"}, begin: `window.times = [], window.parse = JSON.parse, JSON.parse = text => {
					const v = parse(text)
					if (v?.time) times.push(v.time)
					return v
				}, 0`,
				shown: `times`, step: 1, want: 120, places: sampleTimes},
			// Its text has 179 words with this prompt.
			{name: "tokens", args: []string{"-pace=100ms"}, begin: `document.querySelector("#prompt").value = "12 13 14 15 16", document.querySelector("#button").click()`,
				shown: `(text => text.endsWith("command line.") ? text.split(" ").map((_, i) => i) : [])(document.querySelector("p.done")?.textContent ?? "")`,
				step:  1, want: 179},
		}
		for i := range tests {
			test := &tests[i]
			server := start(t, test.name, test.args...)
			if test.name == "chat" {
				defer talk(t, server.URL)()
			}
			test.server, test.back = server.URL, newLine(t, server.URL)
			test.page = open(t, behindNginx(t, test.back.URL).URL)
			if test.name == "tokens" {
				test.page.waitFor(`document.readyState == "complete"`)
			} else {
				test.page.waitFor(`document.querySelector("#state")?.textContent == "connected"`)
			}
			test.page.run(test.begin)
			test.page.run(`window.samePage = true`)
		}
		tests[0].page.run(fmt.Sprintf(pause, 1500))
		for _, test := range tests {
			test.back.cut()
		}
		tests[0].page.run(fmt.Sprintf(pause, 10_000))
		for _, test := range tests {
			if state := test.page.text(`#state, .writing + small`); state == "connected" || state == "" {
				t.Errorf("%s: while it is cut off, the page says %q", test.name, state)
			}
			test.back.mend()
		}
		for _, test := range tests {
			test.page.waitFor(fmt.Sprintf(`%s.length >= %d`, test.shown, test.want))
			if !eval[bool](test.page, `window.samePage === true`) {
				t.Errorf("%s: the page was loaded anew", test.name)
			}
			got := eval[[]int](test.page, test.shown)
			if test.places != nil {
				places := test.places(t, test.server)
				for i, shown := range got {
					got[i] = places[shown]
				}
				got = slices.DeleteFunc(got, func(place int) bool { return place == 0 }) // too old or too new
			}
			for i := range got[1:] {
				if got[i+1] != got[i]+test.step {
					t.Fatalf("%s: after %d the page got %d, of %v", test.name, got[i], got[i+1], got)
				}
			}
			if test.name == "tokens" && len(got) != test.want {
				t.Errorf("got an answer of %d words, want %d", len(got), test.want)
			}
		}
	})
}

// sampleTimes returns which samples the dashboard has had at which times, from 1 on.
func sampleTimes(t *testing.T, serverURL string) map[int]int {
	t.Helper()
	resp, err := http.Get(serverURL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ev, err := sse.NewDecoder(resp.Body).Decode()
	if err != nil || ev.Type != "samples" {
		t.Fatalf("got event %q, %v, want all samples", ev.Type, err)
	}
	var samples []struct{ Time int }
	if err := json.Unmarshal([]byte(ev.Data), &samples); err != nil {
		t.Fatal(err)
	}
	places := map[int]int{}
	for i, s := range samples {
		places[s.Time] = i + 1
	}
	return places
}

// talk says a number more than the one before, ten times a second, until it is stopped.
func talk(t *testing.T, chatURL string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var talking sync.WaitGroup
	talking.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			resp, err := http.PostForm(chatURL+"/rooms/lobby/messages", url.Values{"name": {"Bob"}, "text": {fmt.Sprint(n)}})
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return func() { cancel(); talking.Wait() }
}
