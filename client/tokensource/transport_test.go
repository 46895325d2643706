package tokensource_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/dpop"
)

// resource is a service without a network.
type resource struct {
	mu sync.Mutex
	// answer is its answer to the n-th request.
	answer func(n int, r *http.Request) *http.Response
	// fail is what breaks its connection; may be nil.
	fail   func(n int) error
	seen   []*http.Request
	bodies []string
}

func (a *resource) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		all, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		body = string(all)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen, a.bodies = append(a.seen, r), append(a.bodies, body)
	if a.fail != nil {
		if err := a.fail(len(a.seen)); err != nil {
			return nil, err
		}
	}
	return a.answer(len(a.seen), r), nil
}

func (i *issuer) through(a *resource, change func(*tokensource.Config), hosts ...string) *http.Client {
	i.t.Helper()
	transport, err := i.open(change).Transport(a, hosts...)
	if err != nil {
		i.t.Fatal(err)
	}
	return &http.Client{Transport: transport}
}

// do returns the status of the answer.
func do(t *testing.T, c *http.Client, method, url, body string) (int, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(r)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

// TestTransport: a token goes with each request; one that is refused is replaced once,
// and the request is sent again as it was, once.
func TestTransport(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		a := &resource{answer: func(_ int, r *http.Request) *http.Response {
			if r.Header.Get("Authorization") == "Bearer token-1" {
				return answerOf(http.StatusUnauthorized, "", "WWW-Authenticate", `Bearer error="invalid_token"`)
			}
			return answerOf(http.StatusOK, "")
		}}
		c := i.through(a, nil, "orders.example.com")
		time.Sleep(10 * time.Second)
		status, err := do(t, c, http.MethodPost, "https://orders.example.com/a?b=c", "the body")
		if err != nil || status != http.StatusOK || len(a.seen) != 2 || a.bodies[0] != "the body" || a.bodies[1] != "the body" || i.requests() != 2 {
			t.Fatalf("%d, %v, %q, %d requests for tokens", status, err, a.bodies, i.requests())
		}
		if a.seen[1].URL.String() != "https://orders.example.com/a?b=c" || a.seen[1].Method != http.MethodPost {
			t.Errorf("%v", a.seen[1].URL)
		}
		// One that refuses everything gets two requests, then one each: the broker is spared.
		a.answer = func(int, *http.Request) *http.Response { return answerOf(http.StatusUnauthorized, "") }
		time.Sleep(10 * time.Second)
		for range 20 {
			if status, err := do(t, c, http.MethodGet, "https://orders.example.com/", ""); err != nil || status != http.StatusUnauthorized {
				t.Errorf("%d, %v", status, err)
			}
		}
		if len(a.seen) != 23 || i.requests() != 3 {
			t.Errorf("%d requests, %d for tokens", len(a.seen), i.requests())
		}
	})
}

// TestBodyThatCannotBeHadAgain: the refusal is what the caller gets, whole; so is the
// error of a second attempt.
func TestBodyThatCannotBeHadAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		a := &resource{answer: func(int, *http.Request) *http.Response { return answerOf(http.StatusUnauthorized, "why") }}
		c := i.through(a, nil, "orders.example.com")
		time.Sleep(10 * time.Second)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://orders.example.com/", io.MultiReader(strings.NewReader("once")))
		if err != nil {
			t.Fatal(err)
		}
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); err != nil || string(body) != "why" || response.StatusCode != http.StatusUnauthorized || len(a.seen) != 1 || i.requests() != 1 {
			t.Errorf("%q, %v, %d requests, %d for tokens", body, err, len(a.seen), i.requests())
		}
		cut := errors.New("the connection was cut")
		a.fail = func(n int) error {
			if n == 3 {
				return cut
			}
			return nil
		}
		if _, err := do(t, c, http.MethodGet, "https://orders.example.com/", ""); !errors.Is(err, cut) || len(a.seen) != 3 {
			t.Errorf("%v after %d requests", err, len(a.seen))
		}
	})
}

// TestTokenGoesToNoOtherHost: neither by mistake, nor by a redirect, nor in the clear.
func TestTokenGoesToNoOtherHost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		a := &resource{answer: func(_ int, r *http.Request) *http.Response {
			if r.URL.Path == "/away" {
				return answerOf(http.StatusFound, "", "Location", "https://evil.example.com/")
			}
			return answerOf(http.StatusOK, "")
		}}
		c := i.through(a, nil, "orders.example.com", "127.0.0.1:8080")
		for _, url := range []string{
			"https://evil.example.com/", "https://orders.example.com.evil.example/", "http://orders.example.com/", "https://orders.example.com:8443/",
			"https://orders.example.com/away",
		} {
			if _, err := do(t, c, http.MethodGet, url, ""); !errors.Is(err, tokensource.ErrHost) {
				t.Errorf("%s: %v", url, err)
			}
		}
		for _, url := range []string{"https://ORDERS.example.com:443/", "http://127.0.0.1:8080/"} {
			if _, err := do(t, c, http.MethodGet, url, ""); err != nil {
				t.Errorf("%s: %v", url, err)
			}
		}
		for _, r := range a.seen {
			if strings.Contains(r.URL.Host, "evil") {
				t.Errorf("a request went to %s", r.URL)
			}
		}
		s := i.open(nil)
		for _, hosts := range [][]string{nil, {"https://a"}, {"a/b"}, {""}, {"a@b"}} {
			if _, err := s.Transport(nil, hosts...); !errors.Is(err, tokensource.ErrConfig) {
				t.Errorf("%q: %v", hosts, err)
			}
		}
	})
}

// TestProofs: with DPoP each request has a proof of its own for its method, URL, token
// and the last nonce; the broker and a resource may demand a nonce, by turns.
func TestProofs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		var mu sync.Mutex
		var ours string
		seen := dpop.NewSeen(1000)
		i.trouble = func(r *http.Request) *http.Response {
			proof, err := dpop.Check(r.Header.Get("DPoP"), &dpop.Expect{Method: "POST", URL: issuerURL + "/oauth/token", Now: time.Now(), Nonce: func(n string) bool { return n == "of-the-broker" }})
			if errors.Is(err, dpop.ErrNonce) {
				return answerOf(400, `{"error":"use_dpop_nonce"}`, "DPoP-Nonce", "of-the-broker")
			}
			if err == nil {
				err = seen.Add(&proof, time.Now())
			}
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			ours = proof.Thumbprint
			mu.Unlock()
			return nil
		}
		nonce := "first"
		a := &resource{}
		a.answer = func(_ int, r *http.Request) *http.Response {
			token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "DPoP ")
			of, err := thumbprint(r, dpop.Expect{Token: token, Nonce: func(n string) bool { return n == nonce }})
			if errors.Is(err, dpop.ErrNonce) {
				return answerOf(401, "", "DPoP-Nonce", nonce, "WWW-Authenticate", `DPoP algs="ES256", error="use_dpop_nonce"`)
			}
			if err != nil || of != ours {
				t.Errorf("%v, key %s, want %s", err, of, ours)
			}
			return answerOf(200, "")
		}
		c := i.through(a, func(c *tokensource.Config) { c.DPoP = true }, "orders.example.com")
		for n, want := range []int{2, 3, 5, 6} {
			if n == 2 {
				nonce = "second" // the resource has restarted
			}
			status, err := do(t, c, http.MethodPost, "https://orders.example.com/a/b?c=d", "body")
			if err != nil || status != http.StatusOK || len(a.seen) != want {
				t.Errorf("request %d: %d, %v, %d sent", n, status, err, len(a.seen))
			}
		}
		if i.requests() != 2 {
			t.Errorf("%d requests for a token", i.requests())
		}
		if p, q := a.seen[1].Header.Get("DPoP"), a.seen[2].Header.Get("DPoP"); p == q {
			t.Error("a proof was sent twice")
		}
	})
}

// TestWrongClock: the broker's clock is taken over for proofs when ours is wrong.
func TestWrongClock(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		i.trouble = func(r *http.Request) *http.Response {
			if _, err := dpop.Check(r.Header.Get("DPoP"), &dpop.Expect{Method: "POST", URL: issuerURL + "/oauth/token", Now: time.Now()}); err != nil {
				return answerOf(400, `{"error":"invalid_dpop_proof"}`)
			}
			return nil
		}
		s := i.open(func(c *tokensource.Config) {
			c.DPoP, c.Now = true, func() time.Time { return time.Now().Add(-7 * time.Hour) }
		})
		if _, err := s.Token(within(t, time.Second)); err != nil || i.requests() != 2 {
			t.Errorf("%v after %d requests", err, i.requests())
		}
	})
}

// TestDowngrade: a token that is not bound, though that was asked for, is refused.
func TestDowngrade(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		i.trouble = func(*http.Request) *http.Response {
			return answerOf(200, `{"access_token":"abc","token_type":"Bearer","expires_in":300}`)
		}
		s := i.open(func(c *tokensource.Config) { c.DPoP = true })
		if _, err := s.Token(within(t, time.Second)); !errors.Is(err, tokensource.ErrNoToken) {
			t.Error(err)
		}
	})
}
