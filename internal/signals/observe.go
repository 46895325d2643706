package signals

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
)

// moved handles one committed change.
func (s *Signals) moved(ctx context.Context, m *engine.Moved) {
	// As precise as the store, so that a timeline read from there fits.
	m.At = m.At.Truncate(time.Microsecond)
	switch m.Kind {
	case rotation.RotationBegun:
		s.begun(ctx, m)
	case rotation.RotationPhase:
		s.phased(ctx, m)
	case rotation.RotationHold:
		s.held(ctx, m)
	case rotation.RotationStage:
		s.staged(ctx, m)
	case rotation.VerifierChange:
		s.verified(m)
	case rotation.VersionState, rotation.VersionLabel, rotation.KeyRecovery:
		s.sweepSoon()
	case rotation.PresenterTold:
		begin(s.waiting.told, waitingFor{key: m.Key, party: m.Subject}, m.Version, m.At)
	case rotation.PresenterAcked:
		if m.To != "applied" {
			return
		}
		if took, known := end(s.waiting.told, waitingFor{key: m.Key, party: m.Subject}, m.Version, m.At); known {
			observe(s.metrics.propagation, took, m.Rotation, s.metrics.regions.of(orNone(m.Region)))
		}
	case rotation.PresenterLeft:
		delete(s.waiting.told, waitingFor{key: m.Key, party: m.Subject})
	case rotation.VerifierGone:
	}
}

func (s *Signals) begun(ctx context.Context, m *engine.Moved) {
	s.metrics.started.WithLabelValues(m.To).Inc()
	t := &track{}
	t.fold(m)
	s.tracks.put(t)
	s.log.LogAttrs(ctx, slog.LevelInfo, "rotation begun", s.attrs(m, slog.String("kind", m.To), slog.String("by", m.Reason))...)
	s.sweepSoon()
}

// track returns what is known of the rotation before m. What this process did not
// see it reads from the engine where spans are made of it: that replays the key's
// events. nil means that it is not known.
func (s *Signals) track(ctx context.Context, m *engine.Moved) *track {
	t := s.tracks.open[m.Rotation]
	if t != nil && (m.Kind != rotation.RotationPhase || t.present().name == m.From || t.entered(m.To, m.At) >= 0) {
		return t
	}
	if s.source == nil || !s.tracer.enabled() {
		return t
	}
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	moves, err := s.source.Timeline(limited, m.Rotation)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the history of a rotation could not be read; its trace will have gaps",
			slog.String("rotation", m.Rotation.String()), slog.Any("error", err))
		return t
	}
	t = &track{key: m.Key, id: m.Rotation}
	for i := range moves {
		t.fold(&moves[i])
	}
	s.tracks.put(t)
	return t
}

func (s *Signals) phased(ctx context.Context, m *engine.Moved) {
	t := s.track(ctx, m)
	level, attrs := slog.LevelInfo, s.attrs(m, slog.String("from", m.From), slog.String("phase", m.To))
	if failedPhase(m.To) {
		level = slog.LevelWarn
	}
	s.log.LogAttrs(ctx, level, "rotation moved", attrs...)
	s.tracks.moves(m.Key, m.From, m.To, m.At)
	if m.Record != nil {
		s.count(m)
	}
	if t != nil {
		t.fold(m)
	}
	s.leave(ctx, t, m)
	if m.Record != nil && m.Record.Ended() {
		if t != nil {
			s.tracer.root(ctx, t, m)
		}
		delete(s.tracks.open, m.Rotation)
		// The machine forgets the hold with the rotation.
		s.pager.resolve(m.Rotation, "", m.At)
	}
	s.sweepSoon()
}

// leave records the phase that the rotation leaves. t is nil if nothing else is known
// of the rotation.
func (s *Signals) leave(ctx context.Context, t *track, m *engine.Moved) {
	phase, known := phaseAt{name: m.From, since: m.Since.Truncate(time.Microsecond)}, !m.Since.IsZero()
	if t != nil {
		if whole, found := t.left(m); found {
			phase, known = whole, true
		}
	}
	if !known {
		return
	}
	took := m.At.Sub(phase.since)
	observe(s.metrics.phases, took, m.Rotation, phase.name)
	if phase.name == rotation.Revoking.String() && m.Record != nil {
		observe(s.metrics.revocation, took, m.Rotation, m.Record.Kind.String())
	}
	s.tracer.phase(ctx, phase, m)
}

// count counts what a change of phase means.
func (s *Signals) count(m *engine.Moved) {
	r := m.Record
	kind := r.Kind.String()
	completed := cutOver(m.From) && (retiring(m.To) || m.To == rotation.Done.String())
	switch {
	case completed:
		s.metrics.cutovers.WithLabelValues(kind, "completed").Inc()
		start := r.StartedAt
		if r.Plan.NotBefore.After(start) {
			start = r.Plan.NotBefore
		}
		observe(s.metrics.cutover, r.CutOverAt.Sub(start), r.ID, kind)
	case r.Ended() && !retiring(m.From):
		s.metrics.cutovers.WithLabelValues(kind, m.To).Inc()
	}
	if m.From == rotation.Presenting.String() {
		s.stageLeft(r, m.To)
	}
	if !r.Ended() {
		return
	}
	s.metrics.ended.WithLabelValues(kind, m.To).Inc()
	if !r.RecoveredAt.IsZero() {
		took := time.Duration(0)
		if !r.FailedAt.IsZero() {
			took = r.RecoveredAt.Sub(r.FailedAt)
		}
		observe(s.metrics.recovery, took, r.ID, kind)
	}
}

// stageLeft counts how the last stage of a rotation ended.
func (s *Signals) stageLeft(r *engine.RotationRecord, to string) {
	switch {
	case retiring(to), to == rotation.Done.String():
		s.metrics.stages.WithLabelValues(position(r.Stage), "passed").Inc()
	case r.Stage < len(r.Plan.Stages) && strings.HasPrefix(r.Reason, "stage "+r.Plan.Stages[r.Stage].Name+" failed"):
		s.metrics.stages.WithLabelValues(position(r.Stage), "failed").Inc()
	}
}

func position(stage int) string {
	if stage == 0 {
		return "first"
	}
	return "later"
}

func (s *Signals) staged(ctx context.Context, m *engine.Moved) {
	if t := s.track(ctx, m); t != nil {
		t.fold(m)
	}
	if m.Record != nil && m.Record.Stage > 0 {
		s.metrics.stages.WithLabelValues(position(m.Record.Stage-1), "passed").Inc()
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "rotation presents to a stage", s.attrs(m, slog.String("stage", m.To))...)
}

func (s *Signals) held(ctx context.Context, m *engine.Moved) {
	if t := s.track(ctx, m); t != nil {
		t.fold(m)
	}
	s.sweepSoon()
	if m.From != "" && m.From != m.To {
		s.pager.resolve(m.Rotation, m.From, m.At)
	}
	if m.To == "" {
		s.log.LogAttrs(ctx, slog.LevelInfo, "rotation goes on", s.attrs(m, slog.String("was", m.From))...)
		return
	}
	if m.From != m.To {
		s.metrics.holds.WithLabelValues(m.To).Inc()
		if m.To == string(rotation.HoldStageFailed) && m.Record != nil {
			s.metrics.stages.WithLabelValues(position(m.Record.Stage), "failed").Inc()
		}
	}
	human := m.Reason != ""
	level := slog.LevelInfo
	if human || late(rotation.HoldReason(m.To)) {
		level = slog.LevelWarn
	}
	kind := ""
	if m.Record != nil {
		kind = m.Record.Kind.String()
	}
	s.log.LogAttrs(ctx, level, "rotation on hold",
		s.attrs(m, slog.String("reason", m.To), slog.Bool("human", human), slog.Any("parties", m.Names))...)
	s.pager.raise(hold{
		key: m.Key, rotation: m.Rotation, kind: kind, reason: rotation.HoldReason(m.To),
		message: m.Message, human: human, since: m.At, parties: m.Names, late: m.Late,
	})
}

// late reports whether something did not happen in time.
func late(reason rotation.HoldReason) bool {
	return reason == rotation.HoldStageLate || reason == rotation.HoldDrainMax || reason == rotation.HoldGraceOver || reason == rotation.HoldRefusal
}

func (s *Signals) verified(m *engine.Moved) {
	question := waitingFor{key: m.Key, party: m.Subject, version: m.Version}
	proven := func(asked map[waitingFor]since, h *prometheus.HistogramVec) {
		if took, known := end(asked, question, m.Version, m.At); known {
			observe(h, took, m.Rotation, s.metrics.regions.of(orNone(m.Region)))
		}
	}
	switch m.To {
	case rotation.RefusePending.String():
		begin(s.waiting.refuse, question, m.Version, m.At)
		delete(s.waiting.accept, question)
	case rotation.Refused.String():
		proven(s.waiting.refuse, s.metrics.refusal)
	case rotation.AcceptPending.String():
		begin(s.waiting.accept, question, m.Version, m.At)
		delete(s.waiting.refuse, question)
	case rotation.Accepted.String():
		proven(s.waiting.accept, s.metrics.acceptance)
	case rotation.AcceptProbing.String(), rotation.RefuseProbing.String():
	}
}

// attempted handles one try of an effect.
func (s *Signals) attempted(ctx context.Context, a *engine.Attempted) {
	s.metrics.attempted(a)
	if a.Rotation.IsZero() {
		return
	}
	var phase phaseAt
	if t := s.track(ctx, &engine.Moved{Key: a.Key, At: a.Started.Add(a.Took), Transition: rotation.Transition{Rotation: a.Rotation}}); t != nil {
		phase = t.at(a.Started)
	}
	s.tracer.attempt(ctx, a, phase)
}

// attrs are the attributes that every line about a rotation has.
func (s *Signals) attrs(m *engine.Moved, more ...slog.Attr) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("key", string(m.Key)), slog.String("rotation", m.Rotation.String()), slog.String("trace_id", m.Rotation.String()),
	}
	if version := m.Version; version != 0 {
		attrs = append(attrs, slog.String("version", version.String()))
	}
	attrs = append(attrs, more...)
	if m.Message != "" {
		attrs = append(attrs, slog.String("message", clip(m.Message)))
	}
	return attrs
}

func phaseOf(name string) rotation.Phase {
	var p rotation.Phase
	if err := p.UnmarshalText([]byte(name)); err != nil {
		return 0
	}
	return p
}

func retiring(name string) bool { return phaseOf(name).Retiring() }

// cutOver reports whether a rotation in the phase has not cut over yet.
func cutOver(name string) bool {
	p := phaseOf(name)
	return p == rotation.Planned || p.CutOver()
}

func failedPhase(name string) bool {
	p := phaseOf(name)
	return p == rotation.RollingBack || p == rotation.RolledBack || p == rotation.Failed
}
