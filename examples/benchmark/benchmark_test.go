package benchmark

import (
	"bytes"
	"fmt"
	"runtime"
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
	bursts(b, load.TCP, []size{{100, 100}, {100, 1000}, {1000, 100}, {1000, 1000}, {10_000, 100}})
}

// BenchmarkBurstTLS is BenchmarkBurst over TLS.
func BenchmarkBurstTLS(b *testing.B) { bursts(b, load.TLS, secureSizes) }

// BenchmarkBurstHTTP2 is BenchmarkBurst over HTTP/2 with TLS, a hundred clients on
// each connection.
func BenchmarkBurstHTTP2(b *testing.B) { bursts(b, load.H2, secureSizes) }

type size struct{ clients, bytes int }

var secureSizes = []size{{1000, 100}, {1000, 1000}}

func bursts(b *testing.B, network string, sizes []size) {
	for _, size := range sizes {
		for _, lib := range libraries {
			if !lib.serves(network) {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/clients=%d/bytes=%d", lib.name, size.clients, size.bytes), func(b *testing.B) {
				s := newSite(b, lib, network, 0, size.bytes)
				s.connect(size.clients)
				s.bursts(burst, times(3)) // which fill what is filled only once
				cpu := s.cpu()
				s.bursts(burst, b.Loop)
				cpu = s.cpu() - cpu
				s.check(s.await(), 0)
				reportCPU(b, cpu, b.N*burst*size.clients, "delivery")
			})
		}
	}
}

// BenchmarkSteady measures delivery of single events at a fixed rate, and how
// long they are on their way. An operation is one event to all.
func BenchmarkSteady(b *testing.B) { steady(b, load.TCP) }

// BenchmarkSteadyTLS is BenchmarkSteady over TLS.
func BenchmarkSteadyTLS(b *testing.B) { steady(b, load.TLS) }

// BenchmarkSteadyHTTP2 is BenchmarkSteady over HTTP/2 with TLS, a hundred clients
// on each connection.
func BenchmarkSteadyHTTP2(b *testing.B) { steady(b, load.H2) }

func steady(b *testing.B, network string) {
	const (
		clients = 1000
		rate    = 20 // a second
	)
	for _, lib := range libraries {
		if !lib.serves(network) {
			continue
		}
		b.Run(fmt.Sprintf("lib=%s/clients=%d/rate=%d", lib.name, clients, rate), func(b *testing.B) {
			s := newSite(b, lib, network, 0, 100)
			s.connect(clients)
			if err := s.clients.Time(true); err != nil {
				b.Fatal(err)
			}
			cpu, next := s.cpu(), time.Now()
			for b.Loop() {
				s.publish(1)
				next = next.Add(time.Second / rate)
				time.Sleep(time.Until(next))
			}
			r := s.await()
			cpu = s.cpu() - cpu
			s.check(r, 0)
			b.ReportMetric(0, "ns/op") // the rate is given
			reportCPU(b, cpu, b.N*clients, "delivery")
			b.ReportMetric(milliseconds(r.Delays[0]), "p50-ms")
			b.ReportMetric(milliseconds(r.Delays[1]), "p99-ms")
		})
	}
}

// BenchmarkReplay measures what it takes to give clients that come back 999
// events each. An operation is 1,000 clients that connect, get them, and leave.
func BenchmarkReplay(b *testing.B) {
	const (
		clients = 1000
		events  = 999
	)
	for _, lib := range libraries {
		if !lib.replays {
			continue
		}
		b.Run(fmt.Sprintf("lib=%s/clients=%d/events=%d", lib.name, clients, events), func(b *testing.B) {
			r := newReplay(b, lib, events, 100)
			r.round(10) // so that all events are where they are kept
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
func BenchmarkIdle(b *testing.B) { idle(b, load.TCP) }

// BenchmarkIdleTLS is BenchmarkIdle over TLS.
func BenchmarkIdleTLS(b *testing.B) { idle(b, load.TLS) }

// BenchmarkIdleHTTP2 is BenchmarkIdle for streams of HTTP/2 with TLS, a hundred of
// each connection.
func BenchmarkIdleHTTP2(b *testing.B) { idle(b, load.H2) }

func idle(b *testing.B, network string) {
	const clients = 10_000
	for _, lib := range libraries {
		if lib.apart() || !lib.serves(network) {
			continue
		}
		b.Run(fmt.Sprintf("lib=%s/clients=%d", lib.name, clients), func(b *testing.B) {
			var each memory
			for b.Loop() {
				each = idleMemory(b, lib, network, clients)
			}
			b.ReportMetric(0, "ns/op") // mostly waiting
			b.ReportMetric(float64(each.RSS), "bytes/conn")
			b.ReportMetric(float64(each.Stacks), "stack-bytes/conn")
			b.ReportMetric(float64(each.Heap), "heap-bytes/conn")
		})
	}
}

// BenchmarkStalled measures how long events are on their way to clients beside
// others that do not read at all. An operation is one burst on its way to those
// that read.
func BenchmarkStalled(b *testing.B) {
	const (
		clients = 1000
		bytes   = 1000
	)
	for _, stalled := range []int{0, 1, 100} {
		for _, lib := range libraries {
			if lib.apart() {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/clients=%d/stalled=%d", lib.name, clients, stalled), func(b *testing.B) {
				j, err := newJam(b, lib, clients, stalled, bytes, stallPatience)
				if err != nil {
					noResult(b, err)
				}
				if err := j.clients.Time(true); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					if err := j.burst(); err != nil {
						noResult(b, err)
					}
				}
				r := j.check()
				b.ReportMetric(milliseconds(r.Delays[0]), "p50-ms")
				b.ReportMetric(milliseconds(r.Delays[1]), "p99-ms")
			})
		}
	}
}

// noResult ends a benchmark that the library does not come through, and says so
// in a line for the table command.
func noResult(b *testing.B, err error) {
	fmt.Printf("\n# no result: %s: %v\n", strings.TrimPrefix(b.Name(), "Benchmark"), err)
	b.Skip(err)
}

// BenchmarkPublish measures what a library does apart from the connections: an
// event is published whenever all subscribers have had the one before. They are
// handlers with a ResponseWriter that has no connection.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 100, 10_000, 100_000} {
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
				reportCall(b, c)
			})
		}
	}
}

// BenchmarkTopic measures an event to one of many topics, each of which has one
// subscriber, as those of BenchmarkPublish are: always to the same one, and to
// each in turn, which finds nothing of it in the processor's caches.
func BenchmarkTopic(b *testing.B) {
	for _, n := range []int{1, 100_000} {
		for _, lib := range libraries {
			if lib.topics == nil {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/topics=%d", lib.name, n), func(b *testing.B) {
				c := newTopicCrowd(b, lib, n, 100)
				b.Run("to=one", func(b *testing.B) { publishTo(b, c, 0) })
				if n > 1 {
					b.Run("to=each", func(b *testing.B) { publishTo(b, c, 7919) }) // which divides no n here
				}
			})
		}
	}
}

// publishTo publishes to topics that are so far apart.
func publishTo(b *testing.B, c *crowd, step int) {
	c.calling = 0
	topic := 0
	b.ReportAllocs()
	for b.Loop() {
		topic = (topic + step) % len(c.topics)
		if left := c.publishTo(topic, patience); left > 0 {
			b.Fatalf("event %d did not come to %s", c.number, c.topics[topic])
		}
	}
	reportCall(b, c)
}

// BenchmarkPublishers measures how many events several goroutines can publish at
// once. An operation is a number of events from all of them together, and ends
// when all subscribers have these. With subscribers the events are so few that no
// library has to drop one.
func BenchmarkPublishers(b *testing.B) {
	for _, subscribers := range []int{0, 100} {
		events := 64
		if subscribers == 0 {
			events = 4096 // so that starting the goroutines is nothing
		}
		for _, processors := range []int{1, 2} {
			for _, publishers := range []int{1, 8} {
				for _, lib := range libraries {
					if !lib.inMemory {
						continue
					}
					name := fmt.Sprintf("lib=%s/publishers=%d/processors=%d/subscribers=%d", lib.name, publishers, processors, subscribers)
					b.Run(name, func(b *testing.B) {
						if runtime.NumCPU() < processors {
							b.Skipf("there are only %d processors", runtime.NumCPU())
						}
						defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
						c := newCrowd(b, lib, subscribers, 100)
						batches := c.batches(publishers, events)
						for b.Loop() {
							if left := c.rush(batches, patience); left > 0 {
								b.Fatalf("%d of %d subscribers did not get all events", left, subscribers)
							}
						}
						b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*events), "ns/event")
					})
				}
			}
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

// BenchmarkRead measures streams of some ten megabytes, or of a thousand events if
// these are small.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{100, 10_000, 1_000_000} {
		events := min(1000, 10_000_000/size)
		stream := encodedStream(b, events, size)
		for _, codec := range codecs {
			if codec.decode == nil {
				continue
			}
			b.Run(fmt.Sprintf("lib=%s/bytes=%d", codec.name, size), func(b *testing.B) {
				b.SetBytes(int64(len(stream)))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for b.Loop() {
					n := 0
					err := codec.decode(strings.NewReader(stream), func(string) { n++ })
					if err != nil || n != events {
						b.Fatalf("got %d events, error %v, want %d", n, err, events)
					}
				}
				runtime.ReadMemStats(&after)
				n := float64(b.N * events)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/event")
				b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/event")
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

// reportCall reports how long the call took that publishes an event.
func reportCall(b *testing.B, c *crowd) {
	b.ReportMetric(float64(c.calling.Nanoseconds())/float64(b.N), "ns/call")
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
