package apikeycheck

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
)

var at = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// TestUsesAreBounded: while reports fail for hours, and ever other callers come, what
// waits is bounded by the callers that are kept apart and by the versions; and each
// use and each try is counted.
func TestUsesAreBounded(t *testing.T) {
	const rounds, callers = 40, 3000
	table := keytable.New()
	var ids []uint32
	for v := key.Version(1); v <= 3; v++ {
		hash := keytable.Hash{byte(v)}
		if err := table.Put(&keytable.Entry{Key: "partners/acme", Version: v, Hash: hash, Accepted: true}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, table.Look(&hash, at).ID)
	}
	var u uses
	want := map[who]uint64{}
	for round := range rounds {
		for i := range callers {
			v := key.Version(i%3 + 1)
			address := fmt.Sprintf("2001:db8::%x:%x", round, i)
			table.Used(ids[v-1], 1, at)
			u.name(who{key: "partners/acme", version: v, address: address})
			want[who{key: "partners/acme", version: v}]++
			u.name(who{key: "partners/acme", version: 9, address: address, refused: true})
			want[who{key: "partners/acme", version: 9, refused: true}]++
		}
		u.drain(table)
		part, _ := u.some() // the server does not take it
		u.back(part)
	}
	if most := maxNamed + 4; len(u.pending) > most || u.addresses != maxNamed {
		t.Errorf("%d wait, %d of them with an address; at most %d may", len(u.pending), u.addresses, most)
	}
	check(t, &u, want)
	if u.addresses != 0 || len(u.pending) != 0 {
		t.Errorf("when all is reported, %d wait and %d addresses", len(u.pending), u.addresses)
	}
}

// TestTriesAreCounted: a flood of callers between two reports, with keys that nobody
// has, hides no try of a refused version.
func TestTriesAreCounted(t *testing.T) {
	var u uses
	for i := range 2 * maxNamed {
		u.name(who{address: fmt.Sprint(i), refused: true})
	}
	tried := who{key: "partners/acme", version: 9, address: "192.0.2.7", refused: true}
	for range 5 {
		u.name(tried)
	}
	u.drain(keytable.New())
	check(t, &u, map[who]uint64{{key: "partners/acme", version: 9, refused: true}: 5})
	if len(u.named) > maxNamed+2 {
		t.Errorf("%d callers are kept", len(u.named))
	}
}

// TestManyUsesOfOneCaller: more of them than a report can say go into several.
func TestManyUsesOfOneCaller(t *testing.T) {
	var u uses
	w := who{key: "partners/acme", version: 1, address: "192.0.2.7"}
	u.wait(w, 3<<32)
	check(t, &u, map[who]uint64{{key: w.key, version: w.version}: 3 << 32})
}

// check takes everything that waits, and compares it without addresses.
func check(t *testing.T, u *uses, want map[who]uint64) {
	t.Helper()
	got := map[who]uint64{}
	for more := true; more; {
		var part map[who]uint32
		part, more = u.some()
		if len(part) > maxUses {
			t.Fatalf("%d uses in one report", len(part))
		}
		for w, n := range part {
			w.address = ""
			got[w] += uint64(n)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("reported %v, want %v", got, want)
	}
}

// TestKeptUses: what is kept of uses is what waits, and what is being reported until that
// has been taken.
func TestKeptUses(t *testing.T) {
	var u uses
	sent, waits := who{key: "partners/acme", version: 1, address: "192.0.2.7"}, who{key: "partners/acme", version: 2, refused: true}
	u.wait(sent, 3)
	u.some()
	u.wait(waits, 5<<32)
	for _, want := range []map[who]uint64{{{key: sent.key, version: 1}: 3, waits: 5 << 32}, {waits: 5 << 32}} {
		kept, err := u.encode()
		if err != nil {
			t.Fatal(err)
		}
		var again uses
		for _, text := range kept {
			if err := again.restore(text); err != nil {
				t.Fatal(err)
			}
		}
		check(t, &again, want)
		u.taken()
	}
}
