package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/test/pgtest"
)

const (
	groupKeys   = 20
	emergencies = 5
	// groupLimit is a tenth of the two minutes that M5 allows, in ms.
	groupLimit = 12_000
	// atOnce is how many keys the floor contains at the same time.
	atOnce = 16
)

// BenchmarkEmergencyGroup contains a group of keys, roles of a PostgreSQL primary and
// its hot standby that flush to disk: from the call that declares it until the last
// verifier is proven to refuse the last compromised version.
func BenchmarkEmergencyGroup(b *testing.B) {
	primary, standby := pgtest.StartPair(b, pgserver.Config{Region: "eu", Durable: true}, "us")
	password := rotator(b, primary)
	documents := fmt.Sprintf(rotationPolicy, keyName, primary.Addr(), database, password, standby.Addr())
	policy, template, _ := strings.Cut(documents, "\n---\n")
	for i := range groupKeys {
		one := strings.Replace(template, "metadata: {name: "+keyName+"}", fmt.Sprintf("metadata: {name: prod/group/%02d, labels: {team: stolen}}", i), 1)
		policy += "\n---\n" + strings.Replace(one, "[orders_a, orders_b]", fmt.Sprintf("[group_%02d_a, group_%02d_b]", i, i), 1)
	}
	w := newWorld(b, nil, policy)
	for i := range groupKeys {
		w.rotateKey(b, fmt.Sprintf("prod/group/%02d", i), time.Minute)
		pgtest.Exec(b, primary, "postgres", fmt.Sprintf("CREATE ROLE floor_%02d LOGIN PASSWORD 'floor'", i))
	}
	log := newFloorLog(b)
	var ours, floor []time.Duration
	for range emergencies {
		ours = append(ours, w.contain(b))
		for i := range groupKeys {
			pgtest.Exec(b, primary, "postgres", fmt.Sprintf("ALTER ROLE floor_%02d LOGIN PASSWORD 'floor'", i))
		}
		began := time.Now()
		if err := floorContain(b.Context(), primary, standby, log); err != nil {
			b.Fatal(err)
		}
		floor = append(floor, time.Since(began))
	}
	scoreboard.add(b, result{
		Name: fmt.Sprintf("emergency_group_%d", groupKeys), Unit: "ms", Ours: milliseconds(median(ours)), Floor: milliseconds(median(floor)), limit: groupLimit,
	})
}

// contain declares the group, waits until it has ended, and returns after which time
// the last verifier refused.
func (w *world) contain(b *testing.B) time.Duration {
	b.Helper()
	return w.containOf(b, groupKeys)
}

// containOf is contain for a group of so many keys.
func (w *world) containOf(b *testing.B, keys int32) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	began := time.Now()
	response, err := w.control.DeclareEmergency(ctx, &keyturnv1.DeclareEmergencyRequest{Selector: "team=stolen", Strategy: "contain-first", Reason: "benchmark"})
	if err != nil || response.GetEmergency().GetTotal() != keys || response.GetEmergency().GetFailed() != 0 {
		b.Fatal(response, err)
	}
	stream, err := w.control.WatchEmergency(ctx, &keyturnv1.WatchEmergencyRequest{Id: response.GetEmergency().GetId()})
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close()
	var last *keyturnv1.Emergency
	for stream.Receive() {
		last = stream.Msg().GetEmergency()
	}
	if stream.Err() != nil || !last.GetEnded() || last.GetRefusedAt() == nil {
		b.Fatalf("the group did not end: %v, %v", last, stream.Err())
	}
	return last.GetRefusedAt().AsTime().Sub(began)
}

// floorContain does what containing a group does outside, with nothing around it: the
// statements and proofs for each role, and two durable commits, that of the decision
// and that of the result.
func floorContain(ctx context.Context, primary, standby *pgserver.Server, log *floorLog) error {
	failures := make([]error, groupKeys)
	slots := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for i := range groupKeys {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			failures[i] = floorRefuse(ctx, primary, standby, log, fmt.Sprintf("floor_%02d", i))
		})
	}
	running.Wait()
	return errors.Join(failures...)
}

func floorRefuse(ctx context.Context, primary, standby *pgserver.Server, log *floorLog, role string) error {
	if err := log.append([][]byte{make([]byte, 300)}); err != nil {
		return err
	}
	for _, at := range []struct {
		server    *pgserver.Server
		statement string
	}{{primary, "ALTER ROLE " + role + " NOLOGIN PASSWORD NULL"}, {standby, ""}} {
		if err := floorEnd(ctx, at.server, at.statement, role); err != nil {
			return err
		}
	}
	return log.append([][]byte{make([]byte, 300)})
}

// floorEnd executes a statement, if there is one, ends a role's sessions, and tries
// until its log-in is refused.
func floorEnd(ctx context.Context, server *pgserver.Server, statement, role string) error {
	conn, err := pgx.Connect(ctx, server.SuperuserURL(database))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if statement != "" {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role); err != nil {
		return err
	}
	return logInSoon(ctx, server.URL(role, "floor", database), false)
}
