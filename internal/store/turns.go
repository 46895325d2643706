package store

import (
	"context"
	"slices"
	"sync"
)

// Turns lets the Updates of a process take turns at one transaction after the
// other, each shared by those that wait: what group commits are made of. Exactly
// one goroutine at a time has the turn. It takes part in the open transaction (the
// batch), or opens one, and passes the turn on; nobody waits for company.
//
// It guarantees that a batch never stays open while nobody has the turn, also when
// those for which it was kept open give up. Turns are given in the order in which
// they were asked for. Its methods may be called concurrently; the fields are set
// before the first.
type Turns struct {
	// Ends decides whether the open batch, if there is one, ends before the turn goes
	// on to the next, who is to be alone or not. It must not block: it is asked by the
	// holder of the turn while nobody can come or go. When nobody waits, the batch
	// ends without it being asked.
	Ends func(alone bool) bool
	// End ends the open batch, if there is one. It is called by the holder of the turn.
	End func()

	mu    sync.Mutex
	taken bool
	queue []*turn // in order of arrival
}

// turn is one that is waited for.
type turn struct {
	come  chan struct{} // closed when it has come
	alone bool
}

// Take waits for the turn, which must be passed on. With alone no batch is open when
// it has come, and Ends is to see to it that nobody joins the one then opened. When ctx ends before, it returns ctx's error, and there is nothing to pass
// on; a turn that came at that moment it has passed on by itself.
func (t *Turns) Take(ctx context.Context, alone bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	if !t.taken {
		t.taken = true
		t.mu.Unlock()
		return nil
	}
	self := &turn{come: make(chan struct{}), alone: alone}
	t.queue = append(t.queue, self)
	t.mu.Unlock()
	select {
	case <-self.come:
		return nil
	case <-ctx.Done():
	}
	if !t.leave(self) {
		t.Pass() // it came at the same moment
	}
	return ctx.Err()
}

// leave reports whether self still waited.
func (t *Turns) leave(self *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.queue, self)
	if i < 0 {
		return false
	}
	t.queue = slices.Delete(t.queue, i, i+1)
	return true
}

// Pass gives the turn to the next. Whether the batch stays open for it is decided
// in the same moment: whoever it is kept open for has the turn, and cannot leave
// without passing it on.
func (t *Turns) Pass() {
	if t.hand(false) {
		return
	}
	t.End()
	t.hand(true)
}

// hand gives the turn on, unless the batch has to end before.
func (t *Turns) hand(ended bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !ended && (len(t.queue) == 0 || t.Ends(t.queue[0].alone)) {
		return false
	}
	if len(t.queue) == 0 {
		t.taken = false
		return true
	}
	next := t.queue[0]
	t.queue = slices.Delete(t.queue, 0, 1)
	close(next.come)
	return true
}

// Waiting is how many wait for the turn.
func (t *Turns) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue)
}
