package redisstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed22e817d0/sse"
)

// CatchUp is for the CatchUp field of the Broker that Follow feeds: it yields
// what the stream still has for a client that the Broker's history has too
// little for. If the stream does not reach back to the client's last event
// either, it begins with an event of type "gap" whose data is that event's ID, and
// with the values of keys that are older than the stream.
//
// To a client without a last event ID it yields the values of all keys or, if all its
// topics have ended, what the history holds of them.
func (s *Stream) CatchUp(ctx context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
	return func(yield func(sse.Event, error) bool) {
		c := catchUp{s: s, topics: slices.Clone(missed.Topics), seen: missed.LastEventID, yield: yield}
		if err := c.run(ctx, missed.UpTo); err != nil && err != errStop {
			yield(sse.Event{}, err)
		}
	}
}

var (
	errStop   = errors.New("redisstream: loop left")
	errBehind = errors.New("redisstream: this node is behind the stream")
)

// A catchUp is one run of CatchUp.
type catchUp struct {
	s      *Stream
	topics []string // those that have not ended, as far as was read
	seen   string   // ID of the last event that the client has
	yield  func(sse.Event, error) bool
}

func (c *catchUp) run(ctx context.Context, calledAt string) error {
	b, err := c.s.waitFor(ctx, "")
	if err != nil {
		return err
	}
	if c.seen == "" {
		return c.begin(ctx, b, calledAt)
	}
	// What is beyond this the Broker will give the client itself.
	upTo, ok := parsePlace(b.LastEventID())
	if !ok {
		return fmt.Errorf("redisstream: the Broker has an event of its own, %s", b.LastEventID())
	}
	from := c.seen
	at, ok := parsePlace(from)
	if ok && at.after(upTo) {
		known, err := c.read(ctx, from, from)
		if err != nil {
			return err
		}
		if len(known) > 0 {
			return c.wait(ctx)
		}
	}
	if !ok || at.after(upTo) {
		if from, err = c.gap(); err != nil {
			return err
		}
	}
	return c.between(ctx, from, upTo.String())
}

// begin is for a client that has seen nothing. It yields values without their IDs: a
// client that is cut off among them begins again.
func (c *catchUp) begin(ctx context.Context, b *sse.Broker, calledAt string) error {
	upTo, ok := parsePlace(calledAt)
	if !ok {
		return nil // the Broker had no history yet, and calls again
	}
	c.s.mu.Lock()
	unlock := sync.OnceFunc(c.s.mu.Unlock)
	defer unlock()
	if slices.ContainsFunc(c.topics, func(topic string) bool { return !hasEnded(b, topic) }) {
		values := c.s.state.values(c.topics, upTo)
		unlock()
		return c.giveValues(values)
	}
	// The loop has begun, before the end can leave the history, when it yields.
	for ev, err := range b.Subscribe(ctx, sse.Earliest, c.topics...) {
		unlock()
		if err != nil {
			return err
		}
		if !c.yield(ev, nil) {
			return errStop
		}
	}
	return nil
}

// giveValues yields values, whose IDs are of no use to the client.
func (c *catchUp) giveValues(values []valueAt) error {
	for _, v := range inOrder(values) {
		v.ev.ID = ""
		if !c.yield(v.ev, nil) {
			return errStop
		}
	}
	return nil
}

// wait is for a client that comes from a node that is ahead of this one: it
// misses nothing, but is not to get anything twice. The Broker has it go on
// right after its last event, once that is in the history.
func (c *catchUp) wait(ctx context.Context) error {
	b, err := c.s.waitFor(ctx, c.seen)
	if err != nil {
		return err
	}
	// That event would be gone again only if very many came right behind it.
	since, err := c.read(ctx, c.seen, b.LastEventID())
	if err == nil && len(since) == pageEntries {
		err = errBehind
	}
	return err
}

// between yields the events after the entry from, or all if that is "".
func (c *catchUp) between(ctx context.Context, from, upTo string) error {
	for {
		page, err := c.read(ctx, cmp.Or(from, "-"), upTo)
		if err != nil {
			return err
		}
		full := len(page) == pageEntries
		// Each page begins with the entry that the one before ended with: while
		// that is there, none was dropped between them.
		if from != "" {
			if len(page) == 0 || page[0].ID != from {
				if from, err = c.gap(); err != nil {
					return err
				}
				continue
			}
			page = page[1:]
		} else if err := c.giveOlder(page, upTo); err != nil {
			return err
		}
		for _, m := range page {
			from = m.ID
			if err := c.give(m); err != nil {
				return err
			}
		}
		if !full {
			return nil
		}
	}
}

// giveOlder yields the values that are older than the stream, which begins with page.
func (c *catchUp) giveOlder(page []redis.XMessage, upTo string) error {
	until, _ := parsePlace(upTo)
	first := place{}
	if len(page) > 0 {
		first, _ = parsePlace(page[0].ID)
		until = first
	}
	c.s.mu.Lock()
	values := c.s.state.values(c.topics, until)
	c.s.mu.Unlock()
	return c.giveValues(slices.DeleteFunc(values, func(v valueAt) bool { return v.at == first }))
}

// read returns the first entries of a range of the stream.
func (c *catchUp) read(ctx context.Context, from, to string) ([]redis.XMessage, error) {
	page, err := c.s.reads.XRangeN(ctx, c.s.key(), from, to, pageEntries).Result()
	return page, wrap("catch up", err)
}

// gap tells the client of a gap, and returns where the stream is to be read
// from then. The event has no ID: a client that is cut off right after it would
// otherwise miss what the stream does have.
func (c *catchUp) gap() (from string, err error) {
	if !c.yield(sse.Event{Type: "gap", Data: c.seen}, nil) {
		return "", errStop
	}
	return "", nil
}

// give yields an entry if it is one for the client. It returns ErrEnded if the entry
// ends the last of the client's topics.
func (c *catchUp) give(m redis.XMessage) error {
	e, err := parse(m)
	if err != nil || e.kind == mark {
		return nil
	}
	wanted := func(topic string) bool { return slices.Contains(c.topics, topic) }
	if !slices.ContainsFunc(e.topics, wanted) {
		return nil
	}
	if e.kind == end {
		c.topics = slices.DeleteFunc(c.topics, func(topic string) bool { return slices.Contains(e.topics, topic) })
		if len(c.topics) == 0 {
			return sse.ErrEnded
		}
		return nil
	}
	c.s.mu.Lock()
	replaced := c.s.state.replaced(e, c.topics)
	c.s.mu.Unlock()
	if replaced {
		return nil
	}
	if !c.yield(e.event, nil) {
		return errStop
	}
	c.seen = m.ID
	return nil
}

// waitFor waits until the Broker has its history, and in it the entry with this
// ID or a later one.
func (s *Stream) waitFor(ctx context.Context, id string) (*sse.Broker, error) {
	s.start()
	want, _ := parsePlace(id)
	// A client that is gone is noticed only when something is written to it,
	// and while it waits here nothing is. So it does not wait for long.
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errBehind)
	defer cancel()
	for {
		s.mu.Lock()
		b, last, moved := s.broker, s.last, s.moved
		s.mu.Unlock()
		if b != nil && !want.after(last) {
			return b, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
