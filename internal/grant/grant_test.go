package grant_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/grant"
)

func parse(t testing.TB, source string) ([]grant.Rule, []grant.Problem) {
	t.Helper()
	var list any
	if err := json.Unmarshal([]byte(source), &list); err != nil {
		t.Fatal(err)
	}
	return grant.Parse(list)
}

const github = `[{"name":"deploy","from":{"issuer":"https://token.actions.githubusercontent.com","audience":"https://keys.example.com/orders",
 "claims":{"repository":"acme/*","ref":["refs/heads/main","refs/tags/v*"]}},"audiences":["orders"],"scopes":["orders:deploy"],"life":"2m","copy":["repository"],"bind":"dpop"}]`

// TestFits: a rule fits the tokens it describes, and no others.
func TestFits(t *testing.T) {
	rules, problems := parse(t, github)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	r := rules[0]
	if r.Once {
		t.Error("a token is exchanged once although the rule does not say so")
	}
	if r.Life != 2*time.Minute || r.Bind != grant.BindDPoP {
		t.Errorf("%+v", r)
	}
	good := func() *grant.Proven {
		return &grant.Proven{
			Source: grant.Federated, Issuer: "https://token.actions.githubusercontent.com", Subject: "repo:acme/orders:ref:refs/heads/main",
			Audience: []string{"https://keys.example.com/orders"},
			Claims:   map[string]any{"repository": "acme/orders", "ref": "refs/heads/main"},
		}
	}
	if p := good(); !r.Fits(p) || r.For(p) != "deploy/"+p.Subject || !r.Covers(p, []string{"orders:deploy"}) || r.Covers(p, []string{"orders:read"}) {
		t.Error("a good one is not let in as it should be")
	}
	for what, spoil := range map[string]func(p *grant.Proven){
		"another issuer":      func(p *grant.Proven) { p.Issuer = "https://token.actions.githubusercontent.com.evil.example" },
		"another audience":    func(p *grant.Proven) { p.Audience = []string{"sts.amazonaws.com"} },
		"another owner":       func(p *grant.Proven) { p.Claims["repository"] = "acme-evil/orders" },
		"a deeper path":       func(p *grant.Proven) { p.Claims["repository"] = "acme/orders/evil" },
		"another branch":      func(p *grant.Proven) { p.Claims["ref"] = "refs/heads/evil" },
		"a missing claim":     func(p *grant.Proven) { delete(p.Claims, "ref") },
		"a claim of a number": func(p *grant.Proven) { p.Claims["ref"] = 7.0 },
		"another source":      func(p *grant.Proven) { p.Source = grant.Token },
		"no source":           func(p *grant.Proven) { p.Source = 0 },
	} {
		p := good()
		if spoil(p); r.Fits(p) {
			t.Errorf("%s is let in", what)
		}
	}
}

// TestNestedClaims: the claims of a Kubernetes service account.
func TestNestedClaims(t *testing.T) {
	rules, problems := parse(t, `[{"name":"pods","from":{"issuer":"https://kubernetes.example.com","audience":"keyturn",
		"claims":{"kubernetes.io/namespace":"orders","kubernetes.io/serviceaccount/name":"api"}},"audiences":["orders"]}]`)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var claims map[string]any
	if err := json.Unmarshal([]byte(`{"kubernetes.io":{"namespace":"orders","serviceaccount":{"name":"api"}}}`), &claims); err != nil {
		t.Fatal(err)
	}
	p := &grant.Proven{Source: grant.Federated, Issuer: "https://kubernetes.example.com", Audience: []string{"keyturn"}, Claims: claims}
	if !rules[0].Fits(p) {
		t.Error("it does not fit")
	}
	claims["kubernetes.io"].(map[string]any)["namespace"] = "other"
	if rules[0].Fits(p) {
		t.Error("another namespace is let in")
	}
}

// TestProblems: rules that would let in more than is meant are refused.
func TestProblems(t *testing.T) {
	for what, edit := range map[string][2]string{
		"no audience":         {`"audience":"https://keys.example.com/orders",`, ``},
		"claims of anybody":   {`{"repository":"acme/*","ref":["refs/heads/main","refs/tags/v*"]}`, `{"repository":"*/orders"}`},
		"no claims":           {`{"repository":"acme/*","ref":["refs/heads/main","refs/tags/v*"]}`, `{}`},
		"plain text":          {"https://token", "http://token"},
		"a long life":         {`"2m"`, `"2h"`},
		"an unknown field":    {`"bind"`, `"bound"`},
		"an unknown binding":  {`"dpop"`, `"dbop"`},
		"a copied subject":    {`"copy":["repository"]`, `"copy":["sub"]`},
		"a scope with blanks": {`"orders:deploy"`, `"orders deploy"`},
		"a once that is text": {`"bind"`, `"once":"yes","bind"`},
		"a key shown once": {`"from":{"issuer":"https://token.actions.githubusercontent.com","audience":"https://keys.example.com/orders",
 "claims":{"repository":"acme/*","ref":["refs/heads/main","refs/tags/v*"]}},"audiences":["orders"],"scopes":["orders:deploy"],"life":"2m","copy":["repository"]`, `"once":true,"from":{"apiKeys":["a"]},"audiences":["orders"]`},
		"for everybody": {`"audiences":["orders"],`, ``},
		"two sources":   {`"from":{`, `"from":{"tokens":["ci"],`},
	} {
		source := strings.Replace(github, edit[0], edit[1], 1)
		if _, problems := parse(t, source); len(problems) == 0 || source == github {
			t.Errorf("%s is no problem", what)
		}
	}
}

// FuzzMatches: patterns mean what the regular expressions mean that they stand for.
func FuzzMatches(f *testing.F) {
	f.Add("acme/*", "acme/orders")
	f.Add("**:ref:*", "repo:a/b:ref:x")
	f.Add("a**b*", "a///bcc")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 200 || len(text) > 500 {
			return
		}
		re := regexp.QuoteMeta(pattern)
		re = strings.ReplaceAll(re, `\*\*`, `[\x00-\x{10ffff}]*?`)
		re = strings.ReplaceAll(re, `\*`, `[^/:]*`)
		compiled, err := regexp.Compile(`\A` + re + `\z`)
		if err != nil || strings.ContainsRune(text, 0xfffd) || strings.ToValidUTF8(text, "") != text || strings.ToValidUTF8(pattern, "") != pattern {
			return
		}
		if got, want := grant.Matches(pattern, text), compiled.MatchString(text); got != want {
			t.Errorf("Matches(%q, %q) = %v", pattern, text, got)
		}
	})
}

// FuzzParse: rules that are read without a problem demand a claim or a name, an
// audience, and a short life.
func FuzzParse(f *testing.F) {
	f.Add(github)
	f.Add(`[{"name":"a","from":{"apiKeys":"partners/*"},"audiences":"x"}]`)
	f.Fuzz(func(t *testing.T, source string) {
		var list any
		if json.Unmarshal([]byte(source), &list) != nil {
			return
		}
		rules, problems := grant.Parse(list)
		if len(problems) > 0 {
			return
		}
		for i := range rules {
			r := &rules[i]
			if r.Life > grant.MaxLife || r.Life < grant.MinLife || len(r.Audiences) == 0 || r.Source == 0 || r.Fits(&grant.Proven{Source: r.Source}) {
				t.Errorf("%+v", r)
			}
			if r.Source == grant.Federated && (r.Audience == "" || len(r.Claims) == 0) {
				t.Errorf("%+v", r)
			}
		}
	})
}
