package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/keyturn/keyturn/internal/server"
)

// Options say how to run the demonstration.
type Options struct {
	// Progress takes what happens, for people; nil discards it.
	Progress io.Writer
	// Live: Progress is a terminal, on which a line can be written again.
	Live bool
	// Target is "postgresql" or "http-api-keys"; empty chooses.
	Target string
	// Applications is the size of the fleet. Default: 12.
	Applications int
}

// Summary is the outcome.
type Summary struct {
	// Target is what was rotated, Why why it was chosen.
	Target string `json:"target"`
	Why    string `json:"why"`
	// Rotations that were begun, and how many of them were rolled back.
	Rotations  int `json:"rotations"`
	RolledBack int `json:"rolled_back"`
	// Applications in the fleet; Requests they made, and those that failed.
	Applications   int   `json:"applications"`
	Requests       int64 `json:"requests"`
	FailedRequests int64 `json:"failed_requests"`
	// PropagationP99 is within how many milliseconds of its publication 99 % of the
	// new versions were in use, over Propagations of them.
	PropagationP99 float64 `json:"propagation_ms_p99"`
	Propagations   int     `json:"propagations"`
	// RollbackMS is how long it took, after the canary failed, until every
	// application was back on the version before, in milliseconds.
	RollbackMS float64 `json:"rollback_ms"`
	// AuditEntries were verified if AuditVerified.
	AuditEntries  uint64 `json:"audit_entries"`
	AuditVerified bool   `json:"audit_verified"`
	// Seconds the demonstration took.
	Seconds float64 `json:"seconds"`
	// Failures names what went wrong; empty when all is well.
	Failures []string `json:"failures,omitempty"`
}

// limit bounds the whole demonstration.
const limit = 85 * time.Second

// Run runs the demonstration. The summary is complete as far as it came, also
// with an error.
func Run(ctx context.Context, options Options) (summary Summary, err error) {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if options.Applications == 0 {
		options.Applications = 12
	}
	if options.Progress == nil {
		options.Progress = io.Discard
	}
	show := newDisplay(options.Progress, options.Live)
	defer func() {
		show.close()
		summary.Seconds = time.Since(started).Seconds()
		if err != nil {
			summary.Failures = append(summary.Failures, err.Error())
		} else if len(summary.Failures) > 0 {
			err = errors.New("the demonstration did not go as it should: " + summary.Failures[0])
		}
	}()
	dir, err := os.MkdirTemp("", "keyturn-demo-")
	if err != nil {
		return summary, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	target, why, err := chooseTarget(ctx, options.Target, dir, show)
	if err != nil {
		return summary, err
	}
	defer func() { err = errors.Join(err, target.close()) }()
	summary.Target, summary.Why, summary.Applications = target.name(), why, options.Applications
	err = runOn(ctx, dir, target, options, show, &summary)
	return summary, err
}

func runOn(ctx context.Context, dir string, target target, options Options, show *display, summary *Summary) (err error) {
	logs, err := os.OpenFile(filepath.Join(dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	show.step("Starting a server on embedded SQLite")
	begun := time.Now()
	srv, err := server.Start(ctx, server.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(dir, "server"), Limits: server.LimitsConfig{PerSecond: 5000, Burst: 20_000},
	}, server.Options{Drivers: target.drivers(), LogTo: logs})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, srv.Stop(ctx))
	}()
	show.say("ready at %s after %v", srv.Address(), time.Since(begun).Round(time.Millisecond))
	operator, err := newOperator(ctx, srv, show)
	if err != nil {
		return err
	}
	defer operator.close()
	if err := operator.apply(ctx, policyDocument("")+target.keyDocument()); err != nil {
		return err
	}
	show.step("Minting the first version")
	if err := operator.rotate(ctx, "first version", false, "done"); err != nil {
		return err
	}
	summary.Rotations++
	fleet, err := startFleet(ctx, operator, target, options.Applications)
	if err != nil {
		return err
	}
	defer fleet.close()
	show.follow(fleet)
	show.step("%d applications in 3 cohorts and 2 regions are at work, opening new connections all the time", options.Applications)
	err = story(ctx, operator, target, fleet, show, summary)
	fleet.close()
	summary.take(fleet)
	if verifyErr := operator.verifyLog(ctx, srv.VerifierKey(), summary); verifyErr != nil {
		err = errors.Join(err, verifyErr)
	}
	return err
}

// story is what the demonstration tells.
func story(ctx context.Context, operator *operator, target target, fleet *fleet, show *display, summary *Summary) error {
	show.step("1. A rotation is due, and begins by itself: canary, first wave, the rest")
	if err := operator.scheduled(ctx, target); err != nil {
		return err
	}
	summary.Rotations++
	show.step("2. A rotation whose canary fails its health check")
	fleet.breakCanary()
	if err := operator.rotate(ctx, "with a canary that fails", false, "rolled-back"); err != nil {
		return err
	}
	fleet.mendCanary()
	summary.Rotations++
	summary.RolledBack++
	summary.RollbackMS = operator.rollback.Seconds() * 1000
	if n := fleet.toldWhileBroken(); n > 0 {
		summary.Failures = append(summary.Failures, fmt.Sprintf("%d applications outside the canary were given the failing version", n))
	}
	show.step("3. An emergency: the current version has leaked")
	if err := operator.rotate(ctx, "leaked in a demonstration", true, "done"); err != nil {
		return err
	}
	summary.Rotations++
	return nil
}

// take adds what the fleet saw.
func (s *Summary) take(f *fleet) {
	s.Requests, s.FailedRequests = f.requests.Load(), f.failures.Load()
	s.PropagationP99, s.Propagations = f.propagation(0.99)
	if s.Requests == 0 {
		s.Failures = append(s.Failures, "no request was made")
	}
	if s.FailedRequests > 0 {
		s.Failures = append(s.Failures, fmt.Sprintf("%d requests failed: %v", s.FailedRequests, f.firstErrors()))
	}
	if s.Propagations == 0 {
		s.Failures = append(s.Failures, "no propagation was measured")
	}
}
