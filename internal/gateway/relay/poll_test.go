package relay_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

// ask polls as a client of the gateway.
func (w *world) ask(token string, knows uint64, wait time.Duration) ([]*keyturnv1.Assignment, error) {
	http1, closeIdle := w.down.client()
	defer closeIdle()
	ctx, info := connect.NewClientContext(context.WithoutCancel(w.ctx))
	info.RequestHeader().Set("Authorization", "Bearer "+token)
	answer, err := keyturnv1connect.NewDeliveryServiceClient(http1, "http://127.0.0.1:2").Poll(ctx, &keyturnv1.PollRequest{
		Party: &keyturnv1.Party{Id: "poller", Kind: keyturnv1.PartyKind_PARTY_KIND_CLIENT},
		Keys:  []*keyturnv1.Known{{Key: string(db), Version: knows, Epoch: knows * 100}}, Wait: durationpb.New(wait),
	})
	return answer.GetAssignments(), err
}

// TestPolls: who polls is served as who streams is.
func TestPolls(t *testing.T) {
	run(t, func(w *world) {
		got, err := w.ask(tok, 0, 0)
		if err != nil || len(got) != 1 || got[0].GetVersion() != 1 {
			t.Fatalf("the centre: %v, %v", got, err)
		}
		if _, err := w.ask("kt_bad_x", 0, 0); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("a bad token: %v", err)
		}
		after(5 * time.Second)
		w.centre.mu.Lock()
		w.centre.busy = make(chan struct{})
		w.centre.mu.Unlock()
		began := time.Now()
		got, err = w.ask(tok, 0, 0)
		if err != nil || len(got) != 1 || time.Since(began) > 2500*time.Millisecond {
			t.Errorf("a centre that is late: %v, %v after %v", got, err, time.Since(began))
		}
		w.stopCentre()
		after(5 * time.Second)
		w.centre.mu.Lock()
		close(w.centre.busy)
		w.centre.busy = nil
		w.centre.mu.Unlock()
		began = time.Now()
		if got, err = w.ask(tok, 0, 0); err != nil || len(got) != 1 || string(got[0].GetSecrets()["password"]) != "prod/db-1" || time.Since(began) > 0 {
			t.Errorf("without the centre: %v, %v after %v", got, err, time.Since(began))
		}
		if _, err := w.ask("kt_bad_x", 0, 0); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("a token that nobody knows: %v", err)
		}
		began = time.Now()
		if got, err = w.ask(tok, 1, 20*time.Second); err != nil || len(got) != 0 || time.Since(began) != 20*time.Second {
			t.Errorf("nothing new: %v, %v after %v", got, err, time.Since(began))
		}
		time.AfterFunc(5*time.Second, w.startCentre)
		began = time.Now()
		if got, err = w.ask(tok, 1, 50*time.Second); err != nil || len(got) != 0 || time.Since(began) > 10*time.Second {
			t.Errorf("the centre is back: %v, %v after %v", got, err, time.Since(began))
		}
		w.centre.rotate("prod/db")
		if got, err = w.ask(tok, 1, 0); err != nil || len(got) != 1 || got[0].GetVersion() != 2 {
			t.Errorf("a new version: %v, %v", got, err)
		}
		after(5 * time.Second)
		if got := w.centre.handedOut(); len(got) != 1 || got[0] != "app poller prod/db 1 x2 10.0.0.7" {
			t.Errorf("the centre was told of %v", got)
		}
	})
}

// TestStreamsDoNotGetThrough: the gateway's own party polls where it must.
func TestStreamsDoNotGetThrough(t *testing.T) {
	run(t, func(w *world) {
		w.centre.mu.Lock()
		w.centre.mute = true
		w.centre.mu.Unlock()
		if _, err := w.ask(tok, 0, 0); err != nil {
			t.Fatal(err)
		}
		after(20 * time.Second)
		if s := w.relay.Stats(); s.Keys != 1 || !w.centre.acked("gw", "prod/db", 1) {
			t.Errorf("%+v", s)
		}
		w.centre.rotate("prod/db")
		after(2 * time.Minute)
		if !w.centre.acked("gw", "prod/db", 2) {
			t.Error("the gateway did not follow")
		}
		w.centre.mu.Lock()
		w.centre.mute = false
		w.centre.mu.Unlock()
		after(10 * time.Minute)
		w.centre.mu.Lock()
		defer w.centre.mu.Unlock()
		if w.centre.streams["gw"] == nil {
			t.Error("the gateway does not try the stream again")
		}
	})
}
