package identity

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/authz"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/secret"
)

var (
	// ErrUnauthenticated: the token is unknown, revoked, expired or malformed.
	ErrUnauthenticated = errors.New("token is not valid")
	// ErrNotFound: there is no such token.
	ErrNotFound = errors.New("no such token")
	// ErrInvalid: the request is malformed.
	ErrInvalid = errors.New("invalid token request")
)

const kindToken = "token"

// Journal runs transactions that enter what they do into the audit log.
type Journal interface {
	Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error
}

// Config is what a Registry needs; all fields are required.
type Config struct {
	Store   store.Store
	Journal Journal
	Now     func() time.Time
	Random  io.Reader
}

// Registry keeps tokens. Its methods may be called concurrently.
type Registry struct {
	config Config

	mu    sync.Mutex
	known map[string]cachedToken
	used  map[string]time.Time
}

// New returns a registry.
func New(config Config) *Registry {
	return &Registry{config: config, known: map[string]cachedToken{}, used: map[string]time.Time{}}
}

// Token is a token without its secret.
type Token struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Keys    []string   `json:"keys,omitempty"`
	Party   PartyShape `json:"party,omitzero"`
	Created time.Time  `json:"created"`
	// Expires is zero for a token that does not.
	Expires time.Time `json:"expires,omitzero"`
	Hash    []byte    `json:"hash"`
	// LastUsed is when it was used last since the server started; not stored.
	LastUsed time.Time `json:"-"`
}

// PartyShape is what a join token fixes of the party that redeems it.
type PartyShape struct {
	ID     string            `json:"id,omitempty"`
	Kind   string            `json:"kind,omitempty"`
	Region string            `json:"region,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Request describes a token to issue.
type Request struct {
	Name string
	Role authz.Role
	Keys []string
	// Lifetime 0 takes the default of the role: an hour for join, else no expiry.
	Lifetime time.Duration
	// Party is what a join token fixes, or the party a token of role agent belongs to.
	Party PartyShape
}

// Limits on requests.
const (
	maxName      = 128
	maxPatterns  = 100
	joinLifetime = time.Hour
	maxLifetime  = 10 * 365 * 24 * time.Hour
)

func (r *Request) check() error {
	if r.Name == "" || len(r.Name) > maxName {
		return fmt.Errorf("%w: name: 1 to %d characters are needed", ErrInvalid, maxName)
	}
	if r.Role == 0 {
		return fmt.Errorf("%w: role: it is missing", ErrInvalid)
	}
	if len(r.Keys) == 0 || len(r.Keys) > maxPatterns {
		return fmt.Errorf("%w: keys: 1 to %d patterns are needed, for example prod/**", ErrInvalid, maxPatterns)
	}
	for i, pattern := range r.Keys {
		if err := authz.CheckPattern(pattern); err != nil {
			return fmt.Errorf("%w: keys[%d]: %w", ErrInvalid, i, err)
		}
	}
	if r.Lifetime < 0 || r.Lifetime > maxLifetime {
		return fmt.Errorf("%w: lifetime: at most %v", ErrInvalid, maxLifetime)
	}
	if r.Role == authz.Join && r.Lifetime == 0 {
		r.Lifetime = joinLifetime
	}
	return nil
}

// Issue creates a token on behalf of actor. The returned secret is the only copy.
func (r *Registry) Issue(ctx context.Context, actor audit.Actor, request Request) (Token, secret.Value, error) {
	if err := request.check(); err != nil {
		return Token{}, secret.Value{}, err
	}
	var token Token
	var text secret.Value
	err := r.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		var err error
		token, text, err = r.issue(ctx, tx, enter, request)
		return err
	})
	return token, text, err
}

func (r *Registry) issue(ctx context.Context, tx store.Tx, enter func(audit.Entry), request Request) (Token, secret.Value, error) {
	id, text, hash, err := mintToken(r.config.Random)
	if err != nil {
		return Token{}, secret.Value{}, err
	}
	token := Token{
		ID: id, Name: request.Name, Role: request.Role.String(), Keys: slices.Clone(request.Keys), Party: request.Party,
		Created: r.config.Now().UTC(), Hash: hash[:],
	}
	if request.Lifetime > 0 {
		token.Expires = token.Created.Add(request.Lifetime)
	}
	body, err := json.Marshal(token)
	if err != nil {
		return Token{}, secret.Value{}, fmt.Errorf("encode token: %w", err)
	}
	if _, err := tx.Docs.Put(ctx, store.Doc{Kind: kindToken, Name: id, Body: body}); err != nil {
		return Token{}, secret.Value{}, err
	}
	enter(audit.Entry{Action: audit.ActionToken, Target: id, Detail: map[string]string{"name": token.Name, "role": token.Role}})
	return token, text, nil
}

func (r *Registry) find(ctx context.Context, tx store.Tx, id string) (Token, store.Doc, error) {
	var token Token
	doc, err := tx.Docs.Get(ctx, kindToken, id)
	if errors.Is(err, store.ErrNotFound) {
		return token, doc, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return token, doc, err
	}
	if err := json.Unmarshal(doc.Body, &token); err != nil {
		return token, doc, fmt.Errorf("stored token %s is damaged: %w", id, err)
	}
	return token, doc, nil
}

// Revoke removes a token; it is refused from the moment Revoke returns.
func (r *Registry) Revoke(ctx context.Context, actor audit.Actor, id string) error {
	err := r.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		token, doc, err := r.find(ctx, tx, id)
		if err != nil {
			return err
		}
		enter(audit.Entry{Action: "token.revoke", Target: id, Detail: map[string]string{"name": token.Name, "role": token.Role}})
		return tx.Docs.Delete(ctx, kindToken, id, doc.Rev)
	})
	r.mu.Lock()
	delete(r.known, id)
	r.mu.Unlock()
	return err
}

// maxListed bounds List.
const maxListed = 10_000

// List returns all tokens by ID, without secrets.
func (r *Registry) List(ctx context.Context) ([]Token, error) {
	var list []Token
	err := r.config.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindToken, "", "", maxListed)
		if err != nil {
			return err
		}
		for _, doc := range docs {
			var token Token
			if err := json.Unmarshal(doc.Body, &token); err != nil {
				return fmt.Errorf("stored token %s is damaged: %w", doc.Name, err)
			}
			token.Hash = nil
			list = append(list, token)
		}
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range list {
		list[i].LastUsed = r.used[list[i].ID]
	}
	return list, err
}

// cacheFor is how long an authenticated token is believed without asking the
// store: the longest time that a revocation by another server takes to arrive.
const (
	cacheFor  = time.Second
	maxCached = 65_536
)

type cachedToken struct {
	token Token
	hash  [32]byte
	read  time.Time
}

// Authenticate returns the principal a token stands for. It fails with
// ErrUnauthenticated, or when the store does.
func (r *Registry) Authenticate(ctx context.Context, text secret.Value) (authz.Principal, error) {
	id, hash, malformed := splitToken(text)
	if malformed != nil {
		return authz.Principal{}, ErrUnauthenticated
	}
	now := r.config.Now()
	r.mu.Lock()
	cached, ok := r.known[id]
	r.mu.Unlock()
	if !ok || now.Sub(cached.read) >= cacheFor || now.Before(cached.read) {
		token, err := r.read(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return authz.Principal{}, ErrUnauthenticated
		}
		if err != nil {
			return authz.Principal{}, err
		}
		cached = cachedToken{token: token, read: now}
		copy(cached.hash[:], token.Hash)
	}
	if subtle.ConstantTimeCompare(hash[:], cached.hash[:]) != 1 {
		return authz.Principal{}, ErrUnauthenticated
	}
	token := &cached.token
	if !token.Expires.IsZero() && !now.Before(token.Expires) {
		return authz.Principal{}, fmt.Errorf("%w: it expired on %s", ErrUnauthenticated, token.Expires.Format(time.RFC3339))
	}
	role, err := authz.ParseRole(token.Role)
	if err != nil {
		return authz.Principal{}, err
	}
	r.remember(id, cached, now)
	return authz.Principal{ID: id, Name: token.Name, Role: role, Keys: token.Keys, Party: token.Party.ID}, nil
}

func (r *Registry) read(ctx context.Context, id string) (Token, error) {
	var token Token
	err := r.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		token, _, err = r.find(ctx, tx, id)
		return err
	})
	return token, err
}

func (r *Registry) remember(id string, cached cachedToken, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxCached {
		clear(r.known)
		clear(r.used)
	}
	r.known[id] = cached
	r.used[id] = now
}

// Redeem exchanges a join token for a token of role agent that belongs to the
// party. What the join token fixes of the party wins over what is asked for.
func (r *Registry) Redeem(ctx context.Context, text secret.Value, wanted PartyShape) (PartyShape, secret.Value, error) {
	id, hash, err := splitToken(text)
	if err != nil {
		return PartyShape{}, secret.Value{}, ErrUnauthenticated
	}
	var party PartyShape
	var issued secret.Value
	actor := audit.Actor{ID: "join " + id, Kind: "join-token"}
	err = r.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		join, doc, err := r.find(ctx, tx, id)
		if errors.Is(err, ErrNotFound) {
			return ErrUnauthenticated
		}
		if err != nil {
			return err
		}
		expired := !join.Expires.IsZero() && !r.config.Now().Before(join.Expires)
		if subtle.ConstantTimeCompare(hash[:], join.Hash) != 1 || join.Role != authz.Join.String() || expired {
			return ErrUnauthenticated
		}
		party = join.Party.over(wanted)
		if party.ID == "" {
			return fmt.Errorf("%w: party: it needs an ID", ErrInvalid)
		}
		if err := tx.Docs.Delete(ctx, kindToken, id, doc.Rev); err != nil {
			return err
		}
		enter(audit.Entry{Action: "token.redeem", Target: id, Detail: map[string]string{"party": party.ID}})
		_, issued, err = r.issue(ctx, tx, enter, Request{Name: party.ID, Role: authz.Agent, Keys: join.Keys, Party: party})
		return err
	})
	return party, issued, err
}

// over returns p with its gaps filled from wanted.
func (p PartyShape) over(wanted PartyShape) PartyShape {
	if p.ID == "" {
		p.ID = wanted.ID
	}
	if p.Kind == "" {
		p.Kind = wanted.Kind
	}
	if p.Region == "" {
		p.Region = wanted.Region
	}
	if len(p.Labels) == 0 {
		p.Labels = wanted.Labels
	}
	return p
}

// Bootstrap issues a first admin token when there is no token at all, and
// returns false otherwise.
func (r *Registry) Bootstrap(ctx context.Context, actor audit.Actor) (secret.Value, bool, error) {
	var text secret.Value
	first := false
	err := r.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		first = false
		docs, err := tx.Index.List(ctx, kindToken, "", "", 1)
		if err != nil || len(docs) > 0 {
			return err
		}
		first = true
		_, text, err = r.issue(ctx, tx, enter, Request{Name: "root", Role: authz.Admin, Keys: []string{"**"}})
		return err
	})
	return text, first, err
}
