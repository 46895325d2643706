package scan

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// naive finds texts in another one by one.
func naive(texts []string, text string) []string {
	low := strings.ToLower(text) // ASCII in these tests
	var found []string
	for which, one := range texts {
		for at := 0; ; at++ {
			next := strings.Index(low[at:], one)
			if next < 0 {
				break
			}
			at += next
			found = append(found, fmt.Sprintf("%08d %d", at+len(one), which))
		}
	}
	slices.Sort(found)
	return found
}

func walked(t testing.TB, a *automaton, text string) []string {
	t.Helper()
	var found []string
	var h hits
	last := 0
	a.walk(text, &h, func(end int, which int32) {
		if end < last {
			t.Fatalf("an end at %d after one at %d", end, last)
		}
		last = end
		found = append(found, fmt.Sprintf("%08d %d", end, which))
	})
	slices.Sort(found)
	return found
}

// TestAutomatonFindsAll: in texts of every length around those of its lanes, across
// their borders.
func TestAutomatonFindsAll(t *testing.T) {
	texts := []string{"a", "ab", "bab", "abab", "bb", "key", "secret-key", "cr", "a-very-long-text-that-lies-across-borders"}
	a, err := newAutomaton(texts)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int{0, 1, a.lead, lanes * lane, lanes*lane + 1, lanes*lane + a.lead - 1, lanes*lane + a.lead, lanes*lane + a.lead + 1, 3*lanes*lane + 100} {
		var b strings.Builder
		for b.Len() < size {
			switch r.IntN(20) {
			case 0:
				b.WriteString(strings.ToUpper(texts[r.IntN(len(texts))]))
			case 1:
				b.WriteString(texts[r.IntN(len(texts))])
			default:
				b.WriteByte("ab kesty"[r.IntN(8)])
			}
		}
		text := b.String()[:size]
		if got, want := walked(t, a, text), naive(texts, text); !slices.Equal(got, want) {
			t.Errorf("of %d bytes: %d found, want %d", size, len(got), len(want))
		}
	}
}

// FuzzAutomaton: whatever the texts are, they are found as one by one, in a text that
// has several lanes.
func FuzzAutomaton(f *testing.F) {
	f.Add("ab bab abab", "xababY")
	f.Add("key -key y-", "Key-key")
	f.Fuzz(func(t *testing.T, list, text string) {
		var texts []string
		for one := range strings.FieldsSeq(strings.ToLower(list)) {
			if !slices.Contains(texts, one) {
				texts = append(texts, one)
			}
		}
		if len(texts) == 0 || len(texts) > 20 || len(list) > 300 || text == "" || len(text) > 1000 || !isASCII(list) || !isASCII(text) {
			return
		}
		a, err := newAutomaton(texts)
		if err != nil {
			return
		}
		text = strings.Repeat(text, 2*lanes*lane/len(text)+1)
		if got, want := walked(t, a, text), naive(texts, text); !slices.Equal(got, want) {
			t.Errorf("%q: %d found, want %d", texts, len(got), len(want))
		}
	})
}

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r >= 0x80 })
}
