package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
)

// kindRevoked: a token that was revoked, by key and jti.
const kindRevoked = "token-revoked"

const (
	// MaxRevoked bounds the tokens that are revoked at a time.
	MaxRevoked = 200_000
	// maxID is how long the jti of a token may be to be revoked.
	maxID = 200
	// followPoll is how often revocations are read without having been woken.
	followPoll = time.Second
	// followPause gathers what changes together.
	followPause = 20 * time.Millisecond
	// sweepEvery is how often revocations of tokens that have expired are deleted.
	sweepEvery = time.Minute
)

// ErrRevokedFull: so many tokens are revoked that the signing key should be.
var ErrRevokedFull = errors.New("too many tokens are revoked; revoke the signing key: keyturn rotate --emergency")

// revocations are followed from the store.
type revocations struct {
	mu    sync.RWMutex
	known map[string]time.Time
	rev   uint64
	read  time.Time
}

func (r *revocations) init() { r.known = map[string]time.Time{} }

type revocation struct {
	Expires time.Time `json:"expires"`
}

func revokedName(name key.Name, id string) string { return string(name) + "@" + id }

func cutKey(id string) (name key.Name, rest string, ok bool) {
	before, rest, ok := strings.Cut(id, "\x00")
	return key.Name(before), rest, ok
}

// Revoke makes a token inactive, durably. One that is no token of the key, or has
// expired, is none already (RFC 7009, section 2.2).
func (b *Broker) Revoke(ctx context.Context, name key.Name, compact string, actor audit.Actor, allowed func(*token.Claims) error) error {
	claims, err := b.config.Verifier.Verify(name, compact, token.Expect{})
	switch {
	case errors.Is(err, token.ErrToken), err == nil && (claims.ID == "" || len(claims.ID) > maxID):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	if err := allowed(&claims); err != nil {
		return err
	}
	body, err := json.Marshal(revocation{claims.Expires})
	if err != nil {
		return err
	}
	b.revoked.mu.RLock()
	_, revoked := b.revoked.known[revokedName(name, claims.ID)]
	full := len(b.revoked.known) >= MaxRevoked
	b.revoked.mu.RUnlock()
	switch {
	case revoked:
		return nil
	case full:
		return ErrRevokedFull
	}
	doc := store.Doc{Kind: kindRevoked, Name: revokedName(name, claims.ID), Due: claims.Expires.Add(2 * b.config.Skew), Body: body}
	err = b.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		if _, err := tx.Docs.Put(ctx, doc); err != nil {
			return err
		}
		enter(audit.Entry{
			Actor: actor, Action: "token.revoke", Key: name, Version: claims.Version, Target: limited(claims.Subject, audit.MaxTarget), Outcome: audit.OutcomeOK,
			Detail: map[string]string{"jti": claims.ID},
		})
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrConflict) { // it was revoked before
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	b.revoked.mu.Lock()
	b.revoked.known[doc.Name] = claims.Expires
	b.revoked.mu.Unlock()
	if err == nil {
		b.config.Revoked()
	}
	return nil
}

// Introspect returns the claims of a token that is good and was not revoked. Else it
// fails with token.ErrToken, and with ErrAway when that cannot be known now.
func (b *Broker) Introspect(name key.Name, compact string) (token.Claims, error) {
	claims, err := b.config.Verifier.Verify(name, compact, token.Expect{})
	if err != nil && !errors.Is(err, token.ErrToken) {
		return token.Claims{}, fmt.Errorf("%w: %w", ErrAway, err)
	}
	if err != nil {
		return token.Claims{}, err
	}
	b.revoked.mu.RLock()
	_, revoked := b.revoked.known[revokedName(name, claims.ID)]
	read := b.revoked.read
	b.revoked.mu.RUnlock()
	switch {
	case revoked:
		return token.Claims{}, fmt.Errorf("%w: it was revoked", token.ErrToken)
	case read.IsZero() || b.config.Now().Sub(read) >= b.config.Stale:
		return token.Claims{}, fmt.Errorf("%w: revocations could not be read for %v", ErrAway, b.config.Stale)
	}
	return claims, nil
}

// follow keeps revocations in memory, until ctx ends.
func (b *Broker) follow(ctx context.Context) {
	follower := store.Follower{
		Store: b.config.Store, Topic: store.TopicDocs, Pause: followPause, Poll: followPoll,
		Failed: func(ctx context.Context, err error) {
			b.config.Logger.WarnContext(ctx, "revoked tokens cannot be followed; introspection goes on with what is known", "for", b.config.Stale, "error", err)
		},
	}
	swept := b.config.Now()
	follower.Run(ctx, func(ctx context.Context) error {
		err := b.look(ctx)
		if now := b.config.Now(); err == nil && now.Sub(swept) >= sweepEvery {
			swept, err = now, b.sweep(ctx, now)
		}
		return err
	})
}

func (b *Broker) look(ctx context.Context) error {
	began := b.config.Now()
	b.revoked.mu.RLock()
	rev := b.revoked.rev
	b.revoked.mu.RUnlock()
	_, err := store.Newer(ctx, b.config.Store, kindRevoked, rev, func(doc *store.Doc) error {
		var r revocation
		if json.Unmarshal(doc.Body, &r) != nil {
			r.Expires = doc.Due // what is damaged is revoked all the same
		}
		b.revoked.mu.Lock()
		defer b.revoked.mu.Unlock()
		b.revoked.known[doc.Name], b.revoked.rev = r.Expires, doc.Rev
		return nil
	})
	if err != nil {
		return err
	}
	b.revoked.mu.Lock()
	defer b.revoked.mu.Unlock()
	b.revoked.read = began
	return nil
}

// sweep forgets tokens, and what was used once, that have expired.
func (b *Broker) sweep(ctx context.Context, now time.Time) error {
	b.revoked.mu.Lock()
	for name, expires := range b.revoked.known {
		if now.After(expires.Add(2 * b.config.Skew)) {
			delete(b.revoked.known, name)
		}
	}
	b.revoked.mu.Unlock()
	return errors.Join(store.Sweep(ctx, b.config.Store, kindRevoked, b.config.Now, nil), store.Sweep(ctx, b.config.Store, kindUsed, b.config.Now, nil))
}
