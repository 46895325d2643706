package apikeycheck

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
)

// TestEntries: what was appended comes back, in its order, and as the table gives it
// leads to the same table again.
func TestEntries(t *testing.T) {
	list := []keytable.Entry{
		{Key: "partners/acme", Version: 1, Hash: keytable.Hash{1}, Accepted: true, Rules: keytable.Rules{Client: "ACME Ltd.", Scopes: []string{"a", "b"}, PerSecond: 3, Burst: 7}},
		{Key: "partners/other", Version: 1 << 60, Hash: keytable.Hash{2}, Rules: keytable.Rules{Expires: time.Unix(2_000_000_000, 5)}},
		{Key: "partners/acme", Version: 2, Hash: keytable.Hash{3}, Accepted: true, Rules: keytable.Rules{Client: "ACME Ltd.", Scopes: []string{"a", "b"}, PerSecond: 3, Burst: 7}},
	}
	before, after := keytable.New(), keytable.New()
	var b []byte
	for i := range list {
		if err := before.Put(&list[i]); err != nil {
			t.Fatal(err)
		}
		e, _ := before.Get(&list[i].Hash)
		b = appendEntry(b, &e, false)
	}
	b = appendEntry(b, &list[2], true)
	var got []keytable.Entry
	err := eachEntry(b, func(e *keytable.Entry, gone bool) error {
		got = append(got, *e)
		return change(after, e, gone)
	})
	if err != nil || len(got) != 4 || got[3].Hash != list[2].Hash || after.Len() != 2 {
		t.Fatalf("%d entries, %d versions, %v", len(got), after.Len(), err)
	}
	before.Delete(&list[2].Hash)
	differences(before, after, func(e *keytable.Entry, gone bool) bool {
		t.Errorf("differs: %+v, gone: %v", e, gone)
		return true
	})
	for n := range b[:len(b)-1] {
		err := eachEntry(b[:n+1], func(*keytable.Entry, bool) error { return nil })
		if err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("cut after %d bytes: %v", n+1, err)
		}
	}
}

// FuzzRecord: whatever a cache holds, reading it ends with an error or with a table; what
// is accepted is what would be written for it, to the byte.
func FuzzRecord(f *testing.F) {
	entry := keytable.Entry{Key: "partners/acme", Version: 3, Hash: keytable.Hash{9}, Accepted: true, Rules: keytable.Rules{Client: "ACME", Scopes: []string{"x"}, PerSecond: 2, Burst: 1}}
	gone := appendEntry(appendEntry(nil, &entry, false), &entry, true)
	for _, one := range []frame{{kind: frameEntries, generation: 1, number: 1, body: gone}, {kind: framePepper, generation: 1, body: []byte("pepper")}} {
		f.Add(one.encode())
	}
	for kind, body := range map[frameKind]any{frameMark: mark{Verifier: "a", Centre: []string{"https://a"}, Fresh: 5, Entries: 1}, frameUses: []reportUse{{Key: "a", Version: 1, Count: 2}}} {
		data, err := jsonFrame(kind, 1, 1, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > frameHead+frameTail { // else no input gets past the checksum
			sum := frame{kind: frameKind(data[1]), generation: 1, number: 1, body: data[frameHead : len(data)-frameTail]}
			data = sum.encode()
		}
		one, err := decodeFrame(data)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Errorf("fails with %v", err)
			}
			return
		}
		if again := one.encode(); !bytes.Equal(again, data) {
			t.Errorf("% x is read, and written as % x", data, again)
		}
		var written []byte
		table := keytable.New()
		err = eachEntry(one.body, func(e *keytable.Entry, gone bool) error {
			written = appendEntry(written, e, gone)
			return change(table, e, gone)
		})
		if err == nil && !bytes.Equal(written, one.body) || !bytes.HasPrefix(one.body, written) {
			t.Errorf("% x is read, and written as % x", one.body, written)
		}
		l := loading{table: keytable.New()}
		if err := l.take(Record{Name: "keys-00000001", Data: data}); err != nil && !errors.Is(err, errDamaged) && !errors.Is(err, keytable.ErrTaken) {
			t.Errorf("fails with %v", err)
		}
		if m, err := decodeMark(one.body); err == nil {
			text, err := jsonFrame(frameMark, 1, 0, m)
			if err != nil {
				t.Fatal(err)
			}
			back, err := decodeFrame(text)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := decodeMark(back.body); err != nil || !reflect.DeepEqual(again, m) {
				t.Errorf("%+v is written, and read as %+v, %v", m, again, err)
			}
		}
	})
}
