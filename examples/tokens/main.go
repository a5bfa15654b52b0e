// Tokens answers a prompt word by word, the way language models do. The answer is
// written once, and read as often as somebody wants: a page that is reloaded or cut
// off goes on with it, and another browser gets all of it.
//
//	go run ./examples/tokens
//	curl -i localhost:8080/answers -d prompt=Hello    # its Location is the answer's stream
//
// A stream for one reader, which ends the answer when it leaves, is less work:
//
//	curl -N 'localhost:8080/answer?prompt=Hello'
//	go run ./examples/tokens/client Hello
package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"flag"
	"fmt"
	"iter"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
)

//go:embed index.html
var html string

var (
	addr = flag.String("addr", "localhost:8080", "`address` to serve at")
	pace = flag.Duration("pace", 60*time.Millisecond, "time from one word to the next")
)

const text = `You asked: “%s”

I am no language model, only a function that knows this one text by heart. But each word comes to you the way a model's would: as an event of its own, with the blank or the line break behind it, the moment it is there.

Reload the page while you read this, cut the connection, or open the page's address in another browser: the answer is written only once, and goes on where you are. Press Stop, and the server stops working for you at that very word. When the answer is complete, the page closes the connection and does not ask again.

To have a real model answer you, replace the function generate. It is given a context and a prompt and yields words, or an error:

    func generate(
        ctx context.Context,
        prompt string,
    ) iter.Seq2[string, error]

All the rest stays as it is: the handlers, this page, and the client for the command line.`

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
	words := 0
	for word, err := range whole(tokens) {
		if err == nil {
			err = out.Send(sse.Event{Data: word})
		}
		if err != nil {
			slog.Info("broken off", "words", words, "reason", err)
			out.Send(sse.Event{Type: "failed", Data: "The answer broke off."}) // in vain if the client left
			return
		}
		words++
	}
	if out.Send(sse.Event{Type: "done"}) == nil {
		slog.Info("answered", "words", words)
	}
}

// whole yields the tokens with whole characters only: those of a model may split one,
// and the text of an event may not.
func whole(tokens iter.Seq2[string, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		half := ""
		for token, err := range tokens {
			if err == nil {
				if token, half = cutHalf(half + token); token == "" && half != "" {
					continue
				}
			}
			if !yield(token, err) || err != nil {
				return
			}
		}
		if half != "" { // the rest never came: it is shown as U+FFFD
			yield(half, nil)
		}
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

// A library holds answers, each in a topic of its own. Whoever reads one gets what
// there is of it from the Broker's history, and then what comes.
type library struct {
	ctx    context.Context // ends all answers
	broker sse.Broker

	writing sync.WaitGroup
	mu      sync.Mutex                    // guards the field below, and that writing begins before ctx has ended
	answers map[string]context.CancelFunc // stops an answer
}

func newLibrary(ctx context.Context) *library {
	l := &library{ctx: ctx, answers: map[string]context.CancelFunc{}}
	l.broker.History = 100_000 // words; older answers are forgotten
	return l
}

func (l *library) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", page.Handler(html))
	mux.HandleFunc("GET /answer", answer)
	mux.HandleFunc("POST /answers", l.ask)
	mux.HandleFunc("GET /answers/{id}", l.read)
	mux.HandleFunc("DELETE /answers/{id}", l.stop)
	// Or else any page that somebody has open could ask in their name.
	return http.NewCrossOriginProtection().Handler(mux)
}

// ask begins an answer, and says where it can be read.
func (l *library) ask(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	id, prompt := rand.Text(), r.FormValue("prompt")
	ctx, stop := context.WithCancel(l.ctx)
	l.mu.Lock()
	l.answers[id] = stop
	l.mu.Unlock()
	if _, err := l.broker.Publish(sse.Event{Type: "prompt", Data: prompt}, id); err != nil {
		stop()
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	l.mu.Lock()
	if l.ctx.Err() == nil { // else finish may have seen that nothing is being written
		l.writing.Go(func() { l.write(ctx, id, prompt) })
	}
	l.mu.Unlock()
	w.Header().Set("Location", "/answers/"+id)
	w.WriteHeader(http.StatusCreated)
}

// write publishes the words of an answer, and that it is finished for good.
func (l *library) write(ctx context.Context, id, prompt string) {
	words := 0
	for word, err := range whole(generate(ctx, prompt)) {
		if err == nil {
			_, err = l.broker.Publish(sse.Event{Data: word}, id)
		}
		if err != nil {
			slog.Info("broken off", "answer", id, "words", words, "reason", err)
			l.broker.Publish(sse.Event{Type: "failed", Data: "The answer broke off."}, id)
			break
		}
		words++
	}
	l.broker.End(id)
	slog.Info("written", "answer", id, "words", words)
}

// read streams an answer from its beginning, or from where the reader was cut off.
func (l *library) read(w http.ResponseWriter, r *http.Request) {
	if _, ok := l.find(r); !ok {
		http.Error(w, "no such answer", http.StatusGone)
		return
	}
	if sse.LastEventID(r) == "" {
		r.Header.Set("Last-Event-ID", sse.Earliest)
	}
	l.broker.Serve(w, r, r.PathValue("id"))
}

// stop ends an answer at the word it has come to.
func (l *library) stop(w http.ResponseWriter, r *http.Request) {
	stop, ok := l.find(r)
	if !ok {
		http.Error(w, "no such answer", http.StatusGone)
		return
	}
	stop()
	w.WriteHeader(http.StatusNoContent)
}

func (l *library) find(r *http.Request) (stop context.CancelFunc, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stop, ok = l.answers[r.PathValue("id")]
	return stop, ok
}

// finish returns when no answer is being written any more. l.ctx must have ended.
func (l *library) finish() {
	l.mu.Lock() // none begins meanwhile, and none afterwards
	defer l.mu.Unlock()
	l.writing.Wait()
}

func main() {
	flag.Parse()
	interrupted, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	l := newLibrary(interrupted)

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Ask at http://%v\n", listener.Addr())
	go http.Serve(listener, l.handler())

	<-interrupted.Done()
	l.finish()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	l.broker.Shutdown(ctx) // sends browsers what they are owed, and when to come back
}
