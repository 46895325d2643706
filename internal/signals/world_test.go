package signals_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
)

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	return c.now
}

// logged collects log lines.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type fixture struct {
	*signals.Signals

	clock    *clock
	logs     *logged
	registry *prometheus.Registry
	t        *testing.T
}

// begin starts Signals; with source nil it only observes.
func begin(t *testing.T, config signals.Config, source signals.Source) *fixture {
	t.Helper()
	f := &fixture{clock: newClock(), logs: &logged{}, registry: prometheus.NewPedanticRegistry(), t: t}
	config.Registry = f.registry
	if config.Now == nil {
		config.Now = f.clock.Now
	}
	config.Logger = slog.New(slog.NewJSONHandler(io.MultiWriter(f.logs, t.Output()), nil))
	var err error
	if f.Signals, err = signals.New(config); err != nil {
		t.Fatal(err)
	}
	f.Start(t.Context(), source)
	t.Cleanup(func() { f.end() })
	return f
}

// end stops it, so that all that was told has been handled.
func (f *fixture) end() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.t.Context()), 20*time.Second)
	defer cancel()
	if err := f.Stop(ctx); err != nil {
		f.t.Errorf("stop: %v", err)
	}
}

// scrape returns what the handler serves.
func (f *fixture) scrape() string {
	f.t.Helper()
	recorder := httptest.NewRecorder()
	f.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if recorder.Code != 200 {
		f.t.Fatalf("scrape: %d: %s", recorder.Code, recorder.Body)
	}
	return recorder.Body.String()
}

// value returns a series of the present scrape; false when there is none.
func (f *fixture) value(series string) (float64, bool) {
	f.t.Helper()
	for line := range strings.Lines(f.scrape()) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				f.t.Fatal(err)
			}
			return v, true
		}
	}
	return 0, false
}

func (f *fixture) want(values map[string]float64) {
	f.t.Helper()
	for series, want := range values {
		if got, ok := f.value(series); !ok || got != want {
			f.t.Errorf("%s = %v (there: %v), want %v", series, got, ok, want)
		}
	}
}

// story tells of one rotation as the engine would.
type story struct {
	key    key.Name
	record engine.RotationRecord
	told   []engine.Moved
	clock  *clock
}

func newStory(c *clock, name key.Name, kind rotation.Kind) *story {
	s := &story{key: name, clock: c}
	s.record = engine.RotationRecord{
		ID: key.NewRotationID(c.Now(), [10]byte{1, 2, byte(len(name)), byte(kind)}), Key: name, Kind: kind, From: 1, To: 2, StartedAt: c.Now(), Actor: "anna",
		Plan: rotation.Plan{Stages: []rotation.Stage{{Name: "canary"}, {Name: "rest"}}},
	}
	s.add(rotation.Transition{Kind: rotation.RotationBegun, Version: 1, To: kind.String(), Reason: "anna"})
	s.phase(rotation.Planned)
	return s
}

func (s *story) add(t rotation.Transition, names ...string) {
	t.Rotation = s.record.ID
	record := s.record
	moved := engine.Moved{Key: s.key, At: s.clock.Now(), Transition: t, Record: &record, Names: names}
	if t.Subject != "" {
		moved.Region = "eu"
	}
	s.told = append(s.told, moved)
}

func (s *story) phase(p rotation.Phase) {
	t := rotation.Transition{Kind: rotation.RotationPhase, Version: s.record.To, To: p.String()}
	var since time.Time
	if s.record.Phase != 0 {
		t.From, since = s.record.Phase.String(), s.record.PhaseSince
	}
	s.record.Phase, s.record.PhaseSince = p, s.clock.Now()
	switch {
	case p == rotation.Draining:
		s.record.CutOverAt = s.clock.Now()
	case p == rotation.RollingBack:
		s.record.FailedAt = s.clock.Now()
	case p.Ended():
		s.record.EndedAt = s.clock.Now()
	}
	s.add(t)
	s.told[len(s.told)-1].Since = since
	if p == rotation.Presenting {
		s.stage(0)
	}
}

func (s *story) stage(i int) {
	s.record.Stage = i
	s.add(rotation.Transition{Kind: rotation.RotationStage, Version: s.record.To, To: s.record.Plan.Stages[i].Name})
}

func (s *story) hold(reason rotation.HoldReason, human bool, message string, names ...string) {
	t := rotation.Transition{Kind: rotation.RotationHold, From: string(s.record.Hold.Reason), To: string(reason), Message: message}
	if human {
		t.Reason = "waits-for-human"
	}
	s.record.Hold = rotation.Hold{Reason: reason, Human: human, Message: message, Since: s.clock.Now()}
	s.add(t, names...)
}

// tell passes on what was not told yet.
func (s *story) tell(f *fixture) {
	for _, m := range s.told {
		f.Moved(m)
	}
	s.told = nil
}

// source is an engine that knows what it is told.
type source struct {
	mu      sync.Mutex
	keys    []engine.KeyView
	uses    map[key.RotationID]int
	history []engine.Moved
	// telling: pending is what Changed has still to tell; reported are the keys told last.
	telling  bool
	pending  []engine.KeyState
	reported map[key.Name]bool
	silent   []engine.SilentTarget
	refusal  engine.StoreRefusal
	// read counts the histories that were asked for.
	read int
}

func (s *source) Refusal() engine.StoreRefusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal
}

func (s *source) Silent() []engine.SilentTarget {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent
}

func (s *source) Changed(_ context.Context, after uint64, limit int) ([]engine.KeyState, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.telling {
		// Everything counts as changed, and what is not there any more as deleted.
		gone := s.reported
		s.reported, s.telling, s.pending = map[key.Name]bool{}, true, nil
		for _, k := range s.keys {
			name := k.Resource.Metadata.Name
			s.reported[name] = true
			delete(gone, name)
			s.pending = append(s.pending, engine.KeyState{Name: name, State: k.State})
		}
		for name := range gone {
			s.pending = append(s.pending, engine.KeyState{Name: name, Deleted: true})
		}
	}
	page := s.pending[:min(limit, len(s.pending))]
	s.pending = s.pending[len(page):]
	s.telling = len(page) == limit
	return page, after + uint64(len(page)), nil
}

func (s *source) Rotation(_ context.Context, id key.RotationID) (engine.RotationView, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return engine.RotationView{RotationRecord: engine.RotationRecord{ID: id, Uses: s.uses[id], MeasuredAt: time.Unix(1, 0)}}, nil
}

func (s *source) Timeline(context.Context, key.RotationID) ([]engine.Moved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read++
	var moves []engine.Moved
	for _, m := range s.history {
		m.Record, m.Names = nil, nil
		m.At = m.At.Truncate(time.Microsecond)
		moves = append(moves, m)
	}
	return moves, nil
}

func viewOf(name string, state rotation.State) engine.KeyView {
	var view engine.KeyView
	view.Resource = policy.Key{}
	view.Resource.Metadata.Name = key.Name(name)
	view.State = state
	return view
}

func manyKeys(n int, minted time.Time) []engine.KeyView {
	views := make([]engine.KeyView, n)
	for i := range views {
		views[i] = viewOf(fmt.Sprintf("key-%06d", i), rotation.State{Versions: []rotation.Version{{Number: 1, Label: key.Current, State: key.Active, MintedAt: minted}}})
	}
	return views
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
