// Command redis shows one stream served by many nodes: what is published at one
// of them reaches the clients of all, and a client may come back to any.
//
//	redis-server --appendonly yes --dir "$(mktemp -d)" &   # or name another by -redis
//	go run .                                               # two nodes; the page is at http://localhost:8081
//	curl -N 'localhost:8081/events?topic=news'
//	curl -d topic=news -d data=hello localhost:8082/publish
//	curl -d topic=news -d set=weather -d data=rain localhost:8082/publish   # what newcomers get first
//	curl -d topic=news -d end=1 localhost:8082/publish
package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
	"github.com/seed22e817d0/sse/examples/redis/redisstream"
)

//go:embed index.html
var index string

var html = template.Must(template.New("").Parse(page.Link(index)))

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "redis:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("redis", flag.ExitOnError)
	url := flags.String("redis", "redis://localhost:6379", "URL of the Redis to use")
	key := flags.String("key", "events", "name of the stream there")
	addr := flags.String("addr", "localhost:8081,localhost:8082", "`addresses` to serve at, one for each node")
	flags.Parse(args)
	opt, err := redis.ParseURL(*url)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	var listeners []net.Listener
	var nodes []string // their addresses
	for addr := range strings.SplitSeq(*addr, ",") {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		listeners, nodes = append(listeners, listener), append(nodes, listener.Addr().String())
	}
	fmt.Println("The nodes are at http://" + strings.Join(nodes, " and http://"))
	done := make(chan error)
	for _, listener := range listeners {
		go func() { done <- serve(ctx, listener, nodes, &redisstream.Stream{Options: opt, Key: *key}) }()
	}
	for range listeners {
		err = cmp.Or(err, <-done)
		stop() // a node that cannot run ends the others too
	}
	return err
}

// serve runs a node until ctx ends. What many nodes share is in the stream.
func serve(ctx context.Context, listener net.Listener, nodes []string, stream *redisstream.Stream) error {
	broker := &sse.Broker{CatchUp: stream.CatchUp}
	go stream.Follow(ctx, broker)
	defer stream.Close()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*") // the page shows several nodes
		broker.Detach(w, r, nil, r.URL.Query()["topic"]...)
	})
	mux.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		id, err := publish(r, stream)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, id)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		s := stats{Stats: broker.Stats()}
		if err := stream.Err(); err != nil {
			s.Error = err.Error()
		}
		json.NewEncoder(w).Encode(s)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		html.Execute(w, nodes)
	})
	mux.Handle("GET "+page.Script, page.Handler(""))

	srv := &http.Server{Handler: mux}
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		broker.Shutdown(ctx)
		srv.Shutdown(ctx)
	})
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

// stats are what a node tells of itself.
type stats struct {
	sse.Stats
	Error string // why the node does not get what is published
}

// publish appends what a form says to the stream: an event, which may be the value of
// the key called set, or the end of the topics. A form that is sent again with the
// same key is not published again.
func publish(r *http.Request, stream *redisstream.Stream) (id string, err error) {
	event := sse.Event{Type: r.FormValue("type"), Data: r.FormValue("data")}
	topics, key := r.Form["topic"], r.FormValue("key")
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	switch {
	case r.Form.Has("end"):
		return "", stream.End(ctx, topics...)
	case r.Form.Has("set"):
		return stream.Set(ctx, r.FormValue("set"), event, topics...)
	case r.Form.Has("remove"):
		return stream.Remove(ctx, r.FormValue("remove"), event, topics...)
	case key != "":
		return stream.PublishOnce(ctx, key, event, topics...)
	}
	return stream.Publish(ctx, event, topics...)
}
