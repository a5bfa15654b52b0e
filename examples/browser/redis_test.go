package browser

import (
	"slices"
	"testing"
)

func TestRedis(t *testing.T) {
	t.Parallel()
	_, _, url := startNodes(t)
	p := open(t, url)
	p.waitFor(`document.querySelectorAll(".open .state").length == 2`)
	publish := func(text string) {
		t.Helper()
		p.run(`document.querySelector("[name=data]").value = ` + quoteJS(text))
		p.click("form button")
		p.waitFor(`document.querySelector("[name=data]").value == ""`)
	}
	sees := func(selector string, want ...string) {
		t.Helper()
		p.waitFor(`document.querySelector("` + selector + ` li span + span")?.textContent == ` + quoteJS(want[0]))
		if got := eval[[]string](p, `[...document.querySelectorAll("`+selector+` li")].map(li => li.lastChild.textContent)`); !slices.Equal(got, want) {
			t.Errorf("%s shows %q, want %q", selector, got, want)
		}
	}
	const first, second = ".node:first-child", ".node:last-child"

	// What is published at one node reaches the clients of both, and once when it is
	// sent again.
	publish("Hello!")
	sees(first, "Hello!")
	sees(second, "Hello!")
	p.click("#again")
	p.waitFor(`document.querySelector("#answer").textContent.includes("It is in the stream")`)

	// A client that left gets what it missed, at the other node.
	p.click(first + " h2 button")
	publish("It rains.")
	publish("It still rains, and there is no end of it: all that was published while one of the clients was away comes to it as well.")
	sees(second, "It still rains, and there is no end of it: all that was published while one of the clients was away comes to it as well.", "It rains.", "Hello!")
	sees(first, "Hello!")
	p.click(first + " h2 button")
	sees(first, "It still rains, and there is no end of it: all that was published while one of the clients was away comes to it as well.", "It rains.", "Hello!")
	p.screenshots("redis")
}
