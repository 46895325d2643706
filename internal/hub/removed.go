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
	var err error
	n.removed, err = store.Newer(ctx, n.hub.config.Store, engine.KindRemoved, n.removed, func(doc *store.Doc) error {
		if !n.attached(doc.Name) {
			return nil
		}
		err := n.hub.config.Store.View(ctx, func(tx store.Tx) error {
			_, err := store.Revision(ctx, tx.Docs, engine.KindParty, doc.Name)
			return err
		})
		if errors.Is(err, store.ErrNotFound) {
			n.hub.endSessionsOf(doc.Name)
			n.hub.reports.drop(doc.Name)
			return nil
		}
		return err
	})
	return err
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
