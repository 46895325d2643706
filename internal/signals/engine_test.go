package signals_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/engine/enginetest"
	"github.com/keyturn/keyturn/internal/hub"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// vault is a system in memory with one endpoint. Its secrets are easy to search for.
type vault struct {
	mu       sync.Mutex
	accepted map[string]bool
	tried    int
}

func (*vault) Check(provider.Config) (provider.Topology, error) {
	return provider.Topology{Endpoints: []provider.Endpoint{{Name: "primary", Region: "eu"}}, Capacity: 2}, nil
}

func (v *vault) Open(context.Context, provider.Config, provider.Env) (provider.System, error) {
	return v, nil
}

func (*vault) Mint(_ context.Context, _ provider.Call, r provider.MintRequest) (provider.Material, error) {
	return provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString(fmt.Sprintf("plaintext-of-%d", r.Number))}}, nil
}

func (v *vault) set(version provider.Version, accepted bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tried++; v.tried == 1 {
		return errors.New("connection refused") // the first of all tries fails
	}
	v.accepted[version.Material.Secrets["password"].RevealString()] = accepted
	return nil
}

func (v *vault) Accept(_ context.Context, _ provider.Call, _ string, version provider.Version) error {
	return v.set(version, true)
}

func (v *vault) Refuse(_ context.Context, _ provider.Call, _ string, version provider.Version) error {
	return v.set(version, false)
}

func (v *vault) Probe(_ context.Context, _ provider.Call, _ string, version provider.Version) (provider.Verdict, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.accepted[version.Material.Secrets["password"].RevealString()] {
		return provider.Accepted, nil
	}
	return provider.Refused, nil
}

func (*vault) Usage(context.Context, provider.Call, provider.Version) (provider.Usage, error) {
	return provider.Usage{}, nil
}

const documents = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: quick}
spec:
  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"', bake: 0s, ackTimeout: %s}
    - {name: rest, bake: 0s}
  drain: {min: 0s, quiet: 0s, max: 1m, every: 100ms}
  quarantine: 10ms
  endQuarantineEarly: true
  retain: {destroyAfter: 10ms}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/db}
spec: {provider: memory, policy: quick}
`

// run is a real engine that Signals observes.
type run struct {
	*fixture

	engine *engine.Engine
	hub    *hub.Hub
	otlp   *otlp
	hook   *hook
}

var operator = audit.Actor{ID: "test", Kind: "user"}

func newRun(t *testing.T) *run {
	t.Helper()
	w := &run{otlp: newOTLP(t), hook: newHook(t, false)}
	config := paging(w.hook, signals.Generic)
	config.Traces = signals.Traces{Endpoint: w.otlp.URL, Insecure: true}
	config.Now, config.Every = time.Now, 50*time.Millisecond
	config.Connected = func() int { return w.hub.Connected() }
	made, db := enginetest.Config(t, t.TempDir(), &vault{accepted: map[string]bool{}})
	w.hub = hub.New(hub.Config{Logger: discard(), Now: time.Now})
	observer := &late{}
	made.Fleet, made.Observer, made.Logger = w.hub, observer, discard()
	var err error
	if w.engine, err = engine.New(made); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.hub.Stop()
		w.engine.Stop()
		w.end()
		if err := db.Stop(); err != nil {
			t.Error(err)
		}
	})
	w.fixture = begin(t, config, w.engine)
	observer.Observer = w.Signals
	w.hub.Use(w.engine)
	w.engine.Start(t.Context())
	w.hub.Start(t.Context())
	w.apply(t, time.Minute)
	return w
}

// apply applies the documents with the time that the first stage has to answer.
func (w *run) apply(t *testing.T, ackTimeout time.Duration) {
	t.Helper()
	text := fmt.Sprintf(documents, ackTimeout)
	result, err := w.engine.Apply(t.Context(), operator, engine.ApplyRequest{Documents: []engine.Document{{Name: "keys.yaml", Content: []byte(text)}}})
	if err != nil || result.Problems.Err() != nil {
		t.Fatal(err, result.Problems)
	}
}

// late is an observer that is set before the engine starts.
type late struct{ engine.Observer }

// party applies what it is told, when it may.
func (w *run) party(t *testing.T, id, cohort string, apply func(key.Version) (ok, answer bool)) {
	t.Helper()
	party := engine.PartyRecord{ID: id, Kind: hub.KindAgent, Region: "eu", Labels: map[string]string{"cohort": cohort}}
	session, err := w.hub.Connect(t.Context(), operator, party, []engine.Holding{{Key: "prod/db"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	running.Go(func() {
		using := key.Version(0)
		for {
			deliveries, err := session.Next(ctx, time.Minute)
			if err != nil {
				return
			}
			for _, d := range deliveries {
				ok, answer := apply(d.Version)
				if ok {
					using = d.Version
				}
				if !answer {
					continue
				}
				if err := w.hub.Acknowledge(ctx, id, []hub.Outcome{{Key: d.Key, Epoch: d.Epoch, OK: ok, Using: using}}); err != nil && ctx.Err() == nil {
					t.Errorf("acknowledge: %v", err)
				}
			}
		}
	})
}

func (w *run) rotate(t *testing.T, until func(engine.RotationView) bool) engine.RotationView {
	t.Helper()
	id, err := w.engine.Rotate(t.Context(), operator, engine.RotateRequest{Key: "prod/db"})
	if err != nil {
		t.Fatal(err)
	}
	return w.wait(t, id, until)
}

func (w *run) wait(t *testing.T, id key.RotationID, until func(engine.RotationView) bool) engine.RotationView {
	t.Helper()
	enough := errors.New("enough")
	var last engine.RotationView
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := w.engine.WatchRotation(ctx, id, func(view engine.RotationView) error {
		if last = view; until(view) {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		t.Fatalf("%v; the rotation is %v, hold %+v", err, last.Phase, last.Hold)
	}
	return last
}

func ended(v engine.RotationView) bool { return v.Ended() }

// TestSignalsOfARealEngine runs rotations that succeed, fail and hold, and looks
// at every signal they leave.
func TestSignalsOfARealEngine(t *testing.T) {
	w := newRun(t)
	var mu sync.Mutex
	bad, mute := key.Version(0), key.Version(0)
	w.party(t, "canary-1", "canary", func(v key.Version) (ok, answer bool) {
		mu.Lock()
		defer mu.Unlock()
		return v != bad, v != mute
	})
	w.party(t, "web-1", "rest", func(key.Version) (ok, answer bool) { return true, true })
	choose := func(b, m key.Version) {
		mu.Lock()
		defer mu.Unlock()
		bad, mute = b, m
	}

	w.rotate(t, ended)
	// The region of a party is known once a sweep has found it.
	w.eventually(func() bool {
		v, _ := w.value(`keyturn_presenters{region="eu",state="acknowledged"}`)
		return v == 2
	})
	second := w.rotate(t, ended)
	if second.Phase != rotation.Done {
		t.Fatalf("the second rotation is %v", second.Phase)
	}
	choose(3, 0)
	failed := w.rotate(t, ended)
	if failed.Phase != rotation.RolledBack {
		t.Fatalf("the third rotation is %v", failed.Phase)
	}
	choose(0, 4)
	w.apply(t, 100*time.Millisecond)
	late := w.rotate(t, func(v engine.RotationView) bool { return v.Hold.Reason == rotation.HoldStageLate })
	var page signals.Page
	w.hook.until(t, func() bool {
		if len(w.hook.pages) == 0 {
			return false
		}
		page = w.hook.pages[len(w.hook.pages)-1]
		return page.Reason == rotation.HoldStageLate && page.Status == "firing"
	})
	w.eventually(func() bool {
		v, _ := w.value(`keyturn_held_rotations{human="false",reason="stage-late"}`)
		return v == 1
	})
	w.want(map[string]float64{`keyturn_open_rotations{phase="presenting"}`: 1, `keyturn_presenters{region="eu",state="behind"}`: 1, "keyturn_connected_parties": 2})
	choose(0, 0)
	if err := w.engine.Steer(t.Context(), operator, late.ID, engine.SteerCancel, "enough"); err != nil {
		t.Fatal(err)
	}
	checks, err := w.engine.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.Examined(checks)
	if !slices.Equal(page.Parties, []string{"canary-1"}) || page.Rotation != late.ID {
		t.Errorf("page: %+v", page)
	}
	w.engine.Stop()
	w.end()

	w.want(map[string]float64{
		`keyturn_rotations_started_total{kind="manual"}`:                                 4,
		`keyturn_rotation_cutovers_total{kind="manual",outcome="completed"}`:             2,
		`keyturn_rotation_cutovers_total{kind="manual",outcome="rolled-back"}`:           1,
		`keyturn_rotation_cutover_duration_seconds_count{kind="manual"}`:                 2,
		`keyturn_rotation_stages_total{position="first",result="failed"}`:                1,
		`keyturn_rotation_stages_total{position="first",result="passed"}`:                2,
		`keyturn_rotation_stages_total{position="later",result="passed"}`:                2,
		`keyturn_rotation_recovery_duration_seconds_count{kind="manual"}`:                1,
		`keyturn_revocation_duration_seconds_count{kind="manual"}`:                       1,
		`keyturn_effect_attempts_total{attempt="first",effect="mint",outcome="ok"}`:      4,
		`keyturn_effect_attempts_total{attempt="first",effect="accept",outcome="error"}`: 1,
		`keyturn_effect_attempts_total{attempt="retry",effect="accept",outcome="ok"}`:    1,
		`keyturn_audit_complete`:                            1,
		`keyturn_rotation_holds_total{reason="stage-late"}`: 1,
	})
	told, _ := w.value(`keyturn_propagation_duration_seconds_count{region="eu"}`)
	if told < 5 {
		t.Errorf("%v tellings were acknowledged in region eu", told)
	}
	w.checkTrace(t, second.ID, "planned", "minting", "accepting", "presenting", "draining", "revoking", "quarantine", "destroying")
	w.checkTrace(t, failed.ID, "planned", "minting", "accepting", "presenting", "rolling-back")
	w.searchSecrets(t)
}

// checkTrace checks that the trace is one tree below its root with these phases.
func (w *run) checkTrace(t *testing.T, id key.RotationID, phases ...string) {
	t.Helper()
	spans := w.otlp.of(t, id.String())
	roots, effects, under := 0, 0, []string{}
	for _, s := range spans {
		parent := spans[hex.EncodeToString(s.GetParentSpanId())]
		switch {
		case len(s.GetParentSpanId()) == 0:
			roots++
		case parent == nil:
			t.Errorf("%v: the parent of %s is missing", id, s.GetName())
		case len(parent.GetParentSpanId()) == 0 && attributesOf(s)["keyturn.phase"] != "":
			under = append(under, s.GetName())
		case attributesOf(s)["keyturn.effect"] != "":
			effects++
		default:
			t.Errorf("%v: %s is neither a phase below the root nor an effect below a phase", id, s.GetName())
		}
	}
	// A phase that begins and ends in one event leaves no trace.
	for _, phase := range under {
		if !slices.Contains(phases, phase) {
			t.Errorf("%v: unexpected phase %s", id, phase)
		}
	}
	if roots != 1 || effects < 4 || len(under) < len(phases)-2 {
		t.Errorf("%v: %d roots, %d effects, phases %v", id, roots, effects, under)
	}
}

// searchSecrets looks for the plaintext of all versions in all signals.
func (w *run) searchSecrets(t *testing.T) {
	t.Helper()
	request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	recorder := httptest.NewRecorder()
	w.Handler().ServeHTTP(recorder, request)
	if !strings.Contains(recorder.Body.String(), `# {trace_id="`) {
		t.Error("histograms have no exemplars")
	}
	places := map[string]string{"metrics": recorder.Body.String(), "logs": w.logs.String(), "traces": string(w.otlp.raw)}
	for i, body := range w.hook.bodies {
		places[fmt.Sprint("page ", i)] = string(body)
	}
	for place, text := range places {
		if text == "" {
			t.Errorf("%s are empty", place)
		}
		if strings.Contains(text, "plaintext-of-") {
			t.Errorf("a secret is in the %s", place)
		}
	}
}
