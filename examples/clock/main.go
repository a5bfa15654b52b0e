// Clock shows the server's time in a browser, one tick after another. A browser
// that was cut off gets the ticks it missed.
//
//	go run ./examples/clock
//	curl -N localhost:8080/events
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"log"
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

func main() {
	addr := flag.String("addr", "localhost:8080", "`address` to serve at")
	every := flag.Duration("every", time.Second, "time from one tick to the next")
	flag.Parse()

	broker := &sse.Broker{Retry: time.Second}
	go func() {
		for n, ticks := 1, time.Tick(*every); ; n++ {
			broker.Publish(sse.Event{Data: fmt.Sprintf(`{"n": %d, "time": %q}`, n, (<-ticks).Format(time.RFC3339Nano))})
		}
	}()
	http.Handle("GET /", page.Handler(html))
	http.Handle("GET /events", broker)

	interrupted, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("The clock is at http://%v\n", listener.Addr())
	go http.Serve(listener, nil)

	<-interrupted.Done()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	broker.Shutdown(ctx) // sends browsers what they are owed, and when to come back
}
