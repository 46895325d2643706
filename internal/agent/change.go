package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// change is one transaction: the targets of a component are switched together,
// or restored together. It is used under worker.mu.
type change struct {
	w     *worker
	steps []*step
	// old is what the targets go back to: the versions in use, where all are known.
	old    map[key.Name]client.Assignment
	redact run.Redactor
	// begun: applications were told something.
	begun bool
}

// step is what a change does to one target.
type step struct {
	t       *target
	content secret.Value
	// write: the file has other content, or none. existed: it had some.
	write, existed bool
	staged         *place.Staged
	committed      bool
	// left: the new content stays, because there was nothing to go back to.
	left bool
}

// stage says how far a change came.
type stage uint8

const (
	// stageUnchanged: nothing visible has happened.
	stageUnchanged stage = iota + 1
	// stageRestored: it was switched and put back.
	stageRestored
	// stageLeft: it was switched and could not be put back, because there was
	// nothing before, or because that failed.
	stageLeft
	// stageDone: it is in use and healthy.
	stageDone
)

// perform takes data into use for all targets of the component.
func (w *worker) perform(ctx context.Context, comp component, data map[key.Name]client.Assignment) (stage, error) {
	c := &change{w: w, old: w.applied, redact: redactor(data, w.applied)}
	defer c.release()
	if err := c.prepare(comp, data); err != nil {
		return stageUnchanged, err
	}
	if len(c.steps) == 0 {
		return stageDone, nil
	}
	if err := c.note(); err != nil {
		return stageUnchanged, err
	}
	w.generation.Add(1)
	defer w.generation.Add(1)
	err := c.forward(ctx)
	if err == nil {
		c.settle()
		return stageDone, nil
	}
	// The way back is walked to its end, also when the agent is being stopped.
	how, back := c.restore(context.WithoutCancel(ctx))
	if back != nil {
		err = fmt.Errorf("%w; then, while restoring: %w", err, back)
	}
	return how, err
}

// prepare renders, compares and stages. Targets that need nothing get no step.
func (c *change) prepare(comp component, data map[key.Name]client.Assignment) error {
	for _, t := range comp.targets {
		content, err := t.execute(data)
		if err != nil {
			return err
		}
		s := &step{t: t, content: content}
		present, err := place.Read(t.place())
		switch {
		case errors.Is(err, place.ErrNotExist):
			s.write = true
		case err != nil:
			return fmt.Errorf("target %s: %w", t.cfg.Name, err)
		default:
			s.existed = true
			s.write = !present.Equal(content)
		}
		if !s.write {
			repaired, err := place.Repair(t.place())
			if err != nil {
				return fmt.Errorf("target %s: %w", t.cfg.Name, err)
			}
			if repaired {
				c.w.log.Info("owner and mode of the file were set right", "target", t.cfg.Name, "path", t.cfg.Path)
			}
			if !t.unsettled {
				continue
			}
		}
		c.steps = append(c.steps, s)
	}
	for _, s := range c.steps {
		if !s.write {
			continue
		}
		staged, err := place.Stage(s.t.place(), s.content)
		if err != nil {
			return fmt.Errorf("target %s: %w", s.t.cfg.Name, err)
		}
		s.staged = staged
	}
	return nil
}

// note makes the switch known to the next start, should this one end in it.
func (c *change) note() error {
	var names []string
	for _, t := range c.w.targets {
		if t.unsettled || slices.ContainsFunc(c.steps, func(s *step) bool { return s.t == t }) {
			names = append(names, t.cfg.Name)
		}
	}
	return c.w.store.MarkSwitching(names)
}

func (c *change) release() {
	for _, s := range c.steps {
		if s.staged == nil {
			continue
		}
		if err := s.staged.Release(); err != nil {
			c.w.log.Warn("a temporary file is left behind", "target", s.t.cfg.Name, "error", err)
		}
	}
}

// forward replaces all files, then tells all applications, then checks them all.
func (c *change) forward(ctx context.Context) error {
	for _, s := range c.steps {
		if !s.write {
			continue
		}
		s.committed = true
		s.t.told = false
		if err := s.staged.Commit(); err != nil {
			return fmt.Errorf("target %s: %w", s.t.cfg.Name, err)
		}
	}
	c.begun = true
	if err := c.tell(ctx, false); err != nil {
		return err
	}
	checked := make(map[string]bool)
	for _, s := range c.steps {
		if s.t.cfg.Health == nil || checked[s.t.healthID()] {
			continue
		}
		checked[s.t.healthID()] = true
		if err := s.t.cfg.Health.Check(ctx, c.redact); err != nil {
			return fmt.Errorf("target %s: %w", s.t.cfg.Name, err)
		}
	}
	return ctx.Err()
}

// tell reloads each application of the steps once. It goes on after an error
// only on the way back.
func (c *change) tell(ctx context.Context, back bool) error {
	var errs []error
	told := make(map[string]error)
	for _, s := range c.steps {
		if s.t.told {
			continue
		}
		id := s.t.reloadID()
		err, known := told[id]
		if !known {
			err = s.reload(ctx, c.redact, back)
			told[id] = err
		}
		if err == nil {
			s.t.told = true
			continue
		}
		errs = append(errs, fmt.Errorf("target %s: reload: %w", s.t.cfg.Name, err))
		if !back {
			break
		}
	}
	return errors.Join(errs...)
}

// reload tells the application of one target.
func (s *step) reload(ctx context.Context, redact run.Redactor, back bool) error {
	r := s.t.cfg.Reload
	switch {
	case r.none():
		return nil
	case r.Signal == nil:
		return run.Command{Args: r.Command, Timeout: r.Timeout, Env: s.t.cfg.env()}.Run(ctx, redact)
	}
	err := r.Signal.Send(ctx)
	if errors.Is(err, run.ErrNotRunning) && (back || !s.existed) {
		return nil // it reads the file when it starts
	}
	return err
}

// settle notes that every application uses the new content.
func (c *change) settle() {
	for _, s := range c.steps {
		s.t.unsettled = false
		s.t.changedAt = c.w.now()
		signalOne(s.t.changed)
	}
}

// restore brings the files back, last one first, and tells the applications
// again if they had been told.
func (c *change) restore(ctx context.Context) (stage, error) {
	var errs []error
	how := stageRestored
	for _, s := range slices.Backward(c.steps) {
		left, err := c.restoreOne(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", s.t.cfg.Name, err))
		}
		s.left = left || err != nil
		if s.left {
			how = stageLeft
		}
	}
	if c.begun {
		if err := c.tell(ctx, true); err != nil {
			errs = append(errs, err)
		}
	}
	for _, s := range c.steps {
		s.t.unsettled = s.left || c.begun && !s.t.told
		s.t.changedAt = c.w.now()
		signalOne(s.t.changed)
	}
	return how, errors.Join(errs...)
}

// restoreOne restores one file. It reports left when there is nothing to go back to.
func (c *change) restoreOne(s *step) (left bool, err error) {
	if s.write && !s.committed {
		return s.t.unsettled, nil
	}
	previous, err := s.t.execute(c.old)
	known := err == nil
	switch {
	case s.committed && s.existed && (!s.t.unsettled || !known):
		// What was there before is either what was in use, or the best there is.
		s.t.told = false
		return false, s.staged.Restore()
	case known && !previous.Equal(s.content):
		s.t.told = false
		st, err := place.Stage(s.t.place(), previous)
		if err != nil {
			return true, err
		}
		return false, errors.Join(st.Commit(), st.Release())
	default:
		return true, nil
	}
}

// signalOne puts a token into a channel that has room for one.
func signalOne(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
