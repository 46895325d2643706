package postgres

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

type docs struct{ *tx }

// Get implements store.Docs.
func (d docs) Get(ctx context.Context, kind, name string) (store.Doc, error) {
	var body []byte
	doc, err := d.find(ctx, kind, name, "SELECT rev, due, body FROM docs WHERE kind = $1 AND name = $2", &body)
	doc.Body = body
	return doc, err
}

// Revision implements store.Revisions.
func (d docs) Revision(ctx context.Context, kind, name string) (store.Doc, error) {
	return d.find(ctx, kind, name, "SELECT rev, due FROM docs WHERE kind = $1 AND name = $2")
}

// GetAll implements store.Several: one round trip for all.
func (d docs) GetAll(ctx context.Context, kind string, names []string) ([]store.Doc, error) {
	wanted := make([]string, 0, len(names))
	for _, name := range names {
		if plain(name) {
			wanted = append(wanted, name)
		}
	}
	found, err := index(d).find(ctx, kind, len(names), "SELECT name, rev, due, body FROM docs WHERE kind = $1 AND name = ANY($3) LIMIT $2", wanted)
	if err != nil {
		return nil, err
	}
	for _, name := range wanted {
		d.known.setDoc(kind, name, 0)
	}
	for i := range found {
		d.known.setDoc(kind, found[i].Name, toInt(found[i].Rev))
	}
	return found, nil
}

// find reads one document; more is where the columns behind rev and due go.
func (d docs) find(ctx context.Context, kind, name, query string, more ...any) (store.Doc, error) {
	if err := d.reading(ctx); err != nil {
		return store.Doc{}, err
	}
	doc := store.Doc{Kind: kind, Name: name}
	var due *int64
	found := false
	if plain(kind) && plain(name) {
		var err error
		if found, err = d.row(append([]any{&doc.Rev, &due}, more...), query, kind, name); err != nil {
			return store.Doc{}, d.fail("read a document", err)
		}
		d.known.setDoc(kind, name, toInt(doc.Rev))
	}
	if !found {
		return store.Doc{}, fmt.Errorf("postgres: document %s %q: %w", kind, name, store.ErrNotFound)
	}
	if due != nil {
		doc.Due = fromMicros(*due)
	}
	return doc, nil
}

// Put implements store.Docs.
func (d docs) Put(ctx context.Context, doc store.Doc) (uint64, error) {
	if err := d.writing(ctx); err != nil {
		return 0, err
	}
	if err := doc.Check(); err != nil {
		return 0, fmt.Errorf("postgres: write a document: %w", err)
	}
	var due *int64
	if !doc.Due.IsZero() {
		us := toMicros(doc.Due)
		due = &us
	}
	present, err := d.present(doc.Kind, doc.Name)
	if err != nil {
		return 0, d.fail("write a document", err)
	}
	if present != toInt(doc.Rev) {
		return 0, d.conflict(doc.Kind, doc.Name, doc.Rev)
	}
	rev := d.batch.nextRev()
	if present == 0 {
		err = d.exec("INSERT INTO docs (kind, name, rev, due, body) VALUES ($1, $2, $3, $4, $5)", doc.Kind, doc.Name, rev, due, blob(doc.Body))
	} else {
		err = d.exec(`WITH done AS (UPDATE docs SET rev = $3, due = $4, body = $5 WHERE kind = $1 AND name = $2 AND rev = $6 RETURNING 1)
			SELECT 1 / count(*) FROM done`, doc.Kind, doc.Name, rev, due, blob(doc.Body), present)
	}
	if err != nil {
		return 0, d.fail("write a document", err)
	}
	d.known.setDoc(doc.Kind, doc.Name, rev)
	d.touched.Add(store.TopicDocs)
	return uint64(rev), nil
}

// Delete implements store.Docs.
func (d docs) Delete(ctx context.Context, kind, name string, rev uint64) error {
	if err := d.writing(ctx); err != nil {
		return err
	}
	present, err := d.present(kind, name)
	switch {
	case err != nil:
		return d.fail("delete a document", err)
	case present == 0:
		return fmt.Errorf("postgres: document %s %q: %w", kind, name, store.ErrNotFound)
	case present != toInt(rev):
		return d.conflict(kind, name, rev)
	}
	err = d.exec("WITH done AS (DELETE FROM docs WHERE kind = $1 AND name = $2 AND rev = $3 RETURNING 1) SELECT 1 / count(*) FROM done",
		kind, name, present)
	if err != nil {
		return d.fail("delete a document", err)
	}
	d.known.setDoc(kind, name, 0)
	d.touched.Add(store.TopicDocs)
	return nil
}

// present returns the revision of a document, 0 when there is none.
func (d docs) present(kind, name string) (rev int64, err error) {
	if !plain(kind) || !plain(name) {
		return 0, nil
	}
	if seen, known := d.knownDoc(kind, name); known {
		return seen, nil
	}
	_, err = d.row([]any{&rev}, "SELECT rev FROM docs WHERE kind = $1 AND name = $2", kind, name)
	return rev, err
}

func (docs) conflict(kind, name string, rev uint64) error {
	if rev == 0 {
		return fmt.Errorf("postgres: document %s %q exists already: %w", kind, name, store.ErrConflict)
	}
	return fmt.Errorf("postgres: document %s %q is not at revision %d: %w", kind, name, rev, store.ErrConflict)
}

type index struct{ *tx }

// List implements store.Index.
func (x index) List(ctx context.Context, kind, prefix, after string, limit int) ([]store.Doc, error) {
	switch {
	case !plain(prefix) || !plain(after):
		return x.listOdd(ctx, kind, prefix, after, limit)
	case end(prefix) == "":
		return x.find(ctx, kind, limit,
			"SELECT name, rev, due, body FROM docs WHERE kind = $1 AND name >= $3 AND name > $4 ORDER BY name LIMIT $2", prefix, after)
	}
	return x.find(ctx, kind, limit,
		"SELECT name, rev, due, body FROM docs WHERE kind = $1 AND name >= $3 AND name < $5 AND name > $4 ORDER BY name LIMIT $2", prefix, after, end(prefix))
}

// listOdd is List where prefix or after is no text that PostgreSQL can hold, such
// as the first half of a character: it compares bytes, from what comes before.
func (x index) listOdd(ctx context.Context, kind, prefix, after string, limit int) ([]store.Doc, error) {
	return x.find(ctx, kind, limit,
		`SELECT name, rev, due, body FROM docs WHERE kind = $1 AND name >= $3 AND convert_to(name, 'UTF8') > $4
			AND substr(convert_to(name, 'UTF8'), 1, length($5::bytea)) = $5 ORDER BY name LIMIT $2`,
		max(plainPart(prefix), plainPart(after)), []byte(after), []byte(prefix))
}

// plainPart is the longest beginning of s that PostgreSQL can hold.
func plainPart(s string) string {
	for i, r := range s {
		if _, size := utf8.DecodeRuneInString(s[i:]); r == 0 || r == utf8.RuneError && size == 1 {
			return s[:i]
		}
	}
	return s
}

// end is the first text after all that begin with prefix; empty: there is none.
func end(prefix string) string {
	for prefix != "" {
		last, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		switch last {
		case utf8.MaxRune:
			continue
		case 0xd7ff: // what follows are surrogates, which are no characters
			last = 0xdfff
		}
		return prefix + string(last+1)
	}
	return ""
}

// Due implements store.Index.
func (x index) Due(ctx context.Context, kind string, now time.Time, limit int) ([]store.Doc, error) {
	return x.find(ctx, kind, limit,
		"SELECT name, rev, due, body FROM docs WHERE kind = $1 AND due IS NOT NULL AND due <= $3 ORDER BY due, name LIMIT $2", toMicros(now))
}

// Since implements store.Index.
func (x index) Since(ctx context.Context, kind string, rev uint64, limit int) ([]store.Doc, error) {
	return x.find(ctx, kind, limit,
		"SELECT name, rev, due, body FROM docs WHERE kind = $1 AND rev > $3 ORDER BY rev LIMIT $2", toInt(rev))
}

func (x index) find(ctx context.Context, kind string, limit int, query string, args ...any) ([]store.Doc, error) {
	if err := x.reading(ctx); err != nil {
		return nil, err
	}
	if err := store.CheckLimit(limit); err != nil {
		return nil, fmt.Errorf("postgres: find documents: %w", err)
	}
	if !plain(kind) {
		return nil, nil
	}
	scan := func(rows pgx.Rows) (store.Doc, error) {
		doc := store.Doc{Kind: kind}
		var due *int64
		err := rows.Scan(&doc.Name, &doc.Rev, &due, &doc.Body)
		if due != nil {
			doc.Due = fromMicros(*due)
		}
		x.known.setDoc(kind, doc.Name, toInt(doc.Rev))
		return doc, err
	}
	found, err := collectRows(x.tx, scan, query, append([]any{kind, limit}, args...)...)
	return found, x.fail("find documents", err)
}
