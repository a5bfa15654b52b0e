package benchmark

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

// burst is how many events are published together.
const burst = 16

// BenchmarkBurst measures delivery over loopback connections: a burst of 16
// events is published whenever all clients have the one before. An operation is
// one burst on its way to all.
func BenchmarkBurst(b *testing.B) {
	for _, size := range []struct{ clients, bytes int }{{100, 100}, {1000, 100}, {1000, 1000}, {10_000, 100}} {
		for _, lib := range libraries {
			b.Run(fmt.Sprintf("lib=%s/clients=%d/bytes=%d", lib.name, size.clients, size.bytes), func(b *testing.B) {
				s := newSite(b, lib, 0, size.bytes)
				s.connect(size.clients)
				s.bursts(burst, times(3)) // which fill what is filled only once
				cpu := meter.CPU()
				s.bursts(burst, b.Loop)
				cpu = meter.CPU() - cpu
				s.check(s.await(), 0)
				reportCPU(b, cpu, b.N*burst*size.clients, "delivery")
			})
		}
	}
}

// BenchmarkSteady measures delivery of single events at a fixed rate, and how
// long they are on their way. An operation is one event to all.
func BenchmarkSteady(b *testing.B) {
	const (
		clients = 1000
		rate    = 20 // a second
	)
	for _, lib := range libraries {
		b.Run(fmt.Sprintf("lib=%s/clients=%d/rate=%d", lib.name, clients, rate), func(b *testing.B) {
			s := newSite(b, lib, 0, 100)
			s.connect(clients)
			if err := s.clients.Time(true); err != nil {
				b.Fatal(err)
			}
			cpu, next := meter.CPU(), time.Now()
			for b.Loop() {
				s.publish(1)
				next = next.Add(time.Second / rate)
				time.Sleep(time.Until(next))
			}
			r := s.await()
			cpu = meter.CPU() - cpu
			s.check(r, 0)
			b.ReportMetric(0, "ns/op") // the rate is given
			reportCPU(b, cpu, b.N*clients, "delivery")
			b.ReportMetric(milliseconds(r.Delays[0]), "p50-ms")
			b.ReportMetric(milliseconds(r.Delays[1]), "p99-ms")
		})
	}
}

// BenchmarkReplay measures what it takes to give clients that come back 999
// events each. An operation is 100 clients that connect, get them, and leave.
func BenchmarkReplay(b *testing.B) {
	const (
		clients = 100
		events  = 999
	)
	for _, lib := range libraries {
		if !lib.replays {
			continue
		}
		b.Run(fmt.Sprintf("lib=%s/clients=%d/events=%d", lib.name, clients, events), func(b *testing.B) {
			r := newReplay(b, lib, events, 100)
			r.round(clients) // so that all events are where they are kept
			before, cpu := r.report().Doubled, meter.CPU()
			for b.Loop() {
				r.round(clients)
			}
			cpu = meter.CPU() - cpu
			report := r.report()
			doubled := report.Doubled - before
			r.check(report, before+lib.doubles*clients*int64(b.N))
			reportCPU(b, cpu, b.N*clients*events, "event")
			b.ReportMetric(float64(doubled)/float64(clients*b.N), "doubled/client")
		})
	}
}

// BenchmarkIdle measures the memory of connections on which nothing is under
// way, in a server's process of its own.
func BenchmarkIdle(b *testing.B) {
	const clients = 10_000
	for _, lib := range libraries {
		b.Run(fmt.Sprintf("lib=%s/clients=%d", lib.name, clients), func(b *testing.B) {
			var perClient float64
			for b.Loop() {
				perClient = idleMemory(b, lib, clients)
			}
			b.ReportMetric(0, "ns/op") // mostly waiting
			b.ReportMetric(perClient, "bytes/conn")
		})
	}
}

// BenchmarkPublish measures what a library does apart from the connections: an
// event is published whenever all subscribers have had the one before. They are
// handlers with a ResponseWriter that has no connection.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		for _, lib := range libraries {
			if !lib.inMemory {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/subscribers=%d", lib.name, n), func(b *testing.B) {
				c := newCrowd(b, lib, n, 100)
				b.ReportAllocs()
				cpu := meter.CPU()
				for b.Loop() {
					if left := c.publish(patience); left > 0 {
						b.Fatalf("%d of %d subscribers did not get event %d", left, n, c.number)
					}
				}
				reportCPU(b, meter.CPU()-cpu, b.N*n, "delivery")
			})
		}
	}
}

// BenchmarkEncode measures one event with an ID into a buffer.
func BenchmarkEncode(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, codec := range codecs {
			if codec.encode == nil {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/bytes=%d", codec.name, size), func(b *testing.B) {
				m := message{12345, load.Payload(12345, size)}
				var w bytes.Buffer
				b.ReportAllocs()
				for b.Loop() {
					w.Reset()
					if err := codec.encode(&w, m); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkDecode measures a stream of a thousand events.
func BenchmarkDecode(b *testing.B) {
	const events = 1000
	for _, size := range []int{100, 1000} {
		stream := encodedStream(b, events, size)
		for _, codec := range codecs {
			if codec.decode == nil {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/bytes=%d", codec.name, size), func(b *testing.B) {
				b.SetBytes(int64(len(stream)))
				b.ReportAllocs()
				for b.Loop() {
					n := 0
					err := codec.decode(strings.NewReader(stream), func(string) { n++ })
					if err != nil || n != events {
						b.Fatalf("got %d events, error %v, want %d", n, err, events)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*events), "ns/event")
			})
		}
	}
}

// encodedStream returns a stream of events.
func encodedStream(tb testing.TB, events, size int) string {
	tb.Helper()
	var w bytes.Buffer
	for i := range int64(events) {
		if err := encodeOurs(&w, message{i, load.Payload(i, size)}); err != nil {
			tb.Fatal(err)
		}
	}
	return w.String()
}

func reportCPU(b *testing.B, cpu time.Duration, n int, what string) {
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/float64(n), "cpu-µs/"+what)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
