package sse

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// ----- Event -----

// maxIDBytes bounds an event ID: it comes back as a request header, and what
// is longer is no ID that this package ever sent.
const maxIDBytes = 1 << 10

// endID is the ID of the event that ends a stream for good: a client that comes
// back with it is answered 204, whatever it asks for.
const endID = "sse-end"

// endEvent is that event as it is written to a stream. It is not for Subscribe.
var endEvent = &frame{id: endID, body: "event: end\ndata: \n\n", mark: true}

// An Event is one message of an event stream. The zero Event is a message with empty
// data. An Event with only Retry set is not a message: it changes the client's
// reconnection time; a [Broker] assigns it an ID and keeps it too.
//
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
type Event struct {
	// ID is what the client sends back as Last-Event-ID when it reconnects. If "", a
	// Broker that keeps a history assigns one; other streams send none. In a Broker,
	// IDs must be unique among all topics, and all clients may see them.
	//
	// An ID must be valid UTF-8 of at most 1 KiB, without control characters and
	// without a space at either end. Earliest and "sse-end" are reserved. Prefer
	// ASCII: some clients, such as npm's eventsource, cannot reconnect after others.
	ID string

	// Type is the event type under which a browser dispatches the event. If "", it
	// is "message". It must be valid UTF-8 without CR, LF and NUL.
	Type string

	// Data is the payload, a text of any number of lines. The client receives each
	// CR, LF and CRLF in it as LF, and U+FFFD for bytes that are not valid UTF-8.
	Data string

	// Retry is the client's new reconnection time, sent in whole milliseconds, rounded
	// down. It must not be negative or less than a millisecond. If 0, none is sent.
	Retry time.Duration
}

// JSON returns an Event whose Data is v as encoded by [json.Marshal], or an error
// that wraps that of json.Marshal.
func JSON(v any) (Event, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Event{}, fmt.Errorf("sse: event data: %w", err)
	}
	return Event{Data: string(data)}, nil
}

// AppendText appends the event to b as it is written to a stream. It implements
// [encoding.TextAppender]. If the event cannot be represented, AppendText returns
// b unchanged and an error naming the offending field and its value.
func (e Event) AppendText(b []byte) ([]byte, error) {
	if err := e.check(); err != nil {
		return b, err
	}
	return e.appendBody(appendID(b, e.ID)), nil
}

// check returns an error if e cannot be sent.
func (e Event) check() error {
	switch {
	case len(e.ID) > maxIDBytes:
		return fmt.Errorf("sse: event ID %s is longer than %d bytes", quote(e.ID), maxIDBytes)
	case strings.ContainsFunc(e.ID, unicode.IsControl):
		return fmt.Errorf("sse: event ID %s contains a control character", quote(e.ID))
	case strings.HasPrefix(e.ID, " ") || strings.HasSuffix(e.ID, " "):
		return fmt.Errorf("sse: event ID %s begins or ends with a blank", quote(e.ID))
	case !utf8.ValidString(e.ID):
		return fmt.Errorf("sse: event ID %s is not valid UTF-8", quote(e.ID))
	case e.ID == endID || e.ID == Earliest:
		return fmt.Errorf("sse: event ID %s is reserved", quote(e.ID))
	case strings.ContainsAny(e.Type, "\r\n\x00"):
		return fmt.Errorf("sse: event type %s contains CR, LF or NUL", quote(e.Type))
	case !utf8.ValidString(e.Type):
		return fmt.Errorf("sse: event type %s is not valid UTF-8", quote(e.Type))
	case e.Retry < 0:
		return fmt.Errorf("sse: event retry %v is negative", e.Retry)
	case e.Retry > 0 && e.Retry < time.Millisecond:
		return fmt.Errorf("sse: event retry %v is under a millisecond", e.Retry)
	}
	return nil
}

// quote returns s for an error message: in quotes, and shortened.
func quote(s string) string {
	if short := fmt.Sprintf("%.40s", s); len(short) < len(s) {
		return strconv.Quote(short) + "…"
	}
	return strconv.Quote(s)
}

// appendID appends the id field. It stands apart from the body because a
// Broker knows the ID only once the event has its place in the order.
func appendID(b []byte, id string) []byte {
	if id == "" {
		return b
	}
	return appendField(b, "id: ", id)
}

// Blank lines. One ends each event. Some clients dispatch a message at every blank
// line, an empty one if there was no event, so none stands after a comment or a
// reconnection time. But a client remembers an ID only at a blank line, so one
// stands after an ID without an event too:
//
//   - in the first block of a stream, which tells the client its own ID;
//   - where a Broker tells a client its place: at the end of CatchUp, with a
//     keep-alive, and as it turns the client away;
//   - after a published event with only Retry set, to which it assigned an ID.

// appendBody appends all but the id field of an event that was checked.
func (e Event) appendBody(b []byte) []byte {
	if e.Type != "" {
		b = appendField(b, "event: ", e.Type)
	}
	if e.Retry != 0 {
		b = append(b, "retry: "...)
		b = append(strconv.AppendInt(b, e.Retry.Milliseconds(), 10), '\n')
	}
	if e.isRetry() {
		return b
	}
	// Without a data field a browser drops the block, so an event with empty
	// data has one too.
	return append(appendLines(b, "data: ", toUTF8(e.Data)), '\n')
}

// isRetry reports whether e is a reconnection time and nothing else.
func (e Event) isRetry() bool { return e.Retry != 0 && e == (Event{Retry: e.Retry}) }

func appendField(b []byte, field, value string) []byte {
	b = append(b, field...)
	b = append(b, value...)
	return append(b, '\n')
}

// ----- Frames -----

// A frame is an event as it is written to a stream.
type frame struct {
	id         string
	body       string // the event without its ID
	mark       bool   // no event, and not for Subscribe: a comment, a reconnection time, an ID
	endsTopics bool   // says that its topics have ended, and is not sent

	// In the log of a Broker, and guarded by its mu.
	keyed   bool      // the value of a key, or was it
	holders int32     // clients that are being sent the frame, if it is large
	seq     uint64    // its number; 0 if the frame was never in a log
	topics  []*topic  // sorted by name; without those in which it was replaced
	events  uint64    // number of events published up to it
	size    int       // what it counts against HistoryBytes
	at      time.Time // zero if the log keeps frames of any age
}

// scratch holds buffers of up to about pieceBytes.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// newFrame returns a frame for ev, which was checked.
func newFrame(ev Event) *frame {
	buf := scratch.Get().(*[]byte)
	b := ev.appendBody((*buf)[:0])
	f := &frame{id: strings.Clone(ev.ID), body: string(b)} // the ID may be part of a long text
	putScratch(buf, b)
	return f
}

func putScratch(buf *[]byte, b []byte) {
	if cap(b) <= 2*pieceBytes {
		*buf = b
		scratch.Put(buf)
	}
}

// encodedLen is the number of bytes that appendFrames appends for f.
func (f *frame) encodedLen() int {
	if f.id == "" {
		return len(f.body)
	}
	return len("id: ") + len(f.id) + len("\n") + len(f.body)
}

// appendFrames appends the frames as they are written to a stream.
func appendFrames(b []byte, frames []*frame) []byte {
	for _, f := range frames {
		b = append(appendID(b, f.id), f.body...)
	}
	return b
}

// A frameReader copies frames piece by piece, beginning skip bytes into the first.
type frameReader struct {
	frames []*frame
	skip   int
}

// piece copies the next piece to buf. It returns none when all was taken.
func (r *frameReader) piece(buf []byte) []byte {
	p, skip := buf[:0], r.skip
	for _, f := range r.frames {
		if skip == 0 && len(p)+f.encodedLen() <= pieceBytes {
			p = append(appendID(p, f.id), f.body...)
			continue
		}
		if f.id != "" {
			p, skip = appendUpTo(p, "id: "+f.id+"\n", skip)
		}
		if p, skip = appendUpTo(p, f.body, skip); len(p) == pieceBytes {
			break
		}
	}
	return p
}

// appendUpTo appends s without its first skip bytes, until p is a piece. It returns
// what is left to skip.
func appendUpTo(p []byte, s string, skip int) ([]byte, int) {
	if skip >= len(s) {
		return p, skip - len(s)
	}
	return append(p, s[skip:min(len(s), skip+pieceBytes-len(p))]...), 0
}

// take notes that n bytes of what piece returned were written.
func (r *frameReader) take(n int) {
	r.skip += n
	for len(r.frames) > 0 && r.skip >= r.frames[0].encodedLen() {
		r.skip -= r.frames[0].encodedLen()
		r.frames = r.frames[1:]
	}
}

var toLF = strings.NewReplacer("\r\n", "\n", "\r", "\n")

// appendLines appends one field for each line of text, which may be empty.
func appendLines(b []byte, field, text string) []byte {
	if strings.IndexByte(text, '\r') >= 0 {
		text = toLF.Replace(text)
	}
	for line := range strings.SplitSeq(text, "\n") {
		b = appendField(b, field, line)
	}
	return b
}

// parseEvent reads back what appendBody wrote. All fields of an event with
// data of one line share the memory of body.
func parseEvent(id, body string) Event {
	e := Event{ID: id}
	if rest, ok := strings.CutPrefix(body, "event: "); ok {
		e.Type, body, _ = strings.Cut(rest, "\n")
	}
	if rest, ok := strings.CutPrefix(body, "retry: "); ok {
		var ms string
		ms, body, _ = strings.Cut(rest, "\n")
		e.Retry, _ = parseRetry(ms)
	}
	if rest, ok := strings.CutPrefix(body, "data: "); ok {
		e.Data = strings.ReplaceAll(strings.TrimSuffix(rest, "\n\n"), "\ndata: ", "\n")
	}
	return e
}

// parseRetry returns the reconnection time that a retry field means. The field
// is to be ignored if it holds anything but digits.
func parseRetry(value string) (retry time.Duration, ok bool) {
	if value == "" || strings.Trim(value, "0123456789") != "" {
		return 0, false
	}
	const most = math.MaxInt64 / uint64(time.Millisecond)
	ms, _ := strconv.ParseUint(value, 10, 64) // the largest if it is out of range
	return time.Duration(min(ms, most)) * time.Millisecond, true
}

// ----- Decoder -----

// A Decoder reads the events of a stream as a browser's EventSource does. Create one
// with [NewDecoder]. Lines may end in LF, CR or CRLF. A byte order mark at the
// start, comments and unknown fields are skipped, an event that the stream's end
// cuts off is discarded, and bytes that are not valid UTF-8 are read as U+FFFD. A
// Decoder is not safe for concurrent use by multiple goroutines.
//
// See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
type Decoder struct {
	// MaxEventBytes is the limit on the size of one event, in bytes, with its field
	// names and line ends and without comments. The Decoder holds little more than
	// that in memory. If 0, it is 16 MiB; if negative, there is no limit.
	MaxEventBytes int

	r    *bufio.Reader
	err  error  // what ended the stream
	skip string // not part of the next line: a byte order mark, or the LF of a CRLF
	long []byte // a line that did not fit in r's buffer, so far

	size   int    // of the event so far
	data   []byte // each line with its LF
	event  string
	id     string // the last event ID buffer
	lastID string // the last event ID
	wait   time.Duration
}

// NewDecoder returns a Decoder that reads from r. It may read more from r than the
// events it has returned.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: bufio.NewReader(r), skip: "\ufeff"}
}

// LastEventID returns the ID to send as Last-Event-ID when reconnecting: the ID that
// the stream set last, whether or not an event came with it.
func (d *Decoder) LastEventID() string { return d.lastID }

// Retry returns the reconnection time that the stream set last, or 0 if it set none.
func (d *Decoder) Retry() time.Duration { return d.wait }

// Decode returns the next event. It blocks until there is an event or an error.
//
// The event has the ID that the stream set last, even if that was with an earlier event.
// Its Type is "" if none was set. Its Retry is always 0; see [Decoder.Retry].
//
// Decode returns [io.EOF] at the end of the stream, [io.ErrUnexpectedEOF] if the
// stream ends within an event that has data, an error that wraps [ErrEventTooLarge],
// or the error of the reader. After an error, all later calls return the same error.
func (d *Decoder) Decode() (Event, error) {
	for d.err == nil {
		var line []byte
		if line, d.err = d.line(); d.err != nil {
			break
		}
		if len(line) > 0 {
			d.field(line)
			continue
		}
		d.lastID = d.id
		data, event := d.data, d.event
		d.size, d.data, d.event = 0, data[:0], ""
		if len(data) > 0 {
			return Event{ID: d.id, Type: event, Data: toUTF8(string(data[:len(data)-1]))}, nil
		}
	}
	return Event{}, d.err
}

// All returns an iterator over the remaining events of the stream. It yields an
// error other than [io.EOF] last, with a zero Event.
func (d *Decoder) All() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			e, err := d.Decode()
			if err == io.EOF || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// field takes in one line that is not empty.
func (d *Decoder) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "data":
		d.data = append(append(d.data, value...), '\n')
	case "event":
		d.event = toUTF8(string(value))
	case "id":
		if bytes.IndexByte(value, 0) < 0 {
			d.id = toUTF8(string(value))
		}
	case "retry":
		if retry, ok := parseRetry(string(value)); ok {
			d.wait = retry
		}
	}
}

// line returns the next line without its end; it is valid until the next call.
// A line that ends in CR is returned without waiting for the byte behind it,
// which may be long in coming. To wait for a whole byte order mark does no harm: a
// shorter stream has no event.
func (d *Decoder) line() ([]byte, error) {
	d.long = d.long[:0]
	if d.skip != "" {
		start, err := d.r.Peek(len(d.skip))
		if err != nil {
			return nil, d.cut(err)
		}
		if string(start) == d.skip {
			d.r.Discard(len(d.skip))
		}
		d.skip = ""
	}
	for {
		if _, err := d.r.Peek(1); err != nil {
			return nil, d.cut(err)
		}
		b, _ := d.r.Peek(d.r.Buffered())
		line := b
		if lf := bytes.IndexByte(line, '\n'); lf >= 0 {
			line = line[:lf]
		}
		if cr := bytes.IndexByte(line, '\r'); cr >= 0 {
			line = line[:cr]
		}
		part := b[:min(len(line)+1, len(b))]
		if err := d.count(part); err != nil {
			return nil, err
		}
		d.r.Discard(len(part)) // leaves part as it is until the next Peek
		if len(line) == len(b) {
			d.long = append(d.long, part...)
			if d.long[0] == ':' {
				d.long = d.long[:1] // a comment: nobody reads the rest
			}
			continue
		}
		if part[len(line)] == '\r' {
			d.skip = "\n"
		}
		if len(d.long) > 0 {
			d.long = append(d.long, line...)
			line = d.long
		}
		return line, nil
	}
}

// cut returns err, or io.ErrUnexpectedEOF if err is io.EOF and the event that it
// cuts off has data, complete lines or not.
func (d *Decoder) cut(err error) error {
	name, _, _ := bytes.Cut(d.long, []byte(":"))
	if err == io.EOF && (len(d.data) > 0 || string(name) == "data") {
		return io.ErrUnexpectedEOF
	}
	return err
}

// count adds part of a line to the size of the event, unless it is a comment's.
func (d *Decoder) count(part []byte) error {
	if part[0] == ':' && len(d.long) == 0 || len(d.long) > 0 && d.long[0] == ':' {
		return nil
	}
	d.size += len(part)
	if limit := cmp.Or(d.MaxEventBytes, 16<<20); limit > 0 && d.size > limit {
		return fmt.Errorf("%w of %d bytes", ErrEventTooLarge, limit)
	}
	return nil
}

// toUTF8 decodes text as the Encoding standard does: each longest beginning of a
// character that is not continued rightly becomes one U+FFFD.
func toUTF8(text string) string {
	if utf8.ValidString(text) {
		return text
	}
	var s strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if r == utf8.RuneError && n == 1 {
			for n < len(text) && !utf8.FullRuneInString(text[:n+1]) {
				n++
			}
		}
		s.WriteRune(r)
		text = text[n:]
	}
	return s.String()
}
