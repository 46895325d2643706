package real

import (
	"fmt"
	"strings"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestEmergencyOfAGroup: twenty keys with a label are contained by one command, under
// the load of applications with another key, of which no log-in fails. What the server
// calls refused is refused.
func TestEmergencyOfAGroup(t *testing.T) {
	t.Parallel()
	const many = 20
	w := newWorld(t, quickPolicy)
	w.first(t)
	var documents strings.Builder
	names := make([]string, many)
	for i := range names {
		names[i] = fmt.Sprintf("prod/stolen/%02d", i)
		fmt.Fprintf(&documents, `---
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s, labels: {team: stolen}}
spec:
  provider: postgres
  policy: database
  config:
    admin: "postgres://rotator@%s/%s?sslmode=disable"
    adminPassword: {file: %s}
    strategy: alternating-users
    users: [stolen_%02d_a, stolen_%02d_b]
`, names[i], w.primary.Addr(), database, w.passwordFile(), i, i)
	}
	w.apply(t, documents.String())
	for _, name := range names {
		if _, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: name, Reason: "the first version"}); err != nil {
			t.Fatal(err)
		}
	}
	// What a thief has: every key's first version.
	old := map[string]string{}
	for _, name := range names {
		eventually(t, name+" has a version", func() bool {
			secret, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: name})
			if err == nil {
				old[name] = w.primary.URL(secret.GetAttributes()["username"], string(secret.GetSecrets()["password"]), database)
			}
			return err == nil && logIn(t.Context(), old[name]) == nil
		})
	}
	l := w.fleet(t, 3)
	l.more(t, 30)

	begun := time.Now()
	response, err := w.control.DeclareEmergency(t.Context(), &keyturnv1.DeclareEmergencyRequest{
		Selector: "team=stolen", Strategy: "contain-first", Reason: "the laptop was stolen", RequestId: "stolen",
	})
	if err != nil || response.GetEmergency().GetTotal() != many || response.GetEmergency().GetFailed() != 0 {
		t.Fatal(response, err)
	}
	t.Logf("%d keys were declared in %v", many, time.Since(begun))
	id := response.GetEmergency().GetId()
	stream, err := w.control.WatchEmergency(t.Context(), &keyturnv1.WatchEmergencyRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	var last *keyturnv1.Emergency
	for checked := map[string]bool{}; stream.Receive(); {
		last = stream.Msg().GetEmergency()
		for _, k := range last.GetKeys() {
			if k.GetRefusedAt() != nil && !checked[k.GetKey()] {
				checked[k.GetKey()] = true
				if err := logIn(t.Context(), old[k.GetKey()]); !isRefused(err) {
					t.Errorf("%s is called refused, and a log-in says %v", k.GetKey(), err)
				}
			}
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if !last.GetEnded() || last.GetRefused() != many || last.GetRefusedAt() == nil {
		t.Fatalf("the group ended as %v", last)
	}
	t.Logf("the last of %d keys was refused %v after the declaration", many, last.GetRefusedAt().AsTime().Sub(last.GetStartedAt().AsTime()))
	for _, name := range names {
		if err := logIn(t.Context(), old[name]); !isRefused(err) {
			t.Errorf("%s: the stolen version: %v", name, err)
		}
	}
	l.more(t, 30)
	l.check(t)
	w.healthy(t)
}
