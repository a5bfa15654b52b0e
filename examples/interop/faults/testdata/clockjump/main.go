// Clockjump runs a Broker while the wall clock jumps, and prints what became of
// it. TestWallClockJump builds it with a package time whose wall clock does.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/seed22e817d0/sse"
)

type result struct {
	Jumps            []time.Duration // of the wall clock, as the program saw it
	Replayed         []int           // events replayed after each jump
	GapWhenOld       bool            // the gap was told once HistoryAge had passed
	KeepAlives       int
	LongestKeepAlive time.Duration // between two of them
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	const events = 10
	begin := time.Now()
	b := &sse.Broker{HistoryAge: 6 * time.Second, KeepAlive: 100 * time.Millisecond, WriteTimeout: time.Second}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/serve", b.ServeHTTP)
	mux.HandleFunc("/detach", func(w http.ResponseWriter, r *http.Request) { b.Detach(w, r, nil) })
	go http.Serve(ln, mux)
	url := "http://" + ln.Addr().String() + os.Args[1]

	first := b.LastEventID()
	for i := range events {
		if _, err := b.Publish(sse.Event{Data: fmt.Sprint(i)}); err != nil {
			return err
		}
	}
	var res result
	quiet := make(chan time.Time, 1000)
	go keepAlives(url, quiet)

	wall := time.Now().Round(0) // without the monotonic reading
	mark := time.Now()
	// The wall clock jumps after 1 and 2 seconds.
	for _, at := range []time.Duration{1500 * time.Millisecond, 2500 * time.Millisecond} {
		time.Sleep(at - time.Since(begin))
		res.Jumps = append(res.Jumps, (time.Now().Round(0).Sub(wall) - time.Since(mark)).Round(time.Minute))
		wall, mark = time.Now().Round(0), time.Now()
		n, gap, err := replay(url, first, events)
		if err != nil {
			return err
		}
		if gap {
			n = -1
		}
		res.Replayed = append(res.Replayed, n)
	}
	time.Sleep(6500*time.Millisecond - time.Since(begin))
	if _, res.GapWhenOld, err = replay(url, first, events); err != nil {
		return err
	}
	last := <-quiet
	for len(quiet) > 0 {
		next := <-quiet
		res.KeepAlives++
		res.LongestKeepAlive = max(res.LongestKeepAlive, next.Sub(last))
		last = next
	}
	return json.NewEncoder(os.Stdout).Encode(res)
}

// replay counts the events after the one with this ID, up to most.
func replay(url, lastID string, most int) (n int, gap bool, err error) {
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0, false, err
	}
	r.Header.Set("Last-Event-ID", lastID)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	for e, err := range sse.NewDecoder(resp.Body).All() {
		if err != nil {
			return n, gap, err
		}
		if e.Type == "gap" {
			return n, true, nil
		}
		if n++; n == most {
			return n, false, nil
		}
	}
	return n, gap, errors.New("the stream ended")
}

// keepAlives tells when each keep-alive of a quiet stream came.
func keepAlives(url string, came chan<- time.Time) {
	resp, err := http.Get(url)
	if err != nil {
		return
	}
	for p := make([]byte, 4096); ; came <- time.Now() {
		if _, err := resp.Body.Read(p); err != nil {
			return
		}
	}
}
