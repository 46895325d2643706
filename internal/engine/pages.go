package engine

import (
	"context"
	"errors"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// kindPage are messages to humans that some node has sent, or is about to send.
const kindPage = "page"

const (
	// pageTaken is how long the node that took a message has to deliver it before
	// another one may.
	pageTaken = time.Minute
	// pageKept is how long it is remembered that a message was sent. A hold that
	// lasts longer is told again.
	pageKept = 30 * 24 * time.Hour
)

// pageRecord is what became of a message.
type pageRecord struct {
	Node string    `json:"node"`
	At   time.Time `json:"at"`
	Sent bool      `json:"sent,omitempty"`
}

// TakePage reports whether this node is to deliver a message now. If not, another
// one has delivered it, or is about to: then it is asked again later.
func (e *Engine) TakePage(ctx context.Context, node, id string) (mine, sent bool, err error) {
	err = e.store.Update(ctx, func(tx store.Tx) error {
		mine, sent = false, false
		record, doc, err := readPage(ctx, tx, id)
		now := e.now()
		switch {
		case err != nil:
			return err
		case record.Sent:
			sent = true
			return nil
		case record.Node == node:
			mine = true
			return nil
		case record.Node != "" && now.Sub(record.At).Abs() < pageTaken:
			return nil
		}
		mine = true
		return putPage(ctx, tx, doc, pageRecord{Node: node, At: now})
	})
	return mine, sent, err
}

// PageSent notes that a message was delivered.
func (e *Engine) PageSent(ctx context.Context, node, id string) error {
	return e.store.Update(ctx, func(tx store.Tx) error {
		_, doc, err := readPage(ctx, tx, id)
		if err != nil {
			return err
		}
		return putPage(ctx, tx, doc, pageRecord{Node: node, At: e.now(), Sent: true})
	})
}

func readPage(ctx context.Context, tx store.Tx, id string) (record pageRecord, doc store.Doc, err error) {
	doc, err = tx.Docs.Get(ctx, kindPage, id)
	if errors.Is(err, store.ErrNotFound) {
		return record, store.Doc{Kind: kindPage, Name: id}, nil
	}
	if err == nil {
		err = decodeInto(doc.Body, &record)
	}
	return record, doc, err
}

func putPage(ctx context.Context, tx store.Tx, doc store.Doc, record pageRecord) (err error) {
	if doc.Body, err = encode(record); err != nil {
		return err
	}
	doc.Due = record.At.Add(pageKept)
	_, err = tx.Docs.Put(ctx, doc)
	return err
}
