// Client asks the server of the tokens example, and prints the answer word by
// word as it comes. Ctrl-C stops the answer.
//
//	go run ./examples/tokens
//	go run ./examples/tokens/client What is an event stream?
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
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server says %s", resp.Status)
	}
	defer fmt.Fprintln(w)
	for event, err := range sse.NewDecoder(resp.Body).All() {
		switch {
		case err != nil:
			return err
		case event.Type == "done":
			return nil
		case event.Type == "failed":
			return errors.New(event.Data)
		case event.Type == "":
			fmt.Fprint(w, event.Data)
		}
	}
	return errors.New("the stream ended before the answer did")
}
