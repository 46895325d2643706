package real

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/test/pgtest"
)

const singleKey = "prod/legacy/db"

// TestSingleUser rotates the password of one role: the policy must accept the
// gap, rotations and roll-backs run through, and the password before is refused.
func TestSingleUser(t *testing.T) {
	w := newWorld(t, quickPolicy)
	pgtest.Exec(t, w.primary, "postgres", "CREATE ROLE legacy LOGIN")
	document := fmt.Sprintf(`
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s}
spec:
  provider: postgres
  policy: database
  config:
    admin: "postgres://rotator@%s/%s?sslmode=disable"
    adminPassword: {file: %s}
    strategy: single-user
    user: legacy
`, singleKey, w.primary.Addr(), database, filepath.Join(w.dir, "rotator.password"))
	response, err := w.control.Apply(t.Context(), &keyturnv1.ApplyRequest{
		Documents: []*keyturnv1.Document{{Name: "single.yaml", Content: []byte(document)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	refused := false
	for _, problem := range response.GetProblems() {
		refused = refused || problem.GetSeverity() == "error" && strings.Contains(problem.GetMessage()+problem.GetHint(), "allowGap")
	}
	if !refused {
		t.Fatalf("a policy without allowGap was accepted: %v", response.GetProblems())
	}

	w.apply(t, strings.Replace(quickPolicy, "spec:", "spec:\n  allowGap: true", 1)+"---\n"+document)
	rotate := func() *keyturnv1.Rotation {
		begun, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: singleKey})
		if err != nil {
			t.Fatal(err)
		}
		return w.wait(t, begun.GetRotationId(), nil)
	}
	for n := uint64(1); n <= 3; n++ {
		if r := rotate(); r.GetPhase() != "done" || r.GetTo() != n {
			t.Fatalf("rotation %d ended as %v", n, r)
		}
	}
	secret, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: singleKey})
	if err != nil {
		t.Fatal(err)
	}
	conn := pgtest.Connect(t, w.primary.URL("legacy", string(secret.GetSecrets()["password"]), database))
	if err := conn.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}
