// Package cachetest is the suite that every apikeycheck.Cache should run.
//
// It guarantees: an implementation that passes keeps the contract of the interface as
// far as it can be told without killing the process. Whether Update and Replace are
// durable, and never there in part, the implementation has to show by itself.
package cachetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/client/apikeycheck"
)

// Run runs the suite. place makes an empty place for a cache, and returns how it is
// opened. That is done more than once, as after a restart: the one before is not used
// any more.
func Run(t *testing.T, place func(t *testing.T) (open func() apikeycheck.Cache)) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, func() apikeycheck.Cache){
		"Empty": empty, "Keeps": keeps, "Updates": updates, "Replaces": replaces, "Ends": ends, "Stops": stops, "Large": large,
	} {
		t.Run(name, func(t *testing.T) { test(t, place(t)) })
	}
}

func record(name, text string) apikeycheck.Record {
	return apikeycheck.Record{Name: name, Data: []byte(text)}
}

func replace(t *testing.T, c apikeycheck.Cache, records ...apikeycheck.Record) {
	t.Helper()
	if err := c.Replace(t.Context(), slices.Values(records)); err != nil {
		t.Fatalf("Replace: %v", err)
	}
}

func update(t *testing.T, c apikeycheck.Cache, records ...apikeycheck.Record) {
	t.Helper()
	if err := c.Update(t.Context(), records...); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

// want compares what the cache has with records, by a fresh instance too.
func want(t *testing.T, when string, open func() apikeycheck.Cache, records ...apikeycheck.Record) {
	t.Helper()
	slices.SortFunc(records, func(a, b apikeycheck.Record) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	var got []apikeycheck.Record
	err := open().Load(t.Context(), func(r apikeycheck.Record) error {
		got = append(got, apikeycheck.Record{Name: r.Name, Data: bytes.Clone(r.Data)})
		return nil
	})
	if err != nil {
		t.Fatalf("%s: Load: %v", when, err)
	}
	same := func(a, b apikeycheck.Record) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }
	if !slices.EqualFunc(got, records, same) {
		t.Fatalf("%s: Load gives %s, want %s", when, names(got), names(records))
	}
}

// names shows records, long ones by their length.
func names(records []apikeycheck.Record) string {
	var b bytes.Buffer
	for i, r := range records {
		if i == 20 {
			fmt.Fprintf(&b, "and %d more", len(records)-i)
			break
		}
		fmt.Fprintf(&b, "%s=%.20q(%d) ", r.Name, r.Data, len(r.Data))
	}
	return b.String()
}

// empty: where nothing was kept there is nothing, and no error.
func empty(t *testing.T, open func() apikeycheck.Cache) {
	want(t, "at first", open)
	replace(t, open())
	want(t, "after a Replace by nothing", open)
}

// keeps: what was written is there, in the order of its names, after a restart.
func keeps(t *testing.T, open func() apikeycheck.Cache) {
	all := []apikeycheck.Record{
		record("uses-00000001", "u"), record(apikeycheck.SecretRecord, "pepper"), record("keys-00000002", "b\x00"), record("keys-00000010", "c"), record("keys-00000001", "a"), record("mark", "{}"),
	}
	replace(t, open(), all...)
	want(t, "after a Replace", open, all...)
}

// updates: records are added, exchanged and removed together; removing what is not
// there is no error.
func updates(t *testing.T, open func() apikeycheck.Cache) {
	c := open()
	replace(t, c, record("a", "1"), record("b", "1"), record(apikeycheck.SecretRecord, "1"))
	update(t, c, record("c", "2"), record("a", "2"), apikeycheck.Record{Name: "b"}, apikeycheck.Record{Name: "z"})
	want(t, "after an Update", open, record("a", "2"), record("c", "2"), record(apikeycheck.SecretRecord, "1"))
	c = open()
	update(t, c, record("b", "3"), record(apikeycheck.SecretRecord, "3"))
	update(t, c, record("b", "4"))
	want(t, "after a restart", open, record("a", "2"), record("b", "4"), record("c", "2"), record(apikeycheck.SecretRecord, "3"))
}

// replaces: nothing of before is left, and updates go on from there.
func replaces(t *testing.T, open func() apikeycheck.Cache) {
	for i := range 4 {
		c, text := open(), fmt.Sprint(i)
		replace(t, c, record("a", text), record("only-"+text, text), record(apikeycheck.SecretRecord, text))
		update(t, c, record("more-"+text, text))
		want(t, "round "+text, open, record("a", text), record("only-"+text, text), record(apikeycheck.SecretRecord, text), record("more-"+text, text))
	}
}

// ends: a Replace whose context ends on the way fails and leaves what was there; so it
// does again and again, and then one succeeds.
func ends(t *testing.T, open func() apikeycheck.Cache) {
	c := open()
	before := []apikeycheck.Record{record("a", "old"), record("b", "old"), record(apikeycheck.SecretRecord, "old")}
	replace(t, c, before...)
	for after := range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		err := c.Replace(ctx, cutShort(after, cancel))
		cancel()
		if err == nil {
			t.Fatalf("Replace has succeeded, although its context had ended after %d records", after)
		}
		want(t, fmt.Sprintf("a Replace that ended after %d records", after), open, before...)
		c = open()
	}
	replace(t, c, record("c", "new"))
	want(t, "after one that did not", open, record("c", "new"))
}

func cutShort(after int, cancel func()) iter.Seq[apikeycheck.Record] {
	return func(yield func(apikeycheck.Record) bool) {
		for i := range after {
			if !yield(record(fmt.Sprintf("new-%d", i), "new")) {
				return
			}
		}
		cancel()
	}
}

// stops: Load ends with the error of its function, and calls it no more.
func stops(t *testing.T, open func() apikeycheck.Cache) {
	c := open()
	replace(t, c, record("a", "1"), record("b", "1"), record("c", "1"))
	enough := errors.New("enough")
	calls := 0
	err := open().Load(t.Context(), func(apikeycheck.Record) error {
		if calls++; calls == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || calls != 2 {
		t.Errorf("Load has called it %d times, and failed with %v", calls, err)
	}
}

// large: records of every length up to the bound, and many of them, come back as they
// were.
func large(t *testing.T, open func() apikeycheck.Cache) {
	c := open()
	all := map[string]apikeycheck.Record{}
	add := func(name string, size int) apikeycheck.Record {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i*7 + size)
		}
		all[name] = apikeycheck.Record{Name: name, Data: data}
		return all[name]
	}
	for i := range 400 {
		add(fmt.Sprintf("keys-%08d", i+1), 1+i*i%(64<<10))
	}
	add("z", apikeycheck.MaxRecord)
	replace(t, c, slices.Collect(maps.Values(all))...)
	var more []apikeycheck.Record
	for i := range 64 {
		more = append(more, add(fmt.Sprintf("keys-%08d", i+390), 128<<10))
	}
	update(t, c, more...)
	want(t, "in the end", open, slices.Collect(maps.Values(all))...)
}
