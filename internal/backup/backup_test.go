package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/store"
)

const origin = "test.example.org/audit"

// tables is a store in memory.
type tables map[string][][]any

func (d tables) Dump(_ context.Context, fn func(func(store.Table) store.Rows) error) error {
	return fn(func(table store.Table) store.Rows {
		return func(yield func([]any, error) bool) {
			for _, row := range d[table.Name] {
				if !yield(row, nil) {
					return
				}
			}
		}
	})
}

// sample holds a little of everything, and a log of n entries that is signed
// twice. The second signature covers all but one.
func sample(t testing.TB, n int) (tables, note.Verifier) {
	t.Helper()
	signing, verifier, err := audit.GenerateKey(rand.Reader, origin)
	must(t, err)
	signer, err := audit.ParseSigner(signing)
	must(t, err)
	trusted, err := audit.ParseVerifier(verifier)
	must(t, err)
	d := tables{
		"counters": {{int64(7), int64(9)}},
		"events":   {{"prod/db", int64(1), make([]byte, 16), "accepted", int64(5), []byte("{}")}},
		"jobs":     {{int64(1), "id", "lane", "target", "", int64(-3), int64(5), int64(0), int64(0), int64(1), int64(1), nil, []byte{}}},
		"materials": {
			{"prod/db", int64(1), []byte("sealed\x00\xff")},
			{"prod/db", int64(2), []byte{}},
		},
	}
	var hashes []tlog.Hash
	reader := stored(&hashes)
	var tail audit.Tail
	for i := range n {
		batch, err := audit.Append(tail, reader, audit.Entry{At: time.Unix(int64(i), 0), Actor: audit.Actor{ID: "test", Kind: "server"}, Action: "test.entry", Outcome: audit.OutcomeOK})
		must(t, err)
		for _, hash := range batch.Hashes {
			d["log_hashes"] = append(d["log_hashes"], []any{int64(len(hashes)), bytes.Clone(hash[:])})
			hashes = append(hashes, hash)
		}
		d["log_records"] = append(d["log_records"], []any{int64(i), batch.Records[0]})
		tail = batch.Tail
		if i+1 == n/2 || i+1 == n-1 {
			c, err := audit.CheckpointAt(origin, tail.Size, reader)
			must(t, err)
			signed, err := audit.SignCheckpoint(c, signer)
			must(t, err)
			d["docs"] = append(d["docs"], []any{"checkpoint", fmt.Sprintf("%020d", tail.Size), int64(i), nil, signed})
		}
	}
	d["docs"] = append(d["docs"], []any{"installation", "keys", int64(n), int64(5), fmt.Appendf(nil, `{"kek":"k1","log":%q}`, verifier)})
	return d, trusted
}

// stored reads hashes by their storage index.
func stored(hashes *[]tlog.Hash) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, i := range indexes {
			found = append(found, (*hashes)[i])
		}
		return found, nil
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	return id
}

func write(t testing.TB, source store.Dumper, ids ...*age.X25519Identity) ([]byte, Manifest) {
	t.Helper()
	config := Config{Log: origin, Version: "v1.2.3", Now: time.Unix(1_700_000_000, 5)}
	for _, id := range ids {
		config.Recipients = append(config.Recipients, id.Recipient().String())
	}
	var file bytes.Buffer
	manifest, err := Write(t.Context(), &file, source, config)
	must(t, err)
	return file.Bytes(), manifest
}

func TestRoundTrip(t *testing.T) {
	source, verifier := sample(t, 11)
	ids := []*age.X25519Identity{identity(t), identity(t), identity(t)}
	file, manifest := write(t, source, ids...)
	for i, id := range ids {
		got, report, err := Verify(t.Context(), bytes.NewReader(file), []age.Identity{identity(t), id}, verifier)
		if err != nil || !reflect.DeepEqual(got, manifest) || report != (Report{Entries: 11, Proven: 10, Trusted: true}) {
			t.Errorf("recipient %d: %+v, %+v, %v", i, got, report, err)
		}
	}
	if manifest.Rows() != 1+3+1+1+11+19+2 || manifest.Log.Size != 11 || manifest.Keys.KEK != "k1" || manifest.Keys.Log == "" {
		t.Errorf("manifest %+v", manifest)
	}
	reader, err := Open(bytes.NewReader(file), ids[1])
	must(t, err)
	got, err := store.DigestOf(t.Context(), reader)
	must(t, err)
	want, err := store.DigestOf(t.Context(), source)
	must(t, err)
	if difference := want.Difference(got); difference != "" {
		t.Error(difference)
	}
	if _, err := store.DigestOf(t.Context(), reader); err == nil {
		t.Error("it was read twice")
	}
	if _, _, err := Verify(t.Context(), bytes.NewReader(file), []age.Identity{identity(t)}); !errors.Is(err, ErrIdentity) {
		t.Errorf("a stranger's identity: %v", err)
	}
	if _, report, err := Verify(t.Context(), bytes.NewReader(file), []age.Identity{ids[0]}); err != nil || report.Trusted || report.Proven != 0 {
		t.Errorf("without a verifier: %+v, %v", report, err)
	}
	_, other := sample(t, 3)
	if _, _, err := Verify(t.Context(), bytes.NewReader(file), []age.Identity{ids[0]}, other); !errors.Is(err, ErrInvalid) {
		t.Errorf("signed by another key: %v", err)
	}
}

// TestDamaged changes, shortens and continues a file.
func TestDamaged(t *testing.T) {
	source, verifier := sample(t, 5)
	id := identity(t)
	file, _ := write(t, source, id)
	refused := func(what string, damaged []byte) {
		t.Helper()
		if _, _, err := Verify(t.Context(), bytes.NewReader(damaged), []age.Identity{id}, verifier); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := 0; i < len(file); i += 7 {
		refused(fmt.Sprintf("cut off at %d", i), file[:i])
		changed := bytes.Clone(file)
		changed[i] ^= 1
		refused(fmt.Sprintf("changed at %d", i), changed)
	}
	refused("continued", append(bytes.Clone(file), 0))
}

// TestForged encrypts to the right recipient what no server wrote.
func TestForged(t *testing.T) {
	id := identity(t)
	for name, forge := range map[string]func(d tables){
		"an entry changed": func(d tables) { d["log_records"][2][1] = append([]byte(" "), d["log_records"][2][1].([]byte)...) },
		"an entry lost":    func(d tables) { d["log_records"] = append(d["log_records"][:2:2], d["log_records"][3:]...) },
		"the end lost":     func(d tables) { d["log_records"], d["log_hashes"] = d["log_records"][:2], d["log_hashes"][:3] },
		"a hash changed":   func(d tables) { d["log_hashes"][1][1].([]byte)[0] ^= 1 },
		"an entry and all hashes changed": func(d tables) {
			d["log_records"][2][1] = append([]byte(" "), d["log_records"][2][1].([]byte)...)
			d["log_hashes"] = nil
			var hashes []tlog.Hash
			for n, row := range d["log_records"] {
				stored, err := tlog.StoredHashesForRecordHash(int64(n), tlog.RecordHash(row[1].([]byte)), stored(&hashes))
				must(t, err)
				for _, hash := range stored {
					d["log_hashes"] = append(d["log_hashes"], []any{int64(len(hashes)), bytes.Clone(hash[:])})
					hashes = append(hashes, hash)
				}
			}
		},
		"never signed": func(d tables) { d["docs"] = d["docs"][2:] },
		"out of order": func(d tables) { d["docs"][0], d["docs"][1] = d["docs"][1], d["docs"][0] },
	} {
		source, verifier := sample(t, 9)
		forge(source)
		file, _ := write(t, source, id)
		if _, _, err := Verify(t.Context(), bytes.NewReader(file), []age.Identity{id}, verifier); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecipients(t *testing.T) {
	good := identity(t).Recipient().String()
	hybrid, err := age.GenerateHybridIdentity()
	must(t, err)
	for _, tt := range []struct {
		recipients []string
		says       string
	}{
		{nil, "1 to 8"},
		{make([]string, MaxRecipients+1), "there are 9"},
		{[]string{good, "age1nonsense"}, "number 2 of 2"},
		{[]string{identity(t).String()}, "does not begin with age1"},
		{[]string{good, hybrid.Recipient().String()}, "weakest"},
	} {
		_, err := Write(t.Context(), io.Discard, tables{}, Config{Recipients: tt.recipients})
		if !errors.Is(err, ErrRecipient) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("%.80v: %v", tt.recipients, err)
		}
	}
	for _, recipients := range [][]string{{good}, {hybrid.Recipient().String()}} {
		if _, err := ParseRecipients(recipients); err != nil {
			t.Error(err)
		}
	}
}

// failing is a store whose disk breaks, or that holds what no backup can.
type failing struct {
	tables
	err error
}

func (f failing) Dump(ctx context.Context, fn func(func(store.Table) store.Rows) error) error {
	return errors.Join(f.tables.Dump(ctx, fn), f.err)
}

func TestWriteFails(t *testing.T) {
	source, _ := sample(t, 3)
	id := identity(t)
	broken := errors.New("broken")
	config := Config{Recipients: []string{id.Recipient().String()}}
	var file bytes.Buffer
	if _, err := Write(t.Context(), &file, failing{source, broken}, config); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, _, err := Verify(t.Context(), &file, []age.Identity{id}); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrIdentity) {
		t.Errorf("half a backup: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := Write(ended, io.Discard, source, config); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	source["counters"][0][0] = "a text"
	if _, err := Write(t.Context(), io.Discard, source, config); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// large is a store of 64 MiB that is made up row by row.
type large struct{ peak *uint64 }

func (l large) Dump(_ context.Context, fn func(func(store.Table) store.Rows) error) error {
	body := make([]byte, 64<<10)
	return fn(func(table store.Table) store.Rows {
		return func(yield func([]any, error) bool) {
			if table.Name != "materials" {
				return
			}
			for i := range 1024 {
				if i%128 == 0 {
					*l.peak = max(*l.peak, heap())
				}
				if !yield([]any{"key", int64(i), body}, nil) {
					return
				}
			}
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestStreams wants a backup of 64 MiB to be written and read within a few.
func TestStreams(t *testing.T) {
	id := identity(t)
	before := heap()
	var peak uint64
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		_, err := Write(t.Context(), w, large{&peak}, Config{Recipients: []string{id.Recipient().String()}})
		written <- errors.Join(err, w.CloseWithError(err))
	}()
	manifest, _, err := Verify(t.Context(), r, []age.Identity{id})
	must(t, errors.Join(err, <-written))
	if manifest.Rows() != 1024 {
		t.Errorf("manifest %+v", manifest)
	}
	if grown := peak - min(peak, before); grown > 8<<20 {
		t.Errorf("it took %d bytes of memory", grown)
	}
}
