package storetest

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

func testDocs(t *testing.T, s store.Store) {
	ctx := t.Context()
	rev := put(t, s, store.Doc{Kind: "k", Name: "a", Due: epoch, Body: []byte("1")})
	put(t, s, store.Doc{Kind: "other", Name: "a"})
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a", Body: []byte("2")})
		wantError(t, "create what exists", err, store.ErrConflict)
		_, err = tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a", Rev: rev + 100, Body: []byte("2")})
		wantError(t, "write another revision", err, store.ErrConflict)
		_, err = tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "new", Rev: rev})
		wantError(t, "write what is absent", err, store.ErrConflict)
		wantError(t, "delete another revision", tx.Docs.Delete(ctx, "k", "a", rev+100), store.ErrConflict)
		wantError(t, "delete what is absent", tx.Docs.Delete(ctx, "k", "new", rev), store.ErrNotFound)
		return nil
	})
	doc, found := get(t, s, "k", "a")
	if !found || string(doc.Body) != "1" || doc.Rev != rev || !doc.Due.Equal(epoch) || doc.Kind != "k" || doc.Name != "a" {
		t.Errorf("after the conflicts: %+v", doc)
	}
	update(t, s, func(tx store.Tx) error {
		doc, err := store.Revision(ctx, tx.Docs, "k", "a")
		if err != nil || doc.Rev != rev || !doc.Due.Equal(epoch) || doc.Kind != "k" || doc.Name != "a" || doc.Body != nil {
			t.Errorf("the revision: %+v, %v", doc, err)
		}
		_, err = store.Revision(ctx, tx.Docs, "k", "new")
		wantError(t, "the revision of what is absent", err, store.ErrNotFound)
		return nil
	})
	next := put(t, s, store.Doc{Kind: "k", Name: "a", Rev: rev, Body: []byte("3")})
	if doc, _ := get(t, s, "k", "a"); doc.Rev != next || next <= rev || string(doc.Body) != "3" || !doc.Due.IsZero() {
		t.Errorf("after the write: %+v, revision %d before", doc, rev)
	}
	update(t, s, func(tx store.Tx) error { return tx.Docs.Delete(ctx, "k", "a", next) })
	if _, found := get(t, s, "k", "a"); found {
		t.Error("the document outlived its deletion")
	}
	if again := put(t, s, store.Doc{Kind: "k", Name: "a"}); again <= next {
		t.Errorf("revision %d was given after %d", again, next)
	}
	if _, found := get(t, s, "other", "a"); !found {
		t.Error("a document of another kind is gone")
	}
}

// testGetAll: documents read together are those read one by one, within the
// transaction that writes them as well.
func testGetAll(t *testing.T, s store.Store) {
	ctx := t.Context()
	rev := put(t, s, store.Doc{Kind: "k", Name: "a", Due: epoch, Body: []byte("1")})
	put(t, s, store.Doc{Kind: "k", Name: "b"})
	put(t, s, store.Doc{Kind: "k", Name: "c"})
	put(t, s, store.Doc{Kind: "other", Name: "absent"})
	names := []string{"a", "absent", "a", "b", "new", "no\x00text", ""}
	look := func(tx store.Tx, want ...string) {
		t.Helper()
		all, err := store.GetAll(ctx, tx.Docs, "k", names)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, want) {
			t.Errorf("read %q, want %q", got, want)
		}
		for name, doc := range all {
			alone, err := tx.Docs.Get(ctx, "k", name)
			if err != nil || !reflect.DeepEqual(doc, alone) {
				t.Errorf("read together %+v, alone %+v, %v", doc, alone, err)
			}
		}
	}
	view(t, s, func(tx store.Tx) error {
		look(tx, "a", "b")
		none, err := store.GetAll(ctx, tx.Docs, "k", nil)
		if err != nil || len(none) != 0 {
			t.Errorf("no names: %v, %v", none, err)
		}
		_, err = store.GetAll(ctx, tx.Docs, "k", make([]string, store.MaxLimit+1))
		wantError(t, "too many names", err, store.ErrInvalid)
		return nil
	})
	update(t, s, func(tx store.Tx) error {
		look(tx, "a", "b")
		// What is known to be absent may be created, what is known to exist replaced.
		if _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "new", Body: []byte("2")}); err != nil {
			t.Errorf("create: %v", err)
		}
		if _, err := tx.Docs.Put(ctx, store.Doc{Kind: "k", Name: "a", Rev: rev, Body: []byte("3")}); err != nil {
			t.Errorf("replace: %v", err)
		}
		look(tx, "a", "b", "new")
		return nil
	})
}

// testRevisions: every write anywhere gets a larger revision, from whichever
// goroutine and although some writers fail.
func testRevisions(t *testing.T, s store.Store) {
	const workers, rounds = 4, 20
	revs := make(chan uint64, workers*rounds)
	done := make(chan error, workers)
	for w := range workers {
		go func() {
			var last uint64
			for i := range rounds {
				var rev uint64
				err := s.Update(t.Context(), func(tx store.Tx) (err error) {
					rev, err = tx.Docs.Put(t.Context(), store.Doc{Kind: fmt.Sprint(w), Name: fmt.Sprint(i)})
					if i%5 == 4 {
						return errDeliberate
					}
					return err
				})
				if i%5 == 4 {
					continue
				}
				if err != nil || rev <= last {
					done <- fmt.Errorf("revision %d after %d: %w", rev, last, err)
					return
				}
				last = rev
				revs <- rev
			}
			done <- nil
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	close(revs)
	seen := map[uint64]bool{}
	for rev := range revs {
		if seen[rev] {
			t.Errorf("revision %d was given twice", rev)
		}
		seen[rev] = true
	}
}

func testDocLimits(t *testing.T, s store.Store) {
	longest := strings.Repeat("n", store.MaxName)
	rev := put(t, s, store.Doc{Kind: longest, Name: longest, Body: make([]byte, store.MaxBody)})
	if doc, found := get(t, s, longest, longest); !found || len(doc.Body) != store.MaxBody || doc.Rev != rev {
		t.Errorf("the largest document came back with %d bytes", len(doc.Body))
	}
	for what, doc := range map[string]store.Doc{
		"no kind":      {Name: "a"},
		"no name":      {Kind: "k"},
		"long kind":    {Kind: longest + "n", Name: "a"},
		"long name":    {Kind: "k", Name: longest + "n"},
		"NUL":          {Kind: "k", Name: "a\x00b"},
		"not UTF-8":    {Kind: "k", Name: "\xff"},
		"body too big": {Kind: "k", Name: "a", Body: make([]byte, store.MaxBody+1)},
	} {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			_, err := tx.Docs.Put(t.Context(), doc)
			return err
		})
		wantError(t, what, err, store.ErrInvalid)
	}
}

func testList(t *testing.T, s store.Store) {
	names := []string{"a", "a/", "a/b", "a/b/c", "a0", "ab", "b", "b/a", "z", "ä", "ä/ö", "%", "_", "A"}
	for _, name := range names {
		put(t, s, store.Doc{Kind: "k", Name: name, Body: []byte(name)})
		put(t, s, store.Doc{Kind: "k2", Name: name})
	}
	slices.Sort(names)
	prefixes := append([]string{"", "a/b/c/d", "zz", "\xff", "c"}, names...)
	afters := append([]string{"", "aa", "zzz", "\xf4\x8f\xbf\xbf"}, names...)
	view(t, s, func(tx store.Tx) error {
		for _, prefix := range prefixes {
			for _, after := range afters {
				for _, limit := range []int{1, 3, store.MaxLimit} {
					var want []string
					for _, name := range names {
						if strings.HasPrefix(name, prefix) && name > after && len(want) < limit {
							want = append(want, name)
						}
					}
					docs, err := tx.Index.List(t.Context(), "k", prefix, after, limit)
					if err != nil {
						return err
					}
					if got := namesOf(docs); !slices.Equal(got, want) {
						t.Errorf("List(prefix %q, after %q, limit %d) = %q, want %q", prefix, after, limit, got, want)
					}
					for _, doc := range docs {
						if string(doc.Body) != doc.Name || doc.Kind != "k" || doc.Rev == 0 {
							t.Errorf("List returned %+v", doc)
						}
					}
				}
			}
		}
		return nil
	})
}

func testDue(t *testing.T, s store.Store) {
	for name, due := range map[string]time.Time{
		"never": {}, "past": epoch.Add(-time.Hour), "now": epoch, "next": epoch.Add(time.Microsecond), "first": epoch.Add(-2 * time.Hour),
	} {
		put(t, s, store.Doc{Kind: "k", Name: name, Due: due})
	}
	put(t, s, store.Doc{Kind: "k2", Name: "other", Due: epoch.Add(-time.Hour)})
	for _, test := range []struct {
		now   time.Time
		limit int
		want  []string
	}{
		{epoch, 10, []string{"first", "past", "now"}},
		{epoch, 2, []string{"first", "past"}},
		{epoch.Add(time.Microsecond), 10, []string{"first", "past", "now", "next"}},
		{epoch.Add(-3 * time.Hour), 10, nil},
	} {
		view(t, s, func(tx store.Tx) error {
			docs, err := tx.Index.Due(t.Context(), "k", test.now, test.limit)
			if got := namesOf(docs); !slices.Equal(got, test.want) {
				t.Errorf("Due(%v, %d) = %q, want %q", test.now, test.limit, got, test.want)
			}
			return err
		})
	}
	doc, _ := get(t, s, "k", "past")
	doc.Due = time.Time{}
	put(t, s, doc)
	view(t, s, func(tx store.Tx) error {
		docs, err := tx.Index.Due(t.Context(), "k", epoch, 10)
		if got := namesOf(docs); !slices.Equal(got, []string{"first", "now"}) {
			t.Errorf("after the due time was taken away: %q", got)
		}
		return err
	})
}

func testSince(t *testing.T, s store.Store) {
	revs := map[string]uint64{}
	for _, name := range []string{"c", "a", "b"} {
		revs[name] = put(t, s, store.Doc{Kind: "k", Name: name})
		put(t, s, store.Doc{Kind: "k2", Name: name})
	}
	revs["c"] = put(t, s, store.Doc{Kind: "k", Name: "c", Rev: revs["c"]})
	since := func(rev uint64, limit int) (got []string) {
		view(t, s, func(tx store.Tx) error {
			docs, err := tx.Index.Since(t.Context(), "k", rev, limit)
			got = namesOf(docs)
			return err
		})
		return got
	}
	for _, test := range []struct {
		rev   uint64
		limit int
		want  []string
	}{{0, 10, []string{"a", "b", "c"}}, {0, 2, []string{"a", "b"}}, {revs["a"], 10, []string{"b", "c"}}, {revs["c"], 10, nil}, {1 << 63, 10, nil}} {
		if got := since(test.rev, test.limit); !slices.Equal(got, test.want) {
			t.Errorf("Since(%d, %d) = %q, want %q", test.rev, test.limit, got, test.want)
		}
	}
	update(t, s, func(tx store.Tx) error { return tx.Docs.Delete(t.Context(), "k", "b", revs["b"]) })
	if got := since(0, 10); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("after a deletion: %q", got)
	}
}

func testLimits(t *testing.T, s store.Store) {
	ctx := t.Context()
	for _, limit := range []int{-1, 0, store.MaxLimit + 1} {
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Index.List(ctx, "k", "", "", limit)
			wantError(t, fmt.Sprintf("List, limit %d", limit), err, store.ErrInvalid)
			_, err = tx.Index.Due(ctx, "k", epoch, limit)
			wantError(t, fmt.Sprintf("Due, limit %d", limit), err, store.ErrInvalid)
			_, err = tx.Index.Since(ctx, "k", 0, limit)
			wantError(t, fmt.Sprintf("Since, limit %d", limit), err, store.ErrInvalid)
			_, err = tx.Events.Load(ctx, "a", 0, limit)
			wantError(t, fmt.Sprintf("Load, limit %d", limit), err, store.ErrInvalid)
			_, err = tx.Events.OfRotation(ctx, key.RotationID{}, limit)
			wantError(t, fmt.Sprintf("OfRotation, limit %d", limit), err, store.ErrInvalid)
			_, _, err = tx.Log.Records(ctx, 0, limit)
			wantError(t, fmt.Sprintf("Records, limit %d", limit), err, store.ErrInvalid)
			return nil
		})
	}
}

func namesOf(docs []store.Doc) (names []string) {
	for _, doc := range docs {
		names = append(names, doc.Name)
	}
	return names
}

// testDocsModel compares random histories with a map.
func testDocsModel(t *testing.T, s store.Store) {
	ctx, run := t.Context(), 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		kind := fmt.Sprintf("kind %d", run) // a fresh one: the store is shared by all runs
		model := map[string]store.Doc{}
		name := rapid.StringMatching(`[ab/ä]{1,3}`)
		due := rapid.Custom(func(rt *rapid.T) time.Time {
			if rapid.Bool().Draw(rt, "never") {
				return time.Time{}
			}
			return epoch.Add(time.Duration(rapid.IntRange(-5, 5).Draw(rt, "due")) * time.Second)
		})
		// transaction applies writes to the store and, when it commits, to the model.
		transaction := func(rt *rapid.T, write func(tx store.Tx, model map[string]store.Doc)) {
			commit := rapid.IntRange(0, 3).Draw(rt, "commit") > 0
			copied := map[string]store.Doc{}
			err := s.Update(ctx, func(tx store.Tx) error {
				clear(copied)
				for n, doc := range model {
					copied[n] = doc
				}
				write(tx, copied)
				if !commit {
					return errDeliberate
				}
				return nil
			})
			if commit != (err == nil) {
				rt.Fatalf("Update: %v", err)
			}
			if commit {
				model = copied
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				doc := store.Doc{Kind: kind, Name: name.Draw(rt, "name"), Due: due.Draw(rt, "due"), Body: rapid.SliceOfN(rapid.Byte(), 0, 4).Draw(rt, "body")}
				right := rapid.IntRange(0, 4).Draw(rt, "right") > 0
				transaction(rt, func(tx store.Tx, model map[string]store.Doc) {
					doc.Rev = model[doc.Name].Rev
					if !right {
						doc.Rev++
					}
					rev, err := tx.Docs.Put(ctx, doc)
					if right != (err == nil) {
						rt.Fatalf("Put(%+v): %v", doc, err)
					}
					if right {
						doc.Rev = rev
						model[doc.Name] = doc
					}
				})
			},
			"delete": func(rt *rapid.T) {
				n := name.Draw(rt, "name")
				transaction(rt, func(tx store.Tx, model map[string]store.Doc) {
					doc, exists := model[n]
					if err := tx.Docs.Delete(ctx, kind, n, doc.Rev); exists != (err == nil) {
						rt.Fatalf("Delete(%q): %v", n, err)
					}
					delete(model, n)
				})
			},
			"": func(rt *rapid.T) {
				var byName, byRev, byDue []store.Doc
				for _, doc := range model {
					byName = append(byName, doc)
					if !doc.Due.IsZero() && !doc.Due.After(epoch) {
						byDue = append(byDue, doc)
					}
				}
				byRev = slices.Clone(byName)
				slices.SortFunc(byName, func(a, b store.Doc) int { return strings.Compare(a.Name, b.Name) })
				slices.SortFunc(byRev, func(a, b store.Doc) int { return int(a.Rev) - int(b.Rev) })
				err := s.View(ctx, func(tx store.Tx) error {
					list, err := tx.Index.List(ctx, kind, "", "", 100)
					if err != nil {
						return err
					}
					compareDocs(rt, "List", list, byName)
					if list, err = tx.Index.Since(ctx, kind, 0, 100); err != nil {
						return err
					}
					compareDocs(rt, "Since", list, byRev)
					if list, err = tx.Index.Due(ctx, kind, epoch, 100); err != nil {
						return err
					}
					if !slices.IsSortedFunc(list, func(a, b store.Doc) int { return a.Due.Compare(b.Due) }) {
						rt.Fatalf("Due is not in order: %+v", list)
					}
					slices.SortFunc(list, func(a, b store.Doc) int { return int(a.Rev) - int(b.Rev) })
					slices.SortFunc(byDue, func(a, b store.Doc) int { return int(a.Rev) - int(b.Rev) })
					compareDocs(rt, "Due", list, byDue)
					return nil
				})
				if err != nil {
					rt.Fatal(err)
				}
			},
		})
	})
}

func compareDocs(t rapid.TB, what string, got, want []store.Doc) {
	t.Helper()
	equal := slices.EqualFunc(got, want, func(a, b store.Doc) bool {
		return a.Kind == b.Kind && a.Name == b.Name && a.Rev == b.Rev && a.Due.Equal(b.Due) && string(a.Body) == string(b.Body)
	})
	if !equal {
		t.Fatalf("%s = %+v, want %+v", what, got, want)
	}
}

func testEvents(t *testing.T, s store.Store) {
	ctx := t.Context()
	event := func(name key.Name, seq uint64) store.Event {
		return store.Event{Key: name, Seq: seq, Type: "type", At: epoch.Add(time.Duration(seq) * time.Second), Rotation: key.RotationID{byte(seq)}, Body: []byte(fmt.Sprint(name, seq))}
	}
	appendAll := func(events ...store.Event) error {
		return s.Update(ctx, func(tx store.Tx) error { return tx.Events.Append(ctx, events...) })
	}
	load := func(name key.Name, after uint64, limit int) (got []store.Event) {
		view(t, s, func(tx store.Tx) (err error) {
			got, err = tx.Events.Load(ctx, name, after, limit)
			return err
		})
		return got
	}
	wantError(t, "begin at 2", appendAll(event("a", 2)), store.ErrConflict)
	wantError(t, "begin at 0", appendAll(event("a", 0)), store.ErrInvalid)
	if err := appendAll(event("a", 1), event("b", 1), event("a", 2)); err != nil {
		t.Fatal(err)
	}
	wantError(t, "taken", appendAll(event("a", 2)), store.ErrConflict)
	wantError(t, "gap", appendAll(event("a", 4)), store.ErrConflict)
	wantError(t, "gap within", appendAll(event("a", 3), event("a", 5)), store.ErrConflict)
	wantError(t, "no type", appendAll(store.Event{Key: "a", Seq: 3}), store.ErrInvalid)
	wantError(t, "too long", appendAll(store.Event{Key: "a", Seq: 3, Type: "t", Body: make([]byte, store.MaxBody+1)}), store.ErrInvalid)
	update(t, s, func(tx store.Tx) error {
		_ = tx.Events.Append(ctx, event("a", 3), event("b", 3)) // has no effect, not even the good half
		return nil
	})
	if err := appendAll(event("a", 3)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  key.Name
		after uint64
		limit int
		want  []uint64
	}{{"a", 0, 10, []uint64{1, 2, 3}}, {"a", 1, 10, []uint64{2, 3}}, {"a", 0, 2, []uint64{1, 2}}, {"a", 3, 10, nil}, {"b", 0, 10, []uint64{1}}, {"c", 0, 10, nil}, {"a", 1 << 63, 10, nil}} {
		got := load(test.name, test.after, test.limit)
		var seqs []uint64
		for _, e := range got {
			seqs = append(seqs, e.Seq)
			if want := event(e.Key, e.Seq); e.Key != test.name || !e.At.Equal(want.At) || e.Rotation != want.Rotation || e.Type != want.Type || string(e.Body) != string(want.Body) {
				t.Errorf("event came back as %+v, want %+v", e, want)
			}
		}
		if !slices.Equal(seqs, test.want) {
			t.Errorf("Load(%s, %d, %d) = %v, want %v", test.name, test.after, test.limit, seqs, test.want)
		}
	}
}

func testEventsOfRotation(t *testing.T, s store.Store) {
	ctx := t.Context()
	one, two := key.RotationID{1}, key.RotationID{2}
	update(t, s, func(tx store.Tx) error {
		for i, rotation := range []key.RotationID{one, two, one, {}, two, one} {
			if err := tx.Events.Append(ctx, store.Event{Key: "a", Seq: uint64(i + 1), Type: "t", Rotation: rotation}); err != nil {
				return err
			}
		}
		return nil
	})
	view(t, s, func(tx store.Tx) error {
		for _, test := range []struct {
			id    key.RotationID
			limit int
			want  []uint64
		}{{one, 10, []uint64{1, 3, 6}}, {one, 2, []uint64{1, 3}}, {two, 10, []uint64{2, 5}}, {key.RotationID{3}, 10, nil}} {
			events, err := tx.Events.OfRotation(ctx, test.id, test.limit)
			var seqs []uint64
			for _, e := range events {
				seqs = append(seqs, e.Seq)
			}
			if !slices.Equal(seqs, test.want) || err != nil {
				t.Errorf("OfRotation(%v, %d) = %v, %v; want %v", test.id, test.limit, seqs, err, test.want)
			}
		}
		return nil
	})
}
