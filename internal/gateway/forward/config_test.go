package forward_test

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/gateway/forward"
)

// TestSettings: a block of the configuration is read, and each thing that is wrong with
// one is told with its field.
func TestSettings(t *testing.T) {
	read := func(text string) (forward.Settings, error) {
		var into struct {
			Forward forward.Settings `yaml:"forward"`
		}
		err := configfile.Form{Err: errors.New("config"), Page: "page"}.Decode("gateway.yaml", []byte(text), &into, func() []configfile.Problem { return into.Forward.Check() })
		return into.Forward, err
	}
	good, err := read(`
forward:
  trustedProxies: [10.0.0.0/8, 192.0.2.1, "::ffff:10.0.0.0/104"]
  proxyTokenFiles: [/run/secrets/proxies]
  tokens:
    orders: {issuer: "https://keyturn.example.com/issuers/apps", audience: orders, skew: 5s, origins: ["https://orders.example.com"]}
  gates:
    orders:
      keys: [partners/**]
      tokens: orders
      clients: [app]
      scopes: [orders:read, orders:list]
      clientAddress: X-Real-IP
      requestURL: x-original
      only401And403: true
    any-key: {keys: ["**"]}
`)
	if err != nil || good.Gates["orders"].RequestURL != "x-original" || !good.Gates["orders"].Only401And403 {
		t.Fatalf("%+v: %v", good, err)
	}
	orders := good.Tokens["orders"]
	if c := orders.Checker(); c.Issuer != "https://keyturn.example.com/issuers/apps" || c.Audience != "orders" || c.Skew != 5*time.Second || len(c.Origins) != 1 {
		t.Errorf("%+v", c)
	}
	_, err = read(`
forward:
  trustedProxies: [everybody, 10.0.0.1/33]
  proxyTokenFiles: [""]
  tokens:
    Orders: {issuer: orders}
  gates:
    "a/b": {keys: ["**"]}
    nobody: {scopes: [a]}
    odd: {keys: [Partners/**, a**], tokens: other, scopes: ["a b", "", "x\"y"], clients: [""], clientAddress: X-Client-IP, requestURL: forwarded}
    clients: {keys: ["**"], clients: [app]}
`)
	for _, field := range []string{
		"trustedProxies[0]", "trustedProxies[1]", "proxyTokenFiles[0]", `tokens: "Orders"`, "tokens.Orders.issuer", "tokens.Orders.audience", `gates: "a/b"`, "gates.nobody.keys",
		"gates.odd.keys[0]", "gates.odd.keys[1]", "gates.odd.tokens", "gates.odd.scopes[0]", "gates.odd.scopes[1]", "gates.odd.scopes[2]", "gates.odd.clients[0]",
		"gates.odd.clientAddress", "gates.odd.requestURL", "gates.clients.clients",
	} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not told of: %v", field, err)
		}
	}
	for _, text := range []string{"forward: {gates: {a: {scope: [x]}}}", "forward: {gates: {a: {keys: ['**'], require: none}}}", "forward: {gate: {}}"} {
		if _, err := read(text); err == nil {
			t.Errorf("%s is read", text)
		}
	}
	many := forward.Settings{Gates: map[string]forward.GateConfig{}}
	for i := range 201 {
		many.Gates[strings.Repeat("a", i/26+1)+string(rune('a'+i%26))] = forward.GateConfig{Keys: slices.Repeat([]string{"**"}, 101)}
	}
	if problems := many.Check(); len(problems) != 202 || problems[0].Field != "gates" {
		t.Errorf("%d problems: %v", len(problems), problems[0])
	}
}

// TestConfig: what a service cannot do without is asked for at the start.
func TestConfig(t *testing.T) {
	full := func() forward.Config {
		w := &world{}
		return forward.Config{
			Settings: settings(), Keys: w, Tokens: map[string]forward.Tokens{"orders": tokens{w}}, Caller: func(*http.Request) error { return nil },
			Logger: slog.New(slog.DiscardHandler), Now: time.Now,
		}
	}
	if _, err := forward.New(full()); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*forward.Config){
		"keys":     func(c *forward.Config) { c.Keys = nil },
		"caller":   func(c *forward.Config) { c.Caller = nil },
		"logger":   func(c *forward.Config) { c.Logger = nil },
		"clock":    func(c *forward.Config) { c.Now = nil },
		"tokens":   func(c *forward.Config) { c.Tokens = nil },
		"settings": func(c *forward.Config) { c.Settings.Gates["x"] = forward.GateConfig{} },
	} {
		c := full()
		spoil(&c)
		if _, err := forward.New(c); !errors.Is(err, forward.ErrConfig) {
			t.Errorf("without %s: %v", what, err)
		}
	}
}
