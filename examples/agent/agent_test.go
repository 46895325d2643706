// Package agent holds what a team writes to have its keys delivered as files; the
// tests load it as Keyturn would.
package agent

import (
	"os"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/internal/agent"
	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/provider/postgres"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// TestAgentConfigLoads also renders the template with a version that has the
// fields of the provider postgres, and with a character that needs care.
func TestAgentConfigLoads(t *testing.T) {
	config, err := agent.LoadConfig("agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Targets) != 1 || config.Targets[0].Health == nil {
		t.Fatalf("got %+v, want one target with a health check", config.Targets)
	}
	if m := config.Metadata; m == nil || m.AuthorizationFile == "" || !m.Azure || len(m.Tokens) != 1 || m.Tokens[0].Name != "orders" || config.MetricsListen == "" {
		t.Errorf("got %+v, want an endpoint with one token", m)
	}
	template, err := render.Parse(config.Targets[0].Template, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []key.Name{"prod/orders/db"}; !slices.Equal(template.Keys(), want) {
		t.Errorf("the template names %v, want %v", template.Keys(), want)
	}
	text, err := template.Execute(map[key.Name]render.Material{"prod/orders/db": {
		Version:    2,
		Attributes: map[string]string{"host": "db1.example", "port": "5432", "database": "orders", "username": "orders_b"},
		Secrets:    map[string]secret.Value{"password": secret.NewString("it's a secret")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "PGHOST='db1.example'\nPGPORT='5432'\nPGDATABASE='orders'\nPGUSER='orders_b'\nPGPASSWORD='it'\\''s a secret'\n"
	if got := text.RevealString(); got != want {
		t.Errorf("the file is\n%swant\n%s", got, want)
	}
}

// TestDocumentsAreRight checks policy and key as keyturn policy lint does.
func TestDocumentsAreRight(t *testing.T) {
	for _, folder := range [][]string{{"policy.yaml", "key.yaml"}, {"../exec/orders.yaml"}} {
		var resources []policy.Resource
		for _, file := range folder {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := policy.Parse(file, source)
			if err != nil {
				t.Fatal(err)
			}
			resources = append(resources, parsed...)
		}
		drivers := map[string]provider.Driver{"postgres": postgres.New()}
		problems := policy.Lint(resources, policy.LintOptions{Providers: []string{"postgres"}, CheckConfig: engine.CheckConfig(drivers)})
		for _, problem := range problems {
			t.Errorf("%v: %v", folder, problem)
		}
	}
}
