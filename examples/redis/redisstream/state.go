package redisstream

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed22e817d0/sse"
)

// The stream drops its oldest entries, and with them values that nothing has
// replaced. So each topic's are also in a hash, from key to value, and the names of
// the hashes in a set. Publishers change these together with the stream. A node
// reads them as it begins, and then has them of the entries that it follows.

// setKey appends an entry and notes it as the key's value.
var setKey = redis.NewScript(`
local id = redis.call('XADD', KEYS[1], unpack(ARGV, 3))
for i = 3, #KEYS do
	redis.call('HSET', KEYS[i], ARGV[1], id .. '\n' .. ARGV[2])
	redis.call('SADD', KEYS[2], KEYS[i])
end
return id`)

// removeKey appends an entry and forgets the key's value.
var removeKey = redis.NewScript(`
local id = redis.call('XADD', KEYS[1], unpack(ARGV, 2))
for i = 3, #KEYS do
	redis.call('HDEL', KEYS[i], ARGV[1])
	if redis.call('EXISTS', KEYS[i]) == 0 then
		redis.call('SREM', KEYS[2], KEYS[i])
	end
end
return id`)

// Set is Publish for an event that is the key's value in each of the topics, until it
// is replaced or removed, however many entries follow: see [sse.Broker.Set]. A client
// without a last event ID is sent the values of its topics first. After an error, Set
// may be called again: it replaces the value by itself.
//
// Each value is kept in the memory of Redis and of each node.
func (s *Stream) Set(ctx context.Context, key string, ev sse.Event, topics ...string) (id string, err error) {
	args, err := s.appendArgs(ev, topics, "key", key)
	if err != nil {
		return "", err
	}
	s.start()
	id, err = setKey.Run(ctx, s.appends, s.stateKeys(topics), append([]any{key, encodeValue(ev)}, args...)...).Text()
	return id, wrap("set", err)
}

// Remove is Publish for an event after which the key has no value in the topics: see
// [sse.Broker.Remove].
func (s *Stream) Remove(ctx context.Context, key string, ev sse.Event, topics ...string) (id string, err error) {
	args, err := s.appendArgs(ev, topics, "key", key, "remove", "1")
	if err != nil {
		return "", err
	}
	s.start()
	id, err = removeKey.Run(ctx, s.appends, s.stateKeys(topics), append([]any{key}, args...)...).Text()
	return id, wrap("remove", err)
}

// stateKeys returns the names of the stream, the set and the topics' hashes.
func (s *Stream) stateKeys(topics []string) []string {
	keys := []string{s.key(), s.stateKey()}
	if len(topics) == 0 {
		topics = []string{""}
	}
	for _, topic := range topics {
		keys = append(keys, s.stateKey()+":"+topic)
	}
	return keys
}

func (s *Stream) stateKey() string { return s.key() + ":state" }

// encodeValue returns what a hash has of an event, behind its ID and a line break.
func encodeValue(ev sse.Event) string {
	return ev.Type + "\n" + strconv.FormatInt(ev.Retry.Milliseconds(), 10) + "\n" + ev.Data
}

func decodeValue(text string) (ev sse.Event, err error) {
	parts := strings.SplitN(text, "\n", 4)
	if len(parts) < 4 {
		return ev, fmt.Errorf("redisstream: %q is no value", text)
	}
	ms, err := strconv.ParseUint(parts[2], 10, 31)
	ev = sse.Event{ID: parts[0], Type: parts[1], Retry: time.Duration(ms) * time.Millisecond, Data: parts[3]}
	if err == nil {
		_, err = ev.AppendText(nil)
	}
	return ev, err
}

// A state has the event that is a key's value, by topic and key.
type state map[string]map[string]valueAt

// A valueAt is an event, and the place that its ID says.
type valueAt struct {
	at place
	ev sse.Event
}

func (s state) set(topic, key string, ev sse.Event) {
	if s[topic] == nil {
		s[topic] = map[string]valueAt{}
	}
	at, _ := parsePlace(ev.ID)
	s[topic][key] = valueAt{at, ev}
}

// apply makes s what it is after the entry.
func (s state) apply(e entry) {
	for _, topic := range e.topics {
		switch e.kind {
		case value:
			s.set(topic, e.key, e.event)
		case removal:
			if delete(s[topic], e.key); len(s[topic]) == 0 {
				delete(s, topic)
			}
		case end:
			delete(s, topic)
		}
	}
}

// replaced reports whether the entry is a value that a newer one has replaced in all of
// these topics that it has.
func (s state) replaced(e entry, topics []string) bool {
	at, _ := parsePlace(e.event.ID)
	return e.kind == value && !slices.ContainsFunc(e.topics, func(topic string) bool {
		return slices.Contains(topics, topic) && !s[topic][e.key].at.after(at)
	})
}

// values returns the values of the topics that are up to this place, in any order.
func (s state) values(topics []string, upTo place) []valueAt {
	var values []valueAt
	for _, topic := range topics {
		for _, v := range s[topic] {
			if !v.at.after(upTo) {
				values = append(values, v)
			}
		}
	}
	return values
}

// inOrder returns the values in the order of their places. One of several topics is there
// once.
func inOrder(values []valueAt) []valueAt {
	slices.SortFunc(values, func(a, b valueAt) int {
		return cmp.Or(cmp.Compare(a.at.ms, b.at.ms), cmp.Compare(a.at.seq, b.at.seq))
	})
	return slices.CompactFunc(values, func(a, b valueAt) bool { return a.at == b.at })
}

// readState reads the values of all keys.
func (s *Stream) readState(ctx context.Context, client *redis.Client) (state, error) {
	names, err := client.SMembers(ctx, s.stateKey()).Result()
	if err != nil {
		return nil, err
	}
	state := state{}
	for some := range slices.Chunk(names, pageEntries) {
		pipe := client.Pipeline()
		var hashes []*redis.MapStringStringCmd
		for _, name := range some {
			hashes = append(hashes, pipe.HGetAll(ctx, name))
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, err
		}
		for i, hash := range hashes {
			topic := strings.TrimPrefix(some[i], s.stateKey()+":")
			for key, text := range hash.Val() {
				if ev, err := decodeValue(text); err != nil {
					s.logger().Warn("redisstream: value skipped", "topic", topic, "key", key, "error", err)
				} else {
					state.set(topic, key, ev)
				}
			}
		}
	}
	return state, nil
}
