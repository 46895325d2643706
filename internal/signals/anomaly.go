package signals

import (
	"context"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

// Anomaly is the reason of pages about what a rule found; they end an hour after
// the rule found it last.
const Anomaly rotation.HoldReason = "anomaly"

// maxRules bounds the rules that have a counter of their own.
const maxRules = 200

// alarmer is a Source that knows what rules found.
type alarmer interface {
	Alarms(ctx context.Context) ([]engine.Alarm, error)
}

// takeAlarms notes what rules found.
func (v *view) takeAlarms(ctx context.Context, source Source) error {
	s, ok := source.(alarmer)
	if !ok {
		return nil
	}
	alarms, err := s.Alarms(ctx)
	for i := range alarms {
		a := &alarms[i]
		message := a.Message
		if a.Owner != "" {
			message += "; the key belongs to " + a.Owner
		}
		v.holds = append(v.holds, hold{reason: Anomaly, target: a.Rule + " " + string(a.Key), key: a.Key, message: message, since: a.At})
	}
	return err
}

// Found counts what a rule found. It does not block. It implements
// engine.AnomalyObserver.
func (s *Signals) Found(finding engine.Finding) {
	s.metrics.anomalies.WithLabelValues(s.metrics.rules.of(orNone(finding.Rule)), finding.Result).Inc()
	s.sweepSoon()
}
