package main

import (
	"context"
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
		events := ask(t, t.Context(), "no \xff UTF-8")
		var got []string
		for _, e := range events {
			got = append(got, e.Type+":"+e.Data)
		}
		want := ":You |:asked: |:“no |failed:The answer broke off."
		if got := strings.Join(got, "|"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
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
