package apikeycheck

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
)

// errDamaged: a record is not as it was written.
var errDamaged = errors.New("the cache is damaged")

// A record is a frame; integers are big-endian:
//
//	format       1 byte, 1
//	kind         1 byte
//	generation   8 bytes: the records of one have come by one Replace, or since
//	number       4 bytes
//	body
//	checksum     4 bytes, CRC-32C of everything before
const (
	frameFormat = 1
	frameHead   = 1 + 1 + 8 + 4
	frameTail   = 4
)

// frameKind is what a record holds.
type frameKind byte

const (
	// framePepper: what the hashes are made with.
	framePepper frameKind = iota + 1
	// frameEntries: versions and ends of versions, in the order of their arrival.
	frameEntries
	// frameMark: of whom the cache is, and as of when.
	frameMark
	// frameUses: what was not reported.
	frameUses
)

// frame is a decoded record.
type frame struct {
	kind       frameKind
	generation uint64
	number     uint32
	body       []byte
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (f *frame) encode() []byte {
	b := make([]byte, 0, frameHead+len(f.body)+frameTail)
	b = append(b, frameFormat, byte(f.kind))
	b = binary.BigEndian.AppendUint64(b, f.generation)
	b = binary.BigEndian.AppendUint32(b, f.number)
	b = append(b, f.body...)
	return binary.BigEndian.AppendUint32(b, castagnoli(b))
}

// decodeFrame accepts exactly what encode writes. The body is a part of b.
func decodeFrame(b []byte) (frame, error) {
	if len(b) < frameHead+frameTail || len(b) > MaxRecord || b[0] != frameFormat {
		return frame{}, fmt.Errorf("%w: %d bytes are no record of it", errDamaged, len(b))
	}
	end := len(b) - frameTail
	if castagnoli(b[:end]) != binary.BigEndian.Uint32(b[end:]) {
		return frame{}, fmt.Errorf("%w: a checksum is wrong", errDamaged)
	}
	f := frame{kind: frameKind(b[1]), generation: binary.BigEndian.Uint64(b[2:]), number: binary.BigEndian.Uint32(b[10:]), body: b[frameHead:end]}
	if f.kind < framePepper || f.kind > frameUses {
		return frame{}, fmt.Errorf("%w: no record is of kind %d", errDamaged, f.kind)
	}
	return f, nil
}

// mark is the body of frameMark. Times are nanoseconds since 1970, UTC.
type mark struct {
	// Verifier and Centre are whose the cache is; Centre is the server's addresses.
	Verifier string   `json:"verifier"`
	Centre   []string `json:"centre"`
	// Fresh is as of when the records are, Reported when the server last took a report,
	// and MaxAge for how long it then waits.
	Fresh    int64         `json:"fresh"`
	Reported int64         `json:"reported"`
	MaxAge   time.Duration `json:"maxAge"`
	// Entries and Uses are how many records of these kinds there are; Base is how long
	// the entries were that the first of them began with, in bytes.
	Entries uint32 `json:"entries"`
	Base    int    `json:"base"`
	Uses    uint32 `json:"uses"`
}

func decodeMark(text []byte) (m mark, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return mark{}, fmt.Errorf("%w: its mark: %w", errDamaged, err)
	}
	return m, nil
}

func jsonFrame(kind frameKind, generation uint64, number uint32, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode a record of the cache: %w", err)
	}
	f := frame{kind: kind, generation: generation, number: number, body: text}
	return f.encode(), nil
}

// What an entry begins with.
const (
	entryRefused  = 1
	entryAccepted = 2
	entryGone     = 3
)

// appendEntry appends a version, or its end.
func appendEntry(b []byte, e *keytable.Entry, gone bool) []byte {
	if gone {
		return append(append(b, entryGone), e.Hash[:]...)
	}
	if e.Accepted {
		b = append(b, entryAccepted)
	} else {
		b = append(b, entryRefused)
	}
	b = append(b, e.Hash[:]...)
	b = binary.AppendUvarint(b, uint64(e.Version))
	b = appendText(b, string(e.Key))
	b = appendText(b, e.Rules.Client)
	b = binary.AppendUvarint(b, uint64(len(e.Rules.Scopes)))
	for _, scope := range e.Rules.Scopes {
		b = appendText(b, scope)
	}
	b = binary.BigEndian.AppendUint64(b, math.Float64bits(e.Rules.PerSecond))
	b = binary.AppendUvarint(b, uint64(max(e.Rules.Burst, 0)))
	var expires int64
	if !e.Rules.Expires.IsZero() {
		expires = e.Rules.Expires.UnixNano()
	}
	return binary.BigEndian.AppendUint64(b, uint64(expires))
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// eachEntry calls fn with what appendEntry has appended, and accepts nothing else.
func eachEntry(b []byte, fn func(e *keytable.Entry, gone bool) error) error {
	r := reader{rest: b}
	for len(r.rest) > 0 {
		e, gone := r.entry()
		if r.bad {
			return fmt.Errorf("%w: an entry is cut off, or a length in it is wrong", errDamaged)
		}
		if err := fn(&e, gone); err != nil {
			return err
		}
	}
	return nil
}

// reader reads the parts of entries. Once something is bad all is.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) entry() (e keytable.Entry, gone bool) {
	what := r.take(1)
	if r.bad {
		return e, false
	}
	copy(e.Hash[:], r.take(len(e.Hash)))
	switch what[0] {
	case entryGone:
		return e, true
	case entryAccepted:
		e.Accepted = true
	case entryRefused:
	default:
		r.bad = true
	}
	e.Version = key.Version(r.uvarint())
	e.Key = key.Name(r.text())
	e.Rules.Client = r.text()
	if n := r.uvarint(); n > uint64(len(r.rest)) { // each takes a byte at least
		r.bad = true
	} else if n > 0 {
		e.Rules.Scopes = make([]string, n)
		for i := range e.Rules.Scopes {
			e.Rules.Scopes[i] = r.text()
		}
	}
	e.Rules.PerSecond = math.Float64frombits(r.uint64())
	burst := r.uvarint()
	e.Rules.Burst = int(min(burst, math.MaxInt32))
	if expires := int64(r.uint64()); expires != 0 {
		e.Rules.Expires = time.Unix(0, expires)
	}
	r.bad = r.bad || e.Version == 0 || e.Key == "" || burst > math.MaxInt32 || !(e.Rules.PerSecond >= 0) || math.IsInf(e.Rules.PerSecond, 0) ||
		math.Signbit(e.Rules.PerSecond)
	return e, false
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.rest) {
		r.bad = true
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) text() string {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.bad = true
		return ""
	}
	return string(r.take(int(n)))
}

// uvarint accepts the shortest form of a number only.
func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if r.bad || size <= 0 || size > 1 && r.rest[size-1] == 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *reader) uint64() uint64 {
	b := r.take(8)
	if r.bad {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
