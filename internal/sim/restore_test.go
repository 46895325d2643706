package sim

import (
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/key"
)

// backup is the store at one step, and what the events up to it lead to.
type backup struct {
	store  memstore.Backup
	step   int
	states map[key.Name]rotation.State
}

func (w *world) keepBackup() {
	w.backup = &backup{store: w.mem.Backup(), step: w.step, states: map[key.Name]rotation.State{}}
	for _, k := range w.keys {
		w.backup.states[k.name] = k.state
	}
}

// putBack ends all servers, puts the backup into the place of the store, marks it
// as restored, and starts the servers again. Outside nothing goes back.
func (w *world) putBack() {
	w.outlive()
	for _, n := range w.nodes {
		if n.life != nil {
			n.life.crash()
		}
	}
	w.mem.Restore(w.backup.store)
	w.restores++
	for fence := range w.fences {
		w.fenceThen = max(w.fenceThen, fence)
	}
	for _, k := range w.keys {
		state := w.backup.states[k.name]
		for i := range k.state.Versions {
			v := k.state.Versions[i].Number
			if _, kept := state.Version(v); !kept {
				k.lost[v] = true
			}
		}
		for i := range state.Verifiers {
			if _, there := k.state.Verifier(state.Verifiers[i].ID); !there {
				k.returned[state.Verifiers[i].ID] = state.Floor
			}
		}
		k.state, k.unmarked = state, len(state.Versions) > 0
		clear(k.asked)
		clear(k.requests)
		clear(k.measured)
	}
	record := engine.RestoreRecord{At: time.Now(), Reason: "simulated"}
	if err := engine.MarkRestored(w.ctx, w.store, record); err != nil {
		w.violate("restore", "%v", err)
	}
	for _, n := range w.nodes {
		n.life.restartLater(w.some(10 * time.Second))
	}
	w.dirty = true
}
