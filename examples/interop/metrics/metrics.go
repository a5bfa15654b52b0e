// Package metrics shows a Broker's figures to Prometheus.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed22e817d0/sse"
)

// Collector returns a collector of the broker's figures, which are read at each
// scrape.
func Collector(broker *sse.Broker) prometheus.Collector { return collector{broker} }

type collector struct{ broker *sse.Broker }

var metrics = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(sse.Stats) float64
}{
	{desc("clients", "Clients being served."), prometheus.GaugeValue, func(s sse.Stats) float64 { return float64(s.Clients) }},
	{desc("subscribers", "Running loops over Subscribe."), prometheus.GaugeValue, func(s sse.Stats) float64 { return float64(s.Subscribers) }},
	{desc("topics", "Topics with a subscriber or an event in the history."), prometheus.GaugeValue, func(s sse.Stats) float64 { return float64(s.Topics) }},
	{desc("keys", "Keys that are set."), prometheus.GaugeValue, func(s sse.Stats) float64 { return float64(s.Keys) }},
	{desc("published_total", "Events published."), prometheus.CounterValue, func(s sse.Stats) float64 { return float64(s.Published) }},
	{desc("delivered_total", "Events handed out to clients and subscribers."), prometheus.CounterValue, func(s sse.Stats) float64 { return float64(s.Delivered) }},
	{desc("replayed_total", "Events delivered that were published before the client came."), prometheus.CounterValue, func(s sse.Stats) float64 { return float64(s.Replayed) }},
	{desc("too_slow_total", "Clients disconnected because they read too slowly."), prometheus.CounterValue, func(s sse.Stats) float64 { return float64(s.TooSlow) }},
	{desc("turned_away_total", "Clients refused because of MaxClients."), prometheus.CounterValue, func(s sse.Stats) float64 { return float64(s.TurnedAway) }},
	{desc("gaps_total", "Times a client's position was not in the history."), prometheus.CounterValue, func(s sse.Stats) float64 { return float64(s.Gaps) }},
}

func desc(name, help string) *prometheus.Desc { return prometheus.NewDesc("sse_"+name, help, nil, nil) }

// Describe implements [prometheus.Collector].
func (c collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

// Collect implements [prometheus.Collector].
func (c collector) Collect(values chan<- prometheus.Metric) {
	stats := c.broker.Stats() // once, so that the figures fit together
	for _, m := range metrics {
		values <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(stats))
	}
}
