package apikeycheck_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/client/apikeycheck/cachetest"
	"github.com/keyturn/keyturn/key"
)

// TestDisk: the cache of these tests keeps the contract itself.
func TestDisk(t *testing.T) {
	cachetest.Run(t, func(*testing.T) func() apikeycheck.Cache {
		d := &disk{}
		return func() apikeycheck.Cache { return d }
	})
}

// in runs a test in simulated time.
func in(t *testing.T, test func(t *testing.T, c *centre, d *disk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		test(t, newCentre(t), &disk{records: map[string][]byte{}, killAt: math.MaxInt})
	})
}

// rest lets simulated time pass, and everything that has to be done by then.
func rest(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func must(t *testing.T, p *process, d *disk, change func(*apikeycheck.Config)) *apikeycheck.Checker {
	t.Helper()
	d.process = p
	checker, err := p.open(d, change)
	if err != nil {
		t.Fatal(err)
	}
	return checker
}

// end closes a checker for which there is no time left.
func end(checker *apikeycheck.Checker) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = checker.Close(ctx) // it was killed
}

func wantCheck(t *testing.T, when string, checker *apikeycheck.Checker, text string, want error) {
	t.Helper()
	if r, err := checker.Check(text, "192.0.2.7"); !errors.Is(err, want) || (err == nil) != (r.Client == "ACME") {
		t.Errorf("%s: %+v, %v, want %v", when, r, err, want)
	}
}

// TestRestartWithoutServer: a process that was killed lets in and refuses after its
// restart what the one before did, at once and without a server, for as long as that
// would have; and not longer.
func TestRestartWithoutServer(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		c.set(1, true, false)
		c.set(2, false, false)
		first := &process{centre: c}
		checker := must(t, first, d, nil)
		c.set(3, true, false)
		c.set(4, true, false)
		c.set(4, false, true)
		rest(20 * time.Second)
		if c.confirms() != 5 {
			t.Fatalf("revision %d is confirmed", c.confirms())
		}
		c.is(&c.away, true)
		first.kill()
		end(checker)
		for _, at := range []struct {
			after                   time.Duration
			good, refused, stranger error
		}{
			{time.Second, nil, apikeycheck.ErrRefused, apikeycheck.ErrRefused},
			{20 * time.Second, nil, apikeycheck.ErrUnsure, apikeycheck.ErrUnsure},
			{9 * time.Minute, nil, apikeycheck.ErrUnsure, apikeycheck.ErrUnsure},
		} {
			rest(at.after)
			began := time.Now()
			p := &process{centre: c}
			checker := must(t, p, d, nil)
			if time.Since(began) != 0 {
				t.Errorf("it has opened after %v", time.Since(began))
			}
			when := fmt.Sprintf("after %v more", at.after)
			wantCheck(t, when, checker, c.text(1), nil)
			wantCheck(t, when, checker, c.text(3), nil)
			wantCheck(t, when, checker, c.text(2), at.refused)
			wantCheck(t, when, checker, c.text(4), at.stranger)
			if at.after > time.Minute {
				rest(time.Minute)
				wantCheck(t, "when it is old", checker, c.text(1), apikeycheck.ErrUnsure)
			}
			p.kill()
			end(checker)
		}
		p := &process{centre: c}
		if _, err := p.open(d, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("opened with a cache that is too old: %v", err)
		}
		c.is(&c.away, false)
		checker = must(t, p, d, nil)
		wantCheck(t, "with a server again", checker, c.text(1), nil)
		if d.wholes != 1 {
			t.Errorf("the table was written %d times", d.wholes)
		}
		end(checker)
	})
}

// TestKilledAtEveryWrite: whichever write of the cache the process is killed at, after a
// restart without a server no key is let in that was refused in a revision that was
// confirmed, and none refused that was good in it.
func TestKilledAtEveryWrite(t *testing.T) {
	kills := 0
	for _, slow := range []time.Duration{0, 300 * time.Millisecond} {
		for _, after := range []bool{false, true} {
			for at := 0; ; at++ {
				more := false
				in(t, func(t *testing.T, c *centre, d *disk) { more = killed(t, c, d, at, after, slow) })
				if t.Failed() {
					t.Fatalf("killed at write %d, after it: %v, which took %v", at, after, slow)
				}
				if !more {
					break
				}
				kills++
			}
		}
	}
	if kills < 100 {
		t.Errorf("only %d kills", kills)
	}
}

func killed(t *testing.T, c *centre, d *disk, at int, after bool, slow time.Duration) bool {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	const versions = 12
	p := &process{centre: c}
	d.killAt, d.killAfter, d.slow = at, after, slow
	var checker *apikeycheck.Checker
	for round := range 40 {
		for range 1 + random.IntN(3) {
			c.set(key.Version(1+random.IntN(versions)), random.IntN(2) == 0, random.IntN(6) == 0)
		}
		switch {
		case checker == nil:
			checker = must(t, p, d, nil)
		case round%9 == 5: // the stream breaks, and changes are missed
			c.is(&c.away, true)
			rest(1500 * time.Millisecond)
			c.set(key.Version(1+random.IntN(versions)), random.IntN(2) == 0, false)
			c.is(&c.away, false)
		case round == 20: // an orderly restart
			if err := checker.Close(t.Context()); err != nil && !p.isDead() {
				t.Errorf("close: %v", err)
			}
			if !p.isDead() {
				checker = must(t, p, d, nil)
			}
		}
		rest(time.Duration(random.IntN(1500)) * time.Millisecond)
		if p.isDead() {
			break
		}
	}
	died := p.isDead()
	p.kill()
	c.is(&c.away, true)
	end(checker)
	rest(time.Duration(random.IntN(120)) * time.Second)
	survives(t, c, d)
	return died
}

func (p *process) isDead() bool {
	p.centre.mu.Lock()
	defer p.centre.mu.Unlock()
	return p.dead
}

// survives restarts the process without a server, and compares it with what was
// confirmed.
func survives(t *testing.T, c *centre, d *disk) {
	t.Helper()
	confirmed := c.confirms()
	p := &process{centre: c}
	d.process, d.killAt, d.slow = p, math.MaxInt, 0
	checker, err := p.open(d, nil)
	if err != nil {
		if confirmed != 0 {
			t.Errorf("revision %d was confirmed, and nothing of it is left: %v", confirmed, err)
		}
		return
	}
	defer end(checker)
	for v := key.Version(1); v <= 12; v++ {
		mayRefuse, mayLetIn := false, false
		for _, state := range c.states[confirmed:] { // what came later may be there or not
			accepted := state[v]
			mayLetIn, mayRefuse = mayLetIn || accepted, mayRefuse || !accepted
		}
		_, err := checker.Check(c.text(v), "")
		if err == nil && !mayLetIn {
			t.Errorf("version %d is let in, which is refused since revision %d at least", v, confirmed)
		}
		if err != nil && !mayRefuse {
			t.Errorf("version %d is good since revision %d at least: %v", v, confirmed, err)
		}
	}
}

// TestCacheFails: while nothing can be written keys are verified as ever and changes have
// their effect, but none is confirmed; that is told once. When it can be again, the last
// one is.
func TestCacheFails(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("from the first write on: %v", first), func(t *testing.T) {
			in(t, func(t *testing.T, c *centre, d *disk) {
				var log journal
				c.set(1, true, false)
				d.set(first)
				p := &process{centre: c}
				checker := must(t, p, d, func(config *apikeycheck.Config) { config.Logger = log.logger() })
				rest(10 * time.Second)
				want := uint64(0)
				if !first {
					want = 1
				}
				d.set(true)
				c.set(1, false, false)
				c.set(2, true, false)
				rest(5 * time.Minute)
				wantCheck(t, "while nothing can be written", checker, c.text(1), apikeycheck.ErrRefused)
				wantCheck(t, "while nothing can be written", checker, c.text(2), nil)
				if c.confirms() != want || !errors.Is(checker.CacheError(), errBroken) || log.count("cannot be kept") != 1 {
					t.Errorf("confirmed %d, want %d; %v; told %d times", c.confirms(), want, checker.CacheError(), log.count("cannot be kept"))
				}
				if d.failed < 4 || d.failed > 20 {
					t.Errorf("it was tried %d times", d.failed)
				}
				d.set(false)
				rest(2 * time.Minute)
				if c.confirms() != 3 || checker.CacheError() != nil || log.count("are kept in the cache again") != 1 {
					t.Errorf("confirmed %d, %v", c.confirms(), checker.CacheError())
				}
				p.kill()
				end(checker)
				c.is(&c.away, true)
				checker = must(t, &process{centre: c}, d, nil)
				wantCheck(t, "after a restart", checker, c.text(2), nil)
				wantCheck(t, "after a restart", checker, c.text(1), apikeycheck.ErrRefused)
				end(checker)
			})
		})
	}
}

// TestDamagedCache: a cache of which a byte is wrong, or a record missing, or doubled, is
// told of, not used, and replaced.
func TestDamagedCache(t *testing.T) {
	for name := range map[string]bool{apikeycheck.SecretRecord: true, "mark": true, "keys-00000001": true, "keys-00000002": true} {
		for what, damage := range map[string]func(d *disk){
			"flipped":  func(d *disk) { d.records[name][len(d.records[name])/2] ^= 4 },
			"missing":  func(d *disk) { delete(d.records, name) },
			"cut":      func(d *disk) { d.records[name] = d.records[name][:len(d.records[name])-1] },
			"in place": func(d *disk) { d.records["keys-00000003"] = d.records[name] },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				in(t, func(t *testing.T, c *centre, d *disk) {
					c.set(1, true, false)
					p := &process{centre: c}
					checker := must(t, p, d, nil)
					rest(time.Second)
					c.set(2, true, false)
					rest(time.Second)
					p.kill()
					end(checker)
					damage(d)
					var log journal
					c.is(&c.away, true)
					again := func(config *apikeycheck.Config) { config.Logger = log.logger() }
					p = &process{centre: c}
					if _, err := p.open(d, again); !errors.Is(err, context.DeadlineExceeded) || log.count("the cache of API keys is not used") != 1 {
						t.Fatalf("opened: %v, %s", err, log.b.String())
					}
					c.is(&c.away, false)
					checker = must(t, p, d, again)
					rest(time.Second)
					wantCheck(t, "fetched anew", checker, c.text(1), nil)
					end(checker)
					c.is(&c.away, true)
					checker = must(t, &process{centre: c}, d, nil)
					wantCheck(t, "and kept", checker, c.text(2), nil)
					end(checker)
				})
			})
		}
	}
}

// TestForeignCache: a cache of another verifier or of another centre is not used; of one
// that has got another address beside its old one it is.
func TestForeignCache(t *testing.T) {
	for what, one := range map[string]struct {
		change func(*apikeycheck.Config)
		used   bool
	}{
		"name":    {func(c *apikeycheck.Config) { c.Name = "other" }, false},
		"centre":  {func(c *apikeycheck.Config) { c.Address = "https://other.example" }, false},
		"address": {func(c *apikeycheck.Config) { c.Address = "https://other.example,https://centre.example" }, true},
	} {
		t.Run(what, func(t *testing.T) {
			in(t, func(t *testing.T, c *centre, d *disk) {
				c.set(1, true, false)
				p := &process{centre: c}
				checker := must(t, p, d, nil)
				rest(time.Second)
				p.kill()
				end(checker)
				c.is(&c.away, true)
				var log journal
				checker, err := (&process{centre: c}).open(d, func(config *apikeycheck.Config) {
					config.Logger = log.logger()
					one.change(config)
				})
				if (err == nil) != one.used || (log.count("of another verifier") == 0) != one.used {
					t.Errorf("%v, %s", err, log.b.String())
				}
				if err == nil {
					end(checker)
				}
			})
		})
	}
}

// TestRestartKeepsTheLeastMaxAge: a process that is started with a longer MaxAge than the
// one before goes by that one's until the server has heard of it, since nobody waits
// longer for it.
func TestRestartKeepsTheLeastMaxAge(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		c.set(1, true, false)
		p := &process{centre: c}
		checker := must(t, p, d, nil)
		rest(time.Second)
		p.kill()
		end(checker)
		c.is(&c.away, true)
		longer := func(config *apikeycheck.Config) { config.MaxAge = 24 * time.Hour }
		for range 2 { // the second time it is what the first one has noted
			p := &process{centre: c}
			checker = must(t, p, d, longer)
			rest(4 * time.Minute)
			wantCheck(t, "before the lesser one is over", checker, c.text(1), nil)
			p.kill()
			end(checker)
		}
		checker = must(t, &process{centre: c}, d, longer)
		rest(3 * time.Minute)
		wantCheck(t, "after it", checker, c.text(1), apikeycheck.ErrUnsure)
		c.is(&c.away, false)
		rest(time.Minute)
		c.is(&c.away, true)
		rest(time.Hour)
		wantCheck(t, "with the longer one", checker, c.text(1), nil)
		end(checker)
	})
}

// TestClockSetBackOverARestart: a cache of a time that is still to come lets nothing in.
func TestClockSetBackOverARestart(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		c.set(1, true, false)
		p := &process{centre: c}
		checker := must(t, p, d, nil)
		rest(time.Second)
		p.kill()
		end(checker)
		c.is(&c.away, true)
		back := func(config *apikeycheck.Config) { config.Now = func() time.Time { return time.Now().Add(-time.Hour) } }
		if _, err := (&process{centre: c}).open(d, back); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("opened: %v", err)
		}
		c.is(&c.away, false)
		checker = must(t, &process{centre: c}, d, back)
		wantCheck(t, "with a server", checker, c.text(1), nil)
		end(checker)
	})
}

// TestMarksAreCheap: while nothing changes there is one small write every five seconds,
// and a cache that is at most so far behind; when the server sends everything anew
// nothing is written for it.
func TestMarksAreCheap(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		for v := key.Version(1); v <= 500; v++ {
			c.set(v, true, false)
		}
		p := &process{centre: c}
		checker := must(t, p, d, nil)
		for range 10 {
			rest(time.Minute)
			c.is(&c.away, true)
			rest(2 * time.Second)
			c.is(&c.away, false)
		}
		rest(time.Minute)
		if d.wholes != 1 || d.updates > 140 || d.written/d.updates > 300 || c.streams < 10 {
			t.Errorf("in 11 minutes: %d whole tables, %d updates of %d bytes; %d streams", d.wholes, d.updates, d.written/d.updates, c.streams)
		}
		p.kill()
		end(checker)
		c.is(&c.away, true)
		checker = must(t, &process{centre: c}, d, nil)
		if age := checker.Age(); age > 7*time.Second {
			t.Errorf("the cache is %v old", age)
		}
		end(checker)
	})
}

// TestManyChanges: changes are written by themselves, and the table anew only when they
// have become half as much; what comes meanwhile is not lost.
func TestManyChanges(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		for v := key.Version(1); v <= 100; v++ {
			c.set(v, true, false)
		}
		p := &process{centre: c}
		checker := must(t, p, d, nil)
		rest(time.Second)
		c.set(1, false, false)
		rest(time.Second)
		if d.last > 600 || d.wholes != 1 {
			t.Errorf("one change has written %d bytes, and the table was written %d times", d.last, d.wholes)
		}
		for i := range 14_000 {
			c.set(key.Version(2+i%99), i%7 != 0, false)
			if i%100 == 0 {
				rest(time.Second)
			}
		}
		rest(time.Second)
		if d.wholes != 2 {
			t.Errorf("the table was written %d times", d.wholes)
		}
		p.kill()
		end(checker)
		c.is(&c.away, true)
		survives(t, c, d)
	})
}

// TestUsesSurvive: uses that could be reported to nobody are reported after the restart,
// once.
func TestUsesSurvive(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		c.set(1, true, false)
		checker := must(t, &process{centre: c}, d, nil)
		rest(time.Second)
		c.is(&c.away, true)
		for i := range 1200 {
			if _, err := checker.Check(c.text(1), fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := checker.Close(t.Context()); err != nil || c.told(1) != 0 {
			t.Errorf("closed: %v; %d uses were told", err, c.told(1))
		}
		checker = must(t, &process{centre: c}, d, nil)
		for range 7 {
			wantCheck(t, "without a server", checker, c.text(1), nil)
		}
		if err := checker.Close(t.Context()); err != nil {
			t.Error(err)
		}
		c.is(&c.away, false)
		for range 2 {
			p := &process{centre: c}
			checker = must(t, p, d, nil)
			rest(30 * time.Second)
			if c.told(1) != 1207 {
				t.Errorf("%d uses were told", c.told(1))
			}
			p.kill()
			end(checker)
		}
		if d.wholes != 1 {
			t.Errorf("the cache was not used: the table was written %d times", d.wholes)
		}
		d.set(true)
		checker = must(t, &process{centre: c}, d, nil)
		wantCheck(t, "again", checker, c.text(1), nil)
		c.is(&c.away, true)
		if err := checker.Close(t.Context()); err == nil {
			t.Error("uses are lost, and nobody hears of it")
		}
	})
}

// TestLeave: the cache of one that has left is empty before the server hears of it; with
// Close the server goes on waiting.
func TestLeave(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		left := func() bool { return slices.ContainsFunc(c.reports, func(r report) bool { return r.Leaving }) }
		c.set(1, true, false)
		checker := must(t, &process{centre: c}, d, nil)
		rest(time.Second)
		if err := checker.Close(t.Context()); err != nil || left() || len(d.records) == 0 {
			t.Errorf("closed: %v; left: %v; %d records", err, left(), len(d.records))
		}
		checker = must(t, &process{centre: c}, d, nil)
		rest(time.Second)
		d.set(true)
		if err := checker.Leave(t.Context()); !errors.Is(err, errBroken) || left() {
			t.Errorf("left although the cache could not be emptied: %v, %v", err, left())
		}
		d.set(false)
		if err := checker.Leave(t.Context()); err != nil || !left() || len(d.records) != 0 {
			t.Errorf("left: %v, %v; %d records", err, left(), len(d.records))
		}
	})
}

// TestStreamCountsFromWhenItWasAskedFor: the server noted this verifier before it sent a
// snapshot that takes long, and waits from then on.
func TestStreamCountsFromWhenItWasAskedFor(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		c.set(1, true, false)
		c.lag, c.deaf = 10*time.Second, true
		checker := must(t, &process{centre: c}, d, nil)
		rest(10*time.Minute - 15*time.Second)
		wantCheck(t, "before it is over", checker, c.text(1), nil)
		rest(10 * time.Second)
		wantCheck(t, "after it", checker, c.text(1), apikeycheck.ErrUnsure)
		end(checker)
	})
}

// TestSilentReports: a verifier whose reports are not taken lets in nothing after
// MaxAge, although it hears of every change: the server does not wait for it longer. A
// key that it does not know is then a new one, perhaps, after 12 s already.
func TestSilentReports(t *testing.T) {
	in(t, func(t *testing.T, c *centre, _ *disk) {
		c.set(1, true, false)
		p := &process{centre: c}
		checker, err := p.open(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		rest(time.Minute)
		c.is(&c.deaf, true)
		rest(10 * time.Second)
		wantCheck(t, "a moment after", checker, c.text(2), apikeycheck.ErrRefused)
		rest(5 * time.Second)
		wantCheck(t, "a little after", checker, c.text(2), apikeycheck.ErrUnsure)
		rest(9*time.Minute + 30*time.Second)
		wantCheck(t, "before MaxAge", checker, c.text(1), nil)
		rest(30 * time.Second)
		if checker.Age() > 2*time.Second || c.streams != 1 {
			t.Errorf("what it knows is %v old, by %d streams", checker.Age(), c.streams)
		}
		wantCheck(t, "after MaxAge", checker, c.text(1), apikeycheck.ErrUnsure)
		c.is(&c.deaf, false)
		rest(2 * time.Second)
		wantCheck(t, "when it reports again", checker, c.text(1), nil)
		end(checker)
	})
}

// TestStandingStill: a process that did not run for a while takes what was sent to it
// meanwhile for old, and asks anew.
func TestStandingStill(t *testing.T) {
	in(t, func(t *testing.T, c *centre, d *disk) {
		c.set(1, true, false)
		var stood atomic.Int64
		checker := must(t, &process{centre: c}, d, func(config *apikeycheck.Config) {
			config.Now = func() time.Time { return time.Now().Add(time.Duration(stood.Load())) }
		})
		for i, still := range []time.Duration{5 * time.Second, time.Minute} {
			rest(time.Minute + 500*time.Millisecond)
			before := c.streams
			stood.Add(int64(still))
			rest(550 * time.Millisecond) // the next mark
			if age := checker.Age(); i == 0 && age > time.Second || i == 1 && age < still {
				t.Errorf("after %v: what it knows is %v old", still, age)
			}
			rest(5 * time.Second)
			if asked := c.streams > before; asked != (i == 1) || checker.Age() > 2*time.Second {
				t.Errorf("after %v: asked anew: %v; %v old", still, asked, checker.Age())
			}
		}
		end(checker)
	})
}
