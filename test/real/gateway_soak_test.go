//go:build soak

package real

import (
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestGatewaysDieAllTheTime: a key rotates twenty times by its client's own hand, while
// one of the two gateways, or the centre between two rotations, is killed at some moment
// and started again a moment later. No request fails, and no key that a rotation proved
// refused is let in by a gateway that has come back.
func TestGatewaysDieAllTheTime(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w, centre := newGatewayWorld(t)
	present := w.issue(t)
	w.prove(t, present)
	gateways := []*gatewayProcess{
		w.gateway(t, "gateway-1", "unix:"+filepath.Join(w.dir, "gateway.sock"), "apikeys"), w.gateway(t, "gateway-2", "", "apikeys"),
	}
	e := w.nginx(t, gateways...)
	v := e.visitor(t, "127.0.2.1", "")
	for _, g := range gateways {
		g.knows(t, present)
	}
	l := &edgeLoad{}
	l.use(present)
	l.run(t, e, 4)
	for range 20 {
		id := w.rotateKey(t, apiKey, "again")
		w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetPhase() == "presenting" })
		_, next := w.self(t, http.MethodPost, ownSuccessor, present)
		old := present
		present, _ = next["key"].(string)
		l.use(present)
		g := gateways[random.IntN(len(gateways))]
		l.more(t, random.Int64N(40)+1)
		g.kill(t)
		w.prove(t, present)
		l.more(t, random.Int64N(200)+1)
		g.start(t)
		w.finish(t, id, "done")
		mustBeRefused(t, old, v, gateways...)
		l.refuse(old)
		if random.IntN(3) == 0 {
			centre.kill(t)
			l.more(t, random.Int64N(200)+1)
			g.kill(t)
			l.more(t, 20)
			g.start(t)
			l.more(t, 20)
			centre = w.startChild(t, childConfig{})
		}
	}
	l.check(t)
	t.Logf("refused keys were shown %d times", l.refusals.Load())
	w.healthy(t)
}
