package gateway_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/gateway"
)

// least is a configuration with what is required.
const least = "name: gw\ndataDir: d\ncentre: {address: 'https://a:1', tokenFile: t}\n"

// TestBadConfigs: what is wrong with a configuration is told with its line, and how to
// mend it.
func TestBadConfigs(t *testing.T) {
	for source, want := range map[string]string{
		"":                                         "gateway.yaml:1: name: ",
		"name: a b\n":                              `gateway.yaml:1: name: "a b" is no name`,
		"name: gw\n":                               "gateway.yaml:1: dataDir: it is missing",
		"name: gw\ndataDir: d\n":                   "gateway.yaml:1: centre.address: it is no https:// address",
		least + "listen: here\n":                   "gateway.yaml:4: listen: address here: missing port",
		least + "serve: [secrets]\n":               `gateway.yaml:4: serve[0]: "secrets" is unknown; use delivery and apikeys`,
		least + "tls: {cert: a}\n":                 "gateway.yaml:4: tls: cert and key belong together",
		least + "tls: {names: ['a:b']}\n":          "gateway.yaml:4: tls.names[0]: ",
		least + "log: {level: loud}\n":             `gateway.yaml:4: log.level: "loud" is unknown`,
		least + "metricsListen: x\n":               "gateway.yaml:4: metricsListen: ",
		least + "delivery:\n  serveFor: 8d\n":      `gateway.yaml:5: delivery.serveFor: "8d" is not a duration`,
		least + "delivery: {serveFor: 200h}":       "gateway.yaml:4: delivery.serveFor: 200h0m0s is not between 1m0s and 168h0m0s",
		least + "delivery: {keepKeys: 1m}":         "gateway.yaml:4: delivery.keepKeys: 1m0s is not between",
		least + "apiKeys: {maxAge: 1s}":            "gateway.yaml:4: apiKeys.maxAge: 1s is not between 15s and 24h0m0s",
		least + "apiKeys: {reportEvery: 1m}":       "gateway.yaml:4: apiKeys.reportEvery: 1m0s is not between 100ms and 10s",
		least + "limits: {perSecond: -1}":          "gateway.yaml:4: limits.perSecond: -1 is not between",
		least + "limits: {burst: -1}":              "gateway.yaml:4: limits.burst: -1 is not between",
		least + "limits: {parties: -1}":            "gateway.yaml:4: limits.parties: -1 is not between",
		least + "forward: {listen: '0.0.0.0:1'}\n": `gateway.yaml:4: forward.listen: "0.0.0.0:1" is neither a loopback address`,
		least + "forward: {listen: 'unix:a'}\n":    "gateway.yaml:4: forward.listen: ",
		least + "forward:\n  gates:\n    a: {}\n":  "gateway.yaml:6: forward.gates.a.keys: nobody would be let in",
		least + "serve: [delivery]\nforward: {gates: {a: {keys: ['**']}}}\n":  "gateway.yaml:5: forward.gates: serve has no apikeys",
		least + "labels: {\"\": x}\n":                                         "gateway.yaml:4: labels: ",
		least + "gates: {}\n":                                                 `gateway.yaml:4:1: unknown field "gates"; see docs/reference/gateway.md`,
		"name: gw\ndataDir: d\ncentre: {address: 'http://a', tokenFile: t}\n": "gateway.yaml:3: centre.address: it is no https:// address",
		"name: gw\ndataDir: d\ncentre: {address: 'https://hunter2:x@a'}\n":    "gateway.yaml:3: centre.address: it contains a user",
		"name: gw\ndataDir: d\ncentre: {address: 'https://hunter2 @a'}\n":     "gateway.yaml:3: centre.address: it is no https:// address",
		"name: gw\ndataDir: d\ncentre: {address: 'https://a'}\n":              "gateway.yaml:3: centre.tokenFile: it is missing",
	} {
		_, err := gateway.ParseConfig("gateway.yaml", []byte(source))
		if !errors.Is(err, gateway.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", source, err, want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the message repeats what may be a password: %v", source, err)
		}
	}
}

// TestDefaults: the least configuration is enough.
func TestDefaults(t *testing.T) {
	c, err := gateway.ParseConfig("gateway.yaml", []byte(least))
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:7449" || len(c.Serve) != 2 || c.Delivery.ServeFor != 24*time.Hour || c.APIKeys.MaxAge != time.Hour || c.Keeper.File != filepath.Join("d", "kek.json") {
		t.Errorf("%+v", c)
	}
}

// TestReferencePage: the example of the page is right.
func TestReferencePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	block, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("the page has no example")
	}
	if _, err := gateway.ParseConfig("gateway.md", []byte(block)); err != nil {
		t.Error(err)
	}
}
