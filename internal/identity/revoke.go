package identity

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
)

// kindRevoked are notes of revoked tokens, by ID, by which other servers on the
// same store hear of them.
const kindRevoked = "token-revoked"

const (
	// revokedKept is how long a note is kept: longer than a server may be cut off
	// from the store and still have streams open, since it checks their tokens at
	// every heartbeat.
	revokedKept = time.Hour
)

// Revoke removes a token; it is refused from the moment Revoke returns. Other
// servers on the same store hear of it by Revoked.
func (r *Registry) Revoke(ctx context.Context, actor audit.Actor, id string) error {
	err := r.config.Journal.Transact(ctx, actor, func(tx store.Tx, enter func(audit.Entry)) error {
		token, doc, err := r.find(ctx, tx, id)
		if err != nil {
			return err
		}
		enter(audit.Entry{Action: "token.revoke", Target: id, Detail: map[string]string{"name": token.Name, "role": token.Role}})
		note := store.Doc{Kind: kindRevoked, Name: id, Due: r.config.Now().Add(revokedKept)}
		if _, err := tx.Docs.Put(ctx, note); err != nil {
			return err
		}
		return tx.Docs.Delete(ctx, kindToken, id, doc.Rev)
	})
	r.forget(id)
	return err
}

// forget drops what is remembered of a token.
func (r *Registry) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revocations++
	r.readings.Forget(id) // nobody who asks from now on gets what was read before
	delete(r.known, id)
	delete(r.used, id)
}

// Revoked returns the IDs of tokens that any server on the store has revoked after
// revision rev, at least those of the last hour, and the revision to ask for next.
// They are refused here from then on.
func (r *Registry) Revoked(ctx context.Context, rev uint64) (ids []string, next uint64, err error) {
	next, err = store.Newer(ctx, r.config.Store, kindRevoked, rev, func(doc *store.Doc) error {
		r.forget(doc.Name)
		ids = append(ids, doc.Name)
		return nil
	})
	return ids, next, err
}

// Sweep deletes tokens that expired a day ago or earlier, and old notes of
// revocations. It is called now and then; neither the expiry nor the revocation
// depends on it.
func (r *Registry) Sweep(ctx context.Context) error {
	for _, kind := range []string{kindToken, kindRevoked} {
		if err := store.Sweep(ctx, r.config.Store, kind, r.config.Now, nil); err != nil {
			return err
		}
	}
	return nil
}
