package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/token"
)

// authority issues certificates of clients.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "clients.pem")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	a.cert, a.key, der = a.sign(template, nil, nil)
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, private.Public(), by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, private, der
}

// issue makes a client's certificate with a name; edit may spoil it.
func (a *authority) issue(name string, edit func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	u, err := url.Parse(name)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{u},
	}
	if edit != nil {
		edit(template)
	}
	_, private, der := a.sign(template, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// with is a client with connections of its own, which shows a certificate.
func with(t *testing.T, client *http.Client, certificate tls.Certificate) *http.Client {
	t.Helper()
	config := client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.Certificates = []tls.Certificate{certificate}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func thumbprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// resource is a service that goes by introspection, and by the certificate that its
// caller shows (RFC 8705, section 3).
func resource(t *testing.T, introspect func(compact string) map[string]any) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		compact, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		body := introspect(compact)
		cnf, _ := body["cnf"].(map[string]any)
		if !isActive(body) || len(r.TLS.PeerCertificates) == 0 || cnf["x5t#S256"] != thumbprint(tls.Certificate{Certificate: [][]byte{r.TLS.PeerCertificates[0].Raw}}) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// TestTokensBoundToCertificates: a client with a certificate of the rule's authority
// gets a token that counts for whoever shows that certificate, and for nobody else;
// so does a job whose rule demands it. Certificates that prove nothing get none.
func TestTokensBoundToCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	u := newUpstream(t)
	config := signingConfig(t.TempDir())
	config.Tokens.ClientCertificates = true
	w := brokering(t, config, u, fmt.Sprintf(`      - name: batch
        from: {certificate: {ca: %q, names: ["spiffe://example.com/batch/*"]}}
        audiences: [orders]
        bind: mtls
      - name: jobs
        from: {issuer: %q, audience: %q, claims: {repository: acme/*, ref: refs/heads/mtls}}
        audiences: [orders]
        bind: mtls
`, ca.file, u.URL, jobAudience))
	form := url.Values{"grant_type": {"client_credentials"}}
	own := ca.issue("spiffe://example.com/batch/nightly", nil)
	answer, body := w.postBy(t, with(t, w.http, own), token.TokenPath, form, nil)
	if answer.StatusCode != http.StatusOK || body["token_type"] != "Bearer" {
		t.Fatalf("%s %v", answer.Status, body)
	}
	compact := body["access_token"].(string)
	verifier := w.token(t, "api", "verifier", "prod/**")
	inspect := func(compact string) map[string]any {
		_, body := w.post(t, token.IntrospectPath, url.Values{"token": {compact}}, map[string]string{"Authorization": "Bearer " + verifier})
		return body
	}
	if cnf, _ := inspect(compact)["cnf"].(map[string]any); cnf["x5t#S256"] != thumbprint(own) {
		t.Errorf("introspected: %v", cnf)
	}
	service := resource(t, inspect)
	shown := func(compact string, certificate tls.Certificate) int {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, service.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+compact)
		response, err := with(t, service.Client(), certificate).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Fatal(err)
		}
		return response.StatusCode
	}
	// The thief has the token, and a good certificate of its own, for the same name.
	thief := ca.issue("spiffe://example.com/batch/nightly", nil)
	for what, one := range map[string]struct {
		certificate tls.Certificate
		want        int
	}{"its own certificate": {own, http.StatusOK}, "another one": {thief, http.StatusUnauthorized}, "none": {tls.Certificate{}, http.StatusUnauthorized}} {
		if got := shown(compact, one.certificate); got != one.want {
			t.Errorf("with %s: %d", what, got)
		}
	}

	// A job binds its token to whatever key it has; who vouches for that does not matter.
	self := other.issue("spiffe://anywhere/job", nil)
	job := exchange(u.job(map[string]any{"ref": "refs/heads/mtls"}), "scope", "")
	if answer, body := w.postBy(t, with(t, w.http, self), token.TokenPath, job, nil); answer.StatusCode != http.StatusOK || shown(body["access_token"].(string), self) != http.StatusOK {
		t.Errorf("%s %v", answer.Status, body)
	} else if got := shown(body["access_token"].(string), own); got != http.StatusUnauthorized {
		t.Errorf("a job's token with another certificate: %d", got)
	}
	if answer, body := w.post(t, token.TokenPath, job, nil); answer.StatusCode != http.StatusBadRequest || body["error"] != "invalid_request" {
		t.Errorf("a job without a certificate: %s %v", answer.Status, body)
	}

	for what, one := range map[string]struct {
		certificate tls.Certificate
		code        string
	}{
		"none":                  {tls.Certificate{}, "invalid_client"},
		"of another authority":  {other.issue("spiffe://example.com/batch/nightly", nil), "invalid_client"},
		"expired":               {ca.issue("spiffe://example.com/batch/nightly", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "invalid_client"},
		"for servers":           {ca.issue("spiffe://example.com/batch/nightly", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "invalid_client"},
		"of another name":       {ca.issue("spiffe://example.com/web/nightly", nil), "unauthorized_client"},
		"of a deeper name":      {ca.issue("spiffe://example.com/batch/nightly/evil", nil), "unauthorized_client"},
		"of another trust zone": {ca.issue("spiffe://evil.example/spiffe://example.com/batch/x", nil), "unauthorized_client"},
	} {
		client := w.http
		if one.certificate.PrivateKey != nil {
			client = with(t, w.http, one.certificate)
		}
		if answer, body := w.postBy(t, client, token.TokenPath, form, nil); body["error"] != one.code || body["access_token"] != nil {
			t.Errorf("a certificate %s: %s %v", what, answer.Status, body)
		}
	}
	if _, meta := w.ask(t, http.MethodGet, "/orders/.well-known/openid-configuration", nil); !strings.Contains(meta, `"tls_client_certificate_bound_access_tokens":true`) {
		t.Errorf("the metadata does not say that tokens are bound: %s", meta)
	}
}
