package sse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	defaultKeepAlive    = 15 * time.Second
	defaultWriteTimeout = 10 * time.Second

	// pieceBytes is the most that is written under one deadline, so that a
	// client on a slow line may take its time over a large event.
	pieceBytes = 64 << 10

	// keepAliveFrame is a comment: it keeps proxies from closing the
	// connection, shows whether the peer is still there, and is no event.
	keepAliveFrame = ":\n\n"
)

// The reasons for which a stream ends, as [Serve], [Broker.Serve] and the
// methods of [Writer] return them. Test for them with [errors.Is].
var (
	// ErrClientLeft: the client closed the connection, or the request's
	// context ended for another reason; the error wraps that reason too.
	ErrClientLeft = errors.New("sse: client left")

	// ErrTooSlow: the client did not take what was written to it within
	// WriteTimeout and was cut off.
	ErrTooSlow = errors.New("sse: client too slow")
)

// A Writer writes an event stream to one client. Make one with [NewWriter].
//
// Its methods may be called by several goroutines at once, until the handler
// that made it returns; from then on, and once a write has failed, they return
// an error and do nothing.
type Writer struct {
	// WriteTimeout bounds each write, which waits if the client reads more
	// slowly than it is sent to; a client that takes longer is cut off.
	// 0 is 10 seconds; negative is no limit. Set it before the first call.
	WriteTimeout time.Duration

	mu         sync.Mutex
	w          http.ResponseWriter
	rc         *http.ResponseController
	ctx        context.Context
	noDeadline bool      // w has none to set
	keep       bool      // leave a deadline set after the write
	deadline   time.Time // that is set, if keep
	wrote      time.Time // the beginning of the last write
	buf        []byte    // reused by Send and Comment
	err        error     // what ended the stream
	isCut      atomic.Bool
}

// NewWriter begins an event stream as the answer to r: it sends status 200 and
// the headers at once, so that a browser's onopen fires, and lifts the server's
// deadline for reading. Headers that w has already are kept; the others are
//
//	Content-Type: text/event-stream
//	Cache-Control: no-cache, no-transform
//	X-Accel-Buffering: no
//
// It takes any method, since a stream may well answer a POST; the answer to
// HEAD is the headers, after which Send fails.
//
// Where w cannot be flushed the client gets status 500, and NewWriter returns
// an error that wraps [http.ErrNotSupported] and names the type of w: wrap it
// in one with an Unwrap method, as [http.ResponseController] asks.
//
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#server-sent-events-intro.
func NewWriter(w http.ResponseWriter, r *http.Request) (*Writer, error) {
	return newWriter(w, r, 0)
}

func newWriter(w http.ResponseWriter, r *http.Request, timeout time.Duration) (*Writer, error) {
	out := &Writer{WriteTimeout: timeout, w: w, rc: http.NewResponseController(w), ctx: r.Context()}
	out.rc.SetReadDeadline(time.Time{}) // fails only where there is none to lift
	added := addHeaders(w.Header(), r.ProtoMajor)
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		out.err = http.ErrBodyNotAllowed
		return out, nil
	}
	out.setDeadline()
	err := out.end()
	if errors.Is(err, http.ErrNotSupported) {
		for _, name := range added {
			w.Header().Del(name)
		}
		err = fmt.Errorf("sse: %T cannot be flushed: %w", w, http.ErrNotSupported)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// addHeaders sets the headers of an event stream that the program did not set
// itself, and returns their names.
func addHeaders(h http.Header, protoMajor int) (added []string) {
	add := func(name, value string) {
		if _, ok := h[name]; !ok {
			h.Set(name, value)
			added = append(added, name)
		}
	}
	add("Content-Type", "text/event-stream")
	add("Cache-Control", "no-cache, no-transform")
	add("X-Accel-Buffering", "no") // tells nginx not to hold back what it has read
	if protoMajor == 1 {
		// The stream ends with its connection. Chunks would end it no better, and
		// net/http needs up to three writes to the socket for one that is large.
		// It takes this header as an order and does not send it.
		add("Transfer-Encoding", "identity")
	}
	return added
}

// Send writes the events, which leave together in one flush. It blocks until
// the connection has taken them, at most for WriteTimeout. If one of them is
// refused, as by [Event.AppendText], none is written and the stream goes on;
// after any other error, [ErrClientLeft] or [ErrTooSlow], it has ended.
func (w *Writer) Send(events ...Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	buf := w.buf[:0]
	for _, e := range events {
		var err error
		if buf, err = e.AppendText(buf); err != nil {
			return err
		}
	}
	return w.writeReusing(buf)
}

// Comment writes text as a comment, which clients skip: a sign of life, or a
// word to somebody who reads the stream with curl. Each CR, LF and CRLF in text
// begins a new comment line. Blocking and errors are those of Send.
func (w *Writer) Comment(text string) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("sse: comment %s is not valid UTF-8", quote(text))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writeReusing(append(appendLines(w.buf[:0], ": ", text), '\n'))
}

// keepAlive writes the shortest comment there is.
func (w *Writer) keepAlive() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writeReusing(append(w.buf[:0], keepAliveFrame...))
}

// writeReusing writes buf and keeps its memory for the next call, unless it is
// much. The caller holds mu.
func (w *Writer) writeReusing(buf []byte) error {
	err := w.write(buf)
	if cap(buf) <= pieceBytes {
		w.buf = buf
	}
	return err
}

// write writes and flushes p. The caller holds mu, or is the only one to know w.
func (w *Writer) write(p []byte) error {
	if err := w.begin(); err != nil {
		return err
	}
	for piece := range slices.Chunk(p, pieceBytes) {
		w.put(piece)
	}
	return w.end()
}

// begin, put and end write and flush as much as the caller likes. Each piece has
// a deadline, which end clears: one that passes on an idle HTTP/2 stream would
// reset it.
func (w *Writer) begin() error {
	if w.err == nil && w.ctx.Err() != nil {
		w.err = leftError(w.ctx)
	}
	return w.err
}

func (w *Writer) put(piece []byte) {
	if w.err != nil {
		return
	}
	w.setDeadline()
	if _, err := w.w.Write(piece); err != nil {
		w.fail(err)
	}
}

func (w *Writer) end() error {
	if w.err != nil {
		return w.err
	}
	if err := w.rc.Flush(); err != nil {
		return w.fail(err)
	}
	if !w.keep {
		w.clearDeadline()
	}
	return nil
}

// setDeadline sets the deadline for a write that begins now. One that was kept
// will do until a sixteenth of its time has passed.
func (w *Writer) setDeadline() {
	w.wrote = time.Now()
	timeout := cmp.Or(w.WriteTimeout, defaultWriteTimeout)
	if timeout < 0 || w.noDeadline || w.keep && w.deadline.Sub(w.wrote) > timeout-timeout/16 {
		return
	}
	w.deadline = w.wrote.Add(timeout)
	err := w.rc.SetWriteDeadline(w.deadline)
	w.noDeadline = errors.Is(err, http.ErrNotSupported)
	if w.isCut.Load() {
		w.cut()
	}
}

func (w *Writer) clearDeadline() {
	if !w.noDeadline {
		w.rc.SetWriteDeadline(time.Time{})
	}
}

// cut ends a write that is under way and any later one. Unlike the other
// methods it may be called at any time until the handler has returned.
func (w *Writer) cut() {
	w.isCut.Store(true)
	w.rc.SetWriteDeadline(time.Unix(1, 0))
}

// fail ends the stream because of a failed write and returns the reason. An
// HTTP/2 stream does not say that a deadline was missed, the clock does.
func (w *Writer) fail(err error) error {
	timeout := cmp.Or(w.WriteTimeout, defaultWriteTimeout)
	reason := ErrClientLeft
	if errors.Is(err, os.ErrDeadlineExceeded) || timeout > 0 && time.Since(w.wrote) >= timeout {
		reason = ErrTooSlow
	}
	w.err = fmt.Errorf("%w: %w", reason, err)
	return w.err
}

// leftError is the error for a stream whose context has ended.
func leftError(ctx context.Context) error {
	return fmt.Errorf("%w: %w", ErrClientLeft, context.Cause(ctx))
}
