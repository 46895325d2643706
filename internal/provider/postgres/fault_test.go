package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestFaults disturbs servers of its own, one fault after the other.
func TestFaults(t *testing.T) {
	t.Parallel()
	p := ownPair(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, pair)
	}{
		{"LaggingReplicaAcceptsOnlyTheOldPassword", testLaggingReplica},
		{"LaggingReplicaStillAcceptsARefusedPassword", testLaggingRefusal},
		{"RulesOfTheNetworkAreNoVerdict", testHBA},
		{"PrimaryRestartsInTheMiddle", testRestart},
		{"StandbyIsAway", testStandbyAway},
		{"WhatIsConfirmedIsOnDisk", testConfirmedIsOnDisk},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, p) })
	}
}

func (p pair) pauseReplay(t *testing.T) {
	t.Helper()
	pgtest.Exec(t, p.replica, database, "SELECT pg_wal_replay_pause()")
	pgtest.Eventually(t, "replay is paused", func() bool {
		conn := pgtest.Connect(t, p.replica.SuperuserURL(database))
		var state string
		return conn.QueryRow(t.Context(), "SELECT pg_get_wal_replay_pause_state()").Scan(&state) == nil && state == "paused"
	})
	t.Cleanup(func() {
		pgtest.Exec(t, p.replica, database, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END")
	})
}

func (p pair) resumeReplay(t *testing.T) {
	t.Helper()
	pgtest.Exec(t, p.replica, database, "SELECT pg_wal_replay_resume()")
}

// testLaggingReplica: until the change has arrived, Accept at the replica does
// not return, or fails within replicaWait and names the replica and the cause.
func testLaggingReplica(t *testing.T, p pair) {
	for _, strategy := range []string{"alternating-users", "single-user"} {
		tg := newTarget(t, p, strategy)
		tg.config["replicaWait"] = "400ms"
		s := tg.open()
		old := s.mint()
		s.accept(old)
		replica := s.endpoints()[1]
		p.pauseReplay(t)
		next := s.mint(old)
		if err := s.Accept(t.Context(), s.call(), primaryEndpoint, next); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := s.Accept(t.Context(), s.call(), replica, next)
		if err == nil || provider.IsPermanent(err) {
			t.Fatalf("%s: Accept at a lagging replica: %v", strategy, err)
		}
		for _, want := range []string{replica, "region b", "paused", next.Number.String()} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in: %v", strategy, want, err)
			}
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("%s: a wait of 400ms took %v", strategy, took)
		}
		if !s.lets(s.replica, old) || s.lets(s.replica, next) {
			t.Errorf("%s: the standby knows more than the old password", strategy)
		}
		s.wantNone(old, replica, "has not arrived")
		s.wantNone(next, replica, "has not arrived")
		s.wantVerdict(next, primaryEndpoint, provider.Accepted)
		if findings, err := s.preflight(old, next); err != nil || !hasCode(findings, "replay-paused") {
			t.Errorf("%s: preflight: %+v, %v", strategy, findings, err)
		}

		tg.config["replicaWait"] = "20s"
		patient := tg.open()
		patient.fence, patient.next = s.fence, s.next
		done := make(chan error, 1)
		call := patient.call()
		go func() { done <- patient.Accept(t.Context(), call, replica, next) }()
		select {
		case err := <-done:
			t.Fatalf("%s: Accept returned %v before the change could arrive", strategy, err)
		case <-time.After(300 * time.Millisecond):
		}
		p.resumeReplay(t)
		if err := <-done; err != nil {
			t.Fatalf("%s: Accept after replay: %v", strategy, err)
		}
		patient.wantVerdict(next, replica, provider.Accepted)
	}
}

// testLaggingRefusal: a refusal is done at a replica when it is done there.
func testLaggingRefusal(t *testing.T, p pair) {
	tg := newTarget(t, p, "alternating-users")
	tg.config["replicaWait"] = "300ms"
	s := tg.open()
	v := s.mint()
	s.accept(v)
	replica := s.endpoints()[1]
	conn := s.session(replica, v, "lagging")
	if err := s.Refuse(t.Context(), s.call(), replica, v); err == nil || !strings.Contains(err.Error(), "follows the primary") {
		t.Errorf("Refuse at the replica before the primary: %v", err)
	}
	p.pauseReplay(t)
	if err := s.Refuse(t.Context(), s.call(), primaryEndpoint, v); err != nil {
		t.Fatal(err)
	}
	if err := s.Refuse(t.Context(), s.call(), replica, v); err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("Refuse at a lagging replica: %v", err)
	}
	s.wantVerdict(v, primaryEndpoint, provider.Refused)
	if !s.lets(s.replica, v) {
		t.Error("the standby refuses the old password: the test proves nothing")
	}
	s.wantNone(v, replica, "has not arrived")
	p.resumeReplay(t)
	pgtest.Eventually(t, "Refuse succeeds once replay goes on", func() bool {
		return s.Refuse(t.Context(), s.call(), replica, v) == nil
	})
	s.wantVerdict(v, replica, provider.Refused)
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the session at the replica survived")
	}
}

// testHBA: a rule that turns this client away has the SQLSTATE of a refusal, and
// a rule that asks for no password lets everybody in. Neither is a verdict on the
// password.
func testHBA(t *testing.T, p pair) {
	s := newTarget(t, p, "alternating-users").open()
	v := s.mint()
	s.accept(v)
	file := filepath.Join(p.primary.DataDir(), "pg_hba.conf")
	rules, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Exec(t, p.primary, database, "SELECT pg_reload_conf()")
	}
	t.Cleanup(func() { write(string(rules)) })
	user := `"` + strings.ReplaceAll(s.users[0], `"`, `""`) + `"`
	for method, says := range map[string]string{"reject": "pg_hba.conf", "trust": "did not complete authentication", "password": "requested password"} {
		write(fmt.Sprintf("host all %s 127.0.0.1/32 %s\n%s", user, method, rules))
		pgtest.Eventually(t, "the rule is in force and gives no verdict: "+method, func() bool {
			verdict, err := s.Probe(t.Context(), s.call(), primaryEndpoint, v)
			return err != nil && verdict == 0 && strings.Contains(err.Error(), says)
		})
		write(string(rules))
		pgtest.Eventually(t, "the login works again", func() bool {
			verdict, err := s.Probe(t.Context(), s.call(), primaryEndpoint, v)
			return err == nil && verdict == provider.Accepted
		})
	}
	if log := p.logs(t); contains(log, v.Material.Secrets["password"]) {
		t.Error("the log shows the password")
	}
}

// testRestart stops the primary between and during the calls of a rotation; each
// is repeated as Keyturn does, and the end is as without the fault.
func testRestart(t *testing.T, p pair) {
	s := newTarget(t, p, "alternating-users").open()
	old := s.mint()
	s.accept(old)
	if err := p.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if verdict, err := s.Probe(t.Context(), s.call(), primaryEndpoint, old); err == nil {
		t.Errorf("Probe of a dead primary: %v", verdict)
	}
	if u, err := s.usage(old); !errors.Is(err, provider.ErrNoData) {
		t.Errorf("Usage with a dead primary: %+v, %v", u, err)
	}
	if _, err := s.preflight(old); err == nil || !strings.Contains(err.Error(), "primary") {
		t.Errorf("Preflight with a dead primary: %v", err)
	}
	next := s.mint(old)
	repeat := func(what string, fn func() error) {
		t.Helper()
		pgtest.Eventually(t, what, func() bool {
			err := fn()
			if provider.IsPermanent(err) {
				t.Fatalf("%s: %v", what, err)
			}
			return err == nil
		})
	}
	restarted := make(chan error, 1)
	restart := func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		restarted <- p.primary.Restart(ctx)
	}
	for _, endpoint := range s.endpoints() {
		go restart()
		repeat("accept at "+endpoint, func() error { return s.Accept(t.Context(), s.call(), endpoint, next) })
		if err := <-restarted; err != nil {
			t.Fatal(err)
		}
	}
	for _, endpoint := range s.endpoints() {
		go restart()
		repeat("refuse at "+endpoint, func() error { return s.Refuse(t.Context(), s.call(), endpoint, old) })
		if err := <-restarted; err != nil {
			t.Fatal(err)
		}
	}
	for _, endpoint := range s.endpoints() {
		s.wantVerdict(next, endpoint, provider.Accepted)
		s.wantVerdict(old, endpoint, provider.Refused)
	}
}

// testStandbyAway: a replica that is away says nothing, and holds nobody else up.
func testStandbyAway(t *testing.T, p pair) {
	tg := newTarget(t, p, "alternating-users")
	tg.config["replicaWait"] = "300ms"
	s := tg.open()
	v := s.mint()
	replica := s.endpoints()[1]
	s.proxies[replica].Cut()
	// Fill every place for a connection to the replica.
	waiting := make(chan error, 8)
	for range cap(waiting) {
		call := s.call()
		go func() { waiting <- s.Accept(t.Context(), call, replica, v) }()
	}
	if err := s.Accept(t.Context(), provider.Call{Key: s.name}, primaryEndpoint, v); err != nil {
		t.Errorf("Accept at the primary while the replica hangs: %v", err)
	}
	for range cap(waiting) {
		if err := <-waiting; err == nil || !strings.Contains(err.Error(), replica) {
			t.Errorf("Accept at the replica that is away: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	u, err := s.System.(provider.Meter).Usage(ctx, s.call(), v)
	if !errors.Is(err, provider.ErrNoData) || !slices.Equal(provider.Endpoints(err), []string{replica}) {
		t.Errorf("Usage without the replica: %+v, %v at %v", u, err, provider.Endpoints(err))
	}
	s.proxies[replica].Restore()
	if err := s.Accept(t.Context(), provider.Call{Key: s.name}, replica, v); err != nil {
		t.Errorf("Accept once it is back: %v", err)
	}
}

func hasCode(findings []provider.Finding, code string) bool {
	for _, f := range findings {
		if f.Code == code {
			return true
		}
	}
	return false
}
