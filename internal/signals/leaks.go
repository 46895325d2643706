package signals

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

// SecretLeaked is the reason of pages about versions whose secret was found where it
// should not be; they end when nothing accepts the version any more.
const SecretLeaked rotation.HoldReason = "secret-leaked"

// maxLeaks bounds the versions that have a page of their own.
const maxLeaks = 100

// leakSource is a Source that knows which secrets have leaked.
type leakSource interface {
	OpenLeaks(ctx context.Context, after string, limit int) (open []engine.OpenLeak, next string, err error)
}

// takeLeaks notes the versions in use that have leaked.
func (v *view) takeLeaks(ctx context.Context, source Source) error {
	s, ok := source.(leakSource)
	if !ok {
		return nil
	}
	leaks, _, err := s.OpenLeaks(ctx, "", maxLeaks)
	if err != nil {
		return err
	}
	v.leaks = len(leaks)
	for i := range leaks {
		l := &leaks[i]
		message := fmt.Sprintf("%v of %s is still accepted, and its secret was found at %q", l.Version, l.Key, l.Place)
		if !l.Rotation.IsZero() {
			message += fmt.Sprintf("; rotation %v replaces it (%v)", l.Rotation, l.Action)
		}
		v.holds = append(v.holds, hold{
			key: l.Key, reason: SecretLeaked, target: fmt.Sprintf("%s %v", l.Key, l.Version), message: message, since: l.First, human: l.Rotation.IsZero(),
		})
	}
	return nil
}

// LeakFound implements engine.LeakObserver.
func (s *Signals) LeakFound() { s.sweepSoon() }
