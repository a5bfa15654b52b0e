package tools

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Browsers open a page, which stays open until the test ends. A Reports has what it
// shows.
var Browsers = map[string]func(t testing.TB, url string){
	"Chromium": func(t testing.TB, url string) { t.Helper(); OpenPage(t, url) },
	"Firefox":  openFirefox,
}

// Firefox is quiet about itself.
const firefoxPrefs = `
	user_pref("app.normandy.enabled", false);
	user_pref("app.update.disabledForTesting", true);
	user_pref("browser.region.network.url", "");
	user_pref("browser.safebrowsing.malware.enabled", false);
	user_pref("browser.safebrowsing.phishing.enabled", false);
	user_pref("browser.shell.checkDefaultBrowser", false);
	user_pref("browser.startup.homepage_override.mstone", "ignore");
	user_pref("datareporting.policy.dataSubmissionEnabled", false);
	user_pref("network.captive-portal-service.enabled", false);
	user_pref("network.connectivity-service.enabled", false);
	user_pref("services.settings.server", "http://127.0.0.1:1");
	user_pref("toolkit.telemetry.enabled", false);
	user_pref("trailhead.firstrun.didSeeAboutWelcome", true);
`

func openFirefox(t testing.TB, url string) {
	t.Helper()
	home, err := os.MkdirTemp("", "sse-firefox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) }) // Firefox has ended by then, since Start comes later
	if err := os.WriteFile(filepath.Join(home, "user.js"), []byte(firefoxPrefs), 0o644); err != nil {
		t.Fatal(err)
	}
	Start(t, home, "firefox-esr", "--headless", "--no-remote", "--profile", home, url)
}

// Reports has what pages say about themselves, in the browser's own words: no
// protocol drives the browser.
type Reports[T any] struct {
	t    testing.TB
	url  string
	news chan struct{} // has a token when there is something to look at

	mu   sync.Mutex // guards the field below
	last T
}

// NewReports starts a server of its own for the reports.
func NewReports[T any](t testing.TB) *Reports[T] {
	r := &Reports[T]{t: t, news: make(chan struct{}, 1)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		var report T
		if err := json.NewDecoder(req.Body).Decode(&report); err != nil {
			t.Errorf("the page reports: %v", err)
			return
		}
		r.mu.Lock()
		r.last = report
		r.mu.Unlock()
		select {
		case r.news <- struct{}{}:
		default:
		}
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	r.url = server.URL
	return r
}

// Script is to be added to a page. It reports the value of a JavaScript expression
// whenever that is another one.
func (r *Reports[T]) Script(js string) string {
	return fmt.Sprintf(`<script>
	(async () => {
		for (let last; ; await new Promise(done => setTimeout(done, 50))) try {
			const now = JSON.stringify(%s)
			if (now !== last) await fetch(%q, {method: "POST", body: now})
			last = now
		} catch {} // not there yet, or the report did not arrive
	})()
</script>`, js, r.url)
}

// WaitFor returns the first report, from the present one on, that is as wanted.
func (r *Reports[T]) WaitFor(what string, wanted func(T) bool) T {
	r.t.Helper()
	for timeout := time.After(patience); ; {
		r.mu.Lock()
		last := r.last
		r.mu.Unlock()
		if wanted(last) {
			return last
		}
		select {
		case <-r.news:
		case <-timeout:
			r.t.Fatalf("waiting for %s; the page reports %+v", what, last)
		}
	}
}
