package signals

import (
	"strings"
	"sync"
)

// other is the label value under which everything beyond a bound is counted.
const other = "other"

// bound lets only so many different values through.
type bound struct {
	mu   sync.Mutex
	most int
	seen map[string]struct{}
}

func newBound(most int) *bound { return &bound{most: most, seen: map[string]struct{}{}} }

// of returns value, or "other" when there were too many different ones before.
func (b *bound) of(value string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.seen[value]; known {
		return value
	}
	if len(b.seen) >= b.most {
		return other
	}
	b.seen[value] = struct{}{}
	return value
}

// orNone makes a label value of a text from outside: valid UTF-8 (anything else
// would panic), short, not empty.
func orNone(value string) string {
	if len(value) > 128 {
		value = value[:128]
	}
	if value = strings.ToValidUTF8(value, "?"); value == "" {
		return "none"
	}
	return value
}
