package server_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
)

func TestConfigErrors(t *testing.T) {
	tests := map[string]string{
		"":                              "server.yaml:1: dataDir: it is missing; write for example dataDir: /var/lib/keyturn",
		"dataDir: d\nlisten: nowhere\n": "server.yaml:2: listen: address nowhere: missing port in address; write for example 127.0.0.1:7447",
		"dataDir: d\nlisten: [1]\n":     "server.yaml:2:9: ",
		"dataDir: d\ntls: {cert: a}\n":  "server.yaml:2: tls: cert and key belong together; give both, or neither",
		"dataDir: d\ntls:\n  names:\n    - ok\n    - https://x\n":                            `server.yaml:5: tls.names[1]: "https://x" is neither`,
		"dataDir: d\nlog:\n  level: loud\n":                                                  `server.yaml:3: log.level: "loud" is unknown; use debug, info, warn or error`,
		"dataDir: d\nlog:\n  format: xml\n":                                                  `server.yaml:3: log.format: "xml" is unknown; use text or json`,
		"dataDir: d\nstore:\n  postgres: {}\n":                                               "server.yaml:3: store.postgres.url: it is missing; write for example postgres://",
		"dataDir: d\nstore:\n  postgres:\n    url: mysql://hunter2@a/b\n":                    "server.yaml:4: store.postgres.url: it is no URL of a PostgreSQL database",
		"dataDir: d\nstore:\n  postgres:\n    url: postgres://u:hunter2@localhost/b\n":       "server.yaml:4: store.postgres.url: it holds a password",
		"dataDir: d\nstore:\n  postgres:\n    url: postgres://localhost,a.example.com/b\n":   "server.yaml:4: store.postgres.url: it allows connections in plain text",
		"dataDir: d\nstore:\n  postgres: {url: postgres:///b, connections: 900}\n":           "server.yaml:3: store.postgres.connections: 900 is not between 0 and 256",
		"dataDir: d\nlogName: a b\n":                                                         `server.yaml:2: logName: "a b" has characters`,
		"dataDir: d\ntelemetry:\n  traces: collector\n":                                      `server.yaml:3: telemetry.traces: "collector" is not an address`,
		"dataDir: d\ntelemetry:\n  pages:\n    - https://a\n    - ftp://b\n":                 `server.yaml:5: telemetry.pages[1]: "ftp://b" is not an address`,
		"dataDir: d\ntelemetry:\n  alertmanagers: [http://a]\n":                              `server.yaml:3: telemetry.alertmanagers[0]: "http://a" is not encrypted`,
		"dataDir: d\ntelemetry:\n  metricsListen: x\n":                                       "server.yaml:3: telemetry.metricsListen: ",
		"dataDir: d\nlimits:\n  body: 5\n":                                                   "server.yaml:3: limits.body: 5 is not between 1024 and 67108864",
		"dataDir: d\nlimits:\n  body: 4096\n  parties: -1\n":                                 "server.yaml:4: limits.parties: -1 is not between 1 and 1000000",
		"dataDir: d\nlimits:\n  perSecond: -2\n":                                             "server.yaml:3: limits.perSecond: -2 is not between more than 0 and 1000000",
		"dataDir: d\nlimits:\n  ruleEmergencies: 1001\n":                                     "server.yaml:3: limits.ruleEmergencies: 1001 is not between 1 and 1000",
		"dataDir: d\nlimits:\n  ruleEmergenciesPerKey: -1\n":                                 "server.yaml:3: limits.ruleEmergenciesPerKey: -1 is not between 1 and 100",
		"dataDir: d\nlimits:\n  burst: -1\n":                                                 "server.yaml:3: limits.burst: ",
		"dataDir: d\ntelemetry:\n  regionBehind: 1ms\n":                                      "server.yaml:3: telemetry.regionBehind: 1ms is not between 1s and 8760h0m0s",
		"dataDir: d\nlimits:\n  forgetClients: 1ms\n":                                        "server.yaml:3: limits.forgetClients: 1ms is not between 1s and 8760h0m0s",
		"dataDir: d\napiKeys:\n  stale: 1s\n":                                                "server.yaml:3: apiKeys.stale: 1s is not between 15s and 8760h0m0s",
		"dataDir: d\ntokens:\n  outage: 1ms\n":                                               "server.yaml:3: tokens.outage: 1ms is not between 1s and 24h0m0s",
		"dataDir: d\ntokens:\n  skew: 1h\n":                                                  "server.yaml:3: tokens.skew: 1h0m0s is not between 10ms and 5m0s",
		"dataDir: d\ntokens: {perSecond: -1}\n":                                              "server.yaml:2: tokens.perSecond: -1 is not between more than 0 and 1000000",
		"dataDir: d\ntokens: {burst: -1}\n":                                                  "server.yaml:2: tokens.burst: -1 is not between 1 and 1000000",
		"dataDir: d\ntokens:\n  labels: {\"\": x}\n":                                         "server.yaml:3: tokens.labels: label",
		"dataDir: d\napiKeys: {perSecond: -1}\n":                                             "server.yaml:2: apiKeys.perSecond: -1 is not between 1 and 10000000",
		"dataDir: d\nleaks: {github: {keys: \"http://example.org/keys\"}}\n":                 "server.yaml:2: leaks.github.keys: it is neither an https:// address nor a file",
		"dataDir: d\nlimits:\n  forgetClients: soon\n":                                       `server.yaml:3: limits.forgetClients: "soon" is not a duration; write for example 2m`,
		"dataDir: d\nlisten: 127.0.0.1:1\nlimts: {}\n":                                       `server.yaml:3:1: unknown field "limts"; see docs/reference/server.md for all fields`,
		"dataDir: d\nplugins:\n  a:\n    exec:\n      path: run\n":                           `server.yaml:5: plugins.a.exec.path: "run" is no absolute path`,
		"dataDir: d\nplugins:\n  a: {}\n":                                                    "server.yaml:3: plugins.a: it is either a program or a service",
		"dataDir: d\nplugins:\n  a:\n    webhook:\n      url: http://hunter2.example\n":      "server.yaml:5: plugins.a.webhook.url: it is not encrypted",
		"dataDir: d\nplugins:\n  a:\n    webhook: {url: \"https://a\"}\n":                    "server.yaml:4: plugins.a.webhook: it needs either secretFile or secretKey",
		"dataDir: d\nplugins:\n  a/b:\n    exec: {path: /x}\n":                               "plugins.a/b: the name has other characters",
		"dataDir: d\ndataDir: e\n":                                                           "server.yaml:2:1: ",
		"dataDir: {\n":                                                                       "server.yaml:1:",
		"- dataDir\n":                                                                        "server.yaml:1:",
		"dataDir: d\nlog: {level: loud, format: xml}\nlimits:\n  burst: -1\n  parties: -1\n": "server.yaml:5: limits.parties",

		"dataDir: d\napiKeys: {webhooks: {proxy: 'http://me:pw@proxy:3128'}}\n":               "server.yaml:2: apiKeys.webhooks.proxy: it is no address of a proxy",
		"dataDir: d\napiKeys: {webhooks: {proxy: 'proxy:3128'}}\n":                            "server.yaml:2: apiKeys.webhooks.proxy: it is no address of a proxy",
		"dataDir: d\napiKeys: {webhooks: {proxyNames: [hooks.acme.example]}}\n":               "server.yaml:2: apiKeys.webhooks.proxy: it is missing",
		"dataDir: d\napiKeys: {webhooks: {proxy: 'http://p:1', proxyNames: ['*']}}\n":         "server.yaml:2: apiKeys.webhooks.proxyNames[0]",
		"dataDir: d\napiKeys: {webhooks: {proxy: 'http://p:1', proxyNames: ['10.0.0.1']}}\n":  "server.yaml:2: apiKeys.webhooks.proxyNames[0]",
		"dataDir: d\napiKeys: {webhooks: {proxy: 'http://p:1', proxyUsername: me}}\n":         "server.yaml:2: apiKeys.webhooks.proxyUsername: proxyUsername and proxyPasswordFile belong together",
		"dataDir: d\napiKeys: {page: somewhere}\n":                                            `server.yaml:2: apiKeys.page: "somewhere" is no address`,
		"dataDir: d\napiKeys:\n  mail:\n    server: mail\n":                                   "server.yaml:4: apiKeys.mail.server: it is no host and port",
		"dataDir: d\napiKeys:\n  mail: {server: 'mail:25', from: a@b.example, username: u}\n": "server.yaml:3: apiKeys.mail.username: username and passwordFile belong together",
	}
	for source, says := range tests {
		_, err := server.ParseConfig("server.yaml", []byte(source))
		if !errors.Is(err, server.ErrConfig) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q:\n got %v\nwant %s", source, err, says)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	config, err := server.ParseConfig("server.yaml", []byte("dataDir: /var/lib/keyturn\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := server.Config{
		Listen: "127.0.0.1:7447", DataDir: "/var/lib/keyturn", Keeper: server.KeeperConfig{File: "/var/lib/keyturn/kek.json"},
		Log: server.LogConfig{Level: "info", Format: "json"}, LogName: "keyturn",
		Limits: server.LimitsConfig{Body: 4 << 20, Parties: 20_000, Connections: 41_000, ConnectionsPerAddress: 21_000, StreamsPerToken: 18_000, PerSecond: 200, Burst: 2000, ForgetClients: 2 * time.Minute, RuleEmergencies: 10, RuleEmergenciesPerKey: 2},
	}
	if config.Listen != want.Listen || config.Keeper != want.Keeper || config.Log != want.Log || config.Limits != want.Limits || config.LogName != want.LogName {
		t.Errorf("got %+v", config)
	}
}

func TestLoadConfigErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := server.LoadConfig(filepath.Join(dir, "nosuch.yaml")); !errors.Is(err, server.ErrConfig) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.LoadConfig(large); !errors.Is(err, server.ErrConfig) {
		t.Errorf("a large file: %v", err)
	}
}

var example = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// TestDocumentedExample loads the full example of the reference, and checks that
// every field is in it and in the table.
func TestDocumentedExample(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/server.md")
	if err != nil {
		t.Fatal(err)
	}
	block := example.FindSubmatch(page)
	if block == nil {
		t.Fatal("the page has no example")
	}
	if _, err := server.ParseConfig("server.md", block[1]); err != nil {
		t.Error(err)
	}
	for _, field := range []string{
		"listen", "dataDir", "tls.cert", "tls.key", "tls.names", "keeper.file", "log.level", "log.format", "logName",
		"telemetry.traces", "telemetry.pages", "telemetry.alertmanagers", "telemetry.insecure", "telemetry.metricsListen", "telemetry.regionBehind",
		"limits.body", "limits.parties", "limits.perSecond", "limits.burst", "limits.forgetClients", "limits.ruleEmergencies", "limits.ruleEmergenciesPerKey",
	} {
		if !strings.Contains(string(page), "| `"+field+"` |") {
			t.Errorf("the table lacks %s", field)
		}
		name := field[strings.LastIndex(field, ".")+1:]
		if !strings.Contains(string(block[1]), name+":") {
			t.Errorf("the example lacks %s", field)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("dataDir: d\nlimits: {body: 4096}\n"))
	f.Add([]byte("dataDir: &a [*a]\n"))
	f.Add([]byte("tls: {names: [a, 'b:']}\ntelemetry: {pages: [x]}"))
	f.Fuzz(func(t *testing.T, source []byte) {
		config, err := server.ParseConfig("f.yaml", source)
		if err != nil {
			if !errors.Is(err, server.ErrConfig) || !strings.Contains(err.Error(), "f.yaml") {
				t.Errorf("an error without its place: %v", err)
			}
			return
		}
		if config.DataDir == "" || config.Listen == "" || config.Limits.Body < 1024 {
			t.Errorf("accepted: %+v", config)
		}
	})
}
