package frameworks

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/CAFxX/httpcompression"
	"github.com/NYTimes/gziphandler"
	"github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// TestMain keeps the frameworks' logs out of the tests' output.
func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultWriter = io.Discard
	chimiddleware.DefaultLogger = chimiddleware.RequestLogger(&chimiddleware.DefaultLogFormatter{Logger: log.New(io.Discard, "", 0)})
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// A mount is a framework with a broker in it.
type mount struct {
	name    string
	handler func(*sse.Broker) http.Handler
}

var mounts = []mount{{"net/http", Mux}, {"chi", Chi}, {"gin", Gin}, {"echo", Echo}}

// each runs the test in a bubble of fake time for each mount, for a client that
// takes no compressed answer and for one that does.
func each(t *testing.T, mounts []mount, test func(t *testing.T, m mount, coding string)) {
	for _, m := range mounts {
		for _, coding := range []string{"identity", "gzip"} {
			t.Run(m.name+"/"+coding, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { test(t, m, coding) })
			})
		}
	}
}

// TestStream lets a stream live longer than the server's timeouts.
func TestStream(t *testing.T) {
	each(t, mounts, func(t *testing.T, m mount, coding string) {
		broker := &sse.Broker{}
		s := serve(t, broker, m, time.Second)
		st := s.open(t, "/rooms/7/events", "Accept-Encoding", coding)
		for range 10 {
			broker.Publish(sse.Event{Data: "hello"}, "room/7")
			if err := st.Want("hello"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		broker.Publish(sse.Event{Data: "last seen"}, "room/7")
		e, err := st.Next(time.Second)
		if err != nil || e.Data != "last seen" {
			t.Fatalf("got %q, %v", e.Data, err)
		}
		st.Leave()
		synctest.Wait()
		if got := broker.Stats().Clients; got != 0 {
			t.Errorf("after the client left got %d clients, want 0", got)
		}
		broker.Publish(sse.Event{Data: "missed"}, "room/7")
		st = s.open(t, "/rooms/7/events", "Accept-Encoding", coding, "Last-Event-ID", e.ID)
		if err := st.Want("missed"); err != nil {
			t.Error(err)
		}
		st = s.open(t, "/events", "Accept-Encoding", coding)
		broker.Publish(sse.Event{Data: "public"})
		if err := st.Want("public"); err != nil {
			t.Error(err)
		}
	})
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	each(t, mounts, func(t *testing.T, m mount, coding string) {
		broker := &sse.Broker{WriteTimeout: 3 * time.Second}
		s := serve(t, broker, m, 0)
		conn := s.connect(t)
		io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: server\r\nAccept-Encoding: "+coding+"\r\n\r\n")
		synctest.Wait()
		if got := broker.Stats().Clients; got != 1 {
			t.Fatalf("got %d clients, want 1", got)
		}
		time.Sleep(3*time.Second + 3*time.Second/8) // it may be an eighth late
		synctest.Wait()
		if got := broker.Stats().Clients; got != 0 {
			t.Errorf("after WriteTimeout got %d clients, want 0", got)
		}
	})
}

// with mounts a handler in each framework, with a compressor that compresses
// streams too.
func with(handler func(*sse.Broker) http.HandlerFunc) []mount {
	return []mount{
		{"chi", func(b *sse.Broker) http.Handler {
			r := chi.NewRouter()
			r.Use(chimiddleware.Logger, chimiddleware.Recoverer, chimiddleware.Compress(5, "text/*"))
			r.Get("/events", handler(b))
			return r
		}},
		{"gin", func(b *sse.Broker) http.Handler {
			r := gin.New()
			r.Use(gin.Logger(), gin.Recovery(), gzip.Gzip(gzip.DefaultCompression))
			r.GET("/events", gin.WrapF(handler(b)))
			return r
		}},
		{"echo", func(b *sse.Broker) http.Handler {
			e := echo.New()
			e.Use(middleware.RequestLogger(), middleware.Recover(), middleware.Gzip())
			e.GET("/events", echo.WrapHandler(handler(b)))
			return e
		}},
	}
}

// TestCompressedStream is for streams that a compressor does not leave alone.
func TestCompressedStream(t *testing.T) {
	mounts := with(func(b *sse.Broker) http.HandlerFunc { return b.ServeHTTP })
	each(t, mounts, func(t *testing.T, m mount, coding string) {
		broker := &sse.Broker{}
		s := serve(t, broker, m, 0)
		st := s.open(t, "/events", "Accept-Encoding", coding)
		if want := strings.TrimPrefix(coding, "identity"); st.Coding != want {
			t.Errorf("got Content-Encoding %q, want %q", st.Coding, want)
		}
		for range 10 {
			broker.Publish(sse.Event{Data: "hello"})
			if err := st.Want("hello"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
	})
}

// TestCompressedWriter is for a stream without a broker.
func TestCompressedWriter(t *testing.T) {
	mounts := with(func(*sse.Broker) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			out, err := sse.NewWriter(w, r)
			for err == nil {
				err = out.Send(sse.Event{Data: "hello"})
				select {
				case <-r.Context().Done():
				case <-time.After(time.Second):
				}
			}
		}
	})
	each(t, mounts, func(t *testing.T, m mount, coding string) {
		s := serve(t, &sse.Broker{}, m, 0)
		st := s.open(t, "/events", "Accept-Encoding", coding)
		for range 10 {
			if err := st.Want("hello"); err != nil {
				t.Fatal(err)
			}
		}
		st.Leave()
	})
}

// TestDetachedStream: a stream that leaves the framework leaves its compressor.
func TestDetachedStream(t *testing.T) {
	mounts := with(func(b *sse.Broker) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil) }
	})
	each(t, mounts, func(t *testing.T, m mount, coding string) {
		broker := &sse.Broker{}
		s := serve(t, broker, m, time.Second)
		st := s.open(t, "/events", "Accept-Encoding", coding)
		if st.Coding != "" {
			t.Errorf("got Content-Encoding %q, want none", st.Coding)
		}
		for range 10 {
			broker.Publish(sse.Event{Data: "hello"})
			if err := st.Want("hello"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		st.Leave()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got := broker.Stats().Clients; got != 0 {
			t.Errorf("after the client left and a keep-alive got %d clients, want 0", got)
		}
	})
}

// TestWhatIsInTheWay shows what a client gets from middleware that does not go
// together with streams.
func TestWhatIsInTheWay(t *testing.T) {
	mux := func(wrap func(http.Handler) http.Handler) mount {
		return mount{"", func(b *sse.Broker) http.Handler { return wrap(b) }}
	}
	for _, test := range []struct {
		name  string
		mount mount
		want  string // "": the stream goes on
	}{
		{"net/http's TimeoutHandler", mux(func(h http.Handler) http.Handler {
			return http.TimeoutHandler(h, time.Hour, "")
		}), "status 500 Internal Server Error: sse: *http.timeoutWriter cannot be flushed"},

		{"a wrapper without Unwrap", mux(func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
			})
		}), "cannot be flushed"},

		{"chi's Timeout", mux(chimiddleware.Timeout(time.Minute)), "the stream ended"},

		// It hides the deadlines, so the server's WriteTimeout ends the stream.
		{"gin's compressor and a server with a WriteTimeout",
			with(func(b *sse.Broker) http.HandlerFunc { return b.ServeHTTP })[1], "the stream ended"},

		{"nothing", mux(func(h http.Handler) http.Handler { return h }), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &sse.Broker{}
				s := serve(t, broker, test.mount, time.Minute)
				st, err := tools.Open(t, s.client(t), "http://server/events")
				if err == nil {
					time.Sleep(2 * time.Minute)
					broker.Publish(sse.Event{Data: "still there"})
					err = st.Want("still there")
				}
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("got error %v, want %q", err, test.want)
				}
			})
		})
	}
}

// TestCompressorsThatHoldBack is for compressors that wait for the first kilobyte, or
// the first 200 bytes, before they decide. They pass on no flush until then, so not
// even the headers arrive, unless the answer has a Content-Encoding already.
func TestCompressorsThatHoldBack(t *testing.T) {
	compress, err := httpcompression.DefaultAdapter()
	if err != nil {
		t.Fatal(err)
	}
	broker := func(b *sse.Broker) http.Handler { return b }
	oneClient := func(*sse.Broker) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sse.Serve(w, r, func(yield func(sse.Event, error) bool) {
				yield(sse.Event{Data: "hello"}, nil)
				<-r.Context().Done()
			})
		})
	}
	for _, stream := range []mount{{"Broker", broker}, {"Serve", oneClient}} {
		for _, test := range []struct {
			name string
			wrap func(http.Handler) http.Handler
			want string // part of the error; "": the stream is fine
		}{
			{"gziphandler", gziphandler.GzipHandler, "no headers"},
			{"gziphandler/identity", func(h http.Handler) http.Handler {
				return gziphandler.GzipHandler(uncompressed(h))
			}, ""},
			{"httpcompression", compress, "no headers"},
			{"httpcompression/identity", func(h http.Handler) http.Handler {
				return compress(uncompressed(h))
			}, ""},
		} {
			t.Run(stream.name+"/"+test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					broker := &sse.Broker{}
					s := serve(t, broker, mount{"", func(b *sse.Broker) http.Handler {
						return test.wrap(stream.handler(b))
					}}, 0)
					// An event does not bring the headers either.
					time.AfterFunc(time.Second, func() { broker.Publish(sse.Event{Data: "hello"}) })
					st, err := tools.Open(t, s.client(t), "http://server/events")
					if err == nil {
						err = st.Want("hello")
					}
					if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
						t.Errorf("got error %v, want %q", err, test.want)
					}
				})
			})
		}
	}
}

// TestUncompressed is for what README.md shows for those compressors.
func TestUncompressed(t *testing.T) {
	each(t, []mount{{"gziphandler", GzipHandler}, {"httpcompression", HTTPCompression}}, func(t *testing.T, m mount, coding string) {
		broker := &sse.Broker{}
		s := serve(t, broker, m, 0)
		st := s.open(t, "/events", "Accept-Encoding", coding)
		for range 10 {
			broker.Publish(sse.Event{Data: "hello"})
			if err := st.Want("hello"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		st.Leave()
		synctest.Wait()
		if got := broker.Stats().Clients; got != 0 {
			t.Errorf("after the client left got %d clients, want 0", got)
		}
	})
}

// TestWarning: what hides the deadlines, so that Broker.WriteTimeout has no effect,
// is named in the log.
func TestWarning(t *testing.T) {
	compressors := with(func(b *sse.Broker) http.HandlerFunc { return b.ServeHTTP })
	for _, test := range []struct {
		mount mount
		want  string
	}{
		{compressors[0], ""},
		{compressors[1], "level=WARN msg=\"sse: WriteTimeout has no effect, no deadline can be set\" behind=*gzip.gzipWriter\n"},
		{compressors[2], ""},
		{mount{"gin as in README.md", Gin}, ""},
		{mount{"gziphandler", GzipHandler}, "level=WARN msg=\"sse: WriteTimeout has no effect, no deadline can be set\" behind=gziphandler.GzipResponseWriterWithCloseNotify\n"},
		{mount{"httpcompression", HTTPCompression}, "level=WARN msg=\"sse: WriteTimeout has no effect, no deadline can be set\" behind=httpcompression.compressWriterWithCloseNotify\n"},
	} {
		t.Run(test.mount.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				broker := &sse.Broker{Logger: slog.New(slog.NewTextHandler(&log, nil))}
				s := serve(t, broker, test.mount, 0)
				s.open(t, "/events", "Accept-Encoding", "gzip")
				synctest.Wait()
				if _, got, _ := strings.Cut(log.String(), " "); got != test.want { // after the time
					t.Errorf("got log %q, want %q", got, test.want)
				}
			})
		})
	}
}

// TestMemory prints what a client costs the server with a compressor and without.
func TestMemory(t *testing.T) {
	m := with(func(b *sse.Broker) http.HandlerFunc { return b.ServeHTTP })[2]
	measure := func(coding string) int {
		broker := &sse.Broker{}
		s := httptest.NewServer(m.handler(broker))
		defer s.Close()
		defer broker.Shutdown(t.Context())
		const clients = 20
		before := heap()
		for range clients {
			st, err := tools.Open(t, &http.Client{Transport: &http.Transport{DisableCompression: true}}, s.URL+"/events", "Accept-Encoding", coding)
			if err == nil {
				err = st.Begun()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer st.Leave()
		}
		return (heap() - before) / clients
	}
	plain, compressed := measure("identity"), measure("gzip")
	t.Logf("a client takes %d KB without compression, %d KB with it (its own side included)", plain>>10, compressed>>10)
	if compressed < plain+200<<10 {
		t.Errorf("got %d and %d bytes: is it worth a warning?", plain, compressed)
	}
}

// heap returns the bytes in use.
func heap() int {
	runtime.GC()
	runtime.GC() // the first leaves what is in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// A server is an http.Server without a network, for a bubble of fake time.
type server struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// serve runs the mount until the test ends.
func serve(t *testing.T, broker *sse.Broker, m mount, timeout time.Duration) *server {
	s := &server{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: m.handler(broker), ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: timeout}
	go srv.Serve(s)
	t.Cleanup(func() {
		broker.Shutdown(context.Background())
		srv.Close()
	})
	return s
}

func (s *server) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *server) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *server) Addr() net.Addr { return &net.TCPAddr{} }

func (s *server) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case s.conns <- server:
		return client, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// connect returns a connection to the server.
func (s *server) connect(t *testing.T) net.Conn {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (s *server) client(t *testing.T) *http.Client {
	tr := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return s.dial() },
		DisableCompression: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// open asks for a stream and waits until it has begun.
func (s *server) open(t *testing.T, path string, header ...string) *tools.Stream {
	t.Helper()
	st, err := tools.Open(t, s.client(t), "http://server"+path, header...)
	if err == nil {
		err = st.Begun()
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}
