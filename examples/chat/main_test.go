package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

func TestNewcomerGetsLastMessages(t *testing.T) {
	url := serve(t, newChat())
	for i := range keep + 10 {
		post(t, url, "lobby", "Ann", fmt.Sprint(i))
	}
	post(t, url, "kitchen", "Ann", "another room")
	bob := join(t, url, "lobby", "Bob", "")
	got := decode[room](t, bob.next("room"))
	if len(got.Messages) != keep || got.Messages[0].Text != "10" || got.Messages[keep-1].Text != "59" {
		t.Errorf("got %d messages, %v; want those from 10 to 59", len(got.Messages), got.Messages)
	}
	if len(got.Here) != 1 || got.Here["Bob"] != 1 {
		t.Errorf("here: got %v, want Bob alone", got.Here)
	}
}

func TestTwoConverse(t *testing.T) {
	url := serve(t, newChat())
	ann := join(t, url, "lobby", "Ann", "")
	bob := join(t, url, "lobby", "Bob", "")
	carol := join(t, url, "kitchen", "Carol", "")
	for _, client := range []*client{ann, bob, carol} {
		client.next("room")
	}
	post(t, url, "lobby", "Ann", "Hello Bob")
	post(t, url, "lobby", "Bob", "Hello\nAnn & \x00 <b>all</b>")
	post(t, url, "kitchen", "Carol", "alone")
	for _, client := range []*client{ann, bob} {
		for _, want := range []string{"Hello Bob", "Hello\nAnn & \x00 <b>all</b>"} {
			if got := decode[message](t, client.next("message")); got.Text != want {
				t.Errorf("got %q, want %q", got.Text, want)
			}
		}
	}
	if got := decode[message](t, carol.next("message")); got.Text != "alone" {
		t.Errorf("in another room: got %q, want its own message first", got.Text)
	}
}

func TestWhoIsHere(t *testing.T) {
	url := serve(t, newChat())
	ann := join(t, url, "lobby", "Ann", "")
	ann.next("room")
	bob := join(t, url, "lobby", "Bob", "")
	again := join(t, url, "lobby", "Bob", "")
	here := func(want string) {
		t.Helper()
		if got := ann.next("here").Data; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	here(`{"Ann":1,"Bob":1}`)
	here(`{"Ann":1,"Bob":2}`)
	bob.leave()
	here(`{"Ann":1,"Bob":1}`)
	again.leave()
	here(`{"Ann":1}`)
}

func TestCutOffMissesNothing(t *testing.T) {
	url := serve(t, newChat())
	ann := join(t, url, "lobby", "Ann", "")
	ann.next("room")
	post(t, url, "lobby", "Bob", "1")
	ann.next("message")
	ann.leave()
	for i := range 2 * keep { // more than a newcomer would get
		post(t, url, "lobby", "Bob", fmt.Sprint(i+2))
	}
	ann = join(t, url, "lobby", "Ann", ann.LastEventID())
	for i := range 2 * keep {
		if got, want := decode[message](t, ann.next("message")).Text, fmt.Sprint(i+2); got != want {
			t.Fatalf("got message %q, want %q", got, want)
		}
	}
}

// A message that is posted while a newcomer is being shown the room comes
// neither twice nor never.
func TestMessageDuringCatchUp(t *testing.T) {
	c := newChat()
	url := serve(t, c)
	c.broker.CatchUp = func(ctx context.Context, missed sse.Missed) iter.Seq2[sse.Event, error] {
		post(t, url, "lobby", "Ann", "before")
		return func(yield func(sse.Event, error) bool) {
			for e, err := range c.catchUp(ctx, missed) {
				post(t, url, "lobby", "Ann", "after")
				yield(e, err)
			}
		}
	}
	bob := join(t, url, "lobby", "Bob", "")
	if got := decode[room](t, bob.next("room")).Messages; len(got) != 1 || got[0].Text != "before" {
		t.Errorf("got %v, want the message from before", got)
	}
	if got := decode[message](t, bob.next("message")); got.Text != "after" {
		t.Errorf("got %q next, want the message from after", got.Text)
	}
}

// The same when several people post at once.
func TestNewcomersToABusyRoom(t *testing.T) {
	const rounds, posters, posts = 10, 4, 10
	for range rounds {
		url := serve(t, newChat())
		var busy sync.WaitGroup
		for p := range posters {
			busy.Go(func() {
				for i := range posts {
					post(t, url, "lobby", "Ann", fmt.Sprintf("%d/%d", p, i))
				}
			})
		}
		bob := join(t, url, "lobby", "Bob", "")
		got := map[string]bool{}
		note := func(m message) {
			if got[m.Text] {
				t.Errorf("message %s came twice", m.Text)
			}
			got[m.Text] = true
		}
		for _, m := range decode[room](t, bob.next("room")).Messages {
			note(m)
		}
		for len(got) < posters*posts {
			note(decode[message](t, bob.next("message")))
		}
		busy.Wait()
	}
}

func TestRefusals(t *testing.T) {
	server := serve(t, newChat())
	for _, test := range []struct {
		name, method, path, body string
		site                     string // what a browser says of the page that asks
		want                     int
	}{
		{"page", "GET", "/", "", "none", 200},
		{"post", "POST", "/rooms/lobby/messages", "name=Ann&text=hello", "same-origin", 204},
		{"post by a foreign page", "POST", "/rooms/lobby/messages", "name=Ann&text=hello", "cross-site", 403},
		{"post to no room", "POST", "/rooms/cellar/messages", "name=Ann&text=hello", "same-origin", 403},
		{"post without a name", "POST", "/rooms/lobby/messages", "text=hello", "same-origin", 403},
		{"blank text", "POST", "/rooms/lobby/messages", "name=Ann&text=+", "same-origin", 400},
		{"long text", "POST", "/rooms/lobby/messages", "name=Ann&text=" + strings.Repeat("x", 5<<10), "same-origin", 400},
		{"huge body", "POST", "/rooms/lobby/messages", "name=Ann&text=" + strings.Repeat("x", 1<<20), "same-origin", 403},
		{"stream of no room", "GET", "/rooms/cellar/events?name=Ann", "", "same-origin", 403},
		{"stream without a name", "GET", "/rooms/lobby/events", "", "same-origin", 403},
		{"stream with a long name", "GET", "/rooms/lobby/events?name=" + strings.Repeat("x", 81), "", "same-origin", 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequest(test.method, server+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Sec-Fetch-Site", test.site)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != test.want {
				t.Errorf("got %s, want %d", resp.Status, test.want)
			}
		})
	}
}

func serve(t *testing.T, c *chat) (url string) {
	server := httptest.NewServer(c.handler())
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

func post(t *testing.T, server, room, name, text string) {
	t.Helper()
	resp, err := http.PostForm(server+"/rooms/"+room+"/messages", url.Values{"name": {name}, "text": {text}})
	if err != nil {
		t.Error(err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("post: %s", resp.Status)
	}
}

type client struct {
	*sse.Decoder
	t     *testing.T
	leave func() error
}

func join(t *testing.T, server, room, name, lastEventID string) *client {
	t.Helper()
	query := url.Values{"name": {name}, "lastEventId": {lastEventID}}
	browser := http.Client{Timeout: 10 * time.Second} // for an event that never comes
	resp, err := browser.Get(server + "/rooms/" + room + "/events?" + query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &client{sse.NewDecoder(resp.Body), t, resp.Body.Close}
}

// next returns the next event of this type. It skips who came and left, but
// neither a message nor a newcomer's view of the room.
func (c *client) next(kind string) sse.Event {
	c.t.Helper()
	for e, err := range c.All() {
		switch {
		case err != nil:
			c.t.Fatal(err)
		case e.Type == kind:
			return e
		case e.Type != "here":
			c.t.Fatalf("got %+v, want an event of type %s", e, kind)
		}
	}
	c.t.Fatal("the stream has ended")
	panic("unreachable")
}

func decode[T any](t *testing.T, e sse.Event) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(e.Data), &v); err != nil {
		t.Fatalf("%s: %v", e.Data, err)
	}
	return v
}
