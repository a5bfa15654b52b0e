package benchmark

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

// readersEnv is "address path number slow" in the process of readers.
const readersEnv = "BENCHMARK_READERS"

// readRemote reads streams without looking at them, if that is what the process was
// started for: the first slow ones at 20 KB/s. It answers each line with the bytes that
// all and that the slow ones have got.
func readRemote() {
	var addr, path string
	var n, slow int
	if _, err := fmt.Sscan(os.Getenv(readersEnv), &addr, &path, &n, &slow); err != nil {
		return
	}
	var all, slowly atomic.Int64
	for i := range n {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, "readers:", err)
			os.Exit(1)
		}
		buf := make([]byte, 64<<10)
		if i < slow {
			buf = buf[:2<<10]
			conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		go func() {
			for {
				got, err := conn.Read(buf)
				if all.Add(int64(got)); i < slow {
					slowly.Add(int64(got))
					time.Sleep(100 * time.Millisecond)
				}
				if err != nil {
					return
				}
			}
		}()
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(all.Load(), slowly.Load())
	}
	os.Exit(0)
}

// readers is a process of readers.
type readers struct {
	b     *testing.B
	to    io.Writer
	lines *bufio.Scanner
}

func startReaders(b *testing.B, addr, path string, n, slow int) *readers {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), readersEnv+"="+fmt.Sprint(addr, " ", path, " ", n, " ", slow))
	cmd.Stderr = os.Stderr
	to, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	from, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		to.Close()
		cmd.Wait()
	})
	return &readers{b, to, bufio.NewScanner(from)}
}

// bytes returns how many all of them and the slow ones have got.
func (r *readers) bytes() (all, slow int64) {
	fmt.Fprintln(r.to)
	r.lines.Scan()
	if _, err := fmt.Sscan(r.lines.Text(), &all, &slow); err != nil {
		r.b.Fatal(err)
	}
	return all, slow
}

// serveHere serves the Broker's default topic over TCP. buffer is the size of the
// kernel's buffer for each client, or 0 for what the kernel chooses.
func serveHere(b *testing.B, broker *sse.Broker, buffer int) (addr string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: broker, ConnState: func(conn net.Conn, state http.ConnState) {
		if state == http.StateNew && buffer > 0 {
			conn.(*net.TCPConn).SetWriteBuffer(buffer)
		}
	}}
	go srv.Serve(listener)
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		broker.Shutdown(ctx)
		srv.Close()
	})
	return listener.Addr().String()
}

// BenchmarkKeys has 1,000 keys, chosen at random, get 10,000 values a second for 10 seconds.
// Of 1,000 clients 100 read slowly. Meanwhile newcomers come one after the other, and each
// stays until it has a value of every key.
func BenchmarkKeys(b *testing.B) {
	const keys, clients, slow, rate, span = 1000, 1000, 100, 10_000, 10 * time.Second
	for _, way := range []string{"Set", "Publish"} {
		b.Run("lib=ours/way="+way, func(b *testing.B) {
			broker := &sse.Broker{Logger: slog.New(slog.DiscardHandler)}
			addr := serveHere(b, broker, 64<<10) // else the kernel takes megabytes for each slow client
			publish := func(key int) {
				name := "K" + strconv.Itoa(key)
				ev := sse.Event{Data: fmt.Sprintf(`{"symbol":%q,"price":%.2f}`, name, 100*rand.Float64())}
				if way == "Set" {
					broker.Set(name, ev)
				} else {
					broker.Publish(ev)
				}
			}
			for key := range keys {
				publish(key)
			}
			readers := startReaders(b, addr, "/", clients, slow)
			for broker.Stats().Clients < clients {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Second)
			var took []time.Duration
			came := make(chan struct{})
			go func() {
				defer close(came)
				for began := time.Now(); time.Since(began) < span-3*time.Second; time.Sleep(500 * time.Millisecond) {
					took = append(took, untilAll(b, addr, keys))
				}
			}()
			all, slowly := readers.bytes()
			before, cpu, began, published := broker.Stats(), meter.CPU(), time.Now(), 0
			for range b.N {
				for start := time.Now(); time.Since(start) < span; time.Sleep(time.Millisecond) {
					for due := int(time.Since(began).Seconds() * rate); published < due; published++ {
						publish(rand.IntN(keys))
					}
				}
			}
			cpu = meter.CPU() - cpu
			seconds := time.Since(began).Seconds()
			after := broker.Stats()
			allNow, slowlyNow := readers.bytes()
			<-came
			all, slowly = allNow-all, slowlyNow-slowly
			b.ReportMetric(float64(published)/seconds, "values/s")
			b.ReportMetric(float64(all-slowly)/(clients-slow)/seconds/1000, "KB/s-fast")
			b.ReportMetric(float64(slowly)/slow/seconds/1000, "KB/s-slow")
			b.ReportMetric(float64(after.Delivered-before.Delivered)/clients/seconds, "events/s-client")
			b.ReportMetric(float64(cpu.Microseconds())/clients/seconds, "CPU-µs/s-client")
			b.ReportMetric(float64(after.Gaps-before.Gaps), "gaps")
			slices.Sort(took)
			b.ReportMetric(milliseconds(took[len(took)/2]), "ms-newcomer")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// untilAll returns how long a client takes that comes now until it has a value of every key.
func untilAll(b *testing.B, addr string, keys int) time.Duration {
	began := time.Now()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	have := map[string]bool{}
	for lines := bufio.NewScanner(conn); len(have) < keys && lines.Scan(); {
		if _, rest, ok := bytes.Cut(lines.Bytes(), []byte(`"symbol":"`)); ok {
			name, _, _ := strings.Cut(string(rest), `"`)
			have[name] = true
		}
	}
	return time.Since(began)
}

// BenchmarkEarliest has 1,000 clients come at once to a full history of 10,000 events of 100
// bytes and ask for all of it.
func BenchmarkEarliest(b *testing.B) { b.Run("lib=ours", everything) }

func everything(b *testing.B) {
	const clients, events = 1000, 10_000
	broker := &sse.Broker{Logger: slog.New(slog.DiscardHandler)}
	addr := serveHere(b, broker, 0)
	for range events {
		broker.Publish(sse.Event{Data: strings.Repeat("x", 100)})
	}
	for b.Loop() {
		before, cpu, began := broker.Stats().Delivered, meter.CPU(), time.Now()
		readers := startReaders(b, addr, "/?lastEventId="+sse.Earliest, clients, 0)
		for broker.Stats().Delivered-before < clients*events {
			time.Sleep(time.Millisecond)
		}
		all, last := int64(1), int64(0)
		for all != last {
			time.Sleep(10 * time.Millisecond)
			last = all
			all, _ = readers.bytes()
		}
		b.ReportMetric(time.Since(began).Seconds(), "s")
		b.ReportMetric(float64((meter.CPU()-cpu).Microseconds())/clients/1000, "CPU-ms/client")
		b.ReportMetric(float64(all)/clients/1e6, "MB/client")
	}
}
