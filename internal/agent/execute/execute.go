package execute

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/harden"
	"github.com/keyturn/keyturn/key"
)

// Run waits for the credentials, runs the program, and keeps it supplied until
// it ends. It returns the program's exit code, or an error when it never ran:
// the error wraps ErrOptions, ErrNoCredential or ErrStart.
//
// When ctx ends, the program gets SIGTERM, and SIGKILL after KillAfter. A signal
// out of Signals is forwarded, and Run goes on until the program ends.
func Run(ctx context.Context, o Options) (exitCode int, err error) {
	p, err := newPlan(o)
	if err != nil {
		return 0, err
	}
	if !o.Dumpable {
		if err := harden.Process(); err != nil {
			return 0, err
		}
	}
	s := &supervisor{plan: p, changes: make(chan change), ended: make(chan struct{})}
	if p.OnChange != Restart && len(p.Files) > 0 {
		if s.dir, err = newSharedDir(); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, s.dir.remove()) }()
	}
	// The watch outlives ctx until the program has ended, so that its last
	// outcome is still sent.
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if err := p.Delivery.Watch(watching, s.known(), s.handle); err != nil && watching.Err() == nil {
			p.Logger.ErrorContext(watching, "no further credentials will arrive", "error", err)
		}
	}()
	defer func() {
		close(s.ended)
		stop()
		s.acks.Wait()
		<-watched
	}()
	defer takeTerminal(p.Stdin)
	return s.run(ctx)
}

// ackTimeout bounds acknowledgements that Run waits for at its end.
const ackTimeout = 5 * time.Second

// change is a call of handle.
type change struct {
	batch []client.Assignment
	// reply has room for the outcomes.
	reply chan<- []client.Outcome
}

// supervisor runs one program. All but handle is used by one goroutine.
type supervisor struct {
	*plan
	changes chan change
	// ended is closed when run has returned.
	ended chan struct{}
	dir   *sharedDir

	acks  sync.WaitGroup
	child *child
	// desired is the newest of each key, using what is acknowledged, and given
	// what the child was started with.
	desired, using, given credentials
	// stopping: the program was told to end, it is not started again.
	stopping bool
}

func (s *supervisor) known() []client.Known {
	out := make([]client.Known, len(s.keys))
	for i, k := range s.keys {
		out[i] = client.Known{Key: k}
	}
	return out
}

// handle is the client.HandleFunc.
func (s *supervisor) handle(ctx context.Context, batch []client.Assignment) []client.Outcome {
	reply := make(chan []client.Outcome, 1)
	select {
	case s.changes <- change{batch, reply}:
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return nil
	}
	select {
	case out := <-reply:
		return out
	case <-s.ended:
	}
	select {
	case out := <-reply: // it was given at the very end
		return out
	default:
		return nil
	}
}

// run is the life of the program.
func (s *supervisor) run(ctx context.Context) (int, error) {
	s.desired = make(credentials)
	first, early, err := s.await(ctx)
	if err != nil {
		return 0, err
	}
	if s.stopping {
		return 128 + int(syscall.SIGTERM), nil
	}
	if err := s.launch(s.desired); err != nil {
		return 0, err
	}
	s.using = maps.Clone(s.desired)
	if err := s.settle(ctx); err == nil || s.child.exited() && s.child.code() == 0 {
		first.reply <- s.outcomes(first.batch, nil)
		s.acknowledge(ctx, s.outcomes(early, nil))
	} else {
		// There is no version to go back to, and it may have failed for any reason.
		s.Logger.WarnContext(ctx, "the program did not settle with its first credentials", "error", err)
		close(first.reply)
	}
	for {
		select {
		case <-s.child.done:
			s.child.group(syscall.SIGKILL)
			return s.child.code(), nil
		case sig := <-s.Signals:
			s.forward(sig)
		case <-ctx.Done():
			s.stop()
			return s.child.code(), nil
		case c := <-s.changes:
			if err := s.take(ctx, c); err != nil {
				return 0, err
			}
		}
	}
}

// launch starts the program.
func (s *supervisor) launch(c credentials) error {
	fresh, err := s.spawn(c, s.dir)
	if err != nil {
		return err
	}
	s.child, s.given = fresh, maps.Clone(c)
	return nil
}

// acknowledge sends outcomes that no call can return any more.
func (s *supervisor) acknowledge(ctx context.Context, outcomes []client.Outcome) {
	if len(outcomes) == 0 {
		return
	}
	s.acks.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
		defer cancel()
		if err := s.Delivery.Ack(ctx, outcomes); err != nil {
			s.Logger.ErrorContext(ctx, "outcomes are not acknowledged", "error", err)
		}
	})
}

// await collects credentials until every key is there. The last call is left to
// be answered; what came with the calls before is returned as early.
func (s *supervisor) await(ctx context.Context) (last change, early []client.Assignment, err error) {
	timer := time.NewTimer(s.Wait)
	defer timer.Stop()
	for {
		select {
		case c := <-s.changes:
			for _, a := range c.batch {
				s.desired[a.Key] = a
			}
			if len(s.missing()) == 0 {
				return c, early, nil
			}
			early = append(early, c.batch...)
			close(c.reply) // not acknowledged: nobody uses them yet
		case sig := <-s.Signals:
			if ends(sig) {
				s.stopping = true
				return change{}, nil, nil
			}
		case <-ctx.Done():
			s.stopping = true
			return change{}, nil, nil
		case <-timer.C:
			return change{}, nil, fmt.Errorf("%w: after %v the server has not delivered %v; check its address, the token, and that the token may read these keys", ErrNoCredential, s.Wait, s.missing())
		}
	}
}

func (s *supervisor) missing() []key.Name {
	var out []key.Name
	for _, k := range s.keys {
		if _, ok := s.desired[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

func ends(sig os.Signal) bool {
	return sig == syscall.SIGTERM || sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGHUP
}

func (s *supervisor) forward(sig os.Signal) {
	if ends(sig) && sig != syscall.SIGHUP {
		s.stopping = true
	}
	if err := s.child.signal(sig); err != nil {
		s.Logger.Error("a signal was not forwarded", "error", err)
	}
}

// errEnded: the program ended although it should run.
var errEnded = errors.New("the program ended")

// settle waits for the settling period, and for health. Signals are forwarded
// meanwhile.
func (s *supervisor) settle(ctx context.Context) error {
	timer := time.NewTimer(s.Settle)
	defer timer.Stop()
	for waiting := true; waiting; {
		select {
		case <-s.child.done:
			return fmt.Errorf("%w with exit code %d within %v", errEnded, s.child.code(), s.Settle)
		case sig := <-s.Signals:
			s.forward(sig)
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			waiting = false
		}
	}
	if s.Health == nil {
		return nil
	}
	checking, cancel := context.WithCancel(ctx)
	defer cancel()
	healthy := make(chan error, 1)
	redact := s.desired.redactor()
	go func() { healthy <- s.Health.Check(checking, redact) }()
	for {
		select {
		case err := <-healthy:
			return err
		case <-s.child.done:
			cancel()
			return fmt.Errorf("%w with exit code %d", errEnded, s.child.code())
		case sig := <-s.Signals:
			s.forward(sig)
		}
	}
}

// stop ends the program and what is left of its group.
func (s *supervisor) stop() {
	s.child.group(syscall.SIGTERM)
	timer := time.NewTimer(s.KillAfter)
	defer timer.Stop()
	for {
		select {
		case <-s.child.done:
			s.child.group(syscall.SIGKILL)
			return
		case sig := <-s.Signals:
			s.forward(sig)
			continue
		case <-timer.C:
			s.Logger.Warn("the program did not end and is killed", "kill_after", s.KillAfter)
		}
		s.child.group(syscall.SIGKILL)
		<-s.child.done
		return
	}
}

// take brings new credentials to the program. An error ends Run.
func (s *supervisor) take(ctx context.Context, c change) error {
	if s.child.exited() {
		close(c.reply)
		return nil
	}
	old := s.using
	for _, a := range c.batch {
		s.desired[a.Key] = a
	}
	next := maps.Clone(s.desired)
	for _, a := range c.batch {
		s.Logger.InfoContext(ctx, "a credential changes", "key", a.Key.String(), "version", uint64(a.Version), "rotation_id", a.Rotation)
	}
	switch {
	case s.alike(old, next):
		s.using = next
		c.reply <- s.outcomes(c.batch, nil)
		return nil
	case s.OnChange == None && s.dir == nil:
		// The program keeps what it has; so does the server's view of it.
		s.desired = maps.Clone(old)
		close(c.reply)
		return nil
	}
	err := s.switchTo(ctx, next)
	if err == nil {
		s.using = next
		c.reply <- s.outcomes(c.batch, nil)
		return nil
	}
	if s.stopping || ctx.Err() != nil {
		close(c.reply)
		return nil //nolint:nilerr // the program is ending; run sees to the rest
	}
	s.Logger.ErrorContext(ctx, "the program goes back to its old credentials", "error", err)
	s.desired = maps.Clone(old)
	back := s.switchBack(ctx, old)
	if back != nil {
		err = fmt.Errorf("%w; then, going back: %w", err, back)
	}
	c.reply <- s.outcomes(c.batch, err)
	if errors.Is(back, ErrStart) {
		return back
	}
	return nil
}

// switchTo gives next to the program and waits until it has settled.
func (s *supervisor) switchTo(ctx context.Context, next credentials) error {
	if _, err := s.environ(next); err != nil {
		return err
	}
	contents, err := s.contents(next)
	if err != nil {
		return err
	}
	if s.OnChange == Restart {
		s.stop()
		if s.stopping || ctx.Err() != nil {
			return errEnded
		}
		if err := s.launch(next); err != nil {
			return err
		}
		return s.settle(ctx)
	}
	for i, f := range s.Files {
		if err := s.dir.put(f.Name, contents[i]); err != nil {
			return err
		}
	}
	if s.OnChange == None {
		return nil
	}
	if err := s.child.signal(s.Signal); err != nil {
		return err
	}
	return s.settle(ctx)
}

// switchBack gives old to the program again, and starts it where it has ended.
func (s *supervisor) switchBack(ctx context.Context, old credentials) error {
	switch {
	case s.child.exited():
	case s.OnChange != Restart:
		return s.switchTo(ctx, old)
	case s.alike(old, s.given):
		return nil
	default:
		s.stop()
	}
	s.child.group(syscall.SIGKILL)
	if s.stopping || ctx.Err() != nil {
		return nil //nolint:nilerr // the program is ending; run sees to the rest
	}
	if err := s.launch(old); err != nil {
		return err
	}
	return s.settle(ctx)
}

// outcomes are the same for all of a batch: the program has one environment.
func (s *supervisor) outcomes(batch []client.Assignment, err error) []client.Outcome {
	out := make([]client.Outcome, 0, len(batch))
	for _, a := range batch {
		o := client.Outcome{Key: a.Key, Version: a.Version, Epoch: a.Epoch, Code: client.Applied, Using: a.Version}
		if err != nil {
			o.Code, o.Using, o.Detail = client.Failed, s.using[a.Key].Version, err.Error()
		}
		out = append(out, o)
	}
	return out
}
