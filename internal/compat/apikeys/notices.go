package apikeys

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/key"
)

// Notices tell the clients of API keys.
type Notices interface {
	// List returns the notices of a key, the latest first.
	List(ctx context.Context, name key.Name, limit int) ([]notices.Told, error)
	// Tell has the client told now: of the rotation under way, or that this is a test.
	Tell(ctx context.Context, actor audit.Actor, name key.Name, test bool) (recipients int, err error)
	// Secret returns what the webhooks of the key are signed with, or renews it.
	Secret(ctx context.Context, actor audit.Actor, name key.Name, renew bool) (notices.Shown, error)
}

// NoticesConfig is what the handlers need; all fields are required.
type NoticesConfig struct {
	Notices Notices
	// Principal returns who made a request, if it may do that.
	Principal func(ctx context.Context, a authz.Action) (authz.Principal, error)
	Refuse    func(w http.ResponseWriter, r *http.Request, err error)
}

// Telling answers operators who look after what clients are told.
type Telling struct{ config NoticesConfig }

// NewTelling returns the handlers.
func NewTelling(config NoticesConfig) *Telling { return &Telling{config: config} }

// maxNotices is how many notices are listed.
const maxNotices = 100

// noticesRequest is the body of what is asked for.
type noticesRequest struct {
	Key key.Name `json:"key"`
	// Test sends a test; else the client is reminded.
	Test bool `json:"test,omitempty"`
	// Renew replaces the signing secret.
	Renew bool `json:"renew,omitempty"`
}

// SigningSecret is what webhooks are signed with.
type SigningSecret struct {
	Number uint64    `json:"number"`
	Secret string    `json:"secret"`
	Made   time.Time `json:"made"`
	// OldUntil is until when the secret before signs as well.
	OldUntil *time.Time `json:"oldUntil,omitempty"`
}

func secretOf(shown *notices.Shown) SigningSecret {
	s := SigningSecret{Number: shown.Number, Secret: shown.Secret.RevealString(), Made: shown.Made}
	if !shown.OldUntil.IsZero() {
		s.OldUntil = &shown.OldUntil
	}
	return s
}

// may returns who asks, if the token covers the key.
func (t *Telling) may(w http.ResponseWriter, r *http.Request, a authz.Action, name key.Name) (authz.Principal, bool) {
	principal, err := t.config.Principal(r.Context(), a)
	if err != nil {
		t.config.Refuse(w, r, err)
		return principal, false
	}
	if !name.Valid() {
		answer(w, http.StatusBadRequest, Problem{"key: the name of a key is needed"})
		return principal, false
	}
	if !covers(&principal, name) {
		answer(w, http.StatusNotFound, Problem{noKey})
		return principal, false
	}
	return principal, true
}

const noKey = "there is no API key of that name, or your token does not cover it"

// read reads the body of a request.
func read(w http.ResponseWriter, r *http.Request) (request noticesRequest, ok bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, Problem{`the body is not a JSON object of at most 4 KiB; send {"key": "…"}`})
	}
	return request, err == nil
}

func failTelling(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, engine.ErrNotFound):
		answer(w, http.StatusNotFound, Problem{noKey})
	case errors.Is(err, engine.ErrInvalid):
		answer(w, http.StatusBadRequest, Problem{err.Error()})
	case errors.Is(err, engine.ErrState):
		answer(w, http.StatusConflict, Problem{err.Error()})
	default:
		answer(w, http.StatusServiceUnavailable, Problem{"this cannot be done now; try again later"})
	}
}

// actorOf is an operator as audit entries name it.
func actorOf(p *authz.Principal) audit.Actor { return audit.Actor{ID: p.Name, Kind: "user"} }

// List answers what the client of the key in the query was told.
func (t *Telling) List(w http.ResponseWriter, r *http.Request) {
	name := key.Name(r.URL.Query().Get("key"))
	if _, ok := t.may(w, r, authz.Read, name); !ok {
		return
	}
	list, err := t.config.Notices.List(r.Context(), name, maxNotices)
	if err != nil {
		failTelling(w, err)
		return
	}
	if list == nil {
		list = []notices.Told{}
	}
	answer(w, http.StatusOK, struct {
		Key     key.Name       `json:"key"`
		Notices []notices.Told `json:"notices"`
	}{name, list})
}

// Tell has a client told now.
func (t *Telling) Tell(w http.ResponseWriter, r *http.Request) {
	request, ok := read(w, r)
	if !ok {
		return
	}
	principal, ok := t.may(w, r, authz.Operate, request.Key)
	if !ok {
		return
	}
	n, err := t.config.Notices.Tell(r.Context(), actorOf(&principal), request.Key, request.Test)
	if err != nil {
		failTelling(w, err)
		return
	}
	answer(w, http.StatusOK, struct {
		Recipients int `json:"recipients"`
	}{n})
}

// Secret answers what the webhooks of a key are signed with.
func (t *Telling) Secret(w http.ResponseWriter, r *http.Request) {
	request, ok := read(w, r)
	if !ok {
		return
	}
	principal, ok := t.may(w, r, authz.Reveal, request.Key)
	if !ok {
		return
	}
	shown, err := t.config.Notices.Secret(r.Context(), actorOf(&principal), request.Key, request.Renew)
	if err != nil {
		failTelling(w, err)
		return
	}
	answer(w, http.StatusOK, secretOf(&shown))
}

// WebhookSecret shows a client what its webhooks are signed with; a POST renews it.
func (s *Self) WebhookSecret(w http.ResponseWriter, r *http.Request) {
	c, err := s.identify(r, bearer(r))
	if err != nil {
		fail(w, err)
		return
	}
	shown, err := s.config.Notices.Secret(r.Context(), ActorOf(c.verdict.Key), c.verdict.Key, r.Method == http.MethodPost)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, secretOf(&shown))
}
