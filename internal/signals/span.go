package signals

import (
	"context"
	"crypto/sha256"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// spanID derives the ID of a span from the rotation and what the span stands for,
// so that children can name a parent that has not ended, or that another process
// will write.
func spanID(id key.RotationID, parts ...string) trace.SpanID {
	hash := sha256.New()
	hash.Write(id[:])
	for _, part := range parts {
		hash.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	span := trace.SpanID(hash.Sum(nil)[:8])
	span[0] |= 1 // never zero
	return span
}

func rootID(id key.RotationID) trace.SpanID { return spanID(id, "rotation") }

// phaseID is the ID of the span of a phase; it is the root's where the phase is
// not known, or final: material is destroyed after some rotations have ended. A
// rotation can be in the same phase twice.
func phaseID(id key.RotationID, phase phaseAt) trace.SpanID {
	if phase.name == "" || phaseOf(phase.name).Ended() {
		return rootID(id)
	}
	return spanID(id, "phase", phase.name, strconv.FormatInt(phase.since.UnixMilli(), 10))
}

type idsKey struct{}

// ids are the IDs of a span that is about to be written.
type ids struct {
	trace trace.TraceID
	span  trace.SpanID
}

// chosenIDs gives spans the IDs that were chosen for them. The library's interface
// leaves no other way to it than the context.
type chosenIDs struct{}

// NewIDs implements sdktrace.IDGenerator.
func (chosenIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	chosen, _ := ctx.Value(idsKey{}).(ids)
	return chosen.trace, chosen.span
}

// NewSpanID implements sdktrace.IDGenerator.
func (chosenIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	chosen, _ := ctx.Value(idsKey{}).(ids)
	return chosen.span
}

// span is one span, complete.
type span struct {
	rotation   key.RotationID
	id         trace.SpanID
	parent     trace.SpanID // zero for the root
	name       string
	start, end time.Time
	attributes []attribute.KeyValue
	events     []spanEvent
	// failure is empty when all went well.
	failure string
}

func (t *tracer) write(ctx context.Context, s span) {
	if t.provider == nil {
		return
	}
	traceID := trace.TraceID(s.rotation)
	ctx = trace.ContextWithSpanContext(ctx, trace.SpanContext{})
	if s.parent.IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: traceID, SpanID: s.parent, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	ctx = context.WithValue(ctx, idsKey{}, ids{trace: traceID, span: s.id})
	_, out := t.tracer.Start(ctx, s.name, trace.WithTimestamp(s.start), trace.WithAttributes(s.attributes...))
	for _, event := range s.events {
		out.AddEvent(event.name, trace.WithTimestamp(event.at), trace.WithAttributes(
			attribute.String("keyturn.reason", event.reason), attribute.String("keyturn.message", event.message)))
	}
	if s.failure != "" {
		out.SetStatus(codes.Error, clip(s.failure))
	}
	if s.end.Before(s.start) {
		s.end = s.start
	}
	out.End(trace.WithTimestamp(s.end))
	t.metrics.spans.WithLabelValues("ended").Inc()
}

// root writes the span of a rotation that has ended.
func (t *tracer) root(ctx context.Context, track *track, m *engine.Moved) {
	r := m.Record
	s := span{
		rotation: r.ID, id: rootID(r.ID), name: "rotation " + string(m.Key), start: r.StartedAt, end: m.At,
		attributes: append(common(m.Key, r.ID),
			attribute.String("keyturn.kind", r.Kind.String()), attribute.String("keyturn.outcome", m.To),
			attribute.Int64("keyturn.version.from", int64(r.From)), attribute.Int64("keyturn.version.to", int64(r.To)),
			attribute.String("keyturn.actor", clip(r.Actor)), attribute.String("keyturn.reason", clip(r.Reason))),
	}
	if track.started.Before(s.start) && !track.started.IsZero() {
		s.start = track.started
	}
	if m.To == rotation.RolledBack.String() || m.To == rotation.Failed.String() {
		s.failure = orDefault(r.Reason, m.To)
	}
	t.write(ctx, s)
}

// phase writes the span of the phase that a rotation leaves by m.
func (t *tracer) phase(ctx context.Context, phase phaseAt, m *engine.Moved) {
	s := span{
		rotation: m.Rotation, id: phaseID(m.Rotation, phase), parent: rootID(m.Rotation),
		name: phase.name, start: phase.since, end: m.At, events: phase.events,
		attributes: append(common(m.Key, m.Rotation), attribute.String("keyturn.phase", phase.name), attribute.String("keyturn.phase.next", m.To)),
	}
	if failedPhase(m.To) && phase.name != rotation.RollingBack.String() {
		s.failure = orDefault(m.Message, m.To)
	}
	t.write(ctx, s)
}

// attempt writes the span of one try of an effect, below the phase it began in.
func (t *tracer) attempt(ctx context.Context, a *engine.Attempted, phase phaseAt) {
	outcome := "error"
	switch {
	case a.Waits:
		outcome = waits
	case a.Outcome != 0:
		outcome = a.Outcome.String()
	}
	s := span{
		rotation: a.Rotation, id: spanID(a.Rotation, "effect", a.Effect.ID(), strconv.Itoa(a.Attempt)), parent: phaseID(a.Rotation, phase),
		name: a.Effect.Kind.String(), start: a.Started, end: a.Started.Add(a.Took),
		attributes: append(common(a.Key, a.Rotation),
			attribute.String("keyturn.effect", a.Effect.Kind.String()), attribute.String("keyturn.verifier", a.Effect.Verifier),
			attribute.Int64("keyturn.version", int64(a.Effect.Version)), attribute.Int("keyturn.attempt", a.Attempt),
			attribute.String("keyturn.outcome", outcome)),
	}
	if a.Err != nil && !a.Waits {
		s.failure = a.Err.Error()
	}
	t.write(ctx, s)
}

func common(name key.Name, id key.RotationID) []attribute.KeyValue {
	return []attribute.KeyValue{attribute.String("keyturn.key", string(name)), attribute.String("keyturn.rotation", id.String())}
}
