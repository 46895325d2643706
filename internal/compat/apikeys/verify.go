package apikeys

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/key"
)

// Keys verifies API keys.
type Keys interface {
	Verify(text string, caller apikey.Caller) (apikey.Verdict, error)
	// Identify is Verify without a use.
	Identify(text string) (apikey.Verdict, error)
}

// Config is what the handlers need; all fields are required.
type Config struct {
	Keys Keys
	// Principal returns who made a request, if it may verify API keys.
	Principal func(ctx context.Context) (authz.Principal, error)
	// Refuse answers a request whose caller may not make it.
	Refuse func(w http.ResponseWriter, r *http.Request, err error)
}

// Handlers answer requests about API keys.
type Handlers struct{ config Config }

// New returns the handlers.
func New(config Config) *Handlers { return &Handlers{config: config} }

// maxBody bounds a request.
const maxBody = 4 << 10

// VerifyRequest asks whose a key is.
type VerifyRequest struct {
	Key string `json:"key"`
	// Address and Application say who showed it, as far as that is known.
	Address     string `json:"address,omitempty"`
	Application string `json:"application,omitempty"`
	// Probe asks without a use: it is not counted, and no proof that the client has
	// the key.
	Probe bool `json:"probe,omitempty"`
}

// VerifyResponse says whose a key is. Unless Valid or Limited is true everything
// else is absent.
type VerifyResponse struct {
	Valid bool `json:"valid"`
	// Limited: the key is good, and was used more often than it may be; RetryAfter is
	// in how many milliseconds it may be used again.
	Limited    bool  `json:"limited,omitempty"`
	RetryAfter int64 `json:"retryAfterMs,omitempty"`

	Key     string     `json:"key,omitempty"`
	Version uint64     `json:"version,omitempty"`
	Client  string     `json:"client,omitempty"`
	Scopes  []string   `json:"scopes,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
	// Remaining is how many further uses are allowed at once; absent without a limit.
	Remaining *int `json:"remaining,omitempty"`
}

// Problem is every answer that is none.
type Problem struct {
	Error string `json:"error"`
}

// Verify answers whose a key is. A token that does not cover the key learns no
// more of it than of one that does not exist.
func (h *Handlers) Verify(w http.ResponseWriter, r *http.Request) {
	principal, err := h.config.Principal(r.Context())
	if err != nil {
		h.config.Refuse(w, r, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var request VerifyRequest
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, Problem{`the body is not a JSON object of at most 4 KiB; send {"key": "…"}`})
		return
	}
	var verdict apikey.Verdict
	if request.Probe {
		verdict, err = h.config.Keys.Identify(request.Key)
	} else {
		verdict, err = h.config.Keys.Verify(request.Key, apikey.Caller{Address: request.Address, Application: request.Application})
	}
	switch {
	case errors.Is(err, apikey.ErrUnsure):
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusServiceUnavailable, Problem{"API keys cannot be verified here now; try another server, or this one later"})
	case err != nil && !errors.Is(err, apikey.ErrLimited), !covers(&principal, verdict.Key):
		answer(w, http.StatusOK, VerifyResponse{})
	default:
		answer(w, http.StatusOK, responseOf(&verdict, err == nil))
	}
}

func covers(p *authz.Principal, name key.Name) bool {
	return slices.Contains(p.Keys, "**") || authz.Covers(p.Keys, name)
}

func responseOf(v *apikey.Verdict, valid bool) VerifyResponse {
	response := VerifyResponse{
		Valid: valid, Limited: !valid, RetryAfter: int64((v.Retry + time.Millisecond - 1) / time.Millisecond),
		Key: string(v.Key), Version: uint64(v.Version), Client: v.Client, Scopes: v.Scopes,
	}
	if !v.Expires.IsZero() {
		response.Expires = &v.Expires
	}
	if v.Left >= 0 {
		response.Remaining = &v.Left
	}
	return response
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "the answer could not be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller is gone if this fails
}
