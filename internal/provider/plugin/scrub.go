package plugin

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/secret"
)

// Scrubber blots out secrets in texts. It knows each secret as it is, in base64
// (at every alignment, with both alphabets), in hexadecimal, percent-encoded, and
// escaped as in JSON; of each it blots out also every part of window bytes or
// more, so that a text cut short or broken into lines gives nothing away. Other
// transformations it cannot know. The zero value knows no secret. It may be used
// concurrently once it is made.
type Scrubber struct {
	// windows are the parts that are blotted out, in lower case where fold says so.
	windows map[string]bool
	folded  map[string]bool
	// short are the secrets of less than window bytes, blotted out as a whole.
	short []string
}

// window is the length of the parts that are blotted out, in bytes.
const window = 8

// NewScrubber returns a Scrubber of the secrets.
func NewScrubber(secrets ...secret.Value) *Scrubber {
	s := &Scrubber{windows: map[string]bool{}, folded: map[string]bool{}}
	for _, value := range secrets {
		s.add(value.Reveal())
	}
	return s
}

func (s *Scrubber) add(plain []byte) {
	if len(plain) == 0 {
		return
	}
	text := string(plain)
	s.whole(s.windows, text)
	s.whole(s.windows, url.QueryEscape(text))
	s.whole(s.windows, url.PathEscape(text))
	if quoted, err := json.Marshal(text); err == nil {
		s.whole(s.windows, strings.Trim(string(quoted), `"`))
	}
	s.whole(s.folded, hex.EncodeToString(plain))
	for alignment := range 3 {
		// The characters at the edges depend on the bytes beside the secret.
		padded := append(make([]byte, alignment), plain...)
		for _, encoding := range [...]*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString(padded)
			from, to := (alignment*8+5)/6, len(padded)*8/6
			if to-from >= window {
				s.parts(s.windows, encoded[from:to])
			}
			if alignment == 0 && len(encoded) < window {
				s.short = append(s.short, encoded)
			}
		}
	}
}

// whole adds the parts of text, or all of it where it is short.
func (s *Scrubber) whole(into map[string]bool, text string) {
	if len(text) < window {
		s.short = append(s.short, text)
		return
	}
	s.parts(into, text)
}

func (*Scrubber) parts(into map[string]bool, text string) {
	for i := 0; i+window <= len(text); i++ {
		into[text[i:i+window]] = true
	}
}

// Scrub returns text with every secret in it replaced by secret.Redacted.
func (s *Scrubber) Scrub(text string) string {
	hit := s.hits(text)
	if hit == nil {
		return text
	}
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case !hit[i]:
			out.WriteByte(text[i])
		case i == 0 || !hit[i-1]:
			out.WriteString(secret.Redacted)
		}
	}
	return out.String()
}

// Finds reports whether a secret is in text.
func (s *Scrubber) Finds(text string) bool { return s.hits(text) != nil }

// hits marks the bytes of text that belong to a secret; nil means none.
func (s *Scrubber) hits(text string) []bool {
	var hit []bool
	mark := func(from, length int) {
		if hit == nil {
			hit = make([]bool, len(text))
		}
		for i := from; i < from+length; i++ {
			hit[i] = true
		}
	}
	lowered := []byte(text) // byte by byte: the text may be no UTF-8
	for i, b := range lowered {
		if b >= 'A' && b <= 'Z' {
			lowered[i] = b + 'a' - 'A'
		}
	}
	folded := string(lowered)
	for i := 0; i+window <= len(text); i++ {
		if s.windows[text[i:i+window]] || s.folded[folded[i:i+window]] {
			mark(i, window)
		}
	}
	for _, short := range s.short {
		for from := 0; ; {
			i := strings.Index(text[from:], short)
			if i < 0 {
				break
			}
			mark(from+i, len(short))
			from += i + len(short)
		}
	}
	return hit
}

// Text makes what a plugin wrote fit for people: secrets are blotted out, control
// characters become spaces, and no more than most bytes are kept.
func (s *Scrubber) Text(text string, most int) string {
	if len(text) > 16*most {
		text = text[:16*most]
	}
	text = s.Scrub(strings.ToValidUTF8(text, "\uFFFD"))
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, text)
	text = strings.TrimSpace(text)
	if len(text) <= most {
		return text
	}
	cut := most - len("…")
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
