package faults

import "io"

// Kinds of frames, RFC 9113, section 6.
const (
	h2Headers   = 1
	h2RSTStream = 3
	h2Settings  = 4
	h2Ping      = 6
	h2GoAway    = 7
)

// h2Request returns the beginning of an HTTP/2 connection with one request, on
// the stream of this number.
func h2Request(stream uint32) []byte {
	b := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), h2Frame(h2Settings, 0, 0, nil)...)
	return append(b, h2Get(stream)...)
}

// h2Get returns the HEADERS frame of GET http://x/events, which is all of the
// request. Its fields are in the static table of RFC 7541, but for two values.
func h2Get(stream uint32) []byte {
	fields := []byte{0x82, 0x86, 0x44, 7}
	fields = append(fields, "/events"...)
	fields = append(fields, 0x41, 1, 'x')
	const endStreamAndHeaders = 5
	return h2Frame(h2Headers, endStreamAndHeaders, stream, fields)
}

// h2Frame returns a frame of RFC 9113, section 4.1.
func h2Frame(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags,
		byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}, payload...)
}

func h2Read(r io.Reader) (kind, flags byte, payload []byte, err error) {
	head := make([]byte, 9)
	if _, err = io.ReadFull(r, head); err == nil {
		payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		_, err = io.ReadFull(r, payload)
	}
	return head[3], head[4], payload, err
}
