package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/redis/internal/redistest"
	"github.com/seed22e817d0/sse/examples/redis/redisstream"
)

// The benchmarks measure what the README's table on sizes is made of. They do a
// fixed amount of work:
//
//	go test -run '^$' -bench . -benchtime 1x

var payload = strings.Repeat("x", 100)

// BenchmarkPublish measures what an event costs Redis as it is published.
func BenchmarkPublish(b *testing.B) {
	for _, how := range []string{"Publish", "PublishOnce", "Set"} {
		b.Run(how, func(b *testing.B) {
			const events, publishers = 40_000, 16
			r := startDefaultRedis(b)
			stream := &redisstream.Stream{Options: r.Options(), MaxLen: -1}
			defer stream.Close()
			memory, cpu := r.Info(b, "used_memory"), redisCPU(b, r)
			began := time.Now()
			var next atomic.Int64
			var working sync.WaitGroup
			for range publishers {
				working.Go(func() {
					for n := next.Add(1); n <= events; n = next.Add(1) {
						var err error
						switch ev := (sse.Event{Data: payload}); how {
						case "Publish":
							_, err = stream.Publish(context.Background(), ev, "prices")
						case "PublishOnce":
							_, err = stream.PublishOnce(context.Background(), fmt.Sprint("order-", n), ev, "prices")
						case "Set":
							_, err = stream.Set(context.Background(), fmt.Sprint("key-", n%1000), ev, "prices")
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			working.Wait()
			b.ReportMetric(events/time.Since(began).Seconds(), "events/s")
			b.ReportMetric((redisCPU(b, r)-cpu)/events*1e6, "redis-µs/event")
			b.ReportMetric((r.Info(b, "used_memory")-memory)/events, "redis-B/event")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkValues measures two ways in which a node that starts can know the value of
// each key, where the stream has its 100,000 entries: to read all of these, and to
// read hashes that publishers keep beside it. One key in ten was set before all
// entries that are left; each of the others is set again and again.
func BenchmarkValues(b *testing.B) {
	for _, keys := range []int{1000, 100_000} {
		for _, topics := range []int{1, keys} {
			b.Run(fmt.Sprintf("%dkeys/%dtopics", keys, topics), func(b *testing.B) {
				r := startDefaultRedis(b)
				stream := &redisstream.Stream{Options: r.Options()}
				defer stream.Close()
				memory := r.Info(b, "used_memory")
				var next atomic.Int64
				var working sync.WaitGroup
				set := func(n int64) error {
					_, err := stream.Set(context.Background(), fmt.Sprint("key-", n), sse.Event{Data: payload}, fmt.Sprint("topic-", n%int64(topics)))
					return err
				}
				for range 16 {
					working.Go(func() {
						for n := next.Add(1) - 1; n < int64(keys)+101_000; n = next.Add(1) - 1 {
							if n >= int64(keys) {
								n = int64(keys/10) + n%int64(keys-keys/10)
							}
							if err := set(n); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				working.Wait()
				b.ReportMetric((r.Info(b, "used_memory")-memory)/1e6, "redis-MB")
				client := redis.NewClient(r.Options())
				defer client.Close()
				ctx := context.Background()
				measure := func(how string, read func() (found int, err error)) {
					began, cpu := time.Now(), redisCPU(b, r)
					found, err := read()
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(time.Since(began).Seconds()*1000, how+"-ms")
					b.ReportMetric((redisCPU(b, r)-cpu)*1000, how+"-redis-ms")
					b.ReportMetric(float64(found), how+"-keys")
				}
				measure("stream", func() (int, error) {
					values := map[string]any{}
					for from := "-"; ; {
						page, err := client.XRangeN(ctx, "events", from, "+", 500).Result()
						for _, m := range page {
							values[fmt.Sprint(m.Values["topics"], m.Values["key"])] = m.Values["data"]
							from = "(" + m.ID
						}
						if err != nil || len(page) < 500 {
							return len(values), err
						}
					}
				})
				measure("hash", func() (found int, err error) {
					names, err := client.SMembers(ctx, "events:state").Result()
					for some := range slices.Chunk(names, 500) {
						pipe := client.Pipeline()
						var hashes []*redis.MapStringStringCmd
						for _, name := range some {
							hashes = append(hashes, pipe.HGetAll(ctx, name))
						}
						if _, err := pipe.Exec(ctx); err != nil {
							return found, err
						}
						for _, hash := range hashes {
							found += len(hash.Val())
						}
					}
					return found, err
				})
				r.Do(b, "DEL", "events")
				b.ReportMetric((r.Info(b, "used_memory")-memory)/float64(keys), "redis-B/key")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkNewcomer measures what a newcomer's 1,000 values cost its node, and what a
// key costs the node's memory.
func BenchmarkNewcomer(b *testing.B) {
	r := startDefaultRedis(b)
	stream := &redisstream.Stream{Options: r.Options()}
	defer stream.Close()
	const keys, topics = 100_000, 100
	setAll := func() {
		var working sync.WaitGroup
		for worker := range 16 {
			working.Go(func() {
				for n := worker; n < keys; n += 16 {
					topic := fmt.Sprint("topic-", n%topics)
					if _, err := stream.Set(context.Background(), fmt.Sprint("key-", n), sse.Event{Data: payload}, topic); err != nil {
						b.Error(err)
					}
				}
			})
		}
		working.Wait()
	}
	setAll()
	publishSteadily(b, r, 1000, 500*time.Millisecond) // so that no key is in the Broker's history
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	broker := &sse.Broker{CatchUp: stream.CatchUp, History: 10}
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan struct{})
	began := time.Now()
	go func() { stream.Follow(ctx, broker); close(followed) }()
	defer func() { cancel(); <-followed }()
	redistest.WaitUntil(b, "the stream is followed", func() bool { return stream.Err() == nil })
	b.ReportMetric(time.Since(began).Seconds()*1000, "start-ms")
	b.ReportMetric(float64(heap()-before)/keys, "node-B/key")
	began = time.Now()
	const newcomers = 1000
	for n := range newcomers {
		events := 0
		missed := sse.Missed{UpTo: broker.LastEventID(), Topics: []string{fmt.Sprint("topic-", n%topics)}}
		for _, err := range stream.CatchUp(ctx, missed) {
			if err != nil {
				b.Fatal(err)
			}
			events++
		}
		if events != keys/topics {
			b.Fatalf("got %d values, want %d", events, keys/topics)
		}
	}
	b.ReportMetric(time.Since(began).Seconds()/newcomers*1e6, "node-µs/newcomer")
	setAll() // now the Broker has them too
	redistest.WaitUntil(b, "the node has all values", func() bool { return broker.Stats().Keys == keys })
	b.ReportMetric(float64(heap()-before)/keys, "node-B/key-set")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFollow measures what an event costs Redis and a node until it is in
// the node's history, at a steady rate, at which each event is read by itself.
func BenchmarkFollow(b *testing.B) {
	for _, nodes := range []int{0, 1, 2, 4, 8} {
		b.Run(fmt.Sprint(nodes, "nodes"), func(b *testing.B) {
			const rate, length = 500, 4 * time.Second
			r := startDefaultRedis(b)
			var processes []*nodeProcess
			for range nodes {
				processes = append(processes, startNodeProcess(b, r))
			}
			before, node := redisCPU(b, r), cpuOf(b, processes)
			events := publishSteadily(b, r, rate, length)
			b.ReportMetric((redisCPU(b, r)-before)/float64(events)*1e6, "redis-µs/event")
			if nodes > 0 {
				b.ReportMetric((cpuOf(b, processes)-node)/float64(events*nodes)*1e6, "node-µs/event")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkDeliver measures what a node with many clients costs.
func BenchmarkDeliver(b *testing.B) {
	for _, clients := range []int{1000, 5000} {
		b.Run(fmt.Sprint(clients, "clients"), func(b *testing.B) {
			const rate, length = 10, 4 * time.Second
			r := startDefaultRedis(b)
			n := startNodeProcess(b, r)
			processes := []*nodeProcess{n}
			before, cpu := rssOf(b, n), cpuOf(b, processes)
			ctx, cancel := context.WithCancel(context.Background())
			var reading sync.WaitGroup
			var got atomic.Int64
			defer func() { cancel(); reading.Wait() }()
			transport := &http.Transport{DisableKeepAlives: true}
			for range clients {
				reading.Go(func() {
					req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+n.addr+"/events", nil)
					resp, err := transport.RoundTrip(req)
					if err != nil {
						b.Error(err)
						return
					}
					defer resp.Body.Close()
					d := sse.NewDecoder(resp.Body)
					for _, err := range d.All() {
						if err != nil {
							return
						}
						got.Add(1)
					}
				})
			}
			redistest.WaitUntil(b, "all clients are connected", func() bool { return n.clients() == clients })
			b.ReportMetric((cpuOf(b, processes)-cpu)/float64(clients)*1e6, "node-µs/connect")
			publishSteadily(b, r, 5, time.Second)
			want := int64(5 * clients)
			redistest.WaitUntil(b, "all clients have the first events", func() bool { return got.Load() == want })
			b.ReportMetric((rssOf(b, n)-before)/float64(clients), "node-B/client")

			cpu = cpuOf(b, processes)
			events := publishSteadily(b, r, rate, length)
			want += int64(events * clients)
			redistest.WaitUntil(b, "all clients have all events", func() bool { return got.Load() == want })
			b.ReportMetric((cpuOf(b, processes)-cpu)/float64(events*clients)*1e6, "node-µs/delivery")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkGap measures what a client costs Redis whose place is not in the
// stream any more, where Redis was replaced by an empty one and has 100 events.
func BenchmarkGap(b *testing.B) {
	const clients, together = 20_000, 16
	r := startDefaultRedis(b)
	stream := &redisstream.Stream{Options: r.Options()}
	defer stream.Close()
	broker := &sse.Broker{CatchUp: stream.CatchUp}
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan struct{})
	go func() { stream.Follow(ctx, broker); close(followed) }()
	defer func() { cancel(); <-followed }()
	redistest.WaitUntil(b, "the stream is followed", func() bool { return stream.Err() == nil })
	publishSteadily(b, r, 1000, 100*time.Millisecond)
	redistest.WaitUntil(b, "the node has all events", func() bool { return broker.Stats().Published == 100 })

	cpu := redisCPU(b, r)
	began := time.Now()
	var next atomic.Int64
	var working sync.WaitGroup
	for range together {
		working.Go(func() {
			for next.Add(1) <= clients {
				events := 0
				for _, err := range stream.CatchUp(ctx, sse.Missed{LastEventID: "1-0", Topics: []string{""}}) {
					if err != nil {
						b.Error(err)
						return
					}
					events++
				}
				if events != 101 {
					b.Errorf("got %d events, want a gap and 100", events)
				}
			}
		})
	}
	working.Wait()
	b.ReportMetric(clients/time.Since(began).Seconds(), "clients/s")
	b.ReportMetric((redisCPU(b, r)-cpu)/clients*1e6, "redis-µs/client")
	b.ReportMetric(0, "ns/op")
}

// startDefaultRedis starts a Redis that writes its file as it does by default.
func startDefaultRedis(b *testing.B) *redistest.Server {
	b.Helper()
	r := redistest.New(b)
	r.Start(b)
	r.Do(b, "CONFIG", "SET", "appendfsync", "everysec")
	return r
}

func startNodeProcess(b *testing.B, r *redistest.Server) *nodeProcess {
	b.Helper()
	n := &nodeProcess{addr: redistest.FreeAddr(b), redis: r.Addr, log: logFile(b, "node")}
	n.start(b)
	b.Cleanup(func() { n.stop(syscall.SIGKILL) })
	redistest.WaitUntil(b, "the node follows the stream", func() bool { s, ok := n.stats(); return ok && s.Error == "" })
	return n
}

// publishSteadily publishes at a rate per second and returns how many.
func publishSteadily(b *testing.B, r *redistest.Server, rate int, length time.Duration) (events int) {
	b.Helper()
	stream := &redisstream.Stream{Options: r.Options()}
	defer stream.Close()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for ; events < int(length.Seconds()*float64(rate)); events++ {
		<-tick.C
		if _, err := stream.Publish(context.Background(), sse.Event{Data: payload}); err != nil {
			b.Fatal(err)
		}
	}
	return events
}

// redisCPU returns the processor time that Redis has used, in seconds.
func redisCPU(b *testing.B, r *redistest.Server) float64 {
	b.Helper()
	return r.Info(b, "used_cpu_user") + r.Info(b, "used_cpu_sys")
}

// cpuOf returns the processor time that the processes have used, in seconds.
func cpuOf(b *testing.B, processes []*nodeProcess) (seconds float64) {
	b.Helper()
	for _, n := range processes {
		stat := readProc(b, n, "stat")
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		for _, ticks := range fields[11:13] { // utime and stime, at 100 Hz
			t, err := strconv.ParseFloat(ticks, 64)
			if err != nil {
				b.Fatal(err)
			}
			seconds += t / 100
		}
	}
	return seconds
}

// rssOf returns the memory of a process, in bytes.
func rssOf(b *testing.B, n *nodeProcess) float64 {
	b.Helper()
	for line := range strings.Lines(readProc(b, n, "status")) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			v, err := strconv.ParseFloat(strings.Fields(kb)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return v * 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

func readProc(b *testing.B, n *nodeProcess, name string) string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", n.cmd.Process.Pid, name))
	if err != nil {
		b.Skip(err)
	}
	return string(text)
}
