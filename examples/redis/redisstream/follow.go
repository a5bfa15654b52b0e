package redisstream

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed22e817d0/sse"
)

const (
	// block is how long one read waits for a new entry. After each the stream
	// is looked at, so that it shows within that time if it was replaced.
	block = time.Second

	pageEntries = 500 // read at a time

	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second

	// What a Broker keeps if its fields do not say.
	defaultHistory      = 10_000
	defaultHistoryBytes = 16 << 20

	// markField is the one field of an entry that holds no event. It is put
	// into an empty stream, because the ID of an entry that is still there
	// proves that nothing behind it was lost, and an empty stream has none.
	markField = "mark"
)

// Follow fills the history of b from the end of the stream and then publishes
// to it what is appended, under the entries' own IDs, until ctx ends or b is shut
// down; it returns why. It takes one connection, however many clients b has.
//
// While Redis cannot be reached it tries again, after 100 milliseconds at first
// and 5 seconds at most, and goes on where it stopped. When entries are missing
// there, because Redis lost them or dropped them at MaxLen, it resets b, so that
// every client is told of a gap and gets all that the stream has.
//
// The CatchUp of b is that of s, and b is published to by Follow alone. Call it
// once. A client that connects before b has its history waits for it.
func (s *Stream) Follow(ctx context.Context, b *sse.Broker) error {
	if b.History < 0 {
		return errors.New("redisstream: the Broker keeps no history")
	}
	s.start()
	opt := s.options()
	opt.PoolSize = 1
	opt.PipelinePoolSize = -1 // the pool's one connection is for pipelines too
	opt.ReadTimeout = block + cmp.Or(max(opt.ReadTimeout, 0), defaultTimeout)
	f := follower{s: s, broker: b, redis: redis.NewClient(opt)}
	// A read that blocks does not see ctx end, but it does see this.
	closed := context.AfterFunc(ctx, func() { f.redis.Close() })
	defer func() {
		if closed() {
			f.redis.Close()
		}
	}()
	backoff := minBackoff
	for {
		n, err := f.run(ctx)
		s.follows(err)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, sse.ErrClosed):
			return err
		case n > 0:
			backoff = minBackoff
		}
		s.logger().Warn("redisstream: cannot follow the stream, trying again", "error", err, "in", backoff)
		select {
		case <-time.After(backoff/2 + rand.N(backoff)): // the other nodes try too
		case <-ctx.Done():
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// follows notes whether the stream is being followed.
func (s *Stream) follows(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = wrap("follow", err)
}

// hasMoved tells those who wait that b was given all entries up to the one with this
// ID.
func (s *Stream) hasMoved(b *sse.Broker, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broker = b
	s.last, _ = parsePlace(id)
	close(s.moved)
	s.moved = make(chan struct{})
}

// A follower is what Follow works with.
type follower struct {
	s      *Stream
	broker *sse.Broker
	redis  *redis.Client
	last   string // ID of the last entry read; "" before the history is filled
}

// run follows the stream until something fails, and returns how many reads went
// well before that.
func (f *follower) run(ctx context.Context) (reads int, err error) {
	for ; ; reads++ {
		step := f.read
		if f.last == "" {
			step = f.fill
		}
		if err := step(ctx); err != nil {
			return reads, err
		}
		f.s.follows(nil)
	}
}

// fill makes the end of the stream the history of the Broker.
func (f *follower) fill(ctx context.Context) error {
	entries, err := f.newest(ctx)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		id, err := begin.Run(ctx, f.redis, []string{f.s.key()}, markField).Text()
		if err != nil {
			return err
		}
		entries = []redis.XMessage{{ID: id, Values: map[string]any{markField: "1"}}}
	}
	// The values are read after the entries: what those before them say is in them,
	// and what has changed since, the entries that follow say again.
	state, err := f.s.readState(ctx, f.redis)
	if err != nil {
		return err
	}
	if err := f.s.reset(f.broker, entries[0], state); err != nil {
		return err
	}
	return f.publish(entries[0].ID, entries[1:])
}

// reset makes b begin after the entry first, of which only the ID and an end count.
func (s *Stream) reset(b *sse.Broker, first redis.XMessage, state state) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := b.Reset(first.ID); err != nil {
		return err
	}
	s.state = state
	if e, err := parse(first); err == nil && e.kind == end {
		return b.End(e.topics...)
	}
	return nil
}

// newest returns as many entries from the end of the stream as the Broker
// keeps, and one more.
func (f *follower) newest(ctx context.Context) ([]redis.XMessage, error) {
	most := cmp.Or(f.broker.History, defaultHistory) + 1
	bytes := cmp.Or(f.broker.HistoryBytes, defaultHistoryBytes)
	var entries []redis.XMessage
	for before := "+"; ; {
		page, err := f.redis.XRevRangeN(ctx, f.s.key(), before, "-", int64(min(pageEntries, most-len(entries)))).Result()
		if err != nil {
			return nil, err
		}
		for _, m := range page {
			data, _ := m.Values["data"].(string)
			bytes -= len(m.ID) + len(data)
		}
		entries = append(entries, page...)
		if len(page) < pageEntries || len(entries) == most || bytes <= 0 && f.broker.HistoryBytes >= 0 {
			slices.Reverse(entries)
			return entries, nil
		}
		before = "(" + page[len(page)-1].ID
	}
}

// begin puts a mark into the stream, unless another node is faster.
var begin = redis.NewScript(`
if redis.call('XLEN', KEYS[1]) == 0 then
	redis.call('XADD', KEYS[1], '*', ARGV[1], '1')
end
return redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1]`)

// read waits for new entries and publishes them.
func (f *follower) read(ctx context.Context) error {
	// Redis runs the second command right after the first, without another
	// round trip. If the last entry is in the stream even after the new ones
	// were read, then nothing between them was dropped.
	pipe := f.redis.Pipeline()
	read := pipe.XRead(ctx, &redis.XReadArgs{
		Streams: []string{f.s.key(), f.last}, Count: pageEntries, Block: block,
	})
	last := pipe.XRange(ctx, f.s.key(), f.last, f.last)
	pipe.Exec(ctx) // returns the errors that the commands have too
	if err := read.Err(); err != nil && err != redis.Nil {
		return err
	}
	if err := last.Err(); err != nil {
		return err
	}
	if len(last.Val()) == 0 {
		f.s.logger().Warn("redisstream: the stream does not go on where it was read last; clients are told of a gap", "entry", f.last)
		f.last = ""
		return nil
	}
	if len(read.Val()) == 0 {
		return nil
	}
	return f.publish(f.last, read.Val()[0].Messages)
}

// publish publishes the entries that come right after the one called last.
func (f *follower) publish(last string, entries []redis.XMessage) error {
	for _, m := range entries {
		e, err := parse(m)
		if err == nil {
			err = f.s.feed(f.broker, e)
		}
		if errors.Is(err, sse.ErrClosed) {
			return err
		}
		if err != nil {
			f.s.logger().Warn("redisstream: entry skipped", "entry", m.ID, "error", err)
		}
		last = m.ID
	}
	f.last = last
	f.s.hasMoved(f.broker, last)
	return nil
}

// feed gives b what an entry holds. Topics that have ended get nothing more, but
// others of the same entry do.
func (s *Stream) feed(b *sse.Broker, e entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := give(b, e)
	if errors.Is(err, sse.ErrEnded) {
		e.topics = slices.DeleteFunc(e.topics, func(topic string) bool { return hasEnded(b, topic) })
		if len(e.topics) > 0 {
			err = give(b, e)
		}
	}
	if err == nil {
		s.state.apply(e)
	}
	return err
}

func give(b *sse.Broker, e entry) (err error) {
	switch e.kind {
	case plain:
		_, err = b.Publish(e.event, e.topics...)
	case value:
		_, err = b.Set(e.key, e.event, e.topics...)
	case removal:
		_, err = b.Remove(e.key, e.event, e.topics...)
	case end:
		err = b.End(e.topics...)
	}
	return err
}

// hasEnded reports whether b knows that the topic has ended. b is not published to
// meanwhile, so the ID of its newest event is a duplicate at any other topic.
func hasEnded(b *sse.Broker, topic string) bool {
	_, err := b.Publish(sse.Event{ID: b.LastEventID()}, topic)
	return errors.Is(err, sse.ErrEnded)
}
