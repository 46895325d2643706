package real

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/server"
)

const (
	workloads     = 4
	identityLife  = 5 * time.Second // of a token
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
func (c *pods) token() (string, error) {
	now := time.Now().Unix()
	payload, err := json.Marshal(map[string]any{
		"iss": c.URL, "sub": "system:serviceaccount:orders:api", "aud": []string{"keyturn"}, "iat": now, "nbf": now, "exp": now + 600, "jti": rand.Text(),
		"kubernetes.io": map[string]any{"namespace": "orders", "serviceaccount": map[string]any{"name": "api"}},
	})
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: c.private, KeyID: "1"}}, nil)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// flaky is the way to the token endpoint: of ten requests three get through at once
// and two late; the others are refused, answered with nonsense, or cut off, before or
// after the server has done its work. Now and then nothing gets through.
type flaky struct {
	to     http.RoundTripper
	dead   atomic.Bool
	failed atomic.Int64
	passed atomic.Int64
}

var errFlaky = errors.New("the issuer is flaky")

func (f *flaky) RoundTrip(r *http.Request) (*http.Response, error) {
	kind, err := rand.Int(rand.Reader, big.NewInt(10))
	if err != nil {
		return nil, err
	}
	pass := func() (*http.Response, error) {
		response, err := f.to.RoundTrip(r)
		if err == nil {
			f.passed.Add(1)
		}
		return response, err
	}
	if !f.dead.Load() {
		switch kind.Int64() {
		case 0, 1, 2:
			return pass()
		case 3, 4:
			late := time.NewTimer(100 * time.Millisecond)
			defer late.Stop()
			select {
			case <-late.C:
				return pass()
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		case 5, 6: // the token was made, and is lost
			response, err := pass()
			if err == nil {
				_ = response.Body.Close()
			}
		}
	}
	f.failed.Add(1)
	return nil, errFlaky
}

// workload has a token of its own, which it replaces early, at a moment drawn at
// random, and holds while it gets no other.
type workload struct {
	cluster *pods
	http    *http.Client
	url     string

	mu      sync.Mutex
	held    string
	expires time.Time
}

// refresh gets a token.
func (w *workload) refresh(ctx context.Context) error {
	own, err := w.cluster.token()
	if err != nil {
		return err
	}
	form := url.Values{
		"grant_type":    {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token": {own}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "audience": {"orders"},
	}
	ctx, cancel := context.WithTimeout(ctx, identityLife/4)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	asked := time.Now()
	response, err := w.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var body struct {
		Token   string `json:"access_token"`
		Expires int    `json:"expires_in"`
		Error   string `json:"error"`
	}
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil || body.Token == "" {
		return fmt.Errorf("%s: %s: %w", response.Status, body.Error, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.expires = body.Token, asked.Add(time.Duration(body.Expires)*time.Second)
	return nil
}

// run keeps the token fresh.
func (w *workload) run(ctx context.Context) {
	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		jitter, err := rand.Int(rand.Reader, big.NewInt(int64(identityLife/8)))
		if err != nil {
			return
		}
		wait = identityLife/4 + time.Duration(jitter.Int64()) // and no sooner, when it is given
		if w.refresh(ctx) != nil {
			wait = 10*time.Millisecond + time.Duration(jitter.Int64())/10
		}
	}
}

func (w *workload) token() (compact string, valid bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held, time.Now().Before(w.expires)
}

// TestManagedIdentityWithAFlakyIssuer is scenario S2: workloads prove who they are by
// tokens of their cluster and go about with tokens that live for seconds. The way to
// the issuer loses most requests, and all of them at times; so does the cluster's
// own issuer; and the signing key rotates. No workload is ever without a valid token,
// and no valid token is rejected. A workload whose issuer stays away ends with its
// token.
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
	document = strings.Replace(document, "tokenLife: 30s", "tokenLife: "+identityLife.String(), 1)
	w.apply(t, document+fmt.Sprintf("      - {name: pods, from: {issuer: %q, audience: keyturn, claims: {kubernetes.io/namespace: orders, kubernetes.io/serviceaccount/name: api}}, audiences: [orders]}\n", c.URL))
	w.finish(t, w.rotateKey(t, signingKey, "first"), "done")

	direct := w.client.Transport.(bearer).next
	way := &flaky{to: direct}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	l := &load{}
	var all []*workload
	var kids sync.Map
	for range workloads {
		one := &workload{cluster: c, http: &http.Client{Transport: way}, url: issuer + "/oauth/token"}
		all = append(all, one)
		running.Go(func() { one.run(ctx) })
		eventually(t, "the first token of a workload", func() bool { _, valid := one.token(); return valid })
	}
	service := oidc.NewVerifier(issuer, oidc.NewRemoteKeySet(oidc.ClientContext(ctx, &http.Client{Transport: direct}), issuer+"/.well-known/jwks.json"),
		&oidc.Config{ClientID: "orders", SupportedSigningAlgs: []string{"EdDSA"}})
	accepts := func(compact string) error {
		verified, err := service.Verify(context.WithoutCancel(ctx), compact)
		if err == nil && verified.Subject != "pods/system:serviceaccount:orders:api" {
			err = fmt.Errorf("it is one of %s", verified.Subject)
		}
		return err
	}
	for _, one := range all {
		running.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				compact, valid := one.token()
				if !valid {
					l.fail("a workload", errors.New("it is without a valid token"))
					continue
				}
				if err := accepts(compact); err != nil {
					if _, still := one.token(); still {
						l.fail("the service", err)
					}
					continue
				}
				l.queries.Add(1)
				header, _, _ := strings.Cut(compact, ".")
				kids.Store(header, true)
			}
		})
	}
	seen := func() (versions int) {
		kids.Range(func(any, any) bool { versions++; return true })
		return versions
	}
	turns := 1
	if soaking {
		turns = identityTurns
	}
	for turn := range turns {
		// Nothing gets through for a sixth of a token's life.
		way.dead.Store(true)
		c.away.Store(true)
		id := w.rotateKey(t, signingKey, "in an outage")
		l.more(t, workloads*int64(identityLife/6/(5*time.Millisecond)))
		way.dead.Store(false)
		eventually(t, "tokens of the next version", func() bool { return seen() == turn+2 })
		if soaking {
			w.finish(t, id, "done")
		}
		c.away.Store(false)
	}
	l.check(t)
	if way.failed.Load() < workloads || way.passed.Load() < workloads*2 {
		t.Errorf("%d requests for tokens failed and %d got through: this proves little", way.failed.Load(), way.passed.Load())
	}
	t.Logf("%d requests with tokens of %d versions; of those for tokens %d failed, %d got through", l.queries.Load(), seen(), way.failed.Load(), way.passed.Load())

	if !soaking {
		return
	}
	// From now on the issuer is away for good.
	way.dead.Store(true)
	cancel()
	running.Wait()
	compact, _ := all[0].token()
	if err := accepts(compact); err != nil {
		t.Errorf("the last token: %v", err)
	}
	eventually(t, "the last token expires", func() bool { return accepts(compact) != nil })
}
