package memnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pipe returns the two ends of a connection, and a count of the calls of ready.
func pipe(t *testing.T, request string) (*Conn, *Peer, *atomic.Int64) {
	t.Helper()
	l := Listen()
	var calls atomic.Int64
	peer, err := l.Dial(request, func() { calls.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*Conn), peer, &calls
}

func take(t *testing.T, p *Peer) (string, error) {
	t.Helper()
	var got string
	err := p.Take(func(b []byte) { got += string(b) })
	return got, err
}

func TestAnHTTPServerNoticesNoDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen()
		left := make(chan error, 1)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "you are at %s", r.URL.Path)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			left <- context.Cause(r.Context())
		})}
		go srv.Serve(l)
		peer, err := l.Dial("GET /here HTTP/1.1\r\nHost: x\r\n\r\n", func() {})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		got, err := take(t, peer)
		if err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.Contains(got, "you are at /here") {
			t.Errorf("got %q, error %v", got, err)
		}
		peer.Close()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the handler is told %v, want that the client left", err)
		}
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		for range 20 { // there is room in its queue
			if _, err := l.Dial("", func() {}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("got error %v from a closed listener, want net.ErrClosed", err)
			}
		}
	})
}

func TestAConnectionCanBeTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen()
		conns := make(chan net.Conn, 1)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
			}
			conns <- conn
		})}
		go srv.Serve(l)
		peer, err := l.Dial("GET / HTTP/1.1\r\nHost: x\r\n\r\n", func() {})
		if err != nil {
			t.Fatal(err)
		}
		conn := <-conns
		io.WriteString(conn, "hello")
		if got, err := take(t, peer); got != "hello" || err != nil {
			t.Errorf("got %q, error %v, want hello", got, err)
		}
		conn.Close()
		srv.Close()
	})
}

func TestReadyIsCalledOnceForWhatGathers(t *testing.T) {
	conn, peer, calls := pipe(t, "")
	for _, text := range []string{"a", "b", "c"} {
		if n, err := io.WriteString(conn, text); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := calls.Load(); got != 1 {
		t.Errorf("got %d calls, want 1", got)
	}
	if got, err := take(t, peer); got != "abc" || err != nil {
		t.Errorf("got %q, error %v, want abc", got, err)
	}
	io.WriteString(conn, "d")
	conn.Close()
	if got := calls.Load(); got != 2 {
		t.Errorf("got %d calls, want 2", got)
	}
	if got, err := take(t, peer); got != "d" || err != io.EOF {
		t.Errorf("got %q, error %v, want d and the end", got, err)
	}
}

func TestTheEndAloneCallsReadyToo(t *testing.T) {
	conn, peer, calls := pipe(t, "")
	conn.Close()
	if got := calls.Load(); got != 1 {
		t.Errorf("got %d calls, want 1", got)
	}
	if got, err := take(t, peer); got != "" || err != io.EOF {
		t.Errorf("got %q, error %v, want the end", got, err)
	}
}

func TestWriteWaitsForTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, peer, _ := pipe(t, "")
		big := bytes.Repeat([]byte("x"), bufferBytes*5/2)
		wrote := make(chan error, 1)
		go func() {
			_, err := conn.Write(big)
			wrote <- err
		}()
		total := 0
		for _, want := range []int{bufferBytes, bufferBytes, bufferBytes / 2} {
			synctest.Wait()
			got, _ := take(t, peer)
			if len(got) != want {
				t.Errorf("got %d bytes, want %d", len(got), want)
			}
			total += len(got)
		}
		if err := <-wrote; err != nil || total != len(big) {
			t.Errorf("got %d bytes, error %v, want %d", total, err, len(big))
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, _, _ := pipe(t, "")
		start := time.Now()
		conn.SetWriteDeadline(start.Add(time.Second))
		n, err := conn.Write(make([]byte, 2*bufferBytes))
		if n != bufferBytes || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("wrote %d bytes in %v, error %v, want %d in 1s and a missed deadline", n, time.Since(start), err, bufferBytes)
		}

		// One that is set while a read waits ends that.
		read := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		conn.SetReadDeadline(time.Unix(1, 0))
		if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got error %v, want a missed deadline", err)
		}
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		go func() {
			_, err := conn.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		conn.SetReadDeadline(time.Time{})
		time.Sleep(time.Hour)
		select {
		case err := <-read:
			t.Errorf("got error %v with no deadline", err)
		default:
		}
		conn.Close()
		if err := <-read; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got error %v after Close, want net.ErrClosed", err)
		}
	})
}

func TestAClientThatLeftEndsReadsAndWrites(t *testing.T) {
	conn, peer, _ := pipe(t, "request")
	peer.Close()
	got, err := io.ReadAll(conn)
	if string(got) != "request" || err != nil {
		t.Errorf("got %q, error %v, want the request and the end", got, err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got error %v, want io.ErrClosedPipe", err)
	}
}
