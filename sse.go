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
	"errors"
	"net/http"
	"time"
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

	// ErrEnded is yielded by Client.Events when the server says that the stream
	// has ended for good, with status 204 or the event for that.
	ErrEnded = errors.New("sse: stream has ended for good")
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

// maxTogether is the most events that leave in one flush.
const maxTogether = 64

// Serve streams events to one client, with a keep-alive comment after every 15
// seconds in which it got nothing, until the channel is closed, and then
// returns nil. It blocks, as handlers do. Events that wait in the channel leave
// together in one flush.
//
// It returns earlier with an error that wraps [ErrClientLeft] or [ErrTooSlow],
// with an error as [NewWriter] returns it, or with that of an event that cannot
// be sent. Nobody receives from the channel after that: a sender selects on
// r.Context().Done() as well. The answer to HEAD is the headers alone.
func Serve(w http.ResponseWriter, r *http.Request, events <-chan Event) error {
	out, err := NewWriter(w, r)
	if err != nil || r.Method == http.MethodHead {
		return err
	}
	defer out.setReadDeadline()
	keepAlive := time.NewTimer(defaultKeepAlive)
	defer keepAlive.Stop()
	var together []Event
	for {
		select {
		case <-r.Context().Done():
			return leftError(r.Context())
		case <-keepAlive.C:
			err = out.keepAlive()
		case e, open := <-events:
			if !open {
				return nil
			}
			together = receive(append(together[:0], e), events)
			for i, e := range together {
				if refused := e.check(); refused != nil {
					return cmp.Or(out.Send(together[:i]...), refused)
				}
			}
			err = out.Send(together...)
			clear(together) // or it would keep them until others come
		}
		if err != nil {
			return err
		}
		keepAlive.Reset(defaultKeepAlive)
	}
}

// receive appends to together what waits in events, without blocking.
func receive(together []Event, events <-chan Event) []Event {
	for len(together) < maxTogether {
		select {
		case e, open := <-events:
			if !open {
				return together
			}
			together = append(together, e)
		default:
			return together
		}
	}
	return together
}
