package page

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	const html = `<!doctype html><script type="module">import { follow } from "./follow.js"</script>`
	handler := Handler(html)
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	index := get("/")
	if got, want := index.Body.String(), strings.Replace(html, "./follow.js", Script, 1); got != want {
		t.Errorf("got the page %q, want %q", got, want)
	}
	if got, want := index.Header().Get("Content-Type"), "text/html; charset=utf-8"; got != want {
		t.Errorf("got the page as %s, want %s", got, want)
	}
	js := get(Script)
	if js.Body.String() != script {
		t.Errorf("got %d bytes at %s, want the script of %d", js.Body.Len(), Script, len(script))
	}
	if got := js.Header().Get("Content-Type"); !strings.HasPrefix(got, "text/javascript") {
		t.Errorf("got the script as %s, want text/javascript", got)
	}
	if got, want := js.Header().Get("Cache-Control"), "immutable"; !strings.Contains(got, want) {
		t.Errorf("got Cache-Control %q for the script, want it to hold %q", got, want)
	}
	for _, path := range []string{"/follow.js", "/follow.000000000000.js", "/index.html", "/elsewhere"} {
		if got := get(path).Code; got != http.StatusNotFound {
			t.Errorf("%s: got status %d, want 404", path, got)
		}
	}
}

// The script stays small enough to be read before it is copied.
func TestScriptIsShort(t *testing.T) {
	if got := strings.Count(script, "\n"); got >= 160 {
		t.Errorf("follow.js has %d lines, want fewer than 160", got)
	}
}
