package broker_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/internal/webtoken"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const (
	orders   = key.Name("prod/orders/tokens")
	others   = key.Name("prod/others/tokens")
	endpoint = "https://keys.example.com/orders/oauth/token"
	issuer   = "https://jobs.example.com"
	audience = "https://keys.example.com/orders"
	goodKey  = "the secret of a client"
	span     = time.Minute
)

var errAway = errors.New("the store is away")

// link is a way to the store.
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

// glass is a keeper that hides nothing.
type glass struct{}

func (glass) Wrap(_ context.Context, dek, _ []byte) (kek string, wrapped []byte, err error) {
	return "glass", bytes.Clone(dek), nil
}

func (glass) Unwrap(_ context.Context, _ string, wrapped, _ []byte) ([]byte, error) {
	return bytes.Clone(wrapped), nil
}

// node is a broker with all that it depends on.
type node struct {
	*broker.Broker
	t    testing.TB
	link *link

	mu      sync.Mutex
	entries []audit.Entry
	// signed are the requests for tokens, by what they were signed as.
	signed  map[string]token.Request
	results map[string]int
	revoked int
	// refusals are what the broker told of those who were refused.
	refusals []broker.Refusal
	// jobs is the other issuer.
	jobs *jobs
}

// Transact implements broker.Journal.
func (n *node) Transact(ctx context.Context, _ audit.Actor, fn func(tx store.Tx, enter func(audit.Entry)) error) error {
	var entered []audit.Entry
	err := n.link.Update(ctx, func(tx store.Tx) error {
		entered = nil
		if err := fn(tx, func(e audit.Entry) { e.At = time.Now(); entered = append(entered, e) }); err != nil {
			return err
		}
		_, err := audit.Append(audit.Tail{}, nil, entered...) // an entry that is none would fail here
		return err
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.entries = append(n.entries, entered...)
	}
	return err
}

// Sign implements broker.Signer.
func (n *node) Sign(_ context.Context, request token.Request) (token.Token, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := rand.Text()
	n.signed[id] = request
	now := time.Now()
	return token.Token{Compact: secret.NewString(id), ID: id, Version: 1, Issued: now, Expires: now.Add(request.Life)}, nil
}

// Verify implements broker.Verifier.
func (n *node) Verify(_ key.Name, compact string, _ token.Expect) (token.Claims, error) {
	if !strings.HasPrefix(compact, "good") {
		return token.Claims{}, token.ErrToken
	}
	return token.Claims{Version: 1, Claims: webtoken.Claims{ID: compact, Expires: time.Unix(1<<31, 0)}}, nil
}

func (n *node) count(action audit.Action) (list []audit.Entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.entries {
		if e.Action == action {
			list = append(list, e)
		}
	}
	return list
}

// last is the request that the last token was signed by.
func (n *node) of(issued *broker.Issued) token.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.signed[issued.Compact.RevealString()]
}

// rules are those of the key in all tests.
func rules() any {
	var list any
	err := json.Unmarshal([]byte(fmt.Sprintf(`[
		{"name":"deploy","from":{"issuer":%q,"audience":%q,"claims":{"repository":"acme/*"}},"audiences":["orders","billing"],"scopes":["read","write"],"copy":["repository"],"life":"2m"},
		{"name":"clients","from":{"tokens":["svc-*"]},"audiences":["orders"],"scopes":["read"]},
		{"name":"release","from":{"issuer":%[1]q,"audience":%[2]q,"claims":{"repository":"once/*"}},"audiences":["orders","billing"],"scopes":["read"],"once":true},
		{"name":"release-too","from":{"issuer":%[1]q,"audience":%[2]q,"claims":{"repository":"once/*"}},"audiences":["stock"],"scopes":["read"],"once":true},
		{"name":"often","from":{"issuer":%[1]q,"audience":%[2]q,"claims":{"repository":"once/*"}},"audiences":["reports"],"scopes":["read"]}
	]`, issuer, audience)), &list)
	if err != nil {
		panic(err)
	}
	return list
}

// newNode starts a broker on a store.
func newNode(t testing.TB, shared store.Store, edit func(*broker.Config)) *node {
	t.Helper()
	n := &node{t: t, link: &link{Store: shared}, signed: map[string]token.Request{}, results: map[string]int{}, jobs: newJobs(t)}
	config := broker.Config{
		Store: n.link, Keeper: glass{}, Journal: n, Signer: n, Verifier: n, Logger: slog.New(slog.DiscardHandler), Now: time.Now, AuditSpan: span,
		Grants: func(_ context.Context, name key.Name) (any, error) {
			if n.link.away.Load() {
				return nil, errAway
			}
			if name != orders && name != others {
				return nil, nil
			}
			return rules(), nil
		},
		Client: func(_ context.Context, text secret.Value, _ string) (grant.Proven, error) {
			if text.RevealString() != goodKey {
				return grant.Proven{}, broker.ErrClient
			}
			return grant.Proven{Source: grant.Token, Subject: "svc-a", Names: []string{"svc-a"}}, nil
		},
		HTTP: func(*x509.CertPool) *http.Client { return &http.Client{Transport: n.jobs} },
		Issued: func(_ grant.Source, result string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.results[result]++
		},
		Refused: func(r broker.Refusal) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.refusals = append(n.refusals, r)
		},
		Revoked: func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.revoked++
		},
	}
	if edit != nil {
		edit(&config)
	}
	n.Broker = broker.New(config)
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Stop(context.Background()) })
	return n
}

func newStore() store.Store { return memstore.New() }

// byClient asks with the secret of a client.
func byClient(more ...func(*broker.Request)) *broker.Request {
	r := &broker.Request{Key: orders, URL: endpoint, Address: "192.0.2.7", Secret: secret.NewString(goodKey)}
	for _, edit := range more {
		edit(r)
	}
	return r
}

// byJob asks with the token of a job.
func byJob(compact string) *broker.Request {
	return &broker.Request{Key: orders, URL: endpoint, Subject: secret.NewString(compact), Audiences: []string{"orders"}, Scopes: []string{"read"}}
}

// must gives a token.
func (n *node) must(request *broker.Request) broker.Issued {
	n.t.Helper()
	issued, err := n.Give(n.t.Context(), request)
	if err != nil {
		n.t.Fatal(err)
	}
	return issued
}

// refuses fails the test unless the request is refused for the reason.
func (n *node) refuses(what string, request *broker.Request, want error) {
	n.t.Helper()
	if issued, err := n.Give(n.t.Context(), request); !errors.Is(err, want) || issued.ID != "" {
		n.t.Errorf("%s: %+v, %v, want %v", what, issued, err, want)
	}
}

func (n *node) refused() []broker.Refusal {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.refusals)
}

// jobs is another issuer, without a network.
type jobs struct {
	t       testing.TB
	mu      sync.Mutex
	private []*ecdsa.PrivateKey
	// answer replaces what is answered under a path.
	answer  map[string]string
	away    bool
	fetches int
	// name is that of the first key.
	name string
}

func newJobs(t testing.TB) *jobs {
	j := &jobs{t: t, answer: map[string]string{}, name: "first"}
	j.rotate(false)
	return j
}

// rotate makes a new key; the one before is withdrawn unless it is kept.
func (j *jobs) rotate(keep bool) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		j.t.Fatal(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !keep {
		j.private = nil
	}
	j.private = append(j.private, private)
}

func (j *jobs) set() string {
	var set jose.JSONWebKeySet
	for _, private := range j.private {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: private.Public(), KeyID: j.name, Use: "sig"})
	}
	body, err := json.Marshal(set)
	if err != nil {
		j.t.Fatal(err)
	}
	return string(body)
}

// RoundTrip implements http.RoundTripper.
func (j *jobs) RoundTrip(r *http.Request) (*http.Response, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fetches++
	if j.away {
		return nil, errors.New("connection refused")
	}
	body, ok := j.answer[r.URL.Path]
	switch {
	case ok:
	case strings.HasSuffix(r.URL.Path, "openid-configuration"):
		body = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, issuer, issuer+"/keys")
	default:
		body = j.set()
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (j *jobs) change(edit func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	edit()
}

func (j *jobs) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fetches
}

// token is one of a job, signed with the newest key.
func (j *jobs) token(edit map[string]any) string {
	j.mu.Lock()
	private := j.private[len(j.private)-1]
	j.mu.Unlock()
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": issuer, "sub": "repo:acme/orders", "aud": audience, "iat": now, "exp": now + 3600, "repository": "acme/orders", "jti": rand.Text(),
	}
	maps.Copy(claims, edit)
	return sign(j.t, private, "JWT", false, claims)
}

// named is one that names the key it is signed with.
func (j *jobs) named(kid string) string {
	now := time.Now().Unix()
	claims := map[string]any{"iss": issuer, "sub": "repo:acme/orders", "aud": audience, "iat": now, "exp": now + 3600, "repository": "acme/orders"}
	return sign(j.t, jose.JSONWebKey{Key: j.private[0], KeyID: kid}, "JWT", false, claims)
}

func sign(t testing.TB, private any, typ string, embed bool, claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, (&jose.SignerOptions{EmbedJWK: embed}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// proofs makes proofs of possession of one key.
type proofs struct {
	t       testing.TB
	private *ecdsa.PrivateKey
}

func newProofs(t testing.TB) proofs {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return proofs{t, private}
}

func (p proofs) with(nonce string) func(*broker.Request) {
	compact := sign(p.t, p.private, "dpop+jwt", true, map[string]any{
		"jti": rand.Text(), "htm": "POST", "htu": endpoint, "iat": time.Now().Unix(), "nonce": nonce,
	})
	return func(r *broker.Request) { r.Proofs = []string{compact} }
}

// nonce is what the node tells whoever shows a proof with another nonce.
func (n *node) nonce(p proofs, shown string) string {
	n.t.Helper()
	_, err := n.Give(n.t.Context(), byClient(p.with(shown)))
	var wanted *broker.NonceError
	if !errors.As(err, &wanted) || !errors.Is(err, broker.ErrNonce) || wanted.Nonce == "" || wanted.Nonce == shown {
		n.t.Fatalf("a proof with the nonce %q: %v", shown, err)
	}
	return wanted.Nonce
}

func subset(list, of []string) bool {
	return !slices.ContainsFunc(list, func(one string) bool { return !slices.Contains(of, one) })
}
