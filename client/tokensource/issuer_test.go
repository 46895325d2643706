package tokensource_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/dpop"
	"github.com/keyturn/keyturn/secret"
)

const issuerURL = "https://keys.example.com/orders"

// issuer is a broker without a network, so that it can stand in a bubble.
type issuer struct {
	t  *testing.T
	mu sync.Mutex
	// life is that of its tokens; trouble answers instead, nil for a good answer.
	life    time.Duration
	trouble func(r *http.Request) *http.Response
	// hangs: it does not answer before the request is given up; takes is how long it takes.
	hangs bool
	takes time.Duration
	// asked is when requests came, hosts where to; forms are what they said.
	asked []time.Time
	hosts []string
	forms []url.Values
	// ends is when each token ends.
	ends   map[string]time.Time
	flying int
	most   int
}

func newIssuer(t *testing.T) *issuer {
	return &issuer{t: t, life: 5 * time.Minute, ends: map[string]time.Time{}}
}

func (i *issuer) config() tokensource.Config {
	return tokensource.Config{
		Issuer: issuerURL, Audiences: []string{"orders"}, Scopes: []string{"orders:read"},
		Secret: client.StaticToken(secret.NewString("the-secret")), HTTPClient: &http.Client{Transport: i},
	}
}

func (i *issuer) open(change func(*tokensource.Config)) *tokensource.Source {
	i.t.Helper()
	config := i.config()
	if change != nil {
		change(&config)
	}
	s, err := tokensource.Open(i.t.Context(), config)
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(s.Close)
	return s
}

func answerOf(status int, body string, header ...string) *http.Response {
	response := &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
	response.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	for n := 0; n < len(header); n += 2 {
		response.Header.Set(header[n], header[n+1])
	}
	return response
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	i.asked, i.hosts, i.forms = append(i.asked, time.Now()), append(i.hosts, r.URL.String()), append(i.forms, form)
	i.flying++
	i.most = max(i.most, i.flying)
	hangs, takes, trouble, life, n := i.hangs, i.takes, i.trouble, i.life, len(i.asked)
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		i.flying--
		i.mu.Unlock()
	}()
	if hangs {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	select {
	case <-time.After(takes):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if trouble != nil {
		if response := trouble(r); response != nil {
			return response, nil
		}
	}
	kind := "Bearer"
	if r.Header.Get("DPoP") != "" {
		kind = "DPoP"
	}
	token := fmt.Sprintf("token-%d", n)
	i.mu.Lock()
	i.ends[token] = time.Now().Add(life)
	i.mu.Unlock()
	return answerOf(http.StatusOK, fmt.Sprintf(`{"access_token":%q,"token_type":%q,"expires_in":%d,"scope":"orders:read"}`, token, kind, int(life.Seconds()))), nil
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) requests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.asked)
}

// left is how long a token is valid by the issuer's word.
func (i *issuer) left(t tokensource.Token) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return time.Until(i.ends[t.Value.RevealString()])
}

func inBubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// within is a context that ends.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func unavailable(*http.Request) *http.Response {
	return answerOf(http.StatusServiceUnavailable, `{"error":"temporarily_unavailable"}`)
}

// thumbprint is that of the key of a proof for a request.
func thumbprint(r *http.Request, expect dpop.Expect) (string, error) {
	expect.Method, expect.URL, expect.Now = r.Method, r.URL.String(), time.Now()
	proof, err := dpop.Check(r.Header.Get("DPoP"), &expect)
	if err != nil {
		return "", err
	}
	if _, err := jose.ParseSignedCompact(r.Header.Get("DPoP"), []jose.SignatureAlgorithm{jose.ES256}); err != nil {
		return "", err
	}
	return proof.Thumbprint, nil
}
