package sse

import (
	"cmp"
	"container/heap"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math"
	mrand "math/rand/v2"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ----- Broker -----

const (
	defaultHistory      = 10_000
	defaultHistoryBytes = 16 << 20
	defaultRetry        = 3 * time.Second
)

// A Broker sends each published event to every subscriber of its topics, and keeps
// the newest events for clients that reconnect. A subscriber is a client or a loop
// over [Broker.Subscribe]. The zero value is ready for use. A Broker is an
// [http.Handler] that serves the default topic, ""; [Broker.Serve] serves any
// others. Methods with topics ...string use the default topic if none is given.
//
// All methods are safe for concurrent use by multiple goroutines. The fields must
// not be changed after the first call of a method.
type Broker struct {
	// History is the number of events kept, of all topics together, for clients that
	// reconnect, ask for Earliest, or come to a topic that has ended. If 0, it is
	// 10,000. If negative, none are kept: events are assigned no IDs, and, without
	// CatchUp, a client that reconnects begins as one without a last event ID. For
	// clients that are behind, some 256 events stay in memory in any case.
	History int

	// HistoryAge is how long an event, even the newest, is kept for clients that
	// reconnect. If 0 or negative, there is no limit.
	HistoryAge time.Duration

	// HistoryBytes is the limit on the size of the events kept, in bytes: their
	// encoded form and the names of their topics. The newest event is kept whatever
	// its size. If 0, it is 16 MiB; if negative, there is no limit.
	//
	// A second limit of the same size applies to evicted events of more than 64 KiB
	// that slow clients are still receiving. Beyond it, the clients that are receiving
	// the oldest of these events are disconnected with ErrTooSlow.
	HistoryBytes int

	// MaxClients is the limit on the clients served at one time. Further clients
	// receive a 200 response containing only a reconnection time, because browsers do
	// not retry after any other status. If 0 or negative, there is no limit.
	MaxClients int

	// KeepAlive is how long a client may be idle before it is sent a comment. After
	// many events of other topics, the comment comes with a newer ID, so that the
	// client has no gap if it reconnects. If 0, it is 15 seconds. If negative, none
	// is sent, and a detached client that has left is not noticed before the next
	// event. See
	// https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes.
	KeepAlive time.Duration

	// WriteTimeout is the time allowed for each write to a client, of up to 64 KiB. A
	// client that exceeds it is disconnected, at most a quarter of that time later. If
	// 0, it is 10 seconds; if negative, there is no limit.
	WriteTimeout time.Duration

	// MaxAge is how long a client's stream may last, give or take an eighth: a random
	// part of up to a tenth is taken off, so that clients do not all reconnect at once,
	// and streams end only when the Broker looks at all of them. The client reconnects
	// through the handler, which can authorize it again, and misses nothing. A stream
	// does not end while CatchUp runs. If 0 or negative, there is no limit.
	MaxAge time.Duration

	// Retry is the reconnection time sent to each client as it connects, in whole
	// milliseconds. A client that Shutdown, Disconnect, MaxAge, MaxClients or an error
	// of CatchUp makes reconnect is sent a random time between Retry and twice that,
	// to spread the requests. If 0, it is 3 seconds. If negative, neither is ever
	// sent.
	Retry time.Duration

	// CatchUp, if set, yields what the history cannot give a subscriber: a snapshot of
	// the current state, or older events from a database. It is called for a
	// subscriber without a last event ID, and for one, connected or not, whose last
	// event is not in the history. Its events bypass the history. It must be safe for
	// concurrent use, because it runs for many clients.
	//
	// A snapshot needs no ID; events published after the call of CatchUp follow it:
	//
	//	yield(sse.Event{Type: "state", Data: state()}, nil)
	//
	// A log whose events are published with its IDs is read up to and including UpTo:
	//
	//	for _, ev := range read(missed.LastEventID, missed.UpTo, missed.Topics) {
	//		yield(ev, nil)
	//	}
	//
	// The client then continues right after the last event that CatchUp yielded (if it
	// yielded none, after missed.LastEventID) where the ID of that event is in the
	// history. Otherwise the client continues with the events published since the
	// call. If some of these have been evicted, CatchUp is called again, with the ID of
	// the last event that the client received, or with UpTo if CatchUp yielded none.
	//
	// CatchUp runs in the handler's goroutine, or for a detached client in one of its
	// own, and may block. Until it returns, the client is sent no keep-alives, and its
	// events are sent 256 at a time, or 64 KiB. ctx has the values of the request's
	// context; it is done when the client leaves (a detached client: when a write to it
	// fails) and when Disconnect, or Shutdown that no longer waits, ends the stream.
	// An error that CatchUp yields ends the stream, and the client will reconnect;
	// ErrEnded ends it permanently.
	//
	// If CatchUp is nil, a subscriber whose last event is not in the history receives
	// an event of type "gap", then the values of Set, and then the events of its
	// topics in the history. The data of "gap" is the ID of its last event, or empty
	// if the client sent that ID only in the query.
	CatchUp func(ctx context.Context, missed Missed) iter.Seq2[Event, error]

	// Logger receives a record at level Debug for each client that connects, leaves or
	// is refused, at Warn for what an operator should know, and at Error for a panic
	// that net/http cannot log with its stack: in a function given to Detach, for a
	// detached client in CatchUp, and over HTTP/1.x in a ResponseWriter that wraps the
	// server's. If nil, it is slog.Default().
	Logger *slog.Logger

	// mu guards all fields below and everything reached through them: the log, the
	// topics, and those fields of subscribers that say so. It is never held while a
	// client is written to or code of the program runs. Only conns, which is set once,
	// has a lock of its own, which is taken after mu. A subscriber's cutting is taken
	// before mu.
	//
	// Whenever mu is free, log.tail ≤ announced ≤ log.head+1, and there is nothing to be
	// announced unless announcing is set. Without that, wake-ups would be lost.
	mu         sync.Mutex
	log        eventLog
	topics     map[string]*topic // those that exist
	subs       members           // all subscribers
	clients    int               // the subscribers that count against MaxClients
	announced  uint64            // the first frame that waiting subscribers were not woken for
	announcing bool              // whether a goroutine runs announceLocked
	walked     uint              // subscribers that walkLocked has met
	woken      []chan struct{}   // signals for unlock to send
	conns      *connQueue        // clients without a signal that have something to be sent
	sweeper    *time.Timer       // runs sweep; stopped if there are no subscribers
	stats      Stats             // the totals
	warned     map[string]time.Time
	closed     bool          // Shutdown was called
	gone       chan struct{} // closed when the last subscriber has left after Shutdown

	// round is the number of sweeps so far. It is written with mu held, and read
	// without it where a write to a client begins.
	round atomic.Uint64
}

// Missed describes what a client has missed, for [Broker.CatchUp].
type Missed struct {
	// LastEventID is the ID of the last event the client has seen, or "" if it has
	// seen none. The value is supplied by the client and is not validated.
	LastEventID string

	// UpTo is the ID of the newest event when CatchUp is called, as Broker.LastEventID
	// returns it. The Broker sends the events after it. Before the first event, it is
	// the ID of the position before that. It is "" if the Broker keeps no history.
	UpTo string

	// Topics are the names of the client's topics, sorted.
	Topics []string
}

// lock locks mu, and prepares the zero Broker.
func (b *Broker) lock() {
	b.mu.Lock()
	if b.topics != nil {
		return
	}
	b.topics = map[string]*topic{}
	b.warned = map[string]time.Time{}
	b.log = newEventLog(b.History, b.HistoryBytes, b.HistoryAge)
	b.announced = b.log.tail
	b.conns = newConnQueue(b.writeTimeout())
	b.sweeper = time.AfterFunc(math.MaxInt64, b.sweep)
	b.sweeper.Stop()
}

// unlock unlocks mu and sends the signals that were collected while it was held:
// a goroutine that is woken earlier would only wait for mu.
func (b *Broker) unlock() {
	if len(b.woken) == 0 {
		b.mu.Unlock()
		return
	}
	b.unlockAndSignal()
}

// unlockAndSignal is not part of unlock because it needs more stack.
func (b *Broker) unlockAndSignal() {
	var few [signalsAtOnce]chan struct{}
	all := b.woken
	woken := all
	if n := copy(few[:], all); n == len(all) {
		clear(all)
		woken, b.woken = few[:n], all[:0]
	} else {
		b.woken = nil // not kept for the next time: there may be very many
	}
	b.mu.Unlock()
	for _, signal := range woken {
		signal <- struct{}{} // which has room: there is one for each time that its subscriber waits
	}
}

// Publish sends ev to every subscriber of the topics and keeps it in the history. A
// subscriber of several of the topics receives the event once. Publish waits for no
// client. A client that falls behind catches up from the history. The time that
// Publish takes does not depend on the number of subscribers, with two exceptions: if
// the whole history is replaced before all of them are woken, one call wakes the rest;
// and a call looks at all of them if it evicts the end of a topic, or an event of more
// than 64 KiB that a client is still receiving.
//
//	id, err := broker.Publish(sse.Event{Data: "hello"}, "room/42")
//
// Publish returns the event's ID. If ev.ID is empty and the Broker keeps a history,
// Publish assigns an ID: a random prefix and a counter in base 36. If an event of any
// topic in memory has the ID ev.ID, or the newest evicted event had it, Publish
// returns ev.ID and [ErrDuplicateID], so it is safe to publish a recent event again.
// Publish returns [ErrEnded] if one of the topics has ended, [ErrClosed] after
// Shutdown, and the error of [Event.AppendText] if ev cannot be sent. If Publish
// returns an error, it has sent nothing.
func (b *Broker) Publish(ev Event, topics ...string) (id string, err error) {
	return b.publish(ev, topics, nil)
}

// Set publishes ev as [Broker.Publish] does, and makes it the value of key in each
// of the topics. Use Set if only the newest value of each key matters, as for
// prices, presence or progress:
//
//	broker.Set("ACME", sse.Event{Type: "price", Data: price}, "prices")
//
// A client without a last event ID first receives the values of its topics, in the
// order they were published; if History is negative, so does every client that
// connects. A client that is behind receives only the newest value of each key, and
// all other events. If CatchUp is set, it is called in place of sending the values,
// both for a client without a last event ID and after a gap.
//
// A value is kept, whatever HistoryBytes and HistoryAge are, until it is replaced or
// removed, or until Reset. After [Broker.End] of its topic, it is kept for as long as
// that end is in the history. If users choose the keys, limit their number, which is
// in [Stats]: each takes some 220 bytes besides the key and the event. An event in
// several topics is replaced in each separately. Set and Publish may be mixed.
func (b *Broker) Set(key string, ev Event, topics ...string) (id string, err error) {
	key = strings.Clone(key) // may be part of a long text
	return b.publish(ev, topics, func(f *frame) { b.setKeyLocked(f, key) })
}

// Remove publishes ev as [Broker.Publish] does, and removes the value of key, if
// there is one, from each of the topics. ev tells clients that the key is gone; a
// client without a last event ID receives neither ev nor the value.
func (b *Broker) Remove(key string, ev Event, topics ...string) (id string, err error) {
	return b.publish(ev, topics, func(f *frame) { b.forgetKeyLocked(f.topics, key) })
}

// publish is Publish, and calls change with the new frame. From here, an event takes
// this way:
//
//	appendLocked       puts its frame in the log
//	announceLocked     finds those who wait for it, by walkLocked
//	wakeLocked         notes their signals, or puts their connections in the queue, by
//	                   connQueue.push in writer.go
//	unlock             sends the signals
//
// A worker takes a connection from the queue, that of a detached client or that of a
// handler over HTTP/1.x:
//
//	worker.serveQueue  takes it
//	worker.serve       calls next and sends what that returns
//	next               decides what is sent, by readLogLocked
//	Writer.sendFrames  writes that for the handler, by writePieces, and flushes it
//	attempt.writeFrom  or writes it to the socket, by writeAll
//	conn.sendFrames    or writes it over TLS
//
// If the socket is full, CatchUp is asked or the stream has ended, another goroutine goes
// on by deliver: the handler in conn.serveTurns, or a new one in conn.serveTurn.
//
// A handler over HTTP/2, or a loop over Subscribe, waits for its signal in deliver:
//
//	deliver            calls next and sends what that returns
//	next               as above
//	Writer.sendFrames  as above; in a loop over Subscribe, a function there yields it
func (b *Broker) publish(ev Event, topics []string, change func(*frame)) (id string, err error) {
	if err := ev.check(); err != nil {
		return "", err
	}
	f := newFrame(ev)
	topics = distinct(topics)
	b.lock()
	defer b.unlock()
	if b.closed {
		return "", ErrClosed
	}
	if slices.ContainsFunc(topics, b.hasEndedLocked) {
		return "", ErrEnded
	}
	if err := b.log.identify(f); err != nil {
		return f.id, err
	}
	if f.id != "" && ev.isRetry() {
		f.body += "\n" // or no client would remember the ID
	}
	b.appendLocked(f, topics, change)
	b.stats.Published++
	return f.id, nil
}

// End ends the topics permanently. A client all of whose topics have ended receives
// the pending events and the event "end", with ID "sse-end", and its stream closes;
// see "Ending a stream" in the package documentation. A client with other topics
// continues with those. A loop over Subscribe ends with [ErrEnded].
//
// A client that connects later, without a last event ID and to ended topics only,
// receives their events in the history, or what CatchUp yields, and then the end. A
// client that has another topic too begins with the next event; see [Earliest].
//
// A topic stays ended for as long as its end is in the history, or a subscriber that
// came before the end is connected. After that, its name denotes a new topic, so use
// each name only once. A Broker for each job is possible too: a Broker takes 1.6 KB
// and its history. To end a topic again has no effect. End returns [ErrClosed] after
// Shutdown.
func (b *Broker) End(topics ...string) error {
	b.lock()
	defer b.unlock()
	if b.closed {
		return ErrClosed
	}
	open := slices.DeleteFunc(slices.Clone(distinct(topics)), b.hasEndedLocked)
	if len(open) == 0 {
		return nil
	}
	f := &frame{id: b.log.idAfter(b.log.head), endsTopics: true}
	b.appendLocked(f, open, nil)
	for _, t := range f.topics {
		t.ended, t.owed = f.seq, len(t.members)
	}
	return nil
}

// LastEventID returns the ID of the newest event, or an ID for the position before
// the first event. A stream opened with it, for example by a page that was rendered
// with it, has exactly the events published after this call. LastEventID returns ""
// if the Broker keeps no history. It may be called after Shutdown.
func (b *Broker) LastEventID() string {
	b.lock()
	defer b.unlock()
	return b.log.idAfter(b.log.head)
}

// Reset discards the history and all values of Set. Use it if the Broker publishes
// the events of another log and has missed some of them. Every subscriber, and every
// client that reconnects, then has a gap: CatchUp is called, or the client receives
// the event "gap" and what is published from then on.
//
// lastEventID is the ID of the event in that log right before the new history. Only
// a client that reconnects with it has no gap. If lastEventID is "", the Broker
// assigns one. Earlier IDs are forgotten and may be published again.
//
// Reset waits for no client. The time it takes is proportional to their number. It
// returns [ErrClosed] after Shutdown, [ErrDuplicateID] if the Broker assigned
// lastEventID, and the error of [Event.AppendText] if lastEventID cannot be sent. If
// Reset returns an error, it has done nothing.
func (b *Broker) Reset(lastEventID string) error {
	if err := (Event{ID: lastEventID}).check(); err != nil {
		return err
	}
	b.lock()
	defer b.unlock()
	if b.closed {
		return ErrClosed
	}
	if b.log.assigns(lastEventID) {
		return fmt.Errorf("%w %s", ErrDuplicateID, quote(lastEventID))
	}
	// A frame for all, which leaves the log before anybody has it.
	b.appendLocked(&frame{}, slices.Sorted(maps.Keys(b.topics)), nil)
	for b.log.len() > 0 {
		b.evictLocked()
	}
	for _, t := range b.topics {
		b.forgetKeysLocked(t)
	}
	b.log.before, b.log.resetAt = strings.Clone(lastEventID), b.log.head
	return nil
}

// ----- The log -----

// There is one log for all topics, and each subscriber has a position in it. So an
// event is encoded and stored once, however many receive it. The same frames serve
// clients that reconnect and clients that are behind, which need no queue of their own.

// minQueue is how many frames the log keeps within HistoryBytes, however small
// History is, because the log is also the queue of the clients that are connected: a
// burst must not look like a gap.
const minQueue = 256

// measure returns what a frame counts against HistoryBytes.
func (f *frame) measure() int {
	n := len(f.id) + len(f.body)
	for _, t := range f.topics {
		n += len(t.name)
	}
	if len(f.topics) > 1 { // one topic has its slice already
		n += 8 * len(f.topics)
	}
	return n
}

// An eventLog holds the newest frames, numbered from tail to head, in the order
// they were published. A position is the place right after a frame, and has that
// frame's number. Unless history is negative, each position from tail-1 on has an ID
// that a client can resume from. An eventLog has no lock and knows no subscribers.
//
//  1. tail ≤ head+1; the log is empty if they are equal.
//  2. ids has the events in the log that were published with an ID of their own.
//  3. An assigned ID is prefix and the frame's number, so it needs no entry in ids.
//  4. An end has no ID of its own: the position after it has that of the one before.
type eventLog struct {
	history int           // how many frames are for those who reconnect; negative: none, and no IDs
	bytes   int           // limit on size; negative: none
	age     time.Duration // limit for those who reconnect; 0 or negative: none

	slots      []*frame // a power of two; the frame numbered seq is at seq modulo that
	tail, head uint64
	size       int    // of all frames
	events     uint64 // number of events up to head
	prefix     string
	ids        map[string]uint64
	before     string // ID of the position before tail; "" if none was told
	resetAt    uint64 // the frame that the last Reset put in and out
}

func newEventLog(history, bytes int, age time.Duration) eventLog {
	return eventLog{
		history: cmp.Or(history, defaultHistory),
		bytes:   cmp.Or(bytes, defaultHistoryBytes),
		age:     age,
		tail:    1,
		// 40 random bits tell the IDs of two runs of a program apart.
		prefix: strings.ToLower(rand.Text()[:8]) + "-",
		ids:    map[string]uint64{},
	}
}

func (l *eventLog) len() int { return int(l.head + 1 - l.tail) }

// at returns the frame numbered seq, which must be in the log.
func (l *eventLog) at(seq uint64) *frame { return l.slots[seq&uint64(len(l.slots)-1)] }

// identify gives f, which append adds next, an ID if it has none. It returns
// ErrDuplicateID if f has an ID that is in the log.
func (l *eventLog) identify(f *frame) error {
	switch {
	case l.history < 0:
	case f.id == "":
		f.id = l.assignedID(l.head + 1)
	default:
		if _, ok := l.find(f.id); ok || l.assigns(f.id) {
			return fmt.Errorf("%w %s", ErrDuplicateID, quote(f.id))
		}
		l.ids[f.id] = l.head + 1
	}
	return nil
}

// append adds f.
func (l *eventLog) append(f *frame) {
	if l.len() == len(l.slots) {
		grown := make([]*frame, max(16, 2*len(l.slots)))
		for seq := l.tail; seq <= l.head; seq++ {
			grown[seq&uint64(len(grown)-1)] = l.at(seq)
		}
		l.slots = grown
	}
	l.head++
	f.seq = l.head
	l.slots[f.seq&uint64(len(l.slots)-1)] = f
	if !f.endsTopics { // which takes no place in the history from events
		l.events++
		f.size = f.measure()
	}
	f.events = l.events
	l.size += f.size
}

// overfull reports whether the oldest frame need not be kept any longer. Ends do not
// count as events of the history: they are limited to the same number separately.
func (l *eventLog) overfull(now time.Time) bool {
	if l.len() == 0 {
		return false
	}
	oldest, most := l.at(l.tail), max(l.history, minQueue)
	events := int(l.events - l.eventsBefore(l.tail))
	return events > most || l.len()-events > most ||
		events > 1 && l.bytes >= 0 && l.size > l.bytes ||
		l.len() > minQueue && l.expired(oldest, now)
}

func (l *eventLog) expired(f *frame, now time.Time) bool {
	return l.age > 0 && now.Sub(f.at) > l.age
}

// evict removes the oldest frame and returns it. Its ID stays known: a client
// that has seen it has missed nothing yet.
func (l *eventLog) evict() *frame {
	f := l.at(l.tail)
	l.slots[l.tail&uint64(len(l.slots)-1)] = nil
	if l.ids[f.id] == f.seq {
		delete(l.ids, f.id)
	}
	l.tail++
	l.size -= f.size
	l.before = f.id
	return f
}

// assignedID returns the ID of the frame numbered seq if it has none of its own.
// It also stands for the position after any other frame.
func (l *eventLog) assignedID(seq uint64) string {
	return string(strconv.AppendUint([]byte(l.prefix), seq, 36))
}

// assigns reports whether id has the form of an assigned ID.
func (l *eventLog) assigns(id string) bool { return strings.HasPrefix(id, l.prefix) }

// find returns the position that has this ID. It may be before the log.
func (l *eventLog) find(id string) (seq uint64, ok bool) {
	if l.history < 0 || id == "" {
		return 0, false
	}
	if id == l.before {
		return l.tail - 1, true
	}
	if seq, ok = l.ids[id]; ok {
		return seq, true
	}
	digits, ok := strings.CutPrefix(id, l.prefix)
	if !ok {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 36, 64)
	return seq, err == nil && seq <= l.head && l.assignedID(seq) == id
}

// idAfter returns the ID of the position after the frame numbered seq: that
// frame's, if it is still known. It returns "" without a history.
func (l *eventLog) idAfter(seq uint64) string {
	switch {
	case l.history < 0:
		return ""
	case seq >= l.tail && seq <= l.head:
		return l.at(seq).id
	case seq+1 == l.tail && l.before != "":
		return l.before
	}
	return l.assignedID(seq)
}

// replayFrom returns the first frame that a client that reconnects may get.
func (l *eventLog) replayFrom(now time.Time) uint64 {
	if l.history < 0 {
		return l.head + 1
	}
	return l.tail + uint64(sort.Search(l.len(), func(i int) bool {
		f := l.at(l.tail + uint64(i))
		isNew := l.events-f.events < uint64(l.history) // of so many events after it
		return isNew && !l.expired(f, now)
	}))
}

// noEventBetween reports whether no event lies between the position seq and the frame
// numbered first, which replayFrom returned. There may be ends, which have no ID.
func (l *eventLog) noEventBetween(seq, first uint64) bool {
	return seq+1 >= first || seq+1 >= l.tail && l.eventsBefore(seq+1) == l.eventsBefore(first)
}

// eventsBefore returns the number of events published before the frame numbered seq,
// which is in the log or the next.
func (l *eventLog) eventsBefore(seq uint64) uint64 {
	switch {
	case seq > l.head:
		return l.events
	case l.at(seq).endsTopics:
		return l.at(seq).events
	}
	return l.at(seq).events - 1
}

// appendLocked appends f, which has its ID, to the log and calls change with it. Then
// it evicts what is beyond the limits, and wakes those who wait for f.
//
// If they may be many, a goroutine wakes them, so that the time that Publish takes
// does not depend on their number.
func (b *Broker) appendLocked(f *frame, names []string, change func(*frame)) {
	f.topics = b.holdTopicsLocked(names)
	if b.log.age > 0 { // the clock takes a fifth of the time of Publish
		f.at = time.Now()
	}
	b.log.append(f)
	if change != nil {
		change(f)
	}
	audience := 0
	for _, t := range f.topics {
		t.newest = f.seq
		t.toWake, t.caughtUp = t.toWake+t.caughtUp, 0
		if t.toWake > 0 {
			audience += len(t.members)
		}
	}
	for b.log.overfull(f.at) {
		b.evictLocked()
	}
	switch {
	case b.announcing:
	case audience <= fewMembers:
		b.announceLocked(false)
	default:
		// Its second gain: a burst is in the log as a whole before most of those who
		// wait are woken for it, so that they send it in one write.
		b.announcing = true
		go func() {
			b.lock()
			defer b.unlock()
			b.announceLocked(true)
			b.announcing = false
		}()
	}
}

// evictLocked removes the oldest frame from the log.
func (b *Broker) evictLocked() {
	if b.log.tail == b.announced {
		b.announceLocked(false) // or nobody would be woken for it
	}
	f := b.log.evict()
	for _, t := range f.topics {
		switch {
		case f.endsTopics:
			b.loseValuesLocked(t)
			b.forgetKeysLocked(t)
			for _, m := range t.members {
				if s := m.sub; s.joined >= t.ended && !s.owedEnd && s.hasEndedLocked() {
					s.oweEndLocked()
				}
			}
			t.forgetEndLocked(b.log.tail)
		case !f.keyed: // else it is in t.values
			t.evicted = f.seq
		}
	}
	if f.holders > 0 {
		b.limitPinnedLocked()
	}
	b.releaseTopicsLocked(f.topics)
}

// ----- Topics and subscribers -----

const (
	// fewMembers is the largest number of members, of all topics of an event, among
	// whom Publish itself looks for those that wait.
	fewMembers = 16

	// signalsAtOnce is the number of subscribers after which a walk gives mu up.
	signalsAtOnce = 64
)

// A topic exists as long as it has a subscriber, a frame in the log, or a key. mu
// guards all but name and self, which do not change.
//
// A topic counts its waiting members in two groups, so that announceLocked can end its
// walk with the last member that waits for the newest frame. Publish moves all of them
// to toWake at once, in constant time.
//
// Whenever mu is free:
//
//  1. toWake is the number of members that wait and whose cursor is not past newest;
//     caughtUp is the number of the other members that wait.
//  2. Once newest is before Broker.announced, toWake is 0.
//  3. values is sorted by number. The frames in it that still have the topic are
//     those in keys; replaced counts the others.
type topic struct {
	name             string
	self             []*topic // the topic alone, for frames that have no other
	refs             int      // subscribers, frames in the log, and keys
	members          members
	newest           uint64 // number of the newest frame
	evicted          uint64 // number of the newest event that has left the log and is not kept
	toWake, caughtUp int
	clients          int    // members that are clients
	ended            uint64 // number of the end's frame; 0: it has not ended

	// Once it has ended, owed is the number of members that are to be told: those who
	// came before the end, and those for which oweEndLocked was called.
	owed int

	// The newest value of each key, in the log or not, and the same in order. A
	// value that is replaced loses the topic and stays in values for the time being.
	keys     map[string]*frame
	values   []*frame
	replaced int
}

// The value of a key is an ordinary frame in the log. It is also in topic.values, so
// that a newcomer, or a client whose cursor is before the log, can read it when it
// has left the log. If it is replaced, its topics are taken away from it. Then no
// subscriber wants it, wherever it is, and next needs no lookup by key.

// setKeyLocked makes f the value of the key in each of its topics.
func (b *Broker) setKeyLocked(f *frame, key string) {
	b.forgetKeyLocked(f.topics, key)
	f.keyed = true
	for _, t := range f.topics {
		if t.keys == nil {
			t.keys = map[string]*frame{}
		}
		t.keys[key] = f
		t.values = append(t.values, f)
		t.refs++
		b.stats.Keys++
	}
}

// forgetKeyLocked takes the topics away from the values of the key in them, so that
// nobody is sent these because of one of the topics. The caller has a reference to
// each topic.
func (b *Broker) forgetKeyLocked(topics []*topic, key string) {
	for _, t := range topics {
		old := t.keys[key]
		if old == nil {
			continue
		}
		if hasTopic(old.topics, t) { // or an earlier t has taken it
			b.takeTopicsLocked(old, topics)
		}
		if old.seq >= b.log.tail {
			t.refs--
		}
		if t.replaced++; t.replaced > len(t.values)/2 {
			t.values = slices.DeleteFunc(t.values, func(f *frame) bool { return !hasTopic(f.topics, t) })
			t.replaced = 0
		}
		delete(t.keys, key)
		t.refs--
		b.stats.Keys--
	}
}

// takeTopicsLocked takes the topics away from f, the value of a key in some of them.
func (b *Broker) takeTopicsLocked(f *frame, topics []*topic) {
	var rest []*topic // a copy, since announceLocked may be reading the slice, having paused
	for _, t := range f.topics {
		if !hasTopic(topics, t) {
			rest = append(rest, t)
		}
	}
	f.topics = rest
	if f.holders > 0 && f.seq < b.log.tail {
		b.limitPinnedLocked()
	}
}

// hasTopic reports whether t is one of the topics, which are sorted by name.
func hasTopic(topics []*topic, t *topic) bool {
	if len(topics) <= 8 {
		return slices.Contains(topics, t)
	}
	i := sort.Search(len(topics), func(i int) bool { return topics[i].name >= t.name })
	return i < len(topics) && topics[i] == t
}

// forgetKeysLocked forgets all keys of t.
func (b *Broker) forgetKeysLocked(t *topic) {
	t.refs++
	for key := range t.keys {
		b.forgetKeyLocked(t.self, key)
	}
	t.keys, t.values, t.replaced = nil, nil, 0
	b.releaseTopicsLocked(t.self)
}

// loseValuesLocked notes who has not considered all values of t, which will be
// forgotten.
func (b *Broker) loseValuesLocked(t *topic) {
	if len(t.values) == 0 {
		return
	}
	newest := t.values[len(t.values)-1].seq
	for _, m := range t.members {
		if s := m.sub; !s.waiting && s.cursor <= newest {
			b.loseLocked(s)
		}
	}
}

// loseLocked notes that what comes next for s is not in the log.
func (b *Broker) loseLocked(s *subscriber) {
	if !s.lost {
		s.lost = true
		b.stats.Gaps++
	}
}

// forgetEndLocked makes t a new topic if its end is before the log and nobody is there
// who is to be told.
func (t *topic) forgetEndLocked(tail uint64) {
	if t.ended < tail && t.owed == 0 {
		t.ended = 0
	}
}

// hasEndedLocked reports whether the topic has ended.
func (b *Broker) hasEndedLocked(name string) bool {
	t := b.topics[name]
	return t != nil && t.ended > 0
}

// hasEndedLocked reports whether all topics of s have ended.
func (s *subscriber) hasEndedLocked() bool {
	return !slices.ContainsFunc(s.topics, func(t *topic) bool { return t.ended == 0 })
}

// oweEndLocked notes that all topics of s have ended, and that s is to be told so even
// if the ends leave the log before.
func (s *subscriber) oweEndLocked() {
	s.owedEnd = true
	for _, t := range s.topics {
		if s.joined >= t.ended { // or s is counted already
			t.owed++
		}
	}
}

// Members are subscribers in the order in which they came. When one leaves, the last
// one takes its place. They are woken from the last to the first. A random order would
// cost CPU: over HTTP/2, net/http merges what the streams of one connection write, if
// they write one after the other.
type members []member

// A member is a subscriber in its nth list of members.
type member struct {
	sub *subscriber
	nth int
}

func (m *members) add(s *subscriber, nth int) {
	s.indexes[nth] = len(*m)
	*m = append(*m, member{s, nth})
}

func (m *members) remove(s *subscriber, nth int) {
	i, last := s.indexes[nth], len(*m)-1
	moved := (*m)[last]
	moved.sub.indexes[moved.nth] = i
	(*m)[i], (*m)[last] = moved, member{}
	*m = (*m)[:last]
}

// A subscriber is one client, or one loop over Subscribe. It reads the log from its
// cursor on. Whoever sends it what next returned is its sender: the goroutine in
// deliver, or the worker that has its connection.
//
//	          next finds nothing left
//	┌─────────┐ ──────────────────────► ┌─────────┐
//	│ reading │                         │ waiting │
//	└─────────┘ ◄────────────────────── └─────────┘
//	     │        wakeLocked
//	     │ next says last
//	     ▼
//	   ended
//
// Whenever mu is free:
//
//  1. A subscriber that waits has no end.
//  2. If a subscriber waits, no frame from cursor up to announced is for it: its
//     cursor was after the newest frame as it began to wait. So waking it also moves
//     its cursor up to announced, past what others published.
//  3. If a subscriber does not wait, its sender will call next, once there is one and
//     until next says last. Before it waits, next has looked at the whole log and at
//     each reason to say something or to end. A subscriber with a signal waits already
//     while deliver sends the batch.
//  4. Only next sets waiting. Only a subscriber that waits is woken: the connection
//     of another would get a second owner.
//  5. Whoever clears waiting, other than leave, wakes the subscriber once: by a token
//     for its signal, which has room for one, or by a place in the queue for its
//     connection, which has no owner as long as the subscriber waits.
//  6. A subscriber whose cursor is before log.tail has missed frames only if one of
//     its topics lost a frame that is not before the cursor and is after state. All
//     other frames before log.tail that are for it are values of keys. A Reset makes
//     all subscribers lost, unless CatchUp then ends with the ID that Reset was given;
//     a topic that ends and forgets its keys, those who have not received all of its
//     values.
//  7. What next returns counts as received, since a failed write ends the stream.
//  8. end is set once; the first reason wins.
type subscriber struct {
	// These do not change once next was called.
	b      *Broker
	topics []*topic // sorted by name
	client bool     // counts against MaxClients, and in topic.clients

	// To be woken, a subscriber has either signal, which takes a token, or conn, which
	// is put in the queue.
	signal chan struct{} // of a loop over Subscribe, or a handler not over HTTP/1.x
	conn   *conn
	done   func(error) // given to Detach; nil if the client was not detached

	// Guarded by mu.
	joined  uint64   // the newest frame when it came
	expires uint64   // the round in which it is too old; 0: never
	indexes []int    // index in members of each topic, and in Broker.subs
	cursor  uint64   // the first frame it has not considered
	state   uint64   // up to this frame, only values of keys are for it
	owedEnd bool     // oweEndLocked was called: all topics have ended
	waiting bool     // for a frame, an end, or a reason to say something
	lost    bool     // what comes after lastID is not in the log
	idle    bool     // a keep-alive is due
	opening []*frame // what next returns first: reconnection time and ID, detached with the headers
	held    *frame   // the large frame that it is being sent, if any
	end     error    // why the stream is over
	got     uint64   // the round in which it received something last
	isCut   bool     // a write that is under way is to be ended
	cancel  context.CancelFunc

	lastID  string // ID of the last event it received, or what it came with
	echo    bool   // lastID may be repeated to it: the log knew it, or it came in the header
	lastSeq uint64 // the position of the newest ID that it received

	// ending is why the stream is over once the last batch was sent. next sets it for
	// the sender, which alone reads it.
	ending error

	// over is set with end. A loop over Subscribe reads it within a batch, without mu.
	over atomic.Bool

	// began is one more than the round in which a write to the client began, or
	// 0. It is written by the goroutine that writes.
	began atomic.Uint64

	// cutting guards cut and is held while it is called: that must not be after the
	// handler's return.
	cutting sync.Mutex
	cut     func() // ends a write
}

// wantsLocked reports whether one of the frame's topics is the subscriber's.
func (s *subscriber) wantsLocked(f *frame) bool {
	few, many := f.topics, s.topics
	if len(few) == 1 && len(many) == 1 {
		return few[0] == many[0]
	}
	if len(few) > len(many) {
		few, many = many, few
	}
	return slices.ContainsFunc(few, func(t *topic) bool { return hasTopic(many, t) })
}

// join adds s, to begin after lastID.
func (b *Broker) join(s *subscriber, lastID string, names []string) error {
	names = distinct(names)
	// A copy, since it may be part of a long header.
	lastID = strings.ToValidUTF8(strings.Clone(lastID[:min(len(lastID), maxIDBytes)]), "\ufffd")
	b.lock()
	defer b.unlock()
	seq, known := b.log.find(lastID)
	s.echo = s.echo || known || lastID == "" || lastID == Earliest // these two are not repeated themselves
	switch {
	case b.closed:
		return ErrClosed
	case s.client && b.MaxClients > 0 && b.clients >= b.MaxClients:
		b.stats.TurnedAway++
		return ErrFull
	}
	s.b, s.got = b, b.round.Load()
	s.topics = b.holdTopicsLocked(names)
	s.indexes = make([]int, len(s.topics)+1)
	for nth, t := range s.topics {
		t.members.add(s, nth)
		if s.client {
			t.clients++
		}
	}
	b.subs.add(s, len(s.topics))
	if s.client {
		b.clients++
		if b.MaxAge > 0 {
			life := b.MaxAge - mrand.N(b.MaxAge/10+1)
			s.expires = s.got + uint64(life/b.sweepPeriod()) + 1
		}
	}
	if s.joined = b.log.head; s.hasEndedLocked() {
		s.oweEndLocked()
	}
	b.setCursorLocked(s, lastID, seq, known)
	if len(b.subs) == 1 {
		b.sweeper.Reset(b.sweepPeriod())
	}
	return nil
}

// replayLocked makes s begin with the newest value of each key and then with frame
// first. It returns the ID of the position before that, or "" if there are values:
// a client that was cut off in the middle of them would miss the rest.
func (b *Broker) replayLocked(s *subscriber, first uint64) (id string) {
	s.cursor, s.state, s.lastSeq = first, first-1, first-1
	if slices.ContainsFunc(s.topics, func(t *topic) bool { return len(t.keys) > 0 }) {
		s.cursor, s.lastSeq = 1, 0
		return ""
	}
	return b.log.idAfter(first - 1)
}

// setCursorLocked sets where s, which came with lastID, begins. If its place, seq, is
// not known, it is lost: next then asks CatchUp, or tells the client of a gap.
func (b *Broker) setCursorLocked(s *subscriber, lastID string, seq uint64, known bool) {
	head := b.log.head
	s.lastID, s.lastSeq, s.cursor = lastID, head, head+1
	first := b.log.replayFrom(time.Now())
	if lastID == Earliest && b.log.history < 0 {
		lastID, s.lastID = "", ""
	}
	switch {
	case lastID == Earliest, lastID == "" && b.CatchUp == nil && s.owedEnd:
		// Everything: it asked for that, or came when all was over.
		s.lastID = b.replayLocked(s, first)
	case lastID == "" && b.CatchUp != nil:
		// CatchUp tells a newcomer the state. That is no gap.
		s.lost = true
	case known && b.log.noEventBetween(seq, first):
		s.cursor, s.lastSeq = seq+1, seq
	case lastID != "" && (b.log.history >= 0 || b.CatchUp != nil):
		s.cursor = first
		b.loseLocked(s)
	default:
		// From now on, after the values of keys: a newcomer, or any client if there
		// is no history to come back to.
		id := b.replayLocked(s, head+1)
		s.lastID = cmp.Or(lastID, id)
	}
	// What s is sent first, together with the headers: the reconnection time, and the ID
	// after which it begins. A browser dispatches no event for that, but sends the ID if
	// it is cut off before its first event. A block without an ID would make a client
	// forget its own, by the standard.
	s.opening = b.mark(s.repeatable(s.lastID), b.retryLine(false))
	if s.opening == nil {
		s.opening = []*frame{{mark: true, body: keepAliveFrame}}
	}
}

// leave removes s, whose stream has ended for this reason.
func (b *Broker) leave(s *subscriber, reason error) {
	s.setCut(nil)
	b.lock()
	defer b.unlock()
	b.stopWaitingLocked(s)
	b.releaseHeldLocked(s)
	for nth, t := range s.topics {
		t.members.remove(s, nth)
		if s.client {
			t.clients--
		}
		if s.joined < t.ended || s.owedEnd {
			t.owed--
			t.forgetEndLocked(b.log.tail)
		}
	}
	b.subs.remove(s, len(s.topics))
	if s.client {
		b.clients--
	}
	b.releaseTopicsLocked(s.topics)
	if errors.Is(reason, ErrTooSlow) {
		b.stats.TooSlow++
	}
	if len(b.subs) == 0 {
		b.sweeper.Stop()
		if b.closed {
			close(b.gone)
		}
	}
}

var defaultTopic = []string{""}

// distinct returns each of the names once, sorted. No name is the default topic's.
func distinct(names []string) []string {
	switch len(names) {
	case 0:
		return defaultTopic
	case 1:
		return names
	}
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

// holdTopicsLocked returns the topics of these distinct names, each with one more
// reference.
func (b *Broker) holdTopicsLocked(names []string) []*topic {
	if len(names) == 1 {
		return b.holdTopicLocked(names[0]).self
	}
	topics := make([]*topic, len(names))
	for i, name := range names {
		topics[i] = b.holdTopicLocked(name)
	}
	return topics
}

func (b *Broker) holdTopicLocked(name string) *topic {
	t := b.topics[name]
	if t == nil {
		t = &topic{name: strings.Clone(name)} // may be part of a long text
		t.self = []*topic{t}
		b.topics[t.name] = t
	}
	t.refs++
	return t
}

// releaseTopicsLocked gives the references back.
func (b *Broker) releaseTopicsLocked(topics []*topic) {
	for _, t := range topics {
		if t.refs--; t.refs == 0 {
			delete(b.topics, t.name)
		}
	}
}

func topicNames(topics []*topic) []string {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.name
	}
	return names
}

// stopWaitingLocked makes s read on, if it waits. Invariant 2 lets its cursor skip to
// announced.
func (b *Broker) stopWaitingLocked(s *subscriber) {
	if !s.waiting {
		return
	}
	for _, t := range s.topics {
		if s.cursor <= t.newest {
			t.toWake--
		} else {
			t.caughtUp--
		}
	}
	s.waiting = false
	s.cursor = max(s.cursor, b.announced)
}

// wakeLocked wakes s, which waits: deliver or a worker will call next for it.
func (b *Broker) wakeLocked(s *subscriber) {
	b.stopWaitingLocked(s)
	if s.signal != nil {
		b.woken = append(b.woken, s.signal)
	} else {
		b.conns.push(s.conn)
	}
}

// walkLocked calls visit for the members, from the last to the first, until it
// returns false. If it may pause, it gives mu up now and then, so that nobody waits
// long for it; those who join meanwhile may be visited or not.
func (b *Broker) walkLocked(m *members, mayPause bool, visit func(*subscriber) bool) {
	for i := len(*m) - 1; i >= 0; i = min(i, len(*m)) - 1 {
		if b.walked++; mayPause && b.walked%signalsAtOnce == 0 {
			b.unlock()
			runtime.Gosched() // or very many who were woken get in line for mu, before Publish
			b.lock()
			if i >= len(*m) {
				continue
			}
		}
		if !visit((*m)[i].sub) {
			return
		}
	}
}

// announceLocked wakes those who wait for a frame from announced on. If it may
// pause, others may announce as well and come further. In each topic it ends with the
// last member that was to be woken as it began, since those who wait may be few among
// many that do not.
func (b *Broker) announceLocked(mayPause bool) {
	for b.announced <= b.log.head {
		f := b.log.at(b.announced)
		for _, t := range f.topics {
			newest, left := t.newest, t.toWake
			b.walkLocked(&t.members, mayPause, func(s *subscriber) bool {
				if s.waiting && s.cursor <= newest {
					b.wakeLocked(s)
					left--
				}
				return left > 0
			})
		}
		b.announced = max(b.announced, f.seq+1)
	}
}

// ----- Delivery -----

const (
	// A batch has no more than this: frames, their bytes, and comparisons of topics
	// that were made with mu held.
	batchFrames = 256
	batchBytes  = pieceBytes
	batchWork   = 1024
)

// next is the only place that decides what a subscriber is sent next and how it
// goes on. It appends that to batch, which it empties first. The sender calls it when
// it has sent what next returned before.
//
// The order is fixed: what opens the stream; a reason to end at once; a gap; the log,
// with the position after the values of keys; a reason to end once the log is read;
// and, if there is nothing else, a keep-alive.
func (s *subscriber) next(batch []*frame) ([]*frame, step) {
	b := s.b
	b.lock()
	defer b.unlock()
	b.releaseHeldLocked(s)
	clear(batch)
	batch = append(batch[:0], s.opening...)
	s.opening = nil
	if s.end != nil {
		return b.sayGoodbyeLocked(s, s.end, batch), last
	}
	if b.checkLostLocked(s); s.lost {
		if b.CatchUp != nil {
			return batch, askCatchUp
		}
		gap := newFrame(Event{Type: "gap", Data: s.repeatable(s.lastID)})
		s.lost = false
		gap.id = b.replayLocked(s, max(s.cursor, b.log.tail))
		batch = append(batch, gap)
	}
	batch = b.readLogLocked(s, batch)
	if s.cursor > s.state && s.lastSeq < s.state { // it has considered the last value
		s.lastSeq = s.cursor - 1
		mark := b.mark(b.log.idAfter(s.lastSeq), "")
		b.receivedLocked(s, mark)
		batch = append(batch, mark...)
	}
	switch {
	case s.cursor <= b.log.head:
		return batch, again
	case s.hasEndedLocked():
		return b.sayGoodbyeLocked(s, ErrEnded, batch), last
	case b.closed:
		return b.sayGoodbyeLocked(s, ErrClosed, batch), last
	case len(batch) == 0 && s.idle:
		batch = append(batch, b.keepAliveLocked(s)...)
	}
	// A subscriber with a signal waits from now on, which spares another call of next
	// for nearly every event. One with a conn is sent the batch first, since the conn
	// has no owner while it waits. A large frame is held until next is called again,
	// which must not be at the next event only.
	if len(batch) > 0 && (s.signal == nil || s.held != nil) {
		return batch, again
	}
	s.waiting = true
	for _, t := range s.topics {
		t.caughtUp++
	}
	return batch, wait
}

// readLogLocked appends to batch what the log holds for s from its cursor on, up
// to the limits of a batch.
func (b *Broker) readLogLocked(s *subscriber, batch []*frame) []*frame {
	from, bytes, work := len(batch), 0, 0
	cursor, start := s.cursor, max(b.log.tail, s.state+1) // before start, only values of keys
	var values *valueHeap
	if cursor < start {
		values = s.valuesFromLocked(cursor)
	}
	for cursor <= b.log.head && len(batch)-from < batchFrames && bytes < batchBytes && work < batchWork {
		var f *frame
		if cursor >= start {
			f = b.log.at(cursor)
		} else if f = values.pop(cursor); f == nil || f.seq >= start {
			cursor = start
			continue
		}
		work += 1 + min(len(f.topics), len(s.topics))
		cursor = f.seq + 1
		if !f.endsTopics && s.wantsLocked(f) {
			batch = append(batch, f)
			bytes += len(f.body)
		}
	}
	s.cursor = cursor
	b.receivedLocked(s, batch)
	if s.client && len(batch) > from {
		if f := batch[len(batch)-1]; len(f.body) > pieceBytes { // which is the last, since it is a batch's worth
			s.held = f
			f.holders++
		}
	}
	return batch
}

// A valueHeap holds values of keys, those of each topic in order, as a heap (package
// container/heap) by the first of each. So the next value of a client with thousands of
// topics is found without a look at all of them.
type valueHeap [][]*frame

func (h valueHeap) Len() int           { return len(h) }
func (h valueHeap) Less(i, j int) bool { return h[i][0].seq < h[j][0].seq }
func (h valueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *valueHeap) Push(any)          {} // never called
func (h *valueHeap) Pop() any          { *h = (*h)[:len(*h)-1]; return nil }

// valuesFromLocked returns the values of keys from frame number seq on, of all topics of s.
// Some may have been replaced.
func (s *subscriber) valuesFromLocked(seq uint64) *valueHeap {
	h := new(valueHeap)
	for _, t := range s.topics {
		i := sort.Search(len(t.values), func(i int) bool { return t.values[i].seq >= seq })
		if i < len(t.values) {
			*h = append(*h, t.values[i:])
		}
	}
	heap.Init(h)
	return h
}

// pop removes the values up to the first from frame number seq on, and returns that, or
// nil. A value of several topics is there for each.
func (h *valueHeap) pop(seq uint64) *frame {
	for len(*h) > 0 {
		first := &(*h)[0]
		f := (*first)[0]
		if *first = (*first)[1:]; len(*first) > 0 {
			heap.Fix(h, 0)
		} else {
			heap.Pop(h)
		}
		if f.seq >= seq {
			return f
		}
	}
	return nil
}

// receivedLocked notes that s received the batch, or is about to.
func (b *Broker) receivedLocked(s *subscriber, batch []*frame) {
	if len(batch) == 0 {
		return
	}
	s.idle, s.got = false, b.round.Load()
	for _, f := range batch {
		if f.id != "" {
			s.lastID, s.echo = f.id, true
			s.lastSeq = max(s.lastSeq, f.seq)
		}
		if !f.mark {
			b.stats.Delivered++
		}
		if f.seq > 0 && f.seq <= s.joined {
			b.stats.Replayed++
		}
	}
}

// releaseHeldLocked notes that s has been sent what it was to be sent.
func (b *Broker) releaseHeldLocked(s *subscriber) {
	if s.held != nil {
		s.held.holders--
		s.held = nil
	}
}

// limitPinnedLocked disconnects the clients that are being sent the oldest large
// frame, if such frames have left the log, are no key's values, and take up more than
// HistoryBytes: they are kept for slow clients alone. A single frame is left to them,
// whatever its size. It is called whenever a frame that a client holds is lost to all
// others.
func (b *Broker) limitPinnedLocked() {
	if b.log.bytes < 0 {
		return
	}
	pinned, size := map[*frame][]*subscriber{}, 0
	for _, m := range b.subs {
		f := m.sub.held
		if f == nil || f.seq >= b.log.tail || f.keyed && len(f.topics) > 0 {
			continue
		}
		if pinned[f] == nil {
			size += f.size
		}
		pinned[f] = append(pinned[f], m.sub)
	}
	oldestFirst := func(f, g *frame) int { return cmp.Compare(f.seq, g.seq) }
	for _, f := range slices.SortedFunc(maps.Keys(pinned), oldestFirst)[:max(len(pinned)-1, 0)] {
		if size <= b.log.bytes {
			return
		}
		size -= f.size
		for _, s := range pinned[f] {
			b.cutOffLocked(s, errHoldsTooMuch)
			b.releaseHeldLocked(s)
		}
	}
}

var errHoldsTooMuch = fmt.Errorf("%w: keeps more than HistoryBytes from being freed", ErrTooSlow)

// checkLostLocked notes whether s has missed frames that have left the log.
func (b *Broker) checkLostLocked(s *subscriber) {
	missed := func(t *topic) bool { return t.evicted >= max(s.cursor, s.state+1) }
	if s.cursor < b.log.tail && slices.ContainsFunc(s.topics, missed) {
		b.loseLocked(s)
	}
}

// endLocked ends the stream of s for this reason, unless it has ended for another
// one. A write that is under way is completed; then next says goodbye. These are the
// reasons, where they come from, and the last words that the client is sent. Those
// from next come when the log is read to its end; for the others, what is pending is
// not sent.
//
//	ErrEnded           next                the event "end"
//	ErrEnded           catchUp             the event "end"
//	ErrClosed          next, by Shutdown   a comment and a random reconnection time
//	ErrDisconnected    Disconnect          a random reconnection time
//	errTooOld          sweep, by MaxAge    a random reconnection time
//	error of CatchUp   catchUp             a random reconnection time
//	errWriteTimeout    sweep               none; its write is cut off
//	errHoldsTooMuch    limitPinnedLocked   none; its write is cut off
//	errCut             Shutdown            none; its write is cut off
//	the context's end  endWith, deliver    a random reconnection time
//	ErrClientLeft      a failed write, conn.look   none
//	errSilent          conn.look           none; the connection is reset
//	errPanic           Serve, Detach, conn.serveTurn, worker.serveQueue   none
//	others             a loop that was left, a ResponseWriter without Flush   none
//
// sayGoodbyeLocked and goodbye make the last words. errWriteTimeout and
// errHoldsTooMuch wrap ErrTooSlow, which is counted in Stats.TooSlow and resets a
// detached connection. ErrFull is for clients that never join.
func (b *Broker) endLocked(s *subscriber, reason error) {
	if s.end != nil {
		return
	}
	s.end = reason
	s.over.Store(true)
	if s.cancel != nil {
		s.cancel()
	}
	if s.waiting {
		b.wakeLocked(s)
	}
}

// endFor ends s on behalf of its sender, which stops sending, and returns the reason
// that s ended for.
func (s *subscriber) endFor(reason error) error {
	s.b.lock()
	defer s.b.unlock()
	s.b.releaseHeldLocked(s)
	s.b.endLocked(s, reason)
	return s.end
}

// batches holds slices of up to about batchFrames, so that a subscriber has one
// only while it is sent something. Without it, a burst allocates one for each.
var batches = sync.Pool{New: func() any { return new([]*frame) }}

// deliver sends batch, goes on as then says, and so forth with what next returns. It may
// block. It returns why the stream has ended.
//
// If the subscriber has a signal, its goroutine stays in deliver for as long as the
// stream lasts, and waits there. If it has a conn, deliver returns nil as soon as the
// subscriber waits; a worker may have the conn by then.
func (s *subscriber) deliver(ctx context.Context, batch []*frame, then step, send func([]*frame) error) error {
	if s.signal != nil {
		defer s.endWith(ctx)()
	}
	var buf *[]*frame // what batch is in, unless the caller gave it
	for {
		if len(batch) > 0 {
			if err := send(batch); err != nil {
				return s.endFor(err)
			}
		}
		switch then {
		case last:
			return s.endFor(s.ending)
		case askCatchUp:
			if err := s.catchUp(ctx, send); err != nil {
				s.endFor(err)
			}
		case wait:
			if buf != nil {
				clear(batch)
				*buf = batch[:0]
				batches.Put(buf)
			}
			if s.signal == nil {
				return nil
			}
			batch = nil
			<-s.signal // which unlock sends, after wakeLocked
		}
		if ctx.Err() != nil {
			s.endFor(leftError(ctx))
		}
		if batch == nil {
			buf = batches.Get().(*[]*frame)
			batch = *buf
		}
		batch, then = s.next(batch)
	}
}

// catchUp gives s, which is lost, what CatchUp yields, and sets where it goes on in
// the log. It runs without mu and may take long, so the log may be evicted or reset
// meanwhile. s has already a cursor, the frame after the newest one, which goOn
// replaces if it finds a better one; the sweep does not end s for its age.
func (s *subscriber) catchUp(ctx context.Context, send func([]*frame) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := s.b
	b.lock()
	since := b.log.head + 1
	missed := Missed{LastEventID: s.lastID, UpTo: b.log.idAfter(b.log.head), Topics: topicNames(s.topics)}
	s.lost, s.cursor, s.state, s.cancel = false, since, 0, cancel
	if s.end != nil {
		cancel()
	}
	b.unlock()

	var batch []*frame
	bytes, yielded, lastID := 0, false, missed.LastEventID
	flush := func() error {
		b.lock()
		err := s.end
		if err == nil {
			b.receivedLocked(s, batch)
		}
		b.unlock()
		if err == nil && len(batch) > 0 {
			err = send(batch)
		}
		batch, bytes = batch[:0], 0
		return err
	}
	for ev, err := range b.CatchUp(ctx, missed) {
		if err == nil {
			err = ev.check()
		}
		if err != nil {
			switch left := flush(); {
			case left != nil:
				return left
			case errors.Is(err, ErrEnded):
				return err
			case ctx.Err() != nil:
				return leftError(ctx)
			}
			b.warn("sse: CatchUp failed", "error", err)
			return fmt.Errorf("sse: CatchUp: %w", err)
		}
		f := newFrame(ev)
		batch, bytes = append(batch, f), bytes+len(f.body)
		yielded, lastID = true, ev.ID
		if len(batch) >= batchFrames || bytes >= batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	batch = append(batch, s.goOn(since, missed.UpTo, lastID, yielded)...)
	return flush()
}

// goOn sets where s goes on after CatchUp, which was called when since was the next
// frame to be published, right after the ID upTo. lastID is that of the last event
// yielded, or that of s if there was none. It returns what tells the client its
// position, if its last event does not:
//
//	lastID is in the log       right after it; the client has its ID
//	nothing has left the log   at since; the client is told the ID before it
//	otherwise                  CatchUp is asked again from the last ID that s received,
//	                           or from upTo if it received nothing
//
// A Reset counts as something that has left the log.
func (s *subscriber) goOn(since uint64, upTo, lastID string, yielded bool) []*frame {
	b := s.b
	b.lock()
	defer b.unlock()
	s.cancel = nil
	if seq, ok := b.log.find(lastID); ok && seq+1 >= b.log.tail {
		s.lost, s.cursor, s.lastSeq = false, seq+1, seq
		return nil
	}
	s.cursor, s.lastSeq = since, since-1
	b.checkLostLocked(s)
	values := s.valuesFromLocked(s.cursor)
	v := values.pop(s.cursor)
	for v != nil && !s.wantsLocked(v) { // it was replaced
		v = values.pop(s.cursor)
	}
	if v != nil && v.seq < b.log.tail {
		b.loseLocked(s) // CatchUp may have yielded the value, and others after it
	}
	switch {
	case !s.lost:
		s.cursor = max(s.cursor, b.log.tail) // nor is anything for it before the log
		s.lastSeq = s.cursor - 1
		return b.mark(b.log.idAfter(s.lastSeq), "")
	case yielded || b.log.resetAt >= since:
		return nil // CatchUp is called again, for what comes after the last event
	}
	return b.mark(upTo, "")
}

// ----- Clients -----

// Serve answers r with the stream of these topics and blocks until the stream ends.
// The client receives the events published after its [LastEventID], or, if it has
// none, from now on; CatchUp, Set and End say what may come first. Code before and
// after the call can authorize, count and log.
//
//	err := broker.Serve(w, r, "room/"+room, "announcements")
//
// The headers are those of [NewWriter]. HEAD is answered with the headers alone; all
// other methods are accepted and receive the event "end" too. After Shutdown, as
// beyond MaxClients, a client receives only a reconnection time.
//
// Serve returns why the stream ended. The error wraps [ErrClientLeft], [ErrTooSlow],
// [ErrClosed], [ErrFull], [ErrEnded], [ErrDisconnected] or, as from NewWriter,
// [http.ErrNotSupported]. After an error of CatchUp, it wraps that error. After MaxAge,
// it says so. Serve returns nil only for HEAD. The stream also ends when r's context
// is done. The error then wraps the context's cause ([context.WithCancelCause]), if it
// has one. Otherwise it is ErrClientLeft, because net/http also cancels the context
// when the client leaves.
//
// Over HTTP/1.x, other goroutines call w's Write and Flush, one at a time, while Serve
// blocks. If they panic, Serve panics with the same value. SetWriteDeadline may be called
// during a Write, to end it.
//
// To save writes, the response to a GET over HTTP/1.1 is not chunked and ends with
// its connection. Only a stream with the event "end" is complete.
func (b *Broker) Serve(w http.ResponseWriter, r *http.Request, topics ...string) error {
	s, err := b.admit(w, r, topics)
	if s == nil {
		return err
	}
	err = errPanic
	defer func() { s.leaveAndLog(r, err) }()
	s.logArrival(r)
	err = s.stream(w, r)
	return err
}

// ServeHTTP serves the default topic to GET and HEAD, as [Broker.Serve] does. Any
// other method is answered with status 405.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	b.Serve(w, r)
}

// Detach is Serve for very many clients: it begins the stream, takes the connection
// over from net/http and returns true at once. A client then costs its socket and
// about 2 KB, and over TLS the memory of crypto/tls; a running handler costs about
// 25 KB. When the stream ends, Detach calls done exactly once, if it is not
// nil, with the error that Serve would have returned:
//
//	online.Add(user)
//	broker.Detach(w, r, func(error) { online.Remove(user) }, "prices")
//
// The stream bypasses middleware that wraps w, and does not end with the request's
// context. The handler must not use w after the call. If a client closes its
// connection, the next write to it fails, at the latest the next keep-alive. On
// Linux, the stream of a client that stops responding ends about WriteTimeout after
// the next write.
//
// done may be called before Detach returns, or from another goroutine. A panic in
// done is logged.
//
// Detach returns false if it refuses the client, as Serve does. It also returns false
// where it cannot take the connection over. It then serves the client as Serve does,
// and blocks until the stream ends:
//
//   - the client speaks HTTP/2, or the server is not net/http's, as in package fcgi;
//   - a ResponseWriter that wraps the server's has neither Hijack nor Unwrap;
//   - the method is HEAD, or the request has a body;
//   - the request has an X-Varnish header: Varnish delays unchunked responses.
func (b *Broker) Detach(w http.ResponseWriter, r *http.Request, done func(error), topics ...string) (detached bool) {
	if done == nil {
		done = func(error) {}
	}
	s, err := b.admit(w, r, topics)
	if s == nil {
		done(err)
		return false
	}
	err = errPanic
	defer func() {
		if !detached {
			defer s.leaveAndLog(r, err) // Shutdown waits for done
			done(err)
		}
	}()
	s.logArrival(r)
	c := takeOver(w, r, b.conns)
	if c == nil {
		err = s.stream(w, r)
		return false
	}
	s.detach(c, w, r, done)
	return true
}

// detach begins the stream of s on the connection c, which was taken over. It is not
// part of Detach, which serves over HTTP/2 and has a stack of 8 KB there otherwise.
func (s *subscriber) detach(c *conn, w http.ResponseWriter, r *http.Request, done func(error)) {
	b := s.b
	head, ctx := responseHead(w.Header(), r), context.Background()
	if b.CatchUp != nil {
		ctx = context.WithoutCancel(r.Context())
	}
	if !b.logger().Enabled(r.Context(), slog.LevelDebug) {
		r = nil // not kept for nothing
	}
	c.source, c.ctx, s.conn = s, ctx, c
	s.done = func(err error) {
		defer s.leaveAndLog(r, err)
		b.guard("the function given to Detach", func() { done(err) })
	}
	s.setCut(c.breakOff)
	b.lock()
	s.opening = append([]*frame{{mark: true, body: head}}, s.opening...)
	b.conns.push(c)
	b.unlock()
}

// Disconnect ends the streams of all subscribers that have one of the topics,
// detached clients included, with [ErrDisconnected], and returns their number.
//
//	sessions.Delete(user)
//	broker.Disconnect("user/" + user)
//
// A write in progress or about to begin is completed; other events are not sent. The
// context of a running CatchUp is canceled. Clients will reconnect, so revoke their
// access first. A request that was authorized before the call but reaches Serve
// after it is not affected; see MaxAge. Disconnect waits for no client.
func (b *Broker) Disconnect(topics ...string) int {
	n := 0
	b.lock()
	defer b.unlock()
	for _, name := range distinct(topics) {
		if t := b.topics[name]; t != nil {
			b.walkLocked(&t.members, true, func(s *subscriber) bool {
				if s.end == nil {
					b.endLocked(s, ErrDisconnected)
					n++
				}
				return true
			})
		}
	}
	return n
}

// Clients returns, in constant time, how many clients have the topic now. It does
// not count loops over Subscribe.
func (b *Broker) Clients(topic string) int {
	b.lock()
	defer b.unlock()
	if t := b.topics[topic]; t != nil {
		return t.clients
	}
	return 0
}

// admit makes the client a subscriber, or answers it and returns nil.
func (b *Broker) admit(w http.ResponseWriter, r *http.Request, topics []string) (*subscriber, error) {
	if answerEnded(w, r) {
		return nil, ErrEnded
	}
	if r.Method == http.MethodHead {
		_, err := NewWriter(w, r)
		return nil, err
	}
	s := &subscriber{client: true, echo: r.Header.Get("Last-Event-ID") != ""}
	lastID := LastEventID(r)
	if err := b.join(s, lastID, topics); err != nil {
		b.turnAway(w, r, err, s.repeatable(lastID))
		return nil, err
	}
	return s, nil
}

// turnAway answers a client that the Broker does not admit for this reason.
func (b *Broker) turnAway(w http.ResponseWriter, r *http.Request, err error, lastID string) {
	b.debug(r, "sse: client turned away", "reason", err)
	if errors.Is(err, ErrFull) {
		b.warn("sse: clients are turned away", "MaxClients", b.MaxClients)
	}
	// A browser gives up for good on an answer that is no stream.
	out := newWriter(w, r, b.WriteTimeout)
	defer out.finish()
	if out.writeHeaders(r, endsWithConnection(r)) == nil {
		out.write(appendFrames(nil, b.goodbye(err, lastID)))
	}
}

func (s *subscriber) logArrival(r *http.Request) {
	s.b.debug(r, "sse: client came", "topics", topicNames(s.topics), "lastEventID", s.lastID)
}

// leaveAndLog removes s, whose stream has ended for this reason.
func (s *subscriber) leaveAndLog(r *http.Request, reason error) {
	s.b.leave(s, reason)
	if errors.Is(reason, http.ErrNotSupported) {
		s.b.warn("sse: no stream is possible", "error", reason)
	}
	if r != nil {
		s.b.debug(r, "sse: client gone", "reason", reason)
	}
}

// stream serves s, which was admitted, until the stream ends. Over HTTP/1.x, workers
// write for the handler. Over HTTP/2, each handler writes itself, because net/http
// merges what they write while its goroutine of the connection is busy.
//
// Neither stream nor what was called before it has a path that needs much stack. So the
// stack of most idle clients stays at 4 KB: the collector does not halve what has grown
// once, because net/http needs more than a quarter of it.
func (s *subscriber) stream(w http.ResponseWriter, r *http.Request) error {
	out := newWriter(w, r, s.b.WriteTimeout)
	out.source = s
	s.setCut(out.cut) // lets cutOff end its writes
	defer out.finish()
	s.writing(true)
	err := out.writeHeaders(r, endsWithConnection(r)) // the stream never finishes
	s.writing(false)
	if err != nil {
		return s.endFor(err)
	}
	if out.noDeadline && s.b.writeTimeout() > 0 {
		s.b.warnOfNoDeadline(out.w)
	}
	if r.ProtoMajor != 1 {
		s.signal = make(chan struct{}, 1)
		return s.deliver(out.ctx, nil, again, out.sendFrames)
	}
	s.conn = &conn{source: s, queue: s.b.conns, out: out, turns: make(chan turn, 1)}
	defer s.endWith(out.ctx)()
	s.b.conns.push(s.conn)
	return s.endFor(s.conn.serveTurns())
}

// endWith ends s when ctx is done, unless stop is called before.
func (s *subscriber) endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		s.b.lock()
		defer s.b.unlock()
		s.b.endLocked(s, leftError(ctx))
	})
}

func (b *Broker) warnOfNoDeadline(w http.ResponseWriter) {
	b.warn("sse: WriteTimeout has no effect, no deadline can be set", "behind", fmt.Sprintf("%T", innermost(w)))
}

// writing notes that a write to the client begins, or that there is none under way.
func (s *subscriber) writing(yes bool) {
	if yes {
		s.began.Store(s.b.round.Load() + 1)
	} else {
		s.began.Store(0)
	}
}

// sent notes, before a pause, that s has been sent what next returned last.
func (s *subscriber) sent() {
	s.b.lock()
	defer s.b.unlock()
	s.b.releaseHeldLocked(s)
}

// finished is called once the connection of s, which was detached, is closed.
func (s *subscriber) finished(err error) { s.done(s.endFor(err)) }

func (s *subscriber) guard(what string, f func()) { s.b.guard(what, f) }

// guard calls code of the program, a panic in which costs one client and not the
// process, as in a handler of net/http.
func (b *Broker) guard(what string, f func()) {
	defer func() {
		if p := recover(); p != nil {
			b.logger().Error("sse: panic in "+what, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	f()
}

// errPanic is the reason for a stream that a panic or runtime.Goexit ended.
var errPanic = errors.New("sse: stream ended by a panic")

// cutOffLocked ends the stream of s for this reason, unless it has ended for another one,
// and a write that is under way.
func (b *Broker) cutOffLocked(s *subscriber, reason error) {
	b.endLocked(s, reason)
	if s.isCut {
		if !s.cutting.TryLock() { // mu is held already, but this does not wait
			return // the last cut is still under way
		}
		s.cutting.Unlock()
	}
	s.isCut = true
	go s.cutOff()
}

// cutOff ends a write to the client. It has a goroutine of its own, because it may block:
// a program's ResponseWriter may guard its methods by one lock.
func (s *subscriber) cutOff() {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	if s.cut != nil {
		s.guard("a ResponseWriter", s.cut)
	}
}

// setCut sets what ends a write to the client, or nil before the handler returns, after
// which net/http must not be called. If s is cut off, cutOff may have come before that,
// or be about to come after it, so setCut calls it as well.
func (s *subscriber) setCut(cut func()) {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	s.b.lock()
	isCut := s.isCut
	s.b.unlock()
	if cut != nil {
		s.cut = cut
	}
	if isCut && s.cut != nil {
		s.guard("a ResponseWriter", s.cut)
	}
	if cut == nil {
		s.cut = nil
	}
}

// sayGoodbyeLocked appends to batch what s is told as its stream ends.
func (b *Broker) sayGoodbyeLocked(s *subscriber, reason error, batch []*frame) []*frame {
	s.ending = reason
	if s.client && errors.Is(reason, ErrEnded) {
		return append(batch, endEvent)
	}
	if !s.client || errors.Is(reason, errCut) || errors.Is(reason, ErrTooSlow) {
		return batch
	}
	return append(batch, b.goodbye(reason, "")...)
}

// goodbye returns what a client is told as the Broker sends it away: why, for those
// who read along, and to come back at a random time from Retry up to twice that,
// since many others will. A client that was told nothing else yet is told its own
// ID again, as in setCursorLocked.
func (b *Broker) goodbye(reason error, lastID string) []*frame {
	var why []*frame
	switch {
	case errors.Is(reason, ErrFull):
		why = b.mark("", ": too many clients\n")
	case errors.Is(reason, ErrClosed):
		why = b.mark("", ": shutting down\n")
	}
	return append(why, b.mark(lastID, b.retryLine(true))...)
}

// keepAliveLocked returns what is sent to s, which has all that is for it, when it
// got nothing for a while. A client of a quiet topic among busy ones is told a newer
// ID before its own leaves the history, or it would be told of a gap where it missed
// nothing.
func (b *Broker) keepAliveLocked(s *subscriber) []*frame {
	var batch []*frame
	if head := b.log.head; head-s.lastSeq > (head+1-b.log.replayFrom(time.Now()))/2 {
		s.lastSeq = head
		batch = b.mark(b.log.idAfter(head), "")
	}
	batch = append(batch, &frame{mark: true, body: keepAliveFrame})
	b.receivedLocked(s, batch)
	return batch
}

// mark returns a block that is no event: an ID, unless it cannot be sent or nothing
// ever comes after it, and lines. A client remembers an ID only at a blank line. If
// neither is left, there is no block.
func (b *Broker) mark(id, lines string) []*frame {
	if id != "" && (b.History >= 0 || b.CatchUp != nil) && (Event{ID: id}).check() == nil {
		return []*frame{{mark: true, id: id, body: lines + "\n"}}
	}
	if lines == "" {
		return nil
	}
	return []*frame{{mark: true, body: lines}}
}

// retryLine returns the field that tells the reconnection time, or a random one up to
// twice that, if any is told.
func (b *Broker) retryLine(spread bool) string {
	if b.Retry < 0 {
		return ""
	}
	retry := min(max(cmp.Or(b.Retry, defaultRetry), time.Millisecond), math.MaxInt64/2)
	if spread {
		retry += mrand.N(retry)
	}
	return "retry: " + strconv.FormatInt(retry.Milliseconds(), 10) + "\n"
}

// repeatable returns id, or "" if it is not to be repeated in the stream: it came by
// the query, where any site can link to it, and the log does not know it.
func (s *subscriber) repeatable(id string) string {
	if s.echo {
		return id
	}
	return ""
}

// The sweep looks at all subscribers once a period, which is an eighth of KeepAlive,
// WriteTimeout or MaxAge, whichever is shortest. Time is counted in rounds: a
// subscriber notes the round in which it received something, and the round in which a
// write to it began. The sweep marks clients as idle that received nothing for
// KeepAlive, and ends writes that have been under way for WriteTimeout and streams
// that have lasted for MaxAge.
//
// So a client needs no timer and no deadlines, which cost more than a tenth of the
// CPU of single events over HTTP/2 and TLS. The price is that a write may last up to
// two periods longer than WriteTimeout.

// sweepPeriod is the time between two sweeps, which is many years if there is no limit.
func (b *Broker) sweepPeriod() time.Duration {
	shortest := time.Duration(math.MaxInt64)
	for _, d := range []time.Duration{b.keepAlive(), b.writeTimeout(), b.MaxAge} {
		if d > 0 {
			shortest = min(shortest, d)
		}
	}
	return max(shortest/8, time.Millisecond)
}

func (b *Broker) keepAlive() time.Duration    { return cmp.Or(b.KeepAlive, defaultKeepAlive) }
func (b *Broker) writeTimeout() time.Duration { return cmp.Or(b.WriteTimeout, defaultWriteTimeout) }

func (b *Broker) sweep() {
	keepAlive, writeTimeout, period := b.keepAlive(), b.writeTimeout(), b.sweepPeriod()
	mayTake := uint64((writeTimeout + period - 1) / period) // rounds of a write
	b.lock()
	defer b.unlock()
	round := b.round.Add(1)
	b.walkLocked(&b.subs, true, func(s *subscriber) bool {
		began := s.began.Load()
		switch {
		case s.end == nil && s.expires > 0 && round >= s.expires && s.cancel == nil:
			b.endLocked(s, errTooOld)
		case began > 0 && (s.isCut || writeTimeout > 0 && round >= began+mayTake):
			// It may have been cut off and go on: over TLS, crypto/tls tries for five
			// seconds more to send its close_notify.
			b.cutOffLocked(s, errWriteTimeout)
		case s.waiting:
			silent := round - s.got
			s.idle = s.client && keepAlive > 0 && silent >= uint64(keepAlive/period)
			if s.done != nil {
				s.conn.suspect = s.idle // a worker then looks whether it has left
			}
			// A detached client is also woken to look whether its system answers. It takes
			// Linux some 600 ms to send twice again what was not confirmed.
			if s.idle || s.done != nil && silent == uint64(max(writeTimeout, time.Second, period)/period) {
				b.wakeLocked(s)
			}
		}
		return true
	})
	if len(b.subs) > 0 {
		b.sweeper.Reset(period)
	}
}

var errTooOld = errors.New("sse: stream has reached MaxAge")

var errWriteTimeout = fmt.Errorf("%w: a write took longer than WriteTimeout", ErrTooSlow)

// ----- In-process -----

// Subscribe returns an iterator over the events of the topics, for code in the
// process. A loop receives what a client with this lastEventID would, including the
// event "gap" and what CatchUp yields. The subscription begins and ends with the
// loop; to begin at an earlier moment, pass what LastEventID returned at that
// moment. The iterator may be used more than once, also concurrently; each loop
// begins after lastEventID.
//
// Iteration blocks until there is an event. Publish does not wait for a slow loop,
// which catches up from the history, or has a gap if events it missed were evicted.
// The loop ends with an error and a zero Event: the cause of ctx's end, [ErrClosed]
// after Shutdown, [ErrEnded] after the end of all topics, [ErrDisconnected], or
// CatchUp's error.
func (b *Broker) Subscribe(ctx context.Context, lastEventID string, topics ...string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if lastEventID == endID {
			yield(Event{}, ErrEnded)
			return
		}
		s := &subscriber{signal: make(chan struct{}, 1), echo: true}
		if err := b.join(s, lastEventID, topics); err != nil {
			yield(Event{}, err)
			return
		}
		defer b.leave(s, nil)
		stopped := false
		err := s.deliver(ctx, nil, again, func(batch []*frame) error {
			for _, f := range batch {
				if err := context.Cause(ctx); err != nil || s.over.Load() {
					return cmp.Or(err, errLoopLeft) // unless s has ended for another reason
				}
				if !f.mark && !yield(parseEvent(f.id, f.body), nil) {
					stopped = true
					return errLoopLeft
				}
			}
			return nil
		})
		if cause := context.Cause(ctx); errors.Is(err, cause) {
			err = cause
		}
		if !stopped {
			yield(Event{}, err)
		}
	}
}

// ----- Shutdown and Stats -----

// Shutdown ends all streams and refuses new ones. Each client first receives the
// pending events and a reconnection time; see Retry. Each call of Shutdown blocks
// until the last subscriber has left. If ctx is done before that,
// Shutdown disconnects the remaining ones and returns the cause of ctx's end. It
// must not be called from a loop over Subscribe, from CatchUp, or from a function
// given to Detach, because it waits for them.
//
// [http.Server.Shutdown] waits for handlers, not detached clients; call it second:
//
//	broker.Shutdown(ctx)
//	srv.Shutdown(ctx)
//
// If the server's BaseContext is done before Shutdown is called, for example at
// SIGINT, the streams of Serve end with it, and Shutdown can send them nothing.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.lock()
	if !b.closed {
		b.closed = true
		b.gone = make(chan struct{})
		if len(b.subs) == 0 {
			close(b.gone)
		}
		b.walkLocked(&b.subs, true, func(s *subscriber) bool {
			if s.waiting {
				b.wakeLocked(s)
			}
			return true
		})
	}
	b.unlock()
	select {
	case <-b.gone:
		return nil
	case <-ctx.Done():
	}
	b.lock()
	defer b.unlock()
	if len(b.subs) == 0 { // the last one went at that moment
		return nil
	}
	for _, m := range b.subs {
		b.cutOffLocked(m.sub, errCut)
	}
	return context.Cause(ctx)
}

var errCut = fmt.Errorf("%w, client cut off before it had all its events", ErrClosed)

// Stats holds statistics about a Broker. Clients, Subscribers, Topics and Keys are
// current values; the others are totals since first use.
type Stats struct {
	// Clients is the number of clients, Subscribers that of loops over Subscribe only.
	Clients, Subscribers int

	// Topics is the number of topics with a subscriber, an event in memory or a key.
	Topics int

	// Keys is the number of values kept, one for each key and topic.
	Keys int

	// Published is the number of events published.
	Published int64

	// Delivered is the number of events taken from the history or CatchUp for clients
	// and loops, counted for each of them, even if a client or loop ends before it has
	// them all.
	Delivered int64

	// Replayed is the part of Delivered that was published before the subscriber came.
	Replayed int64

	// TooSlow is the number of clients disconnected with ErrTooSlow.
	TooSlow int64

	// TurnedAway is the number of clients refused with ErrFull.
	TurnedAway int64

	// Gaps is the number of times a subscriber's position was not in the history. If
	// it grows without a restart or Reset, the history is too small.
	Gaps int64
}

// Stats returns the current statistics, in constant time.
func (b *Broker) Stats() Stats {
	b.lock()
	defer b.unlock()
	s := b.stats
	s.Clients, s.Subscribers, s.Topics = b.clients, len(b.subs)-b.clients, len(b.topics)
	return s
}

func (b *Broker) logger() *slog.Logger { return cmp.Or(b.Logger, slog.Default()) }

// warn logs msg, but no more than once a minute: what goes wrong with one client
// often does with all of them.
func (b *Broker) warn(msg string, args ...any) {
	b.lock()
	due := time.Since(b.warned[msg]) >= time.Minute
	if due {
		b.warned[msg] = time.Now()
	}
	b.unlock()
	if due {
		b.logger().Warn(msg, args...)
	}
}

// debug logs what became of the client that sent r.
func (b *Broker) debug(r *http.Request, msg string, args ...any) {
	if l := b.logger(); l.Enabled(r.Context(), slog.LevelDebug) {
		l.DebugContext(r.Context(), msg, append(args, "remote", r.RemoteAddr, "url", r.URL.Path)...)
	}
}
