package sim

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

// TestFleetOnSQLite runs a few fleets on the real store.
func TestFleetOnSQLite(t *testing.T) {
	o := options{signer: testSigner(t)}
	rotations := 0
	for seed := uint64(1); seed <= envUint(t, "KEYTURN_SIM_SQLITE", 3); seed++ {
		path := filepath.Join(t.TempDir(), "keyturn.db")
		o.open = func(ctx context.Context) (store.Store, func() error, error) {
			s, err := sqlite.Open(ctx, sqlite.Config{Path: path})
			if err != nil {
				return nil, nil, err
			}
			return s, s.Stop, nil
		}
		result := runSeed(t, seed, o)
		rotations += result.rotations
		if result.violation != nil {
			t.Errorf("seed %d: %v", seed, result.violation)
			for _, l := range result.tale {
				if !l.idle {
					t.Log(l)
				}
			}
			return
		}
		t.Logf("seed %d: %d rotations in %d steps, %v simulated", seed, result.rotations, result.steps, result.simulated)
	}
	if rotations == 0 {
		t.Error("nothing was rotated")
	}
}
