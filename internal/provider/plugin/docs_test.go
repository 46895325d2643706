package plugin_test

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/provider"
)

// TestExamplesOfTheReference: every message of the page fits the schema, and every
// response is understood; the page names every method.
func TestExamplesOfTheReference(t *testing.T) {
	page, err := os.ReadFile("../../../docs/reference/plugins.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range plugin.Methods() {
		if !strings.Contains(string(page), "\n| `"+method+"` |") {
			t.Errorf("the page has no row for the method %s", method)
		}
	}
	var understood []string
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		var example message
		if err := json.Unmarshal([]byte(block[1]), &example); err != nil {
			t.Errorf("%v in\n%s", err, block[1])
			continue
		}
		method, _ := example["method"].(string)
		if _, request := example["timeoutSeconds"]; request {
			if err := check(schemaOf(t, "request"), []byte(block[1])); err != nil {
				t.Errorf("the request %s: %v", method, err)
			}
			continue
		}
		if err := check(schemaOf(t, "response"), []byte(block[1])); err != nil {
			t.Errorf("the response %s: %v", method, err)
		}
		id, _ := example["id"].(string)
		err := ask(t, method, raw(strings.Replace(block[1], id, "ID", 1)))
		if _, failed := example["error"]; failed != (err != nil) || err != nil && strings.Contains(err.Error(), "broke the protocol") {
			t.Errorf("the response %s: %v", method, err)
		}
		understood = append(understood, method)
	}
	slices.Sort(understood)
	if want := []string{"accept", "describe", "fence", "held", "mint", "preflight", "probe", "refuse", "usage", "usage"}; !slices.Equal(understood, want) {
		t.Errorf("responses of %v, want %v", understood, want)
	}
}

// ask calls one method of a plugin.
func ask(t *testing.T, method string, transport plugin.Transport) error {
	t.Helper()
	system := open(t, preflights{t, transport}, config())
	call := provider.Call{Key: "prod/orders/redis"}
	var err error
	switch method {
	case "mint":
		_, err = system.Mint(t.Context(), call, provider.MintRequest{Number: 7})
	case "accept":
		err = system.Accept(t.Context(), call, "eu", version)
	case "refuse":
		err = system.Refuse(t.Context(), call, "eu", version)
	case "probe":
		_, err = system.Probe(t.Context(), call, "eu", version)
	case "usage":
		_, err = system.(provider.Meter).Usage(t.Context(), call, version)
	case "fence":
		err = system.(provider.Fencer).Fence(t.Context(), call, "eu")
	case "held":
		_, err = system.(provider.Lister).Held(t.Context(), call)
	case "preflight":
		_, err = system.(provider.Preflighter).Preflight(t.Context(), call, nil)
	case "describe":
		_, err = plugin.Describe(t.Context(), transport, nil)
	default:
		t.Errorf("no such method: %s", method)
	}
	return err
}

// preflights answers describe by itself, so that preflight gets on.
type preflights struct {
	t *testing.T
	plugin.Transport
}

func (p preflights) Call(ctx context.Context, env provider.Env, r plugin.Request) ([]byte, error) {
	if r.Method == "describe" {
		return newVault(p.t).Call(ctx, env, r)
	}
	return p.Transport.Call(ctx, env, r)
}
