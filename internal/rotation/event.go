package rotation

import (
	"time"

	"github.com/keyturn/keyturn/key"
)

// Event is one fact about a key: a command that was given, or something observed.
type Event struct {
	// At is when it happened. A time before State.Now counts as State.Now.
	At time.Time
	// Rotation is the rotation it belongs to; zero where it belongs to none.
	Rotation key.RotationID
	Body     Body
}

// Body is one of the types below.
type Body interface{ eventType() string }

// Configured tells what the system consists of. Verifiers that are absent are
// gone; new ones are brought up to date before presenters rely on them.
type Configured struct {
	Capacity  int           `json:"capacity,omitempty"`
	Gap       bool          `json:"gap,omitempty"`
	Verifiers []VerifierRef `json:"verifiers"`
}

// VerifierRef names a verifier.
type VerifierRef struct {
	ID     string `json:"id"`
	Region string `json:"region,omitempty"`
}

// Joined tells that a presenter is there, or came back.
type Joined struct {
	ID     string `json:"id"`
	Region string `json:"region,omitempty"`
	Stage  int    `json:"stage"`
	// Holding is the version it uses, 0 for none.
	Holding key.Version `json:"holding,omitempty"`
	// Epoch is the latest it has seen, 0 for none. A later telling gets a larger one.
	Epoch uint64 `json:"epoch,omitempty"`
}

// Arrived tells that several presenters are there, or came back: each is one
// fact, as if it were a Joined of its own.
type Arrived struct {
	Joins []Joined `json:"joins"`
}

// Left tells that a presenter presents nothing any more.
type Left struct {
	ID string `json:"id"`
}

// Begin asks for a rotation. It fails with ErrBusy while a cut-over is open.
type Begin struct {
	Kind   Kind   `json:"kind"`
	Plan   Plan   `json:"plan"`
	Reason string `json:"reason,omitempty"`
	Actor  string `json:"actor,omitempty"`
	// Stages assigns presenters to the plan's stages; those absent keep theirs.
	Stages []StageOf `json:"stages,omitempty"`
}

// StageOf assigns one presenter to a stage.
type StageOf struct {
	ID    string `json:"id"`
	Stage int    `json:"stage"`
}

// Declare declares versions compromised and begins an emergency: it takes over
// an open cut-over to a version that is not compromised, ends any other, and
// begins a new one where the current version is compromised. Plan.Strategy is
// required. Declared again for an open emergency, it may only make it stricter.
// A version that was to replace a contained one is contained with it when it
// turns out to be compromised as well.
type Declare struct {
	Compromised []key.Version `json:"compromised"`
	Plan        Plan          `json:"plan"`
	Reason      string        `json:"reason,omitempty"`
	Actor       string        `json:"actor,omitempty"`
	// Insist: refusing the versions waits for no human, even where it has failed.
	Insist bool `json:"insist,omitempty"`
}

// Revert asks to return from the version the rotation Of brought in to the one
// before. During the cut-over the rotation itself rolls back; after it the event's
// Rotation names a new one, which runs under Plan and takes the place of a
// rotation that is only planned, unless that is an emergency.
type Revert struct {
	Of     key.RotationID `json:"of"`
	Plan   Plan           `json:"plan"`
	Reason string         `json:"reason,omitempty"`
	Actor  string         `json:"actor,omitempty"`
}

// Approve tells that somebody approves the rotation. The same name counts once.
type Approve struct {
	Actor string `json:"actor"`
}

// Pause holds the rotation until Resume. What is accepted stays accepted.
type Pause struct {
	Actor  string `json:"actor,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Resume ends a hold that waits for a human and tries again what had failed.
type Resume struct {
	Actor string `json:"actor,omitempty"`
}

// Cancel gives the rotation up: at once before any effect outside, by rolling
// back during the rest of the cut-over. Afterwards it fails with ErrPhase. An
// emergency that replaces a compromised version cannot be given up: it fails with
// ErrCompromised.
type Cancel struct {
	Actor  string `json:"actor,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Acked tells what became of tellings; several in one event are one fact each.
type Acked struct {
	Acks []Ack `json:"acks"`
}

// Ack is one presenter's answer.
type Ack struct {
	ID    string `json:"id"`
	Epoch uint64 `json:"epoch"`
	// Order grows with the answers of a presenter: one that arrives after a later one
	// to the same telling is not taken. 0: it has none, and is taken when it arrives.
	Order uint64 `json:"order,omitempty"`
	// OK: the version told is in use and well. It may become false later in the
	// same epoch.
	OK bool `json:"ok"`
	// Using is the version in use now.
	Using  key.Version `json:"using"`
	Detail string      `json:"detail,omitempty"`
}

// Result tells how an effect ended.
type Result struct {
	Effect  EffectRef `json:"effect"`
	Outcome Outcome   `json:"outcome"`
	// Uses is the answer of a measurement.
	Uses   int    `json:"uses,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Verifiers are those at which an effect that concerns all failed, if known.
	Verifiers []string `json:"verifiers,omitempty"`
	// Insist, with Broken or Contradicted: where the effect is to refuse a compromised
	// version it is asked for again after a pause, although a human is told.
	Insist bool `json:"insist,omitempty"`
}

// Trouble tells that an effect failed, or is not at its end yet, and will be tried
// again.
type Trouble struct {
	Effect  EffectRef `json:"effect"`
	Attempt int       `json:"attempt"`
	Detail  string    `json:"detail"`
	// Waits: nothing failed; the effect takes its time, for what Detail says.
	Waits bool `json:"waits,omitempty"`
	// Verifiers are those at which an effect that concerns all failed, if known.
	Verifiers []string `json:"verifiers,omitempty"`
}

// Tick tells the time and nothing else; see State.Wake.
type Tick struct{}

// Restored tells that the store was put back to an earlier state, so that what
// happened outside since is not known. The key stands still, see Recovery, until
// it is reconciled. Told again with an Epoch that is not larger than the one before,
// it is the same restore: the key is reconciled anew, and who came back since is
// still known to have.
type Restored struct {
	// Epoch and Next are larger than any that the missing time can have used; they
	// are never used again.
	Epoch uint64      `json:"epoch"`
	Next  key.Version `json:"next"`
}

// Reconciled tells what verifiers really accept. With no difference from what is
// remembered the key goes on by itself.
type Reconciled struct {
	Effect EffectRef `json:"effect"`
	// Listed: the system keeps note of what it holds, so that Found lacks nothing.
	Listed bool `json:"listed,omitempty"`
	// Found has one answer of every verifier for every version that is not
	// destroyed, and the versions that are accepted and not known here.
	Found []Found `json:"found,omitempty"`
}

// Resolve settles the differences after a restore. It fails with ErrStale when
// Found is not what the state has found, and with ErrLockOut when presenters would
// be locked out and LockOut does not allow it.
type Resolve struct {
	How   Resolution `json:"how"`
	Found []Found    `json:"found,omitempty"`
	// Plan is that of the rotation that replaces, and of those that retire what else
	// is accepted. Retire has an ID for every version that may have to be retired.
	Plan    Plan             `json:"plan,omitzero"`
	Retire  []key.RotationID `json:"retire,omitempty"`
	LockOut bool             `json:"lockOut,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	Actor   string           `json:"actor,omitempty"`
}

func (Configured) eventType() string { return "configured" }
func (Joined) eventType() string     { return "joined" }
func (Arrived) eventType() string    { return "arrived" }
func (Left) eventType() string       { return "left" }
func (Begin) eventType() string      { return "begin" }
func (Declare) eventType() string    { return "declare" }
func (Revert) eventType() string     { return "revert" }
func (Approve) eventType() string    { return "approve" }
func (Pause) eventType() string      { return "pause" }
func (Resume) eventType() string     { return "resume" }
func (Cancel) eventType() string     { return "cancel" }
func (Acked) eventType() string      { return "acked" }
func (Result) eventType() string     { return "result" }
func (Trouble) eventType() string    { return "trouble" }
func (Tick) eventType() string       { return "tick" }
func (Restored) eventType() string   { return "restored" }
func (Reconciled) eventType() string { return "reconciled" }
func (Resolve) eventType() string    { return "resolve" }

// Outcome is how an effect ended. The zero value is invalid.
type Outcome uint8

// The outcomes.
const (
	// OK: it was done; for a judgement: the stage passes; for a probe: the verifier
	// answered as wanted; for a measurement: Uses is the count.
	OK Outcome = iota + 1
	// Contradicted: a probe's answer was the opposite; a judgement: the stage fails.
	Contradicted
	// NoData: there is no answer. Only for judgements and measurements.
	NoData
	// Broken: it failed, and repeating it cannot help.
	Broken
)

var outcomeNames = []string{"", "ok", "contradicted", "no-data", "broken"}

// String returns the outcome's name, "invalid" for the zero value.
func (o Outcome) String() string { return enumName(o, outcomeNames) }

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return marshalEnum(o, outcomeNames) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Outcome) UnmarshalText(text []byte) error { return unmarshalEnum(o, text, outcomeNames) }
