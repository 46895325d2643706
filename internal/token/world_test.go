package token_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	orders    = key.Name("prod/orders/tokens")
	issuer    = "https://keys.example.com/orders"
	tokenLife = time.Minute
	cacheLife = 5 * time.Minute
	outage    = 2 * time.Minute
	skew      = time.Second
)

// errAway is what a store says that is away.
var errAway = errors.New("the store is away")

// link is one node's way to the store.
type link struct {
	store.Store
	away atomic.Bool
}

func (l *link) View(ctx context.Context, fn func(store.Tx) error) error {
	if l.away.Load() {
		return errAway
	}
	return l.Store.View(ctx, fn)
}

func (l *link) Update(ctx context.Context, fn func(store.Tx) error) error {
	if l.away.Load() {
		return errAway
	}
	return l.Store.Update(ctx, fn)
}

// world is a store with nodes.
type world struct {
	t        testing.TB
	store    store.Store
	fence    uint64
	versions map[key.Version]provider.Material
	// restored is when the store was put back to an earlier state.
	restored time.Time
}

func newWorld(t testing.TB) *world {
	return &world{t: t, store: memstore.New(), versions: map[key.Version]provider.Material{}}
}

// node is a server node: its board and its signer.
type node struct {
	*token.Board
	*token.Signer
	link *link
	hub  *hub
	once sync.Once
}

// hub tells a signer what to sign with.
type hub struct {
	mu    sync.Mutex
	epoch uint64
	told  *token.Assignment
	acked []token.Outcome
	// reported counts reports of versions that fare well; failed are the others.
	reported map[key.Version]int
	failed   []error
	news     chan struct{}
}

func (h *hub) tell(v key.Version, material provider.Material) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch++
	h.told = &token.Assignment{Key: orders, Version: v, Epoch: h.epoch, Material: material}
	select {
	case h.news <- struct{}{}:
	default:
	}
}

func (h *hub) last() (token.Outcome, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.acked) == 0 {
		return token.Outcome{}, false
	}
	return h.acked[len(h.acked)-1], true
}

type session struct {
	hub    *hub
	known  uint64
	closed chan struct{}
	once   sync.Once
}

func (s *session) Next(ctx context.Context, wait time.Duration) ([]token.Assignment, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		s.hub.mu.Lock()
		told := s.hub.told
		s.hub.mu.Unlock()
		if told != nil && told.Epoch > s.known {
			s.known = told.Epoch
			return []token.Assignment{*told}, nil
		}
		select {
		case <-s.hub.news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return nil, nil
		}
	}
}

func (s *session) Acknowledge(_ context.Context, outcomes []token.Outcome) error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.acked = append(s.hub.acked, outcomes...)
	return nil
}

func (s *session) Close() { s.once.Do(func() { close(s.closed) }) }

// start starts a node; it is killed when the test ends.
func (w *world) start(name string) *node {
	w.t.Helper()
	n := &node{link: &link{Store: w.store}, hub: &hub{news: make(chan struct{}, 1), reported: map[key.Version]int{}}}
	n.Board = token.NewBoard(token.BoardConfig{
		Store: n.link, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Node: name, Outage: outage, Skew: skew,
		Restored: func(context.Context) (time.Time, error) { return w.restored, nil },
	})
	n.Signer = token.NewSigner(token.SignerConfig{
		Report: func(_ context.Context, _ key.Name, v key.Version, failed error) error {
			n.hub.mu.Lock()
			defer n.hub.mu.Unlock()
			if failed != nil {
				n.hub.failed = append(n.hub.failed, failed)
				return nil
			}
			n.hub.reported[v]++
			return nil
		},
		Store: n.link, Board: n.Board, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Node: name, Outage: outage, Skew: skew,
		Connect: func(_ context.Context, holdings []token.Holding) (token.Session, error) {
			if n.link.away.Load() {
				return nil, errAway
			}
			s := &session{hub: n.hub, closed: make(chan struct{})}
			for _, h := range holdings {
				s.known = h.Epoch
			}
			return s, nil
		},
	})
	if err := n.Board.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	n.Signer.Start(w.t.Context())
	w.t.Cleanup(n.kill)
	return n
}

// kill ends a node that can write nothing any more.
func (n *node) kill() {
	n.once.Do(func() {
		n.link.away.Store(true)
		n.Signer.Stop(context.Background())
		n.Board.Stop(context.Background())
	})
}

// stop ends a node in order.
func (n *node) stop() {
	n.once.Do(func() {
		n.Signer.Stop(context.Background())
		n.Board.Stop(context.Background())
	})
}

// mint makes a version.
func (w *world) mint(v key.Version) provider.Material {
	w.t.Helper()
	if m, ok := w.versions[v]; ok {
		return m
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	w.versions[v] = materialOf(w.t, private, jose.EdDSA, v.String())
	return w.versions[v]
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func materialOf(t testing.TB, private crypto.Signer, algorithm jose.SignatureAlgorithm, kid string) provider.Material {
	t.Helper()
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := jose.JSONWebKey{Key: private.Public(), KeyID: kid, Algorithm: string(algorithm), Use: "sig"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return provider.Material{
		Attributes: map[string]string{"kid": kid, "alg": string(algorithm), "jwk": string(public)},
		Secrets:    map[string]secret.Value{"privateKey": secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))},
	}
}

// changed is a change with what the key says; edit makes it another one.
func (w *world) changed(v key.Version, endpoint string, listed bool, edit ...func(*token.Change)) token.Change {
	w.fence++
	c := token.Change{
		Key: orders, Endpoint: endpoint, Version: v, Listed: listed, Fence: w.fence, Attributes: w.mint(v).Attributes,
		Issuer: issuer, TokenLife: tokenLife, CacheLife: cacheLife, Endpoints: []string{token.Published, "api", "batch"},
	}
	for _, one := range edit {
		one(&c)
	}
	return c
}

// list lists a version, or takes it off.
func (w *world) list(n *node, v key.Version, endpoint string, listed bool, edit ...func(*token.Change)) token.Standing {
	w.t.Helper()
	standing, err := n.Change(w.t.Context(), w.changed(v, endpoint, listed, edit...))
	if err != nil {
		w.t.Fatalf("change: %v", err)
	}
	return standing
}

func (w *world) standing(n *node, v key.Version, endpoint string) token.Standing {
	w.t.Helper()
	standing, err := n.Standing(w.t.Context(), orders, endpoint, v)
	if err != nil {
		w.t.Fatalf("standing: %v", err)
	}
	return standing
}

// kids are the keys in the set of a path.
func kids(t testing.TB, n *node, path string) []string {
	t.Helper()
	page, err := n.Find(path)
	if err != nil {
		t.Fatalf("find %s: %v", path, err)
	}
	var keys jose.JSONWebKeySet
	if err := strictly(page.Body, &keys); err != nil {
		t.Fatal(err)
	}
	var list []string
	for i := range keys.Keys {
		list = append(list, keys.Keys[i].KeyID)
	}
	return list
}

func has(list []string, kid string) bool { return slices.Contains(list, kid) }

const (
	publicSet = "/orders/.well-known/jwks.json"
	apiSet    = "/orders/.well-known/jwks/api.json"
)

var somewhere = netip.MustParseAddr("192.0.2.7")
