package console

import (
	"crypto/sha256"
	_ "embed" // the page is embedded
	"encoding/base64"
	"io"
	"net/http"
	"strings"
)

//go:embed emergency.html
var emergencyHTML string

//go:embed emergency.css
var emergencyCSS string

//go:embed emergency.js
var emergencyJS string

// Emergency returns the page on which an operator declares many keys compromised at
// once and follows them. It needs no token: it holds nothing.
func Emergency() http.Handler { return page(emergencyHTML, emergencyCSS, emergencyJS) }

// page puts style and script into their places in the text.
func page(text, style, script string) http.Handler {
	text = strings.NewReplacer("{{style}}", style, "{{script}}", script).Replace(text)
	// Trusted types keep text of the API from ever being read as HTML.
	policy := "default-src 'none'; script-src " + hash(script) + "; style-src " + hash(style) +
		"; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		header := w.Header()
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Security-Policy", policy)
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		_, _ = io.WriteString(w, text) // the caller is gone if this fails
	})
}

// hash is how a policy names what may run or style the page.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
