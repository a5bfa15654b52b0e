package benchmark

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/donovanhide/eventsource"
	launchdarkly "github.com/launchdarkly/eventsource"
	r3labs "github.com/r3labs/sse/v2"
	tmaxmax "github.com/tmaxmax/go-sse"

	"github.com/seed22e817d0/sse"
)

// A codec is what a library offers for the format itself.
type codec struct {
	name   string
	encode encoder // nil: nothing apart from the handler
	decode func(r io.Reader, each func(data string)) error
}

// An encoder writes an event to a buffer, which is reused.
type encoder func(w *bytes.Buffer, m message) error

var codecs = []codec{
	{"ours", encodeOurs, decodeOurs},
	{"ours-client", nil, readOurs},
	{"naive", encodeNaive, nil},
	{"r3labs-client", nil, readR3labs},
	{"tmaxmax", encodeTmaxmax, decodeTmaxmax},
	{"tmaxmax-client", nil, readTmaxmax},
	{"launchdarkly", nil, decodeLaunchDarkly},
	{"donovanhide", encodeDonovanhide, decodeDonovanhide},
}

// maxEvent is the limit for those that have a lower one.
const maxEvent = 16 << 20

func encodeOurs(w *bytes.Buffer, m message) error {
	b, err := sse.Event{ID: m.id(), Data: m.data}.AppendText(w.AvailableBuffer())
	w.Write(b)
	return err
}

func encodeNaive(w *bytes.Buffer, m message) error {
	_, err := fmt.Fprintf(w, "id: %s\ndata: %s\n\n", m.id(), m.data)
	return err
}

func encodeTmaxmax(w *bytes.Buffer, m message) error {
	message := &tmaxmax.Message{ID: tmaxmax.ID(m.id())}
	message.AppendData(m.data)
	_, err := message.WriteTo(w)
	return err
}

func encodeDonovanhide(w *bytes.Buffer, m message) error {
	return eventsource.NewEncoder(w, false).Encode(sortedEvent{m.id(), m.data})
}

func decodeOurs(r io.Reader, each func(string)) error {
	for e, err := range sse.NewDecoder(r).All() {
		if err != nil {
			return err
		}
		each(e.Data)
	}
	return nil
}

func decodeTmaxmax(r io.Reader, each func(string)) error {
	for e, err := range tmaxmax.Read(r, &tmaxmax.ReadConfig{MaxEventSize: maxEvent}) {
		if err != nil {
			return err
		}
		each(e.Data)
	}
	return nil
}

func decodeDonovanhide(r io.Reader, each func(string)) error {
	for decoder := eventsource.NewDecoder(r); ; {
		e, err := decoder.Decode()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		each(e.Data())
	}
}

func decodeLaunchDarkly(r io.Reader, each func(string)) error {
	for decoder := launchdarkly.NewDecoder(r); ; {
		e, err := decoder.Decode()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		each(e.Data())
	}
}

// The clients' one answer is the stream, and they are not to come back.

func readOurs(r io.Reader, each func(string)) error {
	client := &sse.Client{
		HTTPClient: &http.Client{Transport: answerWith{r}},
		Logger:     slog.New(slog.DiscardHandler),
		Retry:      time.Nanosecond,
		CheckRetry: func(_ *http.Request, err error) error { return err },
	}
	for e, err := range client.Events(newRequest()) {
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		each(e.Data)
	}
	return nil
}

func readR3labs(r io.Reader, each func(string)) error {
	client := r3labs.NewClient("http://localhost/", r3labs.ClientMaxBufferSize(maxEvent))
	client.Connection.Transport = answerWith{r}
	return client.SubscribeRaw(func(e *r3labs.Event) { each(string(e.Data)) })
}

func readTmaxmax(r io.Reader, each func(string)) error {
	client := &tmaxmax.Client{HTTPClient: &http.Client{Transport: answerWith{r}}, Backoff: tmaxmax.Backoff{MaxRetries: -1}}
	conn := client.NewConnection(newRequest())
	conn.Buffer(nil, maxEvent)
	conn.SubscribeToAll(func(e tmaxmax.Event) { each(e.Data) })
	if err := conn.Connect(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func newRequest() *http.Request {
	r, err := http.NewRequest("GET", "http://localhost/", nil)
	must(err)
	return r
}

// answerWith answers requests with what the reader has.
type answerWith struct{ body io.Reader }

func (a answerWith) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK,
		Header:     http.Header{"Content-Type": {"text/event-stream"}},
		Body:       io.NopCloser(a.body),
		Request:    r,
	}, nil
}
