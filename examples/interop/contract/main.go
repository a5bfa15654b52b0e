// Contract lets the public contract tests for SSE clients, LaunchDarkly's
// sse-contract-tests, drive [sse.Client]. It is an HTTP service that opens a
// stream when it is asked to, and reports to a callback URL what the loop over
// Client.Events gets.
//
//	go run ./contract -addr localhost:8000
//	sse-contract-tests -url http://localhost:8000
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/seed22e817d0/sse"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	addr := flag.String("addr", "localhost:8000", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	srv := &http.Server{Addr: *addr, Handler: newService(ctx, stop)}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// A service has one loop for each stream that was asked for.
type service struct {
	ctx     context.Context
	mu      sync.Mutex
	last    int                           // number of the newest stream
	streams map[string]context.CancelFunc // by path
}

// newService returns the service. DELETE / calls stop.
func newService(ctx context.Context, stop func()) http.Handler {
	s := &service{ctx: ctx, streams: map[string]context.CancelFunc{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"name": "github.com/seed22e817d0/sse", "capabilities": ["bom", "headers", "last-event-id",
			"post", "read-timeout", "report", "server-directed-shutdown-request"]}`)
	})
	mux.HandleFunc("DELETE /{$}", func(http.ResponseWriter, *http.Request) { stop() })
	mux.HandleFunc("POST /{$}", s.open)
	mux.HandleFunc("DELETE /streams/{number}", s.close)
	return mux
}

// A stream is what the test harness asks for.
type stream struct {
	StreamURL, CallbackURL        string
	InitialDelayMs, ReadTimeoutMs *int
	LastEventID                   string
	Headers                       map[string]string
	Method, Body                  string

	reports int // sent to CallbackURL
}

func (s *service) open(w http.ResponseWriter, r *http.Request) {
	var asked stream
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	req, err := http.NewRequestWithContext(ctx, cmp.Or(asked.Method, "GET"), asked.StreamURL, strings.NewReader(asked.Body))
	if err != nil {
		cancel()
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for name, value := range asked.Headers {
		req.Header.Set(name, value)
	}
	if asked.LastEventID != "" {
		req.Header.Set("Last-Event-ID", asked.LastEventID)
	}
	s.mu.Lock()
	s.last++
	path := fmt.Sprint("/streams/", s.last)
	s.streams[path] = cancel
	s.mu.Unlock()
	go asked.follow(req)
	w.Header().Set("Location", "http://"+r.Host+path)
	w.WriteHeader(http.StatusCreated)
}

func (s *service) close(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	cancel, ok := s.streams[r.URL.Path]
	delete(s.streams, r.URL.Path)
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	cancel()
	w.WriteHeader(http.StatusNoContent)
}

// follow reports each event, and each error but the end of a connection.
func (s *stream) follow(req *http.Request) {
	client := &sse.Client{Logger: slog.New(slog.DiscardHandler)}
	if s.InitialDelayMs != nil {
		client.Retry = max(time.Duration(*s.InitialDelayMs), 1) * time.Millisecond
	}
	if s.ReadTimeoutMs != nil {
		client.ReadTimeout = time.Duration(*s.ReadTimeoutMs) * time.Millisecond
	}
	client.CheckRetry = func(_ *http.Request, err error) error {
		if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			s.report(req.Context(), map[string]any{"kind": "error", "error": err.Error()})
		}
		return nil
	}
	for ev, err := range client.Events(req) {
		switch {
		case req.Context().Err() != nil: // nobody is interested anymore
		case err != nil:
			s.report(req.Context(), map[string]any{"kind": "error", "error": err.Error()})
		default:
			s.report(req.Context(), map[string]any{"kind": "event", "event": map[string]string{
				"type": cmp.Or(ev.Type, "message"), "data": ev.Data, "id": ev.ID,
			}})
		}
	}
}

// report sends a message to the callback URL. The messages are numbered from 1.
func (s *stream) report(ctx context.Context, message map[string]any) {
	body, _ := json.Marshal(message)
	s.reports++
	req, err := http.NewRequestWithContext(ctx, "POST", fmt.Sprintf("%s/%d", s.CallbackURL, s.reports), bytes.NewReader(body))
	if err != nil {
		log.Print(err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		log.Print(err)
		return
	}
	resp.Body.Close()
}
