package browser

import (
	"fmt"
	"slices"
	"testing"
)

// chatPage is the chat in a browser.
type chatPage struct{ *page }

func openChat(t *testing.T, url, name string) chatPage {
	t.Helper()
	p := chatPage{open(t, url)}
	p.run(fmt.Sprintf(`document.querySelector("#name").value = %q,
		document.querySelector("#name").dispatchEvent(new Event("change"))`, name))
	p.waitFor(`document.querySelector("#state").textContent == "connected"`)
	return p
}

// say writes a message as a visitor does.
func (p chatPage) say(text string) {
	p.t.Helper()
	p.run(fmt.Sprintf(`document.querySelector("#text").value = %q`, text))
	p.click("form button")
	p.waitFor(`document.querySelector("#text").value == ""`)
}

// sees fails the test unless the page shows exactly these messages before long.
func (p chatPage) sees(want ...string) {
	p.t.Helper()
	const messages = `[...document.querySelectorAll("#messages li")].map(item => item.lastChild.data)`
	p.waitFor(fmt.Sprintf(`%s.length >= %d`, messages, len(want)))
	if got := eval[[]string](p.page, messages); !slices.Equal(got, want) {
		p.t.Errorf("got messages %q, want %q", got, want)
	}
}

func (p chatPage) seesHere(want string) {
	p.t.Helper()
	p.waitFor(fmt.Sprintf(`document.querySelector("#here").textContent == "Here: %s"`, want))
}

func TestChat(t *testing.T) {
	t.Parallel()
	server := start(t, "chat")
	line := newLine(t, server.URL)
	ann := openChat(t, server.URL, "Ann")
	bob := openChat(t, line.URL, "Bob")
	ann.seesHere("Ann, Bob")
	bob.seesHere("Ann, Bob")

	// Two browsers converse.
	said := []string{
		"Hello Bob, are you there?",
		"Hello Ann! Yes, and so is <b>this</b> & that: çà va",
		"Then let us see what happens when you are cut off. I shall go on talking all the while, and when you are back you will have missed nothing of it.",
	}
	ann.say(said[0])
	bob.sees(said[:1]...)
	bob.say(said[1])
	ann.say(said[2])
	ann.sees(said...)
	bob.sees(said...)

	// One is cut off and misses nothing.
	line.cut()
	bob.waitFor(`document.querySelector("#state").textContent == "reconnecting"`)
	ann.seesHere("Ann")
	for i := range 3 {
		said = append(said, fmt.Sprint("You miss this: ", i+1))
		ann.say(said[len(said)-1])
	}
	bob.sees(said[:3]...)
	line.mend()
	bob.sees(said...)
	ann.seesHere("Ann, Bob")
	bob.say("I missed nothing.")
	said = append(said, "I missed nothing.")
	ann.sees(said...)
	bob.sees(said...)

	// A newcomer gets the last messages, and another name keeps the place.
	carol := openChat(t, server.URL, "Carol")
	carol.sees(said...)
	ann.seesHere("Ann, Bob, Carol")
	bob.seesHere("Ann, Bob, Carol")
	bob.waitFor(`document.querySelector("nav a[href='#lobby']").dataset.clients == "3"`)
	bob.screenshots("chat")

	// A room keeps its messages to itself.
	carol.click(`nav a[href="#kitchen"]`)
	carol.seesHere("Carol")
	carol.sees()
	ann.seesHere("Ann, Bob")
	carol.say("Nobody here?")
	carol.sees("Nobody here?")
	ann.sees(said...)
	carol.click(`nav a[href="#lobby"]`)
	carol.seesHere("Ann, Bob, Carol")
	carol.sees(said...)

	if took := server.stop(); took > promptly {
		t.Errorf("stopping with three browsers connected took %v, want at most %v", took, promptly)
	}
	ann.waitFor(`document.querySelector("#state").textContent == "reconnecting"`)
}
