package audit

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// timeLayout is RFC 3339 in UTC with exactly six digits of fraction.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// Encode returns the record of e: one line of JSON without white space and
// without a line feed, its members in the order of Entry's fields, those that
// are zero left out (except seq), the names in detail sorted by their bytes.
// Strings are UTF-8; only the quotation mark and the backslash are escaped,
// each by a backslash. The error wraps ErrEntry and names the field.
func Encode(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	return appendEntry(make([]byte, 0, 512), e), nil
}

// appendEntry appends the encoding of e, which was checked.
func appendEntry(b []byte, e Entry) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, e.Seq, 10)
	b = appendTime(b, `,"at":`, e.At)
	b = appendTime(b, `,"clock":`, e.Clock)
	b = append(b, `,"actor":{`...)
	b = appendString(b, `"id":`, e.Actor.ID)
	b = appendString(b, `,"kind":`, e.Actor.Kind)
	b = append(b, '}')
	b = appendString(b, `,"action":`, string(e.Action))
	b = appendString(b, `,"key":`, string(e.Key))
	if !e.Rotation.IsZero() {
		b = appendString(b, `,"rotation":`, e.Rotation.String())
	}
	b = appendNumber(b, `,"event":`, e.Event)
	b = appendNumber(b, `,"version":`, uint64(e.Version))
	b = appendString(b, `,"from":`, e.From)
	b = appendString(b, `,"to":`, e.To)
	b = appendString(b, `,"target":`, e.Target)
	b = appendString(b, `,"outcome":`, string(e.Outcome))
	b = appendString(b, `,"reason":`, e.Reason)
	if len(e.Detail) > 0 {
		separator := `,"detail":{`
		for _, name := range slices.Sorted(maps.Keys(e.Detail)) {
			b = append(b, separator...)
			b = appendQuoted(b, name)
			b = append(b, ':')
			b = appendQuoted(b, e.Detail[name])
			separator = ","
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

func appendTime(b []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(b, name...)
	b = append(b, '"')
	b = t.AppendFormat(b, timeLayout)
	return append(b, '"')
}

func appendNumber(b []byte, name string, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = append(b, name...)
	return strconv.AppendUint(b, n, 10)
}

func appendString(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	b = append(b, name...)
	return appendQuoted(b, s)
}

func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}
