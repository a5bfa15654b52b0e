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
	"errors"
	"iter"
	"net/http"
)

// Errors returned when a stream ends or an event is refused. Test for them with
// [errors.Is].
var (
	// ErrClientLeft is returned by [Broker.Serve], [Serve] and the methods of
	// [Writer] when the client has closed the connection or the request's context
	// has ended. The error wraps the context's cause or the failed write's error.
	ErrClientLeft = errors.New("sse: client left")

	// ErrTooSlow is returned by [Broker.Serve], [Serve] and the methods of [Writer]
	// when the client did not take a write within WriteTimeout and was cut off.
	ErrTooSlow = errors.New("sse: client too slow")

	// ErrEnded is returned by [Serve] when the stream has finished for good: the
	// sequence yielded it, or the client came back after the end.
	ErrEnded = errors.New("sse: stream has ended for good")

	// ErrClosed is returned by all methods of a [Broker] that publish, serve or
	// subscribe when Shutdown has been called.
	ErrClosed = errors.New("sse: broker is shut down")

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
