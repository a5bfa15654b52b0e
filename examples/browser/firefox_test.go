package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Firefox is driven without a protocol of its own. Each page under test loads a
// script from the test's own server, which asks that server what to evaluate, and
// reports what came of it. See firefoxTag.

const firefoxScript = `
	const report = async (url, body) => (await fetch(url, {method: "POST", body})).text()
	const errors = []
	addEventListener("error", e => errors.push(e.message))
	addEventListener("unhandledrejection", e => errors.push(String(e.reason)))
	const first = "%s", server = location.origin === first ? first : window.name // which outlasts a reload
	if (!server) await new Promise(() => {}) // not in Firefox
	window.pause = () => fetch(server + "/pause") // the timers of background tabs are slow
	for (let said = "{}"; ;) {
		let n, js
		try {
			[n, js] = JSON.parse(await report(server, said))
		} catch {
			said = "{}" // if the answer did not arrive, the question will come again
			continue
		}
		try {
			said = js ? JSON.stringify({answered: n, value: await (0, eval)(js), uncaught: errors.splice(0)}) : "{}"
		} catch (err) {
			said = JSON.stringify({answered: n, error: String(err)})
		}
	}`

// Firefox is quiet about itself, and lets a page open and close others.
const firefoxPrefs = `
	user_pref("app.normandy.enabled", false);
	user_pref("app.update.disabledForTesting", true);
	user_pref("browser.region.network.url", "");
	user_pref("browser.safebrowsing.malware.enabled", false);
	user_pref("browser.safebrowsing.phishing.enabled", false);
	user_pref("browser.shell.checkDefaultBrowser", false);
	user_pref("browser.startup.homepage_override.mstone", "ignore");
	user_pref("datareporting.policy.dataSubmissionEnabled", false);
	user_pref("dom.allow_scripts_to_close_windows", true);
	user_pref("dom.disable_open_during_load", false);
	user_pref("dom.min_background_timeout_value", 10);
	user_pref("dom.popup_maximum", 1000);
	user_pref("dom.timeout.enable_budget_timer_throttling", false);
	user_pref("network.http.active_tab_priority", false);
	user_pref("network.http.throttle.enable", false);
	user_pref("network.captive-portal-service.enabled", false);
	user_pref("network.connectivity-service.enabled", false);
	user_pref("services.settings.server", "http://127.0.0.1:1");
	user_pref("toolkit.telemetry.enabled", false);
	user_pref("trailhead.firstrun.didSeeAboutWelcome", true);
`

// A firefoxTab is a page in Firefox. It has a server of its own, since Firefox opens
// six connections to each and no more.
type firefoxTab struct {
	server   *httptest.Server
	commands chan string        // what it is to evaluate next
	results  chan firefoxResult // what came of it
	pending  string             // a command that was not answered yet: a reload loses it
	number   int                // of that command; an answer may come twice
}

func newFirefoxTab() *firefoxTab {
	tab := &firefoxTab{commands: make(chan string), results: make(chan firefoxResult)}
	tab.server = httptest.NewServer(tab.handler())
	return tab
}

func (tab *firefoxTab) stop() { tab.server.Config.Close() } // does not wait, as tab.server.Close would

type firefoxResult struct {
	Answered int // the number of the command; 0: none
	Value    json.RawMessage
	Error    string
	Uncaught []string
}

var quitFirefox func() // once Firefox runs

// firefox starts Firefox, which all tests share, and returns its first tab, which
// opens the others.
var firefox = sync.OnceValues(func() (*firefoxTab, error) {
	path, err := exec.LookPath("firefox-esr")
	if err != nil {
		return nil, err
	}
	home, err := os.MkdirTemp("", "sse-firefox-")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(home, "user.js"), []byte(firefoxPrefs), 0o644); err != nil {
		return nil, err
	}
	launcher := newFirefoxTab()
	cmd := exec.Command(path, "--headless", "--no-remote", "--profile", home, launcher.server.URL)
	cmd.Env = append(os.Environ(), "HOME="+home)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	quitFirefox = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		launcher.stop()
		os.RemoveAll(home)
	}
	return launcher, nil
})

// firefoxTag is what a page must hold to be driven, "" if there is no Firefox.
func firefoxTag() string {
	launcher, err := firefox()
	if err != nil {
		return ""
	}
	return `<script type="module" src="` + launcher.server.URL + `/script"></script>`
}

func (tab *firefoxTab) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><script type="module" src="/script"></script>`)
	})
	mux.HandleFunc("GET /script", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		fmt.Fprintf(w, firefoxScript, tab.server.URL)
	})
	mux.HandleFunc("GET /pause", func(http.ResponseWriter, *http.Request) { time.Sleep(10 * time.Millisecond) })
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		var result firefoxResult
		if err := json.NewDecoder(r.Body).Decode(&result); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		js := tab.exchange(r.Context(), result)
		json.NewEncoder(w).Encode([]any{tab.number, js})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*") // pages of all origins ask
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// exchange takes the result of the last command and returns the next. It is called
// in one request of the tab after another.
func (tab *firefoxTab) exchange(ctx context.Context, result firefoxResult) (js string) {
	switch {
	case tab.pending != "" && result.Answered == tab.number:
		tab.pending = ""
		select {
		case tab.results <- result:
		case <-time.After(patience): // the test has given up
		}
	case tab.pending != "":
		return tab.pending // the page was loaded anew meanwhile
	}
	select {
	case tab.pending = <-tab.commands:
		tab.number++
	case <-ctx.Done():
	}
	return tab.pending
}

// do evaluates an expression, and returns an error if there is no answer in time.
func (tab *firefoxTab) do(js string) (result firefoxResult, err error) {
	timeout := time.After(patience)
	select {
	case tab.commands <- js:
	case <-timeout:
		return result, errors.New("the page asks for no commands")
	}
	select {
	case result = <-tab.results:
	case <-timeout:
		return result, errors.New("the page does not answer")
	}
	if result.Error != "" {
		err = errors.New(result.Error)
	}
	return result, err
}

// close closes the tab, which does not answer any more.
func (tab *firefoxTab) close() {
	select {
	case tab.commands <- "window.close()":
	case <-time.After(time.Second): // it was closed before
	}
}

func (tab *firefoxTab) eval(t *testing.T, js string, v any) {
	t.Helper()
	result, err := tab.do(js)
	if err == nil && v != nil && result.Value != nil {
		err = json.Unmarshal(result.Value, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	if len(result.Uncaught) > 0 {
		t.Errorf("uncaught exceptions: %q", result.Uncaught)
	}
}

func (tab *firefoxTab) waitFor(t *testing.T, js string) {
	t.Helper()
	var text string
	tab.eval(t, fmt.Sprintf(`new Promise(done => {
		const end = Date.now() + %d
		const look = () => {
			let found = false
			try { found = (0, eval)(%s) } catch {}
			if (found) done("")
			else if (Date.now() > end) done(document.body.innerText || "nothing")
			else pause().then(look)
		}
		look()
	})`, patience.Milliseconds()*9/10, quoteJS(js)), &text)
	if text != "" {
		t.Fatalf("waiting for %s; the page shows:\n%s", js, text)
	}
}

// openFirefox opens url, of a page that holds firefoxTag, in a tab of Firefox.
func openFirefox(t *testing.T, url string) *page {
	t.Helper()
	launcher, err := firefox()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") != "true" {
		t.Skip("these tests need Firefox: apt-get install firefox-esr")
	}
	if err != nil {
		t.Fatal(err)
	}
	tab := newFirefoxTab()
	t.Cleanup(tab.stop)
	opening.Lock()
	_, err = launcher.do(fmt.Sprintf("window.open(%s, %s, 'noopener'), 0", quoteJS(url), quoteJS(tab.server.URL)))
	opening.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	p := &page{t: t, tab: tab, close: func() { once.Do(tab.close) }}
	t.Cleanup(p.close)
	return p
}

var opening sync.Mutex // held while the first tab of Firefox opens another

func quoteJS(s string) string {
	quoted, _ := json.Marshal(s)
	return string(quoted)
}

// everyBrowser runs the test in each browser. A page opened in Firefox must hold
// firefoxTag.
func everyBrowser(t *testing.T, test func(t *testing.T, open func(*testing.T, string) *page)) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T, string) *page{"Chromium": open, "Firefox": openFirefox} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

func TestFirefox(t *testing.T) {
	t.Parallel()
	p := openFirefox(t, plain.serve(t, http.NotFoundHandler()).URL)
	if got := eval[string](p, `navigator.userAgent`); !strings.Contains(got, "Firefox") {
		t.Errorf("got user agent %q", got)
	}
	p.waitFor(`document.readyState === "complete"`)
	p.run(`setTimeout(() => location.reload(), 10)`)
	if got, want := eval[[]int](p, `new Promise(done => setTimeout(() => done([1, 2]), 100))`), []int{1, 2}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
