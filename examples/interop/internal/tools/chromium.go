package tools

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// patience bounds every wait for the browser. It is long, because a busy
// machine is no failure.
const patience = 2 * time.Minute

// A Page is a tab of a Chromium of its own.
type Page struct {
	t   testing.TB
	ctx context.Context
}

// OpenPage opens url in Chromium, which runs until the test ends.
func OpenPage(t testing.TB, url string) *Page {
	t.Helper()
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(Path(t, "chromium")),
		chromedp.NoSandbox, // which root cannot have
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors, // those of the tests have no authority's signature
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-quic", true),
		chromedp.UserDataDir(t.TempDir()),
	)...)
	t.Cleanup(cancelAlloc)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	p := &Page{t, ctx}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	p.Do(chromedp.Navigate(url))
	return p
}

// Do takes the steps.
func (p *Page) Do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// Eval returns the value of a JavaScript expression; of a promise, what it
// resolves to.
func Eval[T any](p *Page, js string) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
}

// WaitFor waits until a JavaScript expression is truthy.
func (p *Page) WaitFor(js string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[chromedp.Void](js,
		chromedp.WithPollingInterval(10*time.Millisecond), chromedp.WithPollingTimeout(0))); err != nil {
		text, _ := Eval[string](p, "document.body.innerText")
		p.t.Fatalf("waiting for %s: %v; the page shows:\n%s", js, err, text)
	}
}

// Screenshot saves pictures of the page, on a laptop and on a phone, in the folder
// that SCREENSHOTS names, if it is set.
func (p *Page) Screenshot(t testing.TB, name string) {
	t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, screen := range []struct {
		name          string
		width, height int64
	}{{"laptop", 1280, 800}, {"phone", 390, 844}} {
		p.Do(chromedp.EmulateViewport(screen.width, screen.height))
		ctx, cancel := context.WithTimeout(p.ctx, patience)
		png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		cancel()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+"-"+screen.name+".png"), png, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
