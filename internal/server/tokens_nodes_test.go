package server_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/server/servertest"
	"github.com/keyturn/keyturn/internal/token"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestNodesSignTogether: two servers on one PostgreSQL sign with the same key while
// it rotates. What either of them signs the sets of both verify, by readers that
// fetch no sooner than Cache-Control allows: no node signs with a version before all
// serve it. One is then stopped, or in the long run cut off from the store, and the
// next rotation goes on without it.
func TestNodesSignTogether(t *testing.T) {
	t.Parallel()
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	configure := func(dir string) server.Config {
		config := onPostgres(t, dir, database)
		config.Tokens.Skew, config.Tokens.Outage = 250*time.Millisecond, 5*time.Second
		config.Limits.ForgetClients = 2 * time.Second
		return config
	}
	first := startServerWith(t, configure(t.TempDir()), nil)
	dir := t.TempDir()
	servertest.CopyKeys(t, first.dir, dir)
	second := startServerWith(t, configure(dir), nil)
	nodes := []*world{first, second}
	first.applySigning(t, "ES256")
	first.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
	// From now on each stage is judged by what the signers report.
	if problems := first.apply(t, first.root, `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: signing}
spec:
  rotate: {every: 90d}
  stages: [{name: all, bake: 500ms, ackTimeout: 30s, onEmpty: skip}]
  judge: [{name: auth-failures, signal: auth_failures, max: 0}]
  drain: {min: 0s, quiet: 0s, max: 5m, every: 1s}
  quarantine: 1s
`).GetProblems(); len(problems) > 0 {
		t.Fatalf("%v", problems)
	}
	l := &load{t: t, readers: readers{}, rejected: map[string]int{}, last: map[key.Version]int{}}
	issuer := first.Address() + "/orders"
	var stopped atomic.Bool
	for i, w := range nodes {
		until(t, "the first token of each node", func() bool {
			_, err := w.Signer().Sign(t.Context(), token.Request{Key: ordersTokens, Life: time.Second})
			return err == nil
		})
		r := &joseReader{client: w.http, issuer: issuer, set: w.Address() + "/orders/.well-known/jwks.json"}
		verify := r.verify
		if i == 1 {
			verify = func(ctx context.Context, compact string) error {
				err := r.verify(ctx, compact)
				if _, gone := w.Board().Find("/orders/.well-known/jwks.json"); err != nil && (stopped.Load() || errors.Is(gone, token.ErrNotReady)) {
					return nil // it serves nothing any more: nobody is let in or turned away by it
				}
				return err
			}
		}
		l.readers[[]string{"by the first node", "by the second node"}[i]] = verify
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { l.run(ctx, first.Signer()) })
	beside, end := context.WithCancel(ctx)
	defer end()
	running.Go(func() { l.run(beside, second.Signer()) })

	r := first.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
	l.wantVersion(first, key.Version(r.GetTo()))
	l.wantVersion(second, key.Version(r.GetTo()))
	end()
	stopped.Store(!cutOff)
	if cutOff {
		if err := server.CloseStore(second.Server); err != nil {
			t.Fatal(err)
		}
	} else if err := second.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r = first.rotated(t, &keyturnv1.RotateRequest{}, "quarantine")
	l.wantVersion(first, key.Version(r.GetTo()))
}
