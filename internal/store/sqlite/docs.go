package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

type docs struct{ *tx }

// Get implements store.Docs.
func (d docs) Get(ctx context.Context, kind, name string) (store.Doc, error) {
	if err := d.reading(ctx); err != nil {
		return store.Doc{}, err
	}
	doc := store.Doc{Kind: kind, Name: name}
	var due sql.NullInt64
	found, err := d.conn.row("SELECT rev, due, body FROM docs WHERE kind = ? AND name = ?", []any{kind, name}, &doc.Rev, &due, &doc.Body)
	if err != nil {
		return store.Doc{}, d.fail("read a document", err)
	}
	if !found {
		return store.Doc{}, fmt.Errorf("sqlite: document %s %q: %w", kind, name, store.ErrNotFound)
	}
	if due.Valid {
		doc.Due = fromMicros(due.Int64)
	}
	return doc, nil
}

// Revision implements store.Revisions: the pages of the body are not read.
func (d docs) Revision(ctx context.Context, kind, name string) (store.Doc, error) {
	if err := d.reading(ctx); err != nil {
		return store.Doc{}, err
	}
	doc := store.Doc{Kind: kind, Name: name}
	var due sql.NullInt64
	found, err := d.conn.row("SELECT rev, due FROM docs WHERE kind = ? AND name = ?", []any{kind, name}, &doc.Rev, &due)
	if err != nil {
		return store.Doc{}, d.fail("read a document's revision", err)
	}
	if !found {
		return store.Doc{}, fmt.Errorf("sqlite: document %s %q: %w", kind, name, store.ErrNotFound)
	}
	if due.Valid {
		doc.Due = fromMicros(due.Int64)
	}
	return doc, nil
}

// Put implements store.Docs.
func (d docs) Put(ctx context.Context, doc store.Doc) (uint64, error) {
	if err := d.writing(ctx); err != nil {
		return 0, err
	}
	if err := doc.Check(); err != nil {
		return 0, fmt.Errorf("sqlite: write a document: %w", err)
	}
	due := sql.NullInt64{Int64: toMicros(doc.Due), Valid: !doc.Due.IsZero()}
	rev := d.batch.counters.nextRev()
	var changed int64
	var err error
	if doc.Rev == 0 {
		changed, err = d.conn.exec("INSERT INTO docs (kind, name, rev, due, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, name) DO NOTHING",
			doc.Kind, doc.Name, rev, due, blob(doc.Body))
	} else {
		changed, err = d.conn.exec("UPDATE docs SET rev = ?, due = ?, body = ? WHERE kind = ? AND name = ? AND rev = ?",
			rev, due, blob(doc.Body), doc.Kind, doc.Name, toInt(doc.Rev))
	}
	if err != nil {
		return 0, d.fail("write a document", err)
	}
	if changed == 0 {
		return 0, d.conflict(doc.Kind, doc.Name, doc.Rev)
	}
	d.touched.Add(store.TopicDocs)
	return uint64(rev), nil
}

// Delete implements store.Docs.
func (d docs) Delete(ctx context.Context, kind, name string, rev uint64) error {
	if err := d.writing(ctx); err != nil {
		return err
	}
	changed, err := d.conn.exec("DELETE FROM docs WHERE kind = ? AND name = ? AND rev = ?", kind, name, toInt(rev))
	if err != nil {
		return d.fail("delete a document", err)
	}
	if changed == 0 {
		if _, err := d.Get(ctx, kind, name); err != nil {
			return err
		}
		return d.conflict(kind, name, rev)
	}
	d.touched.Add(store.TopicDocs)
	return nil
}

func (docs) conflict(kind, name string, rev uint64) error {
	if rev == 0 {
		return fmt.Errorf("sqlite: document %s %q exists already: %w", kind, name, store.ErrConflict)
	}
	return fmt.Errorf("sqlite: document %s %q is not at revision %d: %w", kind, name, rev, store.ErrConflict)
}

type index struct{ *tx }

// List implements store.Index.
func (x index) List(ctx context.Context, kind, prefix, after string, limit int) ([]store.Doc, error) {
	// The names after "after" begin with its successor in byte order.
	from := max(prefix, after+"\x00")
	if after == "" {
		from = prefix
	}
	within := func(doc store.Doc) bool { return strings.HasPrefix(doc.Name, prefix) }
	return x.find(ctx, kind, limit, within,
		"SELECT name, rev, due, body FROM docs WHERE kind = ? AND name >= ? ORDER BY name LIMIT ?", from)
}

// Due implements store.Index.
func (x index) Due(ctx context.Context, kind string, now time.Time, limit int) ([]store.Doc, error) {
	return x.find(ctx, kind, limit, nil,
		"SELECT name, rev, due, body FROM docs WHERE kind = ? AND due IS NOT NULL AND due <= ? ORDER BY due, name LIMIT ?", toMicros(now))
}

// Since implements store.Index.
func (x index) Since(ctx context.Context, kind string, rev uint64, limit int) ([]store.Doc, error) {
	return x.find(ctx, kind, limit, nil,
		"SELECT name, rev, due, body FROM docs WHERE kind = ? AND rev > ? ORDER BY rev LIMIT ?", toInt(rev))
}

// find returns documents until within, if any, says no.
func (x index) find(ctx context.Context, kind string, limit int, within func(store.Doc) bool, query string, from any) ([]store.Doc, error) {
	if err := x.reading(ctx); err != nil {
		return nil, err
	}
	if err := store.CheckLimit(limit); err != nil {
		return nil, fmt.Errorf("sqlite: find documents: %w", err)
	}
	scan := func(r *sql.Rows) (store.Doc, bool, error) {
		doc := store.Doc{Kind: kind}
		var due sql.NullInt64
		if err := r.Scan(&doc.Name, &doc.Rev, &due, &doc.Body); err != nil {
			return store.Doc{}, false, err
		}
		if due.Valid {
			doc.Due = fromMicros(due.Int64)
		}
		return doc, within == nil || within(doc), nil
	}
	found, err := rows(ctx, x.conn, scan, query, kind, from, limit)
	return found, x.fail("find documents", err)
}
