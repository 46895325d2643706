package sqlite_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

// window is the length in bytes of the pieces of material that are looked for.
const window = 16

// material returns n random bytes that a scan can find in part.
func material(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// TestDeletedMaterialIsGone writes and deletes material in a random order, so
// that SQLite splits, merges and rearranges its pages, and then looks for every
// deleted byte in every file of the database. SQLite's secure_delete alone does
// not pass: it leaves copies of rows in the unused parts of pages it rearranged.
func TestDeletedMaterialIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	s := open(t, path)
	random := mathrand.New(mathrand.NewPCG(1, 2))
	live, gone := map[key.Name][]byte{}, map[key.Name][]byte{}
	step := func(tx store.Tx) error {
		name := key.Name(fmt.Sprintf("prod/%d/db", random.IntN(1_000_000)))
		if live[name] == nil && gone[name] == nil && random.IntN(2) == 0 {
			live[name] = material(100 + random.IntN([]int{300, 300, 300, 9000}[random.IntN(4)]))
			if err := tx.Materials.Put(t.Context(), name, 1, live[name]); err != nil {
				return err
			}
		}
		for name, sealed := range live {
			if random.IntN(3) > 0 {
				break
			}
			delete(live, name)
			gone[name] = sealed
			return tx.Materials.Delete(t.Context(), name, 1)
		}
		return nil
	}
	for range 25 {
		update(t, s, func(tx store.Tx) error {
			for range 400 {
				if err := step(tx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := s.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	files := databaseFiles(t, path)
	found, present := countIn(files, gone), countIn(files, live)
	if len(gone) < 2000 || found > 0 {
		t.Errorf("parts of %d among %d deleted materials are still in the files", found, len(gone))
	}
	if len(live) < 500 || present != len(live) {
		t.Errorf("the scan found %d of %d live materials: it proves nothing", present, len(live))
	}
}

// TestLogIsEmptiedAfterDeletion: nobody asks for the checkpoint, and a View
// delays it.
func TestLogIsEmptiedAfterDeletion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	s := open(t, path)
	sealed := material(300)
	update(t, s, func(tx store.Tx) error { return tx.Materials.Put(t.Context(), "prod/db", 1, sealed) })
	if !contains(databaseFiles(t, path), sealed) {
		t.Fatal("the material is in no file: the scan proves nothing")
	}
	err := s.View(t.Context(), func(tx store.Tx) error {
		if _, err := tx.Materials.Get(t.Context(), "prod/db", 1); err != nil {
			return err
		}
		update(t, s, func(tx store.Tx) error { return tx.Materials.Delete(t.Context(), "prod/db", 1) })
		got, err := tx.Materials.Get(t.Context(), "prod/db", 1)
		if !bytes.Equal(got, sealed) {
			t.Error("the View lost its snapshot")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the material leaves the files", func() bool { return !contains(databaseFiles(t, path), sealed) })
}

// countIn returns how many materials have a part in one of the files.
func countIn(files [][]byte, materials map[key.Name][]byte) int {
	owners := make(map[uint64]key.Name) // by the first 8 bytes of each part
	for name, sealed := range materials {
		for at := 0; at+window <= len(sealed); at += window {
			owners[binary.LittleEndian.Uint64(sealed[at:])] = name
		}
	}
	found := make(map[key.Name]bool)
	for _, file := range files {
		for at := 0; at+8 <= len(file); at++ {
			if name, ok := owners[binary.LittleEndian.Uint64(file[at:])]; ok {
				found[name] = true
			}
		}
	}
	return len(found)
}

func contains(files [][]byte, sealed []byte) bool {
	return countIn(files, map[key.Name][]byte{"": sealed}) > 0
}

func databaseFiles(t *testing.T, path string) (files [][]byte) {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) < 3 {
		t.Fatalf("files of the database: %q, %v", names, err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, content)
	}
	return files
}

// eventually polls a condition on the file system.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 4000 {
		if condition() {
			return
		}
		<-tick.C
	}
	t.Fatalf("did not happen within 20 s: %s", what)
}

func update(t testing.TB, s *sqlite.Store, fn func(store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}
