package keeper

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"

	"github.com/keyturn/keyturn/secret"
)

// MinFingerprinted is the length of the shortest secret that has a fingerprint, in
// bytes without white space: what is shorter may be an ordinary word elsewhere.
const MinFingerprinted = 16

// MaxFingerprinted is the longest text that is compared, in bytes.
const MaxFingerprinted = 16 << 10

// Fingerprint is the HMAC-SHA-256 of a secret under a pepper. Without the pepper it
// tells nothing of the secret, not even to who can guess it.
type Fingerprint [sha256.Size]byte

// Fingerprinter makes fingerprints under one pepper. Its methods may be called
// concurrently.
type Fingerprinter struct{ pepper []byte }

// NewFingerprinter copies the pepper.
func NewFingerprinter(pepper []byte) *Fingerprinter {
	return &Fingerprinter{pepper: append([]byte(nil), pepper...)}
}

// Of returns the fingerprint of a secret, in whose making white space does not
// count. It reports false for one that is too short or too long.
func (f *Fingerprinter) Of(value secret.Value) (Fingerprint, bool) {
	return f.sum(value.RevealString())
}

func (f *Fingerprinter) sum(text string) (Fingerprint, bool) {
	text = withoutSpace(text)
	if len(text) < MinFingerprinted || len(text) > MaxFingerprinted {
		return Fingerprint{}, false
	}
	mac := hmac.New(sha256.New, f.pepper)
	_, _ = mac.Write([]byte("keyturn leaks 1 " + text)) // a hash never fails
	return Fingerprint(mac.Sum(nil)), true
}

// Forms returns the fingerprints of what a text that was found may stand for: itself,
// without quotes, and decoded from base64, hexadecimal, a URL or a JSON string. It
// returns at most six.
func (f *Fingerprinter) Forms(found secret.Value) []Fingerprint {
	if found.Len() > MaxFingerprinted {
		return nil
	}
	text := strings.Trim(strings.TrimSpace(found.RevealString()), "\"'`")
	texts := []string{text}
	if strings.Contains(text, "%") {
		if decoded, err := url.PathUnescape(text); err == nil {
			texts = append(texts, decoded)
		}
	}
	if strings.Contains(text, `\n`) {
		texts = append(texts, strings.NewReplacer(`\r`, "", `\n`, "\n").Replace(text))
	}
	packed := withoutSpace(text)
	if decoded, err := hex.DecodeString(packed); err == nil {
		texts = append(texts, string(decoded))
	}
	unpadded := strings.TrimRight(packed, "=")
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if decoded, err := encoding.DecodeString(unpadded); err == nil {
			texts = append(texts, string(decoded))
			break
		}
	}
	var forms []Fingerprint
	for _, t := range texts {
		if sum, ok := f.sum(t); ok {
			forms = append(forms, sum)
		}
	}
	return forms
}

func withoutSpace(text string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, text)
}
