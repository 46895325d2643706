package handout_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/handout"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/sqlite"
)

var eu = audit.Actor{ID: "eu", Kind: "gateway"}

// journal is a store whose transactions keep their audit entries in memory.
type journal struct {
	store.Store
	entries []audit.Entry
}

func (j *journal) Transact(ctx context.Context, actor audit.Actor, fn func(store.Tx, func(audit.Entry)) error) error {
	var entries []audit.Entry
	err := j.Update(ctx, func(tx store.Tx) error {
		entries = nil
		return fn(tx, func(e audit.Entry) { e.Actor = actor; entries = append(entries, e) })
	})
	if err == nil {
		j.entries = append(j.entries, entries...)
	}
	return err
}

func newWorld(t *testing.T) (*journal, handout.Config) {
	t.Helper()
	db, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(t.TempDir(), "test.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Stop(); err != nil {
			t.Error(err)
		}
	})
	j := &journal{Store: db}
	return j, handout.Config{Store: db, Journal: j, Now: time.Now}
}

func batchOf(id string, parties ...string) *handout.Batch {
	b := &handout.Batch{Gateway: "eu", ID: id}
	for i, party := range parties {
		first := time.Date(2026, 11, 26, 12, 0, i, 0, time.UTC)
		b.Handouts = append(b.Handouts, handout.Handout{
			Party: party, Key: "prod/db", Version: 3, Epoch: 7, Token: "0123", Address: netip.MustParseAddr("10.0.3.7"),
			Count: 2, First: first, Last: first.Add(time.Minute),
		})
	}
	return b
}

// TestRepeatedBatchesAreEnteredOnce: after lost answers, at another server, and after
// later batches.
func TestRepeatedBatchesAreEnteredOnce(t *testing.T) {
	j, config := newWorld(t)
	s := handout.New(config)
	for range 3 {
		if err := s.Enter(t.Context(), eu, batchOf("b1", "web-1", "web-2")); err != nil {
			t.Fatal(err)
		}
		s = handout.New(config)
	}
	list := j.entries
	if len(list) != 2 {
		t.Fatalf("%d entries", len(list))
	}
	got := list[1]
	want := map[string]string{
		"address": "10.0.3.7", "gateway": "eu", "token": "0123", "epoch": "7", "count": "2", "batch": "b1",
		"first": "2026-11-26T12:00:01Z", "last": "2026-11-26T12:01:01Z",
	}
	if got.Actor != eu || got.Target != "web-2" || got.Key != "prod/db" || got.Version != 3 || fmt.Sprint(got.Detail) != fmt.Sprint(want) {
		t.Errorf("%+v", got)
	}
	if err := s.Enter(t.Context(), eu, batchOf("b1", "web-3")); !errors.Is(err, handout.ErrInvalid) {
		t.Errorf("other hand-outs under an ID that was used: %v", err)
	}
	for i := range 15 {
		if err := s.Enter(t.Context(), eu, batchOf(fmt.Sprint("later-", i), "web-1")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Enter(t.Context(), eu, batchOf("b1", "web-1", "web-2")); err != nil || len(j.entries) != 17 {
		t.Errorf("%v, %d entries", err, len(j.entries))
	}
	// Another gateway has IDs of its own.
	other := batchOf("b1", "web-1", "web-2")
	other.Gateway = "us"
	if err := s.Enter(t.Context(), eu, other); err != nil || len(j.entries) != 19 {
		t.Errorf("%v, %d entries", err, len(j.entries))
	}
	// What is known of a gateway that is gone ends some day, and not before.
	config.Now = func() time.Time { return time.Now().Add(89 * 24 * time.Hour) }
	s = handout.New(config)
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Enter(t.Context(), eu, other); err != nil || len(j.entries) != 19 {
		t.Errorf("%v, %d entries", err, len(j.entries))
	}
}

// TestBadBatchesAreRefusedAsAWhole: one bad hand-out, by its field, keeps all of them
// out of the log.
func TestBadBatchesAreRefusedAsAWhole(t *testing.T) {
	j, config := newWorld(t)
	s := handout.New(config)
	for field, spoil := range map[string]func(b *handout.Batch){
		"batch_id":                   func(b *handout.Batch) { b.ID = "a b" },
		"party_id":                   func(b *handout.Batch) { b.Gateway = "" },
		"handouts: 1 to":             func(b *handout.Batch) { b.Handouts = nil },
		"handouts[1].party_id":       func(b *handout.Batch) { b.Handouts[1].Party = strings.Repeat("x", 129) },
		"handouts[1].key":            func(b *handout.Batch) { b.Handouts[1].Key = "A" },
		"handouts[1].version":        func(b *handout.Batch) { b.Handouts[1].Version = 0 },
		"handouts[1].token_id":       func(b *handout.Batch) { b.Handouts[1].Token = "kt 1" },
		"handouts[1].client_address": func(b *handout.Batch) { b.Handouts[1].Address = netip.Addr{} },
		"handouts[1].count":          func(b *handout.Batch) { b.Handouts[1].Count = 0 },
		"handouts[1].first":          func(b *handout.Batch) { b.Handouts[1].First = time.Time{} },
		"handouts[1].last":           func(b *handout.Batch) { b.Handouts[1].Last = b.Handouts[1].First.Add(-1) },
	} {
		b := batchOf("b1", "web-1", "web-2")
		spoil(b)
		if err := s.Enter(t.Context(), eu, b); !errors.Is(err, handout.ErrInvalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	big := batchOf("b1", make([]string, handout.MaxBatch+1)...)
	if err := s.Enter(t.Context(), eu, big); !errors.Is(err, handout.ErrInvalid) {
		t.Error(err)
	}
	if n := len(j.entries); n != 0 {
		t.Errorf("%d entries", n)
	}
	if err := s.Enter(t.Context(), eu, batchOf("b1", "web-1")); err != nil {
		t.Errorf("a batch that was refused may be mended: %v", err)
	}
}
