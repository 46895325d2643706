package keeper

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/secret"
)

// Limits of the secrets of one version.
const (
	// MaxSecrets is how many secrets one version may have.
	MaxSecrets = 1000
	// MaxSecretName is the longest name of a secret, in bytes.
	MaxSecretName = 255
)

// The plaintext of sealed secrets; integers are big-endian:
//
//	format            1 byte, 1
//	number            2 bytes
//	for each, in ascending byte order of names:
//	  length of name  1 byte, at least 1
//	  name
//	  length of value 4 bytes
//	  value
const materialFormat1 = 1

// SealMaterial seals the secrets of a version. It fails as Seal does, and when
// there are more than MaxSecrets or a name has not 1 to MaxSecretName bytes. The
// plaintext that is made on the way is cleared.
func SealMaterial(ctx context.Context, k Keeper, place Place, secrets map[string]secret.Value) ([]byte, error) {
	plaintext, err := marshal(secrets)
	if err != nil {
		return nil, fmt.Errorf("seal %s %s: %w", place.Key, place.Version, err)
	}
	defer clear(plaintext)
	return Seal(ctx, k, place, plaintext)
}

// OpenMaterial returns the secrets that SealMaterial sealed, never nil. It fails
// as Open does.
func OpenMaterial(ctx context.Context, k Keeper, place Place, sealed []byte) (map[string]secret.Value, error) {
	plaintext, err := Open(ctx, k, place, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	secrets, err := unmarshal(plaintext)
	if err != nil {
		return nil, fmt.Errorf("open %s %s: %w", place.Key, place.Version, err)
	}
	return secrets, nil
}

// marshal allocates once, so that no copy is left behind uncleared.
func marshal(secrets map[string]secret.Value) ([]byte, error) {
	if len(secrets) > MaxSecrets {
		return nil, fmt.Errorf("it has %d secrets, at most %d are allowed", len(secrets), MaxSecrets)
	}
	size := 1 + 2
	for name, value := range secrets {
		if name == "" || len(name) > MaxSecretName {
			return nil, fmt.Errorf("the name of a secret has %d bytes, 1 to %d are allowed", len(name), MaxSecretName)
		}
		size += 1 + len(name) + 4 + value.Len()
	}
	if size > MaxPlaintext {
		return nil, fmt.Errorf("its secrets have %d bytes together, at most %d are allowed", size, MaxPlaintext)
	}
	b := make([]byte, 0, size)
	b = append(b, materialFormat1)
	b = binary.BigEndian.AppendUint16(b, uint16(len(secrets)))
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		value := secrets[name].Reveal()
		b = append(append(b, byte(len(name))), name...)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...)
	}
	return b, nil
}

// unmarshal accepts exactly what marshal writes.
func unmarshal(b []byte) (map[string]secret.Value, error) {
	if len(b) < 3 || b[0] != materialFormat1 {
		return nil, fmt.Errorf("%w: its content is not material in a known format", ErrCorrupt)
	}
	count, b := int(binary.BigEndian.Uint16(b[1:])), b[3:]
	if count > MaxSecrets {
		return nil, errTruncated()
	}
	secrets := make(map[string]secret.Value, count)
	last := ""
	for range count {
		if len(b) < 1 || len(b)-1 < int(b[0])+4 {
			return nil, errTruncated()
		}
		name := string(b[1 : 1+int(b[0])])
		b = b[1+len(name):]
		size := uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
		if name <= last || uint64(len(b)) < size {
			return nil, errTruncated()
		}
		secrets[name] = secret.New(b[:size])
		last, b = name, b[size:]
	}
	if len(b) > 0 {
		return nil, errTruncated()
	}
	return secrets, nil
}
