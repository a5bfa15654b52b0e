package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/redis/internal/redistest"
	"github.com/seed22e817d0/sse/examples/redis/redisstream"
)

var (
	proofTime = flag.Duration("proof", 0, "how long the proof runs; 0 is 8 seconds, and 30 with CI=true")
	proofSeed = flag.Uint64("seed", rand.Uint64(), "for what the proof does at random")
)

const (
	clientsInProof = 200
	eventEvery     = 25 * time.Millisecond // for each of two publishers
)

// With this set, the test program is the program itself.
const nodeEnv = "REDIS_EXAMPLE_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(nodeEnv) != "" {
		if err := run(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestEveryClientGetsTheStream runs three nodes behind HAProxy, kills and starts
// nodes at random, and restarts Redis twice. Every client's events must be those
// of its topics in the stream: no loss, no double, no other order.
func TestEveryClientGetsTheStream(t *testing.T) {
	length := *proofTime
	switch {
	case length > 0:
	case os.Getenv("CI") == "true":
		length = 30 * time.Second
	default:
		length = 8 * time.Second
	}
	t.Logf("%v, -seed=%d", length, *proofSeed)
	random := rand.New(rand.NewPCG(*proofSeed, 0))

	f := startFleet(t, 3)
	clients := f.connect(t, clientsInProof)
	load := f.publish(t, eventEvery)

	begin := time.Now()
	kills, restarts := 0, 0
	for time.Since(begin) < length {
		time.Sleep(time.Duration(random.Int64N(int64(700 * time.Millisecond))))
		n := f.nodes[random.IntN(len(f.nodes))]
		switch {
		case !n.running():
			n.start(t)
		case f.running() > 1:
			kills++
			n.stop([]os.Signal{syscall.SIGKILL, syscall.SIGTERM}[random.IntN(2)])
		}
		if restarts < 2 && time.Since(begin) > time.Duration(restarts+1)*length/3 {
			f.redis.Stop(t, []os.Signal{syscall.SIGTERM, syscall.SIGKILL}[restarts])
			time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
			f.redis.Start(t)
			restarts++
		}
	}
	for _, n := range f.nodes {
		if !n.running() {
			n.start(t)
		}
	}
	load.stop()
	figures := f.check(t, clients, load)
	failed := load.publishers[0].failed + load.publishers[1].failed
	t.Logf("%d nodes killed, Redis restarted %d times, %d publish calls failed and were repeated", kills, restarts, failed)
	t.Log(figures)

	// A run in which nothing went wrong would prove nothing.
	if kills == 0 || restarts != 2 || failed == 0 || figures.reconnects == 0 || figures.replayed == 0 {
		t.Error("too little went wrong")
	}
}

// TestLatency measures the time from the call of PublishOnce to the client, with
// nothing going wrong.
func TestLatency(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprint(nodes, " nodes"), func(t *testing.T) {
			f := startFleet(t, nodes)
			f.redis.Do(t, "CONFIG", "SET", "appendfsync", "everysec") // Redis's own default
			clients := f.connect(t, clientsInProof)
			load := f.publish(t, eventEvery)
			time.Sleep(3 * time.Second)
			load.stop()
			figures := f.check(t, clients, load)
			t.Log(figures)
			if figures.reconnects > 0 || figures.replayed > 0 {
				t.Error("something went wrong")
			}
		})
	}
}

// A fleet is some nodes behind HAProxy, and their Redis.
type fleet struct {
	redis *redistest.Server
	nodes []*nodeProcess
	addr  string // of HAProxy
}

func startFleet(t *testing.T, nodes int) *fleet {
	t.Helper()
	redistest.NeedTool(t, "haproxy")
	f := &fleet{redis: redistest.New(t), addr: redistest.FreeAddr(t)}
	f.redis.Start(t)
	env := append(os.Environ(), "LISTEN="+f.addr)
	for i := range nodes {
		n := &nodeProcess{addr: redistest.FreeAddr(t), redis: f.redis.Addr, log: logFile(t, fmt.Sprint("node", i+1))}
		n.start(t)
		t.Cleanup(func() { n.stop(syscall.SIGKILL) })
		f.nodes = append(f.nodes, n)
	}
	// So HAProxy never sees them down while nothing goes wrong.
	for _, n := range f.nodes {
		redistest.WaitUntil(t, "the node follows the stream", func() bool { s, ok := n.stats(); return ok && s.Error == "" })
	}
	for i := range 3 { // the configuration has so many, so one node may have to be all of them
		env = append(env, fmt.Sprintf("NODE%d=%s", i+1, f.nodes[i%nodes].addr))
	}
	haproxy := exec.Command("haproxy", "-db", "-f", "haproxy.cfg")
	haproxy.Env = env
	haproxy.Stderr = logFile(t, "haproxy")
	if err := haproxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { haproxy.Process.Kill(); haproxy.Wait() })
	redistest.WaitUntil(t, "HAProxy answers", func() bool {
		resp, err := http.Get("http://" + f.addr + "/stats")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	return f
}

func (f *fleet) running() (n int) {
	for _, node := range f.nodes {
		if node.running() {
			n++
		}
	}
	return n
}

// A nodeProcess is a process with one node.
type nodeProcess struct {
	addr, redis string
	log         io.Writer
	cmd         *exec.Cmd // nil while it is not running
}

func (n *nodeProcess) running() bool { return n.cmd != nil }

func (n *nodeProcess) start(t testing.TB) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.Command(self, "-redis", "redis://"+n.redis, "-addr", n.addr)
	n.cmd.Env = append(os.Environ(), nodeEnv+"=1")
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop ends the process with this signal and waits until it has ended.
func (n *nodeProcess) stop(how os.Signal) {
	if n.cmd != nil {
		n.cmd.Process.Signal(how)
		n.cmd.Wait()
		n.cmd = nil
	}
}

// clients returns how many clients the node serves.
func (n *nodeProcess) clients() int {
	s, _ := n.stats()
	return s.Clients
}

func (n *nodeProcess) stats() (s stats, ok bool) {
	resp, err := http.Get("http://" + n.addr + "/stats")
	if err != nil {
		return s, false
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s) == nil
}

// A client does what a browser does, and keeps what it got.
type client struct {
	topics []string
	lastID string
	done   chan struct{}

	mu         sync.Mutex
	got        []string // IDs of all events
	end        bool     // the last of them has come
	failed     error    // what would make a browser give up
	reconnects int
	replayed   int             // events from before a connection began
	latencies  []time.Duration // of the others
}

var topicsOfClients = [][]string{{"a"}, {"b"}, {"a", "b"}}

// connect connects clients and waits until each has its place in the stream.
func (f *fleet) connect(t *testing.T, n int) []*client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	clients := make([]*client, n)
	for i := range clients {
		c := &client{topics: topicsOfClients[i%len(topicsOfClients)], done: make(chan struct{})}
		clients[i] = c
		go c.run(ctx, f.addr)
	}
	t.Cleanup(func() {
		cancel()
		for _, c := range clients {
			<-c.done
		}
	})
	redistest.WaitUntil(t, "all clients are connected", func() bool {
		connected := 0
		for _, node := range f.nodes {
			connected += node.clients()
		}
		return connected == n
	})
	// Publishing begins with an event for all, which shows that each listens.
	f.publisher(t, "first").publish("", "a", "b")
	redistest.WaitUntil(t, "all clients have the first event", func() bool {
		return !slices.ContainsFunc(clients, func(c *client) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.got) == 0
		})
	})
	return clients
}

// run reads the stream, and connects again whenever it ends, until ctx does.
func (c *client) run(ctx context.Context, addr string) {
	defer close(c.done)
	transport := &http.Transport{DisableKeepAlives: true}
	for {
		err := c.read(ctx, transport, "http://"+addr+"/events?topic="+strings.Join(c.topics, "&topic="))
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.failed = err
		c.reconnects++
		c.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(50*time.Millisecond + rand.N(200*time.Millisecond))
	}
}

// read reads one answer to its end. It returns an error if a browser would not
// connect again.
func (c *client) read(ctx context.Context, transport *http.Transport, url string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	if c.lastID != "" {
		req.Header.Set("Last-Event-ID", c.lastID)
	}
	began := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil // a network error, after which a browser tries again
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	d := sse.NewDecoder(resp.Body)
	for e, err := range d.All() {
		if err != nil {
			break
		}
		if err := c.take(e, began); err != nil {
			return err
		}
	}
	c.lastID = cmp.Or(d.LastEventID(), c.lastID)
	return nil
}

func (c *client) take(e sse.Event, began time.Time) error {
	now := time.Now()
	if e.Type == "gap" {
		return fmt.Errorf("told of a gap after %s", e.Data)
	}
	nanos, err := strconv.ParseInt(e.Data[strings.LastIndexByte(e.Data, ' ')+1:], 10, 64)
	if err != nil {
		return err
	}
	published := time.Unix(0, nanos)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, e.ID)
	c.end = e.Type == "end"
	if published.Before(began) {
		c.replayed++
	} else {
		c.latencies = append(c.latencies, now.Sub(published))
	}
	return nil
}

// A load is two publishers at work.
type load struct {
	cancel     context.CancelFunc
	publishers []*publisher
	working    sync.WaitGroup
}

func (f *fleet) publish(t *testing.T, every time.Duration) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for _, name := range []string{"one", "two"} {
		p := f.publisher(t, name)
		l.publishers = append(l.publishers, p)
		l.working.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					p.publish("", topicsOfClients[p.published%len(topicsOfClients)]...)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.cancel()
	l.working.Wait()
}

// A publisher publishes one event after the other, and each until it knows that
// it is in the stream.
type publisher struct {
	name      string
	stream    *redisstream.Stream
	published int
	failed    int
}

func (f *fleet) publisher(t *testing.T, name string) *publisher {
	p := &publisher{name: name, stream: &redisstream.Stream{Options: f.redis.Options()}}
	t.Cleanup(func() { p.stream.Close() })
	return p
}

// publish publishes an event that says who published it as which, and when.
func (p *publisher) publish(eventType string, topics ...string) {
	e := sse.Event{Type: eventType, Data: fmt.Sprint(p.name, " ", p.published, " ", time.Now().UnixNano())}
	for key := fmt.Sprint(p.name, p.published); ; p.failed++ {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		_, err := p.stream.PublishOnce(ctx, key, e, topics...)
		cancel()
		if err == nil {
			p.published++
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// figures are what a run is judged by.
type figures struct {
	clients, events, deliveries, reconnects, replayed int
	latencies                                         []time.Duration
}

func (f figures) String() string {
	at := func(share float64) time.Duration {
		return f.latencies[int(share*float64(len(f.latencies)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d clients, %d events, %d deliveries, %d reconnects, %d replayed; latency p50 %v, p99 %v, max %v",
		f.clients, f.events, f.deliveries, f.reconnects, f.replayed, at(.5), at(.99), at(1))
}

// check ends the stream with an event for all, waits until it has come, and
// compares what each client and each publisher has with what is in the stream.
func (f *fleet) check(t *testing.T, clients []*client, l *load) figures {
	t.Helper()
	f.publisher(t, "end").publish("end", "a", "b")
	redistest.WaitUntil(t, "every client has the last event", func() bool {
		return !slices.ContainsFunc(clients, func(c *client) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return !c.end && c.failed == nil
		})
	})
	stream := f.redis.Stream(t, "events")[1:] // without the mark that the first node made
	figures := figures{clients: len(clients), events: len(stream)}
	wrong := 0
	for _, c := range clients {
		c.mu.Lock()
		defer c.mu.Unlock()
		var want []string
		for _, m := range stream {
			topics, _ := m.Values["topics"].(string)
			if slices.ContainsFunc(strings.Split(topics, "\n"), func(topic string) bool { return slices.Contains(c.topics, topic) }) {
				want = append(want, m.ID)
			}
		}
		if c.failed != nil || !slices.Equal(c.got, want) {
			if wrong++; wrong <= 5 {
				t.Errorf("client of %s: %d events, want %d; first difference %s; error %v",
					c.topics, len(c.got), len(want), difference(c.got, want), c.failed)
			}
		}
		figures.deliveries += len(c.got)
		figures.reconnects += c.reconnects
		figures.replayed += c.replayed
		figures.latencies = append(figures.latencies, c.latencies...)
	}
	if wrong > 0 {
		t.Errorf("%d of %d clients have not what is in the stream", wrong, len(clients))
	}
	for _, p := range l.publishers {
		n := 0
		for _, m := range stream {
			if data, _ := m.Values["data"].(string); strings.HasPrefix(data, p.name+" ") {
				if !strings.HasPrefix(data, fmt.Sprint(p.name, " ", n, " ")) {
					t.Errorf("entry %s holds %q, want number %d", m.ID, data, n)
				}
				n++
			}
		}
		if n != p.published {
			t.Errorf("%d events of publisher %s are in the stream, want %d", n, p.name, p.published)
		}
	}
	slices.Sort(figures.latencies)
	return figures
}

// difference describes where two sequences part.
func difference(got, want []string) string {
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			return fmt.Sprintf("at %d: got %v…, want %v…", i, got[min(i, len(got)):min(i+3, len(got))], want[min(i, len(want)):min(i+3, len(want))])
		}
	}
	return "none"
}

// logFile returns a file whose content is shown if the test fails.
func logFile(t testing.TB, name string) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(file.Name())
			t.Logf("%s:\n%s", name, log)
		}
		file.Close()
	})
	return file
}
