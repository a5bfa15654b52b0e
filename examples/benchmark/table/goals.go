package main

import (
	"fmt"
	"slices"
	"strings"
)

// A goal is what this library was to reach, as one figure or several alike.
type goal struct {
	work, measure string
	figures       []figure
	bound         float64 // 0: none, the figures are shown
	least         bool    // the bound is what they are to reach at least
	format        string
}

// A figure is a quantity, or how many times another it is.
type figure struct {
	title   string // "" if the goal has only this one
	of      quantity
	per     quantity // the zero quantity: of none
	divided float64  // if not 0: by this as well
}

// A quantity is what a library has in a benchmark.
type quantity struct{ lib, name, unit string }

// others stands for the best of the libraries for Go but these.
const others = "others"

var notOthers = []string{base, detach, floor, nchan}

const (
	detach = "ours-detach"
	floor  = "floor" // which is no library
	nchan  = "nchan" // which is one in C

	// same is how many times another a figure may be that is to be the same: what
	// the delays at a steady rate are allowed.
	same = 1.15

	// linear is the same for a cost that is to grow in proportion: ten times as
	// many are less often in the processor's caches.
	linear = 1.5
)

// ways are the two ways to serve.
var ways = []struct{ title, lib string }{{"Serve", base}, {"Detach", detach}}

var goals = []goal{
	{"bursts of 16, 100 and 1,000 clients, 100 and 1,000 bytes", "CPU for each delivery with `Serve` ÷ floor",
		bursts(base, floor, few), 1.8, false, "%.2f"},
	{"", "the best other ÷ `Serve`", bursts(others, base, few), 6, true, "%.1f"},
	{"bursts of 16, 10,000 clients", "CPU for each delivery with `Serve` ÷ floor",
		bursts(base, floor, many), 2.2, false, "%.2f"},
	{"", "the best other ÷ `Serve`", bursts(others, base, many), 6, true, "%.1f"},
	{"bursts of 16", "CPU for each delivery with `Detach` ÷ floor",
		append(bursts(detach, floor, few), bursts(detach, floor, many)...), 1.5, false, "%.2f"},

	{"20 events a second to 1,000 clients", "CPU for each delivery with `Serve` ÷ floor",
		[]figure{{of: steady("", base, cpu), per: steady("", floor, cpu)}}, 1.35, false, "%.2f"},
	{"", "with `Detach` ÷ floor",
		[]figure{{of: steady("", detach, cpu), per: steady("", floor, cpu)}}, 1.2, false, "%.2f"},
	{"", "the best other ÷ this", perOther(""), 1, true, "%.2f"},
	{"", "with `Detach` ÷ with `Serve`", perServe(""), 1, false, "%.2f"},
	{"", "nchan (C) ÷ this",
		eachWay(func(lib string) figure { return figure{of: steady("", nchan, cpu), per: steady("", lib, cpu)} }), 1, true, "%.2f"},
	{"", "99 percent of the delays ÷ floor",
		eachWay(func(lib string) figure {
			return figure{of: steady("", lib, "p99-ms"), per: steady("", floor, "p99-ms")}
		}), same, false, "%.2f"},
	{"the same with TLS", "the best other ÷ this", perOther("TLS"), 1, true, "%.2f"},
	{"", "with `Detach` ÷ with `Serve`", perServe("TLS"), 1, false, "%.2f"},
	// Over HTTP/2 Detach serves as Serve does.
	{"the same over HTTP/2", "the best other ÷ this", perOther("HTTP2"), 1, true, "%.2f"},

	{"replay of 999 events to 1,000 clients", "CPU for each event, µs",
		eachWay(func(lib string) figure { return figure{of: replay(lib)} }), 0.2, false, "%.2f"},
	{"", "tmaxmax ÷ this",
		eachWay(func(lib string) figure { return figure{of: replay("tmaxmax"), per: replay(lib)} }), 2, true, "%.1f"},

	{"10,000 idle connections", "bytes of memory for each with `Serve`", []figure{{of: idle(base)}}, 23_000, false, "%.0f"},
	{"", "with `Detach`", []figure{{of: idle(detach)}}, 5500, false, "%.0f"},

	{"publishing to 100,000 subscribers in the process", "time for each subscriber ÷ that with 10,000",
		[]figure{{of: publish(100_000, "ns/op"), per: publish(10_000, "ns/op"), divided: 10}}, linear, false, "%.2f"},
	{"", "time for each subscriber, ns", []figure{{of: publish(100_000, "ns/op"), divided: 100_000}}, 0, false, "%.0f"},
	{"", "the call alone, ns", []figure{{of: publish(100_000, "ns/call")}}, 0, false, "%.0f"},
	{"publishing to one of 100,000 topics", "time ÷ that with one topic", topics("one"), same, false, "%.2f"},
	{"", "to each in turn, none of which is in a cache", topics("each"), 0, false, "%.2f"},

	{"stalled clients beside 1,000", "99 percent of the others' delays ÷ that with none stalled", stalls(), same, false, "%.2f"},

	{"eight publishers at once", "time for each event ÷ that with one", publishers(eightPerOne), same, false, "%.2f"},
	{"", "on 2 processors ÷ on 1", publishers(twoPerOne), 0, false, "%.2f"},
}

const cpu = "cpu-µs/delivery"

// A size is that of a benchmark of bursts.
type size struct{ clients, bytes int }

var (
	few  = []size{{100, 100}, {100, 1000}, {1000, 100}, {1000, 1000}}
	many = []size{{10_000, 100}}
)

func bursts(of, per string, sizes []size) (f []figure) {
	for _, s := range sizes {
		name := fmt.Sprintf("Burst/clients=%d/bytes=%d", s.clients, s.bytes)
		f = append(f, figure{
			title: fmt.Sprintf("%d × %d B", s.clients, s.bytes),
			of:    quantity{of, name, cpu},
			per:   quantity{per, name, cpu},
		})
	}
	return f
}

func eachWay(of func(lib string) figure) (f []figure) {
	for _, way := range ways {
		one := of(way.lib)
		one.title = way.title
		f = append(f, one)
	}
	return f
}

// perOther returns the best other's cost of single events as so many times ours.
func perOther(over string) []figure {
	return eachWay(func(lib string) figure { return figure{of: steady(over, others, cpu), per: steady(over, lib, cpu)} })
}

// perServe returns the cost of single events with Detach as so many times that
// with Serve.
func perServe(over string) []figure {
	return []figure{{of: steady(over, detach, cpu), per: steady(over, base, cpu)}}
}

// steady returns a quantity of the benchmark of single events over the transport
// that its name ends in.
func steady(over, lib, unit string) quantity {
	return quantity{lib, "Steady" + over + "/clients=1000/rate=20", unit}
}
func replay(lib string) quantity {
	return quantity{lib, "Replay/clients=1000/events=999", "cpu-µs/event"}
}
func idle(lib string) quantity { return quantity{lib, "Idle/clients=10000", "bytes/conn"} }

func publish(subscribers int, unit string) quantity {
	return quantity{base, fmt.Sprintf("Publish/subscribers=%d", subscribers), unit}
}

func topics(to string) (f []figure) {
	for _, unit := range []struct{ title, name string }{{"call", "ns/call"}, {"until it has the event", "ns/op"}} {
		f = append(f, figure{
			title: unit.title,
			of:    quantity{base, "Topic/topics=100000/to=" + to, unit.name},
			per:   quantity{base, "Topic/topics=1/to=one", unit.name},
		})
	}
	return f
}

func stalls() (f []figure) {
	name := func(stalled int) string { return fmt.Sprintf("Stalled/clients=1000/stalled=%d", stalled) }
	for _, way := range ways {
		for _, stalled := range []int{1, 100} {
			f = append(f, figure{
				title: fmt.Sprintf("%s, %d", way.title, stalled),
				of:    quantity{way.lib, name(stalled), "p99-ms"},
				per:   quantity{way.lib, name(0), "p99-ms"},
			})
		}
	}
	return f
}

// publishers returns the figures for each number of subscribers.
func publishers(figures func(subscribers int) []figure) (f []figure) {
	for _, subscribers := range []int{0, 100} {
		f = append(f, figures(subscribers)...)
	}
	return f
}

func published(publishers, processors, subscribers int) quantity {
	name := fmt.Sprintf("Publishers/publishers=%d/processors=%d/subscribers=%d", publishers, processors, subscribers)
	return quantity{base, name, "ns/event"}
}

func eightPerOne(subscribers int) (f []figure) {
	for _, processors := range []int{1, 2} {
		f = append(f, figure{
			title: fmt.Sprintf("%s, %s", count(subscribers, "subscriber"), count(processors, "processor")),
			of:    published(8, processors, subscribers),
			per:   published(1, processors, subscribers),
		})
	}
	return f
}

func twoPerOne(subscribers int) []figure {
	return []figure{{
		title: count(subscribers, "subscriber"),
		of:    published(8, 2, subscribers),
		per:   published(8, 1, subscribers),
	}}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// writeGoals writes those goals that there are results for.
func (o *output) writeGoals(b *strings.Builder) {
	var rows strings.Builder
	work := ""
	for _, g := range goals {
		if g.work != "" {
			work = g.work
		}
		if row, ok := o.goal(g); ok {
			fmt.Fprintf(&rows, "| %s | %s |\n", work, row)
			work = "" // not again in the next row
		}
	}
	if rows.Len() > 0 {
		fmt.Fprintf(b, "\n**What was to be reached**\n\n| work | measure | bound | measured | |\n|---|---|--:|---|---|\n%s", rows.String())
	}
}

// goal returns the cells of a goal behind that of the work. It is not ok without
// any figure.
func (o *output) goal(g goal) (row string, ok bool) {
	var cells []string
	verdict := "reached"
	for _, f := range g.figures {
		cell := "–"
		value, known := o.figure(f)
		switch {
		case !known && verdict == "reached":
			verdict = "–"
		case known && g.misses(value):
			verdict = "**not reached**"
		}
		if known {
			ok = true
			cell = fmt.Sprintf(g.format, value)
		}
		if f.title != "" {
			cell = f.title + ": " + cell
		}
		cells = append(cells, cell)
	}
	bound := fmt.Sprintf("≤ %v", g.bound)
	switch {
	case g.bound == 0:
		bound, verdict = "", ""
	case g.least:
		bound = fmt.Sprintf("≥ %v", g.bound)
	}
	return strings.Join([]string{g.measure, bound, strings.Join(cells, "; "), verdict}, " | "), ok
}

func (g goal) misses(value float64) bool {
	if g.least {
		return value < g.bound
	}
	return value > g.bound
}

// figure returns the median of what a figure was in each run.
func (o *output) figure(f figure) (float64, bool) {
	of := o.runsOf(f.of)
	if f.per != (quantity{}) {
		per := o.runsOf(f.per)
		if len(per) != len(of) {
			return 0, false // which belong together?
		}
		for i := range of {
			of[i] /= per[i]
		}
	}
	value, ok := median(of)
	if f.divided != 0 {
		value /= f.divided
	}
	return value, ok
}

// runsOf returns a quantity in each run. One that a library did not always come
// to is none.
func (o *output) runsOf(q quantity) (runs []float64) {
	if q.lib != others {
		if o.whyNone(q.name, q.lib) != "" {
			return nil
		}
		return append(runs, o.values[key{q.name, q.lib, q.unit}]...)
	}
	for _, lib := range o.others() {
		other := o.runsOf(quantity{lib, q.name, q.unit})
		switch {
		case len(other) == 0:
		case runs == nil:
			runs = other
		case len(runs) != len(other):
			return nil
		default:
			for i := range runs {
				runs[i] = min(runs[i], other[i])
			}
		}
	}
	return runs
}

// others returns the libraries that this one is compared with.
func (o *output) others() (libs []string) {
	for _, lib := range o.libs {
		if !slices.Contains(notOthers, lib) {
			libs = append(libs, lib)
		}
	}
	return libs
}
