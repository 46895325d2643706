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

// targets shows the targets that do not answer.
func (g *gauges) targets(v *view, now time.Time, put put) {
	put(descSilent, float64(len(v.silent)))
	for i, t := range v.silent {
		if i >= maxTargets {
			return
		}
		put(descSilence, max(0, now.Sub(t.Since).Seconds()), t.Name)
	}
}
