package policy

import (
	"time"
)

// Spec is what a policy consists of. Every field holds its effective value:
// what a file leaves out is filled in by Parse as DefaultSpec says.
type Spec struct {
	// When keys are rotated; without it they are rotated by hand only.
	Rotate Rotate `json:"rotate,omitzero"`
	// The order in which presenters move to the new version. Default: one stage "all" with a bake of 1m.
	Stages []Stage `json:"stages"`
	// What happens when a stage fails: rollback (default) or hold.
	OnFailure OnFailure `json:"onFailure"`
	// What a stage is judged by while it bakes, beside the parties' own health checks. Default: nothing more.
	Judge []Judge `json:"judge,omitzero"`
	// How long the old version stays accepted after the cut-over.
	Drain Drain `json:"drain"`
	// How long a revoked version can be restored in one step. Default: 24h.
	Quarantine Duration `json:"quarantine"`
	// Whether a cut-over that finds no room may end a quarantine early. Default: false.
	EndQuarantineEarly bool `json:"endQuarantineEarly,omitzero"`
	// What becomes of a version after its quarantine.
	Retain Retain `json:"retain"`
	// Who must agree before a rotation starts. Default: nobody.
	Approvals Approvals `json:"approvals,omitzero"`
	// How an emergency proceeds.
	Emergency Emergency `json:"emergency"`
	// What happens when the secret of a version in use is found where it should not be.
	Leaks Leaks `json:"leaks"`
	// How often what fails at a target is tried before a human is asked.
	Effects Effects `json:"effects"`
	// Whether to accept a system whose change has an unavoidable gap: in the
	// moment it accepts the new version it refuses the old one, and parties fail
	// until the new version reaches them. Default: false.
	AllowGap bool `json:"allowGap,omitzero"`
	// Periods in which no scheduled rotation starts.
	Freeze []Interval `json:"freeze,omitzero"`
}

// Rotate is a schedule. The zero value means none.
type Rotate struct {
	// The cryptoperiod: a key is due when its current version is this old.
	Every Duration `json:"every" jsonschema:"required"`
	// How far starts are spread, so that keys that are due together do not start
	// together. Default: half of the shortest window; without windows a tenth of
	// every, at most 1h.
	Jitter Duration `json:"jitter"`
	// When rotations may start; default: at any time. A start that would not leave
	// time for the stages' bakes before the window closes waits for the next one.
	Windows []Window `json:"windows,omitzero"`
	// Where the grid of periods begins: keys are then due at startAt, startAt + every,
	// and so on, rather than by the age of their version.
	StartAt time.Time `json:"startAt,omitzero"`
}

// IsZero reports whether there is no schedule.
func (r Rotate) IsZero() bool {
	return r.Every == 0 && r.Jitter == 0 && len(r.Windows) == 0 && r.StartAt.IsZero()
}

// Window is a recurring period in which rotations may start.
type Window struct {
	// When it opens: minute, hour, day of month, month, day of week, as in crontab(5), except
	// that a restricted day of month and day of week must both match.
	Cron string `json:"cron" jsonschema:"required"`
	// How long it stays open, in elapsed time.
	Duration Duration `json:"duration" jsonschema:"required"`
	// The IANA time zone cron is read in, for example Europe/Berlin. Default: UTC.
	Timezone string `json:"timezone"`
}

// Stage is one step of the cut-over.
type Stage struct {
	// The name, unique within the policy.
	Name string `json:"name" jsonschema:"required"`
	// Which parties belong to it, as a CEL expression over party and key, for example
	// party.labels.cohort == "canary". A party belongs to the first stage that matches;
	// a stage without match takes all that are left.
	Match string `json:"match,omitzero"`
	// The order in which the regions of the stage move, for example [eu, us]: the parties
	// of one region have acknowledged, baked and been judged before the next region is told.
	// Parties of other regions, or of none, come last. Default: all regions at once.
	Regions []string `json:"regions,omitzero"`
	// How long the stage, or each region of it, is watched after its parties have moved. Default: 1m.
	Bake Duration `json:"bake"`
	// How long parties may take to acknowledge the new version. Default: 5m.
	AckTimeout Duration `json:"ackTimeout"`
	// What happens when no party belongs to the stage: hold or skip. Default: hold with
	// match, since an absent canary proves nothing; skip without match, since nobody is left.
	OnEmpty OnEmpty `json:"onEmpty"`
}

// Judge is a condition that a stage must meet while it bakes.
type Judge struct {
	// The name, unique within the policy.
	Name string `json:"name" jsonschema:"required"`
	// What is counted: auth_failures.
	Signal Signal `json:"signal" jsonschema:"required"`
	// The largest count that passes. Default: 0.
	Max int `json:"max"`
	// How many samples a verdict needs; with fewer the rotation holds. Default: 1.
	MinSamples int `json:"minSamples"`
}

// Drain says when the old version may be revoked.
type Drain struct {
	// The minimum grace after the cut-over. Default: 5m.
	Min Duration `json:"min"`
	// How long the measured use of the old version must be zero. Default: 5m.
	Quiet Duration `json:"quiet"`
	// The longest time the old version may stay in use. Default: 7d.
	Max Duration `json:"max"`
	// What happens then: hold (default) or revoke.
	OnMax OnMax `json:"onMax"`
	// How often use is measured. Default: a fifth of quiet, at least 1s, at most 1m.
	Every Duration `json:"every"`
}

// Retain says what becomes of a version after its quarantine.
type Retain struct {
	// How long its sealed material is kept after the quarantine. Default: 0s.
	DestroyAfter Duration `json:"destroyAfter"`
	// Whether the material is then sealed into escrow instead of destroyed. Default: false.
	Escrow bool `json:"escrow,omitzero"`
}

// Approvals says who must agree before a rotation starts.
type Approvals struct {
	// How many people; 0 to 10. Default: 0.
	Required int `json:"required" jsonschema:"required"`
	// For which keys, as a CEL expression over key. Default: all.
	When string `json:"when,omitzero"`
}

// Emergency says how an emergency proceeds.
type Emergency struct {
	// The strategy: replace-first (default), or contain-first.
	Strategy Strategy `json:"strategy"`
	// How long the old version stays accepted after an emergency cut-over (replace-first). Default: 60s.
	Grace Duration `json:"grace"`
}

// Leaks says what happens when a scanner, or a partner's, has found the secret of a
// version that may still be accepted somewhere. Whatever it says, somebody is paged
// until nothing accepts the version.
type Leaks struct {
	// What is done: page (default), approval (a rotation that waits for an approval), or
	// emergency (an emergency rotation, by itself).
	OnMatch LeakAction `json:"onMatch"`
	// The strategy of that emergency. Default: emergency.strategy.
	Strategy Strategy `json:"strategy"`
}

// Effects says how often what fails at a target is tried before a human is
// asked. What would not succeed when repeated, and a refused credential of
// Keyturn's own, is told earlier; refusing a compromised version is tried on.
type Effects struct {
	// How often at least an effect is tried; 1 to 1,000. Default: 10.
	MaxTries int `json:"maxTries"`
	// For how long at least an effect is tried. Default: 1h.
	MaxTime Duration `json:"maxTime"`
	// Whether to wait for a target that gives no answer at all, and go on by itself
	// when it does, or to hold as after other failures: wait (default) or hold.
	OnSilence OnSilence `json:"onSilence"`
}

// Interval is a period in which no scheduled rotation starts: from From
// inclusive to To exclusive.
type Interval struct {
	// When it begins, for example 2026-12-18T00:00:00Z.
	From time.Time `json:"from" jsonschema:"required"`
	// When it ends: the first moment at which rotations may start again.
	To time.Time `json:"to" jsonschema:"required"`
	// Why, for whoever wonders.
	Reason string `json:"reason,omitzero"`
}

// Limits on what a policy may hold.
const (
	MaxStages   = 32
	MaxWindows  = 32
	MaxJudges   = 16
	MaxFreezes  = 64
	MaxLabels   = 64
	MaxApproval = 10
)

// MinEvery is the shortest accepted cryptoperiod.
const MinEvery = Duration(time.Second)

// DefaultName is the name of the built-in policy.
const DefaultName = "default"

// unset marks a duration whose default depends on other fields.
const unset Duration = -1

// Default returns the built-in policy of keys that name none: no schedule,
// everything else as DefaultSpec.
func Default() Policy {
	return Policy{Metadata: Metadata{Name: DefaultName}, Spec: DefaultSpec()}
}

// DefaultSpec returns the effective policy of an empty spec.
func DefaultSpec() Spec {
	s := incompleteSpec()
	s.complete()
	return s
}

// incompleteSpec returns the defaults that do not depend on other fields.
func incompleteSpec() Spec {
	return Spec{
		Rotate:     Rotate{Jitter: unset},
		OnFailure:  FailureRollback,
		Drain:      Drain{Min: 5 * minute, Quiet: 5 * minute, Max: 7 * Day, OnMax: MaxHold, Every: unset},
		Quarantine: Day,
		Emergency:  Emergency{Strategy: ReplaceFirst, Grace: minute},
		Leaks:      Leaks{OnMatch: LeakPage},
		Effects:    Effects{MaxTries: 10, MaxTime: 60 * minute, OnSilence: SilenceWait},
	}
}

const minute = Duration(time.Minute)

func (s *Stage) setDefaults() {
	*s = Stage{Bake: minute, AckTimeout: 5 * minute}
}
func (w *Window) setDefaults() { *w = Window{Timezone: "UTC"} }
func (j *Judge) setDefaults()  { *j = Judge{MinSamples: 1} }

// complete fills in the defaults that depend on other fields.
func (s *Spec) complete() {
	if len(s.Stages) == 0 {
		s.Stages = []Stage{{Name: "all", Bake: minute, AckTimeout: 5 * minute}}
	}
	for i := range s.Stages {
		if s.Stages[i].OnEmpty == 0 {
			s.Stages[i].OnEmpty = EmptyHold
			if s.Stages[i].Match == "" {
				s.Stages[i].OnEmpty = EmptySkip
			}
		}
	}
	if s.Drain.Every == unset {
		s.Drain.Every = min(max(s.Drain.Quiet/5, Duration(time.Second)), minute).truncate()
	}
	if s.Leaks.Strategy == 0 {
		s.Leaks.Strategy = s.Emergency.Strategy
	}
	if s.Rotate.Jitter == unset {
		s.Rotate.Jitter = s.Rotate.defaultJitter()
	}
}

func (r Rotate) defaultJitter() Duration {
	if len(r.Windows) == 0 {
		return min(r.Every/10, 60*minute).truncate()
	}
	shortest := r.Windows[0].Duration
	for _, w := range r.Windows {
		shortest = min(shortest, w.Duration)
	}
	return (shortest / 2).truncate()
}

// truncate drops fractions of a millisecond, so that derived values print well.
func (d Duration) truncate() Duration {
	return d / Duration(time.Millisecond) * Duration(time.Millisecond)
}

// CutOver returns the time that the stages bake, which is the least that a
// cut-over takes.
func (s *Spec) CutOver() Duration {
	var sum Duration
	for _, stage := range s.Stages {
		sum += stage.Bake * Duration(max(1, len(stage.Regions)))
	}
	return sum
}

// grace returns the least time from the cut-over to the revocation.
func (d Drain) grace() Duration { return max(d.Min, d.Quiet) }
