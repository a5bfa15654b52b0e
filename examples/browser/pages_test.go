package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

// Every page goes on by itself, with nothing lost or doubled, when nginx in front of
// its server answers 502 for ten seconds. A page of a state has the newest of each key
// then. For the pages of examples/interop, tests there say the same.
func TestPagesAfterBadGateway(t *testing.T) {
	const connected = `document.querySelector("#state")?.textContent == "connected" || document.querySelectorAll(".open .state").length == 2`
	const pause = `new Promise(done => setTimeout(done, %d))`
	everyBrowser(t, func(t *testing.T, open func(*testing.T, string) *page) {
		tests := []struct {
			name string
			args []string

			// What has the page do something; what it shows then, in an array of numbers
			// that grow by one; and how many that are at least once it has gone on.
			begin, shown string
			want         int
			places       func(t *testing.T, serverURL string) map[int]int // of what is shown, if that is no number

			// state is what the page shows of each key, in an object of numbers, if the
			// page has the newest of each only: then what is shown grows by any number.
			state string
			key   func(data []byte) (key string, n int, err error) // of an event
			keys  int

			server string
			backs  []*line
			page   *page
		}{
			{name: "clock", args: []string{"-every=100ms"}, begin: `0`,
				shown: `[...document.querySelectorAll("#ticks li")].reverse().map(li => Number(li.dataset.n))`, want: 115},
			{name: "chat", begin: `document.querySelector("#name").value = "Ann",
					document.querySelector("#name").dispatchEvent(new Event("change")), 0`,
				shown: `[...document.querySelectorAll("#messages li")].map(li => Number(li.lastChild.data))`, want: 50},
			{name: "progress", args: []string{"-step=20ms"}, begin: `window.seen = [], window.parse = JSON.parse, JSON.parse = text => {
					const v = parse(text)
					if (v?.id === 2 && v.done > 0) seen.push(v.done) // and not what is drawn, which may leave out a step
					return v
				}, document.querySelector("[data-start='2']").click(), 0`,
				shown: `seen.at(-1) === 800 ? seen : []`, want: 1,
				state: `Object.fromEntries([...document.querySelectorAll("li")].map(li => [li.id, li.querySelector("progress").value]))`,
				key: func(data []byte) (string, int, error) {
					var job struct{ ID, Done int }
					err := json.Unmarshal(data, &job)
					return fmt.Sprint("job-", job.ID), job.Done, err
				}, keys: 4},
			{name: "dashboard", args: []string{"-every=100ms"}, begin: `window.times = [], window.parse = JSON.parse, JSON.parse = text => {
					const v = parse(text)
					if (v?.time) times.push(v.time)
					return v
				}, 0`,
				shown: `times`, want: 120, places: sampleTimes},
			{name: "prices", args: []string{"-every=500ms"}, begin: `window.numbers = [], window.parse = JSON.parse, JSON.parse = text => {
					const v = parse(text)
					if (v?.symbol) numbers.push(v.n)
					return v
				}, 0`,
				shown: `numbers`, want: 5,
				state: `Object.fromEntries([...document.querySelectorAll("tbody tr")].map(tr => [tr.dataset.symbol, Number(tr.dataset.n)]))`,
				key: func(data []byte) (string, int, error) {
					var price struct {
						N      int
						Symbol string
					}
					err := json.Unmarshal(data, &price)
					return price.Symbol, price.N, err
				}, keys: 50},
			// What both of its clients show.
			{name: "redis", begin: `0`, shown: `(all => {
					const from = Math.max(...all.map(a => a[0])), to = Math.min(...all.map(a => a.at(-1)))
					const [a, b] = all.map(a => a.filter(n => n >= from && n <= to))
					return a.join() === b.join() ? a : [...a, ...b]
				})([...document.querySelectorAll("ol")].map(list => [...list.children].reverse().map(li => Number(li.lastChild.textContent))))`, want: 115},
			// Its text has 179 words with this prompt.
			{name: "tokens", args: []string{"-pace=100ms"}, begin: `document.querySelector("#prompt").value = "12 13 14 15 16", document.querySelector("#button").click()`,
				shown: `(text => text.endsWith("command line.") ? text.split(" ").map((_, i) => i) : [])(document.querySelector("p.done")?.textContent ?? "")`,
				want:  179},
		}
		for i := range tests {
			test := &tests[i]
			url := ""
			if test.name == "redis" {
				test.server, test.backs, url = startNodes(t)
			} else {
				test.server = start(t, test.name, test.args...).URL
				test.backs = []*line{newLine(t, test.server)}
				url = behindNginx(t, test.backs[0].URL).URL
			}
			switch test.name {
			case "chat":
				defer talk(t, test.server+"/rooms/lobby/messages", "text", "name", "Bob")()
			case "redis":
				defer talk(t, test.server+"/publish", "data", "topic", "news")()
			}
			test.page = open(t, url)
			if test.name == "tokens" {
				test.page.waitFor(`document.readyState == "complete"`)
			} else {
				test.page.waitFor(connected)
			}
			test.page.run(test.begin)
			test.page.run(`window.samePage = true`)
		}
		tests[0].page.run(fmt.Sprintf(pause, 1500))
		for _, test := range tests {
			for _, back := range test.backs {
				back.cut()
			}
		}
		tests[0].page.run(fmt.Sprintf(pause, 10_000))
		for _, test := range tests {
			if state := test.page.text(`#state, .state, .writing + small`); state == "" || eval[bool](test.page, connected) {
				t.Errorf("%s: while it is cut off, the page says %q", test.name, state)
			}
			for _, back := range test.backs {
				back.mend()
			}
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
				if got[i+1] != got[i]+1 && (test.key == nil || got[i+1] <= got[i]) {
					t.Fatalf("%s: after %d the page got %d, of %v", test.name, got[i], got[i+1], got)
				}
			}
			if test.key != nil {
				sameState(t, test.page, test.server, test.state, test.keys, test.key)
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

// sameState fails the test unless the page shows what a newcomer is sent first, as
// soon as both have got to the same event.
func sameState(t *testing.T, p *page, serverURL, state string, keys int, key func([]byte) (string, int, error)) {
	t.Helper()
	newest := func(state map[string]int) int { return slices.Max(slices.Collect(maps.Values(state))) }
	for end := time.Now().Add(patience); time.Now().Before(end); {
		resp, err := http.Get(serverURL + "/events")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int{}
		for ev, err := range sse.NewDecoder(resp.Body).All() {
			if err != nil {
				t.Fatal(err)
			}
			name, n, err := key([]byte(ev.Data))
			if err != nil {
				t.Fatal(err)
			}
			if want[name] = n; len(want) == keys {
				break
			}
		}
		resp.Body.Close()
		got := eval[map[string]int](p, state)
		if newest(got) != newest(want) {
			continue // something happened meanwhile
		}
		if !maps.Equal(got, want) {
			t.Errorf("the page shows %v, want %v", got, want)
		}
		return
	}
	t.Errorf("the page and a newcomer have not got to the same event in %v", patience)
}

// startNodes starts examples/redis with two nodes, each behind an nginx of its own, and
// returns the address of one node, the lines to both, and the address of the page.
func startNodes(t *testing.T) (serverURL string, backs []*line, pageURL string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sse-redis-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	redis := exec.Command(lookPath(t, "redis-server"), "--port", "0", "--unixsocket", dir+"/socket", "--dir", dir, "--save", "")
	if err := redis.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		redis.Process.Kill()
		redis.Wait()
	})
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(dir + "/socket"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("Redis does not listen")
		}
	}
	server := start(t, "redis", "-redis=unix://"+dir+"/socket", "-addr=localhost:0,localhost:0")
	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	html, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	nodes := regexp.MustCompile(`"127.0.0.1:\d+"`).FindAllString(string(html), -1)
	if len(nodes) != 2 {
		t.Fatalf("the page has the nodes %q, want two", nodes)
	}
	backs = []*line{newLine(t, server.URL), newLine(t, "http://"+strings.Trim(nodes[1], `"`))}
	other := behindNginx(t, backs[1].URL)
	first := behindNginx(t, backs[0].URL, nodes[0], `"$http_host"`, nodes[1], strconv.Quote(strings.TrimPrefix(other.URL, "http://")))
	return server.URL, backs, first.URL
}

// talk posts forms that say a number more than the one before, ten times a second,
// until it is stopped, and another field.
func talk(t *testing.T, address, number, field, value string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var talking sync.WaitGroup
	talking.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			resp, err := http.PostForm(address, url.Values{field: {value}, number: {fmt.Sprint(n)}})
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
