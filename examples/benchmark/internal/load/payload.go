package load

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// Mark is the first byte of each payload, and is nowhere else in it.
const Mark = '#'

// Payload returns the data of the event with this number, of so many bytes, or
// a few more if they do not hold what the clients need to check it by.
func Payload(number int64, size int) string {
	var head [48]byte
	b := append(head[:0], Mark)
	b = append(strconv.AppendInt(b, number, 10), ' ')
	b = append(strconv.AppendInt(b, time.Now().UnixNano(), 10), ' ')
	return string(b) + strings.Repeat("x", max(1, size-len(b)))
}

// parsePayload returns an event's number and when it was published. It is not
// ok if data is not as Payload made it.
func parsePayload(data []byte, size int) (number, nanos int64, ok bool) {
	if len(data) < size || len(data) == 0 || data[0] != Mark || data[len(data)-1] != 'x' {
		return 0, 0, false
	}
	number, data, ok = cutNumber(data[1:])
	if !ok {
		return 0, 0, false
	}
	nanos, data, ok = cutNumber(data)
	return number, nanos, ok && (len(data) == 1 || bytes.Count(data, []byte("x")) == len(data))
}

// cutNumber reads a number and the blank behind it.
func cutNumber(b []byte) (n int64, rest []byte, ok bool) {
	for i, c := range b {
		if c == ' ' && i > 0 {
			return n, b[i+1:], true
		}
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return 0, nil, false
}

// LastNumber returns the number of the last event whose data is in p, or 0.
func LastNumber(p []byte) int64 {
	i := bytes.LastIndexByte(p, Mark)
	if i < 0 {
		return 0
	}
	number, _, _ := cutNumber(p[i+1:])
	return number
}
