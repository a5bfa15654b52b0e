// Prices shows the newest price of 50 symbols, of which a hundred a second change. A
// browser that connects gets all of them first. One that reads slowly is spared the
// prices that have changed again meanwhile.
//
//	go run ./examples/prices
//	curl -N localhost:8080/events
//	curl -N localhost:8080/slow
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
)

//go:embed index.html
var html string

// A slowWriter is a client that takes its time before it takes anything.
type slowWriter struct {
	http.ResponseWriter
	pause time.Duration
}

func (w slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w slowWriter) FlushError() error {
	time.Sleep(w.pause)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to serve at")
	every := flag.Duration("every", 10*time.Millisecond, "time from one price to the next")
	pause := flag.Duration("pause", 3*time.Second, "time that a slow reader takes")
	flag.Parse()

	broker := &sse.Broker{Retry: time.Second}
	go func() {
		cents := rand.Perm(50_000)[:50] // of each symbol
		for n, ticks := 0, time.Tick(*every); ; n++ {
			i := n // each has a price to begin with
			if n >= len(cents) {
				i = rand.IntN(len(cents))
				<-ticks
			}
			cents[i] = max(100, cents[i]+rand.IntN(101)-50)
			symbol := string([]byte{'A' + byte(i/2), 'X' + byte(i%2), 'A' + byte(i*7%26)})
			broker.Set(symbol, sse.Event{Data: fmt.Sprintf(`{"n": %d, "symbol": %q, "cents": %d}`, n, symbol, cents[i])})
		}
	}()
	http.Handle("GET /", page.Handler(html))
	http.Handle("GET /events", broker)
	http.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) { broker.Serve(slowWriter{w, *pause}, r) })

	interrupted, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("The prices are at http://%v\n", listener.Addr())
	go http.Serve(listener, nil)

	<-interrupted.Done()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	broker.Shutdown(ctx)
}
