package postgres_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/pgtest"
)

// window is the length in bytes of the pieces of material that are looked for.
const window = 16

func material(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// TestDeletedMaterialIsGone deletes material and looks for it in the files of the
// tables after the rewriting and a checkpoint, and in the write-ahead log after
// its segments were removed.
func TestDeletedMaterialIsGone(t *testing.T) {
	url := newDatabase(t)
	s := open(t, url)
	ctx := t.Context()
	random := mathrand.New(mathrand.NewPCG(1, 2))
	live, gone := map[key.Name][]byte{}, map[key.Name][]byte{}
	for round := range 5 {
		update(t, s, func(tx store.Tx) error {
			for i := range 100 {
				name := key.Name(fmt.Sprintf("prod/%d/%d", round, i))
				live[name] = material(100 + random.IntN([]int{300, 300, 300, 9000}[random.IntN(4)]))
				if err := tx.Materials.Put(ctx, name, 1, live[name]); err != nil {
					return err
				}
			}
			return nil
		})
		update(t, s, func(tx store.Tx) error {
			for name, sealed := range live {
				if random.IntN(2) == 0 {
					continue
				}
				delete(live, name)
				gone[name] = sealed
				if err := tx.Materials.Delete(ctx, name, 1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	conn := pgtest.Connect(t, url)
	exec := func(statement string) {
		t.Helper()
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	var oid uint32
	must(t, conn.QueryRow(ctx, "SELECT oid FROM pg_database WHERE datname = current_database()").Scan(&oid))
	tables := filepath.Join(shared.DataDir(), "base", fmt.Sprint(oid))
	wal := filepath.Join(shared.DataDir(), "pg_wal")

	// A View that may still want to see it keeps it.
	var sample key.Name
	for sample = range live {
		break
	}
	err := s.View(ctx, func(tx store.Tx) error {
		if _, err := tx.Materials.Get(ctx, sample, 1); err != nil {
			return err
		}
		update(t, s, func(tx store.Tx) error { return tx.Materials.Delete(ctx, sample, 1) })
		gone[sample] = live[sample]
		delete(live, sample)
		got, err := tx.Materials.Get(ctx, sample, 1)
		if !bytes.Equal(got, gone[sample]) {
			t.Error("the View lost its snapshot")
		}
		return err
	})
	must(t, err)

	// The scan finds in the log what was just written; a checkpoint, which others may
	// cause, can remove its segment at any time.
	seen := false
	for i := 0; i < 10 && !seen; i++ {
		name := key.Name(fmt.Sprintf("prod/control/%d", i))
		gone[name] = material(300)
		update(t, s, func(tx store.Tx) error { return tx.Materials.Put(ctx, name, 1, gone[name]) })
		seen = countIn(t, wal, map[key.Name][]byte{name: gone[name]}) == 1
		update(t, s, func(tx store.Tx) error { return tx.Materials.Delete(ctx, name, 1) })
	}
	if !seen {
		t.Error("the scan does not find in the log what was just written: it proves nothing")
	}

	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	must(t, s.Shred(bounded))
	exec("CHECKPOINT")
	if found := countIn(t, tables, gone); found > 0 {
		t.Errorf("parts of %d among %d deleted materials are still in the tables", found, len(gone))
	}
	present := countIn(t, tables, live)
	for i := 0; i < 10 && present != len(live); i++ {
		present = countIn(t, tables, live) // a page was being written
	}
	if present != len(live) || present < 50 {
		t.Errorf("the scan found %d of %d live materials: it proves nothing", present, len(live))
	}
	exec("SELECT pg_switch_wal()")
	exec("CHECKPOINT")
	exec("SELECT pg_switch_wal()")
	exec("CHECKPOINT")
	if found := countIn(t, wal, gone); found > 0 {
		t.Errorf("parts of %d among %d deleted materials are still in the log", found, len(gone))
	}
	var left int
	must(t, conn.QueryRow(ctx, "SELECT count(*) FROM keyturn.shreds").Scan(&left))
	if left > 0 {
		t.Errorf("%d parts are noted though they were rewritten", left)
	}
}

// TestMaterialIsRewrittenSoon: nobody asks for it, and a node that dies between a
// deletion and the rewriting leaves it to the next.
func TestMaterialIsRewrittenSoon(t *testing.T) {
	url := newDatabase(t)
	s := open(t, url)
	update(t, s, func(tx store.Tx) error { return tx.Materials.Put(t.Context(), "prod/db", 1, material(300)) })
	s.Die() // its shredder ends
	update(t, s, func(tx store.Tx) error { return tx.Materials.Delete(t.Context(), "prod/db", 1) })
	conn := pgtest.Connect(t, url)
	noted := func() (n int) {
		must(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM keyturn.shreds").Scan(&n))
		return n
	}
	if noted() != 1 {
		t.Fatalf("%d parts are noted", noted())
	}
	open(t, url)
	pgtest.Eventually(t, "the next node rewrites it", func() bool { return noted() == 0 })
}

// countIn returns how many materials have a part in a file of the folder.
func countIn(t *testing.T, folder string, materials map[key.Name][]byte) int {
	t.Helper()
	owners := make(map[uint64]key.Name) // by the first 8 bytes of each part
	for name, sealed := range materials {
		for at := 0; at+window <= len(sealed); at += window {
			owners[binary.LittleEndian.Uint64(sealed[at:])] = name
		}
	}
	entries, err := os.ReadDir(folder)
	must(t, err)
	found := make(map[key.Name]bool)
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		file, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if os.IsNotExist(err) {
			continue // removed meanwhile
		}
		must(t, err)
		for at := 0; at+8 <= len(file); at++ {
			if name, ok := owners[binary.LittleEndian.Uint64(file[at:])]; ok {
				found[name] = true
			}
		}
	}
	return len(found)
}
