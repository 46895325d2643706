package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/dpop"
	"github.com/keyturn/keyturn/internal/grant"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindUsed is what counts once at all nodes, and has been used: subject tokens of rules
// that say so, and proofs of possession by nonces that are good at every node.
const kindUsed = "token-used"

// ErrReplay: the subject token was exchanged before. It comes with ErrRequest.
var ErrReplay = errors.New("the subject token was exchanged before")

// mark is something that counts once at all nodes. Its document is made in the
// transaction of the entry that covers the token: whoever finds it there gets none.
type mark struct {
	name string
	due  time.Time
	// again is what a second use is.
	again error
	// used is what the document says; nil: nothing that anybody will ask for.
	used *used
}

// used is the first use of a subject token.
type used struct {
	// ID is the jti of the token that was given for it.
	ID      string    `json:"jti"`
	Address string    `json:"address,omitempty"`
	At      time.Time `json:"at"`
	// Told: an entry of the audit log says that it was shown again.
	Told bool `json:"told,omitempty"`
}

func markName(kind string, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return kind + "/" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// onceSubject is the mark of a subject token: of its jti, or of what is signed of one
// that has none. The signature itself does not tell tokens apart: one of ECDSA can be
// written in another way by anybody.
func onceSubject(name key.Name, p *grant.Proven, compact string, skew time.Duration) mark {
	kind, id := "jti", p.ID
	if id == "" {
		kind, id = "signed", compact[:strings.LastIndexByte(compact, '.')]
	}
	return mark{name: markName("subject", string(name), p.Issuer, kind, id), due: p.Expires.Add(2 * skew), again: fmt.Errorf("%w: %w", ErrRequest, ErrReplay)}
}

// onceProof is the mark of a proof of possession.
func onceProof(p *dpop.Proof, skew time.Duration) mark {
	return mark{name: markName("proof", p.Thumbprint, p.ID), due: p.Until.Add(2 * skew), again: errors.Join(dpop.ErrProof, dpop.ErrReplayed)}
}

// take makes the documents of a token's marks. It returns what makes the token not to
// be given, and what must be entered of that: a subject token that is shown again has
// one entry.
func (w *waiting) take(ctx context.Context, tx store.Tx) (refused error, entry *audit.Entry, err error) {
	for i := range w.marks {
		m := &w.marks[i]
		doc := store.Doc{Kind: kindUsed, Name: m.name, Due: m.due}
		if m.used != nil {
			if doc.Body, err = json.Marshal(m.used); err != nil {
				return nil, nil, fmt.Errorf("encode what was used: %w", err)
			}
		}
		_, err := tx.Docs.Put(ctx, doc)
		if errors.Is(err, store.ErrConflict) {
			entry, err := w.again(ctx, tx, m)
			return m.again, entry, err
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

// again returns the entry of a subject token that is shown again for the first time.
func (w *waiting) again(ctx context.Context, tx store.Tx, m *mark) (*audit.Entry, error) {
	if m.used == nil {
		return nil, nil
	}
	doc, err := tx.Docs.Get(ctx, kindUsed, m.name)
	if err != nil {
		return nil, err
	}
	var first used
	if damaged := json.Unmarshal(doc.Body, &first); damaged == nil && first.Told {
		return nil, nil
	}
	first.Told = true // one whose document is damaged is refused, and told, all the same
	if doc.Body, err = json.Marshal(first); err != nil {
		return nil, fmt.Errorf("encode what was used: %w", err)
	}
	if _, err := tx.Docs.Put(ctx, doc); err != nil {
		return nil, err
	}
	entry := *w.entry
	entry.Action, entry.Outcome, entry.Reason = "token.replay", audit.OutcomeDenied, ErrReplay.Error()
	entry.Version = 0 // no token was given
	entry.Detail = map[string]string{
		"by": w.entry.Detail["by"], "issuer": w.entry.Detail["issuer"], "address": w.entry.Detail["address"],
		"first-jti": first.ID, "first-address": first.Address, "first-at": first.At.UTC().Format(time.RFC3339),
	}
	return &entry, nil
}
