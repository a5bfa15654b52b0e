package browser

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
)

// A progressPage is the page of the jobs in a browser.
type progressPage struct{ *page }

func openProgress(t *testing.T, url string) progressPage {
	t.Helper()
	p := progressPage{open(t, url)}
	p.waitFor(progressConnected)
	return p
}

const progressConnected = `document.querySelector("#state").textContent == "connected" && document.querySelectorAll("li").length == 4`

// done returns how many steps of a job the page shows as done.
func (p progressPage) done(job int) int {
	p.t.Helper()
	return eval[int](p.page, fmt.Sprintf(`document.querySelector("#job-%d progress").value`, job))
}

// watch has the page note each change of what it shows of a job.
func (p progressPage) watch(job int) {
	p.t.Helper()
	p.run(fmt.Sprintf(`window.seen = [],
		new MutationObserver(() => seen.push(document.querySelector("#job-%d progress").value))
			.observe(document.querySelector("#job-%[1]d .steps"), {childList: true})`, job))
}

// goesOn fails the test unless the page has shown steps of the job that it watches,
// in order, up to the last.
func (p progressPage) goesOn(total int) {
	p.t.Helper()
	p.waitFor(fmt.Sprintf(`seen.at(-1) == %d`, total))
	seen := eval[[]int](p.page, `seen`)
	for i := range seen[1:] {
		if seen[i+1] <= seen[i] {
			p.t.Errorf("after step %d came step %d", seen[i], seen[i+1])
		}
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	server := start(t, "progress", "-step=20ms")
	line := newLine(t, server.URL)
	ann := openProgress(t, server.URL)
	bob := openProgress(t, line.URL)
	for _, job := range []int{1, 2, 3} {
		ann.click(fmt.Sprintf(`[data-start="%d"]`, job))
		ann.waitFor(fmt.Sprintf(`document.querySelector("#job-%d").className != "waiting"`, job))
	}

	// The second browser has the same bars.
	bob.waitFor(`document.querySelector("#job-2").className == "running"`)
	bob.watch(2)

	// Reloading the page goes on at the right place, and so it does in the middle
	// of being cut off.
	ann.waitFor(`document.querySelector("#job-2 progress").value > 20`)
	before := ann.done(2)
	ann.do(chromedp.Reload())
	ann.waitFor(`document.querySelector("#job-2")`)
	if after := ann.done(2); after < before {
		t.Errorf("after reloading the page shows step %d, want %d or more", after, before)
	}
	ann.watch(2)

	line.cut()
	bob.waitFor(`document.querySelector("#state").textContent == "reconnecting"`)
	before = bob.done(2)
	ann.waitFor(fmt.Sprintf(`document.querySelector("#job-2 progress").value > %d`, before+50))
	ann.screenshots("progress")
	if after := bob.done(2); after != before {
		t.Errorf("while cut off the page went from step %d to %d", before, after)
	}
	line.mend()
	ann.goesOn(800)
	bob.goesOn(800)

	// A finished job stays finished.
	carol := openProgress(t, server.URL)
	ann.do(chromedp.Reload())
	for _, p := range []progressPage{ann, bob, carol} {
		p.waitFor(`document.querySelector("#job-2")`)
		if got, want := p.text("#job-2"), "Copy the archive\nAgain\nfinished, 800 of 800 steps\n✓ done"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}

	// A server that starts anew knows of no job, and the pages see that.
	carol.click(`[data-start="2"]`)
	bob.waitFor(`document.querySelector("#job-2").className == "running"
		&& document.querySelector("#job-2 button").disabled`)
	if took := server.stop(); took > promptly {
		t.Errorf("stopping with three browsers connected took %v, want at most %v", took, promptly)
	}
	bob.waitFor(`document.querySelector("#state").textContent == "reconnecting"`)
	server.startAgain()
	for _, p := range []progressPage{ann, bob, carol} {
		p.waitFor(`document.querySelectorAll(".waiting").length == 4 && ` + progressConnected)
	}
}
