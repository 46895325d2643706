package hub_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/hub"
)

// TestClientsOfASilentRegionAreNotForgotten: when a whole region falls silent, it
// may be cut off and still use what it has. Its clients stay registered, so that
// nothing is revoked that they use; once one of the region is heard of again, those
// that do not come back are forgotten as everywhere.
func TestClientsOfASilentRegionAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCore()
		h := start(t, c, hub.Config{ForgetClients: time.Minute})
		sessions := map[string]*hub.Session{}
		attach := func(id, region string) {
			t.Helper()
			s, err := h.Connect(t.Context(), operator, engine.PartyRecord{ID: id, Kind: hub.KindClient, Region: region}, []engine.Holding{{Key: "a"}})
			if err != nil {
				t.Fatal(err)
			}
			sessions[id] = s
		}
		pass := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			<-ctx.Done()
			synctest.Wait()
		}
		attach("eu-1", "eu")
		attach("eu-2", "eu")
		attach("us-1", "us")
		attach("us-2", "us")
		attach("nowhere", "")
		pass(30 * time.Second)
		for _, id := range []string{"eu-2", "us-1", "us-2", "nowhere"} {
			sessions[id].Close() // all of us, one of eu, the only one of no region
		}
		pass(24 * time.Hour)
		want(t, c.gone(), "eu-2", "nowhere")
		attach("us-2", "us")
		pass(30 * time.Second)
		want(t, c.gone(), "eu-2", "nowhere", "us-1")
	})
}
