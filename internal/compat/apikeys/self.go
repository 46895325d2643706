package apikeys

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// Identifier tells whose a key is without counting a use.
type Identifier interface {
	Identify(text string) (apikey.Verdict, error)
}

// Engine is what self-service needs of the engine.
type Engine interface {
	Party(ctx context.Context, id string) (engine.PartyRecord, error)
	Attach(ctx context.Context, actor audit.Actor, party engine.PartyRecord, holdings []engine.Holding) (map[key.Name]engine.Tell, error)
	Assigned(ctx context.Context, name key.Name, id string) (tell engine.Tell, unwell, ok bool, err error)
	Key(ctx context.Context, name key.Name) (engine.KeyView, error)
	Reveal(ctx context.Context, actor audit.Actor, from string, name key.Name, v key.Version, label key.Label) (key.Version, engine.Material, error)
	Forget(ctx context.Context, actor audit.Actor, name key.Name, v key.Version, user string) error
}

// Hub is what self-service needs of the hub.
type Hub interface {
	Acknowledge(ctx context.Context, party string, outcomes []hub.Outcome) error
}

// SelfConfig is what self-service needs; all fields are required.
type SelfConfig struct {
	Keys   Identifier
	Engine Engine
	Hub    Hub
	// Notices know what webhooks are signed with.
	Notices Notices
	// Uses know who used the client's own key.
	Uses Uses
	// Blocked reports whether the caller's address showed too many bad keys, Refused
	// is told of every one.
	Blocked func(r *http.Request) bool
	Refused func(r *http.Request)
}

// Self answers clients that ask about their own API key, which they show.
type Self struct{ config SelfConfig }

// NewSelf returns the handlers.
func NewSelf(config SelfConfig) *Self { return &Self{config: config} }

// PartyOf is the party as which the client of a key is registered: rotations wait
// for it, as for an agent.
func PartyOf(name key.Name) string {
	id := "apikey/" + string(name)
	if len(id) > engine.MaxPartyID {
		sum := sha256.Sum256([]byte(name))
		return id[:engine.MaxPartyID-17] + ":" + hex.EncodeToString(sum[:8])
	}
	return id
}

// ActorOf is the client of a key as audit entries name it.
func ActorOf(name key.Name) audit.Actor { return audit.Actor{ID: PartyOf(name), Kind: "client"} }

// Status is what a client learns of its own key.
type Status struct {
	Key    string `json:"key"`
	Client string `json:"client"`
	// Version is that of the key that was shown, State what it is: current, retiring
	// (still let in), or successor.
	Version uint64     `json:"version"`
	State   string     `json:"state"`
	Scopes  []string   `json:"scopes,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
	// Successor is the version that the client should use from now on; absent when
	// the one it showed is that.
	Successor uint64 `json:"successor,omitempty"`
	// Since is when the key that was shown began to retire, Deadline until when it is
	// let in at least or, with Held, after which a human decides.
	Since    *time.Time `json:"retiringSince,omitempty"`
	Deadline *time.Time `json:"deadline,omitempty"`
	Held     bool       `json:"humanDecides,omitempty"`
	// OldUses are those who used an older version of the client's key lately, which is
	// still let in.
	OldUses []OldUse `json:"oldUses,omitempty"`
	// Proven: this request proved that the client has the version it was to use.
	Proven bool `json:"proven,omitempty"`
}

// OldUse is somebody who used an old version of a client's key.
type OldUse struct {
	Version     uint64    `json:"version"`
	Application string    `json:"application,omitempty"`
	Address     string    `json:"address,omitempty"`
	LastSeen    time.Time `json:"lastSeen"`
}

// maxOldUses is how many are named.
const maxOldUses = 20

// Successor is a client's next key. It is shown until the client has proven to
// have it.
type Successor struct {
	Version uint64 `json:"version"`
	Key     string `json:"key"`
}

// client is who asks.
type client struct {
	verdict apikey.Verdict
	party   string
	tell    engine.Tell
	proven  bool
}

// identify authenticates a client by the key it shows. One that comes for the first
// time is registered; one that shows the version it was told to use has proven
// to have it.
func (s *Self) identify(r *http.Request, text string) (client, error) {
	ctx := r.Context()
	if s.config.Blocked(r) {
		return client{}, errBlocked
	}
	verdict, err := s.config.Keys.Identify(text)
	if errors.Is(err, apikey.ErrRefused) {
		s.config.Refused(r)
	}
	if err != nil {
		return client{}, err
	}
	c := client{verdict: verdict, party: PartyOf(verdict.Key)}
	_, err = s.config.Engine.Party(ctx, c.party)
	if errors.Is(err, engine.ErrNotFound) {
		party := engine.PartyRecord{ID: c.party, Kind: hub.KindAgent, Labels: map[string]string{"client": verdict.Client}, Address: addressOf(r)}
		_, err = s.config.Engine.Attach(ctx, ActorOf(verdict.Key), party, []engine.Holding{{Key: verdict.Key, Version: verdict.Version}})
	}
	if err != nil {
		return client{}, err
	}
	var told bool
	if c.tell, _, told, err = s.config.Engine.Assigned(ctx, verdict.Key, c.party); err != nil || !told || c.tell.Version != verdict.Version {
		return c, err
	}
	err = s.prove(ctx, &c)
	return c, err
}

// prove notes that the client has the version it was told to use, and shreds
// Keyturn's copy of it.
func (s *Self) prove(ctx context.Context, c *client) error {
	if c.tell.Unanswered {
		outcome := hub.Outcome{Key: c.verdict.Key, Epoch: c.tell.Epoch, OK: true, Using: c.verdict.Version}
		if err := s.config.Hub.Acknowledge(ctx, c.party, []hub.Outcome{outcome}); err != nil {
			return fmt.Errorf("note the proof: %w", err)
		}
	}
	c.proven = true
	err := s.config.Engine.Forget(ctx, ActorOf(c.verdict.Key), c.verdict.Key, c.verdict.Version, c.party)
	if errors.Is(err, engine.ErrState) {
		return nil // it is kept
	}
	return err
}

// addressOf is the caller's IP address; empty if it has none.
func addressOf(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return at.Addr().Unmap().WithZone("").String()
}

var errBlocked = errors.New("too many bad keys from this address; wait ten seconds")

// bearer is the key that a request shows.
func bearer(r *http.Request) string {
	text, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return text
}

// fail answers a request that cannot be served.
func fail(w http.ResponseWriter, err error) {
	status, text := problemOf(err)
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "10")
	}
	answer(w, status, Problem{text})
}

// problemOf is what a client is told of an error.
func problemOf(err error) (status int, text string) {
	switch {
	case errors.Is(err, apikey.ErrRefused):
		return http.StatusUnauthorized, "the API key is not valid"
	case errors.Is(err, apikey.ErrLimited), errors.Is(err, errBlocked):
		return http.StatusTooManyRequests, "too many requests; try again later"
	case errors.Is(err, engine.ErrNotFound), errors.Is(err, engine.ErrState), errors.Is(err, rotation.ErrStale):
		return http.StatusConflict, "there is no successor to be shown: none is ready yet, or it was shown and has proven to be with its client"
	}
	return http.StatusServiceUnavailable, "this cannot be answered now; try again later"
}

// Status answers what a client may know of its own key.
func (s *Self) Status(w http.ResponseWriter, r *http.Request) {
	status, err := s.status(r, bearer(r))
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, status)
}

func (s *Self) status(r *http.Request, text string) (Status, error) {
	c, err := s.identify(r, text)
	if err != nil {
		return Status{}, err
	}
	view, err := s.config.Engine.Key(r.Context(), c.verdict.Key)
	if err != nil {
		return Status{}, err
	}
	status := Status{
		Key: string(c.verdict.Key), Client: c.verdict.Client, Version: uint64(c.verdict.Version), Scopes: c.verdict.Scopes, State: "successor", Proven: c.proven,
	}
	if !c.verdict.Expires.IsZero() {
		status.Expires = &c.verdict.Expires
	}
	if c.tell.Version > c.verdict.Version {
		status.Successor = uint64(c.tell.Version)
	}
	current := view.State.Labelled(key.Current)
	switch {
	case c.verdict.Version == current:
		status.State = "current"
	case c.verdict.Version < current:
		status.State = "retiring"
	}
	for i := range view.State.Rotations {
		if one := &view.State.Rotations[i]; one.From == c.verdict.Version && !one.CutOverAt.IsZero() {
			status.Since, status.Held = &one.CutOverAt, !one.Plan.RevokeAtMax
			if one.Plan.DrainMax > 0 {
				deadline := one.CutOverAt.Add(one.Plan.DrainMax)
				status.Deadline = &deadline
			}
		}
	}
	err = s.oldUses(r.Context(), &c, &status)
	return status, err
}

// oldUses adds who used a version older than the one that the client is to use.
func (s *Self) oldUses(ctx context.Context, c *client, status *Status) error {
	versions, err := s.config.Uses.Versions(ctx, c.verdict.Key)
	if err != nil {
		return err
	}
	for i := range versions {
		v := &versions[i]
		if !v.Accepted || v.Version >= max(c.tell.Version, c.verdict.Version) {
			continue
		}
		for _, by := range v.By {
			if len(status.OldUses) < maxOldUses {
				status.OldUses = append(status.OldUses, OldUse{uint64(v.Version), by.Application, by.Address, by.Last})
			}
		}
	}
	return nil
}

// Successor shows a client its next key.
func (s *Self) Successor(w http.ResponseWriter, r *http.Request) {
	next, err := s.successor(r, bearer(r))
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, next)
}

func (s *Self) successor(r *http.Request, text string) (Successor, error) {
	c, err := s.identify(r, text)
	if err != nil {
		return Successor{}, err
	}
	if c.tell.Version <= c.verdict.Version {
		return Successor{}, fmt.Errorf("%w: %s has no successor of %v", engine.ErrState, c.verdict.Key, c.verdict.Version)
	}
	v, material, err := s.config.Engine.Reveal(r.Context(), ActorOf(c.verdict.Key), addressOf(r), c.verdict.Key, c.tell.Version, 0)
	if err != nil {
		return Successor{}, err
	}
	return Successor{Version: uint64(v), Key: material.Secrets["key"].RevealString()}, nil
}
