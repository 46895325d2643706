package signals

import (
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

// TargetSilent is the reason of pages about a host that does not answer. What
// concerns it waits, and goes on by itself when it answers.
const TargetSilent rotation.HoldReason = "target-silent"

const (
	// StoreFull is the reason of pages about a store that takes no more writes; they
	// end when it does.
	StoreFull rotation.HoldReason = "store-full"
	// KeysStanding is the reason of pages about keys that stand still after a restore
	// for longer than looking at their systems takes; they end with the last of them.
	KeysStanding rotation.HoldReason = "keys-standing"
)

const (
	// standingPage is how long keys stand still before that is paged for.
	standingPage = 5 * time.Minute
	// silentPage is how long a target is silent before it is paged for.
	silentPage = time.Minute
	// maxTargets bounds the silent targets that have a page and a gauge of their own.
	maxTargets = 100
)

// silencer is a Source that knows which targets do not answer this server node.
type silencer interface {
	Silent() []engine.SilentTarget
}

// takeTargets notes the targets that do not answer.
func (v *view) takeTargets(source Source) {
	s, ok := source.(silencer)
	if !ok {
		return
	}
	v.silent = s.Silent()
	for i, t := range v.silent {
		due := t.Since.Add(silentPage)
		switch {
		case i >= maxTargets:
			return
		case due.After(v.began):
			if v.next.IsZero() || due.Before(v.next) {
				v.next = due
			}
		default:
			message := fmt.Sprintf("%s does not answer; what concerns it waits: %s", t.Name, t.Cause)
			if t.Abandoned > 0 {
				message += fmt.Sprintf("; %d calls have not returned although their time is over", t.Abandoned)
			}
			v.holds = append(v.holds, hold{reason: TargetSilent, target: t.Name, message: message, since: t.Since})
		}
	}
}

// refuser is a Source that knows whether its store takes writes.
type refuser interface {
	Refusal() engine.StoreRefusal
}

// takeStore notes a store that is full, and keys that stand still.
func (v *view) takeStore(source Source) {
	if s, ok := source.(refuser); ok {
		v.refusal = s.Refusal()
	}
	if since := v.refusal.Since; !since.IsZero() {
		v.holds = append(v.holds, hold{
			reason: StoreFull, target: "store", since: since,
			message: "the store takes no writes, nothing is rotated, and nothing that must be stored is accepted: " + v.refusal.Cause,
		})
	}
	if v.standing == 0 {
		return
	}
	due := v.standingSince.Add(standingPage)
	if due.After(v.began) {
		if v.next.IsZero() || due.Before(v.next) {
			v.next = due
		}
		return
	}
	v.holds = append(v.holds, hold{
		reason: KeysStanding, target: "restore", since: v.standingSince,
		message: fmt.Sprintf("%d keys stand still after a restore of the server's database: their verifiers do not answer, or a human must settle what differs (keyturn doctor)", v.standing),
	})
}

// targets shows the targets that do not answer.
func (g *gauges) targets(v *view, now time.Time, put put) {
	full := 0.0
	if !v.refusal.Since.IsZero() {
		full = max(0, now.Sub(v.refusal.Since).Seconds())
	}
	put(descFull, full)
	put(descSilent, float64(len(v.silent)))
	for i, t := range v.silent {
		if i >= maxTargets {
			return
		}
		put(descSilence, max(0, now.Sub(t.Since).Seconds()), t.Name)
	}
}
