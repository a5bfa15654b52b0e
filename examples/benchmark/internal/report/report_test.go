package report

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n")
	for range 2 { // the second time changes nothing
		for name, text := range map[string]string{"a": "new\n", "b": "\nalso new"} {
			if err := Replace(file, name, text); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		want := "before\n<!-- a -->\n\nnew\n\n<!-- /a -->\nbetween\n<!-- b -->\n\nalso new\n\n<!-- /b -->\nafter\n"
		if err != nil || string(got) != want {
			t.Fatalf("got %q, error %v, want %q", got, err, want)
		}
	}
	for _, text := range []string{"", "<!-- a -->\n", "<!-- /a -->\n<!-- a -->\n"} {
		write(text)
		if err := Replace(file, "a", "new"); err == nil {
			t.Errorf("got no error for %q", text)
		}
	}
}
