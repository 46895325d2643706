package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/secret"
)

// TestNoCallerSeesAnOutage: an issuer that is down for a fifth of a token's life, at
// any moment and in any way, is an error for no caller over a day, and is asked little.
func TestNoCallerSeesAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		s := i.open(nil)
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		chance := rand.New(rand.NewPCG(1, 2))
		end, outages := time.Now().Add(24*time.Hour), 0
		var upAgain time.Time
		for time.Now().Before(end) {
			switch {
			case upAgain.IsZero() && chance.IntN(200) == 0:
				outages++
				upAgain = time.Now().Add(i.life / 5)
				i.set(func(i *issuer) {
					i.hangs, i.trouble = outages%3 == 0, unavailable
					if outages%3 == 1 {
						i.trouble = func(*http.Request) *http.Response { return answerOf(http.StatusBadGateway, "<html>") }
					}
				})
			case !upAgain.IsZero() && time.Now().After(upAgain.Add(i.life)):
				upAgain = time.Time{} // the next outage may come
			case !upAgain.IsZero() && time.Now().After(upAgain):
				i.set(func(i *issuer) { i.hangs, i.trouble = false, nil })
			}
			token, err := s.Token(t.Context())
			if err != nil || i.left(token) < 0 || token.Type != "Bearer" || len(token.Scopes) != 1 {
				t.Fatalf("%v, %+v, valid for %v, status %+v", err, token, i.left(token), s.Status())
			}
			time.Sleep(time.Second)
		}
		// Half to two thirds of the life is 150 to 200 s, and an outage adds some tries.
		if n := i.requests(); outages < 20 || n < 400 || n > 600+outages*25 || i.most != 1 {
			t.Errorf("%d outages, %d requests, %d at a time", outages, n, i.most)
		}
	})
}

// TestEveryProcessComesBackInTime: the nearer the end of a token, the shorter the pauses,
// so that none of many processes misses the issuer's return, however the outage looked.
func TestEveryProcessComesBackInTime(t *testing.T) {
	for what, hangs := range map[string]bool{"refused": false, "hanging": true} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				i := newIssuer(t)
				i.life = time.Minute
				var all []*tokensource.Source
				for range 200 {
					all = append(all, i.open(func(c *tokensource.Config) { c.RequestTimeout = 2 * time.Second }))
				}
				// Just before the last moment to refresh, for a fifth of the life.
				time.Sleep(39 * time.Second)
				i.set(func(i *issuer) { i.trouble, i.hangs = unavailable, hangs })
				time.Sleep(i.life / 5)
				i.set(func(i *issuer) { i.trouble, i.hangs = nil, false })
				for range 60 {
					time.Sleep(500 * time.Millisecond)
					for _, s := range all {
						if token, err := s.Token(within(t, time.Millisecond)); err != nil || i.left(token) < 0 {
							t.Fatalf("%v, %+v", err, s.Status())
						}
					}
				}
			})
		})
	}
}

// TestCallersShareOneRequest: a thousand callers make one request.
func TestCallersShareOneRequest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		i.takes = time.Second
		s := i.open(nil)
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if token, err := s.Token(t.Context()); err != nil || token.Value.RevealString() != "token-1" {
					t.Errorf("%v, %v", token, err)
				}
			})
		}
		all.Wait()
		if n := i.requests(); n != 1 {
			t.Errorf("%d requests", n)
		}
		form := i.forms[0]
		if form.Get("grant_type") != "client_credentials" || form.Get("audience") != "orders" || form.Get("scope") != "orders:read" || i.hosts[0] != issuerURL+"/oauth/token" {
			t.Errorf("%v at %v", form, i.hosts)
		}
	})
}

// TestCallersWaitNoLongerThanTheirContext, and without one as long as MaxWait.
func TestCallersWaitNoLongerThanTheirContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		i.hangs = true
		s := i.open(nil)
		began := time.Now()
		if _, err := s.Token(within(t, 70*time.Millisecond)); !errors.Is(err, tokensource.ErrNoToken) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 70*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		began = time.Now()
		if _, err := s.Token(t.Context()); !errors.Is(err, tokensource.ErrNoToken) || time.Since(began) != 30*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		began = time.Now()
		closed := make(chan error)
		go func() {
			_, err := s.Token(t.Context())
			closed <- err
		}()
		synctest.Wait()
		s.Close()
		if err := <-closed; !errors.Is(err, tokensource.ErrClosed) || time.Since(began) != 0 {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
	})
}

// TestIssuerIsNeverHammered: whatever is wrong and however many callers wait, the
// issuer is asked with pauses that grow, and not before it says.
func TestIssuerIsNeverHammered(t *testing.T) {
	for what, one := range map[string]struct {
		trouble func(*http.Request) *http.Response
		most    int
		pause   time.Duration
	}{
		"down":    {unavailable, 300, 0},
		"refuses": {func(*http.Request) *http.Response { return answerOf(401, `{"error":"invalid_client"}`) }, 150, 0},
		"a flood of nonce": {func(*http.Request) *http.Response {
			return answerOf(400, `{"error":"use_dpop_nonce"}`, "DPoP-Nonce", "n")
		}, 300, 0},
		"busy": {func(*http.Request) *http.Response {
			return answerOf(429, `{"error":"temporarily_unavailable"}`, "Retry-After", "120")
		}, 31, 120 * time.Second},
		"too short a life": {func(*http.Request) *http.Response {
			return answerOf(200, `{"access_token":"a","token_type":"Bearer","expires_in":1}`)
		}, 3610, time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				i := newIssuer(t)
				i.trouble = one.trouble
				s := i.open(nil)
				ctx, cancel := context.WithCancel(t.Context())
				var all sync.WaitGroup
				for range 5 {
					all.Go(func() {
						for ctx.Err() == nil {
							if token, err := s.Token(ctx); err == nil {
								_, _ = s.Renew(ctx, token)
							}
							time.Sleep(time.Second)
						}
					})
				}
				time.Sleep(time.Hour)
				cancel()
				all.Wait()
				if n := i.requests(); n > one.most || n < 3 {
					t.Errorf("%d requests in an hour", n)
				}
				for n := 1; n < len(i.asked); n++ {
					if pause := i.asked[n].Sub(i.asked[n-1]); pause < one.pause || pause < 100*time.Millisecond {
						t.Fatalf("request %d came after %v", n, pause)
					}
				}
			})
		})
	}
}

// TestProcessesDoNotAskTogether: those that started at one moment are spread soon.
func TestProcessesDoNotAskTogether(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		const processes = 200
		for range processes {
			i.open(nil)
		}
		time.Sleep(20 * time.Minute)
		i.mu.Lock()
		defer i.mu.Unlock()
		perSecond := map[int64]int{}
		for _, at := range i.asked[processes:] {
			perSecond[at.Unix()]++
		}
		for second, n := range perSecond {
			if n > processes/10 {
				t.Errorf("%d requests in second %d", n, second)
			}
		}
	})
}

// TestRefusal: what the broker refuses is told at once, with its word; a token that is
// held is used to its end, and the status says since when.
func TestRefusal(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		s := i.open(nil)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i.set(func(i *issuer) {
			i.trouble = func(*http.Request) *http.Response {
				return answerOf(400, `{"error":"unauthorized_client","error_description":"no rule\nfits"}`)
			}
		})
		for time.Since(first.Issued) < 284*time.Second {
			if token, err := s.Token(t.Context()); err != nil || !token.Value.Equal(first.Value) {
				t.Fatalf("after %v: %v", time.Since(first.Issued), err)
			}
			time.Sleep(time.Second)
		}
		if st := s.Status(); st.Failures == 0 || !st.Success.Equal(first.Issued) || !st.Expires.Equal(first.Expires) || st.Next.Before(time.Now().Add(-time.Second)) {
			t.Errorf("%+v", st)
		}
		time.Sleep(10 * time.Second)
		began := time.Now()
		var refusal *tokensource.Refusal
		if _, err := s.Token(t.Context()); !errors.As(err, &refusal) || refusal.Code != "unauthorized_client" || refusal.Description != "no rulefits" || time.Since(began) != 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		i.set(func(i *issuer) { i.trouble = nil })
		time.Sleep(2 * time.Minute)
		if token, err := s.Token(t.Context()); err != nil || token.Value.Equal(first.Value) {
			t.Errorf("when it is granted again: %v", err)
		}
	})
}

// TestFrozenProcess: after hours in which neither the process nor its timers ran, an
// old token is not taken for a new one, and there is one at once.
func TestFrozenProcess(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		var slept atomic.Int64
		s := i.open(func(c *tokensource.Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(slept.Load())) }
		})
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slept.Store(int64(3 * time.Hour))
		began := time.Now()
		if token, err := s.Token(t.Context()); err != nil || token.Value.Equal(first.Value) || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestSubjectIsReadAnew: a platform replaces the token in the file; each exchange takes
// the one of then. A file that is missing is told, and tried again.
func TestSubjectIsReadAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		s := i.open(func(c *tokensource.Config) { c.Secret, c.Subject = nil, client.TokenFile(path) })
		synctest.Wait()
		if _, err := s.Token(t.Context()); !errors.Is(err, client.ErrToken) || i.requests() != 0 {
			t.Errorf("without a file: %v", err)
		}
		for n := range 3 {
			if err := os.WriteFile(path, fmt.Appendf(nil, "subject-%d\n", n), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute)
			if _, err := s.Token(t.Context()); err != nil {
				t.Error(err)
			}
			form := i.forms[len(i.forms)-1]
			if form.Get("subject_token") != fmt.Sprint("subject-", n) || form.Get("subject_token_type") != tokensource.TypeJWT || !strings.HasSuffix(form.Get("grant_type"), "token-exchange") {
				t.Errorf("%v", form)
			}
		}
	})
}

// TestNextServerIsAsked: of several servers one that is down is left for another.
func TestNextServerIsAsked(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		i.trouble = func(r *http.Request) *http.Response {
			if r.URL.Host == "a.example.com" {
				return unavailable(r)
			}
			return nil
		}
		for range 8 {
			s := i.open(func(c *tokensource.Config) { c.Addresses = "https://a.example.com, b.example.com/" })
			if _, err := s.Token(within(t, 5*time.Second)); err != nil {
				t.Error(err)
			}
		}
		if all := strings.Join(i.hosts, " "); !strings.Contains(all, "https://a.example.com/orders/oauth/token") || !strings.Contains(all, "https://b.example.com/orders/oauth/token") {
			t.Error(all)
		}
	})
}

// TestRenew: a token that was refused somewhere is replaced, for all callers at once,
// and not again within seconds.
func TestRenew(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		s := i.open(nil)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Renew(t.Context(), first); !errors.Is(err, tokensource.ErrNoToken) {
			t.Errorf("one that is a moment old: %v", err)
		}
		time.Sleep(10 * time.Second)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if token, err := s.Renew(t.Context(), first); err != nil || token.Value.RevealString() != "token-2" {
					t.Errorf("%v, %v", token, err)
				}
			})
		}
		all.Wait()
		if token, err := s.Token(t.Context()); err != nil || token.Value.RevealString() != "token-2" || i.requests() != 2 {
			t.Errorf("%v, %v, %d requests", token, err, i.requests())
		}
		// While the broker is away the one that is held goes on.
		time.Sleep(10 * time.Second)
		i.set(func(i *issuer) { i.trouble = unavailable })
		second, _ := s.Token(t.Context())
		if _, err := s.Renew(t.Context(), second); !errors.Is(err, tokensource.ErrNoToken) {
			t.Error(err)
		}
		if token, err := s.Token(t.Context()); err != nil || !token.Value.Equal(second.Value) {
			t.Errorf("%v, %v", token, err)
		}
	})
}

// TestShortTokensOfABrokerInTrouble: one that can count tokens no longer gives some
// that live short; the one with the later end is kept.
func TestShortTokensOfABrokerInTrouble(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		s := i.open(nil)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i.set(func(i *issuer) { i.life = 30 * time.Second })
		time.Sleep(210 * time.Second)
		if token, err := s.Token(t.Context()); err != nil || !token.Value.Equal(first.Value) || i.requests() < 2 {
			t.Errorf("%v, %d requests", err, i.requests())
		}
		for range 600 {
			if token, err := s.Token(t.Context()); err != nil || i.left(token) < 0 {
				t.Fatalf("%v", err)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestOAuth2: libraries get tokens in the form they know.
func TestOAuth2(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		i := newIssuer(t)
		s := i.open(nil)
		token, err := s.OAuth2(t.Context()).Token()
		if err != nil || token.AccessToken != "token-1" || token.Type() != "Bearer" || !token.Valid() {
			t.Errorf("%v, %v", token, err)
		}
	})
}

// TestConfig: what is wrong is told before anything is sent, without a secret.
func TestConfig(t *testing.T) {
	for what, change := range map[string]func(*tokensource.Config){
		"no issuer":             func(c *tokensource.Config) { c.Issuer = "" },
		"in the clear":          func(c *tokensource.Config) { c.Issuer = "http://keys.example.com/orders" },
		"a user":                func(c *tokensource.Config) { c.Issuer = "https://the-secret@keys.example.com/orders" },
		"a query":               func(c *tokensource.Config) { c.Issuer += "?a=b" },
		"a slash":               func(c *tokensource.Config) { c.Issuer += "/" },
		"a server in the clear": func(c *tokensource.Config) { c.Addresses = "https://a,http://b" },
		"too many servers":      func(c *tokensource.Config) { c.Addresses = strings.Repeat("https://a,", 20) + "https://a" },
		"two identities":        func(c *tokensource.Config) { c.Subject = c.Secret },
		"none":                  func(c *tokensource.Config) { c.Secret = nil },
		"two scopes in one":     func(c *tokensource.Config) { c.Scopes = []string{"a b"} },
		"a backoff":             func(c *tokensource.Config) { c.BackoffMin = time.Minute },
		"a negative time":       func(c *tokensource.Config) { c.MaxWait = -1 },
		"no authorities":        func(c *tokensource.Config) { c.HTTPClient, c.CACertFile = nil, "/nowhere" },
	} {
		config := newIssuer(t).config()
		change(&config)
		if s, err := tokensource.Open(t.Context(), config); !errors.Is(err, tokensource.ErrConfig) || strings.Contains(err.Error(), "the-secret") {
			t.Errorf("%s: %v", what, err)
			if s != nil {
				s.Close()
			}
		}
	}
}

// FuzzAnswer: whatever a broker answers, a token is accepted only if it can be sent, has
// the type that was asked for and a life within bounds; errors are short and printable.
func FuzzAnswer(f *testing.F) {
	good := `{"access_token":"abc","token_type":"Bearer","expires_in":300,"scope":"a b"}`
	for _, body := range []string{good, "", "{}", "[]", `{"error":"invalid_client","error_description":"x"}`, strings.Replace(good, "300", "1e300", 1), strings.Replace(good, "abc", "a\\nb", 1), strings.Replace(good, "Bearer", "DPoP", 1)} {
		f.Add(200, []byte(body), "", "", false)
		f.Add(400, []byte(body), "10", "nonce", true)
	}
	f.Add(429, []byte("{}"), "Wed, 21 Oct 2065 07:28:00 GMT", "a b", true)
	f.Fuzz(func(t *testing.T, status int, body []byte, after, nonce string, bound bool) {
		header := http.Header{}
		header.Set("Retry-After", after)
		header.Set("DPoP-Nonce", nonce)
		token, nonce, wait, err := tokensource.ReadAnswer(status, header, body, bound)
		if wait < 0 || wait > tokensource.MaxRetryAfter {
			t.Errorf("it waits %v", wait)
		}
		if strings.ContainsAny(nonce, "\r\n \"") || len(nonce) > 512 {
			t.Errorf("nonce %q", nonce)
		}
		if err != nil {
			if token.Value.Len() != 0 || len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\r\n\x00\x1b") {
				t.Errorf("%q", err)
			}
			return
		}
		life := token.Expires.Sub(token.Issued)
		text := token.Value.RevealString()
		if status != 200 || bound != (token.Type == "DPoP") || life < time.Second || life > tokensource.MaxLife || text == "" || len(text) > tokensource.MaxToken ||
			strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' }) {
			t.Errorf("accepted %q for %v", text, life)
		}
	})
}

// TestNothingSecretIsPrinted: neither errors nor logs nor the values themselves show a token.
func TestNothingSecretIsPrinted(t *testing.T) {
	token := tokensource.Token{Value: secret.NewString("the-secret"), Type: "Bearer"}
	if text := fmt.Sprintf("%v %+v %#v", token, token, token); strings.Contains(text, "the-secret") {
		t.Error(text)
	}
}
