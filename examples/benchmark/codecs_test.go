package benchmark

import (
	"bytes"
	"fmt"
	"io"
	"net/http"

	"github.com/donovanhide/eventsource"
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
	{"naive", encodeNaive, nil},
	{"r3labs", nil, decodeR3labs},
	{"tmaxmax", encodeTmaxmax, decodeTmaxmax},
	{"donovanhide", encodeDonovanhide, decodeDonovanhide},
}

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
	for e, err := range tmaxmax.Read(r, nil) {
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

// decodeR3labs is a whole client, since the library has no other way to read.
func decodeR3labs(r io.Reader, each func(string)) error {
	client := r3labs.NewClient("http://localhost/")
	client.Connection.Transport = answerWith{r}
	return client.SubscribeRaw(func(e *r3labs.Event) { each(string(e.Data)) })
}

// answerWith answers requests with what the reader has.
type answerWith struct{ body io.Reader }

func (a answerWith) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(a.body)}, nil
}
