package real

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// The tests of this file are named after issues that users of other systems had
// to file.

// TestVault6042PasswordChangedOutsideButNeverStored: whenever the database first
// hears of a password, Keyturn can already hand it out, and the audit log knows
// of it (also vault#8782, and pull request 5461 of Infisical).
func TestVault6042PasswordChangedOutsideButNeverStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	g, reached, release := at(point{op: "accept", endpoint: "primary", version: 2})
	defer release()
	w.tap.stand(g)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "is it stored first?"})
	await(t, "the primary is about to hear of the password", reached)
	stored, err := w.control.GetSecret(t.Context(), &keyturnv1.GetSecretRequest{Name: keyName, Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	minted := w.tap.material(t, 2)
	if string(stored.GetSecrets()["password"]) != minted.Secrets["password"].RevealString() || stored.GetAttributes()["username"] != minted.Attributes["username"] {
		t.Error("what is stored is not what the database is about to hear")
	}
	if err := tryLogin(t.Context(), w.primary.Addr(), minted); !isRefused(err) {
		t.Errorf("the database knows the password already: %v", err)
	}
	log, err := w.control.ReadLog(t.Context(), &keyturnv1.ReadLogRequest{RotationId: id, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	says(t, "the audit log", strings.Join(log.GetEntries(), "\n"), `"action":"version.label"`, `"to":"pending"`, `"to":"accept-pending"`)
	release()
	w.finish(t, id, "done")
}

// TestVault28989FailingPasswordReplayedForEver: a password that the database will
// not take is tried once, a human is asked, and the next rotation brings another
// one (also teleport#17598).
func TestVault28989FailingPasswordReplayedForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 2)
	accept := point{op: "accept", endpoint: "primary", version: 2}
	w.tap.stand(func(_ context.Context, here point) error {
		if here == accept {
			return provider.Permanent(errors.New("the password was used before"), "begin a new rotation")
		}
		return nil
	})
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a password that is not taken"})
	r := w.held(t, id, "effect-failed")
	if !r.GetHold().GetHuman() {
		t.Error("no human is asked")
	}
	says(t, "the hold", r.GetHold().GetMessage(), "accept v2 at primary", "the password was used before", "begin a new rotation")
	w.paged(t, id, "effect-failed", "the password was used before")
	l.more(t, 50)
	if n := w.tap.calls(accept); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
	w.mustAccept(t, 1)
	w.steer(t, id, keyturnv1.SteerAction_STEER_ACTION_CANCEL)
	w.finish(t, id, "rolled-back")
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "another password"}), "done")
	if w.tap.material(t, 3).Secrets["password"].RevealString() == w.tap.material(t, 2).Secrets["password"].RevealString() {
		t.Error("the same password was minted again")
	}
	w.mustAccept(t, 3)
	l.check(t)
}

func (w *world) steer(t *testing.T, id string, action keyturnv1.SteerAction) {
	t.Helper()
	_, err := w.control.Steer(t.Context(), &keyturnv1.SteerRequest{RotationId: id, Action: action, Reason: "the test"})
	if err != nil {
		t.Fatal(err)
	}
}

// TestConjur741ImmediateRetryForEver: what fails is repeated after pauses that
// grow, and the rotation says what the trouble is.
func TestConjur741ImmediateRetryForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	accept := point{op: "accept", endpoint: "primary", version: 2}
	var mu sync.Mutex
	var tries []time.Time
	enough := make(chan struct{})
	w.tap.stand(func(_ context.Context, here point) error {
		if here != accept {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if tries = append(tries, time.Now()); len(tries) == 6 {
			close(enough)
		}
		return errors.New("too many connections")
	})
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a database that is busy"})
	await(t, "six tries", enough)
	says(t, "the hold", w.held(t, id, "effect-trouble").GetHold().GetMessage(), "primary does not accept v2 yet", "too many connections")
	w.tap.stand(nil)
	w.finish(t, id, "done")
	// The pauses double and are spread over their upper half: 50 to 100 ms, …, 0.8 to 1.6 s.
	for i := 1; i < 6; i++ {
		if gap, least := tries[i].Sub(tries[i-1]), 50*time.Millisecond<<(i-1); gap < least {
			t.Errorf("try %d came after %v, at least %v were due", i+1, gap, least)
		}
	}
}

// TestVault29125ThePrimaryMoved: the primary is somewhere else in the middle of a
// rotation. The key's document is applied anew, and the rotation goes on.
func TestVault29125ThePrimaryMoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 2)
	w.apply(t, strings.Replace(w.keyDocument("127.0.0.1:9"), "sslmode=disable", "sslmode=disable&connect_timeout=1", 1)) // nobody is there
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the primary moved"})
	r := w.wait(t, id, func(r *keyturnv1.Rotation) bool {
		_, messages := waitsFor(r)
		return strings.Contains(messages, "127.0.0.1:9")
	})
	if r.GetPhase() != "planned" {
		t.Errorf("it is %s", r.GetPhase())
	}
	w.apply(t, w.keyDocument(w.primary.Addr()))
	w.finish(t, id, "done")
	w.mustAccept(t, 2)
	w.mustRefuse(t, 1)
	l.check(t)
}

// TestYuzu3015ConfirmedWithoutProof: a system says that it accepts a version, and
// does not. Nobody is told to use it.
func TestYuzu3015ConfirmedWithoutProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	l := w.fleet(t, 2)
	w.tap.lie("accept")
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a database that lies"})
	r := w.held(t, id, "verifier-contradicts")
	if !r.GetHold().GetHuman() || r.GetPhase() != "accepting" {
		t.Errorf("it is %s, waiting for a human: %v", r.GetPhase(), r.GetHold().GetHuman())
	}
	says(t, "the hold", r.GetHold().GetMessage(), "v2", "says one thing")
	w.paged(t, id, "verifier-contradicts", "primary", w.standby.Addr())
	if timeline := w.timeline(t, id); strings.Contains(timeline, "presenter.told") {
		t.Errorf("somebody was told:\n%s", timeline)
	}
	w.tap.lie("")
	w.steer(t, id, keyturnv1.SteerAction_STEER_ACTION_RESUME)
	w.finish(t, id, "done")
	w.mustAccept(t, 2)
	l.check(t)
}

// TestSvelteLanggraph284RemovedKeyStillAccepted: a system says that it refuses a
// version, and does not. The rotation does not end as if it had.
func TestSvelteLanggraph284RemovedKeyStillAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	w.tap.lie("refuse")
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a database that lies"})
	r := w.held(t, id, "verifier-contradicts")
	if !r.GetHold().GetHuman() || r.GetPhase() != "revoking" {
		t.Errorf("it is %s, waiting for a human: %v", r.GetPhase(), r.GetHold().GetHuman())
	}
	says(t, "the hold", r.GetHold().GetMessage(), "v1", "says one thing")
	w.mustAccept(t, 1)
	w.tap.lie("")
	w.steer(t, id, keyturnv1.SteerAction_STEER_ACTION_RESUME)
	w.finish(t, id, "done")
	w.mustRefuse(t, 1)
}

// lie makes the system say that it did something without doing it.
func (d *tap) lie(op string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lying = op
}

// TestVaultSecretsOperator1228TwoRotationsInOneSecond: two rotations are asked for
// at once. Neither is lost silently: one is refused in so many words, and in the
// end everybody uses what is current.
func TestVaultSecretsOperator1228TwoRotationsInOneSecond(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	a := w.agentApp(t, "agent-0", "canary", "eu", "")
	w.settled(t, "agent-0", 1)
	var asking sync.WaitGroup
	ids := make([]string, 2)
	refusals := make([]error, 2)
	for i := range ids {
		asking.Go(func() {
			response, err := w.control.Rotate(t.Context(), &keyturnv1.RotateRequest{Name: keyName, Reason: "both at once"})
			refusals[i], ids[i] = err, response.GetRotationId()
		})
	}
	asking.Wait()
	begun := 0
	for i, err := range refusals {
		if err == nil {
			begun++
			w.finish(t, ids[i], "done")
			continue
		}
		says(t, "the refusal", err.Error(), "wait for it, or cancel it")
		if connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("the code is %v", connect.CodeOf(err))
		}
	}
	if begun == 0 {
		t.Fatalf("none was begun: %v", refusals)
	}
	// The one that follows at once finds no trace of the one before.
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "and another"}), "done")
	now := w.current(t)
	w.settled(t, "agent-0", now)
	file, err := readAppFile(a.file())
	if err != nil || file.Password != w.tap.material(t, key.Version(now)).Secrets["password"].RevealString() {
		t.Errorf("the file does not hold version %d: %v", now, err)
	}
}

// TestVaultSecretsOperator285RestartOfTheServerRestartsEveryApplication: nothing
// is delivered anew when the server restarts, nor when the agent does, and no
// rotation begins by it (also vault#30687, #30320 and #29537).
func TestVaultSecretsOperator285RestartOfTheServerRestartsEveryApplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "spec:", "spec:\n  rotate: {every: 30d}"))
	w.first(t)
	a := w.agentApp(t, "agent-0", "canary", "eu", "")
	w.settled(t, "agent-0", 1)
	sdk := w.open(t, "app-1", "rest", "us")
	changes, stop := sdk.Changes()
	defer stop()
	for range 3 {
		w.stop(t)
		w.start(t)
		w.connected(t, "agent-0")
		w.connected(t, "app-1")
	}
	a.stop(t)
	a.startAgent(t)
	w.connected(t, "agent-0")
	select {
	case change := <-changes:
		t.Errorf("the SDK client was told of %v anew", change.Version)
	default:
	}
	list, err := w.control.ListRotations(t.Context(), &keyturnv1.ListRotationsRequest{Key: keyName})
	if err != nil || len(list.GetRotations()) != 1 {
		t.Errorf("there are %d rotations, %v", len(list.GetRotations()), err)
	}
	// It still works.
	w.finish(t, w.rotate(t, &keyturnv1.RotateRequest{Reason: "after the restarts"}), "done")
	w.settled(t, "agent-0", 2)
	a.endApplication(t)
	if a.result.Reloads != 2 {
		t.Errorf("the application was told %d times, of its first version and of its second it should have been", a.result.Reloads)
	}
}

// connected waits until a party has its stream.
func (w *world) connected(t *testing.T, id string) {
	t.Helper()
	eventually(t, id+" is connected", func() bool {
		response, err := w.control.ListParties(t.Context(), &keyturnv1.ListPartiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range response.GetParties() {
			if p.GetParty().GetId() == id && p.GetConnected() {
				return true
			}
		}
		return false
	})
}

// TestTeleport46547JoiningInMidRotation: whoever joins while a rotation is under
// way works at once, with the version of the stage it belongs to.
func TestTeleport46547JoiningInMidRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quickPolicy)
	w.first(t)
	canary := w.node(t, "canary-0", "canary", "eu")
	stop := canary.run(nil)
	w.settled(t, "canary-0", 1)
	stop()
	l := w.fleet(t, 3)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "the canary is slow"})
	w.wait(t, id, func(r *keyturnv1.Rotation) bool { return r.GetStage() == "canary" })
	for cohort, version := range map[string]key.Version{"canary": 2, "rest": 1} {
		late := w.application(t, l, "late-"+cohort, cohort, "us")
		if got := late.Current().Version; got != version {
			t.Errorf("whoever joins %s is told %v, not %v", cohort, got, version)
		}
	}
	l.more(t, 50)
	defer canary.run(nil)()
	w.finish(t, id, "done")
	w.settled(t, "late-rest", 2)
	l.check(t)
}

// TestArgoRollouts1905NoDataIsNoVerdict: a canary that says nothing is not judged
// to be well; the rotation holds until it speaks (also argo-rollouts#1466).
func TestArgoRollouts1905NoDataIsNoVerdict(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "  drain:", "  judge: [{name: log-ins, signal: auth_failures, max: 0}]\n  drain:",
		`"canary"', bake: 0s`, `"canary"', bake: 100ms`))
	w.first(t)
	canary := w.node(t, "canary-0", "canary", "eu")
	defer canary.run(nil)()
	w.settled(t, "canary-0", 1)
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a silent canary"})
	r := w.held(t, id, "no-data")
	says(t, "the hold", r.GetHold().GetMessage(), "canary-0 has not reported yet")
	w.mustAccept(t, 1)
	canary.report(t, client.Sample{Key: keyName, Version: 2, Attempts: 3, Healthy: true})
	w.finish(t, id, "done")
	says(t, "the timeline", w.timeline(t, id), "no-data is over")

	// One that says that log-ins fail stops the rotation (argo-rollouts#1411).
	id = w.rotate(t, &keyturnv1.RotateRequest{Reason: "a canary whose log-ins fail"})
	w.held(t, id, "no-data")
	canary.report(t, client.Sample{Key: keyName, Version: 3, Attempts: 3, AuthFailures: 1, Healthy: true})
	r = w.finish(t, id, "rolled-back")
	says(t, "the reason", r.GetReason(), "stage canary failed", "1 authentication failures, 0 are allowed")
	w.mustAccept(t, 2)
	w.mustRefuse(t, 3)
}

func (n *node) report(t *testing.T, sample client.Sample) {
	t.Helper()
	if err := n.client.Report(t.Context(), []client.Sample{sample}); err != nil {
		t.Fatal(err)
	}
}

// TestArgoRollouts2866PauseNotAbort: where the policy says so a failing stage
// holds, with the canary on the version it can use, until a human has decided.
func TestArgoRollouts2866PauseNotAbort(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "  drain:", "  onFailure: hold\n  drain:"))
	w.first(t)
	l := w.fleet(t, 3)
	var mu sync.Mutex
	sick := true
	patient := w.open(t, "patient", "canary", "eu")
	defer patient.OnApply(func(context.Context, client.Credential) error {
		mu.Lock()
		defer mu.Unlock()
		if sick {
			return errors.New("not yet")
		}
		return nil
	})()
	id := w.rotate(t, &keyturnv1.RotateRequest{Reason: "a canary that needs help"})
	r := w.held(t, id, "stage-failed")
	if !r.GetHold().GetHuman() || r.GetPhase() != "presenting" {
		t.Errorf("it is %s, waiting for a human: %v", r.GetPhase(), r.GetHold().GetHuman())
	}
	says(t, "the hold", r.GetHold().GetMessage(), "patient", "not yet")
	mu.Lock()
	sick = false
	mu.Unlock()
	w.steer(t, id, keyturnv1.SteerAction_STEER_ACTION_RESUME)
	w.finish(t, id, "done")
	l.check(t)
}

// TestVault21935ScheduleGoesOnAfterARestart: scheduled rotations do not silently
// stop (also vault#7502 and #21857).
func TestVault21935ScheduleGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, vary(t, "spec:", "spec:\n  rotate: {every: 2s, jitter: 0s}"))
	w.first(t)
	l := w.fleet(t, 2)
	from := w.current(t)
	for range 2 {
		eventually(t, "the schedule rotates", func() bool { return w.current(t) > from })
		w.stop(t)
		w.start(t)
		from = w.current(t)
	}
	eventually(t, "the schedule rotates after the restarts", func() bool { return w.current(t) > from })
	l.check(t)
}
