package signals

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// Bounds of label values that come from outside.
const (
	maxRegions = 50
	maxCohorts = 20
)

// metrics are the counters and histograms: what happened at this server node.
type metrics struct {
	started, ended, cutovers  *prometheus.CounterVec
	stages, holds             *prometheus.CounterVec
	cutover, phases           *prometheus.HistogramVec
	revocation, recovery      *prometheus.HistogramVec
	refusal, acceptance       *prometheus.HistogramVec
	propagation               *prometheus.HistogramVec
	attempts                  *prometheus.CounterVec
	effects                   *prometheus.HistogramVec
	uses, failures            *prometheus.CounterVec
	complete, ratio, examined *prometheus.GaugeVec
	findings                  *prometheus.GaugeVec
	dropped, spans            *prometheus.CounterVec
	pages                     *prometheus.CounterVec
	pageQueue                 *prometheus.GaugeVec
	sweeps                    *prometheus.CounterVec
	anomalies                 *prometheus.CounterVec
	rules                     *bound
	sweep                     *prometheus.HistogramVec
	verifications, tokens     *prometheus.CounterVec
	revoked, fetches          *prometheus.CounterVec
	newest                    *newest

	regions, cohorts *bound
	// pairs are keys with cohorts.
	pairs *bound
}

func newMetrics(maxKeys int) *metrics {
	m := &metrics{
		pairs: newBound(2 * maxKeys), regions: newBound(maxRegions), cohorts: newBound(maxCohorts),

		started: counter("rotations_started_total", "Rotations begun, by kind (M1).", "kind"),
		ended:   counter("rotations_ended_total", "Rotations that ended, by kind and final phase. A rotation ends as done only when its old version is destroyed; see keyturn_rotation_cutovers_total.", "kind", "outcome"),
		cutovers: counter("rotation_cutovers_total",
			"Cut-overs that ended, by kind and outcome (M1): completed means that the new version became current, the other outcomes are final phases.", "kind", "outcome"),
		cutover: histogram("rotation_cutover_duration_seconds",
			"Time from the start of a rotation, or the opening of its window, until the new version was current (M2). Approvals and bakes count.", long(), "kind"),
		phases: histogram("rotation_phase_duration_seconds", "Time that rotations spent in a phase.", long(), "phase"),
		stages: counter("rotation_stages_total", "Stages that presenters went through, by position (first: the canary, later) and result (M8).", "position", "result"),
		holds:  counter("rotation_holds_total", "Holds that began, by reason.", "reason"),
		revocation: histogram("revocation_duration_seconds",
			"Time from the beginning of a revocation until every verifier was proven to refuse the old version (M5), by kind of rotation.", long(), "kind"),
		refusal: histogram("verifier_refusal_duration_seconds",
			"Time from asking one verifier to refuse a version until its refusal was proven (M5), by verifier's region.", long(), "region"),
		acceptance: histogram("verifier_acceptance_duration_seconds",
			"Time from asking one verifier to accept a version until its acceptance was proven (M2), by verifier's region.", long(), "region"),
		recovery: histogram("rotation_recovery_duration_seconds",
			"Time from the failure of a rotation until all presenters were back on the version before (M10), by kind.", long(), "kind"),
		propagation: histogram("propagation_duration_seconds",
			"Time from telling a presenter to use a version until it acknowledged that it does (M2), by presenter's region.", short(), "region"),
		attempts: counter("effect_attempts_total", "Tries of effects outside (M6), by effect, whether it was the first try or a retry, and outcome; error means that it is tried again, waits that nothing failed and the system takes its time.", "effect", "attempt", "outcome"),
		effects:  histogram("effect_duration_seconds", "Time that one try of an effect took.", short(), "effect"),
		uses: counter("presenter_auth_attempts_total",
			"Authentications that presenters reported, by cohort and whether a rotation of the key was under way or ended within the hour before.", "cohort", "when"),
		failures: counter("presenter_auth_failures_total",
			"Failed authentications that presenters reported, by key, cohort and whether a rotation of the key was under way or ended within the hour before (M4).", "key", "cohort", "when"),
		complete: gauge("audit_complete", "Whether every transition has its audit entry: 1 or 0, absent while nothing is known (M7)."),
		ratio:    gauge("audit_completeness_ratio", "Part of the transitions that have their audit entry, 0 to 1, absent while nothing is known (M7)."),
		examined: gauge("audit_examined_timestamp_seconds", "When the audit log was last compared with the events, in seconds since 1970."),
		findings: gauge("doctor_findings", "Findings of the last examination by status.", "status"),
		dropped:  counter("signals_dropped_total", "Notices that were dropped because the queue was full, by kind.", "notice"),
		spans:    counter("trace_spans_total", "Spans by what became of them: ended, exported, failed. Those that are in none but the first wait, or did not fit into the queue.", "state"),
		pages:    counter("pages_total", "Pages by webhook and what became of them: delivered, failed tries, dropped, refused by the receiver.", "webhook", "state"),
		pageQueue: gauge("pages_waiting", "Pages that wait to be delivered, by webhook.",
			"webhook"),
		verifications: counter("apikey_verifications_total",
			"API keys that were shown to this server node, by what they were: good, malformed, unknown, suspended, expired, limited.", "result"),
		anomalies: counter("anomalies_total",
			"What rules found, by rule and what became of it: dry-run, no-data, alert, suspend, emergency, limit, misfire, failed.", "rule", "result"),
		rules: newBound(maxRules),
		tokens: counter("tokens_issued_total",
			"Requests for tokens to this server node, by what the client proved (federated, api-key, token, certificate; invalid: nothing) and result: ok, or why it was refused.", "by", "result"),
		revoked: counter("tokens_revoked_total", "Tokens that were revoked at this server node, before they expired."),
		fetches: counter("jwks_fetches_total",
			"Fetches of sets of a signing key at this server node, by the newest version in them; of a key only the newest version is shown. Sets that a reader held already count.", "key", "version"),
		newest: newNewest(maxKeys),
		sweeps: counter("sweeps_total", "Readings of the gauges from the engine, by result.", "result"),
		sweep:  histogram("sweep_duration_seconds", "Time that reading the gauges from the engine took.", short()),
	}
	m.zero()
	return m
}

// long are buckets for what takes seconds to days; targets are bounds.
func long() []float64 {
	return []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600}
}

// short are buckets for what takes milliseconds to minutes.
func short() []float64 {
	return []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600}
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "keyturn", Name: name, Help: help}, labels)
}

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "keyturn", Name: name, Help: help}, labels)
}

func histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "keyturn", Name: name, Help: help, Buckets: buckets}, labels)
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.started, m.ended, m.cutovers, m.cutover, m.phases, m.stages, m.holds, m.revocation, m.refusal, m.acceptance, m.recovery,
		m.propagation, m.attempts, m.effects, m.uses, m.failures, m.complete, m.ratio, m.examined, m.findings,
		m.dropped, m.spans, m.pages, m.pageQueue, m.sweeps, m.sweep, m.verifications, m.anomalies, m.tokens, m.revoked, m.fetches,
	}
}

// kinds are the kinds of rotations.
func kinds() []rotation.Kind {
	return []rotation.Kind{rotation.Scheduled, rotation.Manual, rotation.Emergency, rotation.Rollback}
}

// zero makes the series with known labels appear before anything happens, so
// that a rate over the first event is seen.
func (m *metrics) zero() {
	for _, kind := range kinds() {
		k := kind.String()
		m.started.WithLabelValues(k)
		m.cutovers.WithLabelValues(k, "completed")
		for _, phase := range rotation.Phases() {
			if !phase.Ended() {
				m.phases.WithLabelValues(phase.String())
				continue
			}
			m.ended.WithLabelValues(k, phase.String())
			if phase != rotation.Done {
				m.cutovers.WithLabelValues(k, phase.String())
			}
		}
		for _, h := range []*prometheus.HistogramVec{m.cutover, m.revocation, m.recovery} {
			h.WithLabelValues(k)
		}
	}
	for _, position := range []string{"first", "later"} {
		for _, result := range []string{"passed", "failed"} {
			m.stages.WithLabelValues(position, result)
		}
	}
	for _, reason := range HoldReasons() {
		m.holds.WithLabelValues(string(reason))
	}
	for effect := rotation.Preflight; effect < rotation.Tell; effect++ {
		m.effects.WithLabelValues(effect.String())
		for _, attempt := range []string{"first", "retry"} {
			for _, outcome := range []string{"ok", "contradicted", "no-data", "broken", "error"} {
				m.attempts.WithLabelValues(effect.String(), attempt, outcome)
			}
		}
	}
	for _, kind := range []string{"moved", "attempted", "sampled"} {
		m.dropped.WithLabelValues(kind)
	}
	for _, state := range []string{"ended", "exported", "failed"} {
		m.spans.WithLabelValues(state)
	}
	for _, result := range []string{"good", "malformed", "unknown", "suspended", "expired", "limited"} {
		m.verifications.WithLabelValues(result)
	}
	for _, by := range []string{"federated", "api-key", "token", "certificate"} {
		m.tokens.WithLabelValues(by, "ok")
	}
	m.revoked.WithLabelValues()
	for _, result := range []string{"ok", "failed"} {
		m.sweeps.WithLabelValues(result)
	}
}

// HoldReasons returns every reason that the machine gives for a hold. Each has a
// runbook of that name.
func HoldReasons() []rotation.HoldReason {
	return []rotation.HoldReason{
		rotation.HoldOperator, rotation.HoldNoRoom, rotation.HoldNoVerifier, rotation.HoldEffect, rotation.HoldTrouble, rotation.HoldContradict,
		rotation.HoldStageEmpty, rotation.HoldStageLate, rotation.HoldStageFailed, rotation.HoldNoData, rotation.HoldDrainMax, rotation.HoldGraceOver,
		rotation.HoldRefusal,
	}
}

// observe records a duration with the rotation as its exemplar.
func observe(h *prometheus.HistogramVec, took time.Duration, id key.RotationID, labels ...string) {
	seconds := max(0, took).Seconds()
	o := h.WithLabelValues(labels...)
	if exemplar, ok := o.(prometheus.ExemplarObserver); ok && !id.IsZero() {
		exemplar.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": id.String()})
		return
	}
	o.Observe(seconds)
}

func when(rotating bool) string {
	if rotating {
		return "rotation"
	}
	return "steady"
}

func (m *metrics) sampled(s *Sample, rotating bool) {
	cohort := m.cohorts.of(orNone(s.Cohort))
	m.uses.WithLabelValues(cohort, when(rotating)).Add(float64(s.Attempts))
	name := string(s.Key)
	if m.pairs.of(name+" "+cohort) == other {
		name, cohort = other, other
	}
	// Both series are there from the first report on, so that a rate sees the first
	// failure.
	m.failures.WithLabelValues(name, cohort, when(!rotating))
	m.failures.WithLabelValues(name, cohort, when(rotating)).Add(float64(s.AuthFailures))
}

// waits is the outcome of an effect that takes its time.
const waits = "waits"

func (m *metrics) attempted(a *engine.Attempted) {
	attempt, outcome := "first", "error"
	if a.Attempt > 1 {
		attempt = "retry"
	}
	switch {
	case a.Waits:
		outcome = waits
	case a.Outcome != 0:
		outcome = a.Outcome.String()
	}
	m.attempts.WithLabelValues(a.Effect.Kind.String(), attempt, outcome).Inc()
	observe(m.effects, a.Took, a.Rotation, a.Effect.Kind.String())
}

// Examined takes up what Engine.Doctor found; call it after every examination.
func (s *Signals) Examined(checks []engine.Check) {
	counts := map[string]int{"ok": 0, "warning": 0, "failed": 0, "no-data": 0}
	s.metrics.examined.WithLabelValues().Set(float64(s.config.Now().UnixMilli()) / 1000)
	s.metrics.complete.Reset()
	for _, check := range checks {
		if _, known := counts[check.Status]; known {
			counts[check.Status]++
		}
		if check.Name != completenessCheck {
			continue
		}
		switch check.Status {
		case "ok":
			s.metrics.complete.WithLabelValues().Set(1)
		case "failed":
			s.metrics.complete.WithLabelValues().Set(0)
		}
	}
	for status, n := range counts {
		s.metrics.findings.WithLabelValues(status).Set(float64(n))
	}
}

// completenessCheck is the name under which Engine.Doctor reports on the audit log.
const completenessCheck = "audit completeness"

// Reconciled takes up the exact ratio of a comparison of the audit log with the
// events; known is false when there was nothing to compare.
func (s *Signals) Reconciled(ratio float64, known bool) {
	s.metrics.ratio.Reset()
	if known {
		s.metrics.ratio.WithLabelValues().Set(ratio)
	}
}

func boolLabel(b bool) string { return strconv.FormatBool(b) }

// Verifications counts API keys that were shown and had the result.
func (s *Signals) Verifications(result string) prometheus.Counter {
	return s.metrics.verifications.WithLabelValues(result)
}
