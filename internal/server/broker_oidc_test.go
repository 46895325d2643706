package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/keyturn/keyturn/internal/token"
)

// platform is an OpenID provider that gives tokens to jobs, with the claims that their
// platform gives them. What it does not implement nobody asks for.
type platform struct {
	op.Storage

	server *httptest.Server
	mu     sync.Mutex
	keys   []platformKey
}

// jobClaims are the claims of each kind of job.
func jobClaims() map[string]map[string]any {
	return map[string]map[string]any{
		"github": {
			"sub": "repo:acme/orders:environment:production", "repository": "acme/orders", "repository_owner": "acme", "repository_id": "74",
			"ref": "refs/heads/main", "ref_type": "branch", "environment": "production", "actor": "octocat", "event_name": "push", "run_attempt": "2",
			"workflow": "deploy", "job_workflow_ref": "acme/workflows/.github/workflows/deploy.yml@refs/heads/main", "runner_environment": "github-hosted",
		},
		"gitlab": {
			"sub": "project_path:acme/shop/orders:ref_type:branch:ref:main", "namespace_path": "acme/shop", "project_path": "acme/shop/orders", "project_id": "22",
			"ref": "main", "ref_type": "branch", "ref_protected": "true", "pipeline_source": "push", "environment_protected": "true",
		},
		"kubernetes": {
			"sub": "system:serviceaccount:orders:api",
			"kubernetes.io": map[string]any{
				"namespace": "orders", "node": map[string]any{"name": "n1"}, "pod": map[string]any{"name": "api-7f", "uid": "5"},
				"serviceaccount": map[string]any{"name": "api", "uid": "14"}, "warnafter": 1_800_000_000,
			},
		},
	}
}

type platformKey struct {
	id      string
	private *ecdsa.PrivateKey
}

func (k platformKey) ID() string                                  { return k.id }
func (k platformKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k platformKey) Key() any                                    { return k.private }

// publicKey is that of a platform's key.
type publicKey struct{ platformKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.private.Public() }

// jobClient is a job as a client of the platform.
type jobClient struct {
	op.Client

	kind string
}

func (c jobClient) GetID() string { return c.kind }
func (c jobClient) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials}
}
func (c jobClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (c jobClient) ClockSkew() time.Duration            { return 0 }
func (c jobClient) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}

// jobRequest asks for a token of a job.
type jobRequest struct{ kind string }

func (r jobRequest) GetSubject() string    { sub, _ := jobClaims()[r.kind]["sub"].(string); return sub }
func (r jobRequest) GetAudience() []string { return []string{jobAudience} }
func (r jobRequest) GetScopes() []string   { return nil }

func newPlatform(t *testing.T) *platform {
	t.Helper()
	p := &platform{}
	p.rotate(t)
	p.server = httptest.NewUnstartedServer(nil)
	provider, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}}, p, op.StaticIssuer(p.issuer()), op.WithAllowInsecure())
	if err != nil {
		t.Fatal(err)
	}
	p.server.Config.Handler = provider
	p.server.Start()
	t.Cleanup(p.server.Close)
	return p
}

func (p *platform) issuer() string { return "http://" + p.server.Listener.Addr().String() }

// rotate withdraws the key and makes another one.
func (p *platform) rotate(t *testing.T) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = []platformKey{{rand.Text(), private}}
}

// SigningKey implements op.Storage.
func (p *platform) SigningKey(context.Context) (op.SigningKey, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[0], nil
}

// SignatureAlgorithms implements op.Storage.
func (p *platform) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

// KeySet implements op.Storage.
func (p *platform) KeySet(context.Context) ([]op.Key, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []op.Key{publicKey{p.keys[0]}}, nil
}

// Health implements op.Storage.
func (p *platform) Health(context.Context) error { return nil }

// ClientCredentials implements op.ClientCredentialsStorage.
func (p *platform) ClientCredentials(_ context.Context, id, secret string) (op.Client, error) {
	if jobClaims()[id] == nil || secret != "of-the-runner" {
		return nil, errors.New("no such job")
	}
	return jobClient{kind: id}, nil
}

// ClientCredentialsTokenRequest implements op.ClientCredentialsStorage.
func (p *platform) ClientCredentialsTokenRequest(_ context.Context, id string, _ []string) (op.TokenRequest, error) {
	return jobRequest{id}, nil
}

// CreateAccessToken implements op.Storage.
func (p *platform) CreateAccessToken(context.Context, op.TokenRequest) (id string, expires time.Time, err error) {
	return rand.Text(), time.Now().Add(5 * time.Minute), nil
}

// GetPrivateClaimsFromScopes implements op.Storage.
func (p *platform) GetPrivateClaimsFromScopes(_ context.Context, _, id string, _ []string) (map[string]any, error) {
	claims := jobClaims()[id]
	delete(claims, "sub")
	return claims, nil
}

// token is what a runner gets for its job.
func (p *platform) token(t *testing.T, kind string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {kind}, "client_secret": {"of-the-runner"}}
	response, err := http.PostForm(p.issuer()+"/oauth/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	if err := readJSON(response, &body); err != nil || body.Token == "" {
		t.Fatalf("%s: %s %v", response.Status, body.Error, err)
	}
	return body.Token
}

// TestFederatedJobs: the tokens that an OpenID provider gives to jobs of GitHub
// Actions, GitLab and Kubernetes, with the claims that these have, each get what the
// rule for its kind grants, and nothing of the others; before and after the provider
// has changed its key.
func TestFederatedJobs(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	rule := func(name, claims string) string {
		return fmt.Sprintf("      - {name: %s, from: {issuer: %q, audience: %q, claims: %s}, audiences: [%s], life: 30s}\n", name, p.issuer(), jobAudience, claims, name)
	}
	w := brokering(t, signingConfig(t.TempDir()), newUpstream(t),
		rule("github", `{repository: acme/orders, ref: refs/heads/main, environment: production, job_workflow_ref: "acme/workflows/.github/workflows/deploy.yml@refs/heads/*"}`),
		rule("gitlab", `{project_path: "acme/**", ref: main, ref_protected: "true"}`),
		rule("kubernetes", `{kubernetes.io/namespace: orders, kubernetes.io/serviceaccount/name: api}`),
		rule("elsewhere", `{repository: acme/payroll}`))
	for _, rotated := range []bool{false, true} {
		if rotated {
			p.rotate(t)
		}
		for kind, claims := range jobClaims() {
			shown := p.token(t, kind)
			for audience := range map[string]bool{"github": true, "gitlab": true, "kubernetes": true, "elsewhere": true} {
				var body map[string]any
				get := func() bool {
					_, body = w.post(t, token.TokenPath, exchange(shown, "audience", audience, "scope", ""), nil)
					return body["error"] != "temporarily_unavailable"
				}
				until(t, "the provider's new key is fetched", get)
				if audience != kind {
					if body["error"] != "invalid_target" || body["access_token"] != nil {
						t.Errorf("a job of %s for %s: %v", kind, audience, body)
					}
					continue
				}
				compact, _ := body["access_token"].(string)
				verified, err := w.Board().Verify(ordersTokens, compact, token.Expect{Audience: kind, Type: token.AccessToken})
				if err != nil || verified.Subject != fmt.Sprintf("%s/%s", kind, claims["sub"]) {
					t.Errorf("a job of %s: %v, %+v, %v", kind, body, verified, err)
				}
			}
		}
	}
}
