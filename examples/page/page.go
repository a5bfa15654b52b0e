// Package page serves follow.js, the script that the pages of the examples use,
// and a page that uses it.
//
// The script's address holds a hash of its content, so browsers keep it until it
// changes, and never use an old one with a new page.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"net/http"
	"strings"
	"time"
)

//go:embed follow.js
var script string

// Script is the path at which Handler serves follow.js.
var Script = func() string {
	hash := sha256.Sum256([]byte(script))
	return "/follow." + hex.EncodeToString(hash[:6]) + ".js"
}()

// Link returns html with Script in place of "./follow.js", which is where a page
// finds the script when it is opened as a file.
func Link(html string) string {
	return strings.ReplaceAll(html, `"./follow.js"`, `"`+Script+`"`)
}

// Handler serves the page at / and the script at its path.
func Handler(html string) http.Handler {
	html = Link(html)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache") // its address stays the same when it changes
		http.ServeContent(w, r, "index.html", time.Time{}, strings.NewReader(html))
	})
	mux.HandleFunc("GET "+Script, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		http.ServeContent(w, r, "follow.js", time.Time{}, strings.NewReader(script))
	})
	return mux
}
