package proxies

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

const (
	idleTimeout = 4 * time.Second // every proxy's

	// bufferBytes is set on both ends, so that the kernel does not take in all
	// that a client does not read.
	bufferBytes = 64 << 10
)

// The checks are what a proxy must let through. Each returns a figure.
var checks = []struct {
	name  string
	quick bool // and not to be disturbed, for the sake of its figure
	run   func(t *testing.T, s *setup, protocol string, serve serve) (string, error)
}{
	{"FirstBytes", true, firstBytes},
	{"Prompt", true, prompt},
	{"Leave", true, leave},
	{"LastEventID", false, lastEventID},
	{"KeepAlive", false, keepAlive},
	{"Idle", false, idle},
	{"Stalled", false, stalled},
	{"Many", false, many},
	{"HTTP2", false, http2},
}

// firstBytes: the answer begins at once though there is no event.
func firstBytes(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	path, _ := s.mount(t, serve, &sse.Broker{KeepAlive: -1})
	began := time.Now()
	st, err := tools.Open(t, newClient(t, protocol), s.urls[protocol]+path)
	if err != nil {
		return "", err
	}
	if err := st.Begun(); err != nil {
		return "", err
	}
	return rounded(time.Since(began)), nil
}

// prompt: no event waits for the next one.
func prompt(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	broker := &sse.Broker{KeepAlive: -1}
	path, _ := s.mount(t, serve, broker)
	st, err := tools.Open(t, newClient(t, protocol), s.urls[protocol]+path)
	if err != nil {
		return "", err
	}
	var delays []time.Duration
	for i := range 21 {
		began := time.Now()
		broker.Publish(sse.Event{Data: strconv.Itoa(i)})
		if err := st.Want(strconv.Itoa(i)); err != nil {
			return "", err
		}
		delays = append(delays, time.Since(began))
	}
	slices.Sort(delays)
	if delays[10] > 100*time.Millisecond {
		return "", fmt.Errorf("events are %s late", rounded(delays[10]))
	}
	return rounded(delays[10]), nil
}

// compressed makes a check with a client that takes a compressed answer.
func compressed(check func(*testing.T, *setup, string, serve) (string, error)) func(*testing.T, *setup, string, serve) (string, error) {
	return func(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
		path, _ := s.mount(t, serve, &sse.Broker{})
		st, err := tools.Open(t, newClient(t, protocol), s.urls[protocol]+path)
		if err != nil {
			return "", err
		}
		if st.Coding != "gzip" {
			return "", fmt.Errorf("Content-Encoding is %q, want gzip", st.Coding)
		}
		return check(t, s, protocol, serve)
	}
}

// lastEventID: a client that comes back is given what it missed.
func lastEventID(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	broker := &sse.Broker{}
	path, _ := s.mount(t, serve, broker)
	client := newClient(t, protocol)
	st, err := tools.Open(t, client, s.urls[protocol]+path)
	if err != nil {
		return "", err
	}
	broker.Publish(sse.Event{Data: "seen"})
	e, err := st.Next(tools.Soon)
	if err != nil {
		return "", err
	}
	st.Leave()
	for i := range 10 {
		broker.Publish(sse.Event{Data: "missed " + strconv.Itoa(i)})
	}
	if st, err = tools.Open(t, client, s.urls[protocol]+path, "Last-Event-ID", e.ID); err != nil {
		return "", err
	}
	for i := range 10 {
		if err := st.Want("missed " + strconv.Itoa(i)); err != nil {
			return "", err
		}
	}
	return "", nil
}

// keepAlive: keep-alives outlast the idle timeout.
func keepAlive(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	return "", outlast(t, s, protocol, serve, &sse.Broker{KeepAlive: idleTimeout / 4})
}

// idle: without keep-alives the proxy does end the stream after the idle
// timeout, so that keepAlive shows something.
func idle(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	began := time.Now()
	err := outlast(t, s, protocol, serve, &sse.Broker{KeepAlive: -1})
	if err == nil {
		return "", errors.New("the proxy has no idle timeout")
	}
	if !strings.HasPrefix(err.Error(), "the stream ended") || time.Since(began) < idleTimeout-time.Second/2 {
		return "", fmt.Errorf("after %s: %w", rounded(time.Since(began)), err)
	}
	return "", nil
}

func outlast(t *testing.T, s *setup, protocol string, serve serve, broker *sse.Broker) error {
	path, _ := s.mount(t, serve, broker)
	st, err := tools.Open(t, newClient(t, protocol), s.urls[protocol]+path)
	if err != nil {
		return err
	}
	if _, err := st.Next(idleTimeout + idleTimeout/2); !errors.Is(err, tools.ErrNoEvent) {
		return err
	}
	broker.Publish(sse.Event{Data: "still there"})
	return st.Want("still there")
}

// leave: the broker notices that a client left, as soon as s.keepAlives says.
func leave(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	const period = idleTimeout / 2
	broker := &sse.Broker{KeepAlive: period}
	path, left := s.mount(t, serve, broker)
	st, err := tools.Open(t, newClient(t, protocol), s.urls[protocol]+path)
	if err != nil {
		return "", err
	}
	broker.Publish(sse.Event{Data: "hello"})
	if err := st.Want("hello"); err != nil {
		return "", err
	}
	began := time.Now()
	st.Leave()
	select {
	case err := <-left:
		if !errors.Is(err, sse.ErrClientLeft) {
			return "", fmt.Errorf("the stream ended with %v", err)
		}
	case <-time.After(10 * period):
		return "", errors.New("nobody noticed")
	}
	took := time.Since(began)
	switch n := int((took + period/2) / period); {
	case n > s.keepAlives[protocol]+serve.later:
		return "", fmt.Errorf("noticed at keep-alive %d, after %s", n, rounded(took))
	case n == 0:
		return "in " + rounded(took), nil
	default:
		return fmt.Sprintf("at keep-alive %d", n), nil
	}
}

// stalled: a client that stops reading costs another one nothing, over HTTP/2
// in the same connection, and is cut off in the end.
func stalled(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	const timeout = 6 * time.Second // which the other client would have to wait
	broker := &sse.Broker{WriteTimeout: timeout, KeepAlive: time.Second, HistoryBytes: -1}
	path, left := s.mount(t, serve, broker)
	client := newClient(t, protocol)
	resp, _, err := tools.Get(t, client, s.urls[protocol]+path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() // of which nothing is read
	st, err := tools.Open(t, client, s.urls[protocol]+path)
	if err != nil {
		return "", err
	}
	payload := strings.Repeat("x", 64<<10)
	for i := range 250 {
		data := strconv.Itoa(i) + payload
		broker.Publish(sse.Event{Data: data})
		if err := st.WantWithin(timeout-time.Second, data); err != nil {
			return "", fmt.Errorf("event %d: %w", i, err)
		}
	}
	select {
	case <-left:
		return "", nil
	case <-time.After(timeout + 2*idleTimeout):
		return "", errors.New("the stalled client was not cut off")
	}
}

// many: a proxy as configured takes more than a few clients.
func many(t *testing.T, s *setup, protocol string, serve serve) (string, error) {
	path, _ := s.mount(t, serve, &sse.Broker{KeepAlive: time.Second})
	for i := range 60 {
		st, err := tools.Open(t, newClient(t, protocol), s.urls[protocol]+path)
		if err == nil {
			err = st.Begun()
		}
		if err != nil {
			return "", fmt.Errorf("client %d: %w", i, err)
		}
	}
	return "", nil
}

// http2: a browser is offered HTTP/2.
func http2(t *testing.T, s *setup, _ string, _ serve) (string, error) {
	addr, ok := strings.CutPrefix(s.urls["HTTP/2"], "https://")
	if !ok {
		return "", nil // without TLS nothing is offered, and squid has none to offer
	}
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
		return "", fmt.Errorf("the protocol is %q, want h2", got)
	}
	return "", nil
}

// rounded returns d for a table.
func rounded(d time.Duration) string {
	return d.Round(10 * time.Microsecond).String()
}

// A backend is a program with any number of brokers.
type backend struct {
	*httptest.Server
	mu       sync.Mutex
	handlers map[string]http.Handler
}

func newBackend(t *testing.T) *backend {
	b := &backend{handlers: map[string]http.Handler{}}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		h := b.handlers[r.URL.Path]
		b.mu.Unlock()
		if h == nil {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}))
	b.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			c.(*net.TCPConn).SetWriteBuffer(bufferBytes)
		}
	}
	b.Start()
	t.Cleanup(b.Close)
	return b
}

// mount makes the broker reachable and returns its path, and a channel that
// gets what becomes of each client.
func (b *backend) mount(t *testing.T, serve serve, broker *sse.Broker) (path string, left chan error) {
	left = make(chan error, 100)
	path = b.handle(serve.handler(broker, left))
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		broker.Shutdown(ctx)
	})
	return path, left
}

// handle makes a handler reachable and returns its path.
func (b *backend) handle(h http.Handler) (path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	path = "/events/" + strconv.Itoa(len(b.handlers))
	b.handlers[path] = h
	return path
}

// A serve is a way to make a handler of a broker.
type serve struct {
	name    string
	handler func(b *sse.Broker, left chan<- error) http.Handler // tells left what became of each client

	// later is how many keep-alives later than by Serve it is noticed that a
	// client left.
	later int
}

var (
	plain = serve{name: "Serve", handler: func(b *sse.Broker, left chan<- error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			left <- b.Serve(w, r)
		})
	}}
	detached = serve{name: "Detach", later: 1, handler: func(b *sse.Broker, left chan<- error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.Detach(w, r, func(err error) { left <- err })
		})
	}}
	chunked = withHeader()
)

// withHeader serves in chunks, and with header fields that the program sets
// itself, or with "" keeps from being set.
func withHeader(fields ...string) serve {
	fields = append(fields, "Transfer-Encoding", "")
	return serve{name: "Chunked", handler: func(b *sse.Broker, left chan<- error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for field := range slices.Chunk(fields, 2) {
				w.Header()[field[0]] = nil
				if field[1] != "" {
					w.Header().Set(field[0], field[1])
				}
			}
			left <- b.Serve(w, r)
		})
	}}
}

// newClient returns a client that speaks only this protocol.
func newClient(t *testing.T, protocol string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil {
				c.(*net.TCPConn).SetReadBuffer(bufferBytes)
			}
			return c, err
		},
		Protocols:          new(http.Protocols),
		DisableCompression: true, // or the Transport would undo it unseen
	}
	tr.Protocols.SetHTTP1(protocol == "HTTP/1.1")
	tr.Protocols.SetHTTP2(protocol == "HTTP/2")
	tr.Protocols.SetUnencryptedHTTP2(protocol == "HTTP/2")
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}
