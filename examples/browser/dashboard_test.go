package browser

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
)

// A dashboardPage is the dashboard in a browser, which notes the time of each
// sample that a second stream brings it.
type dashboardPage struct{ *page }

func openDashboard(t *testing.T, url string) dashboardPage {
	t.Helper()
	p := dashboardPage{open(t, url)}
	p.run(`window.first = "", window.times = [], window.states = 0,
		window.stream = new EventSource("/events"),
		stream.addEventListener("samples", e => {
			first ||= e.type
			states++
			times = JSON.parse(e.data).map(s => s.time)
		}),
		stream.addEventListener("message", e => {
			first ||= e.type
			times.push(JSON.parse(e.data).time)
		})`)
	p.waitFor(`times.length > 0 && document.querySelector("#state").textContent == "connected"`)
	return p
}

// mainThread returns the CPU time that the page's main thread has used.
func (p dashboardPage) mainThread() (used time.Duration) {
	p.t.Helper()
	p.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks})
		if err != nil {
			return err
		}
		res, err := cdp.Call(ctx, t, performance.GetMetrics, cdp.Empty{})
		if err != nil {
			return err
		}
		for _, m := range res.Metrics {
			if m.Name == "TaskDuration" {
				used = time.Duration(m.Value * float64(time.Second))
			}
		}
		return nil
	}))
	return used
}

// sameTimes fails the test unless the pages have got the same samples, as far as
// both have got to.
func (p dashboardPage) sameTimes(other dashboardPage) {
	p.t.Helper()
	got, want := eval[[]int64](p.page, `times`), eval[[]int64](other.page, `times`)
	from, to := max(got[0], want[0]), min(got[len(got)-1], want[len(want)-1])
	outside := func(time int64) bool { return time < from || time > to }
	got, want = slices.DeleteFunc(got, outside), slices.DeleteFunc(want, outside)
	if len(want) < 100 || !slices.Equal(got, want) {
		p.t.Errorf("between %d and %d one page has %d samples, another %d", from, to, len(got), len(want))
	}
}

func TestDashboard(t *testing.T) {
	server := start(t, "dashboard")
	line := newLine(t, server.URL)
	ann := openDashboard(t, server.URL)

	// A hundred events a second stay smooth: the page has most of its time left.
	// Two streams bring them here, the page's and the test's.
	const span, frames = 4 * time.Second, 40
	events, used := eval[int](ann.page, `times.length`), ann.mainThread()
	ann.run(fmt.Sprintf(`new Promise(done => {
		const end = performance.now() + %d
		let frames = 0
		const note = () => { performance.now() < end || frames < %d ? (frames++, requestAnimationFrame(note)) : done() }
		note()
	})`, span.Milliseconds(), frames))
	events, used = eval[int](ann.page, `times.length`)-events, ann.mainThread()-used
	t.Logf("%d events took %v of CPU time", events, used)
	if events == 0 || used > time.Duration(events)*5*time.Millisecond {
		t.Errorf("the page used %v of CPU time for %d events, want at most half of the time in which they come", used, events)
	}

	// A newcomer gets the current state first.
	bob := openDashboard(t, line.URL)
	if got := eval[string](bob.page, `first`); got != "samples" {
		t.Errorf("the first event is of type %q, want samples", got)
	}
	bob.waitFor(`times.length > 200`)
	bob.sameTimes(ann)
	ann.waitFor(`document.querySelector("[data-plot=clients] output").textContent == "4"`)

	// The figures are drawn, and move.
	ann.click("#load")
	ann.waitFor(`document.querySelector("[data-plot=goroutines] output").textContent > 100`)
	ann.waitFor(`[...document.querySelectorAll("canvas")].every(canvas => {
		const line = getComputedStyle(canvas).color.match(/\d+/g)
		const {data} = canvas.getContext("2d").getImageData(canvas.width - 100, 0, 100, canvas.height)
		return data.some((red, i) => i % 4 == 0 && line.every((part, n) => data[i + n] == part))
	})`)
	ann.screenshots("dashboard")

	// A page that was cut off gets what it missed.
	line.cut()
	bob.waitFor(`stream.readyState == EventSource.CONNECTING`)
	missed := eval[int64](ann.page, `times.at(-1)`)
	line.mend()
	bob.waitFor(fmt.Sprintf(`times.at(-1) > %d`, missed))
	bob.sameTimes(ann)
	if got := eval[int](bob.page, `states`); got != 1 {
		t.Errorf("the page got the whole state %d times, want it once and then what it missed", got)
	}

	// When the server starts anew, so do the pages.
	last := eval[int64](ann.page, `times.at(-1)`)
	if took := server.stop(); took > promptly {
		t.Errorf("stopping with four streams open took %v, want at most %v", took, promptly)
	}
	ann.waitFor(`document.querySelector("#state").textContent == "reconnecting"`)
	server.startAgain()
	for _, p := range []dashboardPage{ann, bob} {
		p.waitFor(fmt.Sprintf(`times[0] > %d && document.querySelector("#state").textContent == "connected"`, last))
	}
}
