// Package jwks serves the public keys of signing keys as JSON Web Key Sets (RFC
// 7517) and the metadata of their issuers (OpenID Connect Discovery 1.0).
//
// # Guarantees
//
//   - It serves from memory: neither the store nor a provider is asked.
//   - Cache-Control allows caches as long as arrival is counted with, and no longer;
//     sets of registered verifiers are for their own caches only.
//   - A set counts as fetched by a verifier when it was written in full, or when the
//     verifier showed its ETag; a HEAD does not count.
//   - Whatever is not there is answered alike.
package jwks

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
)

// Board is what is served.
type Board interface {
	Find(path string) (*token.Page, error)
	Fetched(page *token.Page, address netip.Addr)
}

// Config is what a Handler needs.
type Config struct {
	Board Board
	// Fetched hears of each page that a reader got, or held as it is: the key whose it
	// is, and the newest version that it names. May be nil.
	Fetched func(name key.Name, newest key.Version)
	// Admit says whether the caller of a request may ask once more. May be nil.
	Admit func(*http.Request) bool
}

// Handler answers GET and HEAD.
type Handler struct{ config Config }

// New returns a handler.
func New(config Config) *Handler { return &Handler{config} }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	// Public keys are for everybody, also for scripts in browsers.
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("X-Content-Type-Options", "nosniff")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions:
		header.Set("Access-Control-Allow-Methods", "GET, HEAD")
		header.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		header.Set("Allow", "GET, HEAD, OPTIONS")
		refuse(w, http.StatusMethodNotAllowed, "only GET and HEAD are answered here")
		return
	}
	if h.config.Admit != nil && !h.config.Admit(r) {
		header.Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, "too many requests; keep the set as long as Cache-Control allows")
		return
	}
	page, err := h.config.Board.Find(r.URL.Path)
	switch {
	case errors.Is(err, token.ErrUnknown):
		refuse(w, http.StatusNotFound, "there is nothing here")
		return
	case err != nil:
		header.Set("Retry-After", "5")
		refuse(w, http.StatusServiceUnavailable, "the server cannot tell for now which keys are published")
		return
	}
	h.answer(w, r, page)
}

func refuse(w http.ResponseWriter, status int, text string) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, text) // the caller is gone if this fails
}

func (h *Handler) answer(w http.ResponseWriter, r *http.Request, page *token.Page) {
	header := w.Header()
	header.Set("ETag", page.ETag)
	scope := "private"
	if page.Public {
		scope = "public"
	}
	header.Set("Cache-Control", scope+", max-age="+strconv.Itoa(int(page.Life/time.Second))+", must-revalidate")
	header.Set("Content-Type", page.Type)
	if matches(r.Header.Values("If-None-Match"), page.ETag) {
		header.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		if r.Method == http.MethodGet {
			h.count(page)
			h.fetched(r, page)
		}
		return
	}
	header.Set("Content-Length", strconv.Itoa(len(page.Body)))
	if r.Method == http.MethodHead {
		return
	}
	n, err := w.Write(page.Body) //nolint:gosec // it is JSON of public keys, and said to be
	if err != nil || n != len(page.Body) {
		return // it was not fetched
	}
	h.count(page)
	if page.Public {
		return
	}
	// It must have left before it counts.
	if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return
	}
	h.fetched(r, page)
}

// count tells of a set that was fetched.
func (h *Handler) count(page *token.Page) {
	if name, newest := page.Newest(); h.config.Fetched != nil && newest != 0 {
		h.config.Fetched(name, newest)
	}
}

func (h *Handler) fetched(r *http.Request, page *token.Page) {
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		h.config.Board.Fetched(page, from.Addr())
	}
}

// matches reports whether a header names the tag (RFC 9110, section 13.1.2). "*"
// does not: it does not tell what the reader holds.
func matches(values []string, tag string) bool {
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			if strings.TrimPrefix(strings.TrimSpace(one), "W/") == tag {
				return true
			}
		}
	}
	return false
}
