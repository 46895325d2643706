package relay_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/gateway/relay"
	"github.com/keyturn/keyturn/key"
)

const (
	db  = key.Name("prod/db")
	tok = "kt_app_x"
)

// TestRelays: while the centre answers, it decides: about the versions, and about errors.
func TestRelays(t *testing.T) {
	run(t, func(w *world) {
		a := w.app("a", client.KindClient, tok, db)
		stranger := w.app("s", client.KindClient, "kt_bad_x", db)
		after(time.Second)
		w.uses(a, db, 1)
		if err := stranger.lastError(); err == nil || !strings.Contains(err.Error(), "unknown token") {
			t.Errorf("a bad token: %v", err)
		}
		w.centre.rotate("prod/db")
		after(15 * time.Second)
		w.uses(a, db, 2)
		if !w.centre.acked("a", "prod/db", 2) || !w.centre.acked("gw", "prod/db", 2) || w.centre.accepts("prod/db", 1) {
			t.Errorf("the rotation did not come to its end: %v", w.centre.acks)
		}
		if s := w.relay.Stats(); s.Relayed != 1 || s.Own != 0 || s.Keys != 1 || !s.Up || s.Grants != 1 || s.HandedOut != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCentreIsFull: a centre that cannot let all in at once, when it is back, does not
// send those away whom the gateway serves.
func TestCentreIsFull(t *testing.T) {
	run(t, func(w *world) {
		var apps []*app
		for i := range 5 {
			apps = append(apps, w.app(string(rune('a'+i)), client.KindClient, tok, db))
		}
		after(5 * time.Second)
		w.stopCentre()
		after(5 * time.Second)
		w.centre.mu.Lock()
		w.centre.full = 12
		w.centre.mu.Unlock()
		w.startCentre()
		after(time.Minute)
		for _, a := range apps {
			if a.troubles() != 0 {
				t.Errorf("%s noticed: %v", a.id, a.status)
			}
		}
		if s := w.relay.Stats(); s.Relayed != 5 {
			t.Errorf("%+v", s)
		}
		w.centre.mu.Lock()
		w.centre.full = 1
		w.centre.mu.Unlock()
		newcomer := w.app("new", client.KindClient, tok, db)
		after(time.Second)
		if err := newcomer.lastError(); err == nil || !strings.Contains(err.Error(), "too many calls") {
			t.Errorf("one that is not served hears of it: %v", err)
		}
	})
}

// TestRollBack: the gateway follows the centre to the version before.
func TestRollBack(t *testing.T) {
	run(t, func(w *world) {
		a := w.app("a", client.KindClient, tok, db)
		w.app("away", client.KindAgent, tok, db).closeAfter(5 * time.Second)
		w.centre.rotate("prod/db") // waits for the one that is away
		after(15 * time.Second)
		w.uses(a, db, 2)
		w.centre.back("prod/db")
		after(15 * time.Second)
		w.uses(a, db, 1)
		w.stopCentre()
		after(5 * time.Second)
		newcomer := w.app("new", client.KindClient, tok, db)
		after(5 * time.Second)
		w.uses(newcomer, db, 1)
	})
}

// TestCentreAway: newcomers get what the gateway holds, and nobody notices anything, when
// the centre goes and when it comes back.
func TestCentreAway(t *testing.T) {
	run(t, func(w *world) {
		old := w.app("old", client.KindClient, tok, db)
		after(5 * time.Second)
		w.stopCentre()
		after(time.Second)
		newcomer := w.app("new", client.KindClient, tok, db)
		after(3 * time.Second)
		w.uses(newcomer, db, 1)
		if s := w.relay.Stats(); s.Own != 2 || s.Relayed != 0 || s.HandedOut != 1 || s.Untold != 1 || s.Up {
			t.Errorf("while the centre is away: %+v", s)
		}
		after(5 * time.Minute)
		w.startCentre()
		after(30 * time.Second)
		if s := w.relay.Stats(); s.Own != 0 || s.Relayed != 2 || s.Untold != 0 || !s.Up {
			t.Errorf("when the centre is back: %+v", s)
		}
		if got, want := w.centre.handedOut(), []string{"app new prod/db 1 x1 10.0.0.7"}; !slices.Equal(got, want) {
			t.Errorf("the centre was told of %v, not %v", got, want)
		}
		w.centre.rotate("prod/db")
		after(30 * time.Second)
		for _, a := range []*app{old, newcomer} {
			w.uses(a, db, 2)
			if n := a.troubles(); n != 0 {
				t.Errorf("%s noticed: %v", a.id, a.status)
			}
		}
		if w.centre.accepts("prod/db", 1) {
			t.Error("the old version is accepted still")
		}
	})
}

// TestAtOnceOrLate: known to be away, the centre is not waited for; else for Late.
func TestAtOnceOrLate(t *testing.T) {
	run(t, func(w *world) {
		w.app("old", client.KindClient, tok, db)
		after(5 * time.Second)
		w.centre.mu.Lock()
		w.centre.busy = make(chan struct{})
		w.centre.mu.Unlock()
		late := w.app("late", client.KindClient, tok, db)
		after(1900 * time.Millisecond)
		w.uses(late, db, 0)
		after(200 * time.Millisecond)
		w.uses(late, db, 1)
		close(w.centre.busy)
		w.centre.mu.Lock()
		w.centre.busy = nil
		w.centre.mu.Unlock()
		after(20 * time.Second)
		if s := w.relay.Stats(); s.Relayed != 2 || s.Own != 0 {
			t.Errorf("%+v", s)
		}
		w.stopCentre()
		after(3 * time.Second)
		if w.relay.Stats().Up {
			t.Error("a centre that is gone counts as up")
		}
		early := w.app("early", client.KindClient, tok, db)
		after(10 * time.Millisecond)
		w.uses(early, db, 1)
	})
}

// TestAcknowledgesWhenNobodyMayUseTheOther is condition (b): a client that the centre has
// forgotten, while the gateway served it, still uses the old version.
func TestAcknowledgesWhenNobodyMayUseTheOther(t *testing.T) {
	for name, test := range map[string]struct {
		kind client.PartyKind
		// meanwhile is what becomes of the newcomer before the centre is back.
		meanwhile func(*world, *app)
		// held is for how long the acknowledgement waits at least, and at most.
		held, most time.Duration
	}{
		"it stays connected":       {kind: client.KindClient, most: 5 * time.Second},
		"it stays away":            {kind: client.KindClient, meanwhile: func(_ *world, a *app) { a.close() }, held: 100 * time.Second, most: 140 * time.Second},
		"it left before":           {kind: client.KindClient, meanwhile: func(_ *world, a *app) { a.close(); after(3 * time.Minute) }, most: 5 * time.Second},
		"the gateway is restarted": {kind: client.KindClient, meanwhile: func(w *world, a *app) { a.close(); w.killGateway(); w.startGateway() }, held: 100 * time.Second, most: 140 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				first := w.app("first", client.KindClient, tok, db)
				after(5 * time.Second)
				first.close()
				w.up.cut(true)
				after(3 * time.Second)
				newcomer := w.app("new", test.kind, tok, db)
				after(4 * time.Minute) // the centre forgets the first one
				w.uses(newcomer, db, 1)
				if test.meanwhile != nil {
					test.meanwhile(w, newcomer)
				}
				w.centre.rotate("prod/db")
				w.up.cut(false)
				if test.held > 0 {
					after(test.held - 20*time.Second)
					if w.centre.acked("gw", "prod/db", 2) {
						t.Error("the gateway acknowledged while a client may use the version before")
					}
					if s := w.relay.Stats(); s.Held != 1 {
						t.Errorf("%+v", s)
					}
				}
				after(test.most - test.held + 20*time.Second)
				if !w.centre.acked("gw", "prod/db", 2) {
					t.Errorf("the gateway does not acknowledge: %+v", w.relay.Stats())
				}
			})
		})
	}
}

// TestAgentsAreWaitedFor: what an agent got, it may use for as long as the gateway serves.
func TestAgentsAreWaitedFor(t *testing.T) {
	run(t, func(w *world) {
		agent := w.app("agent", client.KindAgent, tok, db)
		after(5 * time.Second)
		agent.close()
		w.up.cut(true)
		after(3 * time.Second)
		// Its host has lost what it had. Another agent of the same token is not known.
		agent = w.app("agent", client.KindAgent, tok, db)
		other := w.app("other", client.KindAgent, tok, db)
		after(3 * time.Second)
		w.uses(agent, db, 1)
		w.uses(other, db, 0)
		other.close()
		agent.close()
		w.killGateway()
		w.startGateway()
		w.centre.rotate("prod/db")
		w.up.cut(false)
		after(time.Hour)
		if w.centre.acked("gw", "prod/db", 2) {
			t.Error("the gateway did not wait for the agent")
		}
		if got := w.centre.handedOut(); len(got) != 1 || w.relay.Stats().Untold != 0 {
			t.Errorf("told %v, %+v", got, w.relay.Stats())
		}
		agent = w.appWith("agent", client.KindAgent, tok, []client.Known{{Key: db, Version: 1, Epoch: 1}})
		after(30 * time.Second)
		w.uses(agent, db, 2)
		if !w.centre.acked("gw", "prod/db", 2) {
			t.Errorf("the gateway waits although the centre has heard of the agent: %+v", w.relay.Stats())
		}
	})
}

// TestGrants: who is served while the centre is away.
func TestGrants(t *testing.T) {
	serves := func(w *world, token string, names ...key.Name) bool {
		w.t.Helper()
		a := w.app("x", client.KindClient, token, names...)
		after(5 * time.Second)
		a.close()
		return a.using(names[0]) != 0
	}
	begin := func(w *world) {
		w.centre.token("kt_other_x", "")
		w.app("a", client.KindClient, tok, db).closeAfter(5 * time.Second)
	}
	t.Run("the token", func(t *testing.T) {
		run(t, func(w *world) {
			begin(w)
			w.stopCentre()
			after(5 * time.Second)
			if !serves(w, tok, db) {
				t.Error("the token that the centre accepted is not served")
			}
			if serves(w, "kt_other_x", db) || w.refused == 0 {
				t.Errorf("another one is served, or it does not count as bad: %d", w.refused)
			}
			before := w.refused
			if serves(w, tok, "prod/cache") || w.refused != before {
				t.Error("another key is served, or asking for it counts as a bad token")
			}
		})
	})
	t.Run("revoked", func(t *testing.T) {
		run(t, func(w *world) {
			begin(w)
			w.centre.revoke(tok)
			serves(w, tok, db) // the centre says no
			w.stopCentre()
			after(5 * time.Second)
			if serves(w, tok, db) {
				t.Error("a token that the centre has refused since is served")
			}
			w.killGateway()
			w.startGateway()
			after(5 * time.Second)
			if serves(w, tok, db) {
				t.Error("it is served after a restart")
			}
		})
	})
	t.Run("narrowed", func(t *testing.T) {
		run(t, func(w *world) {
			begin(w)
			w.centre.token(tok, "other/")
			serves(w, tok, db)
			w.stopCentre()
			after(5 * time.Second)
			if serves(w, tok, db) {
				t.Error("a key that the centre has denied since is served")
			}
		})
	})
	t.Run("expired", func(t *testing.T) {
		synctestWorld(t, func(w *world) {
			w.adapt = func(c *relay.Config) { c.ServeFor = 2 * time.Hour }
			w.startGateway()
			begin(w)
			w.stopCentre()
			after(115 * time.Minute)
			if !serves(w, tok, db) {
				t.Error("not served within the time")
			}
			connected := w.app("c", client.KindClient, tok, db)
			after(time.Minute)
			w.uses(connected, db, 1)
			if connected.troubles() != 0 {
				t.Errorf("%v", connected.status)
			}
			after(5 * time.Minute)
			if connected.troubles() == 0 {
				t.Error("a stream is served beyond the time")
			}
			if serves(w, tok, db) {
				t.Error("served beyond the time")
			}
		})
	})
	t.Run("the clock is set back", func(t *testing.T) {
		synctestWorld(t, func(w *world) {
			w.adapt = func(c *relay.Config) { c.ServeFor = 2 * time.Hour }
			w.startGateway()
			begin(w)
			w.stopCentre()
			after(90 * time.Minute)
			w.setSkew(-80 * time.Minute)
			after(35 * time.Minute)
			if serves(w, tok, db) {
				t.Error("a clock that was set back prolongs")
			}
		})
	})
	t.Run("the clock is set back while the gateway is down", func(t *testing.T) {
		synctestWorld(t, func(w *world) {
			w.adapt = func(c *relay.Config) { c.ServeFor = 2 * time.Hour }
			w.startGateway()
			begin(w)
			w.stopCentre()
			after(90 * time.Minute)
			w.killGateway()
			w.setSkew(-80 * time.Minute)
			w.startGateway()
			after(5 * time.Second)
			if serves(w, tok, db) {
				t.Error("a clock that was set back prolongs")
			}
		})
	})
	t.Run("connected for long", func(t *testing.T) {
		synctestWorld(t, func(w *world) {
			w.adapt = func(c *relay.Config) { c.ServeFor = time.Hour }
			w.startGateway()
			w.app("a", client.KindClient, tok, db)
			after(3 * time.Hour)
			w.stopCentre()
			after(5 * time.Second)
			if !serves(w, tok, db) {
				t.Error("the token of a stream that stood until now is not served")
			}
		})
	})
	t.Run("restarted", func(t *testing.T) {
		run(t, func(w *world) {
			begin(w)
			w.stopCentre()
			w.killGateway()
			after(time.Hour)
			w.startGateway()
			after(5 * time.Second)
			if !serves(w, tok, db) {
				t.Error("a restart forgot who may be served")
			}
		})
	})
}

// TestGatewayIsRefused: a refusal of the gateway says nothing of its clients, and ends
// that the gateway hands anything out.
func TestGatewayIsRefused(t *testing.T) {
	run(t, func(w *world) {
		a := w.app("a", client.KindClient, tok, db)
		after(5 * time.Second)
		w.centre.mu.Lock()
		w.centre.refuseGateway = true
		w.centre.mu.Unlock()
		w.up.cut(true)
		w.up.cut(false)
		after(20 * time.Second)
		newcomer := w.app("new", client.KindClient, tok, db)
		after(20 * time.Second)
		w.uses(newcomer, db, 0)
		if err := newcomer.lastError(); err == nil || !strings.Contains(err.Error(), "refuses this gateway") {
			t.Errorf("%v", err)
		}
		if s := w.relay.Stats(); !s.Refused || s.Grants == 0 {
			t.Errorf("%+v", s)
		}
		w.centre.mu.Lock()
		w.centre.refuseGateway = false
		w.centre.mu.Unlock()
		after(time.Minute)
		w.uses(newcomer, db, 1)
		w.uses(a, db, 1)
		if s := w.relay.Stats(); s.Refused || s.Relayed != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestBounds: beyond each bound nothing is handed out, and nothing grows.
func TestBounds(t *testing.T) {
	synctestWorld(t, func(w *world) {
		w.adapt = func(c *relay.Config) { c.MaxGrants, c.MaxHandouts, c.MaxStreams = 16, 4, 8 }
		w.startGateway()
		w.app("a", client.KindClient, tok, db).closeAfter(5 * time.Second)
		for i := range 40 {
			token := "kt_t" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + "_x"
			w.centre.token(token, "")
			w.app("g", client.KindClient, token, db).closeAfter(100 * time.Millisecond)
		}
		if s := w.relay.Stats(); s.Grants > 16 || s.Grants < 14 {
			t.Errorf("%d grants", s.Grants)
		}
		w.app("a", client.KindClient, tok, db).closeAfter(5 * time.Second)
		w.stopCentre()
		after(5 * time.Second)
		// No token takes more than half of the room.
		served := func(token string) (n int) {
			for i := range 5 {
				a := w.app(token+string(rune('a'+i)), client.KindClient, token, db)
				after(3 * time.Second)
				a.close()
				n += int(a.using(db))
			}
			return n
		}
		if n, s := served(tok), w.relay.Stats(); n != 2 || s.Untold != 2 || s.Full {
			t.Errorf("%d of one token were served, %+v", n, s)
		}
		for _, token := range []string{"kt_tma_x", "kt_tnb_x"} {
			served(token)
		}
		if s := w.relay.Stats(); s.Untold != 4 || !s.Full {
			t.Errorf("%+v", s)
		}
		w.startCentre()
		after(20 * time.Second)
		if s := w.relay.Stats(); s.Untold != 0 || s.Full || len(w.centre.handedOut()) != 4 {
			t.Errorf("%+v", s)
		}
		for i := range 12 {
			w.app("s"+string(rune('a'+i)), client.KindClient, tok, db)
		}
		after(time.Second)
		if s := w.relay.Stats(); s.Relayed != 8 {
			t.Errorf("%d streams", s.Relayed)
		}
	})
}

// TestKeys: which keys the gateway presents itself.
func TestKeys(t *testing.T) {
	synctestWorld(t, func(w *world) {
		w.adapt = func(c *relay.Config) { c.KeepKeys = 2 * time.Hour }
		w.centre.token(gatewayToken, "prod/")
		w.startGateway()
		a := w.app("a", client.KindClient, tok, db, "prod/cache", "other/db")
		after(5 * time.Second)
		if s := w.relay.Stats(); s.Keys != 2 || s.OnlyRelayed != 1 {
			t.Errorf("%+v", s)
		}
		w.centre.rotate("other/db")
		after(15 * time.Second)
		w.uses(a, "other/db", 2)
		// A key that is deleted at the centre does not keep the gateway from the others.
		a.close()
		w.centre.mu.Lock()
		delete(w.centre.keys, "prod/cache")
		w.centre.mu.Unlock()
		w.up.cut(true)
		w.up.cut(false)
		after(30 * time.Second)
		if s := w.relay.Stats(); s.Keys != 1 || s.OnlyRelayed != 2 {
			t.Errorf("%+v", s)
		}
		b := w.app("a", client.KindClient, tok, db)
		after(3 * time.Hour)
		if s := w.relay.Stats(); s.Keys != 1 {
			t.Errorf("a key is dropped while a stream stands: %+v", s)
		}
		b.close()
		after(3 * time.Hour)
		if s := w.relay.Stats(); s.Keys != 0 {
			t.Errorf("a key that nobody asks for is kept: %+v", s)
		}
		w.centre.mu.Lock()
		defer w.centre.mu.Unlock()
		if _, is := w.centre.keys["prod/db"].presenters["gw"]; is {
			t.Error("the gateway is registered for a key that it dropped")
		}
	})
}

// TestComeBack: a server of the centre that stops sends nobody away; the gateway that
// stops does.
func TestComeBack(t *testing.T) {
	run(t, func(w *world) {
		a := w.app("a", client.KindClient, tok, db)
		after(5 * time.Second)
		close(w.centre.stops)
		w.centre.mu.Lock()
		w.centre.stops = make(chan struct{})
		w.centre.mu.Unlock()
		after(100 * time.Millisecond)
		if s := w.relay.Stats(); s.Own != 1 {
			t.Errorf("%+v", s)
		}
		after(10 * time.Second)
		if s := w.relay.Stats(); s.Relayed != 1 || a.troubles() != 0 {
			t.Errorf("%+v, %v", s, a.status)
		}
		relay := w.relay
		w.relay = nil
		relay.Stop()
		after(100 * time.Millisecond)
		if a.troubles() != 1 || a.lastError() != nil {
			t.Errorf("the client was not told to come back: %v", a.status)
		}
		w.startGateway()
		after(10 * time.Second)
		if s := w.relay.Stats(); s.Relayed != 1 {
			t.Errorf("%+v", s)
		}
	})
}
