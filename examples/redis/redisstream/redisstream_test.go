package redisstream_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/redis/internal/redistest"
	"github.com/seed22e817d0/sse/examples/redis/redisstream"
)

// A brokers' fleet.

func TestEveryNodeServesTheSameEventsUnderTheSameIDs(t *testing.T) {
	r := startRedis(t)
	a, b := startNode(t, r, &sse.Broker{}), startNode(t, r, &sse.Broker{})
	atA, atB := a.connect(t, "", "x"), b.connect(t, "", "x", "y")

	first := publish(t, a, sse.Event{Type: "greeting", Data: "two\nlines", Retry: 2 * time.Second}, "x")
	second := publish(t, b, sse.Event{Data: "for y"}, "y")
	third := publish(t, b, sse.Event{}, "y", "x", "")
	wantEvents(t, atA,
		sse.Event{ID: first, Type: "greeting", Data: "two\nlines"},
		sse.Event{ID: third})
	wantEvents(t, atB,
		sse.Event{ID: first, Type: "greeting", Data: "two\nlines"},
		sse.Event{ID: second, Data: "for y"},
		sse.Event{ID: third})
	for _, c := range []*client{atA, atB} {
		if got := c.retry(); got != "2000" {
			t.Errorf("got the reconnection time %q, want 2000", got)
		}
	}

	// A client that moves to the other node goes on right where it was.
	moved := b.connect(t, first, "x")
	wantEvents(t, moved, sse.Event{ID: third})
	atDefault := a.connect(t, first)
	wantEvents(t, atDefault, sse.Event{ID: third})
	if got := a.Stats().Gaps + b.Stats().Gaps; got != 0 {
		t.Errorf("got %d gaps, want none", got)
	}
}

func TestAStartingNodeHasTheHistory(t *testing.T) {
	r := startRedis(t)
	var ids []string
	for i := range 20 {
		ids = append(ids, publish(t, newStream(t, r), sse.Event{Data: strconv.Itoa(i)}))
	}
	n := startNode(t, r, &sse.Broker{History: 5})
	r.Stop(t, syscall.SIGTERM) // what it serves now it has itself
	c := n.connect(t, ids[15])
	for i := 16; i < 20; i++ {
		wantEvents(t, c, sse.Event{ID: ids[i], Data: strconv.Itoa(i)})
	}
	if got := n.Stats().Gaps; got != 0 {
		t.Errorf("got %d gaps, want none", got)
	}
}

func TestHistoryIsAsLongAsTheStream(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	var want []sse.Event
	first := publish(t, s, sse.Event{Data: "first"}, "a")
	for i := range 1700 { // some pages
		e := sse.Event{Data: strconv.Itoa(i)}
		topic := []string{"a", "b", "c"}[i%3]
		e.ID = publish(t, s, e, topic)
		if topic != "b" {
			want = append(want, e)
		}
	}
	n := startNode(t, r, &sse.Broker{History: 10})
	c := n.connect(t, first, "a", "c")
	wantEvents(t, c, want...)
	last := sse.Event{Data: "live"}
	last.ID = publish(t, s, last, "c")
	wantEvents(t, c, last)
	wantEvents(t, n.connect(t, want[0].ID, "none", "c"), slices.DeleteFunc(slices.Clone(want), func(e sse.Event) bool {
		i, _ := strconv.Atoi(e.Data)
		return i%3 != 2
	})...)
}

func TestAClientFromANodeThatIsAheadGetsNothingTwice(t *testing.T) {
	r := startRedis(t)
	ahead, behind := startNode(t, r, &sse.Broker{}), startNode(t, r, &sse.Broker{})
	behind.gate.close()
	c := ahead.connect(t, "")
	var last string
	for i := range 5 {
		last = publish(t, ahead, sse.Event{Data: strconv.Itoa(i)})
		wantEvents(t, c, sse.Event{ID: last, Data: strconv.Itoa(i)})
	}
	if got := behind.broker.LastEventID(); got == last {
		t.Fatal("the node is not behind")
	}
	behind.gate.readsOnly() // CatchUp reaches Redis, the tail does not
	moved := behind.connect(t, last)
	moved.wantNothing(t, 100*time.Millisecond)
	behind.gate.open()
	sixth := publish(t, ahead, sse.Event{Data: "sixth"})
	wantEvents(t, moved, sse.Event{ID: sixth, Data: "sixth"})
}

func TestCatchUpLeavesToTheBrokerWhatIsNewToIt(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	var events []sse.Event
	add := func() {
		e := sse.Event{Data: strconv.Itoa(len(events))}
		e.ID = publish(t, s, e)
		events = append(events, e)
	}
	for range 10 {
		add()
	}
	n := startNode(t, r, &sse.Broker{History: 2})
	n.gate.readsOnly()
	add() // the node does not get these yet, but could read them
	add()
	c := n.connect(t, events[3].ID)
	wantEvents(t, c, events[4:10]...)
	c.wantNothing(t, 100*time.Millisecond)
	n.gate.open()
	wantEvents(t, c, events[10:]...)
	add()
	wantEvents(t, c, events[12])
}

func TestStreamTrimmedWhileAClientCatchesUp(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	first := publish(t, s, sse.Event{})
	var ids []string
	for range 1200 {
		ids = append(ids, publish(t, s, sse.Event{}))
	}
	n := startNode(t, r, &sse.Broker{History: 1})
	trimmed := false
	var got []sse.Event
	for e, err := range n.stream.CatchUp(t.Context(), sse.Missed{LastEventID: first, Topics: []string{""}}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
		if e.ID == ids[9] && !trimmed {
			trimmed = true
			r.Do(t, "XTRIM", "events", "MAXLEN", "100")
		}
	}
	gap := slices.IndexFunc(got, func(e sse.Event) bool { return e.Type == "gap" })
	if gap < 0 {
		t.Fatal("got no gap")
	}
	if got, want := got[gap].Data, got[gap-1].ID; got != want {
		t.Errorf("got a gap after %s, want after %s", got, want)
	}
	for i, e := range got[:gap] {
		if e.ID != ids[i] {
			t.Fatalf("got %s as event %d, want %s", e.ID, i, ids[i])
		}
	}
	rest := got[gap+1:]
	if len(rest) != 100 || rest[0].ID != ids[1100] || rest[99].ID != ids[1199] {
		t.Errorf("got %d events after the gap, want the last 100", len(rest))
	}
}

func TestHistoryIsFilledOnlyAsFarAsTheBrokerKeepsIt(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	for range 1200 {
		publish(t, s, sse.Event{Data: strings.Repeat("x", 100)})
	}
	n := startNode(t, r, &sse.Broker{HistoryBytes: 1000})
	if got := n.Stats().Published; got < 8 || got > 600 {
		t.Errorf("got %d events, want the 1,000 bytes that the Broker keeps, rounded up to a page", got)
	}
}

func TestANodeTakesOneConnection(t *testing.T) {
	r := startRedis(t)
	n := startNode(t, r, &sse.Broker{})
	var clients []*client
	for range 50 {
		clients = append(clients, n.connect(t, ""))
	}
	id := publish(t, newStream(t, r), sse.Event{Data: "x"})
	for _, c := range clients {
		wantEvents(t, c, sse.Event{ID: id, Data: "x"})
	}
	list := r.Do(t, "CLIENT", "LIST")
	if got := strings.Count(list, "name="+n.name+" "); got != 1 {
		t.Errorf("got %d connections, want 1", got)
	}
}

func TestFollowEndsWithItsContextAndItsBroker(t *testing.T) {
	r := startRedis(t)
	var b sse.Broker
	s := newStream(t, r)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() { done <- s.Follow(ctx, &b) }()
	redistest.WaitUntil(t, "the stream is followed", func() bool { return s.Err() == nil })
	why := errors.New("why")
	r.Signal(t, syscall.SIGSTOP) // so that no answer ends the read, which has 6 seconds
	began := time.Now()
	cancel(why)
	if err := <-done; err != why {
		t.Errorf("got %v, want the context's cause", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Follow took %v to end, want at once", took)
	}
	r.Signal(t, syscall.SIGCONT)

	s = newStream(t, r)
	go func() { done <- s.Follow(t.Context(), &b) }()
	redistest.WaitUntil(t, "the stream is followed", func() bool { return s.Err() == nil })
	b.Shutdown(t.Context())
	publish(t, s, sse.Event{})
	if err := <-done; !errors.Is(err, sse.ErrClosed) {
		t.Errorf("got %v, want %v", err, sse.ErrClosed)
	}
	if err := s.Follow(t.Context(), &sse.Broker{History: -1}); err == nil {
		t.Error("got no error for a Broker without a history")
	}
}

// What others put into the stream.

func TestEntriesOfOtherPrograms(t *testing.T) {
	r := startRedis(t)
	n := startNode(t, r, &sse.Broker{})
	c := n.connect(t, "", "news")
	before := n.broker.LastEventID()
	id := r.Do(t, "XADD", "events", "*", "topics", "news", "data", "by hand", "whatever", "else")
	odd := r.Do(t, "XADD", "events", "*", "topics", "news", "data", "not UTF-8: \xff")
	r.Do(t, "XADD", "events", "*", "topics", "news", "retry", "soon")
	last := r.Do(t, "XADD", "events", "*", "topics", "weather\nnews", "type", "t")
	want := []sse.Event{{ID: id, Data: "by hand"}, {ID: odd, Data: "not UTF-8: \ufffd"}, {ID: last, Type: "t"}}
	wantEvents(t, c, want...)

	small := startNode(t, r, &sse.Broker{History: 1}) // has to read them in CatchUp
	wantEvents(t, small.connect(t, before, "news"), want...)
}

func TestPublishRefusesWhatCannotBeSent(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	for _, e := range []sse.Event{{ID: "mine"}, {Type: "a\nb"}} {
		if _, err := s.Set(t.Context(), "key", e); err == nil {
			t.Errorf("got no error for %+v", e)
		}
		if _, err := s.Remove(t.Context(), "key", e); err == nil {
			t.Errorf("got no error for %+v", e)
		}
		if _, err := s.Publish(t.Context(), e); err == nil {
			t.Errorf("got no error for %+v", e)
		}
		if _, err := s.PublishOnce(t.Context(), "key", e); err == nil {
			t.Errorf("got no error for %+v", e)
		}
	}
	if _, err := s.Publish(t.Context(), sse.Event{}, "a\nb"); err == nil {
		t.Error("got no error for a topic with a line break")
	}
	if err := s.End(t.Context(), "a\nb"); err == nil {
		t.Error("got no error for a topic with a line break")
	}
	if got := r.Do(t, "EXISTS", "events"); got != "0" {
		t.Error("something was published")
	}
}

func TestMaxLenBoundsTheStream(t *testing.T) {
	r := startRedis(t)
	s := &redisstream.Stream{Options: r.Options(), MaxLen: 200, Key: "short"}
	defer s.Close()
	for i := range 1000 {
		if i%2 == 0 {
			publish(t, s, sse.Event{Data: "x"})
		} else if _, err := s.PublishOnce(t.Context(), strconv.Itoa(i), sse.Event{}); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := strconv.Atoi(r.Do(t, "XLEN", "short")); got < 200 || got > 400 {
		t.Errorf("got %d entries, want about 200", got)
	}
}

// What goes wrong, and what happens.

func TestRedisUnreachableAtStart(t *testing.T) {
	r := redistest.New(t)
	var log logBuffer
	n := newNode(t, r, &sse.Broker{})
	n.stream.Logger = log.logger()
	n.follow(t)
	redistest.WaitUntil(t, "the error is told", func() bool {
		err := n.stream.Err()
		return err != nil && strings.Contains(err.Error(), "connection refused") && strings.Contains(log.String(), "connection refused")
	})
	c := n.connect(t, "") // the HTTP side is up
	c.wantNothing(t, 100*time.Millisecond)

	r.Start(t)
	n.waitUntilFollowing(t)
	redistest.WaitUntil(t, "the client has its place", func() bool { return c.lastID() != "" })
	id := publish(t, n, sse.Event{Data: "at last"})
	wantEvents(t, c, sse.Event{ID: id, Data: "at last"})
}

func TestAClientThatWaitsForAStartingNodeGetsNoOldEvents(t *testing.T) {
	r := startRedis(t)
	for range 3 {
		publish(t, newStream(t, r), sse.Event{Data: "old"})
	}
	n := newNode(t, r, &sse.Broker{})
	n.gate.close()
	n.follow(t)
	c := n.connect(t, "")
	redistest.WaitUntil(t, "the client waits", func() bool { return n.Stats().Clients == 1 })
	n.gate.open()
	n.waitUntilFollowing(t)
	redistest.WaitUntil(t, "the client has its place", func() bool { return c.lastID() != "" })
	id := publish(t, n, sse.Event{Data: "new"})
	wantEvents(t, c, sse.Event{ID: id, Data: "new"})
}

func TestRedisGoneForAWhile(t *testing.T) {
	for _, how := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(how.String(), func(t *testing.T) {
			r := startRedis(t)
			a, b := startNode(t, r, &sse.Broker{KeepAlive: 50 * time.Millisecond}), startNode(t, r, &sse.Broker{})
			atA, atB := a.connect(t, ""), b.connect(t, "")
			first := publish(t, a, sse.Event{Data: "before"})
			wantEvents(t, atA, sse.Event{ID: first, Data: "before"})
			wantEvents(t, atB, sse.Event{ID: first, Data: "before"})

			r.Stop(t, how)
			began := time.Now()
			if _, err := a.stream.Publish(t.Context(), sse.Event{}); err == nil {
				t.Error("got no error from Publish without Redis")
			} else if took := time.Since(began); took > 2*time.Second {
				t.Errorf("Publish took %v to return %v, want at once", took, err)
			}
			redistest.WaitUntil(t, "the outage is told", func() bool { return a.stream.Err() != nil })
			alive := atA.comments.Load()
			redistest.WaitUntil(t, "clients get keep-alives", func() bool { return atA.comments.Load() > alive+3 })

			r.Start(t)
			second := publishSoon(t, b, sse.Event{Data: "after"})
			wantEvents(t, atA, sse.Event{ID: second, Data: "after"})
			wantEvents(t, atB, sse.Event{ID: second, Data: "after"})
			wantEvents(t, a.connect(t, first), sse.Event{ID: second, Data: "after"})
			if got := a.Stats().Gaps + b.Stats().Gaps; got != 0 {
				t.Errorf("got %d gaps, want none", got)
			}
		})
	}
}

func TestPublishReturnsAtItsDeadline(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	publish(t, s, sse.Event{})
	r.Signal(t, syscall.SIGSTOP)
	defer r.Signal(t, syscall.SIGCONT)
	for name, call := range map[string]func(context.Context) (string, error){
		"Publish":     func(ctx context.Context) (string, error) { return s.Publish(ctx, sse.Event{}) },
		"PublishOnce": func(ctx context.Context) (string, error) { return s.PublishOnce(ctx, "key", sse.Event{}) },
		"Set":         func(ctx context.Context) (string, error) { return s.Set(ctx, "key", sse.Event{}) },
		"Remove":      func(ctx context.Context) (string, error) { return s.Remove(ctx, "key", sse.Event{}) },
		"End":         func(ctx context.Context) (string, error) { return "", s.End(ctx) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := call(ctx)
		if took := time.Since(began); err == nil || took > 2*time.Second {
			t.Errorf("%s returned %v after %v, want an error after 200ms", name, err, took)
		}
	}
}

func TestRedisReplacedByAnEmptyOne(t *testing.T) {
	r := startRedis(t)
	a, b := startNode(t, r, &sse.Broker{}), startNode(t, r, &sse.Broker{})
	atA, atB := a.connect(t, ""), b.connect(t, "", "", "other")
	quiet := b.connect(t, "", "quiet")
	redistest.WaitUntil(t, "the client has its place", func() bool { return quiet.lastID() != "" })
	place := quiet.lastID()
	first := publish(t, a, sse.Event{Data: "before"})
	wantEvents(t, atA, sse.Event{ID: first, Data: "before"})
	wantEvents(t, atB, sse.Event{ID: first, Data: "before"})

	r.Stop(t, syscall.SIGTERM)
	r.Empty(t)
	r.Start(t)
	gap := sse.Event{Type: "gap", Data: first}
	wantBesidesID(t, atA, gap)
	wantBesidesID(t, atB, gap)
	wantBesidesID(t, quiet, sse.Event{Type: "gap", Data: place})
	second := publish(t, a, sse.Event{Data: "after"})
	after := sse.Event{ID: second, Data: "after"}
	wantEvents(t, atA, after)
	wantEvents(t, atB, after)
	for _, n := range []*node{a, b} {
		c := n.connect(t, first)
		wantBesidesID(t, c, gap)
		wantEvents(t, c, after)
		wantEvents(t, n.connect(t, atA.lastID()), publishedNow(t, n, "live"))
		atA.next(t)
		atB.next(t)
	}
}

func TestStreamDeletedUnderARunningRedis(t *testing.T) {
	r := startRedis(t)
	n := startNode(t, r, &sse.Broker{})
	c := n.connect(t, "")
	first := publish(t, n, sse.Event{Data: "before"})
	wantEvents(t, c, sse.Event{ID: first, Data: "before"})
	r.Do(t, "DEL", "events")
	wantBesidesID(t, c, sse.Event{Type: "gap", Data: first}) // without any new event
	wantEvents(t, c, publishedNow(t, n, "after"))
}

func TestStreamTrimmedPastWhereANodeStood(t *testing.T) {
	r := startRedis(t)
	there, away := startNode(t, r, &sse.Broker{}), startNode(t, r, &sse.Broker{})
	atThere, atAway := there.connect(t, ""), away.connect(t, "")
	quiet := away.connect(t, "", "quiet")
	first := publish(t, there, sse.Event{Data: "first"})
	wantEvents(t, atThere, sse.Event{ID: first, Data: "first"})
	wantEvents(t, atAway, sse.Event{ID: first, Data: "first"})

	away.gate.close()
	var events []sse.Event
	for i := range 10 {
		e := sse.Event{Data: strconv.Itoa(i)}
		e.ID = publish(t, there, e)
		events = append(events, e)
	}
	wantEvents(t, atThere, events...)
	r.Do(t, "XTRIM", "events", "MAXLEN", "3")
	away.gate.open()
	wantBesidesID(t, atAway, sse.Event{Type: "gap", Data: first})
	wantEvents(t, atAway, events[7:]...)
	if e := quiet.next(t); e.Type != "gap" {
		t.Errorf("got %+v, want a gap for a client of another topic too", e)
	}
	if got := there.Stats().Gaps; got != 0 {
		t.Errorf("got %d gaps at the node that was there, want none", got)
	}
	// Both nodes go on together, and serve each other's clients.
	last := publish(t, there, sse.Event{Data: "last"})
	wantEvents(t, atThere, sse.Event{ID: last, Data: "last"})
	wantEvents(t, atAway, sse.Event{ID: last, Data: "last"})
	wantEvents(t, away.connect(t, events[8].ID), events[9], sse.Event{ID: last, Data: "last"})
}

func TestStreamTrimmedPastAClientsPlace(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	var events []sse.Event
	for i := range 20 {
		e := sse.Event{Data: strconv.Itoa(i)}
		e.ID = publish(t, s, e)
		events = append(events, e)
	}
	r.Do(t, "XTRIM", "events", "MAXLEN", "10")
	n := startNode(t, r, &sse.Broker{History: 2})
	for _, id := range []string{events[4].ID, "1-0", "no-place", "99999999999999-0"} {
		c := n.connect(t, id)
		wantBesidesID(t, c, sse.Event{Type: "gap", Data: id})
		wantEvents(t, c, events[10:]...)
	}
	wantEvents(t, n.connect(t, events[10].ID), events[11:]...)
}

// What has ended.

var endEvent = sse.Event{ID: "sse-end", Type: "end"}

func TestEndEndsATopicOnEveryNode(t *testing.T) {
	r := startRedis(t)
	a, b := startNode(t, r, &sse.Broker{}), startNode(t, r, &sse.Broker{})
	atA, atB := a.connectNew(t, "job"), b.connectNew(t, "job")
	both := b.connectNew(t, "job", "news")
	one, two := publishedNow(t, a, "one", "job"), publishedNow(t, b, "two", "job")
	for range 2 { // an end that is told again is none
		if err := a.stream.End(t.Context(), "job"); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*client{atA, atB} {
		wantEvents(t, c, one, two, endEvent)
		c.wantClosed(t)
	}
	// What comes after the end is for the other topics.
	publishedNow(t, a, "late", "job")
	late := publishedNow(t, b, "late news", "job", "news")
	last := publishedNow(t, a, "news", "news")
	wantEvents(t, both, one, two, late, last)
	for _, n := range []*node{a, b} {
		redistest.WaitUntil(t, "the node has all entries", func() bool { return n.broker.LastEventID() == last.ID })
		for _, c := range []*client{n.connect(t, "", "job"), n.connect(t, sse.Earliest, "job")} { // it connects too late
			wantEvents(t, c, one, two, endEvent)
			c.wantClosed(t)
		}
		c := n.connect(t, one.ID, "job")
		wantEvents(t, c, two, endEvent)
		c.wantClosed(t)
		resp, err := http.Get(n.URL + "?topic=job&lastEventId=sse-end")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Errorf("with the ID of the end got status %d, want 204", resp.StatusCode)
		}
	}
}

// A stream of 10 entries, in which the end is one, is the first, and is no more.
func TestANodeThatStartsAfterTheEnd(t *testing.T) {
	r := startRedis(t)
	r.Do(t, "CONFIG", "SET", "stream-node-max-entries", "1") // so that MaxLen is exact
	s := newStream(t, r)
	s.MaxLen = 10
	running := startNode(t, r, &sse.Broker{})
	restarted := startNode(t, r, &sse.Broker{})
	restart := func() {
		restarted.broker.Shutdown(t.Context())
		restarted = startNode(t, r, &sse.Broker{})
	}
	var job []sse.Event
	for i := range 3 {
		job = append(job, publishedNow(t, s, strconv.Itoa(i), "job"))
	}
	if err := s.End(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	var news []sse.Event
	more := func(n int) {
		for range n {
			news = append(news, publishedNow(t, s, "news", "news"))
		}
	}
	check := func(n *node, lastEventID string, want ...sse.Event) {
		t.Helper()
		c := n.connect(t, lastEventID, "job")
		for _, want := range want {
			if got := c.next(t); got.Type == "gap" && want.Type == "gap" {
				continue // its ID is that of a place
			} else if got != want {
				t.Fatalf("got %+v, want %+v", got, want)
			}
		}
		if len(want) == 0 || want[len(want)-1].Type == "gap" {
			c.wantNothing(t, 100*time.Millisecond)
			return
		}
		c.wantClosed(t)
	}
	gap := sse.Event{Type: "gap"}

	more(5)
	restart()
	for _, n := range []*node{running, restarted} {
		check(n, "", append(slices.Clone(job), endEvent)...)
		check(n, job[1].ID, job[2], endEvent)
	}
	more(4) // the stream begins with the end
	restart()
	check(running, "", append(slices.Clone(job), endEvent)...)
	check(restarted, "", endEvent)
	check(running, job[1].ID, job[2], endEvent)
	check(restarted, job[1].ID, gap, endEvent)
	more(1)
	restart()
	check(running, "", append(slices.Clone(job), endEvent)...)
	check(running, job[1].ID, job[2], endEvent)
	check(restarted, "") // this node has never heard of the job
	check(restarted, job[1].ID, gap)
}

func TestAnEndThatIsOnlyInTheStream(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	one, two := publishedNow(t, s, "one", "job"), publishedNow(t, s, "two", "job")
	news := publishedNow(t, s, "news", "news")
	if err := s.End(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	publishedNow(t, s, "late", "job")
	late := publishedNow(t, s, "late", "job", "news")
	for range 10 {
		publishedNow(t, s, "other", "other")
	}
	n := startNode(t, r, &sse.Broker{History: 2})
	c := n.connect(t, one.ID, "job")
	wantEvents(t, c, two, endEvent)
	c.wantClosed(t)
	c = n.connect(t, one.ID, "job", "news")
	wantEvents(t, c, two, news, late, publishedNow(t, s, "live", "news"))
}

// The place of a client of a node that began right after an end is that of the end,
// which is the place of no event.
func TestAClientWhosePlaceIsAnEnd(t *testing.T) {
	r := startRedis(t)
	running := startNode(t, r, &sse.Broker{KeepAlive: 50 * time.Millisecond})
	event := publishedNow(t, running, "event", "job")
	if err := running.stream.End(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, running.connect(t, sse.Earliest, "job"), event, endEvent)
	r.Do(t, "XTRIM", "events", "MAXLEN", "1")
	place := startNode(t, r, &sse.Broker{}).broker.LastEventID()
	c := running.connect(t, place, "news")
	alive := c.comments.Load()
	redistest.WaitUntil(t, "the client gets keep-alives", func() bool { return c.comments.Load() > alive+3 })
	wantEvents(t, c, publishedNow(t, running, "news", "news"))
}

// Values of keys.

func TestKeysHaveTheSameValuesOnEveryNode(t *testing.T) {
	r := startRedis(t)
	a, b := startNode(t, r, &sse.Broker{}), startNode(t, r, &sse.Broker{})
	atB := b.connectNew(t, "prices")
	before := a.broker.LastEventID()
	first := set(t, a, "x", sse.Event{Type: "price", Data: "1"}, "prices")
	two := set(t, b, "y", sse.Event{Type: "price", Data: "two\nlines", Retry: 2 * time.Second}, "prices", "other")
	two.Retry = 0                  // it is no part of what a client gets as the event
	wantEvents(t, atB, first, two) // before they are replaced
	three := set(t, a, "x", sse.Event{Data: "3"}, "prices")
	four := publishedNow(t, a, "an event", "prices")
	five := set(t, b, "z", sse.Event{Data: "5"}, "prices")
	wantEvents(t, atB, three, four, five)
	six := sse.Event{Data: "gone"}
	id, err := a.stream.Remove(t.Context(), "z", six, "prices")
	if err != nil {
		t.Fatal(err)
	}
	six.ID = id
	wantEvents(t, atB, six)
	c := startNode(t, r, &sse.Broker{})
	for _, n := range []*node{a, b, c} {
		redistest.WaitUntil(t, "the node has all entries", func() bool { return n.broker.LastEventID() == six.ID })
		if got := n.Stats().Keys; got != 3 {
			t.Errorf("got %d keys in the Broker, want x, y, and y of the other topic", got)
		}
		wantEvents(t, n.connect(t, before, "prices"), two, three, four, six) // from the Broker's history
		for topics, want := range map[string][]sse.Event{
			"prices": {two, three}, "other": {two}, "prices,other": {two, three}, "none": nil,
		} {
			c := n.connect(t, "", strings.Split(topics, ",")...)
			for _, want := range want {
				want.ID = "" // no client is to go on in the middle of the state
				wantEvents(t, c, want)
				if got := c.retry(); got != "2000" {
					t.Errorf("got the reconnection time %q, want that of the value", got)
				}
			}
			redistest.WaitUntil(t, "the client has its place", func() bool { return c.lastID() == six.ID })
			c.wantNothing(t, 50*time.Millisecond)
		}
	}
	live := c.connectNew(t, "prices")
	live.next(t)
	live.next(t)
	wantEvents(t, live, set(t, a, "x", sse.Event{Data: "7"}, "prices"))
}

func TestValuesOutliveTheStream(t *testing.T) {
	r := startRedis(t)
	r.Do(t, "CONFIG", "SET", "stream-node-max-entries", "1") // so that MaxLen is exact
	s := newStream(t, r)
	s.MaxLen = 10
	running := startNode(t, r, &sse.Broker{})
	old := set(t, s, "old", sse.Event{Data: "old"}, "a")
	set(t, s, "removed", sse.Event{Data: "removed"}, "a")
	set(t, s, "ended", sse.Event{Data: "ended"}, "b")
	set(t, s, "removed", sse.Event{Data: "removed"}, "c")
	if _, err := s.Remove(t.Context(), "removed", sse.Event{}, "c"); err != nil {
		t.Fatal(err)
	}
	set(t, s, "replaced", sse.Event{Data: "replaced"}, "a")
	if _, err := s.Remove(t.Context(), "removed", sse.Event{}, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.End(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		publishedNow(t, s, "other", "other")
	}
	event := publishedNow(t, s, "event", "a")
	set(t, s, "replaced", sse.Event{Data: "replaced again"}, "a")
	replaced := set(t, s, "replaced", sse.Event{Data: "newest"}, "a")
	old.ID = ""
	restarted := startNode(t, r, &sse.Broker{})
	for _, n := range []*node{running, restarted} {
		redistest.WaitUntil(t, "the node has all entries", func() bool { return n.broker.LastEventID() == replaced.ID })
		c := n.connect(t, "", "a")
		wantEvents(t, c, old, sse.Event{Data: "newest"})
		c = n.connect(t, "1-0", "a")
		wantBesidesID(t, c, sse.Event{Type: "gap", Data: "1-0"})
		wantBesidesID(t, c, old)
		wantEvents(t, c, event, replaced)
		c.wantNothing(t, 50*time.Millisecond)
	}
	c := restarted.connect(t, "", "b")
	c.wantNothing(t, 50*time.Millisecond)
	// The stream begins with a value, of which there is no second one before it.
	r.Do(t, "XTRIM", "events", "MAXLEN", "1")
	c = restarted.connect(t, "1-0", "a")
	wantBesidesID(t, c, sse.Event{Type: "gap", Data: "1-0"})
	wantBesidesID(t, c, old)
	wantEvents(t, c, replaced)
	// Only what is a value takes memory in Redis.
	if got := r.Do(t, "SMEMBERS", "events:state"); got != "[events:state:a]" {
		t.Errorf("got the hashes %s, want that of one topic", got)
	}
	if got := r.Do(t, "DBSIZE"); got != "3" {
		t.Errorf("got %s keys in Redis, want the stream, the set and a hash", got)
	}
	r.Stop(t, syscall.SIGTERM) // newcomers do without it
	wantEvents(t, restarted.connect(t, "", "a"), old, sse.Event{Data: "newest"})
}

func TestAClientThatCatchesUpGetsNoReplacedValues(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	first := publishedNow(t, s, "first", "a")
	set(t, s, "x", sse.Event{Data: "1"}, "a")
	inB := set(t, s, "y", sse.Event{Data: "2"}, "a", "b") // y is replaced in a only
	event := publishedNow(t, s, "event", "a")
	x := set(t, s, "x", sse.Event{Data: "3"}, "a")
	y := set(t, s, "y", sse.Event{Data: "4"}, "a")
	z := set(t, s, "z", sse.Event{Data: "5"}, "a")
	gone := sse.Event{Data: "gone"}
	var err error
	if gone.ID, err = s.Remove(t.Context(), "z", gone, "a"); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		publishedNow(t, s, "other", "other")
	}
	n := startNode(t, r, &sse.Broker{History: 2})
	c := n.connect(t, first.ID, "a")
	wantEvents(t, c, event, x, y, z, gone)
	c = n.connect(t, first.ID, "a", "b")
	wantEvents(t, c, inB, event, x, y, z, gone)
}

// A program in another language may append a value and note nothing beside the stream.
func TestAValueThatIsOnlyInTheStream(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	first := publishedNow(t, s, "first", "a")
	old := set(t, s, "x", sse.Event{Data: "1"}, "a")
	x := sse.Event{ID: r.Do(t, "XADD", "events", "*", "topics", "a", "key", "x", "data", "2"), Data: "2"}
	y := sse.Event{ID: r.Do(t, "XADD", "events", "*", "topics", "a", "key", "y", "data", "3"), Data: "3"}
	for range 10 {
		publishedNow(t, s, "other", "other")
	}
	n := startNode(t, r, &sse.Broker{History: 2})
	c := n.connect(t, first.ID, "a")
	wantEvents(t, c, old, x, y) // the node does not know that the first was replaced
}

func TestTheValuesOfAnEndedTopicAreForgottenWithItsEnd(t *testing.T) {
	r := startRedis(t)
	n := startNode(t, r, &sse.Broker{History: 2})
	set(t, n, "x", sse.Event{Data: "1"}, "a")
	if err := n.stream.End(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var last sse.Event
	for range 300 { // a Broker keeps at least 256
		last = publishedNow(t, n, "other", "other")
	}
	redistest.WaitUntil(t, "the node has all entries", func() bool { return n.broker.LastEventID() == last.ID })
	c := n.connect(t, "", "a")
	c.wantNothing(t, 50*time.Millisecond)
}

func TestAValueThatChangesAsANodeStarts(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	set(t, s, "x", sse.Event{Data: "1"}, "a")
	set(t, s, "y", sse.Event{Data: "1"}, "a")
	set(t, s, "z", sse.Event{Data: "1"}, "a")
	n := newNode(t, r, &sse.Broker{})
	changed := false
	n.gate.before("smembers", func() { // between the entries and the values
		changed = true
		set(t, s, "x", sse.Event{Data: "2"}, "a")
		if _, err := s.Remove(t.Context(), "y", sse.Event{}, "a"); err != nil {
			t.Error(err)
		}
	})
	n.follow(t)
	n.waitUntilFollowing(t)
	last := publishedNow(t, s, "last", "other")
	redistest.WaitUntil(t, "the node has all entries", func() bool { return n.broker.LastEventID() == last.ID })
	if !changed {
		t.Fatal("the node did not read the values")
	}
	c := n.connect(t, "", "a")
	wantEvents(t, c, sse.Event{Data: "1"}, sse.Event{Data: "2"})
	c.wantNothing(t, 50*time.Millisecond)
}

func TestAClientThatWaitsForAStartingNodeGetsTheValuesOnce(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	set(t, s, "x", sse.Event{Data: "1"})
	publishedNow(t, s, "old")
	n := newNode(t, r, &sse.Broker{})
	n.gate.close()
	n.follow(t)
	c := n.connect(t, "")
	redistest.WaitUntil(t, "the client waits", func() bool { return n.Stats().Clients == 1 })
	n.gate.open()
	n.waitUntilFollowing(t)
	wantEvents(t, c, sse.Event{Data: "1"})
	redistest.WaitUntil(t, "the client has its place", func() bool { return c.lastID() != "" })
	wantEvents(t, c, publishedNow(t, s, "new"))
}

// Whatever happens to nodes and connections, what a page has made of its events is what
// the keys' values are.
func TestEveryPageShowsTheValues(t *testing.T) {
	r := startRedis(t)
	r.Do(t, "CONFIG", "SET", "stream-node-max-entries", "1") // so that MaxLen is exact
	s := newStream(t, r)
	s.MaxLen = 30
	nodes := make([]*node, 2)
	var urls [2]atomic.Value
	restart := func(i int) {
		if nodes[i] != nil {
			nodes[i].CloseClientConnections()
		}
		nodes[i] = startNode(t, r, &sse.Broker{History: 10})
		urls[i].Store(nodes[i].URL + "?topic=a")
	}
	restart(0)
	restart(1)
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	pages := make([]*page, 10)
	for i := range pages {
		pages[i] = &page{}
		working.Go(func() {
			for ctx.Err() == nil {
				stay := time.Duration(rand.N(60)) * time.Millisecond
				if rand.N(10) == 0 {
					stay = time.Second
				}
				pages[i].read(ctx, urls[rand.N(2)].Load().(string), stay)
				time.Sleep(time.Duration(rand.N(100)) * time.Millisecond)
			}
		})
	}
	want := map[string]string{}
	for n := range 1500 {
		key := strconv.Itoa(rand.N(20))
		switch what := rand.N(20); {
		case what < 10:
			want[key] = strconv.Itoa(n)
			set(t, s, key, sse.Event{Type: "set", Data: key + " " + want[key]}, "a")
		case what < 14:
			delete(want, key)
			if _, err := s.Remove(t.Context(), key, sse.Event{Type: "remove", Data: key}, "a"); err != nil {
				t.Fatal(err)
			}
		default:
			publishedNow(t, s, "other", "a")
		}
		if n%300 == 150 {
			restart(rand.N(2))
		}
	}
	for i, p := range pages {
		redistest.WaitUntil(t, fmt.Sprintf("page %d shows %v", i, want), func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return maps.Equal(p.shows, want)
		})
	}
}

// A page shows the value of each key.
type page struct {
	lastID string

	mu    sync.Mutex
	shows map[string]string
}

// read reads a stream for a while, from where the page has come to.
func (p *page) read(ctx context.Context, url string, stay time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, stay)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		panic(err)
	}
	if p.lastID == "" {
		p.clear()
	} else {
		req.Header.Set("Last-Event-ID", p.lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	d := sse.NewDecoder(resp.Body)
	for e := range d.All() {
		key, value, _ := strings.Cut(e.Data, " ")
		switch e.Type {
		case "gap":
			p.clear()
		case "set":
			p.mu.Lock()
			p.shows[key] = value
			p.mu.Unlock()
		case "remove":
			p.mu.Lock()
			delete(p.shows, key)
			p.mu.Unlock()
		}
	}
	p.lastID = cmp.Or(d.LastEventID(), p.lastID)
}

func (p *page) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shows = map[string]string{}
}

// Idempotency.

func TestPublishOnceAppendsOnce(t *testing.T) {
	r := startRedis(t)
	s := newStream(t, r)
	s.OnceFor = 300 * time.Millisecond
	once := func(key string) string {
		id, err := s.PublishOnce(t.Context(), key, sse.Event{Data: key})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second := once("order 1"), once("order 2")
	if first == second {
		t.Errorf("two keys have the ID %s", first)
	}
	if again := once("order 1"); again != first {
		t.Errorf("got ID %s the second time, want %s", again, first)
	}
	if got := r.Do(t, "XLEN", "events"); got != "2" {
		t.Errorf("got %s entries, want 2", got)
	}
	redistest.WaitUntil(t, "the key is forgotten", func() bool { return once("order 1") != first })
}

// The publisher cannot know whether an append whose answer got lost was done.
func TestARetryAfterALostAnswerDoublesNothing(t *testing.T) {
	r := startRedis(t)
	g := &gate{addr: r.Addr}
	opt := r.Options()
	opt.Dialer = g.dial
	s := &redisstream.Stream{Options: opt}
	defer s.Close()
	if _, err := s.PublishOnce(t.Context(), "warm", sse.Event{}); err != nil {
		t.Fatal(err)
	}
	once := func() (string, error) { return s.PublishOnce(t.Context(), "order 1", sse.Event{Data: "once"}) }
	plain := func() (string, error) { return s.Publish(t.Context(), sse.Event{Data: "plain"}) }
	for name, c := range map[string]struct {
		call func() (string, error)
		want int64
	}{"PublishOnce": {once, 1}, "Publish": {plain, 2}} {
		r.Do(t, "DEL", "events")
		g.loseNextAnswer()
		if _, err := c.call(); err == nil {
			t.Fatalf("%s: got no error, the answer was not lost", name)
		}
		redistest.WaitUntil(t, "the append was done", func() bool { return r.Do(t, "XLEN", "events") == "1" })
		if _, err := c.call(); err != nil {
			t.Fatal(err)
		}
		if got := r.Do(t, "XLEN", "events"); got != fmt.Sprint(c.want) {
			t.Errorf("%s: got %s entries after the retry, want %d", name, got, c.want)
		}
	}
}

// Helpers.

func startRedis(t *testing.T) *redistest.Server {
	t.Helper()
	r := redistest.New(t)
	r.Start(t)
	return r
}

func newStream(t *testing.T, r *redistest.Server) *redisstream.Stream {
	s := &redisstream.Stream{Options: r.Options()}
	t.Cleanup(func() { s.Close() })
	return s
}

// A gate is a way to Redis that can be closed.
type gate struct {
	addr  string
	mu    sync.Mutex
	state int
	conns []net.Conn
	lose  atomic.Bool
	hooks map[string]func() // called once before a command is sent
}

const (
	gateOpen = iota
	gateShut
	gateReadsOnly // connections of commands pass, that of the tail does not
)

func (g *gate) set(state int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = state
	if state == gateOpen {
		return
	}
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

func (g *gate) close()          { g.set(gateShut) }
func (g *gate) open()           { g.set(gateOpen) }
func (g *gate) readsOnly()      { g.set(gateReadsOnly) }
func (g *gate) loseNextAnswer() { g.lose.Store(true) }

// before calls do before the first command of that name is sent.
func (g *gate) before(command string, do func()) { g.hooks = map[string]func(){command: do} }

func (g *gate) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == gateShut {
		return nil, errors.New("the gate is closed")
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", g.addr)
	if err != nil {
		return nil, err
	}
	g.conns = append(g.conns, c)
	return &gateConn{TCPConn: c.(*net.TCPConn), gate: g, noTail: g.state == gateReadsOnly}, nil
}

// A gateConn is a connection through a gate.
type gateConn struct {
	*net.TCPConn // the client looks at the socket itself, to see whether it is still good
	gate         *gate
	noTail       bool
	lost         bool
}

func (c *gateConn) Write(p []byte) (int, error) {
	if c.noTail && bytes.Contains(bytes.ToLower(p), []byte("xread")) {
		return 0, errors.New("the gate is closed to the tail")
	}
	for command, do := range c.gate.hooks {
		if bytes.Contains(bytes.ToLower(p), []byte(command)) {
			delete(c.gate.hooks, command)
			do()
		}
	}
	appends := bytes.Contains(bytes.ToUpper(p), []byte("XADD")) || bytes.Contains(bytes.ToUpper(p), []byte("EVAL"))
	if appends && c.gate.lose.CompareAndSwap(true, false) {
		c.lost = true
	}
	return c.TCPConn.Write(p)
}

func (c *gateConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if c.lost {
		c.Close()
		return 0, io.EOF
	}
	return n, err
}

// A node is one of the processes behind a load balancer.
type node struct {
	*httptest.Server
	name   string
	gate   *gate
	stream *redisstream.Stream
	broker *sse.Broker
}

var nodes atomic.Int64

func newNode(t *testing.T, r *redistest.Server, b *sse.Broker) *node {
	t.Helper()
	n := &node{name: fmt.Sprint("node", nodes.Add(1)), gate: &gate{addr: r.Addr}, broker: b}
	opt := r.Options()
	opt.ClientName = n.name
	opt.Dialer = n.gate.dial
	n.stream = &redisstream.Stream{Options: opt, Logger: slog.Default()}
	b.CatchUp = n.stream.CatchUp
	b.Logger = slog.Default()
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.broker.Serve(w, r, r.URL.Query()["topic"]...)
	}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n.broker.Shutdown(ctx)
		n.Server.Close()
		n.stream.Close()
	})
	return n
}

func (n *node) follow(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { n.stream.Follow(ctx, n.broker); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (n *node) waitUntilFollowing(t *testing.T) {
	t.Helper()
	redistest.WaitUntil(t, "the node follows the stream", func() bool { return n.stream.Err() == nil })
}

func startNode(t *testing.T, r *redistest.Server, b *sse.Broker) *node {
	t.Helper()
	n := newNode(t, r, b)
	n.follow(t)
	n.waitUntilFollowing(t)
	return n
}

func (n *node) Stats() sse.Stats { return n.broker.Stats() }

func (n *node) Publish(ctx context.Context, e sse.Event, topics ...string) (string, error) {
	return n.stream.Publish(ctx, e, topics...)
}

func (n *node) Set(ctx context.Context, key string, e sse.Event, topics ...string) (string, error) {
	return n.stream.Set(ctx, key, e, topics...)
}

// A client reads a stream as a browser does.
type client struct {
	events   chan sse.Event
	comments atomic.Int64
	mu       sync.Mutex
	place    string
	wait     string // the newest reconnection time
}

// connect connects a client with this Last-Event-ID to the topics. It returns
// when the node has begun to serve it.
func (n *node) connect(t *testing.T, lastEventID string, topics ...string) *client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	url := n.URL + "?topic=" + strings.Join(topics, "&topic=")
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("got status %s", resp.Status)
	}
	c := &client{events: make(chan sse.Event, 10_000)}
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		defer close(c.events)
		defer resp.Body.Close()
		d := sse.NewDecoder(io.TeeReader(resp.Body, c))
		for e := range d.All() {
			c.events <- e
		}
	}()
	return c
}

// connectNew connects a client without an ID and waits until it has its place: what is
// published from then on, it gets.
func (n *node) connectNew(t *testing.T, topics ...string) *client {
	t.Helper()
	c := n.connect(t, "", topics...)
	redistest.WaitUntil(t, "the client has its place", func() bool { return c.lastID() != "" })
	return c
}

// Write looks at what the client is sent, for what no event shows.
func (c *client) Write(p []byte) (int, error) {
	c.comments.Add(int64(bytes.Count(p, []byte(":\n"))))
	for line := range strings.Lines(string(p)) {
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			c.mu.Lock()
			c.place = strings.TrimSpace(id)
			c.mu.Unlock()
		}
		if ms, ok := strings.CutPrefix(line, "retry: "); ok {
			c.mu.Lock()
			c.wait = strings.TrimSpace(ms)
			c.mu.Unlock()
		}
	}
	return len(p), nil
}

func (c *client) lastID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.place
}

func (c *client) retry() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wait
}

func (c *client) next(t *testing.T) sse.Event {
	t.Helper()
	select {
	case e, ok := <-c.events:
		if !ok {
			t.Fatal("the stream has ended")
		}
		return e
	case <-time.After(15 * time.Second):
		t.Fatal("no event came")
	}
	panic("unreachable")
}

// wantNothing fails if an event comes within d.
func (c *client) wantNothing(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case e, ok := <-c.events:
		t.Fatalf("got %+v (%v), want nothing", e, ok)
	case <-time.After(d):
	}
}

// wantClosed fails if an event comes, or if the stream does not end.
func (c *client) wantClosed(t *testing.T) {
	t.Helper()
	select {
	case e, ok := <-c.events:
		if ok {
			t.Fatalf("got %+v, want the end of the stream", e)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("the stream does not end")
	}
}

func wantEvents(t *testing.T, c *client, want ...sse.Event) {
	t.Helper()
	for _, want := range want {
		if got := c.next(t); got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

// wantBesidesID is wantEvents for one event whose ID does not matter.
func wantBesidesID(t *testing.T, c *client, want sse.Event) {
	t.Helper()
	got := c.next(t)
	if got.ID = ""; got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

type publisher interface {
	Publish(context.Context, sse.Event, ...string) (string, error)
}

func publish(t *testing.T, p publisher, e sse.Event, topics ...string) (id string) {
	t.Helper()
	id, err := p.Publish(t.Context(), e, topics...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// publishedNow publishes an event and returns it as a client gets it.
func publishedNow(t *testing.T, p publisher, data string, topics ...string) sse.Event {
	t.Helper()
	return sse.Event{ID: publish(t, p, sse.Event{Data: data}, topics...), Data: data}
}

type setter interface {
	Set(context.Context, string, sse.Event, ...string) (string, error)
}

// set sets a key's value and returns it as a client gets it.
func set(t *testing.T, s setter, key string, e sse.Event, topics ...string) sse.Event {
	t.Helper()
	id, err := s.Set(t.Context(), key, e, topics...)
	if err != nil {
		t.Fatal(err)
	}
	e.ID = id
	return e
}

// publishSoon publishes as soon as Redis is there again.
func publishSoon(t *testing.T, p publisher, e sse.Event) (id string) {
	t.Helper()
	redistest.WaitUntil(t, "Redis takes an event", func() bool {
		var err error
		id, err = p.Publish(t.Context(), e)
		return err == nil
	})
	return id
}

// A logBuffer keeps what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
