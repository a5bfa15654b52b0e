// Package sse implements Server-Sent Events for net/http servers. A client receives
// every event once and in order, even across reconnects, as long as the events it
// missed are still in the broker's history.
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
// A browser reads this stream with
//
//	new EventSource("/events").onmessage = e => console.log(e.data)
//
// and other clients with curl -N localhost:8080/events.
//
// # Which one to use
//
// A [Broker] sends events to many clients. As an [http.Handler] it serves one public
// stream. For anything else, call one of its methods in a handler of your own, which
// decides who may read what:
//
//   - [Broker.Serve] streams any number of topics to a client. A topic is a string,
//     such as "room/42".
//   - [Broker.Detach] does the same for tens of thousands of clients. Over HTTP/1.1,
//     an idle client has no goroutine; over HTTP/2, Detach works like Serve.
//
// [Broker.Publish] sends an event to the clients of its topics. [Broker.Set] also
// makes it the value of a key, such as a price: a slow client skips values that were
// replaced. [Broker.Subscribe] reads events in the process, such as to filter them for
// [Serve]. [Broker.Disconnect] ends streams when access was revoked, and
// [Broker.Shutdown] all of them before the server's.
//
// A stream for one client only, such as the answer of a language model, needs no
// Broker. [Serve] streams the events that an iterator yields. [NewWriter] is for
// handlers that send each event themselves. To read a stream, use a [Client], which
// reconnects, or a [Decoder] for a single response.
//
// # Reconnects and gaps
//
// A client that reconnects sends the ID of the last event it received. The Broker
// first sends it the events published after that one, from a history in memory. If
// that event is not in the history, such as after a restart, there is a gap: the
// client receives an event of type "gap" and then the events in the history, so a page
// reloads at "gap" or fetches what it shows. If [Broker.CatchUp] is set, the client
// receives what CatchUp yields instead. If the Broker keeps a history, a client that has
// a last event ID misses nothing else but values that [Broker.Set] replaced.
//
// A slow client does not hold up others. It catches up from the history, or has a gap,
// and is disconnected if a write to it takes longer than [Broker.WriteTimeout].
//
// # Ending a stream
//
// An EventSource reconnects after the end of every stream. To end a stream
// permanently, call [Broker.End], or yield [ErrEnded] from the iterator given to
// [Serve] or from CatchUp. The client receives an event of type "end", with empty
// data and the reserved ID "sse-end", and the page closes its EventSource:
//
//	source.addEventListener("end", () => source.close())
//
// If the page does not, its next request has that ID. A GET or HEAD request with
// that ID is answered with status 204, which stops an EventSource.
//
// # Format
//
// The format is that of the HTML standard,
// https://html.spec.whatwg.org/multipage/server-sent-events.html. The types "gap"
// and "end" are this package's.
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
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// ----- Errors -----

// Errors returned when a stream ends or an event is refused. Test for them with
// [errors.Is]. [Broker.Detach] passes those of [Broker.Serve] to done.
var (
	// ErrClientLeft is returned by Broker.Serve, Serve and the methods of Writer when
	// the client has closed the connection, or the request's context was canceled
	// without a cause. The returned error also wraps that of a write that failed.
	ErrClientLeft = errors.New("sse: client left")

	// ErrTooSlow is returned by Broker.Serve, Serve and the methods of Writer when a
	// write exceeded WriteTimeout, and by Broker.Serve also because of HistoryBytes.
	ErrTooSlow = errors.New("sse: client too slow")

	// ErrEnded is returned by Serve and Broker.Serve when the stream has ended
	// permanently, and by Broker.Publish, Set and Remove if a topic has ended.
	// Client.Events and Broker.Subscribe yield it last. An iterator given to Serve or
	// returned by CatchUp yields it to end the stream permanently.
	ErrEnded = errors.New("sse: stream has ended for good")

	// ErrClosed is returned by Broker.Publish, Set, Remove, End, Reset and Serve, and
	// yielded by Broker.Subscribe, after Broker.Shutdown.
	ErrClosed = errors.New("sse: broker is shut down")

	// ErrDisconnected is returned by Broker.Serve, and yielded by Broker.Subscribe,
	// when Broker.Disconnect ended the stream.
	ErrDisconnected = errors.New("sse: disconnected")

	// ErrFull is returned by Broker.Serve when there are MaxClients clients already.
	ErrFull = errors.New("sse: too many clients")

	// ErrDuplicateID is returned by Broker.Publish, Set and Remove for an ID that is
	// in the history. These and Broker.Reset also return it for an ID that has the
	// form of those that the Broker assigns.
	ErrDuplicateID = errors.New("sse: duplicate event ID")

	// ErrEventTooLarge is returned by Decoder.Decode, and yielded by Client.Events,
	// when an event is larger than MaxEventBytes.
	ErrEventTooLarge = errors.New("sse: event is larger than the decoder's limit")
)

// ----- Serve -----

// LastEventID returns the ID of the last event that the client of r has seen: the
// value of the Last-Event-ID header, which a browser sends when it reconnects, or
// else of the query parameter lastEventId, which a page can add to the URL of its
// first connection. It returns "" if r has neither. The value is supplied by the
// client and is not validated. See
// https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header.
func LastEventID(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("lastEventId")
}

// Earliest is the last event ID of a client that has seen no event in the history of
// a [Broker]. With ?lastEventId=earliest in its URL, a page receives the values of
// [Broker.Set] and all events in the history of its topics. For each such page,
// 10,000 events of 100 bytes are 1.25 MB and take some 0.6 ms of CPU time. No event
// can have this ID.
const Earliest = "earliest"

// Serve streams events to one client and blocks until the sequence has ended:
//
//	err := sse.Serve(w, r, answer(r.Context(), r.FormValue("prompt")))
//
// Serve sends the headers of [NewWriter] at once, each event as it is yielded, and a
// comment after 15 seconds without an event. It allows 10 seconds for each write of
// up to 64 KiB. HEAD is answered with the headers alone.
//
// When the sequence ends, the stream ends, and an EventSource reconnects after its
// reconnection time. If the sequence yields [ErrEnded] last, the stream ends
// permanently, with the event "end"; see "Ending a stream" in the package
// documentation. Only GET receives it, since clients that use other methods do not
// reconnect by themselves. The sequence does not run for a GET with the ID
// "sse-end".
//
// After any other error, and after an event that cannot be sent, Serve aborts the
// response, so that the client does not mistake the stream for a complete one. Over
// HTTP/1.0, and if w does not support write deadlines, the client cannot see the
// difference. The stream begins with the ID in r's Last-Event-ID header, so that a
// browser keeps it if the connection fails before the first event.
//
// Serve returns nil if the sequence ended, and ErrEnded if the stream has ended
// permanently. After an error of the sequence, or of [Event.AppendText], it returns
// that error. If the client left or was too slow, the error wraps [ErrClientLeft] or
// [ErrTooSlow]. If r's context has a cause ([context.WithCancelCause]), the error
// wraps that. If no stream is possible, it wraps [http.ErrNotSupported], as from
// NewWriter.
//
// The sequence must watch r.Context(), because Serve cannot interrupt it: the
// handler returns only when the sequence yields or ends. [http.Server.Shutdown]
// waits for that too, and does not end the context; see the example "Shutdown". If
// the sequence receives from a channel, it must also select on r.Context().Done(),
// and so must the senders; see the example "Channel".
func Serve(w http.ResponseWriter, r *http.Request, events iter.Seq2[Event, error]) error {
	if answerEnded(w, r) {
		return ErrEnded
	}
	out := newWriter(w, r, 0)
	hello := []byte(keepAliveFrame)
	// An ID that came by the query is not repeated: any site can link to it, and the
	// client has no other to lose.
	if id := r.Header.Get("Last-Event-ID"); id != "" && (Event{ID: id}).check() == nil {
		hello = append(appendID(nil, id), '\n')
	}
	if err := out.open(r, hello); err != nil || r.Method == http.MethodHead {
		return err
	}
	defer out.finish()
	defer out.keepAlive(defaultKeepAlive)()
	var reason error
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

// ----- Client -----

// A Client reads event streams and reconnects when a stream ends. The zero value is
// ready for use. A Client is safe for concurrent use by multiple goroutines. Its
// fields must not be changed after first use.
//
// A Client repeats its request. If a request must be sent only once, such as a POST
// to a language model, use NewDecoder(resp.Body).All() instead.
type Client struct {
	// HTTPClient sends the requests. If nil, it is http.DefaultClient. Its Timeout is
	// ignored, because it would end each stream.
	HTTPClient *http.Client

	// Retry is the time between a connection's end and the next connection, until the
	// stream sets another. If 0 or negative, it is 3 seconds.
	Retry time.Duration

	// MaxWait is the longest wait after a failed connection, unless Retry-After or
	// twice the reconnection time is longer. If 0, it is 1 minute; if negative, waits
	// do not grow.
	MaxWait time.Duration

	// ReadTimeout is how long the Client waits for the next byte of a response,
	// headers included, before it considers the connection dead and reconnects. Time
	// in the loop's body does not count. If 0, it is 5 minutes; if negative, there is
	// no limit.
	ReadTimeout time.Duration

	// MaxEventBytes is the limit on the size of one event, as in Decoder. If 0, it is
	// 16 MiB; if negative, there is no limit.
	MaxEventBytes int

	// Logger receives a record at level Warn before each reconnection, with the reason
	// and the time until then. If nil, it is slog.Default().
	Logger *slog.Logger

	// CheckRetry, if not nil, is called right before each reconnection, and
	// concurrently if several loops run. It may change r, which is about to be sent,
	// such as its Authorization header or its URL; a change applies to this connection
	// only, but a new Last-Event-ID is kept. err is why the last connection ended:
	// io.EOF if the server closed it, a *ResponseError if the response was not a
	// stream. If CheckRetry returns an error, the loop ends with it. It is not called
	// if the loop ends for another reason.
	CheckRetry func(r *http.Request, err error) error
}

// Events sends r and returns an iterator over the events of the stream, across all
// of its connections:
//
//	for ev, err := range client.Events(req) {
//		if err != nil {
//			return err
//		}
//		fmt.Println(ev.Data)
//	}
//
// The loop continues until its body leaves it, r's context is done, or the server
// ends the stream permanently. An error is yielded last, with a zero Event.
// CheckRetry and Logger receive the errors after which the Client reconnects.
//
// For each connection, Events sends a clone of r, with Accept and Cache-Control set
// unless r has them. If r has a body, it needs GetBody to be sent more than once.
//
// Resuming: the first request has r's own Last-Event-ID header. Later ones have the
// ID that the stream set last, even on an earlier connection, or none if that is
// empty or not valid in a header. An event without an ID is yielded with that one.
//
// Waiting: a connection is healthy if it brought an event, or lasted longer than the
// wait before it. After a healthy connection, the wait is the reconnection time that
// the stream set last (0 is none), or else Retry. After any other, it is a random time
// between w and 2w. At the first failure in a row, w is the reconnection time; it
// doubles with each further one, up to half of MaxWait. A Retry-After header sets a
// minimum.
//
// The Client reconnects if a connection fails, the first one included, if the stream
// ends or cannot be read, after ReadTimeout, and after status 408, 425, 429 or 5xx.
// In all other cases the loop ends with an error:
//
//   - [ErrEnded] after status 204, or in place of the event "end" of this package
//   - a [*ResponseError] after any other status or a wrong Content-Type
//   - an error that wraps [ErrEventTooLarge] for an event beyond MaxEventBytes
//   - the cause of r's context when it is done, even during a wait
//   - the error of CheckRetry
//   - another error if the request cannot be sent, if it cannot be sent again
//     because it has no GetBody, or if the server's certificate is not valid
//
// A loop has one connection at a time and no goroutine of its own. Leaving it closes
// the connection. The iterator may be used more than once; each loop begins with r.
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model.
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

// A ResponseError is a response that is not an event stream.
type ResponseError struct {
	StatusCode int
	Header     http.Header
	Body       []byte // its beginning: at most 64 KiB, received within 5 seconds
}

// Error returns a text that names the status and, if that is 200, the Content-Type.
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
	addHeader(req.Header, "Accept", "text/event-stream")
	addHeader(req.Header, "Cache-Control", "no-cache")
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
		case ev.Type == "end" && ev.ID == endID:
			return true, ErrEnded
		case req.Context().Err() != nil: // in the body of the loop
			return true, req.Context().Err()
		case !l.yield(ev, nil):
			return true, errLoopLeft
		}
	}
}

func isEventStream(resp *http.Response) bool {
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";") // parameters do not matter
	return resp.StatusCode == http.StatusOK && strings.EqualFold(strings.TrimSpace(mediaType), "text/event-stream")
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
	l.waited = l.retry
	if healthy {
		l.backoff = 0
	} else {
		longest := cmp.Or(l.MaxWait, time.Minute) / 2
		l.backoff = min(max(l.retry, min(2*l.backoff, longest)), math.MaxInt64/2)
		l.waited = l.backoff + rand.N(l.backoff+1)
	}
	var answer *ResponseError
	if errors.As(err, &answer) {
		l.waited = max(l.waited, retryAfter(answer.Header))
	}

	logger, ctx, reason := cmp.Or(l.Logger, slog.Default()), l.start.Context(), err
	if sending := (*url.Error)(nil); errors.As(err, &sending) {
		reason = sending.Err // without the URL, in whose query secrets may be
	}
	logger.WarnContext(ctx, "sse: reconnecting", "host", l.start.URL.Host, "path", l.start.URL.Path, "wait", l.waited, "err", reason)

	select {
	case <-time.After(l.waited):
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
