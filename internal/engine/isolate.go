package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/engine/breaker"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// How targets that do not answer are treated.
const (
	// silentAfter calls in a row without an answer close a target off; after
	// probeFirst one call tries it, then after twice as long, up to retryMax.
	silentAfter = 5
	probeFirst  = time.Second
	// maxAbandoned is how many calls that do not end although their time is over may
	// be left to themselves for each target.
	maxAbandoned = 4
	// abandonAfter is how long after its time an effect may take to end.
	abandonAfter = 500 * time.Millisecond
)

// How often failing effects are repeated before a human is asked; see also
// policy.Effects.
const (
	// maxMintTries bounds an effect that changes nothing outside: after them a
	// rotation stops before it has begun.
	maxMintTries = 5
	// maxDeniedTries is how often Keyturn's own credential may be refused: systems
	// lock accounts out. Its tries are apart by deniedFirst, then twice as long each.
	maxDeniedTries = 5
	deniedFirst    = time.Second
	deniedMax      = 10 * time.Minute
)

// How an effect is repeated that takes its time, see provider.Later: the more
// seldom the longer it takes, by 1/laterShare of that, at most laterMax apart, and
// for laterFor; then it counts as one that fails.
const (
	laterLeast = 100 * time.Millisecond
	laterMax   = time.Minute
	laterShare = 50
	laterFor   = 24 * time.Hour
)

// SilentTarget is a host, or whatever else a bulkhead is for, that does not
// answer this server node.
type SilentTarget struct {
	Name string
	// Since is when the first call began that it did not answer, TriedAgain when it
	// is tried next.
	Since      time.Time
	TriedAgain time.Time
	Cause      string
	// Abandoned is how many calls have not returned although their time is over.
	Abandoned int
}

// Silent returns the targets that do not answer this server node, by name. What
// concerns them waits; nothing else does.
func (e *Engine) Silent() []SilentTarget {
	byName := map[string]int{}
	var list []SilentTarget
	for _, s := range e.silence.List() {
		t := silentTarget(s)
		if at, known := byName[t.Name]; known {
			if t.Since.Before(list[at].Since) {
				list[at].Since = t.Since
			}
			list[at].Abandoned += t.Abandoned
			continue
		}
		byName[t.Name] = len(list)
		list = append(list, t)
	}
	return list
}

func silentTarget(s breaker.Silent) SilentTarget {
	name := strings.TrimPrefix(s.Target, emergencyTarget)
	return SilentTarget{Name: name, Since: s.Since, TriedAgain: s.ProbeAt, Cause: s.Cause, Abandoned: s.Abandoned}
}

// claimFree claims jobs for free workers, of which ordinary ones may take what is
// not an emergency. What concerns a target that does not answer stays where it is.
func (e *Engine) claimFree(ctx context.Context, tx store.Tx, now time.Time, free, ordinary int) ([]store.Job, error) {
	claim := store.Claim{Now: now, Lease: e.config.Lease, PerTarget: e.config.PerHost, Bounds: e.silence.Bounds(now, e.config.PerHost)}
	var jobs []store.Job
	if ordinary = min(free, ordinary); ordinary > 0 {
		claim.Limit = ordinary
		var err error
		if jobs, err = tx.Leases.Claim(ctx, claim); err != nil || len(jobs) < ordinary {
			return jobs, err
		}
	}
	if free <= len(jobs) {
		return jobs, nil
	}
	claim.Limit, claim.Least = free-len(jobs), priorityEmergency
	urgent, err := tx.Leases.Claim(ctx, claim)
	return append(jobs, urgent...), err
}

// hear notes whether the target has answered.
func (e *Engine) hear(job *store.Job, ended *done, began time.Time) {
	switch {
	case !ended.asked, errors.Is(ended.err, context.Canceled):
		// The system was not called, or not until it could have answered.
	case provider.IsSilent(ended.err):
		e.silence.Failed(job.Target, ended.err.Error(), began, e.config.Now())
	default:
		e.silence.Answered(job.Target)
	}
}

// attempt carries out an effect. A slow one gives its worker's place to another.
// One that does not end although its time is over is left to itself: what it
// returns later is dropped, and what it does later a system that compares fences
// refuses.
func (e *Engine) attempt(ctx context.Context, w *worker, job store.Job, effect rotation.Effect, log *slog.Logger) done {
	ended := make(chan done, 1)
	go func() { ended <- e.try(ctx, job, effect, log) }()
	slow := time.NewTimer(slowAfter)
	defer slow.Stop()
	for running := true; running; {
		select {
		case d := <-ended:
			return d
		case <-slow.C:
			if len(ended) == 0 {
				w.park()
			}
		case <-ctx.Done():
			running = false
		}
	}
	grace := time.NewTimer(abandonAfter)
	defer grace.Stop()
	select {
	case d := <-ended:
		return d
	case <-grace.C:
	}
	log.ErrorContext(ctx, "an effect did not end when its time was over; it is left to itself", "target", job.Target)
	e.silence.Abandoned(job.Target, e.config.Now())
	go func() {
		<-ended
		e.silence.Returned(job.Target)
		log.WarnContext(ctx, "an effect that was left to itself has ended; its result is dropped", "target", job.Target)
	}()
	return asked(done{err: fmt.Errorf("%w: the provider did not return when its time was over", provider.ErrSilent)})
}

// try carries out an effect. A panic of a provider is a failure like others; the
// stack is logged without the value of the panic, which might hold a secret.
func (e *Engine) try(ctx context.Context, job store.Job, effect rotation.Effect, log *slog.Logger) (d done) {
	defer func() {
		if recover() != nil {
			log.ErrorContext(ctx, "an effect panicked", "stack", string(debug.Stack()))
			d = asked(done{err: errors.New("the provider panicked; report this as a bug, with the stack that is in the server's log")})
		}
	}()
	return e.carryOut(ctx, job, effect)
}

// judgeTries decides whether an effect that failed is to be tried again, when,
// and whether a human is asked.
func (e *Engine) judgeTries(ctx context.Context, job *store.Job, effect rotation.Effect, queued time.Time, ended *done) {
	tries := tried{kind: effect.Kind, attempt: job.Attempt, owned: !effect.Rotation.IsZero(), err: ended.err}
	if !queued.IsZero() {
		tries.since = e.config.Now().Sub(queued)
	}
	if after, later := provider.IsLater(ended.err); later {
		ended.pause = e.spread(min(laterMax, max(laterLeast, after, tries.since/laterShare)))
		if ended.waits = tries.since < laterFor; ended.waits {
			return
		}
	}
	if errors.Is(ended.err, provider.ErrDenied) {
		ended.pause = e.spread(min(deniedMax, deniedFirst<<min(job.Attempt-1, 20)))
	}
	if !tries.enough(e.effectLimits(ctx, job.Key)) {
		return
	}
	ended.outcome = rotation.Broken
	if job.Attempt > 1 {
		ended.err = fmt.Errorf("tried %d times: %w", job.Attempt, ended.err)
	}
}

// tried is how an effect has fared so far.
type tried struct {
	kind    rotation.EffectKind
	attempt int
	// since is how long ago it was asked for, 0 if that is not known.
	since time.Duration
	// owned: a rotation waits for it, and can ask a human.
	owned bool
	err   error
}

// enough reports whether a human is to be asked instead of trying again.
func (t tried) enough(limits policy.Effects) bool {
	if t.kind == rotation.Mint {
		return t.attempt >= maxMintTries
	}
	switch {
	case !t.owned:
		return false // nobody would be asked; it is tried on, at a slow pace
	case errors.Is(t.err, provider.ErrDenied):
		return t.attempt >= maxDeniedTries
	case provider.IsSilent(t.err) && limits.OnSilence == policy.SilenceWait:
		return false // the target is paged for, and its rotations go on by themselves
	}
	return t.attempt >= limits.MaxTries && t.since >= limits.MaxTime.Std()
}

// effectLimits are those of the policy that the key follows now.
func (e *Engine) effectLimits(ctx context.Context, name key.Name) policy.Effects {
	spec, err := e.specOf(ctx, name)
	if err == nil {
		return spec.Effects
	}
	if ctx.Err() == nil {
		e.log.WarnContext(ctx, "the policy's limits of effects could not be read; the defaults are taken", "key", name, "error", err)
	}
	return policy.DefaultSpec().Effects
}

// spread returns a random duration between half of d and d.
func (e *Engine) spread(d time.Duration) time.Duration { return d/2 + e.config.Jitter(d/2) }

// waitingForTargets says which targets that do not answer a rotation waits for.
func (e *Engine) waitingForTargets(ctx context.Context, tx store.Tx, record *RotationRecord) ([]rotation.Waiting, error) {
	if len(e.silence.List()) == 0 {
		return nil, nil
	}
	jobs, err := tx.Queue.Pending(ctx, record.Key)
	if err != nil {
		return nil, err
	}
	var waiting []rotation.Waiting
	for _, job := range jobs {
		s, silent := e.silence.Find(job.Target)
		if !silent {
			continue
		}
		effect, _, err := decodeEffect(&job)
		if err != nil || effect.Rotation != record.ID {
			continue
		}
		t := silentTarget(s)
		w := rotation.Waiting{
			Reason: "target", Until: t.TriedAgain,
			Message: fmt.Sprintf("target %s does not answer since %s: %s", t.Name, t.Since.UTC().Format(time.RFC3339), t.Cause),
		}
		if t.Abandoned > 0 {
			w.Message += fmt.Sprintf("; %d calls have not returned", t.Abandoned)
		}
		if effect.Verifier != "" {
			w.Names = []string{effect.Verifier}
		}
		waiting = append(waiting, w)
	}
	return waiting, nil
}
