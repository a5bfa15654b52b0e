package browser

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
)

// priceCount returns what the page counts: published, sent or spared.
func priceCount(p *page, id string) int {
	p.t.Helper()
	return eval[int](p, fmt.Sprintf(`Number(document.getElementById(%q).textContent.replaceAll(",", ""))`, id))
}

func TestPrices(t *testing.T) {
	t.Parallel()
	server := start(t, "prices")
	line := newLine(t, server.URL)
	ann, bob := open(t, server.URL), open(t, line.URL)
	const rows = `document.querySelectorAll("tbody tr").length === 50`
	ann.waitFor(rows + ` && document.querySelector("#state").textContent === "connected"`)
	bob.waitFor(rows)

	// A page that reads as things come is sent everything.
	ann.waitFor(`Number(document.querySelector("#published").textContent) > 200`)
	if published, sent := priceCount(ann, "published"), priceCount(ann, "sent"); sent < published*9/10 {
		t.Errorf("a page that reads was sent %d of %d prices, want about all", sent, published)
	}
	ann.waitFor(`[...document.querySelectorAll("path")].every(path => path.getAttribute("d").includes("L"))`)
	ann.screenshots("prices")

	// One that reads slowly is spared most, and shows what the other one does.
	ann.run(`window.prices = [], window.stream = new EventSource("/events"),
		stream.onmessage = e => prices.push(JSON.parse(e.data)), window.samePage = true`)
	bob.run(`window.last = 0, new MutationObserver(() => last = performance.now())
		.observe(document.querySelector("tbody"), {subtree: true, attributes: true, attributeFilter: ["data-n"]})`)
	bob.click("#slow")
	bob.waitFor(`Number(document.querySelector("#published").textContent.replaceAll(",", "")) > 700`)
	if published, spared := priceCount(bob, "published"), priceCount(bob, "spared"); spared < published/2 {
		t.Errorf("the page that reads slowly was spared %d of %d prices, want more than half", spared, published)
	}
	bob.waitFor(`performance.now() - last > 500 && last`) // it has all of a batch
	shown := eval[map[string]int](bob, `Object.fromEntries([...document.querySelectorAll("tbody tr")].map(tr => [tr.dataset.symbol, Number(tr.dataset.n)]))`)
	newest := 0
	for _, n := range shown {
		newest = max(newest, n)
	}
	ann.waitFor(fmt.Sprintf(`prices.at(-1).n > %d`, newest))
	want := eval[map[string]int](ann, fmt.Sprintf(`Object.fromEntries(prices.filter(p => p.n <= %d).map(p => [p.symbol, p.n]))`, newest))
	if len(want) != 50 || len(shown) != 50 {
		t.Errorf("got %d and %d symbols, want 50", len(shown), len(want))
	}
	for symbol, n := range want {
		if shown[symbol] != n {
			t.Errorf("the page that reads slowly shows price %d of %s, want %d", shown[symbol], symbol, n)
		}
	}
	bob.screenshots("prices-slow")

	// Back to normal, cut off, and after a restart it shows prices that change.
	bob.click("#slow")
	bob.waitFor(`(n => n > 50 && n < 700)(Number(document.querySelector("#sent").textContent))`)
	line.cut()
	bob.waitFor(`document.querySelector("#state").textContent === "reconnecting"`)
	line.mend()
	bob.waitFor(`document.querySelector("#state").textContent === "connected"`)
	ann.run(`window.lowest = Infinity, new MutationObserver(() => lowest = Math.min(lowest, Number(document.querySelector("#published").textContent.replaceAll(",", ""))))
		.observe(document.querySelector("#published"), {childList: true})`)
	server.stop()
	ann.waitFor(`document.querySelector("#state").textContent === "reconnecting"`)
	server.startAgain()
	ann.waitFor(rows + ` && document.querySelector("#state").textContent === "connected" && lowest < 200`)
	if !eval[bool](ann, `window.samePage === true`) {
		t.Error("the page was loaded anew")
	}
}

func TestPricesFitThePage(t *testing.T) {
	t.Parallel()
	server := start(t, "prices")
	p := open(t, server.URL)
	p.waitFor(`document.querySelectorAll("tbody tr").length === 50`)
	for _, width := range []int64{320, 390, 768, 1280, 1920} {
		p.do(chromedp.EmulateViewport(width, 800))
		if wider := eval[[]string](p, `[...document.querySelectorAll("body :not(thead, thead *, svg *)")]
			.filter(e => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > Math.max(e.clientWidth, e.offsetWidth))
			.map(e => e.outerHTML.slice(0, 60))`); len(wider) > 0 {
			t.Errorf("at a width of %d these stick out: %q", width, wider)
		}
	}
}
