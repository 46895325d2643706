package postgres

import (
	"reflect"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

func TestMarkerKeepsTheWordsOfOthers(t *testing.T) {
	m := marker{Key: "prod/orders/db", Version: 7, Fence: 12, Since: map[string]time.Time{"primary": time.Date(2026, 11, 23, 1, 2, 3, 4000, time.UTC)}}
	for _, words := range []string{"", "used by team orders", "see [wiki]", "quote's", "[keyturn {broken"} {
		comment := joinComment(words, m)
		gotWords, got := splitComment(comment)
		if gotWords != words || !reflect.DeepEqual(got, m) {
			t.Errorf("%q came back as %q, %+v", comment, gotWords, got)
		}
		// The next version replaces the marker, not the words.
		if again, next := splitComment(joinComment(gotWords, marker{Key: m.Key, Version: 8})); again != words || next.Version != 8 {
			t.Errorf("after the next version: %q, %+v", again, next)
		}
	}
}

func TestMarkerHolds(t *testing.T) {
	m := marker{Key: "a", Version: 2}
	if !m.holds("a", 2) || m.holds("a", 1) || m.holds("b", 2) || (marker{}).holds("", 0) {
		t.Error("holds is wrong")
	}
}

// FuzzComment checks that whatever a comment says, nothing of it is lost and a
// marker that is read is one that was written.
func FuzzComment(f *testing.F) {
	f.Add("words", uint64(3))
	f.Add(`words [keyturn {"key":"a","version":1}]`, uint64(1))
	f.Add(`[keyturn {"version":0}]`, uint64(9))
	f.Add(`[keyturn {"version":1}] and more`, uint64(9))
	f.Fuzz(func(t *testing.T, comment string, version uint64) {
		words, m := splitComment(comment)
		if m.Version == 0 && words != comment {
			t.Fatalf("%q has no marker, but %q is left of it", comment, words)
		}
		if version == 0 {
			return
		}
		next := marker{Key: "k", Version: key.Version(version)}
		gotWords, got := splitComment(joinComment(words, next))
		if got.Version != next.Version || got.Key != next.Key || gotWords != words {
			t.Fatalf("words %q and v%d came back as %q, %+v", words, version, gotWords, got)
		}
	})
}
