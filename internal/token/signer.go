package token

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// MaxKeys is how many keys a signer signs with.
const MaxKeys = 1000

// Holding is what the signer holds of a key.
type Holding struct {
	Key     key.Name
	Version key.Version
	Epoch   uint64
}

// Assignment is what the signer is told to sign with.
type Assignment struct {
	Key      key.Name
	Version  key.Version
	Epoch    uint64
	Material provider.Material
}

// Outcome is what became of an assignment.
type Outcome struct {
	Key    key.Name
	Epoch  uint64
	OK     bool
	Using  key.Version
	Detail string
}

// Session is the signer's connection to the hub. Next is called by one goroutine.
type Session interface {
	// Next waits for assignments and returns all there are; none after wait.
	Next(ctx context.Context, wait time.Duration) ([]Assignment, error)
	// Acknowledge returns when the outcomes are durable.
	Acknowledge(ctx context.Context, outcomes []Outcome) error
	Close()
}

// SignerConfig is what a Signer needs. Store, Board, Connect, Logger, Now and Node
// are required.
type SignerConfig struct {
	Store store.Store
	Board *Board
	// Connect opens the session of this node's signer, which presents those keys. Keys
	// that do not exist any more are left out.
	Connect func(ctx context.Context, holdings []Holding) (Session, error)
	// Report hears every few seconds how each version in use fares: failed says why a
	// token of it, made for this, is not accepted by the published set. May be nil.
	Report func(ctx context.Context, name key.Name, v key.Version, failed error) error
	Logger *slog.Logger
	Now    func() time.Time
	Node   string
	// Outage is for how long tokens of full life are signed while the store does not
	// answer. Default: 5 minutes.
	Outage time.Duration
	// Skew is how far clocks of verifiers may be behind or ahead. Default: 2 s.
	Skew time.Duration
	// Retry is how long it waits after a failure. Default: 500 ms.
	Retry time.Duration
}

// Signer signs tokens. Its methods may be called concurrently.
type Signer struct {
	config SignerConfig
	// process names this run of the server: no other writes its documents.
	process string

	mu sync.RWMutex
	// active is what each key signs with, settling what it signed with before and
	// whose last expiry is not written yet.
	active   map[key.Name]*active
	settling map[*active]struct{}
	closed   bool
	serial   int
	wake     chan struct{}

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// NewSigner returns a signer that signs nothing before Start.
func NewSigner(config SignerConfig) *Signer {
	orDefault(&config.Outage, 5*time.Minute)
	orDefault(&config.Skew, 2*time.Second)
	orDefault(&config.Retry, 500*time.Millisecond)
	return &Signer{
		config: config, process: rand.Text(), active: map[key.Name]*active{}, settling: map[*active]struct{}{}, wake: make(chan struct{}, 1),
	}
}

// Start connects the signer and returns at once.
func (s *Signer) Start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.running.Go(func() { s.present(ctx) })
	s.running.Go(func() { s.keepHorizons(ctx) })
}

// Stop ends signing and writes when the last token expires, so that other nodes need
// not wait longer than that.
func (s *Signer) Stop(ctx context.Context) {
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.running.Wait()
	s.mu.Lock()
	s.closed = true
	for _, a := range s.active {
		s.settling[a] = struct{}{}
	}
	s.active = map[key.Name]*active{}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.settle(ctx); err != nil {
		s.config.Logger.InfoContext(ctx, "when the last tokens expire could not be written; old signing keys are kept a little longer", "error", err)
	}
}

// present is the signer's life as a party: it connects for the keys there are, and
// again when these change or the session ends.
func (s *Signer) present(ctx context.Context) {
	for ctx.Err() == nil {
		names, changed := s.config.Board.signed()
		if len(names) > MaxKeys {
			s.config.Logger.ErrorContext(ctx, "there are more signing keys than a server signs with; the last ones by name are left out", "keys", len(names), "most", MaxKeys)
			names = names[:MaxKeys]
		}
		s.forget(names)
		if len(names) == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		err := s.session(ctx, names, changed)
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.config.Logger.WarnContext(ctx, "the token signer is not connected; it signs with what it was told last", "error", err)
		pause(ctx, s.config.Retry)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// session takes assignments until the keys change; then it returns nil.
func (s *Signer) session(ctx context.Context, names []key.Name, changed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	session, err := s.config.Connect(ctx, s.holdings(names))
	if err != nil {
		return err
	}
	defer session.Close()
	moved := make(chan struct{})
	s.running.Go(func() {
		defer cancel()
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			var now []key.Name
			if now, changed = s.config.Board.signed(); !slices.Equal(now, names) {
				close(moved)
				return
			}
		}
	})
	for {
		err := s.takeNext(ctx, session)
		select {
		case <-moved:
			return nil
		default:
		}
		if err != nil {
			return err
		}
	}
}

// takeNext waits for assignments, takes them and acknowledges.
func (s *Signer) takeNext(ctx context.Context, session Session) error {
	assignments, err := session.Next(ctx, time.Minute)
	if err != nil || len(assignments) == 0 {
		return err
	}
	outcomes := make([]Outcome, len(assignments))
	var list []*active
	for i := range assignments {
		var next *active
		if next, outcomes[i] = s.prepare(&assignments[i]); next != nil {
			list = append(list, next)
		}
	}
	// The first token must not be signed before it is written that there may be one.
	if len(list) > 0 {
		if err := s.extend(ctx, list); err != nil {
			return fmt.Errorf("write until when tokens may live: %w", err)
		}
	}
	s.use(list)
	return session.Acknowledge(ctx, outcomes)
}

// prepare returns what to sign with, if that changes, and what to answer then.
func (s *Signer) prepare(assignment *Assignment) (*active, Outcome) {
	outcome := Outcome{Key: assignment.Key, Epoch: assignment.Epoch, OK: true, Using: assignment.Version}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.active[assignment.Key]
	if old != nil && old.version == assignment.Version {
		old.setEpoch(assignment.Epoch)
		return nil, outcome
	}
	next, err := newActive(assignment)
	if err != nil {
		outcome.OK, outcome.Detail, outcome.Using = false, err.Error(), 0
		if old != nil {
			outcome.Using = old.version
		}
		return nil, outcome
	}
	s.serial++
	next.document = fmt.Sprintf("%s%s-%d", usePrefix(next.key, next.version), s.process, s.serial)
	return next, outcome
}

// use begins to sign with versions.
func (s *Signer) use(list []*active) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, next := range list {
		if old := s.active[next.key]; old != nil {
			s.settling[old] = struct{}{}
		}
		s.active[next.key] = next
	}
	s.nudge()
}

// nudge asks for a look at the horizons.
func (s *Signer) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forget ends signing with keys that are none any more.
func (s *Signer) forget(names []key.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, a := range s.active {
		if !slices.Contains(names, name) {
			s.settling[a] = struct{}{}
			delete(s.active, name)
		}
	}
}

func (s *Signer) holdings(names []key.Name) []Holding {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Holding, 0, len(names))
	for _, name := range names {
		h := Holding{Key: name}
		if a := s.active[name]; a != nil {
			h.Version, h.Epoch = a.version, a.getEpoch()
		}
		list = append(list, h)
	}
	return list
}

// signed returns the keys that the server signs with, by name, and a channel that is
// closed when any set changes.
func (b *Board) signed() ([]key.Name, <-chan struct{}) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var names []key.Name
	for _, name := range slices.Sorted(maps.Keys(b.sets)) {
		if p := b.sets[name]; p.Issuer != "" && !p.External {
			names = append(names, name)
		}
	}
	return names, b.changed
}

// profile returns what tokens of a key are made of.
func (b *Board) profile(name key.Name) (issuer string, life time.Duration, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	p := b.sets[name]
	if p == nil || p.Issuer == "" {
		return "", 0, fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	if p.External {
		return "", 0, fmt.Errorf("%w: with %s applications sign themselves", ErrUnknown, name)
	}
	return p.Issuer, p.TokenLife, nil
}

// Type is the type of a token, as in its header. The zero value is invalid.
type Type uint8

// The types.
const (
	// JWT is RFC 7519.
	JWT Type = iota + 1
	// AccessToken is RFC 9068.
	AccessToken
)

// String returns the header's text.
func (t Type) String() string {
	switch t {
	case JWT:
		return "JWT"
	case AccessToken:
		return "at+jwt"
	}
	return "invalid"
}

// active is a version that is signed with.
type active struct {
	key     key.Name
	version key.Version
	keyID   string
	signers map[Type]jose.Signer
	// document is where its horizon is written; no other active writes there.
	document string

	mu    sync.Mutex
	epoch uint64
	// until is written: no token lives longer. last is the latest expiry there is.
	until, last time.Time
	// ended: no token is signed any more.
	ended   bool
	issued  uint64
	expires map[int64]uint64
	// counted is issued as it was written last.
	counted uint64
}

func (a *active) setEpoch(epoch uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch = epoch
}

func (a *active) getEpoch() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epoch
}

func newActive(assignment *Assignment) (*active, error) {
	block, _ := pem.Decode(assignment.Material.Secrets["privateKey"].Reveal())
	if block == nil {
		return nil, errors.New("the version has no private key in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("the private key of the version is damaged")
	}
	attributes := assignment.Material.Attributes
	a := &active{
		key: assignment.Key, version: assignment.Version, epoch: assignment.Epoch, keyID: attributes["kid"],
		signers: map[Type]jose.Signer{}, expires: map[int64]uint64{},
	}
	k, err := parseKey(&version{KeyID: a.keyID, Algorithm: attributes["alg"], JWK: []byte(attributes["jwk"])})
	if err != nil {
		return nil, err
	}
	if public, ok := private.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(k.Public) {
		return nil, errors.New("the private key is not that of the published key")
	}
	for _, kind := range []Type{JWT, AccessToken} {
		a.signers[kind], err = jose.NewSigner(
			jose.SigningKey{Algorithm: k.Algorithm, Key: jose.JSONWebKey{Key: private, KeyID: a.keyID}},
			(&jose.SignerOptions{}).WithType(jose.ContentType(kind.String())))
		if err != nil {
			return nil, fmt.Errorf("sign with %s: %w", k.Algorithm, err)
		}
	}
	return a, nil
}
