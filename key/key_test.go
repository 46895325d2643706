package key_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

func TestParseName(t *testing.T) {
	for _, good := range []string{"a", "prod/orders/db", "a.b_c-d/0", strings.Repeat("a", 63)} {
		if n, err := key.ParseName(good); err != nil || n.String() != good || !n.Valid() {
			t.Errorf("ParseName(%q) = %q, %v", good, n, err)
		}
	}
	for _, bad := range []string{"", "/", "a/", "/a", "a//b", "A", "ä", "-a", "a-", "a b", "a\x00", "..", strings.Repeat("a", 64), strings.Repeat("a/", 200) + "a"} {
		if _, err := key.ParseName(bad); !errors.Is(err, key.ErrName) {
			t.Errorf("ParseName(%q) = %v, want ErrName", bad, err)
		}
	}
}

// TestStatesFollowNIST states every allowed step, so that a new one needs a new row here.
func TestStatesFollowNIST(t *testing.T) {
	all := []key.State{key.PreActivation, key.Active, key.Suspended, key.Deactivated, key.Compromised, key.Destroyed}
	allowed := map[key.State][]key.State{
		key.PreActivation: {key.Active, key.Deactivated, key.Compromised, key.Destroyed},
		key.Active:        {key.Suspended, key.Deactivated, key.Compromised},
		key.Suspended:     {key.Active, key.Deactivated, key.Compromised},
		key.Deactivated:   {key.Compromised, key.Destroyed},
		key.Compromised:   {key.Destroyed},
		key.Destroyed:     nil,
	}
	for _, from := range all {
		for _, to := range all {
			want := from == to || slices.Contains(allowed[from], to)
			if got := from.CanBecome(to); got != want {
				t.Errorf("%v → %v: got %v, want %v", from, to, got, want)
			}
		}
	}
	if key.State(0).CanBecome(0) || key.State(0).CanBecome(key.Active) {
		t.Error("the invalid state becomes something")
	}
}

func TestEnumsRoundTrip(t *testing.T) {
	for s := key.PreActivation; s <= key.Destroyed; s++ {
		text, _ := s.MarshalText()
		var back key.State
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("state %v came back as %v, %v", s, back, err)
		}
	}
	for l := key.Label(0); l <= key.Previous; l++ {
		text, _ := l.MarshalText()
		var back key.Label
		if err := back.UnmarshalText(text); err != nil || back != l {
			t.Errorf("label %v came back as %v, %v", l, back, err)
		}
	}
	var s key.State
	if s.UnmarshalText([]byte("")) == nil || s.UnmarshalText([]byte("alive")) == nil {
		t.Error("an unknown state was accepted")
	}
}

func TestRotationID(t *testing.T) {
	at := time.Date(2026, 11, 23, 1, 2, 3, 456e6, time.UTC)
	id := key.NewRotationID(at, [10]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6})
	if !id.Time().Equal(at) {
		t.Errorf("time: got %v, want %v", id.Time(), at)
	}
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		t.Errorf("%s is not a UUID version 7", id)
	}
	back, err := key.ParseRotationID(id.String())
	if err != nil || back != id {
		t.Errorf("came back as %v, %v", back, err)
	}
	later := key.NewRotationID(at.Add(time.Millisecond), [10]byte{})
	if later.String() <= id.String() {
		t.Error("IDs do not sort by time")
	}
	for _, bad := range []string{"", "zz", strings.Repeat("g", 32), id.String() + "0"} {
		if _, err := key.ParseRotationID(bad); !errors.Is(err, key.ErrRotationID) {
			t.Errorf("ParseRotationID(%q) = %v, want ErrRotationID", bad, err)
		}
	}
}
