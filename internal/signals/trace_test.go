package signals_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
)

func traced(o *otlp) signals.Config {
	return signals.Config{Traces: signals.Traces{Endpoint: o.URL, Insecure: true, Version: "v1.2.3"}}
}

// TestOneTracePerRotation also changes the process in the middle of a phase.
func TestOneTracePerRotation(t *testing.T) {
	for _, restart := range []bool{false, true} {
		name := map[bool]string{false: "one process", true: "restart"}[restart]
		t.Run(name, func(t *testing.T) {
			o := newOTLP(t)
			f := begin(t, traced(o), nil)
			c := f.clock
			c.pass(123456 * time.Nanosecond) // finer than the store keeps
			s := newStory(c, "prod/db", rotation.Scheduled)
			begun := c.Now()
			from := &source{}
			tell := func(f *fixture) {
				from.mu.Lock()
				from.history = append(from.history, s.told...) // committed before it is told
				from.mu.Unlock()
				s.tell(f)
			}
			attempt := func(f *fixture, kind rotation.EffectKind, attempt int, err error) {
				a := engine.Attempted{
					Key: "prod/db", Effect: rotation.EffectRef{Kind: kind, Version: 2, Verifier: "primary", Rotation: s.record.ID, Try: 3},
					Attempt: attempt, Started: c.Now(), Took: 20 * time.Millisecond, Err: err, Rotation: s.record.ID,
				}
				if err == nil {
					a.Outcome = rotation.OK
				}
				f.Attempted(a)
				c.pass(20 * time.Millisecond)
			}
			s.phase(rotation.Minting)
			c.pass(time.Second)
			s.phase(rotation.Accepting)
			tell(f)
			c.pass(time.Second)
			attempt(f, rotation.Accept, 1, errors.New("connection refused"))
			s.hold(rotation.HoldTrouble, false, "primary does not accept v2 yet: connection refused", "primary")
			tell(f)
			if restart {
				f.end()
				clock := f.clock
				f = begin(t, func() signals.Config { config := traced(o); config.Now = clock.Now; return config }(), from)
			}
			c.pass(time.Second)
			attempt(f, rotation.Accept, 2, nil)
			s.hold("", false, "")
			c.pass(time.Second)
			s.phase(rotation.Presenting)
			c.pass(time.Second)
			s.phase(rotation.Draining)
			s.phase(rotation.Done)
			tell(f)
			f.end()

			spans := o.of(t, s.record.ID.String())
			tree := map[string][]string{}
			var root *tracev1.Span
			for _, span := range spans {
				if len(span.GetParentSpanId()) == 0 {
					if root != nil {
						t.Errorf("two roots: %s and %s", root.GetName(), span.GetName())
					}
					root = span
					continue
				}
				parent := spans[hex.EncodeToString(span.GetParentSpanId())]
				if parent == nil {
					t.Errorf("the parent of %s is missing", span.GetName())
					continue
				}
				if span.GetStartTimeUnixNano()/1000 < parent.GetStartTimeUnixNano()/1000 || span.GetEndTimeUnixNano() > parent.GetEndTimeUnixNano()+1000 {
					t.Errorf("%s lies outside %s", span.GetName(), parent.GetName())
				}
				tree[parent.GetName()] = append(tree[parent.GetName()], span.GetName())
			}
			if root == nil || root.GetName() != "rotation prod/db" {
				t.Fatalf("root: %v", root)
			}
			if start := time.Unix(0, int64(root.GetStartTimeUnixNano())); begun.Sub(start).Abs() > time.Microsecond {
				t.Errorf("the root starts at %v, want %v", start, begun)
			}
			if a := attributesOf(root); a["keyturn.rotation"] != s.record.ID.String() || a["keyturn.outcome"] != "done" || a["keyturn.key"] != "prod/db" || a["keyturn.kind"] != "scheduled" {
				t.Errorf("attributes of the root: %v", a)
			}
			phases := tree["rotation prod/db"]
			slices.Sort(phases)
			if !slices.Equal(phases, []string{"accepting", "draining", "minting", "planned", "presenting"}) {
				t.Errorf("phases below the root: %v", phases)
			}
			if !slices.Equal(tree["accepting"], []string{"accept", "accept"}) || len(tree) != 2 {
				t.Errorf("tree: %v", tree)
			}
			failures, events := 0, []string{}
			for _, span := range spans {
				if span.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR {
					failures++
					if span.GetStatus().GetMessage() != "connection refused" || attributesOf(span)["keyturn.outcome"] != "error" {
						t.Errorf("failed attempt: %v", span)
					}
				}
				if span.GetName() == "accepting" {
					for _, event := range span.GetEvents() {
						events = append(events, event.GetName())
					}
				}
			}
			if failures != 1 {
				t.Errorf("%d spans failed, want 1", failures)
			}
			if !slices.Equal(events, []string{"rotation.hold", "rotation.resumed"}) {
				t.Errorf("events of the phase with the hold: %v", events)
			}
			if !bytes.Contains(o.raw, []byte("v1.2.3")) {
				t.Error("the server's version is not an attribute")
			}
		})
	}
}

// TestLinesBearTheRotation: each line about a rotation can be found by its ID.
func TestLinesBearTheRotation(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	s := newStory(f.clock, "prod/db", rotation.Scheduled)
	s.phase(rotation.Presenting)
	s.hold(rotation.HoldStageLate, false, "1 presenters have not acknowledged v2 in stage canary", "web-7")
	s.hold("", false, "")
	s.hold(rotation.HoldNoData, false, "no data")
	s.hold(rotation.HoldEffect, true, "broken")
	s.tell(f)
	f.end()
	levels := map[string]string{}
	for line := range strings.Lines(f.logs.String()) {
		for _, attr := range []string{`"rotation":"` + s.record.ID.String() + `"`, `"trace_id":"` + s.record.ID.String() + `"`, `"key":"prod/db"`} {
			if !strings.Contains(line, attr) {
				t.Errorf("no %s in %s", attr, line)
			}
		}
		for _, reason := range []string{"stage-late", "no-data", "effect-failed"} {
			if strings.Contains(line, `"rotation on hold"`) && strings.Contains(line, `"reason":"`+reason+`"`) {
				levels[reason] = line
			}
		}
	}
	for reason, want := range map[string]string{"stage-late": `"level":"WARN"`, "no-data": `"level":"INFO"`, "effect-failed": `"level":"WARN"`} {
		if !strings.Contains(levels[reason], want) {
			t.Errorf("%s is not %s: %s", reason, want, levels[reason])
		}
	}
	if !strings.Contains(levels["stage-late"], `"parties":["web-7"]`) {
		t.Errorf("the party is not named: %s", levels["stage-late"])
	}
}

// TestCollectorAway: a collector that refuses costs spans, nothing else, and is counted.
func TestCollectorAway(t *testing.T) {
	o := newOTLP(t)
	o.down = true
	f := begin(t, traced(o), nil)
	s := newStory(f.clock, "prod/db", rotation.Scheduled)
	s.phase(rotation.Minting)
	s.phase(rotation.Failed)
	s.tell(f)
	f.end()
	f.want(map[string]float64{
		`keyturn_trace_spans_total{state="ended"}`:    3,
		`keyturn_trace_spans_total{state="failed"}`:   3,
		`keyturn_trace_spans_total{state="exported"}`: 0,
	})
	if n := strings.Count(f.logs.String(), "traces could not be delivered"); n != 1 {
		t.Errorf("it was logged %d times, want once", n)
	}
}
