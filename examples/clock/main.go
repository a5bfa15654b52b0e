// Clock shows the server's time in a browser, which is pushed one tick after
// another. A browser that was cut off gets the ticks that it missed.
//
//	go run ./examples/clock
//	curl -N localhost:8080/events
package main

import (
	"context"
	"embed"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed22e817d0/sse"
)

//go:embed index.html
var page embed.FS

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "clock:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "localhost:8080", "the address to serve at")
	every := flag.Duration("every", time.Second, "the time from one tick to the next")
	flag.Parse()
	if *every <= 0 {
		return fmt.Errorf("-every=%v is not positive", *every)
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Printf("The clock is at http://%v\n", listener.Addr())

	broker := &sse.Broker{Retry: time.Second}
	go tick(broker, *every)
	http.Handle("GET /", http.FileServerFS(page))
	http.Handle("GET /events", broker)
	srv := &http.Server{}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()

	select {
	case err := <-failed:
		return err
	case <-interrupted.Done():
	}
	stop() // a second Ctrl-C ends the program at once
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	broker.Shutdown(ctx) // first, since the server waits for streams to end
	if srv.Shutdown(ctx) != nil {
		// Browsers like to open a connection in advance, for which Shutdown
		// would wait five seconds.
		return srv.Close()
	}
	return nil
}

// tick publishes the time until the broker is shut down.
func tick(broker *sse.Broker, every time.Duration) {
	for n, ticks := 1, time.Tick(every); ; n++ {
		event, err := sse.JSON(map[string]any{"n": n, "time": <-ticks})
		if err == nil {
			_, err = broker.Publish(event)
		}
		if err != nil {
			return
		}
	}
}
