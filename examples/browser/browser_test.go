// Package browser tests the examples, and the library itself, in real browsers:
// Chromium and Firefox, without a window.
//
//	apt-get install chromium firefox-esr nginx redis-server
//	go test ./...
//
// With SCREENSHOTS=some/folder set, the tests leave pictures of the pages there.
//
// This file holds what the tests share. Each test begins the same way:
//
//	server := start(t, "clock", "-every=100ms") // builds and runs an example
//	p := open(t, server.URL)                    // opens it in a browser of its own
//	p.waitFor(`document.querySelector("#time").textContent != ""`)
package browser

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// patience bounds every wait for the browser or for a program. It is long,
// because a busy machine is no failure.
const patience = 2 * time.Minute

// promptly is longer than any program takes to end on a busy machine, and shorter
// than one takes that waits for its clients.
const promptly = 15 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	if quitChromium != nil {
		quitChromium()
	}
	if quitFirefox != nil {
		quitFirefox()
	}
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// Chromium

var quitChromium func() // once Chromium runs

// chromium starts Chromium, which all tests share, and returns its context.
var chromium = sync.OnceValues(func() (context.Context, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, err
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // which root cannot have
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors, // of test servers
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-quic", true),
	)...)
	ctx, cancel := chromedp.NewContext(alloc)
	if err := chromedp.Do(ctx); err != nil {
		cancelAlloc()
		return nil, err
	}
	quitChromium = func() {
		cancel()
		cancelAlloc()
	}
	return ctx, nil
})

// A page is a tab. In Chromium it has a browser of its own, unless it was opened
// by openBeside: it shares no cookies, connections or limits with any other page.
// It is for one goroutine.
type page struct {
	t     *testing.T
	ctx   context.Context // of Chromium
	tab   *firefoxTab     // or of Firefox
	first *page           // of the pages in one Chromium, nil if it is this one
	close func()
}

// open opens url in a page as wide and high as a laptop's, and waits until it
// has loaded. An exception in the page that nobody catches fails the test.
func open(t *testing.T, url string) *page {
	t.Helper()
	return openChromium(t, url, nil)
}

// openBeside opens url in another tab of the same browser.
func (p *page) openBeside(url string) *page {
	p.t.Helper()
	if p.tab != nil {
		return openFirefox(p.t, url)
	}
	return openChromium(p.t, url, cmp.Or(p.first, p))
}

func openChromium(t *testing.T, url string, beside *page) *page {
	t.Helper()
	browser, err := chromium()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") != "true" {
		t.Skip("these tests need Chromium: apt-get install chromium")
	}
	if err != nil {
		t.Fatal(err)
	}
	parent, options := browser, []chromedp.ContextOption{chromedp.WithNewBrowserContext()}
	if beside != nil {
		parent, options = beside.ctx, nil
	}
	ctx, cancel := chromedp.NewContext(parent, options...)
	t.Cleanup(cancel)
	p := &page{t: t, ctx: ctx, first: beside, close: cancel}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	console := chromedp.Console(ctx)
	var listener sync.WaitGroup
	listener.Go(func() {
		for message, err := range console {
			if err != nil {
				return
			}
			if message.IsException() {
				t.Errorf("uncaught exception in %s: %s", url, message.Text)
			}
		}
	})
	t.Cleanup(func() { cancel(); listener.Wait() })
	p.do(chromedp.EmulateViewport(1280, 800), chromedp.Navigate(url))
	return p
}

// do runs the steps, which must not take longer than patience.
func (p *page) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// eval returns the value of a JavaScript expression; of a promise, what it
// resolves to.
func eval[T any](p *page, js string) T {
	p.t.Helper()
	if p.tab != nil {
		var v T
		p.tab.eval(p.t, js, &v)
		return v
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", js, err)
	}
	return v
}

// run executes JavaScript whose value does not matter.
func (p *page) run(js string) {
	p.t.Helper()
	if p.tab != nil {
		p.tab.eval(p.t, js, nil)
		return
	}
	eval[chromedp.Void](p, js)
}

// waitFor waits until a JavaScript expression is truthy.
func (p *page) waitFor(js string) {
	p.t.Helper()
	if p.tab != nil {
		p.tab.waitFor(p.t, js)
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	_, err := chromedp.Run(ctx, chromedp.Poll[chromedp.Void](js,
		chromedp.WithPollingInterval(10*time.Millisecond), chromedp.WithPollingTimeout(0)))
	if err != nil {
		p.t.Fatalf("waiting for %s: %v; the page shows:\n%s", js, err, p.text("body"))
	}
}

// text returns what the first element that matches the CSS selector shows.
func (p *page) text(selector string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf("document.querySelector(%q).innerText", selector))
}

// click clicks the element, as a mouse does, once it is visible.
func (p *page) click(selector string) {
	p.t.Helper()
	if p.tab != nil {
		p.waitFor(fmt.Sprintf("document.querySelector(%q)?.disabled === false", selector))
		p.run(fmt.Sprintf("document.querySelector(%q).click()", selector))
		return
	}
	p.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible, chromedp.NodeEnabled))
}

// screenshots saves pictures of the page as it is now, on a laptop and on a
// phone, light and dark, in the folder that SCREENSHOTS names, if it is set.
func (p *page) screenshots(name string) {
	p.t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" || p.tab != nil {
		return
	}
	for _, screen := range []struct {
		name          string
		width, height int64
		options       []chromedp.EmulateViewportOption
	}{
		{"laptop", 1280, 800, nil},
		{"phone", 390, 844, []chromedp.EmulateViewportOption{
			chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait, chromedp.EmulateScale(2)}},
	} {
		for _, scheme := range []string{"light", "dark"} {
			p.do(chromedp.EmulateViewport(screen.width, screen.height, screen.options...), colorScheme(scheme))
			ctx, cancel := context.WithTimeout(p.ctx, patience)
			png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
			cancel()
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%s-%s.png", name, screen.name, scheme)), png, 0o644)
			}
			if err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.do(chromedp.EmulateViewport(1280, 800), colorScheme(""))
}

// colorScheme makes the page light or dark; "" makes it what it was.
func colorScheme(scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	})
}

// Programs

// buildDir holds the examples that were built.
var buildDir string

var makeBuildDir = sync.OnceValue(func() (err error) {
	buildDir, err = os.MkdirTemp("", "sse-examples-")
	return err
})

var builds sync.Map // func() error for the name of each example: builds it once

// build builds an example, with the race detector if the tests have it too, and
// returns the path of the program.
func build(t *testing.T, name string) string {
	t.Helper()
	if err := makeBuildDir(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(buildDir, name)
	once, _ := builds.LoadOrStore(name, sync.OnceValue(func() error {
		cmd := exec.Command("go", "build", fmt.Sprintf("-race=%t", raceDetector()), "-o", path, ".")
		cmd.Dir = filepath.Join("..", name)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w\n%s", err, out)
		}
		return nil
	}))
	if err := once.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return path
}

// raceDetector tells whether the tests were built with the race detector.
func raceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	for _, setting := range info.Settings {
		if setting.Key == "-race" {
			return setting.Value == "true"
		}
	}
	return false
}

// A program is an example that runs. Its end is the end of the test.
type program struct {
	URL string // the address that it printed: http://127.0.0.1:34567

	t      *testing.T
	path   string
	args   []string
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	exited chan error // what cmd.Wait returned
}

// start builds the example of that name, starts it on a free port, and returns
// when it has printed its address.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, path: build(t, name), args: args}
	p.startAt("localhost:0")
	t.Cleanup(func() {
		if p.cmd != nil {
			p.stop()
		}
	})
	return p
}

// startAgain starts a program that was stopped, at the address it had before.
func (p *program) startAgain() {
	p.t.Helper()
	p.startAt(strings.TrimPrefix(p.URL, "http://"))
}

var address = regexp.MustCompile(`http://[^\s/]+`)

func (p *program) startAt(addr string) {
	p.t.Helper()
	p.stderr = new(bytes.Buffer)
	p.cmd = exec.Command(p.path, append([]string{"-addr=" + addr}, p.args...)...)
	p.cmd.Stderr = p.stderr
	p.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // or it takes a second to exit
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.exited = make(chan error, 1)
	found := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if url := address.FindString(lines.Text()); url != "" && len(found) == 0 {
				found <- url
			}
		}
		p.exited <- p.cmd.Wait()
	}()
	select {
	case p.URL = <-found:
	case err := <-p.exited:
		p.cmd = nil
		p.t.Fatalf("%s ended before it printed its address: %v\n%s", p.path, err, p.stderr)
	case <-time.After(patience):
		p.t.Fatalf("%s printed no address", p.path)
	}
}

// stop presses Ctrl-C, and returns how long the program took to end. The test
// fails if it did not end well.
func (p *program) stop() time.Duration {
	p.t.Helper()
	began := time.Now()
	p.cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-p.exited:
		if err != nil {
			p.t.Errorf("%s: %v\n%s", p.path, err, p.stderr)
		}
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.exited
		p.t.Errorf("%s did not stop on Ctrl-C\n%s", p.path, p.stderr)
	}
	p.cmd = nil
	return time.Since(began)
}

// Connections

// A line is the network between browsers and a server: it can be cut.
type line struct {
	URL string // what to open instead of the server's address

	mu    sync.Mutex // guards the fields below
	isCut bool
	conns map[net.Conn]bool
}

// newLine returns a line to the server at serverURL, which may be stopped and
// started meanwhile. unix:///path is a server at a socket in the file system.
func newLine(t *testing.T, serverURL string) *line {
	t.Helper()
	target, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	network, addr, scheme := "tcp", target.Host, target.Scheme
	if scheme == "unix" {
		network, addr, scheme = "unix", target.Path, "http"
	}
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{
		URL:   scheme + "://" + listener.Addr().String(),
		conns: map[net.Conn]bool{},
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { l.connect(client, network, addr) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		l.cut()
		accepting.Wait()
	})
	return l
}

// connect passes on what client and the server say until one of them ends.
func (l *line) connect(client net.Conn, network, addr string) {
	defer l.drop(client)
	server, err := net.Dial(network, addr)
	if err != nil {
		return
	}
	defer l.drop(server)
	l.mu.Lock()
	isCut := l.isCut
	l.conns[client], l.conns[server] = true, true
	l.mu.Unlock()
	if isCut {
		return
	}
	ended := make(chan bool, 2)
	go func() { io.Copy(server, client); ended <- true }()
	go func() { io.Copy(client, server); ended <- true }()
	<-ended
}

func (l *line) drop(conn net.Conn) {
	conn.Close()
	l.mu.Lock()
	delete(l.conns, conn)
	l.mu.Unlock()
}

// cut ends all connections, and each new one as soon as it is made.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	for conn := range l.conns {
		conn.Close()
	}
}

// mend lets connections through again.
func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}

// interrupt cuts the line for a moment.
func (l *line) interrupt() {
	l.cut()
	l.mend()
}
