package browser

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// clockTicks returns the numbers of the ticks that the page shows, the oldest
// first, with 0 for a gap.
func clockTicks(p *page) []int {
	p.t.Helper()
	return numbers(p, "#ticks li")
}

// numbers returns what the elements hold in data-n, from the last to the first.
func numbers(p *page, selector string) []int {
	p.t.Helper()
	var numbers []int
	for _, n := range eval[[]string](p, `[...document.querySelectorAll("`+selector+`")].map(li => li.dataset.n)`) {
		number, _ := strconv.Atoi(n)
		numbers = append(numbers, number)
	}
	slices.Reverse(numbers)
	return numbers
}

// checkNoneMissing fails the test unless the ticks follow each other.
func checkNoneMissing(t *testing.T, ticks []int) {
	t.Helper()
	for i := range len(ticks) - 1 {
		if ticks[i+1] != ticks[i]+1 {
			t.Errorf("after tick %d the page got tick %d, of %v", ticks[i], ticks[i+1], ticks)
		}
	}
}

func TestClockTicks(t *testing.T) {
	t.Parallel()
	server := start(t, "clock", "-every=100ms")
	p := open(t, server.URL)
	p.waitFor(`document.querySelectorAll("#ticks .live").length >= 5`)
	checkNoneMissing(t, clockTicks(p))
	if shown := p.text("#time"); len(shown) != len(time.TimeOnly) || strings.Count(shown, ":") != 2 {
		t.Errorf("the time shown is %q, want the form %s", shown, time.TimeOnly)
	}
	if id := p.text("#last-id"); !strings.Contains(id, "-") {
		t.Errorf("the last event ID shown is %q", id)
	}
	if state := p.text("#state"); state != "connected" {
		t.Errorf("the state shown is %q, want connected", state)
	}
	p.screenshots("clock")
}

func TestClockIsConnectedBeforeTheFirstTick(t *testing.T) {
	t.Parallel()
	server := start(t, "clock", "-every=1h")
	p := open(t, server.URL)
	p.waitFor(`document.querySelector("#state").className === "connected"`)
	if time := p.text("#time"); time != "--:--:--" {
		t.Errorf("got the time %q before the first tick", time)
	}
	if !eval[bool](p, `document.querySelector("#cut").disabled`) {
		t.Error("the button works while there is no event ID to resume at")
	}
}

func TestClockButtonBringsBackEveryMissedTick(t *testing.T) {
	t.Parallel()
	server := start(t, "clock", "-every=100ms")
	p := open(t, server.URL)
	p.waitFor(`document.querySelectorAll("#ticks .live").length >= 3`)
	p.click("#cut")
	p.waitFor(`document.querySelector("#state").className === "cut"`)
	before := clockTicks(p)
	p.waitFor(`document.querySelector("#ticks li").className === "live" && document.querySelectorAll("#ticks .replayed").length > 0`)
	p.screenshots("clock-replayed")

	ticks := clockTicks(p)
	checkNoneMissing(t, ticks)
	replayed := numbers(p, "#ticks .replayed")
	// The tick of the very moment of the return may pass for a live one.
	// A busy server may skip some.
	if len(replayed) < 25 {
		t.Fatalf("%d ticks were replayed after 5 seconds of 10 ticks each", len(replayed))
	}
	if got, want := replayed[0], before[len(before)-1]+1; got != want {
		t.Errorf("the first tick replayed is %d, want %d", got, want)
	}
	listed := numbers(p, "#replayed li")
	slices.Reverse(listed)
	if !slices.Equal(listed, replayed) {
		t.Errorf("the page lists the replayed ticks %v, want %v", listed, replayed)
	}
	if summary := p.text("#summary"); summary != strconv.Itoa(len(replayed))+" ticks replayed, none missing." {
		t.Errorf("the page says %q of %d replayed ticks", summary, len(replayed))
	}
}

func TestClockComesBackAfterTheNetworkWasDown(t *testing.T) {
	t.Parallel()
	server := start(t, "clock", "-every=100ms")
	line := newLine(t, server.URL)
	p := open(t, line.URL)
	p.waitFor(`document.querySelectorAll("#ticks .live").length >= 3`)
	other := open(t, server.URL) // sees the ticks that p misses
	line.cut()
	p.waitFor(`document.querySelector("#state").className === "reconnecting"`)
	other.waitFor(`document.querySelectorAll("#ticks .live").length >= 10`)
	line.mend()
	p.waitFor(`document.querySelector("#ticks li").className === "live" && document.querySelectorAll("#ticks .replayed").length > 0`)
	checkNoneMissing(t, clockTicks(p))
	if summary := p.text("#summary"); !strings.HasSuffix(summary, " replayed, none missing.") {
		t.Errorf("the page says %q", summary)
	}
}

func TestClockShowsTheGapAfterARestart(t *testing.T) {
	t.Parallel()
	server := start(t, "clock", "-every=100ms")
	p := open(t, server.URL)
	p.waitFor(`document.querySelectorAll("#ticks .live").length >= 3`)
	p.run(`window.samePage = true`)
	server.stop()
	p.waitFor(`document.querySelector("#state").className === "reconnecting"`)
	lastID := p.text("#last-id")
	server.startAgain()
	p.waitFor(`document.querySelectorAll("#ticks .gap").length === 1`)
	p.waitFor(`document.querySelector("#ticks li").className === "live"`)
	p.screenshots("clock-gap")

	if !eval[bool](p, `window.samePage === true`) {
		t.Error("the page was loaded anew")
	}
	if text := p.text("#gap"); !strings.Contains(text, lastID) {
		t.Errorf("the page says %q, want it to name the last ID before the gap, %s", text, lastID)
	}
	ticks := clockTicks(p)
	gap := slices.Index(ticks, 0)
	checkNoneMissing(t, ticks[:gap])
	checkNoneMissing(t, ticks[gap:]) // the new server counts from 1, and what follows the gap is all that it holds
}

func TestClockStopsWithBrowsersConnected(t *testing.T) {
	server := start(t, "clock", "-every=100ms")
	for range 3 {
		p := open(t, server.URL)
		p.waitFor(`document.querySelectorAll("#ticks .live").length >= 1`)
	}
	if took := server.stop(); took > promptly {
		t.Errorf("it took %v to stop", took)
	}
}

func TestClockFitsThePage(t *testing.T) {
	t.Parallel()
	server := start(t, "clock", "-every=20ms")
	p := open(t, server.URL)
	p.waitFor(`document.querySelectorAll("#ticks li").length >= 100`)
	for _, width := range []int64{320, 390, 768, 1280, 1920} {
		p.do(chromedp.EmulateViewport(width, 800))
		if wider := eval[[]string](p, `[...document.querySelectorAll("body :not(#ticks, #ticks *)")]
			.filter(e => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > Math.max(e.clientWidth, e.offsetWidth))
			.map(e => e.outerHTML.slice(0, 60))`); len(wider) > 0 {
			t.Errorf("at a width of %d these stick out: %q", width, wider)
		}
	}
}
