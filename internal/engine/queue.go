package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// The order in which effects are claimed; within a priority it is that of their
// becoming due, and no target keeps another waiting.
const (
	// priorityLater is for what nobody waits for.
	priorityLater = iota
	priorityOrdinary
	// priorityBack is for returning to the version before.
	priorityBack
	// priorityEmergency is for emergencies: from here on workers are reserved.
	priorityEmergency
	// priorityContain is for refusing a compromised version.
	priorityContain
)

// emergencyTarget is put before the host of an emergency's effect: it has a
// bulkhead of its own, which what hangs there cannot fill.
const emergencyTarget = "emergency "

// queuedEffect is the body of a job.
type queuedEffect struct {
	rotation.Effect
	// At is when the effect was asked for; zero for one queued by an older server.
	At time.Time `json:"at,omitzero"`
}

func decodeEffect(job *store.Job) (rotation.Effect, time.Time, error) {
	var body queuedEffect
	if err := json.Unmarshal(job.Body, &body); err != nil {
		return body.Effect, body.At, fmt.Errorf("effect of job %q: %w", job.ID, err)
	}
	return body.Effect, body.At, nil
}

// queue writes the effects as jobs; tells go to the fleet after the commit.
func (c *change) queue(name key.Name, before, after *rotation.State, effects []rotation.Effect) error {
	hastened := newlyUrgent(before, after)
	if len(effects) == 0 && !hastened {
		return nil
	}
	hosts, err := c.hosts(name)
	if err != nil {
		return err
	}
	if hastened {
		if err := c.hasten(name, after, &hosts); err != nil {
			return err
		}
	}
	var jobs []store.Job
	for _, effect := range effects {
		if effect.Kind == rotation.Tell {
			if c.tells == nil {
				c.tells = map[key.Name][]Tell{}
			}
			c.tells[name] = append(c.tells[name], Tell{
				Presenter: effect.Presenter, Version: effect.Version, Epoch: effect.Epoch, Rotation: effect.Rotation, At: c.now,
			})
			continue
		}
		body, err := encode(queuedEffect{Effect: effect, At: c.now})
		if err != nil {
			return err
		}
		job := store.Job{
			ID: string(name) + "#" + effect.ID(), Lane: string(name) + "#" + effect.Lane(),
			Key: name, RunAt: c.now, Body: body,
		}
		hosts.place(&job, after, effect.EffectRef)
		jobs = append(jobs, job)
	}
	if len(jobs) == 0 {
		return nil
	}
	return c.tx.Queue.Enqueue(c.ctx, jobs...)
}

// newlyUrgent reports whether an emergency has begun or a version was declared
// compromised: what was queued before may have become urgent.
func newlyUrgent(before, after *rotation.State) bool {
	for i := range after.Rotations {
		if r := &after.Rotations[i]; r.Kind == rotation.Emergency {
			if _, known := before.Rotation(r.ID); !known {
				return true
			}
		}
	}
	for i := range after.Versions {
		if v := &after.Versions[i]; v.State == key.Compromised {
			if old, ok := before.Version(v.Number); ok && old.State != key.Compromised {
				return true
			}
		}
	}
	return false
}

// hasten gives the effects of a key that wait the priority that they have now.
func (c *change) hasten(name key.Name, state *rotation.State, hosts *hostsOf) error {
	jobs, err := c.tx.Queue.Pending(c.ctx, name)
	if err != nil {
		return err
	}
	for _, job := range jobs {
		effect, _, err := decodeEffect(&job)
		if err != nil {
			return err
		}
		urgent := job
		if !state.Awaits(effect.EffectRef) {
			continue
		}
		hosts.place(&urgent, state, effect.EffectRef)
		if urgent.Priority <= job.Priority {
			continue
		}
		// A job that is leased stays as it is: its ID is known to the queue.
		urgent.RunAt = c.now
		if err := c.tx.Queue.Drop(c.ctx, job.Lane); err != nil {
			return err
		}
		if err := c.tx.Queue.Enqueue(c.ctx, urgent); err != nil {
			return err
		}
	}
	return nil
}

// urgency is the priority of an effect.
func urgency(state *rotation.State, ref rotation.EffectRef) int {
	if v, ok := state.Version(ref.Version); ok && v.State == key.Compromised && refuses(ref.Kind) {
		return priorityContain
	}
	if ref.Kind == rotation.Destroy {
		return priorityLater
	}
	most := priorityOrdinary
	for i := range state.Rotations {
		r := &state.Rotations[i]
		// A rotation that took over another one goes on with what that had asked for.
		if r.ID != ref.Rotation && (ref.Verifier == "" || r.From != ref.Version && r.To != ref.Version) {
			continue
		}
		switch r.Kind {
		case rotation.Emergency:
			return priorityEmergency
		case rotation.Rollback:
			most = priorityBack
		case rotation.Scheduled, rotation.Manual:
		}
	}
	return most
}

// refuses reports whether an effect is a part of refusing a version.
func refuses(kind rotation.EffectKind) bool {
	return kind == rotation.Refuse || kind == rotation.ProbeRefuse
}

// hostsOf says which bulkhead the effects of a key belong to.
type hostsOf struct {
	// own is that of what reaches no host, mint that of what makes versions, system
	// that of what concerns all endpoints.
	own, mint, system string
	endpoints         map[string]string
}

func (c *change) hosts(name key.Name) (hostsOf, error) { return c.e.hostsOf(c.ctx, c.tx, name) }

// maxSystemTarget bounds the name of a system's bulkhead, in bytes.
const maxSystemTarget = store.MaxName - len(emergencyTarget)

func (h *hostsOf) takeEndpoints(hosts []string) {
	hosts = slices.Compact(slices.Sorted(slices.Values(hosts)))
	if joined := strings.Join(hosts, ", "); joined != "" && len(joined) <= maxSystemTarget {
		h.system = joined
	}
}

// of returns the bulkhead of an effect. An effect that concerns all endpoints is
// apart from those that concern one: while a replica hangs, what waits for it
// must not fill the bulkhead of the primary.
func (h *hostsOf) of(ref rotation.EffectRef) string {
	switch ref.Kind {
	case rotation.Accept, rotation.ProbeAccept, rotation.Refuse, rotation.ProbeRefuse:
		if host, ok := h.endpoints[ref.Verifier]; ok {
			return host
		}
	case rotation.Mint:
		return h.mint
	case rotation.Preflight, rotation.Measure, rotation.Destroy, rotation.Reconcile:
		return h.system
	case rotation.Judge, rotation.Tell:
	}
	return h.own
}

// place gives a job its priority and its bulkhead.
func (h *hostsOf) place(job *store.Job, state *rotation.State, ref rotation.EffectRef) {
	job.Priority, job.Target = urgency(state, ref), h.of(ref)
	if job.Priority >= priorityEmergency && len(job.Target)+len(emergencyTarget) <= store.MaxName {
		job.Target = emergencyTarget + job.Target
	}
}
