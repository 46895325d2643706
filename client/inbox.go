package client

import (
	"sync"

	"github.com/keyturn/keyturn/key"
)

// inbox stands between the connection and the handler: it drops what is not
// newer, and of each key keeps only the newest until the handler is free.
type inbox struct {
	// wake has room for one token and holds one while something is pending.
	wake chan struct{}

	mu      sync.Mutex
	names   []key.Name
	entries map[key.Name]*entry
	pending []key.Name
}

type entry struct {
	// seen is the largest epoch that was received or known.
	seen uint64
	// received tells that the assignment of seen came in this watch.
	received bool
	// waiting is the assignment that the handler has not got yet.
	waiting *Assignment
	// using is the version in use.
	using key.Version
	// last is the outcome of the newest assignment that was handled.
	last *Outcome
}

func newInbox(known []Known) *inbox {
	b := &inbox{wake: make(chan struct{}, 1), entries: make(map[key.Name]*entry, len(known))}
	for _, k := range known {
		b.names = append(b.names, k.Key)
		b.entries[k.Key] = &entry{seen: k.Epoch, using: k.Version}
	}
	return b
}

// known returns what the server should be told.
func (b *inbox) known() []Known {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Known, len(b.names))
	for i, name := range b.names {
		e := b.entries[name]
		out[i] = Known{Key: name, Version: e.using, Epoch: e.seen}
	}
	return out
}

// add takes a batch in. It returns how many assignments are new, and the
// outcomes of those the server sends again because it has not got their
// acknowledgement.
func (b *inbox) add(batch []Assignment) (fresh int, again []Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range batch {
		e := b.entries[a.Key]
		switch {
		case e == nil || a.Epoch < e.seen:
			continue
		case a.Epoch == e.seen && e.received:
			if e.last != nil && e.last.Epoch == a.Epoch {
				again = append(again, *e.last)
			}
			continue
		}
		if e.waiting == nil {
			b.pending = append(b.pending, a.Key)
		}
		e.seen, e.received, e.waiting = a.Epoch, true, &a
		fresh++
	}
	if len(b.pending) > 0 {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	return fresh, again
}

// take returns what is pending, in the order of arrival.
func (b *inbox) take() []Assignment {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Assignment, 0, len(b.pending))
	for _, name := range b.pending {
		e := b.entries[name]
		out = append(out, *e.waiting)
		e.waiting = nil
	}
	b.pending = b.pending[:0]
	return out
}

// amend records an outcome that was told later than the handler returned. It
// counts only while it is about the newest assignment that was handled.
func (b *inbox) amend(o Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[o.Key]; e != nil && e.last != nil && e.last.Epoch == o.Epoch {
		e.using, e.last = o.Using, &o
	}
}

// done records the outcome of an assignment that take returned.
func (b *inbox) done(o Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[o.Key]
	e.using, e.last = o.Using, &o
}
