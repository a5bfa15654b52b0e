package load

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/memnet"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

const soon = 10 * time.Second

func TestPayloadIsReadBackAndDamageIsNoticed(t *testing.T) {
	for _, size := range []int{1, 40, 100, 1000} {
		p := Payload(1234567, size)
		if size >= 100 && len(p) != size {
			t.Errorf("got %d bytes, want %d", len(p), size)
		}
		number, nanos, ok := parsePayload([]byte(p), size)
		if !ok || number != 1234567 || time.Since(time.Unix(0, nanos)) > time.Minute {
			t.Errorf("%q is read as %d, %d, %t", p, number, nanos, ok)
		}
		for what, damaged := range map[string]string{
			"cut":     p[:len(p)-1] + "\n",
			"changed": strings.Replace(p, "x", "y", 1),
			"headed":  "x" + p,
			"short":   p[:2],
			"empty":   "",
		} {
			if _, _, ok := parsePayload([]byte(damaged), size); ok {
				t.Errorf("%s payload %q is taken for whole", what, damaged)
			}
		}
	}
	if got := LastNumber([]byte("data: #1 2 x\n\ndata: #22 3 x\n\n")); got != 22 {
		t.Errorf("got last number %d, want 22", got)
	}
}

// event returns an event as it is in a stream.
func event(number int64) string {
	return fmt.Sprintf("id: e%d\ndata: %s\n\n", number, Payload(number, 100))
}

func events(numbers ...int64) string {
	var b strings.Builder
	for _, n := range numbers {
		b.WriteString(event(n))
	}
	return b.String()
}

var streams = []struct {
	name string
	from int64 // number of the event before
	body string
	want Report
}{
	{"whole", 0, events(1, 2, 3), Report{Received: 3}},
	{"with more than events", 0, "id: start\nretry: 3000\n\n:\n\n: comment\n" + events(1, 2), Report{Received: 2}},
	{"losing", 0, events(1, 2, 5), Report{Received: 3, Lost: 2}},
	{"losing the first", 0, events(3), Report{Received: 1, Lost: 2}},
	{"of which any part is known", Unknown, events(3, 4), Report{Received: 2}},
	{"doubling", 0, events(1, 2, 2, 1, 3), Report{Received: 3, Doubled: 2}},
	{"out of order", 0, events(2, 1), Report{Received: 1, Lost: 1, Doubled: 1}},
	{"damaging", 0, event(1) + strings.Replace(event(2), "x", "-", 1), Report{Received: 1, Damaged: 1}},
	{"with two lines of data", 0, strings.Replace(event(1), "\n\n", "\ndata: "+Payload(1, 100)+"\n\n", 1), Report{Damaged: 1}},
	{"ending within an event", 0, event(1) + strings.TrimSuffix(event(2), "\n"), Report{Received: 1}},
}

func TestClientCountsWhatIsWrong(t *testing.T) {
	for _, stream := range streams {
		var chunks strings.Builder
		for body := stream.body; body != ""; {
			n := min(len(body), 37)
			fmt.Fprintf(&chunks, "%x\r\n%s\r\n", n, body[:n])
			body = body[n:]
		}
		for coding, response := range map[string]string{
			"identity": "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + stream.body,
			"chunked":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks.String(),
		} {
			// However the bytes arrive, the count is the same.
			for _, step := range []int{1, 7, len(response)} {
				f := newFleet(Options{Payload: 100})
				f.clients = []client{{state: asking, number: stream.from}}
				for p := []byte(response); len(p) > 0; {
					n := min(step, len(p))
					if err := f.feedHTTP1(&f.clients[0], p[:n]); err != nil {
						t.Fatal(err)
					}
					p = p[n:]
				}
				got, want := f.Report(), stream.want
				if got.Received != want.Received || got.Lost != want.Lost || got.Doubled != want.Doubled || got.Damaged != want.Damaged {
					t.Errorf("a stream %s, %s, %d bytes at a time: got %+v, want %+v", stream.name, coding, step, got, want)
				}
			}
		}
	}
}

// A source is a server that sends each client what the test says.
type source struct {
	addr string
	http *http.Server
	asks chan string      // the last event ID of each request
	came chan chan string // for each request, what to send; closing it ends the answer
	left chan bool        // for each client that left before that
	mem  *memnet.Listener
}

func newSource(t *testing.T, network string) *source {
	t.Helper()
	s := &source{asks: make(chan string, 100), came: make(chan chan string, 100), left: make(chan bool, 100)}
	s.http = &http.Server{Handler: s}
	var listener net.Listener
	if network == "memory" {
		s.mem = memnet.Listen()
		listener = s.mem
		network = TCP
	} else {
		var err error
		if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s.addr = listener.Addr().String()
	go Serve(s.http, listener, network)
	t.Cleanup(func() { s.http.Close() })
	return s
}

func (s *source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/events" {
		http.NotFound(w, r)
		return
	}
	rc := http.NewResponseController(w)
	rc.Flush()
	send := make(chan string, 100)
	s.asks <- r.Header.Get("Last-Event-ID")
	s.came <- send
	for {
		select {
		case text, ok := <-send:
			if !ok {
				return
			}
			fmt.Fprint(w, text)
			rc.Flush()
		case <-r.Context().Done():
			s.left <- true
			return
		}
	}
}

// fleet is what a Fleet and a Process have in common.
type fleet interface {
	Connect(n int, from Place, patience time.Duration) (Report, error)
	Await(number int64, patience time.Duration) (Report, error)
	AwaitEnd(patience time.Duration) (Report, error)
	Close() error
}

func TestFleetConnectsAgainWhereItWas(t *testing.T) {
	const n = 5
	for _, network := range []string{TCP, TLS, H2C, H2, "memory", "process"} {
		t.Run(network, func(t *testing.T) {
			if meter.Supported != nil {
				t.Skip(meter.Supported)
			}
			served := network
			if network == "process" {
				served = TCP
			}
			s := newSource(t, served)
			o := Options{Network: TCP, Addr: s.addr, Path: "/events", Streams: 2, Payload: 100, Keep: true}
			var f fleet
			var err error
			switch network {
			case "memory":
				f = InMemory(s.mem, o)
			case "process":
				f, err = Start(o)
			default:
				o.Network = network
				f, err = New(o)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()

			connect := func(from Place, wantID string) (sends []chan string) {
				t.Helper()
				r, err := f.Connect(n, from, soon)
				if err != nil || r.Clients != n || r.Streaming != n {
					t.Fatalf("got %+v, error %v, want %d clients", r, err, n)
				}
				for range n {
					if id := <-s.asks; id != wantID {
						t.Errorf("got Last-Event-ID %q, want %q", id, wantID)
					}
					sends = append(sends, <-s.came)
				}
				return sends
			}
			await := func(number int64, want int) Report {
				t.Helper()
				patience := soon
				if want < n {
					patience = 50 * time.Millisecond
				}
				r, err := f.Await(number, patience)
				if err != nil || r.Have != want {
					t.Fatalf("got event %d at %d clients, error %v, want %d", number, r.Have, err, want)
				}
				return r
			}
			sends := connect(Place{LastID: "e0"}, "e0")
			for i, send := range sends {
				send <- event(1)
				if i > 0 {
					send <- event(2)
				}
			}
			await(1, n)
			await(2, n-1)
			sends[0] <- event(2)
			await(2, n)
			for _, send := range sends {
				close(send)
			}
			if r, err := f.AwaitEnd(soon); err != nil || r.Clients != 0 || r.Streaming != 0 {
				t.Fatalf("got %+v, error %v, want no clients", r, err)
			}

			for i, send := range connect(Place{}, "e2") {
				if i == 0 {
					send <- event(2) // once more
				}
				send <- event(4) // and event 3 is missing
			}
			r := await(4, n)
			if r.Received != 3*n || r.Doubled != 1 || r.Lost != n || r.Damaged != 0 {
				t.Errorf("got %+v, want %d received, 1 doubled, %d lost, 0 damaged", r, 3*n, n)
			}
		})
	}
}

func TestFleetForgetsClientsThatHangUp(t *testing.T) {
	for _, network := range []string{TCP, TLS, H2C, H2} {
		t.Run(network, func(t *testing.T) {
			s := newSource(t, network)
			f, err := New(Options{Network: network, Addr: s.addr, Path: "/events", Payload: 100})
			if err != nil {
				t.Skip(err)
			}
			defer f.Close()
			for number := range int64(3) {
				if _, err := f.Connect(2, Place{LastID: "from", Number: number}, soon); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if id := <-s.asks; id != "from" {
						t.Errorf("got Last-Event-ID %q, want %q", id, "from")
					}
					(<-s.came) <- event(number + 1)
				}
				if r, err := f.Await(number+1, soon); err != nil || r.Have != 2 || r.Lost+r.Doubled != 0 {
					t.Fatalf("got %+v, error %v, want 2 clients with event %d", r, err, number+1)
				}
				f.HangUp()
				if r := f.Report(); r.Clients != 0 || r.Streaming != 0 {
					t.Fatalf("got %+v, want no clients", r)
				}
				for range 2 {
					select {
					case <-s.left:
					case <-time.After(soon):
						t.Fatal("the server does not notice that a client has left")
					}
				}
			}
		})
	}
}

func TestAnAnswerThatIsNoStreamIsAnError(t *testing.T) {
	for _, network := range []string{TCP, TLS, H2C, H2} {
		t.Run(network, func(t *testing.T) {
			s := newSource(t, network)
			p, err := Start(Options{Network: network, Addr: s.addr, Path: "/nowhere", Payload: 100})
			if err != nil {
				t.Skip(err)
			}
			defer p.Close()
			if _, err := p.Connect(2*unanswered, Place{}, soon); err == nil || !strings.Contains(err.Error(), "404") {
				t.Errorf("got error %v, want one with status 404", err)
			}
		})
	}
}

func TestBellRingsWhenAllHaveABurst(t *testing.T) {
	s := newSource(t, "tcp")
	p, err := Start(Options{Network: "tcp", Addr: s.addr, Path: "/events", Payload: 100})
	if err != nil {
		t.Skip(err)
	}
	defer p.Close()
	if _, err := p.Connect(2, Place{}, soon); err != nil {
		t.Fatal(err)
	}
	first, second := <-s.came, <-s.came
	if err := p.Bell(0, 2); err != nil {
		t.Fatal(err)
	}
	rung := make(chan error)
	go func() {
		for range 2 {
			rung <- p.Rung(soon)
		}
	}()
	for _, round := range []string{events(1, 2), events(3, 4)} {
		first <- round
		second <- round[:len(round)-1]
		select {
		case err := <-rung:
			t.Fatalf("the bell rang early, error %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		second <- "\n"
		if err := <-rung; err != nil {
			t.Fatal(err)
		}
	}
	if r, _, err := p.Report(); err != nil || r.Received != 8 {
		t.Errorf("got %+v, error %v, want 8 events", r, err)
	}
	if err := p.Rung(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got error %v from a bell that is not due, want %v", err, os.ErrDeadlineExceeded)
	}
	// One that nobody waits for is no part of a report.
	first <- events(5, 6)
	second <- events(5, 6)
	for deadline := time.Now().Add(soon); ; {
		r, _, err := p.Report()
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("got %+v, error %v, want 12 events", r, err)
		}
		if r.Received == 12 {
			break
		}
	}
	if _, _, err := p.Report(); err != nil {
		t.Error(err)
	}
}
