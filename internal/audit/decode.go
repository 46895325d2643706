package audit

import (
	"bytes"
	"fmt"
	"math"
	"time"

	"github.com/keyturn/keyturn/key"
)

// Decode reads a record that Encode wrote. Anything else is refused: a member
// that is unknown, repeated, empty or out of order, white space, another way to
// write a string, a number or a time. So Encode(Decode(b)) is always b.
// The error wraps ErrEntry and says where.
func Decode(b []byte) (Entry, error) {
	if len(b) > MaxRecordSize {
		return Entry{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrEntry, len(b), MaxRecordSize)
	}
	d := decoder{rest: b}
	e := d.entry()
	if d.err == nil && len(d.rest) > 0 {
		d.fail("data after the entry, or a member that is unknown, repeated or out of order")
	}
	if d.err != nil {
		return Entry{}, fmt.Errorf("%w at byte %d: %w", ErrEntry, len(b)-len(d.rest), d.err)
	}
	if err := e.check(); err != nil {
		return Entry{}, err
	}
	return e, nil
}

// decoder reads from the front of rest until the first error.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoder) entry() Entry {
	var e Entry
	d.want(`{"seq":`)
	e.Seq = d.number()
	d.want(`,"at":`)
	e.At = d.time()
	if d.has(`,"clock":`) {
		e.Clock = d.time()
	}
	d.want(`,"actor":{"id":`)
	e.Actor.ID = d.text()
	d.want(`,"kind":`)
	e.Actor.Kind = d.text()
	d.want(`},"action":`)
	e.Action = Action(d.text())
	if d.has(`,"key":`) {
		e.Key = key.Name(d.text())
	}
	if d.has(`,"rotation":`) {
		e.Rotation = d.rotation()
	}
	if d.has(`,"event":`) {
		e.Event = d.positive()
	}
	if d.has(`,"version":`) {
		e.Version = key.Version(d.positive())
	}
	if d.has(`,"from":`) {
		e.From = d.text()
	}
	if d.has(`,"to":`) {
		e.To = d.text()
	}
	if d.has(`,"target":`) {
		e.Target = d.text()
	}
	d.want(`,"outcome":`)
	e.Outcome = Outcome(d.text())
	if d.has(`,"reason":`) {
		e.Reason = d.text()
	}
	if d.has(`,"detail":{`) {
		e.Detail = d.detail()
	}
	d.want(`}`)
	return e
}

func (d *decoder) detail() map[string]string {
	detail := make(map[string]string, 4)
	last := ""
	for d.err == nil {
		name := d.text()
		if name <= last {
			d.fail("the names in detail are not sorted, or one is repeated")
		}
		d.want(`:`)
		detail[name] = d.text()
		last = name
		if !d.has(`,`) {
			break
		}
	}
	d.want(`}`)
	return detail
}

// has consumes literal if it comes next.
func (d *decoder) has(literal string) bool {
	if d.err != nil || len(d.rest) < len(literal) || string(d.rest[:len(literal)]) != literal {
		return false
	}
	d.rest = d.rest[len(literal):]
	return true
}

func (d *decoder) want(literal string) {
	if d.err == nil && !d.has(literal) {
		d.fail("%s is expected", literal)
	}
}

func (d *decoder) number() uint64 {
	if d.err != nil {
		return 0
	}
	var n uint64
	i := 0
	for ; i < len(d.rest) && '0' <= d.rest[i] && d.rest[i] <= '9'; i++ {
		digit := uint64(d.rest[i] - '0')
		if i > 0 && n == 0 || n > (math.MaxUint64-digit)/10 {
			d.fail("a number begins with 0 or is too large")
			return 0
		}
		n = 10*n + digit
	}
	if i == 0 {
		d.fail("a number is expected")
	}
	d.rest = d.rest[i:]
	return n
}

func (d *decoder) positive() uint64 {
	n := d.number()
	if n == 0 {
		d.fail("a zero is left out")
	}
	return n
}

// text reads a string that is not empty.
func (d *decoder) text() string {
	if d.err != nil {
		return ""
	}
	if !d.has(`"`) {
		d.fail("a string is expected")
		return ""
	}
	end := bytes.IndexByte(d.rest, '"')
	if end > 0 && bytes.IndexByte(d.rest[:end], '\\') < 0 {
		s := string(d.rest[:end])
		d.rest = d.rest[end+1:]
		return s
	}
	return d.escaped()
}

// escaped reads the remainder of a string, up to its closing quotation mark.
func (d *decoder) escaped() string {
	var s []byte
	for i := 0; i < len(d.rest); i++ {
		switch c := d.rest[i]; c {
		case '"':
			if len(s) == 0 {
				d.fail("an empty string is left out")
			}
			d.rest = d.rest[i+1:]
			return string(s)
		case '\\':
			i++
			if i == len(d.rest) || d.rest[i] != '"' && d.rest[i] != '\\' {
				d.fail(`only \" and \\ are escaped`)
				return ""
			}
			s = append(s, d.rest[i])
		default:
			s = append(s, c)
		}
	}
	d.fail("a string does not end")
	return ""
}

func (d *decoder) rotation() key.RotationID {
	s := d.text()
	if d.err != nil {
		return key.RotationID{}
	}
	id, err := key.ParseRotationID(s)
	if err != nil || id.IsZero() || id.String() != s {
		d.fail("a rotation ID is 32 lower-case hexadecimal digits, not all of them 0")
	}
	return id
}

// time reads a time in timeLayout.
func (d *decoder) time() time.Time {
	const size = len(timeLayout) + 2
	if d.err != nil {
		return time.Time{}
	}
	if len(d.rest) < size {
		d.fail("a time is expected")
		return time.Time{}
	}
	t, ok := parseTime(d.rest[:size])
	if !ok {
		d.fail("a time is written as %q", timeLayout)
		return time.Time{}
	}
	d.rest = d.rest[size:]
	return t
}

// parseTime reads a quoted time. It is several times as fast as time.Parse,
// which takes other forms besides, and is half of what verifying a log costs.
func parseTime(b []byte) (time.Time, bool) {
	const layout = `"dddd-dd-ddTdd:dd:dd.ddddddZ"`
	var fields [7]int
	field := 0
	for i := range len(layout) {
		c := b[i]
		if layout[i] != 'd' {
			if c != layout[i] {
				return time.Time{}, false
			}
			continue
		}
		if c < '0' || c > '9' {
			return time.Time{}, false
		}
		fields[field] = 10*fields[field] + int(c-'0')
		if layout[i+1] != 'd' && field < len(fields)-1 {
			field++
		}
	}
	year, month, day := fields[0], time.Month(fields[1]), fields[2]
	hour, minute, second, micro := fields[3], fields[4], fields[5], fields[6]
	t := time.Date(year, month, day, hour, minute, second, micro*1000, time.UTC)
	// time.Date carries what overflows into the next unit: then a field differs.
	if t.Month() != month || t.Day() != day || t.Hour() != hour || t.Minute() != minute || t.Second() != second {
		return time.Time{}, false
	}
	return t, true
}
