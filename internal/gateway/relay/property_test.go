package relay_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
)

// TestNobodyIsLockedOut draws interleavings of everything that may happen to the centre,
// the gateway and the clients, and checks at every step that nobody uses a version which
// the centre has revoked, and at the end that all came to what the centre wants.
// KEYTURN_RELAY_SEED runs one seed.
func TestNobodyIsLockedOut(t *testing.T) {
	first, number := 1, seeds
	if text := os.Getenv("KEYTURN_RELAY_SEED"); text != "" {
		seed, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		first, number = seed, 1
	}
	for seed := first; seed < first+number; seed++ {
		ok := t.Run(strconv.Itoa(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDraw(t, seed)
				defer d.w.end()
				d.run()
			})
		})
		if !ok {
			return
		}
	}
}

// draw is one run.
type draw struct {
	t      *testing.T
	w      *world
	random *rand.Rand

	mu     sync.Mutex
	apps   []*app
	number int
	tale   []string
	began  time.Time
	failed bool
}

func newDraw(t *testing.T, seed int) *draw {
	d := &draw{t: t, w: newWorld(t, "prod/db"), random: rand.New(rand.NewPCG(uint64(seed), 1)), began: time.Now()}
	d.w.centre.revoked = func(name string, v uint64) {
		d.note("the centre revokes %d", v)
		d.mu.Lock()
		apps := d.apps
		d.mu.Unlock()
		for _, a := range apps {
			if a.using(key.Name(name)) == key.Version(v) {
				d.fail("%s uses version %d, which is revoked", a.id, v)
			}
		}
	}
	d.w.startGateway()
	return d
}

func (d *draw) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tale = append(d.tale, fmt.Sprintf("%8.1fs ", time.Since(d.began).Seconds())+fmt.Sprintf(format, args...))
}

func (d *draw) fail(format string, args ...any) {
	d.note("FAILED: "+format, args...)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.failed {
		d.t.Errorf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(d.tale, "\n"))
	}
	d.failed = true
}

// comes adds a client that begins with nothing.
func (d *draw) comes(kind client.PartyKind) {
	d.mu.Lock()
	d.number++
	id := fmt.Sprintf("%s-%d", kind, d.number)
	slow := time.Duration(d.random.IntN(4000)) * time.Millisecond
	d.mu.Unlock()
	a := d.w.prepare(id)
	a.slow = func() time.Duration { return slow }
	a.applied = func(name key.Name, v key.Version) {
		d.note("%s uses %d", id, v)
		if !d.w.centre.accepts(string(name), uint64(v)) {
			d.fail("%s takes version %d into use, which is revoked", id, v)
		}
	}
	d.mu.Lock()
	d.apps = append(append([]*app(nil), d.apps...), a)
	d.mu.Unlock()
	a.start(kind, tok, []client.Known{{Key: db}})
}

// dies ends a client.
func (d *draw) dies() {
	if len(d.apps) == 0 {
		return
	}
	i := d.random.IntN(len(d.apps))
	a := d.apps[i]
	if strings.HasPrefix(a.id, "agent") {
		return // rotations would wait for it
	}
	d.note("%s dies", a.id)
	d.mu.Lock()
	d.apps = append(append([]*app(nil), d.apps[:i]...), d.apps[i+1:]...)
	d.mu.Unlock()
	a.close()
}

func (d *draw) crashes(down time.Duration) {
	d.note("the gateway is killed, for %v", down)
	d.w.killGateway()
	after(down)
	d.w.startGateway()
	d.note("the gateway is started")
}

func (d *draw) run() {
	w, r := d.w, d.random
	for range 1 + r.IntN(3) {
		d.comes(client.KindClient)
	}
	if r.IntN(2) == 0 {
		d.comes(client.KindAgent)
	}
	after(10 * time.Second)
	for range 30 {
		switch r.IntN(15) {
		case 0, 1:
			d.note("the link is cut")
			w.up.cut(true)
		case 2, 3:
			d.note("the link is there")
			w.up.cut(false)
		case 4:
			d.note("the centre is killed")
			w.stopCentre()
		case 5, 6:
			d.note("the centre is started")
			w.startCentre()
		case 7, 8:
			d.note("the centre rotates")
			w.centre.rotate("prod/db")
		case 9:
			d.note("the centre rolls back")
			w.centre.back("prod/db")
		case 10:
			d.comes(client.KindClient)
		case 11:
			if len(d.apps) > 1 {
				d.dies()
			}
		case 12:
			d.crashes(time.Duration(r.IntN(40)) * time.Second)
		case 13:
			n := r.IntN(4)
			d.note("the gateway dies at its next write but %d", n)
			w.handle.left.Store(int64(n))
		case 14:
			d.busy(time.Duration(1+r.IntN(20)) * time.Second)
		}
		d.pass([]time.Duration{time.Second / 10, time.Second, 5 * time.Second, 30 * time.Second, 150 * time.Second, 200 * time.Second}[r.IntN(6)])
		if d.failed {
			return
		}
	}
	d.heals()
}

// busy makes the centre answer nothing new for a while.
func (d *draw) busy(span time.Duration) {
	d.note("the centre is busy for %v", span)
	busy, c := make(chan struct{}), d.w.centre
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy != nil {
		return
	}
	c.busy = busy
	time.AfterFunc(span, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busy = nil
		close(busy)
	})
}

// pass lets time pass, in which a gateway that dies is started again.
func (d *draw) pass(span time.Duration) {
	end := time.Now().Add(span)
	for time.Now().Before(end) {
		select {
		case <-d.w.handle.died:
			d.crashes(time.Duration(d.random.IntN(10)) * time.Second)
		case <-time.After(time.Until(end)):
		}
	}
	synctest.Wait()
}

// heals checks that everything comes to its end.
func (d *draw) heals() {
	w := d.w
	d.note("all is mended")
	w.handle.left.Store(-1)
	if w.handle.dead.Load() {
		d.crashes(0)
	}
	w.startCentre()
	w.up.cut(false)
	w.centre.rotate("prod/db")
	after(10 * time.Minute)
	w.centre.rotate("prod/db")
	after(10 * time.Minute)
	w.centre.mu.Lock()
	k := w.centre.keys["prod/db"]
	current, target, accepted := k.current, k.target, len(k.accepted)
	w.centre.mu.Unlock()
	if target != 0 || accepted != 1 {
		d.fail("the rotation to %d does not come to its end: %d versions are accepted, %+v", target, accepted, w.relay.Stats())
	}
	for _, a := range d.apps {
		if got := a.using(db); got != key.Version(current) {
			d.fail("%s uses %d, not %d", a.id, got, current)
		}
	}
	if s := w.relay.Stats(); s.Own != 0 || s.Untold != 0 || s.Held != 0 || s.Relayed != len(d.apps) {
		d.fail("%+v", s)
	}
}
