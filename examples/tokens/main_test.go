package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
