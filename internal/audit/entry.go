package audit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/key"
)

// ErrEntry is wrapped by every error about the content or the encoding of an entry.
var ErrEntry = errors.New("invalid audit entry")

// Limits of an entry, in bytes of UTF-8 where not said otherwise. Together they
// keep every encoded entry below MaxRecordSize.
const (
	// MaxRecordSize bounds the encoding of an entry.
	MaxRecordSize = 32 << 10
	// MaxName bounds an action, an actor's kind, an outcome and a detail's name.
	MaxName = 64
	// MaxActorID bounds an actor's ID; it is that of SPIFFE IDs.
	MaxActorID = 2048
	// MaxState bounds From and To.
	MaxState = 64
	// MaxTarget bounds Target, MaxReason Reason and MaxDetail a detail's value.
	// Append shortens what is longer.
	MaxTarget = 512
	MaxReason = 1024
	MaxDetail = 512
	// MaxDetails is the largest number of details.
	MaxDetails = 16
)

// maxSize bounds the number of entries, so that no index overflows and every
// number survives readers that keep numbers in a float64.
const maxSize = 1 << 53

// Action says what happened: two or more words of a-z, 0-9 and "-" joined by
// dots, the subject first. Names are stable: readers filter by them.
type Action string

// The actions that several packages share. Others may be used as well.
const (
	// ActionPhase: a rotation went from phase From to phase To. Reconcile counts these.
	ActionPhase Action = "rotation.phase"
	// ActionApply: the document of a key or policy was applied.
	ActionApply Action = "key.apply"
	// ActionRead: a secret was handed out.
	ActionRead Action = "secret.read"
	// ActionHandout: a gateway handed a secret out by itself, while nobody else could be
	// asked. It was told of afterwards: its details say when it happened.
	ActionHandout Action = "secret.handout"
	// ActionAttempt: an effect was tried at Target.
	ActionAttempt Action = "job.attempt"
	// ActionToken: a token was created.
	ActionToken Action = "token.create"
	// ActionJoin: a party joined.
	ActionJoin Action = "party.join"
	// ActionMove: a party connects from another address than before.
	ActionMove Action = "party.move"
	// ActionLeave: a party is gone.
	ActionLeave Action = "party.leave"
)

// The names of an entry's details that several packages share.
const (
	// DetailAddress is the IP address that somebody read from or, with ActionMove, that a
	// party connects from now; DetailBefore the one before.
	DetailAddress = "address"
	DetailBefore  = "before"
	// DetailGateway is the gateway through which a party connects, or which handed out.
	DetailGateway = "gateway"
	// DetailGatewayBefore is, with ActionMove, the gateway before.
	DetailGatewayBefore = "gateway-before"
)

// Outcome says how it ended: one word of a-z, 0-9 and "-".
type Outcome string

// The outcomes that several packages share. Others may be used as well.
const (
	// OutcomeOK: it was done.
	OutcomeOK Outcome = "ok"
	// OutcomeDenied: the actor was not allowed to; nothing was done.
	OutcomeDenied Outcome = "denied"
	// OutcomeFailed: it was tried and did not succeed.
	OutcomeFailed Outcome = "failed"
)

// Actor is who acted.
type Actor struct {
	// ID is the principal's identifier; required.
	ID string
	// Kind is a word such as "user", "agent" or "server"; required.
	Kind string
}

// Entry is one fact in the log. Fields that do not apply are left zero.
type Entry struct {
	// Seq numbers the entries of a log from 0. Append assigns it.
	Seq uint64
	// At is when it happened: UTC, to the microsecond, 1970 to 9999, never before
	// the entry that precedes it.
	At time.Time
	// Clock is what the writer's clock said when that was before At, because the
	// clock had been set back or two servers' clocks differ; else zero. Append
	// assigns it.
	Clock time.Time
	Actor Actor
	// Action and Outcome are required.
	Action Action
	Key    key.Name
	// Rotation is also the trace ID under which to look for logs and spans.
	Rotation key.RotationID
	// Event is the number of the key's event that this entry records; 0 when none.
	Event   uint64
	Version key.Version
	// From and To are the phases or states between which Key, Version or Rotation moved.
	From, To string
	// Target is what was acted upon when it is no key: an endpoint, a party, a token's ID.
	Target  string
	Outcome Outcome
	// Reason is for people: why, or what went wrong.
	Reason string
	// Detail is whatever else is worth recording, by names like those of an
	// Outcome, with "_" and "." allowed; values are not empty.
	Detail map[string]string
}

// Reading returns what the writer's clock said: Clock, or At when that is zero.
func (e Entry) Reading() time.Time {
	if e.Clock.IsZero() {
		return e.At
	}
	return e.Clock
}

// normal returns e with its time in UTC to the microsecond and with its free
// text cleaned and shortened. It does not change e.
func (e Entry) normal() Entry {
	e.At = e.At.UTC().Truncate(time.Microsecond)
	e.Target = clean(e.Target, MaxTarget)
	e.Reason = clean(e.Reason, MaxReason)
	e.Detail = maps.Clone(e.Detail)
	for name, value := range e.Detail {
		if value == "" {
			delete(e.Detail, name)
			continue
		}
		e.Detail[name] = clean(value, MaxDetail)
	}
	return e
}

// check reports the first rule that e breaks.
func (e Entry) check() error {
	if e.Seq >= maxSize {
		return fieldError("seq", "%d is beyond what a log holds", e.Seq)
	}
	if err := checkTime(e.At); err != nil {
		return fieldError("at", "%w", err)
	}
	if !e.Clock.IsZero() {
		if err := checkTime(e.Clock); err != nil {
			return fieldError("clock", "%w", err)
		}
		if !e.Clock.Before(e.At) {
			return fieldError("clock", "it is not before at; leave it zero")
		}
	}
	if e.Key != "" && !e.Key.Valid() {
		return fieldError("key", "%q is not a key name; put other subjects into target", string(e.Key))
	}
	if err := e.checkNames(); err != nil {
		return err
	}
	if err := e.checkTexts(); err != nil {
		return err
	}
	return e.checkDetail()
}

func (e Entry) checkNames() error {
	switch {
	case !isName(e.Actor.Kind, ""):
		return fieldError("actor.kind", "%q is not a word of a-z, 0-9 and \"-\"", e.Actor.Kind)
	case !isAction(string(e.Action)):
		return fieldError("action", "%q is not words of a-z, 0-9 and \"-\" joined by dots, as in rotation.phase", string(e.Action))
	case !isName(string(e.Outcome), ""):
		return fieldError("outcome", "%q is not a word of a-z, 0-9 and \"-\", as in ok", string(e.Outcome))
	}
	return nil
}

func (e Entry) checkTexts() error {
	if e.Actor.ID == "" {
		return fieldError("actor.id", "it is empty; name the principal, or \"anonymous\"")
	}
	for _, field := range [...]struct {
		name, value string
		limit       int
	}{
		{"actor.id", e.Actor.ID, MaxActorID},
		{"from", e.From, MaxState},
		{"to", e.To, MaxState},
		{"target", e.Target, MaxTarget},
		{"reason", e.Reason, MaxReason},
	} {
		if err := checkText(field.value, field.limit); err != nil {
			return fieldError(field.name, "%w", err)
		}
	}
	return nil
}

func (e Entry) checkDetail() error {
	if len(e.Detail) > MaxDetails {
		return fieldError("detail", "it has %d names, at most %d are allowed", len(e.Detail), MaxDetails)
	}
	if len(e.Detail) == 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(e.Detail)) {
		if !isName(name, "._") {
			return fieldError("detail", "name %q is not made of a-z, 0-9, \"-\", \"_\" and \".\"", name)
		}
		if e.Detail[name] == "" {
			return fieldError("detail", "%s is empty; leave it out", name)
		}
		if err := checkText(e.Detail[name], MaxDetail); err != nil {
			return fieldError("detail", "%s: %w", name, err)
		}
	}
	return nil
}

func fieldError(field, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrEntry, field, fmt.Errorf(format, args...))
}

func checkTime(t time.Time) error {
	switch {
	case t.IsZero():
		return errors.New("it is missing")
	case t.Year() < 1970 || t.Year() > 9999:
		return errors.New("the year is not between 1970 and 9999")
	case t.Location() != time.UTC || t.Nanosecond()%1000 != 0:
		return errors.New("it is not in UTC to the microsecond")
	}
	return nil
}

// isName reports whether s is 1 to MaxName characters of a-z, 0-9, "-" and extra
// that begin with a letter.
func isName(s, extra string) bool {
	if s == "" || len(s) > MaxName || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		case strings.IndexByte(extra, c) >= 0:
		default:
			return false
		}
	}
	return true
}

func isAction(s string) bool {
	words := 0
	for word := range strings.SplitSeq(s, ".") {
		if !isName(word, "") {
			return false
		}
		words++
	}
	return words > 1 && len(s) <= MaxName
}

func checkText(s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("it has %d bytes, at most %d are allowed", len(s), limit)
	}
	for i := 0; i < len(s); {
		if c := s[i]; ' ' <= c && c <= '~' {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return fmt.Errorf("byte %d is not UTF-8", i)
		}
		if !isVisible(r) {
			return fmt.Errorf("character %U at byte %d is not allowed", r, i)
		}
		i += n
	}
	return nil
}

// isVisible reports whether a text may contain r. Control characters, line
// separators and the characters that turn the direction of writing could forge
// what a terminal shows. The set is fixed: it must not grow with Unicode, or
// old entries would become invalid.
func isVisible(r rune) bool {
	switch {
	case r < ' ', 0x7f <= r && r <= 0x9f: // C0, DEL, C1
		return false
	case r == 0x061c, r == 0x200e, r == 0x200f: // direction marks
		return false
	case 0x2028 <= r && r <= 0x202e, 0x2066 <= r && r <= 0x2069: // separators, embeddings, isolates
		return false
	case r == 0xfeff: // byte order mark
		return false
	}
	return true
}

// clean returns s as text of at most limit bytes: it replaces what is not
// allowed by U+FFFD and ends in "…" where it was cut.
func clean(s string, limit int) string {
	if checkText(s, limit) == nil {
		return s
	}
	const cut = "…"
	var b strings.Builder
	whole := 0 // the longest length at which the cut mark still fits
	for _, r := range s {
		if !isVisible(r) {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			return b.String()[:whole] + cut
		}
		b.WriteRune(r)
		if b.Len()+len(cut) <= limit {
			whole = b.Len()
		}
	}
	return b.String()
}
