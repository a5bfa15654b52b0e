package proxies

import (
	"io"
	"net/http"
	"testing"

	"github.com/seed22e817d0/sse"
)

// TestFinishedIsNotCached: a client that comes back to a finished stream is answered
// 204, by which it stops. A cache that gave this answer to others, who ask at the
// same address without an ID, would keep them from the stream for good. Cache-Control
// prevents that, which is shown by taking it away. The caches look at the path alone, so
// an ID in the query makes no other address.
func TestFinishedIsNotCached(t *testing.T) {
	for _, cache := range []struct {
		name  string
		proxy proxy
		edits []edit
	}{
		{"nginx", nginx, []edit{
			{"\nevents {", "\nuser root;\nevents {"}, // the folder of a test is its owner's
			{"\tserver {", "\tproxy_cache_path cache keys_zone=zone:1m;\n\tserver {"},
			{"proxy_read_timeout", "proxy_cache zone; proxy_cache_key $uri; proxy_cache_valid any 10m; proxy_read_timeout"},
		}},
		{"Varnish", varnish, []edit{
			{"return (pipe);", ""},
			{"sub vcl_recv", "sub vcl_hash {\n\thash_data(regsub(req.url, \"[?].*\", \"\"));\n\treturn (lookup);\n}\n\nsub vcl_recv"},
		}},
	} {
		for _, test := range []struct {
			name         string
			handle       http.HandlerFunc
			query        bool // the ID comes there, not in the header
			cacheControl bool
			want         int // the status for a newcomer
		}{
			{"Serve", serveOnce, false, true, http.StatusOK},
			{"Serve/without Cache-Control", serveOnce, false, false, http.StatusNoContent},
			{"Broker", endedTopic(t), false, true, http.StatusOK},
			{"Broker/without Cache-Control", endedTopic(t), false, false, http.StatusNoContent},
			{"Broker/query", endedTopic(t), true, true, http.StatusOK},
			{"Broker/query/without Cache-Control", endedTopic(t), true, false, http.StatusNoContent},
		} {
			t.Run(cache.name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				s := cache.proxy.start(t, cache.edits...)
				path := s.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !test.cacheControl {
						w = uncontrolled{w}
					}
					test.handle(w, r)
				}))
				get := func(lastEventID string) (status int, events []sse.Event, d *sse.Decoder) {
					t.Helper()
					r, err := http.NewRequestWithContext(t.Context(), "GET", s.urls["HTTP/1.1"]+path, nil)
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Accept", "text/event-stream")
					switch {
					case lastEventID != "" && test.query:
						r.URL.RawQuery = "lastEventId=" + lastEventID
					case lastEventID != "":
						r.Header.Set("Last-Event-ID", lastEventID)
					}
					resp, err := newClient(t, "HTTP/1.1").Do(r)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					d = sse.NewDecoder(resp.Body)
					for ev, err := range d.All() {
						if err != nil && err != io.EOF {
							t.Fatal(err)
						}
						events = append(events, ev)
					}
					return resp.StatusCode, events, d
				}
				// The stream itself may be cached where nothing forbids it, so this one is
				// not asked for first.
				const end = "sse-end"
				for range 2 {
					if status, _, _ := get(end); status != http.StatusNoContent {
						t.Fatalf("with the ID of the end got status %d, want 204", status)
					}
				}
				status, events, d := get("")
				if status != test.want {
					t.Fatalf("without an ID got status %d, want %d", status, test.want)
				}
				if status == http.StatusOK && (len(events) != 2 || events[0].Data != "hello" || d.LastEventID() != end) {
					t.Errorf("got events %v and last ID %q, want hello and the end, and its ID", events, d.LastEventID())
				}
			})
		}
	}
}

// serveOnce serves a stream that is finished for good after one event.
func serveOnce(w http.ResponseWriter, r *http.Request) {
	sse.Serve(w, r, func(yield func(sse.Event, error) bool) {
		if yield(sse.Event{Data: "hello"}, nil) {
			yield(sse.Event{}, sse.ErrEnded)
		}
	})
}

// endedTopic returns a handler that serves a topic which has ended after one event.
func endedTopic(t *testing.T) http.HandlerFunc {
	broker := &sse.Broker{}
	if _, err := broker.Publish(sse.Event{Data: "hello"}, "job"); err != nil {
		t.Fatal(err)
	}
	if err := broker.End("job"); err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) { broker.Serve(w, r, "job") }
}

// uncontrolled is a ResponseWriter that loses the header Cache-Control.
type uncontrolled struct{ http.ResponseWriter }

func (w uncontrolled) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w uncontrolled) WriteHeader(status int) {
	w.Header().Del("Cache-Control")
	w.ResponseWriter.WriteHeader(status)
}
