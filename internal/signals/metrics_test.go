package signals_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
)

func TestRotationThatSucceeds(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	c := f.clock
	s := newStory(c, "prod/db", rotation.Scheduled)
	c.pass(time.Second)
	s.phase(rotation.Minting)
	c.pass(time.Second)
	s.phase(rotation.Accepting)
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 2, Subject: "primary", To: "accept-pending"})
	c.pass(time.Second)
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 2, Subject: "primary", From: "accept-pending", To: "accept-probing"})
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 2, Subject: "primary", From: "accept-probing", To: "accepted"})
	s.phase(rotation.Presenting)
	s.add(rotation.Transition{Kind: rotation.PresenterTold, Version: 2, Subject: "web-1", To: "epoch 7"})
	c.pass(200 * time.Millisecond)
	s.add(rotation.Transition{Kind: rotation.PresenterAcked, Version: 2, Subject: "web-1", To: "applied"})
	s.stage(1)
	c.pass(800 * time.Millisecond)
	s.phase(rotation.Draining)
	c.pass(10 * time.Second)
	s.phase(rotation.Revoking)
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 1, Subject: "primary", To: "refuse-pending"})
	c.pass(3 * time.Second)
	s.add(rotation.Transition{Kind: rotation.VerifierChange, Version: 1, Subject: "primary", From: "refuse-probing", To: "refused"})
	s.phase(rotation.Quarantine)
	c.pass(time.Hour)
	s.phase(rotation.Destroying)
	s.phase(rotation.Done)
	s.tell(f)
	f.Attempted(engine.Attempted{Key: "prod/db", Effect: rotation.EffectRef{Kind: rotation.Accept}, Attempt: 1, Took: time.Millisecond})
	f.Attempted(engine.Attempted{Key: "prod/db", Effect: rotation.EffectRef{Kind: rotation.Accept}, Attempt: 2, Took: time.Millisecond, Outcome: rotation.OK})
	f.end()
	f.want(map[string]float64{
		`keyturn_rotations_started_total{kind="scheduled"}`:                                1,
		`keyturn_rotations_started_total{kind="emergency"}`:                                0,
		`keyturn_rotation_cutovers_total{kind="scheduled",outcome="completed"}`:            1,
		`keyturn_rotation_cutovers_total{kind="scheduled",outcome="rolled-back"}`:          0,
		`keyturn_rotations_ended_total{kind="scheduled",outcome="done"}`:                   1,
		`keyturn_rotation_cutover_duration_seconds_sum{kind="scheduled"}`:                  4,
		`keyturn_rotation_phase_duration_seconds_sum{phase="draining"}`:                    10,
		`keyturn_rotation_phase_duration_seconds_count{phase="destroying"}`:                1,
		`keyturn_rotation_stages_total{position="first",result="passed"}`:                  1,
		`keyturn_rotation_stages_total{position="later",result="passed"}`:                  1,
		`keyturn_rotation_stages_total{position="first",result="failed"}`:                  0,
		`keyturn_revocation_duration_seconds_sum{kind="scheduled"}`:                        3,
		`keyturn_verifier_acceptance_duration_seconds_sum{region="eu"}`:                    1,
		`keyturn_verifier_refusal_duration_seconds_sum{region="eu"}`:                       3,
		`keyturn_propagation_duration_seconds_sum{region="eu"}`:                            0.2,
		`keyturn_rotation_recovery_duration_seconds_count{kind="scheduled"}`:               0,
		`keyturn_effect_attempts_total{attempt="first",effect="accept",outcome="error"}`:   1,
		`keyturn_effect_attempts_total{attempt="retry",effect="accept",outcome="ok"}`:      1,
		`keyturn_effect_attempts_total{attempt="retry",effect="accept",outcome="no-data"}`: 0,
		`keyturn_effect_duration_seconds_count{effect="accept"}`:                           2,
		`keyturn_signals_dropped_total{notice="moved"}`:                                    0,
	})
}

// TestRotationOfAnotherNode: of several nodes each does a part of a rotation. What its
// phases took is known without the rest of the history, which is read only where
// spans are made of it: a key of thousands of parties has a long one.
func TestRotationOfAnotherNode(t *testing.T) {
	known := &source{}
	f := begin(t, signals.Config{}, known)
	s := newStory(f.clock, "prod/db", rotation.Manual)
	s.phase(rotation.Minting)
	s.phase(rotation.Accepting)
	f.clock.pass(2 * time.Second)
	s.told = nil // another node did that
	s.phase(rotation.Presenting)
	s.tell(f)
	f.Attempted(engine.Attempted{Key: "prod/db", Rotation: s.record.ID, Effect: rotation.EffectRef{Kind: rotation.Accept}, Attempt: 1, Outcome: rotation.OK})
	f.end()
	f.want(map[string]float64{
		`keyturn_rotation_phase_duration_seconds_sum{phase="accepting"}`:   2,
		`keyturn_rotation_phase_duration_seconds_count{phase="accepting"}`: 1,
	})
	if known.read > 0 {
		t.Errorf("%d histories were read", known.read)
	}
}

func TestFirstRotationOfAKeyIsACutOver(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	s := newStory(f.clock, "prod/db", rotation.Manual)
	s.phase(rotation.Accepting)
	f.clock.pass(time.Second)
	s.record.CutOverAt = f.clock.Now()
	s.phase(rotation.Done) // without presenters no phase lies between
	s.tell(f)
	f.end()
	f.want(map[string]float64{
		`keyturn_rotation_cutovers_total{kind="manual",outcome="completed"}`: 1,
		`keyturn_rotation_cutover_duration_seconds_sum{kind="manual"}`:       1,
		`keyturn_rotation_cutovers_total{kind="manual",outcome="failed"}`:    0,
	})
}

func TestRotationThatFails(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	c := f.clock
	s := newStory(c, "prod/db", rotation.Manual)
	s.phase(rotation.Presenting)
	c.pass(time.Second)
	s.record.Reason = "stage canary failed: web-1: health check failed"
	s.phase(rotation.RollingBack)
	c.pass(5 * time.Second)
	s.record.RecoveredAt = c.Now()
	c.pass(time.Minute)
	s.phase(rotation.RolledBack)
	s.tell(f)
	// A roll-back that somebody wished is no failure of the canary.
	wished := newStory(c, "prod/other", rotation.Manual)
	wished.phase(rotation.Presenting)
	wished.record.Reason = "changed my mind"
	wished.phase(rotation.RollingBack)
	wished.tell(f)
	f.end()
	f.want(map[string]float64{
		`keyturn_rotation_cutovers_total{kind="manual",outcome="rolled-back"}`: 1,
		`keyturn_rotation_cutovers_total{kind="manual",outcome="completed"}`:   0,
		`keyturn_rotations_ended_total{kind="manual",outcome="rolled-back"}`:   1,
		`keyturn_rotation_stages_total{position="first",result="failed"}`:      1,
		`keyturn_rotation_stages_total{position="first",result="passed"}`:      0,
		`keyturn_rotation_recovery_duration_seconds_sum{kind="manual"}`:        5,
		`keyturn_rotation_recovery_duration_seconds_count{kind="manual"}`:      1,
	})
	if logs := f.logs.String(); !strings.Contains(logs, `"level":"WARN","msg":"rotation moved"`) {
		t.Errorf("a roll-back is no warning: %s", logs)
	}
}

func TestWaitingForTheWindowIsNotTimeToRotate(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	s := newStory(f.clock, "prod/db", rotation.Scheduled)
	s.record.Plan.NotBefore = f.clock.Now().Add(time.Hour)
	f.clock.pass(time.Hour + 2*time.Second)
	s.phase(rotation.Draining)
	s.tell(f)
	f.end()
	f.want(map[string]float64{`keyturn_rotation_cutover_duration_seconds_sum{kind="scheduled"}`: 2})
}

func TestAuthFailuresArePutDownToRotations(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	s := newStory(f.clock, "prod/db", rotation.Scheduled)
	f.Sampled(signals.Sample{Key: "prod/db", Cohort: "canary", Attempts: 10, AuthFailures: 1})
	s.phase(rotation.Presenting)
	s.tell(f)
	f.Sampled(signals.Sample{Key: "prod/db", Cohort: "canary", Attempts: 10, AuthFailures: 2})
	f.Sampled(signals.Sample{Key: "prod/quiet", Cohort: "canary", Attempts: 10, AuthFailures: 4})
	s.phase(rotation.Draining)
	s.tell(f)
	f.Sampled(signals.Sample{Key: "prod/db", Cohort: "canary", Attempts: 10, AuthFailures: 8})
	f.end()
	f.want(map[string]float64{
		`keyturn_presenter_auth_failures_total{cohort="canary",key="prod/db",when="steady"}`:    1,
		`keyturn_presenter_auth_failures_total{cohort="canary",key="prod/db",when="rotation"}`:  10,
		`keyturn_presenter_auth_failures_total{cohort="canary",key="prod/quiet",when="steady"}`: 4,
		`keyturn_presenter_auth_attempts_total{cohort="canary",when="rotation"}`:                20,
	})
}

func TestExamined(t *testing.T) {
	f := begin(t, signals.Config{}, nil)
	if _, there := f.value("keyturn_audit_complete"); there {
		t.Error("completeness is known before anything was examined")
	}
	f.Examined([]engine.Check{{Name: "audit completeness", Status: "failed"}, {Name: "histories", Status: "ok"}})
	f.want(map[string]float64{"keyturn_audit_complete": 0, `keyturn_doctor_findings{status="failed"}`: 1, `keyturn_doctor_findings{status="no-data"}`: 0})
	f.Examined([]engine.Check{{Name: "audit completeness", Status: "ok"}})
	f.Reconciled(0.5, true)
	f.want(map[string]float64{"keyturn_audit_complete": 1, `keyturn_doctor_findings{status="failed"}`: 0, "keyturn_audit_completeness_ratio": 0.5})
	f.Examined([]engine.Check{{Name: "audit completeness", Status: "no-data"}})
	f.Reconciled(0, false)
	for _, series := range []string{"keyturn_audit_complete", "keyturn_audit_completeness_ratio"} {
		if v, there := f.value(series); there {
			t.Errorf("no data is shown as %s %v", series, v)
		}
	}
}

func TestSeriesAreBounded(t *testing.T) {
	const keys = 50
	f := begin(t, signals.Config{MaxKeys: keys}, &source{keys: manyKeys(700, newClock().Now().Add(-48*time.Hour))})
	for i := range 500 {
		f.Sampled(signals.Sample{Key: key.Name(fmt.Sprintf("key-%06d", i)), Cohort: fmt.Sprintf("cohort-%d\xff", i), Attempts: 2, AuthFailures: 1})
	}
	f.eventually(func() bool { _, there := f.value("keyturn_sweep_timestamp_seconds"); return there })
	f.end()
	text := f.scrape()
	for name, most := range map[string]int{
		"keyturn_key_age_seconds{":               keys,
		"keyturn_presenter_auth_failures_total{": 2 * (2*keys + 1),
		"keyturn_presenter_auth_attempts_total{": 21,
	} {
		if n := strings.Count(text, "\n"+name); n == 0 || n > most {
			t.Errorf("%s has %d series, want 1 to %d", name, n, most)
		}
	}
	f.want(map[string]float64{
		`keyturn_keys_age_seconds_count`:                                                  700,
		`keyturn_keys_age_seconds_bucket{le="86400"}`:                                     0,
		`keyturn_keys_age_seconds_bucket{le="604800"}`:                                    700,
		`keyturn_presenter_auth_failures_total{cohort="other",key="other",when="steady"}`: 500 - 2*keys,
	})
}

// eventually waits until condition holds, which something in the background brings about.
func (f *fixture) eventually(condition func() bool) {
	f.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			f.t.Fatal("waited in vain")
		}
	}
}

func TestGaugesComeFromTheEngine(t *testing.T) {
	now := newClock().Now()
	draining := rotation.Rotation{ID: key.RotationID{1}, Kind: rotation.Scheduled, Phase: rotation.Draining, From: 1, To: 2, PhaseSince: now.Add(-time.Hour), Plan: rotation.Plan{DrainMin: time.Minute}}
	draining.Hold = rotation.Hold{Reason: rotation.HoldDrainMax, Since: now.Add(-time.Minute)}
	fresh := draining
	fresh.ID, fresh.PhaseSince, fresh.Hold = key.RotationID{2}, now.Add(-time.Second), rotation.Hold{}
	state := rotation.State{
		Versions:  []rotation.Version{{Number: 1, State: key.Compromised}, {Number: 2, Label: key.Current, MintedAt: now.Add(-30 * time.Second)}},
		Verifiers: []rotation.Verifier{{ID: "primary", Slots: []rotation.Slot{{Version: 1, Acceptance: rotation.RefusePending}}}},
		Presenters: []rotation.Presenter{
			{ID: "a", Region: "eu", Told: 2, Acked: true, Maybe: []key.Version{2}},
			{ID: "b", Region: "eu", Told: 2, Maybe: []key.Version{1, 2}},
			{ID: "c", Told: 2, Acked: true, Failed: true, Maybe: []key.Version{1}},
		},
		Rotations: []rotation.Rotation{draining},
	}
	other := state
	other.Versions, other.Presenters, other.Rotations = nil, nil, []rotation.Rotation{fresh}
	other.Recovery.Since = time.Now()
	f := begin(t, signals.Config{Connected: func() int { return 3 }}, &source{
		keys: []engine.KeyView{viewOf("a", state), viewOf("b", other)}, uses: map[key.RotationID]int{{1}: 4, {2}: 9},
	})
	f.eventually(func() bool { _, there := f.value("keyturn_sweep_timestamp_seconds"); return there })
	f.want(map[string]float64{
		`keyturn_key_age_seconds{key="a"}`:                          30,
		`keyturn_keys_without_version`:                              1,
		`keyturn_keys_standing`:                                     1,
		`keyturn_open_rotations{phase="draining"}`:                  2,
		`keyturn_open_rotations{phase="minting"}`:                   0,
		`keyturn_open_rotation_phase_age_seconds{phase="draining"}`: 3600,
		`keyturn_held_rotations{human="false",reason="drain-max"}`:  1,
		`keyturn_held_rotations{human="true",reason="operator"}`:    0,
		`keyturn_presenters{region="eu",state="acknowledged"}`:      1,
		`keyturn_presenters{region="eu",state="behind"}`:            1,
		`keyturn_presenters{region="none",state="failed"}`:          1,
		`keyturn_retiring_version_uses{grace="over",key="a"}`:       4,
		`keyturn_retiring_version_uses{grace="within",key="b"}`:     9,
		`keyturn_retiring_version_presenters{grace="over"}`:         2,
		`keyturn_compromised_versions_accepted`:                     1,
		`keyturn_connected_parties`:                                 3,
		`keyturn_sweeps_total{result="failed"}`:                     0,
	})
	f.clock.pass(time.Minute)
	f.want(map[string]float64{`keyturn_key_age_seconds{key="a"}`: 90})
}

// TestObservingNeverBlocks fills the queue while nobody empties it.
func TestObservingNeverBlocks(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := &fixture{clock: newClock(), logs: &logged{}, t: t}
	s, err := signals.New(signals.Config{Registry: registry, Logger: discard(), Now: f.clock.Now, Queue: 10})
	if err != nil {
		t.Fatal(err)
	}
	f.Signals = s
	for range 15 {
		s.Moved(engine.Moved{})
		s.Attempted(engine.Attempted{})
		s.Sampled(signals.Sample{})
	}
	sum := 0.0
	for _, kind := range []string{"moved", "attempted", "sampled"} {
		v, _ := f.value(`keyturn_signals_dropped_total{notice="` + kind + `"}`)
		sum += v
	}
	if sum != 45-10 {
		t.Errorf("%v notices were dropped, want 35", sum)
	}
}

// TestMetricsFollowConventions applies Prometheus's own linter.
func TestMetricsFollowConventions(t *testing.T) {
	f := begin(t, signals.Config{Connected: func() int { return 0 }, Webhooks: []signals.Webhook{{Name: "x", URL: "https://x.example", Format: signals.Generic}}}, &source{keys: manyKeys(3, time.Unix(0, 0))})
	f.eventually(func() bool { _, there := f.value("keyturn_sweep_timestamp_seconds"); return there })
	problems, err := promlint.New(strings.NewReader(onlyKeyturn(f.scrape()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func onlyKeyturn(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "keyturn_") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestNewRefuses(t *testing.T) {
	good := func() signals.Config {
		return signals.Config{Registry: prometheus.NewRegistry(), Logger: discard(), Now: time.Now}
	}
	for name, spoil := range map[string]func(*signals.Config){
		"Registry":          func(c *signals.Config) { c.Registry = nil },
		"is not an address": func(c *signals.Config) { c.Traces.Endpoint = "collector:4318" },
		"not encrypted":     func(c *signals.Config) { c.Traces.Endpoint = "http://collector:4318" },
		"must begin with":   func(c *signals.Config) { c.Traces.Endpoint = "ftp://collector:4318" },
		"credentials":       func(c *signals.Config) { c.Traces.Endpoint = "https://a:b@collector:4318" },
		"Insecure": func(c *signals.Config) {
			c.Webhooks = []signals.Webhook{{Name: "a", URL: "http://a.example", Format: signals.Generic}}
		},
		"Format is required": func(c *signals.Config) { c.Webhooks = []signals.Webhook{{Name: "a", URL: "https://a.example"}} },
		"1 to 63": func(c *signals.Config) {
			c.Webhooks = []signals.Webhook{{URL: "https://a.example", Format: signals.Generic}}
		},
		"different names": func(c *signals.Config) {
			hook := signals.Webhook{Name: "a", URL: "https://a.example", Format: signals.Generic}
			c.Webhooks = []signals.Webhook{hook, hook}
		},
		"Runbooks": func(c *signals.Config) { c.Runbooks = "docs" },
	} {
		config := good()
		spoil(&config)
		_, err := signals.New(config)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := signals.New(good()); err != nil {
		t.Error(err)
	}
}
