package server

import (
	"math"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/broker"
	"github.com/keyturn/keyturn/internal/compat/oauth"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/signals"
	"github.com/keyturn/keyturn/key"
)

// The sources of what the rules judge, beside the sessions that systems report.
const (
	// sourceAPIKey are those who verify API keys: this server, and others that report.
	sourceAPIKey = "api-key"
	// sourcePresenter are those who present a key, by their own reports.
	sourcePresenter = "presenter"
	// sourceBroker is the token broker.
	sourceBroker = "broker"
	// sourceVerifier are services that are shown access tokens, by their own reports.
	sourceVerifier = "token-verifier"
)

// observeAPIKeys lets the rules judge who used API keys, or tried to.
func (s *Server) observeAPIKeys(list []apikey.Used) {
	observations := make([]engine.Observation, 0, len(list))
	for i := range list {
		u := &list[i]
		observations = append(observations, engine.Observation{
			Key: u.Key, Version: u.Version, Source: sourceAPIKey, Application: u.Caller.Application, Address: u.Caller.Address,
			Count: int(min(u.Count, math.MaxInt32)), Refused: u.Refused, Identified: !u.Refused, At: u.At,
		})
	}
	s.engine.Observe(observations...)
}

// observeRefused lets the rules judge who was refused a token.
func (s *Server) observeRefused(r broker.Refusal) {
	s.engine.Observe(engine.Observation{
		Key: r.Key, Source: sourceBroker, Application: r.Client, Address: r.Address, Count: 1, Refused: true, Identified: r.Client != "",
		Replay: policy.Truth(r.Replay), At: s.clock.Now(),
	})
}

// observeReported lets the rules judge whom services refused that were shown access
// tokens.
func (s *Server) observeReported(name key.Name, list []oauth.Reported) {
	observations := make([]engine.Observation, 0, len(list))
	for i := range list {
		r := &list[i]
		observations = append(observations, engine.Observation{
			Key: name, Source: sourceVerifier, Application: r.Client, Address: r.Address, Count: r.Count, Refused: true, Identified: r.Client != "",
			Replay: policy.Truth(r.Replay), At: s.clock.Now(),
		})
	}
	s.engine.Observe(observations...)
}

// sampled counts what a presenter reports, and lets the rules judge it: who was let
// in with a version, and who was refused. What this server's own signer reports is a
// try, and no use.
func (s *Server) sampled(name key.Name, version key.Version, cohort string, sample engine.Sample) {
	s.telemetry.Sampled(signals.Sample{Key: name, Cohort: cohort, Attempts: sample.Attempts, AuthFailures: sample.AuthFailures})
	if sample.Presenter == s.tokens.party() {
		return
	}
	refused := min(sample.AuthFailures, sample.Attempts)
	one := engine.Observation{
		Key: name, Version: version, Source: sourcePresenter, Application: sample.Presenter, Address: sample.Address, At: sample.At,
		Count: int(min(sample.Attempts-refused, math.MaxInt32)), Patient: true,
	}
	other := one
	other.Refused, other.Patient, other.Count = true, false, int(min(refused, math.MaxInt32))
	s.engine.Observe(one, other)
}
