package console

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// served is the emergency page as it is answered.
func served(t *testing.T) (header http.Header, text string) {
	t.Helper()
	w := httptest.NewRecorder()
	Emergency().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/emergency", http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d", w.Code)
	}
	return w.Header(), w.Body.String()
}

// TestHeaders: the browser is told to let the page do nothing but what it is for.
func TestHeaders(t *testing.T) {
	header, _ := served(t)
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestPolicyFitsThePage: the one script and the one style run, and nothing else does.
func TestPolicyFitsThePage(t *testing.T) {
	header, text := served(t)
	want := []string{
		"default-src 'none'", "script-src " + only(t, text, "script"), "style-src " + only(t, text, "style"), "connect-src 'self'",
		"form-action 'none'", "frame-ancestors 'none'", "base-uri 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
	}
	if got := header.Get("Content-Security-Policy"); got != strings.Join(want, "; ") {
		t.Errorf("the policy is\n%s, want\n%s", got, strings.Join(want, "; "))
	}
}

// only returns the hash of the one element of a tag, as the browser computes it.
func only(t *testing.T, text, tag string) string {
	t.Helper()
	found := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllStringSubmatch(text, -1)
	if len(found) != 1 || strings.Count(text, "<"+tag) != 1 || len(found[0][1]) < 1000 {
		t.Fatalf("the page has %d elements %s, want one with all in it", strings.Count(text, "<"+tag), tag)
	}
	sum := sha256.Sum256([]byte(found[0][1]))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// TestNothingForeign: the page loads nothing, has no handler or style that the policy
// would refuse, and its script cannot keep the token or make HTML out of a text.
func TestNothingForeign(t *testing.T) {
	_, text := served(t)
	if strings.Contains(text, "{{") {
		t.Error("a place of the page is not filled")
	}
	for what, pattern := range map[string]string{
		"an address of elsewhere":     `(?i)(https?:|wss?:|data:|["'(=]\s*//)`,
		"something to load":           `(?i)\b(src|srcset|action|formaction|background|ping)\s*=|<(link|img|iframe|object|embed|base)\b|@import|url\(|\bimport\b`,
		"an inline handler":           `(?i)<[^>]*\son[a-z]+\s*=`,
		"an inline style":             `(?i)<[^>]*\sstyle\s*=|\.style\b`,
		"HTML out of a text":          `innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function`,
		"a place to keep the token":   `localStorage|sessionStorage|indexedDB|cookie|caches|postMessage|console\.`,
		"a field that a form submits": `<input[^>]*\sid="token"[^>]*\sname=`,
	} {
		if found := regexp.MustCompile(pattern).FindString(text); found != "" {
			t.Errorf("the page has %s: %q", what, found)
		}
	}
}

// TestLabels: every control has a label that a screen reader says, and every element
// that the script looks for is there.
func TestLabels(t *testing.T) {
	_, text := served(t)
	for _, control := range regexp.MustCompile(`<(?:input|select)[^>]*>`).FindAllString(text, -1) {
		_, id, _ := strings.Cut(control, ` id="`)
		id, _, _ = strings.Cut(id, `"`)
		at := strings.Index(text, control)
		inside := strings.LastIndex(text[:at], "<label") > strings.LastIndex(text[:at], "</label>")
		if !inside && (id == "" || !strings.Contains(text, `<label for="`+id+`"`)) {
			t.Errorf("%s has no label", control)
		}
	}
	for _, id := range regexp.MustCompile(`(?:\$|on|onSubmit)\("([a-z-]+)"`).FindAllStringSubmatch(text, -1) {
		if strings.Count(text, ` id="`+id[1]+`"`) != 1 {
			t.Errorf("the script looks for %q, which is there %d times", id[1], strings.Count(text, ` id="`+id[1]+`"`))
		}
	}
}
