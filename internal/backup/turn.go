package backup

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

var (
	// ErrTaken: somebody else is backing the installation up. The error names the
	// server and since when.
	ErrTaken = errors.New("a backup is under way already")
	// ErrTurnLost: the turn could not be kept; another server may back up by now.
	ErrTurnLost = errors.New("the turn to back up was lost")
)

// The document that says whose turn it is.
const (
	kindTurn = "backup-turn"
	nameTurn = "installation"
)

const (
	// turnLease is for how long a turn is held whose server has died.
	turnLease = 30 * time.Second
	// turnRenewed is how often it is renewed, and how long that may take; turnKept how
	// long it counts without.
	turnRenewed = turnLease / 3
	turnKept    = turnLease * 2 / 3
	// turnGiven is how long giving it back may take.
	turnGiven = 10 * time.Second
)

// turn is the body of the document; it is due when the turn ends by itself.
type turn struct {
	ID    string    `json:"id"`
	Node  string    `json:"node"`
	Since time.Time `json:"since"`
}

// TakeTurn takes the installation's only turn to back up, for a server that people
// know as node. It fails with ErrTaken while another one has it, or with the store.
// The turn is kept until release is called, which must be; it may be called again.
// The context ends, with ErrTurnLost as its cause, when the store does not let it be
// kept. That of a server that has died ends by itself, within half a minute.
func TakeTurn(ctx context.Context, s store.Store, now func() time.Time, node string) (_ context.Context, release func(), err error) {
	t := &turn{ID: rand.Text(), Node: node, Since: now().UTC()}
	if err := t.renew(ctx, s, now); err != nil {
		return nil, nil, err
	}
	held, lose := context.WithCancelCause(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { t.keep(held, s, now, lose) })
	return held, sync.OnceFunc(func() {
		lose(context.Canceled)
		keeping.Wait()
		giving, cancel := context.WithTimeout(context.WithoutCancel(ctx), turnGiven)
		defer cancel()
		_ = t.give(giving, s) // it ends by itself
	}), nil
}

// keep renews the turn until ctx ends.
func (t *turn) keep(ctx context.Context, s store.Store, now func() time.Time, lose context.CancelCauseFunc) {
	ticker := time.NewTicker(turnRenewed)
	defer ticker.Stop()
	cut := time.AfterFunc(turnKept, func() { lose(fmt.Errorf("%w: the store does not answer", ErrTurnLost)) })
	defer cut.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch err := t.renew(ctx, s, now); {
		case err == nil:
			cut.Reset(turnKept)
		case errors.Is(err, ErrTaken):
			lose(fmt.Errorf("%w: %w", ErrTurnLost, err))
		}
	}
}

// renew takes the turn, or keeps it.
func (t *turn) renew(ctx context.Context, s store.Store, now func() time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, turnRenewed)
	defer cancel()
	return s.Update(ctx, func(tx store.Tx) error {
		doc, other, err := readTurn(ctx, tx)
		if err != nil {
			return err
		}
		at := now().UTC()
		if other.ID != t.ID && doc.Due.After(at) {
			return fmt.Errorf("%w: %s has been at it since %s; wait for its end, or for %v if that server has died",
				ErrTaken, other.Node, other.Since.UTC().Format(time.RFC3339), turnLease)
		}
		if doc.Body, err = json.Marshal(t); err != nil {
			return fmt.Errorf("encode the turn to back up: %w", err)
		}
		doc.Due = at.Add(turnLease)
		_, err = tx.Docs.Put(ctx, doc)
		return err
	})
}

// give ends the turn, if it is still this one.
func (t *turn) give(ctx context.Context, s store.Store) error {
	return s.Update(ctx, func(tx store.Tx) error {
		doc, other, err := readTurn(ctx, tx)
		if err != nil || doc.Rev == 0 || other.ID != t.ID {
			return err
		}
		return tx.Docs.Delete(ctx, kindTurn, nameTurn, doc.Rev)
	})
}

// readTurn returns whose turn it is, or was; with revision 0 nobody's.
func readTurn(ctx context.Context, tx store.Tx) (store.Doc, turn, error) {
	var t turn
	doc, err := tx.Docs.Get(ctx, kindTurn, nameTurn)
	if errors.Is(err, store.ErrNotFound) {
		return store.Doc{Kind: kindTurn, Name: nameTurn}, t, nil
	}
	if err != nil {
		return doc, t, err
	}
	if err := json.Unmarshal(doc.Body, &t); err != nil {
		return doc, t, fmt.Errorf("the stored turn to back up is damaged: %w", err)
	}
	return doc, t, nil
}
