package browser

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// A tokensPage is the page of the tokens example in a browser.
type tokensPage struct{ *page }

// ask asks, and waits until the answer has begun.
func (p tokensPage) ask(prompt string) {
	p.t.Helper()
	p.waitFor(`document.querySelector("#button").textContent == "Ask"`)
	p.run(fmt.Sprintf(`document.querySelector("#prompt").value = %q`, prompt))
	p.click("#button")
	p.waitFor(`document.querySelector("p.writing")?.textContent.split(" ").length > 8`)
}

// ended waits for the end of the newest answer and returns what the page says
// about it, and the answer.
func (p tokensPage) ended() (note, answer string) {
	p.t.Helper()
	p.waitFor(`document.querySelector("#button").textContent == "Ask"`)
	return eval[string](p.page, `[...document.querySelectorAll("small")].at(-1).textContent`),
		eval[string](p.page, `[...document.querySelectorAll("p")].at(-1).textContent`)
}

func TestTokens(t *testing.T) {
	t.Parallel()
	server := start(t, "tokens", "-pace=40ms")
	line := newLine(t, server.URL)
	p := tokensPage{open(t, line.URL)}

	// The user stops the answer.
	long := strings.Repeat("well ", 190) // so that the answer is not over before it is stopped
	p.ask(long)
	p.click("#button")
	note, answer := p.ended()
	if !strings.HasPrefix(note, "The answer broke off: ") || !strings.HasPrefix("You asked: “"+long, answer) {
		t.Errorf("got %q and %q, want an answer that was stopped", note, answer)
	}
	p.run(`document.querySelector("#talk").replaceChildren()`)

	// The whole answer comes, through a reload and a cut, and in a second browser.
	p.ask("What do you know?")
	p.screenshots("tokens-writing")
	p.do(chromedp.Reload())
	p.waitFor(`document.querySelector("p.writing")?.textContent.split(" ").length > 8`)
	line.interrupt()
	other := tokensPage{open(t, server.URL+"/"+eval[string](p.page, `location.hash`))}
	const begin = "You asked: “What do you know?”\n\nI am no language"
	const end = "It is given a context and a prompt and yields words, or an error:\n\n" +
		"    func generate(\n        ctx context.Context,\n        prompt string,\n    ) iter.Seq2[string, error]\n\n" +
		"All the rest stays as it is: the handlers, this page, and the client for the command line."
	var first string
	for _, p := range []tokensPage{p, other} {
		note, answer = p.ended()
		if !strings.HasPrefix(note, "Complete: ") || !strings.HasPrefix(answer, begin) || !strings.HasSuffix(answer, end) {
			t.Errorf("got %q and %q, want the complete answer %q … %q", note, answer, begin, end)
		}
		if first == "" {
			first = answer
		}
		if answer != first {
			t.Errorf("one browser has %q, the other %q", first, answer)
		}
	}
	p.screenshots("tokens")
	p.do(chromedp.Reload())
	if _, answer = p.ended(); answer != first {
		t.Errorf("reloaded when it was complete, the page has %q, want %q", answer, first)
	}

	p.ask(long)
	if took := server.stop(); took > promptly {
		t.Errorf("stopping with an answer under way took %v, want at most %v", took, promptly)
	}
	if note, _ = p.ended(); !strings.HasPrefix(note, "The answer broke off: ") {
		t.Errorf("got %q, want that the answer broke off", note)
	}

	log := server.stderr.String()
	if got := strings.Count(log, "broken off"); got != 2 {
		t.Errorf("the server broke off %d answers, want 2:\n%s", got, log)
	}
	if got := strings.Count(log, "written"); got != 3 {
		t.Errorf("the server wrote %d answers, want 3:\n%s", got, log)
	}
}
