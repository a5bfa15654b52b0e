package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/redis/internal/redistest"
)

// TestReadme makes a program of what README.md shows, in a folder of its own next to
// a copy of the library, and reads what it publishes.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "## In your program")
	block := func(language string) string {
		_, code, ok := strings.Cut(section, "```"+language+"\n")
		code, _, _ = strings.Cut(code, "```")
		if !ok {
			t.Fatalf("README.md has no program in %s", language)
		}
		return code
	}
	r := redistest.New(t)
	r.Start(t)
	addr := redistest.FreeAddr(t)
	imports, code, _ := strings.Cut(block("go"), "\n)\n")
	code = strings.NewReplacer(
		"localhost:6379", r.Addr,
		// A newcomer gets what is published after it has come.
		"\nid, err := ", "\ngo http.ListenAndServe("+`"`+addr+`"`+", mux)\nfor range time.Tick(20 * time.Millisecond) {\nid, err := ",
	).Replace(code)
	program := `package main

` + imports + `
	"context"
	"log"
	"net/http"
	"time"

	"github.com/seed22e817d0/sse"
)

func main() {
	ctx, mux := context.Background(), http.NewServeMux()
` + code + `
if err != nil { log.Fatal(id, err) }
}
}
`
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	app := filepath.Join(dir, "app")
	if err := os.Mkdir(app, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root, filepath.Join(dir, "sse")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"main.go": program, "go.mod": "module example.org/app\n\ngo 1.25\n", "go.sum": string(sums),
	} {
		if err := os.WriteFile(filepath.Join(app, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// In place of "go mod tidy", which would ask for the tests of others too.
	commands := strings.Replace(block("sh"), "go mod tidy", "go build -mod=mod -o app .", 1)
	cmd := exec.Command("bash", "-euc", commands)
	cmd.Dir = app
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, program)
	}
	cmd = exec.Command(filepath.Join(app, "app"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })

	client := http.Client{Timeout: 20 * time.Second}
	var resp *http.Response
	redistest.WaitUntil(t, "the program answers", func() bool {
		resp, err = client.Get("http://" + addr + "/news")
		return err == nil
	})
	defer resp.Body.Close()
	ev, err := sse.NewDecoder(resp.Body).Decode()
	if err != nil || ev.Data != "hello" {
		t.Errorf("got event %q, %v, want hello", ev.Data, err)
	}
}
