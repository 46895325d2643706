package keytable

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// The form of an API key, which scanners can recognise and check without asking
// anybody:
//
//	prefix "_" random checksum
//
// The prefix says whose key it is and what for, for example kt_live. random is
// RandomLength characters of base62, 178 bits. checksum is the CRC-32 (IEEE) of
// random in base62, padded with zeros to SumLength characters, as GitHub's tokens
// have it.
const (
	RandomLength = 30
	SumLength    = 6
	// MinPrefix and MaxPrefix bound the length of a prefix.
	MinPrefix = 2
	MaxPrefix = 24
	// MaxLength is that of the longest key.
	MaxLength = MaxPrefix + 1 + RandomLength + SumLength
)

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// ErrForm: a text does not have the form of an API key.
var ErrForm = errors.New("not the form of an API key")

// CheckPrefix returns an error unless prefix is letters a to z, digits and single
// underscores within, and begins with a letter.
func CheckPrefix(prefix string) error {
	if len(prefix) < MinPrefix || len(prefix) > MaxPrefix || !isPrefix([]byte(prefix)) {
		return fmt.Errorf("%q is no prefix of %d to %d characters a-z, 0-9 and single underscores that begins with a letter", prefix, MinPrefix, MaxPrefix)
	}
	return nil
}

// Draw makes a key from random, which must be cryptographically secure.
func Draw(prefix string, random io.Reader) ([]byte, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, err
	}
	text := append(make([]byte, 0, MaxLength), prefix...)
	text = append(text, '_')
	const unbiased = 256 - 256%len(alphabet)
	var b [1]byte
	for drawn := 0; drawn < RandomLength; {
		if _, err := io.ReadFull(random, b[:]); err != nil {
			return nil, fmt.Errorf("draw an API key: %w", err)
		}
		if int(b[0]) < unbiased {
			text = append(text, alphabet[int(b[0])%len(alphabet)])
			drawn++
		}
	}
	sum := checksum(text[len(prefix)+1:])
	return append(text, sum[:]...), nil
}

// checksum is the CRC-32 of random in base62.
func checksum(random []byte) (sum [SumLength]byte) {
	rest := crc32.ChecksumIEEE(random)
	for i := SumLength - 1; i >= 0; i-- {
		sum[i] = alphabet[rest%uint32(len(alphabet))]
		rest /= uint32(len(alphabet))
	}
	return sum
}

// Check returns ErrForm unless text is a key, by its form and its checksum. It
// needs no secret and looks nothing up: anybody can tell as much. It does not
// allocate.
func Check(text []byte) error {
	split := len(text) - RandomLength - SumLength - 1
	if split < MinPrefix || len(text) > MaxLength || text[split] != '_' || !isPrefix(text[:split]) {
		return ErrForm
	}
	random, sum := text[split+1:split+1+RandomLength], text[split+1+RandomLength:]
	for _, c := range random {
		if strings.IndexByte(alphabet, c) < 0 {
			return ErrForm
		}
	}
	if checksum(random) != [SumLength]byte(sum) {
		return ErrForm
	}
	return nil
}

func isPrefix(prefix []byte) bool {
	before := byte('_')
	for i, c := range prefix {
		letter, digit := 'a' <= c && c <= 'z', '0' <= c && c <= '9'
		if !letter && !digit && c != '_' || c == '_' && before == '_' || i == 0 && !letter {
			return false
		}
		before = c
	}
	return before != '_'
}
