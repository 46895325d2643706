package apikey_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
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

// TestNamesWhoShowsAnOldKey: whoever shows a version that is refused, or destroyed,
// is named, by the nodes and the verifiers outside, also after a restart; 35 days
// after its end nobody remembers whose it was, at no node.
func TestNamesWhoShowsAnOldKey(t *testing.T) {
	w := newWorld(t)
	s, way := w.node("a")
	other, _ := w.node("b")
	text, e := w.mint(s, "partners/acme", 1, keytable.Rules{Client: "ACME"})
	w.set(s, 1, e, true)
	w.set(s, 2, e, false)
	try := func(s *apikey.Service, application string) {
		t.Helper()
		if _, err := s.Verify(text, apikey.Caller{Address: "192.0.2.1", Application: application}); err == nil {
			t.Fatal("it was let in")
		}
	}
	named := func(s *apikey.Service) (uses apikey.VersionUse, names string) {
		t.Helper()
		list, next, err := s.Clients(t.Context(), "partners/", "", 10)
		if err != nil || len(list) != 1 || next != "" || list[0].Client != "ACME" || list[0].Key != "partners/acme" {
			t.Fatalf("%+v, %q, %v", list, next, err)
		}
		var all []string
		for i := range list[0].RefusedBy {
			all = append(all, fmt.Sprint(&list[0].RefusedBy[i], ": ", list[0].RefusedBy[i].All))
		}
		return list[0].VersionUse, strings.Join(all, ", ")
	}
	way.down.Store(true)
	try(s, "shop")
	try(s, "shop")
	way.down.Store(false) // what could not be written waits
	w.until("who tried the refused version", func() bool {
		_, names := named(other)
		return names == "shop at 192.0.2.1: 2"
	})
	if err := s.Remove(t.Context(), 3, e); err != nil {
		t.Fatal(err)
	}
	if held, err := s.Held(t.Context(), "partners/acme"); err != nil || len(held) != 0 {
		t.Errorf("held after the removal: %v, %v", held, err)
	}
	try(other, "billing")
	v := apikey.Verifier{ID: "v", MaxAge: time.Minute, Covers: func(key.Name) bool { return true }}
	if err := s.Report(&v, &apikey.Report{Uses: []apikey.ReportUse{
		{Key: "partners/acme", Version: 1, Count: 4, Application: "mobile", Refused: true}, {Key: "partners/made-up", Version: 1, Count: 1, Refused: true},
	}}); err != nil {
		t.Fatal(err)
	}
	w.until("who tried the destroyed version", func() bool {
		uses, names := named(other)
		return uses.Gone && !uses.Accepted && uses.Refused == 7 && uses.All == 0 && !uses.RefusedLast.IsZero() &&
			strings.Contains(names, "billing at 192.0.2.1: 1") && strings.Contains(names, "mobile: 4")
	})
	w.ahead.Store(int64(34 * 24 * time.Hour))
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	named(s)
	w.ahead.Store(int64(36 * 24 * time.Hour))
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until("nobody remembers", func() bool { return s.Len() == 0 && other.Len() == 0 })
	w.ahead.Store(int64(38 * 24 * time.Hour))
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, _, err := s.Clients(t.Context(), "", "", 10); err != nil || len(list) != 0 {
		t.Errorf("in the end: %+v, %v", list, err)
	}
}
