package apikey_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/keytable"
)

// TestTellsOfUses: who used a version is told once, and who tried one that is
// refused; what is no key at all is told of nobody's.
func TestTellsOfUses(t *testing.T) {
	w := newWorld(t)
	s, _ := w.node("a")
	text, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 1, e, true)
	shop := apikey.Caller{Address: "10.0.0.1", Application: "shop"}
	for range 3 {
		if _, err := s.Verify(text, shop); err != nil {
			t.Fatal(err)
		}
	}
	w.set(s, 2, e, false)
	stranger, _ := w.mint(s, "partners/acme", 2, keytable.Rules{})
	for _, shown := range []string{text, stranger, "nothing", text} {
		if _, err := s.Verify(shown, apikey.Caller{Address: "192.0.2.1", Application: "curl"}); err == nil {
			t.Fatal("it was let in")
		}
	}
	want := map[string]uint64{"partners/acme v1 by shop at 10.0.0.1, refused false": 3, "partners/acme v1 by curl at 192.0.2.1, refused true": 2}
	w.until("what is told", func() bool { return len(w.told()) >= len(want) })
	s.Stop(t.Context())
	if got := w.told(); !maps.Equal(got, want) {
		t.Error(fmt.Sprint("told of ", got, ", want ", want))
	}
}
