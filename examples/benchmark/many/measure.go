package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/memnet"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

// scenarios are what can be measured.
var scenarios = []string{"tcp/serve", "tcp/detach", "memory/serve", "memory/detach", "h2c/serve"}

const (
	bytes    = 100             // of an event's data
	burst    = 16              // events published together
	tries    = 3               // of what is over in a moment; the median counts
	patience = 5 * time.Minute // for anything
	spare    = 100             // open files that are not clients
)

type config struct {
	Clients   int
	Streams   int
	KeepAlive time.Duration
	Idle      time.Duration
	Addr      string
}

// A result is what was measured in one scenario. The process is the server's
// alone, but for the network in memory, where the clients are in it too.
type result struct {
	Scenario string
	Clients  int
	Conns    int // that they share

	Connect   time.Duration // all clients
	RSS       float64       // bytes for each client, as it is
	Collected float64       // the same after a garbage collection
	IdleCPU   float64       // in processors
	One       delivery
	Burst     delivery
	Shutdown  time.Duration // of the Broker, until all clients had been told
	Server    time.Duration // of the http.Server, after that
	Return    time.Duration // until all clients were back and had what they missed
	Missed    int           // events that was, for each

	Events   int64 // in all
	Received int64 // by all clients
	Lost     int64
	Doubled  int64
	Damaged  int64
}

// A delivery is what it takes to send to all clients.
type delivery struct {
	Last time.Duration // until the last one has it
	CPU  float64       // seconds, for each event and client
}

// A fleet is the clients: load.Fleet in this process or load.Process.
type fleet interface {
	Connect(n int, from load.Place, patience time.Duration) (load.Report, error)
	Await(number int64, patience time.Duration) (load.Report, error)
	AwaitEnd(patience time.Duration) (load.Report, error)
	Close() error
}

// A site is a server with one broker.
type site struct {
	network string
	handler func(*sse.Broker) http.Handler
	config  config
	broker  *sse.Broker
	http    *http.Server
	addr    string
	memory  *memnet.Listener

	log []sse.Event // all events, as a database would have them
}

func measure(name string, c config, progress io.Writer) (r result, err error) {
	s, err := newSite(name, c)
	if err != nil {
		return r, err
	}
	r = result{Scenario: name, Clients: c.Clients}
	if r.Clients == 0 {
		if r.Clients, err = mostClients(s.network); err != nil {
			return r, err
		}
	}
	r.Conns = r.Clients
	if s.network == "h2c" {
		r.Conns = (r.Clients + c.Streams - 1) / c.Streams
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(progress, "%-14s%s\n", name, fmt.Sprintf(format, args...))
	}
	if err := s.start(c.Addr); err != nil {
		return r, err
	}
	defer func() { s.stop(0) }()
	clients, err := s.clients()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, clients.Close()) }()

	debug.FreeOSMemory()
	before, err := meter.Now()
	if err != nil {
		return r, err
	}
	start := time.Now()
	if err := connect(clients, r.Clients); err != nil {
		return r, err
	}
	r.Connect = time.Since(start)
	say("%d clients are connected after %v", r.Clients, r.Connect)

	connected := meter.CPU()
	time.Sleep(c.Idle)
	after, err := meter.Now()
	if err != nil {
		return r, err
	}
	r.IdleCPU = (after.CPU - connected).Seconds() / c.Idle.Seconds()
	r.RSS = float64(after.RSS-before.RSS) / float64(r.Clients)
	debug.FreeOSMemory()
	if after, err = meter.Now(); err != nil {
		return r, err
	}
	r.Collected = float64(after.RSS-before.RSS) / float64(r.Clients)
	say("%.0f bytes for each, %.1f%% of a processor while idle", r.RSS, 100*r.IdleCPU)

	if r.One, err = s.deliver(clients, r.Clients, 1); err != nil {
		return r, err
	}
	if r.Burst, err = s.deliver(clients, r.Clients, burst); err != nil {
		return r, err
	}
	say("one event reaches the last after %v, a burst after %v", r.One.Last, r.Burst.Last)

	if r.Shutdown, r.Server, err = s.stop(patience); err != nil {
		return r, fmt.Errorf("shutdown: %w", err)
	}
	if report, err := clients.AwaitEnd(patience); err != nil || report.Clients > 0 {
		return r, cmp.Or(err, fmt.Errorf("%d clients are still connected after the shutdown", report.Clients))
	}
	say("the server has shut down after %v + %v", r.Shutdown, r.Server)

	r.Missed = burst
	s.write(burst)
	if err := s.restart(clients); err != nil {
		return r, err
	}
	start = time.Now()
	if err := connect(clients, r.Clients); err != nil {
		return r, err
	}
	if err := s.await(clients, r.Clients); err != nil {
		return r, err
	}
	r.Return = time.Since(start)
	s.publish(s.write(1)...)
	if err := s.await(clients, r.Clients); err != nil {
		return r, err
	}
	report, err := clients.Await(int64(len(s.log)), 0)
	if err != nil {
		return r, err
	}
	r.Events, r.Received = int64(len(s.log)), report.Received
	r.Lost, r.Doubled, r.Damaged = report.Lost, report.Doubled, report.Damaged
	say("all are back after %v; of %d deliveries %d are lost, %d doubled, %d damaged",
		r.Return, r.Events*int64(r.Clients), r.Events*int64(r.Clients)-r.Received, r.Doubled, r.Damaged)
	if gaps := s.broker.Stats().Gaps; gaps > 0 {
		return r, fmt.Errorf("%d clients were told of a gap", gaps)
	}
	return r, nil
}

// mostClients returns how many clients to connect.
func mostClients(network string) (int, error) {
	if network != "tcp" {
		return 100_000, nil
	}
	files, err := meter.Files()
	return files - spare, err
}

func newSite(scenario string, c config) (*site, error) {
	network, way, _ := strings.Cut(scenario, "/")
	s := &site{network: network, config: c}
	switch way {
	case "serve":
		s.handler = func(b *sse.Broker) http.Handler { return b }
	case "detach":
		s.handler = func(b *sse.Broker) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil) })
		}
	}
	if !slices.Contains(scenarios, scenario) {
		return nil, fmt.Errorf("no scenario is called %q; there are %s", scenario, strings.Join(scenarios, ", "))
	}
	return s, nil
}

// start starts a server with a new broker.
func (s *site) start(addr string) error {
	s.broker = &sse.Broker{KeepAlive: s.config.KeepAlive}
	mux := http.NewServeMux()
	mux.Handle("GET /events", s.handler(s.broker))
	s.http = &http.Server{Handler: mux}
	var listener net.Listener
	if s.network == "memory" {
		s.memory = memnet.Listen()
		listener = s.memory
	} else {
		var err error
		if listener, err = net.Listen("tcp", addr); err != nil {
			return err
		}
	}
	if s.network == "h2c" {
		s.http.Protocols = new(http.Protocols)
		s.http.Protocols.SetUnencryptedHTTP2(true)
	}
	s.addr = listener.Addr().String()
	go s.http.Serve(listener)
	return nil
}

func (s *site) clients() (fleet, error) {
	o := load.Options{Addr: s.addr, Path: "/events", Streams: s.config.Streams, Payload: bytes, Keep: true}
	if s.network == "memory" {
		return load.InMemory(s.memory, o), nil
	}
	o.Network = s.network
	return load.Start(o)
}

// stop shuts the server down, and does not wait longer than that for a client.
func (s *site) stop(patience time.Duration) (broker, server time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	start := time.Now()
	err = s.broker.Shutdown(ctx)
	broker = time.Since(start)
	err = errors.Join(err, s.http.Shutdown(ctx))
	return broker, time.Since(start) - broker, err
}

// restart starts a server whose broker has what is in the log.
func (s *site) restart(clients fleet) error {
	if err := s.start(s.addr); err != nil {
		return err
	}
	if s.memory != nil {
		clients.(*load.Fleet).Listener(s.memory)
	}
	return s.publish(s.log...)
}

// write appends n new events to the log, each with an ID of its own, which means
// the same to any server.
func (s *site) write(n int) []sse.Event {
	for range n {
		number := int64(len(s.log) + 1)
		s.log = append(s.log, sse.Event{ID: strconv.FormatInt(number, 10), Data: load.Payload(number, bytes)})
	}
	return s.log[len(s.log)-n:]
}

func (s *site) publish(events ...sse.Event) error {
	for _, e := range events {
		if _, err := s.broker.Publish(e); err != nil {
			return err
		}
	}
	return nil
}

// deliver publishes events together, several times, and returns the medians.
func (s *site) deliver(clients fleet, n, events int) (delivery, error) {
	var last, cpu [tries]time.Duration
	for i := range tries {
		batch := s.write(events)
		start, used := time.Now(), meter.CPU()
		if err := s.publish(batch...); err != nil {
			return delivery{}, err
		}
		if err := s.await(clients, n); err != nil {
			return delivery{}, err
		}
		last[i], cpu[i] = time.Since(start), meter.CPU()-used
	}
	slices.Sort(last[:])
	slices.Sort(cpu[:])
	return delivery{last[tries/2], cpu[tries/2].Seconds() / float64(n*events)}, nil
}

// await waits until all n clients have all events.
func (s *site) await(clients fleet, n int) error {
	report, err := clients.Await(int64(len(s.log)), patience)
	if err == nil && report.Have < n {
		err = fmt.Errorf("%d of %d clients have event %d", report.Have, n, len(s.log))
	}
	return err
}

// connect connects all n clients.
func connect(clients fleet, n int) error {
	report, err := clients.Connect(n, load.Place{}, patience)
	if err == nil && report.Streaming < n {
		err = fmt.Errorf("%d of %d clients have an answer, %d are connected", report.Streaming, n, report.Clients)
	}
	return err
}
