package key_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

// FuzzParseName: a name has one spelling, is bounded, and leads nowhere when it
// becomes part of a path, a URL, a label or a pattern.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"prod/orders/db", "a", "a.b_c-9/z", "", "/", "a//b", "../a", "a/..", "a/.", "A", "a*", "ä", "a\x00", "a ", strings.Repeat("a", 64), strings.Repeat("a/", 200) + "a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := key.ParseName(s)
		if err != nil {
			if name != "" || !errors.Is(err, key.ErrName) {
				t.Fatalf("%q: %q %v", s, name, err)
			}
			if len(err.Error()) > 4<<10 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if name.String() != s || !name.Valid() || len(s) > key.MaxNameLength {
			t.Fatalf("%q becomes %q", s, name)
		}
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._-/") != "" || s[0] == '/' {
			t.Fatalf("%q is accepted", s)
		}
		for segment := range strings.SplitSeq(s, "/") {
			if segment == "" || len(segment) > 63 || strings.Trim(segment[:1]+segment[len(segment)-1:], "._-") != segment[:1]+segment[len(segment)-1:] {
				t.Fatalf("%q is accepted with the segment %q", s, segment)
			}
		}
	})
}

// FuzzRotationID: what is accepted is 32 hexadecimal digits, which String writes
// in their only form.
func FuzzRotationID(f *testing.F) {
	id := key.NewRotationID(time.UnixMilli(1_800_000_000_000), [10]byte{1, 2, 3})
	for _, s := range []string{id.String(), strings.ToUpper(id.String()), "", strings.Repeat("0", 32), strings.Repeat("g", 32), id.String() + "0", id.String()[:31], " " + id.String()[1:]} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := key.ParseRotationID(s)
		if err != nil {
			if !id.IsZero() || !errors.Is(err, key.ErrRotationID) {
				t.Fatalf("%q: %v %v", s, id, err)
			}
			return
		}
		if id.String() != strings.ToLower(s) {
			t.Fatalf("%q becomes %q", s, id)
		}
		text, err := id.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var again key.RotationID
		if err := again.UnmarshalText(text); err != nil || again != id || again.Time() != id.Time() {
			t.Fatalf("%v becomes %v (%v)", id, again, err)
		}
	})
}

// FuzzEnums: a state or label that is read is written the same way.
func FuzzEnums(f *testing.F) {
	for _, s := range []string{"active", "destroyed", "pending", "current", "previous", "none", "unknown", "", "Active", "active ", "1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var state key.State
		if err := state.UnmarshalText([]byte(s)); err == nil {
			if text, err := state.MarshalText(); err != nil || string(text) != s || state == 0 {
				t.Errorf("the state %q becomes %q (%v)", s, text, err)
			}
		} else if state != 0 {
			t.Errorf("the state %v beside %v", state, err)
		}
		var label key.Label
		if err := label.UnmarshalText([]byte(s)); err == nil {
			if text, err := label.MarshalText(); err != nil || string(text) != s {
				t.Errorf("the label %q becomes %q (%v)", s, text, err)
			}
		} else if label != 0 {
			t.Errorf("the label %v beside %v", label, err)
		}
	})
}
