package scan

import (
	"iter"
	"strings"

	"github.com/keyturn/keyturn/internal/keytable"
)

// The rule for Keyturn's own API keys.
const (
	ruleKeyturn     = "keyturn-api-key"
	describeKeyturn = "An API key that Keyturn issued: its checksum is right."
)

// apiKeys yields where API keys begin and end in a text: those whose checksum is
// right, so that hardly anything else is found.
func apiKeys(text string) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		const tail = keytable.RandomLength + keytable.SumLength
		for at := 0; ; at++ {
			next := strings.IndexByte(text[at:], '_')
			if next < 0 {
				return
			}
			at += next
			end := at + 1 + tail
			if end > len(text) {
				return
			}
			if run := wordRun(text[at+1:], tail+1); run != tail {
				continue
			}
			start := at
			for start > 0 && at-start < keytable.MaxPrefix && isPrefixByte(text[start-1]) {
				start--
			}
			// What stands before a prefix may look like a part of it.
			for ; at-start >= keytable.MinPrefix; start++ {
				if keytable.Check([]byte(text[start:end])) == nil {
					if !yield(start, end) {
						return
					}
					at = end - 1
					break
				}
			}
		}
	}
}

func isPrefixByte(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' }

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// wordRun is how many letters and digits a text begins with, at most most.
func wordRun(text string, most int) int {
	n := 0
	for n < len(text) && n < most && isWord(text[n]) {
		n++
	}
	return n
}

// The length of what may be a secret of Keyturn's.
const (
	minCandidate = 16
	maxCandidate = 128
)

// candidates yields what may be a secret as Keyturn mints them: runs of base64 or
// base64url with letters and digits that hardly repeat.
func candidates(text string) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for i := 0; i < len(text); {
			if !isToken(text[i]) {
				i++
				continue
			}
			wide, narrow := i, i
			for ; i < len(text) && isToken(text[i]); i++ {
				if c := text[i]; c == '+' || c == '/' || c == '=' || c == '%' {
					if couldBe(text[narrow:i]) && !yield(narrow, i) {
						return
					}
					narrow = i + 1
				}
			}
			if couldBe(text[narrow:i]) && !yield(narrow, i) {
				return
			}
			if narrow != wide && couldBe(text[wide:i]) && !yield(wide, i) {
				return
			}
		}
	}
}

func isToken(c byte) bool {
	return isWord(c) || c == '_' || c == '-' || c == '+' || c == '/' || c == '=' || c == '%'
}

// couldBe reports whether a token has the length and the variety of a secret.
func couldBe(token string) bool {
	if len(token) < minCandidate || len(token) > maxCandidate {
		return false
	}
	var seen [2]uint64
	digits, letters, distinct := false, false, 0
	for i := range len(token) {
		c := token[i]
		digits = digits || '0' <= c && c <= '9'
		letters = letters || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if bit := uint64(1) << (c & 63); seen[c>>6&1]&bit == 0 {
			seen[c>>6&1] |= bit
			distinct++
		}
	}
	return digits && letters && distinct >= 8
}
