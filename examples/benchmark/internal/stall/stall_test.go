package stall

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

const soon = 10 * time.Second

// connect returns the server's side of a connection, after it has read the
// request, and the client that asked.
func connect(t *testing.T) (net.Conn, *Clients) {
	t.Helper()
	if meter.Supported != nil {
		t.Skip(meter.Supported)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	clients, err := Connect(listener.Addr().String(), "/events?a=b", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clients.Close)
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil || r.URL.String() != "/events?a=b" {
		t.Fatalf("got request %+v, error %v", r, err)
	}
	return conn, clients
}

// fill writes as much as the connection takes, and returns how much that was.
func fill(t *testing.T, conn net.Conn) (bytes int) {
	t.Helper()
	for {
		conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := conn.Write(make([]byte, 1000))
		bytes += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return bytes
		}
		if err != nil || bytes > 16<<20 {
			t.Fatalf("%d bytes did not fill it, error %v", bytes, err)
		}
	}
}

// full fails the test unless so many connections are full, soon.
func full(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(soon); ; time.Sleep(time.Millisecond) {
		got, err := Full()
		if err == nil && got == want {
			return
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d connections are full, error %v, want %d", got, err, want)
		}
	}
}

func TestFullIsWhatTakesNoMore(t *testing.T) {
	first, clients := connect(t)
	second, _ := connect(t)
	full(t, 0)
	// Less than what a few hundred events need.
	if bytes := fill(t, first); bytes > 200_000 {
		t.Errorf("it took %d bytes to fill the connection", bytes)
	}
	full(t, 1)
	fill(t, second)
	full(t, 2)
	clients.Close() // so that the first breaks
	full(t, 1)
	second.Close()
	full(t, 0)
}
