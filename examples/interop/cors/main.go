// Cors serves a page at one origin and a stream at another, which wants a cookie,
// as app.example.com and api.example.com would.
//
//	go run ./cors
//	curl -Ni -H 'Origin: http://localhost:8080' -b user=curl localhost:8081/events
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/page"
)

//go:embed index.html
var index string

var html = template.Must(template.New("").Parse(page.Link(index)))

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cors:", err)
		os.Exit(1)
	}
}

func run() error {
	app := flag.String("app", "localhost:8080", "the address of the page")
	api := flag.String("api", "localhost:8081", "the address of the stream")
	flag.Parse()
	interrupted, _ := signal.NotifyContext(context.Background(), os.Interrupt)
	appListener, err := net.Listen("tcp", *app)
	if err != nil {
		return err
	}
	apiListener, err := net.Listen("tcp", *api)
	if err != nil {
		return err
	}
	fmt.Printf("The page is at http://%s, the stream at http://%s/events\n", *app, *api)

	broker := &sse.Broker{}
	go func() {
		for now := range time.Tick(time.Second) {
			broker.Publish(sse.Event{Data: now.Format(time.TimeOnly)})
		}
	}()
	go http.Serve(appListener, pages("http://"+*api))
	go http.Serve(apiListener, cors(stream(broker), "http://"+*app))

	<-interrupted.Done()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second/2)
	defer cancel()
	broker.Shutdown(ctx) // sends browsers what they are owed, and when to come back
	return nil
}

// pages serves the page, which reads the stream at api.
func pages(api string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		html.Execute(w, api)
	})
	mux.Handle("GET "+page.Script, page.Handler(""))
	return mux
}

// cors lets pages of these origins, and no others, use next with the user's
// cookies.
func cors(next http.Handler, origins ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A cache must not give one origin's answer to another.
		w.Header().Add("Vary", "Origin")
		if origin := r.Header.Get("Origin"); slices.Contains(origins, origin) {
			// Not "*", which browsers refuse where cookies are sent.
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Set("Access-Control-Allow-Credentials", "true")
			// An EventSource never asks first. A fetch that sends the header does.
			w.Header().Set("Access-Control-Allow-Headers", "Last-Event-ID")
		}
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// stream serves the broker to users who have signed in.
func stream(broker *sse.Broker) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Value: "somebody", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		if _, err := r.Cookie("user"); err != nil {
			http.Error(w, "sign in first", http.StatusUnauthorized)
			return
		}
		broker.Serve(w, r)
	})
	return mux
}
