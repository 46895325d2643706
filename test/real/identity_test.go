package real

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client/tokencheck"
	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/secret"
)

const (
	workloads     = 4
	identityLife  = 6 * time.Second // of a token
	identityTurns = 5               // in the long run
)

// pods is where workloads run: it gives each a token of its own, as Kubernetes
// does, and is away at times.
type pods struct {
	*httptest.Server

	t       *testing.T
	private *ecdsa.PrivateKey
	away    atomic.Bool
}

func newPods(t *testing.T) *pods {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &pods{t: t, private: private}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case c.away.Load():
			w.WriteHeader(http.StatusBadGateway)
		case strings.HasSuffix(r.URL.Path, "openid-configuration"):
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": c.URL, "jwks_uri": c.URL + "/keys"})
		default:
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: private.Public(), KeyID: "1", Use: "sig"}}})
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// token is that of a pod.
func (c *pods) token(context.Context) (secret.Value, error) {
	now := time.Now().Unix()
	payload, err := json.Marshal(map[string]any{
		"iss": c.URL, "sub": "system:serviceaccount:orders:api", "aud": []string{"keyturn"}, "iat": now, "nbf": now, "exp": now + 600, "jti": rand.Text(),
		"kubernetes.io": map[string]any{"namespace": "orders", "serviceaccount": map[string]any{"name": "api"}},
	})
	if err != nil {
		return secret.Value{}, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: c.private, KeyID: "1"}}, nil)
	if err != nil {
		return secret.Value{}, err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return secret.Value{}, err
	}
	compact, err := signed.CompactSerialize()
	return secret.NewString(compact), err
}

// flaky is the way to the token endpoint: of ten requests three get through at once
// and two late; the others are lost, before or after the server has done its work. Now
// and then nothing gets through.
type flaky struct {
	count  atomic.Int64
	to     http.RoundTripper
	dead   atomic.Bool
	failed atomic.Int64
	passed atomic.Int64
}

var errFlaky = errors.New("the issuer is flaky")

func (f *flaky) RoundTrip(r *http.Request) (*http.Response, error) {
	pass := func() (*http.Response, error) {
		response, err := f.to.RoundTrip(r)
		if err == nil {
			f.passed.Add(1)
		}
		return response, err
	}
	if !f.dead.Load() {
		switch f.count.Add(1) % 10 {
		case 2, 5, 8:
			return pass()
		case 0, 4:
			late := time.NewTimer(100 * time.Millisecond)
			defer late.Stop()
			select {
			case <-late.C:
				return pass()
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		case 3, 7: // the token was made, and is lost
			response, err := pass()
			if err == nil {
				_ = response.Body.Close()
			}
		}
	}
	f.failed.Add(1)
	return nil, errFlaky
}

// TestManagedIdentityWithAFlakyIssuer is scenario S2: workloads prove who they are by
// tokens of their cluster and go about with tokens that live for seconds, which the SDK
// keeps. The way to the issuer loses most requests, and all of them at times; so does
// the cluster's own issuer; and the signing key rotates. No workload is ever without a
// valid token, and services, which verify by go-oidc and by the SDK, reject none. A
// workload whose issuer stays away ends with its token.
func TestManagedIdentityWithAFlakyIssuer(t *testing.T) {
	t.Parallel()
	w := &world{dir: t.TempDir(), logs: &logBuffer{}}
	w.config = server.Config{Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data"), Log: server.LogConfig{Format: "text", Level: "debug"}}
	w.config.Tokens.Skew = 100 * time.Millisecond
	w.options = server.Options{LogTo: w.logs}
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	c := newPods(t)
	issuer := w.address() + "/orders"
	document := strings.Replace(signingKeyDocuments, "https://keys.example.com/orders", issuer, 1)
	document = strings.Replace(document, "tokenLife: 30s", "tokenLife: "+identityLife.String()+"\n    verifiers: [{name: api}]", 1)
	w.apply(t, document+fmt.Sprintf("      - {name: pods, from: {issuer: %q, audience: keyturn, claims: {kubernetes.io/namespace: orders, kubernetes.io/serviceaccount/name: api}}, audiences: [orders]}\n", c.URL))
	w.finish(t, w.rotateKey(t, signingKey, "first"), "done")

	direct := w.client.Transport.(bearer).next
	way := &flaky{to: direct}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	checker, err := tokencheck.Open(ctx, tokencheck.Config{Issuer: issuer, Audience: "orders", Reader: "api", HTTPClient: &http.Client{Transport: direct}})
	if err != nil {
		t.Fatal(err)
	}
	defer checker.Close()
	verifier := oidc.NewVerifier(issuer, oidc.NewRemoteKeySet(oidc.ClientContext(ctx, &http.Client{Transport: direct}), issuer+"/.well-known/jwks.json"),
		&oidc.Config{ClientID: "orders", SupportedSigningAlgs: []string{"EdDSA"}})
	accepts := func(compact string) error {
		verified, err := verifier.Verify(context.WithoutCancel(ctx), compact)
		if err != nil {
			return fmt.Errorf("go-oidc: %w", err)
		}
		claims, err := checker.Check(ctx, &tokencheck.Shown{Token: compact})
		if err != nil {
			return err
		}
		if verified.Subject != "pods/system:serviceaccount:orders:api" || claims.Subject != verified.Subject {
			return fmt.Errorf("it is one of %s, and of %s", verified.Subject, claims.Subject)
		}
		return nil
	}
	l := &load{}
	var kids sync.Map // of each workload
	var sources []*tokensource.Source
	for i := range workloads {
		source, err := tokensource.Open(ctx, tokensource.Config{
			Issuer: issuer, Audiences: []string{"orders"}, Subject: tokensource.Func(c.token), HTTPClient: &http.Client{Transport: way},
			BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(source.Close)
		if _, err := source.Token(ctx); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, source)
		running.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				// A token that is held is handed out at once.
				soon, end := context.WithTimeout(ctx, 250*time.Millisecond)
				held, err := source.Token(soon)
				end()
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					l.fail("a workload", err)
					continue
				}
				compact := held.Value.RevealString()
				if err := accepts(compact); err != nil && ctx.Err() == nil {
					l.fail("a service", err)
					continue
				}
				l.queries.Add(1)
				header, _, _ := strings.Cut(compact, ".")
				kids.Store(fmt.Sprint(i, header), true)
			}
		})
	}
	// versions is how many each workload has had tokens of.
	versions := func() int {
		n := 0
		kids.Range(func(any, any) bool { n++; return true })
		return n / workloads
	}
	turns := 1
	if soaking {
		turns = identityTurns
	}
	for turn := range turns {
		// Nothing gets through for less than a fifth of a token's life.
		way.dead.Store(true)
		c.away.Store(true)
		over := time.After(identityLife / 8)
		id := w.rotateKey(t, signingKey, "in an outage")
		<-over
		way.dead.Store(false)
		eventually(t, "every workload has a token of the next version", func() bool { return versions() == turn+2 })
		if soaking {
			w.finish(t, id, "done")
		}
		c.away.Store(false)
	}
	l.check(t)
	if way.failed.Load() < workloads || way.passed.Load() < workloads*2 {
		t.Errorf("%d requests for tokens failed and %d got through: this proves little", way.failed.Load(), way.passed.Load())
	}
	t.Logf("%d requests with tokens of %d versions; of those for tokens %d failed, %d got through", l.queries.Load(), versions(), way.failed.Load(), way.passed.Load())

	if !soaking {
		return
	}
	// From now on the issuer is away for good.
	way.dead.Store(true)
	cancel()
	running.Wait()
	held, err := sources[0].Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ends := func() bool {
		soon, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer end()
		_, err := sources[0].Token(soon)
		return err != nil
	}
	eventually(t, "the last token ends", ends)
	if _, err := verifier.Verify(t.Context(), held.Value.RevealString()); err == nil && time.Now().After(held.Expires.Add(time.Second)) {
		t.Error("it is accepted for longer")
	}
}
