package server_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// TestStreamsEndWithTheirToken: what is open when a token expires ends then, long
// before the next heartbeat, and says why.
func TestStreamsEndWithTheirToken(t *testing.T) {
	t.Parallel()
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	rotation, err := w.control(w.root).Rotate(t.Context(), &keyturnv1.RotateRequest{Name: "prod/db"}) // it waits for an approval
	if err != nil {
		t.Fatal(err)
	}
	const lifetime = 2 * time.Second
	begun := time.Now()
	issue := func(name, role string) string {
		t.Helper()
		answer, err := w.control(w.root).CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{
			Name: name, Role: role, Keys: []string{"**"}, Lifetime: durationpb.New(lifetime),
		})
		if err != nil {
			t.Fatal(err)
		}
		return answer.GetToken()
	}
	agent, viewer := issue("agents", "agent"), issue("viewers", "viewer")
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second) // a heartbeat is 15 s
	defer cancel()
	stream, err := w.watched(t, ctx, agent, watchOf("agents/a", "dev/db"))
	if err != nil {
		t.Fatal(err)
	}
	watch, err := w.control(viewer).WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: rotation.GetRotationId()})
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	polled := make(chan error, 1)
	go func() {
		request := watchOf("agents/b", "dev/db")
		_, err := w.delivery(agent).Poll(ctx, &keyturnv1.PollRequest{Party: request.GetParty(), Keys: request.GetKeys(), Wait: durationpb.New(10 * time.Second)})
		polled <- err
	}()
	for stream.Receive() {
	}
	if early := lifetime - time.Since(begun); early > 0 {
		t.Errorf("it ended %v too early", early)
	}
	wantCode(t, "a party's stream", stream.Err(), connect.CodeUnauthenticated)
	if !strings.Contains(fmt.Sprint(stream.Err()), "it expired on") {
		t.Errorf("why is not told: %v", stream.Err())
	}
	for watch.Receive() {
	}
	wantCode(t, "an operator's stream", watch.Err(), connect.CodeUnauthenticated)
	wantCode(t, "a party's poll", <-polled, connect.CodeUnauthenticated)
}
