package broker_test

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/secret"
)

// TestKeysOfIssuers: a key that an issuer has withdrawn is trusted for minutes at the
// most, one that is new at once; while the issuer is away keys are used on, for an
// hour; tokens of unknown keys do not make this server flood it.
func TestKeysOfIssuers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, newStore(), nil)
		n.must(byJob(n.jobs.token(nil)))
		leaked := n.jobs.token(map[string]any{"exp": time.Now().Add(20 * time.Hour).Unix()})
		n.jobs.rotate(false)
		time.Sleep(10 * time.Second)
		n.must(byJob(n.jobs.token(nil))) // the new key, without waiting
		time.Sleep(5 * time.Minute)
		n.refuses("a key that was withdrawn", byJob(leaked), broker.ErrRequest)

		before := n.jobs.count()
		stranger := newJobs(t)
		for range 200 {
			n.refuses("an unknown key", byJob(stranger.token(nil)), broker.ErrRequest)
			time.Sleep(100 * time.Millisecond)
		}
		if fetches := n.jobs.count() - before; fetches > 2*6 { // metadata and keys, every 5 s of 20
			t.Errorf("%d fetches", fetches)
		}

		n.jobs.change(func() { n.jobs.away = true })
		time.Sleep(50 * time.Minute)
		n.must(byJob(n.jobs.token(nil)))
		time.Sleep(15 * time.Minute)
		n.refuses("without keys for an hour", byJob(n.jobs.token(nil)), broker.ErrAway)
		n.jobs.change(func() { n.jobs.away = false })
		time.Sleep(6 * time.Second)
		n.must(byJob(n.jobs.token(nil)))
	})
}

// TestNewKeyOfAnIssuer: a token of a key that the issuer has made since it was asked is
// not turned away for good: who shows it is told to ask again, and then let in.
func TestNewKeyOfAnIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, newStore(), nil)
		n.must(byJob(n.jobs.named("first")))
		n.refuses("a name that nobody has", byJob(n.jobs.named("second")), broker.ErrAway)
		n.jobs.change(func() { n.jobs.name = "second" })
		n.refuses("a moment later", byJob(n.jobs.named("second")), broker.ErrAway)
		time.Sleep(5 * time.Second)
		n.must(byJob(n.jobs.named("second")))
	})
}

// TestAnswersOfIssuers: an issuer that answers nonsense lets nobody in, and does no
// harm.
func TestAnswersOfIssuers(t *testing.T) {
	for what, answer := range map[string]map[string]string{
		"metadata of another issuer": {"/.well-known/openid-configuration": `{"issuer":"https://evil.example","jwks_uri":"https://jobs.example.com/keys"}`},
		"keys in plain text":         {"/.well-known/openid-configuration": `{"issuer":"` + issuer + `","jwks_uri":"http://jobs.example.com/keys"}`},
		"no JSON":                    {"/keys": "<html>"},
		"no keys":                    {"/keys": `{"keys":[]}`},
		"a shared secret":            {"/keys": `{"keys":[{"kty":"oct","k":"AAAA"}]}`},
		"a megabyte":                 {"/keys": `{"keys":[],"x":"` + strings.Repeat("a", 1<<20) + `"}`},
		"too many keys":              {"/keys": `{"keys":[` + strings.Repeat(`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},`, 100) + `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`},
	} {
		n := newNode(t, newStore(), nil)
		n.jobs.change(func() { n.jobs.answer = answer })
		if _, err := n.Give(t.Context(), byJob(n.jobs.token(nil))); !errors.Is(err, broker.ErrAway) {
			t.Errorf("%s: %v", what, err)
		}
	}
	n := newNode(t, newStore(), nil)
	private := jose.JSONWebKey{Key: n.jobs.private[0], KeyID: "0"}
	body, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{private}})
	if err != nil {
		t.Fatal(err)
	}
	n.jobs.change(func() { n.jobs.answer["/keys"] = string(body) })
	if _, err := n.Give(t.Context(), byJob(n.jobs.token(nil))); !errors.Is(err, broker.ErrAway) {
		t.Errorf("a private key that an issuer published by mistake: %v", err)
	}
}

// FuzzSubject: whatever is shown as the token of a job, only what the issuer signed
// gets a token.
func FuzzSubject(f *testing.F) {
	n := newNode(f, newStore(), nil)
	good := n.jobs.token(nil)
	f.Add(good)
	f.Add(newJobs(f).token(nil))
	f.Add(n.jobs.token(map[string]any{"sub": "a\u0000b"}))
	f.Add(n.jobs.token(map[string]any{"iss": "https://evil.example"}))
	f.Add("eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".")
	f.Add("..")
	signed := strings.Split(good, ".")
	f.Fuzz(func(t *testing.T, compact string) {
		if compact == "" {
			return
		}
		issued, err := n.Give(t.Context(), byJob(compact))
		if err != nil {
			if issued.ID != "" || !errors.Is(err, broker.ErrRequest) && !errors.Is(err, broker.ErrGrant) && !errors.Is(err, broker.ErrAway) {
				t.Errorf("%+v, %v", issued, err)
			}
			return
		}
		// Blanks around and in a token are left out by the library.
		got := strings.Split(strings.Map(func(c rune) rune {
			if strings.ContainsRune(" \t\r\n", c) {
				return -1
			}
			return c
		}, compact), ".")
		if len(got) != 3 || got[0] != signed[0] || got[1] != signed[1] {
			t.Errorf("%q got a token", compact)
		}
	})
}

// FuzzKeySet: a set lets in only those whose keys are in it.
func FuzzKeySet(f *testing.F) {
	j := newJobs(f)
	good := j.token(map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
	f.Add([]byte(j.set()))
	f.Add([]byte(newJobs(f).set()))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"},null,{}]}`))
	f.Add([]byte(`{"keys":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n := newNode(t, newStore(), nil)
		n.jobs.change(func() { n.jobs.answer["/keys"] = string(body) })
		_, err := n.Give(t.Context(), byJob(good))
		var set jose.JSONWebKeySet
		in := json.Unmarshal(body, &set) == nil && slices.ContainsFunc(set.Keys, func(k jose.JSONWebKey) bool {
			public, ok := k.Key.(*ecdsa.PublicKey)
			return ok && public.Equal(j.private[0].Public())
		})
		if err == nil && !in {
			t.Errorf("%q lets in whom it does not know", body)
		}
	})
}

// FuzzAsked: a token has no audience, scope or life that the rule does not grant, and
// none that was not asked for.
func FuzzAsked(f *testing.F) {
	n := newNode(f, newStore(), nil)
	f.Add("orders", "read", "acme/orders")
	f.Add("orders billing", "read write", "acme/x")
	f.Add("", "", "acme/../x")
	f.Add("orders payroll", "read admin", "evil/orders")
	f.Fuzz(func(t *testing.T, audiences, scopes, repository string) {
		if strings.ToValidUTF8(repository, "") != repository {
			return
		}
		request := &broker.Request{
			Key: orders, URL: endpoint, Subject: secret.NewString(n.jobs.token(map[string]any{"repository": repository})),
			Audiences: strings.Fields(audiences), Scopes: strings.Fields(scopes),
		}
		issued, err := n.Give(t.Context(), request)
		if err != nil {
			return
		}
		signed := n.of(&issued)
		switch {
		case !strings.HasPrefix(repository, "acme/") || strings.ContainsAny(repository[5:], "/:"):
			t.Errorf("repository %q is let in", repository)
		case !subset(signed.Audience, request.Audiences) || !subset(signed.Audience, []string{"orders", "billing"}) || len(signed.Audience) == 0:
			t.Errorf("audiences %q for %q", signed.Audience, request.Audiences)
		case !subset(issued.Scopes, request.Scopes) || !subset(issued.Scopes, []string{"read", "write"}) || len(issued.Scopes) == 0 ||
			signed.Claims["scope"] != strings.Join(issued.Scopes, " "):
			t.Errorf("scopes %q for %q", issued.Scopes, request.Scopes)
		case signed.Life > 2*time.Minute || signed.Claims["repository"] != repository || fmt.Sprint(signed.Claims["client_id"]) != "deploy":
			t.Errorf("%+v", signed)
		}
	})
}
