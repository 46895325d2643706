package demo_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/keyturn/keyturn/internal/demo"
)

// TestDemo runs the whole demonstration on both targets.
func TestDemo(t *testing.T) {
	for _, target := range []string{"postgresql", "http-api-keys"} {
		t.Run(target, func(t *testing.T) {
			var progress bytes.Buffer
			summary, err := demo.Run(t.Context(), demo.Options{Progress: &progress, Target: target})
			if err != nil {
				t.Fatalf("%v\n%s", err, progress.String())
			}
			if summary.Target != target || summary.Rotations != 4 || summary.RolledBack != 1 || summary.Requests == 0 ||
				summary.FailedRequests != 0 || !summary.AuditVerified || summary.PropagationP99 <= 0 {
				t.Errorf("summary: %+v", summary)
			}
			if testing.Verbose() {
				_, _ = progress.WriteTo(os.Stderr)
				_ = summary.Print(os.Stderr)
			}
		})
	}
}

func TestUnknownTarget(t *testing.T) {
	if _, err := demo.Run(t.Context(), demo.Options{Target: "oracle"}); err == nil {
		t.Error("an unknown target was accepted")
	}
}
