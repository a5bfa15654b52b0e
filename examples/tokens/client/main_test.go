package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

func TestAsk(t *testing.T) {
	words := []sse.Event{{Data: "Two "}, {Data: "words\n\nand "}, {Data: "a third."}}
	for _, test := range []struct {
		name   string
		status int
		events []sse.Event
		want   string
		err    string
	}{
		{"complete", 200, append(words[:3:3], sse.Event{Type: "done"}, sse.Event{Data: "no more"}), "Two words\n\nand a third.\n", ""},
		{"other types", 200, []sse.Event{{Type: "news", Data: "?"}, words[0], {Type: "done"}}, "Two \n", ""},
		{"broken off", 200, words, "Two words\n\nand a third.\n", "the stream ended before the answer did"},
		{"failed", 200, append(words[:1:1], sse.Event{Type: "failed", Data: "No more today."}), "Two \n", "No more today."},
		{"refused", 503, nil, "", "the server says 503 Service Unavailable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := r.FormValue("prompt"); r.URL.Path != "/answer" || got != "a & b" {
					t.Errorf("got path %s and prompt %q", r.URL.Path, got)
				}
				if test.status != 200 {
					w.WriteHeader(test.status)
					return
				}
				out, err := sse.NewWriter(w, r)
				if err == nil {
					err = out.Send(test.events...)
				}
				if err != nil {
					t.Error(err)
				}
			}))
			defer server.Close()
			var got strings.Builder
			err := ask(t.Context(), &got, strings.TrimPrefix(server.URL, "http://"), "a & b")
			if got.String() != test.want {
				t.Errorf("got %q, want %q", got.String(), test.want)
			}
			if err == nil && test.err != "" || err != nil && err.Error() != test.err {
				t.Errorf("got error %v, want %q", err, test.err)
			}
		})
	}
}

// To stop the client is to close the connection.
func TestStopIsNoticed(t *testing.T) {
	noticed := make(chan bool, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if out, err := sse.NewWriter(w, r); err == nil {
			out.Send(sse.Event{Data: "word"})
		}
		select {
		case <-r.Context().Done():
			noticed <- true
		case <-time.After(10 * time.Second): // or else a client that did not stop would wait for ever
			noticed <- false
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	stopAfterWord := writerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	})
	if err := ask(ctx, stopAfterWord, strings.TrimPrefix(server.URL, "http://"), "Hello"); err == nil {
		t.Error("got no error from an answer that was stopped")
	}
	if !<-noticed {
		t.Error("the server did not notice")
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
