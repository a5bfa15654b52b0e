// Tokens answers a prompt word by word, the way language models do, to the one
// client that asked. The client may stop at any word, which the server notices.
//
//	go run ./examples/tokens
//	curl -N 'localhost:8080/answer?prompt=Hello'
//	go run ./examples/tokens/client Hello
package main

import (
	"context"
	"embed"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/seed22e817d0/sse"
)

//go:embed index.html
var page embed.FS

var (
	addr = flag.String("addr", "localhost:8080", "the address to serve at")
	pace = flag.Duration("pace", 60*time.Millisecond, "the time from one word to the next")
)

const text = `You asked: “%s”

I am no language model, only a function that knows this one text by heart. But each word comes to you the way a model's would: as an event of its own, with the blank or the line break behind it, the moment it is there.

Press Stop while you read this. The browser then closes the connection, the request's context ends, and the server stops working for you at that very word. Its log says how far it came.

To have a real model answer you, replace the function generate. It is given a context and a prompt and yields words, or an error:

    func generate(ctx context.Context, prompt string) iter.Seq2[string, error]

All the rest stays as it is: the handler, this page, and the client for the command line.`

// generate yields the answer to a prompt word by word, until it is complete or
// ctx ends. To have a real model answer, yield what its stream brings instead.
func generate(ctx context.Context, prompt string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for word := range strings.SplitAfterSeq(fmt.Sprintf(text, prompt), " ") {
			select {
			case <-ctx.Done():
				yield("", context.Cause(ctx))
				return
			case <-time.After(*pace):
			}
			if !yield(word, nil) {
				return
			}
		}
	}
}

// answer streams the answer to the client that asks for it. A stream that just
// ends might have been cut off, so an event of type done says that this was all,
// and one of type failed that there will be no more.
func answer(w http.ResponseWriter, r *http.Request) {
	stream(w, r, generate(r.Context(), r.FormValue("prompt")))
}

func stream(w http.ResponseWriter, r *http.Request, tokens iter.Seq2[string, error]) {
	out, err := sse.NewWriter(w, r)
	if err != nil {
		slog.Error("no stream", "reason", err)
		return
	}
	words, half := 0, ""
	for word, err := range tokens {
		if err == nil {
			if word, half = cutHalf(half + word); word == "" && half != "" {
				continue
			}
			err = out.Send(sse.Event{Data: word})
		}
		if err != nil {
			slog.Info("broken off", "words", words, "reason", err)
			out.Send(sse.Event{Type: "failed", Data: "The answer broke off."}) // in vain if the client left
			return
		}
		words++
	}
	if half != "" { // for ever: it is shown as U+FFFD
		out.Send(sse.Event{Data: half})
	}
	if out.Send(sse.Event{Type: "done"}) == nil {
		slog.Info("answered", "words", words)
	}
}

// cutHalf returns text up to a character that lacks bytes, and these: the tokens of
// a model may split one. The next token has the rest.
func cutHalf(text string) (whole, half string) {
	for i := len(text) - 1; i >= max(0, len(text)-utf8.UTFMax); i-- {
		if utf8.RuneStart(text[i]) {
			if !utf8.FullRuneInString(text[i:]) {
				return text[:i], text[i:]
			}
			break
		}
	}
	return text, ""
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "tokens:", err)
		os.Exit(1)
	}
}

func run() error {
	flag.Parse()
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Printf("Ask at http://%v\n", listener.Addr())
	http.Handle("GET /", http.FileServerFS(page))
	http.HandleFunc("GET /answer", answer)
	// Each request's context ends with the program, and with it the answer.
	srv := &http.Server{BaseContext: func(net.Listener) context.Context { return interrupted }}
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
	if srv.Shutdown(ctx) != nil {
		// Browsers like to open a connection in advance, for which Shutdown
		// would wait five seconds.
		return srv.Close()
	}
	return nil
}
