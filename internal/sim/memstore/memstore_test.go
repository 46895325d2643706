package memstore_test

import (
	"testing"

	"github.com/keyturn/keyturn/internal/sim/memstore"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/storetest"
)

// reopenable is a store whose state is put back as after a crash.
type reopenable struct{ *memstore.Store }

func (r reopenable) Reopen(*testing.T) store.Store {
	fresh := memstore.New()
	fresh.Restore(r.Backup())
	return fresh
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return reopenable{memstore.New()} })
}

// TestRestore: after a restore the history parts, and neither sees the other.
func TestRestore(t *testing.T) {
	s := memstore.New()
	add := func(seq uint64, body string) {
		t.Helper()
		err := s.Update(t.Context(), func(tx store.Tx) error {
			if err := tx.Log.Append(t.Context(), seq-1, [][]byte{[]byte(body)}, 0, nil); err != nil {
				return err
			}
			return tx.Events.Append(t.Context(), store.Event{Key: "a", Seq: seq, Type: "e", Body: []byte(body)})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	add(1, "one")
	backup := s.Backup()
	add(2, "lost")
	later := s.Backup()
	s.Restore(backup)
	add(2, "new")
	read := func(s *memstore.Store) (body, record string) {
		err := s.View(t.Context(), func(tx store.Tx) error {
			events, err := tx.Events.Load(t.Context(), "a", 1, 10)
			if err != nil {
				return err
			}
			records, _, err := tx.Log.Records(t.Context(), 1, 10)
			body, record = string(events[0].Body), string(records[0])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return body, record
	}
	if body, record := read(s); body != "new" || record != "new" {
		t.Errorf("after the restore: %s, %s", body, record)
	}
	s.Restore(later)
	if body, record := read(s); body != "lost" || record != "lost" {
		t.Errorf("the later backup holds %s, %s", body, record)
	}
}
