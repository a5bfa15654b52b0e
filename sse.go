// Package sse pushes events from a Go server to browsers and other clients by
// Server-Sent Events, with nothing but net/http. Each client gets each event
// once and in order, also after it was cut off.
//
//	package main
//
//	import (
//		"fmt"
//		"net/http"
//		"time"
//
//		"github.com/seed22e817d0/sse"
//	)
//
//	func main() {
//		broker := &sse.Broker{}
//		go func() {
//			for now := range time.Tick(time.Second) {
//				broker.Publish(sse.Event{Data: now.Format(time.TimeOnly)})
//			}
//		}()
//		http.Handle("GET /events", broker)
//		fmt.Println(http.ListenAndServe("localhost:8080", nil))
//	}
//
// A browser reads it with
//
//	new EventSource("/events").onmessage = e => console.log(e.data)
//
// and anybody else with curl -N localhost:8080/events.
//
// [Broker] is for events that many clients get: it fans out, keeps a history and
// replays from it. [Broker.Serve] streams several topics to a client, in a
// handler of the program's own, which decides who may read them. [NewWriter] and
// [Serve] are for a stream that only one client gets. [Decoder] reads a stream.
//
// The format is that of the HTML standard,
// https://html.spec.whatwg.org/multipage/server-sent-events.html.
package sse

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// Errors returned when a stream ends or an event is refused. Test for them with
// [errors.Is].
var (
	// ErrClientLeft is returned by [Broker.Serve], [Serve] and the methods of
	// [Writer] when the client has closed the connection, or when the request's
	// context was canceled without a cause. The error wraps what a write returned.
	ErrClientLeft = errors.New("sse: client left")

	// ErrTooSlow is returned by [Broker.Serve], [Serve] and the methods of [Writer]
	// when the client did not take a write within WriteTimeout and was cut off.
	ErrTooSlow = errors.New("sse: client too slow")

	// ErrEnded is returned by [Serve] and [Broker.Serve] when the stream has finished
	// for good, and by [Broker.Publish] for a topic that has ended. It is yielded by
	// [Client.Events] and by the loop of [Broker.Subscribe].
	ErrEnded = errors.New("sse: stream has ended for good")

	// ErrClosed is returned by all methods of a [Broker] that publish, serve or
	// subscribe when Shutdown has been called.
	ErrClosed = errors.New("sse: broker is shut down")

	// ErrDisconnected is returned by [Broker.Serve] when [Broker.Disconnect] ended
	// the stream.
	ErrDisconnected = errors.New("sse: disconnected")

	// ErrFull is returned by [Broker.Serve] when the Broker has MaxClients clients
	// already.
	ErrFull = errors.New("sse: too many clients")

	// ErrDuplicateID is returned by [Broker.Publish] when an event with this ID is
	// still in the history, and by [Broker.Reset] for an ID that the Broker assigned.
	ErrDuplicateID = errors.New("sse: duplicate event ID")

	// ErrEventTooLarge is returned by [Decoder.Decode] when an event is larger than
	// [Decoder.MaxEventBytes].
	ErrEventTooLarge = errors.New("sse: event is larger than the decoder's limit")
)

// LastEventID returns the ID of the last event that the client of r has seen:
// the Last-Event-ID header, which a browser sends when it reconnects, else the
// query parameter lastEventId, with which a page says where its first
// connection is to begin. It is "" if r has neither. It is the client's word,
// of any length and content.
//
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header.
func LastEventID(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("lastEventId")
}

// Earliest stands for the place before the oldest event in the history of a
// [Broker], as the ID of the last event that a client has seen. No event can have
// this ID.
const Earliest = "earliest"

// Serve streams events to one client and blocks until the sequence has ended:
//
//	err := sse.Serve(w, r, answer(r.Context(), r.FormValue("prompt")))
//
// Each event is flushed by itself. While the sequence is silent, the client is sent
// a comment every 15 seconds. The headers are those of [NewWriter], and come with
// the first bytes at once. The answer to HEAD is the headers alone.
//
// A sequence that just ends, ends the stream, and an EventSource comes back for
// more after its reconnection time. A sequence that yields [ErrEnded] last ends
// the stream for good. The client is then sent an event of type "end" with empty
// data and a reserved ID, on which a page closes its EventSource:
//
//	source.addEventListener("end", () => source.close())
//
// A GET or HEAD that brings this ID, from a page that did not, is answered 204,
// which stops an EventSource, and the sequence is not run. The response to any other method
// than GET ends without that event, because its client does not come back.
//
// After any other error, and after an event that cannot be sent, the stream is cut:
// the client sees it broken off, and not finished. Only over HTTP/1.0, or where no
// write deadline can be set, it looks the same. The first block of the stream
// repeats the request's Last-Event-ID header as an ID, so that a browser keeps its
// place if it is cut off before the first event.
//
// Serve returns nil when the sequence has ended, [ErrEnded] when it has ended for
// good, and otherwise why the stream was cut short: an error that wraps
// [ErrClientLeft] or [ErrTooSlow], the error that the sequence yielded, that of
// an event that cannot be sent, or [http.ErrNotSupported] as for NewWriter.
//
// Serve cannot interrupt the sequence. One that does not watch r.Context() holds
// the handler until it yields next, though the client has left. This one yields
// what comes from a channel:
//
//	func(yield func(sse.Event, error) bool) {
//		for {
//			select {
//			case ev, ok := <-events:
//				if !ok || !yield(ev, nil) {
//					return
//				}
//			case <-r.Context().Done():
//				return
//			}
//		}
//	}
//
// Nobody receives from the channel after that, so its senders must also select on
// r.Context().Done().
func Serve(w http.ResponseWriter, r *http.Request, events iter.Seq2[Event, error]) error {
	if answerEnded(w, r) {
		return ErrEnded
	}
	out := newWriter(w, r, 0)
	if err := out.open(r, firstBlock(r.Header.Get("Last-Event-ID"))); err != nil || r.Method == http.MethodHead {
		return err
	}
	defer out.finish()
	defer out.keepAlive(defaultKeepAlive)()
	reason := r.Context().Err()
	if reason != nil {
		return out.close(reason, false)
	}
	for ev, err := range events {
		if reason = err; reason == nil {
			reason = out.Send(ev)
		}
		if reason != nil {
			break
		}
	}
	return out.close(reason, r.Method == http.MethodGet)
}

// firstBlock returns what a stream of one client begins with: the ID that the
// client brought in the header, or a comment. One that came by the query is not
// repeated: any site can link to it, and the client has no other to lose.
func firstBlock(id string) []byte {
	if id == "" || (Event{ID: id}).check() != nil {
		return []byte(keepAliveFrame)
	}
	return append(appendID(nil, id), '\n')
}

// ----- Client -----

// A Client reads event streams, and reconnects when one is cut off. The zero
// value is ready for use. A Client is safe for concurrent use by multiple
// goroutines. Its fields must not be changed after first use.
//
// A Client is for streams that go on. To read the answer to one request, such as
// a POST to a language model, use NewDecoder(resp.Body).All() instead: a Client
// repeats its request whenever a stream ends, and each such request may cost money.
type Client struct {
	// HTTPClient sends the requests. If nil, [http.DefaultClient] is used. Its
	// Timeout is not applied, because it would end each stream.
	HTTPClient *http.Client

	// Retry is the wait before a reconnection until the stream sets another
	// one. 0 is 3 seconds.
	Retry time.Duration

	// MaxWait is the longest wait between connections that fail, unless the
	// server asks for a longer one. 0 is 1 minute.
	MaxWait time.Duration

	// ReadTimeout is how long the Client waits for bytes, be it for the response's
	// headers, an event or a comment, before it takes the connection for dead and
	// reconnects. The time that the loop's body takes does not count. 0 is 5
	// minutes; negative is no limit.
	ReadTimeout time.Duration

	// MaxEventBytes bounds the size of one event, as in [Decoder].
	MaxEventBytes int

	// Logger receives a record at level Warn before each reconnection: why the
	// connection ended, and the wait. If nil, [slog.Default] is used.
	Logger *slog.Logger

	// CheckRetry, if not nil, is called before each reconnection, after the wait.
	// The request r is about to be sent. CheckRetry may change it, for example its
	// Authorization header or its URL; the change holds for this connection alone.
	// The error says why the last connection ended: [io.EOF] if the server closed
	// it, a [*ResponseError] if the server answered with a status. If CheckRetry
	// returns an error, the loop ends with it. CheckRetry is called only where the
	// Client reconnects by its own rules: to return nil never repeats a request
	// that was refused for good.
	CheckRetry func(r *http.Request, err error) error
}

// Events sends r and returns an iterator over the events of the stream, and over
// those of all further connections. The loop goes on until it is left, r's
// context is done, or the server says to stop. An error is yielded last, with a
// zero Event; the errors that make the Client reconnect are passed to CheckRetry
// and the Logger instead, never to the loop.
//
// Each connection is made with a clone of r, with Accept and Cache-Control set
// unless r has them. The request itself is not changed. If r has a body, it
// needs GetBody to be sent more than once.
//
// Resuming: the first connection sends r's own Last-Event-ID header, and each
// further one the ID that the stream set last, also if that was several
// connections ago. It sends none once the stream has set an empty ID, or one that
// no header can hold. [Event.ID] of an event without an ID is that of the event
// before, also across connections.
//
// Waiting: after a connection that brought an event, or that lasted longer than
// the wait before it, the wait is exactly the reconnection time that the stream
// set last, or else Retry. After other connections the wait is random, between w
// and 2w; w begins with that same time and doubles, up to half of MaxWait. The
// header Retry-After sets a minimum. A wait ends at once when r's context is done.
//
// The Client reconnects after a connection that failed, the first one included,
// after the end of a stream or an error in reading it, after ReadTimeout, and
// after the status 408, 425, 429 or 5xx. Everything else ends the loop:
//
//   - [ErrEnded] after status 204, or after the event that says that the stream
//     has ended for good; that event is not yielded
//   - a [*ResponseError] after any other status, or a Content-Type other than
//     text/event-stream
//   - an error that wraps [ErrEventTooLarge] for an event beyond MaxEventBytes
//   - the cause of r's context, once that is done
//   - an error of CheckRetry
//   - other errors for a request that cannot be sent, for one that cannot be sent
//     again without GetBody, and for a certificate that does not verify
//
// A loop has one connection at a time and no goroutine of its own. Leaving it
// closes the connection. The iterator can be used several times, and each loop
// over it begins with r.
func (c *Client) Events(r *http.Request) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		l := &clientLoop{
			Client: c,
			start:  r,
			yield:  yield,
			http:   *cmp.Or(c.HTTPClient, http.DefaultClient),
			lastID: r.Header.Get("Last-Event-ID"),
			retry:  cmp.Or(max(c.Retry, 0), defaultRetry),
		}
		l.http.Timeout, l.waited = 0, l.retry
		if err := l.run(); err != errLoopLeft {
			yield(Event{}, err)
		}
	}
}

// A ResponseError is an answer that is not an event stream.
type ResponseError struct {
	StatusCode int
	Header     http.Header
	Body       []byte // the beginning: at most 64 KiB, and what came within 5 seconds
}

// Error returns the status and, if it was 200, the Content-Type that was wrong.
func (e *ResponseError) Error() string {
	text := fmt.Sprintf("sse: server answered %d %s", e.StatusCode, http.StatusText(e.StatusCode))
	if e.StatusCode == http.StatusOK {
		text += fmt.Sprintf(" with Content-Type %q, not text/event-stream", e.Header.Get("Content-Type"))
	}
	return text
}

// errLoopLeft is for a loop over Client.Events that its body has left: nothing
// may be yielded anymore.
var errLoopLeft = errors.New("sse: loop left")

// A clientLoop is one loop over Client.Events.
type clientLoop struct {
	*Client
	http  http.Client
	start *http.Request // what each connection's request is cloned from
	yield func(Event, error) bool

	lastID  string
	retry   time.Duration // the wait after a healthy connection
	waited  time.Duration // the wait before the last connection
	backoff time.Duration // the shortest wait after the last failure; 0 if there was none
}

// run connects, again and again, and returns why the loop ends.
func (l *clientLoop) run() error {
	ctx := l.start.Context()
	for last := error(nil); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		req, err := l.request(last)
		if err != nil {
			return err
		}
		healthy, err := l.connect(req)
		switch {
		case err == errLoopLeft:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isFinal(err):
			return err
		case sendsBody(l.start) && l.start.GetBody == nil:
			return fmt.Errorf("sse: request has a body and no GetBody to send it again after: %w", err)
		}
		last = err
		l.wait(healthy, err)
	}
}

func sendsBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// request returns the request for the next connection. The error is why the last
// one ended, or nil if there was none.
func (l *clientLoop) request(last error) (*http.Request, error) {
	req := l.start.Clone(l.start.Context())
	if req.Header == nil {
		req.Header = http.Header{}
	}
	for name, value := range map[string]string{"Accept": "text/event-stream", "Cache-Control": "no-cache"} {
		if _, set := req.Header[name]; !set {
			req.Header.Set(name, value)
		}
	}
	req.Header.Del("Last-Event-ID")
	if l.lastID != "" && !strings.ContainsFunc(l.lastID, isNoHeader) {
		req.Header.Set("Last-Event-ID", l.lastID)
	}
	if sendsBody(req) && req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, fmt.Errorf("sse: request body: %w", err)
		}
		req.Body = body
	}
	if last == nil || l.CheckRetry == nil {
		return req, nil
	}
	sent := req.Header.Get("Last-Event-ID")
	if err := l.CheckRetry(req, last); err != nil {
		if sendsBody(req) {
			req.Body.Close()
		}
		return nil, err
	}
	if id := req.Header.Get("Last-Event-ID"); id != sent {
		l.lastID = id
	}
	return req, nil
}

// isNoHeader reports whether net/http refuses a header with r in its value.
func isNoHeader(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// connect sends req and yields the events of the answer. It returns why the
// connection ended, and whether it was healthy.
func (l *clientLoop) connect(req *http.Request) (healthy bool, err error) {
	timeout := cmp.Or(l.ReadTimeout, 5*time.Minute)
	if timeout < 0 {
		timeout = math.MaxInt64
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	silence := time.AfterFunc(timeout, func() {
		cancel(fmt.Errorf("sse: no byte within %v: %w", timeout, os.ErrDeadlineExceeded))
	})
	defer silence.Stop()
	resp, err := l.http.Do(req.WithContext(ctx))
	if resp != nil {
		defer resp.Body.Close()
	}
	switch {
	case err != nil && resp != nil: // the http.Client's CheckRedirect refuses to follow
		return false, fmt.Errorf("%w: %w", &ResponseError{StatusCode: resp.StatusCode, Header: resp.Header}, err)
	case err != nil:
		return false, cmp.Or(context.Cause(ctx), err)
	case resp.StatusCode == http.StatusNoContent:
		return false, ErrEnded
	case resp.StatusCode == http.StatusSwitchingProtocols: // its body is the connection, which does not heed ctx
		return false, &ResponseError{StatusCode: resp.StatusCode, Header: resp.Header}
	case !isEventStream(resp):
		silence.Reset(5 * time.Second)
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // its beginning, whatever ends it
		return false, &ResponseError{resp.StatusCode, resp.Header, body}
	}
	d := NewDecoder(&watchedReader{resp.Body, ctx, silence, timeout})
	d.MaxEventBytes, d.id, d.lastID = l.MaxEventBytes, l.lastID, l.lastID
	for begun := time.Now(); ; healthy = true {
		ev, err := d.Decode()
		switch {
		case err != nil:
			l.lastID, l.retry = d.LastEventID(), cmp.Or(d.Retry(), l.retry)
			return healthy || time.Since(begun) > l.waited, err
		case ev.Type == endType && ev.ID == endID:
			return true, ErrEnded
		case !l.yield(ev, nil):
			return true, errLoopLeft
		}
	}
}

func isEventStream(resp *http.Response) bool {
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // parameters do not matter
	return resp.StatusCode == http.StatusOK && mediaType == "text/event-stream"
}

// A watchedReader reads from a body whose request has the context ctx. The timer
// silence, which cancels ctx, runs for as long as a Read waits for bytes.
type watchedReader struct {
	body    io.Reader
	ctx     context.Context
	silence *time.Timer
	timeout time.Duration
}

func (r *watchedReader) Read(p []byte) (int, error) {
	r.silence.Reset(r.timeout)
	n, err := r.body.Read(p)
	r.silence.Stop()
	if err != nil && err != io.EOF {
		err = cmp.Or(context.Cause(r.ctx), err)
	}
	return n, err
}

// isFinal reports whether the Client does not reconnect after err.
func isFinal(err error) bool {
	var answer *ResponseError
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
			return false
		}
		return answer.StatusCode < 500
	}
	var certificate *tls.CertificateVerificationError
	return errors.Is(err, ErrEnded) || errors.Is(err, ErrEventTooLarge) || errors.As(err, &certificate) || isRefused(err)
}

// isRefused reports whether net/http does not send the request, or not where it is
// redirected to. For these errors there are no values, only texts.
func isRefused(err error) bool {
	var sending *url.Error
	return errors.As(err, &sending) && slices.ContainsFunc([]string{
		"http: nil Request.URL",
		"http: no Host in request URL",
		"http: Request.RequestURI can't be set",
		"net/http: invalid ",
		"unsupported protocol scheme",
		"failed to parse Location header",
	}, func(text string) bool { return strings.HasPrefix(sending.Err.Error(), text) })
}

// wait waits until the next connection is due, or the context is done. The last
// connection ended with err.
func (l *clientLoop) wait(healthy bool, err error) {
	wait := l.retry
	if healthy {
		l.backoff = 0
	} else {
		longest := cmp.Or(l.MaxWait, time.Minute) / 2
		l.backoff = min(max(l.retry, min(2*l.backoff, longest)), math.MaxInt64/2)
		wait = l.backoff + rand.N(l.backoff+1)
	}
	var answer *ResponseError
	if errors.As(err, &answer) {
		wait = max(wait, retryAfter(answer.Header))
	}
	l.waited = wait

	logger, ctx, reason := cmp.Or(l.Logger, slog.Default()), l.start.Context(), err
	if sending := (*url.Error)(nil); errors.As(err, &sending) {
		reason = sending.Err // without the URL, in whose query secrets may be
	}
	logger.WarnContext(ctx, "sse: reconnecting", "host", l.start.URL.Host, "path", l.start.URL.Path, "wait", wait, "err", reason)

	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// retryAfter returns the time that a Retry-After header asks for, or 0.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if at, err := http.ParseTime(value); err == nil {
		return time.Until(at)
	}
	wait, _ := parseRetry(value + "000") // seconds
	return wait
}
