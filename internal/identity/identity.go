package identity

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"

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

// The kinds of documents: tokens by ID, and the ID of the token that was last
// redeemed for a party by the party's ID.
const (
	kindToken   = "token"
	kindOfParty = "token-of-party"
)

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
	// revocations counts them, so that what was read before one is not remembered
	// after it.
	revocations uint64
	// readings are those under way, by ID.
	readings singleflight.Group
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

// Caller is who a token stands for.
type Caller struct {
	authz.Principal
	// Fixed is what the party that it belongs to cannot choose itself.
	Fixed PartyShape
	// Expires is when its token does; zero if it does not.
	Expires time.Time
}

// Expired is the error of a token after its end.
func (c Caller) Expired() error { return expiredOn(c.Expires) }

// PartyShape is what a join token fixes of the party that redeems it. Empty
// fields are left to the party.
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
	if !utf8.ValidString(r.Name) || strings.ContainsFunc(r.Name, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return fmt.Errorf("%w: name: %q has characters that cannot be shown; use letters, digits and punctuation", ErrInvalid, r.Name)
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
	token, err := r.put(ctx, tx, enter, request, id, hash)
	return token, text, err
}

// expiredKept is how long an expired token is kept, so that its holder is told
// that it has expired and not that it is unknown.
const expiredKept = 24 * time.Hour

func (r *Registry) put(ctx context.Context, tx store.Tx, enter func(audit.Entry), request Request, id string, hash [32]byte) (Token, error) {
	token := Token{
		ID: id, Name: request.Name, Role: request.Role.String(), Keys: slices.Clone(request.Keys), Party: request.Party,
		Created: r.config.Now().UTC(), Hash: hash[:],
	}
	doc := store.Doc{Kind: kindToken, Name: id}
	if request.Lifetime > 0 {
		token.Expires = token.Created.Add(request.Lifetime)
		doc.Due = token.Expires.Add(expiredKept)
	}
	var err error
	if doc.Body, err = json.Marshal(token); err != nil {
		return Token{}, fmt.Errorf("encode token: %w", err)
	}
	if _, err := tx.Docs.Put(ctx, doc); err != nil {
		return Token{}, err
	}
	enter(audit.Entry{Action: audit.ActionToken, Target: id, Detail: map[string]string{"name": token.Name, "role": token.Role}})
	return token, nil
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

// Find returns a token without its secret; it fails with ErrNotFound.
func (r *Registry) Find(ctx context.Context, id string) (Token, error) {
	token, err := r.read(ctx, id)
	token.Hash = nil
	return token, err
}

// Check fails with ErrUnauthenticated when the token was revoked or has expired,
// for connections that outlive the call that authenticated them.
func (r *Registry) Check(ctx context.Context, id string) error {
	now := r.config.Now()
	cached, recalled := r.recall(id, now)
	if !recalled {
		var err error
		if cached, err = r.fetch(ctx, id, now); err != nil {
			return err
		}
		if cached.token.ID != id {
			return ErrUnauthenticated
		}
		r.remember(id, cached, time.Time{})
	}
	return cached.token.expired(now)
}

// MaxListed bounds List.
const MaxListed = 10_000

// List returns all tokens by ID, without secrets.
func (r *Registry) List(ctx context.Context) ([]Token, error) {
	var list []Token
	err := r.config.Store.View(ctx, func(tx store.Tx) error {
		list = nil
		docs, err := tx.Index.List(ctx, kindToken, "", "", MaxListed)
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
	// fetchTime bounds a reading that several callers may wait for.
	fetchTime = 10 * time.Second
)

type cachedToken struct {
	token Token
	hash  [32]byte
	read  time.Time
	// revocations is how many there had been before it was read.
	revocations uint64
}

// recall returns a token from the memory.
func (r *Registry) recall(id string, now time.Time) (cachedToken, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cached, ok := r.known[id]
	return cached, ok && now.Sub(cached.read) < cacheFor && !now.Before(cached.read)
}

// fetch returns a token from the store, a decoy when there is none. Those who want
// the same one at the same time share a reading, which began after the last time that
// one was revoked: ten thousand requests through a gateway read its token once.
func (r *Registry) fetch(ctx context.Context, id string, now time.Time) (cachedToken, error) {
	r.mu.Lock()
	cached := cachedToken{read: now, revocations: r.revocations}
	reading := r.readings.DoChan(id, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		defer cancel()
		var err error
		cached.token, err = r.readOrDecoy(ctx, id)
		copy(cached.hash[:], cached.token.Hash)
		return cached, err
	})
	r.mu.Unlock()
	select {
	case result := <-reading:
		shared, _ := result.Val.(cachedToken)
		return shared, result.Err
	case <-ctx.Done():
		return cachedToken{}, ctx.Err()
	}
}

// decoy is decoded and compared in place of a token that does not exist, so that
// the time until a refusal does not tell whether there is a token with that ID. It
// matches nothing: no text has a hash of zeros, and it has no role.
const decoy = `{"id":"0000000000000000","name":"nobody","role":"","keys":["nothing/**"],` +
	`"created":"2026-01-01T00:00:00Z","hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`

func (r *Registry) readOrDecoy(ctx context.Context, id string) (Token, error) {
	var token Token
	err := r.config.Store.View(ctx, func(tx store.Tx) error {
		token = Token{}
		doc, err := tx.Docs.Get(ctx, kindToken, id)
		if errors.Is(err, store.ErrNotFound) {
			doc.Body, err = []byte(decoy), nil
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(doc.Body, &token); err != nil {
			return fmt.Errorf("stored token %s is damaged: %w", id, err)
		}
		return nil
	})
	return token, err
}

func (t *Token) expired(now time.Time) error {
	if !t.Expires.IsZero() && !now.Before(t.Expires) {
		return expiredOn(t.Expires)
	}
	return nil
}

func expiredOn(at time.Time) error {
	return fmt.Errorf("%w: it expired on %s", ErrUnauthenticated, at.Format(time.RFC3339))
}

// Authenticate returns who a token stands for. It fails with ErrUnauthenticated,
// or when the store does. A text that is not of a token's form, checksum
// included, costs no access to the store. A wrong secret costs the same as an ID
// that does not exist, whether the token was used lately or not.
func (r *Registry) Authenticate(ctx context.Context, text secret.Value) (Caller, error) {
	id, hash, malformed := splitToken(text)
	if malformed != nil {
		return Caller{}, ErrUnauthenticated
	}
	now := r.config.Now()
	cached, recalled := r.recall(id, now)
	if !recalled || subtle.ConstantTimeCompare(hash[:], cached.hash[:]) != 1 {
		var err error
		if cached, err = r.fetch(ctx, id, now); err != nil {
			return Caller{}, err
		}
	}
	if subtle.ConstantTimeCompare(hash[:], cached.hash[:]) != 1 {
		return Caller{}, ErrUnauthenticated
	}
	token := &cached.token
	if err := token.expired(now); err != nil {
		return Caller{}, err
	}
	role, err := authz.ParseRole(token.Role)
	if err != nil {
		return Caller{}, err
	}
	r.remember(id, cached, now)
	principal := authz.Principal{ID: id, Name: token.Name, Role: role, Keys: token.Keys, Party: token.Party.ID}
	return Caller{Principal: principal, Fixed: token.Party, Expires: token.Expires}, nil
}

// Recent reports whether a token was authenticated lately, by memory alone. It
// tells good callers from an address that shows bad tokens as well.
func (r *Registry) Recent(text secret.Value) bool {
	id, hash, malformed := splitToken(text)
	if malformed != nil {
		return false
	}
	r.mu.Lock()
	cached, ok := r.known[id]
	r.mu.Unlock()
	return ok && subtle.ConstantTimeCompare(hash[:], cached.hash[:]) == 1
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

// remember keeps a token for as long as it is believed; used is zero for one that was
// looked at only.
func (r *Registry) remember(id string, cached cachedToken, used time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cached.revocations != r.revocations {
		return // it may be this one that was revoked since it was read
	}
	if len(r.known) >= maxCached {
		clear(r.known)
		clear(r.used)
	}
	r.known[id] = cached
	if !used.IsZero() {
		r.used[id] = used
	}
}

// Redeem exchanges a join token for a token of role agent that belongs to the
// party. What the join token fixes of the party wins over what is asked for. An
// ID that the join token leaves open must be new: it fails with ErrInvalid when a
// token was redeemed for it, or when taken says that there is such a party.
func (r *Registry) Redeem(ctx context.Context, text secret.Value, wanted PartyShape, taken func(ctx context.Context, id string) (bool, error)) (PartyShape, secret.Value, error) {
	id, hash, err := splitToken(text)
	if err != nil {
		return PartyShape{}, secret.Value{}, ErrUnauthenticated
	}
	join, err := r.readOrDecoy(ctx, id)
	if err == nil {
		err = r.checkJoin(&join, hash)
	}
	if err != nil {
		return PartyShape{}, secret.Value{}, err
	}
	if wanted.ID != "" && join.Party.ID == "" {
		is, err := taken(ctx, wanted.ID)
		if err != nil {
			return PartyShape{}, secret.Value{}, err
		}
		if is {
			return PartyShape{}, secret.Value{}, errTaken(wanted.ID)
		}
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
		if err := r.checkJoin(&join, hash); err != nil {
			return err
		}
		if party = join.Party.Over(wanted); party.ID == "" {
			return fmt.Errorf("%w: party.id: it is missing, and the join token names none", ErrInvalid)
		}
		if err := tx.Docs.Delete(ctx, kindToken, id, doc.Rev); err != nil {
			return err
		}
		enter(audit.Entry{Action: "token.redeem", Target: id, Detail: map[string]string{"party": party.ID}})
		fixed := join.Party
		fixed.ID = party.ID
		var token Token
		token, issued, err = r.issue(ctx, tx, enter, Request{Name: party.ID, Role: authz.Agent, Keys: join.Keys, Party: fixed})
		if err != nil {
			return err
		}
		return r.claim(ctx, tx, &join, token.ID, party.ID)
	})
	return party, issued, err
}

func (r *Registry) checkJoin(join *Token, hash [32]byte) error {
	if subtle.ConstantTimeCompare(hash[:], join.Hash) != 1 || join.Role != authz.Join.String() {
		return ErrUnauthenticated
	}
	return join.expired(r.config.Now())
}

func errTaken(party string) error {
	return fmt.Errorf("%w: party.id: there is a party %q already; choose another ID, or ask for a join token that names this party", ErrInvalid, party)
}

// claim notes for which party a token was redeemed.
func (r *Registry) claim(ctx context.Context, tx store.Tx, join *Token, token, party string) error {
	doc, err := tx.Docs.Get(ctx, kindOfParty, party)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err == nil && join.Party.ID == "" {
		_, err := tx.Docs.Get(ctx, kindToken, string(doc.Body))
		if err == nil {
			return errTaken(party)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	_, err = tx.Docs.Put(ctx, store.Doc{Kind: kindOfParty, Name: party, Rev: doc.Rev, Body: []byte(token)})
	return err
}

// Over returns p with its gaps filled from wanted.
func (p PartyShape) Over(wanted PartyShape) PartyShape {
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
// returns false otherwise. keep makes the token's text durable; it is called
// before the token is valid, so that no crash loses the only token there is.
func (r *Registry) Bootstrap(ctx context.Context, actor audit.Actor, keep func(secret.Value) error) (bool, error) {
	none := func(tx store.Tx) (bool, error) {
		docs, err := tx.Index.List(ctx, kindToken, "", "", 1)
		return len(docs) == 0, err
	}
	first := false
	err := r.config.Store.View(ctx, func(tx store.Tx) error {
		var err error
		first, err = none(tx)
		return err
	})
	if err != nil || !first {
		return false, err
	}
	id, text, hash, err := mintToken(r.config.Random)
	if err != nil {
		return false, err
	}
	if err := keep(text); err != nil {
		return false, err
	}
	err = r.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		var err error
		if first, err = none(tx); err != nil || !first {
			return err
		}
		_, err = r.put(ctx, tx, enter, Request{Name: "root", Role: authz.Admin, Keys: []string{"**"}}, id, hash)
		return err
	})
	return first && err == nil, err
}
