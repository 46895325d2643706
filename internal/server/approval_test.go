package server_test

import (
	"testing"

	"connectrpc.com/connect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestNobodyApprovesHisOwnRotation: a rotation that needs an approval waits for somebody
// else than who asked for it, whatever role that one has.
func TestNobodyApprovesHisOwnRotation(t *testing.T) {
	t.Parallel()
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	admin := w.control(w.token(t, "anna", "admin", "**"))
	operator := w.control(w.token(t, "otto", "operator", "**"))
	approver := w.control(w.token(t, "paula", "approver", "**"))
	approve := func(by keyturnv1connect.ControlServiceClient, id string) error {
		_, err := by.Steer(t.Context(), &keyturnv1.SteerRequest{RotationId: id, Action: keyturnv1.SteerAction_STEER_ACTION_APPROVE})
		return err
	}
	for _, asks := range []keyturnv1connect.ControlServiceClient{admin, operator} {
		answer, err := asks.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: "prod/db", Reason: "test"})
		must(t, err)
		id := answer.GetRotationId()
		if err := approve(asks, id); err == nil {
			t.Error("who asked for it approved it")
		}
		if err := approve(operator, id); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("an operator approves: %v", err)
		}
		waits, err := approver.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
		must(t, err)
		if phase := waits.GetRotation().GetPhase(); phase != "planned" {
			t.Fatalf("without an approval it is %s", phase)
		}
		must(t, approve(approver, id))
		pgtest.Eventually(t, "the rotation cuts over", func() bool {
			answer, err := approver.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
			must(t, err)
			return answer.GetRotation().GetCutOverAt() != nil
		})
	}
}
