package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed22e817d0/sse"
)

func TestAsk(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []string // one for each connection; "204" is the status
		want    string
		err     string
	}{
		{"done", []string{"data: Hello \n\ndata: world\n\nevent: done\ndata\n\n"}, "Hello world\n", ""},
		{"done after a cut", []string{"retry: 1\nid: 1\ndata: Hello \n\n", "id: 2\ndata: world\n\nevent: done\ndata\n\n"}, "Hello world\n", ""},
		{"ended", []string{"retry: 1\nid: 1\ndata: Hello\n\n", "204"}, "Hello\n", ""},
		{"cut", []string{"retry: 1\ndata: Hello\n\n", "data: Hello again\n\n"}, "Hello\n", "the stream ended before the answer did: EOF"},
		{"failed", []string{"data: Hello\n\nevent: failed\ndata: sorry\n\n"}, "Hello\n", "sorry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := r.FormValue("prompt"); got != "who?" {
					t.Errorf("got the prompt %q, want %q", got, "who?")
				}
				n++
				if tt.answers[n-1] == "204" {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				w.Header().Set("Content-Type", "text/event-stream")
				w.Write([]byte(tt.answers[n-1]))
			}))
			defer srv.Close()
			var out strings.Builder
			err := ask(t.Context(), &out, strings.TrimPrefix(srv.URL, "http://"), "who?")
			if got := out.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if err == nil && tt.err != "" || err != nil && err.Error() != tt.err {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestStoppedAnswer(t *testing.T) {
	left := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := sse.NewWriter(w, r)
		if err != nil {
			t.Error(err)
		}
		out.Send(sse.Event{Data: "Hello"})
		<-r.Context().Done()
		close(left)
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ask(ctx, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }), strings.TrimPrefix(srv.URL, "http://"), "who?")
	<-left
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
