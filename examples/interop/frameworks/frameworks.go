// Package frameworks shows how a broker is mounted in the usual frameworks, with
// each one's usual middleware: a logger, a recoverer and a compressor.
package frameworks

import (
	"net/http"

	"github.com/CAFxX/httpcompression"
	"github.com/NYTimes/gziphandler"
	"github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

	"github.com/seed22e817d0/sse"
)

// Mux mounts the broker in net/http.
func Mux(broker *sse.Broker) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /events", broker)
	mux.HandleFunc("GET /rooms/{room}/events", func(w http.ResponseWriter, r *http.Request) {
		broker.Serve(w, r, "room/"+r.PathValue("room"))
	})
	return mux
}

// Chi mounts the broker in chi.
func Chi(broker *sse.Broker) http.Handler {
	r := chi.NewRouter()
	r.Use(chimiddleware.Logger, chimiddleware.Recoverer, chimiddleware.Compress(5))
	r.Method("GET", "/events", broker)
	r.Get("/rooms/{room}/events", func(w http.ResponseWriter, r *http.Request) {
		broker.Serve(w, r, "room/"+chi.URLParam(r, "room"))
	})
	return r
}

// Gin mounts the broker in gin.
func Gin(broker *sse.Broker) http.Handler {
	r := gin.New()
	// The compressor hides the connection's deadlines from what runs behind it.
	notStreams := gzip.WithExcludedPathsRegexs([]string{"/events$"})
	r.Use(gin.Logger(), gin.Recovery(), gzip.Gzip(gzip.DefaultCompression, notStreams))
	r.GET("/events", gin.WrapH(broker))
	r.GET("/rooms/:room/events", func(c *gin.Context) {
		broker.Serve(c.Writer, c.Request, "room/"+c.Param("room"))
	})
	return r
}

// Echo mounts the broker in echo.
func Echo(broker *sse.Broker) http.Handler {
	e := echo.New()
	e.Use(middleware.RequestLogger(), middleware.Recover(), middleware.Gzip())
	e.GET("/events", echo.WrapHandler(broker))
	e.GET("/rooms/:room/events", func(c *echo.Context) error {
		broker.Serve(c.Response(), c.Request(), "room/"+c.Param("room"))
		return nil
	})
	return e
}

// GzipHandler mounts the broker behind github.com/NYTimes/gziphandler.
func GzipHandler(broker *sse.Broker) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /events", uncompressed(broker))
	return gziphandler.GzipHandler(mux)
}

// HTTPCompression mounts the broker behind github.com/CAFxX/httpcompression.
func HTTPCompression(broker *sse.Broker) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /events", uncompressed(broker))
	compress, err := httpcompression.DefaultAdapter()
	if err != nil {
		panic(err) // an option is wrong, and there is none
	}
	return compress(mux)
}

// uncompressed keeps a compressor from holding the stream back.
func uncompressed(stream http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "identity")
		stream.ServeHTTP(w, r)
	})
}
