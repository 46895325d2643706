package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/secret"
	"golang.org/x/mod/sumdb/note"
)

// keyName is the key that the demonstration rotates.
const keyName = "demo/orders/db"

// policyDocument is the policy, with an optional schedule.
func policyDocument(schedule string) string {
	return `apiVersion: keyturn/v1
kind: Policy
metadata: {name: demo}
spec:
` + schedule + `  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"', bake: 1s, ackTimeout: 10s}
    - {name: wave, match: 'party.labels.cohort == "wave"', bake: 500ms, ackTimeout: 10s}
    - {name: rest, bake: 500ms, ackTimeout: 10s}
  judge: [{name: auth-failures, signal: auth_failures, max: 0}]
  drain: {min: 0s, quiet: 500ms, max: 30s, every: 200ms}
  quarantine: 500ms
  endQuarantineEarly: true
  emergency: {strategy: replace-first, grace: 10s}
---
`
}

// operator talks to the server as an administrator would.
type operator struct {
	server    *server.Server
	control   keyturnv1connect.ControlServiceClient
	transport *http.Transport
	roots     *x509.CertPool
	token     secret.Value
	show      *display
	// rollback is how long the last roll-back took to restore service.
	rollback time.Duration
}

func newOperator(ctx context.Context, srv *server.Server, show *display) (*operator, error) {
	token, err := os.ReadFile(srv.TokenFile())
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(srv.CAFile())
	if err != nil {
		return nil, err
	}
	o := &operator{server: srv, show: show, roots: x509.NewCertPool(), token: secret.New(bytes.TrimSpace(token))}
	o.roots.AppendCertsFromPEM(pem)
	o.transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: o.roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	o.control = keyturnv1connect.NewControlServiceClient(&http.Client{Transport: bearer{o.token, o.transport}}, srv.Address())
	return o, ctx.Err()
}

func (o *operator) close() { o.transport.CloseIdleConnections() }

// bearer adds the token to every call.
type bearer struct {
	token secret.Value
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token.RevealString())
	return b.next.RoundTrip(r)
}

// fleetToken makes the token that the applications use.
func (o *operator) fleetToken(ctx context.Context) (secret.Value, error) {
	response, err := o.control.CreateToken(ctx, &keyturnv1.CreateTokenRequest{Name: "demo", Role: "agent", Keys: []string{"demo/**"}})
	return secret.NewString(response.GetToken()), err
}

func (o *operator) apply(ctx context.Context, documents string) error {
	response, err := o.control.Apply(ctx, &keyturnv1.ApplyRequest{Documents: []*keyturnv1.Document{{Name: "demo.yaml", Content: []byte(documents)}}})
	if err != nil {
		return err
	}
	for _, p := range response.GetProblems() {
		if p.GetSeverity() == "error" {
			return fmt.Errorf("%s:%d: %s: %s", p.GetFile(), p.GetLine(), p.GetPath(), p.GetMessage())
		}
	}
	return nil
}

// rotate rotates and fails unless the rotation ends in the given phase.
func (o *operator) rotate(ctx context.Context, reason string, emergency bool, want string) error {
	response, err := o.control.Rotate(ctx, &keyturnv1.RotateRequest{Name: keyName, Reason: reason, Emergency: emergency})
	if err != nil {
		return err
	}
	return o.watch(ctx, response.GetRotationId(), want)
}

// scheduled gives the key a schedule, waits for the rotation that becomes due,
// and takes the schedule away again.
func (o *operator) scheduled(ctx context.Context, target target) error {
	before, err := o.latest(ctx)
	if err != nil {
		return err
	}
	if err := o.apply(ctx, policyDocument("  rotate: {every: 8s, jitter: 0s}\n")+target.keyDocument()); err != nil {
		return err
	}
	o.show.say("keyturn apply: the cryptoperiod is 8 s from now on; waiting for it")
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("no rotation began by itself: %w", ctx.Err())
		case <-ticker.C:
		}
		id, err := o.latest(ctx)
		if err != nil {
			return err
		}
		if id != before {
			if err := o.apply(ctx, policyDocument("")+target.keyDocument()); err != nil {
				return err
			}
			return o.watch(ctx, id, "done")
		}
	}
}

func (o *operator) latest(ctx context.Context) (string, error) {
	response, err := o.control.ListRotations(ctx, &keyturnv1.ListRotationsRequest{Key: keyName, PageSize: 1})
	if err != nil || len(response.GetRotations()) == 0 {
		return "", err
	}
	return response.GetRotations()[0].GetId(), nil
}

// watch shows a rotation until it has ended.
func (o *operator) watch(ctx context.Context, id, want string) error {
	stream, err := o.control.WatchRotation(ctx, &keyturnv1.WatchRotationRequest{Id: id})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // everything wanted was received
	var last *keyturnv1.Rotation
	var failedAt time.Time
	for stream.Receive() {
		last = stream.Msg().GetRotation()
		o.show.rotation(last)
		if last.GetPhase() == "rolling-back" && failedAt.IsZero() {
			failedAt = last.GetPhaseSince().AsTime()
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if last.GetPhase() != want {
		return fmt.Errorf("rotation %s ended as %s, not as %s: %s", id, last.GetPhase(), want, last.GetReason())
	}
	if !failedAt.IsZero() {
		o.rollback = last.GetEndedAt().AsTime().Sub(failedAt)
	}
	return nil
}

// verifyLog exports the audit log and verifies it as an auditor would, offline.
func (o *operator) verifyLog(ctx context.Context, verifierKey string, summary *Summary) error {
	o.show.step("Verifying the audit log offline")
	stream, err := o.control.ExportLog(ctx, &keyturnv1.ExportLogRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // everything wanted was received
	var bundle bytes.Buffer
	for stream.Receive() {
		bundle.Write(stream.Msg().GetPiece())
	}
	if err := stream.Err(); err != nil {
		return err
	}
	verifier, err := audit.ParseVerifier(verifierKey)
	if err != nil {
		return err
	}
	report, err := audit.VerifyBundle(&bundle, audit.Options{Verifiers: []note.Verifier{verifier}})
	if err != nil {
		return err
	}
	summary.AuditEntries, summary.AuditVerified = report.Entries, report.Entries > 0 && report.Proven == report.Entries
	if !summary.AuditVerified {
		return errors.New("the audit log is not covered by signed checkpoints")
	}
	o.show.say("%d entries, signed and complete: root %s", report.Entries, strings.TrimRight(report.Root.String(), "="))
	return nil
}
