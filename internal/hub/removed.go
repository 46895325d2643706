package hub

import (
	"context"
	"errors"

	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/store"
)

// endRemoved ends the sessions here of parties that another node has removed. One
// that has come back since is registered again, and stays.
func (n *node) endRemoved(ctx context.Context) error {
	for {
		var removed []store.Doc
		var gone []string
		err := n.hub.config.Store.View(ctx, func(tx store.Tx) error {
			gone = nil
			var err error
			if removed, err = tx.Index.Since(ctx, engine.KindRemoved, n.removed, nodeBatch); err != nil {
				return err
			}
			for i := range removed {
				id := removed[i].Name
				if !n.attached(id) {
					continue
				}
				_, err := store.Revision(ctx, tx.Docs, engine.KindParty, id)
				if errors.Is(err, store.ErrNotFound) {
					gone = append(gone, id)
				} else if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, id := range gone {
			n.hub.endSessionsOf(id)
			n.hub.reports.drop(id)
		}
		if len(removed) > 0 {
			n.removed = removed[len(removed)-1].Rev
		}
		if len(removed) < nodeBatch {
			return nil
		}
	}
}

// attached reports whether a party has a session here that the engine knows of.
// One that is being opened registers the party in a moment.
func (n *node) attached(id string) bool {
	n.hub.mu.Lock()
	defer n.hub.mu.Unlock()
	for _, s := range n.hub.sessionsOf(id) {
		if s.attached {
			return true
		}
	}
	return false
}
