// Table turns the output of the benchmarks, of any number of runs, into tables
// that compare the libraries.
//
//	for i in 1 2 3; do go test -timeout 1h -run '^$' -bench .; done | tee bench.out
//	go run ./table bench.out                    # or - for the standard input
//	go run ./table -into README.md bench.out    # between <!-- bench --> and <!-- /bench -->
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/report"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run() error {
	into := flag.String("into", "", "a Markdown `file` to put the tables into, between <!-- bench --> and <!-- /bench -->")
	flag.Parse()
	if flag.NArg() == 0 {
		return errors.New("name a file with the output of go test -bench, or - for the standard input")
	}
	var out output
	for _, name := range flag.Args() {
		if err := out.readFile(name); err != nil {
			return err
		}
	}
	text, err := out.markdown()
	if err != nil {
		return err
	}
	if *into != "" {
		return report.Replace(*into, "bench", text)
	}
	_, err = fmt.Print(text)
	return err
}

// base is the library that the others are compared with.
const base = "ours"

// A table shows one or more units of a benchmark.
type table struct {
	benchmark, title string
	units            []unit
}

type unit struct {
	name   string // in the output
	title  string // in the table, unless it has only this one
	format string
	scale  float64
	ratio  bool // show how many times the base's it is
}

// again begins the title of a table that shows another unit of the one before.
const again = "The same: "

var (
	burstUnits  = []unit{{"cpu-µs/delivery", "", "%.2f", 1, true}}
	steadyUnits = []unit{
		{"cpu-µs/delivery", "server CPU, µs for each delivery", "%.1f", 1, true},
		{"p50-ms", "delay, median, ms", "%.1f", 1, true},
		{"p99-ms", "99 percent, ms", "%.1f", 1, true},
	}
	idleUnits = []unit{
		{"bytes/conn", "in all", "%.0f", 1, true},
		{"stack-bytes/conn", "stacks", "%.0f", 1, true},
		{"heap-bytes/conn", "allocated", "%.0f", 1, true},
	}
)

var tables = []table{
	{"Burst", "Bursts of 16 events over HTTP/1.1: server CPU, µs for each delivery", burstUnits},
	{"BurstTLS", "Bursts of 16 events over HTTP/1.1 with TLS: server CPU, µs for each delivery", burstUnits},
	{"BurstHTTP2", "Bursts of 16 events over HTTP/2, 100 clients on each connection: server CPU, µs for each delivery", burstUnits},
	{"Steady", "20 events a second to 1,000 clients over HTTP/1.1", steadyUnits},
	{"SteadyTLS", "20 events a second to 1,000 clients over HTTP/1.1 with TLS", steadyUnits},
	{"SteadyHTTP2", "20 events a second to 1,000 clients over HTTP/2, 100 on each connection", steadyUnits},
	{"Replay", "Replay of 999 events to each client that comes back", []unit{
		{"cpu-µs/event", "server CPU, µs for each event", "%.2f", 1, true},
		{"doubled/client", "events that the client had already", "%.0f", 1, false},
	}},
	{"Idle", "Memory of the server's process for each of 10,000 idle connections, bytes", idleUnits},
	{"IdleTLS", "Memory of the server's process for each of 10,000 idle connections with TLS, bytes", idleUnits},
	{"IdleHTTP2", "Memory of the server's process for each of 10,000 idle clients over HTTP/2, 100 on each connection, bytes", idleUnits},
	{"Stalled", "Bursts of 16 events to clients that read, beside stalled ones that do not: delay, 99 percent, ms", []unit{{"p99-ms", "", "%.1f", 1, true}}},
	{"Stalled", again + "delay, median, ms", []unit{{"p50-ms", "", "%.1f", 1, true}}},
	{"Stalled", again + "time for each burst, ms", []unit{{"ns/op", "", "%.1f", 1e-6, true}}},
	{"Publish", "Publishing to handlers without a connection: µs until the last one has the event", []unit{{"ns/op", "", "%.1f", 1e-3, true}}},
	{"Publish", again + "µs until the call returns", []unit{{"ns/call", "", "%.1f", 1e-3, true}}},
	{"Topic", "Publishing to one topic of many, each with one such handler: µs until it has the event", []unit{{"ns/op", "", "%.1f", 1e-3, true}}},
	{"Topic", again + "µs until the call returns", []unit{{"ns/call", "", "%.1f", 1e-3, true}}},
	{"Publishers", "Several goroutines that publish at once: µs for each event, until all subscribers have all", []unit{{"ns/event", "", "%.2f", 1e-3, true}}},
	{"Encode", "Encoding an event, ns", []unit{{"ns/op", "", "%.0f", 1, true}}},
	{"Read", "Reading, µs for each event", []unit{{"ns/event", "", "%.2f", 1e-3, true}}},
	{"Read", again + "MB/s", []unit{{"MB/s", "", "%.0f", 1, false}}},
	{"Read", again + "allocations for each event", []unit{{"allocs/event", "", "%.1f", 1, false}}},
}

// An output is what runs of the benchmarks have printed.
type output struct {
	facts  []string // "key: value", each once
	runs   int      // the most results of one benchmark
	names  []string // of benchmarks without the library, in their order
	libs   []string // in their order
	values map[key][]float64
	none   []none
}

// A none is a benchmark that a library did not come through.
type none struct{ name, lib, why string }

type key struct{ name, lib, unit string }

func (o *output) readFile(name string) error {
	if name == "-" {
		return o.read(os.Stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return o.read(f)
}

func (o *output) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if what, ok := strings.CutPrefix(line, "# no result: "); ok {
			if err := o.noResult(what); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
		} else if fact, ok := strings.CutPrefix(line, "# "); ok && !slices.Contains(o.facts, fact) {
			o.facts = append(o.facts, fact)
		}
		if strings.HasPrefix(line, "--- FAIL") || line == "FAIL" {
			return errors.New("a benchmark failed")
		}
		if err := o.result(line); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
	}
	return lines.Err()
}

// result takes a line such as
//
//	BenchmarkBurst/lib=ours/clients=100-2  152  1415144 ns/op  0.4489 cpu-µs/delivery
func (o *output) result(line string) error {
	fields := strings.Fields(line)
	if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(line, "Benchmark") {
		return nil
	}
	full := strings.TrimPrefix(fields[0], "Benchmark")
	if i := strings.LastIndexByte(full, '-'); i >= 0 {
		if _, err := strconv.Atoi(full[i+1:]); err == nil {
			full = full[:i] // the number of processors
		}
	}
	name, lib, err := o.name(full)
	if err != nil {
		return err
	}
	if o.values == nil {
		o.values = map[key][]float64{}
	}
	for i := 2; i < len(fields); i += 2 {
		value, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return err
		}
		k := key{name, lib, fields[i+1]}
		o.values[k] = append(o.values[k], value)
		o.runs = max(o.runs, len(o.values[k]))
	}
	return nil
}

// noResult takes what a line says that begins with "# no result: ", such as
//
//	Stalled/lib=other/stalled=1: all wait; nothing came for 2s
func (o *output) noResult(what string) error {
	full, why, _ := strings.Cut(what, ": ")
	name, lib, err := o.name(full)
	if n := (none{name, lib, why}); err == nil && !slices.Contains(o.none, n) {
		o.none = append(o.none, n)
	}
	return err
}

// name takes a name such as Burst/lib=ours/clients=100 apart.
func (o *output) name(full string) (name, lib string, err error) {
	before, rest, ok := strings.Cut(full, "/lib=")
	if !ok {
		return "", "", errors.New("no library is named")
	}
	lib, params, _ := strings.Cut(rest, "/")
	name = strings.TrimSuffix(before+"/"+params, "/")
	if !slices.Contains(o.names, name) {
		o.names = append(o.names, name)
	}
	if !slices.Contains(o.libs, lib) {
		o.libs = append(o.libs, lib)
	}
	return name, lib, nil
}

// markdown returns the tables that there are results for.
func (o *output) markdown() (string, error) {
	if len(o.names) == 0 {
		return "", errors.New("no results")
	}
	var b strings.Builder
	fact := func(name, between string) string {
		var values []string
		for _, f := range o.facts {
			if value, ok := strings.CutPrefix(f, name+": "); ok {
				values = append(values, value)
			}
		}
		return strings.Join(values, between)
	}
	fmt.Fprintf(&b, "%s, %s, `%s`", fact("machine", " and "), fact("date", " and "), fact("command", "` and `"))
	if o.runs > 1 {
		fmt.Fprintf(&b, "; medians of %d", o.runs)
	}
	fmt.Fprintf(&b, ". In brackets: how many times %q.\n", base)
	for _, t := range tables {
		o.write(&b, t)
	}
	o.writeGoals(&b)
	return b.String(), nil
}

// A column is one unit of one benchmark with its parameters.
type column struct {
	name  string
	title string
	unit  unit
}

func (o *output) write(b *strings.Builder, t table) {
	var columns []column
	for _, name := range o.names {
		benchmark, params, _ := strings.Cut(name, "/")
		if benchmark != t.benchmark {
			continue
		}
		for _, u := range t.units {
			title := u.title
			if title == "" {
				title = words(params)
			}
			columns = append(columns, column{name, title, u})
		}
	}
	if len(columns) == 0 {
		return
	}
	fmt.Fprintf(b, "\n**%s**\n\n| |", t.title)
	for _, c := range columns {
		fmt.Fprintf(b, " %s |", c.title)
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("--:|", len(columns)))
	for _, lib := range o.libs {
		row, some := "| "+lib+" |", false
		for _, c := range columns {
			cell := "–"
			if why := o.whyNone(c.name, lib); why != "" {
				some = true
				cell, _, _ = strings.Cut(why, ";")
				cell, _, _ = strings.Cut(cell, ":")
			} else if value, ok := o.median(c, lib); ok {
				some = true
				cell = fmt.Sprintf(c.unit.format, value*c.unit.scale)
				if of, ok := o.median(c, base); ok && of > 0 && c.unit.ratio && lib != base {
					cell += fmt.Sprintf(" (%.*f×)", digits(value/of), value/of)
				}
			}
			row += " " + cell + " |"
		}
		if some {
			fmt.Fprintln(b, row)
		}
	}
	o.writeNone(b, t)
}

// words returns the parameters of a benchmark as they are shown.
func words(params string) string { return strings.NewReplacer("=", " ", "/", ", ").Replace(params) }

// whyNone returns why a library has no result, or "" if it has one. One run of
// several in which it has none is enough.
func (o *output) whyNone(name, lib string) string {
	for _, n := range o.none {
		if n.name == name && n.lib == lib {
			return n.why
		}
	}
	return ""
}

// writeNone tells why there are no results, for the first table of a benchmark.
func (o *output) writeNone(b *strings.Builder, t table) {
	separator := "\n"
	for _, n := range o.none {
		benchmark, params, _ := strings.Cut(n.name, "/")
		if benchmark == t.benchmark && !strings.HasPrefix(t.title, again) {
			fmt.Fprintf(b, "%s- %s, %s: %s\n", separator, n.lib, words(params), n.why)
			separator = ""
		}
	}
}

// digits returns how many digits a ratio is worth behind the point.
func digits(ratio float64) int {
	switch {
	case ratio >= 10:
		return 0
	case ratio >= 2:
		return 1
	}
	return 2
}

func (o *output) median(c column, lib string) (float64, bool) {
	return median(o.values[key{c.name, lib, c.unit.name}])
}

func median(values []float64) (float64, bool) {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return 0, false
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, true
}
