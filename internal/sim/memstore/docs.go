package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/store"
)

// micro is a time as stores keep it.
func micro(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

type docs struct{ *tx }

func (t *tx) find(kind, name string) (int, bool) {
	return slices.BinarySearchFunc(t.state.docs[kind], name, func(d store.Doc, name string) int { return cmp.Compare(d.Name, name) })
}

// own returns the documents of a kind in a copy that may be changed.
func (t *tx) own(kind string) []store.Doc {
	if !t.ownDocs {
		t.state.docs, t.ownDocs, t.ownKinds = maps.Clone(t.state.docs), true, map[string]bool{}
		if t.state.docs == nil {
			t.state.docs = map[string][]store.Doc{}
		}
	}
	if !t.ownKinds[kind] {
		t.state.docs[kind] = slices.Clone(t.state.docs[kind])
		t.ownKinds[kind] = true
	}
	return t.state.docs[kind]
}

// Get implements store.Docs.
func (d docs) Get(ctx context.Context, kind, name string) (store.Doc, error) {
	if err := d.reading(ctx); err != nil {
		return store.Doc{}, err
	}
	i, found := d.find(kind, name)
	if !found {
		return store.Doc{}, fmt.Errorf("memstore: document %s %q: %w", kind, name, store.ErrNotFound)
	}
	return copied(d.state.docs[kind][i]), nil
}

func copied(doc store.Doc) store.Doc {
	doc.Body = bytes.Clone(doc.Body)
	return doc
}

// Put implements store.Docs.
func (d docs) Put(ctx context.Context, doc store.Doc) (uint64, error) {
	if err := d.writing(ctx); err != nil {
		return 0, err
	}
	if err := doc.Check(); err != nil {
		return 0, fmt.Errorf("memstore: write a document: %w", err)
	}
	i, found := d.find(doc.Kind, doc.Name)
	if found != (doc.Rev != 0) || found && d.state.docs[doc.Kind][i].Rev != doc.Rev {
		return 0, fmt.Errorf("memstore: document %s %q is not at revision %d: %w", doc.Kind, doc.Name, doc.Rev, store.ErrConflict)
	}
	list := d.own(doc.Kind)
	d.store.rev++
	doc = copied(doc)
	doc.Rev, doc.Due = d.store.rev, micro(doc.Due)
	if found {
		list[i] = doc
	} else {
		d.state.docs[doc.Kind] = slices.Insert(list, i, doc)
	}
	d.touched.Add(store.TopicDocs)
	return doc.Rev, nil
}

// Delete implements store.Docs.
func (d docs) Delete(ctx context.Context, kind, name string, rev uint64) error {
	if err := d.writing(ctx); err != nil {
		return err
	}
	i, found := d.find(kind, name)
	switch {
	case !found:
		return fmt.Errorf("memstore: document %s %q: %w", kind, name, store.ErrNotFound)
	case d.state.docs[kind][i].Rev != rev:
		return fmt.Errorf("memstore: document %s %q is not at revision %d: %w", kind, name, rev, store.ErrConflict)
	}
	d.state.docs[kind] = slices.Delete(d.own(kind), i, i+1)
	d.touched.Add(store.TopicDocs)
	return nil
}

type index struct{ *tx }

// List implements store.Index.
func (x index) List(ctx context.Context, kind, prefix, after string, limit int) ([]store.Doc, error) {
	if err := x.checked(ctx, limit); err != nil {
		return nil, err
	}
	i, _ := x.find(kind, prefix)
	if after != "" && after >= prefix {
		var found bool
		if i, found = x.find(kind, after); found {
			i++
		}
	}
	var list []store.Doc
	for _, doc := range x.state.docs[kind][i:] {
		if len(list) == limit || !strings.HasPrefix(doc.Name, prefix) {
			break
		}
		list = append(list, copied(doc))
	}
	return list, nil
}

// Due implements store.Index. Its cost grows with what exists, which is little
// here.
func (x index) Due(ctx context.Context, kind string, now time.Time, limit int) ([]store.Doc, error) {
	return x.pick(ctx, kind, limit, func(d store.Doc) bool { return !d.Due.IsZero() && !d.Due.After(now) }, func(a, b store.Doc) int {
		return cmp.Or(a.Due.Compare(b.Due), cmp.Compare(a.Name, b.Name))
	})
}

// Since implements store.Index.
func (x index) Since(ctx context.Context, kind string, rev uint64, limit int) ([]store.Doc, error) {
	return x.pick(ctx, kind, limit, func(d store.Doc) bool { return d.Rev > rev }, func(a, b store.Doc) int { return cmp.Compare(a.Rev, b.Rev) })
}

func (x index) pick(ctx context.Context, kind string, limit int, wanted func(store.Doc) bool, order func(a, b store.Doc) int) ([]store.Doc, error) {
	if err := x.checked(ctx, limit); err != nil {
		return nil, err
	}
	var list []store.Doc
	for _, doc := range x.state.docs[kind] {
		if wanted(doc) {
			list = append(list, doc)
		}
	}
	slices.SortFunc(list, order)
	list = list[:min(limit, len(list))]
	for i := range list {
		list[i] = copied(list[i])
	}
	return list, nil
}

func (t *tx) checked(ctx context.Context, limit int) error {
	if err := t.reading(ctx); err != nil {
		return err
	}
	if err := store.CheckLimit(limit); err != nil {
		return fmt.Errorf("memstore: %w", err)
	}
	return nil
}
