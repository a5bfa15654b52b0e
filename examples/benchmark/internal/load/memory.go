package load

import (
	"fmt"
	"io"
	"sync"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/memnet"
)

// A memory is a network within the process, all read by one goroutine.
type memory struct {
	fleet    *Fleet
	listener *memnet.Listener
	peers    []*memnet.Peer // of each client; guarded by the Fleet's mu

	mu      sync.Mutex
	some    sync.Cond // ready or stopped has changed
	ready   []int     // clients that have something to take
	stopped bool
	done    chan struct{} // closed when nobody takes any more
}

// InMemory returns a Fleet without clients, that will connect to the listener.
func InMemory(listener *memnet.Listener, opts Options) *Fleet {
	f := newFleet(opts)
	m := &memory{fleet: f, listener: listener, done: make(chan struct{})}
	m.some.L = &m.mu
	f.net = m
	go m.read()
	return f
}

// Listener changes where the Fleet connects to.
func (f *Fleet) Listener(l *memnet.Listener) { f.net.(*memory).listener = l }

func (m *memory) dial(i int, lastID string) error {
	peer, err := m.listener.Dial(m.fleet.request(lastID), func() { m.push(i) })
	if err != nil {
		return err
	}
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	for len(m.peers) <= i {
		m.peers = append(m.peers, nil)
	}
	m.peers[i] = peer
	m.fleet.asked(&m.fleet.clients[i])
	m.push(i) // what came before that was passed over
	return nil
}

func (m *memory) push(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = append(m.ready, i)
	m.some.Signal()
}

func (m *memory) flush() error { return nil }

func (m *memory) hangUp(i int) {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	if i >= len(m.peers) || m.peers[i] == nil {
		return
	}
	m.peers[i].Close()
	m.peers[i] = nil
	m.fleet.end(&m.fleet.clients[i])
}

func (m *memory) close() {
	m.mu.Lock()
	m.stopped = true
	m.some.Signal()
	m.mu.Unlock()
	<-m.done
	for i := range m.peers {
		m.hangUp(i)
	}
}

// read takes what there is until it is stopped.
func (m *memory) read() {
	defer close(m.done)
	var ready []int
	for {
		m.mu.Lock()
		for len(m.ready) == 0 && !m.stopped {
			m.some.Wait()
		}
		ready, m.ready = m.ready, ready[:0]
		stopped := m.stopped
		m.mu.Unlock()
		if stopped {
			return
		}
		for _, i := range ready {
			m.take(i)
		}
	}
}

func (m *memory) take(i int) {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	if i >= len(m.peers) || m.peers[i] == nil {
		return
	}
	c := &m.fleet.clients[i]
	var err error
	end := m.peers[i].Take(func(p []byte) { err = m.fleet.feedHTTP1(c, p) })
	if err != nil && err != io.EOF {
		m.fleet.fail(fmt.Errorf("client %d: %w", i, err))
	}
	if end != nil || err != nil {
		m.peers[i].Close()
		m.peers[i] = nil
		m.fleet.end(c)
	}
}
