package sse

import (
	"cmp"
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

const (
	defaultHistory      = 10_000
	defaultHistoryBytes = 16 << 20
	defaultRetry        = 3 * time.Second

	// minQueue is how many frames the ring keeps for clients that are behind,
	// however little History asks for: a burst is not to look like a gap.
	minQueue = 256

	// A client that is behind gets no more than this at a time: events,
	// their bytes, and entries looked at under the broker's lock.
	pullEvents  = 256
	pullBytes   = pieceBytes
	pullEntries = 1024
)

// A Broker sends each event published to it to every client of the event's
// topics, and keeps the latest ones for clients that were cut off. Its zero
// value is ready for use. It is an [http.Handler] that serves the default
// topic; [Broker.Serve] serves any others. All methods may be called by several
// goroutines at once.
//
// The fields are set before the first call of a method and not changed after.
type Broker struct {
	// History is the number of events kept for clients that reconnect, of all
	// topics together. 0 is 10,000. Negative keeps none: no ID is assigned, and
	// a client that reconnects gets what is published from then on.
	History int

	// HistoryAge is how long an event is kept for clients that reconnect.
	// 0 or negative is no limit.
	HistoryAge time.Duration

	// HistoryBytes bounds the encoded size of the events kept, in bytes. The
	// newest event is kept whatever its size. 0 is 16 MiB; negative is no limit.
	HistoryBytes int

	// MaxClients bounds the clients served at one time. One more gets status
	// 200, a reconnection time and the end of the stream, because a browser
	// gives up for good on any other status. 0 or negative is no limit.
	MaxClients int

	// KeepAlive is the time without an event after which a client is sent a
	// comment, and its ID again if there were events of other topics meanwhile.
	// 0 is 15 seconds; negative sends none, and then a client that left is
	// noticed only by the next event if it was detached.
	KeepAlive time.Duration

	// WriteTimeout bounds each write to a client, of 64 KiB at most; one that takes
	// longer is cut off, and catches up when it reconnects. 0 is 10 seconds;
	// negative is no limit.
	WriteTimeout time.Duration

	// Retry is the reconnection time told to each client as it connects, in
	// whole milliseconds. 0 is 3 seconds; negative tells none. Clients that the
	// Broker sends away are told a random time between Retry and twice that, so
	// that they do not return all at once.
	Retry time.Duration

	// CatchUp, if set, yields what the history cannot give a client that
	// connects: older events from a database, say,
	// or a snapshot of the current state. It is asked for a client whose last
	// event is not in the history, or that has seen none (""). Its events bypass
	// the history. An error it yields ends the client's stream, and the client
	// will come back.
	//
	// Where the client goes on after that depends on the ID of the last event
	// yielded, or on the client's own if there was none:
	//
	//   - It is in the history: with the event right after it. So a CatchUp that
	//     reads the log that the Broker is fed from reads up to what
	//     Missed.UpTo says: less would leave a hole, and what is beyond
	//     would come twice.
	//   - It is not: with what was published since CatchUp was called. If the
	//     history does not reach back so far any more, CatchUp is asked again,
	//     for what comes after the last event it yielded, or if it yielded none
	//     after the newest one when it was called.
	//
	// A snapshot that bears the broker's LastEventID as its ID, both taken while
	// the program's own lock keeps others from publishing, is followed by exactly
	// what was published after it.
	//
	// It runs in a goroutine of the client's own and may block. Meanwhile the
	// client gets no keep-alives, and the events up to 256 at a time. ctx ends when
	// the client leaves, for a detached one when it cannot be written to. Nil sends a
	// client whose last event is not in the history an event of type "gap", whose
	// data is the ID of that last event, and then all that the history holds.
	CatchUp func(ctx context.Context, missed Missed) iter.Seq2[Event, error]

	// Logger gets a record at level Debug for each client that comes or goes, at
	// Warn for what an operator should know, and at Error for a panic in CatchUp or
	// a function given to Detach. Nil is [slog.Default].
	Logger *slog.Logger

	published, delivered, replayed, behind, gaps atomic.Int64 // see Stats
	waiting                                      atomic.Int32 // calls of lock that wait for mu

	// mu guards the fields below, the entries of the ring, all topics, and
	// those fields of subscribers that say so. It is never held while
	// something is written to a client or code of the program runs.
	mu      sync.Mutex
	ring    ring
	fan     uint64            // the first entry that was not handed to its live subscribers yet
	fanning bool              // fanOut runs
	prefix  string            // of assigned IDs; "" until the first use
	ids     map[string]uint64 // where events with an ID of their own are in the ring
	topics  map[string]*topic // those with a subscriber or an event in the ring
	subs    map[*subscriber]struct{}
	clients int // subscribers that count against MaxClients

	// For detached clients.
	queue      list // those that are owed something
	workers    int  // goroutines that empty it
	maxWorkers int
	resting    list        // those that are live, the longest first
	checked    list        // the same, after it was looked whether they answered what they got last
	sweeper    *time.Timer // runs sweep when the first in one of these is due
	sweepAt    time.Time   // when that is; zero: it will not run

	warned    map[string]time.Time // when each warning was logged last
	closed    bool                 // Shutdown was called
	gone      chan struct{}        // closed when the last subscriber has left after that
	impatient bool                 // Shutdown waits for nobody any longer
}

// Missed says what a call of [Broker.CatchUp] is to yield.
type Missed struct {
	LastEventID string   // of the last event that the client has seen; "" if it has seen none
	UpTo        string   // ID of the newest event as CatchUp was called: what is after it comes from the Broker
	Topics      []string // of the client
}

// An entry is an event in its place in the order. It is not changed after it
// was made.
type entry struct {
	seq    uint64 // 0: not from the ring
	id     string
	body   string // the encoded event without its ID
	topics []*topic
	at     time.Time
	mark   bool // no event: a comment, a reconnection time, or an ID alone
}

func (e *entry) size() int { return len(e.id) + len(e.body) }

// encode returns the entries as they are written to a stream.
func encode(batch []*entry) (p []byte) {
	for _, e := range batch {
		p = append(appendID(p, e.id), e.body...)
	}
	return p
}

// pieces encodes the entries, leaves out the first skip bytes, and hands the rest
// to emit until that returns an error. However large an event is, no more than a
// piece of it is copied at a time.
func pieces(batch []*entry, skip int, emit func(piece []byte) error) error {
	buf := scratch.Get().(*[]byte)
	p := (*buf)[:0]
	defer func() { putScratch(buf, p) }()
	flush := func() (err error) {
		if skip < len(p) {
			err = emit(p[skip:])
		}
		skip = max(0, skip-len(p))
		p = p[:0]
		return err
	}
	for _, e := range batch {
		p = appendID(p, e.id)
		for rest := e.body; rest != ""; {
			if len(p) >= pieceBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			n := min(len(rest), pieceBytes-len(p))
			p, rest = append(p, rest[:n]...), rest[n:]
		}
	}
	return flush()
}

// A ring holds the newest entries, from sequence number tail up to head, in
// the order they were published.
type ring struct {
	slots      []*entry // a power of two; the entry numbered seq is at seq modulo that
	tail, head uint64   // the oldest entry's number; that of the newest, or tail-1
	bytes      int      // size of all entries
	evicted    string   // ID of the entry before tail
}

func (r *ring) len() int { return int(r.head + 1 - r.tail) }

// at returns the entry numbered seq, which must be in the ring.
func (r *ring) at(seq uint64) *entry { return r.slots[seq&uint64(len(r.slots)-1)] }

func (r *ring) push(e *entry) {
	if r.len() == len(r.slots) {
		grown := make([]*entry, max(16, 2*len(r.slots)))
		for seq := r.tail; seq <= r.head; seq++ {
			grown[seq&uint64(len(grown)-1)] = r.at(seq)
		}
		r.slots = grown
	}
	r.head = e.seq
	r.slots[e.seq&uint64(len(r.slots)-1)] = e
	r.bytes += e.size()
}

// pop removes the oldest entry and returns it.
func (r *ring) pop() *entry {
	e := r.at(r.tail)
	r.slots[r.tail&uint64(len(r.slots)-1)] = nil
	r.tail++
	r.bytes -= e.size()
	r.evicted = e.id
	return e
}

// A topic exists as long as it has a subscriber or an entry in the ring.
type topic struct {
	name string
	refs int      // subscribers and entries
	self []*topic // the topic alone, for entries that have no other
	live []place  // its live subscribers
}

// A place is where a live subscriber stands in a topic: in live of the nth of
// the subscriber's topics.
type place struct {
	sub *subscriber
	nth int
}

// remove takes away the subscriber at index i of live.
func (t *topic) remove(i int) {
	last := len(t.live) - 1
	moved := t.live[last]
	moved.sub.index[moved.nth] = i
	t.live[i], t.live[last] = moved, place{}
	t.live = t.live[:last]
}

// A subscriber is one client, or one loop over Subscribe. It is live, and then
// Publish hands it each entry through ch; or it is behind, and then it pulls
// entries from the ring, beginning at cursor.
type subscriber struct {
	topics []*topic
	wanted map[*topic]bool // topics again, if they are many
	client bool            // counts against MaxClients

	// An ID from the query that the history does not know is not repeated in the
	// stream: any site can link to it.
	byQuery bool
	foreign string // that ID

	// ch is short, because the ring is the queue: while it is full and the
	// subscriber behind, a burst gathers in the ring and leaves in one flush.
	ch     chan *entry // a nil entry only wakes the receiver
	behind atomic.Bool // changed with mu held; read without it, so that a live subscriber needs no lock

	// Used by the subscriber's own goroutine alone.
	lastID   string // ID of the last event it got, or what it came with
	lastSeq  uint64 // the subscriber knows an ID at which this entry has passed
	replayTo uint64 // entries up to this one are replayed ones
	lost     bool   // what comes after lastID is not in the ring

	// Guarded by the broker's mu.
	cursor  uint64             // behind: the first entry it has not pulled
	since   uint64             // lost: the first entry published after that was found
	sinceID string             // lost: ID of the place right before that
	seen    uint64             // live: it was handed all that is for it up to this entry
	index   []int              // live: where it stands in each of its topics
	cancel  context.CancelFunc // ends a call of CatchUp

	cutting sync.Mutex // held during a call of cut, which must not come after the end
	cut     func()     // ends a write

	detached *detached // nil unless Detach took its connection over
}

func (s *subscriber) wants(e *entry) bool {
	for _, t := range e.topics {
		if s.wanted[t] || s.wanted == nil && slices.Contains(s.topics, t) {
			return true
		}
	}
	return false
}

// wake makes the subscriber's goroutine look at what there is to do. If ch is
// full it is about to do so anyway. Without a ch it is a worker's turn.
func (s *subscriber) wake() {
	select {
	case s.ch <- nil:
	default:
	}
}

// initLocked prepares the zero Broker. The caller holds mu.
func (b *Broker) initLocked() {
	if b.prefix != "" {
		return
	}
	// 40 random bits tell the IDs of two runs of a program apart.
	b.prefix = strings.ToLower(rand.Text()[:8]) + "-"
	b.ring.tail, b.fan = 1, 1
	b.ids = map[string]uint64{}
	b.topics = map[string]*topic{}
	b.subs = map[*subscriber]struct{}{}
	b.warned = map[string]time.Time{}
	b.maxWorkers = runtime.GOMAXPROCS(0)
}

// Publish sends ev to every subscriber of the topics, once, and keeps it in the
// history. No topic is the default topic, whose name is "". Publish waits for
// no client: one that falls behind catches up from the history. It takes the same
// short time however many subscribers a topic has.
//
// Publish returns the event's ID, which is assigned if ev has none, and "" if the
// Broker keeps no history and ev has none. An ID that is in the history already is
// refused with [ErrDuplicateID], which makes it harmless to publish an event again;
// the ID is returned then too. After Shutdown the error is [ErrClosed], and for an event that cannot
// be sent that of [Event.AppendText]. After an error nobody was sent anything.
func (b *Broker) Publish(ev Event, topics ...string) (id string, err error) {
	if err := ev.check(); err != nil {
		return "", err
	}
	e := newEntry(ev)
	topics = distinct(topics)
	b.lock()
	defer b.mu.Unlock()
	if b.closed {
		return "", ErrClosed
	}
	b.initLocked()
	e.seq = b.ring.head + 1
	if err := b.identifyLocked(e); err != nil {
		return e.id, err
	}
	if e.id != "" && ev.isRetry() {
		e.body += "\n"
	}
	e.topics = b.holdLocked(topics)
	e.at = time.Now()
	b.ring.push(e)
	b.evictLocked()
	b.published.Add(1)
	b.fanOutLocked(e)
	return e.id, nil
}

// fewLive is how many subscribers Publish itself hands an event to.
const fewLive = 16

// fanOutLocked has e, the newest entry, handed to its subscribers. If they are
// many another goroutine does it: Publish returns at once, and a burst is in the
// ring as a whole before most of them are woken for it.
func (b *Broker) fanOutLocked(e *entry) {
	if b.fanning {
		return
	}
	live := 0
	for _, t := range e.topics {
		live += len(t.live)
	}
	if live <= fewLive {
		b.fanOutAllLocked()
		return
	}
	b.fanning = true
	go b.fanOut()
}

// fanOut hands out entries until there are no more.
func (b *Broker) fanOut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fanOutUpToLocked(math.MaxUint64, true)
	b.fanning = false
}

// fanOutAllLocked hands out what was published, so that each live subscriber has
// all that is its due, or is behind.
func (b *Broker) fanOutAllLocked() { b.fanOutUpToLocked(b.ring.head, false) }

// fanOutUpToLocked hands out entries in their order, up to the one numbered last.
// If it may yield it releases mu for those that wait in lock, and has subscribers
// that are to get several entries pull them.
func (b *Broker) fanOutUpToLocked(last uint64, yield bool) {
	for b.fan <= min(last, b.ring.head) {
		e := b.ring.at(b.fan)
		for _, t := range e.topics {
			// Backwards, because a subscriber that is left behind is removed and
			// the last one takes its place.
			for i := len(t.live) - 1; i >= 0; i = min(i, len(t.live)) - 1 {
				b.handLocked(e, t.live[i].sub, yield && e.seq < b.ring.head)
				if yield && b.waiting.Load() > 0 {
					b.mu.Unlock()
					runtime.Gosched()
					b.mu.Lock()
				}
			}
		}
		b.fan = max(b.fan, e.seq+1) // another call may have come further
	}
}

// scratch holds buffers of up to about pieceBytes.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// newEntry returns an entry for ev, which was checked.
func newEntry(ev Event) *entry {
	buf := scratch.Get().(*[]byte)
	b := ev.appendBody((*buf)[:0])
	e := &entry{id: ev.ID, body: string(b)}
	putScratch(buf, b)
	return e
}

func putScratch(buf *[]byte, b []byte) {
	if cap(b) <= 2*pieceBytes {
		*buf = b
		scratch.Put(buf)
	}
}

// identifyLocked assigns an ID to an entry that has none, and makes sure that
// no other entry has the same.
func (b *Broker) identifyLocked(e *entry) error {
	if b.History < 0 {
		return nil
	}
	if e.id == "" {
		e.id = b.assignedID(e.seq)
		return nil
	}
	_, known := b.ids[e.id]
	if known || strings.HasPrefix(e.id, b.prefix) {
		return fmt.Errorf("%w %s", ErrDuplicateID, quote(e.id))
	}
	b.ids[e.id] = e.seq
	return nil
}

// assignedID returns the ID of an entry that was published without one. It
// also stands for the place right after any other entry.
func (b *Broker) assignedID(seq uint64) string {
	return string(strconv.AppendUint([]byte(b.prefix), seq, 36))
}

// handLocked hands e to s, or leaves s behind if it is to pull or ch is full.
func (b *Broker) handLocked(e *entry, s *subscriber, pull bool) {
	if e.seq <= s.seen { // it listens to another of e's topics, or went live after e
		return
	}
	s.seen = e.seq
	if !pull {
		select {
		case s.ch <- e:
			return
		default: // always for a detached client, which has no channel
		}
	}
	b.leaveBehindLocked(s, e.seq)
	if s.detached == nil {
		b.behind.Add(1)
	}
}

// leaveBehindLocked makes s, which is live, pull what comes from cursor on.
func (b *Broker) leaveBehindLocked(s *subscriber, cursor uint64) {
	b.unliveLocked(s)
	s.cursor = cursor
	if s.detached != nil {
		b.queueLocked(s)
		return
	}
	// The subscriber may have emptied ch since it was found full, and would
	// then sleep on.
	s.wake()
}

// unliveLocked has Publish leave out s, which is live.
func (b *Broker) unliveLocked(s *subscriber) {
	for nth, t := range s.topics {
		t.remove(s.index[nth])
	}
	s.behind.Store(true)
	if s.detached != nil {
		b.restingListLocked(s).remove(s)
	}
}

// goLiveLocked makes s, which has pulled all there is, live.
func (b *Broker) goLiveLocked(s *subscriber) {
	for nth, t := range s.topics {
		s.index[nth] = len(t.live)
		t.live = append(t.live, place{s, nth})
	}
	s.behind.Store(false)
	s.seen = b.ring.head
	if s.detached != nil {
		b.restLocked(s)
	}
}

var defaultTopic = []string{""}

// distinct returns each of the names once; no name is the default topic's.
func distinct(names []string) []string {
	switch len(names) {
	case 0:
		return defaultTopic
	case 1:
		return names
	}
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

// holdLocked returns the topics of these distinct names, each with one more
// reference.
func (b *Broker) holdLocked(names []string) []*topic {
	if len(names) == 1 {
		return b.holdOneLocked(names[0]).self
	}
	topics := make([]*topic, len(names))
	for i, name := range names {
		topics[i] = b.holdOneLocked(name)
	}
	return topics
}

func (b *Broker) holdOneLocked(name string) *topic {
	t := b.topics[name]
	if t == nil {
		t = &topic{name: name}
		t.self = []*topic{t}
		b.topics[name] = t
	}
	t.refs++
	return t
}

// releaseLocked gives the references back.
func (b *Broker) releaseLocked(topics []*topic) {
	for _, t := range topics {
		if t.refs--; t.refs == 0 {
			delete(b.topics, t.name)
		}
	}
}

// evictLocked removes the entries that the ring need not hold any longer.
func (b *Broker) evictLocked() {
	most := max(cmp.Or(b.History, defaultHistory), minQueue)
	mostBytes := cmp.Or(b.HistoryBytes, defaultHistoryBytes)
	for b.ring.len() > 1 {
		tooMany := b.ring.len() > most
		tooLarge := mostBytes > 0 && b.ring.bytes > mostBytes
		tooOld := b.ring.len() > minQueue && b.expired(b.ring.at(b.ring.tail))
		if !tooMany && !tooLarge && !tooOld {
			return
		}
		// The ID of the last evicted entry stays known: a client that has it
		// has missed nothing yet.
		b.fanOutUpToLocked(b.ring.tail, false) // or nobody would hear of it
		delete(b.ids, b.ring.evicted)
		b.releaseLocked(b.ring.pop().topics)
	}
}

func (b *Broker) expired(e *entry) bool {
	return b.HistoryAge > 0 && time.Since(e.at) > b.HistoryAge
}

// Reset drops the history and begins a new one. It is for a Broker that is fed
// from a log elsewhere, when events are missing between what it has and what
// it will be fed. Every client, those connected now included, is told of a gap
// as one is whose last event has left the history: CatchUp is asked, or it gets
// the gap event and then what is published from now on.
//
// lastEventID is the ID of the event in that log right before the new history:
// a client that has seen it has missed nothing. "" leaves that to the Broker.
// IDs from before are forgotten and may be published again.
//
// Reset waits for no client and takes time in proportion to their number. It
// returns [ErrClosed] after Shutdown, [ErrDuplicateID] for an ID that the
// Broker assigned, and for one that cannot be sent the error of
// [Event.AppendText]; then it has done nothing.
func (b *Broker) Reset(lastEventID string) error {
	if err := (Event{ID: lastEventID}).check(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	b.initLocked()
	if strings.HasPrefix(lastEventID, b.prefix) {
		return fmt.Errorf("%w %s", ErrDuplicateID, quote(lastEventID))
	}
	b.fanOutAllLocked()
	for b.ring.len() > 0 {
		b.releaseLocked(b.ring.pop().topics)
	}
	clear(b.ids)
	// One number is left out, so that the place of a client that has had
	// everything so far is out of the ring as well.
	b.ring.head++
	b.ring.tail = b.ring.head + 1
	b.fan = b.ring.tail
	b.ring.evicted = lastEventID
	if lastEventID != "" && b.History >= 0 {
		b.ids[lastEventID] = b.ring.head
	}
	for s := range b.subs {
		if !s.behind.Load() {
			b.leaveBehindLocked(s, b.ring.head)
		}
	}
	return nil
}

// historyLocked returns the first entry that a client that reconnects may get.
func (b *Broker) historyLocked() uint64 {
	if b.History < 0 {
		return b.ring.head + 1
	}
	n := min(b.ring.len(), cmp.Or(b.History, defaultHistory))
	first := b.ring.head + 1 - uint64(n)
	return first + uint64(sort.Search(n, func(i int) bool {
		return !b.expired(b.ring.at(first + uint64(i)))
	}))
}

// findLocked returns the number of the entry with this ID, or of the one that
// it stands right behind.
func (b *Broker) findLocked(id string) (seq uint64, ok bool) {
	if seq, ok = b.ids[id]; ok {
		return seq, true
	}
	digits, ok := strings.CutPrefix(id, b.prefix)
	if !ok || b.History < 0 {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 36, 64)
	return seq, err == nil && seq <= b.ring.head && b.assignedID(seq) == id
}

// idLocked returns an ID for the place right after the entry numbered seq: its
// own, if that is still known.
func (b *Broker) idLocked(seq uint64) string {
	switch {
	case b.History < 0:
		return ""
	case seq >= b.ring.tail && seq <= b.ring.head:
		return b.ring.at(seq).id
	case seq+1 == b.ring.tail && b.ring.evicted != "":
		return b.ring.evicted
	}
	return b.assignedID(seq)
}

// LastEventID returns the ID of the newest event, or one that stands for the
// beginning if there is none yet. A stream that is opened with it, by a page
// that was rendered with it say, has exactly the events published after this
// call. It is "" if the Broker keeps no history.
func (b *Broker) LastEventID() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.initLocked()
	return b.idLocked(b.ring.head)
}

// join adds s, which begins behind, with its first entry to pull after lastID.
func (b *Broker) join(s *subscriber, lastID string, names []string) error {
	names = distinct(names)
	// A copy, or the rest of a long header would be kept too.
	lastID = strings.ToValidUTF8(strings.Clone(lastID[:min(len(lastID), maxIDBytes)]), "\ufffd")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.initLocked()
	seq, known := b.findLocked(lastID)
	if s.byQuery && !known {
		s.foreign = lastID
	}
	switch {
	case b.closed:
		return ErrClosed
	case s.client && b.MaxClients > 0 && b.clients >= b.MaxClients:
		return ErrFull
	}
	if s.client {
		b.clients++
	}
	b.subs[s] = struct{}{}
	s.topics = b.holdLocked(names)
	s.index = make([]int, len(s.topics))
	if len(s.topics) > 8 {
		s.wanted = make(map[*topic]bool, len(s.topics))
		for _, t := range s.topics {
			s.wanted[t] = true
		}
	}
	s.behind.Store(true)
	s.lastID, s.lastSeq, s.replayTo = lastID, b.ring.head, b.ring.head
	s.cursor, s.since, s.sinceID = b.ring.head+1, b.ring.head+1, b.idLocked(b.ring.head)
	first := b.historyLocked()
	switch {
	case lastID == "" && b.CatchUp == nil:
		s.lastID = b.idLocked(b.ring.head)
	case lastID == "":
		s.lost = true
	case known && seq+1 >= first:
		s.cursor, s.lastSeq = seq+1, seq
	case b.History >= 0 || b.CatchUp != nil:
		s.lost, s.cursor = true, first
		b.gaps.Add(1)
	}
	return nil
}

// repeated returns id, or "" if it is not to be repeated to s.
func (s *subscriber) repeated(id string) string {
	if id == s.foreign {
		return ""
	}
	return id
}

// leave removes s.
func (b *Broker) leave(s *subscriber) {
	s.setCut(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.behind.Load() {
		b.unliveLocked(s)
	}
	if s.client {
		b.clients--
	}
	b.releaseLocked(s.topics)
	delete(b.subs, s)
	if b.closed && len(b.subs) == 0 {
		if b.sweeper != nil {
			b.sweeper.Stop()
		}
		close(b.gone)
	}
}

// run gives s what it is owed, through send, until the stream ends, and returns
// why. It calls send with no entries when s was woken for another reason.
func (b *Broker) run(ctx context.Context, s *subscriber, send func([]*entry) error) error {
	defer context.AfterFunc(ctx, s.wake)()
	for ctx.Err() == nil {
		if s.lost {
			if err := b.bridge(ctx, s, send); err != nil {
				return err
			}
		}
		var first *entry
		if !s.behind.Load() {
			first = <-s.ch
		}
		if err := b.step(s, first, send); err != nil {
			return err
		}
	}
	return leftError(ctx)
}

// batches holds slices of up to about pullEvents entries, so that a subscriber
// has one only while it is given something.
var batches = sync.Pool{New: func() any { return new([]*entry) }}

// step gives s the entry it received, if any, and if it is behind what it can
// pull, all in one call of send. It returns ErrClosed when that was the last.
func (b *Broker) step(s *subscriber, first *entry, send func([]*entry) error) error {
	buf := batches.Get().(*[]*entry)
	batch := (*buf)[:0]
	if first != nil {
		batch = append(batch, first)
	}
	var end error
	if s.behind.Load() {
		batch, end = b.pull(s, batch)
	}
	if err := b.give(s, batch, send); err != nil {
		end = err
	}
	clear(batch)
	*buf = batch[:0]
	batches.Put(buf)
	return end
}

// lock locks mu, for which fanOut steps back.
func (b *Broker) lock() {
	b.waiting.Add(1)
	b.mu.Lock()
	b.waiting.Add(-1)
}

// pull appends to batch what waits in s.ch and then what s, which is behind, can
// take from the ring, and makes s live if that is all. It returns ErrClosed if
// that is all there will ever be.
func (b *Broker) pull(s *subscriber, batch []*entry) ([]*entry, error) {
	b.lock()
	defer b.mu.Unlock()
	// What is in ch was published before what is at cursor.
	select {
	case e := <-s.ch:
		if e != nil {
			batch = append(batch, e)
		}
	default:
	}
	batch, all := b.pullLocked(s, batch)
	switch {
	case !all:
		return batch, nil
	case b.closed:
		return batch, ErrClosed
	}
	b.goLiveLocked(s)
	return batch, nil
}

// pullLocked appends to batch what s can take from the ring, and tells whether
// that is all there is.
func (b *Broker) pullLocked(s *subscriber, batch []*entry) (_ []*entry, all bool) {
	if s.cursor < b.ring.tail {
		s.lost, s.cursor, s.since, s.sinceID = true, b.ring.tail, b.ring.head+1, b.idLocked(b.ring.head)
		b.gaps.Add(1)
	}
	if s.lost {
		return batch, false
	}
	bytes := 0
	for range pullEntries {
		if s.cursor > b.ring.head {
			return batch, true
		}
		if len(batch) >= pullEvents || bytes >= pullBytes {
			return batch, false
		}
		e := b.ring.at(s.cursor)
		s.cursor++
		if s.wants(e) {
			batch = append(batch, e)
			bytes += e.size()
		}
	}
	return batch, false
}

// give sends the batch and takes note of it.
func (b *Broker) give(s *subscriber, batch []*entry, send func([]*entry) error) error {
	if err := send(batch); err != nil {
		return err
	}
	b.note(s, batch)
	return nil
}

// note takes note of what s has got.
func (b *Broker) note(s *subscriber, batch []*entry) {
	events, replayed := 0, 0
	for _, e := range batch {
		if e.id != "" {
			s.lastID, s.foreign = e.id, ""
		}
		if !e.mark {
			events++
		}
		if e.seq > 0 && e.seq <= s.replayTo {
			replayed++
		}
		s.lastSeq = max(s.lastSeq, e.seq)
	}
	if events > 0 {
		b.delivered.Add(int64(events))
	}
	if replayed > 0 {
		b.replayed.Add(int64(replayed))
	}
}

// bridge gives s, whose place is not in the history, what CatchUp yields, or
// else the gap event, and has it go on from there.
func (b *Broker) bridge(ctx context.Context, s *subscriber, send func([]*entry) error) error {
	s.lost = false
	if b.CatchUp == nil {
		b.mu.Lock()
		s.lastSeq = s.cursor - 1
		id := b.idLocked(s.lastSeq)
		b.mu.Unlock()
		gap := newEntry(Event{Type: "gap", Data: s.repeated(s.lastID)})
		gap.id = id
		return b.give(s, []*entry{gap}, send)
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	b.mu.Lock()
	s.cancel = cancel
	if b.impatient {
		cancel()
	}
	b.mu.Unlock()

	var batch []*entry
	asked := s.lastID
	bytes, last := 0, asked
	for ev, err := range b.CatchUp(asking, Missed{LastEventID: asked, UpTo: s.sinceID, Topics: names(s.topics)}) {
		if err == nil {
			err = ev.check()
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return leftError(ctx)
		case asking.Err() != nil:
			return errCut
		default:
			b.warn("sse: CatchUp failed", "error", err)
			return fmt.Errorf("sse: CatchUp: %w", err)
		}
		e := newEntry(ev)
		batch, bytes, last = append(batch, e), bytes+e.size(), ev.ID
		if len(batch) >= pullEvents || bytes >= pullBytes {
			if err := b.give(s, batch, send); err != nil {
				return err
			}
			batch, bytes = batch[:0], 0
		}
	}
	b.mu.Lock()
	s.cursor = s.since
	if seq, ok := b.findLocked(last); ok && seq+1 >= b.ring.tail {
		s.cursor = seq + 1
	} else if s.since >= b.ring.tail || last == asked && last != "" {
		// A client that is cut off after this has all of CatchUp's events.
		batch = append(batch, b.placeMark(s.sinceID)...)
	} // else pull finds it lost, and CatchUp is asked for what comes after last
	s.lastSeq = s.cursor - 1
	s.cancel = nil
	b.mu.Unlock()
	return b.give(s, batch, send)
}

func names(topics []*topic) []string {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.name
	}
	return names
}

// Serve answers r with the stream of these topics, and blocks until it ends.
// No topic is the default topic. The client first gets what it missed since its
// [LastEventID]; a client without one begins with the next event published.
// What runs before and after the call is the place to authorise, count and log.
//
// Serve returns why the stream ended: an error that wraps [ErrClientLeft],
// [ErrTooSlow], [ErrClosed] after Shutdown, [ErrFull] if there were MaxClients
// clients already, an error of CatchUp, or [http.ErrNotSupported] where
// [NewWriter] finds that w cannot be flushed. It returns nil only for HEAD, whose
// answer is the headers alone. The stream ends early when the request's context
// does; the program may give r one of its own, to revoke a client's access say.
func (b *Broker) Serve(w http.ResponseWriter, r *http.Request, topics ...string) error {
	if r.Method == http.MethodHead {
		_, err := NewWriter(w, r)
		return err
	}
	s, err := b.admit(w, r, topics)
	if err != nil {
		return err
	}
	defer func() {
		b.leave(s)
		b.debug(r, "sse: client gone", "reason", err)
	}()
	b.came(r, s)
	err = b.stream(w, r, s)
	return err
}

// admit makes the client a subscriber, or turns it away.
func (b *Broker) admit(w http.ResponseWriter, r *http.Request, topics []string) (*subscriber, error) {
	s, lastID := &subscriber{client: true, byQuery: r.Header.Get("Last-Event-ID") == ""}, LastEventID(r)
	err := b.join(s, lastID, topics)
	if err == nil {
		return s, nil
	}
	b.debug(r, "sse: client turned away", "reason", err)
	if errors.Is(err, ErrFull) {
		b.warn("sse: clients are turned away", "MaxClients", b.MaxClients)
	}
	// A browser gives up for good on an answer that is no stream.
	out := newWriter(w, r, b.WriteTimeout)
	out.endless = true
	out.open(r, encode(b.farewell(s.repeated(lastID))))
	return nil, err
}

// ServeHTTP serves the default topic, as [Broker.Serve] does, to GET and HEAD.
// Any other method is answered with status 405.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	b.Serve(w, r)
}

// stream is Serve for s, which was admitted. All it writes is written by this
// goroutine, keep-alives included.
func (b *Broker) stream(w http.ResponseWriter, r *http.Request, s *subscriber) error {
	out := newWriter(w, r, b.WriteTimeout)
	out.endless = true // see endsWithConnection
	s.ch = make(chan *entry, 1)
	b.canCut(s, out.cut)
	if err := out.open(r, encode(b.welcome(s))); err != nil {
		if errors.Is(err, http.ErrNotSupported) {
			b.warn("sse: no stream is possible", "error", err)
		}
		if out.isCut.Load() {
			err = errCut
		}
		return err
	}
	if out.noDeadline {
		b.warn("sse: WriteTimeout has no effect, no deadline can be set", "behind", fmt.Sprintf("%T", innermost(w)))
	}
	out.liftReadDeadline()
	defer out.setReadDeadline()
	// Here a deadline may be left standing. Elsewhere it would do harm when it passes
	// on an idle stream: over HTTP/2 it resets the stream, and over TLS there may be a
	// write at any time, if the client asks for a new key.
	if r.ProtoMajor == 1 && r.TLS == nil {
		out.keep = true
		defer out.clearDeadline()
	}

	period := b.keepAlivePeriod()
	var due atomic.Bool // the timer fired: look whether the client was idle all the time
	var timer *time.Timer
	if period > 0 {
		timer = time.AfterFunc(period, func() { due.Store(true); s.wake() })
		defer timer.Stop()
	}
	err := b.run(r.Context(), s, func(batch []*entry) error {
		if due.Load() {
			due.Store(false)
			if len(batch) == 0 && time.Since(out.wrote) >= period {
				batch = append(batch, b.keepAlive(s)...)
			}
			defer func() { timer.Reset(period - time.Since(out.wrote)) }()
		}
		return write(out, batch)
	})
	switch {
	case out.isCut.Load():
		return errCut
	case errors.Is(err, ErrClosed):
		write(out, b.farewell(""))
	}
	return err
}

// canCut tells Shutdown how to end a write to s.
func (b *Broker) canCut(s *subscriber, cut func()) {
	s.setCut(cut)
	b.mu.Lock()
	tooLate := b.impatient // Shutdown may have looked before
	b.mu.Unlock()
	if tooLate {
		cut()
	}
}

func (s *subscriber) setCut(cut func()) {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	s.cut = cut
}

// write writes the entries to a client, and flushes them together.
func write(out *Writer, batch []*entry) error {
	if len(batch) == 0 {
		return nil
	}
	if err := out.begin(); err != nil {
		return err
	}
	if err := pieces(batch, 0, out.put); err != nil {
		return err
	}
	return out.end()
}

// Detach is Serve for very many clients: it begins the stream and returns at
// once, having taken the connection away from net/http. A client then costs its
// socket and about 2 KB, where a handler that runs costs some 28 KB. All that is
// said of Serve holds: replay, gaps, keep-alives, WriteTimeout, MaxClients,
// Shutdown. Detach then returns true.
//
// The stream's end, at once or much later, is told to done, which may be nil. It
// is called exactly once, before Detach returns or from another goroutine, with
// what Serve would have returned; Shutdown waits for it. A panic in it is logged
// and costs nobody else. What a handler does before and after Serve goes before
// Detach and into done:
//
//	online.Add(user)
//	broker.Detach(w, r, func(err error) { online.Remove(user) }, "prices")
//
// The handler must not touch w after that. The stream goes past what wraps w: what
// middleware adds as the headers are written, counts or compresses. The request's
// context ends when the handler returns and has no part in the stream, so a client
// whose access is to be revoked is one for Serve. A client that closes its
// connection is noticed by the next write, at the latest by the next keep-alive;
// one that vanished, on Linux, about WriteTimeout after that.
//
// The stream is delimited by the end of the connection. Where that cannot be
// taken over, because the client speaks HTTP/2, or a ResponseWriter offers no
// Hijack, or the request has a body, or Varnish would hold back the beginning,
// Detach serves the client as Serve does, blocks until it has left, and returns
// false, as it does for a client that it turns away. Over TLS a
// client costs the memory of crypto/tls as well, and a goroutine for each write.
func (b *Broker) Detach(w http.ResponseWriter, r *http.Request, done func(error), topics ...string) bool {
	if done == nil {
		done = func(error) {}
	}
	if r.Method == http.MethodHead {
		done(b.Serve(w, r, topics...))
		return false
	}
	s, err := b.admit(w, r, topics)
	if err != nil {
		done(err)
		return false
	}
	taken := false // over by others, who end the stream
	err = errPanic
	defer func() {
		if !taken {
			defer b.leave(s) // Shutdown waits for done
			done(err)
		}
	}()
	if b.logger().Enabled(r.Context(), slog.LevelDebug) { // or r would be kept for nothing
		tell := done
		done = func(err error) {
			b.debug(r, "sse: client gone", "reason", err)
			tell(err)
		}
	}
	b.came(r, s)
	h := hijack(w, r, b.WriteTimeout)
	if h == nil {
		err = b.stream(w, r, s)
		return false
	}
	d := &detached{hijacked: h, done: done}
	if b.CatchUp != nil {
		d.ctx = context.WithoutCancel(r.Context())
	}
	d.hello = append([]*entry{{mark: true, body: responseHead(w.Header(), r)}}, b.welcome(s)...)
	b.canCut(s, d.cut)
	b.mu.Lock()
	defer b.mu.Unlock()
	s.detached, taken = d, true
	b.queueLocked(s)
	return true
}

// A detached is what a subscriber has instead of a channel and a goroutine.
type detached struct {
	*hijacked

	// For the goroutine that has the connection.
	hello        []*entry        // opens the stream, if it was not written yet
	ctx          context.Context // for CatchUp
	done         func(error)
	suspect      bool // to be checked whether the client has left
	saidFarewell bool // the client was told to come back later

	// Guarded by the broker's mu.
	prev, next *subscriber // in its list
	since      time.Time   // when it went live
	isChecked  bool        // it is in the broker's checked
	idle       bool        // it needs a keep-alive
}

// A list is a queue of detached clients, each of which is in one at most.
type list struct{ first, last *subscriber }

func (l *list) push(s *subscriber) {
	s.detached.prev, s.detached.next = l.last, nil
	if l.last == nil {
		l.first = s
	} else {
		l.last.detached.next = s
	}
	l.last = s
}

func (l *list) remove(s *subscriber) {
	prev, next := s.detached.prev, s.detached.next
	if prev == nil {
		l.first = next
	} else {
		prev.detached.next = next
	}
	if next == nil {
		l.last = prev
	} else {
		next.detached.prev = prev
	}
	s.detached.prev, s.detached.next = nil, nil
}

// queueLocked has a worker give s what it is owed. There are workers only as long
// as there is work.
func (b *Broker) queueLocked(s *subscriber) {
	b.queue.push(s)
	if b.workers < b.maxWorkers {
		b.workers++
		go b.work()
	}
}

// work serves the clients in the queue, none of which it waits for.
func (b *Broker) work() {
	once := newAttempt()
	var batch []*entry
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.queue.first != nil {
		s := b.queue.first
		b.queue.remove(s)
		for more := true; more; clear(batch) {
			batch, more = b.serveLocked(s, once, batch[:0])
		}
	}
	b.workers--
}

// serveLocked writes to s, with mu released, as much as it can take at once, and
// tells whether there may be more for it. If not, s is live, has left, or is the
// business of attend.
func (b *Broker) serveLocked(s *subscriber, once *attempt, batch []*entry) (_ []*entry, more bool) {
	d := s.detached
	batch, all := b.owedLocked(s, batch)
	switch {
	case s.lost || d.raw == nil && len(batch) > 0:
		go b.attend(s, slices.Clone(batch), 0)
		return batch, false
	case len(batch) == 0 && all && !b.closed:
		b.goLiveLocked(s)
		return batch, false
	}
	b.mu.Unlock()
	defer b.mu.Lock()
	switch {
	case len(batch) == 0 && all:
		b.dismiss(s, ErrClosed)
		return batch, false
	case d.suspect && once.peerLeft(d.hijacked):
		b.dismiss(s, ErrClientLeft)
		return batch, false
	case d.isSilent():
		b.dismiss(s, errSilent)
		return batch, false
	}
	d.suspect = false
	written := 0
	err := pieces(batch, 0, func(piece []byte) error {
		n, err := once.put(d.hijacked, piece)
		written += n
		return err
	})
	if err != nil {
		b.behind.Add(1)
		go b.attend(s, slices.Clone(batch), written)
		return batch, false
	}
	b.note(s, batch)
	return batch, true
}

// attend gives s what it is owed, in a goroutine of its own that may wait for the
// client or for CatchUp. It begins with batch, without its first skip bytes.
func (b *Broker) attend(s *subscriber, batch []*entry, skip int) {
	d := s.detached
	send := func(batch []*entry) (err error) {
		if d.suspect {
			d.suspect = false
			err = d.peerLeft()
		}
		if err == nil && d.raw == nil && d.isSilent() { // else put waits for whoever is silent
			err = errSilent
		}
		if err == nil {
			err = pieces(batch, skip, d.put)
			skip = 0
		}
		return err
	}
	err := b.give(s, batch, send)
	for err == nil {
		if s.lost {
			err = b.guard("CatchUp", func() error { return b.bridge(d.ctx, s, send) })
			if err != nil {
				break
			}
		}
		var all bool
		b.mu.Lock()
		batch, all = b.owedLocked(s, batch[:0])
		if len(batch) == 0 && all && !b.closed {
			d.conn.SetWriteDeadline(time.Time{}) // or the next worker's attempt fails
			if d.raw != nil {
				d.answered = time.Now() // it has made room since its socket was full
			}
			b.goLiveLocked(s)
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		if len(batch) == 0 && all {
			err = ErrClosed
		} else {
			err = b.give(s, batch, send)
		}
	}
	b.dismiss(s, err)
}

// owedLocked appends to batch what s, which is detached, is to get next, and
// tells whether that is all.
func (b *Broker) owedLocked(s *subscriber, batch []*entry) (_ []*entry, all bool) {
	d := s.detached
	batch, d.hello = append(batch, d.hello...), nil
	batch, all = b.pullLocked(s, batch)
	switch {
	case !all:
	case b.closed && !d.saidFarewell:
		d.saidFarewell = true
		batch = append(batch, b.farewell("")...)
	case d.idle:
		if len(batch) == 0 {
			batch = b.keepAliveLocked(s)
			d.suspect = true
		}
		d.idle = false
	}
	return batch, all
}

// dismiss ends the stream of s, which is detached.
func (b *Broker) dismiss(s *subscriber, reason error) {
	d := s.detached
	if errors.Is(reason, ErrTooSlow) || reason == errSilent {
		d.breakOff()
	}
	d.conn.Close()
	if d.isCut.Load() {
		reason = errCut
	}
	go func() {
		defer b.leave(s) // Shutdown waits for done
		b.guard("the function given to Detach", func() error { d.done(reason); return nil })
	}()
}

// errPanic is the reason for a stream that a panic ended.
var errPanic = errors.New("sse: stream ended by a panic")

// guard calls code of the program, a panic in which costs one client and not the
// process, as net/http has it for handlers.
func (b *Broker) guard(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.logger().Error("sse: panic in "+what, "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return f()
}

// restLocked notes that s, which is detached, has gone live.
func (b *Broker) restLocked(s *subscriber) {
	s.detached.since, s.detached.isChecked = time.Now(), false
	b.resting.push(s)
	if b.keepAlivePeriod() > 0 {
		b.sweepByLocked(s.detached.since.Add(b.checkPeriod()))
	}
}

// restingListLocked returns the list that s, which is live, is in.
func (b *Broker) restingListLocked(s *subscriber) *list {
	if s.detached.isChecked {
		return &b.checked
	}
	return &b.resting
}

// sweepByLocked has sweep run at that time or before.
func (b *Broker) sweepByLocked(at time.Time) {
	if !b.sweepAt.IsZero() && !at.Before(b.sweepAt) {
		return
	}
	b.sweepAt = at
	if b.sweeper == nil {
		b.sweeper = time.AfterFunc(time.Until(at), b.sweep)
	} else {
		b.sweeper.Reset(time.Until(at))
	}
}

// sweep has a keep-alive sent to the detached clients that need one, and looks
// whether they answered in time what they got last.
func (b *Broker) sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepAt = time.Time{}
	for s := b.resting.first; s != nil; s = b.resting.first {
		if at := s.detached.since.Add(b.checkPeriod()); time.Until(at) > 0 {
			b.sweepByLocked(at)
			break
		}
		b.resting.remove(s)
		b.checked.push(s)
		s.detached.isChecked = true
		if s.detached.isSilent() {
			b.queueKeepAliveLocked(s) // instead of which it is dismissed
		}
		b.mu.Unlock() // others are not to wait for the whole list
		b.mu.Lock()
	}
	for s := b.checked.first; s != nil; s = b.checked.first {
		if at := s.detached.since.Add(b.keepAlivePeriod()); time.Until(at) > 0 {
			b.sweepByLocked(at)
			break
		}
		b.queueKeepAliveLocked(s)
	}
}

// queueKeepAliveLocked has a keep-alive sent to s, which is detached and live.
func (b *Broker) queueKeepAliveLocked(s *subscriber) {
	b.fanOutAllLocked()
	if !s.behind.Load() {
		s.detached.idle = true
		b.leaveBehindLocked(s, b.ring.head+1)
	}
}

// welcome returns what s is told as it connects: the reconnection time, and the
// ID after which it begins. A browser dispatches no event for that, but sends the
// ID if it is cut off before its first event. To the letter of the standard, any
// block that comes before it without an ID would make a client forget its own.
func (b *Broker) welcome(s *subscriber) []*entry {
	id := s.repeated(s.lastID)
	if b.Retry < 0 {
		if mark := b.placeMark(id); mark != nil {
			return mark
		}
		return []*entry{{mark: true, body: keepAliveFrame}}
	}
	return b.retryMark(id, b.retry())
}

// farewell returns what a client is told as the Broker sends it away: to come
// back at a random time, from Retry up to twice that, since many others will. One
// that was told nothing else yet is told its own ID again, as in welcome.
func (b *Broker) farewell(lastID string) []*entry {
	return b.retryMark(lastID, b.retry()+mrand.N(b.retry()))
}

// keepAlive returns what is sent to s when it got nothing for a while.
func (b *Broker) keepAlive(s *subscriber) []*entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keepAliveLocked(s)
}

// keepAliveLocked is keepAlive with mu held. A client of a quiet topic among
// busy ones is told a newer ID before its own leaves the history, or it would be
// told of a gap where it missed nothing.
func (b *Broker) keepAliveLocked(s *subscriber) []*entry {
	comment := &entry{mark: true, body: keepAliveFrame}
	b.fanOutAllLocked()
	missesNone := !s.behind.Load() && len(s.ch) == 0 || s.behind.Load() && s.cursor > b.ring.head
	head := b.ring.head
	if !missesNone || head-s.lastSeq <= (head+1-b.historyLocked())/2 {
		return []*entry{comment}
	}
	s.lastSeq, s.lastID = head, cmp.Or(b.idLocked(head), s.lastID)
	return append(b.placeMark(b.idLocked(head)), comment)
}

// retryMark returns what tells a client a reconnection time, and its last event
// ID if that means anything.
func (b *Broker) retryMark(id string, retry time.Duration) []*entry {
	body := string(Event{Retry: retry}.appendBody(nil))
	if id = b.meaningful(id); id != "" {
		body += "\n"
	}
	return []*entry{{mark: true, id: id, body: body}}
}

// placeMark returns what sets the client's last event ID, if that means anything.
func (b *Broker) placeMark(id string) []*entry {
	if id = b.meaningful(id); id == "" {
		return nil
	}
	return []*entry{{mark: true, id: id, body: "\n"}}
}

// meaningful returns id, or "" if it cannot be sent or nothing ever comes after it.
func (b *Broker) meaningful(id string) string {
	if (Event{ID: id}).check() != nil || b.History < 0 && b.CatchUp == nil {
		return ""
	}
	return id
}

func (b *Broker) keepAlivePeriod() time.Duration {
	return cmp.Or(b.KeepAlive, defaultKeepAlive)
}

// checkPeriod is how long after a detached client was last written to it is looked
// whether it has answered.
func (b *Broker) checkPeriod() time.Duration {
	timeout := cmp.Or(b.WriteTimeout, defaultWriteTimeout)
	if timeout < 0 {
		return b.keepAlivePeriod()
	}
	return min(timeout, b.keepAlivePeriod())
}

func (b *Broker) retry() time.Duration {
	if b.Retry <= 0 {
		return defaultRetry
	}
	return min(max(b.Retry, time.Millisecond), math.MaxInt64/2) // the farewell doubles it
}

// Subscribe returns an iterator over the events of the topics, for consumers in
// the process. No topic is the default topic. The subscription begins with the
// loop and ends with it: with the events after lastEventID, or if that is ""
// with the next one published; to begin at a certain moment, take LastEventID
// then. The loop gets what a client would, gap events and CatchUp's included, and
// the same is true for one that is too slow: nobody waits for it.
//
// Iteration blocks until there is an event. It ends with an error and a zero
// Event: the cause of ctx's end, [ErrClosed] after Shutdown, or CatchUp's error.
func (b *Broker) Subscribe(ctx context.Context, lastEventID string, topics ...string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		s := &subscriber{ch: make(chan *entry, 1)}
		if err := b.join(s, lastEventID, topics); err != nil {
			yield(Event{}, err)
			return
		}
		defer b.leave(s)
		err := b.run(ctx, s, func(batch []*entry) error {
			for _, e := range batch {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				if !e.mark && !yield(parseEvent(e.id, e.body), nil) {
					return errStop
				}
			}
			return nil
		})
		switch {
		case err == errStop:
		case ctx.Err() != nil:
			yield(Event{}, context.Cause(ctx))
		default:
			yield(Event{}, err)
		}
	}
}

// errCut is the reason for a client that Shutdown did not wait for any longer.
var errCut = fmt.Errorf("%w, client cut off before it had all its events", ErrClosed)

// errStop ends a loop over Subscribe that the program has left.
var errStop = errors.New("sse: loop left")

// Shutdown ends all streams and refuses new ones. Each client first gets the
// events it is still owed, and a random reconnection time from Retry up to
// twice that. Shutdown blocks until the last one has left, and the last loop over
// Subscribe, so it must not be called within one or by the function given to
// Detach. When ctx ends before that, those that are left are cut off, and it
// returns the context's cause.
//
// An [http.Server] that shuts down waits for its handlers, and does not wait for
// clients that were detached, so the Broker is first:
//
//	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
//	defer cancel()
//	broker.Shutdown(ctx)
//	srv.Shutdown(ctx)
func (b *Broker) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	b.initLocked()
	if !b.closed {
		b.closed = true
		b.fanOutAllLocked()
		b.gone = make(chan struct{})
		if len(b.subs) == 0 {
			close(b.gone)
		}
		for s := range b.subs {
			if !s.behind.Load() {
				b.leaveBehindLocked(s, b.ring.head+1)
			}
		}
	}
	b.mu.Unlock()
	select {
	case <-b.gone:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	b.impatient = true
	left := slices.Collect(maps.Keys(b.subs))
	for _, s := range left {
		if s.cancel != nil {
			s.cancel()
		}
	}
	b.mu.Unlock()
	if len(left) == 0 { // the last one went at that moment
		return nil
	}
	for _, s := range left {
		s.cutting.Lock()
		if s.cut != nil {
			s.cut()
		}
		s.cutting.Unlock()
	}
	return context.Cause(ctx)
}

// Stats are figures of a Broker. Those without another word count from its
// first use.
type Stats struct {
	Clients     int   // being served now
	Subscribers int   // loops over Subscribe now
	Topics      int   // that have a client or an event in the history now
	Published   int64 // events
	Delivered   int64 // events, to all clients and subscribers
	Replayed    int64 // of these, events from before the client connected
	FellBehind  int64 // times a client was slower than the events; usual in a burst
	Gaps        int64 // times a client's place was not in the history any more
}

// Stats returns the current figures. It takes the same short time whatever they
// are.
func (b *Broker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Stats{
		Clients:     b.clients,
		Subscribers: len(b.subs) - b.clients,
		Topics:      len(b.topics),
		Published:   b.published.Load(),
		Delivered:   b.delivered.Load(),
		Replayed:    b.replayed.Load(),
		FellBehind:  b.behind.Load(),
		Gaps:        b.gaps.Load(),
	}
}

func (b *Broker) logger() *slog.Logger {
	if b.Logger == nil {
		return slog.Default()
	}
	return b.Logger
}

// warn logs msg, but no more than once a minute: what goes wrong with one client
// often does with all of them.
func (b *Broker) warn(msg string, args ...any) {
	b.mu.Lock()
	last, ok := b.warned[msg]
	due := !ok || time.Since(last) >= time.Minute
	if due {
		b.warned[msg] = time.Now()
	}
	b.mu.Unlock()
	if due {
		b.logger().Warn(msg, args...)
	}
}

// came logs that r was admitted as s.
func (b *Broker) came(r *http.Request, s *subscriber) {
	if b.logger().Enabled(r.Context(), slog.LevelDebug) {
		b.debug(r, "sse: client came", "topics", names(s.topics), "lastEventID", s.lastID)
	}
}

// debug logs what became of the client that sent r.
func (b *Broker) debug(r *http.Request, msg string, args ...any) {
	if l := b.logger(); l.Enabled(r.Context(), slog.LevelDebug) {
		l.DebugContext(r.Context(), msg, append(args, "remote", r.RemoteAddr, "url", r.URL.Path)...)
	}
}
