package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed22e817d0/sse"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

func TestAnswerIsCompleteAndPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		events := ask(t, t.Context(), " What\nis  this? ")
		words := len(events) - 1
		if got, want := time.Since(began), time.Duration(words)*(*pace); got != want {
			t.Errorf("%d words took %v, want %v", words, got, want)
		}
		if last := events[words]; last.Type != "done" {
			t.Errorf("the last event is %+v, want one of type done", last)
		}
		var got strings.Builder
		for _, e := range events[:words] {
			if e.Type != "" {
				t.Errorf("got %+v among the words", e)
			}
			got.WriteString(e.Data)
		}
		if want := fmt.Sprintf(text, " What\nis  this? "); got.String() != want {
			t.Errorf("got %q, want %q", got.String(), want)
		}
	})
}

// The server stops at the moment that the client goes.
func TestServerNoticesThatTheClientStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10**pace+*pace/2)
		defer cancel()
		events := ask(t, ctx, "Hello")
		if len(events) != 10 || events[9].Type != "" {
			t.Errorf("got %+v, want 10 words and no more", events)
		}
		if got, want := time.Since(began), 10**pace+*pace/2; got != want {
			t.Errorf("the handler returned after %v, want %v", got, want)
		}
	})
}

func TestBrokenAnswerSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := ":You |:asked: |failed:The answer broke off."
		if got := tell(t, errors.New("out of tokens"), "You ", "asked: "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// A model's tokens may split a character, which arrives as a whole.
func TestCharactersAreNotSplit(t *testing.T) {
	for _, test := range []struct {
		tokens []string
		want   string
	}{
		{[]string{"\xf0\x9f", "\x98\x80!"}, ":😀!|done:"},
		{[]string{"a\xf0", "\x9f", "\x98", "\x80b"}, ":a|:😀b|done:"},
		{[]string{"é\xe2\x82", "\xac"}, ":é|:€|done:"},
		{[]string{"a", "", "b"}, ":a|:|:b|done:"},
		{[]string{"a\xf0\x9f", "b"}, ":a|:\ufffdb|done:"},
		{[]string{"a\xf0\x9f"}, ":a|:\ufffd|done:"}, // the rest never came
		{[]string{"\x98\x80", "\xff"}, ":\ufffd\ufffd|:\ufffd|done:"},
	} {
		if got := tell(t, nil, test.tokens...); got != test.want {
			t.Errorf("%q: got %q, want %q", test.tokens, got, test.want)
		}
	}
}

// tell returns what the client is sent for the tokens and then err.
func tell(t *testing.T, err error, tokens ...string) string {
	t.Helper()
	w := httptest.NewRecorder()
	stream(w, httptest.NewRequest("GET", "/answer", nil), func(yield func(string, error) bool) {
		for _, token := range tokens {
			if !yield(token, nil) {
				return
			}
		}
		if err != nil {
			yield("", err)
		}
	})
	var got []string
	for e, err := range sse.NewDecoder(w.Body).All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Type+":"+e.Data)
	}
	return strings.Join(got, "|")
}

func ask(t *testing.T, ctx context.Context, prompt string) (events []sse.Event) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(ctx, "GET", "/answer?prompt="+url.QueryEscape(prompt), nil)
	answer(w, r)
	for e, err := range sse.NewDecoder(w.Body).All() {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// An answer is written once, and whoever reads it has all of it, however often they
// are cut off.
func TestAnswerIsWrittenOnceAndReadByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLibrary(t.Context())
		w := httptest.NewRecorder()
		l.handler().ServeHTTP(w, httptest.NewRequest("POST", "/answers?prompt=Hello", nil))
		url := w.Header().Get("Location")
		if w.Code != http.StatusCreated || url == "" {
			t.Fatalf("got status %d and location %q", w.Code, url)
		}
		// read reads for so long, from lastEventID on.
		read := func(lastEventID string, stay time.Duration) (words, newID string, last sse.Event) {
			ctx, cancel := context.WithTimeout(t.Context(), stay)
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, "GET", url, nil)
			r.Header.Set("Last-Event-ID", lastEventID)
			w := httptest.NewRecorder()
			l.handler().ServeHTTP(w, r)
			decoder := sse.NewDecoder(w.Body)
			for e, err := range decoder.All() {
				if err != nil {
					t.Fatal(err)
				}
				if last = e; e.Type == "" {
					words += e.Data
				}
			}
			return words, decoder.LastEventID(), last
		}
		first, id, _ := read("", 20**pace+*pace/2)
		then, id, _ := read(id, *pace)
		time.Sleep(10 * *pace)
		rest, id, last := read(id, time.Hour)
		if got, want := first+then+rest, fmt.Sprintf(text, "Hello"); got != want || last.Type != "end" {
			t.Errorf("got %q and then %+v, want %q and an event end", got, last, want)
		}
		if got, _, last := read("", time.Second); got != fmt.Sprintf(text, "Hello") || last.Type != "end" {
			t.Errorf("read afterwards: got %q and then %+v", got, last)
		}
		r := httptest.NewRequest("GET", url, nil)
		r.Header.Set("Last-Event-ID", id)
		w = httptest.NewRecorder()
		if l.handler().ServeHTTP(w, r); w.Code != http.StatusNoContent {
			t.Errorf("asked again with the last ID: got status %d, want 204", w.Code)
		}
		if n := len(strings.Fields(first)); n < 15 || n > 21 {
			t.Errorf("got %d words in the time of 20", n)
		}
	})
}

func TestAnswerIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLibrary(t.Context())
		request := func(method, url string) *httptest.ResponseRecorder {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			w := httptest.NewRecorder()
			l.handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, url, nil))
			return w
		}
		url := request("POST", "/answers?prompt=Hello").Header().Get("Location")
		time.Sleep(5**pace + *pace/2)
		if got := request("DELETE", url).Code; got != http.StatusNoContent {
			t.Errorf("got status %d, want 204", got)
		}
		if body := request("GET", url).Body.String(); strings.Count(body, "\nid: ") != 8 || !strings.Contains(body, "event: failed") {
			t.Errorf("got %q, want the prompt, five words, and an event failed", body)
		}
		for _, method := range []string{"GET", "DELETE"} {
			if got := request(method, "/answers/another").Code; got != http.StatusGone {
				t.Errorf("%s of an answer that is not there: got status %d, want 410", method, got)
			}
		}
	})
}

// As the program ends, an answer that is being written breaks off, and none begins.
func TestNoAnswerIsWrittenAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := newLibrary(ctx)
		ask := func() {
			l.handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/answers?prompt=Hello", nil))
		}
		ask()
		time.Sleep(3**pace + *pace/2)
		cancel()
		l.finish()
		if got := l.broker.Stats().Published; got != 5 {
			t.Errorf("got %d events, want the prompt, three words and an event failed", got)
		}
		ask()
		synctest.Wait()
		if got := l.broker.Stats().Published; got != 6 {
			t.Errorf("asked after the end: got %d events, want the prompt more", got)
		}
	})
}
