package broker

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/dpop"
	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/sealed"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

var (
	// ErrRequest: the request lacks something, or the subject token is not accepted.
	ErrRequest = errors.New("invalid request")
	// ErrClient: the client is not authenticated.
	ErrClient = errors.New("invalid client")
	// ErrGrant: no rule grants what was proven a token.
	ErrGrant = errors.New("not granted")
	// ErrTarget: no rule grants a token for this audience.
	ErrTarget = errors.New("invalid target")
	// ErrScope: no rule grants these scopes.
	ErrScope = errors.New("invalid scope")
	// ErrBinding: the rule demands a proof of possession, or a certificate.
	ErrBinding = errors.New("a sender-constrained token must be asked for")
	// ErrAway: it cannot be answered now.
	ErrAway = errors.New("temporarily unavailable")
	// ErrProof: a proof of possession is not valid.
	ErrProof = dpop.ErrProof
	// ErrNonce: the proof needs another nonce.
	ErrNonce = dpop.ErrNonce
	// ErrProofs: too many proofs are shown at once.
	ErrProofs = dpop.ErrFull
)

// Journal runs transactions that enter what they do into the audit log.
type Journal interface {
	Transact(ctx context.Context, actor audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error
}

// Signer signs tokens.
type Signer interface {
	Sign(ctx context.Context, request token.Request) (token.Token, error)
}

// Verifier verifies tokens that it signed.
type Verifier interface {
	Verify(name key.Name, compact string, expect token.Expect) (token.Claims, error)
}

// Config is what a Broker needs. Defaults are named; all else is required.
type Config struct {
	Store    store.Store
	Journal  Journal
	Signer   Signer
	Verifier Verifier
	Logger   *slog.Logger
	Now      func() time.Time
	// Keeper seals the secret of nonces, which all nodes share.
	Keeper keeper.Keeper
	// Alone: no other node can be on the store.
	Alone bool
	// Grants returns the rules of a signing key as its config block states them, nil if
	// it has none.
	Grants func(ctx context.Context, name key.Name) (any, error)
	// Client authenticates the client of an API key or of a token of Keyturn. It fails
	// with ErrClient, or with ErrAway.
	Client func(ctx context.Context, secret secret.Value, address string) (grant.Proven, error)
	// HTTP fetches other issuers' keys. Default: a client with bounds.
	HTTP func(roots *x509.CertPool) *http.Client
	// Issued hears of every token that was given or refused, by what the client proved
	// and the result, Revoked of every one that was revoked here; they must not block.
	// May be nil.
	Issued  func(source grant.Source, result string)
	Revoked func()
	// Refused hears of every token that was refused because of the one who asked for
	// it; it must not block. May be nil.
	Refused func(Refusal)
	// Skew is how far clocks may differ. Default: 30 s, of jobs' issuers.
	Skew time.Duration
	// KeysFresh is for how long keys of other issuers are used without asking, KeysStale
	// for how long while the issuer does not answer. Defaults: 5 minutes and 1 hour.
	KeysFresh, KeysStale time.Duration
	// Stale is for how long revocations are known well enough without reading the store.
	// Default: 5 minutes.
	Stale time.Duration
	// AuditSpan is what one entry of a client covers, and how often refusals are
	// entered. Default: 1 minute.
	AuditSpan time.Duration
}

// Broker gives tokens. Its methods may be called concurrently.
type Broker struct {
	config    Config
	nonces    nonces
	proofs    *dpop.Seen
	upstreams upstreams
	rules     rules
	entries   entries
	revoked   revocations

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// maxProofs bounds the proofs of possession that are remembered: 700 a second.
const maxProofs = 100_000

// New returns a broker that is not started.
func New(config Config) *Broker {
	for _, d := range []struct {
		v         *time.Duration
		otherwise time.Duration
	}{
		{&config.Skew, 30 * time.Second},
		{&config.KeysFresh, 5 * time.Minute},
		{&config.KeysStale, time.Hour},
		{&config.Stale, 5 * time.Minute},
		{&config.AuditSpan, time.Minute},
	} {
		if *d.v == 0 {
			*d.v = d.otherwise
		}
	}
	if config.HTTP == nil {
		config.HTTP = boundedClient
	}
	if config.Issued == nil {
		config.Issued = func(grant.Source, string) {}
	}
	if config.Refused == nil {
		config.Refused = func(Refusal) {}
	}
	if config.Revoked == nil {
		config.Revoked = func() {}
	}
	b := &Broker{config: config, proofs: dpop.NewSeen(maxProofs)}
	b.upstreams.known = map[upstreamOf]*upstream{}
	b.rules.known = map[key.Name]ruleSet{}
	b.entries.init()
	b.revoked.init()
	return b
}

// Start begins to enter decisions and to follow revocations, until Stop. It fails
// when the store or the keeper does not answer. Nothing is asked before.
func (b *Broker) Start(ctx context.Context) error {
	box := sealed.Box{Store: b.config.Store, Keeper: b.config.Keeper, Random: rand.Reader}
	shared, err := box.Draw(ctx, Nonces())
	if err != nil {
		return err
	}
	b.nonces = newNonces(shared, b.config.Alone, b.config.Skew)
	ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	b.running.Go(func() { b.record(ctx) })
	b.running.Go(func() { b.follow(ctx) })
	return nil
}

// Stop ends what Start began, and enters what is left.
func (b *Broker) Stop(ctx context.Context) {
	if b.cancel == nil {
		return
	}
	b.cancel()
	b.running.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := b.enter(ctx, true); err != nil {
		b.config.Logger.WarnContext(ctx, "the last sums of tokens could not be entered into the audit log", "error", err)
	}
}

const (
	// rulesFresh is for how long rules are used without asking for them; while the
	// store does not answer they are used on.
	rulesFresh = 2 * time.Second
	// maxRuleSets bounds what is remembered.
	maxRuleSets = 10_000
)

// rules remembers the rules of keys.
type rules struct {
	mu    sync.Mutex
	known map[key.Name]ruleSet
}

type ruleSet struct {
	rules []grant.Rule
	read  time.Time
}

// rulesOf returns the rules of a key.
func (b *Broker) rulesOf(ctx context.Context, name key.Name) ([]grant.Rule, error) {
	now := b.config.Now()
	b.rules.mu.Lock()
	known, ok := b.rules.known[name]
	b.rules.mu.Unlock()
	if age := now.Sub(known.read); ok && age >= 0 && age < rulesFresh {
		return known.rules, nil
	}
	list, err := b.config.Grants(ctx, name)
	if err != nil {
		if ok && now.Sub(known.read) < b.config.Stale {
			return known.rules, nil
		}
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	fresh := ruleSet{read: now}
	if list != nil {
		parsed, problems := grant.Parse(list)
		if len(problems) > 0 {
			return nil, fmt.Errorf("%w: the rules of %s: %w", ErrAway, name, problems[0])
		}
		fresh.rules = parsed
	}
	b.rules.mu.Lock()
	defer b.rules.mu.Unlock()
	if len(b.rules.known) >= maxRuleSets {
		clear(b.rules.known)
	}
	b.rules.known[name] = fresh
	return fresh.rules, nil
}
