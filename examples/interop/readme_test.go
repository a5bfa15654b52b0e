// Package interop holds the READMEs against the code.
package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadmesShowCodeThatIsTested(t *testing.T) {
	var sources strings.Builder
	goFiles, err := filepath.Glob("*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("*/*.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(goFiles, pages...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sources.WriteString(dedented(string(text)))
	}
	for _, c := range []struct{ readme, language string }{
		{"README.md", "go"}, {"README.md", "js"}, {"faults/README.md", "go"},
	} {
		text, err := os.ReadFile(c.readme)
		if err != nil {
			t.Fatal(err)
		}
		blocks := strings.Split(string(text), "```"+c.language+"\n")[1:]
		if len(blocks) == 0 {
			t.Errorf("%s has no code in %s", c.readme, c.language)
		}
		for _, block := range blocks {
			code, _, _ := strings.Cut(block, "```")
			if !strings.Contains(sources.String(), strings.TrimSpace(dedented(code))) {
				t.Errorf("%s has code that is nowhere else:\n%s", c.readme, code)
			}
		}
	}
}

// dedented returns code without the blanks that begin its lines.
func dedented(code string) string {
	var b strings.Builder
	for line := range strings.Lines(code) {
		b.WriteString(strings.TrimLeft(line, " \t"))
	}
	return b.String()
}
