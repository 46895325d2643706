package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/agent"
)

const goodConfig = `apiVersion: keyturn/v1
kind: Agent
server: https://keyturn.example:8443
party: {id: node-1, region: eu, labels: {cohort: canary}}
stateDir: /var/lib/keyturn-agent
targets:
  - name: orders-db
    keys: [prod/orders/db]
    path: /etc/orders/db.conf
    mode: "0640"
    owner: "65534"
    group: root
    template: |
      user={{ (key "prod/orders/db").username }}
      password={{ (key "prod/orders/db").password }}
    reload:
      signal: {name: HUP, pidFile: /run/orders.pid}
    health:
      http: http://127.0.0.1:8080/healthz
      retries: 3
      sample: {every: 1s}
`

func TestParseConfig(t *testing.T) {
	cfg, err := agent.ParseConfig("agent.yaml", []byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	target := cfg.Targets[0]
	if cfg.Labels["cohort"] != "canary" || cfg.TokenFile != "/var/lib/keyturn-agent/token" || cfg.PartyID != "node-1" ||
		target.Mode != 0o640 || target.UID != 65534 || target.GID != 0 || target.Reload.Signal.PIDFile != "/run/orders.pid" ||
		target.Health.Retries != 3 || target.Health.SampleEvery != time.Second || target.Health.SampleThen != agent.DefaultSampleThen || target.Health.Timeout != agent.DefaultHealthTimeout {
		t.Errorf("got %+v", cfg)
	}
	bare := "server: localhost:8443\ntargets: [{name: a, path: /etc/a, mode: 0600, template: '{{ (key \"k\").p }}'}]"
	cfg, err = agent.ParseConfig("agent.yaml", []byte(bare))
	if err != nil || cfg.Targets[0].Mode != 0o600 || cfg.PartyID == "" || cfg.StateDir != agent.DefaultStateDir {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

const metadataConfig = goodConfig + `metadata:
  listen: 127.0.0.1:8171
  mode: "0640"
  group: root
  google: true
  tokens:
    - {name: orders, issuer: "https://keyturn.example:8443/orders", audiences: [orders], scopes: ["orders:read"]}
    - {name: billing, issuer: "https://keyturn.example:8443/billing", subjectTokenFile: /run/token, subjectTokenType: id_token}
`

func TestParseMetadata(t *testing.T) {
	cfg, err := agent.ParseConfig("agent.yaml", []byte(metadataConfig))
	if err != nil {
		t.Fatal(err)
	}
	m := cfg.Metadata
	if m.Listen.Address != "127.0.0.1:8171" || m.Mode != 0o640 || m.GID != 0 || m.UID != -1 || !m.Google || len(m.Tokens) != 2 ||
		m.Tokens[0].Scopes[0] != "orders:read" || m.Tokens[1].SubjectFile != "/run/token" || m.Tokens[1].SubjectType != tokensource.TypeID {
		t.Errorf("%+v", m)
	}
	_, alone, _ := strings.Cut(metadataConfig, "metadata:")
	azure := strings.Replace(metadataConfig, "google: true", "azure: true\n  authorizationFile: /run/a", 1) + "metricsListen: 127.0.0.1:9171\n"
	if cfg, err := agent.ParseConfig("agent.yaml", []byte(azure)); err != nil || !cfg.Metadata.Azure || cfg.MetricsListen != "127.0.0.1:9171" {
		t.Errorf("Azure's form with a secret: %v", err)
	}
	if cfg, err := agent.ParseConfig("agent.yaml", []byte("server: localhost:8443\nmetadata:"+alone)); err != nil || len(cfg.Targets) != 0 || cfg.Metadata == nil {
		t.Errorf("without targets: %v", err)
	}
	for _, tc := range []struct{ old, new, at, says string }{
		{"127.0.0.1:8171", "0.0.0.0:8171", "23:11", "reached by others"},
		{"127.0.0.1:8171", "localhost:8171", "23:11", "loopback address"},
		{"metadata:\n", "metricsListen: nowhere\nmetadata:\n", "22:16", "127.0.0.1:9171"},
		{`mode: "0640"` + "\n  group: root\n  google", `mode: "0666"` + "\n  google", "24:9", "everybody"},
		{"group: root\n  google", "group: nobody-knows-us\n  google", "25:10", "create the account"},
		{"google: true", "google: true\n  authorizationFile: /run/a", "26:11", "cannot show"},
		{"google: true", "authorizationFile: a", "26:22", "absolute"},
		{"google: true", "gogle: true", "26:3", "did you mean google?"},
		{"name: orders, issuer", "name: billing, issuer", "", "there twice"},
		{`issuer: "https://keyturn.example:8443/orders"`, `issuer: "http://keyturn.example/orders"`, "28:", "in the clear"},
		{`issuer: "https://keyturn.example:8443/orders"`, `issuer: ""`, "28:", "Issuer"},
		{`["orders:read"]`, `["orders:read orders:write"]`, "28:", "no audience or scope"},
		{"id_token", "saml", "29:", "api-key"},
		{"/run/token", "run/token", "29:", "absolute"},
	} {
		if !strings.Contains(metadataConfig, tc.old) {
			t.Fatalf("%q is not in the good file", tc.old)
		}
		_, err := agent.ParseConfig("agent.yaml", []byte(strings.Replace(metadataConfig, tc.old, tc.new, 1)))
		if !errors.Is(err, agent.ErrConfig) || !strings.Contains(err.Error(), "agent.yaml:"+tc.at) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q: got %v; want agent.yaml:%s and %q", tc.new, err, tc.at, tc.says)
		}
	}
}

// TestEveryMistakeHasAPlace changes one line of a good file at a time.
func TestEveryMistakeHasAPlace(t *testing.T) {
	for _, tc := range []struct{ old, new, at, says string }{
		{"kind: Agent", "kind: Policy", "2:7", "write Agent"},
		{"apiVersion: keyturn/v1", "apiVersion: v2", "1:13", "keyturn/v1"},
		{"server: https", "server: ftp", "3:9", "https://"},
		{"server: https://keyturn.example:8443", "sever: https://keyturn.example:8443", "3:1", "did you mean server?"},
		{"server: https://keyturn.example:8443\n", "", "1:1", "server: it is missing"},
		{"stateDir: /var", "stateDir: var", "5:11", "absolute path"},
		{"id: node-1", "id: node 1", "4:", "Party.ID"},
		{"name: orders-db", "name: orders db", "7:11", "letters, digits"},
		{"keys: [prod/orders/db]", "keys: [Prod]", "8:12", "invalid key name"},
		{"keys: [prod/orders/db]", "keys: [prod/orders/db, prod/mail]", "8:28", "never uses"},
		{"keys: [prod/orders/db]", "keys: [prod/mail]", "", "not among the target's keys"},
		{"path: /etc/orders/db.conf", "path: etc/db.conf", "9:11", "absolute"},
		{`mode: "0640"`, `mode: "0666"`, "10:11", "opens a secret to everybody"},
		{`mode: "0640"`, `mode: "640"`, "10:11", "octal"},
		{`mode: "0640"`, `mode: "04640"`, "10:11", "permission bits"},
		{`mode: "0640"`, `mode: "0040"`, "10:11", "owner"},
		{`owner: "65534"`, `owner: nobody-knows-me`, "11:12", "create the account"},
		{`group: root`, `group: nobody-knows-us`, "12:12", "create the account"},
		{"user={{ (key", "user={{ (kye", "14:", "the functions are"},
		{`password={{ (key "prod/orders/db").password`, `password={{ .password`, "15:", "names no key"},
		{"name: HUP", "name: HUPP", "17:22", "SIGHUP"},
		{"name: HUP, pidFile: /run/orders.pid", "name: HUP", "17:", "exactly one"},
		{"signal: {name: HUP, pidFile: /run/orders.pid}", "command: [reload]", "17:", "absolute path"},
		{"signal: {name: HUP, pidFile: /run/orders.pid}", "timeout: 1s", "", "neither"},
		{"http: http://127.0.0.1:8080/healthz", "http: ftp://x", "19:13", "http"},
		{"http: http://127.0.0.1:8080/healthz", "tcp: nowhere", "19:12", "127.0.0.1:5432"},
		{"retries: 3", "retries: -1", "20:16", "outside"},
		{"retries: 3", "retries: many", "20:16", ""},
		{"retries: 3", "tcp: 127.0.0.1:1", "", "2 of command"},
		{"every: 1s", "every: 1", "21:23", "no duration"},
		{"every: 1s", "every: 48h", "21:23", "outside"},
		{"kind: Agent", "kind: &a Agent", "2:7", "anchors"},
		{"kind: Agent", "kind: [", "", ""},
		{"targets:", "targets: []\nunused:", "", ""},
		{"      sample: {every: 1s}\n", "---\nserver: x\n", "", "second document"},
	} {
		if !strings.Contains(goodConfig, tc.old) {
			t.Fatalf("%q is not in the good file", tc.old)
		}
		_, err := agent.ParseConfig("agent.yaml", []byte(strings.Replace(goodConfig, tc.old, tc.new, 1)))
		if !errors.Is(err, agent.ErrConfig) || !strings.Contains(err.Error(), "agent.yaml:"+tc.at) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q: got %v; want agent.yaml:%s and %q", tc.new, err, tc.at, tc.says)
		}
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	_, err := agent.ParseConfig("a.yaml", []byte("server: ''\ntargets:\n  - {name: a, path: x}\n  - {name: a, path: x, template: x, mode: '7'}\n"))
	if err == nil || strings.Count(err.Error(), "\n") < 6 {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{"", "[]", "x", "{}", "targets:\n- ", "targets: [{}]"} {
		if _, err := agent.ParseConfig("a.yaml", []byte(text)); !errors.Is(err, agent.ErrConfig) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTemplateFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := write("agent.yaml", "server: localhost\ntargets: [{name: a, path: /etc/a, templateFile: a.tmpl}]")
	write("a.tmpl", "\n{{ (key \"k\").p }}")
	if cfg, err := agent.LoadConfig(config); err != nil || cfg.Targets[0].Template == "" {
		t.Errorf("got %+v, %v", cfg, err)
	}
	write("a.tmpl", "\n{{ nope }}")
	if _, err := agent.LoadConfig(config); err == nil || !strings.Contains(err.Error(), "a.tmpl:2:") {
		t.Errorf("bad template: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "a.tmpl")); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.LoadConfig(config); !errors.Is(err, agent.ErrConfig) {
		t.Errorf("no template: %v", err)
	}
	if _, err := agent.LoadConfig(filepath.Join(dir, "none.yaml")); !errors.Is(err, agent.ErrConfig) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// FuzzParseConfig checks that no content is a crash or takes long, that every
// error has a place, and that what is accepted is safe.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(metadataConfig))
	for _, s := range []string{"", "{}", "targets: [{}]", "a: &a [*a]", "targets: [{mode: 0777, path: /}]", "---\n---\n", "\t", "server: [", "? a\n: b", "<<: {}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		if strings.Contains(string(content), "templateFile") {
			return // would read files of the machine
		}
		begin := time.Now()
		cfg, err := agent.ParseConfig("a.yaml", content)
		if took := time.Since(begin); took > 10*time.Second {
			t.Fatalf("took %v", took)
		}
		if err != nil {
			if !errors.Is(err, agent.ErrConfig) || !strings.HasPrefix(err.Error(), "a.yaml:") {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		if m := cfg.Metadata; m != nil && (len(m.Tokens) == 0 || m.Mode&0o003 != 0 || m.Listen.Network == "tcp" && !strings.HasPrefix(m.Listen.Address, "127.") && !strings.HasPrefix(m.Listen.Address, "[::1]:")) {
			t.Fatalf("accepted %+v", m)
		}
		for _, target := range cfg.Targets {
			if !filepath.IsAbs(target.Path) || target.Mode&0o003 != 0 || target.Template == "" || target.Name == "" {
				t.Fatalf("accepted %+v", target)
			}
		}
	})
}
