package client

import (
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// MaxKeys is how many keys one Watch may name.
const MaxKeys = 1000

// PartyKind says what becomes of a party that is away. The zero value is invalid.
type PartyKind uint8

// The kinds of party.
const (
	// KindAgent: stays registered while it is away, rotations wait for it.
	KindAgent PartyKind = iota + 1
	// KindClient: is forgotten some time after its connection ended.
	KindClient
)

// String returns the kind's name in lower case, "invalid" for the zero value.
func (k PartyKind) String() string {
	switch k {
	case KindAgent:
		return "agent"
	case KindClient:
		return "client"
	}
	return "invalid"
}

// Party describes who presents the keys.
type Party struct {
	// ID names the party in rotations: at most 128 characters out of letters,
	// digits, ".", "_", "-", ":" and "/". Two processes must never share one.
	// Empty means host/program/random, which suits KindClient only.
	ID string
	// Kind is KindClient when it is zero.
	Kind PartyKind
	// Region is the failure domain; empty means the server's default region.
	Region string
	// Labels are matched by the stages of policies, for example cohort=canary.
	Labels map[string]string
}

// Known is what a party holds of one key when it begins to watch.
type Known struct {
	Key key.Name
	// Version is the version in use; 0 means none.
	Version key.Version
	// Epoch is the largest epoch the party has seen of this key; 0 means none.
	Epoch uint64
}

// Assignment tells a party which version of a key to present from now on.
// Its maps are shared and must not be changed.
type Assignment struct {
	Key     key.Name
	Version key.Version
	// Epoch grows with every assignment of this key to this party.
	Epoch uint64
	// Rotation is the cause; zero outside a rotation.
	Rotation key.RotationID
	// Attributes are the public fields, for example "username".
	Attributes map[string]string
	// Secrets are the secret fields, for example "password".
	Secrets map[string]secret.Value
	// PublishedAt is when the server handed the version out, in UTC; the zero
	// time when the server did not say.
	PublishedAt time.Time
}

// OutcomeCode says what became of an assignment. The zero value is invalid.
type OutcomeCode uint8

// The outcomes.
const (
	// Applied: the version is in use and healthy.
	Applied OutcomeCode = iota + 1
	// Failed: it could not be taken into use; the previous version was restored.
	Failed
)

// String returns the code's name in lower case, "invalid" for the zero value.
func (c OutcomeCode) String() string {
	switch c {
	case Applied:
		return "applied"
	case Failed:
		return "failed"
	}
	return "invalid"
}

// Outcome is what became of one assignment.
type Outcome struct {
	Key     key.Name
	Version key.Version
	Epoch   uint64
	Code    OutcomeCode
	// Using is the version that is really in use now; 0 means none.
	Using key.Version
	// Detail says why it failed, without secrets. Only its first 1,000
	// characters are sent.
	Detail string

	// order tells a later outcome of an assignment from an earlier one; see Client.number.
	order uint64
}

// Sample is how one version fared at this party since its last sample.
type Sample struct {
	Key     key.Name
	Version key.Version
	// Attempts counts the log-ins or health checks that were tried.
	Attempts uint64
	// AuthFailures counts those of them whose credential was refused.
	AuthFailures uint64
	// Healthy is the party's own judgement of its health with this version.
	Healthy bool
	// Detail explains, without secrets. Only its first 1,000 characters are sent.
	Detail string
}

// Mode is how assignments reach the party. The zero value means that there is
// no connection.
type Mode uint8

// The modes, from the quickest to the most robust.
const (
	// ModeStream: the server pushes.
	ModeStream Mode = iota + 1
	// ModeLongPoll: the server holds a request until something changes.
	ModeLongPoll
	// ModePoll: the party asks every Config.PollInterval.
	ModePoll
)

// String returns the mode's name in lower case, "offline" for the zero value.
func (m Mode) String() string {
	switch m {
	case ModeStream:
		return "stream"
	case ModeLongPoll:
		return "long-poll"
	case ModePoll:
		return "poll"
	}
	return "offline"
}

// Status is the state of the connection to the server.
type Status struct {
	// Mode is how assignments arrive now, zero while nothing gets through.
	Mode Mode
	// Err is why nothing gets through, or the last trouble on the way to this
	// mode; nil when all is well. Mode zero without an error means that the server
	// stopped in good order and said when to come back: what fails while it restarts
	// is told only when it takes 30 s longer than that.
	Err error
	// Permanent tells that Err will not pass by itself: the token was revoked,
	// the party may not watch a key, the request is wrong. It is still retried,
	// slowly, because an operator may mend it.
	Permanent bool
	// RetryIn is the time until the next try, zero when there is a connection.
	RetryIn time.Duration
}
