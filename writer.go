package sse

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

// ----- Writer -----

const (
	defaultKeepAlive    = 15 * time.Second
	defaultWriteTimeout = 10 * time.Second

	// pieceBytes is the most that is written under one deadline, so that a
	// client on a slow line may take its time over a large event.
	pieceBytes = 64 << 10

	// keepAliveFrame is a comment: it keeps proxies from closing the
	// connection, shows whether the peer is still there, and is no event.
	keepAliveFrame = ":\n"
)

// A Writer writes an event stream to one client. Create one with [NewWriter].
//
// Its methods are safe for concurrent use by multiple goroutines. After a write has
// failed, or when the request's context is done, as it is once the handler has returned,
// they write nothing and return an error. The handler must not return while a method is
// running.
type Writer struct {
	// WriteTimeout is the time allowed for each write of up to 64 KiB. A client that
	// exceeds it is disconnected. If 0, it is 10 seconds; if negative, there is no
	// limit. It must be set before the first call of a method. Over HTTP/2 it ends the
	// stream only; WriteByteTimeout in http.HTTP2Config ends the connection.
	WriteTimeout time.Duration

	w       http.ResponseWriter
	rc      *http.ResponseController
	ctx     context.Context
	http2   bool   // a deadline is a timer of the stream's
	hasBody bool   // the request has, and net/http may wait for it
	source  source // a Broker's client, whose sweep bounds the writes; nil for others
	isCut   atomic.Bool

	// mu guards the fields below. It is nil in a Broker's Writer, which only the handler
	// uses, or the owner of its conn.
	mu         mutex
	noDeadline bool      // w has none to set
	flushed    bool      // the headers were
	wrote      time.Time // the beginning of the last write
	buf        []byte    // reused by Send and Comment
	err        error     // what ended the stream
}

// A mutex is a lock that is held while its channel is full. It may be held for as long
// as a client takes to read. While a goroutine waits for it, the fake time of package
// synctest goes on, unlike with a sync.Mutex.
type mutex chan struct{}

func (m mutex) Lock()   { m <- struct{}{} }
func (m mutex) Unlock() { <-m }

// NewWriter answers r with an event stream:
//
//	out, err := sse.NewWriter(w, r)
//	if err != nil {
//		return // NewWriter has answered
//	}
//	out.Send(sse.Event{Data: "hello"})
//
// It sends status 200, the headers and a comment at once, so that a browser's onopen
// fires. Headers that w already has are kept; the others are
//
//	Content-Type: text/event-stream; charset=utf-8
//	Cache-Control: no-cache, no-transform
//	X-Accel-Buffering: no
//	X-Content-Type-Options: nosniff
//
// The stream is exempt from the server's ReadTimeout and WriteTimeout. It ends when
// the handler returns; [http.Server.Shutdown] waits for that. If the handler cannot
// finish the stream, it should panic with [http.ErrAbortHandler]: the client then
// sees a broken stream, except over HTTP/1.0. NewWriter sends no keep-alives; use
// Comment, or [Serve], which does.
//
// r may have any method. The handler must read the body of a POST before it calls
// NewWriter. If that body was chunked, the HTTP/1.1 connection is closed with the
// stream. HEAD is answered with the headers alone, and Send returns
// [http.ErrBodyNotAllowed].
//
// If w cannot be flushed, the client receives status 500, and NewWriter returns an
// error that wraps [http.ErrNotSupported] and names the ResponseWriter that lacks
// Flush; add an Unwrap method to it, as [http.ResponseController] asks.
//
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#server-sent-events-intro.
func NewWriter(w http.ResponseWriter, r *http.Request) (*Writer, error) {
	out := newWriter(w, r, 0)
	waits := out.hasBody && r.ProtoMajor == 1 && r.Method != http.MethodHead
	if waits && r.ContentLength < 0 {
		w.Header().Set("Connection", "close") // see boundRest
	}
	if err := out.open(r, []byte(keepAliveFrame)); err != nil {
		return nil, err
	}
	if waits {
		boundRest(w, r)
	}
	return out, nil
}

// boundRest bounds what net/http reads of r's body over HTTP/1.x when the handler has
// returned, before which it ends r's context. A Writer does not know when that is.
//
// The deadline may be set a moment late, so there must be no next request on the
// connection that it could hit. There is none: if a body was not read, by the handler
// or by net/http before it wrote the headers, the connection is closed. For a chunked
// body this cannot be known without waiting, so its connection is always closed. The
// deadline is set on the server's own ResponseWriter, because what wraps it may serve
// another request by then.
func boundRest(w http.ResponseWriter, r *http.Request) {
	conn, ok := innermost(w).(interface{ SetReadDeadline(time.Time) error })
	if !ok {
		return
	}
	if r.ContentLength > 0 {
		if _, err := r.Body.Read(nil); err == io.EOF || err == http.ErrBodyReadAfterClose {
			return
		}
	}
	context.AfterFunc(r.Context(), func() {
		conn.SetReadDeadline(time.Now().Add(defaultWriteTimeout / 2))
	})
}

func newWriter(w http.ResponseWriter, r *http.Request, timeout time.Duration) *Writer {
	return &Writer{
		WriteTimeout: timeout,
		w:            w,
		rc:           http.NewResponseController(w),
		ctx:          r.Context(),
		http2:        r.ProtoMajor == 2,
		hasBody:      hasBody(r),
	}
}

// open begins the stream with hello, in the same flush as the headers: no client
// sees the one without the other.
func (w *Writer) open(r *http.Request, hello []byte) error {
	w.mu = make(mutex, 1)
	if err := w.writeHeaders(r, false); err != nil || r.Method == http.MethodHead {
		return err
	}
	return w.write(hello)
}

// writeHeaders writes the headers, which leave with the first flush. The answer to
// HEAD is complete then.
func (w *Writer) writeHeaders(r *http.Request, noChunks bool) error {
	if r.Method != http.MethodHead && !canFlush(w.w) {
		w.err = cannotFlush(w.w)
		http.Error(w.w, w.err.Error(), http.StatusInternalServerError)
		return w.err
	}
	addHeaders(w.w.Header(), noChunks)
	if r.Method == http.MethodHead {
		w.w.WriteHeader(http.StatusOK)
		w.err = http.ErrBodyNotAllowed
		return nil
	}
	if w.http2 {
		// net/http would format it so deep in the stack that the stack would grow to
		// 8 KB, and stay so for as long as the stream is idle.
		addHeader(w.w.Header(), "Date", time.Now().UTC().Format(http.TimeFormat))
	}
	w.setReadDeadline()
	if w.source != nil {
		w.setWriteDeadline(time.Time{}) // the server's
	} else {
		w.setDeadline()
	}
	// Not left to the flush: a compressor may look at the headers here alone.
	w.w.WriteHeader(http.StatusOK)
	return nil
}

func cannotFlush(w http.ResponseWriter) error {
	return fmt.Errorf("sse: %T cannot be flushed: %w", innermost(w), http.ErrNotSupported)
}

// canFlush reports whether an http.ResponseController finds a way to flush w.
func canFlush(w http.ResponseWriter) bool {
	switch t := w.(type) {
	case http.Flusher, interface{ FlushError() error }:
		return true
	case interface{ Unwrap() http.ResponseWriter }:
		return canFlush(t.Unwrap())
	}
	return false
}

// innermost returns the ResponseWriter that an http.ResponseController reaches last.
// If the controller finds no method, this is the ResponseWriter that lacks it.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	if t, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
		return innermost(t.Unwrap())
	}
	return w
}

// endsWithConnection reports whether a Broker's stream that answers r ends with its
// connection, without chunks. Such a stream never finishes, so there is no last chunk
// to send, and net/http needs up to three writes to the socket for a large chunk. The
// stream of a Writer or of Serve does finish, so it is chunked: a client that receives
// no last chunk knows that the stream was cut off.
//
// Varnish delays the beginning of a response without chunks until more arrives. A
// client may wait for the end of the response before it sends its body (Expect:
// 100-continue), while net/http waits for the body before it closes the connection.
func endsWithConnection(r *http.Request) bool {
	_, ours := r.Context().Value(http.ServerContextKey).(*http.Server) // and not package fcgi's
	return ours && r.ProtoMajor == 1 && !hasBody(r) && r.Header.Get("X-Varnish") == ""
}

// hasBody reports whether r has a body. The length is decisive: middleware may wrap
// the Body of a request that has none.
func hasBody(r *http.Request) bool {
	return r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
}

// answerEnded answers a client that comes back after the end of its stream, and
// reports whether r's is one. An EventSource gives up for good on status 204. It
// must not be stored: it would answer newcomers too.
func answerEnded(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || LastEventID(r) != endID {
		return false
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
	return true
}

// addHeader sets a header that the program did not set itself.
func addHeader(h http.Header, name, value string) {
	if _, ok := h[name]; !ok {
		h.Set(name, value)
	}
}

// addHeaders adds those of an event stream.
func addHeaders(h http.Header, noChunks bool) {
	// The charset is for clients that take any text without one for Latin-1.
	addHeader(h, "Content-Type", "text/event-stream; charset=utf-8")
	addHeader(h, "Cache-Control", "no-cache, no-transform")
	addHeader(h, "X-Accel-Buffering", "no") // tells nginx not to hold back what it has read
	// A stream repeats IDs that came with the request: it must not run as a script.
	addHeader(h, "X-Content-Type-Options", "nosniff")
	if noChunks {
		// net/http takes this header as an order and does not send it.
		addHeader(h, "Transfer-Encoding", "identity")
	}
}

// Send writes the events in one flush. It blocks until the connection has accepted
// them. If an event cannot be represented, Send writes none of them and returns the
// error of [Event.AppendText]; the stream continues. Any other error, such as
// [ErrClientLeft] or [ErrTooSlow], means that the stream has ended. It is
// ErrClientLeft after the handler has returned.
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
	return w.write(buf)
}

// Comment writes text as a comment, which clients ignore. It keeps the connection
// alive and is visible in curl. Each CR, LF and CRLF in text begins a new comment
// line. Comment blocks and fails as Send does, and also if text is not valid UTF-8.
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes.
func (w *Writer) Comment(text string) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("sse: comment %s is not valid UTF-8", quote(text))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(appendLines(w.buf[:0], ": ", text))
}

// keepAlive writes a comment after each period in which nothing was written. stop
// ends that, and waits for a comment that is being written.
func (w *Writer) keepAlive(period time.Duration) (stop func()) {
	w.mu.Lock() // the timer may fire before it is assigned
	defer w.mu.Unlock()
	remaining := func() time.Duration { return period - time.Since(w.wrote) }
	var timer *time.Timer
	timer = time.AfterFunc(remaining(), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		defer func() {
			// It costs one client, as in a handler, and not the process.
			if p := recover(); p != nil {
				w.err = fmt.Errorf("%w: %v", errPanic, p)
				w.cut()
			}
		}()
		if timer == nil {
			return
		}
		if remaining() <= 0 && w.write([]byte(keepAliveFrame)) != nil {
			return
		}
		timer.Reset(remaining())
	})
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		timer.Stop()
		timer = nil
	}
}

// close ends the stream for this reason, nil if it has finished, and returns why it
// has ended. A stream that has not finished is cut, so that it is not taken for one
// that has.
func (w *Writer) close(reason error, sayEnd bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.begin()
	if err == nil && sayEnd && errors.Is(reason, ErrEnded) {
		err = w.write(appendFrames(nil, []*frame{endEvent}))
	}
	if err == nil && (reason == nil || errors.Is(reason, ErrEnded)) {
		return reason
	}
	w.cut()
	return cmp.Or(err, reason)
}

// finish bounds what net/http does when the handler has returned: it writes the
// last chunk, and reads what is left of the request's body. It lifts both deadlines
// before it reads another request.
func (w *Writer) finish() {
	if w.isCut.Load() {
		return
	}
	w.setReadDeadline()
	if !w.http2 {
		w.setDeadline()
	}
}

// write writes and flushes p, and keeps its memory for the next call, unless it is
// much. The caller holds mu, or is the only one to know w.
func (w *Writer) write(p []byte) error {
	if c := cap(p); c > cap(w.buf) && c <= pieceBytes {
		w.buf = p
	}
	if err := w.begin(); err != nil {
		return err
	}
	for piece := range slices.Chunk(p, pieceBytes) {
		if err := w.writePiece(piece); err != nil {
			return err
		}
	}
	return w.flush()
}

// begin, writePiece and flush write as much as the caller likes. Each piece has a
// deadline. flush clears it, because a deadline that passes while an HTTP/2 stream is
// idle resets the stream.
func (w *Writer) begin() error {
	if w.err == nil && w.ctx.Err() != nil {
		w.err = leftError(w.ctx)
	}
	return w.err
}

func (w *Writer) writePiece(piece []byte) error {
	if w.source == nil {
		w.setDeadline()
	}
	if _, err := w.w.Write(piece); err != nil {
		return w.fail(err)
	}
	return nil
}

func (w *Writer) flush() error {
	if err := w.rc.Flush(); errors.Is(err, http.ErrNotSupported) {
		w.err = cannotFlush(w.w) // which a wrapper hid until now
		return w.err
	} else if err != nil {
		return w.fail(err)
	}
	if w.source == nil {
		w.setWriteDeadline(time.Time{})
	}
	if !w.flushed {
		w.flushed = true
		w.rc.SetReadDeadline(time.Time{}) // net/http watches for the end of the connection
		if w.isCut.Load() {               // perhaps before that
			w.cut()
		}
	}
	return nil
}

// sendFrames writes the source's frames and flushes them together. It is called by a
// Broker's handler, or by a worker while that is in serveTurns.
func (w *Writer) sendFrames(frames []*frame) error {
	defer w.source.writing(false)
	if w.err != nil {
		return w.err
	}
	if err := writePieces(&frameReader{frames: frames}, w.source, w.writePiece); err != nil {
		return err
	}
	return w.flush()
}

// writePieces writes what r has piece by piece.
func writePieces(r *frameReader, s source, write func([]byte) error) error {
	buf := scratch.Get().(*[]byte)
	defer func() { putScratch(buf, *buf) }()
	for p := r.piece(*buf); len(p) > 0; p = r.piece(p) {
		*buf = p
		s.writing(true)
		if err := write(p); err != nil {
			return err
		}
		r.take(len(p))
	}
	return nil
}

// setReadDeadline bounds what net/http reads by itself over HTTP/1.x: what is left
// of the request's body, before it writes the headers and when the handler returns.
// A client could otherwise announce a body, and hold the handler by not sending it.
func (w *Writer) setReadDeadline() {
	timeout := cmp.Or(max(w.WriteTimeout, 0), defaultWriteTimeout) // a client without a body is not slow
	if w.hasBody && !w.http2 {
		w.rc.SetReadDeadline(time.Now().Add(timeout / 2)) // the headers need time too
	}
}

// setDeadline sets the deadline for a write that begins now.
func (w *Writer) setDeadline() {
	w.wrote = time.Now()
	if timeout := cmp.Or(w.WriteTimeout, defaultWriteTimeout); timeout > 0 {
		w.setWriteDeadline(w.wrote.Add(timeout))
	} else if w.isCut.Load() {
		w.cut()
	}
}

// setWriteDeadline sets the deadline, or clears it for the zero time.
func (w *Writer) setWriteDeadline(at time.Time) {
	if !w.noDeadline {
		w.noDeadline = errors.Is(w.rc.SetWriteDeadline(at), http.ErrNotSupported)
	}
	if w.isCut.Load() { // perhaps before the deadline was set
		w.cut()
	}
}

// cut ends a write that is under way and any later one, and what net/http reads
// before it. Unlike the other methods it may be called at any time until the
// handler has returned.
func (w *Writer) cut() {
	w.isCut.Store(true)
	past := time.Unix(1, 0)
	if w.hasBody {
		w.rc.SetReadDeadline(past)
	}
	w.rc.SetWriteDeadline(past)
}

// fail ends the stream because of a failed write and returns the reason.
func (w *Writer) fail(err error) error {
	w.err = fmt.Errorf("%w: %w", ErrClientLeft, err)
	timeout := cmp.Or(w.WriteTimeout, defaultWriteTimeout)
	// An HTTP/2 stream does not say that a deadline was missed, the clock does.
	if w.source == nil && (errors.Is(err, os.ErrDeadlineExceeded) || timeout > 0 && time.Since(w.wrote) >= timeout) {
		w.err = fmt.Errorf("%w: %w", ErrTooSlow, err)
	}
	if w.http2 && w.source == nil {
		// It would hold the memory of a stream that was reset until it passes, and a
		// client can open and reset thousands of streams a second. On a connection
		// it stays, for what net/http writes last.
		w.setWriteDeadline(time.Time{})
	}
	return w.err
}

// leftError is the error for a stream whose context has ended: because the client
// left, unless the program gave another cause.
func leftError(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != context.Canceled {
		return fmt.Errorf("sse: stream ended: %w", cause)
	}
	return fmt.Errorf("%w: %w", ErrClientLeft, context.Canceled)
}

// ----- Connections -----

// A step says how the stream of a source goes on once a batch was sent.
type step int8

const (
	again      step = iota // call next again
	wait                   // the source waits until there is more
	askCatchUp             // only deliver goes on, since CatchUp may take any time
	last                   // the stream has ended
)

// A source is what a connection is fed from: a subscriber, except in tests.
type source interface {
	// next returns what to send next, in place of batch, which was sent. If the source
	// of a conn waits, there is nothing to send, and the caller does not own the conn
	// anymore: the source pushes it when there is more.
	next(batch []*frame) ([]*frame, step)

	// deliver sends batch and what follows by send, which may block, until the
	// source waits, and then returns nil, or until the stream has ended.
	deliver(ctx context.Context, batch []*frame, then step, send func([]*frame) error) error

	writing(bool)                // a write that may block begins, or has ended
	sent()                       // a pause follows, and what next returned last has been sent
	guard(what string, f func()) // calls f, which is named what, and logs a panic in it
	finished(reason error)       // the connection was closed, for this reason unless there was one before
}

// A conn is what workers write to: the connection of a client that was taken over from
// net/http, or the ResponseWriter of a handler over HTTP/1.x, which is in serveTurns.
//
//	          push                 pop
//	no owner ─────► in the queue ─────► a worker ──► no owner, when the source waits
//	                     ▲                │ ├──────► the queue, if there is more
//	                     └────────────────┘ └──────► another goroutine, by handOver, if
//	                                                 it has to wait: the handler, or serveTurn
//	                                                     │
//	                          no owner, or the stream ends ◄┘
//
// Only its owner uses a conn, except for breakOff, which ends a write at any time, and
// for after and suspect.
type conn struct {
	source source
	queue  *connQueue
	after  *conn // the next in the queue; guarded by the queue's mu

	// Of a handler; out is nil if the connection was taken over.
	out   *Writer
	turns chan turn // what it is to do

	// Of a connection that was taken over.
	netConn  net.Conn
	raw      syscall.RawConn // nil: there is no way to write without waiting
	ctx      context.Context // for CatchUp
	answered time.Time       // when isSilent last found that the peer is there
	suspect  bool            // whether the peer has left is to be checked; set before push
}

// A turn is what a worker leaves to another goroutine: what may take long, and the end.
type turn struct {
	batch []*frame // to be sent first, without its first skip bytes
	skip  int      // 0 for a handler
	then  step
	err   error // if not nil, the stream has ended
	panic any   // what the handler is to panic with, or nil for runtime.Goexit; err is errPanic
}

// handOver gives c to the handler that waits, or to a new goroutine.
func (c *conn) handOver(t turn) {
	if c.out != nil {
		c.turns <- t
	} else {
		go c.serveTurn(t)
	}
}

// serveTurns blocks the handler, and does what workers hand over, until the stream has
// ended. It returns why that was.
func (c *conn) serveTurns() error {
	for {
		t := <-c.turns
		switch {
		case t.panic != nil:
			panic(t.panic)
		case t.err == errPanic:
			runtime.Goexit()
		case t.err != nil:
			return t.err
		}
		if err := c.source.deliver(c.out.ctx, t.batch, t.then, c.out.sendFrames); err != nil {
			return err
		}
	}
}

// takeOver takes the connection over from w. It returns nil, having done nothing, if
// that is impossible.
func takeOver(w http.ResponseWriter, r *http.Request, queue *connQueue) *conn {
	if !endsWithConnection(r) {
		return nil
	}
	netConn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil
	}
	c := &conn{netConn: netConn, queue: queue, answered: time.Now()}
	// Only exactly these types: a type that embeds one of them may do more.
	switch netConn.(type) {
	case *net.TCPConn, *net.UnixConn:
		if runtime.GOOS != "windows" { // whose sockets do not support plain write calls
			c.raw, _ = netConn.(syscall.Conn).SyscallConn()
		}
	}
	return c
}

// responseHead returns the head of the response that begins a stream which ends
// with its connection.
func responseHead(h http.Header, r *http.Request) string {
	addHeaders(h, false)
	h.Del("Content-Length")
	h.Del("Transfer-Encoding")
	h.Del("Content-Encoding") // of a compressor, which the stream goes past
	h.Set("Connection", "close")
	addHeader(h, "Date", time.Now().UTC().Format(http.TimeFormat))
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.%d 200 OK\r\n", min(r.ProtoMinor, 1))
	h.Write(&head) // which replaces line ends within values
	return head.String() + "\r\n"
}

// serveTurn does what a worker hands over, and blocks until the source waits or the
// stream has ended.
func (c *conn) serveTurn(t turn) {
	err := errPanic // or runtime.Goexit
	defer func() {
		if err != nil {
			c.close(err)
		}
	}()
	c.source.guard("CatchUp or a net.Conn", func() {
		if t.err == nil {
			t.err = c.look()
		}
		if t.err != nil {
			err = t.err
			return
		}
		err = c.source.deliver(c.ctx, t.batch, t.then, func(batch []*frame) error {
			from := t.skip
			t.skip = 0
			return c.sendFrames(batch, from)
		})
	})
}

// sendFrames writes the frames, without their first skip bytes, and waits until the
// client has taken them.
func (c *conn) sendFrames(frames []*frame, skip int) error {
	defer c.source.writing(false)
	r := frameReader{frames: frames, skip: skip}
	if c.raw != nil {
		return newAttempt().writeFrom(c, r, true)
	}
	return writePieces(&r, c.source, func(p []byte) error {
		if _, err := c.netConn.Write(p); err != nil {
			return fmt.Errorf("%w: %w", ErrClientLeft, err)
		}
		return nil
	})
}

// look returns an error if the peer has left or is silent.
func (c *conn) look() error {
	if c.out != nil { // net/http looks itself
		return nil
	}
	suspect := c.suspect
	c.suspect = false
	switch {
	case suspect && c.peerLeft():
		return fmt.Errorf("%w: %w", ErrClientLeft, net.ErrClosed)
	case c.isSilent():
		return errSilent
	}
	return nil
}

var errSilent = fmt.Errorf("%w: %w", ErrClientLeft, syscall.ETIMEDOUT)

// peerLeft reports whether the client has closed its connection. It may take a
// moment.
func (c *conn) peerLeft() bool {
	var p [64]byte
	if c.raw != nil {
		n, err := 0, error(nil)
		closed := c.raw.Read(func(fd uintptr) bool {
			n, err = call(syscall.Read, fd, p[:])
			return true // whatever came of it: do not wait
		})
		return closed != nil || n == 0 && err == nil
	}
	c.netConn.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer c.netConn.SetReadDeadline(time.Time{})
	_, err := c.netConn.Read(p[:])
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// isSilent reports whether the peer has confirmed nothing for about as long as a
// write may take, though it was sent something. A write that fits in the socket's
// buffer, as a keep-alive does, misses no deadline even if nobody is at the other
// end any more, and TCP goes on trying for a quarter of an hour. TCP_USER_TIMEOUT
// would end that, but also break off a client that is there and only has not read
// for that long.
func (c *conn) isSilent() bool {
	now := time.Now()
	silence := now.Sub(c.answered)
	if c.queue.timeout < 0 || silence < c.queue.timeout/4 { // not worth a system call
		return false
	}
	n := c.queue.unanswered(c.transport())
	if n == 0 {
		c.answered = now
	}
	return n > 1 && silence >= c.queue.timeout/4*3 // some time passes before the first counts
}

// unanswered returns how often in a row Linux has sent the peer the same again, or
// asked it whether it has room again, without an answer.
func unanswered(conn net.Conn) byte {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || runtime.GOOS != "linux" {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	const tcpInfo = 11 // struct tcp_info: state, congestion state, retransmits, probes, …
	var info [4]byte
	raw.Control(func(fd uintptr) {
		if n, err := getOption(syscall.GetsockoptInt, fd, tcpInfo); err == nil {
			binary.NativeEndian.PutUint32(info[:], uint32(n))
		}
	})
	return max(info[2], info[3])
}

// getOption calls f, as call does.
func getOption[FD ~int | ~uintptr](f func(FD, int, int) (int, error), fd uintptr, option int) (int, error) {
	return f(FD(fd), syscall.IPPROTO_TCP, option)
}

// close closes the connection, whose stream has ended for this reason.
func (c *conn) close(reason error) {
	c.source.guard("a net.Conn", func() {
		if errors.Is(reason, ErrTooSlow) || reason == errSilent {
			c.breakOff()
		}
		c.netConn.Close()
	})
	c.source.finished(reason)
}

// breakOff closes the connection at once, and ends a write that is under way.
// Otherwise TLS would try for five seconds to send its close_notify to a client that
// does not read, and TCP would try for minutes to send what is in the socket's
// buffer, which may be megabytes.
func (c *conn) breakOff() {
	transport := c.transport()
	if tcp, ok := transport.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	transport.Close()
	c.netConn.Close()
}

// transport returns the connection below TLS, if there is TLS.
func (c *conn) transport() net.Conn {
	if t, ok := c.netConn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c.netConn
}

// A connQueue holds the connections that have something to be sent, and the workers
// that send it. There are workers only as long as there is work. Over HTTP/1.x they
// write for handlers too: a single event costs a tenth less CPU than if the goroutine of
// the handler had to run for it.
//
// A worker never waits for a client whose conn.raw is set. A write to any other, for a
// handler or over TLS, cannot be tried and may block. The worker is then replaced, and
// ends after the connection that it has.
type connQueue struct {
	timeout    time.Duration       // WriteTimeout
	unanswered func(net.Conn) byte // the function of that name, except in tests
	most       int                 // how many workers are started for what is pushed
	spare      sync.Pool           // of *worker

	mu          sync.Mutex // guards the fields below; taken after the Broker's
	first, last *conn
	workers     int // those that take connections from the queue, and not those that end
}

const (
	// A worker is replaced if so many writes that may block, and what it does between
	// them, take longer than patience. They are timed together because it costs time to
	// set the timer.
	writesAtOnce = 16
	patience     = time.Millisecond

	maxWorkers = 1024
)

func newConnQueue(timeout time.Duration) *connQueue {
	return &connQueue{timeout: timeout, unanswered: unanswered, most: runtime.GOMAXPROCS(0)}
}

// push adds c, which has no owner.
func (q *connQueue) push(c *conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first == nil {
		q.first = c
	} else {
		q.last.after = c
	}
	q.last = c
	if q.workers < q.most {
		go q.newWorkerLocked().run() // which is worker.serveQueue
	}
}

// newWorkerLocked returns a worker, whose function run is to be called.
func (q *connQueue) newWorkerLocked() *worker {
	q.workers++
	w, ok := q.spare.Get().(*worker)
	if !ok {
		w = &worker{queue: q, attempt: newAttempt()}
		w.run = w.serveQueue
	}
	w.ends, w.writes = false, 0
	return w
}

// pop gives w the next connection, or nil if w is to end.
func (q *connQueue) pop(w *worker) *conn {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.first
	switch {
	case w.ends:
		return nil
	case c == nil:
		w.ends = true
		q.workers--
		return nil
	}
	if q.first, c.after = c.after, nil; q.first == nil {
		q.last = nil
	}
	return c
}

// replace starts others in place of w: two, as long as there are not very many, since
// very many clients may have stopped reading at once.
func (q *connQueue) replace(w *worker) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.ends {
		return
	}
	w.ends = true
	q.workers--
	for range min(2, maxWorkers-q.workers) {
		if q.first != nil {
			go q.newWorkerLocked().run()
		}
	}
}

// A worker sends what there is to be sent, to one connection after the other. Only its
// goroutine uses the fields that say nothing else.
type worker struct {
	queue   *connQueue
	run     func() // serveQueue, which would be allocated for each start
	ends    bool   // it takes no more connections; guarded by the queue's mu
	attempt *attempt
	batch   []*frame
	writes  int         // since it was started, that may block
	timer   *time.Timer // replaces it
}

// batchesAtOnce is how many batches a connection is sent before others are.
const batchesAtOnce = 16

func (w *worker) serveQueue() {
	var c *conn // being served
	defer func() {
		if c != nil { // the program's ResponseWriter, or net.Conn, panics or calls runtime.Goexit
			value := recover()
			if value != nil && value != http.ErrAbortHandler {
				c.source.guard("a write", func() { panic(value) }) // logs it, with this stack
			}
			c.handOver(turn{err: errPanic, panic: value})
			w.queue.replace(w)
		}
	}()
	for {
		if c = w.queue.pop(w); c == nil {
			w.queue.spare.Put(w)
			return
		}
		if w.serve(c) {
			w.queue.push(c)
		}
	}
}

// serve sends c some of what there is for it, and reports whether there may be more.
// If not, c has another owner or none.
func (w *worker) serve(c *conn) (more bool) {
	if c.suspect && c.raw == nil || c.out != nil && c.out.ctx.Err() != nil {
		c.handOver(turn{}) // to look takes time, and deliver looks at the context
		return false
	}
	if err := c.look(); err != nil {
		c.handOver(turn{err: err})
		return false
	}
	for range batchesAtOnce {
		var then step
		w.batch, then = c.source.next(w.batch)
		if then == wait {
			return false
		}
		r, err := frameReader{frames: w.batch}, error(nil)
		switch {
		case then == askCatchUp:
			err = errWouldWait
		case c.raw != nil:
			err = w.attempt.writeFrom(c, r, false)
			r = w.attempt.r
		case len(w.batch) > 0 && c.out != nil:
			w.watch()
			err = c.out.sendFrames(w.batch)
		case len(w.batch) > 0:
			w.watch()
			err = c.sendFrames(w.batch, 0)
		}
		if err == nil && then == again {
			continue
		}
		if err == errWouldWait {
			c.handOver(turn{batch: r.frames, skip: r.skip, then: then})
		} else {
			c.handOver(turn{then: then, err: err})
		}
		w.batch, w.attempt.r = nil, frameReader{} // which may be used there
		return false
	}
	c.source.sent()
	return true
}

// watch is called before a write that may block. If that does, the worker is replaced.
func (w *worker) watch() {
	switch {
	case w.timer == nil:
		w.timer = time.AfterFunc(patience, func() { w.queue.replace(w) })
	case w.writes%writesAtOnce == 0:
		w.timer.Reset(patience)
	}
	w.writes++
}

// An attempt writes to a connection by system calls that do not wait. It is reused,
// because the function that a RawConn takes would be allocated for each write.
type attempt struct {
	write func(fd uintptr) bool

	// The arguments and the result of write.
	c       *conn
	r       frameReader // also the result: what is left
	mayWait bool        // for room, if the client does not take all at once
	err     error
}

func newAttempt() *attempt {
	a := &attempt{}
	a.write = a.writeAll
	return a
}

// writeAll writes until all was taken or an error ended that, and reports whether
// that is so. Otherwise the caller is to wait for room and call it again.
func (a *attempt) writeAll(fd uintptr) bool {
	if a.err != nil {
		a.c.answered = time.Now() // it has made room
	}
	// The buffer is given back while it waits for room: there may be very many clients
	// that do not read.
	buf := scratch.Get().(*[]byte)
	defer func() { putScratch(buf, *buf) }()
	for {
		p := a.r.piece(*buf)
		if len(p) == 0 {
			a.err = nil
			return true
		}
		*buf = p
		n, err := call(syscall.Write, fd, p)
		if n > 0 {
			a.r.take(n)
			if a.mayWait {
				a.c.source.writing(true)
			}
		}
		switch {
		case n == len(p), err == syscall.EINTR:
		case err != nil && err != syscall.EAGAIN:
			a.err = fmt.Errorf("%w: %w", ErrClientLeft, err)
			return true
		default:
			a.err = errWouldWait
			return !a.mayWait
		}
	}
}

// call calls a function of package syscall, where a file descriptor is an int on
// some systems and a handle on others.
func call[FD ~int | ~uintptr](f func(FD, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	return f(FD(fd), p)
}

var errWouldWait = errors.New("sse: client does not take that much at once")

// writeFrom writes what r has. If it may not wait, it returns errWouldWait where the
// client does not take all of it.
func (a *attempt) writeFrom(c *conn, r frameReader, mayWait bool) error {
	a.c, a.r, a.mayWait, a.err = c, r, mayWait, nil
	if mayWait {
		c.source.writing(true)
	}
	err := c.raw.Write(a.write)
	a.c = nil
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClientLeft, err)
	}
	return a.err
}
