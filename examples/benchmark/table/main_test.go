package main

import (
	"bytes"
	"os"
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

**What was to be reached**

| work | measure | bound | measured | |
|---|---|--:|---|---|
| bursts of 16, 100 and 1,000 clients, 100 and 1,000 bytes | the best other ÷ ` + "`Serve`" + ` | ≥ 6 | 100 × 100 B: –; 100 × 1000 B: –; 1000 × 100 B: 6.8; 1000 × 1000 B: – | – |
`

const stalled = `
BenchmarkStalled/lib=ours/clients=1000/stalled=0-2   16  2000000 ns/op  8.00 p50-ms  10.0 p99-ms
BenchmarkStalled/lib=other/clients=1000/stalled=0-2  16  4000000 ns/op  9.00 p50-ms  20.0 p99-ms
BenchmarkStalled/lib=ours/clients=1000/stalled=1-2   16  2000000 ns/op  8.00 p50-ms  11.0 p99-ms

# no result: Stalled/lib=other/clients=1000/stalled=1: all wait; nothing came for 2s

# no result: Stalled/lib=third/clients=1000/stalled=1: crashed: panic: oh
BenchmarkStalled/lib=third/clients=1000/stalled=1-2  16  2000000 ns/op  8.00 p50-ms  11.0 p99-ms
`

const wantStalled = `
**Bursts of 16 events to clients that read, beside stalled ones that do not: delay, 99 percent, ms**

| | clients 1000, stalled 0 | clients 1000, stalled 1 |
|---|--:|--:|
| ours | 10.0 | 11.0 |
| other | 20.0 (2.0×) | all wait |
| third | – | crashed |

- other, clients 1000, stalled 1: all wait; nothing came for 2s
- third, clients 1000, stalled 1: crashed: panic: oh

**The same: delay, median, ms**

| | clients 1000, stalled 0 | clients 1000, stalled 1 |
|---|--:|--:|
| ours | 8.0 | 8.0 |
| other | 9.0 (1.12×) | all wait |
| third | – | crashed |

**The same: time for each burst, ms**

| | clients 1000, stalled 0 | clients 1000, stalled 1 |
|---|--:|--:|
| ours | 2.0 | 2.0 |
| other | 4.0 (2.0×) | all wait |
| third | – | crashed |

**What was to be reached**

| work | measure | bound | measured | |
|---|---|--:|---|---|
| stalled clients beside 1,000 | 99 percent of the others' delays ÷ that with none stalled | ≤ 1.15 | Serve, 1: 1.10; Serve, 100: –; Detach, 1: –; Detach, 100: – | – |
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

func TestALibraryWithoutAResultIsShownWithTheReason(t *testing.T) {
	var o output
	if err := o.read(strings.NewReader(stalled)); err != nil {
		t.Fatal(err)
	}
	text, err := o.markdown()
	_, got, _ := strings.Cut(text, "\n") // past the facts
	if err != nil || got != wantStalled {
		t.Errorf("got\n%s\nerror %v, want\n%s", got, err, wantStalled)
	}
}

func TestBenchmarksWithNamesThatBeginAlikeAreKeptApart(t *testing.T) {
	var o output
	in := "BenchmarkPublish/lib=ours/subscribers=1-2 9 2000 ns/op\nBenchmarkPublishers/lib=ours/publishers=8-2 9 9000 ns/op 70.0 ns/event\n"
	if err := o.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	text, err := o.markdown()
	for _, want := range []string{
		"\n| | subscribers 1 |\n|---|--:|\n| ours | 2.0 |\n",
		"\n| | publishers 8 |\n|---|--:|\n| ours | 0.07 |\n",
	} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("got\n%s\nerror %v, want it to contain\n%s", text, err, want)
		}
	}
}

func TestWhatWasToBeReached(t *testing.T) {
	const bursts = `
BenchmarkBurst/lib=ours/clients=10000/bytes=100-2         1  1 ns/op  3.0 cpu-µs/delivery
BenchmarkBurst/lib=ours-detach/clients=10000/bytes=100-2  1  1 ns/op  1.0 cpu-µs/delivery
BenchmarkBurst/lib=naive/clients=10000/bytes=100-2        1  1 ns/op   20 cpu-µs/delivery
BenchmarkBurst/lib=other/clients=10000/bytes=100-2        1  1 ns/op   18 cpu-µs/delivery
BenchmarkBurst/lib=floor/clients=10000/bytes=100-2        1  1 ns/op  1.5 cpu-µs/delivery
`
	for _, test := range []struct{ runs, of, least string }{
		{bursts, "≤ 2.2 | 10000 × 100 B: 2.00 | reached", "≥ 6 | 10000 × 100 B: 6.0 | reached"},
		{strings.ReplaceAll(bursts, "1.5", "1.3"), "≤ 2.2 | 10000 × 100 B: 2.31 | **not reached**", "≥ 6 | 10000 × 100 B: 6.0 | reached"},
		{strings.ReplaceAll(bursts, "20", "15"), "≤ 2.2 | 10000 × 100 B: 2.00 | reached", "≥ 6 | 10000 × 100 B: 5.0 | **not reached**"},
		// The ratio of each run counts, and not that of the medians: 2, 3 and 4.
		{bursts + strings.ReplaceAll(bursts, "1.5", "1.0") + strings.ReplaceAll(strings.ReplaceAll(bursts, "3.0", "12"), "1.5", "3.0"),
			"≤ 2.2 | 10000 × 100 B: 3.00 | **not reached**", "≥ 6 | 10000 × 100 B: 6.0 | reached"},
	} {
		var o output
		if err := o.read(strings.NewReader(test.runs)); err != nil {
			t.Fatal(err)
		}
		text, err := o.markdown()
		if err != nil {
			t.Fatal(err)
		}
		for measure, want := range map[string]string{
			"| bursts of 16, 10,000 clients | CPU for each delivery with `Serve` ÷ floor | ": test.of,
			"|  | the best other ÷ `Serve` | ":                                               test.least,
		} {
			if line := measure + want + " |\n"; !strings.Contains(text, line) {
				t.Errorf("there is no line\n%s in\n%s", line, text)
			}
		}
	}
}

func TestGoalsNameWhatTheBenchmarksMeasure(t *testing.T) {
	benchmarks, err := os.ReadFile("../benchmark_test.go")
	if err != nil {
		t.Fatal(err)
	}
	check := func(q quantity) {
		t.Helper()
		benchmark, params, _ := strings.Cut(q.name, "/")
		if !bytes.Contains(benchmarks, []byte("func Benchmark"+benchmark+"(")) {
			t.Errorf("there is no benchmark for %+v", q)
		}
		for param := range strings.SplitSeq(params, "/") {
			if name, _, _ := strings.Cut(param, "="); !bytes.Contains(benchmarks, []byte(name+"=")) {
				t.Errorf("no benchmark has the parameter %s of %+v", name, q)
			}
		}
	}
	for _, g := range goals {
		for _, f := range g.figures {
			check(f.of)
			if f.per != (quantity{}) {
				check(f.per)
			}
		}
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
