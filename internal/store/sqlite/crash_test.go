package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

const crashWorkers = 6

func crashKey(worker int) key.Name { return key.Name(fmt.Sprintf("worker-%d", worker)) }

// crashChild writes without end, and prints each number after its commit.
func crashChild(path string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	failed := make(chan error)
	for worker := range crashWorkers {
		go func() {
			for {
				var seq uint64
				err := s.Update(ctx, func(tx store.Tx) (err error) {
					seq, err = crashWrite(ctx, tx, worker)
					return err
				})
				if err != nil {
					failed <- err
					return
				}
				if _, err := fmt.Fprintf(os.Stdout, "%d %d\n", worker, seq); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

// crashWrite writes one event, one document, one log record and one material
// that belong together.
func crashWrite(ctx context.Context, tx store.Tx, worker int) (uint64, error) {
	name := crashKey(worker)
	kind := string(name)
	last := uint64(0)
	counter, err := tx.Docs.Get(ctx, "counter", kind)
	if err == nil {
		if _, err := fmt.Sscan(string(counter.Body), &last); err != nil {
			return 0, err
		}
	}
	seq := last + 1
	counter.Kind, counter.Name, counter.Body = "counter", kind, fmt.Append(nil, seq)
	if _, err := tx.Docs.Put(ctx, counter); err != nil {
		return 0, err
	}
	if err := tx.Events.Append(ctx, store.Event{Key: name, Seq: seq, Type: "written"}); err != nil {
		return 0, err
	}
	_, size, err := tx.Log.Records(ctx, 0, 1)
	if err != nil {
		return 0, err
	}
	if err := tx.Log.Append(ctx, size, [][]byte{fmt.Append(nil, worker)}, size, []store.Hash{{byte(worker)}}); err != nil {
		return 0, err
	}
	return seq, tx.Materials.Put(ctx, name, key.Version(seq), fmt.Append(nil, seq))
}

// TestCrash kills a process in the middle of writing, many times, and checks
// that what it acknowledged is there, and that nothing is there by halves.
func TestCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyturn.db")
	acknowledged := map[int]uint64{}
	for range 10 {
		lines := crashOnce(t, path, 1+rand.IntN(300), acknowledged)
		s := open(t, path)
		var total uint64
		for worker := range crashWorkers {
			total += checkSurvivor(t, s, worker, acknowledged[worker])
		}
		err := s.View(t.Context(), func(tx store.Tx) error {
			_, size, err := tx.Log.Records(t.Context(), 0, 1)
			if size != total {
				t.Errorf("the log has %d records, %d were written", size, total)
			}
			if _, err := tx.Log.Hashes(t.Context(), []uint64{size - 1}); err != nil {
				t.Errorf("last hash: %v", err)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if lines == 0 {
			t.Fatal("the child acknowledged nothing")
		}
	}
}

// crashOnce starts a child, kills it after so many acknowledgements, and notes
// those and the ones that were under way.
func crashOnce(t *testing.T, path string, after int, acknowledged map[int]uint64) (lines int) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], path)
	child.Env = append(os.Environ(), childVariable+"=crash")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		var worker int
		var seq uint64
		if _, err := fmt.Sscan(scanner.Text(), &worker, &seq); err != nil {
			break // the line that was cut off
		}
		acknowledged[worker] = seq
		if lines++; lines == after {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := child.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	return lines
}

// checkSurvivor returns how much of one worker is there.
func checkSurvivor(t *testing.T, s *sqlite.Store, worker int, acknowledged uint64) uint64 {
	t.Helper()
	ctx, name := t.Context(), crashKey(worker)
	var counted, events uint64
	err := s.View(ctx, func(tx store.Tx) error {
		if counter, err := tx.Docs.Get(ctx, "counter", string(name)); err == nil {
			if _, err := fmt.Sscan(string(counter.Body), &counted); err != nil {
				return err
			}
		}
		for {
			list, err := tx.Events.Load(ctx, name, events, 1000)
			if err != nil {
				return err
			}
			if len(list) == 0 {
				break
			}
			events += uint64(len(list))
			if last := list[len(list)-1].Seq; last != events {
				t.Errorf("worker %d: event %d is number %d", worker, events, last)
			}
		}
		for seq := uint64(1); seq <= counted; seq++ {
			if sealed, err := tx.Materials.Get(ctx, name, key.Version(seq)); err != nil || string(sealed) != fmt.Sprint(seq) {
				t.Errorf("worker %d: material %d: %q, %v", worker, seq, sealed, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// One more than was acknowledged may have been committed before the kill.
	if events != counted || counted < acknowledged || counted > acknowledged+1 {
		t.Errorf("worker %d: %d acknowledged, %d counted, %d events", worker, acknowledged, counted, events)
	}
	return counted
}
