//go:build soak

package real

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestManyRotationsAtOnce rotates 200 keys of one PostgreSQL together, while
// applications log in with the current credential of each all the time. None
// fails, and Keyturn takes few of the server's 100 connections.
func TestManyRotationsAtOnce(t *testing.T) {
	const many = 200
	w := newSystems(t)
	w.start(t)
	t.Cleanup(func() { w.stop(t) })
	var documents strings.Builder
	documents.WriteString(vary(t, "drain: {min: 0s, quiet: 0s", "drain: {min: 2s, quiet: 1s"))
	names := make([]key.Name, many)
	for i := range names {
		names[i] = key.Name(fmt.Sprintf("prod/many/%03d", i))
		fmt.Fprintf(&documents, `---
apiVersion: keyturn/v1
kind: Key
metadata: {name: %s}
spec:
  provider: postgres
  policy: database
  config:
    admin: "postgres://rotator@%s/%s?sslmode=disable"
    adminPassword: {file: %s}
    strategy: alternating-users
    users: [many_%03d_a, many_%03d_b]
`, names[i], w.primary.Addr(), database, w.passwordFile(), i, i)
	}
	w.apply(t, documents.String())
	together := func(why string) (took time.Duration) {
		t.Helper()
		began := time.Now()
		ids := make([]string, many)
		for i, name := range names {
			response, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: string(name), Reason: why})
			if err != nil {
				t.Fatal(err)
			}
			ids[i] = response.GetRotationId()
		}
		for i, id := range ids {
			if rotation, err := w.ended(t.Context(), id); err != nil || rotation.GetPhase() != "done" {
				t.Errorf("%s: %v is %s, %v", why, names[i], rotation.GetPhase(), err)
			}
		}
		return time.Since(began)
	}
	t.Logf("%d first versions took %v", many, together("the first version"))

	keys, err := client.Open(t.Context(), w.party(client.KindClient, "many", "canary", "eu"), names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	l := &load{}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for worker := range 4 {
		running.Go(func() {
			for i := worker; ctx.Err() == nil; i = (i + 4) % many {
				cred := keys.Key(names[i]).Current()
				err := logIn(context.WithoutCancel(ctx), w.primary.URL(cred.Username(), cred.Password().RevealString(), database))
				l.queries.Add(1)
				if err != nil {
					l.fail(string(names[i]), err)
				}
			}
		})
	}
	var most atomic.Int64
	watcher := pgtest.Connect(t, w.primary.SuperuserURL("postgres"))
	running.Go(func() {
		for ctx.Err() == nil {
			var n int64
			err := watcher.QueryRow(context.WithoutCancel(ctx), "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'keyturn%'").Scan(&n)
			if err != nil {
				t.Errorf("count connections: %v", err)
				return
			}
			most.Store(max(most.Load(), n))
		}
	})
	l.more(t, 400)
	t.Logf("%d rotations took %v", many, together("all together"))
	stop()
	running.Wait()
	t.Logf("Keyturn had %d connections at most", most.Load())
	if most.Load() > 20 {
		t.Errorf("Keyturn had %d connections", most.Load())
	}
	l.check(t)
}

// ended waits for the end of a rotation.
func (w *world) ended(ctx context.Context, id string) (*keyturnv1.Rotation, error) {
	stream, err := w.control.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: id})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var last *keyturnv1.Rotation
	for stream.Receive() {
		last = stream.Msg().GetRotation()
	}
	return last, stream.Err()
}
