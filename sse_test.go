package sse

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log"
	"log/slog"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"unicode/utf8"
	"unsafe"
	"weak"
)

// How to read this file. It follows the reading order of the code, in sections of the
// same names; a section is found by its line "// ----- NAME -----". Tests run on fake
// time (testing/synctest) wherever nothing outside the process takes part.
//
// There are two worlds in memory. The wire* helpers are an http.Server of each protocol
// (eachWireProtocol) and a client that reads its answer byte by byte: for the Writer, and
// what is the same for every stream. The pipe* helpers are a server of a Broker and
// clients that can be stalled, cut and counted (pipeServer, pipeClient): for all that a
// Broker's client sees. serveAndDetach runs a test with Serve and with Detach;
// followBroker is the same client as a loop over Subscribe.
//
// TestModel runs random schedules of all verbs against a Broker and an exact model of
// it. A schedule that failed runs again by
//
//	go test -run TestModel/serve -model.seeds 1 -model.seed N .

// ----- Serve -----

func TestLastEventID(t *testing.T) {
	for _, tt := range []struct{ header, query, want string }{
		{"", "", ""},
		{"7", "", "7"},
		{"", "?lastEventId=8", "8"},
		{"7", "?lastEventId=8", "7"},
		{"", "?lastEventId=", ""},
		{"", "?lastEventId=a+b%3A%C3%BC&lastEventId=9", "a b:ü"},
		{"", "?lasteventid=8", ""},
		{"é", "", "é"},
	} {
		r := httptest.NewRequest("GET", "/"+tt.query, nil)
		if tt.header != "" {
			r.Header.Set("Last-Event-ID", tt.header)
		}
		if got := LastEventID(r); got != tt.want {
			t.Errorf("header %q, query %q: got %q, want %q", tt.header, tt.query, got, tt.want)
		}
	}
}

// An ID that is accepted comes back as it was.
func TestLastEventIDReturns(t *testing.T) {
	for _, id := range []string{"7", "a b", "a:b=c;d, e", "ü", "日本", "😀", "\u00a0a\u00a0", "\u2028", "\ufeff", strings.Repeat("x", 1024)} {
		if err := (Event{ID: id}).check(); err != nil {
			t.Errorf("got %v, want the ID accepted", err)
		}
		if got := throughHeader(t, id); got != id {
			t.Errorf("got %q, want %q", got, id)
		}
	}
}

// received is the sequence of what is sent to events until the channel is closed or
// ctx has ended, as Serve's documentation has it.
func received(ctx context.Context, events <-chan Event) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			select {
			case ev, ok := <-events:
				if !ok || !yield(ev, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// sequence yields the events, and then err if it is not nil.
func sequence(err error, events ...Event) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for _, ev := range events {
			if !yield(ev, nil) {
				return
			}
		}
		if err != nil {
			yield(Event{}, err)
		}
	}
}

// unwanted fails the test if it is run.
func unwanted(t *testing.T) iter.Seq2[Event, error] {
	return func(func(Event, error) bool) { t.Error("the sequence was run") }
}

// afterTheFirst returns a function that calls f, but not at its first call: for
// flushes, the first of which is that of the headers.
func afterTheFirst(f func()) func() {
	first := true
	return func() {
		if !first {
			f()
		}
		first = false
	}
}

func TestServe(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		events := make(chan Event)
		errs := make(chan error, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			errs <- Serve(w, r, received(r.Context(), events))
		}, shortTimeouts)
		client := openWireStream(t, srv, "GET", nil)
		wantHeaders(t, client.response, http.StatusOK, map[string]string{"Content-Type": "text/event-stream; charset=utf-8"})

		client.want(":\n")
		time.Sleep(15*time.Second - 1)
		client.want("")
		time.Sleep(1 * time.Nanosecond)
		client.want(":\n")
		time.Sleep(10 * time.Second)
		events <- Event{ID: "1", Data: "a"}
		client.want("id: 1\ndata: a\n\n")
		time.Sleep(15*time.Second - 1) // the event has put the keep-alive off
		client.want("")
		time.Sleep(1 * time.Nanosecond)
		client.want(":\n")
		time.Sleep(15 * time.Second)
		client.want(":\n")
		close(events)
		client.want("")
		client.wantEnd()
		wireCheck(t, <-errs)
	})
}

func TestServeWhenClientLeaves(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		errs := make(chan error, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			errs <- Serve(w, r, received(r.Context(), nil))
		})
		client := openWireStream(t, srv, "GET", nil)
		client.want(":\n")
		left := time.Now()
		client.leave()
		if err := <-errs; !errors.Is(err, ErrClientLeft) || !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v and %v", err, ErrClientLeft, context.Canceled)
		}
		if took := time.Since(left); took != 0 {
			t.Errorf("got the error after %v, want it at once", took)
		}
	})
}

// The context's cause is the reason, whatever a sequence that watches it yields. One
// that has ended before is no reason to run the sequence.
func TestServeWhenContextEnds(t *testing.T) {
	revoked := errors.New("access revoked")
	for _, yields := range []error{nil, errors.New("of the sequence")} {
		ctx, cancel := context.WithCancelCause(t.Context())
		events := func(yield func(Event, error) bool) {
			cancel(revoked)
			sequence(yields)(yield)
		}
		err := Serve(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx), events)
		if errors.Is(err, ErrClientLeft) || !errors.Is(err, revoked) {
			t.Errorf("%v yielded: got %v, want %v and not %v", yields, err, revoked, ErrClientLeft)
		}
		err = Serve(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx), unwanted(t))
		if errors.Is(err, ErrClientLeft) || !errors.Is(err, revoked) {
			t.Errorf("ended before: got %v, want %v and not %v", err, revoked, ErrClientLeft)
		}
	}
}

func TestServeStalledClient(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		events := make(chan Event)
		errs := make(chan error, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			errs <- Serve(w, r, received(r.Context(), events))
		})
		openStalledWireStream(t, srv)
		began := time.Now()
		for {
			select {
			case events <- Event{Data: strings.Repeat("x", 10<<10)}:
				began = time.Now()
				continue
			case err := <-errs:
				want := 10*time.Second + hangUpTime(protocol)
				if took := time.Since(began); !errors.Is(err, ErrTooSlow) || took != want {
					t.Errorf("got %v after %v, want %v after %v", err, took, ErrTooSlow, want)
				}
			}
			break
		}
	})
}

// A client that stalls while the sequence is silent is noticed by a keep-alive, and
// that is the reason.
func TestServeStalledSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errs := make(chan error, 1)
		srv := newWireServer(t, "HTTP/1.1", func(w http.ResponseWriter, r *http.Request) {
			errs <- Serve(w, r, received(r.Context(), nil))
		})
		began := time.Now()
		io.WriteString(srv.dial(t), "GET / HTTP/1.1\r\nHost: test\r\n\r\n") // and reads nothing
		err := <-errs
		if took := time.Since(began); !errors.Is(err, ErrTooSlow) || took != 10*time.Second {
			t.Errorf("first block: got %v after %v, want %v after 10s", err, took, ErrTooSlow)
		}
		conn := srv.dial(t)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		began = time.Now()
		for read := ""; !strings.HasSuffix(read, ":\n\r\n"); {
			var b [1]byte
			_, err := io.ReadFull(conn, b[:])
			wireCheck(t, err)
			read += string(b[:])
		}
		err = <-errs
		if took := time.Since(began); !errors.Is(err, ErrTooSlow) || took != 25*time.Second {
			t.Errorf("keep-alive: got %v after %v, want %v after 25s", err, took, ErrTooSlow)
		}
	})
}

func TestServeFlushesEachEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wireTape{}
		wireCheck(t, Serve(w, httptest.NewRequest("GET", "/", nil), sequence(nil, Event{Data: "a"}, Event{Data: "b"})))
		w.want(t, "events",
			"deadline 10s", "status 200", "deadline 10s", `write ":\n"`, "flush", "deadline off", "read deadline off",
			"deadline 10s", `write "data: a\n\n"`, "flush", "deadline off",
			"deadline 10s", `write "data: b\n\n"`, "flush", "deadline off",
			"deadline 10s") // for the last chunk
		// Over HTTP/2 it would hold the memory of the stream until it passes.
		r := httptest.NewRequest("GET", "/", nil)
		r.ProtoMajor = 2
		wireCheck(t, Serve(w, r, sequence(nil)))
		w.want(t, "HTTP/2", "deadline 10s", "status 200", "deadline 10s", `write ":\n"`, "flush", "deadline off", "read deadline off")
	})
}

// What was sent before an event that is refused reaches the client.
func TestServeRefusedEvent(t *testing.T) {
	w := httptest.NewRecorder()
	events := []Event{{Data: "a"}, {Data: "b"}, {ID: "\n"}, {Data: "c"}}
	err := Serve(w, httptest.NewRequest("GET", "/", nil), sequence(nil, events...))
	const want = `sse: event ID "\n" contains a control character`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if got, want := w.Body.String(), ":\ndata: a\n\ndata: b\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestServeHEAD(t *testing.T) {
	w := &wireTape{}
	wireCheck(t, Serve(w, httptest.NewRequest("HEAD", "/", nil), unwanted(t)))
	w.want(t, "HEAD", "status 200")
}

func TestServeThatCannotFlush(t *testing.T) {
	w := httptest.NewRecorder()
	err := Serve(wireOpaque{w}, httptest.NewRequest("GET", "/", nil), unwanted(t))
	if !errors.Is(err, http.ErrNotSupported) || w.Code != http.StatusInternalServerError {
		t.Errorf("got %v, status %d, want %v, status 500", err, w.Code, http.ErrNotSupported)
	}
}

// A browser that is cut off before the first event keeps its place. What any link
// may bring is not repeated.
func TestServeRepeatsTheLastEventID(t *testing.T) {
	for _, tt := range []struct{ header, query, want string }{
		{"7", "", "id: 7\n\n"},
		{"7", "?lastEventId=8", "id: 7\n\n"},
		{"ü", "", "id: ü\n\n"},
		{"", "?lastEventId=8", ":\n"},
		{"", "", ":\n"},
		{"a\nid: b", "", ":\n"},
		{"a\xff", "", ":\n"},
		{strings.Repeat("x", 1025), "", ":\n"},
		{Earliest, "", ":\n"},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/"+tt.query, nil)
		if tt.header != "" {
			r.Header.Set("Last-Event-ID", tt.header)
		}
		wireCheck(t, Serve(w, r, sequence(nil)))
		if got := w.Body.String(); got != tt.want {
			t.Errorf("header %q, query %q: got %q, want %q", tt.header, tt.query, got, tt.want)
		}
	}
}

// A stream of one client is finite: one that broke must not look finished, on any
// protocol that can show it, and what was sent before arrives.
func TestBrokenStreamLooksBroken(t *testing.T) {
	broken := errors.New("the database is gone")
	a := Event{Data: "a"}
	for _, tt := range []struct {
		name   string
		handle func(w http.ResponseWriter, r *http.Request) error
		want   error // of Serve
	}{
		{"NewWriter, panic", func(w http.ResponseWriter, r *http.Request) error {
			out, _ := NewWriter(w, r)
			out.Send(a)
			panic(http.ErrAbortHandler)
		}, nil},
		{"Serve, panic", func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, func(yield func(Event, error) bool) {
				yield(a, nil)
				panic(http.ErrAbortHandler)
			})
		}, nil},
		{"Serve, Goexit", func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, func(yield func(Event, error) bool) {
				yield(a, nil)
				runtime.Goexit()
			})
		}, nil},
		{"Serve, error", func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, sequence(broken, a))
		}, broken},
		{"Serve, error after an hour", func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, func(yield func(Event, error) bool) {
				yield(a, nil)
				time.Sleep(time.Hour + time.Second)
				yield(Event{}, broken)
			})
		}, broken},
		{"Serve, refused event", func(w http.ResponseWriter, r *http.Request) error {
			err := Serve(w, r, sequence(nil, a, Event{ID: "\n"}))
			if err != nil && strings.HasPrefix(err.Error(), "sse: event ID") {
				err = broken
			}
			return err
		}, broken},
		{"Serve, context of the program's", func(w http.ResponseWriter, r *http.Request) error {
			ctx, cancel := context.WithCancelCause(r.Context())
			return Serve(w, r.WithContext(ctx), func(yield func(Event, error) bool) {
				yield(a, nil)
				cancel(broken)
			})
		}, broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachWireProtocol(t, func(t *testing.T, protocol string) {
				errs := make(chan error, 1)
				srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/other" {
						wireCheck(t, Serve(w, r, sequence(nil, a)))
						return
					}
					errs <- tt.handle(w, r)
				})
				client := openWireStream(t, srv, "GET", nil)
				time.Sleep(2 * time.Hour)
				if text := strings.ReplaceAll(client.text(), ":\n", ""); text != "data: a\n\n" {
					t.Errorf("got %q, want what was sent before", client.text())
				}
				client.mu.Lock()
				if looksFinished := client.err == io.EOF; client.err == nil || looksFinished != (protocol == "HTTP/1.0") {
					t.Errorf("got %v as the stream's end", client.err)
				}
				client.mu.Unlock()
				if tt.want != nil {
					if err := <-errs; !errors.Is(err, tt.want) {
						t.Errorf("Serve: got %v, want %v", err, tt.want)
					}
				}
				// What else the connection carries goes on.
				if strings.HasPrefix(protocol, "HTTP/2") {
					srv.URL += "/other"
					client := openWireStream(t, srv, "GET", nil)
					client.want(":\ndata: a\n\n")
					client.wantEnd()
					if srv.dials() != 1 {
						t.Errorf("got %d connections, want 1", srv.dials())
					}
				}
			})
		})
	}
}

// No deadline is left on the connection, which serves other requests after the
// stream has finished.
func TestServeLeavesTheConnection(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		if protocol == "HTTP/1.0" {
			return
		}
		const pause = 20 * time.Second // longer than any deadline
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				io.ReadFull(r.Body, make([]byte, 1)) // and not the rest
			}
			events := sequence(nil, Event{Data: "a"})
			if r.Method == "HEAD" {
				events = sequence(ErrEnded)
			}
			Serve(w, r, func(yield func(Event, error) bool) {
				time.Sleep(pause)
				events(yield)
			})
		})
		for i, wait := range []time.Duration{0, time.Second, defaultWriteTimeout, time.Hour} {
			for _, method := range []string{"GET", "POST", "HEAD"} {
				time.Sleep(wait)
				var body io.Reader
				want := ":\n:\ndata: a\n\n"
				switch method {
				case "POST":
					body = strings.NewReader("why?")
				case "HEAD":
					want = ""
				}
				client := openWireStream(t, srv, method, body)
				time.Sleep(pause)
				client.want(want)
				client.wantEnd()
				if srv.dials() != 1 {
					t.Fatalf("%s, round %d: got %d connections, want 1", method, i, srv.dials())
				}
			}
		}
	})
}

// However the sequence ends, nothing is written after that, and what is being
// written then is waited for: the handler may return, or the panic go on.
func TestServeStopsItsKeepAlives(t *testing.T) {
	for name, end := range map[string]func(){
		"return": func() {},
		"panic":  func() { panic("of the sequence") },
		"Goexit": runtime.Goexit,
	} {
		for _, silence := range []time.Duration{14 * time.Second, 15 * time.Second, 16 * time.Second} {
			t.Run(fmt.Sprint(name, " after ", silence), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := &wireTape{duringFlush: afterTheFirst(func() { time.Sleep(5 * time.Second) })}
					ended := make(chan time.Time, 1)
					began := time.Now()
					go func() {
						defer func() {
							recover()
							w.note("end")
							ended <- time.Now()
						}()
						Serve(w, httptest.NewRequest("GET", "/", nil), func(yield func(Event, error) bool) {
							time.Sleep(silence)
							end()
						})
					}()
					want := silence
					if silence >= 15*time.Second {
						want = 20 * time.Second
					}
					if got := (<-ended).Sub(began); got != want && (silence != 15*time.Second || got != silence) {
						t.Errorf("Serve ended after %v, want %v", got, want)
					}
					time.Sleep(time.Hour)
					synctest.Wait()
					if last := w.tape[len(w.tape)-1]; last != "end" {
						t.Errorf("got %q, want nothing after the end", w.tape)
					}
				})
			})
		}
	}
}

// A keep-alive never stands within an event, however long that takes.
func TestServeKeepsEventsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := Event{Data: strings.Repeat("x", 1<<20)}
		srv := newWireServer(t, "HTTP/1.1", func(w http.ResponseWriter, r *http.Request) {
			wireCheck(t, Serve(w, r, sequence(nil, large, large)))
		})
		conn := srv.dial(t)
		io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		began := time.Now()
		var read bytes.Buffer
		for {
			if _, err := io.CopyN(&read, conn, 8<<10); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		_, body, _ := strings.Cut(read.String(), "\r\n\r\n")
		frame, _ := large.AppendText(nil)
		if want := ":\n" + string(frame) + string(frame); body != want || time.Since(began) < 2*time.Minute {
			t.Errorf("got %d bytes in %v with %d comments, want %d without any", len(body), time.Since(began), strings.Count(body, ":")-strings.Count(want, ":"), len(want))
		}
	})
}

// Middleware that panics costs one client and not the process.
func TestServeSurvivesAPanicInAKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wireTape{duringFlush: afterTheFirst(func() { panic("of middleware") })}
		err := Serve(w, httptest.NewRequest("GET", "/", nil), func(yield func(Event, error) bool) {
			time.Sleep(time.Minute)
			synctest.Wait()
			w.tape = nil
			yield(Event{Data: "a"}, nil)
		})
		if err == nil || !strings.Contains(err.Error(), "panic: of middleware") {
			t.Errorf("got %v, want the panic", err)
		}
		w.want(t, "after the panic", "deadline past")
	})
}

// A stream that has finished for good says so, and nobody is streamed it again.
func TestServeEnded(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		errs := make(chan error, 1)
		wrapped := fmt.Errorf("the job is done: %w", ErrEnded)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			errs <- Serve(w, r, sequence(wrapped, Event{Data: "a"}))
		})
		for method, want := range map[string]string{"GET": ":\ndata: a\n\nid: sse-end\nevent: end\ndata: \n\n", "POST": ":\ndata: a\n\n"} {
			client := openWireStream(t, srv, method, nil)
			client.want(want)
			client.wantEnd()
			if err := <-errs; err != wrapped {
				t.Errorf("%s: got %v, want %v", method, err, wrapped)
			}
		}
	})
	// If the client does not get that, it is no end.
	err := Serve(&wireTape{}, httptest.NewRequest("GET", "/", nil), func(yield func(Event, error) bool) { yield(Event{}, ErrEnded) })
	if err != ErrEnded {
		t.Errorf("got %v, want %v", err, ErrEnded)
	}
	w := &wireTape{}
	err = Serve(w, httptest.NewRequest("GET", "/", nil), func(yield func(Event, error) bool) {
		w.writeError = io.ErrClosedPipe
		yield(Event{}, ErrEnded)
	})
	if !errors.Is(err, ErrClientLeft) || errors.Is(err, ErrEnded) {
		t.Errorf("got %v, want %v", err, ErrClientLeft)
	}
}

func TestServeAnswersOneThatComesAfterTheEnd(t *testing.T) {
	for _, tt := range []struct {
		method, header, query string
		status                int
	}{
		{"GET", "sse-end", "", 204},
		{"HEAD", "sse-end", "", 204},
		{"GET", "", "?lastEventId=sse-end", 204},
		{"HEAD", "", "?lastEventId=sse-end", 204},
		{"GET", "7", "?lastEventId=sse-end", 200}, // the page's address stays as it was
		{"GET", "sse-en", "", 200},
		{"POST", "sse-end", "", 200},
	} {
		for _, wrap := range []func(w http.ResponseWriter) http.ResponseWriter{
			func(w http.ResponseWriter) http.ResponseWriter { return w },
			func(w http.ResponseWriter) http.ResponseWriter { return wireOpaque{w} }, // 204 needs no flush
		} {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(tt.method, "/"+tt.query, nil)
			if tt.header != "" {
				r.Header.Set("Last-Event-ID", tt.header)
			}
			w.Header().Set("Cache-Control", "public")
			ran := false
			err := Serve(wrap(w), r, func(func(Event, error) bool) { ran = true })
			if tt.status == 204 {
				if err != ErrEnded || ran || w.Code != 204 || w.Body.Len() > 0 {
					t.Errorf("%+v: got %v, sequence run: %v, status %d, body %q", tt, err, ran, w.Code, w.Body)
				}
				if got := w.Header()["Cache-Control"]; !slices.Equal(got, []string{"no-store"}) {
					t.Errorf("%+v: got Cache-Control %q, want no-store alone", tt, got)
				}
			} else if w.Code == 204 || err == ErrEnded {
				t.Errorf("%+v: got %v, status %d", tt, err, w.Code)
			}
		}
	}
}

// ----- Client -----

func TestClientResumes(t *testing.T) {
	type connection struct {
		header string // that the client sends; "-" for none
		answer string // to it
	}
	for _, tt := range []struct {
		name        string
		first       string // the request's own header
		connections []connection
		want        string // the events: ID, a colon, and data
	}{
		{"with the last ID", "", []connection{
			{"-", "id: 1\ndata: a\n\nid: 2\ndata: b\n\n"}, {"2", "id: 3\ndata: c\n\n"}, {"3", "data: d\n\n"}}, "1:a 2:b 3:c 3:d"},
		{"from the request's own ID", "7", []connection{{"7", "data: a\n\n"}, {"7", "id: 8\ndata: b\n\n"}, {"8", ""}}, "7:a 8:b"},
		{"over connections without an ID", "", []connection{
			{"-", "id: 1\ndata: a\n\n"}, {"1", ""}, {"1", ":\n"}, {"1", "data: b\n\n"}, {"1", "data: c\n\n"}}, "1:a 1:b 1:c"},
		{"with an ID without an event", "", []connection{{"-", "id: 1\n\n"}, {"1", ""}}, ""},
		{"not with the ID of a block that was cut off", "", []connection{{"-", "id: 1\ndata: a\n\nid: 2\ndata: b\n"}, {"1", ""}}, "1:a"},
		{"from the start once the ID is emptied", "7", []connection{{"7", "id: 1\ndata: a\n\nid\ndata: b\n\n"}, {"-", "data: c\n\n"}, {"-", ""}}, "1:a :b :c"},
		{"without an ID that no header can hold", "", []connection{
			{"-", "id: a\x01b\ndata: a\n\n"}, {"-", "data: b\n\n"}, {"-", "id: \x7f\n\n"}, {"-", "id: 1\n\n"}, {"1", ""}}, "a\x01b:a a\x01b:b"},
		{"with an ID that is not ASCII", "", []connection{{"-", "id: é\tb\ndata: a\n\n"}, {"é\tb", ""}}, "é\tb:a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
					if n < len(tt.connections) {
						streamText(w, tt.connections[n].answer)
					} else {
						w.WriteHeader(http.StatusNoContent)
					}
				})
				req := s.request(t)
				if tt.first != "" {
					req.Header.Set("Last-Event-ID", tt.first)
				}
				var got []string
				for ev, err := range s.client().Events(req) {
					if err == nil {
						got = append(got, ev.ID+":"+ev.Data)
					}
				}
				if got := strings.Join(got, " "); got != tt.want {
					t.Errorf("got events %q, want %q", got, tt.want)
				}
				for n, c := range tt.connections {
					got := "-"
					if header := s.requests[n].header; header["Last-Event-Id"] != nil {
						got = header.Get("Last-Event-ID")
					}
					if got != c.header {
						t.Errorf("connection %d: got Last-Event-ID %q, want %q", n, got, c.header)
					}
				}
			})
		})
	}
}

func TestClientWaitsAsTheStreamSays(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		const second = time.Second
		long := func(w http.ResponseWriter, lasts time.Duration) {
			streamText(w, "")
			time.Sleep(lasts)
		}
		var refuse bool
		steps := []struct {
			answer   func(w http.ResponseWriter)
			min, max time.Duration // of the wait behind it
		}{
			// The first connection failed: there was no wait before it, so the usual one counts.
			{func(w http.ResponseWriter) { long(w, second) }, 2*second + 1, 4 * second},
			// A connection that brought an event was healthy: the wait is exact.
			{func(w http.ResponseWriter) { streamText(w, "data: a\n\n") }, 2 * second, 2 * second},
			{func(w http.ResponseWriter) { streamText(w, "retry: 5000\n\ndata: a\n\n") }, 5 * second, 5 * second},
			{func(w http.ResponseWriter) { streamText(w, "data: a\n\n") }, 5 * second, 5 * second},
			// So was one that lasted longer than the wait before it.
			{func(w http.ResponseWriter) { long(w, 6*second) }, 5 * second, 5 * second},
			// Other ones fail.
			{func(w http.ResponseWriter) { long(w, 5*second) }, 5 * second, 10 * second},
			{func(w http.ResponseWriter) { streamText(w, "") }, 10 * second, 20 * second},
			{func(w http.ResponseWriter) { w.WriteHeader(500) }, 15 * second, 30 * second},
			{func(w http.ResponseWriter) { w.WriteHeader(500) }, 15 * second, 30 * second},
			{func(w http.ResponseWriter) { streamText(w, "retry: 1000\n") }, 15 * second, 30 * second},
			{func(w http.ResponseWriter) { streamText(w, "data: a\n\n") }, second, second},
			{func(w http.ResponseWriter) { streamText(w, "") }, second, 2 * second},
			{func(w http.ResponseWriter) { panic(http.ErrAbortHandler) }, 2 * second, 4 * second},
			{func(w http.ResponseWriter) { refuse = true; streamText(w, "") }, 4 * second, 8 * second},
			{nil, 8 * second, 16 * second}, // refused
			// The stream's own time may be longer than MaxWait.
			{func(w http.ResponseWriter) { streamText(w, "retry: 40000\n") }, 40 * second, 80 * second},
			{func(w http.ResponseWriter) { streamText(w, "") }, 40 * second, 80 * second},
			{func(w http.ResponseWriter) { streamText(w, "data: a\n\n") }, 40 * second, 40 * second},
			// A time of 0 is none.
			{func(w http.ResponseWriter) { streamText(w, "retry: 0\n\ndata: a\n\n") }, 40 * second, 40 * second},
		}
		n := -1 // the number of the connection
		var began, ended time.Time
		check := func() {
			began = time.Now()
			if n++; n == 0 {
				return
			}
			if wait, step := began.Sub(ended), steps[n-1]; wait < step.min || wait > step.max {
				t.Errorf("wait after connection %d: got %v, want %v to %v", n-1, wait, step.min, step.max)
			}
		}
		s := newClientServer(t, protocol, func(_ int, w http.ResponseWriter, r *http.Request) {
			if n == len(steps) {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			defer func() { ended = time.Now() }()
			steps[n].answer(w)
		})
		c := s.client()
		c.Retry, c.MaxWait = 2*second, 30*second
		transport := c.HTTPClient.Transport
		c.HTTPClient.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			check()
			if refuse {
				refuse, ended = false, time.Now()
				return nil, syscall.ECONNREFUSED
			}
			return transport.RoundTrip(r)
		})
		for _, err := range c.Events(s.request(t)) {
			if err != nil && err != ErrEnded {
				t.Errorf("got error %v, want %v", err, ErrEnded)
			}
		}
		if n != len(steps) {
			t.Errorf("got %d connections, want %d", n, len(steps))
		}
	})
}

// The waits of clients that have lost the same server differ, and grow up to MaxWait.
func TestClientSpreadsItsReconnections(t *testing.T) {
	for _, tt := range []struct {
		c    Client
		want []time.Duration // the shortest waits; the longest is twice as long
	}{
		{Client{}, []time.Duration{3 * time.Second, 6 * time.Second, 12 * time.Second, 24 * time.Second, 30 * time.Second, 30 * time.Second}},
		{Client{Retry: -1, MaxWait: 10 * time.Second}, []time.Duration{3 * time.Second, 5 * time.Second, 5 * time.Second}},
		{Client{Retry: time.Minute, MaxWait: -1}, []time.Duration{time.Minute, time.Minute, time.Minute}},
	} {
		least, most := slices.Repeat([]time.Duration{math.MaxInt64}, len(tt.want)), make([]time.Duration, len(tt.want))
		for range 100 {
			synctest.Test(t, func(t *testing.T) {
				c := tt.c
				last, n := time.Now(), 0
				c.Logger = slog.New(slog.DiscardHandler)
				c.HTTPClient = &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) { return nil, syscall.ECONNREFUSED })}
				c.CheckRetry = func(*http.Request, error) error {
					wait := time.Since(last)
					least[n], most[n] = min(least[n], wait), max(most[n], wait)
					last = time.Now()
					if n++; n == len(tt.want) {
						return io.EOF
					}
					return nil
				}
				for range c.Events(clientRequest(t)) {
				}
			})
		}
		for n, want := range tt.want {
			if least[n] < want || least[n] > want+want/5 || most[n] > 2*want || most[n] < 2*want-want/5 {
				t.Errorf("%+v, wait %d: got %v to %v, want %v to %v", tt.c, n, least[n], most[n], want, 2*want)
			}
		}
	}
}

func TestClientWaitsForTheLongestTimeThereIs(t *testing.T) {
	for _, status := range []int{200, 503} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			c := &Client{Retry: math.MaxInt64, MaxWait: math.MaxInt64, Logger: slog.New(slog.DiscardHandler)}
			c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				body := io.NopCloser(strings.NewReader("retry: 99999999999999999999\n"))
				return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body, Request: r}, nil
			})}
			c.CheckRetry = func(r *http.Request, err error) error { return err }
			for range c.Events(clientRequest(t)) {
			}
			if wait, least := time.Since(began), 100*365*24*time.Hour; wait < least {
				t.Errorf("status %d: got a wait of %v, want %v at least", status, wait, least)
			}
		})
	}
}

func TestClientWaitsAtLeastForRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		status     int
		retryAfter func() string
		min, max   time.Duration
	}{
		{503, func() string { return "100" }, 100 * time.Second, 100 * time.Second},
		{429, func() string { return "7200" }, 2 * time.Hour, 2 * time.Hour}, // also beyond MaxWait
		{408, func() string { return time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) }, time.Hour, time.Hour},
		{503, func() string { return "1" }, 3 * time.Second, 6 * time.Second}, // a minimum
		{503, func() string { return "0" }, 3 * time.Second, 6 * time.Second},
		{503, func() string { return "-5" }, 3 * time.Second, 6 * time.Second},
		{503, func() string { return "soon" }, 3 * time.Second, 6 * time.Second},
		{503, func() string { return "Mon, 02 Jan 2006 15:04:05 GMT" }, 3 * time.Second, time.Hour}, // after fake time begins
		{503, func() string { return "Fri, 31 Dec 1999 23:59:59 GMT" }, 3 * time.Second, 6 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			retryAfter := tt.retryAfter()
			if tt.status == 503 && strings.Contains(retryAfter, "2006") {
				tt.min = time.Date(2006, 1, 2, 15, 4, 5, 0, time.UTC).Sub(began)
				tt.max = tt.min
			}
			s := newClientServer(t, "HTTP/1.1", func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				w.Header().Set("Retry-After", retryAfter)
				w.WriteHeader(tt.status)
			})
			for range s.client().Events(s.request(t)) {
			}
			if got := s.requests[1].at.Sub(began); got < tt.min || got > tt.max {
				t.Errorf("Retry-After %q: got a wait of %v, want %v to %v", retryAfter, got, tt.min, tt.max)
			}
		})
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	cause := errors.New("enough")
	for when, prepare := range map[string]func(s *clientServer, c *Client){
		"before": nil,
		"waiting": func(s *clientServer, c *Client) {
			s.answer = func(n int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }
			c.Retry = time.Hour
		},
		"connecting": func(s *clientServer, c *Client) {
			c.HTTPClient.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		},
		"no answer": func(s *clientServer, c *Client) {
			s.answer = func(n int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		},
		"reading": func(s *clientServer, c *Client) {
			s.answer = func(n int, w http.ResponseWriter, r *http.Request) {
				streamText(w, "data: a\n\n")
				<-r.Context().Done()
			}
		},
		"reading an error": func(s *clientServer, c *Client) {
			s.answer = func(n int, w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(404)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
		},
		"in the loop": func(s *clientServer, c *Client) {
			s.answer = func(n int, w http.ResponseWriter, r *http.Request) {
				streamText(w, strings.Repeat("data: a\n\n", 1000))
				<-r.Context().Done()
			}
		},
		"in CheckRetry": func(s *clientServer, c *Client) {
			s.answer = func(n int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }
		},
	} {
		t.Run(when, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				s := newClientServer(t, protocol, nil)
				c := s.client()
				var cancelled time.Time
				stop := func() { cancelled = time.Now(); cancel(cause) }
				if prepare == nil {
					stop()
				} else {
					prepare(s, c)
				}
				c.CheckRetry = func(*http.Request, error) error {
					if ctx.Err() != nil {
						t.Error("CheckRetry was asked after the context's end")
					}
					return nil
				}
				switch when {
				case "in CheckRetry":
					c.CheckRetry = func(*http.Request, error) error { stop(); return nil }
				case "in the loop":
				default:
					time.AfterFunc(2*time.Second, stop)
				}
				events, got := 0, error(nil)
				for ev, err := range c.Events(s.request(t).WithContext(ctx)) {
					if events++; err != nil {
						got = err
					}
					if when == "in the loop" && events == 10 {
						stop()
					}
					if err != nil && ev != (Event{}) {
						t.Errorf("got %+v with the error", ev)
					}
				}
				if got != cause {
					t.Errorf("got error %v, want the cause", got)
				}
				if waited := time.Since(cancelled); waited != 0 {
					t.Errorf("the loop ended %v after the context", waited)
				}
			})
		})
	}
}

// Once the context has ended nothing that was read before is yielded.
func TestClientEndsWithItsContextWithinWhatItHasRead(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 200 {
			fmt.Fprintf(w, "data: %d\n\n", i)
		}
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
	wireCheck(t, err)
	var got []string
	for ev, err := range new(Client).Events(r) {
		cancel()
		got = append(got, fmt.Sprint(ev.Data, err))
	}
	cancel()
	if want := []string{"0<nil>", "context canceled"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A failure that may pass makes the Client reconnect, the first time too, and the
// loop never sees it.
func TestClientReconnects(t *testing.T) {
	status := func(status int) func(*clientServer, http.ResponseWriter, *http.Request) {
		return func(_ *clientServer, w http.ResponseWriter, r *http.Request) { http.Error(w, "later", status) }
	}
	for _, tt := range []struct {
		name   string
		answer func(s *clientServer, w http.ResponseWriter, r *http.Request)
		want   func(err error) bool
	}{
		{"end", func(_ *clientServer, w http.ResponseWriter, r *http.Request) { streamText(w, "") },
			func(err error) bool { return err == io.EOF }},
		{"end within an event", func(_ *clientServer, w http.ResponseWriter, r *http.Request) { streamText(w, "data: x\n") },
			func(err error) bool { return err == io.ErrUnexpectedEOF }},
		{"cut", func(_ *clientServer, w http.ResponseWriter, r *http.Request) {
			streamText(w, ":\n")
			panic(http.ErrAbortHandler)
		}, func(err error) bool { return err != nil && err != io.EOF }},
		{"cut before the headers", func(_ *clientServer, w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
			func(err error) bool { return errors.As(err, new(*url.Error)) }},
		{"refused", nil, func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }},
		{"silence", func(_ *clientServer, w http.ResponseWriter, r *http.Request) {
			streamText(w, "")
			<-r.Context().Done()
		}, func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }},
		{"408", status(408), isStatus(408)},
		{"425", status(425), isStatus(425)},
		{"429", status(429), isStatus(429)},
		{"500", status(500), isStatus(500)},
		{"501", status(501), isStatus(501)},
		{"502", status(502), isStatus(502)},
		{"503", status(503), isStatus(503)},
		{"599", status(599), isStatus(599)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				var s *clientServer
				s = newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
					switch {
					case tt.answer == nil && n == 0 || n == 2:
						streamText(w, "data: there\n\n")
					case tt.answer == nil:
						w.WriteHeader(http.StatusNoContent)
					case n < 2:
						tt.answer(s, w, r)
					default:
						w.WriteHeader(http.StatusNoContent)
					}
				})
				c := s.client()
				transport, tries := c.HTTPClient.Transport, 0
				c.HTTPClient.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
					if tries++; tt.answer == nil && tries <= 2 {
						return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
					}
					return transport.RoundTrip(r)
				})
				var reasons []error
				c.CheckRetry = func(r *http.Request, err error) error {
					reasons = append(reasons, err)
					return nil
				}
				var got []string
				for ev, err := range c.Events(s.request(t)) {
					got = append(got, fmt.Sprint(ev.Data, err))
				}
				if want := []string{"there<nil>", ErrEnded.Error()}; !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if len(reasons) != 3 || !tt.want(reasons[0]) || !tt.want(reasons[1]) || reasons[2] != io.EOF {
					t.Errorf("got reasons %v, want two for the test's failure, then %v", reasons, io.EOF)
				}
			})
		})
	}
}

func isStatus(status int) func(error) bool {
	return func(err error) bool {
		var answer *ResponseError
		return errors.As(err, &answer) && answer.StatusCode == status && string(answer.Body) == "later\n"
	}
}

// What will not pass ends the loop with the first answer, and CheckRetry is not asked.
func TestClientEnds(t *testing.T) {
	response := func(status int, text string) func(error) bool {
		return func(err error) bool {
			var answer *ResponseError
			return errors.As(err, &answer) && answer.StatusCode == status && err.Error() == text &&
				string(answer.Body) == "because" && answer.Header.Get("X-Reason") == "test"
		}
	}
	answer := func(status int, contentType string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Reason", "test")
			w.Header()["Content-Type"] = []string{contentType}
			if contentType == "" {
				w.Header()["Content-Type"] = nil
			}
			w.WriteHeader(status)
			io.WriteString(w, "because")
		}
	}
	wants := func(text string) func(error) bool {
		return func(err error) bool { return err != nil && strings.Contains(err.Error(), text) }
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		change func(t *testing.T, s *clientServer, c *Client, r *http.Request)
		want   func(error) bool
	}{
		{"204", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, nil, func(err error) bool { return err == ErrEnded }},
		{"the event end", func(w http.ResponseWriter, r *http.Request) {
			streamText(w, "id: sse-end\nevent: end\ndata: \n\ndata: x\n\n")
		}, nil,
			func(err error) bool { return err == ErrEnded }},
		{"201", answer(201, "text/event-stream"), nil, response(201, "sse: server answered 201 Created")},
		{"206", answer(206, "text/event-stream"), nil, response(206, "sse: server answered 206 Partial Content")},
		{"300", answer(300, "text/event-stream"), nil, response(300, "sse: server answered 300 Multiple Choices")},
		{"301 without Location", answer(301, "text/html"), nil, response(301, "sse: server answered 301 Moved Permanently")},
		{"304", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) }, nil, wants("304 Not Modified")},
		{"redirects without end", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusTemporaryRedirect) }, nil, func(err error) bool {
			var answer *ResponseError
			return errors.As(err, &answer) && answer.StatusCode == 307 && strings.Contains(err.Error(), "stopped after 10 redirects")
		}},
		{"redirects that the program does not follow", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusTemporaryRedirect) },
			func(t *testing.T, s *clientServer, c *Client, r *http.Request) {
				c.HTTPClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			}, wants("307 Temporary Redirect")},
		{"a redirect to nowhere", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://[")
			w.WriteHeader(307)
		}, nil, wants("failed to parse Location header")},
		{"a redirect to another scheme", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "htp://sse.test/")
			w.WriteHeader(307)
		}, nil, wants("unsupported protocol scheme")},
		{"400", answer(400, "text/event-stream"), nil, response(400, "sse: server answered 400 Bad Request")},
		{"401", answer(401, "text/plain"), nil, response(401, "sse: server answered 401 Unauthorized")},
		{"404", answer(404, "text/plain"), nil, response(404, "sse: server answered 404 Not Found")},
		{"410", answer(410, "text/plain"), nil, response(410, "sse: server answered 410 Gone")},
		{"499", answer(499, "text/plain"), nil, response(499, "sse: server answered 499 ")},
		{"another Content-Type", answer(200, "text/html; charset=utf-8"), nil,
			response(200, `sse: server answered 200 OK with Content-Type "text/html; charset=utf-8", not text/event-stream`)},
		{"no Content-Type", answer(200, ""), nil, response(200, `sse: server answered 200 OK with Content-Type "", not text/event-stream`)},
		{"a Content-Type that begins alike", answer(200, "text/event-streams"), nil,
			response(200, `sse: server answered 200 OK with Content-Type "text/event-streams", not text/event-stream`)},
		{"an event that is too large", func(w http.ResponseWriter, r *http.Request) { streamText(w, "data: "+strings.Repeat("x", 100)+"\n\n") },
			func(t *testing.T, s *clientServer, c *Client, r *http.Request) { c.MaxEventBytes = 100 },
			func(err error) bool { return errors.Is(err, ErrEventTooLarge) }},

		{"no URL", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) { r.URL = nil }, wants("nil Request.URL")},
		{"no host", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) {
			r.URL = &url.URL{Scheme: "http", Path: "/x"}
		}, wants("no Host")},
		{"no scheme", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) {
			r.URL, _ = url.Parse("localhost:8080/events")
		}, wants("unsupported protocol scheme")},
		{"another scheme", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) { r.URL.Scheme = "htp" }, wants("unsupported protocol scheme")},
		{"a server's request", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) { r.RequestURI = "/" }, wants("RequestURI can't be set")},
		{"a bad header", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) { r.Header.Set("X", "a\nb") }, wants("invalid header field value")},
		{"a bad header's name", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) { r.Header["X Y"] = []string{"a"} }, wants("invalid header field name")},
		{"a bad method", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) { r.Method = "A B" }, wants("invalid method")},
		{"GetBody fails", nil, func(t *testing.T, s *clientServer, c *Client, r *http.Request) {
			r.Body, r.GetBody = io.NopCloser(strings.NewReader("x")), func() (io.ReadCloser, error) { return nil, errors.New("gone") }
		}, wants("sse: request body: gone")},
		{"a body that cannot be sent again", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) },
			func(t *testing.T, s *clientServer, c *Client, r *http.Request) {
				r.Method, r.Body = "POST", io.NopCloser(strings.NewReader("x"))
			}, func(err error) bool {
				return err.Error() == "sse: request has a body and no GetBody to send it again after: sse: server answered 503 Service Unavailable"
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				began := time.Now()
				s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) { tt.answer(w, r) })
				c, r := s.client(), s.request(t)
				c.CheckRetry = func(r *http.Request, err error) error {
					t.Errorf("CheckRetry was asked after %v", err)
					return nil
				}
				if tt.change != nil {
					tt.change(t, s, c, r)
				}
				var got []error
				for ev, err := range c.Events(r) {
					if got = append(got, err); ev != (Event{}) || len(got) == 3 {
						t.Errorf("got %+v and %v, want an error", ev, err)
						break
					}
				}
				if len(got) != 1 || !tt.want(got[0]) {
					t.Errorf("got %v, want the test's one error", got)
				}
				if lasted := time.Since(began); lasted != 0 {
					t.Errorf("the loop took %v, want none", lasted)
				}
			})
		})
	}
}

// The type end alone, or the ID alone, may be the program's own.
func TestClientEndsOnlyWithTheEventForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newClientServer(t, "HTTP/1.1", func(n int, w http.ResponseWriter, r *http.Request) {
			streamText(w, "event: end\ndata: a\n\nid: 1\nevent: end\ndata: b\n\nid: sse-end\ndata: c\n\nid: sse-end\nevent: end\ndata: \n\n")
		})
		var got []string
		for ev, err := range s.client().Events(s.request(t)) {
			got = append(got, fmt.Sprint(ev.Data, err))
		}
		if want := []string{"a<nil>", "b<nil>", "c<nil>", ErrEnded.Error()}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// After 101 the connection is no longer net/http's, and no context ends a Read.
func TestClientDoesNotSwitchProtocols(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		defer server.Close()
		go func() {
			http.ReadRequest(bufio.NewReader(server))
			io.WriteString(server, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
		}()
		c := &Client{HTTPClient: &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil },
		}}}
		var got []error
		for _, err := range c.Events(clientRequest(t)) {
			got = append(got, err)
		}
		if len(got) != 1 || got[0].Error() != "sse: server answered 101 Switching Protocols" {
			t.Errorf("got %v, want one error for the status", got)
		}
	})
}

func TestClientDoesNotTrustAnUnknownCertificate(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1 with TLS", "HTTP/2 with TLS"} {
		synctest.Test(t, func(t *testing.T) {
			s := newClientServer(t, protocol, nil)
			s.Config.ErrorLog = pipeQuiet
			c := s.client()
			c.HTTPClient.Transport.(*http.Transport).TLSClientConfig.RootCAs = x509.NewCertPool()
			var got []error
			for _, err := range c.Events(s.request(t)) {
				got = append(got, err)
			}
			if len(got) != 1 || !errors.As(got[0], new(*tls.CertificateVerificationError)) || len(s.requests) != 0 {
				t.Errorf("%s: got %v and %d requests, want one error for the certificate", protocol, got, len(s.requests))
			}
		})
	}
}

// The body of an answer that is no stream is read, but not without end.
func TestClientReadsTheBeginningOfAnErrorsBody(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   int // bytes
		lasts  time.Duration
	}{
		{"long", func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		}, 64 << 10, 0},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 1))
				http.NewResponseController(w).Flush()
				select {
				case <-time.After(time.Second - time.Millisecond):
				case <-r.Context().Done():
				}
			}
		}, 6, 5 * time.Second},
		{"cut", func(w http.ResponseWriter, r *http.Request) {
			w.Write(make([]byte, 10))
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, 10, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(404)
					tt.answer(w, r)
				})
				c := s.client()
				c.ReadTimeout = -1
				began := time.Now()
				for _, err := range c.Events(s.request(t)) {
					var answer *ResponseError
					if !errors.As(err, &answer) || answer.StatusCode != 404 || len(answer.Body) != tt.want {
						t.Errorf("got %v, want a ResponseError with %d bytes", err, tt.want)
					}
				}
				if lasts := time.Since(began); lasts != tt.lasts {
					t.Errorf("got the error after %v, want %v", lasts, tt.lasts)
				}
			})
		})
	}
}

func TestClientAsksCheckRetry(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
			switch n {
			case 0:
				streamText(w, "id: 1\ndata: a\n\n")
			case 3:
				w.WriteHeader(404)
			default:
				w.WriteHeader(503)
			}
		})
		c, req := s.client(), s.request(t)
		asked := 0
		c.CheckRetry = func(r *http.Request, err error) error {
			if got := len(s.requests); got != asked+1 {
				t.Errorf("asked before connection %d, want %d", got, asked+1)
			}
			if wait := time.Since(s.requests[asked].at); wait < 3*time.Second {
				t.Errorf("asked %v after the last connection, want it after the wait", wait)
			}
			if r == req || r.Header.Get("Last-Event-ID") == "" || r.Header.Get("Authorization") != "" || r.URL.Path != "/" || r.Context() != req.Context() {
				t.Errorf("asked for the request %+v", r)
			}
			switch asked++; asked {
			case 1:
				r.Header.Set("Authorization", "token 1")
				r.Header.Set("Last-Event-ID", "9") // begins elsewhere, from then on
			case 2:
				r.URL.Path = "/other"
			}
			return nil
		}
		var got []error
		for _, err := range c.Events(req) {
			got = append(got, err)
		}
		if len(got) != 2 || got[0] != nil || !strings.Contains(got[1].Error(), "404") {
			t.Errorf("got %v, want an event and the error 404", got)
		}
		var sent []string
		for _, r := range s.requests {
			sent = append(sent, strings.TrimSpace(r.url+" "+r.header.Get("Last-Event-ID")+" "+r.header.Get("Authorization")))
		}
		if want := []string{"/", "/ 9 token 1", "/other 9", "/ 9"}; !slices.Equal(sent, want) {
			t.Errorf("got requests %q, want %q", sent, want)
		}
	})
}

func TestClientEndsWithCheckRetrysError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newClientServer(t, "HTTP/1.1", func(n int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
		c, enough, asked, closed := s.client(), errors.New("enough"), 0, false
		c.CheckRetry = func(r *http.Request, err error) error {
			if asked++; asked == 3 {
				return enough
			}
			return nil
		}
		req := s.request(t)
		req.Method, req.Body = "POST", http.NoBody
		req.GetBody = func() (io.ReadCloser, error) {
			return closeHook{strings.NewReader("x"), func() { closed = asked == 3 }}, nil
		}
		req.Body, _ = req.GetBody()
		var got []error
		for _, err := range c.Events(req) {
			got = append(got, err)
		}
		if len(got) != 1 || got[0] != enough || len(s.requests) != 3 {
			t.Errorf("got %v after %d requests, want %v after 3", got, len(s.requests), enough)
		}
		if !closed {
			t.Error("the body of the request that was not sent is open")
		}
	})
}

func TestClientReadTimeout(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		answer  http.HandlerFunc
		within  time.Duration // that the loop's body takes for each event
		lasts   time.Duration // of the first connection
	}{
		{"no headers", 0, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 0, 5 * time.Minute},
		{"headers alone", time.Second, func(w http.ResponseWriter, r *http.Request) { streamText(w, ""); <-r.Context().Done() }, 0, time.Second},
		{"an event, then nothing", time.Second, func(w http.ResponseWriter, r *http.Request) { streamText(w, "data: a\n\n"); <-r.Context().Done() }, 0, time.Second},
		{"comments", time.Second, func(w http.ResponseWriter, r *http.Request) {
			for range 10 {
				streamText(w, ":")
				time.Sleep(999 * time.Millisecond)
			}
			<-r.Context().Done()
		}, 0, 9*999*time.Millisecond + time.Second},
		{"a slow loop", time.Second, func(w http.ResponseWriter, r *http.Request) {
			streamText(w, "data: a\n\n")
			streamText(w, "data: a\n\n")
			<-r.Context().Done()
		}, time.Hour, 2*time.Hour + time.Second},
		{"no limit", -1, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			streamText(w, "")
			time.Sleep(time.Hour)
		}, 0, 2 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				began := time.Now()
				s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) { tt.answer(w, r) })
				c := s.client()
				c.ReadTimeout = tt.timeout
				var reason error
				var lasts time.Duration
				log := &clientLog{func() { lasts = time.Since(began) }}
				c.Logger = slog.New(log)
				c.CheckRetry = func(_ *http.Request, err error) error {
					reason = err
					return err
				}
				for range c.Events(s.request(t)) {
					time.Sleep(tt.within)
				}
				if lasts != tt.lasts {
					t.Errorf("the connection lasted %v, want %v", lasts, tt.lasts)
				}
				if timeout := net.Error(nil); tt.timeout >= 0 && !(errors.As(reason, &timeout) && timeout.Timeout()) {
					t.Errorf("got error %v, want a timeout", reason)
				}
			})
		})
	}
}

// An event that arrives together with the timeout is yielded, and resumed from.
func TestClientReadTimeoutTogetherWithAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, reason := []string{}, error(nil)
		c := &Client{ReadTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)}
		c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.Header.Get("Last-Event-ID"))
			if len(asked) == 2 {
				return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody, Request: r}, nil
			}
			body := readFunc(func(p []byte) (int, error) {
				if r.Context().Err() != nil {
					return 0, r.Context().Err()
				}
				time.Sleep(time.Second)
				synctest.Wait() // the timer has fired
				return copy(p, "id: 1\ndata: a\n\n"), nil
			})
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(body), Request: r}, nil
		})}
		c.CheckRetry = func(_ *http.Request, err error) error {
			reason = err
			return nil
		}
		var got []string
		for ev, err := range c.Events(clientRequest(t)) {
			if err == nil {
				got = append(got, ev.ID)
			}
		}
		if !slices.Equal(got, []string{"1"}) || !slices.Equal(asked, []string{"", "1"}) || !errors.Is(reason, os.ErrDeadlineExceeded) {
			t.Errorf("got events %q, requests after %q, reason %v, want one event that is resumed from, and a timeout", got, asked, reason)
		}
	})
}

// A readFunc is an io.Reader.
type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestClientRequests(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 2 {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			w.Header().Set("Content-Type", "Text/Event-Stream ;charset=utf-8; charset=UTF-8")
			w.Header().Set("Content-Encoding", "gzip")
			out := gzip.NewWriter(w)
			io.WriteString(out, "id: 1\n")
			out.Flush()
			http.NewResponseController(w).Flush()
			time.Sleep(time.Minute) // longer than the http.Client's Timeout
			io.WriteString(out, "data: a\n\n")
			out.Close()
		})
		c := s.client()
		c.HTTPClient.Timeout = time.Second
		for _, tt := range []struct {
			set, want http.Header
		}{
			{http.Header{}, http.Header{"Accept": {"text/event-stream"}, "Cache-Control": {"no-cache"}, "Accept-Encoding": {"gzip"}}},
			{http.Header{"Accept": {"*/*"}, "Cache-Control": nil, "X": {"y", "z"}}, http.Header{"Accept": {"*/*"}, "X": {"y", "z"}, "Accept-Encoding": {"gzip"}}},
			{nil, http.Header{"Accept": {"text/event-stream"}, "Cache-Control": {"no-cache"}, "Accept-Encoding": {"gzip"}}},
		} {
			s.requests = nil
			req, err := http.NewRequestWithContext(t.Context(), "REPORT", s.URL+"/?a=b", strings.NewReader("question"))
			wireCheck(t, err)
			req.Header = tt.set
			before := req.Clone(t.Context())
			body := req.Body
			var got []string
			for ev, err := range c.Events(req) {
				got = append(got, fmt.Sprint(ev.Data, err))
			}
			if want := []string{"a<nil>", "a<nil>", ErrEnded.Error()}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if len(s.requests) != 3 {
				t.Fatalf("got %d requests, want 3", len(s.requests))
			}
			for n, r := range s.requests {
				want := tt.want.Clone()
				if n > 0 {
					want.Set("Last-Event-ID", "1")
				}
				r.header.Del("User-Agent")
				r.header.Del("Content-Length")
				if !reflect.DeepEqual(r.header, want) || r.method != "REPORT" || r.url != "/?a=b" || r.body != "question" {
					t.Errorf("got request %+v, want the program's own with %v", r, want)
				}
			}
			if !reflect.DeepEqual(req.Header, before.Header) || req.URL.String() != before.URL.String() || req.Body != body {
				t.Errorf("got the request %+v after the loop, want it unchanged", req)
			}
			if rest, err := io.ReadAll(req.Body); string(rest) != "question" {
				t.Errorf("got the body %q, %v after the loop, want it unread", rest, err)
			}
		}
		if c.HTTPClient.Timeout != time.Second {
			t.Errorf("got Timeout %v after the loop, want it unchanged", c.HTTPClient.Timeout)
		}
	})
}

func TestClientSendsABodyWithoutGetBodyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newClientServer(t, "HTTP/1.1", func(n int, w http.ResponseWriter, r *http.Request) { streamText(w, "data: a\n\n") })
		closed := false
		req := s.request(t)
		req.Method, req.Body = "POST", closeHook{strings.NewReader("question"), func() { closed = true }}
		var got []string
		for ev, err := range s.client().Events(req) {
			got = append(got, fmt.Sprint(ev.Data, err))
		}
		if len(s.requests) != 1 || s.requests[0].body != "question" || !closed {
			t.Errorf("got requests %+v, body closed: %t, want one with the question", s.requests, closed)
		}
		if want := []string{"a<nil>", "sse: request has a body and no GetBody to send it again after: EOF"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestClientFollowsRedirects(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/":
				http.Redirect(w, r, "/there", http.StatusMovedPermanently)
			case n < 4:
				streamText(w, "id: 1\ndata: a\n\n")
			default:
				w.WriteHeader(http.StatusNoContent)
			}
		})
		events := 0
		for _, err := range s.client().Events(s.request(t)) {
			if err == nil {
				events++
			}
		}
		var got []string
		for _, r := range s.requests {
			got = append(got, r.url+r.header.Get("Last-Event-ID"))
		}
		if want := []string{"/", "/there", "/1", "/there1", "/1", "/there1"}; !slices.Equal(got, want) || events != 2 {
			t.Errorf("got requests %q and %d events, want %q and 2", got, events, want)
		}
	})
}

func TestClientLogsWhyItReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		c := &Client{Retry: time.Hour, Logger: slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey || a.Key == "wait" && a.Value.Duration() >= time.Hour {
					return slog.Attr{}
				}
				return a
			},
		}))}
		c.HTTPClient = &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) { return nil, syscall.ECONNREFUSED })}
		c.CheckRetry = func(_ *http.Request, err error) error { return err }
		req, err := http.NewRequest("GET", "http://user:password@sse.test:80/events?token=secret", nil)
		wireCheck(t, err)
		for range c.Events(req) {
		}
		if got, want := text.String(), `level=WARN msg="sse: reconnecting" host=sse.test:80 path=/events err="connection refused"`+"\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// However a loop ends, nothing of it stays: no connection, stream, timer or goroutine.
func TestClientLeavesNothingBehind(t *testing.T) {
	for how, loop := range map[string]func(events iter.Seq2[Event, error], cancel func()){
		"break": func(events iter.Seq2[Event, error], _ func()) {
			for range events {
				break
			}
		},
		"context": func(events iter.Seq2[Event, error], cancel func()) {
			for range events {
				cancel()
			}
		},
		"panic": func(events iter.Seq2[Event, error], _ func()) {
			defer func() { recover() }()
			for range events {
				panic("in the loop")
			}
		},
		"Goexit": func(events iter.Seq2[Event, error], _ func()) {
			done := make(chan bool)
			go func() {
				defer close(done)
				for range events {
					runtime.Goexit()
				}
			}()
			<-done
		},
		"iter.Pull": func(events iter.Seq2[Event, error], _ func()) {
			next, stop := iter.Pull2(events)
			next()
			stop()
		},
		"the second connection": func(events iter.Seq2[Event, error], _ func()) {
			n := 0
			for range events {
				if n++; n == 4 {
					break
				}
			}
		},
	} {
		t.Run(how, func(t *testing.T) {
			eachClientProtocol(t, func(t *testing.T, protocol string) {
				open, streams := 0, 0
				var mu sync.Mutex
				count := func(n *int, by int) { mu.Lock(); *n += by; mu.Unlock() }
				s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
					count(&streams, 1)
					defer count(&streams, -1)
					streamText(w, strings.Repeat("data: a\n\n", 3))
					if n == 0 && how == "the second connection" {
						return
					}
					<-r.Context().Done()
				})
				s.wrap = func(c net.Conn) net.Conn {
					count(&open, 1)
					return &closeOnce{Conn: c, closed: func() { count(&open, -1) }}
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				synctest.Wait()
				_, goroutines := bubbleGoroutines()
				began := time.Now()
				loop(s.client().Events(s.request(t).WithContext(ctx)), cancel)
				if got := time.Since(began); got > 3*time.Second {
					t.Errorf("the loop took %v", got)
				}
				synctest.Wait()
				if streams != 0 || open != 0 && protocol == "HTTP/1.1" {
					t.Errorf("after the loop: got %d streams and %d connections, want none", streams, open)
				}
				s.Client().CloseIdleConnections() // of HTTP/2
				synctest.Wait()
				if open != 0 {
					t.Errorf("got %d connections, want none", open)
				}
				if all, got := bubbleGoroutines(); got != goroutines {
					t.Errorf("got %d goroutines, want %d as before:\n%s", got, goroutines, all)
				}
				time.Sleep(time.Hour) // what a timer would do
			})
		})
	}
}

func TestClientNeedsNoGoroutineOfItsOwn(t *testing.T) {
	c := &Client{HTTPClient: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(&repeatingReader{text: "data: a\n\n"}), Request: r}, nil
	})}}
	synctest.Test(t, func(t *testing.T) {
		_, goroutines := bubbleGoroutines()
		n := 0
		for _, err := range c.Events(clientRequest(t)) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n%1000 == 1 {
				synctest.Wait()
				if all, got := bubbleGoroutines(); got != goroutines {
					t.Fatalf("got %d goroutines in the loop, want %d as before:\n%s", got, goroutines, all)
				}
			}
			if n == 10_000 {
				break
			}
		}
	})
}

// The loop's end closes the body, and each connection's body before the next one is made.
func TestClientHasOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open, made := 0, 0
		c := &Client{Logger: slog.New(slog.DiscardHandler), HTTPClient: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if open++; open > 1 {
				t.Errorf("got %d bodies open, want 1", open)
			}
			status := 200
			if made++; made%2 == 0 {
				status = 503
			}
			body := closeHook{strings.NewReader("data: a\n\ndata: b\n\n"), func() { open-- }}
			return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body, Request: r}, nil
		})}}
		n := 0
		for range c.Events(clientRequest(t)) {
			if n++; n == 9 {
				break
			}
		}
		if open != 0 || made != 9 {
			t.Errorf("got %d bodies open of %d, want none of 9", open, made)
		}
	})
}

// What a connection needed is given back with it, also if the request's context lives on.
func TestClientKeepsNothingOfAConnection(t *testing.T) {
	for _, status := range []int{200, 404} {
		c := &Client{ReadTimeout: -1, Retry: time.Nanosecond, MaxWait: -1, Logger: slog.New(slog.DiscardHandler)}
		c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			body := io.NopCloser(strings.NewReader("data: a\n\n"))
			return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body, Request: r}, nil
		})}
		r := clientRequest(t)
		connect := func(n int) (heap uint64) {
			for n > 0 {
				for range c.Events(r) {
					if n--; n == 0 {
						break
					}
				}
			}
			runtime.GC()
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			return stats.HeapAlloc
		}
		const n = 5000
		connect(n)
		before := connect(n)
		if after := connect(n); after > before+20*n {
			t.Errorf("status %d: got %d bytes for each connection, want none", status, (after-before)/n)
		}
	}
}

func TestClientForSeveralLoops(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
			id, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
			if id == 9 {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			streamText(w, fmt.Sprintf("id: %d\ndata: a\n\nid: %[1]d\ndata: b\n\n", id+1))
		})
		events := s.client().Events(s.request(t)) // also the iterator may be used again, and at once
		var loops sync.WaitGroup
		for range 20 {
			loops.Go(func() {
				var got strings.Builder
				for ev, err := range events {
					fmt.Fprint(&got, ev.ID, ev.Data)
					if err != nil && err != ErrEnded {
						t.Errorf("got error %v, want %v", err, ErrEnded)
					}
				}
				if want := "1a1b2a2b3a3b4a4b5a5b6a6b7a7b8a8b9a9b"; got.String() != want {
					t.Errorf("got %s, want %s", got.String(), want)
				}
			})
		}
		loops.Wait()
	})
}

func TestClientOfABroker(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		b := &Broker{}
		ctx, cut := context.WithCancel(t.Context())
		s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			if n < 5 {
				time.AfterFunc(time.Second, cancel)
			}
			b.Serve(w, r.WithContext(ctx))
		})
		go func() {
			for i := range 100 {
				time.Sleep(500 * time.Millisecond)
				b.Publish(Event{Data: strconv.Itoa(i)})
			}
			time.Sleep(time.Minute)
			cut()
		}()
		n := 0
		for ev, err := range s.client().Events(s.request(t).WithContext(ctx)) {
			if err == nil && ev.Data != strconv.Itoa(n) {
				t.Fatalf("got event %s, want %d", ev.Data, n)
			}
			n++
		}
		if n != 101 || len(s.requests) < 6 {
			t.Errorf("got %d events over %d connections, want 100 over 6", n-1, len(s.requests))
		}
	})
}

// A relay is a second broker, fed by a Client's loop. It has the history of the first
// one, also if it is killed and begins anew.
func TestRelay(t *testing.T) {
	eachClientProtocol(t, func(t *testing.T, protocol string) {
		origin := &Broker{}
		start := origin.LastEventID()
		s := newClientServer(t, protocol, func(n int, w http.ResponseWriter, r *http.Request) { origin.Serve(w, r) })
		c := s.client()
		relay := func(ctx context.Context, b *Broker) error {
			r := s.request(t)
			r.Header.Set("Last-Event-ID", start)
			for ev, err := range c.Events(r.WithContext(ctx)) {
				if err == nil {
					_, err = b.Publish(ev)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
		history := func(b *Broker, after string) (events []Event) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for ev, err := range b.Subscribe(ctx, after) {
				if err == nil {
					events = append(events, ev)
				}
			}
			return events
		}
		ids := []string{start}
		for restart := range 3 {
			b := &Broker{}
			ctx, kill := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- relay(ctx, b) }()
			for i := range 50 {
				if i == 25 {
					s.CloseClientConnections()
				}
				id, err := origin.Publish(Event{Type: "news", Data: fmt.Sprint(restart, " ", i, "\nline")})
				wireCheck(t, err)
				ids = append(ids, id)
				time.Sleep(time.Second)
			}
			for n, id := range ids[1:] { // the start was the origin's alone
				want := history(origin, id)
				if got := history(b, id); !slices.Equal(got, want) {
					t.Fatalf("after %s: got %d events %v from the relay, want %d %v", id, len(got), got, len(want), want)
				}
				if len(want) != len(ids)-2-n {
					t.Fatalf("after %s: got %d events from the origin, want %d", id, len(want), len(ids)-2-n)
				}
			}
			kill()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the relay ended with %v, want %v", err, context.Canceled)
			}
		}
	})
}

// A hostile server never makes the Client panic, spin, or hold more than it may.
func FuzzClient(f *testing.F) {
	const stream = "Content-Type: text/event-stream\r\n"
	for _, seed := range []struct {
		status       int // 0: the body is the whole answer
		header, body string
	}{
		{0, "", ""}, {0, "", "\x00"}, {0, "", "HTTP/1.1 200 OK\r\n"}, {0, "", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n"},
		{200, "", ""}, {200, stream, ""}, {200, stream, "data: a\n\n"}, {200, stream, "retry: 1\n\ndata: a\n\n"}, {200, stream, "retry: 99999999999999999999\n"},
		{200, stream, "id: 1\ndata: a\n\nid: \x01\n\n"}, {200, stream, "id\ndata:" + strings.Repeat("x", 2000)}, {200, stream, "data: \xff\xff\xff\n\n"},
		{200, "Content-Type: text/event-stream; charset=\r\nContent-Length: 100\r\n", "data: a\n\n"},
		{200, stream + "Content-Encoding: gzip\r\n", "data: a\n\n"},
		{200, stream + "Transfer-Encoding: chunked\r\n", "9\r\ndata: a\n\n\r\n0\r\n\r\n"},
		{200, stream, "id: sse-end\nevent: end\ndata\n\n"}, {200, "Content-Type: text/html\r\n", "<p>"},
		{503, "Retry-After: 99999999999999999999\r\n", ""}, {429, "Retry-After: -1\r\nContent-Length: 0\r\n", ""}, {503, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n", ""},
		{500, "", strings.Repeat("x", 100<<10)}, {404, "Content-Length: 1000000\r\n", ""}, {408, "Connection: close\r\n", ""},
		{307, "Location: /\r\nContent-Length: 0\r\n", ""}, {301, "Location: x://y\r\n", ""}, {302, "Location:\r\n", ""},
		{100, "", ""}, {101, "Upgrade: x\r\nConnection: upgrade\r\n", ""}, {204, "", ""}, {999, "", ""},
	} {
		f.Add(seed.status, seed.header, []byte(seed.body), uint8(len(seed.body)), false)
		f.Add(seed.status, seed.header, []byte(seed.body), uint8(255), true)
	}
	f.Fuzz(func(t *testing.T, status int, header string, body []byte, cut uint8, hang bool) {
		answer := body
		if status != 0 {
			answer = fmt.Appendf(nil, "HTTP/1.1 %d x\r\n%s\r\n%s", status, header, body)
		}
		synctest.Test(t, func(t *testing.T) {
			const maxEvent, attempts = 1000, 20
			began, tries, sent := time.Now(), 0, 0
			transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				server, client := net.Pipe()
				text := answer
				if n := sent % 3; n > 0 && len(answer) > 0 { // the next ones are cut elsewhere
					text = answer[:int(cut)*n*len(answer)/512]
				}
				sent++
				go func() {
					defer server.Close()
					if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
						return
					}
					server.Write(text)
					if hang {
						io.Copy(io.Discard, server)
					}
				}()
				return client, nil
			}}
			defer transport.CloseIdleConnections()
			c := &Client{MaxEventBytes: maxEvent, ReadTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}
			c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				tries++
				return transport.RoundTrip(r)
			})}
			enough, asked := errors.New("enough"), 0
			c.CheckRetry = func(r *http.Request, err error) error {
				if asked++; asked == attempts {
					return enough
				}
				return nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*365*24*time.Hour)
			defer cancel()
			var last error
			for ev, err := range c.Events(clientRequest(t).WithContext(ctx)) {
				last = err
				if n := len(ev.ID) + len(ev.Type) + len(ev.Data); n > 2*3*maxEvent {
					t.Errorf("got an event of %d bytes, want at most %d", n, maxEvent)
				}
				var answer *ResponseError
				if errors.As(err, &answer) && len(answer.Body) > 64<<10 {
					t.Errorf("got a body of %d bytes, want at most 64 KiB", len(answer.Body))
				}
			}
			if last == nil {
				t.Error("the loop ended without an error")
			}
			took, least := time.Since(began), time.Duration(asked)*3*time.Second
			if bytes.Contains(answer, []byte("retry")) {
				least = time.Duration(asked) * time.Millisecond
			}
			if took < least {
				t.Errorf("got %d reconnections in %v, want at least %v", asked, took, least)
			}
			if most := (asked + 1) * 10; tries > most {
				t.Errorf("got %d requests for %d reconnections, want at most %d", tries, asked, most)
			}
		})
	})
}

// ----- Event -----

var _ encoding.TextAppender = Event{}

func TestAppendText(t *testing.T) {
	for _, tt := range []struct {
		name  string
		event Event
		want  string
	}{
		{"zero event is an empty message", Event{}, "data: \n\n"},
		{"data", Event{Data: "hello"}, "data: hello\n\n"},
		{"all fields", Event{ID: "7", Type: "tick", Data: "x", Retry: 1500 * time.Millisecond}, "id: 7\nevent: tick\nretry: 1500\ndata: x\n\n"},
		{"type without data is dispatched", Event{Type: "tick"}, "event: tick\ndata: \n\n"},
		{"ID without data is dispatched", Event{ID: "7"}, "id: 7\ndata: \n\n"},
		{"retry with a type is dispatched", Event{Type: "tick", Retry: time.Second}, "event: tick\nretry: 1000\ndata: \n\n"},
		{"retry with an ID is dispatched", Event{ID: "7", Retry: time.Second}, "id: 7\nretry: 1000\ndata: \n\n"},
		{"retry alone is no message", Event{Retry: time.Second}, "retry: 1000\n"},
		{"retry is rounded down", Event{Retry: 1999 * time.Microsecond}, "retry: 1\n"},
		{"shortest retry", Event{Retry: time.Millisecond}, "retry: 1\n"},
		{"longest retry", Event{Retry: math.MaxInt64}, "retry: 9223372036854\n"},
		{"half a character", Event{Data: "a\xf0\x9f"}, "data: a\ufffd\n\n"},
		{"the other half", Event{Data: "\x98\x80b"}, "data: \ufffd\ufffdb\n\n"},
		{"half a character in a line", Event{Data: "\xe2\x82\n\xac\xe2\x82\r\nb"}, "data: \ufffd\ndata: \ufffd\ufffd\ndata: b\n\n"},
		{"bytes that are no text", Event{Data: "\xff\xc0\xaf\xed\xa0\x80"}, "data: \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\n\n"},
		{"LF", Event{Data: "a\nb"}, "data: a\ndata: b\n\n"},
		{"CR", Event{Data: "a\rb"}, "data: a\ndata: b\n\n"},
		{"CRLF", Event{Data: "a\r\nb"}, "data: a\ndata: b\n\n"},
		{"LF CR", Event{Data: "a\n\rb"}, "data: a\ndata: \ndata: b\n\n"},
		{"CR CRLF", Event{Data: "a\r\r\nb"}, "data: a\ndata: \ndata: b\n\n"},
		{"empty lines at both ends", Event{Data: "\n\na\n\n"}, "data: \ndata: \ndata: a\ndata: \ndata: \n\n"},
		{"a line end alone", Event{Data: "\n"}, "data: \ndata: \n\n"},
		{"CR at the end", Event{Data: "a\r"}, "data: a\ndata: \n\n"},
		{"other line ends are text", Event{Data: "a\u0085b\u2028c\vd\fe"}, "data: a\u0085b\u2028c\vd\fe\n\n"},
		{"leading blanks", Event{Data: "  a\n b"}, "data:   a\ndata:  b\n\n"},
		{"data that looks like fields", Event{Data: "id: 1\n\ndata: x\n: y"}, "data: id: 1\ndata: \ndata: data: x\ndata: : y\n\n"},
		{"NUL in data", Event{Data: "a\x00b"}, "data: a\x00b\n\n"},
		{"byte order mark in data", Event{Data: "\ufeffa"}, "data: \ufeffa\n\n"},
		{"blanks and colons in the type", Event{Type: " a: b\t"}, "event:  a: b\t\ndata: \n\n"},
		{"ID of many kinds of characters", Event{ID: "a b:é日😀"}, "id: a b:é日😀\ndata: \n\n"},
		{"longest ID", Event{ID: strings.Repeat("x", 1024)}, "id: " + strings.Repeat("x", 1024) + "\ndata: \n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.event.AppendText([]byte("before"))
			if err != nil || string(got) != "before"+tt.want {
				t.Errorf("got %q, %v, want %q", got, err, "before"+tt.want)
			}
		})
	}
}

func TestAppendTextRefuses(t *testing.T) {
	x40 := strings.Repeat("x", 40)
	for _, tt := range []struct {
		event Event
		want  string
	}{
		{Event{ID: "a\x00b"}, `sse: event ID "a\x00b" contains a control character`},
		{Event{ID: "a\nb"}, `sse: event ID "a\nb" contains a control character`},
		{Event{ID: "a\rb"}, `sse: event ID "a\rb" contains a control character`},
		{Event{ID: "a\tb"}, `sse: event ID "a\tb" contains a control character`},
		{Event{ID: "\x1f"}, `sse: event ID "\x1f" contains a control character`},
		{Event{ID: "a\x7f"}, `sse: event ID "a\x7f" contains a control character`},
		{Event{ID: "a\u0085"}, `sse: event ID "a\u0085" contains a control character`},
		{Event{ID: " a"}, `sse: event ID " a" begins or ends with a blank`},
		{Event{ID: "a "}, `sse: event ID "a " begins or ends with a blank`},
		{Event{ID: " "}, `sse: event ID " " begins or ends with a blank`},
		{Event{ID: "a\xff"}, `sse: event ID "a\xff" is not valid UTF-8`},
		{Event{ID: strings.Repeat("x", 1025)}, `sse: event ID "` + x40 + `"… is longer than 1024 bytes`},
		{Event{ID: strings.Repeat("é", 513)}, `sse: event ID "` + strings.Repeat("é", 40) + `"… is longer than 1024 bytes`},
		{Event{ID: x40 + "\n"}, `sse: event ID "` + x40 + `"… contains a control character`},
		{Event{Type: "a\nb"}, `sse: event type "a\nb" contains CR, LF or NUL`},
		{Event{Type: "a\rb"}, `sse: event type "a\rb" contains CR, LF or NUL`},
		{Event{Type: "a\x00b"}, `sse: event type "a\x00b" contains CR, LF or NUL`},
		{Event{Type: x40 + x40 + "\n"}, `sse: event type "` + x40 + `"… contains CR, LF or NUL`},
		{Event{Type: "\xc3"}, `sse: event type "\xc3" is not valid UTF-8`},
		{Event{ID: "sse-end"}, `sse: event ID "sse-end" is reserved`},
		{Event{ID: "sse-end", Type: "end"}, `sse: event ID "sse-end" is reserved`},
		{Event{ID: "earliest"}, `sse: event ID "earliest" is reserved`},
		{Event{Retry: -time.Second}, `sse: event retry -1s is negative`},
		{Event{Retry: 1}, `sse: event retry 1ns is under a millisecond`},
		{Event{Retry: time.Millisecond - 1}, `sse: event retry 999.999µs is under a millisecond`},
	} {
		got, err := tt.event.AppendText([]byte("before"))
		if err == nil || err.Error() != tt.want {
			t.Errorf("got error %v, want %s", err, tt.want)
		}
		if string(got) != "before" {
			t.Errorf("after %q: got %q, want what was passed in", tt.want, got)
		}
	}
}

func TestAppendTextAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 1<<10)
	for _, e := range []Event{
		{Data: "hello"},
		{ID: "id-1", Type: "tick", Data: "two\nlines"},
		{ID: "id-1", Retry: 1500 * time.Millisecond},
	} {
		if allocs := testing.AllocsPerRun(100, func() { e.AppendText(buf) }); allocs != 0 {
			t.Errorf("%+v: got %v allocations, want none", e, allocs)
		}
	}
}

// FuzzAppendText checks that any event is either refused, for a reason that the
// test knows too, or read back as it was by every reader.
func FuzzAppendText(f *testing.F) {
	for _, s := range []string{"", "x", "a\nb", "a\r\nb\r", "\r\r\n\n", " x ", ": x", "data: x\n\ndata: y", "a\x00b", "\ufeff", "é\u0085", "\xff", "\n\ndata: \n"} {
		f.Add(s, "", "", int64(0))
		f.Add("", s, s, int64(0))
		f.Add("id", "type", s, int64(time.Second))
	}
	f.Add("", "", "", int64(999_999))
	f.Add("", "", "", int64(-1))
	f.Add("", "", "", int64(math.MaxInt64))
	f.Add(strings.Repeat("x", 1025), "", "", int64(0))
	f.Fuzz(func(t *testing.T, id, typ, data string, retry int64) {
		e := Event{ID: id, Type: typ, Data: data, Retry: time.Duration(retry)}
		frame, err := e.AppendText(nil)
		if mayBeSent(e) != (err == nil) {
			t.Fatalf("%#v: got error %v", e, err)
		}
		if err != nil {
			return
		}
		want := e
		want.Data = decodeUTF8AsStandard([]byte(normaliseNewlines(e.Data)))
		want.Retry = e.Retry.Truncate(time.Millisecond)
		if got := parseEvent(id, string(e.appendBody(nil))); got != want {
			t.Errorf("parseEvent: got %#v, want %#v", got, want)
		}
		wants := []Event{{Data: "before"}, want, {ID: id, Data: "after"}}
		if e == (Event{Retry: e.Retry}) && e.Retry != 0 {
			wants = []Event{{Data: "before"}, {Data: "after"}}
		}
		wants[1].Retry = 0 // which is no part of an event that was read
		stream := slices.Concat([]byte("data: before\n\n"), frame, []byte("data: after\n\n"))
		// A reconnection time is the stream's, and no event's.
		equal := func(got []Event) bool {
			return slices.EqualFunc(got, wants, func(a, b Event) bool {
				a.Retry, b.Retry = 0, 0
				return a == b
			})
		}
		if got := decodeAsStandard(stream); !equal(got.events) {
			t.Errorf("the standard's algorithm: got %#v, want %#v", got.events, wants)
		}
		d := NewDecoder(bytes.NewReader(stream))
		d.MaxEventBytes = -1
		if got := decodeAll(d); !equal(got.events) || got.retry != want.Retry {
			t.Errorf("Decoder: got %v, want %#v", got, wants)
		}
		if got := throughHeader(t, id); got != id {
			t.Errorf("through the Last-Event-ID header: got %q, want %q", got, id)
		}
	})
}

func TestJSON(t *testing.T) {
	got, err := JSON(map[string]any{"text": "a\nb\xff", "n": 1})
	if want := (Event{Data: `{"n":1,"text":"a\nb\ufffd"}`}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	got, err = JSON(math.Inf(1))
	if want := "sse: event data: json: unsupported value: +Inf"; err == nil || err.Error() != want || got != (Event{}) {
		t.Errorf("got %+v, %v, want %s", got, err, want)
	}
}

// ----- Decoder -----

func TestDecode(t *testing.T) {
	const bom = "\ufeff"
	long := strings.Repeat("long", 3000)
	for _, tt := range []struct {
		name   string
		stream string
		want   decoded
	}{
		// The examples of the standard's section on parsing an event stream.
		{"several lines", "data: YHOO\ndata: +2\ndata: 10\n\n", decoded{events: []Event{{Data: "YHOO\n+2\n10"}}}},
		{"comment, ID, empty ID, no end", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
			decoded{events: []Event{{ID: "1", Data: "first event"}, {Data: "second event"}}, err: io.ErrUnexpectedEOF}},
		{"one blank after the colon is dropped", "data:  third event\n\n", decoded{events: []Event{{Data: " third event"}}}},
		{"empty data", "data\n\ndata\ndata\n\ndata:", decoded{events: []Event{{Data: ""}, {Data: "\n"}}, err: io.ErrUnexpectedEOF}},
		{"blank after the colon or none", "data:test\n\ndata: test\n\n", decoded{events: []Event{{Data: "test"}, {Data: "test"}}}},

		{"nothing", "", decoded{}},
		{"blank lines", "\n\r\r\n\n", decoded{}},
		{"LF", "data: a\ndata: b\n\n", decoded{events: []Event{{Data: "a\nb"}}}},
		{"CR", "data: a\rdata: b\r\r", decoded{events: []Event{{Data: "a\nb"}}}},
		{"CRLF", "data: a\r\ndata: b\r\n\r\n", decoded{events: []Event{{Data: "a\nb"}}}},
		{"line ends mixed", "data: a\rdata: b\r\ndata: c\n\r", decoded{events: []Event{{Data: "a\nb\nc"}}}},
		{"LF CR is two line ends", "data: a\n\rdata: b\n\n", decoded{events: []Event{{Data: "a"}, {Data: "b"}}}},
		{"CR CRLF is two line ends", "data: a\r\r\ndata: b\n\n", decoded{events: []Event{{Data: "a"}, {Data: "b"}}}},
		{"other line ends are text", "data: a\u2028b\u0085c\vd\n\n", decoded{events: []Event{{Data: "a\u2028b\u0085c\vd"}}}},

		{"byte order mark", bom + "data: a\n\n", decoded{events: []Event{{Data: "a"}}}},
		{"byte order mark once", bom + bom + "data: a\n\ndata: b\n\n", decoded{events: []Event{{Data: "b"}}}},
		{"byte order mark at the start only", "data: a\n\n" + bom + "data: b\n\n", decoded{events: []Event{{Data: "a"}}}},
		{"byte order mark after a blank line", "\n" + bom + "data: b\n\n", decoded{}},
		{"byte order mark of a long line", bom + "data: " + long + "\n\n", decoded{events: []Event{{Data: long}}}},
		{"byte order mark, blank line", bom + "\ndata: b\n\n", decoded{events: []Event{{Data: "b"}}}},
		{"half a byte order mark", "\xef\xbbdata: a\n\n", decoded{}},

		{"comments", ": a\n:b\n:\ndata: x\n: c\ndata: y\n:data: z\n\n", decoded{events: []Event{{Data: "x\ny"}}}},
		{"long comment", ":" + long + "\r\ndata: x\r\n:" + long + "\r\n\r\n", decoded{events: []Event{{Data: "x"}}}},
		{"unknown fields", "Data: 1\nda ta: 2\n data: 3\ndata : 4\ndata\x00: 5\nfoo\n\nDATA: x\ndatas: y\ndata: 6\n\n", decoded{events: []Event{{Data: "6"}}}},
		{"colons in the value", "data:::a: b\n\n", decoded{events: []Event{{Data: "::a: b"}}}},
		{"tab is no blank", "data:\ta\n\n", decoded{events: []Event{{Data: "\ta"}}}},
		{"NUL in data", "data: \x00\n\n", decoded{events: []Event{{Data: "\x00"}}}},
		{"blanks at the end", "data: a \n\n", decoded{events: []Event{{Data: "a "}}}},
		{"long lines", "data: " + long + "\rdata: " + long + "\r\r", decoded{events: []Event{{Data: long + "\n" + long}}}},

		{"type", "event: tick\ndata: a\n\ndata: b\n\n", decoded{events: []Event{{Type: "tick", Data: "a"}, {Data: "b"}}}},
		{"last type counts", "event: a\nevent: b\ndata: x\n\n", decoded{events: []Event{{Type: "b", Data: "x"}}}},
		{"empty type", "event: a\nevent\ndata: x\n\n", decoded{events: []Event{{Data: "x"}}}},
		{"type without data is no event", "event: a\n\ndata: x\n\n", decoded{events: []Event{{Data: "x"}}}},

		{"sticky ID", "id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\n",
			decoded{events: []Event{{ID: "1", Data: "a"}, {ID: "1", Data: "b"}, {ID: "2", Data: "c"}}, lastID: "2"}},
		{"ID without data", "id: 1\n\n", decoded{lastID: "1"}},
		{"ID emptied", "id: 1\n\nid\n\ndata: a\n\n", decoded{events: []Event{{Data: "a"}}}},
		{"last ID counts", "id: 1\nid: 2\ndata: a\n\n", decoded{events: []Event{{ID: "2", Data: "a"}}, lastID: "2"}},
		{"ID of an unfinished event", "id: 1\n\nid: 2\ndata: a\n", decoded{lastID: "1", err: io.ErrUnexpectedEOF}},
		{"NUL in ID", "id: 1\n\nid: 2\x003\ndata: a\n\nid: \x00\ndata: b\n\n", decoded{events: []Event{{ID: "1", Data: "a"}, {ID: "1", Data: "b"}}, lastID: "1"}},
		{"long ID", "id: " + long + "\ndata: a\n\n", decoded{events: []Event{{ID: long, Data: "a"}}, lastID: long}},
		{"blanks in ID", "id:  1 \ndata: a\n\n", decoded{events: []Event{{ID: " 1 ", Data: "a"}}, lastID: " 1 "}},

		{"retry", "retry: 1500\ndata: a\n\ndata: b\n\n", decoded{events: []Event{{Data: "a"}, {Data: "b"}}, retry: 1500 * time.Millisecond}},
		{"retry alone is no event", "retry: 1500\n\ndata: a\n\n", decoded{events: []Event{{Data: "a"}}, retry: 1500 * time.Millisecond}},
		{"retry counts at once", "retry: 7\n", decoded{retry: 7 * time.Millisecond}},
		{"last retry counts", "retry: 7\nretry: 8\n\n", decoded{retry: 8 * time.Millisecond}},
		{"retry zero", "retry: 7\nretry: 0\n\n", decoded{}},
		{"retry zero in many digits", "retry: 7\nretry: 000\n\n", decoded{}},
		{"retry with leading zeros", "retry: 007\n\n", decoded{retry: 7 * time.Millisecond}},
		{"retry of digits only", "retry: 7\nretry: 3000x\nretry: -1\nretry: +1\nretry: 1.5\nretry: 1_000\nretry: 0x1\nretry:  1\nretry: 1 \nretry: \nretry\nretry: ٣\n\n", decoded{retry: 7 * time.Millisecond}},
		{"retry that overflows", "retry: 9223372036855\n\n", decoded{retry: longestRetry}},
		{"retry that overflows by far", "retry: " + strings.Repeat("9", 1000) + "\n\n", decoded{retry: longestRetry}},
		{"retry of many digits and a letter", "retry: 7\nretry: " + strings.Repeat("9", 100) + "x\n\n", decoded{retry: 7 * time.Millisecond}},

		{"end in the middle of a line", "data: a\n\ndata: b", decoded{events: []Event{{Data: "a"}}, err: io.ErrUnexpectedEOF}},
		{"end before the blank line", "data: a\n\ndata: b\n", decoded{events: []Event{{Data: "a"}}, err: io.ErrUnexpectedEOF}},
		{"end before the data", "data: a\n\ndata", decoded{events: []Event{{Data: "a"}}, err: io.ErrUnexpectedEOF}},
		{"end in a long line of data", "data:" + long, decoded{err: io.ErrUnexpectedEOF}},
		{"end of an event without data", "data: a\n\nevent: b\nid: c\n:data\ndatas: d\n", decoded{events: []Event{{Data: "a"}}}},
		{"end in another field", "data: a\n\ndatas: b", decoded{events: []Event{{Data: "a"}}}},
		{"end in a comment", "data: a\n\n:data: b", decoded{events: []Event{{Data: "a"}}}},
		{"end in a comment within an event", "data: a\n:c", decoded{err: io.ErrUnexpectedEOF}},
		{"end within CRLF", "data: a\r\n\r", decoded{events: []Event{{Data: "a"}}}},

		{"UTF-8", "data: é日😀\nid: ü\nevent: ß\n\n", decoded{events: []Event{{ID: "ü", Type: "ß", Data: "é日😀"}}, lastID: "ü"}},
		{"not UTF-8", "data: a\xffb\nid: \x80\nevent: \xc3\n\n", decoded{events: []Event{{ID: "\ufffd", Type: "\ufffd", Data: "a\ufffdb"}}, lastID: "\ufffd"}},
		{"a line end ends a character", "data: \xe2\x82\ndata: \xac\n\n", decoded{events: []Event{{Data: "\ufffd\n\ufffd"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := decodeAsStandard([]byte(tt.stream)); !got.equal(tt.want) {
				t.Errorf("the standard's algorithm: got %v, want %v", got, tt.want)
			}
			checkDecoder(t, []byte(tt.stream), tt.want, nil)
		})
	}
}

// The Encoding standard replaces each longest beginning of a character that is
// not continued rightly.
func TestDecodeReplacesInvalidUTF8(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"\x80", "?"},
		{"\xbf\x80", "??"},
		{"\xc0\x80", "??"},
		{"\xc1\xbf", "??"},
		{"\xc2", "?"},
		{"\xc2x", "?x"},
		{"\xc2\xc2\x80", "?\u0080"},
		{"\xe0\x80\x80", "???"},
		{"\xe0\xa0", "?"},
		{"\xe2\x82x", "?x"},
		{"\xe2\x82\xe2\x82\xac", "?€"},
		{"\xe2x\x82", "?x?"},
		{"\xed\x9f\xbf", "\ud7ff"},
		{"\xed\xa0\x80", "???"},
		{"\xf0\x80\x80\x80", "????"},
		{"\xf0\x90", "?"},
		{"\xf0\x90\x80", "?"},
		{"\xf0\x90\x80x", "?x"},
		{"\xf0\x9f\x98\x80", "😀"},
		{"\xf4\x8f\xbf\xbf", "\U0010ffff"},
		{"\xf4\x90\x80\x80", "????"},
		{"\xf5\x80", "??"},
		{"\xfe\xff", "??"},
		{"\xef\xbf\xbd", "\ufffd"},
	} {
		want := strings.ReplaceAll(tt.want, "?", "\ufffd")
		stream := []byte("data: " + tt.in + "\n\n")
		if got := decodeAsStandard(stream); len(got.events) != 1 || got.events[0].Data != want {
			t.Errorf("%+q by the standard's algorithm: got %v, want %+q", tt.in, got, want)
		}
		checkDecoder(t, stream, decoded{events: []Event{{Data: want}}}, nil)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "data: x\n\n", "data: x\r\r", "data: x\r\n\r\n", "\ufeffdata: a\n\n\ufeffdata: b\n\n", ":c\ndata\n\n",
		"id: 1\nevent: e\nretry: 10\ndata: a\n\ndata: b\n\nid\n\n", "retry: 7\nretry: 00\n\n", "retry: 99999999999999999999x\n\n",
		"id: a\x00b\n\ndata: \xe2\x82\ndata:\xf0\x9f\x98\x80\n\n", "data: a\n\rdata: b\r\n\n",
		"data: more than fits in the smallest buffer\r\n:so does this comment, it does\r\n\r\n",
	} {
		f.Add([]byte(s), []byte{3, 1, 4})
	}
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		if len(stream) > 1<<14 {
			t.Skip("too large for the slow reference")
		}
		checkDecoder(t, stream, decodeAsStandard(stream), cuts)
	})
}

// A line that ends in CR must not wait for a possible LF behind it.
func TestDecodeDoesNotWaitBehindCR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		got := make(chan Event, 9)
		go func() {
			for e := range NewDecoder(r).All() {
				got <- e
			}
		}()
		for _, part := range []string{"data: a\r\r", "\ndata: b\r\n\r", "\ndata: c\n\n"} {
			io.WriteString(w, part)
			synctest.Wait()
			if len(got) != 1 {
				t.Fatalf("after %q: got %d events, want 1", part, len(got))
			}
			<-got
		}
	})
}

func TestDecodeMaxEventBytes(t *testing.T) {
	skipShort(t)
	t.Parallel()
	const most = 16 << 20
	event := func(size int) string { // of so many bytes in all
		return "data: " + strings.Repeat("x", size-len("data: \n\n")) + "\n\n"
	}
	comment := ":" + strings.Repeat("c", 5000) + "\n"
	for _, tt := range []struct {
		name     string
		max      int
		stream   string
		events   int
		tooLarge string
	}{
		{"default, just fits", 0, event(most) + event(most), 2, ""},
		{"default, too large", 0, event(10) + event(most+1) + event(10), 1, "sse: event is larger than the decoder's limit of 16777216 bytes"},
		{"no limit", -1, event(most + 1), 1, ""},
		{"5 MiB", 5 << 20, event(5 << 20), 1, ""},
		{"5 MiB, too large", 5 << 20, event(5<<20 + 1), 0, "sse: event is larger than the decoder's limit of 5242880 bytes"},
		{"small, just fits", 20, event(20) + event(20), 2, ""},
		{"small, too large", 20, event(20) + event(21), 1, "sse: event is larger than the decoder's limit of 20 bytes"},
		{"all lines count", 20, event(20) + "data: x\ndata: y\ndata: z\n\n", 1, "sse: event is larger than the decoder's limit of 20 bytes"},
		{"other fields count", 20, "event: x\nfoo: bar\nid: 1\n", 0, "sse: event is larger than the decoder's limit of 20 bytes"},
		{"comments do not", 20, comment + "data: x\n" + comment + comment + "data: y\n" + comment + "\n", 1, ""},
		{"comments do not, at the start", 20, "\ufeff" + comment + "data: x\n\n", 1, ""},
		{"an event's size begins anew", 20, strings.Repeat("data: 12345\n\nid: 12345\n\n", 100), 100, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDecoder(strings.NewReader(tt.stream))
			d.MaxEventBytes = tt.max
			got := decodeAll(d)
			if len(got.events) != tt.events {
				t.Errorf("got %d events, want %d", len(got.events), tt.events)
			}
			if tt.tooLarge == "" {
				if got.err != io.EOF {
					t.Errorf("got error %v, want %v", got.err, io.EOF)
				}
			} else if !errors.Is(got.err, ErrEventTooLarge) || got.err.Error() != tt.tooLarge {
				t.Errorf("got error %v, want %s", got.err, tt.tooLarge)
			}
		})
	}
}

// However much a hostile server sends, the Decoder holds little of it.
func TestDecodeHostileStream(t *testing.T) {
	skipShort(t)
	const endless = 4 << 20
	for _, tt := range []struct {
		name       string
		head, then string
		most       uint64 // allocated, in bytes
		want       error
	}{
		{"endless comment", ":", "comment ", 64 << 10, io.EOF},
		{"endless comment after a byte order mark", "\ufeff:", "comment ", 64 << 10, io.EOF},
		{"endless comments", "", ":comment\n", 64 << 10, io.EOF},
		{"endless line", "data: ", "x", 8 << 20, ErrEventTooLarge},
		{"endless line of colons", "data: ", ":", 8 << 20, ErrEventTooLarge},
		{"endless lines", "", "data: x\n", 8 << 20, ErrEventTooLarge},
		{"endless IDs", "", "id: x\r", 8 << 20, ErrEventTooLarge},
		{"endless unknown field", "foo", "bar", 8 << 20, ErrEventTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			least := uint64(math.MaxUint64) // other goroutines may disturb a measurement
			for range 3 {
				d := NewDecoder(io.MultiReader(strings.NewReader(tt.head), io.LimitReader(&repeatingReader{text: tt.then}, endless)))
				d.MaxEventBytes = 1 << 20
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, err := d.Decode()
				runtime.ReadMemStats(&after)
				if !errors.Is(err, tt.want) {
					t.Errorf("got error %v, want %v", err, tt.want)
				}
				least = min(least, after.TotalAlloc-before.TotalAlloc)
			}
			if least > tt.most {
				t.Errorf("got %d bytes allocated, want at most %d", least, tt.most)
			}
		})
	}
}

func TestDecodeErrorStays(t *testing.T) {
	broken := errors.New("broken")
	d := NewDecoder(io.MultiReader(strings.NewReader("data: a\n\ndata: b\n"), iotest.ErrReader(broken), strings.NewReader("\n\ndata: c\n\n")))
	if e, err := d.Decode(); err != nil || e.Data != "a" {
		t.Fatalf("got %+v, %v, want the first event", e, err)
	}
	for range 3 {
		if e, err := d.Decode(); err != broken || e != (Event{}) {
			t.Errorf("got %+v, %v, want the reader's error", e, err)
		}
	}
	// A reader that would go on after an error is not asked again.
	for _, first := range []string{"d", "data: a\n", "\xef", "\ufeff"} {
		r := &cutReader{stream: []byte(first + "data: a\n\ndata: b\n\n"), ends: []int{len(first)}}
		d = NewDecoder(iotest.TimeoutReader(r))
		for range 3 {
			if e, err := d.Decode(); err != iotest.ErrTimeout || e != (Event{}) {
				t.Errorf("after %q: got %+v, %v, want %v", first, e, err, iotest.ErrTimeout)
			}
		}
	}
	d = NewDecoder(strings.NewReader("data: " + strings.Repeat("x", 100) + "\n\ndata: c\n\n"))
	d.MaxEventBytes = 50
	for range 3 {
		if e, err := d.Decode(); !errors.Is(err, ErrEventTooLarge) || e != (Event{}) {
			t.Errorf("got %+v, %v, want %v", e, err, ErrEventTooLarge)
		}
	}
}

func TestDecoderAll(t *testing.T) {
	const stream = "data: a\n\ndata: b\n\ndata: c\n\nevent: d\n"
	d := NewDecoder(strings.NewReader(stream))
	var got []string
	collect := func(limit int) {
		for e, err := range d.All() {
			got = append(got, fmt.Sprint(e.Data, " ", err))
			if limit--; limit == 0 {
				break
			}
		}
	}
	collect(1) // a loop that is left goes on in the next one
	collect(0)
	collect(0)
	if want := []string{"a <nil>", "b <nil>", "c <nil>"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	d, got = NewDecoder(io.MultiReader(strings.NewReader(stream), iotest.ErrReader(io.ErrUnexpectedEOF))), nil
	collect(0)
	if want := []string{"a <nil>", "b <nil>", "c <nil>", " unexpected EOF"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// ----- Writer -----

// Headers.

// The headers arrive before there is an event, and each event before the next.
func TestWriterBeginsAtOnce(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			for _, text := range []string{"a", "b"} {
				time.Sleep(time.Minute)
				wireCheck(t, out.Send(Event{Data: text}))
			}
			time.Sleep(time.Minute)
		})
		client := openWireStream(t, srv, "GET", nil)
		wantHeaders(t, client.response, http.StatusOK, map[string]string{
			"Content-Type":           "text/event-stream; charset=utf-8",
			"Cache-Control":          "no-cache, no-transform",
			"X-Accel-Buffering":      "no",
			"X-Content-Type-Options": "nosniff",
			"Content-Length":         "",
			"Connection":             "",
		})
		if chunks := client.response.TransferEncoding != nil; chunks != strings.HasPrefix(protocol, "HTTP/1.1") {
			t.Errorf("in chunks: got %v", chunks)
		}
		client.want(":\n") // the first byte, for proxies that wait for one
		for _, text := range []string{"a", "b"} {
			time.Sleep(time.Minute)
			client.want("data: " + text + "\n\n")
		}
		time.Sleep(time.Minute)
		client.wantEnd()
	})
}

func TestWriterKeepsHeaders(t *testing.T) {
	set := http.Header{
		"Content-Type":                {"text/event-stream"},
		"X-Content-Type-Options":      nil,
		"Cache-Control":               {"no-store"},
		"X-Accel-Buffering":           nil, // not to be sent at all
		"Access-Control-Allow-Origin": {"https://example.com"},
	}
	w := httptest.NewRecorder()
	maps.Copy(w.Header(), set)
	if _, err := NewWriter(w, httptest.NewRequest("GET", "/", nil)); err != nil {
		t.Fatal(err)
	}
	for name, want := range set {
		if got := w.Header()[name]; !slices.Equal(got, want) {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
}

// Over HTTP/2 the Date is the Writer's own, and the same as net/http's.
func TestWriterSendsTheDate(t *testing.T) {
	const mine = "Mon, 02 Jan 2006 15:04:05 GMT"
	for _, set := range [][]string{nil, {mine}} {
		eachWireProtocol(t, func(t *testing.T, protocol string) {
			srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				if set != nil {
					w.Header()["Date"] = set
				}
				begin(t, w, r)
			})
			want := cmp.Or(strings.Join(set, ""), time.Now().UTC().Format(http.TimeFormat))
			client := openWireStream(t, srv, "GET", nil)
			if got := client.response.Header["Date"]; !slices.Equal(got, []string{want}) {
				t.Errorf("Date set to %q: got %q, want %q", set, got, want)
			}
		})
	}
}

func TestWriterIntoRecorder(t *testing.T) {
	w := httptest.NewRecorder()
	out, err := NewWriter(w, httptest.NewRequest("GET", "/", nil))
	if err != nil || !w.Flushed || w.Code != http.StatusOK {
		t.Fatalf("got %v, flushed %v, status %d, want the headers flushed", err, w.Flushed, w.Code)
	}
	if te, ok := w.Header()["Transfer-Encoding"]; ok { // another server than net/http's would send it
		t.Errorf("got Transfer-Encoding %q, want none", te)
	}
	wireCheck(t, out.Send(Event{Data: "a"}, Event{Type: "b"}))
	wireCheck(t, out.Comment("c"))
	if got, want := w.Body.String(), ":\ndata: a\n\nevent: b\ndata: \n\n: c\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWriterAnswersHEAD(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			if err := out.Send(Event{Data: "a"}); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("Send: got %v, want %v", err, http.ErrBodyNotAllowed)
			}
			if err := out.Comment("a"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("Comment: got %v, want %v", err, http.ErrBodyNotAllowed)
			}
		})
		client := openWireStream(t, srv, "HEAD", nil)
		wantHeaders(t, client.response, http.StatusOK, map[string]string{
			"Content-Type":           "text/event-stream; charset=utf-8",
			"Cache-Control":          "no-cache, no-transform",
			"X-Accel-Buffering":      "no",
			"X-Content-Type-Options": "nosniff",
		})
		client.wantEnd()
	})
}

// A stream may well be the answer to a POST, whether the program has read the
// body or not.
func TestWriterAnswersPOST(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		for _, read := range []bool{true, false} {
			if protocol == "HTTP/1.0" && !read {
				continue // net/http would not notice that the client leaves
			}
			answer := "nobody read it"
			errs := make(chan error, 1)
			srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				if read {
					question, err := io.ReadAll(r.Body)
					wireCheck(t, err)
					answer = "you asked " + string(question)
				}
				out := begin(t, w, r)
				time.Sleep(time.Minute)
				wireCheck(t, out.Send(Event{Data: answer}))
				<-r.Context().Done()
				errs <- out.Send(Event{Data: "more"})
			}, shortTimeouts)
			client := openWireStream(t, srv, "POST", strings.NewReader("why?"))
			time.Sleep(time.Minute)
			client.want(":\ndata: " + answer + "\n\n")
			client.leave()
			if err := <-errs; !errors.Is(err, ErrClientLeft) {
				t.Errorf("got %v, want %v", err, ErrClientLeft)
			}
		}
	})
}

// What stands between the Writer and the connection.

func TestWriterThatCannotFlush(t *testing.T) {
	for _, tt := range []struct {
		name string
		wrap func(http.ResponseWriter) http.ResponseWriter
	}{
		{"sse.wireOpaque", func(w http.ResponseWriter) http.ResponseWriter { return wireOpaque{w} }},
		{"sse.wireOpaque", func(w http.ResponseWriter) http.ResponseWriter { return wireMiddleware{wireOpaque{w}} }},
	} {
		w := httptest.NewRecorder()
		w.Header().Set("X-Accel-Buffering", "of the program")
		out, err := NewWriter(tt.wrap(w), httptest.NewRequest("GET", "/", nil))
		want := "sse: " + tt.name + " cannot be flushed: feature not supported"
		if out != nil || !errors.Is(err, http.ErrNotSupported) || err.Error() != want {
			t.Errorf("got %v, %v, want %s", out, err, want)
		}
		if w.Code != http.StatusInternalServerError {
			t.Errorf("got status %d, want 500", w.Code)
		}
		if got, want := w.Header(), (http.Header{
			"Content-Type":           {"text/plain; charset=utf-8"},
			"X-Content-Type-Options": {"nosniff"},
			"X-Accel-Buffering":      {"of the program"},
		}); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if got := w.Body.String(); got != want+"\n" {
			t.Errorf("got body %q, want %q", got, want)
		}
	}
}

// A wrapper may hide until the first flush that none is possible.
func TestWriterThatCannotFlushAfterAll(t *testing.T) {
	out, err := NewWriter(&wireTape{flushError: http.ErrNotSupported}, httptest.NewRequest("GET", "/", nil))
	const want = "sse: *sse.wireTape cannot be flushed: feature not supported"
	if out != nil || !errors.Is(err, http.ErrNotSupported) || err.Error() != want {
		t.Errorf("got %v, %v, want %s", out, err, want)
	}
}

func TestWriterBehindTimeoutHandler(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		errs := make(chan error, 1)
		stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := NewWriter(w, r)
			errs <- err
		})
		srv := newWireServer(t, protocol, http.TimeoutHandler(stream, time.Minute, "").ServeHTTP)
		client := openWireStream(t, srv, "GET", nil)
		wantHeaders(t, client.response, http.StatusInternalServerError, map[string]string{
			"Content-Type":      "text/plain; charset=utf-8",
			"Cache-Control":     "",
			"X-Accel-Buffering": "",
		})
		client.want("sse: *http.timeoutWriter cannot be flushed: feature not supported\n")
		if err := <-errs; !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("got %v, want %v", err, http.ErrNotSupported)
		}
	})
}

// TestWriterOutlivesServerTimeouts runs a stream that is idle for longer than
// any timeout of the server and of the Writer, and then the next request on the
// same connection.
func TestWriterOutlivesServerTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name string
		wrap func(http.ResponseWriter) http.ResponseWriter
	}{
		{"bare", func(w http.ResponseWriter) http.ResponseWriter { return w }},
		{"wrapped", func(w http.ResponseWriter) http.ResponseWriter { return wireMiddleware{wireMiddleware{w}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachWireProtocol(t, func(t *testing.T, protocol string) {
				srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
					out := begin(t, tt.wrap(w), r)
					out.WriteTimeout = 2 * time.Second
					for _, text := range []string{"a", "b", "c"} {
						time.Sleep(15 * time.Second) // longer than the default WriteTimeout too
						wireCheck(t, out.Send(Event{Data: text}))
					}
					wireCheck(t, out.Comment("d"))
					time.Sleep(5 * time.Second)
				}, shortTimeouts)
				for range 2 {
					client := openWireStream(t, srv, "GET", nil)
					time.Sleep(45 * time.Second)
					client.want(":\ndata: a\n\ndata: b\n\ndata: c\n\n: d\n")
					time.Sleep(5 * time.Second)
					client.wantEnd()
				}
				if srv.dials() > 1 && strings.HasPrefix(protocol, "HTTP/2") {
					t.Errorf("got %d connections, want 1", srv.dials())
				}
			})
		})
	}
}

// Writing.

func TestWriterFlushesOnce(t *testing.T) {
	large := strings.Repeat("x", pieceBytes)
	synctest.Test(t, func(t *testing.T) {
		w := &wireTape{}
		out := begin(t, w, httptest.NewRequest("GET", "/", nil))
		w.want(t, "headers", "deadline 10s", "status 200", "deadline 10s", `write ":\n"`, "flush", "deadline off", "read deadline off")
		time.Sleep(time.Hour)

		wireCheck(t, out.Send(Event{Data: "a"}, Event{Data: "b"}, Event{Data: "c"}))
		w.want(t, "several events", "deadline 10s", `write "data: a\n\ndata: b\n\ndata: c\n\n"`, "flush", "deadline off")
		wireCheck(t, out.Comment("d"))
		w.want(t, "comment", "deadline 10s", `write ": d\n"`, "flush", "deadline off")
		out.WriteTimeout = 3 * time.Second
		wireCheck(t, out.Send(Event{Data: large}))
		w.want(t, "large event", "deadline 3s", "write 65536", "deadline 3s", `write "xxxxxx\n\n"`, "flush", "deadline off")
		out.WriteTimeout = -1
		wireCheck(t, out.Send(Event{Data: "a"}))
		w.want(t, "no limit", `write "data: a\n\n"`, "flush", "deadline off")

		r := httptest.NewRequest("GET", "/", nil)
		wireCheck(t, newWriter(w, r, time.Minute).open(r, []byte("retry: 1\n\n")))
		w.want(t, "hello", "deadline 1m0s", "status 200", "deadline 1m0s", `write "retry: 1\n\n"`, "flush", "deadline off", "read deadline off")
	})
}

// A ResponseWriter without deadlines is no reason not to stream, and is not
// asked for one again.
func TestWriterWithoutDeadlines(t *testing.T) {
	w := &wireTape{noDeadlines: true}
	out := begin(t, w, httptest.NewRequest("GET", "/", nil))
	w.want(t, "headers", "deadline refused", "status 200", `write ":\n"`, "flush", "read deadline refused")
	wireCheck(t, out.Send(Event{Data: "a"}))
	w.want(t, "send", `write "data: a\n\n"`, "flush")
}

func TestWriterComment(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ": \n"},
		{"hello", ": hello\n"},
		{"a\nb\rc\r\nd\n", ": a\n: b\n: c\n: d\n: \n"},
		{"x\n\ndata: forged\n\n", ": x\n: \n: data: forged\n: \n: \n"},
	} {
		w := httptest.NewRecorder()
		out := begin(t, w, httptest.NewRequest("GET", "/", nil))
		w.Body.Reset() // what comes with the headers
		wireCheck(t, out.Comment(tt.text))
		if got := w.Body.String(); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
		if got := decodeAsStandard(w.Body.Bytes()); len(got.events) != 0 {
			t.Errorf("%q: got events %#v, want none", tt.text, got.events)
		}
		const want = `sse: comment "\xff" is not valid UTF-8`
		if err := out.Comment("\xff"); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if got := w.Body.String(); got != tt.want {
			t.Errorf("a refused comment wrote %q", got[len(tt.want):])
		}
	}
}

func TestWriterRefusesInvalidEvent(t *testing.T) {
	w := httptest.NewRecorder()
	out := begin(t, w, httptest.NewRequest("GET", "/", nil))
	wireCheck(t, out.Send(Event{Data: "a"}))
	const want = `sse: event type "\n" contains CR, LF or NUL`
	err := out.Send(Event{Data: "good"}, Event{Type: "\n"}, Event{Data: "good"})
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	wireCheck(t, out.Send(Event{Data: "b"}))
	if got, want := w.Body.String(), ":\ndata: a\n\ndata: b\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWriterForSeveralGoroutines(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			var senders sync.WaitGroup
			for id := range 4 {
				senders.Go(func() {
					for n := range 20 {
						wireCheck(t, out.Send(Event{ID: strconv.Itoa(id), Data: strings.Repeat("line\n", n*200)}))
						wireCheck(t, out.Comment("between"))
					}
				})
			}
			senders.Wait()
		})
		client := openWireStream(t, srv, "GET", nil)
		client.wantEnd()
		d := NewDecoder(strings.NewReader(client.text()))
		next := map[string]int{}
		for e, err := range d.All() {
			wireCheck(t, err)
			if want := strings.Repeat("line\n", next[e.ID]*200); e.Data != want {
				t.Fatalf("event %d of %s: got %d bytes, want %d", next[e.ID], e.ID, len(e.Data), len(want))
			}
			next[e.ID]++
		}
		if want := (map[string]int{"0": 20, "1": 20, "2": 20, "3": 20}); !reflect.DeepEqual(next, want) {
			t.Errorf("got %v, want %v", next, want)
		}
	})
}

func TestWriterSendsWithoutAllocating(t *testing.T) {
	out := begin(t, &wireTape{deaf: true}, httptest.NewRequest("GET", "/", nil))
	e := Event{ID: "1", Type: "tick", Data: strings.Repeat("line\n", 100)}
	if allocs := testing.AllocsPerRun(100, func() { out.Send(e) }); allocs != 0 {
		t.Errorf("got %v allocations, want none", allocs)
	}
	wireCheck(t, out.Send(Event{Data: strings.Repeat("x", 1<<20)}))
	if got := cap(out.buf); got > pieceBytes {
		t.Errorf("got %d bytes kept after a large event, want at most %d", got, pieceBytes)
	}
}

// The ends of a stream.

// A client that stops reading is cut off when a write has taken WriteTimeout,
// no earlier and no later.
func TestWriterCutsOffStalledClient(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{
		{0, 10 * time.Second},
		{2 * time.Second, 2 * time.Second},
	} {
		eachWireProtocol(t, func(t *testing.T, protocol string) {
			type result struct {
				out  *Writer
				err  error
				took time.Duration
			}
			results := make(chan result, 1)
			srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				out, err := NewWriter(w, r)
				wireCheck(t, err)
				out.WriteTimeout = tt.set
				began := time.Now()
				for err == nil {
					time.Sleep(time.Second)
					began = time.Now()
					err = out.Send(Event{Data: strings.Repeat("x", 10<<10)})
				}
				again := out.Send(Event{Data: "a"})
				if comment := out.Comment("a"); again != err || comment != err {
					t.Errorf("afterwards: got %v and %v, want %v", again, comment, err)
				}
				results <- result{out, err, time.Since(began)}
			})
			openStalledWireStream(t, srv)
			got := <-results
			want := tt.want + hangUpTime(protocol)
			if !errors.Is(got.err, ErrTooSlow) || errors.Is(got.err, ErrClientLeft) || got.took != want {
				t.Errorf("got %v after %v, want %v after %v", got.err, got.took, ErrTooSlow, want)
			}
			synctest.Wait() // for the handler to return
			if err := got.out.Send(Event{Data: "a"}); err != got.err {
				t.Errorf("after the handler: got %v, want %v", err, got.err)
			}
		})
	}
}

// Over HTTP/2 a client may also stall the whole connection. That is for the
// server to notice, which must reach the handler as well.
func TestWriterOverStalledConnection(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		errs := make(chan error, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			errs <- sendUntilError(out, time.Second)
		}, func(s *http.Server) { s.HTTP2 = &http.HTTP2Config{WriteByteTimeout: 10 * time.Second} })
		var conn *stallingConn
		srv.wrap = func(c net.Conn) net.Conn {
			conn = &stallingConn{Conn: c, stalled: make(chan struct{}), closed: make(chan struct{})}
			return conn
		}
		openWireStream(t, srv, "GET", nil)
		began := time.Now()
		close(conn.stalled)
		if err := <-errs; !errors.Is(err, ErrTooSlow) || time.Since(began) > 30*time.Second {
			t.Errorf("got %v after %v, want %v", err, time.Since(began), ErrTooSlow)
		}
	})
}

// The Broker cuts off a client that it cannot wait for, whatever WriteTimeout is.
func TestWriterCut(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		outs := make(chan *Writer, 1)
		errs := make(chan error, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			out.WriteTimeout = -1
			outs <- out
			errs <- sendUntilError(out, 0)
		})
		openStalledWireStream(t, srv)
		out := <-outs
		time.Sleep(time.Hour)
		began := time.Now()
		out.cut()
		if err := <-errs; err == nil || time.Since(began) != hangUpTime(protocol) {
			t.Errorf("got %v after %v, want an error after %v", err, time.Since(began), hangUpTime(protocol))
		}
	})
}

// A cut between two writes, or while a deadline is being cleared, ends the next.
func TestWriterCutStays(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, -1} {
		synctest.Test(t, func(t *testing.T) {
			w := &wireTape{}
			out := begin(t, w, httptest.NewRequest("GET", "/", nil))
			out.WriteTimeout = timeout
			w.duringFlush = out.cut
			wireCheck(t, out.Send(Event{Data: "a"}))
			w.duringFlush, w.tape = nil, nil
			out.Send(Event{Data: "b"})
			atWrite := slices.Index(w.tape, `write "data: b\n\n"`)
			if atWrite < 1 || w.tape[atWrite-1] != "deadline past" {
				t.Errorf("WriteTimeout %v: got %q, want a deadline in the past before the write", timeout, w.tape)
			}
		})
	}
}

func TestWriterWithoutWriteTimeout(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		errs := make(chan error, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			out.WriteTimeout = -1
			errs <- sendUntilError(out, 0)
		}, shortTimeouts)
		leave := openStalledWireStream(t, srv)
		time.Sleep(24 * time.Hour)
		select {
		case err := <-errs:
			t.Fatalf("got %v, want a Send that waits", err)
		default:
		}
		leave()
		if err := <-errs; !errors.Is(err, ErrClientLeft) || errors.Is(err, ErrTooSlow) {
			t.Errorf("got %v, want %v", err, ErrClientLeft)
		}
	})
}

// A client on a slow line may take its time over a large event, as long as it
// takes some of it within WriteTimeout.
func TestWriterIsPatientWithLargeEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errs := make(chan error, 1)
		srv := newWireServer(t, "HTTP/1.1", func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			errs <- out.Send(Event{Data: strings.Repeat("x", 1<<20)})
		})
		conn := srv.dial(t)
		io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		began := time.Now()
		read := 0
		for {
			n, err := io.CopyN(io.Discard, conn, 8<<10)
			if read += int(n); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if err := <-errs; err != nil || read < 1<<20 || time.Since(began) < 2*time.Minute {
			t.Errorf("got %v, %d bytes in %v", err, read, time.Since(began))
		}
	})
}

func TestWriterWhenClientLeaves(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		type result struct {
			out *Writer
			err error
		}
		results := make(chan result, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			wireCheck(t, out.Send(Event{Data: "a"}))
			<-r.Context().Done()
			err := out.Send(Event{Data: "b"})
			if comment := out.Comment("c"); comment != err {
				t.Errorf("Comment: got %v, want %v", comment, err)
			}
			results <- result{out, err}
		})
		client := openWireStream(t, srv, "GET", nil)
		client.want(":\ndata: a\n\n")
		client.leave()
		got := <-results
		if !errors.Is(got.err, ErrClientLeft) || !errors.Is(got.err, context.Canceled) {
			t.Errorf("got %v, want %v and %v", got.err, ErrClientLeft, context.Canceled)
		}
		synctest.Wait() // for the handler to return
		if err := got.out.Send(Event{Data: "d"}); err != got.err {
			t.Errorf("after the handler: got %v, want %v", err, got.err)
		}
	})
}

// A Writer that outlives its handler, of a client that is still there, must not
// touch a connection that is another request's by now.
func TestWriterAfterHandler(t *testing.T) {
	eachWireProtocol(t, func(t *testing.T, protocol string) {
		outs := make(chan *Writer, 1)
		srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			out := begin(t, w, r)
			outs <- out
		})
		client := openWireStream(t, srv, "GET", nil)
		client.wantEnd()
		out := <-outs
		if err := out.Send(Event{Data: "a"}); !errors.Is(err, ErrClientLeft) {
			t.Errorf("Send: got %v, want %v", err, ErrClientLeft)
		}
		if err := out.Comment("a"); !errors.Is(err, ErrClientLeft) {
			t.Errorf("Comment: got %v, want %v", err, ErrClientLeft)
		}
		client.want(":\n")
	})
}

// The request's context may end for a reason of the program's own.
func TestWriterWhenContextEnds(t *testing.T) {
	revoked := errors.New("access revoked")
	ctx, cancel := context.WithCancelCause(t.Context())
	w := httptest.NewRecorder()
	out := begin(t, w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
	cancel(revoked)
	if err := out.Send(Event{Data: "a"}); errors.Is(err, ErrClientLeft) || !errors.Is(err, revoked) {
		t.Errorf("got %v, want %v and not %v", err, revoked, ErrClientLeft)
	}
	if got := w.Body.String(); got != ":\n" {
		t.Errorf("got %q, want nothing written", got)
	}
}

func TestWriterWhenWriteFails(t *testing.T) {
	broken := errors.New("broken pipe")
	for _, tt := range []struct {
		name         string
		write, flush error
		takes        time.Duration
		want         error
	}{
		{"write", broken, nil, 0, ErrClientLeft},
		{"flush", nil, broken, 0, ErrClientLeft},
		{"write deadline", os.ErrDeadlineExceeded, nil, 0, ErrTooSlow},
		{"flush deadline", nil, os.ErrDeadlineExceeded, 0, ErrTooSlow},
		// An HTTP/2 stream does not say that a deadline was missed.
		{"write shortly before the deadline", broken, nil, 10*time.Second - 1, ErrClientLeft},
		{"write past the deadline", broken, nil, 10 * time.Second, ErrTooSlow},
		{"flush past the deadline", nil, broken, 10 * time.Second, ErrTooSlow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wireTape{}
				out, err := NewWriter(w, httptest.NewRequest("GET", "/", nil))
				wireCheck(t, err)
				time.Sleep(time.Minute)
				w.writeError, w.flushError, w.takes = tt.write, tt.flush, tt.takes
				w.tape = nil
				err = out.Send(Event{Data: strings.Repeat("x", 3*pieceBytes)})
				if !errors.Is(err, tt.want) || errors.Is(err, ErrTooSlow) == errors.Is(err, ErrClientLeft) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if last := w.tape[len(w.tape)-1]; tt.write != nil && len(w.tape) > 1 || tt.flush != nil && last != "flush" {
					t.Errorf("got %q, want nothing done after the failure", w.tape)
				}
				if cause := cmp.Or(tt.write, tt.flush); !errors.Is(err, cause) {
					t.Errorf("got %v, want it to wrap %v", err, cause)
				}
				w.writeError, w.flushError, w.tape = nil, nil, nil
				if again := out.Send(Event{Data: "b"}); again != err {
					t.Errorf("afterwards: got %v, want %v", again, err)
				}
				w.want(t, "afterwards")
			})
		})
	}
}

func TestNewWriterWhenClientIsGone(t *testing.T) {
	for _, w := range []*wireTape{{flushError: io.ErrClosedPipe}, {writeError: io.ErrClosedPipe}} {
		r := httptest.NewRequest("GET", "/", nil)
		err := newWriter(w, r, 0).open(r, []byte("retry: 1\n\n"))
		if !errors.Is(err, ErrClientLeft) || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v, want %v", err, ErrClientLeft)
		}
	}
}

// ----- Broker -----

func TestAssignedIDsAreShortAndPlain(t *testing.T) {
	plain := regexp.MustCompile(`^[0-9a-z]+-[0-9a-z]+$`)
	b, other := &Broker{}, &Broker{}
	seen := map[string]bool{}
	for range 3000 {
		b.Publish(Event{Data: "x"}, "topic")
		id := b.LastEventID()
		if !plain.MatchString(id) || len(id) > 32 || seen[id] {
			t.Fatalf("ID: got %q after %d others, want one of its own, short, of [0-9a-z-]", id, len(seen))
		}
		seen[id] = true
	}
	if prefix, _, _ := strings.Cut(b.LastEventID(), "-"); strings.HasPrefix(other.LastEventID(), prefix) {
		t.Errorf("two Brokers begin their IDs with %q", prefix)
	}
}

func TestPublishRefusesADuplicateID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 5}
		all := followBroker(t, b, "", "", "other")
		refused := func(id string) {
			t.Helper()
			if _, err := b.Publish(Event{ID: id, Data: "again"}, "other"); !errors.Is(err, ErrDuplicateID) {
				t.Errorf("event with ID %q: got %v, want ErrDuplicateID", id, err)
			}
		}
		first := b.LastEventID()
		b.Publish(Event{ID: "id", Data: "1"})
		refused("id")
		refused(first) // the Broker's own, though no event has it
		refused(first + "1")
		b.Publish(Event{Data: "2"})
		refused("id")
		refused(b.LastEventID())
		all.want("1 2")
		if got := b.Stats().Published; got != 2 {
			t.Errorf("published: got %d, want 2", got)
		}
		if _, err := b.Publish(Event{ID: "own", Data: "3"}, "other"); err != nil {
			t.Errorf("event with a new ID after those refused: %v", err)
		}
		all.want("3")

		for range 300 { // more than the ring keeps
			b.Publish(Event{Data: "x"}, "more")
		}
		if _, err := b.Publish(Event{ID: "id", Data: "4"}); err != nil {
			t.Errorf("event with an ID that was forgotten: %v", err)
		}
		all.want("4")
	})
}

func TestPublishReturnsTheID(t *testing.T) {
	b := &Broker{}
	if id, err := b.Publish(Event{Data: "1"}); id == "" || id != b.LastEventID() || err != nil {
		t.Errorf("without an ID: got %q, %v, want the one assigned, %q", id, err, b.LastEventID())
	}
	for _, want := range []error{nil, ErrDuplicateID} {
		if id, err := b.Publish(Event{ID: "own"}); id != "own" || !errors.Is(err, want) {
			t.Errorf("with an ID: got %q, %v, want own, %v", id, err, want)
		}
	}
	if id, err := (&Broker{History: -1}).Publish(Event{}); id != "" || err != nil {
		t.Errorf("without a history: got %q, %v, want no ID", id, err)
	}
}

func TestIDsMayRepeatWithoutAHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: -1}
		all := followBroker(t, b, "")
		for range 2 {
			if _, err := b.Publish(Event{ID: "id", Data: "1"}); err != nil {
				t.Error(err)
			}
		}
		b.Publish(Event{Data: "2"})
		all.want("1 1 2")
		if id := b.LastEventID(); id != "" {
			t.Errorf("LastEventID without a history: got %q, want none", id)
		}
	})
}

func TestPublishRefusesABadEventBeforeAnythingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		all := followBroker(t, b, "")
		before := b.LastEventID()
		for _, e := range []Event{
			{ID: "a\nb"}, {ID: "a\x00"}, {ID: " a"}, {ID: "a\x7f"}, {ID: strings.Repeat("a", 1025)}, {ID: "\xff"},
			{Type: "a\rb"}, {Type: "\xff"}, {ID: "sse-end"}, {ID: Earliest}, {Retry: -1}, {Retry: 1},
		} {
			if _, err := b.Publish(e); err == nil || errors.Is(err, ErrDuplicateID) || errors.Is(err, ErrClosed) {
				t.Errorf("Publish(%.50q): got %v, want an error that says what is wrong", fmt.Sprint(e), err)
			}
		}
		if b.LastEventID() != before || b.Stats().Published != 0 {
			t.Errorf("refused events took %d places", b.Stats().Published)
		}
		all.want("")
	})
}

func TestPublishAfterShutdown(t *testing.T) {
	b := &Broker{}
	b.Shutdown(t.Context())
	if _, err := b.Publish(Event{Data: "x"}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if got := b.Stats(); got != (Stats{}) {
		t.Errorf("Stats: got %+v, want nothing", got)
	}
}

func TestPublishWaitsForNobody(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{WriteTimeout: -1}
		s := serve(t, b)
		for range 20 {
			s.getStalled("/", "")
			loop := followBroker(t, b, "")
			loop.stall(true)
		}
		reader, loop := s.get("/", ""), followBroker(t, b, "")
		synctest.Wait()
		start := time.Now()
		want := publishNumbers(b, 3000)
		if took := time.Since(start); took > 0 {
			t.Errorf("3,000 events took %v because of clients that do not read", took)
		}
		time.Sleep(time.Second) // for those that have to take the place of the stuck
		reader.want(want)
		loop.want(want)
	})
}

func TestEventInSeveralTopicsArrivesOnce(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		start := b.LastEventID()
		both, a, none := s.get("/?topic=a&topic=b&topic=a", ""), s.get("/?topic=a", ""), s.get("/", "")
		synctest.Wait()
		b.Publish(Event{Data: "1"}, "a", "b")
		b.Publish(Event{Data: "2"}, "b", "b", "c")
		b.Publish(Event{Data: "3"}, "c", "a", "b", "a")
		b.Publish(Event{Data: "4"})
		both.want("1 2 3")
		a.want("1 3")
		none.want("4")
		both = s.get("/?topic=b&topic=a", "Last-Event-ID: "+start+"\r\n")
		both.want("1 2 3")
		loop := followBroker(t, b, start, "b", "a", "c")
		loop.want("1 2 3")
	})
}

func TestManyTopicsPerClient(t *testing.T) {
	for _, n := range []int{1, 7, 8, 9, 10, 500} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{}
				names := make([]string, n)
				for i := range names {
					names[i] = fmt.Sprint("topic ", i)
				}
				start := b.LastEventID()
				follower := followBroker(t, b, "", names...)
				synctest.Wait()
				var want []string
				for i, name := range names {
					data := strconv.Itoa(i)
					want = append(want, data, "and"+data)
					b.Publish(Event{Data: data}, name)
					b.Publish(Event{Data: "other"}, "other")
					b.Publish(Event{Data: "and" + data}, names[0], name)
				}
				follower.want(strings.Join(want, " "))
				follower = followBroker(t, b, start, names...)
				follower.want(strings.Join(want, " "))
				follower.close()
				synctest.Wait()
				if len(b.topics) != n+1 {
					t.Errorf("topics: got %d, want %d", len(b.topics), n+1)
				}
			})
		})
	}
}

func TestTopicsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 10}
		for i := range 5000 {
			user := fmt.Sprint("user/", i)
			follower := followBroker(t, b, "", user, "all")
			if i%2 == 0 {
				b.Publish(Event{Data: "x"}, user, "all")
			}
			follower.stall(i%3 == 0)
			if i%7 == 0 { // falls behind, or gets more
				b.Publish(Event{Data: "x"}, user)
				b.Publish(Event{Data: "x"}, user)
			}
			if _, err := b.Publish(Event{ID: "a\n"}, "refused"); err == nil {
				t.Fatal("a bad event was published")
			}
			follower.close()
		}
		synctest.Wait()
		// The ring holds at least 256 events, each of at most two topics.
		if got := b.Stats().Topics; got > 2*256 || got != len(b.topics) {
			t.Errorf("topics after 5,000 users: got %d, want at most the ring's", got)
		}
		for range 300 {
			b.Publish(Event{Data: "x"}, "last")
		}
		if got := b.Stats().Topics; got != 1 {
			t.Errorf("topics when the ring has forgotten the users: got %d, want 1", got)
		}
	})
}

func TestLogKeepsNoReferenceToEvictedFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 256}
		start := b.LastEventID()
		reader, stalled := followBroker(t, b, ""), followBroker(t, b, "")
		var evicted []weak.Pointer[frame]
		for i := range 700 {
			b.Publish(Event{ID: fmt.Sprint("id", i), Data: "x"})
			if f := b.log.at(b.log.head); i < 400 {
				evicted = append(evicted, weak.Make(f))
			}
			synctest.Wait()
			switch i {
			case 100:
				stalled.stall(true)
			case 250: // what it is given all at once is kept by nothing that is used again
				followBroker(t, b, start).close()
			}
		}
		runtime.GC()
		kept := 0
		for _, p := range evicted {
			if p.Value() != nil {
				kept++
			}
		}
		if kept > 1 {
			t.Errorf("evicted frames that are still in memory: got %d, want the one that the stalled subscriber was given at most", kept)
		}
		if got := len(b.log.ids); got > 257 {
			t.Errorf("IDs: got %d, want those of the log", got)
		}
		reader.close()
		stalled.close()
	})
}

// Publish does not wake the subscribers of a large topic itself.
func TestPublishDoesNotWaitUntilAllAreWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5000
		b := &Broker{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got atomic.Int64
		for range n {
			go func() {
				for range b.Subscribe(ctx, "", "many") {
					got.Add(1)
				}
			}()
		}
		synctest.Wait()
		early := 0
		for range 20 {
			got.Store(0)
			b.Publish(Event{Data: "x"}, "many")
			b.mu.Lock()
			if b.topics["many"].toWake > 0 {
				early++
			}
			b.unlock()
			synctest.Wait()
			if got := got.Load(); got != n {
				t.Fatalf("subscribers that got the event: got %d, want %d", got, n)
			}
		}
		if early == 0 {
			t.Error("all were woken whenever Publish returned")
		}
	})
}

// A tightPublisher publishes to a topic that nobody has, as fast as it can.
type tightPublisher struct {
	published atomic.Int64
	stop      atomic.Bool
	stopped   chan struct{}
}

func publishTightly(b *Broker) *tightPublisher {
	p := &tightPublisher{stopped: make(chan struct{})}
	go func() {
		defer close(p.stopped)
		for !p.stop.Load() {
			b.Publish(Event{Data: "some data that says something"}, "nobody's")
			p.published.Add(1)
		}
	}()
	return p
}

func (p *tightPublisher) end() {
	p.stop.Store(true)
	<-p.stopped
}

// followMany begins n loops over the default topic, and returns a function that
// publishes an event and waits until all have got it.
func followMany(t testing.TB, b *Broker, n int) (publish func()) {
	start := b.LastEventID()
	var got atomic.Int64 // a look at Stats would have to wait for the Broker, and others for it
	for range n {
		go func() {
			for _, err := range b.Subscribe(t.Context(), start) {
				if err == nil {
					got.Add(1)
				}
			}
		}()
	}
	want := int64(0)
	publish = func() {
		b.Publish(Event{Data: "some data that says something"})
		deadline := time.Now().Add(30 * time.Second)
		for want += int64(n); got.Load() < want; {
			if time.Sleep(100 * time.Microsecond); time.Now().After(deadline) {
				t.Fatalf("%d of %d have not got an event after 30 s", want-got.Load(), n)
			}
		}
	}
	publish()
	return publish
}

// While very many are woken, mu is given up now and then: Publish waits for a few of
// them only. A mutex that was waited for longer than a millisecond is handed from one to
// the next in their order, so that here Publish comes at the first pause.
func TestPublishComesBetweenThoseWhoAreWoken(t *testing.T) {
	const members = 8 * signalsAtOnce
	b := &Broker{}
	var subs []*subscriber
	for range members {
		s := joinSubscriber(t, b, "")
		for then := again; then != wait; {
			_, then = s.next(nil)
		}
		subs = append(subs, s)
	}
	b.mu.Lock()
	b.announcing = true // by the walk below
	b.unlock()
	b.Publish(Event{Data: "1"})
	b.mu.Lock()
	var all sync.WaitGroup
	all.Go(func() { announce(b) })
	time.Sleep(2 * time.Millisecond) // the mutex knows no fake time
	woken := 0
	all.Go(func() { // in the place of Publish
		b.mu.Lock()
		defer b.unlock()
		for _, s := range subs {
			if !s.waiting {
				woken++
			}
		}
	})
	time.Sleep(2 * time.Millisecond)
	b.unlock()
	all.Wait()
	if woken > signalsAtOnce {
		t.Errorf("got %d woken before the next had mu, want %d at most", woken, signalsAtOnce)
	}
}

// The topics of an event take memory as its text does.
func TestHistoryBytesCountsTopics(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const events, topics, bytes = 1000, 2000, 2 << 20
	var names []string
	for i := range topics {
		names = append(names, fmt.Sprint("topic ", i))
	}
	b := &Broker{HistoryBytes: bytes}
	for _, name := range names { // what the topics need is not the events'
		b.Publish(Event{Data: "x"}, name)
	}
	start := b.LastEventID()
	kept := heapInUse()
	for range events {
		b.Publish(Event{Data: "an event of 20 bytes"}, names...)
	}
	kept = heapInUse() - kept
	t.Logf("%d events of %d topics hold %d KiB, HistoryBytes is %d KiB", events, topics, kept>>10, bytes>>10)
	if kept > 2*bytes {
		t.Errorf("%d events of %d topics hold %d MiB, want %d at most", events, topics, kept>>20, 2*bytes>>20)
	}
	for e := range b.Subscribe(t.Context(), start, names[0]) {
		if e.Type != "gap" {
			t.Errorf("got %q after the first of them, want a gap", e.Data)
		}
		break
	}
	runtime.KeepAlive(b)
}

// heapInUse returns the size of all that is reachable.
func heapInUse() int64 {
	var m runtime.MemStats
	for range 3 { // a sync.Pool gives back what it holds the second time
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// ----- The log -----

// The history, that is what a client gets that comes back.

func TestResumingAtTheNewestEventSendsNothing(t *testing.T) {
	t.Parallel()
	for _, history := range []int{1, 10, 256, 300, 0} {
		for _, explicit := range []bool{false, true} {
			t.Run(fmt.Sprintf("History=%d,explicit=%v", history, explicit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{History: history}
					for fill := range 1100 {
						follower := followBroker(t, b, b.LastEventID())
						synctest.Wait()
						follower.want("")
						e := Event{Data: strconv.Itoa(fill)}
						if explicit {
							e.ID = "id" + e.Data
						}
						b.Publish(e)
						follower.want(e.Data)
						follower.close()
						if t.Failed() {
							t.Fatalf("with %d events in the ring", fill)
						}
					}
					if gaps := b.Stats().Gaps; gaps != 0 {
						t.Errorf("gaps: got %d, want none", gaps)
					}
				})
			})
		}
	}
}

func TestResumingGivesExactlyWhatWasMissed(t *testing.T) {
	for _, history := range []int{1, 20, 300} {
		for _, explicit := range []bool{false, true} {
			t.Run(fmt.Sprintf("History=%d,explicit=%v", history, explicit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{History: history}
					ids := []string{b.LastEventID()}
					var data []string
					for i := range 650 {
						e := Event{Data: strconv.Itoa(i)}
						if explicit {
							e.ID = "id" + e.Data
						}
						b.Publish(e)
						ids, data = append(ids, b.LastEventID()), append(data, e.Data)
						if i != 5 && i != 400 && i != 649 {
							continue
						}
						first := max(0, len(data)-history)
						for j, id := range ids {
							if j > 30 && j < len(ids)-30 && j%20 != 0 && j != first {
								continue
							}
							want := data[max(j, first):]
							if j < first {
								want = append([]string{"gap:" + id}, want...)
							}
							follower := followBroker(t, b, id)
							follower.want(strings.Join(want, " "))
							follower.close()
							if t.Failed() {
								t.Fatalf("after %d events, from the ID of event %d on", len(data), j-1)
							}
						}
					}
				})
			})
		}
	}
}

func TestGapIsTold(t *testing.T) {
	for _, id := range []string{"nobody", "aaaaaaaa-1", "é ü", "%0a"} {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{}
			s := serve(t, b)
			start := b.LastEventID()
			for _, when := range []string{"gap:" + id, "gap:" + id + " 1", "gap:" + id + " 1 2"} {
				header := "Last-Event-ID: " + id + "\r\n"
				c := s.get("/", header)
				c.want(when)
				// Cut off in the middle of it, a client is told of no second gap.
				if gap := c.first("gap"); gap.ID != start {
					t.Errorf("ID of the gap event: got %q, want that of the place it goes on from, %q", gap.ID, start)
				}
				followBroker(t, b, start).want(strings.TrimPrefix(strings.TrimPrefix(when, "gap:"+id), " "))
				b.Publish(Event{Data: strconv.Itoa(int(b.Stats().Published) + 1)})
			}
			if got := b.Stats().Gaps; got != 3 {
				t.Errorf("gaps: got %d, want 3", got)
			}
		})
	}
}

// The last ID is that of the last event that had one.
func TestGapNamesTheLastIDThatTheClientHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: -1}
		loop := followBroker(t, b, "")
		synctest.Wait()
		loop.stall(true)
		b.Publish(Event{ID: "first", Data: "first"}) // is what it stalls on
		synctest.Wait()
		b.Publish(Event{ID: "second", Data: "second"})
		synctest.Wait()
		for range 300 {
			b.Publish(Event{Data: "x"})
		}
		loop.stall(false)
		synctest.Wait()
		got := loop.events()
		if len(got) < 2 || got[1].Type != "gap" || got[1].Data != "first" {
			t.Errorf("got %.300q, want first and a gap after that", fmt.Sprint(got))
		}

		loop.stall(true)
		// Pulled together: events with and without an ID.
		for i := range 100 {
			if i < 3 {
				synctest.Wait()
			}
			e := Event{Data: "y"}
			if i < 50 {
				e.ID = strconv.Itoa(i)
			}
			b.Publish(e)
		}
		loop.stall(false)
		synctest.Wait()
		loop.stall(true)
		for i := range 300 {
			if i < 3 {
				synctest.Wait()
			}
			b.Publish(Event{Data: "z"})
		}
		synctest.Wait()
		loop.stall(false)
		synctest.Wait()
		i := slices.IndexFunc(loop.events(), func(e pipeBlock) bool { return e.Type == "gap" && e.Data == "49" })
		if i < 0 {
			t.Error("after events with and without an ID, the gap does not name the last ID")
		}
	})
}

func TestIDsFromBeforeARestartAreForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, b := &Broker{}, &Broker{}
		for i := range 5 {
			old.Publish(Event{Data: "old"})
			b.Publish(Event{Data: strconv.Itoa(i)})
		}
		id := old.LastEventID()
		followBroker(t, b, id).want("gap:" + id + " 0 1 2 3 4")
	})
}

func TestWithoutAHistoryOneStartsAnew(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: -1}
		s := serve(t, b)
		b.Publish(Event{ID: "1", Data: "1"})
		c := s.get("/", "Last-Event-ID: 1\r\n")
		c.want("")
		b.Publish(Event{Data: "2"})
		c.want("2")
		if id := c.lastID(); id != "" {
			t.Errorf("last event ID: got %q, want none", id)
		}
	})
}

// A burst is no gap, however little History asks for, up to what the ring holds
// as a queue; beyond that a client that does not keep up is told.
func TestRingIsAQueue(t *testing.T) {
	for _, history := range []int{-1, 1, 10} {
		for _, n := range []int{200, 256, 257, 260, 600} {
			t.Run(fmt.Sprintf("History=%d,%d events", history, n), func(t *testing.T) {
				serveAndDetach(t, func(t *testing.T, serve serveFunc) {
					b := &Broker{History: history}
					s := serve(t, b)
					c, loop := s.get("/", ""), followBroker(t, b, "")
					synctest.Wait()
					c.stall(true)
					loop.stall(true)
					for i := range n {
						if i < 3 { // it goes to sleep over the first, and leaves the others
							synctest.Wait()
						}
						e := Event{Data: strconv.Itoa(i)}
						if history < 0 || i%2 == 0 {
							e.ID = "id" + e.Data
						}
						b.Publish(e)
					}
					synctest.Wait()
					c.stall(false)
					loop.stall(false)
					synctest.Wait()
					wantGapAfter(t, "client", c.events(), n, 256)
					wantGapAfter(t, "loop", loop.events(), n, 256)
					// Having caught up it goes on.
					b.Publish(Event{Data: "on"})
					c.want("on")
					loop.want("on")
				})
			})
		}
	}
}

// wantGapAfter checks that the events are those numbered 0 to n-1, but that from
// some event on, those before the last kept ones are left out, in favour of one
// gap event that names the event before.
func wantGapAfter(t *testing.T, who string, got []pipeBlock, n, kept int) {
	t.Helper()
	next, lastID, gaps := 0, "", 0
	for _, e := range got {
		if e.Type == "gap" {
			if gaps++; e.Data != lastID || next >= n-kept || next == 0 {
				t.Errorf("%s after event %d: got a gap after %q, want %q", who, next-1, e.Data, lastID)
			}
			next = n - kept
		} else if e.Data != strconv.Itoa(next) {
			t.Fatalf("%s: got event %q, want %d", who, e.Data, next)
		} else {
			next++
		}
		lastID = cmp.Or(e.ID, lastID)
	}
	wantGaps := 0
	if n > kept+10 {
		wantGaps = 1
	} else if n > kept { // what was on its way when it stopped reading is not counted exactly
		wantGaps = gaps
	}
	if next != n || gaps != wantGaps {
		t.Errorf("%s: got events up to %d and %d gaps, want %d and %d", who, next-1, gaps, n-1, wantGaps)
	}
}

func TestHistoryBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{HistoryBytes: 10_000}
		start := b.LastEventID()
		huge := strings.Repeat("x", 1_000_000)
		b.Publish(Event{Data: "1"})
		b.Publish(Event{Data: "2"})
		before := b.LastEventID()
		b.Publish(Event{Data: huge})
		followBroker(t, b, before).want(huge)
		followBroker(t, b, start).want("gap:" + start + " " + huge)
		b.Publish(Event{Data: "3"})
		followBroker(t, b, before).want("gap:" + before + " 3")

		kilobyte := strings.Repeat("k", 1000)
		for range 100 {
			b.Publish(Event{Data: kilobyte})
		}
		follower := followBroker(t, b, start)
		synctest.Wait()
		if got := len(follower.events()) - 1; got != 9 {
			t.Errorf("events of 1,000 bytes and a bit in 10,000 bytes: got %d, want 9", got)
		}
	})
}

func TestHistoryBytesByDefaultAndWithoutLimit(t *testing.T) {
	for limit, want := range map[int]int{0: 15, -1: 40} {
		b := &Broker{HistoryBytes: limit}
		data := strings.Repeat("x", 1<<20)
		for range 40 {
			b.Publish(Event{Data: data})
		}
		if n := b.log.len(); n != want {
			t.Errorf("HistoryBytes %d: got %d events of a MiB, want %d", limit, n, want)
		}
	}
}

func TestHistoryAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{HistoryAge: time.Minute}
		start := b.LastEventID()
		b.Publish(Event{Data: "1"})
		first := b.LastEventID()
		time.Sleep(50 * time.Second)
		b.Publish(Event{Data: "2"})
		followBroker(t, b, start).want("1 2")
		time.Sleep(11 * time.Second)
		followBroker(t, b, start).want("gap:" + start + " 2")
		followBroker(t, b, first).want("2") // has missed nothing that expired
		time.Sleep(time.Hour)
		followBroker(t, b, first).want("gap:" + first)
		followBroker(t, b, b.LastEventID()).want("")

		// The ring forgets them too, but for those it needs as a queue.
		for range 1000 {
			b.Publish(Event{Data: "x"})
		}
		time.Sleep(2 * time.Minute)
		b.Publish(Event{Data: "x"})
		if got := b.log.len(); got != 256 {
			t.Errorf("events in the ring after they expired: got %d, want 256", got)
		}
	})
}

// An expired event is still in the queue for a client that is connected.
func TestHistoryAgeSparesThoseWhoAreConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{HistoryAge: time.Second}
		loop := followBroker(t, b, "")
		loop.stall(true)
		synctest.Wait()
		for i := range 10 {
			b.Publish(Event{Data: strconv.Itoa(i)})
			time.Sleep(time.Minute)
		}
		loop.stall(false)
		loop.want("0 1 2 3 4 5 6 7 8 9")
	})
}

func TestNegativeLimitsAreNone(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{HistoryAge: -1, HistoryBytes: -1, MaxClients: -1}
		s := serve(t, b)
		start := b.LastEventID()
		b.Publish(Event{Data: "1"})
		time.Sleep(time.Hour)
		s.get("/", "Last-Event-ID: "+start+"\r\n").want("1")
	})
}

func TestClientThatWasCutOffBeforeItsFirstEventMissesNothing(t *testing.T) {
	for _, explicit := range []string{"", "id"} {
		for _, earlier := range []int{0, 1, 300} {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{History: 20}
				s := serve(t, b)
				publish := func(data string) {
					e := Event{Data: data}
					if explicit != "" {
						e.ID = explicit + data
					}
					b.Publish(e)
				}
				for i := range earlier {
					publish(fmt.Sprint("early", i))
				}
				c := s.get("/", "")
				c.want("")
				c.close()
				publish("1")
				publish("2")
				if c.lastID() == "" {
					t.Error("the client was told no ID")
				}
				c = s.get("/", "Last-Event-ID: "+c.lastID()+"\r\n")
				c.want("1 2")
			})
		}
	}
}

func TestLastEventIDIsWhereAPageBegins(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		for i := range 3 {
			id := b.LastEventID()
			b.Publish(Event{Data: fmt.Sprint("early", i)})
			s.get("/?lastEventId="+id, "").want(fmt.Sprint("early", i))
		}
	})
}

// Earliest stands for the place before all that the history holds.
func TestEarliest(t *testing.T) {
	for _, history := range []int{0, 2} {
		want := map[int]string{0: "1 2 3 4", 2: "3 4"}[history]
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{History: history}
			asked := yieldAll(b, Event{Data: "caught up"})
			s := serve(t, b)
			for _, id := range []string{"1", "2", "3", "4"} {
				b.Publish(Event{ID: id, Data: id}, "a", "b")
			}
			loop := followBroker(t, b, Earliest, "a")
			header := s.get("/?topic=a", "Last-Event-ID: "+Earliest+"\r\n")
			query := s.get("/?topic=a&lastEventId="+Earliest, "")
			header.want(want)
			query.want(want)
			loop.want(want)
			b.Publish(Event{ID: "5", Data: "5"}, "a")
			header.want("5")
			query.want("5")
			loop.want("5")
			if got := b.Stats().Gaps; got != 0 || len(*asked) != 0 {
				t.Errorf("got %d gaps, CatchUp asked for %q, want neither", got, *asked)
			}
			for _, block := range header.blocks {
				if block.ID == Earliest {
					t.Errorf("got block %q, want a real ID", block.Raw)
				}
			}
		})
	}
}

func TestEarliestLeavesOutWhatHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{HistoryAge: time.Minute}
		publishIDs(t, b, "1")
		time.Sleep(2 * time.Minute)
		publishIDs(t, b, "2")
		followBroker(t, b, Earliest).want("2")
	})
}

// From its first block on, a client has a real ID, so one that got no event and was away
// for long is told so.
func TestEarliestIsResolvedAsTheClientJoins(t *testing.T) {
	for _, events := range []int{0, 5} { // in the history, of another topic
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{History: 10}
			s := serve(t, b)
			for range events {
				b.Publish(Event{Data: "x"}, "other")
			}
			c := s.get("/?topic=quiet", "Last-Event-ID: "+Earliest+"\r\n")
			c.want("")
			id := c.lastID()
			c.close()
			if id == "" || id == Earliest {
				t.Fatalf("got ID %q, want a real one", id)
			}
			back := s.get("/?topic=quiet", "Last-Event-ID: "+id+"\r\n")
			back.want("")
			back.close()
			b.Publish(Event{Data: "missed"}, "quiet")
			for range 1000 {
				b.Publish(Event{Data: "x"}, "other")
			}
			s.get("/?topic=quiet", "Last-Event-ID: "+id+"\r\n").want("gap:" + id)
		})
	}
}

func TestEarliestWithoutAHistoryIsANewcomer(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: -1}
		s := serve(t, b)
		b.Publish(Event{Data: "1"})
		c := s.get("/", "Last-Event-ID: "+Earliest+"\r\n")
		loop := followBroker(t, b, Earliest)
		c.want("")
		b.Publish(Event{Data: "2"})
		c.want("2")
		loop.want("2")
		if got := b.Stats().Gaps; got != 0 {
			t.Errorf("got %d gaps, want none", got)
		}
	})
}

// With an open topic beside one that has ended, Earliest is how to get the whole of both.
func TestEarliestOfATopicThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		b.Publish(Event{Data: "1"}, "job")
		b.Publish(Event{Data: "2"}, "open")
		b.End("job")
		loop := followBroker(t, b, Earliest, "job", "open")
		loop.want("1 2")
		if loop.ended() != nil {
			t.Errorf("got %v, want the loop to go on", loop.ended())
		}
		job := followBroker(t, b, Earliest, "job")
		job.want("1")
		if err := job.ended(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
	})
}

// However much a client is owed, it is given a bounded amount at a time, and not
// much less than that.
func TestClientIsGivenABoundedAmountAtATime(t *testing.T) {
	const n = 1000
	for _, size := range []int{10, 10_000} {
		for _, source := range []string{"history", "CatchUp"} {
			t.Run(fmt.Sprintf("events of %d bytes from %s", size, source), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{}
					start := b.LastEventID()
					events := make([]Event, n)
					for i := range events {
						events[i] = Event{Data: strings.Repeat("x", size)}
						b.Publish(events[i])
					}
					if source == "CatchUp" {
						yieldAll(b, events...)
						start = ""
					}
					got, batches := 0, 0
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					joinSubscriber(t, b, start).deliver(ctx, nil, again, func(batch []*frame) error {
						bytes := 0
						for _, f := range batch {
							if bytes += f.measure(); !f.mark {
								got++
							}
						}
						if batches++; len(batch) > batchFrames+1 || bytes >= batchBytes+2*size {
							t.Errorf("got %d events of %d bytes together", len(batch), bytes)
						}
						return nil
					})
					if most := 3 + n/min(batchFrames, batchBytes/size+1); got != n || batches > most {
						t.Errorf("got %d events in %d batches, want %d in %d at most", got, batches, n, most)
					}
				})
			})
		}
	}
}

// The lock is not held for as long as it takes to pass any number of events of other
// topics, however many topics they have.
func TestClientPassesABoundedNumberOfEventsAtATime(t *testing.T) {
	names := func(what string, n int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprint(what, i))
		}
		return names
	}
	for _, test := range []struct{ events, client, most int }{
		{1, 1, batchWork / 2},
		{300, 1, batchWork / 2},
		{300, 3, batchWork / 4},
		{3, 300, batchWork / 4},
		{200, 300, batchWork/201 + 1},
	} {
		b := &Broker{HistoryBytes: -1}
		start := b.LastEventID()
		topics := names("other ", test.events)
		for range test.most + 10 {
			b.Publish(Event{Data: "x"}, topics...)
		}
		s := joinSubscriber(t, b, start, names("own ", test.client)...)
		if _, then := s.next(nil); then != again || s.cursor > 1+uint64(test.most) {
			t.Errorf("events of %d topics, a client of %d: got %d frames looked at, want %d at most", test.events, test.client, s.cursor-1, test.most)
		}
	}
}

func TestConcurrentPublishersAndSubscribersLoseNothing(t *testing.T) {
	const publishers, each, followers = 4, 300, 24
	b := &Broker{Logger: slog.New(slog.DiscardHandler)}
	start := b.LastEventID()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/detach" {
			b.Detach(w, r, nil, r.URL.Query()["topic"]...)
		} else {
			b.Serve(w, r, r.URL.Query()["topic"]...)
		}
	}))
	defer srv.Close()
	defer b.Shutdown(t.Context())
	topics := []string{"a", "b", "c"}

	var publishing, following sync.WaitGroup
	for p := range publishers {
		publishing.Go(func() {
			for i := range each {
				e := Event{Data: fmt.Sprintf("%d %d", p, i)}
				if i%3 == 0 {
					e.ID = "id " + e.Data
				}
				if _, err := b.Publish(e, topics[i%3:]...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := make([][]string, followers)
	for f := range followers {
		following.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(f), 0))
			id := start
			mine := topics[f%3 : f%3+1]
			for len(got[f]) == 0 || got[f][len(got[f])-1] != "end" {
				stay := 1 + rnd.IntN(200) // events before it is cut off
				address := []string{"", srv.URL, srv.URL + "/detach", ""}[f/3%4]
				for e, err := range connectBroker(t, b, address, id, mine) {
					if err != nil || e.Type == "gap" {
						t.Errorf("follower %d: got %+v, %v, want an event", f, e, err)
						got[f] = append(got[f], "end")
						break
					}
					id = e.ID
					got[f] = append(got[f], e.Data)
					if stay--; stay == 0 || e.Data == "end" {
						break
					}
				}
			}
		})
	}
	publishing.Wait()
	b.Publish(Event{Data: "end"}, topics...)
	following.Wait()

	for f := range followers {
		if !slices.Equal(got[f], got[f%3]) {
			t.Errorf("followers %d and %d of the same topic got different events, or in a different order", f, f%3)
		}
	}
	for f := range 3 { // topic f got the events i%3 ≤ f of each publisher
		next := make([]int, publishers)
		for _, data := range got[f][:len(got[f])-1] {
			var p, i int
			fmt.Sscan(data, &p, &i)
			for next[p]%3 > f {
				next[p]++
			}
			if i != next[p] {
				t.Fatalf("topic %s: got event %d of publisher %d, want %d", topics[f], i, p, next[p])
			}
			next[p]++
		}
		for p, n := range next {
			for n%3 > f {
				n++
			}
			if n < each-2 {
				t.Errorf("topic %s: got %d events of publisher %d, want %d", topics[f], n, p, each)
			}
		}
	}
}

// connectBroker yields events after id, over HTTP, or without an address in the
// process.
func connectBroker(t *testing.T, b *Broker, address, id string, topics []string) iter.Seq2[Event, error] {
	if address == "" {
		return b.Subscribe(t.Context(), id, topics...)
	}
	return func(yield func(Event, error) bool) {
		req, _ := http.NewRequest("GET", address+"?"+url.Values{"topic": topics}.Encode(), nil)
		req.Header.Set("Last-Event-ID", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer resp.Body.Close()
		for e, err := range NewDecoder(resp.Body).All() {
			if !yield(e, err) {
				return
			}
		}
	}
}

// Reset.

func TestResetTellsEveryClientOfAGap(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		b.Publish(Event{ID: "1", Data: "1"})
		live, quiet, loop := s.get("/", ""), s.get("/?topic=quiet", ""), followBroker(t, b, "")
		stalled := s.get("/", "")
		synctest.Wait()
		stalled.stall(true)
		b.Publish(Event{ID: "2", Data: "2"})
		b.Publish(Event{Data: "3"})
		own := b.LastEventID()
		live.want("2 3")
		loop.want("2 3")
		if err := b.Reset("9"); err != nil {
			t.Fatal(err)
		}
		if id := b.LastEventID(); id != "9" {
			t.Errorf("LastEventID: got %q, want 9", id)
		}
		for _, id := range []string{"1", "2"} { // both may come again
			if _, err := b.Publish(Event{ID: id, Data: "new" + id}); err != nil {
				t.Error(err)
			}
		}
		if _, err := b.Publish(Event{ID: "9", Data: "9"}); !errors.Is(err, ErrDuplicateID) {
			t.Errorf("event with the ID that Reset was given: got %v, want ErrDuplicateID", err)
		}
		live.want("gap:" + own + " new1 new2")
		loop.want("gap:" + own + " new1 new2")
		quiet.want("gap:1")
		if gap := live.first("gap"); gap.ID != "9" {
			t.Errorf("ID of the gap event: got %q, want 9", gap.ID)
		}
		stalled.stall(false)
		got := stalled.events() // some of 2 and 3 were on their way
		if n := len(got); n < 3 || n > 5 || got[n-3].Type != "gap" || got[n-2].Data != "new1" || got[n-1].Data != "new2" {
			t.Errorf("stalled client: got %+v, want a gap, new1 and new2 last", got)
		}
		if got := b.Stats().Gaps; got != 4 {
			t.Errorf("gaps: got %d, want 4", got)
		}
		followBroker(t, b, "9").want("new1 new2")
		followBroker(t, b, "1").want("new2")
		followBroker(t, b, own).want("gap:" + own + " new1 new2")
		if err := b.Reset(""); err != nil {
			t.Fatal(err)
		}
		followBroker(t, b, "9").want("gap:9")
		followBroker(t, b, b.LastEventID()).want("")
		b.Publish(Event{Data: "4"})
		live.want("gap:2 4")
	})
}

func TestResetTellsADetachedClientOfAGap(t *testing.T) {
	b := &Broker{}
	gone := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.Detach(w, r, func(err error) { gone <- err })
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	d := NewDecoder(resp.Body)
	publishIDs(t, b, "1")
	want := func(want Event) {
		t.Helper()
		if e, err := d.Decode(); e != want || err != nil {
			t.Fatalf("got %+v, %v, want %+v", e, err, want)
		}
	}
	want(Event{ID: "1", Data: "1"})
	if err := b.Reset("2"); err != nil {
		t.Fatal(err)
	}
	want(Event{ID: "2", Type: "gap", Data: "1"})
	publishIDs(t, b, "3")
	want(Event{ID: "3", Data: "3"})
	b.Shutdown(t.Context())
	if err := <-gone; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
}

func TestResetReachesAClientThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		loop := followBroker(t, b, "")
		loop.stall(true)
		for _, id := range []string{"1", "2", "3", "4"} {
			publishIDs(t, b, id)
			synctest.Wait()
		}
		if err := b.Reset("5"); err != nil {
			t.Fatal(err)
		}
		publishIDs(t, b, "6")
		loop.stall(false)
		// 1 was on its way already; the others were lost with the history.
		loop.want("1 gap:1 6")
	})
}

func TestResetWithoutAnIDIsAPlaceToResumeFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		before := b.LastEventID() // every event published so far: none
		if err := b.Reset(""); err != nil {
			t.Fatal(err)
		}
		after := b.LastEventID()
		publishIDs(t, b, "1")
		followBroker(t, b, after).want("1")
		followBroker(t, b, before).want("gap:" + before + " 1")
	})
}

func TestResetOfAZeroBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		if err := b.Reset("7"); err != nil {
			t.Fatal(err)
		}
		publishIDs(t, b, "8")
		followBroker(t, b, "7").want("8")
	})
}

func TestResetForgetsTopics(t *testing.T) {
	b := &Broker{}
	b.Publish(Event{Data: "1"}, "a", "b")
	b.Publish(Event{Data: "2"}, "b")
	if err := b.Reset(""); err != nil {
		t.Fatal(err)
	}
	if got := b.Stats().Topics; got != 0 || len(b.topics) != 0 {
		t.Errorf("topics: got %d, want none", got)
	}
}

// What was published right before is told as missed.
func TestResetComesBeforeWhatNobodyWasWokenFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		start := b.LastEventID()
		loop := followBroker(t, b, "")
		synctest.Wait()
		b.mu.Lock()
		b.announcing = true // as if another goroutine were about to announce
		b.mu.Unlock()
		publishIDs(t, b, "1")
		if err := b.Reset("2"); err != nil {
			t.Fatal(err)
		}
		loop.want("gap:" + start)
	})
}

// A position is told after the state only if no later event has told one.
func TestPositionAfterTheStateIsToldOnce(t *testing.T) {
	b := &Broker{}
	b.Set("k", Event{Data: "k"})
	b.Publish(Event{Data: "x"})
	s := joinSubscriber(t, b, "")
	batch, _ := s.next(nil)
	if n := len(batch); n != 3 || !batch[0].mark || batch[1].mark || batch[2].id != b.LastEventID() || !batch[2].mark {
		t.Errorf("got %d frames, want what opens the stream, a value, and a position", n)
	}
	s = joinSubscriber(t, b, "")
	b.Publish(Event{Data: "y"})
	batch, _ = s.next(nil)
	if n := len(batch); n != 3 || !batch[0].mark || batch[1].mark || batch[2].mark {
		t.Errorf("with an event after the state: got %d frames, want what opens the stream, a value, and the event", n)
	}
}

// What is before the state that it was being sent is for a client again once CatchUp has
// said that it goes on there.
func TestCatchUpGoesOnWithinTheState(t *testing.T) {
	b := &Broker{History: 10}
	yieldAll(b, Event{ID: "200", Data: "200"})
	b.Set("k", Event{Data: "k"}, "a")
	if err := b.End("a"); err != nil {
		t.Fatal(err)
	}
	for i := range minQueue {
		b.Publish(Event{ID: strconv.Itoa(i), Data: strconv.Itoa(i)}, "b")
	}
	s := joinSubscriber(t, b, Earliest, "a", "b")
	b.Publish(Event{ID: "newest", Data: "newest"}, "b") // with which the end of a leaves the log
	var got, want []string
	for i := 200; i < minQueue; i++ {
		want = append(want, strconv.Itoa(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.deliver(ctx, nil, again, func(batch []*frame) error {
		for _, f := range batch {
			if e := parseEvent(f.id, f.body); !f.mark {
				got = append(got, e.ID)
				if e.ID == "newest" {
					cancel()
				}
			}
		}
		return nil
	})
	if want = append(want, "newest"); !slices.Equal(got, want) {
		t.Errorf("got events %q, want %q", got, want)
	}
}

func TestResetAsksCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		asked := yieldAll(b, Event{ID: "9", Data: "caught up"})
		b.Publish(Event{ID: "1", Data: "1"})
		loop := followBroker(t, b, "1")
		if err := b.Reset("9"); err != nil {
			t.Fatal(err)
		}
		b.Publish(Event{ID: "10", Data: "10"})
		loop.want("caught up 10")
		if !slices.Equal(*asked, []string{"1"}) {
			t.Errorf("CatchUp was asked for %q, want 1", *asked)
		}
	})
}

// Without a history the ID that Reset is given is not in it.
func TestResetWithoutAHistoryAsksCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: -1}
		asked := yieldAll(b, Event{Data: "caught up"})
		if err := b.Reset("9"); err != nil {
			t.Fatal(err)
		}
		followBroker(t, b, "9").want("caught up")
		if !slices.Equal(*asked, []string{"9"}) {
			t.Errorf("CatchUp was asked for %q, want 9", *asked)
		}
	})
}

func TestResetDuringCatchUpDoesNotReplayWhatAFreshClientNeverMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		calls := controlCatchUp(b)
		loop := followBroker(t, b, "")
		call := <-calls
		if err := b.Reset("1"); err != nil { // the program has found where its log stands,
			t.Fatal(err)
		}
		publishIDs(t, b, "2", "3") // fills the history,
		close(call.events)
		call = <-calls
		if call.id != "" {
			t.Errorf("CatchUp was asked again for %q, want no ID", call.id)
		}
		close(call.events)
		synctest.Wait()
		publishIDs(t, b, "4") // and goes on
		loop.want("4")
	})
}

func TestResetThatIsRefusedDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		b.Publish(Event{Data: "1"})
		loop := followBroker(t, b, "")
		id := b.LastEventID()
		if err := b.Reset(id); !errors.Is(err, ErrDuplicateID) {
			t.Errorf("Reset to an ID of the Broker's own: got %v, want ErrDuplicateID", err)
		}
		if err := b.Reset("a\nb"); err == nil {
			t.Error("Reset to an ID that cannot be sent: got no error")
		}
		if b.LastEventID() != id {
			t.Error("the history is gone")
		}
		b.Publish(Event{Data: "2"})
		loop.want("2")
		b.Shutdown(t.Context())
		if err := b.Reset("9"); !errors.Is(err, ErrClosed) {
			t.Errorf("Reset after Shutdown: got %v, want ErrClosed", err)
		}
	})
}

// ----- Topics and subscribers -----

// Topics that have ended.

// What a client is owed comes before the end, and the end is the last.
func TestEndComesAfterWhatIsOwed(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		idle := s.get("/?topic=job", "")
		stalled := s.get("/?topic=job", "")
		other := s.get("/?topic=other", "")
		idle.want("")
		stalled.stall(true)
		for i := range 300 {
			b.Publish(Event{Data: strconv.Itoa(i)}, "job")
		}
		if err := b.End("job"); err != nil { // and does not wait for the one that stalls
			t.Fatal(err)
		}
		idle.wantEnd()
		if err := s.served(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		if err := s.served(); err != errNotServed {
			t.Errorf("the one that stalls: got %v, want it to stay", err)
		}
		stalled.stall(false)
		stalled.wantEnd()
		for i, c := range []*pipeClient{idle, stalled} {
			if got := c.events(); len(got) != 301 || got[299].Data != "299" {
				t.Errorf("client %d: got %d events, want 300 and the end", i, len(got))
			}
		}
		if err := s.served(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		b.Publish(Event{Data: "1"}, "other")
		other.want("1")
		if got := b.Stats().Clients; got != 1 {
			t.Errorf("got %d clients, want 1", got)
		}
	})
	t.Run("Subscribe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{}
			loop := followBroker(t, b, "", "job")
			loop.stall(true)
			b.Publish(Event{Data: "1"}, "job")
			b.Publish(Event{Data: "2"}, "job")
			if err := b.End("job"); err != nil {
				t.Fatal(err)
			}
			loop.stall(false)
			loop.want("1 2")
			if err := loop.ended(); !errors.Is(err, ErrEnded) {
				t.Errorf("got %v, want ErrEnded", err)
			}
		})
	})
}

// A client goes on with those of its topics that have not ended.
func TestEndOfOneTopicOfSeveral(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c := s.get("/?topic=job&topic=news", "")
		loop := followBroker(t, b, "", "job", "news")
		c.want("")
		b.End("job")
		b.Publish(Event{Data: "1"}, "news")
		c.want("1")
		loop.want("1")
		if c.ended() != nil || loop.ended() != nil {
			t.Fatalf("got %v and %v, want the streams open", c.ended(), loop.ended())
		}
		back := s.get("/?topic=job&topic=news", "Last-Event-ID: "+c.lastID()+"\r\n")
		back.want("")
		b.Publish(Event{Data: "2"}, "news")
		b.End("news")
		c.want("2 ")
		c.wantEnd()
		back.want("2 ")
		back.wantEnd()
		loop.want("2")
		if err := loop.ended(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
	})
}

// A client that comes to topics which have all ended gets what the history holds of them,
// or what it missed, and then the end.
func TestClientThatComesAfterTheEnd(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		for _, id := range []string{"1", "2", "3"} {
			b.Publish(Event{ID: id, Data: id}, "job")
			b.Publish(Event{ID: "other " + id, Data: "x"}, "other")
		}
		b.End("job")
		b.Publish(Event{ID: "last", Data: "x"}, "other")
		for id, want := range map[string]string{"": "1 2 3 ", "1": "2 3 ", "3": "", "other 3": "", "last": "", "nobody": "gap:nobody 1 2 3 "} {
			header := ""
			if id != "" {
				header = "Last-Event-ID: " + id + "\r\n"
			}
			c := s.get("/?topic=job", header)
			c.want(want)
			c.wantEnd()
			if err := s.served(); !errors.Is(err, ErrEnded) {
				t.Errorf("with %q: got %v, want ErrEnded", id, err)
			}
			loop := followBroker(t, b, id, "job")
			loop.want(strings.TrimSuffix(want, " "))
			if err := loop.ended(); !errors.Is(err, ErrEnded) {
				t.Errorf("loop with %q: got %v, want ErrEnded", id, err)
			}
		}
		// With an open topic beside, it begins with the next event as ever.
		c := s.get("/?topic=job&topic=open", "")
		c.want("")
		b.Publish(Event{Data: "4"}, "open")
		c.want("4")
	})
}

// CatchUp is asked first, and may itself know that the stream is over.
func TestEndComesAfterCatchUp(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		asked := yieldAll(b, Event{ID: "old", Data: "caught up"})
		s := serve(t, b)
		b.Publish(Event{Data: "1"}, "job")
		b.End("job")
		for _, header := range []string{"", "Last-Event-ID: nobody\r\n"} {
			c := s.get("/?topic=job", header)
			c.wantEnd()
			if got := c.events(); len(got) < 2 || got[0].Data != "caught up" {
				t.Errorf("got %v, want what CatchUp yields first", got)
			}
			if err := s.served(); !errors.Is(err, ErrEnded) {
				t.Errorf("got %v, want ErrEnded", err)
			}
		}
		if len(*asked) != 2 {
			t.Errorf("CatchUp was asked for %q, want it asked twice", *asked)
		}
	})
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		b.CatchUp = func(context.Context, Missed) iter.Seq2[Event, error] {
			return func(yield func(Event, error) bool) {
				_ = yield(Event{ID: "1", Data: "all of it"}, nil) && yield(Event{}, ErrEnded)
			}
		}
		s := serve(t, b)
		c := s.get("/?topic=done", "")
		c.want("all of it ")
		c.wantEnd()
		if err := s.served(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		loop := followBroker(t, b, "nobody", "done")
		loop.want("all of it")
		if err := loop.ended(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		if got := log.count(slog.LevelWarn); got != 0 {
			t.Errorf("got %d warnings, want none", got)
		}
		if _, err := b.Publish(Event{Data: "x"}, "done"); err != nil { // to the Broker the topic is as any other
			t.Errorf("Publish: %v", err)
		}
	})
}

// A client that brings the end's ID is told once more that it need not come back,
// whatever else there is to say about the Broker.
func TestClientThatBringsTheEnd(t *testing.T) {
	closed := &Broker{}
	closed.Shutdown(t.Context())
	full := &Broker{MaxClients: 1}
	failing := &Broker{CatchUp: func(context.Context, Missed) iter.Seq2[Event, error] { panic("asked") }}
	ended := &Broker{}
	ended.End()
	go full.Serve(&wireTape{deaf: true}, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
	eventually(t, "one client", func() bool { return full.Stats().Clients == 1 })
	for name, b := range map[string]*Broker{"new": {}, "closed": closed, "full": full, "with CatchUp": failing, "ended": ended} {
		for _, method := range []string{"GET", "HEAD"} {
			for _, target := range []string{"/", "/?lastEventId=sse-end"} {
				for way, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
					"Serve": func(w http.ResponseWriter, r *http.Request) error { return b.Serve(w, r, "some", "topics") },
					"Detach": func(w http.ResponseWriter, r *http.Request) (err error) {
						b.Detach(w, r, func(reason error) { err = reason }, "some", "topics")
						return err
					},
					"ServeHTTP": func(w http.ResponseWriter, r *http.Request) error { b.ServeHTTP(w, r); return ErrEnded },
				} {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // should it become a stream
					r := httptest.NewRequestWithContext(ctx, method, target, nil)
					if target == "/" {
						r.Header.Set("Last-Event-ID", "sse-end")
					}
					w := httptest.NewRecorder()
					if err := serve(w, r); !errors.Is(err, ErrEnded) {
						t.Errorf("%s, %s %s by %s: got %v, want ErrEnded", name, method, target, way, err)
					}
					if w.Code != http.StatusNoContent || w.Header().Get("Cache-Control") != "no-store" || w.Body.Len() > 0 {
						t.Errorf("%s, %s %s by %s: got status %d, Cache-Control %q, body %q, want 204, no-store and none",
							name, method, target, way, w.Code, w.Header().Get("Cache-Control"), w.Body)
					}
					cancel()
				}
			}
		}
		for _, err := range b.Subscribe(t.Context(), "sse-end", "some", "topics") {
			if !errors.Is(err, ErrEnded) {
				t.Errorf("%s, Subscribe: got %v, want ErrEnded", name, err)
			}
			break
		}
	}
}

// Nothing more is published to a topic that has ended, nor to others together with it.
func TestPublishToATopicThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		open := followBroker(t, b, "", "open")
		b.Publish(Event{ID: "1", Data: "1"}, "job")
		before := b.LastEventID()
		for range 2 { // the second one does nothing
			if err := b.End("job"); err != nil {
				t.Errorf("End: %v", err)
			}
		}
		if got := b.LastEventID(); got != before {
			t.Errorf("LastEventID after End: got %q, want %q", got, before)
		}
		for _, topics := range [][]string{{"job"}, {"job", "open"}, {"open", "job"}} {
			if id, err := b.Publish(Event{ID: "2", Data: "2"}, topics...); !errors.Is(err, ErrEnded) || id != "" {
				t.Errorf("Publish to %q: got %q, %v, want ErrEnded", topics, id, err)
			}
		}
		if got := b.Stats().Published; got != 1 {
			t.Errorf("published: got %d, want 1", got)
		}
		if _, err := b.Publish(Event{ID: "2", Data: "2"}, "open"); err != nil {
			t.Error(err)
		}
		open.want("2")
		if err := b.End(); err != nil { // the default topic
			t.Error(err)
		}
		if _, err := b.Publish(Event{Data: "3"}); !errors.Is(err, ErrEnded) {
			t.Errorf("Publish to the default topic: got %v, want ErrEnded", err)
		}
		b.Shutdown(t.Context())
		if err := b.End("open"); !errors.Is(err, ErrClosed) {
			t.Errorf("End after Shutdown: got %v, want ErrClosed", err)
		}
	})
}

// An end has a place and no ID: a client that had all before it is told the end, and nothing
// else, and IDs that are assigned go on.
func TestEndHasNoID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		b.Publish(Event{Data: "1"}, "job")
		had := b.LastEventID()
		b.End("job")
		loop := followBroker(t, b, had, "job")
		loop.want("")
		if err := loop.ended(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		other := followBroker(t, b, had, "job", "open")
		b.Publish(Event{Data: "2"}, "open")
		b.Publish(Event{Data: "3"}, "open")
		other.want("2 3")
		followBroker(t, b, had, "job", "open").want("2 3")
		if got := b.Stats().Gaps; got != 0 {
			t.Errorf("got %d gaps, want none", got)
		}
	})
}

// A loop that is left, by its context, before it had all is not told that it had.
func TestEndIsNotToldToALoopThatHasNotHadAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		start := b.LastEventID()
		publishIDs(t, b, "1", "2")
		b.End()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got []string
		for e, err := range b.Subscribe(ctx, start) {
			cancel()
			got = append(got, fmt.Sprint(e.ID, err))
		}
		if want := []string{"1<nil>", "context canceled"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// Ends do not push out events that the history is to keep.
func TestEndsTakeNoPlaceInTheHistory(t *testing.T) {
	for name, b := range map[string]*Broker{"one event": {History: 1}, "one large event": {HistoryBytes: 1000}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := b.LastEventID()
				data := strings.Repeat("x", 2000)
				b.Publish(Event{Data: data}, "job")
				b.End("job")
				for _, from := range []string{start, "", Earliest} {
					loop := followBroker(t, b, from, "job")
					loop.want(data)
					if err := loop.ended(); !errors.Is(err, ErrEnded) {
						t.Errorf("from %q: got %v, want ErrEnded", from, err)
					}
				}
			})
		})
	}
	b := &Broker{History: 10}
	for i := range 100_000 {
		b.End(strconv.Itoa(i))
	}
	if got := b.Stats().Topics; got > 300 {
		t.Errorf("topics that have ended and are kept: got %d, want 300 at most", got)
	}
}

// Nor do they let in more than the history is to keep, whatever its limit.
func TestHistoryAmongEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := &Broker{History: 1}
		for i := range 100 {
			one.End(fmt.Sprint("before ", i))
		}
		for i := range 150 {
			one.Publish(Event{Data: strconv.Itoa(i)})
		}
		for i := range 100 {
			one.End(fmt.Sprint("after ", i))
		}
		followBroker(t, one, Earliest).want("149")

		all := &Broker{History: math.MaxInt}
		first, _ := all.Publish(Event{Data: "1"})
		all.Publish(Event{Data: "2"})
		all.End("job")
		loop := followBroker(t, all, first)
		loop.want("2")
		all.Publish(Event{Data: "3"})
		loop.want("3")
		followBroker(t, all, Earliest).want("1 2 3")
	})
}

// A client that comes to topics that have all ended is told so, however long CatchUp
// takes and whatever is published meanwhile.
func TestEndIsToldAfterALongCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		calls := controlCatchUp(b)
		b.End()
		loop := followBroker(t, b, "")
		call := <-calls
		for range 300 { // so that the end leaves the history
			b.Publish(Event{Data: "x"}, "other")
		}
		close(call.events)
		if err := loop.ended(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		if _, err := b.Publish(Event{Data: "new"}); err != nil {
			t.Errorf("Publish once the client has left: %v", err)
		}
	})
}

// A loop that is slow is sent nothing more of its batch once it was disconnected.
func TestDisconnectWithinALoop(t *testing.T) {
	shutdown := func(b *Broker) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b.Shutdown(ctx)
	}
	for name, test := range map[string]struct {
		end  func(*Broker)
		want error
	}{
		"Disconnect":         {func(b *Broker) { b.Disconnect() }, ErrDisconnected},
		"impatient Shutdown": {shutdown, ErrClosed},
	} {
		b := &Broker{}
		start := b.LastEventID()
		publishNumbers(b, 200)
		got := 0
		var last error
		for _, err := range b.Subscribe(t.Context(), start) {
			if got == 0 {
				test.end(b)
			}
			if last = err; err == nil {
				got++
			}
		}
		if got != 1 || !errors.Is(last, test.want) {
			t.Errorf("%s: got %d events and %v, want 1 and %v", name, got, last, test.want)
		}
	}
}

// A topic has ended as long as the history knows, or somebody from before is there.
func TestNameOfAnEndedTopicBecomesFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		fill := func() {
			for range 1000 {
				b.Publish(Event{Data: "x"}, "other")
			}
			synctest.Wait()
		}
		loop := followBroker(t, b, "", "job", "open")
		b.Publish(Event{Data: "1"}, "job")
		b.End("job")
		if _, err := b.Publish(Event{Data: "2"}, "job"); !errors.Is(err, ErrEnded) {
			t.Errorf("while the history holds the end: got %v, want ErrEnded", err)
		}
		synctest.Wait()
		fill()
		if _, err := b.Publish(Event{Data: "2"}, "job"); !errors.Is(err, ErrEnded) {
			t.Errorf("while a subscriber is there: got %v, want ErrEnded", err)
		}
		loop.close()
		synctest.Wait()
		fill()
		if _, err := b.Publish(Event{Data: "3"}, "job"); err != nil {
			t.Errorf("later: got %v, want a new topic", err)
		}
		loop.want("1")
		fill()
		if got := b.Stats().Topics; got != 1 {
			t.Errorf("topics: got %d, want 1", got)
		}
	})
}

// The ring may overtake an end before a slow client has passed it.
func TestEndThatLeavesTheHistoryIsToldAllTheSame(t *testing.T) {
	for _, missed := range []int{0, 1, 300} { // events of the client's topic
		t.Run(fmt.Sprint(missed), func(t *testing.T) {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{History: 1}
				s := serve(t, b)
				c := s.get("/?topic=job", "")
				c.want("")
				c.stall(true)
				b.Publish(Event{ID: "first", Data: "first"}, "job")
				synctest.Wait()
				for range missed {
					b.Publish(Event{Data: "x"}, "job")
				}
				b.End("job")
				for range 1000 {
					b.Publish(Event{Data: "x"}, "other")
				}
				c.stall(false)
				c.wantEnd()
				got := c.events()
				if len(got) == 0 || got[0].Data != "first" {
					t.Errorf("got %v, want the event that was being written first", got)
				}
				if len(got) != 2 && !slices.ContainsFunc(got, func(e pipeBlock) bool { return e.Type == "gap" && e.Data == "first" }) {
					t.Errorf("got %d events, want the first and the end, or a gap between", len(got))
				}
				if missed > 0 && len(got) < 3 {
					t.Errorf("got %d events, want a gap", len(got))
				}
				if err := s.served(); !errors.Is(err, ErrEnded) {
					t.Errorf("got %v, want ErrEnded", err)
				}
			})
		})
	}
}

// The IDs that mean something of their own are no event's.
func TestReservedIDsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, id := range []string{"sse-end", Earliest} {
			b := &Broker{}
			ev := Event{ID: id, Data: "x"}
			if _, err := b.Publish(ev); err == nil {
				t.Errorf("Publish with ID %q: got no error", id)
			}
			if err := b.Reset(id); err == nil {
				t.Errorf("Reset to %q: got no error", id)
			}
			if _, err := ev.AppendText(nil); err == nil {
				t.Errorf("AppendText with ID %q: got no error", id)
			}
			yieldAll(b, ev)
			if err := followBroker(t, b, "nobody").ended(); err == nil {
				t.Errorf("CatchUp that yields ID %q: got no error", id)
			}
		}
	})
}

// A Reset that falls together with a keep-alive does not hide the gap behind the
// keep-alive's ID.
func TestResetTogetherWithAKeepAlive(t *testing.T) {
	skipShort(t)
	t.Parallel()
	t.Run("a client that is being written to", func(t *testing.T) {
		for _, catchUp := range []bool{true, false} {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{KeepAlive: 50 * time.Millisecond}
				var asked *[]string
				if catchUp {
					asked = yieldAll(b, Event{Data: "caught up"})
				}
				if err := b.Reset("log-1"); err != nil {
					t.Fatal(err)
				}
				s := serve(t, b)
				c := s.get("/", "Last-Event-ID: log-1\r\n")
				c.want("")
				c.stall(true)
				publishIDs(t, b, "log-2")
				time.Sleep(100 * time.Millisecond) // a keep-alive is due
				if err := b.Reset("log-9"); err != nil {
					t.Fatal(err)
				}
				c.stall(false)
				synctest.Wait()
				publishIDs(t, b, "log-10")
				if !catchUp {
					c.want("log-2 gap:log-2 log-10")
					return
				}
				c.want("log-2 caught up log-10")
				if want := []string{"log-2"}; !slices.Equal(*asked, want) {
					t.Errorf("CatchUp was asked for %q, want %q", *asked, want)
				}
			})
		}
	})
	t.Run("idle clients", func(t *testing.T) {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			const clients = 200
			b := &Broker{KeepAlive: time.Second}
			s := serve(t, b)
			all := make([]*pipeClient, clients)
			for i := range all {
				all[i] = s.get("/", "")
			}
			all[0].want("")
			last, want := "begin", "begin"
			publishIDs(t, b, last)
			for round := range 20 {
				// At a multiple of KeepAlive after the last event, and about there.
				time.Sleep(time.Duration(round%3+1)*time.Second - time.Duration(round/3)*time.Millisecond)
				reset := fmt.Sprint("reset ", round)
				if err := b.Reset(reset); err != nil {
					t.Fatal(err)
				}
				want += " gap:" + last
				last = fmt.Sprint("event ", round)
				time.Sleep(time.Duration(round%2) * time.Second)
				publishIDs(t, b, last)
				want += " " + last
			}
			for _, c := range all {
				if c.want(want); t.Failed() {
					break
				}
			}
		})
	})
}

// The latest value of each key.

// set publishes values, each "key=value", under their keys, with themselves as IDs.
func set(t *testing.T, b *Broker, topic string, values ...string) {
	t.Helper()
	for _, v := range values {
		key, _, _ := strings.Cut(v, "=")
		if id, err := b.Set(key, Event{ID: v, Data: v}, topic); id != v || err != nil {
			t.Fatalf("Set %s: got %q, %v, want its ID", v, id, err)
		}
	}
}

// A newcomer gets the newest value of each key, in the order and with the IDs that they
// were published with, and then what is published from then on.
func TestNewcomerGetsTheNewestOfEachKey(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 1}
		s := serve(t, b)
		set(t, b, "t", "a=1", "b=1", "c=1", "a=2")
		b.Publish(Event{Data: "no state"}, "t")
		set(t, b, "t", "b=2")
		set(t, b, "other", "x=1")
		for range 2 {
			c := s.get("/?topic=t", "")
			loop := followBroker(t, b, "", "t")
			c.want("c=1 a=2 b=2")
			loop.want("c=1 a=2 b=2")
			for _, e := range []string{"c=1", "a=2", "b=2"} {
				if !slices.ContainsFunc(c.blocks, func(block pipeBlock) bool { return block.Data == e && block.ID == e }) {
					t.Errorf("value %s came without its ID", e)
				}
			}
			set(t, b, "t", "d=1")
			c.want("d=1")
			loop.want("d=1")
			b.Remove("d", Event{Data: "no d"}, "t")
			c.want("no d")
			loop.want("no d")
			for range 1000 { // however many others follow
				b.Publish(Event{Data: "x"}, "other")
			}
		}
		s.get("/?topic=t&topic=other", "").want("c=1 a=2 b=2 x=1")
		if got := b.Stats(); got.Keys != 4 || got.Topics != 2 || got.Gaps != 0 {
			t.Errorf("got %d keys, %d topics, %d gaps, want 4, 2 and 0", got.Keys, got.Topics, got.Gaps)
		}
	})
}

// The values keep their order, also as they leave the history one after the other.
func TestValuesKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		rnd := rand.New(rand.NewPCG(14, 0))
		var order []string
		for i := range 3000 {
			key := fmt.Sprint(rnd.IntN(500))
			value := fmt.Sprint(key, "=", i)
			order = slices.DeleteFunc(order, func(v string) bool { return strings.HasPrefix(v, key+"=") })
			order = append(order, value)
			set(t, b, "", value)
			if i%500 == 0 {
				followBroker(t, b, "").want(strings.Join(order, " "))
			}
		}
		followBroker(t, b, "").want(strings.Join(order, " "))
		if got := b.Stats().Keys; got != len(order) {
			t.Errorf("keys: got %d, want %d", got, len(order))
		}
	})
}

// A newcomer that is cut off in the midst of the state misses nothing when it comes back.
func TestNewcomerThatIsCutOffWithinTheState(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 1}
		s := serve(t, b)
		for i := range 10 {
			set(t, b, "", fmt.Sprint(i, "=old"))
		}
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		for i := range 10 {
			set(t, b, "", fmt.Sprint((i*7+3)%10, "=new"))
		}
		for n := 1; ; n += 7 {
			state := map[string]string{}
			fold := func(c *pipeClient) {
				for _, e := range c.events() {
					if key, value, ok := strings.Cut(e.Data, "="); ok {
						state[key] = value
					}
				}
			}
			c := s.getStalled("/", "")
			c.read(n)
			all := len(c.events()) == 10
			c.seen = 0
			fold(c)
			id := c.lastID()
			c.close()
			header := ""
			if id != "" {
				header = "Last-Event-ID: " + id + "\r\n"
			}
			back := s.get("/", header)
			fold(back)
			back.close()
			if len(state) != 10 {
				t.Errorf("after %d bytes and the ID %q: got %v, want 10 keys", n, id, state)
			}
			for _, value := range state {
				if value != "new" {
					t.Errorf("after %d bytes: got %v, want all new", n, state)
				}
			}
			if all || n > 10_000 || t.Failed() {
				break
			}
		}
	})
}

// A client that is behind gets each key's newest once, at the newest's place, and all
// other events.
func TestClientThatIsBehindIsSparedReplacedValues(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		publishIDs(t, b, "begin")
		slow, away := s.get("/", ""), "begin"
		slow.want("")
		slow.stall(true)
		publishIDs(t, b, "first")
		synctest.Wait() // which it is being sent
		set(t, b, "", "a=1", "b=1")
		publishIDs(t, b, "an event")
		set(t, b, "", "a=2", "c=1", "a=3")
		publishIDs(t, b, "last")
		slow.stall(false)
		slow.want("first b=1 an event c=1 a=3 last")
		s.get("/", "Last-Event-ID: "+away+"\r\n").want("first b=1 an event c=1 a=3 last")
		s.get("/", "Last-Event-ID: a=1\r\n").want("b=1 an event c=1 a=3 last")
		followBroker(t, b, "first").want("b=1 an event c=1 a=3 last")
		if got := b.Stats().Gaps; got != 0 {
			t.Errorf("got %d gaps, want none", got)
		}
	})
}

// A client whose place is not known is told of the gap, and then gets the state and the
// rest of the history, in order.
func TestStateAfterAGap(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 4}
		s := serve(t, b)
		set(t, b, "", "a=1", "b=1")
		publishIDs(t, b, "out of the history")
		for i := range 300 {
			publishIDs(t, b, fmt.Sprint("x", i))
		}
		publishIDs(t, b, "1")
		set(t, b, "", "c=1", "a=2")
		publishIDs(t, b, "2")
		c := s.get("/", "Last-Event-ID: nobody\r\n")
		c.want("gap:nobody b=1 1 c=1 a=2 2")
		followBroker(t, b, "out of the history").want("gap:out of the history b=1 1 c=1 a=2 2")
		followBroker(t, b, Earliest).want("b=1 1 c=1 a=2 2")
		followBroker(t, b, "").want("b=1 c=1 a=2")
		publishIDs(t, b, "3")
		c.want("3")
	})
}

// CatchUp is asked as ever: it knows the state itself.
func TestCatchUpIsAskedInPlaceOfTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		asked := yieldAll(b, Event{Data: "caught up"})
		set(t, b, "", "a=1")
		for _, id := range []string{"", "nobody"} {
			loop := followBroker(t, b, id)
			loop.want("caught up")
			defer loop.want("b=1")
		}
		set(t, b, "", "b=1")
		if want := []string{"", "nobody"}; !slices.Equal(*asked, want) {
			t.Errorf("CatchUp was asked for %q, want %q", *asked, want)
		}
	})
}

// What is removed is told to those who are here or come back, and to no newcomer.
func TestRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		set(t, b, "", "a=1", "b=1")
		here := followBroker(t, b, "")
		here.want("a=1 b=1")
		if id, err := b.Remove("a", Event{ID: "left", Data: "a has left"}); id != "left" || err != nil {
			t.Errorf("Remove: got %q, %v", id, err)
		}
		here.want("a has left")
		followBroker(t, b, "b=1").want("a has left")
		followBroker(t, b, "").want("b=1")
		if got := b.Stats().Keys; got != 1 {
			t.Errorf("keys: got %d, want 1", got)
		}
		// One that knows no such key is an event as any other.
		if _, err := b.Remove("nobody's", Event{Data: "x"}); err != nil {
			t.Error(err)
		}
		here.want("x")
		// And the key may come again.
		set(t, b, "", "a=2")
		here.want("a=2")
		followBroker(t, b, "").want("b=1 a=2")
	})
}

// A value of several topics is replaced topic by topic.
func TestSetInSeveralTopics(t *testing.T) {
	for _, history := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{History: history}
			setIn := func(v string, topics ...string) {
				if _, err := b.Set("k", Event{ID: v, Data: v}, topics...); err != nil {
					t.Fatal(err)
				}
			}
			setIn("1", "a", "b")
			followBroker(t, b, "", "a", "b").want("1")
			setIn("2", "a")
			for range 2 {
				followBroker(t, b, "", "a").want("2")
				followBroker(t, b, "", "b").want("1")
				followBroker(t, b, "", "a", "b").want("1 2")
				for range 300 {
					b.Publish(Event{Data: "x"}, "other")
				}
			}
			setIn("3", "b")
			followBroker(t, b, "", "a", "b").want("2 3")
			b.Remove("k", Event{Data: "x"}, "a")
			followBroker(t, b, "", "a").want("")
			followBroker(t, b, "", "a", "b").want("3")
		})
	}
}

// What is refused changes nothing.
func TestSetThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		set(t, b, "", "a=1")
		if id, err := b.Set("a", Event{ID: "a=1", Data: "again"}); !errors.Is(err, ErrDuplicateID) || id != "a=1" {
			t.Errorf("an ID of the history: got %q, %v, want it and ErrDuplicateID", id, err)
		}
		if _, err := b.Set("a", Event{ID: "a\nb"}); err == nil {
			t.Error("an ID that cannot be sent: got no error")
		}
		if _, err := b.Remove("a", Event{ID: "a=1", Data: "again"}); !errors.Is(err, ErrDuplicateID) {
			t.Errorf("Remove: got %v, want ErrDuplicateID", err)
		}
		followBroker(t, b, "").want("a=1")
		b.End("job")
		if _, err := b.Set("a", Event{Data: "x"}, "job", ""); !errors.Is(err, ErrEnded) {
			t.Errorf("a topic that has ended: got %v, want ErrEnded", err)
		}
		followBroker(t, b, "").want("a=1")
		b.Shutdown(t.Context())
		if _, err := b.Set("a", Event{Data: "x"}); !errors.Is(err, ErrClosed) {
			t.Errorf("after Shutdown: got %v, want ErrClosed", err)
		}
	})
}

// Neither HistoryBytes nor HistoryAge forgets a key; Reset does, and End once the end has
// left the history.
func TestHowKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{HistoryBytes: 100, HistoryAge: time.Minute}
		wantKeys := func(want int) {
			t.Helper()
			if got := b.Stats().Keys; got != want {
				t.Errorf("keys: got %d, want %d", got, want)
			}
		}
		set(t, b, "", "a=1", "b=1")
		set(t, b, "job", "c=1")
		time.Sleep(time.Hour)
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		wantKeys(3)
		followBroker(t, b, "").want("a=1 b=1")
		b.End("job")
		loop := followBroker(t, b, "", "job")
		loop.want("c=1")
		if err := loop.ended(); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		wantKeys(2)
		if err := b.Reset("9"); err != nil {
			t.Fatal(err)
		}
		wantKeys(0)
		followBroker(t, b, "").want("")
		set(t, b, "", "a=2")
		followBroker(t, b, "").want("a=2")
		wantKeys(1)
	})
}

// A client that is behind has missed nothing if only values have left the history.
func TestValuesThatLeftTheHistoryAreNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		publishIDs(t, b, "begin")
		loop := followBroker(t, b, "begin")
		loop.stall(true)
		publishIDs(t, b, "first")
		synctest.Wait() // which it has in hand
		set(t, b, "", "a=1", "b=1", "a=2")
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		publishIDs(t, b, "last")
		loop.stall(false)
		loop.want("first b=1 a=2 last")
		if got := b.Stats().Gaps; got != 0 {
			t.Errorf("gaps: got %d, want none", got)
		}
	})
}

// A newcomer is told a position right after the whole state, and none before.
func TestPositionIsToldAfterTheState(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 1}
		s := serve(t, b)
		for i := range 600 { // more than are sent at once
			set(t, b, "", fmt.Sprint(i, "=1"))
		}
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		c := s.get("/", "")
		if got := len(c.events()); got != 600 {
			t.Fatalf("got %d values, want 600", got)
		}
		values := 0
		for _, block := range c.blocks {
			switch {
			case block.HasData:
				values++
			case block.HasID && (values < 600 || block.ID != b.LastEventID()):
				t.Errorf("after %d values it was told the ID %q, want %q after all 600", values, block.ID, b.LastEventID())
			}
		}
		if got, want := c.lastID(), b.LastEventID(); got != want {
			t.Errorf("in the end it has the ID %q, want %q", got, want)
		}
	})
}

// Values that a topic forgot while CatchUp ran are missed only if CatchUp has not given
// what followed them.
func TestValuesForgottenDuringCatchUp(t *testing.T) {
	for _, during := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{History: 1}
			calls := controlCatchUp(b)
			if !during {
				set(t, b, "job", "a=1")
			}
			loop := followBroker(t, b, "nobody", "job", "")
			call := <-calls
			if during {
				set(t, b, "job", "a=1")
			}
			b.End("job")
			for range 1000 {
				b.Publish(Event{Data: "x"}, "other")
			}
			if during {
				call.events <- Event{ID: b.LastEventID(), Data: "all"}
			}
			close(call.events)
			synctest.Wait()
			select {
			case call = <-calls:
				t.Errorf("during %v: CatchUp was called again, with %q", during, call.id)
				close(call.events)
			default:
			}
			publishIDs(t, b, "next")
			loop.want(strings.TrimPrefix(map[bool]string{true: "all"}[during]+" next", " "))
		})
	}
}

// A value of two topics that is replaced in one of them as its waiting clients are being
// woken reaches the other topic's too.
func TestValueReplacedWhileItIsAnnounced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		for range 300 {
			followBroker(t, b, "", "a")
		}
		other := followBroker(t, b, "", "b")
		for i := range 300 {
			b.Set("k", Event{Data: strconv.Itoa(i)}, "a", "b", "c")
			var setters sync.WaitGroup
			for range 4 {
				setters.Go(func() { b.Set("k", Event{Data: "x"}, "a") })
			}
			setters.Wait()
			other.want(strconv.Itoa(i))
		}
	})
}

// A topic is there as long as it has a key, and no longer.
func TestTopicsAreForgottenAfterTheirKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		wantTopics := func(want int) {
			t.Helper()
			for range 1000 {
				b.Publish(Event{Data: "x"}, "other")
			}
			if got := b.Stats().Topics; got != want+1 {
				t.Errorf("topics: got %d and the other one, want %d", got-1, want)
			}
		}
		setIn := func(value string, topics ...string) {
			if _, err := b.Set("k", Event{Data: value}, topics...); err != nil {
				t.Fatal(err)
			}
		}
		remove := func(topics ...string) {
			if _, err := b.Remove("k", Event{Data: "gone"}, topics...); err != nil {
				t.Fatal(err)
			}
		}
		setIn("1", "a")
		remove("a") // while it is in the history
		wantTopics(0)
		setIn("2", "a", "b")
		setIn("3", "a") // replaced there, in the history
		wantTopics(2)
		setIn("4", "b") // and there, beyond it
		wantTopics(2)
		remove("a", "b")
		wantTopics(0)
		setIn("5", "a", "b", "c")
		b.End("a")
		wantTopics(2)
		b.Reset("")
		wantTopics(0)
	})
}

// A topic that has ended forgets its values also before slow clients have had them, which
// are told of a gap then, and nobody else is.
func TestValuesForgottenBeforeTheyWereSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		follow := func(lastID string, stalled bool, topics ...string) *brokerLoop {
			loop := newLoop(t, b, stalled, lastID, topics...)
			t.Cleanup(loop.close)
			synctest.Wait()
			return loop
		}
		publish := func(topic string, ids ...string) {
			for _, id := range ids {
				b.Publish(Event{ID: id, Data: id}, topic)
			}
			synctest.Wait()
		}
		for i := range 300 { // more than are sent at once
			set(t, b, "job", fmt.Sprint("k", i, "=1"))
		}
		newcomer := follow("", true, "job")
		here, other := follow(b.LastEventID(), true, "job"), follow(b.LastEventID(), true, "job", "other")
		reads, late := follow(b.LastEventID(), false, "job", "other"), follow(b.LastEventID(), true, "other", "x")
		publish("x", "x")
		publish("job", "begin")
		set(t, b, "job", "last=1")
		synctest.Wait()
		if err := b.End("job"); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			b.Publish(Event{Data: "busy"}, "busy")
		}
		set(t, b, "other", "a=1")
		publish("other", "after")
		for _, l := range []*brokerLoop{newcomer, here, other, late} {
			l.stall(false)
		}
		here.want("begin gap:begin")
		other.want("begin gap:begin a=1 after")
		reads.want("begin last=1 a=1 after")
		late.want("x a=1 after")
		got := newcomer.events()
		if len(got) != 257 || got[256].Type != "gap" {
			t.Errorf("newcomer: got %d events, want 256 values and a gap", len(got))
		}
		for _, l := range []*brokerLoop{newcomer, here} {
			if err := l.ended(); !errors.Is(err, ErrEnded) {
				t.Errorf("got %v, want ErrEnded", err)
			}
		}
		follow("", false, "job", "other").want("a=1")
		if got := b.Stats().Gaps; got != 3 {
			t.Errorf("gaps: got %d, want 3", got)
		}
	})
}

// CatchUp is called again if values published since the call have left the history: it may
// have yielded them.
func TestCatchUpIsAskedAgainForKeptValues(t *testing.T) {
	for _, yields := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{History: 1}
			calls := controlCatchUp(b)
			publishIDs(t, b, "before")
			loop := followBroker(t, b, "")
			call, want := <-calls, "before"
			set(t, b, "", "a=1", "b=1")
			for range 1000 {
				b.Publish(Event{Data: "x"}, "other")
			}
			if yields { // all there is by now
				call.events <- Event{ID: "a=1", Data: "a=1"}
				call.events <- Event{ID: "b=1", Data: "b=1"}
				want = "b=1"
			}
			close(call.events)
			synctest.Wait()
			select {
			case call = <-calls:
			default:
				t.Fatalf("CatchUp was not asked again, and the loop got %v", loop.events())
			}
			if call.id != want {
				t.Errorf("CatchUp was asked again with %q, want %q", call.id, want)
			}
			set(t, b, "", "c=1")
			if !yields {
				call.events <- Event{ID: "b=1", Data: "b=1"}
			}
			close(call.events)
			want = "b=1 c=1"
			if yields {
				want = "a=1 b=1 c=1"
			}
			loop.want(want)
		})
	}
}

// An end has no ID of its own, and is nothing to miss: a client that has the event before
// it has no gap.
func TestEndsBehindTheLastEventAreNoGap(t *testing.T) {
	for _, test := range []struct {
		name   string
		broker *Broker
		behind func(*Broker) // behind the end
		want   string
	}{
		{"nothing more", &Broker{History: 1}, func(*Broker) {}, ""},
		{"one event more", &Broker{History: 1}, func(b *Broker) { b.Publish(Event{Data: "2"}) }, "2"},
		{"another end", &Broker{History: 1}, func(b *Broker) { b.End("job 2"); b.Publish(Event{Data: "2"}) }, "2"},
		{"both expired", &Broker{HistoryAge: time.Minute}, func(*Broker) { time.Sleep(time.Hour) }, ""},
		{"evicted", &Broker{History: 1}, func(b *Broker) {
			for i := range 1000 {
				b.End(fmt.Sprint("job ", i))
			}
			b.Publish(Event{Data: "2"})
		}, "2"},
		{"more than the history", &Broker{History: 1}, func(b *Broker) { b.Publish(Event{Data: "2"}); b.Publish(Event{Data: "3"}) }, "gap 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := test.broker
				b.Publish(Event{Data: "1"})
				b.End("job 1")
				id := b.LastEventID()
				test.behind(b)
				var got []string
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				for ev, err := range b.Subscribe(ctx, id) {
					if err == nil {
						got = append(got, cmp.Or(ev.Type, ev.Data))
					}
				}
				if got := strings.Join(got, " "); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			})
		})
	}
}

// A slow subscriber all of whose topics have ended is told so, even if the ends that it has
// not passed yet are evicted, and even if one of them was there before it came.
func TestEndsThatAreEvictedBeforeTheyAreTold(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 1}
		s := serve(t, b)
		b.End("a")
		c := s.get("/?topic=a&topic=b", "")
		c.want("")
		c.stall(true)
		synctest.Wait()
		b.Publish(Event{Data: "1"}, "b")
		synctest.Wait()
		b.End("b")
		for i := range 300 {
			b.End(fmt.Sprint("job ", i))
		}
		if _, err := b.Publish(Event{}, "a"); err != ErrEnded {
			t.Errorf("Publish to a: got %v, want %v, as long as it is not told", err, ErrEnded)
		}
		checkInvariants(t, b)
		c.stall(false)
		c.want("1 ") // and the end
		c.wantEnd()
		synctest.Wait()
		if _, err := b.Publish(Event{}, "a"); err != nil {
			t.Errorf("Publish to the new topic a: %v", err)
		}
		checkInvariants(t, b)
	})
}

// It is not called again for a value that left the history and was replaced by one that is
// still there.
func TestCatchUpIsNotAskedAgainForReplacedValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		calls := controlCatchUp(b)
		loop := followBroker(t, b, "")
		call := <-calls
		set(t, b, "", "a=1")
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		set(t, b, "", "b=1", "c=1", "a=2") // b and c, or all replaced values were forgotten
		close(call.events)
		loop.want("b=1 c=1 a=2")
		if got := b.Stats().Gaps; got != 0 {
			t.Errorf("got %d gaps, want none", got)
		}
	})
}

// Large values count against what slow clients may keep from being freed once they were
// replaced, and not before.
func TestSlowClientsOfLargeValues(t *testing.T) {
	const clients, size, bytes = 6, 512 << 10, 1 << 20
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{HistoryBytes: bytes, Logger: slog.New(slog.DiscardHandler)}
		s := serve(t, b)
		large := Event{Data: strings.Repeat("x", size)}
		for i := range clients {
			b.Set("k", large, fmt.Sprint(i))
		}
		b.Publish(Event{Data: strings.Repeat("x", bytes)}, "other")
		for i := range clients { // those that read leave nothing behind
			for range 3 {
				c := s.get(fmt.Sprint("/?topic=", i), "")
				if got := c.events(); len(got) == 0 || len(got[0].Data) != size {
					t.Fatalf("got %d events, want the value", len(got))
				}
			}
		}
		var all []*pipeClient
		for i := range clients {
			c := s.getStalled(fmt.Sprint("/?topic=", i), "")
			c.read(1000)
			synctest.Wait() // it is in its value
			all = append(all, c)
		}
		b.Publish(Event{Data: "x"}, "other")
		if err := s.served(); err != errNotServed {
			t.Errorf("got %v, want nobody cut off: the values are kept anyway", err)
		}
		for i := range clients {
			b.Set("k", Event{Data: "x"}, fmt.Sprint(i))
			synctest.Wait()
		}
		if err := s.served(); !errors.Is(err, ErrTooSlow) {
			t.Errorf("got %v, want ErrTooSlow: the values were replaced", err)
		}
		last := all[clients-1]
		last.stall(false)
		if got := last.events(); len(got) == 0 || len(got[0].Data) != size || last.ended() != nil {
			t.Errorf("the last one: got %d events and %v, want its value", len(got), last.ended())
		}
	})
}

// Nor does a value in very many topics take more than in proportion to them.
func TestSetInVeryManyTopics(t *testing.T) {
	bytes := func(n int) uint64 {
		b := &Broker{}
		topics := make([]string, n)
		for i := range topics {
			topics[i] = fmt.Sprint("topic", i)
		}
		b.Set("k", Event{Data: "1"}, topics...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b.Set("k", Event{Data: "2"}, topics...)
		runtime.ReadMemStats(&after)
		if got := b.Stats().Keys; got != n {
			t.Errorf("keys: got %d, want %d", got, n)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	if few, many := bytes(500), bytes(5000); many > 20*few {
		t.Errorf("Set in 500 topics allocates %d KB, in 5,000 %d KB, want about 10 times as much", few>>10, many>>10)
	}
}

// A newcomer to very many topics gets the values in order, and many in each write.
func TestNewcomerToVeryManyTopics(t *testing.T) {
	const topics, values = 2000, 3000
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		names := make([]string, topics)
		for i := range names {
			names[i] = fmt.Sprint("topic", i)
		}
		rnd := rand.New(rand.NewPCG(14, 1))
		var order []string
		for i := range values {
			value := fmt.Sprint("value", i)
			b.Set(value, Event{ID: value, Data: value}, names[rnd.IntN(topics)], names[rnd.IntN(topics)])
			order = append(order, value)
		}
		flushes := 0
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			return b.Serve(flushHook{wireMiddleware{w}, func() { flushes++ }}, r, names...)
		})
		s.get("/", "").want(strings.Join(order, " "))
		if most := values/batchFrames + 3; flushes > most {
			t.Errorf("got %d flushes, want at most %d", flushes, most)
		}
	})
}

// A value that was replaced takes no memory once it has left the history, and a key that is
// part of a long string does not keep that.
func TestKeysTakeLittle(t *testing.T) {
	skipShort(t)
	b := &Broker{History: 1}
	long := strings.Repeat("x", 64<<10)
	before := heapInUse()
	for i := range 2000 {
		key := fmt.Sprint("key ", i%10, long)
		b.Set(key[:5], Event{Data: long[:1<<10] + strconv.Itoa(i)}, key[:6])
	}
	if got := b.Stats().Keys; got != 10 {
		t.Errorf("keys: got %d, want 10", got)
	}
	if kept := heapInUse() - before; kept > 1<<20 {
		t.Errorf("10 keys of 1 KiB, set 2,000 times, hold %d KiB, want 1 MiB at most", kept>>10)
	}
	runtime.KeepAlive(b)
}

// What the documentation says of the memory that keys and Brokers take.
func TestMemoryOfKeysAndBrokers(t *testing.T) {
	if raceEnabled() {
		t.Skip("the race detector needs memory of its own")
	}
	const n = 10_000
	each := func(what string, limit int64, hold func(i int) any) {
		t.Helper()
		held := make([]any, n)
		before := heapInUse()
		for i := range held {
			held[i] = hold(i)
		}
		took := (heapInUse() - before) / n
		t.Logf("%s takes %d bytes", what, took)
		if took > limit {
			t.Errorf("%s: got %d bytes, want %d at most", what, took, limit)
		}
		runtime.KeepAlive(held)
	}
	b := &Broker{History: 1}
	each("a key of 8 bytes with 31 bytes of data", 350, func(i int) any {
		b.Set(fmt.Sprintf("key-%04x", i), Event{Data: "some data that says something."})
		return nil
	})
	each("a Broker that was ended, with one event", 2000, func(i int) any {
		b := &Broker{}
		b.Publish(Event{Data: "some data that says something."})
		b.End()
		return b
	})
	runtime.KeepAlive(b)
}

// ----- Delivery -----

// A catchUpCall is one call of CatchUp, under the test's control.
type catchUpCall struct {
	ctx    context.Context
	id     string
	topics []string
	upTo   string
	events chan Event // yields what comes here, until it is closed
	fail   error      // yielded at the end
	gone   bool       // the loop over it was left
}

// controlCatchUp sets b.CatchUp to a function whose calls arrive in the channel.
// Those that nobody receives block.
func controlCatchUp(b *Broker) chan *catchUpCall {
	calls := make(chan *catchUpCall)
	b.CatchUp = func(ctx context.Context, missed Missed) iter.Seq2[Event, error] {
		return func(yield func(Event, error) bool) {
			call := &catchUpCall{ctx: ctx, id: missed.LastEventID, topics: missed.Topics, upTo: missed.UpTo, events: make(chan Event)}
			defer func() { call.gone = true }()
			select {
			case calls <- call:
			case <-ctx.Done():
				yield(Event{}, ctx.Err())
				return
			}
			for {
				select {
				case e, ok := <-call.events:
					if !ok {
						if call.fail != nil {
							yield(Event{}, call.fail)
						}
						return
					}
					if !yield(e, nil) {
						return
					}
				case <-ctx.Done():
					yield(Event{}, ctx.Err())
					return
				}
			}
		}
	}
	return calls
}

// yieldAll sets b.CatchUp to a function that yields these events, and returns
// where it notes with which IDs it was called.
func yieldAll(b *Broker, events ...Event) (ids *[]string) {
	ids = new([]string)
	b.CatchUp = func(_ context.Context, missed Missed) iter.Seq2[Event, error] {
		*ids = append(*ids, missed.LastEventID)
		return func(yield func(Event, error) bool) {
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
	return ids
}

func TestCatchUpIsAskedForWhatTheHistoryLacks(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 2}
		calls := controlCatchUp(b)
		s := serve(t, b)
		b.Publish(Event{ID: "1", Data: "1"}, "a", "b")
		b.Publish(Event{ID: "2", Data: "2"}, "a")
		b.Publish(Event{ID: "3", Data: "3"}, "a")
		s.get("/?topic=a", "Last-Event-ID: 1\r\n").want("2 3")
		s.get("/?topic=a", "Last-Event-ID: 3\r\n").want("")
		select {
		case call := <-calls:
			t.Errorf("CatchUp was called with ID %q, which is in the history", call.id)
		default:
		}
		for _, id := range []string{"", "0", "nobody"} {
			header := ""
			if id != "" {
				header = "Last-Event-ID: " + id + "\r\n"
			}
			c := s.get("/?topic=b&topic=a&topic=b", header)
			call := <-calls
			slices.Sort(call.topics)
			if call.id != id || !slices.Equal(call.topics, []string{"a", "b"}) {
				t.Errorf("CatchUp: got ID %q and topics %q, want %q and a, b", call.id, call.topics, id)
			}
			if call.upTo != "3" {
				t.Errorf("CatchUp: got %q as the newest event, want 3", call.upTo)
			}
			// It goes on right after the last event, which is in the history.
			call.events <- Event{ID: "0", Data: "0"}
			call.events <- Event{ID: "2", Data: "2"}
			close(call.events)
			c.want("0 2 3")
			if call.ctx.Err() == nil {
				t.Error("CatchUp has returned, and its context goes on")
			}
			c.close()
		}
	})
}

func TestCatchUpMissesNothingPublishedMeanwhile(t *testing.T) {
	for _, test := range []struct {
		name   string
		events []Event
		want   string
	}{
		{"nothing", nil, "4 5 6"},
		{"a snapshot", []Event{{Type: "snapshot", Data: "s"}}, "s 4 5 6"},
		{"an unknown ID", []Event{{ID: "x", Data: "x"}}, "x 4 5 6"},
		{"an ID from before", []Event{{ID: "2", Data: "2"}}, "2 3 4 5 6"},
		{"an ID from before, but not on the last event", []Event{{ID: "2", Data: "2"}, {Data: "s"}}, "2 s 4 5 6"},
		{"an ID from meanwhile", []Event{{ID: "4", Data: "4"}, {ID: "5", Data: "5"}}, "4 5 6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{}
				calls := controlCatchUp(b)
				s := serve(t, b)
				publish := func(id string) { b.Publish(Event{ID: id, Data: id}) }
				publish("1")
				publish("2")
				publish("3")
				c := s.get("/", "Last-Event-ID: nobody\r\n")
				call := <-calls
				publish("4")
				publish("5")
				for _, e := range test.events {
					call.events <- e
				}
				close(call.events)
				synctest.Wait()
				publish("6")
				c.want(test.want)
				c.close()
				// It was told an ID to come back with.
				c = s.get("/", "Last-Event-ID: "+c.lastID()+"\r\n")
				c.want("")
				publish("7")
				c.want("7")
			})
		})
	}
}

func TestCatchUpThatYieldsNothingLetsTheClientGoOnAfterItsOwnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		calls := controlCatchUp(b)
		publishIDs(t, b, "1")
		// The client has seen 3, from another broker that is fed faster.
		loop := followBroker(t, b, "3")
		call := <-calls
		publishIDs(t, b, "2", "3", "4")
		close(call.events)
		loop.want("4")
	})
}

// A client that is cut off between CatchUp's events and the first of its own
// has got all that CatchUp gave it.
func TestClientCutOffAfterCatchUpGoesOn(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		asked := yieldAll(b, Event{Type: "snapshot", Data: "s"})
		s := serve(t, b)
		b.Publish(Event{Data: "1"})
		c := s.get("/", "")
		c.want("s")
		c.close()
		b.Publish(Event{Data: "2"})
		s.get("/", "Last-Event-ID: "+c.lastID()+"\r\n").want("2")
		if len(*asked) != 1 {
			t.Errorf("CatchUp was called for %q, want once", *asked)
		}
	})
}

// The same is true if as much was published meanwhile as the history holds.
func TestClientCutOffAfterALongCatchUpGoesOn(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 256}
		calls := controlCatchUp(b)
		s := serve(t, b)
		b.Publish(Event{Data: "1"})
		c := s.get("/", "")
		call := <-calls
		for range 256 {
			b.Publish(Event{Data: "x"}, "other")
		}
		call.events <- Event{Type: "snapshot", Data: "s"}
		close(call.events)
		c.want("s")
		c.close()
		s.get("/", "Last-Event-ID: "+c.lastID()+"\r\n").want("")
		select {
		case call := <-calls:
			t.Errorf("CatchUp was asked again, for %q", call.id)
		default:
		}
	})
}

func TestCatchUpOfManyEvents(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		var events []Event
		var want []string
		for i := range 1000 {
			data := strings.Repeat(strconv.Itoa(i), 1+i%200)
			events, want = append(events, Event{ID: strconv.Itoa(i), Data: data}), append(want, data)
		}
		yieldAll(b, events...)
		s := serve(t, b)
		s.get("/", "").want(strings.Join(want, " "))
		followBroker(t, b, "").want(strings.Join(want, " "))
	})
}

func TestCatchUpThatFailsEndsTheStream(t *testing.T) {
	for _, test := range []struct {
		name string
		fail error
		bad  Event
	}{
		{"error", errors.New("the database is on fire"), Event{Data: "x"}},
		{"bad event", nil, Event{ID: "a\nb"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &brokerLog{}
				b := &Broker{Logger: slog.New(log)}
				calls := controlCatchUp(b)
				s := serveBroker(t, b)
				for range 3 {
					c := s.get("/", "Last-Event-ID: nobody\r\n")
					loop := followBroker(t, b, "nobody")
					for range 2 {
						call := <-calls
						call.fail = test.fail
						call.events <- Event{ID: "x", Data: "x"}
						call.events <- test.bad
						close(call.events)
					}
					synctest.Wait()
					b.Publish(Event{Data: "1"})
					synctest.Wait()
					if got := c.events(); c.ended() == nil || len(got) > 0 && got[len(got)-1].Data == "1" {
						t.Errorf("the stream went on: %+v", got)
					}
					if err := s.served(); err == nil || test.fail != nil && !errors.Is(err, test.fail) || errors.Is(err, ErrClientLeft) {
						t.Errorf("Serve: got %v, want %v", err, test.fail)
					}
					if err := loop.ended(); err == nil || test.fail != nil && !errors.Is(err, test.fail) {
						t.Errorf("Subscribe: got %v, want %v", err, test.fail)
					}
				}
				if got := log.count(slog.LevelWarn); got != 1 {
					t.Errorf("warnings: got %d, want 1 for one minute", got)
				}
			})
		})
	}
}

func TestClientThatLeavesDuringCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		calls := controlCatchUp(b)
		s := serveBroker(t, b)
		c := s.get("/", "")
		call := <-calls
		call.events <- Event{Data: "1"}
		c.close()
		synctest.Wait()
		if call.ctx.Err() == nil || !call.gone {
			t.Errorf("CatchUp goes on without the client: %v, %v", call.ctx.Err(), call.gone)
		}
		if err := s.served(); !errors.Is(err, ErrClientLeft) {
			t.Errorf("Serve: got %v, want ErrClientLeft", err)
		}
		if got := log.count(slog.LevelWarn); got != 0 {
			t.Errorf("warnings: got %d, want none, since nothing is wrong", got)
		}

		// One that is too slow for what CatchUp yields is cut off.
		c = s.get("/", "")
		call = <-calls
		c.stall(true)
		for range 1000 {
			select {
			case call.events <- Event{Data: strings.Repeat("x", 1000)}:
				continue
			case <-time.After(time.Minute):
			}
			break
		}
		if err := s.served(); !errors.Is(err, ErrTooSlow) || !call.gone {
			t.Errorf("Serve: got %v, want ErrTooSlow", err)
		}
		if got := b.Stats().Clients; got != 0 {
			t.Errorf("clients: got %d, want none", got)
		}
	})
}

// What is published while CatchUp runs may be more than the ring holds. Then
// CatchUp is asked for the rest, and it is not the client's loss.
func TestCatchUpThatTheRingOvertakesIsAskedAgain(t *testing.T) {
	for _, explicit := range []bool{false, true} {
		t.Run(fmt.Sprint("explicit=", explicit), func(t *testing.T) {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{History: 10}
				calls := controlCatchUp(b)
				s := serve(t, b)
				var log []Event
				publish := func(n int) {
					for range n {
						e := Event{Data: strconv.Itoa(len(log))}
						if explicit {
							e.ID = "id" + e.Data
						}
						b.Publish(e)
						e.ID = b.LastEventID()
						log = append(log, e)
					}
				}
				publish(5)
				c := s.get("/", "Last-Event-ID: nobody\r\n")
				call := <-calls
				publish(5)
				for _, e := range log {
					call.events <- e
				}
				publish(300) // the ring forgets the event that CatchUp ended with
				close(call.events)
				select {
				case call = <-calls:
				case <-time.After(time.Second):
					t.Fatal("CatchUp was not asked again")
				}
				if call.id != log[9].ID {
					t.Errorf("CatchUp: got ID %q, want that of its own last event, %q", call.id, log[9].ID)
				}
				for _, e := range log[10:] {
					call.events <- e
				}
				close(call.events)
				synctest.Wait()
				publish(1)
				var want []string
				for _, e := range log {
					want = append(want, e.Data)
				}
				c.want(strings.Join(want, " "))
				if c.lastID() != b.LastEventID() {
					t.Errorf("last event ID: got %q, want %q", c.lastID(), b.LastEventID())
				}
			})
		})
	}
}

// When CatchUp is called again, and with which ID. What concerns the bytes that a client
// is sent is in TestCatchUpThatTheRingOvertakesIsAskedAgain.
func TestWhatCatchUpIsAskedAgainFor(t *testing.T) {
	publish := func(b *Broker, n int, topics ...string) {
		for range n {
			b.Publish(Event{Data: "x"}, topics...)
		}
	}
	numbers := func(from, to int) (ids []string) {
		for i := from; i <= to; i++ {
			ids = append(ids, strconv.Itoa(i))
		}
		return ids
	}
	for _, test := range []struct {
		name    string
		history int
		lastID  func(b *Broker) string // publishes what there is before the client
		topic   string
		answer  func(b *Broker, n int, missed Missed, yield func(Event) bool) // the nth call
		after   func(b *Broker, l *brokerLoop)
		asked   []string // "own" is what the client came with
		want    string
	}{
		{
			"the history has moved on", 1,
			func(b *Broker) string { publishIDs(t, b, numbers(1, 10)...); return "4" }, "",
			func(b *Broker, n int, missed Missed, yield func(Event) bool) {
				if n == 1 {
					publishIDs(t, b, "11", "12")
				}
				from, _ := strconv.Atoi(missed.LastEventID)
				to, _ := strconv.Atoi(b.LastEventID())
				for _, id := range numbers(from+1, to) {
					if !yield(Event{ID: id, Data: id}) {
						return
					}
				}
				if n == 1 { // more than the history holds, while the client is still here
					publishIDs(t, b, numbers(13, 1012)...)
				}
			},
			func(b *Broker, _ *brokerLoop) { publishIDs(t, b, numbers(1013, 1015)...) },
			[]string{"own", "12"}, strings.Join(numbers(5, 1015), " "),
		},
		{
			"it yielded nothing", 1,
			func(b *Broker) string { publishIDs(t, b, "here"); return "long ago" }, "quiet",
			func(b *Broker, n int, _ Missed, _ func(Event) bool) {
				if n == 1 { // while it reads a log that has nothing for the client
					publish(b, 1000, "other", "quiet")
				} else { // nor has what is published now
					publish(b, 1000, "other")
				}
			},
			func(b *Broker, _ *brokerLoop) { b.Publish(Event{Data: "1"}, "quiet") },
			[]string{"own", "here"}, "1",
		},
		{
			"it always yields the same old snapshot", 10,
			func(b *Broker) string { publishIDs(t, b, "old"); publish(b, 300); return "nobody" }, "",
			func(_ *Broker, n int, _ Missed, yield func(Event) bool) {
				if n <= 5 { // or it would never end
					yield(Event{ID: "old", Data: "snapshot"})
				}
			},
			func(b *Broker, _ *brokerLoop) { b.Publish(Event{Data: "1"}) },
			[]string{"own"}, "snapshot 1",
		},
		{
			"it yields nothing for an event that has left the history", 1,
			func(b *Broker) string {
				id, _ := b.Publish(Event{Data: "0"})
				publish(b, 1000, "other")
				return id
			}, "",
			func(*Broker, int, Missed, func(Event) bool) {},
			func(b *Broker, _ *brokerLoop) { b.Publish(Event{Data: "1"}) },
			[]string{"own"}, "1",
		},
		{
			"there was no other event", -1,
			func(*Broker) string { return "a" }, "",
			func(*Broker, int, Missed, func(Event) bool) {},
			func(b *Broker, l *brokerLoop) {
				l.stall(true)
				for i := range 300 {
					b.Publish(Event{Data: "x"})
					if i < 3 { // or it is given many at once
						synctest.Wait()
					}
				}
				l.stall(false)
				synctest.Wait()
				l.events()
			},
			[]string{"own", "own"}, "",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{History: test.history}
				var asked []string
				b.CatchUp = func(_ context.Context, missed Missed) iter.Seq2[Event, error] {
					return func(yield func(Event, error) bool) {
						asked = append(asked, missed.LastEventID)
						test.answer(b, len(asked), missed, func(e Event) bool { return yield(e, nil) })
					}
				}
				own := test.lastID(b)
				loop := followBroker(t, b, own, test.topic)
				test.after(b, loop)
				loop.want(test.want)
				want := slices.Clone(test.asked)
				for i := range want {
					if want[i] == "own" {
						want[i] = own
					}
				}
				if !slices.Equal(asked, want) {
					t.Errorf("CatchUp was asked for %q, want %q", asked, want)
				}
			})
		})
	}
}

// A newcomer is asked for again, from where the log stood, if CatchUp yielded nothing
// and more was published meanwhile than the history holds.
func TestNewcomerWhoseEmptyCatchUpTheRingOvertakesIsAskedForAgain(t *testing.T) {
	for _, before := range []int{0, 3} { // events before it came
		for _, way := range []string{"Serve", "Detach", "Subscribe"} {
			t.Run(fmt.Sprint(way, " after ", before, " events"), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{History: 1}
					calls := controlCatchUp(b)
					publishNumbers(b, before)
					upTo := b.LastEventID()
					var client interface{ want(string) }
					switch way {
					case "Serve":
						client = serveBroker(t, b).get("/", "")
					case "Detach":
						client = detachBroker(t, b).get("/", "")
					default:
						client = followBroker(t, b, "")
					}
					next := func(id string) *catchUpCall {
						t.Helper()
						synctest.Wait()
						select {
						case call := <-calls:
							if call.id != id {
								t.Errorf("CatchUp was asked for %q, want %q", call.id, id)
							}
							return call
						default:
							t.Fatalf("CatchUp was not asked for %q", id)
							return nil
						}
					}
					call := next("")
					publishNumbers(b, 300)
					close(call.events)
					call = next(upTo)
					upTo = b.LastEventID()
					publishNumbers(b, 300)
					close(call.events)
					call = next(upTo)
					call.events <- Event{ID: b.LastEventID(), Data: "the rest"}
					close(call.events)
					synctest.Wait()
					b.Publish(Event{Data: "1"})
					client.want("the rest 1")
				})
			})
		}
	}
}

// Without a history every connection begins with what CatchUp yields, then live.
func TestCatchUpWithoutAHistoryBeginsEveryConnection(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: -1}
		asked := yieldAll(b, Event{Data: "state"})
		s := serve(t, b)
		for _, header := range []string{"", "", "Last-Event-ID: a\r\n"} {
			c := s.get("/", header)
			c.want("state")
			b.Publish(Event{ID: "a", Data: "1"})
			c.want("1")
			c.close()
		}
		if want := []string{"", "", "a"}; !slices.Equal(*asked, want) {
			t.Errorf("CatchUp was asked for %q, want %q", *asked, want)
		}
	})
}

func TestClientThatFellOffTheRingIsCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, history := range []int{10, -1} {
			b := &Broker{History: history}
			calls := controlCatchUp(b)
			loop := followBroker(t, b, "a")
			call := <-calls
			call.events <- Event{ID: "b", Data: "b"}
			call.events <- Event{ID: "c", Data: "c"}
			close(call.events)
			loop.want("b c")
			loop.stall(true)
			for i := range 300 {
				if i < 3 { // or it is given many at once
					synctest.Wait()
				}
				b.Publish(Event{ID: fmt.Sprint("id", i), Data: strconv.Itoa(i)})
			}
			synctest.Wait()
			loop.stall(false)
			call = <-calls
			synctest.Wait()
			got := loop.events()
			last := got[len(got)-1]
			if call.id != last.ID || len(got) > 10 {
				t.Errorf("History %d: CatchUp was asked with %q, want %q", history, call.id, last.ID)
			}
			first := len(got)
			for i := first; i < 300; i++ {
				call.events <- Event{ID: fmt.Sprint("id", i), Data: strconv.Itoa(i)}
			}
			close(call.events)
			synctest.Wait()
			b.Publish(Event{ID: "last", Data: "last"})
			synctest.Wait()
			got = loop.events()
			if len(got) != 301-first || got[0].Data != strconv.Itoa(first) || got[len(got)-1].Data != "last" {
				t.Errorf("History %d: got %d events after the %d before, want up to 300 and the last", history, len(got), first)
			}
			if got := b.Stats().Gaps; got != 2 && history > 0 {
				t.Errorf("gaps: got %d, want 2", got)
			}
			loop.close()
		}
	})
}

// ----- Clients -----

// Serving clients.

func TestServeAnswersHEADAndKeepsNothing(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxClients: 1}
		s := serve(t, b)
		for range 3 {
			resp := s.do("HEAD", "/", "")
			if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
				t.Errorf("HEAD: got %d, %v", resp.StatusCode, resp.Header)
			}
			if err := s.served(); err != nil {
				t.Errorf("Serve: got %v, want nil", err)
			}
		}
		if got := b.Stats(); got != (Stats{}) {
			t.Errorf("Stats: got %+v, want none", got)
		}
	})
}

func TestServeHTTPTakesOnlyGETAndHEAD(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "FOO"} {
		b := &Broker{}
		w := httptest.NewRecorder()
		b.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: got %d, Allow %q, want 405, GET and HEAD", method, w.Code, w.Header().Get("Allow"))
		}
		if ct := w.Header().Get("Content-Type"); strings.HasPrefix(ct, "text/event-stream") {
			t.Errorf("%s: Content-Type is that of a stream", method)
		}
	}
	w := httptest.NewRecorder()
	(&Broker{}).ServeHTTP(w, httptest.NewRequest("HEAD", "/", nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/event-stream; charset=utf-8" {
		t.Errorf("HEAD: got %d %v", w.Code, w.Header())
	}
}

func TestMaxClients(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{MaxClients: 2, Retry: time.Second, Logger: slog.New(log)}
		s := serve(t, b)
		followBroker(t, b, "") // does not count
		s.do("HEAD", "/", "")
		synctest.Wait()
		s.served()
		first, second := s.get("/", ""), s.get("/", "")
		synctest.Wait()
		var retries []time.Duration
		for range 20 {
			third := s.get("/", "Last-Event-ID: nobody\r\n")
			synctest.Wait()
			if third.status != 200 || third.header.Get("Content-Type") != "text/event-stream; charset=utf-8" || third.header.Get("X-Content-Type-Options") != "nosniff" || third.ended() != io.EOF {
				t.Fatalf("one too many: got %d, %v, %v, want 200, a stream and its end", third.status, third.header, third.ended())
			}
			if err := s.served(); !errors.Is(err, ErrFull) {
				t.Errorf("Serve: got %v, want ErrFull", err)
			}
			blocks, _ := third.take()
			if len(blocks) != 2 || blocks[0].Raw != ": too many clients" || blocks[1].HasData || blocks[1].ID != "nobody" {
				t.Fatalf("one too many: got %+v, want a comment, a reconnection time and its own ID", blocks)
			}
			retries = append(retries, blocks[1].retry(t))
		}
		wantSpread(t, retries, time.Second)
		if got := log.count(slog.LevelWarn); got != 1 {
			t.Errorf("warnings: got %d, want 1 for one minute", got)
		}
		second.close()
		time.Sleep(16 * time.Second) // for a keep-alive: Detach notices only then
		fourth := s.get("/", "")
		synctest.Wait()
		b.Publish(Event{Data: "1"})
		first.want("1")
		fourth.want("1")
		if got := b.Stats().Clients; got != 2 {
			t.Errorf("clients: got %d, want 2", got)
		}
	})
}

// A client that is turned away and announced a body that it does not send holds its
// connection no longer than another.
func TestClientThatIsTurnedAwayAndDoesNotSendItsBody(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxClients: 1, Logger: slog.New(slog.DiscardHandler)}
		s := serve(t, b)
		s.get("/", "").want("")
		conn, err := s.dial()
		wireCheck(t, err)
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n")
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, conn); err != nil { // past the last chunk
			t.Errorf("after 20 s: got %v, want the end of the connection", err)
		}
	})
}

// Nor does one that reads no further than to the last chunk.
func TestClientThatIsTurnedAwayAndDoesNotReadTheEnd(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxClients: 1, Logger: slog.New(slog.DiscardHandler)}
		s := serve(t, b)
		s.get("/", "").want("")
		conn, err := s.dial()
		wireCheck(t, err)
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\nX-Varnish: 1\r\n\r\n") // so it gets chunks
		begin := make([]byte, 4<<10)
		n, err := conn.Read(begin)
		if !bytes.HasSuffix(begin[:n], []byte("\n\r\n")) || err != nil {
			t.Fatalf("got %q, %v, want all but the last chunk", begin[:n], err)
		}
		time.Sleep(20 * time.Second)
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
			t.Errorf("after 20 s: got %q, %v, want the end of the connection", rest, err)
		}
	})
}

// A client that is turned away has no more time than any other.
func TestClientThatIsTurnedAwayAndDoesNotRead(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxClients: 1, WriteTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)}
		s := serve(t, b)
		s.get("/", "").want("")
		s.getStalled("/", "")
		time.Sleep(time.Second)
		if err := s.served(); !errors.Is(err, ErrFull) {
			t.Errorf("served: got %v after a second, want ErrFull", err)
		}
	})
}

// wantSpread checks that the times lie between retry and twice that, and that
// they differ.
func wantSpread(t *testing.T, times []time.Duration, retry time.Duration) {
	t.Helper()
	low, high := slices.Min(times), slices.Max(times)
	if low < retry || high >= 2*retry || high-low < retry/4 {
		t.Errorf("reconnection times: got %v to %v, want them spread over %v to %v", low, high, retry, 2*retry)
	}
}

func TestRetryIsToldToEachClient(t *testing.T) {
	for retry, want := range map[time.Duration]struct {
		told string
		away time.Duration // at least, to one that is turned away
	}{
		0:                       {"3000", 3 * time.Second},
		-1:                      {"", 0},
		time.Nanosecond:         {"1", time.Millisecond},
		1500 * time.Microsecond: {"1", time.Millisecond},
		time.Minute:             {"60000", time.Minute},
	} {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{Retry: retry, MaxClients: 1, Logger: slog.New(slog.DiscardHandler)}
			s := serve(t, b)
			c := s.get("/", "")
			synctest.Wait()
			blocks, _ := c.take()
			if len(blocks) != 1 || blocks[0].Retry != want.told || blocks[0].ID != b.LastEventID() || blocks[0].HasData {
				t.Errorf("Retry %v: got %+v first, want retry %q and the ID", retry, blocks, want.told)
			}
			c = s.get("/", "")
			synctest.Wait()
			blocks, _ = c.take()
			if want.away == 0 {
				if len(blocks) != 1 || !blocks[0].Comment {
					t.Errorf("Retry %v: got %+v to one turned away, want a comment alone", retry, blocks)
				}
				return
			}
			if got := blocks[1].retry(t); got < want.away || got > 2*want.away {
				t.Errorf("Retry %v: got %v to one turned away, want at least %v and at most twice that", retry, got, want.away)
			}
		})
	}
}

func TestLastEventIDHeaderWinsOverTheQuery(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		for _, id := range []string{"1", "2", "3"} {
			b.Publish(Event{ID: id, Data: id})
		}
		s.get("/?lastEventId=1", "Last-Event-ID: 2\r\n").want("3")
		s.get("/?lastEventId=1", "").want("2 3")
		s.get("/?lastEventId=1", "Last-Event-ID: \r\n").want("2 3")
	})
}

func TestHostileLastEventIDs(t *testing.T) {
	b := &Broker{}
	prefix, _, _ := strings.Cut(b.LastEventID(), "-")
	b.Publish(Event{ID: strings.Repeat("x", 1024), Data: "1"})
	for _, id := range []string{
		strings.Repeat("y", 1<<20), strings.Repeat("\xff", 1<<20), strings.Repeat("é", 1<<19),
		"a\nid: forged\ndata: forged\n\ndata: forged", "a\r\rdata: forged", "\x00", "a\x00b\x1b[31m", "\xff\xfe", "\u2028",
		prefix + "-", prefix + "--1", prefix + "-+1", prefix + "-99999999999999999999999999", prefix + "-3w5e11264sgsf", prefix + "-01",
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
			r.Header.Set("Last-Event-ID", id)
			w := httptest.NewRecorder()
			if err := b.Serve(w, r); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Serve with ID %.20q: got %v", id, err)
			}
			body := w.Body.String()
			if len(body) > 16<<10 || !utf8.ValidString(body) {
				t.Errorf("ID %.20q of %d bytes made a stream of %d bytes, valid UTF-8: %v", id, len(id), len(body), utf8.ValidString(body))
			}
			c := &pipeClient{}
			c.got([]byte(body))
			got := c.blocks
			lines := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.ToValidUTF8(id, "\ufffd"))
			if len(got) != 4 || got[1].Type != "gap" || !strings.HasPrefix(lines, got[1].Data) || len(got[1].Data) < min(len(lines), 1000) || got[2].Data != "1" {
				t.Errorf("ID %.20q: got %.300q, want the preamble, the gap, the event and a reconnection time", id, body)
			}
		})
		// Any site can link to the address of a stream. What stands in the query then is
		// repeated only if it is an ID of the history.
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r := httptest.NewRequest("GET", "/?"+url.Values{"lastEventId": {id}}.Encode(), nil).WithContext(ctx)
			w := httptest.NewRecorder()
			if err := b.Serve(w, r); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Serve with ID %.20q in the query: got %v", id, err)
			}
			want := "retry: 3000\nid: " + prefix + "-0\nevent: gap\ndata: \n\nid: " + strings.Repeat("x", 1024) + "\ndata: 1\n\n"
			if got, ok := strings.CutPrefix(w.Body.String(), want); !ok || !strings.HasPrefix(got, "retry: ") {
				t.Errorf("ID %.20q in the query: got %.300q, want %.300q and a reconnection time", id, w.Body, want)
			}
		})
	}
}

// A stream is no script, whatever the query makes it say.
func TestQueryIsNotRepeated(t *testing.T) {
	const script = "alert(1)//"
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		for name, b := range map[string]*Broker{
			"gap":      {},
			"no retry": {Retry: -1},
			"full":     {MaxClients: 1},
			"closed":   {},
			"CatchUp":  {CatchUp: func(context.Context, Missed) iter.Seq2[Event, error] { return sequence(nil) }},
			"history":  {},
		} {
			b.Logger = slog.New(slog.DiscardHandler)
			s := serve(t, b)
			first := s.get("/", "")
			first.want("")
			switch name {
			case "closed":
				b.Shutdown(t.Context())
			case "history":
				publishIDs(t, b, script, "2")
			}
			c := s.get("/?lastEventId="+url.QueryEscape(script), "")
			synctest.Wait()
			time.Sleep(16 * time.Second) // and a keep-alive
			c.events()
			repeated := false
			for _, block := range c.blocks {
				repeated = repeated || strings.Contains(block.Raw, script)
			}
			if repeated != (name == "history") {
				t.Errorf("%s: got %+v, repeated: %v", name, c.blocks, repeated)
			}
			if got := c.header.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("%s: got X-Content-Type-Options %q, want nosniff", name, got)
			}
			// The client's own is, or it would lose its place.
			c = s.get("/?lastEventId=other", "Last-Event-ID: own\r\n")
			c.events()
			if name != "no retry" && name != "CatchUp" && !slices.ContainsFunc(c.blocks, func(b pipeBlock) bool { return b.ID == "own" }) {
				t.Errorf("%s: got %+v, want the header's ID repeated", name, c.blocks)
			}
		}
	})
}

// Once the history has it, it is an ID like any other.
func TestIDOfTheQueryThatIsPublished(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		c := serve(t, b).get("/?lastEventId=later", "")
		c.want("gap:")
		publishIDs(t, b, "later")
		c.want("later")
		wireCheck(t, b.Reset(""))
		c.want("gap:later")
	})
}

// What is no event is followed by no blank line, at which lenient clients would
// dispatch a message. But an ID is.
func TestBlankLinesEndEventsAlone(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		for _, test := range []struct {
			broker *Broker
			want   string
		}{
			{&Broker{History: -1}, "retry: 3000\nretry: 1000\ndata: 1\n\n:\n: shutting down\nretry: "},
			{&Broker{History: -1, Retry: -1}, ":\nretry: 1000\ndata: 1\n\n:\n: shutting down\n"},
			{&Broker{}, "id: ID\nretry: 3000\n\nid: ID\nretry: 1000\n\nid: ID\ndata: 1\n\n:\n: shutting down\nretry: "},
			{&Broker{Retry: -1}, "id: ID\n\nid: ID\nretry: 1000\n\nid: ID\ndata: 1\n\n:\n: shutting down\n"},
		} {
			s := serve(t, test.broker)
			conn, err := s.dial()
			wireCheck(t, err)
			fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
			body := make(chan string)
			go func() {
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				wireCheck(t, err)
				text, err := io.ReadAll(resp.Body)
				wireCheck(t, err)
				body <- string(text)
			}()
			synctest.Wait()
			test.broker.Publish(Event{Retry: time.Second})
			time.Sleep(time.Second)
			test.broker.Publish(Event{Data: "1"})
			time.Sleep(16 * time.Second)
			test.broker.Shutdown(t.Context())
			got := regexp.MustCompile(`id: [0-9a-z-]+\n`).ReplaceAllString(<-body, "id: ID\n")
			if rest, ok := strings.CutPrefix(got, test.want); !ok || strings.Trim(rest, "0123456789\n") != "" || strings.Contains(rest, "\n\n") {
				t.Errorf("%+v: got %q, want %q and a time at most", test.broker.History, got, test.want)
			}
		}
	})
}

// Half a character ends no stream: all that is published arrives, as a browser would
// show it, by every way.
func TestDataThatIsNotUTF8(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c, loop := s.get("/", ""), followBroker(t, b, "")
		c.want("")
		for _, data := range []string{"\xf0\x9f", "\x98\x80", "a\xffb"} {
			_, err := b.Publish(Event{Data: data})
			wireCheck(t, err)
		}
		c.want("\ufffd \ufffd\ufffd a\ufffdb")
		loop.want("\ufffd \ufffd\ufffd a\ufffdb")
	})
}

func TestClientThatLeavesBeforeItIsAnsweredIsNoWarning(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		s := serve(t, b)
		c := s.getStalled("/", "")
		synctest.Wait()
		c.close()
		if err := s.served(); !errors.Is(err, ErrClientLeft) {
			t.Errorf("served: got %v, want ErrClientLeft", err)
		}
		s.getStalled("/", "")
		time.Sleep(12 * time.Second)
		if err := s.served(); !errors.Is(err, ErrTooSlow) {
			t.Errorf("served: got %v, want ErrTooSlow", err)
		}
		if got := log.count(slog.LevelWarn); got != 0 || b.Stats().Clients != 0 {
			t.Errorf("got %d warnings and %d clients, want none", got, b.Stats().Clients)
		}
	})
}

func TestServeEndsWithTheRequestsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		revoked := errors.New("access revoked")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			return b.Serve(w, r.WithContext(ctx))
		})
		c := s.get("/", "")
		c.want("")
		cancel(revoked)
		synctest.Wait()
		if err := s.served(); errors.Is(err, ErrClientLeft) || !errors.Is(err, revoked) {
			t.Errorf("Serve: got %v, want the cause and not ErrClientLeft", err)
		}
		if c.ended() == nil || b.Stats().Clients != 0 {
			t.Error("the stream goes on")
		}
	})
}

func TestServeKeepsTheProgramsHeaders(t *testing.T) {
	for name, serve := range map[string]func(*Broker, http.ResponseWriter, *http.Request){
		"Serve":  func(b *Broker, w http.ResponseWriter, r *http.Request) { b.Serve(w, r) },
		"Detach": func(b *Broker, w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{}
				defer b.Shutdown(t.Context())
				s := newPipeServer(t, &http.Server{})
				s.serve(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "no-store")
					w.Header().Add("Set-Cookie", "a=1")
					w.Header().Add("Set-Cookie", "b=2")
					w.Header().Set("X-Mine", "1\r\nX-Forged: 1")
					serve(b, w, r)
				})
				for _, protocol := range []string{"HTTP/1.0", "HTTP/1.1"} {
					conn, err := s.dial()
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					fmt.Fprintf(conn, "GET / %s\r\nHost: test\r\n\r\n", protocol)
					r := textproto.NewReader(bufio.NewReader(conn)) // package http would not show all
					if line, err := r.ReadLine(); line != protocol+" 200 OK" {
						t.Errorf("got %q, %v, want %s 200 OK", line, err, protocol)
					}
					header, err := r.ReadMIMEHeader() // before any event
					want := textproto.MIMEHeader{
						"Content-Type": {"text/event-stream; charset=utf-8"}, "Cache-Control": {"no-store"}, "X-Accel-Buffering": {"no"},
						"X-Content-Type-Options": {"nosniff"},
						"Set-Cookie":             {"a=1", "b=2"}, "X-Mine": {"1  X-Forged: 1"}, "Connection": {"close"},
						"Date": {time.Now().UTC().Format(http.TimeFormat)},
					}
					if protocol == "HTTP/1.0" { // where it goes without saying
						delete(header, "Connection")
						delete(want, "Connection")
					}
					if !reflect.DeepEqual(header, want) || err != nil {
						t.Errorf("%s: got %q, %v\nwant %q", protocol, header, err, want)
					}
				}
			})
		})
	}
}

func TestServeWhereNoStreamIsPossible(t *testing.T) {
	for name, middleware := range map[string]func(http.Handler) http.Handler{
		"sse.wireOpaque": func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(wireOpaque{w}, r) })
		},
		"*http.timeoutWriter": func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Hour, "") },
	} {
		t.Run(name, func(t *testing.T) {
			log := &brokerLog{}
			b := &Broker{Logger: slog.New(log)}
			b.Publish(Event{Data: "1"})
			var served error
			w := httptest.NewRecorder()
			for range 3 {
				w = httptest.NewRecorder()
				middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					served = b.Serve(w, r)
				})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			}
			if w.Code != 500 || !strings.Contains(w.Body.String(), name) || strings.Contains(w.Body.String(), "data") ||
				w.Header().Get("Content-Type") == "text/event-stream" {
				t.Errorf("got %d, %v, %q, want 500 and the name of the type", w.Code, w.Header(), w.Body)
			}
			if !errors.Is(served, http.ErrNotSupported) || !strings.Contains(served.Error(), name) {
				t.Errorf("Serve: got %v, want ErrNotSupported and the name of the type", served)
			}
			if got := log.count(slog.LevelWarn); got != 1 {
				t.Errorf("warnings: got %d, want 1 for one minute", got)
			}
			if got := b.Stats(); got.Clients != 0 {
				t.Errorf("clients: got %d, want none", got.Clients)
			}
		})
	}
}

// A stream outlives each timeout of the server, over each version of HTTP.
func TestServerTimeoutsDoNotEndAStream(t *testing.T) {
	for name, serve := range map[string]func(*Broker, http.ResponseWriter, *http.Request){
		"Serve":         func(b *Broker, w http.ResponseWriter, r *http.Request) { b.Serve(w, r) },
		"Serve wrapped": func(b *Broker, w http.ResponseWriter, r *http.Request) { b.Serve(wireMiddleware{w}, r) },
		"Detach":        func(b *Broker, w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			eachWireProtocol(t, func(t *testing.T, protocol string) {
				b := &Broker{KeepAlive: 5 * time.Second, WriteTimeout: 2 * time.Second}
				srv := newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) { serve(b, w, r) }, shortTimeouts)
				client := openWireStream(t, srv, "GET", nil)
				for i := range 8 {
					time.Sleep(time.Duration(i) * 1100 * time.Millisecond)
					b.Publish(Event{Data: strconv.Itoa(i)})
				}
				if err := b.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				client.wantEnd()
				got := decodeAsStandard([]byte(client.text()))
				for i, e := range got.events {
					got.events[i] = Event{Data: e.Data}
				}
				want := []Event{{Data: "0"}, {Data: "1"}, {Data: "2"}, {Data: "3"}, {Data: "4"}, {Data: "5"}, {Data: "6"}, {Data: "7"}}
				if !slices.Equal(got.events, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		})
	}
}

// A deadline left on an HTTP/2 stream that was reset holds the stream's memory
// until it passes.
func TestResetStreamHasNoDeadlineLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := httptest.NewRequest("GET", "/", nil)
		r.ProtoMajor, r.ProtoMinor = 2, 0
		w := &wireTape{flushError: errors.New("stream closed")}
		if err := new(Broker).Serve(w, r); !errors.Is(err, ErrClientLeft) {
			t.Errorf("got %v, want ErrClientLeft", err)
		}
		if slices.ContainsFunc(w.tape, func(s string) bool { return strings.HasPrefix(s, "deadline 1") }) {
			t.Errorf("got %q, want no deadline", w.tape)
		}
	})
}

// No deadline is set for a write, since one that stands ends an idle stream over
// HTTP/2, and over TLS, where the client may ask for a new key at any time, which is
// answered. Only what net/http writes over HTTP/1 after the handler has one.
func TestServeSetsNoDeadlines(t *testing.T) {
	for name, proto := range map[string]int{"HTTP/1.1": 1, "HTTP/2": 2} {
		for _, state := range []*tls.ConnectionState{nil, {}} {
			t.Run(fmt.Sprintf("%s, TLS %v", name, state != nil), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{WriteTimeout: 16 * time.Second, Retry: -1, History: -1}
					ctx, cancel := context.WithCancel(t.Context())
					w := &wireTape{}
					ended := make(chan error)
					r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
					r.ProtoMajor, r.TLS = proto, state
					go func() { ended <- b.Serve(w, r) }()
					synctest.Wait()
					w.want(t, "headers", "deadline off", "status 200", `write ":\n"`, "flush", "read deadline off")
					for _, data := range []string{"1", "2"} {
						b.Publish(Event{Data: data})
						synctest.Wait()
					}
					w.want(t, "events", `write "data: 1\n\n"`, "flush", `write "data: 2\n\n"`, "flush")
					cancel()
					<-ended
					if proto == 1 {
						w.want(t, "end", "deadline 16s")
					} else {
						w.want(t, "end")
					}
				})
			})
		}
	}
}

// Middleware that wraps the body of a request that has none changes nothing.
func TestBodyThatIsNone(t *testing.T) {
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"http.MaxBytesHandler": func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, 1<<20) },
		"another": func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Body = io.NopCloser(io.LimitReader(r.Body, 1<<20))
				h.ServeHTTP(w, r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{}
				s := serve(t, b)
				synctest.Wait() // for s.srv.Serve
				s.srv.Handler = wrap(s.srv.Handler)
				c := s.get("/", "")
				c.want("")
				b.Publish(Event{Data: "1"})
				c.want("1")
				if c.chunks {
					t.Error("the stream is in chunks")
				}
				if stacks, _ := bubbleGoroutines(); strings.HasSuffix(t.Name(), "Detach") && strings.Contains(stacks, "ServeHTTP") {
					t.Errorf("the handler has not returned:\n%s", stacks)
				}
				b.Shutdown(t.Context())
			})
		})
	}
}

// Varnish holds back the beginning of a stream that is not in chunks.
func TestVarnishGetsChunks(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		varnish, other := s.get("/", "X-Varnish: 123\r\n"), s.get("/", "")
		synctest.Wait()
		b.Publish(Event{Data: "1"})
		varnish.want("1")
		other.want("1")
		if !varnish.chunks || varnish.closes {
			t.Errorf("to Varnish: got chunks %v, Connection: close %v, want the one and not the other", varnish.chunks, varnish.closes)
		}
		if other.chunks || !other.closes {
			t.Errorf("to another client: got chunks %v, Connection: close %v, want the other and not the one", other.chunks, other.closes)
		}
		if err := b.Shutdown(t.Context()); err != nil || varnish.ended() != io.EOF || other.ended() != io.EOF {
			t.Errorf("Shutdown: got %v, ends %v and %v, want EOF", err, varnish.ended(), other.ended())
		}
	})
}

func TestLongHeaderIsNotKept(t *testing.T) {
	b, s := &Broker{}, &subscriber{}
	long := strings.Repeat("x", 1<<20)
	wireCheck(t, b.join(s, long, nil))
	if unsafe.StringData(s.lastID) == unsafe.StringData(long) {
		t.Error("the subscriber keeps the whole header")
	}
}

// What the Broker keeps of the program's strings it owns: a part of a long string
// does not keep all of it.
func TestStringsOfTheProgramAreNotKept(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const n, size = 16, 1 << 20
	wantLittle := func(t *testing.T, f func(part func(i int) string)) {
		t.Helper()
		before := heapInUse()
		f(func(i int) string {
			long := fmt.Sprint("part ", i, strings.Repeat(" and a lot more", size/15))
			return long[:len("part ")+len(strconv.Itoa(i))]
		})
		if kept := heapInUse() - before; kept > n*size/4 {
			t.Errorf("parts of %d strings of 1 MiB keep %d MiB", n, kept>>20)
		}
	}
	follow := func(events iter.Seq2[Event, error]) {
		go func() {
			for range events {
			}
		}()
	}
	for name, test := range map[string]func(ctx context.Context, b *Broker, part string){
		"Publish, topic":  func(_ context.Context, b *Broker, part string) { b.Publish(Event{Data: "x"}, part) },
		"Publish, topics": func(_ context.Context, b *Broker, part string) { b.Publish(Event{Data: "x"}, part, "other") },
		"Publish, ID":     func(_ context.Context, b *Broker, part string) { b.Publish(Event{ID: part, Data: "x"}) },
		"Publish, type":   func(_ context.Context, b *Broker, part string) { b.Publish(Event{Type: part, Data: "x"}) },
		"Publish, data":   func(_ context.Context, b *Broker, part string) { b.Publish(Event{Data: part}) },
		"Reset":           func(_ context.Context, b *Broker, part string) { b.Reset(part) },
		"Subscribe, topic": func(ctx context.Context, b *Broker, part string) {
			follow(b.Subscribe(ctx, "", part))
		},
		"Subscribe, last ID": func(ctx context.Context, b *Broker, part string) { follow(b.Subscribe(ctx, part)) },
	} {
		t.Run(name, func(t *testing.T) {
			b := &Broker{}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wantLittle(t, func(part func(int) string) {
				for i := range n {
					test(ctx, b, part(i))
				}
				if strings.HasPrefix(name, "Subscribe") {
					eventually(t, "all are there", func() bool { return b.Stats().Subscribers == n })
				}
			})
			runtime.KeepAlive(b)
		})
	}
	t.Run("CatchUp, ID", func(t *testing.T) {
		b := &Broker{History: -1} // so that the last ID is that of CatchUp's event
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wantLittle(t, func(part func(int) string) {
			ids := make(chan string, n)
			yieldFrom(b, ids)
			for i := range n {
				ids <- part(i)
				follow(b.Subscribe(ctx, ""))
			}
			eventually(t, "all have it", func() bool { return b.Stats().Delivered == n })
		})
		runtime.KeepAlive(b)
	})
	t.Run("Detach", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{}
			s := newPipeServer(t, &http.Server{})
			s.serve(func(w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil, r.URL.Query().Get("topic")) })
			defer b.Shutdown(t.Context())
			wantLittle(t, func(part func(int) string) {
				for i := range n {
					conn, err := s.dial()
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { conn.Close() })
					rest := strings.Repeat("x", size/8*7)
					fmt.Fprintf(conn, "GET /?topic=%d&rest=%s HTTP/1.1\r\nHost: test\r\n\r\n", i, rest)
					head := bufio.NewReaderSize(conn, 16)
					for line := ""; line != "\n"; { // of the opening block
						if line, err = head.ReadString('\n'); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
			if got := b.Stats().Clients; got != n {
				t.Errorf("got %d clients, want %d", got, n)
			}
			runtime.KeepAlive(b)
		})
	})
}

// yieldFrom sets b.CatchUp to a function that yields one event, whose ID it
// receives.
func yieldFrom(b *Broker, ids chan string) {
	b.CatchUp = func(context.Context, Missed) iter.Seq2[Event, error] {
		return func(yield func(Event, error) bool) { yield(Event{ID: <-ids, Data: "x"}, nil) }
	}
}

// Keep-alives.

func TestKeepAlives(t *testing.T) {
	for _, test := range []struct {
		period, want time.Duration
	}{{0, 15 * time.Second}, {2 * time.Second, 2 * time.Second}, {time.Hour, time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{KeepAlive: test.period}
			s := serveBroker(t, b)
			c := s.get("/?topic=a", "")
			synctest.Wait()
			before := b.LastEventID()
			comments := func() int {
				synctest.Wait()
				blocks, _ := c.take()
				n := 0
				for _, block := range blocks {
					if block.Comment {
						n++
					} else if !block.HasData {
						t.Errorf("KeepAlive %v: got %q, which says nothing new", test.period, block.Raw)
					}
				}
				return n
			}
			c.take() // the preamble
			for i := range 4 {
				time.Sleep(test.want - 1)
				if n := comments(); n != 0 {
					t.Errorf("KeepAlive %v, %d: got %d comments too early", test.period, i, n)
				}
				time.Sleep(time.Nanosecond)
				if n := comments(); n != 1 {
					t.Errorf("KeepAlive %v, %d: got %d comments, want 1 after %v", test.period, i, n, test.want)
				}
			}
			if b.LastEventID() != before || b.Stats().Published+b.Stats().Delivered != 0 || b.log.len() != 0 {
				t.Errorf("keep-alives took an ID or a place: %q, %+v", b.LastEventID(), b.Stats())
			}
			// Not when there are events.
			for range 20 {
				time.Sleep(test.want * 2 / 3)
				b.Publish(Event{Data: "x"}, "a")
			}
			if n := comments(); n != 0 {
				t.Errorf("KeepAlive %v: got %d comments between events", test.period, n)
			}
			time.Sleep(test.want)
			if n := comments(); n != 1 {
				t.Errorf("KeepAlive %v: got %d comments after the last event, want 1", test.period, n)
			}
			// Those of other topics are none of its events.
			time.Sleep(test.want / 2)
			b.Publish(Event{Data: "x"}, "b")
			time.Sleep(test.want / 2)
			if n := comments(); n != 1 {
				t.Errorf("KeepAlive %v: got %d comments, want 1 in spite of events of other topics", test.period, n)
			}
		})
	}
}

// Each client has its own time, and is told no ID that it need not know.
func TestKeepAlivesGoToThoseWhoGotNothing(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		for range 300 {
			b.Publish(Event{Data: "early"}, "busy")
		}
		quiet, busy := s.get("/?topic=quiet", ""), s.get("/?topic=busy", "")
		quiet.want("")
		busy.want("")
		quiet.take() // the preamble
		busy.take()
		want := func(who string, c *pipeClient, comments int) {
			t.Helper()
			n := 0
			blocks, _ := c.take()
			for _, block := range blocks {
				if block.Comment {
					n++
				} else if !block.HasData {
					t.Errorf("%s client: got %q, want comments and events alone", who, block.Raw)
				}
			}
			if n != comments {
				t.Errorf("%s client: got %d comments, want %d", who, n, comments)
			}
		}
		for range 61 {
			time.Sleep(time.Second)
			b.Publish(Event{Data: "x"}, "busy")
		}
		synctest.Wait()
		want("quiet", quiet, 4)
		want("busy", busy, 0)
		time.Sleep(16 * time.Second)
		synctest.Wait()
		want("quiet", quiet, 1)
		want("busy", busy, 1)
	})
}

func TestNoKeepAlives(t *testing.T) {
	t.Parallel()
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: -1}
		s := serve(t, b)
		c := s.get("/", "")
		time.Sleep(24 * time.Hour)
		b.Publish(Event{Data: "1"})
		c.want("1")
		if blocks, _ := c.take(); len(blocks) != 2 {
			t.Errorf("got %+v, want the preamble and the event alone", blocks)
		}
	})
}

// A stream ends after about MaxAge, at random up to a tenth earlier, and the client is told
// when to come back.
func TestMaxAge(t *testing.T) {
	for _, off := range []bool{false, true} { // with neither keep-alives nor timeouts
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			const age = 10 * time.Minute
			b := &Broker{MaxAge: age, Retry: time.Second}
			slack := 5 * time.Second
			if off {
				b.KeepAlive, b.WriteTimeout, slack = -1, -1, age/8
			}
			s := serve(t, b)
			began := time.Now()
			var all []*pipeClient
			for range 100 {
				all = append(all, s.get("/", ""))
			}
			loop := followBroker(t, b, "")
			all[0].want("")
			var ages []time.Duration
			for len(ages) < len(all) && time.Since(began) < age+2*slack {
				time.Sleep(time.Second)
				for err := s.served(); err != errNotServed; err = s.served() {
					if err == nil || errors.Is(err, ErrClientLeft) || errors.Is(err, ErrTooSlow) {
						t.Errorf("got %v, want another reason", err)
					}
					ages = append(ages, time.Since(began))
				}
			}
			if len(ages) < len(all) {
				t.Fatalf("%d of %d streams have ended after %v", len(ages), len(all), time.Since(began))
			}
			if ages[0] < age*9/10 || ages[len(ages)-1] > age+slack {
				t.Errorf("streams ended after %v to %v, want %v to %v", ages[0], ages[len(ages)-1], age*9/10, age)
			}
			if n := len(slices.Compact(slices.Clone(ages))); n < 10 && !off {
				t.Errorf("streams ended at %d moments, want them spread", n)
			}
			var retries []time.Duration
			for _, c := range all {
				if c.ended() != io.EOF {
					t.Errorf("got %v, want the stream ended", c.ended())
				}
				retries = append(retries, c.lastRetry())
			}
			wantSpread(t, retries, time.Second)
			if loop.ended() != nil {
				t.Errorf("a loop over Subscribe: got %v, want it to go on", loop.ended())
			}
		})
	}
}

// A client comes back with its ID and misses nothing.
// WriteTimeout ends a write that is under way as the stream becomes too old.
func TestMaxAgeOfAClientThatDoesNotRead(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxAge: time.Minute}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		time.Sleep(50 * time.Second)
		c.stall(true)
		for range 10 {
			b.Publish(Event{Data: strings.Repeat("x", pieceBytes)})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := b.Stats().Clients; got != 0 {
			t.Errorf("clients after %v: got %d, want 0", 110*time.Second, got)
		}
	})
}

func TestMaxAgeLosesNothing(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxAge: time.Minute}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		var got, want []string
		id, connections := "", 1
		take := func() {
			for _, e := range c.events() {
				got = append(got, e.Data)
			}
			id = cmp.Or(c.lastID(), id)
		}
		for i := range 600 {
			want = append(want, strconv.Itoa(i))
			b.Publish(Event{Data: want[i]})
			time.Sleep(time.Second)
			if c.ended() != nil {
				take()
				connections++
				c = s.get("/", "Last-Event-ID: "+id+"\r\n")
			}
		}
		take()
		if !slices.Equal(got, want) {
			t.Errorf("got %d events, want %d, each once and in order", len(got), len(want))
		}
		if connections < 9 || connections > 13 {
			t.Errorf("got %d connections in 10 minutes, want about 10", connections)
		}
	})
}

func TestNoMaxAge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: time.Minute}
		c := serve(t, b).get("/", "")
		time.Sleep(7 * 24 * time.Hour)
		b.Publish(Event{Data: "1"})
		c.want("1")
	})
}

// It is not looked at within CatchUp.
func TestMaxAgeWithinCatchUp(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{MaxAge: time.Minute, WriteTimeout: -1}
		calls := controlCatchUp(b)
		s := serve(t, b)
		c := s.get("/", "Last-Event-ID: nobody\r\n")
		call := <-calls
		time.Sleep(2*time.Minute + time.Second) // not at a sweep, which may come right after CatchUp
		select {
		case call.events <- Event{ID: "1", Data: "1"}:
		case <-call.ctx.Done():
			t.Fatalf("CatchUp was canceled: %v", context.Cause(call.ctx))
		}
		close(call.events)
		c.want("1")
		time.Sleep(10 * time.Second)
		if c.ended() == nil {
			t.Error("the stream is open, want it ended after CatchUp")
		}
	})
}

// Whatever reason the server has to end a stream early, the client is told a random
// reconnection time, so that those who leave together do not return together.
func TestStreamsThatTheServerEndsAreSpread(t *testing.T) {
	t.Run("CatchUp fails", func(t *testing.T) {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{Retry: time.Second, Logger: slog.New(slog.DiscardHandler)}
			down := errors.New("the database is down")
			b.CatchUp = func(context.Context, Missed) iter.Seq2[Event, error] {
				return func(yield func(Event, error) bool) { yield(Event{}, down) }
			}
			s := serve(t, b)
			var times []time.Duration
			for range 20 {
				c := s.get("/", "Last-Event-ID: nobody\r\n")
				if err := s.served(); !errors.Is(err, down) || c.ended() == nil {
					t.Errorf("got %v, want the error of CatchUp", err)
				}
				times = append(times, c.lastRetry())
			}
			wantSpread(t, times, time.Second)
		})
	})
	// Without a cause that reads as if the client had left: net/http's own end does.
	for _, cause := range []error{context.Canceled, errors.New("revoked")} {
		t.Run(fmt.Sprint("the request's context ends: ", cause), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{Retry: time.Second}
				revoked := make(chan struct{})
				s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
					ctx, cancel := context.WithCancelCause(r.Context())
					go func() {
						select {
						case <-revoked:
							cancel(cause)
						case <-ctx.Done():
						}
					}()
					defer cancel(nil)
					return b.Serve(w, r.WithContext(ctx))
				})
				var all []*pipeClient
				for range 20 {
					all = append(all, s.get("/", ""))
				}
				all[0].want("")
				close(revoked)
				var times []time.Duration
				for _, c := range all {
					if c.ended() == nil {
						t.Fatal("the stream is open")
					}
					times = append(times, c.lastRetry())
					err := s.served()
					if !errors.Is(err, cause) {
						t.Errorf("got %v, want %v", err, cause)
					}
					if left := errors.Is(err, ErrClientLeft); left != (cause == context.Canceled) {
						t.Errorf("got %v: is it ErrClientLeft: got %v, want %v", err, left, !left)
					}
				}
				wantSpread(t, times, time.Second)
			})
		})
	}
}

// A keep-alive that falls together with events neither hides nor doubles one.
func TestKeepAlivesAmongEvents(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: time.Second}
		s := serve(t, b)
		c := s.get("/", "")
		synctest.Wait()
		var want []string
		for i := range 300 {
			time.Sleep([]time.Duration{time.Second, time.Second - 1, time.Second + 1}[i%3])
			for j := range 1 + i%4 {
				data := fmt.Sprint(i, "-", j)
				want = append(want, data)
				topic := ""
				if j == 3 {
					topic, want = "other", want[:len(want)-1]
				}
				b.Publish(Event{Data: data}, topic)
			}
		}
		c.want(strings.Join(want, " "))
	})
}

// An event that is published as the keep-alive falls due takes its place.
func TestDetachSendsNoKeepAliveWithAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		s := detachBroker(t, b)
		c := s.get("/", "")
		c.want("")
		c.take()
		b.mu.Lock()
		for _, m := range b.subs {
			m.sub.idle = true // as sweep does
		}
		b.mu.Unlock()
		b.Publish(Event{Data: "1"})
		c.want("1")
		if blocks, _ := c.take(); len(blocks) != 1 {
			t.Errorf("got %+v, want the event alone", blocks)
		}
	})
}

func TestKeepAlivesEndWithTheClient(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		for range 2 { // after the last client left another one comes
			c := s.get("/", "")
			c.want("")
			c.take()
			c.close()
			b.Publish(Event{Data: "1"}) // Detach notices only then
			if err := s.served(); !errors.Is(err, ErrClientLeft) {
				t.Errorf("got %v, want ErrClientLeft", err)
			}
			time.Sleep(16 * time.Second)
			synctest.Wait()
			if b.sweeper.Stop() {
				t.Error("the timer for keep-alives is left")
			}
		}
		c := s.get("/", "")
		c.want("")
		c.take()
		time.Sleep(16 * time.Second)
		if blocks, _ := c.take(); len(blocks) == 0 {
			t.Error("got no keep-alive")
		}
	})
}

// A client of a quiet topic is told a newer ID now and then, or the busy topics
// would push its own out of the history.
func TestKeepAliveRenewsTheIDOfAQuietClient(t *testing.T) {
	for _, test := range []struct {
		name   string
		broker *Broker
		busy   int // events of other topics between two keep-alives
	}{
		{"short history", &Broker{History: 10}, 4},
		{"long history", &Broker{History: 1000}, 150},
		{"age", &Broker{HistoryAge: 40 * time.Second}, 1},
		{"bytes", &Broker{HistoryBytes: 100}, 1},
	} {
		for _, came := range []string{"fresh", "resumed", "gap"} {
			t.Run(test.name+", "+came, func(t *testing.T) {
				serveAndDetach(t, func(t *testing.T, serve serveFunc) {
					b := &Broker{History: test.broker.History, HistoryAge: test.broker.HistoryAge, HistoryBytes: test.broker.HistoryBytes}
					s := serve(t, b)
					header, want := "", ""
					start := b.LastEventID()
					busy := func() {
						for range test.busy {
							b.Publish(Event{Data: "busy"}, "busy")
						}
					}
					switch came {
					case "resumed":
						header = "Last-Event-ID: " + start + "\r\n"
						for b.log.len() < test.broker.History*6/10 {
							busy()
						}
					case "gap":
						header, want = "Last-Event-ID: nobody\r\n", "gap:nobody"
						busy()
					}
					c := s.get("/?topic=quiet", header)
					c.want(want)
					id := start
					for range 30 {
						time.Sleep(7 * time.Second)
						busy()
						time.Sleep(8*time.Second + settleTime) // and a keep-alive was sent
						c.want("")
						id = cmp.Or(c.lastID(), id)
						follower := followBroker(t, b, id, "quiet")
						follower.want("")
						follower.close()
					}
					c.close()
					b.Publish(Event{Data: "1"}, "quiet")
					c = s.get("/?topic=quiet", "Last-Event-ID: "+id+"\r\n")
					c.want("1")
				})
			})
		}
	}
}

// The same is true of an ID that ages, though nothing is published any more.
func TestKeepAliveRenewsAnIDThatAges(t *testing.T) {
	for _, catchUp := range []bool{false, true} {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{HistoryAge: 40 * time.Second}
			want := "gap:nobody q"
			if catchUp {
				yieldAll(b, Event{ID: "q", Data: "q"})
				want = "q"
			}
			s := serve(t, b)
			b.Publish(Event{ID: "q", Data: "q"}, "quiet")
			b.Publish(Event{Data: "busy"}, "busy")
			c := s.get("/?topic=quiet", "Last-Event-ID: nobody\r\n")
			c.want(want)
			time.Sleep(45*time.Second + 4*settleTime) // and three keep-alives
			c.want("")
			followBroker(t, b, c.lastID(), "quiet").want("")
		})
	}
}

// An event that waits for the client comes before the ID that a keep-alive renews,
// also if those who wait for the event have not been woken yet.
func TestKeepAliveDoesNotOvertakeAnEvent(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		c.take()
		time.Sleep(14 * time.Second)
		b.mu.Lock()
		b.announcing = true // as if another goroutine were about to announce
		b.mu.Unlock()
		for range 9000 {
			b.Publish(Event{Data: "x"}, "busy")
		}
		b.Publish(Event{Data: "1"})
		for range 900 {
			b.Publish(Event{Data: "x"}, "busy")
		}
		time.Sleep(2 * time.Second) // for its keep-alive
		c.want("1")
		go announce(b)
		b.Publish(Event{Data: "2"})
		c.want("2")
	})
}

// The ID that a keep-alive renewed is the one that a gap names.
func TestGapNamesTheIDThatAKeepAliveRenewed(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 10, WriteTimeout: -1}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		for range 20 {
			b.Publish(Event{Data: "x"}, "busy")
		}
		id := b.LastEventID()
		time.Sleep(16 * time.Second)
		if c.want(""); c.lastID() != id {
			t.Fatalf("keep-alive: got ID %q, want %q", c.lastID(), id)
		}
		c.stall(true)
		time.Sleep(15 * time.Second) // the keep-alive that blocks
		b.Publish(Event{Data: "1"})
		for range 300 {
			b.Publish(Event{Data: "x"}, "busy")
		}
		c.stall(false)
		c.want("gap:" + id)
	})
}

// Clients that have left, or do not read.

// A client that closes its side of the connection has left, even if what is sent
// to it gets through.
func TestClientThatClosesItsSideHasLeft(t *testing.T) {
	b := &Broker{KeepAlive: time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
	reasons := make(chan error)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/detach" {
			b.Detach(w, r, func(err error) { reasons <- err })
		} else {
			reasons <- b.Serve(w, r)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	for _, test := range []struct {
		srv  *httptest.Server
		path string
	}{{plain, "/"}, {plain, "/detach"}, {secure, "/"}, {secure, "/detach"}} {
		conn, err := net.Dial("tcp", test.srv.Listener.Addr().String())
		if test.srv == secure && err == nil {
			config := secure.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			config.ServerName = "example.com"
			conn = tls.Client(conn, config)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", test.path)
		lines := bufio.NewScanner(conn)
		comments := 0
		for comments < 5 && lines.Scan() {
			if lines.Text() == ":" {
				comments++
			}
		}
		if comments < 5 {
			t.Errorf("%s%s: got %d keep-alives before the end, %v, want any number", test.srv.URL, test.path, comments, lines.Err())
		}
		go io.Copy(io.Discard, conn)
		conn.(interface{ CloseWrite() error }).CloseWrite()
		select {
		case err := <-reasons:
			if !errors.Is(err, ErrClientLeft) {
				t.Errorf("%s%s: got %v, want ErrClientLeft", test.srv.URL, test.path, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s%s: the client was not noticed to have left", test.srv.URL, test.path)
			conn.Close()
			<-reasons
		}
		eventually(t, "the client has left", func() bool { return b.Stats().Clients == 0 })
	}
}

func TestDetachedClientThatHasLeftIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{KeepAlive: time.Hour}
		s := detachBroker(t, b)
		var subs []weak.Pointer[subscriber]
		for i := range 5 {
			c := s.get("/", "")
			c.want("")
			for _, m := range b.subs {
				subs = append(subs, weak.Make(m.sub))
			}
			if i%2 == 0 {
				b.Publish(Event{Data: "1"})
				c.want("1")
			}
			c.close()
			b.Publish(Event{Data: "2"}) // Detach notices only then
			if err := s.served(); !errors.Is(err, ErrClientLeft) {
				t.Fatalf("served: got %v, want ErrClientLeft", err)
			}
		}
		runtime.GC()
		for _, sub := range subs {
			if sub.Value() != nil {
				t.Error("a client is in memory that has left")
			}
		}
		if len(subs) != 5 {
			t.Errorf("got %d clients, want 5", len(subs))
		}
	})
}

func TestDeadPeerIsNoticed(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c, other := s.get("/", ""), s.get("/", "")
		synctest.Wait()
		c.stall(true)
		time.Sleep(24 * time.Second) // it did not answer the keep-alive at 15
		if got := b.Stats().Clients; got != 2 {
			t.Errorf("clients after 24 s: got %d, want 2", got)
		}
		time.Sleep(3*time.Second + settleTime)
		synctest.Wait()
		if got := b.Stats().Clients; got != 1 {
			t.Errorf("clients after 27 s: got %d, want 1", got)
		}
		if err := s.served(); !errors.Is(err, ErrTooSlow) {
			t.Errorf("Serve: got %v, want ErrTooSlow", err)
		}
		other.close()
		time.Sleep(16 * time.Second) // for a keep-alive: Detach notices only then
		if err := s.served(); !errors.Is(err, ErrClientLeft) || errors.Is(err, ErrTooSlow) {
			t.Errorf("Serve: got %v, want ErrClientLeft", err)
		}
	})
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	for _, test := range []struct {
		timeout, want time.Duration
	}{{0, 10 * time.Second}, {time.Second, time.Second}, {time.Minute, time.Minute}} {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{WriteTimeout: test.timeout, KeepAlive: -1}
			s := serve(t, b)
			c, other := s.get("/", ""), s.get("/", "")
			time.Sleep(time.Hour)
			c.stall(true)
			synctest.Wait()
			start := time.Now()
			b.Publish(Event{Data: "1"})
			b.Publish(Event{Data: "2"})
			other.want("1 2")
			for b.Stats().Clients == 2 && time.Since(start) < 2*test.want {
				time.Sleep(test.want / 100)
			}
			if took := time.Since(start); took < test.want || took > test.want*9/8+test.want/50 {
				t.Errorf("WriteTimeout %v: cut off after %v, want %v and up to an eighth more", test.timeout, took, test.want)
			}
			synctest.Wait()
			if err := s.served(); !errors.Is(err, ErrTooSlow) {
				t.Errorf("Serve: got %v, want ErrTooSlow", err)
			}
			b.Publish(Event{Data: "3"})
			other.want("3")
			c.stall(false)
			synctest.Wait()
			if c.ended() == nil {
				t.Error("its connection is open")
			}
			// It comes back and has missed nothing.
			c = s.get("/", "Last-Event-ID: "+c.lastID()+"\r\n")
			c.want("1 2 3")
		})
	}
}

// TLS would try for five seconds to say goodbye to a client that does not read. With
// Detach it is not asked to; with Serve, the next sweep ends that.
func TestClientOverTLSIsCutOffAtOnce(t *testing.T) {
	const sweep = 15 * time.Second / 8
	for _, detached := range []bool{true, false} {
		for _, want := range []error{ErrTooSlow, ErrClosed, errHoldsTooMuch} {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{WriteTimeout: 20 * time.Second, HistoryBytes: 1}
				reasons := make(chan error, 1)
				srv := newWireServer(t, "HTTP/1.1 with TLS", func(w http.ResponseWriter, r *http.Request) {
					switch {
					case r.Method == "POST":
						b.Serve(w, r, "other")
					case detached:
						b.Detach(w, r, func(err error) { reasons <- err })
					default:
						reasons <- b.Serve(w, r)
					}
				})
				openStalledWireStream(t, srv)
				if want == errHoldsTooMuch {
					wireRequest(t, srv, "POST", nil)
				}
				synctest.Wait()
				began, at, most := time.Now(), 20*time.Second, 2*sweep
				b.Publish(Event{Data: strings.Repeat("x", 1<<20)})
				switch want {
				case ErrClosed:
					at = time.Second
					ctx, cancel := context.WithTimeout(t.Context(), at)
					defer cancel()
					b.Shutdown(ctx)
				case errHoldsTooMuch:
					at = 0
					time.Sleep(settleTime) // on one processor there is one worker
					b.Publish(Event{Data: strings.Repeat("x", 1<<20)}, "other")
					time.Sleep(settleTime)
					synctest.Wait()
					began = time.Now()
					b.Publish(Event{Data: "evicts that"}, "other")
				}
				switch {
				case detached && want != ErrTooSlow:
					most = 0
				case !detached && want == ErrTooSlow:
					most += sweep
				}
				if err := <-reasons; !errors.Is(err, want) || time.Since(began) < at || time.Since(began) > at+most {
					t.Errorf("detached: %v: got %v after %v, want %v after %v and up to %v more", detached, err, time.Since(began), want, at, most)
				}
			})
		}
	}
}

func TestWithoutWriteTimeoutNobodyIsCutOff(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{WriteTimeout: -1}
		s := serve(t, b)
		c := s.get("/", "")
		synctest.Wait()
		c.stall(true)
		b.Publish(Event{Data: "1"})
		time.Sleep(time.Hour)
		b.Publish(Event{Data: "2"})
		c.stall(false)
		c.want("1 2")
	})
}

func TestClientThatResumesReadingInTimeGetsEverything(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c := s.get("/", "")
		synctest.Wait()
		var want []string
		for round := range 5 {
			c.stall(true)
			for i := range 150 {
				data := fmt.Sprint(round, ".", i)
				want = append(want, data)
				b.Publish(Event{Data: data})
			}
			time.Sleep(9 * time.Second)
			c.stall(false)
			synctest.Wait()
		}
		c.want(strings.Join(want, " "))
		if got := b.Stats(); got.Gaps != 0 || got.Delivered != int64(len(want)) {
			t.Errorf("Stats: got %+v, want %d delivered, no gaps", got, len(want))
		}
	})
}

// What has left the history is kept for clients that are being written to, but no more
// of it than HistoryBytes once more: beyond that those who began first are cut off.
func TestSlowClientsHoldABoundedPartOfWhatLeftTheHistory(t *testing.T) {
	const clients, size, bytes = 40, 512 << 10, 1 << 20
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{HistoryBytes: bytes, Logger: slog.New(slog.DiscardHandler)}
		s := serve(t, b)
		before := heapInUse()
		var all []*pipeClient
		for i := range clients {
			c := s.get("/", "")
			all = append(all, c)
			c.want("")
			c.stall(true)
			b.Publish(Event{Type: fmt.Sprint(i), Data: strings.Repeat("x", size)})
			synctest.Wait() // it is in its own event
		}
		// Beside the history and as much again, each may have a piece in hand.
		limit := int64(2*bytes + size + clients*(128<<10))
		held := heapInUse() - before
		t.Logf("%d stalled clients hold %d KiB, HistoryBytes is %d KiB", clients, held>>10, bytes>>10)
		if held > limit {
			t.Errorf("%d stalled clients hold %d KiB, want %d at most", clients, held>>10, limit>>10)
		}
		if err := s.served(); !errors.Is(err, ErrTooSlow) {
			t.Errorf("the first: got %v, want ErrTooSlow", err)
		}
		last := all[clients-1]
		last.stall(false)
		if got := last.events(); len(got) == 0 || len(got[0].Data) != size || got[0].Type != fmt.Sprint(clients-1) {
			t.Errorf("the last one did not get its event")
		}
		if last.ended() != nil {
			t.Errorf("the last one: got %v, want it to stay", last.ended())
		}
		var stay []int
		for i, c := range all {
			if c.stall(false); c.ended() == nil {
				stay = append(stay, i)
			}
		}
		if len(stay) > 8 || len(stay) > 0 && stay[0] < clients-len(stay) {
			t.Errorf("of %d clients these were not cut off: got %v, want the last few", clients, stay)
		}
	})
}

// A client gets the event that it is being sent to the end, even if that has left the
// history long since.
func TestEvictedEventsArriveWhole(t *testing.T) {
	// One that is small is no reason to cut off anybody.
	t.Run("small", func(t *testing.T) {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{HistoryBytes: 4 << 10}
			s := serve(t, b)
			var all []*pipeClient
			for i := range 60 {
				c := s.get("/", "")
				all = append(all, c)
				c.want("")
				c.stall(true)
				b.Publish(Event{Type: fmt.Sprint(i), Data: strings.Repeat("x", 1<<10)})
				synctest.Wait()
			}
			for i, c := range all {
				c.stall(false)
				if got := c.events(); len(got) == 0 || len(got[0].Data) != 1<<10 || got[0].Type != fmt.Sprint(i) {
					t.Errorf("client %d did not get the event that it was being sent", i)
				}
				if c.ended() != nil {
					t.Errorf("client %d: got %v, want it to stay", i, c.ended())
				}
			}
		})
	})
	// A slow client has its time for a large one, while others come and go.
	t.Run("large", func(t *testing.T) {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			const size = 512 << 10
			b := &Broker{HistoryBytes: 1 << 20}
			s := serve(t, b)
			c := s.get("/", "")
			c.want("")
			c.stall(true)
			b.Publish(Event{Data: strings.Repeat("x", size)})
			for range 8 {
				time.Sleep(4 * time.Second)
				c.read(60_000)
				for range 4 { // which the history does not hold all
					b.Publish(Event{Type: "later", Data: strings.Repeat("y", size)})
				}
			}
			c.stall(false)
			if got := c.events(); len(got) == 0 || len(got[0].Data) != size || got[0].Type != "" {
				t.Error("the client did not get the event that it was being sent")
			}
			if c.ended() != nil {
				t.Errorf("got %v, want the client to stay", c.ended())
			}
		})
	})
}

// A detached client that does not read costs little more than one that is idle.
func TestStalledDetachedClientGivesItsBufferBack(t *testing.T) {
	skipShort(t)
	if runtime.GOOS == "windows" {
		t.Skip("there a goroutine waits in each write")
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) { stalledClientsGiveTheirBuffersBack(t, network) })
	}
}

func stalledClientsGiveTheirBuffersBack(t *testing.T, network string) {
	const clients, most = 100, 16 << 10
	b := &Broker{WriteTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler)}
	defer func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.Shutdown(ctx)
	}()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.Detach(w, r, nil)
	}))
	srv.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			c.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(4 << 10)
		}
	}
	if network == "unix" {
		srv.Listener.Close()
		// Not t.TempDir, whose names may be too long for one.
		dir, err := os.MkdirTemp("", "sse")
		wireCheck(t, err)
		defer os.RemoveAll(dir)
		srv.Listener, err = net.Listen("unix", filepath.Join(dir, "socket"))
		wireCheck(t, err)
	}
	srv.Start()
	defer srv.Close()
	inUse := func() int64 {
		heap := heapInUse()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return heap + int64(m.StackInuse)
	}
	for range clients {
		conn, err := net.Dial(network, srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.(interface{ SetReadBuffer(int) error }).SetReadBuffer(4 << 10)
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		if _, err := io.ReadFull(conn, make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	b.Publish(Event{Data: "x"})
	eventually(t, "all are idle", func() bool { return b.Stats().Delivered == clients })
	time.Sleep(50 * time.Millisecond) // net/http's goroutines end
	events := make([]Event, 100)
	for i := range events {
		events[i] = Event{ID: fmt.Sprint(i), Data: strings.Repeat("x", 20<<10)}
	}
	before := inUse()
	for _, e := range events {
		b.Publish(e)
	}
	var held int64
	eventually(t, "memory is given back", func() bool {
		time.Sleep(20 * time.Millisecond)
		held = (inUse() - before - int64(len(events))*(20<<10)) / clients
		return held < most
	})
	t.Logf("a stalled client costs %d bytes more than an idle one", held)
	if got := b.Stats().Clients; got != clients {
		t.Errorf("got %d clients, want %d", got, clients)
	}
}

// What a client has taken already of a batch is left out of what it is given.
func TestFramesAreReadInPieces(t *testing.T) {
	frames := []*frame{
		{id: "1", body: "data: x\n\n"},
		{id: "2", body: "data: " + strings.Repeat("0123456789", 2*pieceBytes/10) + "\n\n"},
		{id: "3", body: "data: y\n\n"},
		{mark: true, body: keepAliveFrame},
	}
	all := appendFrames(nil, frames)
	for _, skip := range []int{0, 1, 17, pieceBytes - 1, pieceBytes, pieceBytes + 1, 2*pieceBytes + 9, len(all) - 1, len(all)} {
		for _, most := range []int{1000, pieceBytes} { // that are written at once
			var got []byte
			r := frameReader{frames: frames, skip: skip}
			for p := r.piece(nil); len(p) > 0; p = r.piece(p) {
				if left := len(all) - skip - len(got); len(p) != min(left, pieceBytes) {
					t.Fatalf("without the first %d bytes: got a piece of %d, want one of %d", skip, len(p), min(left, pieceBytes))
				}
				n := min(len(p), most)
				got = append(got, p[:n]...)
				r.take(n)
			}
			if !bytes.Equal(got, all[skip:]) || skip < len(all) && len(r.frames) != 0 {
				t.Errorf("without the first %d bytes: got %d others, %d frames left, want %d", skip, len(got), len(r.frames), len(all)-skip)
			}
		}
	}
}

// Slow over a large event is not dead: the time runs anew for each piece.
func TestLargeEventOverASlowConnection(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c := s.get("/", "")
		synctest.Wait()
		large := strings.Repeat("x", 1<<20)
		c.stall(true)
		b.Publish(Event{Data: large})
		b.Publish(Event{Data: "1"})
		for range 40 {
			time.Sleep(4 * time.Second)
			c.read(60_000)
		}
		c.stall(false)
		c.want(large + " 1")
	})
}

// net/http reads what is left of a request's body before it writes the headers,
// and once more when the handler has returned.
func TestClientThatDoesNotSendItsBodyHoldsNothing(t *testing.T) {
	const (
		announced = "Content-Length: 5\r\n"
		patience  = defaultWriteTimeout / 2
		linger    = 500 * time.Millisecond // of net/http before it closes a connection
	)
	bubble := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	for name, b := range map[string]*Broker{"Serve": {}, "turned away": {MaxClients: 1}} {
		bubble(name, func(t *testing.T) {
			b.Logger = slog.New(slog.DiscardHandler)
			s := serveBroker(t, b)
			if b.MaxClients > 0 {
				s.get("/", "")
				synctest.Wait()
			}
			c := s.get("/", announced)
			time.Sleep(patience - 1)
			for _, want := range []int{0, http.StatusOK} {
				synctest.Wait()
				c.mu.Lock()
				if c.status != want {
					t.Errorf("status: got %d, want %d", c.status, want)
				}
				c.mu.Unlock()
				time.Sleep(time.Nanosecond)
			}
			b.Shutdown(t.Context())
		})
	}
	bubble("NewWriter", func(t *testing.T) {
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			_, err := NewWriter(w, r)
			return err
		})
		s.get("/", announced)
		time.Sleep(patience)
		if err := s.served(); err != nil {
			t.Errorf("NewWriter: got %v", err)
		}
	})
	// Nothing is read without a bound after the stream, whatever WriteTimeout is.
	for name, handle := range map[string]func(http.ResponseWriter, *http.Request) error{
		"NewWriter": func(w http.ResponseWriter, r *http.Request) error {
			_, err := NewWriter(w, r)
			time.Sleep(time.Hour)
			return err
		},
		"NewWriter behind middleware": func(w http.ResponseWriter, r *http.Request) error {
			r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
			_, err := NewWriter(wireMiddleware{w}, r)
			time.Sleep(time.Hour)
			return err
		},
		"NewWriter without WriteTimeout": func(w http.ResponseWriter, r *http.Request) error {
			out, err := NewWriter(w, r)
			out.WriteTimeout = -1
			time.Sleep(time.Hour)
			return err
		},
		"NewWriter over full duplex": func(w http.ResponseWriter, r *http.Request) error {
			http.NewResponseController(w).EnableFullDuplex()
			_, err := NewWriter(w, r)
			time.Sleep(time.Hour)
			return err
		},
		"Serve": func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, func(func(Event, error) bool) { time.Sleep(time.Hour) })
		},
		"Serve, error": func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, func(yield func(Event, error) bool) {
				time.Sleep(time.Hour)
				yield(Event{}, io.ErrUnexpectedEOF)
			})
		},
		"Serve, panic": func(w http.ResponseWriter, r *http.Request) error {
			return Serve(w, r, func(func(Event, error) bool) {
				time.Sleep(time.Hour)
				panic(http.ErrAbortHandler)
			})
		},
		"Broker.Serve without WriteTimeout": func(w http.ResponseWriter, r *http.Request) error {
			b := &Broker{WriteTimeout: -1}
			time.AfterFunc(time.Hour, func() { b.Shutdown(context.Background()) })
			return b.Serve(w, r)
		},
	} {
		large := strings.Repeat("x", 300<<10) // more than net/http reads before it answers
		for _, body := range []string{
			"Content-Length: 10\r\n\r\n",
			"Content-Length: 10\r\n\r\nabc",
			"Content-Length: 400000\r\n\r\n" + large,
			"Transfer-Encoding: chunked\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\na\r\nabc",
			"Transfer-Encoding: chunked\r\n\r\n5b000\r\n" + large,
		} {
			bubble(fmt.Sprintf("after %s, %.40q", name, body), func(t *testing.T) {
				srv := &http.Server{ReadTimeout: time.Second, ReadHeaderTimeout: time.Second, WriteTimeout: time.Second, IdleTimeout: time.Second}
				s := servePipe(t, srv, handle)
				conn, err := s.dial()
				wireCheck(t, err)
				defer conn.Close()
				start := time.Now()
				go fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\n%s", body)
				io.Copy(io.Discard, conn)
				if got := time.Since(start); len(body) > len(large) && got < time.Hour || got > time.Hour+2*patience+linger {
					t.Errorf("the connection was closed after %v, want an hour and a bit", got)
				}
			})
		}
	}
	// Nor if the client is cut off while the headers leave, after which the server's
	// deadline for the body is lifted.
	bubble("cut off with the first flush", func(t *testing.T) {
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			b := &Broker{}
			return b.Serve(flushHook{wireMiddleware{w}, func() {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				b.Shutdown(ctx)
			}}, r)
		})
		conn, err := s.dial()
		wireCheck(t, err)
		defer conn.Close()
		start := time.Now()
		go fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n")
		io.Copy(io.Discard, conn)
		if got := time.Since(start); got > patience+linger {
			t.Errorf("the connection was closed after %v, want it at once", got)
		}
	})
	// One that was read is none to bound, and the connection serves the next stream.
	bubble("the next on the connection", func(t *testing.T) {
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			if r.URL.Path == "/read" {
				io.Copy(io.Discard, r.Body)
			}
			out, err := NewWriter(w, r)
			if err == nil {
				time.Sleep(time.Minute)
				err = out.Send(Event{Data: "a"})
			}
			return err
		})
		conn, err := s.dial()
		wireCheck(t, err)
		defer conn.Close()
		replies := bufio.NewReader(conn)
		for i, path := range []string{"/read", "/", "/read", "/"} {
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nwhy?", path)
			resp, err := http.ReadResponse(replies, nil)
			if err != nil {
				t.Fatalf("round %d: got %v", i, err)
			}
			text, err := io.ReadAll(resp.Body)
			if string(text) != ":\ndata: a\n\n" || err != nil || s.served() != nil || resp.Close {
				t.Errorf("round %d: got %q, %v, Connection: close: %v", i, text, err, resp.Close)
			}
			time.Sleep(time.Minute)
		}
		fmt.Fprint(conn, "POST /read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhy?\r\n0\r\n\r\n")
		resp, err := http.ReadResponse(replies, nil)
		if err != nil || !resp.Close {
			t.Fatalf("a body in chunks: got %v, want an answer after which the connection is closed", err)
		}
		io.Copy(io.Discard, resp.Body)
	})
	bubble("unless it was read", func(t *testing.T) { // and net/http watches for the client's leaving
		b := &Broker{}
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			io.Copy(io.Discard, r.Body)
			return b.Serve(w, r)
		})
		c := s.get("/", "Content-Length: 7\r\n\r\n12345") // and a line end
		time.Sleep(time.Hour)
		if err := s.served(); err != errNotServed {
			t.Errorf("Serve: got %v", err)
		}
		c.close()
		if err := s.served(); !errors.Is(err, ErrClientLeft) {
			t.Errorf("Serve: got %v, want ErrClientLeft", err)
		}
	})
	bubble("Shutdown", func(t *testing.T) {
		b := &Broker{}
		s := serveBroker(t, b)
		s.get("/", announced)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: got %v", err)
		}
		if err := s.served(); !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: got %v, want ErrClosed", err)
		}
	})
	closes := func(t *testing.T, conn net.Conn, after time.Duration) {
		t.Helper()
		start := time.Now()
		io.Copy(io.Discard, conn)
		if got := time.Since(start); got != after && got != after+linger {
			t.Errorf("the connection was closed after %v, want %v", got, after)
		}
	}
	bubble("HEAD", func(t *testing.T) { // the server's own deadline holds
		s := servePipe(t, &http.Server{ReadTimeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) error {
			return (&Broker{}).Serve(w, r)
		})
		conn, err := s.dial()
		wireCheck(t, err)
		defer conn.Close()
		fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: test\r\n%s\r\n", announced)
		closes(t, conn, time.Minute)
	})
	bubble("at the end", func(t *testing.T) {
		b := &Broker{}
		s := serveBroker(t, b)
		conn, err := s.dial()
		wireCheck(t, err)
		defer conn.Close()
		const chunk = 300 << 10 // more than net/http reads before it answers
		go fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", chunk, strings.Repeat("x", chunk))
		go func() {
			time.Sleep(time.Hour)
			b.Shutdown(t.Context())
		}()
		closes(t, conn, time.Hour+patience)
	})
}

// A client that is there, but does not read for longer than WriteTimeout, stays
// as long as no write has to wait for it: its system answers, though only that
// there is no room.
func TestClientThatPausesStays(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	var together sync.WaitGroup // of what waits, and needs no processor
	for name, serve := range map[string]func(*Broker, http.ResponseWriter, *http.Request, func(error)){
		"Serve":  func(b *Broker, w http.ResponseWriter, r *http.Request, done func(error)) { done(b.Serve(w, r)) },
		"Detach": func(b *Broker, w http.ResponseWriter, r *http.Request, done func(error)) { b.Detach(w, r, done) },
	} {
		together.Go(func() {
			t.Run(name, func(t *testing.T) {
				b := &Broker{WriteTimeout: 250 * time.Millisecond, KeepAlive: 50 * time.Millisecond}
				done := make(chan error, 1)
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					serve(b, w, r, func(err error) { done <- err })
				}))
				srv.Config.ConnState = func(c net.Conn, s http.ConnState) {
					if s == http.StateNew {
						c.(*net.TCPConn).SetWriteBuffer(200_000)
					}
				}
				srv.Start()
				defer srv.Close()
				defer b.Shutdown(t.Context())
				conn, err := net.Dial("tcp", srv.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.(*net.TCPConn).SetReadBuffer(4 << 10)
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				// The server's buffer holds this, the client's does not.
				big := strings.Repeat("x", 64<<10)
				b.Publish(Event{Data: big})
				select { // on the clock of the system, by which it breaks off connections
				case err := <-done:
					t.Fatalf("cut off: %v", err)
				case <-time.After(1500 * time.Millisecond):
				}
				b.Publish(Event{Data: "after"})
				stream := NewDecoder(resp.Body)
				for _, want := range []string{big, "after"} {
					if e, err := stream.Decode(); e.Data != want || err != nil {
						t.Fatalf("got %.20q, %d bytes, error %v, want %.20q, %d bytes", e.Data, len(e.Data), err, want, len(want))
					}
				}
			})
		})
	}
	together.Wait()
}

// What fits in the socket's buffer misses no deadline, though nobody is at the
// other end any more.
func TestDetachedDeadPeerIsNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	if runtime.GOOS != "linux" {
		t.Skip("other systems do not tell")
	}
	t.Parallel()
	var together sync.WaitGroup // of what waits, and needs no processor
	for _, tt := range []struct {
		name             string
		keepAlive, every time.Duration
		tls              bool
	}{
		{"keep-alives alone", 1200 * time.Millisecond, 0, false},
		{"one event", time.Hour, time.Hour, false},
		{"small events", time.Hour, 20 * time.Millisecond, false},
		{"TLS", time.Hour, 20 * time.Millisecond, true},
	} {
		together.Go(func() {
			t.Run(tt.name, func(t *testing.T) {
				b := &Broker{WriteTimeout: time.Second, KeepAlive: tt.keepAlive}
				type end struct {
					path string
					err  error
				}
				ended := make(chan end, 2)
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					b.Detach(w, r, func(err error) { ended <- end{r.URL.Path, err} }, r.URL.Path)
				}))
				start := srv.Start
				if tt.tls {
					start = srv.StartTLS
				}
				start()
				defer srv.Close()
				defer b.Shutdown(t.Context())
				var conns [2]*net.TCPConn
				for i, path := range []string{"/alive", "/dead"} {
					conn, err := net.Dial("tcp", srv.Listener.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					conns[i] = conn.(*net.TCPConn)
					if tt.tls {
						conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
					}
					fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
					conn.Read(make([]byte, 1))
				}
				go io.Copy(io.Discard, conns[0])
				// A peer that drops all packets with a smaller TTL is as good as dead: here
				// they have 64.
				const ipMinTTL = 21
				raw, err := conns[1].SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				raw.Control(func(fd uintptr) { err = setIPOption(syscall.SetsockoptInt, fd, ipMinTTL, 255) })
				if err != nil {
					t.Fatal(err)
				}
				// The other one is to get nothing more, and this one to be the next to check.
				eventually(t, "both have been checked", func() bool {
					b.mu.Lock()
					defer b.unlock()
					return len(b.subs) < 2 || // a keep-alive was sooner
						b.subs[0].sub.waiting && b.subs[1].sub.waiting &&
							b.round.Load() >= max(b.subs[0].sub.got, b.subs[1].sub.got)+8
				})
				var events <-chan time.Time
				if tt.every > 0 {
					b.Publish(Event{Data: "small"}, "/dead")
					ticker := time.NewTicker(tt.every)
					defer ticker.Stop()
					events = ticker.C
				}
				late := time.After(time.Minute) // and TCP takes 15 minutes
				for {
					select {
					case <-events:
						b.Publish(Event{Data: "small"}, "/dead")
						continue
					case got := <-ended:
						if got.path != "/dead" || !errors.Is(got.err, ErrClientLeft) || !errors.Is(got.err, syscall.ETIMEDOUT) {
							t.Errorf("%s ended with %v, want /dead, ErrClientLeft and ETIMEDOUT", got.path, got.err)
						}
					case <-late:
						t.Error("not noticed")
					}
					return
				}
			})
		})
	}
	together.Wait()
}

// setUnanswered replaces what the system tells b of all peers, before any comes.
func setUnanswered(b *Broker, told func() byte) {
	b.LastEventID() // a Broker is prepared by its first use
	b.conns.unanswered = func(net.Conn) byte { return told() }
}

// What bounds a write does not bound CatchUp, which may take its time behind one.
func TestCatchUpMayTakeLongerThanWriteTimeout(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		calls := controlCatchUp(b)
		c := serve(t, b).get("/", "")
		call := <-calls
		var want []string
		for i := range batchFrames + 1 {
			want = append(want, strconv.Itoa(i))
			call.events <- Event{Data: want[i]}
		}
		c.want(strings.Join(want[:batchFrames], " "))
		time.Sleep(time.Minute)
		close(call.events)
		c.want(want[batchFrames])
		if c.ended() != nil {
			t.Errorf("got %v, want the stream to go on", c.ended())
		}
	})
}

// Newcomers do not put off the keep-alives of others.
func TestKeepAlivesAmongNewcomers(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: 8 * time.Second}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		c.take()
		for range 40 {
			time.Sleep(500 * time.Millisecond)
			s.get("/", "")
		}
		c.want("")
		if blocks, _ := c.take(); len(blocks) != 2 || !blocks[0].Comment {
			t.Errorf("in 20 s: got %+v, want 2 keep-alives", blocks)
		}
	})
}

// A client that took long over an event is sent keep-alives after that as ever.
func TestKeepAliveAfterASlowWrite(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: time.Second}
		c := serve(t, b).get("/", "")
		c.want("")
		c.stall(true)
		b.Publish(Event{Data: "1"})
		time.Sleep(5 * time.Second)
		c.stall(false)
		c.want("1")
		c.take()
		time.Sleep(time.Second)
		c.want("")
		if blocks, _ := c.take(); len(blocks) != 1 || !blocks[0].Comment {
			t.Errorf("a second later: got %+v, want a keep-alive", blocks)
		}
	})
}

// WriteTimeout is exceeded by up to a quarter of the shorter of it and KeepAlive, and
// never cut short, whenever between two sweeps the write began.
func TestWriteTimeoutIsNotCutShort(t *testing.T) {
	const timeout, keepAlive, tick = 1099 * time.Millisecond, time.Second, time.Millisecond
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		for after := time.Duration(0); after < keepAlive/8; after += 10 * time.Millisecond {
			b := &Broker{WriteTimeout: timeout, KeepAlive: keepAlive}
			c := serve(t, b).get("/", "")
			c.want("")
			time.Sleep(after)
			c.stall(true)
			began := time.Now()
			b.Publish(Event{Data: "1"})
			for b.Stats().Clients == 1 && time.Since(began) < 2*timeout {
				time.Sleep(tick)
				synctest.Wait()
			}
			if got := time.Since(began); got < timeout || got > timeout+keepAlive/4+tick {
				t.Errorf("a write that begins %v after: cut off after %v, want %v and up to %v more", after, got, timeout, keepAlive/4)
			}
		}
	})
}

// The last of a stream may not fit into the buffers of the client's system. It is told
// all the same, and once.
func TestLastBatchThatDoesNotFitIsToldOnce(t *testing.T) {
	b := &Broker{}
	c := detachTCP(t, b)
	// No worker begins before both the event and Shutdown are there.
	q := b.conns
	q.mu.Lock()
	q.most = 0
	q.mu.Unlock()
	large := strings.Repeat("some data ", 400<<10)
	event := Event{ID: "1", Data: large}
	b.Publish(event)
	go b.Shutdown(context.Background())
	eventually(t, "Shutdown has begun", func() bool {
		_, err := b.Publish(event) // refused in any case
		return errors.Is(err, ErrClosed)
	})
	q.mu.Lock()
	go q.newWorkerLocked().run()
	q.mu.Unlock()
	eventually(t, "the client is being written to", isStuckInAWrite)
	got, err := io.ReadAll(c)
	wireCheck(t, err)
	if !strings.Contains(string(got), "data: "+large+"\n\n") {
		t.Errorf("got %d bytes without the event as it was published", len(got))
	}
	if n := strings.Count(string(got), ": shutting down\n"); n != 1 {
		t.Errorf("got the goodbye %d times, want once", n)
	}
	if err := <-c.ended; !errors.Is(err, ErrClosed) {
		t.Errorf("done: got %v, want ErrClosed", err)
	}
}

// Ends of topics that have ended already take no room in the history.
func TestEndOfATopicThatHasEndedIsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{History: 1}
		start := b.LastEventID()
		publishNumbers(b, 1)
		for range 2 * minQueue {
			if err := b.End("a"); err != nil {
				t.Fatal(err)
			}
		}
		followBroker(t, b, start).want("0")
	})
}

// The end of one of a client's topics is nothing that the client is sent.
func TestEndOfOneTopicSendsNothing(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: -1}
		c := serve(t, b).get("/?topic=a&topic=b", "")
		c.want("")
		c.take()
		b.End("a")
		c.want("")
		if blocks, err := c.take(); len(blocks) > 0 || len(c.rest) > 0 || err != nil {
			t.Errorf("got %+v, then %q, error %v, want nothing", blocks, c.rest, err)
		}
	})
}

// The name of a topic that has ended is that of a new one for those who came after the
// end too, as soon as the end has left the history and those from before have left.
func TestNameOfAnEndedTopicBecomesFreeForThoseWhoCameAfterTheEnd(t *testing.T) {
	for _, test := range []struct {
		name   string
		before bool // somebody was there before the end
	}{{"nobody was there before", false}, {"one was there before", true}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{History: 1}
				fill := func() {
					for range 1000 {
						b.Publish(Event{Data: "x"}, "other")
					}
					synctest.Wait()
				}
				var early *brokerLoop
				if test.before {
					early = followBroker(t, b, "", "job", "open")
				}
				b.End("job")
				late := followBroker(t, b, "", "job", "open")
				leave := func() {
					if early != nil {
						early.close()
						synctest.Wait()
						early = nil
					}
				}
				refused := func(when string) {
					t.Helper()
					if _, err := b.Publish(Event{Data: "no"}, "job"); !errors.Is(err, ErrEnded) {
						t.Errorf("%s: got %v, want ErrEnded", when, err)
					}
				}
				refused("at once")
				if test.before {
					second := followBroker(t, b, "", "job", "open")
					leave() // the end is the oldest in the history, but in it
					refused("after one has left")
					second.close()
					synctest.Wait()
				}
				fill()
				if _, err := b.Publish(Event{Data: "yes"}, "job"); err != nil {
					t.Errorf("after the end has left the history: got %v, want a new topic", err)
				}
				late.want("yes")

				// The other way around: the end leaves first.
				if !test.before {
					return
				}
				early = followBroker(t, b, "", "second job", "open")
				b.End("second job")
				late = followBroker(t, b, "", "second job", "open")
				fill()
				refused2, err := b.Publish(Event{Data: "no"}, "second job")
				if !errors.Is(err, ErrEnded) {
					t.Errorf("while one is there: got %q and %v, want ErrEnded", refused2, err)
				}
				leave()
				if _, err := b.Publish(Event{Data: "yes"}, "second job"); err != nil {
					t.Errorf("after it has left: got %v, want a new topic", err)
				}
				late.want("yes")
				checkInvariants(t, b)
			})
		})
	}
}

// A newcomer has as much time until its first keep-alive as others, however long the
// Broker has been running.
func TestFirstKeepAliveOfALateClient(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		s.get("/", "")
		time.Sleep(time.Hour)
		c := s.get("/", "")
		c.want("")
		c.take()
		time.Sleep(13 * time.Second)
		c.want("")
		if blocks, _ := c.take(); len(blocks) > 0 {
			t.Errorf("13 s after it came: got %+v, want nothing yet", blocks)
		}
	})
}

// A large event that was being sent as the handler panicked is held by nobody.
func TestPanicWithinALargeEventHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large = 100 << 10
		b := &Broker{HistoryBytes: large, Logger: slog.New(slog.DiscardHandler)}
		panicked := make(chan any)
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		go func() {
			defer func() { panicked <- recover() }()
			b.Serve(panickyWriter{httptest.NewRecorder()}, r)
		}()
		synctest.Wait()
		b.Publish(Event{Data: strings.Repeat("x", large)})
		if got := <-panicked; got != "Write" {
			t.Errorf("Serve: got %v, want the panic of Write", got)
		}
		b.Publish(Event{Data: strings.Repeat("x", large)}) // which evicts it
		checkInvariants(t, b)
	})
}

// What the program's ResponseWriter does in a worker happens to its handler, and to no
// other client.
func TestPanicOfAResponseWriterCostsOneClient(t *testing.T) {
	for _, test := range []struct {
		name   string
		bad    func()
		want   any // the panic of the handler
		logged bool
	}{
		{"panic", func() { panic("Write") }, "Write", true},
		{"ErrAbortHandler", func() { panic(http.ErrAbortHandler) }, http.ErrAbortHandler, false},
		{"Goexit", runtime.Goexit, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				b := &Broker{Logger: slog.New(slog.NewTextHandler(&log, nil))}
				b.LastEventID() // prepares it
				b.conns.most = 1
				s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
					if r.URL.Path == "/bad" {
						w = badWriter{w, test.bad}
						defer func() {
							if got := recover(); got != test.want {
								t.Errorf("handler: got panic %v, want %v", got, test.want)
							}
						}()
						b.Serve(w, r)
						t.Error("Serve has returned")
					}
					return b.Serve(w, r)
				})
				bad := publishBesideABadOne(b, s)
				if bad.ended() == nil {
					t.Error("its stream is open")
				}
				if got := b.Stats().Clients; got != 1 {
					t.Errorf("clients: got %d, want 1", got)
				}
				if got := log.String(); test.logged != strings.Contains(got, "badWriter.Write") {
					t.Errorf("log: got %q", got)
				}
				checkInvariants(t, b)
			})
		})
	}
}

// Nor does that of a net.Conn of the program cost more than its client.
func TestPanicOfANetConnCostsOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := &Broker{Logger: slog.New(slog.NewTextHandler(&log, nil))}
		defer b.Shutdown(t.Context())
		s := newPipeServer(t, &http.Server{})
		ended := make(chan error, 2)
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/bad" {
				w = connHijacker{w, func(c net.Conn) net.Conn { return badConn{c} }}
			}
			b.Detach(w, r, func(err error) { ended <- err })
		})
		publishBesideABadOne(b, s)
		if err := <-ended; err != errPanic {
			t.Errorf("done: got %v, want %v", err, errPanic)
		}
		if got := log.String(); !strings.Contains(got, "badConn.Write") {
			t.Errorf("log: got %q", got)
		}
		checkInvariants(t, b)
	})
}

// publishBesideABadOne publishes two events, and wants that a client of "/" gets them beside
// one of "/bad", which it returns.
func publishBesideABadOne(b *Broker, s *pipeServer) (bad *pipeClient) {
	s.t.Helper()
	good, bad := s.get("/", ""), s.get("/bad", "")
	good.want("")
	bad.want("")
	for _, data := range []string{"1", "2"} {
		b.Publish(Event{Data: data})
		good.want(data)
	}
	return bad
}

// Nor does what such a net.Conn or ResponseWriter does as it is closed or cut off.
func TestPanicAsAClientIsCutOff(t *testing.T) {
	run := func(name string, serve func(b *Broker, w http.ResponseWriter, r *http.Request, done func(error))) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				b := &Broker{Logger: slog.New(slog.NewTextHandler(&log, nil))}
				s := newPipeServer(t, &http.Server{})
				ended := make(chan error, 2)
				s.serve(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/" {
						b.Serve(w, r)
						return
					}
					serve(b, w, r, func(err error) { ended <- err })
				})
				bad, good := s.get("/bad", ""), s.get("/", "")
				good.want("")
				bad.want("")
				bad.stall(true)
				b.Publish(Event{Data: "1"})
				good.want("1")
				time.Sleep(time.Minute)
				bad.close() // since the cut came to nothing
				if err := <-ended; !errors.Is(err, ErrTooSlow) {
					t.Errorf("got %v, want %v", err, ErrTooSlow)
				}
				b.Publish(Event{Data: "2"})
				good.want("2")
				if err := b.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				synctest.Wait()
				if got := log.String(); !strings.Contains(got, "panic") {
					t.Errorf("log: got %q", got)
				}
				checkInvariants(t, b)
			})
		})
	}
	run("Serve", func(b *Broker, w http.ResponseWriter, r *http.Request, done func(error)) {
		done(b.Serve(cutHook{wireMiddleware{w}, func() { panic("SetWriteDeadline") }}, r))
	})
	run("Detach", func(b *Broker, w http.ResponseWriter, r *http.Request, done func(error)) {
		b.Detach(connHijacker{w, func(c net.Conn) net.Conn { return badlyClosedConn{c} }}, r, done)
	})
}

// A cutHook calls cut before a write is cut off.
type cutHook struct {
	wireMiddleware
	cut func()
}

func (w cutHook) SetWriteDeadline(at time.Time) error {
	if at.Equal(time.Unix(1, 0)) {
		w.cut()
	}
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
}

// A client whose ResponseWriter blocks as it is cut off, because it has one lock for all
// of its methods, keeps no others from being cut off.
func TestCutThatBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		release := make(chan struct{})
		var cuts atomic.Int32
		s := newPipeServer(t, &http.Server{})
		ended := make(chan error, 5)
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/bad" {
				w = cutHook{wireMiddleware{w}, func() { cuts.Add(1); <-release }}
			}
			ended <- b.Serve(w, r)
		})
		for _, path := range []string{"/", "/bad", "/", "/bad", "/"} {
			c := s.get(path, "")
			c.want("")
			c.stall(true)
		}
		b.Publish(Event{Data: "1"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := b.Stats().Clients; got != 2 || cuts.Load() != 2 {
			t.Errorf("got %d clients and %d cuts, want the two whose cuts block, once each", got, cuts.Load())
		}
		isCutting := func(stack string) bool { return strings.Contains(stack, "(*subscriber).cutOff") }
		if got := len(slices.DeleteFunc(allStacks(), func(stack string) bool { return !isCutting(stack) })); got != 2 {
			t.Errorf("got %d goroutines that cut clients off, want one for each", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Shutdown(ctx); err != context.DeadlineExceeded {
			t.Errorf("Shutdown: got %v, want %v", err, context.DeadlineExceeded)
		}
		close(release)
		for range 5 {
			if err := <-ended; !errors.Is(err, ErrTooSlow) {
				t.Errorf("got %v, want %v", err, ErrTooSlow)
			}
		}
	})
}

// A connHijacker has its connection hijacked as what wrap makes of it.
type connHijacker struct {
	http.ResponseWriter
	wrap func(net.Conn) net.Conn
}

func (h connHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	return h.wrap(conn), rw, err
}

// A badConn panics as an event is written.
type badConn struct{ net.Conn }

func (c badConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("data: ")) {
		panic("Write")
	}
	return c.Conn.Write(p)
}

// A badlyClosedConn panics as it is closed.
type badlyClosedConn struct{ net.Conn }

func (c badlyClosedConn) Close() error {
	c.Conn.Close()
	panic("Close")
}

// A context that has ended is looked at before anything is sent, although workers
// send it.
func TestNothingIsSentAfterTheContextHasEnded(t *testing.T) {
	revoked := errors.New("access revoked")
	run := func(t *testing.T, b *Broker, lastEventID string, then func(cancel func())) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
		r.Header.Set("Last-Event-ID", lastEventID)
		out, ended := httptest.NewRecorder(), make(chan error, 1)
		start := func() { ended <- b.Serve(out, r) }
		if then == nil {
			cancel(revoked)
			start()
		} else {
			go start()
			synctest.Wait()
			then(func() { cancel(revoked) })
		}
		if err := <-ended; !errors.Is(err, revoked) {
			t.Errorf("Serve: got %v, want %v", err, revoked)
		}
		if got := out.Body.String(); strings.Contains(got, "data: ") {
			t.Errorf("got an event: %q", got)
		}
	}
	for range 30 { // the goroutine that the context starts may be in time
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{Logger: slog.New(slog.DiscardHandler)}
			b.Publish(Event{Data: "1"})
			run(t, b, Earliest, nil)
			run(t, b, "", func(cancel func()) { cancel(); b.Publish(Event{Data: "2"}) })
			run(t, b, "", func(cancel func()) { cancel(); b.Shutdown(context.Background()) })
			b = &Broker{Logger: slog.New(slog.DiscardHandler)}
			b.CatchUp = func(context.Context, Missed) iter.Seq2[Event, error] {
				t.Error("CatchUp was called")
				return func(func(Event, error) bool) {}
			}
			run(t, b, "", nil)
		})
	}
}

// A client whose history holds many events of others gets what is for it in as many
// flushes as it has batches.
func TestPassingEventsOfOthersFlushesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		start := b.LastEventID()
		for range 8 * batchWork {
			b.Publish(Event{Data: "x"}, "other")
		}
		b.Publish(Event{Data: "1"}, "own")
		flushes := 0
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			return b.Serve(flushHook{wireMiddleware{w}, func() { flushes++ }}, r, "own")
		})
		c := s.get("/", "Last-Event-ID: "+start+"\r\n")
		c.want("1")
		if flushes > 2 {
			t.Errorf("got %d flushes, want 2 at most: as it begins, and the event", flushes)
		}
	})
}

// Writes that wait a little, each less than a worker may be stuck, are not done one after
// the other.
func TestWritesThatWaitALittle(t *testing.T) {
	const clients, each = 1000, 300 * time.Microsecond
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{Logger: slog.New(slog.DiscardHandler)}
		var left sync.WaitGroup
		for range clients {
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
			go b.Serve(badWriter{httptest.NewRecorder(), func() {
				time.Sleep(each)
				left.Done()
			}}, r)
		}
		synctest.Wait()
		left.Add(clients)
		began := time.Now()
		b.Publish(Event{Data: "1"})
		left.Wait()
		if took := time.Since(began); took > 20*time.Millisecond {
			t.Errorf("%d writes of %v took %v, want 20ms at most", clients, each, took)
		}
		synctest.Wait()
		b.conns.mu.Lock()
		defer b.conns.mu.Unlock()
		if n := b.conns.workers; n != 0 {
			t.Errorf("got %d workers when all is written, want none", n)
		}
	})
}

// A worker keeps nothing of what it has handed over.
func TestWorkerKeepsNoFrames(t *testing.T) {
	_, server := tcpPair(t)
	c := &conn{netConn: server, queue: newConnQueue(time.Hour)}
	var err error
	c.raw, err = server.(*net.TCPConn).SyscallConn()
	wireCheck(t, err)
	var large weak.Pointer[frame]
	c.source = &frameSource{frame: func() *frame {
		f := &frame{mark: true, body: strings.Repeat("x", 16<<20)}
		large = weak.Make(f)
		return f
	}}
	w := &worker{queue: c.queue, attempt: newAttempt()}
	if w.serve(c) {
		t.Error("the client takes 16 MB at once")
	}
	eventually(t, "the frame is freed", func() bool {
		runtime.GC()
		return large.Value() == nil
	})
	runtime.KeepAlive(w)
}

// tcpPair returns both ends of a connection of the system.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	wireCheck(t, err)
	defer listener.Close()
	client, err = net.Dial("tcp", listener.Addr().String())
	wireCheck(t, err)
	t.Cleanup(func() { client.Close() })
	server, err = listener.Accept()
	wireCheck(t, err)
	t.Cleanup(func() { server.Close() })
	return client, server
}

// A frameSource has this frame, which it gives to one caller of next, and its stream ends
// when that was sent by deliver.
type frameSource struct {
	turnSource
	frame func() *frame
}

func (s *frameSource) next(batch []*frame) ([]*frame, step) {
	return append(batch[:0], s.frame()), again
}

func (s *frameSource) deliver(context.Context, []*frame, step, func([]*frame) error) error {
	return ErrTooSlow
}

// A handler that writes needs a larger stack from then on, so workers do that.
func TestWorkersWriteForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{KeepAlive: time.Second}
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			return b.Serve(badWriter{w, func() {
				if stack := string(debug.Stack()); !strings.Contains(stack, "(*worker).serve(") {
					t.Errorf("written by:\n%s", stack)
				}
			}}, r)
		})
		c := s.get("/", "")
		c.want("")
		b.Publish(Event{Data: "1"})
		c.want("1")
		time.Sleep(10 * time.Second)
		b.Publish(Event{Data: "2"})
		c.want("2")
		if blocks, _ := c.take(); len(blocks) < 10 {
			t.Errorf("got %d blocks, want keep-alives among them", len(blocks))
		}
	})
}

// A badWriter does something before it writes an event or a keep-alive, but not as the
// stream opens or ends.
type badWriter struct {
	http.ResponseWriter
	bad func()
}

func (w badWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w badWriter) Write(p []byte) (int, error) {
	if !bytes.Contains(p, []byte("retry: ")) {
		w.bad()
	}
	return w.ResponseWriter.Write(p)
}

// A panickyWriter panics if it is written much.
type panickyWriter struct{ *httptest.ResponseRecorder }

func (w panickyWriter) Write(p []byte) (int, error) {
	if len(p) > 1000 {
		panic("Write")
	}
	return w.ResponseRecorder.Write(p)
}

// No more of those who hold what left the history are cut off than must be, and the
// last one of them is not, however much it holds.
func TestSlowClientsThatAreNotCutOff(t *testing.T) {
	skipShort(t)
	t.Parallel()
	const large = 512 << 10
	size := func() int {
		b := &Broker{}
		b.Publish(Event{ID: "0", Data: strings.Repeat("x", large)})
		return b.log.size
	}()
	for _, test := range []struct {
		name         string
		historyBytes int
		left         int // of 6 that hold one event each
	}{
		{"each", 6 * size, 6},
		{"but one", 5 * size, 5},
		{"the last one", size / 2, 1},
		{"without a limit", -1, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			serveAndDetach(t, func(t *testing.T, serve serveFunc) {
				b := &Broker{History: 1, HistoryBytes: test.historyBytes}
				s := serve(t, b)
				var clients []*pipeClient
				for i := range 6 {
					c := s.get("/", "")
					c.want("")
					c.stall(true)
					clients = append(clients, c)
					b.Publish(Event{ID: strconv.Itoa(i), Data: strings.Repeat("x", large)})
					synctest.Wait()
				}
				for i := range 6 { // which evict those
					b.Publish(Event{ID: strconv.Itoa(6 + i), Data: strings.Repeat("x", large)}, "other")
					synctest.Wait()
					checkInvariants(t, b)
				}
				for range 2 * minQueue {
					b.Publish(Event{Data: "x"}, "other")
				}
				time.Sleep(settleTime)
				if got := b.Stats().Clients; got != test.left {
					t.Errorf("clients: got %d, want %d", got, test.left)
				}
				for i, c := range clients {
					c.stall(false)
					if got := c.events(); i >= 6-test.left && (len(got) == 0 || len(got[0].Data) != large) {
						t.Errorf("client %d did not get the event that it was being sent", i)
					}
				}
				checkInvariants(t, b) // all is given back
			})
		})
	}
}

// Nor one that has taken what it was sent and waits for its turn with a worker.
func TestDetachedClientThatWaitsForItsTurnIsNotCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{HistoryBytes: 1, KeepAlive: -1}
		s := detachBroker(t, b)
		large := strings.Repeat("x", pieceBytes+1)
		for i := range batchesAtOnce + 1 {
			b.Set(strconv.Itoa(i), Event{Data: large}, "values")
		}
		b.conns.most = 1 // as with so many busy workers as there are
		other := s.get("/?topic=other", "")
		other.want("")
		other.stall(true)
		c := s.getStalled("/?topic=values", "")
		synctest.Wait() // the worker writes to c
		b.Publish(Event{Data: large}, "other")
		c.stall(false) // c takes a worker's turn of values and is put behind the other,
		synctest.Wait()
		b.Set(strconv.Itoa(batchesAtOnce-1), Event{Data: "new"}, "values") // c has the old one
		b.Publish(Event{Data: "y"}, "other")
		synctest.Wait()
		other.stall(false)
		time.Sleep(time.Second)
		if err, n := c.ended(), b.Stats().TooSlow; err != nil || n != 0 {
			t.Errorf("got %v and %d that were too slow, want none", err, n)
		}
	})
}

// Nor those whose large events are in the history yet, which has a limit of its own.
func TestSlowClientsOfEventsInTheHistoryAreNotCutOff(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		const large = 512 << 10
		b := &Broker{HistoryBytes: 2*large + large/2}
		s := serve(t, b)
		var clients []*pipeClient
		for i := range 4 { // the last two evict the first two
			topic := strconv.Itoa(i)
			c := s.get("/?topic="+topic, "")
			c.want("")
			c.stall(true)
			b.Publish(Event{ID: topic, Data: strings.Repeat("x", large)}, topic)
			synctest.Wait()
			clients = append(clients, c)
		}
		time.Sleep(settleTime)
		for i, c := range clients {
			c.stall(false)
			if got := c.events(); len(got) != 1 || len(got[0].Data) != large || c.ended() != nil {
				t.Errorf("client %d: got %d events, ended with %v, want its large event", i, len(got), c.ended())
			}
		}
	})
}

// Nor are those that have taken their large event and wait for the next.
func TestClientsThatTookALargeEventAreNotCutOff(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		const large = 512 << 10
		b := &Broker{History: 1, HistoryBytes: large}
		s := serve(t, b)
		var clients []*pipeClient
		for i := range 3 {
			topic := strconv.Itoa(i)
			c := s.get("/?topic="+topic, "")
			c.want("")
			b.Publish(Event{ID: topic, Data: strings.Repeat("x", large)}, topic)
			if got := c.events(); len(got) != 1 || len(got[0].Data) != large {
				t.Fatalf("client %d: got %d events, want the large one", i, len(got))
			}
			clients = append(clients, c)
		}
		for range 2 * minQueue { // which evict those
			b.Publish(Event{Data: "x"}, "other")
		}
		for i, c := range clients {
			topic := strconv.Itoa(i)
			b.Publish(Event{ID: "next " + topic, Data: topic}, topic)
			c.want(topic)
		}
		checkInvariants(t, b)
	})
}

// Nor is one that is being sent a key's value, which is kept anyway.
func TestSlowClientThatHoldsAValueIsNotCutOff(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		const large = 512 << 10
		data := strings.Repeat("x", large)
		b := &Broker{HistoryBytes: large}
		s := serve(t, b)
		hold := func(publish func()) *pipeClient {
			c := s.get("/", "")
			c.events() // the value
			c.stall(true)
			publish()
			synctest.Wait()
			return c
		}
		c := hold(func() { b.Set("key", Event{Data: data}) })
		for range 4 {
			hold(func() { b.Publish(Event{Data: data}) })
		}
		checkInvariants(t, b)
		c.stall(false)
		if got := c.events(); len(got) == 0 || len(got[0].Data) != large || c.ended() != nil {
			t.Errorf("got %d events and the end %v, want the value", len(got), c.ended())
		}
		checkInvariants(t, b)
	})
}

// A loop over Subscribe that is slow is not cut off, whatever it holds.
func TestSlowLoopsMayHoldLargeEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large = 512 << 10
		b := &Broker{HistoryBytes: large}
		var loops []*brokerLoop
		for range 4 {
			l := followBroker(t, b, "")
			l.stall(true)
			loops = append(loops, l)
			b.Publish(Event{Data: strings.Repeat("x", large)})
			synctest.Wait()
		}
		b.Publish(Event{Data: strings.Repeat("x", large)}, "other")
		for i, l := range loops {
			l.stall(false)
			if got := l.events(); len(got) == 0 || len(got[0].Data) != large || l.ended() != nil {
				t.Errorf("loop %d: got %d events, ended with %v, want the large one", i, len(got), l.ended())
			}
		}
	})
}

// skipShort skips a test that takes a while, with -short.
func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a while")
	}
}

// announce does what the goroutine does that appendLocked starts.
func announce(b *Broker) {
	b.mu.Lock()
	defer b.unlock()
	b.announceLocked(true)
	b.announcing = false
}

// Members may leave, and others announce, wherever a walk gives mu up. A mutex that was
// waited for longer than a millisecond is handed from one to the next in their order,
// so that here they do so at the first pause.
func TestMembersLeaveWhileTheyAreWoken(t *testing.T) {
	const members = 4 * signalsAtOnce
	for _, test := range []struct {
		name string
		walk func(b *Broker)
	}{
		{"announce", announce},
		{"Disconnect", func(b *Broker) { b.Disconnect() }},
		{"Shutdown", func(b *Broker) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			b.Shutdown(ctx)
		}},
	} {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, " reset=", reset), func(t *testing.T) {
				b := &Broker{}
				var subs []*subscriber
				for range members {
					s := joinSubscriber(t, b, "")
					for then := again; then != wait; {
						_, then = s.next(nil)
					}
					subs = append(subs, s)
				}
				b.mu.Lock()
				b.announcing = true // by the walk below
				b.unlock()
				b.Publish(Event{Data: "1"})

				var all sync.WaitGroup
				wait := func() { time.Sleep(2 * time.Millisecond) } // the mutex knows no fake time
				b.mu.Lock()
				all.Go(func() {
					b.mu.Lock() // in vain at first, whereupon it is handed on
					b.unlock()
				})
				wait()
				b.unlock()
				b.mu.Lock()
				wait()
				all.Go(func() { test.walk(b) })
				wait()
				left := map[*subscriber]bool{}
				for i, s := range subs {
					if i%4 != 1 && i < members*7/8 || i > members-signalsAtOnce/2 {
						left[s] = true
						all.Go(func() { b.leave(s, nil) })
					}
				}
				if reset {
					all.Go(func() { b.Reset("") })
				}
				wait()
				b.unlock()
				all.Wait()
				if test.name != "announce" {
					announce(b)
				}
				for i, s := range subs {
					if !left[s] && len(s.signal) == 0 {
						t.Errorf("subscriber %d was not woken", i)
					}
				}
				checkInvariants(t, b)
			})
		}
	}
}

// One connection that always has more does not keep a worker from the others. With a
// queue that has a single worker what the others get shows whose turn it was.
func TestConnectionsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newConnQueue(time.Hour)
		q.most = 1
		turns, pushed, had := 0, make(chan struct{}), false
		q.push(turnConn(t, func() step {
			<-pushed
			if turns++; had || turns > 10*batchesAtOnce {
				return wait
			}
			return again
		}))
		q.push(turnConn(t, func() step { had = true; return wait }))
		close(pushed)
		synctest.Wait()
		if turns > batchesAtOnce+1 || !had {
			t.Errorf("the other one had its turn: got %v after %d batches, want true after %d", had, turns-1, batchesAtOnce)
		}
	})
}

// A turnSource is a source that always has a comment.
type turnSource func() step

func turnConn(t *testing.T, next func() step) *conn {
	client, server := net.Pipe()
	go io.Copy(io.Discard, client)
	t.Cleanup(func() { client.Close() })
	return &conn{netConn: server, source: turnSource(next), queue: newConnQueue(-1)}
}

func (s turnSource) next(batch []*frame) ([]*frame, step) {
	return append(batch[:0], &frame{mark: true, body: keepAliveFrame}), s()
}

func (s turnSource) deliver(context.Context, []*frame, step, func([]*frame) error) error { return nil }
func (s turnSource) writing(bool)                                                        {}
func (s turnSource) sent()                                                               {}
func (s turnSource) guard(_ string, f func())                                            { f() }
func (s turnSource) finished(error)                                                      {}

// A call of CatchUp that begins only after the stream's end was decided is canceled.
func TestCatchUpThatBeginsAfterDisconnectIsCanceled(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		controlCatchUp(b) // blocks until it is canceled
		s := serve(t, b)
		c := s.getStalled("/", "")
		synctest.Wait() // in the write of what comes before CatchUp
		b.Disconnect()
		if got := b.Disconnect(); got != 0 {
			t.Errorf("those to disconnect once more: got %d, want 0", got)
		}
		c.stall(false)
		if c.ended() == nil {
			t.Error("the stream is open")
		}
		if err := s.served(); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v, want ErrDisconnected", err)
		}
	})
}

// A Reset while CatchUp runs means nothing to a client whose last event is the one
// right before the new history.
func TestResetDuringCatchUpThatEndsRightBeforeTheHistory(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		calls := controlCatchUp(b)
		c := serve(t, b).get("/", "")
		call := <-calls
		wireCheck(t, b.Reset("X"))
		publishIDs(t, b, "Y")
		call.events <- Event{ID: "X", Data: "X"}
		close(call.events)
		c.want("X Y")
		if got := b.Stats().Gaps; got != 0 {
			t.Errorf("gaps: got %d, want none", got)
		}
	})
}

// A client is told a place to come back to after CatchUp, also if what was published
// meanwhile for others was more than the history holds.
func TestClientComesBackToThePlaceToldAfterCatchUp(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{History: 300}
		calls := controlCatchUp(b)
		s := serve(t, b)
		c := s.get("/", "")
		call := <-calls
		call.events <- Event{Data: "snapshot"}
		for range 1000 {
			b.Publish(Event{Data: "x"}, "other")
		}
		close(call.events)
		c.want("snapshot")
		id := c.lastID()
		c.close()
		c = s.get("/", "Last-Event-ID: "+id+"\r\n")
		c.want("")
		b.Publish(Event{Data: "1"})
		c.want("1") // without CatchUp, which would block
	})
}

// A keep-alive tells a newer ID once.
func TestKeepAliveTellsANewIDOnce(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		c := serve(t, b).get("/", "")
		c.want("")
		c.take()
		for range 9000 {
			b.Publish(Event{Data: "x"}, "busy")
		}
		ids := 0
		for range 4 {
			time.Sleep(15 * time.Second)
			c.want("")
			blocks, _ := c.take()
			for _, block := range blocks {
				if block.HasID {
					ids++
				}
			}
		}
		if ids != 1 {
			t.Errorf("got an ID %d times, want once", ids)
		}
	})
}

// Shutdown also waits for done where Detach served the client itself.
func TestShutdownWaitsForDoneWhereDetachCannotTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		s := newPipeServer(t, &http.Server{})
		saved := make(chan struct{})
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			b.Detach(w, r, func(error) { <-saved })
		})
		c := s.get("/", "X-Varnish: 1\r\n")
		c.want("")
		shutdown := make(chan error, 1)
		go func() { shutdown <- b.Shutdown(t.Context()) }()
		synctest.Wait()
		if got := b.Stats().Clients; got != 1 || len(shutdown) != 0 {
			t.Errorf("before done: got %d clients and Shutdown returned %v, want 1 and false", got, len(shutdown) != 0)
		}
		close(saved)
		if err := <-shutdown; err != nil {
			t.Error(err)
		}
	})
}

// Each write that makes progress has its own time, and so has one for which there is
// no room from the beginning. It is looked at here what the Broker is told of a
// client's writes: a socket of the system knows no fake time.
func TestEachWriteToASocketIsTimed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there writes wait in net")
	}
	client, server := tcpPair(t)
	timed := &timedSource{}
	c := &conn{netConn: server, source: timed, queue: newConnQueue(time.Hour)}
	var err error
	c.raw, err = server.(*net.TCPConn).SyscallConn()
	wireCheck(t, err)
	large := &frame{mark: true, body: strings.Repeat("x", 16<<20)}
	a := newAttempt()
	if err := a.writeFrom(c, frameReader{frames: []*frame{large}}, false); err != errWouldWait {
		t.Fatalf("more than fits: got %v, want %v", err, errWouldWait)
	}
	if got := timed.began.Load(); got != 0 {
		t.Errorf("writes that may wait: got %d, want none", got)
	}
	sent := make(chan error)
	go func() { sent <- c.sendFrames(a.r.frames, a.r.skip) }()
	eventually(t, "it waits for room", isStuckInAWrite)
	if got := timed.began.Load(); got != 1 {
		t.Errorf("writes that began, without room: got %d, want 1", got)
	}
	n := int64(0)
	for n < 16<<20 {
		got, err := io.CopyN(io.Discard, client, 1<<20)
		wireCheck(t, err)
		n += got
	}
	wireCheck(t, <-sent)
	if got := timed.began.Load(); got < 10 {
		t.Errorf("writes that began: got %d, want one for each time there was room", got)
	}
	if got := timed.ended.Load(); got != 1 {
		t.Errorf("writes that ended: got %d, want 1", got)
	}
}

// A timedSource counts what it is told of writes.
type timedSource struct {
	turnSource
	began, ended atomic.Int64
}

func (s *timedSource) writing(yes bool) {
	if yes {
		s.began.Add(1)
	} else {
		s.ended.Add(1)
	}
}

// A detached client is taken for gone if its system has not answered for about
// WriteTimeout, and not before.
func TestDetachedClientWhoseSystemDoesNotAnswerIsCutOff(t *testing.T) {
	always := func(n byte) func(time.Duration) byte { return func(time.Duration) byte { return n } }
	for _, tt := range []struct {
		name          string
		timeout       time.Duration
		told          func(time.Duration) byte // at the time after the client came
		every         time.Duration            // of events
		least, before time.Duration            // when it is cut off; 0: it is not
	}{
		{"never answers", 0, always(2), time.Second, 7500 * time.Millisecond, 9 * time.Second},
		{"must be asked twice", 0, always(1), time.Second, 0, 0},
		{"no WriteTimeout", -1, always(200), time.Second, 0, 0},
		{"answers for 20 s", 0, func(at time.Duration) byte {
			if at <= 20*time.Second {
				return 0
			}
			return 2
		}, time.Second, 25 * time.Second, 28 * time.Second},
		{"one event after a long rest", 0, func(at time.Duration) byte {
			if at <= time.Hour {
				return 0
			}
			return 2
		}, time.Hour, time.Hour + 7500*time.Millisecond, time.Hour + 12*time.Second},
		{"one event, a short WriteTimeout", 500 * time.Millisecond, func(at time.Duration) byte {
			switch {
			case at <= time.Hour:
				return 0
			case at < time.Hour+600*time.Millisecond: // as Linux needs
				return 1
			}
			return 2
		}, time.Hour, time.Hour + 600*time.Millisecond, time.Hour + 2*time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				b := &Broker{WriteTimeout: tt.timeout, KeepAlive: -1}
				setUnanswered(b, func() byte { return tt.told(time.Since(start)) })
				s := detachBroker(t, b)
				c := s.get("/", "")
				synctest.Wait()
				next, end := start, start.Add(3*time.Minute+tt.every)
				for b.Stats().Clients == 1 && time.Now().Before(end) {
					if !time.Now().Before(next) {
						b.Publish(Event{Data: "x"})
						next = next.Add(tt.every)
					}
					time.Sleep(250 * time.Millisecond)
					synctest.Wait()
				}
				got := time.Since(start)
				if tt.before == 0 {
					if got < 3*time.Minute || c.ended() != nil {
						t.Errorf("cut off after %v, want never", got)
					}
					return
				}
				if got < tt.least || got > tt.before {
					t.Errorf("cut off after %v, want %v to %v", got, tt.least, tt.before)
				}
				if err := s.served(); !errors.Is(err, ErrClientLeft) || !errors.Is(err, syscall.ETIMEDOUT) {
					t.Errorf("done: got %v, want ErrClientLeft and ETIMEDOUT", err)
				}
			})
		})
	}
}

// A detachedTCP is a detached client over sockets with buffers of the system.
type detachedTCP struct {
	*net.TCPConn
	ended chan error
}

func detachTCP(t *testing.T, b *Broker) *detachedTCP {
	const buffers = 64 << 10
	c := &detachedTCP{ended: make(chan error, 1)}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.Detach(w, r, func(err error) { c.ended <- err })
	}))
	srv.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			c.(*net.TCPConn).SetWriteBuffer(buffers)
		}
	}
	srv.Start()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	wireCheck(t, err)
	c.TCPConn = conn.(*net.TCPConn)
	c.SetReadBuffer(buffers)
	t.Cleanup(func() {
		conn.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.Shutdown(ctx)
		srv.Close()
	})
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	_, err = io.ReadFull(conn, make([]byte, 64))
	wireCheck(t, err)
	eventually(t, "the client is idle", func() bool {
		b.mu.Lock()
		defer b.unlock()
		return len(b.subs) == 1 && b.subs[0].sub.waiting
	})
	return c
}

// isStuckInAWrite reports whether a client's goroutine waits for room in its socket.
func isStuckInAWrite() bool {
	return slices.ContainsFunc(allStacks(), func(stack string) bool {
		return strings.Contains(stack, "(*attempt).writeFrom") && strings.Contains(stack, "waitWrite")
	})
}

// One that is cut off is sent nothing more, neither what is in the socket's buffer nor
// the end: the system would try for minutes.
func TestCutOffDetachedClientIsReset(t *testing.T) {
	skipShort(t)
	if runtime.GOOS == "windows" {
		t.Skip("resets connections by another error")
	}
	for _, tt := range []struct {
		name   string
		silent byte // what the system tells
		data   string
		want   error
	}{
		{"does not read", 0, strings.Repeat("x", 1<<20), ErrTooSlow},
		{"system does not answer", 2, "x", syscall.ETIMEDOUT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var told atomic.Int32
			b := &Broker{WriteTimeout: 40 * time.Millisecond, KeepAlive: time.Hour}
			setUnanswered(b, func() byte { return byte(told.Load()) })
			c := detachTCP(t, b)
			told.Store(int32(tt.silent))
			b.Publish(Event{Data: tt.data})
			if err := <-c.ended; !errors.Is(err, tt.want) {
				t.Errorf("done: got %v, want %v", err, tt.want)
			}
			if _, err := io.Copy(io.Discard, c.TCPConn); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection ended with %v, want ECONNRESET", err)
			}
		})
	}
}

// Who has made room for what it was sent has answered: its system need not be asked
// again for a while.
func TestDetachedClientThatMakesRoomHasAnswered(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there nobody is asked")
	}
	var told atomic.Int32
	told.Store(1) // has not answered, but not for long
	b := &Broker{WriteTimeout: time.Hour}
	setUnanswered(b, func() byte { return byte(told.Load()) })
	c := detachTCP(t, b)
	b.mu.Lock()
	// A socket of the system knows no fake time.
	b.subs[0].sub.conn.answered = time.Now().Add(-time.Hour)
	b.mu.Unlock()
	large := strings.Repeat("x", 1<<20)
	b.Publish(Event{Data: large})
	eventually(t, "the client is being written to", isStuckInAWrite)
	told.Store(2)
	stream := NewDecoder(c)
	stream.MaxEventBytes = -1
	next := func(want string) {
		t.Helper()
		if e, err := stream.Decode(); e.Data != want || err != nil {
			t.Fatalf("got %.20q of %d bytes, error %v, want %.20q of %d", e.Data, len(e.Data), err, want, len(want))
		}
	}
	next(large)
	b.Publish(Event{Data: "after"})
	next("after")
}

// A keep-alive looks whether the client has left, which may take a moment where reads
// cannot be tried. An event after that does not wait for another look.
func TestEventAfterAKeepAliveDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		s := detachBroker(t, b)
		c := s.get("/", "")
		c.want("")
		c.take()
		for blocks, _ := c.take(); len(blocks) == 0; blocks, _ = c.take() {
			time.Sleep(settleTime)
			synctest.Wait()
		}
		for range 2 {
			b.Publish(Event{Data: "1"})
			synctest.Wait() // and no time passes
			if blocks, _ := c.take(); len(blocks) != 1 || blocks[0].Data != "1" {
				t.Errorf("at once: got %+v, want the event", blocks)
			}
		}
	})
}

// Where a write cannot be tried a few workers do all of them. Those that are stuck are
// replaced after a moment, by more each time, so that others are not held up.
func TestStuckClientsHoldUpNobody(t *testing.T) {
	const stuck = 300
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{KeepAlive: -1, WriteTimeout: time.Minute}
		s := serve(t, b)
		first := s.get("/", "") // which is woken last
		first.want("")
		var clients []*pipeClient
		for range stuck {
			clients = append(clients, s.get("/", ""))
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		for _, c := range clients {
			c.stall(true)
		}
		synctest.Wait()
		_, idle := bubbleGoroutines()
		b.Publish(Event{Data: "1"})
		synctest.Wait()
		if _, n := bubbleGoroutines(); n > idle+runtime.GOMAXPROCS(0) {
			t.Errorf("got %d goroutines for %d clients at once, want %d at most", n-idle, stuck+1, runtime.GOMAXPROCS(0))
		}
		began := time.Now()
		for blocks, _ := first.take(); len(blocks) == 0 || blocks[len(blocks)-1].Data != "1"; blocks, _ = first.take() {
			if time.Sleep(time.Millisecond / 4); time.Since(began) > time.Second {
				t.Fatal("a client that reads did not get the event within a second")
			}
			synctest.Wait()
		}
		if took := time.Since(began); took > 30*time.Millisecond {
			t.Errorf("a client that reads waited %v for %d that do not, want 30ms at most", took, stuck)
		}
		b.Publish(Event{Data: "2"})
		first.want("1 2") // as before
		for _, c := range clients {
			c.stall(false)
		}
		for _, c := range clients {
			c.want("1 2")
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if stacks, n := bubbleGoroutines(); n != idle {
			t.Errorf("got %d goroutines when all have read, want %d as before:\n%.2000s", n, idle, stacks)
		}
		b.conns.mu.Lock()
		if n := b.conns.workers; n != 0 {
			t.Errorf("got %d workers when all have read, want none", n)
		}
		b.conns.mu.Unlock()
		checkInvariants(t, b)
	})
}

func setIPOption[FD ~int | ~uintptr](f func(FD, int, int, int) error, fd uintptr, option, value int) error {
	return f(FD(fd), syscall.IPPROTO_IP, option, value)
}

// A client with Expect: 100-continue may wait for the end of the answer before it
// sends its body, and net/http for the body before it closes the connection.
func TestStreamEndsForAClientThatStillHasItsBody(t *testing.T) {
	const header = "Content-Length: 5\r\nExpect: 100-continue\r\n"
	for name, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
		"NewWriter": func(w http.ResponseWriter, r *http.Request) error {
			out, err := NewWriter(w, r)
			if err == nil {
				err = out.Send(Event{Data: "1"})
			}
			return err
		},
		"Detach": func(w http.ResponseWriter, r *http.Request) (err error) {
			b := &Broker{Logger: slog.New(slog.DiscardHandler)}
			start := b.LastEventID()
			b.Publish(Event{Data: "1"})
			time.AfterFunc(time.Second, func() { b.Shutdown(context.Background()) })
			r.Header.Set("Last-Event-ID", start)
			b.Detach(w, r, func(reason error) {
				if reason != ErrClosed {
					err = reason
				}
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := servePipe(t, &http.Server{}, serve)
				conn, err := s.dial()
				wireCheck(t, err)
				defer conn.Close()
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: test\r\n%s\r\n", header)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				wireCheck(t, err)
				body, err := io.ReadAll(resp.Body)
				if !strings.Contains(string(body), "data: 1\n\n") || err != nil {
					t.Errorf("got %q, error %v", body, err)
				}
				if err := s.served(); err != nil {
					t.Errorf("the handler returned %v", err)
				}
			})
		})
	}
}

// Detach. What it has in common with Serve is tested with Serve.

func TestDetachReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{MaxClients: 1, Logger: slog.New(slog.DiscardHandler)}
		s := newPipeServer(t, &http.Server{})
		var returned, dones atomic.Int64
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			detached := b.Detach(w, r, func(err error) {
				dones.Add(1)
				s.done(err)
			})
			if want := returned.Load() == 0; detached != want { // the second is turned away
				t.Errorf("Detach: got %v, want %v", detached, want)
			}
			returned.Add(1)
		})
		c := s.get("/", "")
		c.want("")
		if returned.Load() != 1 || dones.Load() != 0 || b.Stats().Clients != 1 {
			t.Errorf("got %d returns, %d calls of done and %d clients, want 1, 0 and 1", returned.Load(), dones.Load(), b.Stats().Clients)
		}
		b.Publish(Event{Data: "1"})
		c.want("1")
		second := s.get("/", "")
		if second.ended() != io.EOF || !errors.Is(s.served(), ErrFull) {
			t.Errorf("one too many: got %v, want EOF and ErrFull", second.ended())
		}
		c.close()
		b.Publish(Event{Data: "2"})
		if err := s.served(); !errors.Is(err, ErrClientLeft) {
			t.Errorf("done: got %v, want ErrClientLeft", err)
		}
		if got := b.Stats().Clients; got != 0 {
			t.Errorf("clients: got %d, want none", got)
		}
		s.do("HEAD", "/", "")
		if err := s.served(); err != nil {
			t.Errorf("done after HEAD: got %v, want nil", err)
		}
		if err := b.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		s.get("/", "")
		if err := s.served(); !errors.Is(err, ErrClosed) {
			t.Errorf("done after Shutdown: got %v, want ErrClosed", err)
		}
		if dones.Load() != returned.Load() {
			t.Errorf("calls of done: got %d, want %d", dones.Load(), returned.Load())
		}
	})
}

func TestDetachServesWhereItCannotTakeOver(t *testing.T) {
	type flusher struct { // and no hijacker
		http.ResponseWriter
		http.Flusher
	}
	for name, wrap := range map[string]func(http.ResponseWriter, *http.Request) (http.ResponseWriter, *http.Request){
		"no hijacker": func(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
			return flusher{w, w.(http.Flusher)}, r
		},
		"not net/http's": func(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
			ctx, cancel := context.WithCancel(context.Background())
			context.AfterFunc(r.Context(), cancel)
			return w, r.WithContext(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{}
				returned := make(chan struct{})
				s := newPipeServer(t, &http.Server{})
				s.serve(func(w http.ResponseWriter, r *http.Request) {
					w, r = wrap(w, r)
					if b.Detach(w, r, s.done) {
						t.Error("Detach: got true, want false")
					}
					close(returned)
				})
				c := s.get("/", "")
				c.want("")
				select {
				case <-returned:
					t.Error("Detach has returned")
				default:
				}
				b.Publish(Event{Data: "1"})
				c.want("1")
				c.close()
				if err := s.served(); !errors.Is(err, ErrClientLeft) {
					t.Errorf("done: got %v, want ErrClientLeft", err)
				}
				<-returned
			})
		})
	}
}

// Middleware that expects an answer of its own making has set headers that are
// not true of a stream which goes past it.
func TestDetachDropsHeadersThatDelimitOrEncode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		defer b.Shutdown(t.Context())
		s := newPipeServer(t, &http.Server{})
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", "7")
			w.Header().Set("Transfer-Encoding", "chunked")
			w.Header().Set("Date", "that of the program")
			b.Detach(w, r, nil)
		})
		c := s.get("/", "")
		c.want("")
		b.Publish(Event{Data: "1"})
		c.want("1")
		for name, want := range map[string]string{"Content-Encoding": "", "Content-Length": "", "Date": "that of the program"} {
			if got := c.header.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	})
}

// A deadline that is left on the connection fails the next write that must not wait.
func TestDetachLeavesNoDeadlineOnAnIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		defer b.Shutdown(t.Context())
		s := newPipeServer(t, &http.Server{})
		noted := &deadlineConn{}
		s.serve(func(w http.ResponseWriter, r *http.Request) { b.Detach(deadlineNoter{w, noted}, r, nil) })
		c := s.get("/", "")
		c.want("")
		b.Publish(Event{Data: "1"})
		c.want("1")
		if noted.set != 0 {
			t.Errorf("got %d deadlines set, want none", noted.set)
		}
	})
}

// A deadlineNoter has its connection hijacked in the form of conn.
type deadlineNoter struct {
	http.ResponseWriter
	conn *deadlineConn
}

func (n deadlineNoter) Hijack() (_ net.Conn, rw *bufio.ReadWriter, err error) {
	n.conn.Conn, rw, err = http.NewResponseController(n.ResponseWriter).Hijack()
	return n.conn, rw, err
}

// A deadlineConn notes the deadlines for writing.
type deadlineConn struct {
	net.Conn
	set      int
	deadline time.Time
}

func (c *deadlineConn) SetWriteDeadline(deadline time.Time) error {
	if c.deadline = deadline; !deadline.IsZero() {
		c.set++
	}
	return c.Conn.SetWriteDeadline(deadline)
}

// However many clients are owed something, a few goroutines give it to them.
func TestDetachNeedsNoGoroutineForEachClient(t *testing.T) {
	skipShort(t)
	const n = 200
	before := runtime.NumGoroutine() // others only become fewer
	b := &Broker{Logger: slog.New(slog.DiscardHandler)}
	defer b.Shutdown(t.Context())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil) }))
	defer srv.Close()
	for range n {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		wireCheck(t, err)
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		conn.Read(make([]byte, 1))
	}
	most := 0
	for range 100 {
		delivered := b.Stats().Delivered
		b.Publish(Event{Data: "x"})
		for b.Stats().Delivered < delivered+n {
			most = max(most, runtime.NumGoroutine()-before)
		}
	}
	if most > n/2 {
		t.Errorf("got %d goroutines for %d clients", most, n)
	}
}

// Over a socket of the system, a client that does not read gets everything as
// soon as it does, and one that has nothing to do needs no goroutine.
func TestDetachOverTCP(t *testing.T) {
	skipShort(t)
	b := &Broker{WriteTimeout: time.Minute, HistoryBytes: -1, Logger: slog.New(slog.DiscardHandler)}
	reasons := make(chan error, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.Detach(w, r, func(err error) { reasons <- err })
	}))
	defer srv.Close()
	const n = 50
	conns := make([]net.Conn, n)
	streams := make([]*Decoder, n)
	for i := range conns {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		conns[i], streams[i] = conn, NewDecoder(resp.Body)
	}
	b.Publish(Event{Data: "hello"})
	for i, stream := range streams {
		if e, err := stream.Decode(); e.Data != "hello" || err != nil {
			t.Fatalf("client %d: got %+v, %v", i, e, err)
		}
	}
	eventuallyGoroutines(t, 0) // none for an idle client

	// More than the system takes for those who do not read.
	const events = 300
	for i := range events {
		b.Publish(Event{Data: fmt.Sprint(i, strings.Repeat(" data", 10_000))})
	}
	rest := strings.Repeat(" data", 10_000)
	for i, stream := range streams[:10] {
		for j := range events {
			e, err := stream.Decode()
			if got, ok := strings.CutSuffix(e.Data, rest); got != strconv.Itoa(j) || !ok || err != nil {
				t.Fatalf("client %d: got event %.20q of %d bytes, %v, want event %d", i, e.Data, len(e.Data), err, j)
			}
		}
	}
	eventuallyGoroutines(t, n-10) // one for each client that does not read
	for _, conn := range conns[10:] {
		conn.Close()
	}
	for range conns[10:] {
		if err := <-reasons; !errors.Is(err, ErrClientLeft) {
			t.Errorf("done: got %v, want ErrClientLeft", err)
		}
	}
	shutdown := make(chan error)
	go func() { shutdown <- b.Shutdown(t.Context()) }()
	for i, stream := range streams[:10] {
		if e, err := stream.Decode(); err != io.EOF || stream.Retry() < 3*time.Second {
			t.Errorf("client %d at the end: got %+v, %v, want EOF and a reconnection time", i, e, err)
		}
	}
	if err := <-shutdown; err != nil {
		t.Error(err)
	}
	for range streams[:10] {
		if err := <-reasons; !errors.Is(err, ErrClosed) {
			t.Errorf("done: got %v, want ErrClosed", err)
		}
	}
	eventuallyGoroutines(t, 0)
}

// A panic in code of the program costs one client, and nobody else notices.
func TestPanicInCatchUpCostsOneClient(t *testing.T) {
	for _, test := range []struct {
		name   string
		serve  func(*testing.T, *Broker) *pipeServer
		header string
		want   error
		logged int // by the Broker; where Serve has it net/http logs it
	}{
		{"Serve", serveBroker, "", errNotServed, 0},
		{"Detach", detachBroker, "", errPanic, 1},
		{"Detach that blocks", detachBroker, "X-Varnish: 1\r\n", errPanic, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &brokerLog{}
				b := &Broker{Logger: slog.New(log)}
				b.CatchUp = func(_ context.Context, missed Missed) iter.Seq2[Event, error] {
					if missed.LastEventID == "doomed" {
						panic("CatchUp")
					}
					return func(func(Event, error) bool) {}
				}
				s := test.serve(t, b)
				other := s.get("/", test.header)
				s.get("/", test.header+"Last-Event-ID: doomed\r\n")
				if err := s.served(); err != test.want {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if got := log.count(slog.LevelError); got != test.logged {
					t.Errorf("got %d errors logged, want %d", got, test.logged)
				}
				if got := b.Stats().Clients; got != 1 {
					t.Errorf("got %d clients, want 1", got)
				}
				b.Publish(Event{Data: "1"})
				other.want("1")
				if err := b.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			})
		})
	}
}

func TestPanicInDoneCostsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		s := newPipeServer(t, &http.Server{})
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			b.Detach(w, r, func(error) { panic("done") })
		})
		s.get("/", "")
		synctest.Wait()
		if err := b.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if got := log.count(slog.LevelError); got != 1 {
			t.Errorf("got %d errors logged, want 1", got)
		}
	})
}

// Code of the program may end its goroutine, as t.FailNow does in a test.
func TestGoexitCostsOneClient(t *testing.T) {
	for _, test := range []struct {
		name   string
		serve  func(*testing.T, *Broker) *pipeServer
		header string
	}{
		{"Serve", serveBroker, ""},
		{"Detach", detachBroker, ""},
		{"Detach that blocks", detachBroker, "X-Varnish: 1\r\n"},
	} {
		for _, when := range []string{"called", "iterated over", "finished"} {
			t.Run(test.name+", CatchUp "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{Logger: slog.New(slog.DiscardHandler)}
					empty := func(func(Event, error) bool) {}
					b.CatchUp = func(_ context.Context, missed Missed) iter.Seq2[Event, error] {
						switch {
						case missed.LastEventID != "doomed":
							return empty
						case when == "called":
							runtime.Goexit()
						}
						return func(yield func(Event, error) bool) {
							if when == "iterated over" || yield(Event{Data: "caught up"}, nil) {
								runtime.Goexit()
							}
						}
					}
					s := test.serve(t, b)
					other := s.get("/", test.header)
					doomed := s.get("/", test.header+"Last-Event-ID: doomed\r\n")
					if doomed.ended() == nil {
						t.Error("the client's stream is open")
					}
					// What Serve would have returned is lost with its goroutine.
					if err := s.served(); test.name != "Serve" && (err == nil || err == errNotServed) {
						t.Errorf("done: got %v, want an error", err)
					}
					if got := b.Stats().Clients; got != 1 {
						t.Errorf("got %d clients, want 1", got)
					}
					b.Publish(Event{Data: "1"})
					other.want("1")
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if err := b.Shutdown(ctx); err != nil {
						t.Errorf("Shutdown: %v", err)
					}
				})
			})
		}
	}
	t.Run("done", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{Logger: slog.New(slog.DiscardHandler)}
			s := newPipeServer(t, &http.Server{})
			s.serve(func(w http.ResponseWriter, r *http.Request) {
				b.Detach(w, r, func(error) { runtime.Goexit() })
			})
			for _, header := range []string{"", "X-Varnish: 1\r\n"} {
				c := s.get("/", header)
				c.want("")
				c.close()
			}
			time.Sleep(time.Minute)
			if got := b.Stats().Clients; got != 0 {
				t.Errorf("got %d clients, want none", got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := b.Shutdown(ctx); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	})
}

// What is answered is the version of the server, not whatever the client asked for.
func TestDetachAnswersInTheVersionThatNetHTTPDoes(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		for version, want := range map[string]string{"1.0": "HTTP/1.0 200 OK", "1.1": "HTTP/1.1 200 OK", "1.9": "HTTP/1.1 200 OK"} {
			conn, err := s.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET / HTTP/%s\r\nHost: test\r\n\r\n", version)
			if line, err := bufio.NewReader(conn).ReadString('\n'); strings.TrimSpace(line) != want || err != nil {
				t.Errorf("HTTP/%s: got %q, error %v, want %q", version, line, err, want)
			}
		}
	})
}

// A panickyHijacker is middleware that takes it for granted that what it wraps
// can be hijacked.
type panickyHijacker struct{ http.ResponseWriter }

func (panickyHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) { panic("Hijack") }

// A panickyLog cannot log that a client came.
type panickyLog struct{ slog.Handler }

func (l panickyLog) Enabled(context.Context, slog.Level) bool { return true }

func (l panickyLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "sse: client came" {
		panic("Handle")
	}
	return nil
}

func TestPanicBeforeTheStreamLeavesNoClientBehind(t *testing.T) {
	for _, test := range []struct {
		name string
		log  slog.Handler
		wrap func(http.ResponseWriter) http.ResponseWriter
	}{
		{"Hijack", &brokerLog{}, func(w http.ResponseWriter) http.ResponseWriter { return panickyHijacker{w} }},
		{"Logger", panickyLog{}, func(w http.ResponseWriter) http.ResponseWriter { return w }},
	} {
		for _, way := range []string{"Serve", "Detach"} {
			t.Run(test.name+", "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &Broker{Logger: slog.New(test.log)}
					s := newPipeServer(t, &http.Server{})
					s.serve(func(w http.ResponseWriter, r *http.Request) {
						if way == "Serve" {
							b.Serve(test.wrap(w), r)
						} else {
							b.Detach(test.wrap(w), r, s.done)
						}
					})
					c := s.get("/", "")
					synctest.Wait()
					c.close()
					if err := s.served(); way == "Detach" && err != errPanic {
						t.Errorf("done: got %v, want %v", err, errPanic)
					}
					if got := b.Stats().Clients; got != 0 {
						t.Errorf("got %d clients, want none", got)
					}
					if err := b.Shutdown(t.Context()); err != nil {
						t.Errorf("Shutdown: %v", err)
					}
				})
			})
		}
	}
}

// Both ways to find out whether a client has left say that one that is there is,
// one after the other.
func TestPeerThatIsThereHasNotLeft(t *testing.T) {
	_, accepted := tcpPair(t)
	c := &conn{netConn: accepted}
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	wireCheck(t, err)
	for range 2 {
		for _, c.raw = range []syscall.RawConn{nil, raw} {
			if c.peerLeft() {
				t.Error("got that the client has left")
			}
		}
	}
}

// Clients that the program sends away.

// Disconnect ends the streams of all that have one of the topics, and of nobody else.
func TestDisconnect(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{Retry: time.Second}
		s := serve(t, b)
		var gone []*pipeClient
		for i := range 20 {
			gone = append(gone, s.get([]string{"/?topic=user", "/?topic=news&topic=user"}[i%2], ""))
		}
		stays := s.get("/?topic=news", "")
		loop := followBroker(t, b, "", "user")
		loopStays := followBroker(t, b, "", "news")
		stays.want("")
		if n := b.Disconnect("user", "nobody's"); n != 21 {
			t.Errorf("got %d, want 21", n)
		}
		b.Publish(Event{Data: "1"}, "user", "news")
		stays.want("1")
		loopStays.want("1")
		loop.want("")
		if err := loop.ended(); !errors.Is(err, ErrDisconnected) {
			t.Errorf("Subscribe: got %v, want ErrDisconnected", err)
		}
		var times []time.Duration
		for i, c := range gone {
			if c.ended() == nil {
				t.Fatalf("client %d: the stream is open", i)
			}
			c.want("")
			if err := s.served(); !errors.Is(err, ErrDisconnected) {
				t.Errorf("got %v, want ErrDisconnected", err)
			}
			times = append(times, c.lastRetry())
		}
		wantSpread(t, times, time.Second)
		if err := s.served(); err != errNotServed {
			t.Errorf("the one that stays: got %v", err)
		}
		if n := b.Disconnect("user"); n != 0 {
			t.Errorf("once more: got %d, want 0", n)
		}
		// It is no ban: that is for the handler to see to.
		back := s.get("/?topic=user", "")
		back.want("")
		b.Publish(Event{Data: "2"}, "user")
		back.want("2")
	})
}

func TestDisconnectOfTheDefaultTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		if n := b.Disconnect(); n != 0 {
			t.Errorf("of a zero Broker: got %d, want 0", n)
		}
		loop := followBroker(t, b, "")
		other := followBroker(t, b, "", "other")
		if n := b.Disconnect(); n != 1 {
			t.Errorf("got %d, want 1", n)
		}
		if err := loop.ended(); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v, want ErrDisconnected", err)
		}
		if other.ended() != nil {
			t.Errorf("another topic: got %v", other.ended())
		}
	})
}

// What a client was still owed does not reach it: at most the write under way does.
func TestDisconnectOfAClientThatStalls(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		serveAndDetach(t, func(t *testing.T, serve serveFunc) {
			b := &Broker{}
			s := serve(t, b)
			c := s.get("/", "")
			c.want("")
			c.stall(true)
			b.Publish(Event{Data: "1"})
			synctest.Wait()
			b.Publish(Event{Data: "2"})
			b.Publish(Event{Data: "3"})
			if n := b.Disconnect(); n != 1 {
				t.Errorf("got %d, want 1", n)
			}
			b.Publish(Event{Data: "4"})
			if leaves {
				c.close()
			} else {
				c.stall(false)
				c.want("1")
			}
			if c.ended() == nil {
				t.Error("the stream is open")
			}
			// Also if the write under way fails.
			if err := s.served(); !errors.Is(err, ErrDisconnected) {
				t.Errorf("got %v, want ErrDisconnected", err)
			}
			if got := b.Stats().Clients; got != 0 {
				t.Errorf("got %d clients, want none", got)
			}
		})
	}
	t.Run("Subscribe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{}
			loop := followBroker(t, b, "")
			loop.stall(true)
			b.Publish(Event{Data: "1"})
			synctest.Wait()
			b.Publish(Event{Data: "2"})
			b.Disconnect()
			loop.stall(false)
			loop.want("1")
			if err := loop.ended(); !errors.Is(err, ErrDisconnected) {
				t.Errorf("got %v, want ErrDisconnected", err)
			}
		})
	})
}

// A client that reads on after its WriteTimeout has been disconnected all the same, and one
// that does not is not waited for.
func TestDisconnectOfAClientThatDoesNotRead(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{WriteTimeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		c.stall(true)
		b.Publish(Event{Data: "1"})
		synctest.Wait()
		b.Disconnect()
		time.Sleep(30 * time.Second)
		if err := s.served(); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v, want ErrDisconnected", err)
		}
	})
}

// CatchUp that runs for the client is canceled, which is no reason for a warning.
func TestDisconnectDuringCatchUp(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		stubborn := make(chan struct{})
		var canceled error
		b.CatchUp = func(ctx context.Context, missed Missed) iter.Seq2[Event, error] {
			return func(yield func(Event, error) bool) {
				if missed.LastEventID == "stubborn" {
					<-stubborn // and yields all the same
					yield(Event{Data: "secret"}, nil)
					return
				}
				<-ctx.Done()
				canceled = ctx.Err()
				yield(Event{}, ctx.Err())
			}
		}
		s := serve(t, b)
		c := s.get("/", "Last-Event-ID: nobody\r\n")
		c.want("")
		if n := b.Disconnect(); n != 1 {
			t.Errorf("got %d, want 1", n)
		}
		if c.ended() == nil || canceled == nil {
			t.Errorf("got the stream ended with %v, CatchUp with %v, want both", c.ended(), canceled)
		}
		if err := s.served(); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v, want ErrDisconnected", err)
		}
		c = s.get("/", "Last-Event-ID: stubborn\r\n")
		c.want("")
		b.Disconnect()
		close(stubborn)
		c.want("")
		if err := s.served(); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v, want ErrDisconnected", err)
		}
		if got := log.count(slog.LevelWarn); got != 0 {
			t.Errorf("got %d warnings, want none", got)
		}
	})
}

func TestClients(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		want := func(counts map[string]int) {
			t.Helper()
			time.Sleep(s.settle)
			synctest.Wait()
			for topic, want := range counts {
				if got := b.Clients(topic); got != want {
					t.Errorf("clients of %q: got %d, want %d", topic, got, want)
				}
			}
		}
		want(map[string]int{"": 0, "a": 0})
		s.get("/", "")
		a := s.get("/?topic=a", "")
		both := s.get("/?topic=a&topic=b&topic=a", "")
		s.do("HEAD", "/?topic=a", "")
		followBroker(t, b, "", "a", "c") // does not count
		want(map[string]int{"": 1, "a": 2, "b": 1, "c": 0, "nobody's": 0})
		both.close()
		b.Publish(Event{Data: "1"}, "b")
		want(map[string]int{"": 1, "a": 1, "b": 0})
		b.Publish(Event{Data: "2"}, "a")
		a.want("2")
		want(map[string]int{"a": 1})
		b.Shutdown(t.Context())
		want(map[string]int{"": 0, "a": 0})
	})
}

// What ends a write is code of the program too, where it wraps the ResponseWriter.
func TestShutdownHoldsNoLockWhileItCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
			return b.Serve(deadlineHook{w, func() { b.Stats() }}, r)
		})
		c := s.get("/", "")
		synctest.Wait()
		c.stall(true)
		b.Publish(Event{Data: "x"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: got %v", err)
		}
		if err := s.served(); !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: got %v, want ErrClosed", err)
		}
	})
}

type deadlineHook struct {
	http.ResponseWriter
	hook func()
}

func (w deadlineHook) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w deadlineHook) SetWriteDeadline(at time.Time) error {
	w.hook()
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
}

func TestRetryOfAHundredYearsIsNotNegative(t *testing.T) {
	b := &Broker{Retry: math.MaxInt64}
	if got := appendFrames(nil, b.goodbye(ErrClosed, "")); bytes.Contains(got, []byte("-")) {
		t.Errorf("got %q", got)
	}
}

// ----- In-process -----

func TestSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		events := []Event{
			{ID: "1", Type: "type", Data: "data"}, {ID: "2", Data: "two\nlines\n"}, {ID: "3"}, {ID: "4", Data: "x", Retry: time.Second},
			{ID: "5", Data: "data: x\ndata: y\n\n"}, {ID: "6", Type: "data: ", Data: "\n"},
		}
		start := b.LastEventID()
		for _, e := range events {
			b.Publish(e)
		}
		b.Publish(Event{Retry: time.Minute})
		i := 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for e, err := range b.Subscribe(ctx, start) {
			if err != nil {
				t.Fatal(err)
			}
			if i == len(events) {
				if e.Retry != time.Minute || e.Data != "" {
					t.Errorf("got %+v, want the reconnection time", e)
				}
				break
			}
			if e != events[i] {
				t.Errorf("got %+v, want %+v", e, events[i])
			}
			i++
		}
		if i != len(events) {
			t.Errorf("got %d events, want %d", i, len(events))
		}
	})
}

func TestSubscribeBeginsWithTheNextEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		b.Publish(Event{Data: "1"})
		events := b.Subscribe(t.Context(), "")
		b.Publish(Event{Data: "2"}) // the subscription begins with the loop
		if got := b.Stats().Subscribers; got != 0 {
			t.Errorf("subscribers before the loop: got %d, want none", got)
		}
		go func() {
			synctest.Wait()
			b.Publish(Event{Data: "3"})
		}()
		var got Event
		for got = range events {
			break
		}
		if got.Data != "3" {
			t.Errorf("got %+v, want event 3", got)
		}
	})
}

func TestSubscribeEndsWhenTheLoopDoes(t *testing.T) {
	b := &Broker{}
	start := b.LastEventID()
	b.Publish(Event{Data: "1"}, "a")
	b.Publish(Event{Data: "2"}, "a")
	events := b.Subscribe(t.Context(), start, "a", "b")
	for range 2 { // and may begin anew
		got := 0
		for e, err := range events {
			if got++; e.Data != "1" || err != nil {
				t.Errorf("got %+v, %v", e, err)
			}
			if got := b.Stats().Subscribers; got != 1 {
				t.Errorf("subscribers in the loop: got %d, want 1", got)
			}
			break
		}
		if got := b.Stats(); got.Subscribers != 0 || got.Topics != 1 {
			t.Errorf("after the loop: got %+v, want no subscriber, and the topic of the events", got)
		}
		if got != 1 {
			t.Errorf("got %d events, want 1", got)
		}
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the loop got no event")
			}
		}()
		for range events {
			panic("in the loop")
		}
	}()
	if got := b.Stats().Subscribers; got != 0 {
		t.Errorf("subscribers after a panic: got %d, want none", got)
	}
}

func TestSubscribeEndsWithItsContext(t *testing.T) {
	cause := errors.New("enough")
	for _, when := range []string{"before", "idle", "stalled", "in a replay"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{}
				start := b.LastEventID()
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if when == "before" {
					cancel(cause)
				}
				if when == "in a replay" {
					for range 1000 {
						b.Publish(Event{Data: "x"})
					}
				}
				n, last := 0, error(nil)
				done := make(chan bool)
				go func() {
					defer close(done)
					for e, err := range b.Subscribe(ctx, start) {
						if last != nil {
							t.Errorf("got %+v, %v after %v", e, err, last)
						}
						if err == nil {
							n++
						} else if e != (Event{}) {
							t.Errorf("got %+v with the error", e)
						}
						last = err
						switch when {
						case "stalled":
							synctest.Wait()
							for range 10 {
								b.Publish(Event{Data: "y"})
							}
							cancel(cause)
						case "in a replay":
							cancel(cause)
						}
					}
				}()
				synctest.Wait()
				switch when {
				case "idle":
					cancel(cause)
				case "stalled":
					b.Publish(Event{Data: "x"})
				}
				<-done
				if last != cause || n > 1 {
					t.Errorf("got %d events and %v, want one at most and the cause", n, last)
				}
				if got := b.Stats().Subscribers; got != 0 {
					t.Errorf("subscribers: got %d, want none", got)
				}
			})
		})
	}
}

func TestSubscribeDrainsBeforeErrClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		loop := followBroker(t, b, "")
		synctest.Wait()
		loop.stall(true)
		want := publishNumbers(b, 1000)
		done := make(chan error, 1)
		go func() { done <- b.Shutdown(t.Context()) }()
		synctest.Wait()
		loop.stall(false)
		loop.want(want)
		if err := loop.ended(); err != ErrClosed {
			t.Errorf("Subscribe: got %v, want ErrClosed", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

// A loop may publish to its own topic.
func TestSubscribeLoopMayUseTheBroker(t *testing.T) {
	b := &Broker{}
	start := b.LastEventID()
	b.Publish(Event{Data: "1"})
	n := 1
	for e, err := range b.Subscribe(t.Context(), start) {
		if err != nil || e.Data != strconv.Itoa(n) {
			t.Fatalf("got %+v, %v, want event %d", e, err, n)
		}
		if n++; n == 500 {
			break
		}
		b.Publish(Event{Data: strconv.Itoa(n)})
		b.Stats()
	}
	if n != 500 {
		t.Errorf("got %d events, want 499", n-1)
	}
}

// ----- Shutdown and Stats -----

// Shutdown.

func TestShutdownOfAThousandStreams(t *testing.T) {
	skipShort(t)
	t.Parallel()
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		_, goroutines := bubbleGoroutines()
		b := &Broker{Retry: time.Second}
		s := serve(t, b)
		stop := make(chan struct{})
		s.srv.RegisterOnShutdown(func() {
			if err := b.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			close(stop)
		})
		const n = 1000
		clients := make([]*pipeClient, n)
		for i := range clients {
			clients[i] = s.get("/", "")
		}
		synctest.Wait()
		start := time.Now()
		want := publishNumbers(b, 50)
		if err := s.srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-stop
		if took := time.Since(start); took > time.Second {
			t.Errorf("Shutdown took %v, want a second at most", took)
		}
		synctest.Wait()
		var retries []time.Duration
		for _, c := range clients {
			c.want(want)
			if c.ended() != io.EOF {
				t.Fatalf("a stream ended with %v, want EOF", c.ended())
			}
			retries = append(retries, c.blocks[len(c.blocks)-1].retry(t))
			if err := s.served(); !errors.Is(err, ErrClosed) {
				t.Fatalf("Serve: got %v, want ErrClosed", err)
			}
		}
		wantSpread(t, retries, time.Second)
		if distinct := len(slices.Compact(slices.Sorted(slices.Values(retries)))); distinct < 300 {
			t.Errorf("1,000 clients were told only %d different times", distinct)
		}
		if got := b.Stats(); got.Clients != 0 || got.Topics != 1 || got.Delivered != 50*n {
			t.Errorf("Stats: got %+v, want no client and %d delivered", got, 50*n)
		}
		if stacks, got := bubbleGoroutines(); got > goroutines {
			t.Errorf("got %d goroutines, want %d as before:\n%s", got, goroutines, stacks)
		}
	})
}

// What Shutdown says last does not make a client forget what it got just before.
func TestShutdownLeavesTheLastEventID(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		b.Publish(Event{Data: "1"})
		b.Publish(Event{Data: "2"})
		go b.Shutdown(t.Context())
		c.want("1 2")
		if got, want := c.lastID(), b.LastEventID(); got != want {
			t.Errorf("last event ID: got %q, want %q", got, want)
		}
	})
}

func TestShutdownCutsOffThoseWhoDoNotRead(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		reader := s.get("/", "")
		for i := range 10 {
			c := s.connect("/", "", i%2 == 0)
			synctest.Wait()
			c.stall(true)
		}
		want := publishNumbers(b, 10)
		synctest.Wait()
		tooLate := errors.New("too late")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, tooLate)
		defer cancel()
		shutdown := make(chan error, 1)
		s.srv.RegisterOnShutdown(func() { shutdown <- b.Shutdown(ctx) })
		start := time.Now()
		if err := s.srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("the server's Shutdown took %v, want a second at most", took)
		}
		if err := <-shutdown; err != tooLate {
			t.Errorf("Shutdown: got %v, want the cause", err)
		}
		reader.want(want)
		synctest.Wait()
		for range 11 {
			if err := s.served(); !errors.Is(err, ErrClosed) {
				t.Errorf("Serve: got %v, want ErrClosed", err)
			}
		}
		if got := b.Stats().Clients; got != 0 {
			t.Errorf("clients: got %d, want none", got)
		}
	})
}

// The reason is that of the client, if it does not take the last events it is owed.
func TestShutdownDoesNotHideThatAClientIsTooSlow(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		s := serve(t, b)
		c := s.get("/", "")
		c.want("")
		c.stall(true)
		for range 5 {
			b.Publish(Event{Data: strings.Repeat("x", 100)})
			synctest.Wait() // in its handler, which waits for the client
		}
		shutdown := make(chan error, 1)
		go func() { shutdown <- b.Shutdown(t.Context()) }()
		synctest.Wait()
		c.read(200) // the first, and the beginning of what follows
		time.Sleep(12 * time.Second)
		if err := s.served(); !errors.Is(err, ErrTooSlow) {
			t.Errorf("served: got %v, want ErrTooSlow", err)
		}
		if err := <-shutdown; err != nil {
			t.Error(err)
		}
	})
}

// Shutdown may give up while a client is about to become one that it can cut off.
func TestShutdownCutsOffThoseWhoComeLate(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &gatedLog{}
		log.gate.init()
		b := &Broker{Logger: slog.New(log)}
		s := serve(t, b)
		log.gate.set(true)
		s.getStalled("/", "")
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Shutdown(ctx); err != context.Canceled {
			t.Errorf("Shutdown: got %v, want Canceled", err)
		}
		start := time.Now()
		log.gate.set(false)
		if err := s.served(); !errors.Is(err, ErrClosed) {
			t.Errorf("served: got %v after %v, want ErrClosed at once", err, time.Since(start))
		}
	})
}

// A gatedLog is a brokerLog that lets its callers wait at a gate.
type gatedLog struct {
	brokerLog
	gate pipeGate
}

func (l *gatedLog) Handle(ctx context.Context, r slog.Record) error {
	l.gate.wait()
	return l.brokerLog.Handle(ctx, r)
}

func TestShutdownEndsCatchUpThatBeginsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		calls := controlCatchUp(b)
		loop := followBroker(t, b, "")
		close((<-calls).events)
		synctest.Wait()
		loop.stall(true)
		for i := range 20_000 { // more than the ring holds
			b.Publish(Event{Data: "x"})
			if i < 3 {
				synctest.Wait()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Shutdown(ctx); err != context.Canceled {
			t.Errorf("Shutdown: got %v, want Canceled", err)
		}
		loop.stall(false)
		if err := loop.ended(); !errors.Is(err, ErrClosed) {
			t.Errorf("Subscribe: got %v, want ErrClosed", err)
		}
	})
}

func TestShutdownEndsCatchUp(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		calls := controlCatchUp(b)
		s := serve(t, b)
		c, loop := s.get("/", ""), followBroker(t, b, "")
		first, second := <-calls, <-calls
		waiting := s.get("/", "") // nobody receives its call
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Shutdown(ctx); err != context.DeadlineExceeded {
			t.Errorf("Shutdown: got %v, want DeadlineExceeded", err)
		}
		synctest.Wait()
		if !first.gone || !second.gone || c.ended() == nil || waiting.ended() == nil || loop.ended() == nil {
			t.Error("CatchUp goes on")
		}
		if n := log.count(slog.LevelWarn); n != 0 {
			t.Errorf("warnings: got %d, want none, since nothing is wrong", n)
		}
		for range 2 {
			if err := s.served(); !errors.Is(err, ErrClosed) {
				t.Errorf("Serve: got %v, want ErrClosed", err)
			}
		}
	})
}

// A client that CatchUp is giving its events when Shutdown is called gets all.
func TestShutdownWaitsForCatchUp(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		b := &Broker{}
		calls := controlCatchUp(b)
		s := serve(t, b)
		c := s.get("/", "")
		call := <-calls
		b.Publish(Event{Data: "2"})
		done := make(chan error, 1)
		go func() { done <- b.Shutdown(t.Context()) }()
		synctest.Wait()
		call.events <- Event{Data: "1"}
		close(call.events)
		c.want("1 2")
		if err := <-done; err != nil || c.ended() != io.EOF {
			t.Errorf("Shutdown: got %v, the stream's end %v", err, c.ended())
		}
	})
}

func TestShutdownWaitsForDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		s := newPipeServer(t, &http.Server{})
		saved := make(chan struct{})
		s.serve(func(w http.ResponseWriter, r *http.Request) {
			b.Detach(w, r, func(error) { <-saved })
		})
		c := s.get("/", "")
		c.want("")
		shutdown := make(chan error, 1)
		go func() { shutdown <- b.Shutdown(t.Context()) }()
		if c.ended() != io.EOF || len(shutdown) != 0 {
			t.Errorf("the stream's end: %v; Shutdown returned before done: %v", c.ended(), len(shutdown) != 0)
		}
		close(saved)
		if err := <-shutdown; err != nil {
			t.Error(err)
		}
		if b.sweeper.Stop() {
			t.Error("the timer for keep-alives is left")
		}
	})
}

func TestShutdownTurnsNewClientsAway(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{Retry: time.Minute, Logger: slog.New(log)}
		s := serve(t, b)
		b.Publish(Event{Data: "1"})
		if err := b.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		var retries []time.Duration
		for range 20 {
			c := s.get("/", "Last-Event-ID: nobody\r\n")
			synctest.Wait()
			if c.status != 200 || c.ended() != io.EOF || len(c.blocks) != 2 ||
				c.blocks[0].Raw != ": shutting down" || c.blocks[1].HasData || c.blocks[1].ID != "nobody" {
				t.Fatalf("got %d, %+v, %v, want 200, a reconnection time with its own ID, and the end", c.status, c.blocks, c.ended())
			}
			if err := s.served(); !errors.Is(err, ErrClosed) {
				t.Errorf("Serve: got %v, want ErrClosed", err)
			}
			retries = append(retries, c.blocks[1].retry(t))
		}
		wantSpread(t, retries, time.Minute)
		if got := log.count(slog.LevelWarn); got != 0 {
			t.Errorf("warnings: got %d, want none, since nothing is wrong", got)
		}
		var errs []error
		for _, err := range b.Subscribe(t.Context(), "") {
			errs = append(errs, err)
		}
		if !slices.Equal(errs, []error{ErrClosed}) {
			t.Errorf("Subscribe: got %v, want ErrClosed alone", errs)
		}
	})
}

func TestShutdownTwiceAndOfAZeroBroker(t *testing.T) {
	var zero Broker
	for range 3 {
		if err := zero.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown of a zero Broker: %v", err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		loop := followBroker(t, b, "")
		synctest.Wait()
		loop.stall(true)
		b.Publish(Event{Data: "1"})
		for range 2 { // both give up
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := b.Shutdown(ctx); err != context.DeadlineExceeded {
				t.Errorf("Shutdown: got %v, want DeadlineExceeded", err)
			}
			cancel()
		}
		done := make(chan error)
		for range 2 {
			go func() { done <- b.Shutdown(t.Context()) }()
		}
		synctest.Wait()
		loop.stall(false)
		loop.want("1")
		if err := errors.Join(<-done, <-done); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := loop.ended(); !errors.Is(err, ErrClosed) {
			t.Errorf("Subscribe: got %v, want ErrClosed", err)
		}
	})
}

func TestShutdownAmongPublishersAndClients(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	for range 20 {
		b := &Broker{Logger: slog.New(slog.DiscardHandler)}
		srv := httptest.NewServer(b)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := b.Publish(Event{Data: "x"}); err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
			wg.Go(func() {
				for n := 0; ; n++ {
					var last error
					for _, err := range b.Subscribe(t.Context(), "") {
						if last = err; err == nil && n < 3 {
							break
						}
					}
					if errors.Is(last, ErrClosed) {
						return
					} else if last != nil {
						t.Error(last)
						return
					}
				}
			})
			wg.Go(func() {
				resp, err := http.Get(srv.URL)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
			})
		}
		for b.Stats().Delivered < 1000 {
			runtime.Gosched()
		}
		wg.Go(func() {
			if err := b.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		srv.Close()
		if got := b.Stats(); got.Clients != 0 || got.Subscribers != 0 || got.Topics != 1 {
			t.Errorf("Stats after Shutdown: got %+v, want nobody", got)
		}
	}
}

// Shutdown reports an error only if somebody was cut off.
func TestShutdownWithoutClientsIsNoError(t *testing.T) {
	b := &Broker{}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := b.Shutdown(ended); err != nil {
			t.Fatal(err)
		}
	}
}

// A client whose stream is in chunks may send another request by the same
// connection, even if Shutdown had no patience. Either that is served, or the
// connection is closed.
func TestConnectionIsWholeAfterShutdown(t *testing.T) {
	for name, request := range map[string]string{
		"GET":  "GET %s HTTP/1.1\r\nHost: test\r\nX-Varnish: 1\r\n\r\n",
		"POST": "POST %s HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				brokers := map[string]*Broker{}
				l := newPipeServer(t, &http.Server{})
				l.serve(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					brokers[r.URL.Path].Serve(w, r)
				})
				ended, cancel := context.WithCancel(t.Context())
				cancel()
				for range 300 {
					first, second := &Broker{}, &Broker{}
					brokers["/first"], brokers["/second"] = first, second
					conn, err := l.dial()
					wireCheck(t, err)
					stream := bufio.NewReader(conn)
					send := func(path string) (*http.Response, error) {
						go fmt.Fprintf(conn, request, path)
						return http.ReadResponse(stream, nil)
					}
					resp, err := send("/first")
					wireCheck(t, err)
					go first.Shutdown(ended)
					if _, err = io.Copy(io.Discard, resp.Body); err == nil {
						resp, err = send("/second")
					}
					if err == nil {
						synctest.Wait()
						second.Publish(Event{Data: "1"})
						if e, err := NewDecoder(resp.Body).Decode(); e.Data != "1" {
							t.Fatalf("the connection serves a stream that ends at once: got %+v, %v", e, err)
						}
					}
					conn.Close()
					second.Shutdown(ended)
				}
			})
		})
	}
}

// Figures and logs.

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{Logger: slog.New(slog.DiscardHandler)}
		s := serveBroker(t, b)
		want := Stats{}
		check := func(what string) {
			t.Helper()
			synctest.Wait()
			if got := b.Stats(); got != want {
				t.Errorf("%s: got %+v\nwant %+v", what, got, want)
			}
		}
		check("zero")
		start := b.LastEventID()
		b.Publish(Event{Data: "1"})
		b.Publish(Event{Data: "2"}, "a")
		want.Published, want.Topics = 2, 2
		check("published")
		b.Publish(Event{ID: "a\n"})
		b.Publish(Event{ID: b.LastEventID()})
		check("refused")

		s.get("/?topic=a&topic=b", "")
		followBroker(t, b, "")
		want.Clients, want.Subscribers, want.Topics = 1, 1, 3
		check("two came")
		b.Publish(Event{Data: "3"}, "a", "b", "")
		want.Published, want.Delivered = 3, 2
		check("delivered")
		back := s.get("/?topic=a&topic=b&topic=", "Last-Event-ID: "+start+"\r\n")
		want.Clients, want.Delivered, want.Replayed = 2, 5, 3
		check("replayed")
		b.Publish(Event{Data: "4"}, "a", "b")
		want.Published, want.Delivered = 4, 7
		check("live after a replay")
		back.close()
		want.Clients = 1
		check("one left")

		s.get("/?topic=c", "Last-Event-ID: nobody\r\n")
		followBroker(t, b, "nobody", "c")
		want.Clients, want.Subscribers, want.Topics = 2, 2, 4
		want.Gaps, want.Delivered = 2, 9
		check("gaps")

		slow := followBroker(t, b, "", "c")
		synctest.Wait()
		slow.stall(true)
		for range 5 {
			b.Publish(Event{Data: "5"}, "c")
			synctest.Wait()
		}
		slow.stall(false)
		want.Published, want.Subscribers = 9, 3
		want.Delivered += 15
		check("slow")
	})
}

func TestDeliveredDoesNotCountWhatIsNoEventOfCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		yieldAll(b, Event{Data: "1"}, Event{Data: "2"})
		followBroker(t, b, "").want("1 2")
		if got := b.Stats(); got.Delivered != 2 || got.Replayed != 0 || got.Gaps != 0 {
			t.Errorf("got %+v, want 2 delivered", got)
		}
	})
}

// A brokerLog is a handler that keeps the records.
type brokerLog struct {
	mu      sync.Mutex
	records []slog.Record
}

func (l *brokerLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *brokerLog) WithAttrs([]slog.Attr) slog.Handler       { return l }

func (l *brokerLog) WithGroup(string) slog.Handler { return l }

func (l *brokerLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return nil
}

func (l *brokerLog) count(level slog.Level) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.Level == level {
			n++
		}
	}
	return n
}

func TestLogTellsOfClientsAtDebug(t *testing.T) {
	serveAndDetach(t, func(t *testing.T, serve serveFunc) {
		log := &brokerLog{}
		b := &Broker{Logger: slog.New(log)}
		s := serve(t, b)
		c := s.get("/?topic=a", "")
		synctest.Wait()
		if got := log.count(slog.LevelDebug); got != 1 {
			t.Errorf("records at level Debug when a client came: got %d, want 1", got)
		}
		b.Publish(Event{Data: "1"}, "a")
		c.want("1")
		c.close()
		time.Sleep(16 * time.Second) // for a keep-alive: Detach notices only then
		synctest.Wait()
		if got := log.count(slog.LevelDebug); got != 2 || len(log.records) != 2 {
			t.Errorf("records when it has left: got %d at level Debug of %d, want 2 of 2", got, len(log.records))
		}
		var reason error
		log.records[1].Attrs(func(a slog.Attr) bool {
			if a.Key == "reason" {
				reason, _ = a.Value.Any().(error)
			}
			return true
		})
		if !errors.Is(reason, ErrClientLeft) {
			t.Errorf("reason in the log: got %v, want ErrClientLeft", reason)
		}
	})
}

func TestWarningsComeAtMostOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &brokerLog{}
		b := &Broker{MaxClients: 1, Logger: slog.New(log)}
		s := serveBroker(t, b)
		s.get("/", "")
		synctest.Wait()
		turnedAway := func(want int) {
			t.Helper()
			for range 5 {
				s.get("/", "")
				synctest.Wait()
			}
			if got := log.count(slog.LevelWarn); got != want {
				t.Errorf("warnings: got %d, want %d", got, want)
			}
		}
		turnedAway(1)
		time.Sleep(59 * time.Second)
		turnedAway(1)
		time.Sleep(time.Second)
		turnedAway(2)
	})
}

// The Logger may publish what it is given.
func TestLoggerMayUseTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{MaxClients: 1}
		b.Logger = slog.New(slog.NewTextHandler(publishWriter{b}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s := serveBroker(t, b)
		follower := followBroker(t, b, "", "log")
		s.get("/", "")
		synctest.Wait()
		s.get("/", "")
		synctest.Wait()
		if got := len(follower.events()); got != 3 { // one came, one was turned away, and a warning
			t.Errorf("records: got %d, want 3", got)
		}
	})
}

type publishWriter struct{ b *Broker }

func (w publishWriter) Write(p []byte) (int, error) {
	_, err := w.b.Publish(Event{Data: string(p)}, "log")
	return len(p), err
}

// Where no deadline can be set the log says so, and what is in the way.
func TestWarningWithoutDeadlines(t *testing.T) {
	for _, tt := range []struct {
		timeout time.Duration
		w       *wireTape
		want    string
	}{
		{0, &wireTape{noDeadlines: true}, "level=WARN msg=\"sse: WriteTimeout has no effect, no deadline can be set\" behind=*sse.wireTape\n"},
		{-1, &wireTape{noDeadlines: true}, ""},
		{0, &wireTape{}, ""},
	} {
		var log strings.Builder
		b := &Broker{WriteTimeout: tt.timeout, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 {
			b.Serve(wireMiddleware{tt.w}, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		}
		_, got, _ := strings.Cut(log.String(), " ") // after the time
		if got != tt.want {
			t.Errorf("WriteTimeout %v, no deadlines: %t: got log %q, want %q", tt.timeout, tt.w.noDeadlines, got, tt.want)
		}
	}
}

// ----- Costs, and the model of the Broker -----

// discardClients serves n clients, and returns a function that publishes an
// event and waits until each of them has got it. Each is then live again.
func discardClients(t testing.TB, b *Broker, n int, topics ...string) (publish func()) {
	var left atomic.Int64
	all := make(chan struct{}, 1)
	flushed := func() {
		if left.Add(-1) == 0 {
			all <- struct{}{}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for range n {
		go b.Serve(&wireTape{deaf: true, duringFlush: flushed}, httptest.NewRequest("GET", "/", nil).WithContext(ctx), topics...)
	}
	for waiting := 0; waiting < n; runtime.Gosched() {
		b.mu.Lock()
		if t := b.topics[distinct(topics)[0]]; t != nil {
			waiting = t.caughtUp
		}
		b.mu.Unlock()
	}
	return func() {
		left.Store(int64(n))
		b.Publish(Event{Data: "some data that says something"}, topics...)
		<-all
	}
}

// mallocs returns how many objects f allocates in one run, in all goroutines.
// Those that have nothing to do with f disturb some measurements, but not all.
func mallocs(f func()) float64 {
	const runs = 100
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would empty pools
	for range 300 {                                  // until the ring has its size
		f()
	}
	least := math.Inf(1)
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			f()
		}
		runtime.ReadMemStats(&after)
		least = min(least, float64(after.Mallocs-before.Mallocs)/runs)
	}
	return least
}

func TestDeliveryAllocatesNothing(t *testing.T) {
	if raceEnabled() {
		t.Skip("the race detector has sync.Pool drop what it holds")
	}
	objects := func(serve func(b *Broker) (publish func())) float64 {
		b := &Broker{History: 100, Logger: slog.New(slog.DiscardHandler)}
		defer b.Shutdown(t.Context())
		return mallocs(serve(b))
	}
	nobody := objects(func(b *Broker) func() {
		return func() { b.Publish(Event{Data: "some data that says something"}) }
	})
	one := objects(func(b *Broker) func() { return discardClients(t, b, 1) })
	many := objects(func(b *Broker) func() { return discardClients(t, b, 1000) })
	loop := objects(func(b *Broker) func() {
		got := make(chan struct{})
		start := b.LastEventID()
		go func() {
			for _, err := range b.Subscribe(t.Context(), start) {
				if err == nil {
					got <- struct{}{}
				}
			}
		}()
		return func() {
			b.Publish(Event{Data: "some data that says something"})
			<-got
		}
	})
	t.Logf("objects for one event to nobody, 1 client, 1,000 clients, 1 loop: %.2f, %.2f, %.2f, %.2f", nobody, one, many, loop)
	if one > nobody+0.5 || loop > nobody+0.5 {
		t.Errorf("objects for one event: got %.2f to a client, %.2f to a loop, %.2f to nobody", one, loop, nobody)
	}
	// One that is slow to wake up may need a new buffer now and then.
	if many > nobody+10 {
		t.Errorf("objects for one event: got %.2f to 1,000 clients, %.2f to nobody", many, nobody)
	}
	if nobody > 3.5 { // the entry, its text and its ID
		t.Errorf("objects for one event to nobody: got %.2f, want 3 at most", nobody)
	}
}

func TestBurstLeavesInTwoFlushes(t *testing.T) {
	for _, burst := range []int{2, 16, 100} {
		synctest.Test(t, func(t *testing.T) {
			b := &Broker{}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var gate pipeGate
			var flushes atomic.Int64
			gate.init()
			w := &wireTape{deaf: true, duringFlush: func() { gate.wait(); flushes.Add(1) }}
			go b.Serve(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			synctest.Wait()
			for range 3 {
				gate.set(true)
				before := flushes.Load()
				for range burst {
					b.Publish(Event{Data: "x"})
				}
				synctest.Wait()
				gate.set(false)
				synctest.Wait()
				if n := flushes.Load() - before; n < 1 || n > 2 {
					t.Errorf("%d events: got %d flushes, want 2 at most", burst, n)
				}
			}
			if got := b.Stats().Delivered; got != int64(3*burst) {
				t.Errorf("delivered: got %d, want %d", got, 3*burst)
			}
		})
	}
}

func TestServeNeedsNoGoroutineOfItsOwn(t *testing.T) {
	b := &Broker{Logger: slog.New(slog.DiscardHandler)}
	eventuallyGoroutines(t, 0) // of another test
	publish := discardClients(t, b, 200)
	for range 10 {
		publish()
	}
	// The handlers' own. The one that hands out events is about to end.
	eventuallyGoroutines(t, 200)
}

// The model of promise 1: random schedules, and what each client may see of them.

var (
	modelSeeds = flag.Int("model.seeds", 0, "schedules for TestModel to try over each transport; 0: 30, 60 with the race detector, 10 with -short")
	modelFirst = flag.Int64("model.seed", 1, "the first of them")
	figures    = flag.Bool("figures", false, "print the figures of TestFigures")
)

// TestModel runs random schedules of publishers, clients and restarts, and
// compares what each client got with what a model of the Broker allows. To run
// one that failed again: -run TestModel/serve -model.seeds 1 -model.seed N.
func TestModel(t *testing.T) {
	t.Parallel()
	seeds := *modelSeeds
	if seeds == 0 {
		seeds = 30
		if testing.Short() {
			seeds = 10
		} else if raceEnabled() {
			seeds = 60
		}
	}
	for _, transport := range modelTransports {
		t.Run(transport.name, func(t *testing.T) {
			t.Parallel()
			for i := range int64(seeds) {
				seed := *modelFirst + i
				rnd := rand.New(rand.NewPCG(uint64(seed), 0))
				schedule := make([]byte, 40+rnd.IntN(300))
				for i := range schedule {
					schedule[i] = byte(rnd.Uint32())
				}
				func() {
					finished := false
					defer func() {
						if !finished {
							t.Errorf("the above is the schedule of -model.seed %d", seed)
						}
					}()
					synctest.Test(t, func(t *testing.T) { runModel(t, transport, schedule) })
					finished = true
				}()
			}
		})
	}
}

func FuzzModel(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		schedule := make([]byte, 200)
		for i := range schedule {
			schedule[i] = byte(rnd.Uint32())
		}
		f.Add(uint8(seed), schedule)
	}
	f.Fuzz(func(t *testing.T, transport uint8, schedule []byte) {
		if len(schedule) > 1000 {
			return
		}
		tr := modelTransports[int(transport)%len(modelTransports)]
		synctest.Test(t, func(t *testing.T) { runModel(t, tr, schedule) })
	})
}

// A modelTransport is a way for a client to get its events. The client's IDs
// are those of blocks only where it sees blocks.
type modelTransport struct {
	name    string
	blocks  bool // the client sees what is no event
	connect func(m *model, c *modelClient) modelConn
}

var modelTransports = []modelTransport{
	{"serve", true, func(m *model, c *modelClient) modelConn { return m.dial("serve", c) }},
	{"detach", true, func(m *model, c *modelClient) modelConn { return m.dial("detach", c) }},
	{"subscribe", false, func(m *model, c *modelClient) modelConn {
		return newLoop(m.t, m.broker, false, c.id, m.namesOf(c.topics)...)
	}},
}

// A modelConn is a client's connection.
type modelConn interface {
	take() (blocks []pipeBlock, ended error) // what came since the last call
	stall(bool)                              // stops and resumes reading
	close()
	closeAfter(n int) // n more bytes or events
}

// A modelEvent is an event that was published, or one that the Broker has missed:
// Reset tells it so, and only CatchUp knows such an event.
type modelEvent struct {
	Event
	topics uint64
	at     time.Time
	size   int
	isEnd  bool // of a topic; it is no event, and has no ID

	// Of Set and Remove. The maps say in which topics the event is no longer the
	// value of the key: since the event at which place, or how many there were as
	// the Broker forgot its keys.
	key       string
	removes   bool
	replaced  map[int]int
	forgotten map[int]int
}

// isValue reports whether the event was Set.
func (e modelEvent) isValue() bool { return e.key != "" && !e.removes }

// unreplaced returns those of the topics in which the event is owed: all of them, unless it
// was Set and replaced.
func (e modelEvent) unreplaced(topics uint64) uint64 {
	for bit := range e.replaced {
		topics &^= 1 << bit
	}
	return topics & e.topics
}

// A modelKey is a key in the topic with this bit.
type modelKey struct {
	bit int
	key string
}

// A model is what the Broker ought to be: a log of all events, of which the
// ring is the end. A place in the log is the number of events before it. The
// schedule's bytes decide on all that happens.
type model struct {
	t         *testing.T
	transport modelTransport
	schedule  []byte
	catchUp   string        // "", or what CatchUp yields: see start
	config    Broker        // the fields of each Broker
	delay     time.Duration // CatchUp takes so long
	explicit  int           // of 4 events so many have an ID of their own
	crowd     int           // subscribers besides the clients, so that Publish leaves the fan-out to another goroutine
	clients   []*modelClient
	listener  *pipeListener
	dirty     bool // something happened since the last settle

	mu     sync.Mutex // held while publishing, so that the log's order is known
	log    []modelEvent
	byData map[string]int // index in the log
	places map[string]int // for which each ID stands
	moved  map[string]int // the first place of those that have stood for two, since Reset was given one
	number uint64         // of the newest place in the IDs that the broker assigns
	broker *Broker
	closed bool   // Shutdown was called
	prefix string // of the IDs that broker assigns
	base   int    // the place at which broker began
	forgot int    // the place at which the ring begins
	bytes  int    // in the ring
	fail   int    // CatchUp fails next time after this many events; 0: it does not
	failed bool   // it did, since the last settle
	asleep int    // calls of CatchUp that take their time
	serial int    // of events
	large  int    // events of more than one piece that broker published
	slow   int64  // Stats.TooSlow at the last settle

	keys   int              // so many there are for Set and Remove; 0: they are not called
	values map[modelKey]int // the places before the newest of each

	// Each of the three topics has one name after the other, since a name is best used
	// once. A bit stands for a name.
	names   []string
	present [3]int // the bit of each topic's name
	ended   uint64 // the names whose topics have ended
	ends    []int  // the places of the ends, by bit
	resetAt int    // the place of the last Reset
}

// A modelClient is one client over all its connections.
type modelClient struct {
	name   string
	wanted uint8  // of the three topics
	topics uint64 // their names that it knows
	query  bool   // names its last event in the query
	id     string // its last event ID
	conn   modelConn

	// Of the present connection:
	came       string // the ID it came with
	since      time.Time
	lo, hi     modelMoment
	joined     bool // these, and what follows from them, are known
	newcomer   bool // it begins with what is published from then on
	fresh      bool // nothing seen yet but the preamble
	begun      bool // the preamble was seen
	lost       bool // it came with a place that must be told as a gap
	posLo, pos int  // its place, as far as is known between these two
	stalled    bool
	wasStalled bool // in the time since the last settle
	wasReset   bool // so was the Broker
	drained    bool // it had all there is at the last settle
	parked     bool // it has been stalled since it was drained: it falls behind at an event of its topics
	floor      int  // where the ring began when a gap may have been decided on at the earliest
	leaves     bool // closeAfter was called, or Disconnect
	over       bool // it was told the end
	sentAway   bool // by Disconnect
	limit      int  // sentAway: it gets no event from this place on

	// It is sent the values of keys first, from before a place between stateLo and
	// stateHi, and what else is before that is not for it. Values that were
	// forgotten before place stateAt are not, or need not be.
	stateLo, stateHi, stateAt int

	pulledFrom             int // all that it will get was decided on when there were so many events
	blockedFrom, blockedTo int // while there were so many, nothing was
	blocked                bool

	view  map[modelKey]int // what a page would show: the place before each value
	blind bool             // it does not know the state that it began with
}

// A modelMoment is when a client connected: the earliest or the latest moment
// that it can have been.
type modelMoment struct {
	head, first int  // places: the end of the log, and where the history begins
	known       bool // the client's ID
	place       int
	ended       bool // all its topics have, as far as the history knows
	keys        bool // its topics have some
}

func (m *model) next() int {
	if len(m.schedule) == 0 {
		return 0
	}
	b := m.schedule[0]
	m.schedule = m.schedule[1:]
	return int(b)
}

// errorf reports what went wrong first; the rest would follow from it.
func (m *model) errorf(format string, args ...any) {
	m.t.Helper()
	if !m.t.Failed() {
		m.t.Errorf(format, args...)
	}
}

func runModel(t *testing.T, transport modelTransport, schedule []byte) {
	m := &model{
		t: t, transport: transport, schedule: schedule,
		byData: map[string]int{}, places: map[string]int{}, moved: map[string]int{}, values: map[modelKey]int{},
		listener: newPipeListener(),
		names:    []string{"", "a", "b"}, present: [3]int{0, 1, 2}, ends: make([]int, 3),
	}
	m.config = Broker{
		History:      []int{0, 1, 3, 20, 300, -1}[m.next()%6],
		HistoryAge:   []time.Duration{0, 0, 0, 20 * time.Second, 2 * time.Minute}[m.next()%5],
		HistoryBytes: []int{0, -1, 40, 200, 1000, 10_000}[m.next()%6],
		Retry:        []time.Duration{0, -1, time.Millisecond}[m.next()%3],
		KeepAlive:    []time.Duration{0, -1, time.Second, 50 * time.Millisecond}[m.next()%4],
	}
	m.config.MaxAge = []time.Duration{0, 0, 0, 0, 10 * time.Second, 2 * time.Minute}[m.next()%6]
	m.catchUp = []string{"", "", "", "log", "log up to", "log of those who were here", "snapshot"}[m.next()%7]
	m.delay = []time.Duration{0, 0, 10 * time.Millisecond, 30 * time.Millisecond}[m.next()%4]
	m.explicit = []int{0, 2, 4}[m.next()%3]
	m.crowd = []int{0, 0, 0, 0, 0, 0, 0, 40}[m.next()%8]
	m.keys = []int{0, 0, 1, 3, 3, 40, 400}[m.next()%7]
	if m.config.History < 0 {
		m.catchUp = "" // without a history nobody can tell where CatchUp ended
	}
	srv := &http.Server{Handler: http.HandlerFunc(m.handle), ErrorLog: pipeQuiet}
	go srv.Serve(m.listener)
	defer srv.Close()
	m.start()
	for i := range 4 {
		topics := m.next()
		m.clients = append(m.clients, &modelClient{
			name: fmt.Sprintf("client %d", i), wanted: uint8(topics%7 + 1), topics: m.called(uint8(topics%7 + 1)), query: topics >= 128,
			view: map[modelKey]int{},
		})
	}
	for len(m.schedule) > 0 && !t.Failed() {
		m.step()
	}
	m.settle()
	// In the end everybody is there, and has all there is.
	m.fail = 0
	for _, c := range m.clients {
		if c.leaves && c.conn != nil {
			c.conn.close()
		}
	}
	m.settle()
	for _, c := range m.clients {
		m.reading(c)
	}
	m.settle()
	for range 2 {
		for _, c := range m.clients {
			if c.conn == nil { // it was stalled, and its connection had ended long since, or its topics have
				m.reading(c)
			}
		}
		m.settle()
	}
	m.publish(7, 0)
	m.settle()
	for _, c := range m.clients {
		if c.conn == nil && !t.Failed() && m.config.MaxAge == 0 {
			m.errorf("%s: the stream ended", c.name)
		}
	}
	m.stop(3 * time.Second)
}

func (m *model) step() {
	op := m.next()
	c := m.clients[op>>4&3]
	switch op & 15 {
	case 0, 1, 2, 3:
		m.publish(uint8(m.next()%7+1), m.next())
	case 4, 5:
		m.dirty = true
		n := m.next()
		if n > 245 {
			n = 300
		} else {
			n %= 25
		}
		var publishers sync.WaitGroup
		for range 1 + op>>4&1 {
			topics, kind := uint8(m.next()%7+1), m.next()
			publishers.Go(func() {
				for i := range n {
					m.publish(topics, kind+i*7)
				}
			})
		}
		if op>>5&1 == 0 {
			publishers.Wait()
		} else { // something else happens meanwhile
			m.step()
			publishers.Wait()
		}
	case 6, 7, 8:
		if c.conn == nil {
			m.connect(c, op>>6&1 == 1)
			if op>>7&1 == 1 { // and has joined before anything else happens
				synctest.Wait()
				c.hi = m.moment(c, c.id)
			}
		}
	case 9:
		if c.conn != nil && !c.stalled {
			c.stalled, c.wasStalled = true, true
			c.parked = c.drained && !m.dirty
			c.conn.stall(true)
		}
	case 10, 11:
		m.reading(c)
	case 12:
		if c.conn != nil {
			c.leaves = true
			c.conn.close()
		}
	case 13:
		if c.conn != nil {
			c.leaves = true
			c.conn.closeAfter(m.next() % 100)
		}
	case 14:
		n := m.next()
		switch {
		case n < 25:
			m.restart(n)
		case n < 50:
			m.mu.Lock()
			m.fail = n % 8
			m.mu.Unlock()
		case n < 80 && c.conn == nil:
			// A page that was rendered now, or a client with an odd ID.
			c.id = []string{m.broker.LastEventID(), "nobody", m.prefix + "zzz", m.prefix + "01", "é"}[n%5]
			clear(c.view)
			if c.blind = false; n%5 == 0 {
				m.view(c, len(m.log))
			}
		case n < 90 && c.conn == nil:
			c.id = []string{"", Earliest}[n%2]
		case n < 150:
			m.reset(n)
		case n < 180:
			m.disconnect(uint8(n%7 + 1))
		case n < 215:
			m.end(n % 3)
		case n < 220 && c.conn == nil: // it learns of the new names
			topics := m.called(c.wanted)
			c.blind = c.blind || topics != c.topics && c.id != "" // what these had before its place
			c.topics = topics
		default: // in the midst of an event, or about there
			if c.conn != nil && !c.stalled {
				m.publish(c.wanted, n)
				c.stalled, c.wasStalled = true, true
				c.conn.stall(true)
			}
		}
	case 15:
		m.settle()
		n := m.next()
		d := []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, 3 * time.Minute}[n%4]
		if keepAlive := m.config.KeepAlive; keepAlive > 0 {
			d = min(d, 20*keepAlive) // which are enough of them
		}
		var others sync.WaitGroup
		if n&32 == 0 { // events together with keep-alives
			topics, kind := uint8(m.next()%7+1), m.next()
			m.dirty = true
			others.Go(func() {
				time.Sleep(d)
				for i := range 1 + n>>6 {
					m.publish(topics, kind+i*7)
				}
			})
		}
		if n&12 == 0 { // a Reset together with keep-alives, and perhaps with events
			kind := m.next()
			m.dirty = true
			others.Go(func() {
				time.Sleep(d)
				m.reset(kind)
			})
		}
		time.Sleep(d)
		others.Wait()
	}
	if m.next()&1 == 0 {
		m.settle()
	} else {
		m.dirty = true
	}
	checkInvariants(m.t, m.broker)
}

// disconnect sends away all that have one of the topics.
func (m *model) disconnect(which uint8) {
	topics := m.called(which)
	least, most := 0, 0
	for _, c := range m.clients {
		if c.conn == nil || c.topics&topics == 0 {
			continue
		}
		most++
		if c.hi.head >= 0 && !c.leaves { // else it may have yet to join, or have left
			c.sentAway = true
			if !m.dirty && !c.stalled { // nor has the server ended its stream since the last look
				least++
			}
		}
		c.leaves = true
	}
	m.mu.Lock()
	n := m.broker.Disconnect(m.namesOf(topics)...)
	limit := len(m.log)
	m.mu.Unlock()
	// Of a detached client that has closed its connection the Broker may not know.
	if n < least || n > most && m.crowd == 0 && m.transport.name != "detach" {
		m.errorf("Disconnect: got %d, want %d to %d", n, least, most)
	}
	for _, c := range m.clients {
		if c.sentAway && c.topics&topics != 0 {
			c.limit = limit
		}
	}
}

// reading makes sure that the client is connected and reads.
func (m *model) reading(c *modelClient) {
	if c.conn == nil {
		m.connect(c, false)
	}
	m.read(c)
}

func (m *model) read(c *modelClient) {
	if c.conn != nil && c.stalled {
		if c.blocked {
			m.mu.Lock()
			c.blockedTo, c.blocked = len(m.log), false
			m.mu.Unlock()
		}
		c.stalled = false
		c.conn.stall(false)
	}
}

// start makes a new Broker.
func (m *model) start() {
	b := &Broker{
		History: m.config.History, HistoryAge: m.config.HistoryAge, HistoryBytes: m.config.HistoryBytes,
		Retry: m.config.Retry, KeepAlive: m.config.KeepAlive, MaxAge: m.config.MaxAge, Logger: slog.New(slog.DiscardHandler),
	}
	switch m.catchUp {
	case "":
	case "snapshot":
		b.CatchUp = m.catchUpSnapshot
	default: // to the end of the log, or up to UpTo, or nothing to a newcomer
		b.CatchUp = m.catchUpLog
	}
	m.mu.Lock()
	m.broker, m.closed, m.ended = b, false, 0
	m.base, m.forgot, m.bytes = len(m.log), len(m.log), 0
	m.large, m.slow = 0, 0
	m.forgetKeys(-1)
	if m.config.History >= 0 {
		id := b.LastEventID()
		m.prefix = id[:strings.Index(id, "-")+1]
		m.identify(id)
	}
	m.mu.Unlock()
	for range m.crowd {
		newLoop(m.t, b, false, "", m.namesOf(m.called(7))...) // ends with the Broker
	}
}

// stop shuts the Broker down. Those who read get all they are owed; those who do
// not begin to after the time patience. It waits for two seconds.
func (m *model) stop(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var reading sync.WaitGroup
	reading.Go(func() { // in time, or when they are cut off
		time.Sleep(patience)
		for _, c := range m.clients {
			m.read(c)
		}
	})
	m.closed = true
	m.broker.Shutdown(ctx)
	reading.Wait()
	synctest.Wait()
	for _, c := range m.clients {
		if c.conn == nil {
			continue
		}
		owed := !c.wasStalled && !c.leaves
		m.check(c)
		if c.conn != nil {
			m.errorf("%s: the stream is open after Shutdown", c.name)
			c.conn.close()
		}
		owed = owed && m.config.MaxAge == 0
		if i := m.owed(c, c.pos, len(m.log)); owed && i >= 0 && m.catchUp == "" {
			m.errorf("%s: Shutdown ended its stream at place %d before it had event %q", c.name, c.pos, m.log[i].Data)
		}
	}
}

// restart replaces the Broker with a new one, which in the case of n odd tails
// the end of a log that it has in common with the old one.
func (m *model) restart(n int) {
	m.settle()
	patience := 3 * time.Second
	if n&2 == 0 {
		for kind := range n >> 2 { // events and Shutdown at once
			m.publish(7, kind)
		}
		patience = time.Second
	}
	m.stop(patience)
	before, reset := m.log[m.base:], m.resetAt-m.base
	for i := len(before) - 1; i >= 0; i-- { // or some of what makes up the state would be left out
		if e := before[i]; e.key != "" && (i < reset || len(e.forgotten) > 0 || !strings.HasPrefix(e.ID, "own ")) {
			before = before[i+1:]
			break
		}
	}
	m.start()
	if n&1 == 0 || m.catchUp != "" {
		return
	}
	for _, e := range slices.Clone(before[max(0, len(before)-n):]) {
		if !strings.HasPrefix(e.ID, "own ") || e.topics == 0 {
			continue
		}
		m.publishEvent(e.Event, e.topics, e.key, e.removes)
	}
}

// publish publishes a new event.
func (m *model) publish(topics uint8, kind int) {
	m.mu.Lock()
	m.serial++
	ev := Event{Data: strconv.Itoa(m.serial)}
	if kind&3 < m.explicit {
		ev.ID = "own " + ev.Data
	}
	switch kind >> 2 & 15 {
	case 0:
		ev.Data += "\nsecond line\n"
	case 1:
		ev.Type = "other"
	case 2:
		ev.Data += strings.Repeat(" long", 100)
	case 3:
		if kind>>6 == 0 {
			ev.Data += strings.Repeat(" very long", 10_000)
		}
	case 4: // an event that came before
		if i := len(m.log) - 1 - kind>>6; i >= m.forgot && i >= 0 && m.log[i].ID != "" && m.config.History >= 0 {
			ev.ID = m.log[i].ID
			if _, err := m.broker.Publish(ev, m.namesOf(m.called(topics))...); !errors.Is(err, ErrDuplicateID) {
				m.errorf("event with the ID of event %d, while the ring begins at %d: got %v, want ErrDuplicateID", i, m.forgot, err)
			}
			m.mu.Unlock()
			return
		}
	}
	key, names := "", m.called(topics)
	if m.keys > 0 && kind>>2&15 >= 6 {
		key = fmt.Sprint("key ", m.serial*(1+kind>>6)%m.keys)
	}
	m.mu.Unlock()
	m.publishEvent(ev, names, key, kind>>2&15 >= 14)
}

// publishEvent publishes ev, by Set or Remove if there is a key, and has the model do the
// same.
func (m *model) publishEvent(ev Event, topics uint64, key string, removes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	publish := m.broker.Publish
	switch {
	case removes && key != "":
		publish = func(ev Event, topics ...string) (string, error) { return m.broker.Remove(key, ev, topics...) }
	case key != "":
		publish = func(ev Event, topics ...string) (string, error) { return m.broker.Set(key, ev, topics...) }
	}
	if _, err := publish(ev, m.namesOf(topics)...); err != nil {
		if !errors.Is(err, ErrClosed) && !(errors.Is(err, ErrEnded) && topics&m.ended != 0) {
			m.errorf("Publish: %v", err)
		}
		return
	}
	text, _ := Event{Type: ev.Type, Data: ev.Data}.AppendText(nil)
	if m.config.History >= 0 {
		id := m.broker.LastEventID()
		if ev.ID != "" && id != ev.ID {
			m.errorf("LastEventID: got %q, want %q", id, ev.ID)
		}
		ev.ID = id
	}
	if len(text) > pieceBytes {
		m.large++
	}
	size := len(ev.ID) + len(text)
	if names := m.namesOf(topics); len(names) > 1 {
		size += len(strings.Join(names, "")) + 8*len(names)
	} else {
		size += len(names[0])
	}
	e := modelEvent{Event: ev, topics: topics, at: time.Now(), size: size} // what counts against HistoryBytes
	e.key, e.removes, e.replaced, e.forgotten = key, removes, map[int]int{}, map[int]int{}
	for bit := range m.names {
		at := modelKey{bit, key}
		if key == "" || topics>>bit&1 == 0 {
			continue
		}
		if before, ok := m.values[at]; ok {
			m.log[before].replaced[bit] = len(m.log)
			delete(m.values, at)
		}
		if !removes {
			m.values[at] = len(m.log)
		}
	}
	m.append(e)
	m.identify(e.ID)
	m.evict()
}

// evict has the model forget what the Broker does after the newest event was published.
func (m *model) evict() {
	m.bytes += m.log[len(m.log)-1].size
	for m.forgot < len(m.log)-1 && m.forgets(m.log[m.forgot]) {
		m.bytes -= m.log[m.forgot].size
		if m.log[m.forgot].isEnd {
			for bit, at := range m.ends {
				if at == m.forgot && m.ended>>bit&1 == 1 {
					m.forgetKeys(bit)
				}
			}
		}
		m.forgot++
	}
	if got := m.broker.Stats().Keys; got != len(m.values) {
		m.errorf("Stats: got %d keys, want %d", got, len(m.values))
	}
}

// forgetKeys notes that the Broker has forgotten the keys of the topic with this bit; negative:
// of all.
func (m *model) forgetKeys(bit int) {
	for at, place := range m.values {
		if bit < 0 || at.bit == bit {
			m.log[place].forgotten[at.bit] = len(m.log)
			delete(m.values, at)
		}
	}
}

// view gives c the values that its topics have when there are so many events.
func (m *model) view(c *modelClient, events int) {
	clear(c.view)
	for i, e := range m.log[:events] {
		for bit := range m.names {
			at := modelKey{bit, e.key}
			switch forgotten, ok := e.forgotten[bit]; {
			case !e.isValue() || e.topics&c.topics>>bit&1 == 0 || ok && forgotten <= events:
			default:
				if replaced, ok := e.replaced[bit]; !ok || replaced >= events {
					c.view[at] = i
				}
			}
		}
	}
}

// see has c show the event at this place, in the topics in which nothing that is to come
// replaces it.
func (m *model) see(c *modelClient, place int) {
	e := m.log[place]
	for bit := range m.names {
		switch {
		case e.key == "" || e.unreplaced(c.topics)>>bit&1 == 0:
		case e.removes:
			delete(c.view, modelKey{bit, e.key})
		default:
			c.view[modelKey{bit, e.key}] = place
		}
	}
}

// checkView checks that c, which has all there is, shows the newest value of each key.
func (m *model) checkView(c *modelClient) {
	if c.blind {
		return
	}
	for at, place := range m.values {
		shown, ok := c.view[at]
		if c.topics>>at.bit&1 == 1 && (!ok || m.log[shown].Data != m.log[place].Data) {
			m.errorf("%s, of topics %b, shows place %d, %v for %s in topic %d, want event %q at place %d",
				c.name, c.topics, shown, ok, at.key, at.bit, m.log[place].Data, place)
		}
	}
	for at, shown := range c.view {
		_, current := m.values[at]
		_, forgotten := m.log[shown].forgotten[at.bit]
		if c.topics>>at.bit&1 == 1 && !current && !forgotten {
			m.errorf("%s shows event %q at place %d for %s in topic %d, which was removed", c.name, m.log[shown].Data, shown, at.key, at.bit)
		}
	}
}

// tooLate reports whether the value at this place had been replaced or forgotten when the
// client's next events were decided on.
func (m *model) tooLate(c *modelClient, place int) bool {
	e := m.log[place]
	if !e.isValue() || m.catchUp != "" {
		return false
	}
	last := 0 // the place after which it was nobody's
	for bit := range m.names {
		if e.topics&c.topics>>bit&1 == 0 {
			continue
		}
		replaced, ok := e.replaced[bit]
		if forgotten, gone := e.forgotten[bit]; !ok && gone && place < c.stateLo {
			replaced, ok = forgotten-1, true
		}
		if !ok {
			return false
		}
		last = max(last, replaced)
	}
	return last < c.pulledFrom || place >= c.blockedFrom && last < c.blockedTo
}

// begins notes that c is sent the state first: values from before a place between lo and hi.
func (m *model) begins(c *modelClient, lo, hi, at int) {
	if m.keys > 0 {
		c.posLo, c.pos, c.stateLo, c.stateHi, c.stateAt = 0, 0, lo, hi, at
	}
}

func (m *model) append(e modelEvent) {
	m.byData[e.Data] = len(m.log)
	m.log = append(m.log, e)
}

// identify notes that the newest place has this ID, and the one that the Broker
// assigns to it in any case.
func (m *model) identify(id string) {
	if m.config.History < 0 {
		return
	}
	m.number++
	if digits, ok := strings.CutPrefix(id, m.prefix); ok {
		m.number, _ = strconv.ParseUint(digits, 36, 64)
	}
	m.places[m.prefix+strconv.FormatUint(m.number, 36)] = len(m.log)
	m.places[id] = len(m.log)
}

// reset has the Broker learn that it has missed a few events, the last of which has
// the ID that Reset is given, if any.
func (m *model) reset(kind int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.clients {
		c.parked, c.wasReset = false, true
	}
	lastID := ""
	if len(m.log) > m.base {
		lastID = m.log[len(m.log)-1].ID
	}
	for range 1 + kind%3 {
		m.serial++
		data := strconv.Itoa(m.serial)
		m.append(modelEvent{Event: Event{ID: "own " + data, Data: data}, topics: 1<<len(m.names) - 1, at: time.Now()})
		m.places["own "+data] = len(m.log)
	}
	missed := &m.log[len(m.log)-1]
	switch {
	case kind>>2&1 == 0:
		delete(m.places, missed.ID)
		missed.ID = ""
	case kind%3 == 0 && strings.HasPrefix(lastID, "own "): // it has missed nothing after all
		delete(m.places, missed.ID)
		missed.ID, missed.topics = lastID, 0
		if _, ok := m.moved[lastID]; !ok {
			m.moved[lastID] = m.places[lastID]
		}
	}
	if err := m.broker.Reset(missed.ID); err != nil {
		if !errors.Is(err, ErrClosed) {
			m.errorf("Reset(%q): %v", missed.ID, err)
		}
		return
	}
	if m.config.History >= 0 {
		id := m.broker.LastEventID()
		if missed.ID != "" && id != missed.ID {
			m.errorf("LastEventID after Reset: got %q, want %q", id, missed.ID)
		}
		missed.ID = id
	}
	m.identify(missed.ID)
	m.forgot, m.resetAt, m.bytes = len(m.log), len(m.log), 0
	m.forgetKeys(-1)
}

// forgets reports whether the oldest event in the ring is one too many.
func (m *model) forgets(oldest modelEvent) bool {
	ends := 0 // which push no events out
	for _, e := range m.log[m.forgot:] {
		if e.isEnd {
			ends++
		}
	}
	n := len(m.log) - m.forgot - ends
	maxBytes := m.config.HistoryBytes
	if maxBytes == 0 {
		maxBytes = 16 << 20
	}
	return max(n, ends) > max(m.config.History, 256) && m.config.History != 0 ||
		max(n, ends) > 10_000 ||
		m.bytes > maxBytes && maxBytes > 0 && n > 1 ||
		n+ends > 256 && m.expired(oldest)
}

func (m *model) expired(e modelEvent) bool {
	return m.config.HistoryAge > 0 && time.Since(e.at) > m.config.HistoryAge
}

// place returns the place that an ID stands for in the whole log.
func (m *model) place(id string) (place int, ok bool) {
	place, ok = m.places[id]
	return m.afterEnds(place), ok
}

// afterEnds returns the last place that has the same ID as this one: an end has none.
func (m *model) afterEnds(place int) int {
	for place < len(m.log) && m.log[place].isEnd {
		place++
	}
	return place
}

// moment returns what a client that connects now with this ID has to expect.
func (m *model) moment(c *modelClient, id string) modelMoment {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := modelMoment{head: len(m.log), ended: true}
	for at := range m.values {
		now.keys = now.keys || c.topics>>at.bit&1 == 1
	}
	for bit, at := range m.ends {
		if c.topics>>bit&1 == 1 && (m.ended>>bit&1 == 0 || at < m.forgot) {
			now.ended = false
		}
	}
	n := m.config.History
	if n == 0 {
		n = 10_000
	}
	now.first = len(m.log) // of the newest n events, and ends among and after them
	for n = max(n, 0); now.first > m.forgot && n > 0; now.first-- {
		if !m.log[now.first-1].isEnd {
			n--
		}
	}
	if n > 0 {
		now.first = m.forgot
	}
	for now.first < len(m.log) && m.expired(m.log[now.first]) {
		now.first++
	}
	if now.place, now.known = m.place(id); id == Earliest {
		now.place, now.known = now.first, m.config.History >= 0
		return now
	}
	own := strings.HasPrefix(id, m.prefix)
	first := m.places[id] // of its places, if ends follow
	if m.config.History < 0 || first < m.base || !own && (first == m.base || now.place < m.forgot) {
		now.known = false
	}
	return now
}

// owed returns the index of the first event that c must get from place lo up to hi, or
// -1.
func (m *model) owed(c *modelClient, lo, hi int) int {
	for i := lo; i < hi; i++ {
		e := m.log[i]
		topics := e.unreplaced(c.topics)
		if i < c.stateHi {
			for bit, at := range e.forgotten {
				if at <= c.stateAt {
					topics &^= 1 << bit
				}
			}
		}
		if topics != 0 && (e.isValue() || i >= c.stateHi) {
			return i
		}
	}
	return -1
}

func (m *model) connect(c *modelClient, stalled bool) {
	c.came, c.since = c.id, time.Now()
	c.lo = m.moment(c, c.id)
	c.fresh, c.begun, c.stalled, c.wasStalled = true, false, stalled, stalled
	c.drained, c.parked, c.leaves, c.wasReset = false, false, false, false
	c.sentAway, c.over = false, false
	c.stateLo, c.stateHi, c.pulledFrom = 0, 0, c.lo.head
	c.blockedFrom, c.blockedTo, c.blocked = 0, 0, false
	if c.id == "" || c.id == Earliest || m.config.History < 0 {
		clear(c.view)
		c.blind = c.id == "" && m.catchUp == "log of those who were here"
	}
	c.hi, c.joined = modelMoment{head: -1}, false
	c.conn = m.transport.connect(m, c)
	c.conn.stall(stalled)
}

// settle waits until nothing happens any more and checks what the clients got.
func (m *model) settle() {
	time.Sleep(settleTime)
	synctest.Wait()
	for m.calls() > 0 {
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	for _, c := range m.clients {
		if c.conn != nil {
			m.check(c)
		}
	}
	m.dirty, m.failed, m.slow = false, false, m.broker.Stats().TooSlow
	checkInvariants(m.t, m.broker)
}

// called returns the present names of some of the three topics.
func (m *model) called(which uint8) (topics uint64) {
	for i, bit := range m.present {
		if which>>i&1 == 1 {
			topics |= 1 << bit
		}
	}
	return topics
}

func (m *model) namesOf(topics uint64) (names []string) {
	for i, name := range m.names {
		if topics>>i&1 == 1 {
			names = append(names, name)
		}
	}
	return names
}

// end ends one of the three topics, which from then on has another name.
func (m *model) end(which int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	bit := m.present[which]
	if len(m.names) == 64 || m.ended>>bit&1 == 1 {
		return
	}
	before := m.broker.LastEventID()
	if err := m.broker.End(m.names[bit]); err != nil {
		if !errors.Is(err, ErrClosed) {
			m.errorf("End: %v", err)
		}
		return
	}
	if id := m.broker.LastEventID(); id != before {
		m.errorf("LastEventID after End: got %q, want %q", id, before)
	}
	if _, err := m.broker.Publish(Event{Data: "x"}, m.names[bit]); !errors.Is(err, ErrEnded) {
		m.errorf("Publish after End: got %v, want ErrEnded", err)
	}
	for _, c := range m.clients {
		c.parked = c.parked && c.topics>>bit&1 == 0
	}
	m.ended |= 1 << bit
	m.ends[bit] = len(m.log)
	m.log = append(m.log, modelEvent{isEnd: true, at: time.Now()})
	m.number++
	m.places[m.prefix+strconv.FormatUint(m.number, 36)] = len(m.log)
	m.evict()
	m.present[which] = len(m.names)
	m.names = append(m.names, fmt.Sprint("topic ", len(m.names)))
	m.ends = append(m.ends, 0)
}

// mustEnd reports whether the client has to be told the end. A topic has ended as long as
// the history knows, or somebody from before is there.
func (m *model) mustEnd(c *modelClient) bool {
	for bit, at := range m.ends {
		known := at >= m.forgot || c.hi.head <= at && at >= m.resetAt
		if c.topics>>bit&1 == 1 && (m.ended>>bit&1 == 0 || !known) {
			return false
		}
	}
	return true
}

// checkEnd checks that the client was to be told the end, then and there.
func (m *model) checkEnd(c *modelClient) {
	c.over = true
	last := 0 // its end, after which only Reset can tell of more
	for bit, at := range m.ends {
		if c.topics>>bit&1 == 1 {
			last = max(last, at)
		}
	}
	switch i := m.owed(c, c.pos, last); {
	case c.topics&^m.ended != 0:
		m.errorf("%s of topics %b was told the end, while only %b have ended", c.name, c.topics, m.ended)
	case c.lost && c.fresh:
		m.errorf("%s came with %q and was told the end without being told of a gap", c.name, c.came)
	case i >= 0:
		m.errorf("%s, at place %d, was told the end before or without %q at place %d", c.name, c.pos, m.log[i].Data, i)
	}
}

// calls returns how many calls of CatchUp take their time.
func (m *model) calls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asleep
}

// check compares what the client got with the model.
func (m *model) check(c *modelClient) {
	if !c.joined {
		c.joined = true
		if c.hi.head < 0 {
			c.hi = m.moment(c, c.came)
		}
		c.lost = (!c.lo.known || c.lo.place < c.lo.first) && (!c.hi.known || c.hi.place < c.hi.first)
		c.posLo, c.pos = c.lo.place, c.lo.place
		c.floor = c.lo.first
		c.newcomer = c.came == "" && (m.catchUp == "" || m.catchUp == "log of those who were here") ||
			c.came == Earliest && m.config.History < 0
		switch {
		case c.newcomer:
			c.lost = false
			c.posLo, c.pos = c.lo.head, c.hi.head
			if m.catchUp == "" && m.config.History >= 0 && c.topics&^m.ended == 0 { // then it begins with what the history holds
				c.posLo = min(c.lo.head, c.lo.first)
				if c.lo.ended && c.hi.ended {
					c.pos = c.hi.first
				}
			}
		case m.catchUp != "":
			c.lost = false
		case c.lost && m.config.History < 0:
			c.lost = false
			c.posLo, c.pos = c.lo.head, c.hi.head
		}
		if c.came == Earliest && !c.newcomer {
			c.pos = max(c.lo.place, c.hi.place)
		}
		if m.catchUp == "" && (c.newcomer || c.came != "" && m.config.History < 0) || c.came == Earliest && !c.newcomer {
			m.begins(c, c.posLo, c.pos, c.hi.head)
		} else if place, ok := m.place(c.came); ok { // a Reset may have given the ID another place meanwhile
			c.posLo, c.pos = min(c.posLo, place), max(c.pos, place)
		}
	}
	if c.newcomer && m.catchUp != "" && c.fresh && (c.wasStalled || c.wasReset) {
		// CatchUp was called as it began to read, or once more, and had nothing for it.
		c.pos = len(m.log)
	}
	blocks, ended := c.conn.take()
	for _, block := range blocks {
		failed := m.t.Failed()
		m.checkBlock(c, block)
		if !failed && m.t.Failed() {
			m.t.Logf("%s, topics %03b, came with %q, had %q; model: places %d to %d, ring from %d to %d, %s; Broker %d %v %d",
				c.name, c.topics, c.came, c.id, c.posLo, c.pos, m.forgot, len(m.log), m.catchUp,
				m.config.History, m.config.HistoryAge, m.config.HistoryBytes)
			return
		}
	}
	if errors.Is(ended, ErrEnded) { // of a loop
		m.checkEnd(c)
	}
	if ended != nil && c.over {
		c.conn.close()
		c.conn, c.id, c.topics = nil, "", m.called(c.wanted) // it begins with the next ones
		return
	}
	if ended != nil {
		age := time.Since(c.since)
		old := m.config.MaxAge > 0 && m.transport.blocks && age >= m.config.MaxAge*9/10
		// It may have been sent the oldest of several large events that had left the log.
		held := m.config.HistoryBytes > 0 && m.large > 1 && m.broker.Stats().TooSlow > m.slow
		if !c.leaves && !c.wasStalled && !m.failed && !m.closed && !old && !held {
			m.errorf("%s: the stream ended", c.name)
		}
		c.conn.close()
		c.conn = nil
		return
	}
	c.drained = false
	if limit := m.config.MaxAge + 5*time.Second; limit > 5*time.Second && m.transport.blocks && !c.stalled && !c.wasStalled && !c.leaves {
		// It was looked at when time last passed.
		if age := time.Since(c.since); age > limit {
			m.errorf("%s: the stream is open after %v, want it ended after %v", c.name, age, m.config.MaxAge)
		}
	}
	if !c.stalled && !c.wasStalled && !c.leaves && (c.over || m.mustEnd(c)) {
		m.errorf("%s: the stream is open, all its topics have ended", c.name)
	}
	if c.sentAway && !c.stalled && !c.wasStalled {
		m.errorf("%s: the stream is open after Disconnect", c.name)
	}
	if !c.stalled && !c.leaves {
		c.drained = true
		if c.pos < c.stateLo && m.transport.blocks && m.config.History >= 0 && !c.over {
			m.errorf("%s, at place %d, was not told a position after its state, up to %d", c.name, c.pos, c.stateLo)
		}
		if i := m.owed(c, c.pos, len(m.log)); i >= 0 {
			m.errorf("%s, at place %d with ID %q, did not get event %q", c.name, c.pos, c.id, m.log[i].Data)
		}
		if c.lost && c.fresh {
			m.errorf("%s came with %q and was not told of a gap", c.name, c.came)
		}
	}
	if c.drained {
		m.checkView(c)
		c.floor, c.pulledFrom = m.forgot, len(m.log)
	} else if c.stalled && !c.blocked && m.owed(c, c.pos, len(m.log)) >= 0 {
		c.blockedFrom, c.blockedTo, c.blocked = len(m.log), 0, true // it is being sent that
	}
	c.parked = c.parked && c.stalled
	c.wasStalled, c.wasReset = c.stalled, false
}

func (m *model) checkBlock(c *modelClient, block pipeBlock) {
	defer func() {
		if block.HasID {
			c.id = block.ID
		}
		c.begun = c.begun || !block.Comment
	}()
	e, isEvent := modelEvent{}, false
	i, ok := m.byData[block.Data]
	if ok {
		e, isEvent = m.log[i], true
	}
	switch {
	case c.over && !block.Comment:
		m.errorf("%s got %q after the end", c.name, block.Raw)
	case block.Type == "end":
		if block.ID != "sse-end" || block.Data != "" || !block.HasData {
			m.errorf("%s got %q, want the event end", c.name, block.Raw)
		}
		m.checkEnd(c)
	case block.Comment:
		c.begun = true
	case block.Type == "snapshot" && m.catchUp == "snapshot":
		place, err := strconv.Atoi(block.Data)
		if err != nil || place < c.posLo {
			m.errorf("%s, at place %d, got a snapshot of place %q", c.name, c.posLo, block.Data)
		}
		c.fresh, c.posLo, c.pos, c.stateLo, c.stateHi = false, place, place, 0, 0
		m.view(c, place)
	case block.Type == "gap":
		m.checkGap(c, block)
	case !block.HasData:
		m.checkMark(c, block)
	case !isEvent || block.Event() != e.Event && block.Event() != (Event{Type: e.Type, Data: e.Data}):
		m.errorf("%s got %.200q, which was not published; that was %.200q", c.name, block.Raw, fmt.Sprint(e.Event))
	case e.topics&c.topics == 0:
		m.errorf("%s got event %q of topics %03b", c.name, e.Data, e.topics)
	case block.ID != e.ID:
		m.errorf("%s got event %q with ID %q, want %q", c.name, e.Data, block.ID, e.ID)
	case c.sentAway && i >= c.limit:
		m.errorf("%s got event %q at place %d, which was published after Disconnect at %d", c.name, e.Data, i, c.limit)
	case c.lost && c.fresh:
		m.errorf("%s came with %q and got event %q without being told of a gap", c.name, c.came, e.Data)
	case i < c.posLo:
		m.errorf("%s, at place %d, got event %q at place %d again or too late", c.name, c.posLo, e.Data, i)
	case m.owed(c, c.pos, i) >= 0:
		lost := m.owed(c, c.pos, i)
		m.errorf("%s, at place %d, got event %q at place %d before or without %q at place %d", c.name, c.pos, e.Data, i, m.log[lost].Data, lost)
	case i < c.stateLo && !e.isValue():
		m.errorf("%s got event %q at place %d, which is no value, while it is sent the state up to %d", c.name, e.Data, i, c.stateLo)
	case m.tooLate(c, i):
		m.errorf("%s got event %q at place %d, replaced at %v or forgotten at %v, which was so %d events ago, or while it read nothing, from %d to %d",
			c.name, e.Data, i, e.replaced, e.forgotten, len(m.log)-c.pulledFrom, c.blockedFrom, c.blockedTo)
	default:
		c.fresh, c.posLo, c.pos = false, i+1, i+1
		if !e.isValue() {
			c.stateHi = min(c.stateHi, i+1)
		}
		m.see(c, i)
	}
}

// checkGap checks that the client had to be told of a gap, then and there.
func (m *model) checkGap(c *modelClient, block pipeBlock) {
	fresh := c.fresh
	c.fresh = false
	clear(c.view)
	c.blind = false
	place, known := m.place(block.ID)
	switch {
	case m.catchUp != "":
		m.errorf("%s was told of a gap, in spite of CatchUp", c.name)
		return
	case block.Data != c.id && c.id != Earliest && (m.transport.blocks || c.id != "" && m.keys == 0) && !(c.query && c.id == c.came && block.Data == ""):
		m.errorf("%s was told of a gap after %q, want %q", c.name, block.Data, c.id)
	case m.config.History < 0: // the gap's end is not told
		if c.posLo >= m.forgot {
			m.errorf("%s, at place %d, was told of a gap, while the ring begins at %d", c.name, c.posLo, m.forgot)
		}
		c.pos = m.forgot
		m.begins(c, c.floor, m.afterEnds(m.forgot), len(m.log))
		return
	case block.ID == "" && m.keys > 0: // not before the state was sent
		upTo := m.afterEnds(m.forgot)
		if fresh {
			upTo = max(upTo, m.afterEnds(c.hi.first))
		}
		if c.parked && m.transport.name != "detach" && m.crowd == 0 && !m.missed(c, c.posLo, upTo) {
			m.errorf("%s, at place %d, was told of a gap up to %d at most, in which it missed nothing", c.name, c.posLo, upTo)
		}
		c.parked = false
		m.begins(c, c.floor, upTo, len(m.log))
		return
	case !known:
		m.errorf("%s was told of a gap, with the strange ID %q", c.name, block.ID)
	case fresh && c.came != "" && c.came != Earliest && (!c.hi.known || c.hi.place < c.hi.first) && place <= m.afterEnds(c.hi.first):
		if place < c.lo.first {
			m.errorf("%s came with %q and was told of a gap that ends at %d, before the history, which begins at %d", c.name, c.came, place, c.lo.first)
		}
	case place <= c.posLo, place > m.afterEnds(m.forgot), place < c.floor:
		m.errorf("%s, at place %d, was told of a gap up to %d, while the ring began between %d and %d", c.name, c.posLo, place, c.floor, m.forgot)
	case c.parked && m.transport.name != "detach" && m.crowd == 0 && m.owed(c, c.posLo, place) < 0:
		m.errorf("%s, at place %d, was told of a gap up to %d, in which it missed nothing", c.name, c.posLo, place)
	}
	c.parked = false
	c.isAt(block.ID, place, m)
	for at, before := range m.values {
		if c.topics>>at.bit&1 == 1 && before < place {
			m.errorf("%s was told the place %d after a gap, before event %q at place %d, the value of %s", c.name, place, m.log[before].Data, before, at.key)
		}
	}
}

// missed reports whether something of c's between these places is no longer to be had.
func (m *model) missed(c *modelClient, from, to int) bool {
	for i := from; i < to; i++ {
		if e := m.log[i]; e.topics&c.topics != 0 && (!e.isValue() && i >= c.stateLo || len(e.forgotten) > 0) {
			return true
		}
	}
	return false
}

// isAt notes the client's place, of which the ID was told.
func (c *modelClient) isAt(id string, place int, m *model) {
	c.posLo, c.pos, c.stateLo, c.stateHi = place, place, 0, 0
	if before, ok := m.moved[id]; ok { // it may have been told before that
		c.posLo = min(c.posLo, before)
	}
}

// checkMark checks a block that is no event: the preamble, the last word, or
// one that renews the client's ID.
func (m *model) checkMark(c *modelClient, block pipeBlock) {
	preamble := !c.begun
	if preamble && c.came == "" && m.catchUp == "" && m.config.History >= 0 && !block.HasID && !c.lo.keys && c.lo.head == c.hi.head {
		m.errorf("%s came without an ID and got %q, want one", c.name, block.Raw)
	}
	if !block.HasID {
		return
	}
	if preamble && c.came != "" && c.came != Earliest { // its own ID again
		if block.ID != c.came {
			m.errorf("%s was told the ID %q at first, want its own, %q", c.name, block.ID, c.came)
		}
		return
	}
	place, known := m.place(block.ID)
	if !known || place < max(c.posLo, c.stateLo) || m.owed(c, c.pos, place) >= 0 {
		m.errorf("%s, at place %d to %d, was told that it had all before %q, which is place %d", c.name, c.posLo, c.pos, block.ID, place)
	}
	c.isAt(block.ID, place, m)
}

// catchUpLog yields what a database would: all events after the ID, up to the end
// or up to UpTo.
func (m *model) catchUpLog(ctx context.Context, missed Missed) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if m.catchUp == "log of those who were here" && missed.LastEventID == "" {
			m.pause(ctx)
			return
		}
		m.mu.Lock()
		if missed.LastEventID == Earliest {
			m.errorf("CatchUp was asked for Earliest")
		}
		i, _ := m.place(missed.LastEventID)
		upTo, _ := m.place(missed.UpTo)
		fail := m.fail
		m.fail = 0
		m.mu.Unlock()
		for n := 0; ; i++ {
			m.mu.Lock()
			if i == len(m.log) || m.catchUp == "log up to" && i >= upTo {
				m.mu.Unlock()
				break
			}
			e := m.log[i]
			names := m.namesOf(e.topics)
			m.mu.Unlock()
			if !slices.ContainsFunc(names, func(name string) bool { return slices.Contains(missed.Topics, name) }) {
				continue
			}
			if n++; n == fail {
				m.mu.Lock()
				m.failed = true
				m.mu.Unlock()
				yield(Event{}, errors.New("the database is on fire"))
				return
			}
			if !yield(e.Event, nil) {
				return
			}
		}
		m.pause(ctx)
	}
}

// catchUpSnapshot yields one event that stands for all up to now.
func (m *model) catchUpSnapshot(ctx context.Context, _ Missed) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		m.mu.Lock()
		place, id := len(m.log), m.broker.LastEventID()
		m.mu.Unlock()
		m.pause(ctx)
		yield(Event{ID: id, Type: "snapshot", Data: strconv.Itoa(place)}, nil)
	}
}

// pause has CatchUp take its time.
func (m *model) pause(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.delay == 0 {
		return
	}
	m.asleep++
	m.mu.Unlock()
	select {
	case <-time.After(m.delay):
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.asleep--
}

func (m *model) handle(w http.ResponseWriter, r *http.Request) {
	topics := r.URL.Query()["topic"]
	switch r.URL.Path {
	case "/serve":
		m.broker.Serve(w, r, topics...)
	case "/detach":
		m.broker.Detach(w, r, nil, topics...)
	}
}

// dial connects the client over HTTP.
func (m *model) dial(path string, c *modelClient) modelConn {
	query := url.Values{"topic": m.namesOf(c.topics)}
	header := ""
	switch {
	case c.id == "":
	case c.query:
		query.Set("lastEventId", c.id)
	default:
		header = "Last-Event-ID: " + c.id + "\r\n"
	}
	return pipeGet(m.t, m.listener, "/"+path+"?"+query.Encode(), header, false)
}

// checkInvariants checks what stands above the types of broker.go as true whenever mu
// is free. It looks inside on purpose: where a count is wrong, a client gets an event
// too late much later, and nobody knows why.
func checkInvariants(t *testing.T, b *Broker) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.topics == nil {
		return
	}
	l := &b.log
	equal := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %d, want %d", what, got, want)
		}
	}
	must := func(holds bool, format string, args ...any) {
		t.Helper()
		if !holds {
			t.Errorf("want "+format, args...)
		}
	}

	// The log.
	must(l.tail <= l.head+1, "tail ≤ head+1, got %d and %d", l.tail, l.head)
	refs := map[*topic]int{}
	size, own, ends := 0, 0, 0
	last := l.before
	for seq := l.tail; seq <= l.head; seq++ {
		f := l.at(seq)
		size += f.size
		switch {
		case f.endsTopics:
			ends++
			must(f.id == last || l.history < 0 || last == "", "the end %d to have the ID before it, %q, got %q", seq, last, f.id)
		case l.history >= 0 && !l.assigns(f.id):
			own++
			must(l.ids[f.id] == seq, "ID %q for event %d, got %d", f.id, seq, l.ids[f.id])
		case l.history >= 0:
			must(f.id == l.assignedID(seq), "ID %q for event %d, got %q", l.assignedID(seq), seq, f.id)
		}
		last = f.id
		for _, tp := range f.topics {
			refs[tp]++
		}
	}
	equal("size of the log", l.size, size)
	equal("IDs of events in the log", len(l.ids), own)
	most, events := max(l.history, minQueue), l.len()-ends
	must(events <= most && ends <= most, "at most %d events and %d ends in the log, got %d and %d", most, most, events, ends)
	must(l.bytes < 0 || l.size <= l.bytes || events <= 1, "at most %d bytes in the log, got %d", l.bytes, l.size)
	must(l.tail <= b.announced && b.announced <= l.head+1, "tail %d ≤ announced %d ≤ head+1 %d", l.tail, b.announced, l.head+1)
	must(b.announcing || b.announced == l.head+1, "all announced up to %d or somebody about to, got %d", l.head+1, b.announced)
	equal("signals that were not given", len(b.woken), 0)

	// Subscribers.
	clients := 0
	held := map[*frame]int{}
	queued := map[*conn]bool{}
	b.conns.mu.Lock()
	for c := b.conns.first; c != nil; c = c.after {
		queued[c] = true
	}
	b.conns.mu.Unlock()
	unaware, aware, clientsOf, before := map[*topic]int{}, map[*topic]int{}, map[*topic]int{}, map[*topic]int{}
	for i, m := range b.subs {
		s := m.sub
		must(m.nth == len(s.topics) && s.indexes[m.nth] == i, "subscriber %d to know its place", i)
		if s.client {
			clients++
		}
		if s.held != nil {
			held[s.held]++
		}
		for nth, tp := range s.topics {
			refs[tp]++
			place := s.indexes[nth]
			must(place < len(tp.members) && tp.members[place] == member{s, nth}, "subscriber %d to know its place in topic %q", i, tp.name)
			if s.client {
				clientsOf[tp]++
			}
			if s.joined < tp.ended || s.owedEnd {
				before[tp]++
			}
			switch {
			case s.waiting && s.cursor <= tp.newest:
				unaware[tp]++
			case s.waiting:
				aware[tp]++
			}
		}
		must((s.end != nil) == s.over.Load(), "over to be set with end, %v", s.end)
		must(s.cursor <= l.head+1, "a cursor up to %d, got %d", l.head+1, s.cursor)
		if !s.waiting {
			continue
		}
		must(s.end == nil, "nobody to wait whose stream has ended, %v", s.end)
		must(s.conn == nil || s.signal != nil || !queued[s.conn], "no connection in the queue whose client waits")
		for seq := max(s.cursor, l.tail); seq < b.announced; seq++ {
			must(!s.wantsLocked(l.at(seq)), "event %d not to be for subscriber %d, which waits from %d on", seq, i, s.cursor)
		}
	}
	equal("clients", b.clients, clients)
	for f, n := range held {
		equal("clients that hold a frame", int(f.holders), n)
	}

	// Topics.
	keys := 0
	for name, tp := range b.topics {
		what := func(s string) string { return fmt.Sprintf("topic %q: %s", name, s) }
		equal(what("unaware members"), tp.toWake, unaware[tp])
		equal(what("aware members"), tp.caughtUp, aware[tp])
		equal(what("clients"), tp.clients, clientsOf[tp])
		must(tp.newest >= b.announced || tp.toWake == 0, "topic %q to have nobody unaware of %d, got %d", name, tp.newest, tp.toWake)
		equal(what("references"), tp.refs, refs[tp]+len(tp.keys))
		must(tp.refs > 0 && tp.name == name, "topic %q to be referred to", name)
		must(tp.newest <= l.head && tp.evicted < l.tail && tp.ended <= l.head, "topic %q to know of events published", name)
		if tp.ended > 0 {
			equal(what("members that are to be told the end"), tp.owed, before[tp])
		}
		keys += len(tp.keys)
		replaced, at, values := 0, uint64(0), map[*frame]bool{}
		for _, f := range tp.keys {
			values[f] = true
		}
		for _, f := range tp.values {
			must(f.seq > at, "the values of topic %q in order", name)
			at = f.seq
			if !slices.Contains(f.topics, tp) {
				replaced++
			} else {
				must(f.keyed && values[f], "value %d of topic %q to be that of its key", f.seq, name)
			}
		}
		equal(what("replaced values"), tp.replaced, replaced)
		equal(what("values"), len(tp.values)-replaced, len(tp.keys))
	}
	for tp := range refs {
		must(b.topics[tp.name] == tp, "topic %q to be known", tp.name)
	}
	equal("keys", b.stats.Keys, keys)
}

// ----- Benchmarks -----

// One operation of those that publish is one event, until each subscriber has got it.

var benchmarkEvents = []struct {
	name  string
	event Event
}{
	{"small", Event{ID: "k3v9x2ab-1f", Data: "hello, world"}},
	{"typed", Event{ID: "k3v9x2ab-1f", Type: "tick", Retry: 3 * time.Second, Data: "hello, world"}},
	{"JSON of 1 KiB", Event{ID: "k3v9x2ab-1f", Data: `{"text":"` + strings.Repeat("x", 1013) + `"}`}},
	{"100 lines", Event{ID: "k3v9x2ab-1f", Data: strings.Repeat("a line of text\n", 100)}},
	{"100 lines in CRLF", Event{ID: "k3v9x2ab-1f", Data: strings.Repeat("a line of text\r\n", 100)}},
}

// What publishers, slow clients and long strings cost, at the sizes of the table in
// examples/benchmark: go test -v -run TestFigures . -figures
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("measures, and asserts nothing: -figures")
	}
	t.Run("Publish beside replays", func(t *testing.T) {
		for _, topics := range []int{1, 200, 1000} {
			b := &Broker{HistoryBytes: -1}
			start := b.LastEventID()
			var names []string
			for i := range topics {
				names = append(names, fmt.Sprint("topic ", i))
			}
			for range 5000 {
				b.Publish(Event{Data: "x"}, names...)
			}
			b.Publish(Event{Data: "the end"}, "a")
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			var read atomic.Int64
			for range 200 {
				running.Go(func() {
					for ctx.Err() == nil {
						for range b.Subscribe(ctx, start, "a", "b", "c") {
							read.Add(1)
							break
						}
					}
				})
			}
			time.Sleep(time.Second)
			var waits []time.Duration
			for range 11 {
				began := time.Now()
				b.Publish(Event{Data: "x"}, "other")
				waits = append(waits, time.Since(began))
				time.Sleep(time.Millisecond)
			}
			cancel()
			running.Wait()
			slices.Sort(waits)
			fmt.Printf("Publishing: Publish beside 200 that replay 5,000 events of %d topics: median %v, worst %v\n", topics, waits[5], waits[10])
		}
	})
	t.Run("topics of events", func(t *testing.T) {
		var names []string
		for i := range 5000 {
			names = append(names, fmt.Sprint("topic ", i))
		}
		b := &Broker{}
		b.Publish(Event{Data: "x"}, names...)
		before := heapInUse()
		for range 2000 {
			b.Publish(Event{Data: "an event of 20 bytes"}, names...)
		}
		fmt.Printf("Publishing: 2,000 events of 20 bytes to 5,000 topics hold %.1f MiB, HistoryBytes 16 MiB\n", float64(heapInUse()-before)/(1<<20))
		runtime.KeepAlive(b)
	})
	for name, serve := range map[string]func(*testing.T, *Broker) *pipeServer{"Serve": serveBroker, "Detach": detachBroker} {
		t.Run("evicted events, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Broker{Logger: slog.New(slog.DiscardHandler)}
				s := serve(t, b)
				before := heapInUse()
				large := strings.Repeat("x", 8<<20)
				for range 60 {
					c := s.get("/", "")
					c.want("")
					c.stall(true)
					b.Publish(Event{Data: large})
					synctest.Wait()
				}
				fmt.Printf("Memory: %s: 60 clients that never read and 60 events of 8 MiB: %d MiB\n", name, (heapInUse()-before)>>20)
			})
		})
	}
	for _, name := range []string{"Serve", "Detach"} {
		t.Run("stalled clients, "+name, func(t *testing.T) {
			const clients = 200
			b := &Broker{WriteTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler)}
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if name == "Serve" {
					b.Serve(w, r)
				} else {
					b.Detach(w, r, nil)
				}
			}))
			srv.Config.ConnState = func(c net.Conn, state http.ConnState) {
				if state == http.StateNew {
					c.(*net.TCPConn).SetWriteBuffer(4 << 10)
				}
			}
			srv.Start()
			inUse := func() int64 {
				heap := heapInUse()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return heap + int64(m.StackInuse)
			}
			none := inUse()
			for range clients {
				conn, err := net.Dial("tcp", srv.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.(*net.TCPConn).SetReadBuffer(4 << 10)
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
				io.ReadFull(conn, make([]byte, 64))
			}
			b.Publish(Event{Data: "x"})
			time.Sleep(time.Second)
			idle := inUse()
			for i := range 100 {
				b.Publish(Event{ID: fmt.Sprint(i), Data: strings.Repeat("x", 20<<10)})
			}
			time.Sleep(time.Second)
			stalled := inUse() - 100*(20<<10+200)
			fmt.Printf("Memory: %s: an idle client costs %d bytes (the test's end included), a stalled one %d more; %d clients\n", name, (idle-none)/clients, (stalled-idle)/clients, b.Stats().Clients)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			b.Shutdown(ctx)
			srv.Close()
		})
	}
	t.Run("parts of long strings, topics", func(t *testing.T) {
		b := &Broker{Logger: slog.New(slog.DiscardHandler)}
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.Detach(w, r, nil, r.URL.Query().Get("stream"))
		}))
		before := heapInUse()
		rest := strings.Repeat("x", 900<<10)
		for i := range 200 {
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET /?stream=%d&rest=%s HTTP/1.1\r\nHost: test\r\n\r\n", i, rest)
			head := bufio.NewReaderSize(conn, 16)
			for line := ""; line != "\n"; {
				if line, err = head.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(100 * time.Millisecond)
		fmt.Printf("Strings: 200 detached clients with a topic of a query of 900 KiB: %d MiB\n", (heapInUse()-before)>>20)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.Shutdown(ctx)
		srv.Close()
	})
	t.Run("parts of long strings, IDs", func(t *testing.T) {
		b := &Broker{}
		before := heapInUse()
		for i := range 1000 {
			message := fmt.Sprint(i, strings.Repeat(" message", 1<<17))
			b.Publish(Event{ID: message[:strings.IndexByte(message, ' ')], Data: "x"})
		}
		fmt.Printf("Strings: 1,000 events whose IDs are parts of messages of 1 MiB: %d MiB\n", (heapInUse()-before)>>20)
		runtime.KeepAlive(b)
	})
	t.Run("fairness", func(t *testing.T) {
		b := &Broker{History: 300_000, HistoryBytes: -1}
		publish := followMany(t, b, 3000)
		for _, tight := range []bool{false, true} {
			var p *tightPublisher
			if tight {
				p = publishTightly(b)
				time.Sleep(50 * time.Millisecond)
			}
			var times []time.Duration
			for range 30 {
				began := time.Now()
				publish()
				times = append(times, time.Since(began))
				time.Sleep(10 * time.Millisecond)
			}
			if p != nil {
				p.end()
			}
			slices.Sort(times)
			fmt.Printf("Fairness: an event to 3,000, beside a tight publisher %v: median %v, worst %v\n", tight, times[15], times[29])
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, bb := range benchmarkEvents {
		b.Run(bb.name, func(b *testing.B) {
			buf, err := bb.event.AppendText(nil)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf, _ = bb.event.AppendText(buf[:0])
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, bb := range benchmarkEvents {
		b.Run(bb.name, func(b *testing.B) {
			frame, err := bb.event.AppendText(nil)
			if err != nil {
				b.Fatal(err)
			}
			d := NewDecoder(&repeatingReader{text: string(frame)})
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{0, 1, 100, 1000, 10_000} {
		b.Run(fmt.Sprint("subscribers=", n), func(b *testing.B) {
			broker := &Broker{Logger: slog.New(slog.DiscardHandler)}
			publish := func() { broker.Publish(Event{Data: "some data that says something"}) }
			if n > 0 {
				publish = discardClients(b, broker, n)
			}
			b.ReportAllocs()
			for b.Loop() {
				publish()
			}
			if n > 0 {
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/delivery")
			}
		})
	}
}

func BenchmarkPublishBurst(b *testing.B) {
	const n, burst = 1000, 16
	broker := &Broker{Logger: slog.New(slog.DiscardHandler)}
	discardClients(b, broker, n)
	b.ReportAllocs()
	delivered := broker.Stats().Delivered
	for b.Loop() {
		for range burst {
			broker.Publish(Event{Data: "some data that says something"})
		}
		for delivered += burst * n; broker.Stats().Delivered < delivered; {
			runtime.Gosched()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n/burst, "ns/delivery")
}

func BenchmarkPublishToOneOfManyTopics(b *testing.B) {
	broker := &Broker{Logger: slog.New(slog.DiscardHandler)}
	for i := range 100_000 { // each has a subscriber, which gets nothing
		if err := broker.join(&subscriber{}, "", []string{fmt.Sprint("topic ", i)}); err != nil {
			b.Fatal(err)
		}
	}
	publish := discardClients(b, broker, 1, "topic 7")
	b.ReportAllocs()
	for b.Loop() {
		publish()
	}
}

func BenchmarkPublishInParallel(b *testing.B) {
	for _, n := range []int{0, 100} {
		b.Run(fmt.Sprint("subscribers=", n), func(b *testing.B) {
			broker := &Broker{Logger: slog.New(slog.DiscardHandler)}
			if n > 0 {
				discardClients(b, broker, n)
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					broker.Publish(Event{Data: "some data that says something"})
				}
			})
		})
	}
}

// One operation is one event to 3,000, beside one who publishes to a topic that nobody has.
func BenchmarkPublishBesideATightPublisher(b *testing.B) {
	const n = 3000
	broker := &Broker{History: 300_000, HistoryBytes: -1}
	defer broker.Shutdown(context.Background())
	publish := followMany(b, broker, n)
	p := publishTightly(broker)
	var times []time.Duration
	before := p.published.Load()
	for b.Loop() {
		began := time.Now()
		publish()
		times = append(times, time.Since(began))
	}
	tight := p.published.Load() - before
	p.end()
	slices.Sort(times)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/delivery")
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "median-ms")
	b.ReportMetric(float64(times[len(times)-1].Microseconds())/1000, "worst-ms")
	b.ReportMetric(float64(tight)/b.Elapsed().Seconds(), "tight-events/s")
}

func BenchmarkReplay(b *testing.B) {
	for _, others := range []int{0, 9} { // events of other topics to each one
		b.Run(fmt.Sprint("others=", others), func(b *testing.B) {
			broker := &Broker{}
			start := broker.LastEventID()
			n := 0
			for i := range defaultHistory {
				if i%(others+1) == 0 {
					broker.Publish(Event{Data: "some data that says something"}, "topic")
					n++
				} else {
					broker.Publish(Event{Data: "some data that says something"}, "other")
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				got := 0
				for range broker.Subscribe(b.Context(), start, "topic") {
					if got++; got == n {
						break
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/event")
		})
	}
}

// BenchmarkPublishBesideStalled measures an event to clients that read, among
// others of the same topic that are stuck in a write.
func BenchmarkPublishBesideStalled(b *testing.B) {
	const readers = 1000
	for _, stalled := range []int{0, 20_000} {
		b.Run(fmt.Sprint("stalled=", stalled), func(b *testing.B) {
			broker := &Broker{KeepAlive: -1, WriteTimeout: -1, Logger: slog.New(slog.DiscardHandler)}
			delays := newDelays(readers)
			serveClients(b, broker, readers, delays.had)
			var stuck sync.WaitGroup
			stuck.Add(stalled)
			release := make(chan struct{})
			serveClients(b, broker, stalled, func(int) {
				select {
				case <-release:
				default:
					stuck.Done()
					<-release
				}
			})
			b.Cleanup(func() { close(release) })

			publish := func() { broker.Publish(Event{Data: "some data that says something"}) }
			delays.measure(publish)
			stuck.Wait()
			for range 2 * defaultHistory { // so that the history has left them behind
				delays.measure(publish)
			}
			delays.all = delays.all[:0]
			b.ReportAllocs()
			for b.Loop() {
				delays.measure(publish)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/readers, "ns/delivery")
			delays.report(b)
		})
	}
}

// BenchmarkKeepAlive measures how long it takes until each of many idle clients
// has had another keep-alive, while events of another topic push each other out
// of the history. None of the clients has missed anything: there must be no gap
// and no call of CatchUp.
func BenchmarkKeepAlive(b *testing.B) {
	const (
		clients   = 50_000
		keepAlive = time.Second
	)
	var calls atomic.Int64
	broker := &Broker{
		KeepAlive: keepAlive,
		CatchUp: func(context.Context, Missed) iter.Seq2[Event, error] {
			calls.Add(1)
			return func(func(Event, error) bool) {}
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	var left, round atomic.Int64
	done := make(chan struct{}, 1)
	last := make([]int64, clients) // round in which each had a keep-alive
	serveClients(b, broker, clients, func(client int) {
		if now := round.Load(); last[client] < now {
			last[client] = now
			if left.Add(-1) == 0 {
				done <- struct{}{}
			}
		}
	}, "idle")
	next := func() {
		left.Store(clients)
		round.Add(1)
		<-done
	}
	next() // newcomers ask CatchUp, and are through with it now
	calls.Store(0)
	gaps := broker.Stats().Gaps
	stop := flood(broker, "busy")
	for b.Loop() {
		next()
	}
	published := stop()
	b.ReportMetric((b.Elapsed()/time.Duration(b.N)-keepAlive).Seconds()*1000, "late-ms")
	b.ReportMetric(float64(published)/defaultHistory/float64(b.N), "histories/op")
	b.ReportMetric(float64(broker.Stats().Gaps-gaps), "gaps")
	b.ReportMetric(float64(calls.Load()), "catchups")
}

// BenchmarkPublishBesideFlood measures an event to many clients while another
// goroutine publishes to another topic as fast as it can. Neither may starve the
// other.
func BenchmarkPublishBesideFlood(b *testing.B) {
	const (
		n     = 3000
		pause = 50 * time.Millisecond // between events, so that each meets nothing but the flood
	)
	for _, way := range []struct {
		name  string
		begin func(b *testing.B, broker *Broker, had func(int))
	}{
		{"Serve", func(b *testing.B, broker *Broker, had func(int)) { serveClients(b, broker, n, had, "topic") }},
		{"Subscribe", func(b *testing.B, broker *Broker, had func(int)) { subscribeLoops(b, broker, n, had, "topic") }},
		{"Serve over TCP", func(b *testing.B, broker *Broker, had func(int)) {
			connectClients(b, broker, n, had, func(w http.ResponseWriter, r *http.Request) { broker.Serve(w, r, "topic") })
		}},
		{"Detach over TCP", func(b *testing.B, broker *Broker, had func(int)) {
			connectClients(b, broker, n, had, func(w http.ResponseWriter, r *http.Request) { broker.Detach(w, r, nil, "topic") })
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			broker := &Broker{KeepAlive: -1, Logger: slog.New(slog.DiscardHandler)}
			delays := newDelays(n)
			way.begin(b, broker, delays.had)
			publish := func() { broker.Publish(Event{Data: "some data that says something"}, "topic") }
			delays.measure(publish)
			delays.all = delays.all[:0]
			stop := flood(broker, "flood")
			for b.Loop() {
				delays.measure(publish)
				time.Sleep(pause)
			}
			published := stop()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(published), "ns/flooding")
			delays.report(b)
			b.ReportMetric(0, "ns/op") // has the pause in it
		})
	}
}

// serveClients serves the topics to n clients, which call flushed after each flush
// but the first. It returns when each has had that one.
func serveClients(b *testing.B, broker *Broker, n int, flushed func(client int), topics ...string) {
	b.Helper()
	var opened, gone sync.WaitGroup
	opened.Add(n)
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(func() { cancel(); gone.Wait() })
	for i := range n {
		open := false
		w := &wireTape{deaf: true, duringFlush: func() {
			if open {
				flushed(i)
				return
			}
			open = true
			opened.Done()
		}}
		r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
		gone.Go(func() { broker.Serve(w, r, topics...) })
	}
	opened.Wait()
}

// subscribeLoops runs n loops over Subscribe, which call had for each event.
func subscribeLoops(b *testing.B, broker *Broker, n int, had func(loop int), topics ...string) {
	b.Helper()
	var gone sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(func() { cancel(); gone.Wait() })
	for i := range n {
		gone.Go(func() {
			for range broker.Subscribe(ctx, "", topics...) {
				if ctx.Err() == nil {
					had(i)
				}
			}
		})
	}
	for broker.Stats().Subscribers < n {
		runtime.Gosched()
	}
}

// connectClients connects n clients over TCP, which call had for each event.
func connectClients(b *testing.B, broker *Broker, n int, had func(client int), handler http.HandlerFunc) {
	b.Helper()
	server := httptest.NewServer(handler)
	b.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		broker.Shutdown(ctx)
		server.Close()
	})
	for i := range n {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			b.Skip(err) // too few files may be open
		}
		b.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		go func() {
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				if bytes.HasPrefix(lines.Bytes(), []byte("data:")) {
					had(i)
				}
			}
		}()
	}
	for broker.Stats().Clients < n {
		time.Sleep(time.Millisecond)
	}
}

// flood publishes to the topic as fast as it can until stop is called, which
// returns how many events that were.
func flood(broker *Broker, topic string) (stop func() int) {
	var stopped atomic.Bool
	published := make(chan int)
	go func() {
		n := 0
		for ; !stopped.Load(); n++ {
			broker.Publish(Event{Data: "some data that says something"}, topic)
		}
		published <- n
	}()
	return func() int {
		stopped.Store(true)
		return <-published
	}
}

// delays are the times from publishing an event until each of several clients
// has it.
type delays struct {
	start time.Time
	each  []time.Duration // of the event that is on its way
	left  atomic.Int64    // clients that do not have it
	done  chan struct{}
	all   []time.Duration // of the events before
}

func newDelays(clients int) *delays {
	return &delays{each: make([]time.Duration, clients), done: make(chan struct{}, 1)}
}

func (d *delays) had(client int) {
	d.each[client] = time.Since(d.start)
	if d.left.Add(-1) == 0 {
		d.done <- struct{}{}
	}
}

// measure waits until all clients have what publish publishes.
func (d *delays) measure(publish func()) {
	d.left.Store(int64(len(d.each)))
	d.start = time.Now()
	publish()
	<-d.done
	d.all = append(d.all, d.each...)
}

func (d *delays) report(b *testing.B) {
	slices.Sort(d.all)
	b.ReportMetric(d.all[len(d.all)/2].Seconds()*1000, "p50-ms")
	b.ReportMetric(d.all[len(d.all)-1].Seconds()*1000, "max-ms")
}

// BenchmarkSet: 1,000 keys, of which one operation sets one, and 1,000 subscribers of which
// 100 read slowly. Compare the bytes for each of these with those of Publish.
func BenchmarkSet(b *testing.B) {
	for _, way := range []string{"Set", "Publish"} {
		b.Run(way, func(b *testing.B) {
			broker := &Broker{}
			var fast, slow atomic.Int64
			ctx, cancel := context.WithCancel(context.Background())
			var running sync.WaitGroup
			for i := range 1000 {
				running.Go(func() {
					for _, err := range broker.Subscribe(ctx, "") {
						switch {
						case err != nil:
						case i < 100:
							slow.Add(1)
							time.Sleep(10 * time.Millisecond)
						default:
							fast.Add(1)
						}
					}
				})
			}
			for broker.Stats().Subscribers < 1000 {
				time.Sleep(time.Millisecond)
			}
			keys := make([]string, 1000)
			for i := range keys {
				keys[i] = fmt.Sprint("key ", i)
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				ev := Event{Data: "some data that says something"}
				if n++; way == "Set" {
					broker.Set(keys[n%len(keys)], ev)
				} else {
					broker.Publish(ev)
				}
				time.Sleep(100 * time.Microsecond)
			}
			b.StopTimer()
			b.ReportMetric(float64(fast.Load())/900/float64(n), "events/op-to-fast")
			b.ReportMetric(float64(slow.Load())/100/float64(n), "events/op-to-slow")
			if way == "Set" {
				began, got := time.Now(), 0
				for range broker.Subscribe(ctx, "") {
					if got++; got >= min(n, len(keys)) {
						break
					}
				}
				b.ReportMetric(float64(time.Since(began).Microseconds()), "µs-until-newcomer-has-all")
			}
			cancel()
			broker.Shutdown(context.Background())
			running.Wait()
		})
	}
}

// BenchmarkPublishBesideDisconnect publishes to a topic of nobody, while 100,000 of another
// are disconnected.
func BenchmarkPublishBesideDisconnect(b *testing.B) {
	const n = 100_000
	var worst, all time.Duration
	for b.Loop() {
		b.StopTimer()
		broker := &Broker{}
		var running sync.WaitGroup
		for range n {
			running.Go(func() {
				for range broker.Subscribe(context.Background(), "", "many") {
				}
			})
		}
		for broker.Stats().Subscribers < n {
			time.Sleep(time.Millisecond)
		}
		b.StartTimer()
		began, gone := time.Now(), make(chan struct{})
		go func() {
			broker.Disconnect("many")
			running.Wait()
			close(gone)
		}()
		for waiting := true; waiting; {
			before := time.Now()
			broker.Publish(Event{Data: "x"})
			worst = max(worst, time.Since(before))
			select {
			case <-gone:
				waiting = false
			case <-time.After(100 * time.Microsecond):
			}
		}
		all += time.Since(began)
	}
	b.ReportMetric(float64(worst.Microseconds())/1000, "worst-publish-ms")
	b.ReportMetric(float64(all.Microseconds())/1000/float64(b.N), "until-all-gone-ms")
}

// ----- Helpers -----

// Encoding and decoding.

// decoded is all that a stream says.
type decoded struct {
	events []Event
	lastID string
	retry  time.Duration
	err    error // what ended it
}

func (d decoded) equal(other decoded) bool {
	return slices.Equal(d.events, other.events) && d.lastID == other.lastID && d.retry == other.retry && cmp.Or(d.err, io.EOF) == cmp.Or(other.err, io.EOF)
}

func (d decoded) String() string {
	return fmt.Sprintf("%#v, last ID %q, retry %v, error %v", d.events, d.lastID, d.retry, d.err)
}

func decodeAll(d *Decoder) (all decoded) {
	for {
		e, err := d.Decode()
		if err != nil {
			all.lastID, all.retry, all.err = d.LastEventID(), d.Retry(), err
			return all
		}
		all.events = append(all.events, e)
	}
}

// longestRetry stands for any longer one.
const longestRetry = math.MaxInt64 / time.Millisecond * time.Millisecond

// decodeAsStandard is the algorithm of the HTML standard's sections on parsing
// and on interpreting an event stream, step by step and without a thought of cost.
func decodeAsStandard(stream []byte) (all decoded) {
	text := strings.TrimPrefix(decodeUTF8AsStandard(stream), "\ufeff")
	lines := strings.Split(normaliseNewlines(text), "\n")
	var data, event, id string
	for _, line := range lines[:len(lines)-1] { // the last one has no end
		if line == "" {
			all.lastID = id
			if data != "" {
				all.events = append(all.events, Event{ID: id, Type: event, Data: strings.TrimSuffix(data, "\n")})
			}
			data, event = "", ""
			continue
		}
		field, value := line, ""
		if before, after, ok := strings.Cut(line, ":"); ok {
			field, value = before, strings.TrimPrefix(after, " ")
		}
		switch field {
		case "event":
			event = value
		case "data":
			data += value + "\n"
		case "id":
			if !strings.Contains(value, "\x00") {
				id = value
			}
		case "retry":
			if value != "" && strings.Trim(value, "0123456789") == "" {
				all.retry = longestRetry
				if ms, _ := new(big.Int).SetString(value, 10); ms.Cmp(big.NewInt(longestRetry.Milliseconds())) < 0 {
					all.retry = time.Duration(ms.Int64()) * time.Millisecond
				}
			}
		}
	}
	if field, _, _ := strings.Cut(lines[len(lines)-1], ":"); data != "" || field == "data" {
		all.err = io.ErrUnexpectedEOF // no rule of the standard, which has no errors
	}
	return all
}

// normaliseNewlines returns text with each CRLF and CR as LF.
func normaliseNewlines(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
}

// decodeUTF8AsStandard is the UTF-8 decoder of the Encoding standard, which is
// a state machine over bytes.
func decodeUTF8AsStandard(b []byte) string {
	var text strings.Builder
	var point rune
	needed, seen := 0, 0
	lower, upper := byte(0x80), byte(0xbf)
	for i := 0; i < len(b); i++ {
		c := b[i]
		if needed == 0 {
			switch {
			case c <= 0x7f:
				text.WriteByte(c)
			case 0xc2 <= c && c <= 0xdf:
				needed, point = 1, rune(c&0x1f)
			case 0xe0 <= c && c <= 0xef:
				if c == 0xe0 {
					lower = 0xa0
				}
				if c == 0xed {
					upper = 0x9f
				}
				needed, point = 2, rune(c&0xf)
			case 0xf0 <= c && c <= 0xf4:
				if c == 0xf0 {
					lower = 0x90
				}
				if c == 0xf4 {
					upper = 0x8f
				}
				needed, point = 3, rune(c&0x7)
			default:
				text.WriteRune(utf8.RuneError)
			}
			continue
		}
		fits := lower <= c && c <= upper
		lower, upper = 0x80, 0xbf
		if !fits {
			needed, seen = 0, 0
			text.WriteRune(utf8.RuneError)
			i-- // the byte begins anew
			continue
		}
		point = point<<6 | rune(c&0x3f)
		if seen++; seen == needed {
			text.WriteRune(point)
			needed, seen = 0, 0
		}
	}
	if needed > 0 {
		text.WriteRune(utf8.RuneError)
	}
	return text.String()
}

// checkDecoder checks that a Decoder reads want from the stream, however that
// comes in: whole, byte by byte, in any two parts, and cut as cuts says; with
// the usual buffer, and with one that most lines do not fit in.
func checkDecoder(t *testing.T, stream []byte, want decoded, cuts []byte) {
	t.Helper()
	check := func(how string, r io.Reader) {
		t.Helper()
		for _, d := range []*Decoder{NewDecoder(r), {r: bufio.NewReaderSize(r, 16), skip: "\ufeff"}} {
			d.MaxEventBytes = -1
			if got := decodeAll(d); !got.equal(want) {
				t.Fatalf("%s, buffer of %d: got %v, want %v", how, d.r.Size(), got, want)
			}
			r.(io.Seeker).Seek(0, io.SeekStart)
		}
	}
	check("whole", bytes.NewReader(stream))
	check("end told with the last byte", &cutReader{stream: stream, ends: []int{len(stream)}, endsWithData: true})
	check("byte by byte", &cutReader{stream: stream, each: 1})
	check("three bytes each", &cutReader{stream: stream, each: 3})
	var ends []int
	for at := 0; len(cuts) > 0 && at < len(stream); {
		at += int(cuts[len(ends)%len(cuts)]) + 1
		ends = append(ends, min(at, len(stream)))
	}
	check(fmt.Sprint("cut at ", ends), &cutReader{stream: stream, ends: ends})
	if len(stream) <= 512 {
		for at := range stream {
			check(fmt.Sprint("cut at ", at), &cutReader{stream: stream, ends: []int{at}})
		}
	}
	if len(stream) <= 8 {
		for set := range 1 << len(stream) {
			var ends []int
			for at := range stream {
				if set&(1<<at) != 0 {
					ends = append(ends, at)
				}
			}
			check(fmt.Sprint("cut at ", ends), &cutReader{stream: stream, ends: ends})
		}
	}
	if len(stream) <= 256 {
		checkPrompt(t, stream)
	}
}

// checkPrompt checks that a Decoder returns each event as soon as it has read
// the byte that completes it.
func checkPrompt(t *testing.T, stream []byte) {
	t.Helper()
	r := &cutReader{stream: stream, each: 1}
	d := NewDecoder(r)
	for n := 1; ; n++ {
		if _, err := d.Decode(); err != nil {
			return
		}
		if early := decodeAsStandard(stream[:r.at-1]); len(early.events) >= n {
			t.Fatalf("event %d was returned only after %q", n, stream[:r.at])
		}
	}
}

// A cutReader reads stream up to the next of ends at a time, or each bytes.
type cutReader struct {
	stream       []byte
	ends         []int
	each         int
	endsWithData bool // tells io.EOF together with the last bytes
	at, end      int  // in stream, in ends
}

func (r *cutReader) Read(p []byte) (int, error) {
	if r.at == len(r.stream) {
		return 0, io.EOF
	}
	end := len(r.stream)
	for r.end < len(r.ends) && r.ends[r.end] <= r.at {
		r.end++
	}
	if r.end < len(r.ends) {
		end = r.ends[r.end]
	}
	if r.each > 0 {
		end = min(end, r.at+r.each)
	}
	n := copy(p, r.stream[r.at:end])
	if r.at += n; r.at == len(r.stream) && r.endsWithData {
		return n, io.EOF
	}
	return n, nil
}

func (r *cutReader) Seek(int64, int) (int64, error) { r.at, r.end = 0, 0; return 0, nil }

// A repeatingReader reads text over and over.
type repeatingReader struct {
	text string
	at   int
}

func (r *repeatingReader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(p[n:], r.text[r.at:])
		n, r.at = n+m, (r.at+m)%len(r.text)
	}
	return n, nil
}

// mayBeSent tells what the doc comments of Event say about its fields.
func mayBeSent(e Event) bool {
	for _, r := range e.ID {
		if r < ' ' || 0x7f <= r && r <= 0x9f {
			return false
		}
	}
	return len(e.ID) <= 1024 && strings.Trim(e.ID, " ") == e.ID && !strings.ContainsAny(e.Type, "\x00\n\r") &&
		e.ID != "sse-end" && e.ID != "earliest" && utf8.ValidString(e.ID+"x"+e.Type) && (e.Retry == 0 || e.Retry >= time.Millisecond)
}

// throughHeader returns what LastEventID says when a client has sent id.
func throughHeader(t *testing.T, id string) string {
	t.Helper()
	sent := httptest.NewRequest("GET", "/", nil)
	sent.Header.Set("Last-Event-ID", id)
	var buf bytes.Buffer
	wireCheck(t, sent.Write(&buf))
	received, err := http.ReadRequest(bufio.NewReader(&buf))
	if err != nil {
		t.Fatal(err)
	}
	return LastEventID(received)
}

// An http.Server of any protocol, and its clients, in memory and on fake time.

func wireCheck(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("got error %v, want none", err)
	}
}

// begin is NewWriter where that must not fail.
func begin(t *testing.T, w http.ResponseWriter, r *http.Request) *Writer {
	t.Helper()
	out, err := NewWriter(w, r)
	wireCheck(t, err)
	return out
}

// sendUntilError sends events, with a pause before each, until that fails.
func sendUntilError(out *Writer, pause time.Duration) (err error) {
	for err == nil {
		time.Sleep(pause)
		err = out.Send(Event{Data: strings.Repeat("x", 10<<10)})
	}
	return err
}

func wantHeaders(t *testing.T, r *http.Response, status int, headers map[string]string) {
	t.Helper()
	if r.StatusCode != status {
		t.Errorf("got status %d, want %d", r.StatusCode, status)
	}
	for name, want := range headers {
		if got := r.Header.Get(name); got != want {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
}

// eachWireProtocol runs f in a bubble for each protocol that a stream can go by.
func eachWireProtocol(t *testing.T, f func(t *testing.T, protocol string)) {
	for _, protocol := range []string{"HTTP/1.0", "HTTP/1.1", "HTTP/1.1 with TLS", "HTTP/2 with TLS", "HTTP/2 unencrypted"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, protocol) })
		})
	}
}

// hangUpTime is how long net/http takes to close the connection of a client that
// has stopped reading: crypto/tls tries to send a last word for five seconds.
func hangUpTime(protocol string) time.Duration {
	if protocol == "HTTP/1.1 with TLS" {
		return 5 * time.Second
	}
	return 0
}

// A wireServer is a server on a network in memory.
type wireServer struct {
	*httptest.Server
	listener *pipeListener
	http10   bool                    // its clients speak HTTP/1.0
	wrap     func(net.Conn) net.Conn // nil, or what the clients' connections go through

	connsMu sync.Mutex
	conns   []net.Conn // the clients' ends
}

func newWireServer(t *testing.T, protocol string, handler http.HandlerFunc, options ...func(*http.Server)) *wireServer {
	emptyPools()
	s := &wireServer{listener: newPipeListener(), http10: protocol == "HTTP/1.0"}
	var protocols http.Protocols
	switch protocol {
	case "HTTP/2 with TLS":
		protocols.SetHTTP2(true)
	case "HTTP/2 unencrypted":
		protocols.SetUnencryptedHTTP2(true)
	default:
		protocols.SetHTTP1(true)
	}
	s.Server = &httptest.Server{
		Listener:    s.listener,
		EnableHTTP2: protocols.HTTP2(),
		Config:      &http.Server{Handler: handler, Protocols: &protocols, ErrorLog: log.New(wireLog{t}, "", 0)},
	}
	for _, option := range options {
		option(s.Config)
	}
	if strings.HasSuffix(protocol, "with TLS") {
		s.StartTLS()
	} else {
		s.Start()
	}
	transport := s.Client().Transport.(*http.Transport)
	transport.Protocols = &protocols
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return s.connect() }
	transport.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10} // soon full if nobody reads
	t.Cleanup(func() {
		// net/http closes connections with its mutexes held. With TLS that would wait for
		// the other end to read, and fake time stands still while anybody waits for a mutex.
		s.hangUp()
		s.Close()
	})
	return s
}

// hangUp closes the clients' connections without a word.
func (s *wireServer) hangUp() {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	for _, conn := range s.conns {
		conn.Close()
	}
}

func shortTimeouts(s *http.Server) {
	s.ReadTimeout, s.ReadHeaderTimeout = time.Second, time.Second
	s.WriteTimeout, s.IdleTimeout = time.Second, time.Second
}

func (s *wireServer) connect() (net.Conn, error) {
	conn, err := s.listener.dial()
	if err != nil {
		return nil, err
	}
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	s.conns = append(s.conns, conn)
	if s.wrap != nil {
		conn = s.wrap(conn)
	}
	return conn, nil
}

// dials returns how often clients have connected.
func (s *wireServer) dials() int {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	return len(s.conns)
}

func (s *wireServer) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := s.connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A stallingConn is a client's connection that it stops reading from.
type stallingConn struct {
	net.Conn
	stalled, closed chan struct{}
	once            sync.Once
}

func (c *stallingConn) Read(p []byte) (int, error) {
	select {
	case <-c.stalled:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return c.Conn.Read(p)
	}
}

func (c *stallingConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// wireLog fails the test if a server has anything to complain about.
type wireLog struct{ t *testing.T }

func (l wireLog) Write(p []byte) (int, error) {
	l.t.Errorf("the server logged %q", p)
	return len(p), nil
}

// A wireStream is a client's side of a stream, which it reads as it comes.
type wireStream struct {
	t        *testing.T
	response *http.Response
	leave    context.CancelFunc

	mu   sync.Mutex
	got  strings.Builder
	seen int   // of got, by want
	err  error // what ended it
}

// openWireStream sends a request, for which the headers must arrive soon.
func openWireStream(t *testing.T, s *wireServer, method string, body io.Reader) *wireStream {
	t.Helper()
	response, leave := wireRequest(t, s, method, body)
	client := readWireStream(t, response)
	client.leave = leave
	return client
}

// openStalledWireStream is for a client that reads nothing but the headers.
func openStalledWireStream(t *testing.T, s *wireServer) (leave context.CancelFunc) {
	t.Helper()
	_, leave = wireRequest(t, s, "GET", nil)
	return leave
}

func wireRequest(t *testing.T, s *wireServer, method string, body io.Reader) (*http.Response, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, method, s.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	giveUp := time.AfterFunc(time.Second, cancel)
	do := s.Client().Do
	if s.http10 {
		do = s.doHTTP10
	}
	response, err := do(req)
	if err != nil {
		t.Fatalf("no headers: %v", err)
	}
	giveUp.Stop()
	synctest.Wait() // the handler may still be where it has sent them
	return response, cancel
}

// doHTTP10 sends req as HTTP/1.0, which package http does not speak as a client.
func (s *wireServer) doHTTP10(req *http.Request) (*http.Response, error) {
	conn, err := s.connect()
	if err != nil {
		return nil, err
	}
	context.AfterFunc(req.Context(), func() { conn.Close() })
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
	}
	fmt.Fprintf(conn, "%s / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", req.Method, len(body), body)
	return http.ReadResponse(bufio.NewReader(conn), req)
}

func readWireStream(t *testing.T, response *http.Response) *wireStream {
	s := &wireStream{t: t, response: response}
	go func() {
		buf := make([]byte, 4<<10)
		for s.err == nil {
			n, err := response.Body.Read(buf)
			s.mu.Lock()
			s.got.Write(buf[:n])
			s.err = err
			s.mu.Unlock()
		}
	}()
	return s
}

// text returns all that has arrived.
func (s *wireStream) text() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.String()
}

// want checks what has arrived since the last call.
func (s *wireStream) want(text string) {
	s.t.Helper()
	all := s.text()
	if got := all[s.seen:]; got != text {
		s.t.Errorf("got %q from the stream, want %q", got, text)
	}
	s.seen = len(all)
}

// wantEnd checks that the stream has come to its proper end.
func (s *wireStream) wantEnd() {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != io.EOF {
		s.t.Errorf("got error %v from the stream, want %v", s.err, io.EOF)
	}
}

// wireOpaque hides all but the methods of an http.ResponseWriter.
type wireOpaque struct{ http.ResponseWriter }

// wireMiddleware hides them too, but can be unwrapped.
type wireMiddleware struct{ http.ResponseWriter }

func (w wireMiddleware) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A flushHook calls after behind each flush.
type flushHook struct {
	wireMiddleware
	after func()
}

func (w flushHook) FlushError() error {
	defer w.after()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// A wireTape is an http.ResponseWriter that notes what is done to it.
type wireTape struct {
	tape                   []string
	header                 http.Header
	deaf, noDeadlines      bool
	writeError, flushError error
	takes                  time.Duration // how long what fails takes
	duringFlush            func()
}

func (w *wireTape) note(format string, args ...any) {
	if !w.deaf {
		w.tape = append(w.tape, fmt.Sprintf(format, args...))
	}
}

// want checks what was noted since the last call.
func (w *wireTape) want(t *testing.T, what string, tape ...string) {
	t.Helper()
	if !slices.Equal(w.tape, tape) {
		t.Errorf("%s:\ngot  %q\nwant %q", what, w.tape, tape)
	}
	w.tape = nil
}

func (w *wireTape) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

func (w *wireTape) WriteHeader(status int) { w.note("status %d", status) }

func (w *wireTape) Write(p []byte) (int, error) {
	if w.writeError != nil {
		time.Sleep(w.takes)
		return 0, w.writeError
	}
	switch {
	case w.deaf:
	case len(p) >= pieceBytes:
		w.note("write %d", len(p))
	default:
		w.note("write %q", p)
	}
	return len(p), nil
}

func (w *wireTape) FlushError() error {
	if w.flushError != nil {
		time.Sleep(w.takes)
	}
	w.note("flush")
	if w.duringFlush != nil {
		w.duringFlush()
	}
	return w.flushError
}

func (w *wireTape) SetReadDeadline(at time.Time) error  { return w.deadline("read deadline", at) }
func (w *wireTape) SetWriteDeadline(at time.Time) error { return w.deadline("deadline", at) }

func (w *wireTape) deadline(name string, at time.Time) error {
	switch {
	case w.noDeadlines:
		w.note("%s refused", name)
		return http.ErrNotSupported
	case w.deaf:
	case at.IsZero():
		w.note("%s off", name)
	case at.Before(time.Now()):
		w.note("%s past", name)
	default:
		w.note("%s %v", name, time.Until(at))
	}
	return nil
}

// The Client's server.

// eachClientProtocol runs f in a bubble for each protocol that the Client can speak.
func eachClientProtocol(t *testing.T, f func(t *testing.T, protocol string)) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2 with TLS", "HTTP/2 unencrypted"} {
		t.Run(protocol, func(t *testing.T) {
			emptyPools()
			synctest.Test(t, func(t *testing.T) { f(t, protocol) })
		})
	}
}

// emptyPools makes Go 1.25 forget the channels that net/http keeps in a pool for
// HTTP/2: it panics where one of another bubble is used.
func emptyPools() {
	if strings.HasPrefix(runtime.Version(), "go1.25") {
		runtime.GC()
		runtime.GC()
	}
}

// A clientServer answers a Client's requests, and notes them.
type clientServer struct {
	*wireServer
	answer   func(n int, w http.ResponseWriter, r *http.Request) // to the n-th request, from 0
	mu       sync.Mutex
	requests []clientServerRequest
}

type clientServerRequest struct {
	at                time.Time
	method, url, body string
	header            http.Header
}

func newClientServer(t *testing.T, protocol string, answer func(n int, w http.ResponseWriter, r *http.Request)) *clientServer {
	s := &clientServer{answer: answer}
	s.wireServer = newWireServer(t, protocol, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		n := len(s.requests)
		s.requests = append(s.requests, clientServerRequest{time.Now(), r.Method, r.URL.String(), string(body), r.Header.Clone()})
		s.mu.Unlock()
		s.answer(n, w, r)
	})
	return s
}

func (s *clientServer) request(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/", nil)
	wireCheck(t, err)
	return r
}

// client returns a Client of the server, which logs nothing.
func (s *clientServer) client() *Client {
	return &Client{HTTPClient: s.Client(), Logger: slog.New(slog.DiscardHandler)}
}

// clientRequest is a request for a transport that does not look at it.
func clientRequest(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://sse.test/", nil)
	wireCheck(t, err)
	return r
}

// bubbleGoroutines returns the stacks of the goroutines of the caller's bubble, and
// how many there are.
func bubbleGoroutines() (stacks string, n int) {
	all := allStacks()
	bubble := regexp.MustCompile(`synctest bubble \d+]`).FindString(all[0]) // the caller comes first
	in := slices.DeleteFunc(all, func(stack string) bool { return !strings.Contains(stack, bubble) })
	return strings.Join(in, "\n\n"), len(in)
}

var ofThePackage = regexp.MustCompile(`/(sse|event|writer|broker)\.go:\d`)

// packageGoroutines returns the stacks of the goroutines that run the package's code, or
// were begun by it, and those of net/http's servers that run a handler: of all tests, but
// not the caller's. runtime.NumGoroutine counts others too, of the runtime and of net/http,
// that come and go.
func packageGoroutines() []string {
	return slices.DeleteFunc(allStacks()[1:], func(stack string) bool {
		return !ofThePackage.MatchString(stack) && !strings.Contains(stack, "ServeHTTP")
	})
}

// eventuallyGoroutines waits until there are so many packageGoroutines.
func eventuallyGoroutines(t *testing.T, want int) {
	t.Helper()
	var got []string
	eventually(t, "goroutines of the package", func() bool {
		got = packageGoroutines()
		return len(got) == want
	})
	if t.Failed() {
		t.Fatalf("got %d goroutines, want %d:\n%s", len(got), want, strings.Join(got, "\n\n"))
	}
}

// allStacks returns the stack of each goroutine, the caller's first.
func allStacks() []string {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")
		}
	}
}

// streamText sends text as part of an event stream.
func streamText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, text)
	http.NewResponseController(w).Flush()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A closeHook is a body that calls closed when it is closed.
type closeHook struct {
	io.Reader
	closed func()
}

func (h closeHook) Close() error { h.closed(); return nil }

// A closeOnce is a connection that calls closed when it is closed first.
type closeOnce struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *closeOnce) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

// A clientLog calls logged for each record.
type clientLog struct{ logged func() }

func (l *clientLog) Enabled(context.Context, slog.Level) bool      { return true }
func (l *clientLog) WithAttrs([]slog.Attr) slog.Handler            { return l }
func (l *clientLog) WithGroup(string) slog.Handler                 { return l }
func (l *clientLog) Handle(_ context.Context, _ slog.Record) error { l.logged(); return nil }

// Loops over Subscribe.

// A brokerLoop collects what a loop over Subscribe gets, and stops before an
// event while it is stalled.
type brokerLoop struct {
	t      *testing.T
	cancel context.CancelFunc
	gate   pipeGate

	mu     sync.Mutex
	blocks []pipeBlock
	taken  int
	left   int // events before it leaves; negative: it stays
	err    error
}

// followBroker begins a loop and waits until it has subscribed.
func followBroker(t *testing.T, b *Broker, lastID string, topics ...string) *brokerLoop {
	l := newLoop(t, b, false, lastID, topics...)
	t.Cleanup(l.close)
	synctest.Wait()
	return l
}

func newLoop(t *testing.T, b *Broker, stalled bool, lastID string, topics ...string) *brokerLoop {
	ctx, cancel := context.WithCancel(context.Background())
	l := &brokerLoop{t: t, cancel: cancel, left: -1}
	l.gate.init()
	l.stall(stalled) // before its goroutine runs
	events := b.Subscribe(ctx, lastID, topics...)
	go func() {
		err := errors.New("the loop left")
		for e, cause := range events {
			l.gate.wait()
			if cause != nil {
				err = cause
			} else if !l.got(e) {
				break
			}
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = err
	}()
	return l
}

func (l *brokerLoop) got(e Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == 0 {
		return false
	}
	l.left--
	l.blocks = append(l.blocks, pipeBlock{ID: e.ID, HasID: e.ID != "", Type: e.Type, Data: e.Data, HasData: true})
	return true
}

func (l *brokerLoop) take() ([]pipeBlock, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	blocks := l.blocks[l.taken:]
	l.taken = len(l.blocks)
	return blocks, l.err
}

func (l *brokerLoop) stall(stalled bool) { l.gate.set(stalled) }
func (l *brokerLoop) close()             { l.cancel(); l.gate.set(false) }

func (l *brokerLoop) closeAfter(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = n % 8
}

// events returns the events since its last call or that of want.
func (l *brokerLoop) events() []pipeBlock {
	synctest.Wait()
	blocks, _ := l.take()
	return blocks
}

// want checks the data of the events since its last call. A gap event is
// written "gap:" and its data.
func (l *brokerLoop) want(want string) {
	l.t.Helper()
	wantText(l.t, l.events(), want)
}

// ended returns why the loop ended, or nil.
func (l *brokerLoop) ended() error {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func wantText(t *testing.T, events []pipeBlock, want string) {
	t.Helper()
	var got []string
	for _, e := range events {
		if e.Type == "gap" {
			e.Data = "gap:" + e.Data
		}
		got = append(got, e.Data)
	}
	if got := strings.Join(got, " "); got != want {
		t.Errorf("events: got %.500q, want %.500q", got, want)
	}
}

// joinSubscriber returns a subscriber of the default topic that the test gives
// what it is to get.
func joinSubscriber(t *testing.T, b *Broker, lastID string, topics ...string) *subscriber {
	t.Helper()
	s := &subscriber{signal: make(chan struct{}, 1)}
	if err := b.join(s, lastID, topics); err != nil {
		t.Fatal(err)
	}
	return s
}

// publishNumbers publishes n events, whose data it returns.
func publishNumbers(b *Broker, n int) string {
	var data []string
	for i := range n {
		data = append(data, strconv.Itoa(i))
		b.Publish(Event{Data: data[i]})
	}
	return strings.Join(data, " ")
}

// publishIDs publishes events whose data are their IDs.
func publishIDs(t *testing.T, b *Broker, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if _, err := b.Publish(Event{ID: id, Data: id}); err != nil {
			t.Fatal(err)
		}
	}
}

// Clients of Serve and Detach that can be stalled, over connections in memory.

var pipeQuiet = slog.NewLogLogger(slog.DiscardHandler, 0)

// A pipeServer is an http.Server over connections in memory.
type pipeServer struct {
	*pipeListener
	t      *testing.T
	srv    *http.Server
	settle time.Duration // to wait before a look at what clients got

	mu   sync.Mutex
	errs []error // of the handler
}

// serveBroker serves the topics named in the query.
func serveBroker(t *testing.T, b *Broker) *pipeServer {
	s := servePipe(t, &http.Server{}, func(w http.ResponseWriter, r *http.Request) error {
		return b.Serve(w, r, r.URL.Query()["topic"]...)
	})
	s.settle = settleTime
	return s
}

// settleTime is more than it takes until a worker that is stuck is replaced, and
// more than Detach takes to find out whether a client has left.
const settleTime = 2 * time.Millisecond

// A serveFunc serves the topics named in the query, by Serve or by Detach.
type serveFunc = func(*testing.T, *Broker) *pipeServer

// serveAndDetach runs a test in a bubble with each way to serve the topics named
// in the query.
func serveAndDetach(t *testing.T, test func(t *testing.T, serve serveFunc)) {
	t.Run("Serve", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, serveBroker) })
	})
	t.Run("Detach", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, detachBroker) })
	})
}

// detachBroker is serveBroker with Detach.
func detachBroker(t *testing.T, b *Broker) *pipeServer {
	s := newPipeServer(t, &http.Server{})
	s.settle = settleTime
	s.serve(func(w http.ResponseWriter, r *http.Request) {
		b.Detach(w, r, s.done, r.URL.Query()["topic"]...)
	})
	t.Cleanup(func() { // the server knows nothing of them
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.Shutdown(ctx)
	})
	return s
}

func servePipe(t *testing.T, srv *http.Server, handle func(http.ResponseWriter, *http.Request) error) *pipeServer {
	s := newPipeServer(t, srv)
	s.serve(func(w http.ResponseWriter, r *http.Request) { s.done(handle(w, r)) })
	return s
}

func newPipeServer(t *testing.T, srv *http.Server) *pipeServer {
	return &pipeServer{pipeListener: newPipeListener(), t: t, srv: srv}
}

func (s *pipeServer) serve(handler http.HandlerFunc) {
	s.srv.Handler, s.srv.ErrorLog = handler, pipeQuiet
	go s.srv.Serve(s.pipeListener)
	s.t.Cleanup(func() { s.srv.Close() })
}

// done notes why a stream ended.
func (s *pipeServer) done(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// get connects a client. header is lines of the request.
func (s *pipeServer) get(target, header string) *pipeClient {
	return s.connect(target, header, false)
}

// getStalled connects a client that reads nothing from the beginning.
func (s *pipeServer) getStalled(target, header string) *pipeClient {
	return s.connect(target, header, true)
}

func (s *pipeServer) connect(target, header string, stalled bool) *pipeClient {
	c := pipeGet(s.t, s.pipeListener, target, header, stalled)
	c.settle = s.settle
	s.t.Cleanup(c.close)
	return c
}

// do sends a request and returns the answer without its body.
func (s *pipeServer) do(method, target, header string) *http.Response {
	conn, err := s.dial()
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n%s\r\n", method, target, header)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}

var errNotServed = errors.New("no handler has returned")

// served returns what the handler returned that has ended first, and is then
// forgotten.
func (s *pipeServer) served() error {
	time.Sleep(s.settle)
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errs) == 0 {
		return errNotServed
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

// A pipeListener listens for connections that dial makes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// dial returns the client's end of a new connection. What the server writes
// to it waits until the client reads it.
func (l *pipeListener) dial() (net.Conn, error) {
	server, client := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// A pipeGate lets all pass, or so many bytes.
type pipeGate struct {
	mu     sync.Mutex
	moved  *sync.Cond
	closed bool
	quota  int // that pass through the closed gate
}

func (g *pipeGate) init() { g.moved = sync.NewCond(&g.mu) }

func (g *pipeGate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.quota = closed, 0
	g.moved.Broadcast()
}

func (g *pipeGate) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.quota += n
	g.moved.Broadcast()
}

// wait waits until something may pass and returns how much, or -1 for all.
func (g *pipeGate) wait() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.closed && g.quota <= 0 {
		g.moved.Wait()
	}
	if g.closed {
		return g.quota
	}
	return -1
}

// A pipeBlock is what a stream has between two blank lines, or a comment or a
// reconnection time in front of that. Reading it shares no code with the package.
type pipeBlock struct {
	Raw            string
	ID, Type, Data string
	Retry          string
	HasID, HasData bool
	Comment        bool // and nothing else
}

func (b pipeBlock) Event() Event { return Event{ID: b.ID, Type: b.Type, Data: b.Data} }

func (b pipeBlock) retry(t *testing.T) time.Duration {
	t.Helper()
	ms, err := strconv.Atoi(b.Retry)
	if err != nil {
		t.Errorf("block %q: want a reconnection time", b.Raw)
	}
	return time.Duration(ms) * time.Millisecond
}

func parsePipeBlock(raw string) pipeBlock {
	b := pipeBlock{Raw: raw, Comment: true}
	for line := range strings.SplitSeq(raw, "\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		b.Comment = b.Comment && name == ""
		switch name {
		case "id":
			b.ID, b.HasID = value, true
		case "event":
			b.Type = value
		case "retry":
			b.Retry = value
		case "data":
			if b.HasData {
				b.Data += "\n"
			}
			b.Data, b.HasData = b.Data+value, true
		}
	}
	return b
}

// A pipeClient reads a stream over a connection of its own, all the time but
// while it is stalled.
type pipeClient struct {
	t      *testing.T
	conn   net.Conn
	gate   pipeGate
	settle time.Duration

	mu     sync.Mutex
	status int
	header http.Header
	chunks bool // the stream comes in some
	closes bool // the connection ends with it, the server says
	blocks []pipeBlock
	taken  int // blocks, by take
	seen   int // blocks, by events
	rest   []byte
	left   int   // bytes of the connection that it will read yet; negative: all
	err    error // what ended it
}

func pipeGet(t *testing.T, l *pipeListener, target, header string, stalled bool) *pipeClient {
	c := &pipeClient{t: t, left: -1}
	c.gate.init()
	var err error
	if c.conn, err = l.dial(); err != nil {
		t.Fatal(err)
	}
	if stalled {
		c.stall(true)
	}
	go func() {
		err := c.run("GET " + target + " HTTP/1.1\r\nHost: test\r\n" + header + "\r\n")
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err = err
		c.conn.Close()
	}()
	return c
}

func (c *pipeClient) run(request string) error {
	if _, err := io.WriteString(c.conn, request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.status, c.header = resp.StatusCode, resp.Header
	c.chunks, c.closes = len(resp.TransferEncoding) > 0, resp.Close
	c.mu.Unlock()
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		c.got(buf[:n])
		if err != nil {
			return err
		}
	}
}

// Read reads from the connection, for run.
func (c *pipeClient) Read(p []byte) (int, error) {
	for {
		if quota := c.gate.wait(); quota >= 0 {
			p = p[:min(len(p), quota)]
		}
		c.mu.Lock()
		left := c.left
		c.mu.Unlock()
		if left == 0 {
			return 0, io.ErrUnexpectedEOF
		} else if left > 0 {
			p = p[:min(len(p), left)]
		}
		n, err := c.conn.Read(p)
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			continue // stalled meanwhile
		}
		c.gate.add(-n)
		c.mu.Lock()
		if c.left > 0 {
			c.left = max(c.left-n, 0)
		}
		c.mu.Unlock()
		return n, err
	}
}

func (c *pipeClient) got(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := max(len(c.rest)-1, 0)
	c.rest = append(c.rest, p...)
	for {
		length := 2
		end := bytes.Index(c.rest[from:], []byte("\n\n"))
		if bytes.HasPrefix(c.rest, []byte(":")) || bytes.HasPrefix(c.rest, []byte("retry: ")) {
			length, from = 1, 0
			end = bytes.IndexByte(c.rest, '\n')
		}
		if end < 0 {
			return
		}
		end += from
		c.blocks = append(c.blocks, parsePipeBlock(string(c.rest[:end])))
		c.rest, from = c.rest[end+length:], 0
	}
}

func (c *pipeClient) take() ([]pipeBlock, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	blocks := c.blocks[c.taken:]
	c.taken = len(c.blocks)
	return blocks, c.err
}

// stall stops or resumes reading, at once.
func (c *pipeClient) stall(stalled bool) {
	c.gate.set(stalled)
	deadline := time.Time{}
	if stalled {
		deadline = time.Unix(1, 0)
	}
	c.conn.SetReadDeadline(deadline)
}

// read has the client, which is stalled, read n bytes.
func (c *pipeClient) read(n int) {
	c.conn.SetReadDeadline(time.Time{})
	c.gate.add(n)
	synctest.Wait()
}

func (c *pipeClient) close() {
	c.gate.set(false)
	c.conn.Close()
}

func (c *pipeClient) closeAfter(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = n
}

// events returns the events since its last call or that of want.
func (c *pipeClient) events() (events []pipeBlock) {
	time.Sleep(c.settle)
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, block := range c.blocks[c.seen:] {
		if block.HasData {
			events = append(events, block)
		}
	}
	c.seen = len(c.blocks)
	return events
}

// want checks the data of the events since its last call, as that of a
// brokerLoop does.
func (c *pipeClient) want(want string) {
	c.t.Helper()
	wantText(c.t, c.events(), want)
}

// first returns the first event of the type.
func (c *pipeClient) first(typ string) pipeBlock {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, block := range c.blocks {
		if block.Type == typ {
			return block
		}
	}
	c.t.Errorf("no event of type %q", typ)
	return pipeBlock{}
}

// lastID returns the ID with which a browser would come back.
func (c *pipeClient) lastID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, block := range slices.Backward(c.blocks) {
		if block.HasID {
			return block.ID
		}
	}
	return ""
}

// lastRetry returns the reconnection time that the client was told last.
func (c *pipeClient) lastRetry() time.Duration {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	last := ""
	for _, block := range c.blocks {
		last = cmp.Or(block.Retry, last)
	}
	// A lone reconnection time needs no blank line behind it.
	last = cmp.Or(parsePipeBlock(string(c.rest)).Retry, last)
	return pipeBlock{Retry: last}.retry(c.t)
}

// wantEnd checks that the client's stream closes with the event end and nothing after.
func (c *pipeClient) wantEnd() {
	c.t.Helper()
	if c.ended() == nil {
		c.t.Error("the stream is open, want it ended")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.blocks) == 0 {
		c.t.Error("got no block, want the event end")
		return
	}
	last := c.blocks[len(c.blocks)-1]
	if want := (Event{ID: "sse-end", Type: "end"}); last.Event() != want || !last.HasData || len(c.rest) > 0 {
		c.t.Errorf("the last block: got %q and then %q, want the event end", last.Raw, c.rest)
	}
}

// ended returns why the stream ended, or nil.
func (c *pipeClient) ended() error {
	time.Sleep(c.settle)
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Other things.

// eventually waits until something holds that other goroutines are about to see
// to, where there is no fake time.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain for: %s", what)
			return
		}
	}
}

// raceEnabled reports whether the race detector is on.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
