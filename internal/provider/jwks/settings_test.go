package jwks_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/keyturn/keyturn/internal/provider/jwks"
	"github.com/keyturn/keyturn/provider"
)

func configOf(t testing.TB, source string) provider.Config {
	t.Helper()
	var config provider.Config
	if err := json.Unmarshal(toJSON(t, source), &config); err != nil {
		t.Fatal(err)
	}
	return config
}

func toJSON(t testing.TB, source string) []byte {
	t.Helper()
	body, err := yaml.YAMLToJSON([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

const good = `
issuer: https://keys.example.com/orders
tokenLife: 15m
cacheLife: 5m
`

// TestCheck: what a system looks like follows from its config.
func TestCheck(t *testing.T) {
	topology, err := jwks.New(jwks.Config{}).Check(configOf(t, good+`
algorithm: PS256
bits: 3072
signer: external
audience: orders
verifiers:
  - {name: api, region: eu, probe: {url: "https://orders.example.com:8443/whoami", accepted: [200], refused: [401, 403]}}
  - {name: batch-2, shared: true, from: [10.2.0.0/16, "192.0.2.7", "2001:db8::/32"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []provider.Endpoint{{Name: "published"}, {Name: "api", Region: "eu", Host: "orders.example.com:8443"}, {Name: "batch-2"}}
	if len(topology.Endpoints) != len(want) || topology.Capacity != 0 || topology.Gap {
		t.Fatalf("topology %+v", topology)
	}
	for i := range want {
		if topology.Endpoints[i] != want[i] {
			t.Errorf("endpoint %+v, want %+v", topology.Endpoints[i], want[i])
		}
	}
}

// TestBadConfigs are refused with the field, and with what would be right.
func TestBadConfigs(t *testing.T) {
	verifier := func(fields string) string { return good + "verifiers: [{name: api" + fields + "}]" }
	for source, path := range map[string]string{
		"tokenLife: 1m\ncacheLife: 1m":                                                              "issuer",
		"issuer: keys.example.com\ntokenLife: 1m\ncacheLife: 1m":                                    "issuer",
		"issuer: http://keys.example.com\ntokenLife: 1m\ncacheLife: 1m":                             "issuer",
		"issuer: https://u:p@keys.example.com\ntokenLife: 1m\ncacheLife: 1m":                        "issuer",
		"issuer: https://keys.example.com/\ntokenLife: 1m\ncacheLife: 1m":                           "issuer",
		"issuer: https://keys.example.com/a/../b\ntokenLife: 1m\ncacheLife: 1m":                     "issuer",
		"issuer: https://keys.example.com/a%2Fb\ntokenLife: 1m\ncacheLife: 1m":                      "issuer",
		"issuer: https://keys.example.com?a=b\ntokenLife: 1m\ncacheLife: 1m":                        "issuer",
		"issuer: 'https://keys.example.com#'\ntokenLife: 1m\ncacheLife: 1m":                         "issuer",
		"issuer: https://keys.example.com/.well-known/x\ntokenLife: 1m\ncacheLife: 1m":              "issuer",
		"issuer: [a]\ntokenLife: 1m\ncacheLife: 1m":                                                 "issuer",
		"issuer: https://k.example\ncacheLife: 1m":                                                  "tokenLife",
		"issuer: https://k.example\ntokenLife: 0s\ncacheLife: 1m":                                   "tokenLife",
		"issuer: https://k.example\ntokenLife: 1500ms\ncacheLife: 1m":                               "tokenLife",
		"issuer: https://k.example\ntokenLife: 31d\ncacheLife: 1m":                                  "tokenLife",
		"issuer: https://k.example\ntokenLife: 1m\ncacheLife: 25h":                                  "cacheLife",
		"issuer: https://k.example\ntokenLife: 1m\ncacheLife: 60":                                   "cacheLife",
		good + "algorithm: HS256":                                                                   "algorithm",
		good + "algorithm: none":                                                                    "algorithm",
		good + "algorithm: eddsa":                                                                   "algorithm",
		good + "algorithm: RS256\nbits: 1024":                                                       "bits",
		good + "algorithm: ES256\nbits: 2048":                                                       "bits",
		good + "signer: nobody":                                                                     "signer",
		good + "colour: blue":                                                                       "colour",
		good + "verifiers: api":                                                                     "verifiers",
		good + "verifiers: [api]":                                                                   "verifiers[0]",
		good + "verifiers: [{name: published}]":                                                     "verifiers[0].name",
		good + "verifiers: [{name: Api}]":                                                           "verifiers[0].name",
		good + "verifiers: [{name: ../api}]":                                                        "verifiers[0].name",
		good + "verifiers: [{name: api}, {name: api}]":                                              "verifiers[1].name",
		verifier(", shared: 1"):                                                                     "verifiers[0].shared",
		verifier(", from: [everywhere]"):                                                            "verifiers[0].from[0]",
		verifier(", from: [7]"):                                                                     "verifiers[0].from[0]",
		verifier(", colour: blue"):                                                                  "verifiers[0].colour",
		verifier(", probe: here"):                                                                   "verifiers[0].probe",
		verifier(", probe: {}"):                                                                     "verifiers[0].probe.url",
		verifier(", probe: {url: 'http://orders.example.com'}"):                                     "verifiers[0].probe.url",
		verifier(", probe: {url: 'https://o.example', accepted: []}"):                               "verifiers[0].probe.accepted",
		verifier(", probe: {url: 'https://o.example', refused: [500]}"):                             "verifiers[0].probe.refused[0]",
		verifier(", probe: {url: 'https://o.example', refused: [302]}"):                             "verifiers[0].probe.refused[0]",
		verifier(", probe: {url: 'https://o.example', accepted: [401]}"):                            "verifiers[0].probe.refused",
		verifier(", probe: {url: 'https://o.example', colour: blue}"):                               "verifiers[0].probe.colour",
		good + "verifiers: [" + strings.Repeat("{name: a},", 201) + "]":                             "verifiers",
		"issuer: https://k.example/" + strings.Repeat("k", 4000) + "\ntokenLife: 1m\ncacheLife: 1m": "issuer",
	} {
		_, err := jwks.New(jwks.Config{}).Check(configOf(t, source))
		found := false
		for _, problem := range problems(err) {
			if problem.Hint == "" || problem.Problem == "" {
				t.Errorf("%q: a problem without help: %v", source, problem)
			}
			found = found || problem.Path == path
		}
		if !found {
			t.Errorf("%.120q: %v, want a problem of %s", source, err, path)
		}
		if strings.Contains(source, "u:p@") && strings.Contains(err.Error(), "u:p") {
			t.Errorf("the error repeats a password: %v", err)
		}
	}
}

func problems(err error) []*provider.ConfigError {
	var list []*provider.ConfigError
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, one := range joined.Unwrap() {
			list = append(list, problems(one)...)
		}
		return list
	}
	if problem := new(provider.ConfigError); errors.As(err, &problem) {
		list = append(list, problem)
	}
	return list
}

// FuzzParse: whatever a config says, it is refused with a problem and a hint for
// each field, or gives a system that can be opened, with endpoints that can be told
// apart; twice the same.
func FuzzParse(f *testing.F) {
	f.Add(toJSON(f, good))
	f.Add(toJSON(f, good+"verifiers: [{name: api, probe: {url: 'https://o.example'}}]"))
	f.Add([]byte(`{"issuer":"https://[::1]:1/\u0000","tokenLife":"1s","cacheLife":"1s"}`))
	f.Add([]byte(`{"issuer":"https://a//b","tokenLife":"1s","cacheLife":"1s","verifiers":[null,{"name":1}]}`))
	f.Fuzz(func(t *testing.T, source []byte) {
		var config provider.Config
		if json.Unmarshal(source, &config) != nil {
			return
		}
		driver := jwks.New(jwks.Config{})
		topology, err := driver.Check(config)
		if err != nil {
			list := problems(err)
			for _, problem := range list {
				if problem.Problem == "" || problem.Hint == "" {
					t.Errorf("a problem without help: %+v", problem)
				}
			}
			if len(list) == 0 {
				t.Errorf("no problem is named: %v", err)
			}
			return
		}
		names := map[string]bool{}
		for _, endpoint := range topology.Endpoints {
			if endpoint.Name == "" || names[endpoint.Name] || strings.ContainsAny(endpoint.Name, "/.% ") {
				t.Errorf("endpoint %q", endpoint.Name)
			}
			names[endpoint.Name] = true
		}
		if _, err := driver.Open(t.Context(), config, provider.Env{}); err != nil && !strings.Contains(err.Error(), "probe.ca") {
			t.Errorf("a config that was checked cannot be opened: %v", err)
		}
	})
}
