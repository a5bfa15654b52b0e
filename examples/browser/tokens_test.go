package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"
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
	server := start(t, "tokens", "-pace=20ms")
	line := newLine(t, server.URL)
	p := tokensPage{open(t, line.URL)}

	// The user stops the answer.
	long := strings.Repeat("well ", 190) // so that the answer is not over before it is stopped
	p.ask(long)
	p.click("#button")
	note, answer := p.ended()
	if !strings.HasPrefix(note, "Stopped: ") || !strings.HasPrefix("You asked: “"+long, answer) {
		t.Errorf("got %q and %q, want an answer that was stopped", note, answer)
	}
	p.run(`document.querySelector("#talk").replaceChildren()`)

	// The whole answer comes.
	p.ask("What do you know?")
	p.screenshots("tokens-writing")
	note, answer = p.ended()
	const begin = "You asked: “What do you know?”\n\nI am no language"
	const end = "replace the function generate. It is given a context and a prompt and yields words, or an error:\n\n" +
		"    func generate(ctx context.Context, prompt string) iter.Seq2[string, error]\n\n" +
		"All the rest stays as it is: the handler, this page, and the client for the command line."
	if !strings.HasPrefix(note, "Complete: ") || !strings.HasPrefix(answer, begin) || !strings.HasSuffix(answer, end) {
		t.Errorf("got %q and %q, want the complete answer %q … %q", note, answer, begin, end)
	}
	p.screenshots("tokens")

	// A connection that is lost ends the answer: the browser must not ask again.
	p.ask(long)
	line.cut()
	if note, _ = p.ended(); !strings.HasPrefix(note, "The connection was lost: ") {
		t.Errorf("got %q, want the connection lost", note)
	}
	line.mend()

	p.ask(long)
	if took := server.stop(); took > time.Second {
		t.Errorf("stopping with an answer under way took %v, want at most a second", took)
	}
	if note, _ = p.ended(); !strings.HasPrefix(note, "The connection was lost: ") {
		t.Errorf("got %q, want the connection lost", note)
	}

	log := server.stderr.String()
	if got := strings.Count(log, "broken off words="); got != 3 {
		t.Errorf("the server noticed the end of %d answers, want 3:\n%s", got, log)
	}
	if got := strings.Count(log, "answered words="); got != 1 {
		t.Errorf("the server completed %d answers, want 1:\n%s", got, log)
	}
}
