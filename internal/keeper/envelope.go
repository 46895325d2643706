package keeper

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/keyturn/keyturn/key"
)

// Limits of an envelope, in bytes.
const (
	// MaxPlaintext is the longest plaintext that Seal takes.
	MaxPlaintext = 8 << 20
	maxKEK       = 1024
	maxWrapped   = 16 << 10
)

// The format of an envelope; integers are big-endian:
//
//	"KTE"           3 bytes
//	format          1 byte, 1: AES-256-GCM under a DEK of its own
//	length of kek   2 bytes
//	kek             UTF-8, the keeper's ID of the KEK
//	length of wrap  2 bytes
//	wrap            the DEK, wrapped by that KEK
//	nonce           12 bytes
//	ciphertext      as long as the plaintext
//	tag             16 bytes
const (
	magic     = "KTE"
	format1   = 1
	dekSize   = 32
	nonceSize = 12
	tagSize   = 16
)

// Place is where an envelope belongs: it opens in no other one.
type Place struct {
	Key     key.Name
	Version key.Version
}

// aad is authenticated with what is encrypted at the place; part keeps the
// wrapped key and the data apart. The name's length makes it unambiguous.
func (p Place) aad(part string) []byte {
	aad := []byte("keyturn envelope 1 " + part + "\x00")
	aad = binary.BigEndian.AppendUint64(aad, uint64(p.Version))
	aad = binary.BigEndian.AppendUint32(aad, uint32(len(p.Key)))
	return append(aad, p.Key...)
}

// Seal encrypts plaintext under a fresh data key, has the keeper wrap that, and
// returns the envelope. It fails when the place is not one of a version, when
// plaintext is longer than MaxPlaintext, and when the keeper fails. plaintext is
// neither changed nor kept.
func Seal(ctx context.Context, k Keeper, place Place, plaintext []byte) ([]byte, error) {
	if err := place.check(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("seal %s %s: it has %d bytes, at most %d are allowed", place.Key, place.Version, len(plaintext), MaxPlaintext)
	}
	dek := make([]byte, dekSize)
	defer clear(dek)
	_, _ = rand.Read(dek) // never fails
	e, err := wrap(ctx, k, place, dek)
	if err != nil {
		return nil, fmt.Errorf("seal %s %s: %w", place.Key, place.Version, err)
	}
	aead, err := dataCipher(dek)
	if err != nil {
		return nil, fmt.Errorf("seal %s %s: %w", place.Key, place.Version, err)
	}
	e.data = aead.Seal(nil, nil, plaintext, place.aad("data")) //nolint:gosec // G407: this cipher makes its own random nonce
	return e.encode(), nil
}

// Open decrypts an envelope of the place. It fails with ErrCorrupt when any byte
// of it was altered or it belongs elsewhere, with ErrUnknownKEK when the keeper
// lacks the KEK, and with another error when the keeper cannot be asked. The
// caller clears the plaintext after use.
func Open(ctx context.Context, k Keeper, place Place, sealed []byte) ([]byte, error) {
	plaintext, err := open(ctx, k, place, sealed)
	if err != nil {
		return nil, fmt.Errorf("open %s %s: %w", place.Key, place.Version, err)
	}
	return plaintext, nil
}

func open(ctx context.Context, k Keeper, place Place, sealed []byte) ([]byte, error) {
	e, err := decode(sealed)
	if err != nil {
		return nil, err
	}
	dek, err := unwrap(ctx, k, place, e)
	if err != nil {
		return nil, err
	}
	defer clear(dek)
	aead, err := dataCipher(dek)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, nil, e.data, place.aad("data"))
	if err != nil {
		return nil, ErrCorrupt // the cipher's own error says no more
	}
	return plaintext, nil
}

// IsEnvelope reports whether bytes begin as those of an envelope do.
func IsEnvelope(b []byte) bool { return bytes.HasPrefix(b, []byte(magic)) }

// KEK returns the ID of the KEK that the envelope needs, without opening it. It
// fails with ErrCorrupt when sealed is no envelope.
func KEK(sealed []byte) (string, error) {
	e, err := decode(sealed)
	return e.kek, err
}

// Rewrap returns the envelope with its data key wrapped by the keeper's current
// KEK. The data is not decrypted. It fails as Open does; altered data, though,
// is only noticed by Open.
func Rewrap(ctx context.Context, k Keeper, place Place, sealed []byte) ([]byte, error) {
	e, err := decode(sealed)
	if err != nil {
		return nil, fmt.Errorf("rewrap %s %s: %w", place.Key, place.Version, err)
	}
	dek, err := unwrap(ctx, k, place, e)
	if err != nil {
		return nil, fmt.Errorf("rewrap %s %s: %w", place.Key, place.Version, err)
	}
	defer clear(dek)
	again, err := wrap(ctx, k, place, dek)
	if err != nil {
		return nil, fmt.Errorf("rewrap %s %s: %w", place.Key, place.Version, err)
	}
	again.data = e.data
	return again.encode(), nil
}

func (p Place) check() error {
	if p.Version == 0 || !p.Key.Valid() {
		return fmt.Errorf("place %q %s names no version of a key", p.Key, p.Version)
	}
	return nil
}

func wrap(ctx context.Context, k Keeper, place Place, dek []byte) (envelope, error) {
	kek, wrapped, err := k.Wrap(ctx, dek, place.aad("dek"))
	if err != nil {
		return envelope{}, fmt.Errorf("wrap the data key: %w", err)
	}
	if kek == "" || len(kek) > maxKEK || len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return envelope{}, fmt.Errorf("wrap the data key: the keeper returned a KEK ID of %d bytes and a wrapped key of %d", len(kek), len(wrapped))
	}
	return envelope{kek: kek, wrapped: wrapped}, nil
}

func unwrap(ctx context.Context, k Keeper, place Place, e envelope) ([]byte, error) {
	dek, err := k.Unwrap(ctx, e.kek, e.wrapped, place.aad("dek"))
	if err != nil {
		return nil, fmt.Errorf("unwrap the data key: %w", err)
	}
	if len(dek) != dekSize {
		clear(dek)
		return nil, ErrCorrupt
	}
	return dek, nil
}

// dataCipher puts a random nonce before what it encrypts.
func dataCipher(dek []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// envelope is a decoded one; data is nonce, ciphertext and tag.
type envelope struct {
	kek     string
	wrapped []byte
	data    []byte
}

func (e envelope) encode() []byte {
	b := make([]byte, 0, len(magic)+1+2+len(e.kek)+2+len(e.wrapped)+len(e.data))
	b = append(append(b, magic...), format1)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.kek)))
	b = append(b, e.kek...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.wrapped)))
	b = append(b, e.wrapped...)
	return append(b, e.data...)
}

// decode accepts exactly what encode writes, each envelope in one way only.
func decode(sealed []byte) (envelope, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(magic))
	if !ok || len(rest) == 0 {
		return envelope{}, fmt.Errorf("%w: it is no envelope", ErrCorrupt)
	}
	if rest[0] != format1 {
		return envelope{}, fmt.Errorf("%w: format %d is unknown; a newer version may have written it", ErrCorrupt, rest[0])
	}
	kek, rest, err := field(rest[1:], maxKEK)
	if err != nil {
		return envelope{}, err
	}
	wrapped, rest, err := field(rest, maxWrapped)
	if err != nil {
		return envelope{}, err
	}
	if len(rest) < nonceSize+tagSize || len(rest) > nonceSize+MaxPlaintext+tagSize {
		return envelope{}, errTruncated()
	}
	return envelope{kek: string(kek), wrapped: wrapped, data: rest}, nil
}

// field takes 1 to most bytes behind their length.
func field(b []byte, most int) (value, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errTruncated()
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > min(most, math.MaxUint16) || len(b)-2 < n {
		return nil, nil, errTruncated()
	}
	return b[2 : 2+n], b[2+n:], nil
}

func errTruncated() error {
	return fmt.Errorf("%w: it is cut off, or a length in it is wrong", ErrCorrupt)
}
