package engine_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// TestUseThatIsToldLate (F9): a third party that tells of uses four hours late reports
// none. That is no data until the drain is four hours old; a use that is told then
// keeps the version and is named, and only when none is told any more it is revoked.
func TestUseThatIsToldLate(t *testing.T) {
	const lag = 4 * time.Hour
	w := newWorld(t)
	w.apply(t, strings.Replace(policyDoc("quick", ""), "max: 1m", "max: 7d", 1), keyDoc("a", "quick"))
	w.system.SetUntil(func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load()) - lag) })
	var asked atomic.Int64
	w.system.SetHook(func(_ context.Context, operation string, _ key.Name) error {
		if operation == "usage" {
			asked.Add(1)
		}
		return nil
	})
	w.Start(t.Context())
	w.through(t, w.rotate(t, "a"))
	id := w.rotate(t, "a")
	w.wait(t, id, func(view engine.RotationView) bool {
		return view.Phase == rotation.Draining && view.Hold.Reason == rotation.HoldNoData && strings.Contains(view.Hold.Message, "tells of uses late")
	})
	w.jump(lag - time.Minute)
	before := asked.Load()
	eventually(t, "three measurements", func() bool { return asked.Load() >= before+3 })
	if view, err := w.Rotation(t.Context(), id); err != nil || view.Phase != rotation.Draining {
		t.Fatalf("a minute before the third party must know, the rotation is %v, %v", view.Phase, err)
	}
	w.system.SetHolders(provider.Holder{Endpoint: "one", Application: "partner", Sessions: 1})
	w.jump(lag)
	w.wait(t, id, func(view engine.RotationView) bool {
		if view.Phase != rotation.Draining {
			t.Fatalf("the rotation is %v while a partner uses the old version", view.Phase)
		}
		return view.Uses == 1 && len(view.Holders) == 1 && view.Holders[0].Application == "partner"
	})
	w.system.SetHolders()
	w.through(t, id)
}
