package apikeys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/key"
)

// Snapshots gives verifiers outside the server what they verify by.
type Snapshots interface {
	Snapshot(ctx context.Context, v apikey.Verifier, send func([]byte) error) error
	Report(v *apikey.Verifier, report *apikey.Report) error
}

// StreamConfig is what the handlers need; all fields are required.
type StreamConfig struct {
	Snapshots Snapshots
	Principal func(ctx context.Context) (authz.Principal, error)
	Refuse    func(w http.ResponseWriter, r *http.Request, err error)
	// Guard returns a context that ends with the server, and when the token is revoked.
	Guard func(ctx context.Context, p *authz.Principal) (context.Context, func())
}

// Stream answers verifiers outside the server.
type Stream struct{ config StreamConfig }

// NewStream returns the handlers.
func NewStream(config StreamConfig) *Stream { return &Stream{config: config} }

const (
	// maxReport bounds the body of a report.
	maxReport = 1 << 20
	// maxVerifierName bounds what a verifier may call itself.
	maxVerifierName = 128
	defaultMaxAge   = 10 * time.Minute
	minMaxAge       = 15 * time.Second
)

// verifierOf is the verifier that a request speaks for.
func verifierOf(p *authz.Principal, r *http.Request) (apikey.Verifier, error) {
	query := r.URL.Query()
	name := query.Get("verifier")
	if name == "" || len(name) > maxVerifierName {
		return apikey.Verifier{}, fmt.Errorf("verifier: 1 to %d characters are needed: a name that no other process has", maxVerifierName)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return apikey.Verifier{}, errors.New("verifier: use letters, digits and punctuation")
		}
	}
	age := defaultMaxAge
	if text := query.Get("maxAge"); text != "" {
		var err error
		if age, err = time.ParseDuration(text); err != nil || age < minMaxAge || age > apikey.MaxAge {
			return apikey.Verifier{}, fmt.Errorf("maxAge: a duration from %v to %v is needed, for example 10m", minMaxAge, apikey.MaxAge)
		}
	}
	covered := *p
	return apikey.Verifier{ID: p.ID + "/" + name, MaxAge: age, Covers: func(k key.Name) bool { return covers(&covered, k) }}, nil
}

// Snapshot streams what a verifier needs.
func (s *Stream) Snapshot(w http.ResponseWriter, r *http.Request) {
	principal, err := s.config.Principal(r.Context())
	if err != nil {
		s.config.Refuse(w, r, err)
		return
	}
	v, err := verifierOf(&principal, r)
	if err != nil {
		answer(w, http.StatusBadRequest, Problem{err.Error()})
		return
	}
	ctx, end := s.config.Guard(r.Context(), &principal)
	defer end()
	control := http.NewResponseController(w)
	begun := false
	err = s.config.Snapshots.Snapshot(ctx, v, func(lines []byte) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.Header().Set("Cache-Control", "no-store")
		}
		if _, err := w.Write(lines); err != nil {
			return err
		}
		return control.Flush()
	})
	if err != nil && !begun {
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusServiceUnavailable, Problem{"there is no snapshot now; try another server, or this one later"})
	}
}

// Report takes what a verifier tells.
func (s *Stream) Report(w http.ResponseWriter, r *http.Request) {
	principal, err := s.config.Principal(r.Context())
	if err != nil {
		s.config.Refuse(w, r, err)
		return
	}
	v, err := verifierOf(&principal, r)
	if err != nil {
		answer(w, http.StatusBadRequest, Problem{err.Error()})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReport))
	var report apikey.Report
	if err == nil {
		err = json.Unmarshal(body, &report)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, Problem{"the body is no report of at most 1 MiB"})
		return
	}
	if err := s.config.Snapshots.Report(&v, &report); err != nil {
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusServiceUnavailable, Problem{"the report cannot be taken now; keep it, and try again"})
		return
	}
	answer(w, http.StatusOK, struct{}{})
}
