package run

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/secret"
)

// shortest is the length below which replacing a secret in a text would garble
// it without hiding anything: then the whole text is withheld.
const shortest = 4

// Redactor removes secrets from texts of others, for example a command's
// output. The zero value knows no secret.
type Redactor struct {
	words    [][]byte
	longest  int
	withhold bool
}

// NewRedactor returns a Redactor for the values, in plain form and in the forms
// that programs commonly print: JSON, URL and Base64 encoding, single lines.
func NewRedactor(values ...secret.Value) Redactor {
	var r Redactor
	add := func(word []byte) {
		if len(word) >= shortest {
			r.words = append(r.words, bytes.Clone(word))
			r.longest = max(r.longest, len(word))
		}
	}
	for _, v := range values {
		plain := v.Reveal()
		if len(plain) == 0 {
			continue
		}
		if len(plain) < shortest {
			r.withhold = true
			continue
		}
		add(plain)
		text := string(plain)
		if quoted, err := json.Marshal(text); err == nil {
			add(bytes.Trim(quoted, `"`))
		}
		add([]byte(url.QueryEscape(text)))
		add([]byte(url.PathEscape(text)))
		add([]byte(strings.TrimRight(base64.StdEncoding.EncodeToString(plain), "=")))
		add([]byte(strings.TrimRight(base64.URLEncoding.EncodeToString(plain), "=")))
		for line := range bytes.Lines(plain) {
			if line = bytes.TrimSpace(line); len(line) >= 2*shortest {
				add(line)
			}
		}
	}
	slices.SortFunc(r.words, func(a, b []byte) int { return len(b) - len(a) })
	return r
}

// Text returns b as printable text of one line without the secrets, at most
// limit bytes long. To hide a secret that the limit would cut, b should go on
// beyond it by Longest bytes.
func (r Redactor) Text(b []byte, limit int) string {
	if r.withhold {
		return "(output withheld: a secret is shorter than 4 bytes)"
	}
	for _, w := range r.words {
		b = bytes.ReplaceAll(b, w, []byte(secret.Redacted))
	}
	text := strings.Map(func(c rune) rune {
		if c == '\n' || c == '\t' {
			return ' '
		}
		if c < ' ' || c == 0x7f || c == utf8.RuneError {
			return -1
		}
		return c
	}, strings.TrimSpace(string(b)))
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit] + "…"
}

// Longest is the length of the longest form of a secret, in bytes.
func (r Redactor) Longest() int { return r.longest }
