package rotation

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

// recorded is one event of a history, with the phase changes it brought about.
type recorded struct {
	At       time.Time       `json:"at"`
	Rotation key.RotationID  `json:"rotation,omitzero"`
	Type     string          `json:"type"`
	Body     json.RawMessage `json:"body"`
	Phases   []string        `json:"phases,omitempty"`
}

func phaseChanges(before, after *State) []string {
	var list []string
	for _, t := range Diff(*before, *after) {
		if t.Kind == RotationPhase {
			list = append(list, strings.TrimLeft(t.Rotation.String(), "0")+" "+t.From+" > "+t.To)
		}
	}
	return list
}

// teller drives the model through one scenario and records what the machine hears.
type teller struct {
	t      *testing.T
	c      *config
	n      node
	events []recorded
}

func newTeller(t *testing.T, c *config) *teller {
	d := &teller{t: t, c: c}
	c.fill()
	c.faults, c.churn, c.commands = 50, 50, 50
	for k := moveStart; k <= moveCancel; k++ {
		c.kinds = append(c.kinds, k)
	}
	c.prepare()
	c.observe = func(before, after *State, e Event) {
		name, body, err := MarshalBody(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		d.events = append(d.events, recorded{e.At, e.Rotation, name, body, phaseChanges(before, after)})
	}
	n, err := c.start()
	if err != nil {
		t.Fatal(err)
	}
	d.n = n
	return d
}

// do makes one move.
func (d *teller) do(k moveKind, a, b int) {
	d.t.Helper()
	next, ok, err := d.c.apply(&d.n, move{k, uint8(a), uint8(b)})
	if err != nil || !ok {
		d.t.Fatalf("move %d is not possible (%v) in %s", k, err, describeNode(&d.n))
	}
	d.n = next
}

// until makes free moves until the last rotation is in the phase.
func (d *teller) until(p Phase) {
	d.t.Helper()
	for range 1000 {
		if n := len(d.n.s.Rotations); n > 0 && d.n.s.Rotations[n-1].Phase == p {
			return
		}
		if !d.step() {
			break
		}
	}
	d.t.Fatalf("phase %v is not reached: %s", p, describeNode(&d.n))
}

// step makes the first free move that changes something.
func (d *teller) step() bool {
	moved := false
	now := d.n
	d.c.moves(&now, func(m move) {
		if moved || !m.kind.free() || m.kind == moveQuiet || m.kind == moveResume || m.kind == moveGiveUp {
			return
		}
		next, ok, err := d.c.apply(&now, m)
		if err != nil {
			d.t.Fatal(err)
		}
		if ok {
			d.n, moved = next, true
		}
	})
	return moved
}

// restored puts the backup back: the history is that of the store, which has
// lost what came after the backup.
func (d *teller) restored() {
	seq := int(d.n.w.saved.s.Seq)
	d.do(moveRestore, 0, 0)
	d.events = slices.Delete(d.events, seq, len(d.events)-1)
}

func (d *teller) rest() {
	d.t.Helper()
	for range 1000 {
		if !d.step() {
			return
		}
	}
	d.t.Fatalf("no rest: %s", describeNode(&d.n))
}

// stories are the scenarios that are recorded.
func stories() map[string]func(*testing.T) *teller {
	staged := func(t *testing.T) *teller {
		return newTeller(t, &config{plan: stagedPlan(), presenters: 3, stages: []int{0, 1, 1, 0}})
	}
	return map[string]func(*testing.T) *teller{
		"scheduled": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.rest()
			return d
		},
		"canary-fails": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveCannot, 0, 0)
			d.do(moveAck, 0, 0)
			d.rest()
			return d
		},
		"back-from-quarantine": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Quarantine)
			d.do(moveRevert, 0, 0)
			d.rest()
			return d
		},
		"emergency-replace-first": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveDeclare, 0, 0)
			d.rest()
			return d
		},
		"emergency-contain-first": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveDeclare, 1, 0)
			d.rest()
			return d
		},
		"emergency-takes-over": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveDeclare, 0, 0)
			d.rest()
			return d
		},
		"held-and-resumed": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Accepting)
			d.do(moveBroken, 0, 0)
			d.rest()
			d.do(moveResume, 0, 0)
			d.until(Presenting)
			d.do(movePause, 0, 0)
			d.rest()
			d.do(moveResume, 0, 0)
			d.rest()
			return d
		},
		"gap": func(t *testing.T) *teller {
			d := newTeller(t, &config{plan: quickPlan(), gap: true, capacity: 1, rotated: 1})
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveCancel, 0, 0)
			d.rest()
			d.do(moveBegin, 0, 0)
			d.rest()
			return d
		},
		"fleet-changes": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveJoin, 3, 0)
			d.do(moveAdd, 2, 0)
			d.do(moveLeave, 1, 0)
			d.until(Draining)
			d.do(moveRemove, 0, 0)
			d.do(moveJoinWith, 1, 1)
			d.until(Quarantine)
			d.do(moveAdd, 0, 0)
			d.rest()
			return d
		},
		"region-cut-off": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.do(moveTrouble, 0, 0)
			d.until(Accepting)
			d.do(moveTrouble, 0, 0)
			d.until(Draining)
			d.do(moveNoData, 0, 0)
			d.until(Revoking)
			d.do(moveTrouble, 0, 0)
			d.rest()
			return d
		},
		"restored-unchanged": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveSave, 0, 0)
			d.restored()
			d.rest()
			return d
		},
		"restored-and-replaced": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveSave, 0, 0)
			d.do(moveBegin, 0, 0)
			d.until(Quarantine)
			d.restored()
			d.rest()
			return d
		},
		"restored-as-found": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveSave, 0, 0)
			d.until(Quarantine)
			d.restored()
			d.do(moveRun, 0, 0)
			d.do(moveAsFound, 0, 0)
			d.rest()
			return d
		},
		"restored-first-version": func(t *testing.T) *teller {
			d := newTeller(t, &config{plan: quickPlan(), rotated: -1})
			d.do(moveBegin, 0, 0)
			d.until(Accepting)
			d.do(moveSave, 0, 0)
			d.until(Presenting)
			d.do(moveApply, 0, 0)
			d.restored()
			d.rest()
			return d
		},
		"restored-looked-at-again": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveSave, 0, 0)
			d.do(moveBegin, 0, 0)
			d.until(Quarantine)
			d.restored()
			d.do(moveRun, 0, 0)
			d.do(moveReattach, 0, 0)
			d.do(moveLook, 0, 0)
			d.rest()
			return d
		},
		"restored-while-minting": func(t *testing.T) *teller {
			d := newTeller(t, &config{plan: quickPlan(), unlisted: true})
			d.do(moveBegin, 0, 0)
			d.until(Minting)
			d.do(moveSave, 0, 0)
			d.until(Presenting)
			d.do(moveApply, 0, 0)
			d.restored()
			d.rest()
			return d
		},
		"overtaken-answer": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Presenting)
			d.do(moveApply, 0, 0)
			d.do(moveSicken, 0, 0)
			d.do(moveDelayAck, 0, 0)
			d.do(moveRetry, 0, 0)
			d.do(moveAck, 0, 0)
			d.do(moveLateAck, 0, 0)
			d.rest()
			return d
		},
		"lying-verifier": func(t *testing.T) *teller {
			d := staged(t)
			d.do(moveBegin, 0, 0)
			d.until(Accepting)
			d.do(moveLie, 0, 0)
			d.until(Revoking)
			d.do(moveLie, 0, 0)
			d.rest()
			return d
		},
	}
}

// TestHistories replays every recorded history: the same events lead to the same
// phases for ever. A history that does not fit any more is a break of promise to
// those who have such events stored; it is never written anew.
func TestHistories(t *testing.T) {
	dir := filepath.Join("testdata", "histories")
	for name, tell := range stories() {
		path := filepath.Join(dir, name+".json")
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if !flag.Lookup("update").Value.(flag.Getter).Get().(bool) {
			t.Errorf("history %s is not recorded; run with -update", name)
			continue
		}
		text, err := json.MarshalIndent(tell(t).events, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) < 8 {
		t.Fatalf("only %d histories were found (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) { replay(t, file) })
	}
}

func replay(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var events []recorded
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&events); err != nil {
		t.Fatal(err)
	}
	var s State
	for i, e := range events {
		body, err := UnmarshalBody(e.Type, e.Body)
		if err != nil {
			t.Fatal(err)
		}
		after, _, err := Step(s, Event{At: e.At, Rotation: e.Rotation, Body: body})
		if err != nil {
			t.Fatalf("event %d (%s): %v", i, e.Type, err)
		}
		if got := phaseChanges(&s, &after); !slices.Equal(got, e.Phases) {
			t.Fatalf("event %d (%s) leads to %q, and once led to %q", i, e.Type, got, e.Phases)
		}
		s = after
	}
	if len(s.Rotations) > 0 {
		t.Errorf("%d rotations have not ended", len(s.Rotations))
	}
}
