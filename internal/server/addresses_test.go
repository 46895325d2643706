package server_test

import (
	"encoding/json"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestAddressesAreInTheLog: reads by the API, and parties that join and leave, are
// there with the address that they came from.
func TestAddressesAreInTheLog(t *testing.T) {
	t.Parallel()
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	w.rotateNow(t)
	ctx := t.Context()
	if _, err := w.control(w.root).GetSecret(ctx, &keyturnv1.GetSecretRequest{Name: "dev/db"}); err != nil {
		t.Fatal(err)
	}
	watch := watchOf("web-1", "dev/db")
	if _, err := w.delivery(w.root).Poll(ctx, &keyturnv1.PollRequest{Party: watch.GetParty(), Keys: watch.GetKeys()}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.delivery(w.root).Leave(ctx, &keyturnv1.LeaveRequest{PartyId: "web-1"}); err != nil {
		t.Fatal(err)
	}
	log, err := w.control(w.root).ReadLog(ctx, &keyturnv1.ReadLogRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"secret.read": 1, "party.join": 1, "party.leave": 1}
	for _, text := range log.GetEntries() {
		var entry struct {
			Action string
			Detail map[string]string
		}
		if err := json.Unmarshal([]byte(text), &entry); err != nil {
			t.Fatal(err)
		}
		if _, wanted := want[entry.Action]; wanted {
			want[entry.Action]--
			if entry.Detail["address"] != "127.0.0.1" {
				t.Errorf("%s", text)
			}
		}
	}
	for action, left := range want {
		if left != 0 {
			t.Errorf("%d entries of %s are missing", left, action)
		}
	}
}
