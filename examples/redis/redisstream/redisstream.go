// Package redisstream feeds the brokers of many machines from one Redis stream.
// All of them then hold the same events under the same IDs, so a client may
// come back to any of them, and its history is as long as the stream.
//
//	stream := &redisstream.Stream{Options: &redis.Options{Addr: "localhost:6379"}}
//	broker := &sse.Broker{CatchUp: stream.CatchUp}
//	go stream.Follow(ctx, broker)
//	mux.Handle("GET /events", broker)
//	…
//	stream.Publish(ctx, sse.Event{Data: "hello"}) // instead of broker.Publish
//
// An entry of the stream has the fields topics (their names, one to a line; the
// default topic if there is none), type, data and retry (in milliseconds), so
// that programs in other languages publish with
//
//	XADD events MAXLEN ~ 100000 * topics news data hello
//
// An entry with the field mark is no event, and one with the field end says that
// its topics have ended. One with the field key is the key's value in each of its
// topics, and with the field remove as well the key is forgotten; Set and Remove
// also note that beside the stream.
package redisstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed22e817d0/sse"
)

const (
	defaultKey     = "events"
	defaultMaxLen  = 100_000
	defaultOnceFor = 10 * time.Minute
	defaultTimeout = 5 * time.Second
)

// A Stream ties an [sse.Broker] to a Redis stream. A program has one for each
// Broker. One that only publishes needs no Broker. All methods may be called by
// several goroutines at once.
//
// The fields are set before the first call of a method and not changed after.
type Stream struct {
	// Options say where Redis is. Retries are off whatever they say, because an
	// append that is sent twice may append twice, and the deadlines of contexts
	// count. Nil is localhost:6379.
	Options *redis.Options

	// Key is the name of the stream. "" is "events".
	Key string

	// MaxLen is about how many entries the stream keeps: Redis drops the oldest
	// some hundred at a time. 0 is 100,000; negative is no limit.
	MaxLen int64

	// OnceFor is how long PublishOnce knows a key, in whole milliseconds. 0 is
	// 10 minutes.
	OnceFor time.Duration

	// Logger gets a record at level Warn for what an operator should know. Nil
	// is [slog.Default].
	Logger *slog.Logger

	init    sync.Once
	appends *redis.Client // for publishers
	reads   *redis.Client // for CatchUp

	// mu guards the fields below; it is never held while Redis is asked.
	mu sync.Mutex
	// The Broker is given entries, and is reset, with mu held: what CatchUp sees of
	// both under it belongs together.
	err    error         // why the stream is not being followed
	broker *sse.Broker   // nil until it has its history
	last   place         // of the last entry that it was given
	moved  chan struct{} // closed, and made anew, when the broker has got more
	state  state         // the values of keys, as of the last entry
}

func (s *Stream) start() {
	s.init.Do(func() {
		s.appends = redis.NewClient(s.options())
		// After a gap, all clients read the stream. They wait for each other,
		// but no publisher waits behind them.
		opt := s.options()
		opt.MaxRetries = 1
		opt.PoolSize, opt.PoolTimeout = 8, time.Minute
		s.reads = redis.NewClient(opt)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.moved = make(chan struct{})
		s.err = errors.New("redisstream: not followed yet")
	})
}

func (s *Stream) options() *redis.Options {
	var opt redis.Options
	if s.Options != nil {
		opt = *s.Options
	}
	opt.MaxRetries = -1
	opt.DialerRetries = 1
	opt.ContextTimeoutEnabled = true
	return &opt
}

func (s *Stream) key() string { return cmp.Or(s.Key, defaultKey) }

func (s *Stream) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.Default()
	}
	return s.Logger
}

// Close closes the connections to Redis but the one of Follow, which the end of
// its context closes.
func (s *Stream) Close() error {
	s.start()
	return errors.Join(s.appends.Close(), s.reads.Close())
}

// Publish appends ev to the stream, from where every Broker that follows it
// gets it, and returns the ID that Redis gave it; ev has none of its own. No
// topic is the default topic. The name of a topic has no line break.
//
// It blocks until Redis has answered, the deadline of ctx, or the timeouts of
// Options, which are 5 seconds by default. If nobody is at the address, it
// returns at once. After an error, the event may be in the
// stream or not, unless the error says that ev cannot be sent: where it must not
// be there twice, use PublishOnce and call it again.
func (s *Stream) Publish(ctx context.Context, ev sse.Event, topics ...string) (id string, err error) {
	args, err := s.appendArgs(ev, topics)
	if err != nil {
		return "", err
	}
	s.start()
	id, err = s.appends.Do(ctx, append([]any{"XADD", s.key()}, args...)...).Text()
	return id, wrap("publish", err)
}

// publishOnce appends an entry unless it knows the key. A script runs as a
// whole or not at all, in the append-only file as well.
var publishOnce = redis.NewScript(`
local id = redis.call('GET', KEYS[2])
if not id then
	id = redis.call('XADD', KEYS[1], unpack(ARGV, 2))
	redis.call('SET', KEYS[2], id, 'PX', ARGV[1])
end
return id`)

// PublishOnce is Publish for an event that is not to be in the stream twice,
// however often it is published: a second call with the same key within OnceFor
// appends nothing and returns the first one's ID. So after an error, call it
// again with the same key. The key is any string that the publisher uses for no
// other event, the primary key of an order say.
func (s *Stream) PublishOnce(ctx context.Context, key string, ev sse.Event, topics ...string) (id string, err error) {
	args, err := s.appendArgs(ev, topics)
	if err != nil {
		return "", err
	}
	s.start()
	keys := []string{s.key(), s.key() + ":once:" + key}
	onceFor := cmp.Or(s.OnceFor, defaultOnceFor).Milliseconds()
	id, err = publishOnce.Run(ctx, s.appends, keys, append([]any{onceFor}, args...)...).Text()
	return id, wrap("publish", err)
}

// endOf appends an entry and drops what is noted of the topics' keys.
var endOf = redis.NewScript(`
local id = redis.call('XADD', KEYS[1], unpack(ARGV))
for i = 3, #KEYS do
	redis.call('UNLINK', KEYS[i])
	redis.call('SREM', KEYS[2], KEYS[i])
end
return id`)

// End declares that nothing more will be published to the topics, on every node,
// as [sse.Broker.End] does on one. It blocks as Publish does, and after an error may
// be called again: a topic that has ended can be ended once more.
//
// An entry that comes after the end is sent to nobody, except for topics of it that
// have not ended. Publish does not return an error for it, since Redis does not look
// at what it appends.
//
// A node knows of the end as long as its Broker's history holds it, one that starts
// later included, if the end is among the newest entries with which it fills that.
// A client with an ID from before the end is told of it as long as it is in the stream.
func (s *Stream) End(ctx context.Context, topics ...string) error {
	args, err := s.appendArgs(sse.Event{}, topics, "end", "1")
	if err != nil {
		return err
	}
	s.start()
	return wrap("end", endOf.Run(ctx, s.appends, s.stateKeys(topics), args...).Err())
}

// appendArgs returns the arguments of XADD behind the key. The entry has these
// further fields.
func (s *Stream) appendArgs(ev sse.Event, topics []string, fields ...any) ([]any, error) {
	if ev.ID != "" {
		return nil, fmt.Errorf("redisstream: event has the ID %q, but Redis gives it one", ev.ID)
	}
	if _, err := ev.AppendText(nil); err != nil {
		return nil, err
	}
	var args []any
	if maxLen := cmp.Or(s.MaxLen, defaultMaxLen); maxLen > 0 {
		args = append(args, "MAXLEN", "~", maxLen)
	}
	args = append(args, "*")
	for _, topic := range topics {
		if strings.Contains(topic, "\n") {
			return nil, fmt.Errorf("redisstream: topic %q contains a line break", topic)
		}
	}
	if names := strings.Join(topics, "\n"); names != "" {
		args = append(args, "topics", names)
	}
	if ev.Type != "" {
		args = append(args, "type", ev.Type)
	}
	if ev.Retry != 0 {
		args = append(args, "retry", ev.Retry.Milliseconds())
	}
	return append(append(args, fields...), "data", ev.Data), nil
}

// An entry is what an entry of the stream holds.
type entry struct {
	kind   kind
	event  sse.Event
	topics []string
	key    string // of a value or a removal
}

type kind int

const (
	plain   kind = iota // an event
	value               // an event that is its key's value
	removal             // an event after which its key has no value
	end                 // no event: the topics have ended
	mark                // no event
)

// parse returns the entry, or an error if no client can be sent its event.
func parse(m redis.XMessage) (entry, error) {
	field := func(name string) string {
		value, _ := m.Values[name].(string)
		return value
	}
	if field(markField) != "" {
		return entry{kind: mark}, nil
	}
	e := entry{
		event:  sse.Event{ID: m.ID, Type: field("type"), Data: field("data")},
		topics: strings.Split(field("topics"), "\n"),
		key:    field("key"),
	}
	switch _, keyed := m.Values["key"]; {
	case field("end") != "":
		return entry{kind: end, topics: e.topics}, nil
	case keyed && field("remove") != "":
		e.kind = removal
	case keyed:
		e.kind = value
	}
	if retry := field("retry"); retry != "" {
		ms, err := strconv.ParseUint(retry, 10, 31)
		if err != nil {
			return entry{}, fmt.Errorf("redisstream: entry %s: %w", m.ID, err)
		}
		e.event.Retry = time.Duration(ms) * time.Millisecond
	}
	if _, err := e.event.AppendText(nil); err != nil {
		return entry{}, fmt.Errorf("redisstream: entry %s: %w", m.ID, err)
	}
	return e, nil
}

// Err returns nil while the Broker gets what is published, and otherwise why it
// does not: Redis cannot be reached, say. It is for an operator to look at, not
// for a load balancer to take a node out: clients stay connected, and the other
// nodes have lost the same Redis.
func (s *Stream) Err() error {
	s.start()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redisstream: %s: %w", doing, err)
}

// place is the ID of an entry in numbers: its time in milliseconds, and a
// counter within that.
type place struct{ ms, seq uint64 }

func parsePlace(id string) (p place, ok bool) {
	ms, seq, ok := strings.Cut(id, "-")
	if !ok {
		return place{}, false
	}
	var err1, err2 error
	p.ms, err1 = strconv.ParseUint(ms, 10, 64)
	p.seq, err2 = strconv.ParseUint(seq, 10, 64)
	return p, err1 == nil && err2 == nil && p.String() == id
}

func (p place) String() string {
	return strconv.FormatUint(p.ms, 10) + "-" + strconv.FormatUint(p.seq, 10)
}

func (p place) after(q place) bool {
	return p.ms > q.ms || p.ms == q.ms && p.seq > q.seq
}
