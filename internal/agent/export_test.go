package agent

import "time"

// Eager returns deps that try again at once, and after restoring only as late
// as restored says.
func Eager(deps Deps, restored time.Duration) Deps {
	deps.Dumpable = true
	deps.pacing = &pacing{
		unchanged: pace{10 * time.Millisecond, 50 * time.Millisecond},
		restored:  pace{restored, restored},
		left:      pace{10 * time.Millisecond, 50 * time.Millisecond},
	}
	return deps
}
