package key

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// ErrRotationID is wrapped by every error that ParseRotationID returns.
var ErrRotationID = errors.New("invalid rotation ID")

// RotationID identifies one rotation: 16 bytes, laid out as a UUID version 7
// (RFC 9562, section 5.7), so that IDs sort by the time at which the rotation
// was asked for. The same 16 bytes are the OpenTelemetry trace ID of the
// rotation. The zero value means "no rotation".
type RotationID [16]byte

// NewRotationID builds an ID from the time and 10 random bytes, of which 74 bits are used.
// The caller supplies both, so that the function stays pure; random must come
// from a cryptographically secure source.
func NewRotationID(at time.Time, random [10]byte) RotationID {
	var id RotationID
	ms := uint64(at.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	copy(id[6:], random[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseRotationID reads what String wrote: 32 hexadecimal digits.
func ParseRotationID(s string) (RotationID, error) {
	var id RotationID
	if len(s) != 2*len(id) {
		return RotationID{}, fmt.Errorf("%w %q: it has %d characters, 32 hexadecimal digits are expected", ErrRotationID, s, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return RotationID{}, fmt.Errorf("%w %q: only hexadecimal digits are allowed", ErrRotationID, s)
	}
	return id, nil
}

// String returns 32 lower-case hexadecimal digits, the form trace viewers use.
func (id RotationID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names no rotation.
func (id RotationID) IsZero() bool { return id == RotationID{} }

// Time returns the moment encoded in the ID, in UTC, to the millisecond.
func (id RotationID) Time() time.Time {
	var ms int64
	for i := range 6 {
		ms = ms<<8 | int64(id[i])
	}
	return time.UnixMilli(ms).UTC()
}

// MarshalText implements encoding.TextMarshaler; the zero ID is the empty text.
func (id RotationID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *RotationID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = RotationID{}
		return nil
	}
	parsed, err := ParseRotationID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
