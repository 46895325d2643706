package relay_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

// TestCrashes kills the gateway at each write of its cache in turn, while it learns a key,
// loses the centre, hands out, tells the centre, and follows a rotation.
func TestCrashes(t *testing.T) {
	writes := 0
	for n := 0; n <= writes; n++ {
		t.Run(fmt.Sprintf("at write %d", n), func(t *testing.T) {
			synctestWorld(t, func(w *world) {
				w.centre.revoked = func(name string, v uint64) {
					w.mu.Lock()
					defer w.mu.Unlock()
					for _, a := range w.apps {
						if a.using(key.Name(name)) == key.Version(v) {
							t.Errorf("%s uses version %d, which is revoked", a.id, v)
						}
					}
				}
				w.startGateway()
				counted := w.handle
				counted.left.Store(int64(n))
				pass := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); {
						select {
						case <-w.handle.died:
							w.killGateway()
							after(2 * time.Second)
							w.startGateway()
						case <-time.After(time.Until(end)):
						}
					}
				}
				w.app("first", client.KindClient, tok, db)
				pass(30 * time.Second)
				w.up.cut(true)
				pass(3 * time.Minute) // the centre forgets it
				newcomer := w.app("new", client.KindClient, tok, db)
				pass(30 * time.Second)
				alone := newcomer.using(db) == 1
				w.centre.rotate("prod/db")
				w.up.cut(false)
				pass(4 * time.Minute)
				w.uses(newcomer, db, 2)
				if w.centre.accepts("prod/db", 1) {
					t.Errorf("the rotation does not come to its end: %+v", w.relay.Stats())
				}
				// Repeated, it is told as often; what came after a crash may be told as well.
				if got := w.centre.handedOut(); !alone || !slices.ContainsFunc(got, func(one string) bool { return strings.HasPrefix(one, "app new prod/db 1 x") }) {
					t.Errorf("it was served by the gateway: %v, and the centre was told %v", alone, got)
				}
				if s := w.relay.Stats(); s.Untold != 0 || s.Held != 0 || s.Own != 0 {
					t.Errorf("%+v", s)
				}
				if left := counted.left.Load(); left < 0 {
					writes = max(writes, n+1) // there is another one
				}
			})
		})
	}
	if writes < 8 {
		t.Errorf("only %d writes were seen", writes)
	}
}

// TestFullDisk: what cannot be noted is not handed out, what cannot be kept is not
// acknowledged, and relaying goes on.
func TestFullDisk(t *testing.T) {
	run(t, func(w *world) {
		a := w.app("a", client.KindClient, tok, db)
		after(5 * time.Second)
		w.handle.full.Store(true)
		w.centre.rotate("prod/db")
		after(20 * time.Second)
		w.uses(a, db, 2)
		if w.centre.acked("gw", "prod/db", 2) || !w.centre.accepts("prod/db", 1) {
			t.Error("the gateway acknowledged what it cannot keep")
		}
		w.stopCentre()
		after(5 * time.Second)
		newcomer := w.app("new", client.KindClient, tok, db)
		after(20 * time.Second)
		w.uses(newcomer, db, 0)
		w.handle.full.Store(false)
		after(20 * time.Second)
		w.uses(newcomer, db, 1)
		w.startCentre()
		after(time.Minute)
		w.uses(newcomer, db, 2)
		if w.centre.accepts("prod/db", 1) {
			t.Errorf("the rotation does not come to its end: %+v", w.relay.Stats())
		}
	})
}

// TestHandoutsThatAreNotTaken: one that the centre does not take does not hold up the others.
func TestHandoutsThatAreNotTaken(t *testing.T) {
	run(t, func(w *world) {
		w.app("a", client.KindClient, tok, db, "prod/cache").closeAfter(5 * time.Second)
		w.stopCentre()
		after(3 * time.Second)
		for i := range 5 {
			w.app(fmt.Sprint("n", i), client.KindClient, tok, db, "prod/cache").closeAfter(3 * time.Second)
		}
		w.centre.mu.Lock()
		w.centre.refuseHandout = "prod/cache"
		w.centre.mu.Unlock()
		w.startCentre()
		after(time.Minute)
		if s := w.relay.Stats(); s.Untold != 5 || len(w.centre.handedOut()) != 5 {
			t.Errorf("%+v, %v", s, w.centre.handedOut())
		}
		w.centre.mu.Lock()
		w.centre.refuseHandout = ""
		w.centre.mu.Unlock()
		after(10 * time.Minute)
		if s := w.relay.Stats(); s.Untold != 0 || len(w.centre.handedOut()) != 10 {
			t.Errorf("%+v, %v", s, w.centre.handedOut())
		}
	})
}
