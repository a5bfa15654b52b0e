package main

import (
	"strings"
	"testing"
)

const twoRuns = `# command: go test -bench=Burst -count=2
# date: 2026-11-22
# machine: 2 × AMD EPYC, Linux 6.18.44, go1.26.8
goos: linux
pkg: github.com/seed22e817d0/sse/examples/benchmark
cpu: AMD EPYC
BenchmarkBurst/lib=ours/clients=100/bytes=100-2         152   1415144 ns/op    0.40 cpu-µs/delivery
BenchmarkBurst/lib=ours/clients=100/bytes=100-2         152   1415144 ns/op    0.50 cpu-µs/delivery
BenchmarkBurst/lib=ours/clients=1000/bytes=100-2        152   1415144 ns/op    0.50 cpu-µs/delivery
BenchmarkBurst/lib=ours-detach/clients=100/bytes=100-2  152   1415144 ns/op    0.36 cpu-µs/delivery
BenchmarkBurst/lib=other/clients=100/bytes=100-2         27  12943874 ns/op    9.00 cpu-µs/delivery
BenchmarkBurst/lib=other/clients=1000/bytes=100-2        27  12943874 ns/op    3.40 cpu-µs/delivery
BenchmarkReplay/lib=other/clients=100/events=999-2        1 662047829 ns/op    6.858 cpu-µs/event   1.000 doubled/client
BenchmarkReplay/lib=ours/clients=100/events=999-2         6  36569544 ns/op    0.1641 cpu-µs/event  0 doubled/client
PASS
ok  	github.com/seed22e817d0/sse/examples/benchmark	93.199s
`

const want = "2 × AMD EPYC, Linux 6.18.44, go1.26.8, 2026-11-22, `go test -bench=Burst -count=2`; medians of 2. In brackets: how many times \"ours\"." + `

**Bursts of 16 events over HTTP/1.1: server CPU, µs for each delivery**

| | clients 100, bytes 100 | clients 1000, bytes 100 |
|---|--:|--:|
| ours | 0.45 | 0.50 |
| ours-detach | 0.36 (0.80×) | – |
| other | 9.00 (20×) | 3.40 (6.8×) |

**Replay of 999 events to each client that comes back**

| | server CPU, µs for each event | events that the client had already |
|---|--:|--:|
| ours | 0.16 | 0 |
| other | 6.86 (42×) | 1 |
`

func TestTablesOfTwoRuns(t *testing.T) {
	var o output
	if err := o.read(strings.NewReader(twoRuns)); err != nil {
		t.Fatal(err)
	}
	got, err := o.markdown()
	if err != nil || got != want {
		t.Errorf("got\n%s\nerror %v, want\n%s", got, err, want)
	}
}

func TestWhatFailedOrIsEmptyMakesNoTable(t *testing.T) {
	for _, in := range []string{
		twoRuns + "--- FAIL: BenchmarkBurst/lib=ours\n",
		twoRuns + "FAIL\n",
		"BenchmarkBurst/clients=100-2 1 2 ns/op\n",
		"BenchmarkBurst/lib=ours-2 1 many ns/op\n",
	} {
		var o output
		if err := o.read(strings.NewReader(in)); err == nil {
			t.Errorf("got no error for\n%s", in)
		}
	}
	var o output
	if _, err := o.markdown(); err == nil {
		t.Error("got no error without results")
	}
}
