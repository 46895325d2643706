package agent_test

import (
	"os"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/agent"
)

// TestReferenceExampleLoads keeps the reference true.
func TestReferenceExampleLoads(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```yaml\n")
	example, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("the reference has no YAML block")
	}
	cfg, err := agent.ParseConfig("docs/reference/agent.md", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Targets) != 2 || cfg.Targets[0].Health == nil || cfg.Targets[1].Reload.Signal == nil {
		t.Errorf("got %+v", cfg)
	}
}
