package metrics

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seed22e817d0/sse"
)

// TestScrape compares what Prometheus would read with what the broker's Stats say.
func TestScrape(t *testing.T) {
	broker := &sse.Broker{MaxClients: 1, History: 1}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(Collector(broker))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	mux.Handle("GET /events", broker)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	defer broker.Shutdown(t.Context())

	// Two events, a client that gets the gap and the second, and one that is refused.
	before := broker.LastEventID()
	broker.Publish(sse.Event{Data: "1"})
	broker.Publish(sse.Event{Data: "2"})
	client := get(t, srv.URL+"/events?lastEventId="+before)
	defer client.Body.Close()
	if ev, err := sse.NewDecoder(client.Body).Decode(); err != nil || ev.Type != "gap" {
		t.Fatalf("got event %v, %v, want a gap", ev, err)
	}
	refused := get(t, srv.URL+"/events")
	io.Copy(io.Discard, refused.Body)
	refused.Body.Close()

	want := map[string]string{
		"sse_clients": "gauge 1", "sse_subscribers": "gauge 0", "sse_topics": "gauge 1", "sse_keys": "gauge 0",
		"sse_published_total": "counter 2", "sse_delivered_total": "counter 2", "sse_replayed_total": "counter 1",
		"sse_too_slow_total": "counter 0", "sse_turned_away_total": "counter 1", "sse_gaps_total": "counter 1",
	}
	resp := get(t, srv.URL+"/metrics")
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (sse_\S+) (\S+)\n\S+ (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		got[m[1]] = m[2] + " " + m[3]
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestEveryFigureIsCollected fails when Stats has a field that is not collected.
func TestEveryFigureIsCollected(t *testing.T) {
	fields := reflect.TypeFor[sse.Stats]()
	var names []string
	for field := range fields.Fields() {
		name := regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(field.Name, func(s string) string {
			return "_" + strings.ToLower(s)
		})
		names = append(names, name[1:])
	}
	if len(names) != len(metrics) {
		t.Errorf("Stats has %d fields, and %d are collected", len(names), len(metrics))
	}
	var text strings.Builder
	for _, m := range metrics {
		text.WriteString(m.desc.String())
	}
	for _, name := range names {
		if !strings.Contains(text.String(), `"sse_`+name+`"`) && !strings.Contains(text.String(), `"sse_`+name+`_total"`) {
			t.Errorf("no metric for %s", name)
		}
	}
}

func get(t *testing.T, url string) *http.Response {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
