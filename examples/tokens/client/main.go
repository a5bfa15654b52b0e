// Client asks the server of the tokens example, and prints the answer word by
// word as it comes, also across connections that are cut off, if the server can go
// on with it. Ctrl-C stops the answer.
//
//	go run ./examples/tokens
//	go run ./examples/tokens/client 'What is an event stream?'
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"

	"github.com/seed22e817d0/sse"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "localhost:8080", "the server's address")
	flag.Parse()
	if flag.NArg() == 0 {
		return errors.New("no prompt given")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := ask(ctx, os.Stdout, *addr, strings.Join(flag.Args(), " "))
	if ctx.Err() != nil {
		return nil // stopped, as was asked for
	}
	return err
}

// ask writes the answer to w. The end of ctx closes the connection, which tells
// the server to stop.
func ask(ctx context.Context, w io.Writer, addr, prompt string) error {
	query := url.Values{"prompt": {prompt}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/answer?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	words := 0
	client := &sse.Client{
		CheckRetry: func(r *http.Request, err error) error {
			if words > 0 && r.Header.Get("Last-Event-ID") == "" {
				// Without a place to go on from, the answer would begin again.
				return fmt.Errorf("the stream ended before the answer did: %w", err)
			}
			return nil
		},
	}
	defer fmt.Fprintln(w)
	for event, err := range client.Events(req) {
		switch {
		case errors.Is(err, sse.ErrEnded) || event.Type == "done":
			return nil
		case err != nil:
			return err
		case event.Type == "failed":
			return errors.New(event.Data)
		case event.Type == "":
			fmt.Fprint(w, event.Data)
			words++
		}
	}
	return nil
}
