package plugin_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

func TestConfigProblems(t *testing.T) {
	secrets := func(how map[string]any) map[string]any {
		return map[string]any{"secrets": map[string]any{"password": how}}
	}
	for name, test := range map[string]struct {
		config provider.Config
		path   string
	}{
		"no plugin":             {config("plugin", nil), "plugin: it is missing"},
		"an unknown plugin":     {config("plugin", "mongo"), `plugin: the server has no plugin "mongo"`},
		"a number for a name":   {config("plugin", 7.0), "plugin: it is not a text"},
		"no endpoints":          {config("endpoints", nil), "endpoints: at least one"},
		"a number":              {config("endpoints", []any{7.0}), "endpoints[0]: it is neither"},
		"twice":                 {config("endpoints", []any{"a", "a"}), `endpoints[1]: the name "a" is there twice`},
		"no name":               {config("endpoints", []any{map[string]any{"host": "x"}}), "endpoints[0]: it has no name"},
		"a field of endpoints":  {config("endpoints", []any{map[string]any{"name": "x", "url": "x"}}), "endpoints[0].url: there is no such field"},
		"too many":              {config("endpoints", make([]any, 201)), "endpoints: there are 201"},
		"a typing error":        {config("setings", map[string]any{}), "setings: there is no such field"},
		"settings":              {config("settings", "x"), "settings: it is not a block"},
		"capacity":              {config("capacity", -1.0), "capacity: it is not a whole number"},
		"one place":             {config("capacity", 1.0), "capacity: with room for one version"},
		"gap":                   {config("gap", "yes"), "gap: it is neither"},
		"methods":               {config("methods", []any{"accept"}), "methods[0]: it is no optional method"},
		"mint":                  {config("mint", map[string]any{}), "mint.secrets: at least one"},
		"too short":             {config("mint", secrets(map[string]any{"length": 10.0})), "mint.secrets.password.length: 10 characters of this alphabet are 60 bits; 128 bits are needed: write at least 22"},
		"too few characters":    {config("mint", secrets(map[string]any{"alphabet": "a"})), "mint.secrets.password.length: "},
		"a character twice":     {config("mint", secrets(map[string]any{"alphabet": "abca"})), "mint.secrets.password.alphabet: a character is there twice"},
		"a slot without places": {config("mint", map[string]any{"secrets": map[string]any{"p": map[string]any{}}, "attributes": map[string]any{"u": "{slot}"}}), "mint.attributes.u: there are no slots"},
		"a name twice":          {config("mint", map[string]any{"secrets": map[string]any{"p": map[string]any{}}, "attributes": map[string]any{"p": "x"}}), "mint.attributes.p: the name is taken"},
	} {
		_, err := driverOf(newVault(t)).Check(test.config)
		if problem := new(provider.ConfigError); !errors.As(err, &problem) || !strings.Contains(err.Error(), test.path) || problem.Hint == "" {
			t.Errorf("%s: got %v, want %q with a hint", name, err, test.path)
		}
	}
	// Where there is no server, every plugin may be named, and none is called.
	offline := plugin.New(plugin.Config{Kind: "exec"})
	topology, err := offline.Check(config("plugin", "mongo", "capacity", 3.0, "endpoints", []any{map[string]any{"name": "eu", "region": "eu", "host": "db:1"}}))
	if err != nil || topology.Capacity != 3 || topology.Endpoints[0] != (provider.Endpoint{Name: "eu", Region: "eu", Host: "plugin mongo db:1"}) {
		t.Errorf("got %+v, %v", topology, err)
	}
	if _, err := offline.Open(t.Context(), config(), provider.Env{}); err == nil {
		t.Error("a plugin was opened without a server")
	}
}

// TestMintByKeyturn: the secret has the length, the prefix and the alphabet that
// the key says, and the slots go round.
func TestMintByKeyturn(t *testing.T) {
	system := open(t, newVault(t), config("capacity", 2.0, "mint", map[string]any{
		"secrets":    map[string]any{"secret": map[string]any{"prefix": "whsec_", "length": 40.0, "alphabet": "hex"}},
		"attributes": map[string]any{"username": "orders_{slot}", "note": "{key} {version}"},
	}))
	first, err := system.Mint(t.Context(), provider.Call{Key: "prod/orders"}, provider.MintRequest{Number: 5})
	if err != nil {
		t.Fatal(err)
	}
	text := first.Secrets["secret"].RevealString()
	if rest, ok := strings.CutPrefix(text, "whsec_"); !ok || len(rest) != 40 || strings.Trim(rest, "0123456789abcdef") != "" {
		t.Errorf("the secret is %q", text)
	}
	if first.Attributes["username"] != "orders_1" || first.Attributes["note"] != "prod/orders 5" || first.Attributes["slot"] != "1" {
		t.Errorf("the attributes are %v", first.Attributes)
	}
	second, err := system.Mint(t.Context(), provider.Call{Key: "prod/orders"}, provider.MintRequest{Number: 6, Live: []provider.Version{{Number: 5, Material: first}}})
	if err != nil || second.Attributes["slot"] != "2" {
		t.Errorf("the second has %v, %v", second.Attributes, err)
	}
}

// TestMintNeedsRandomness: without it nothing is minted.
func TestMintNeedsRandomness(t *testing.T) {
	c := config("mint", map[string]any{"secrets": map[string]any{"p": map[string]any{}}})
	for name, random := range map[string]*bytes.Reader{"none": bytes.NewReader(nil), "little": bytes.NewReader(make([]byte, 3))} {
		driver := plugin.New(plugin.Config{Kind: "exec", Plugins: map[string]plugin.Transport{"vault": newVault(t)}, Random: random})
		system, err := driver.Open(t.Context(), c, provider.Env{})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := system.Mint(t.Context(), provider.Call{}, provider.MintRequest{Number: 1}); err == nil {
			t.Errorf("%s: minted %v", name, m)
		}
	}
}

// TestBinarySecrets: bytes that are no text travel in base64 and come back the same.
func TestBinarySecrets(t *testing.T) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	raw[0] = 0xff
	v := newVault(t)
	var sent string
	v.tweak = func(request, _ message) {
		of, _ := request["version"].(message)
		secrets, _ := of["secretsBase64"].(message)
		sent, _ = secrets["key"].(string)
	}
	binary := provider.Version{Number: 1, Material: provider.Material{Secrets: map[string]secret.Value{"key": secret.New(raw)}}}
	if err := open(t, v, config()).Accept(t.Context(), provider.Call{Key: "k"}, "eu", binary); err != nil {
		t.Fatal(err)
	}
	v.tweak = func(_, answer message) { answer["material"] = message{"secretsBase64": message{"key": sent}} }
	back, err := open(t, v, config()).Mint(t.Context(), provider.Call{Key: "k"}, provider.MintRequest{Number: 2})
	if err != nil || !bytes.Equal(back.Secrets["key"].Reveal(), raw) {
		t.Errorf("sent %q, and got %v back", sent, err)
	}
}

// FuzzConfig: whatever a document says, every problem has a mend, and
// what passes has endpoints, mints at least 128 bits, and can be opened.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		`{"plugin":"vault","endpoints":["eu",{"name":"us","region":"us","host":"db:1"}],"methods":["usage"],"settings":{"a":[1]},"capacity":2}`,
		`{"plugin":"vault","endpoints":["eu"],"mint":{"secrets":{"password":{"length":40,"alphabet":"hex","prefix":"k_"}},"attributes":{"u":"x{version}"}}}`,
		`{"plugin":7,"endpoints":{},"gap":1,"mint":[],"capacity":1.5,"methods":["x"],"x":1}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var c provider.Config
		if json.Unmarshal([]byte(text), &c) != nil {
			return
		}
		driver := driverOf(raw(""))
		topology, err := driver.Check(c)
		if err != nil {
			for _, problem := range flat(err) {
				if p := new(provider.ConfigError); !errors.As(problem, &p) || p.Problem == "" || p.Hint == "" {
					t.Fatalf("%q: the problem %v has no mend", text, problem)
				}
			}
			return
		}
		if len(topology.Endpoints) == 0 || topology.Capacity == 1 && !topology.Gap {
			t.Fatalf("%q became %+v", text, topology)
		}
		system, err := driver.Open(t.Context(), c, provider.Env{})
		if err != nil {
			t.Fatalf("%q passed and cannot be opened: %v", text, err)
		}
		if c["mint"] == nil {
			return
		}
		a, err := system.Mint(t.Context(), provider.Call{Key: "k"}, provider.MintRequest{Number: 1})
		if err != nil {
			t.Fatalf("%q mints nothing: %v", text, err)
		}
		for name, value := range a.Secrets {
			if value.Len() < 128/7 { // no printable character has more than 7 bits
				t.Fatalf("%q mints a secret %q of %d bytes", text, name, value.Len())
			}
		}
	})
}

// flat are the errors that were joined.
func flat(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, inner := range joined.Unwrap() {
		all = append(all, flat(inner)...)
	}
	return all
}
