package rotation

import "time"

// Plan is what a policy asks of one rotation, fixed when the rotation begins.
type Plan struct {
	// NotBefore and NotAfter bound the start; zero means no bound. A rotation still
	// planned after NotAfter is cancelled.
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// Approvals is how many different people must approve.
	Approvals int `json:"approvals,omitempty"`
	// Stages are presented to in order; at least one. A presenter whose stage
	// number is larger than the last one belongs to the last one.
	Stages []Stage `json:"stages"`
	// Judged says that the Judge effect decides whether a baked stage passes.
	Judged bool `json:"judged,omitempty"`
	// JudgeEvery is how long to wait after a judgement without data.
	JudgeEvery time.Duration `json:"judgeEvery,omitempty"`
	// HoldOnFailure holds for a human where otherwise a failing stage rolls back.
	HoldOnFailure bool `json:"holdOnFailure,omitempty"`

	// DrainMin is the minimum grace of the old version, DrainQuiet how long its
	// measured use must have been zero, DrainMax when to page (0: never).
	DrainMin   time.Duration `json:"drainMin,omitempty"`
	DrainQuiet time.Duration `json:"drainQuiet,omitempty"`
	DrainMax   time.Duration `json:"drainMax,omitempty"`
	// RevokeAtMax revokes at DrainMax although use is measured, once no registered
	// presenter may be using the old version.
	RevokeAtMax bool `json:"revokeAtMax,omitempty"`
	// MeasureEvery is the time between measurements.
	MeasureEvery time.Duration `json:"measureEvery,omitempty"`

	// Quarantine is how long the old version stays restorable.
	Quarantine time.Duration `json:"quarantine,omitempty"`
	// EndQuarantineEarly gives a quarantined version's place to this rotation when
	// the system has no other.
	EndQuarantineEarly bool `json:"endQuarantineEarly,omitempty"`
	// DestroyAfter is how long a deactivated version's material is kept.
	DestroyAfter time.Duration `json:"destroyAfter,omitempty"`

	// Strategy and Grace are those of an emergency.
	Strategy Strategy      `json:"strategy,omitempty"`
	Grace    time.Duration `json:"grace,omitempty"`
}

// Stage is a group of presenters that move together.
type Stage struct {
	Name string `json:"name"`
	// Bake is how long the stage is watched after all its presenters were well for
	// the first time. One that joins meanwhile does not begin it anew, but must be
	// well, too, before the stage passes.
	Bake time.Duration `json:"bake,omitempty"`
	// AckTimeout is after how long a missing acknowledgement pages (0: never).
	AckTimeout time.Duration `json:"ackTimeout,omitempty"`
	// SkipEmpty passes the stage when no presenter belongs to it, although the key
	// has presenters; otherwise the rotation holds. An emergency always passes it.
	SkipEmpty bool `json:"skipEmpty,omitempty"`
}

// MaxTries is how often in a row a verifier may contradict its own answer
// before a human is asked.
const MaxTries = 5
