package rotation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/key"
)

// The fields of State before and after its presenters, which are the only part
// of it that can be large.
type (
	stateHead struct {
		Seq       uint64      `json:"seq"`
		Now       time.Time   `json:"now,omitzero"`
		Next      key.Version `json:"next"`
		Epoch     uint64      `json:"epoch,omitempty"`
		Tries     uint32      `json:"tries,omitempty"`
		Capacity  int         `json:"capacity,omitempty"`
		Gap       bool        `json:"gap,omitempty"`
		Versions  []Version   `json:"versions,omitempty"`
		Verifiers []Verifier  `json:"verifiers,omitempty"`
	}
	stateTail struct {
		Rotations []Rotation `json:"rotations,omitempty"`
		Ended     []Rotation `json:"ended,omitempty"`
		Recovery  Recovery   `json:"recovery,omitzero"`
		Floor     uint64     `json:"floor,omitempty"`
	}
)

// MarshalState returns the JSON form of a state: byte for byte that of
// encoding/json, which takes ten times as long with ten thousand presenters.
func MarshalState(s *State) ([]byte, error) {
	head, err := json.Marshal(stateHead{s.Seq, s.Now, s.Next, s.Epoch, s.Tries, s.Capacity, s.Gap, s.Versions, s.Verifiers})
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	tail, err := json.Marshal(stateTail{s.Rotations, s.Ended, s.Recovery, s.Floor})
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	const each = 96 // bytes, of most presenters
	out := make([]byte, 0, len(head)+len(tail)+each*len(s.Presenters))
	out = append(out, head[:len(head)-1]...)
	for i := range s.Presenters {
		if i == 0 {
			out = append(out, `,"presenters":[`...)
		} else {
			out = append(out, ',')
		}
		if out, err = appendPresenter(out, &s.Presenters[i]); err != nil {
			return nil, err
		}
	}
	if len(s.Presenters) > 0 {
		out = append(out, ']')
	}
	if !bytes.Equal(tail, []byte("{}")) {
		out = append(append(out, ','), tail[1:len(tail)-1]...)
	}
	return append(out, '}'), nil
}

func appendPresenter(out []byte, p *Presenter) (_ []byte, err error) {
	out = append(out, `{"id":`...)
	if out, err = appendText(out, p.ID); err != nil {
		return nil, err
	}
	if p.Region != "" {
		out = append(out, `,"region":`...)
		if out, err = appendText(out, p.Region); err != nil {
			return nil, err
		}
	}
	out = strconv.AppendInt(append(out, `,"stage":`...), int64(p.Stage), 10)
	if p.Told != 0 {
		out = strconv.AppendUint(append(out, `,"told":`...), uint64(p.Told), 10)
	}
	if p.Epoch != 0 {
		out = strconv.AppendUint(append(out, `,"epoch":`...), p.Epoch, 10)
	}
	if p.Heard != 0 {
		out = strconv.AppendUint(append(out, `,"heard":`...), p.Heard, 10)
	}
	if p.Acked {
		out = append(out, `,"acked":true`...)
	}
	if p.Failed {
		out = append(out, `,"failed":true`...)
	}
	if p.Detail != "" {
		out = append(out, `,"detail":`...)
		if out, err = appendText(out, p.Detail); err != nil {
			return nil, err
		}
	}
	out = appendVersions(out, `,"maybe":[`, p.Maybe)
	out = appendVersions(out, `,"also":[`, p.Also)
	if p.Silent {
		out = append(out, `,"silent":true`...)
	}
	return append(out, '}'), nil
}

func appendVersions(out []byte, name string, list []key.Version) []byte {
	for i, v := range list {
		if i == 0 {
			out = append(out, name...)
		} else {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(v), 10)
	}
	if len(list) > 0 {
		out = append(out, ']')
	}
	return out
}

// appendText appends a JSON string. What has to be escaped is left to encoding/json.
func appendText(out []byte, s string) ([]byte, error) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, err := json.Marshal(s)
			if err != nil {
				return nil, fmt.Errorf("encode state: %w", err)
			}
			return append(out, text...), nil
		}
	}
	return append(append(append(out, '"'), s...), '"'), nil
}

// UnmarshalState reads the JSON form of a state as encoding/json does. What
// MarshalState writes takes it a fifth of the time.
func UnmarshalState(data []byte, s *State) error {
	if quick, ok := readState(data); ok {
		*s = quick
		return nil
	}
	*s = State{}
	return json.Unmarshal(data, s)
}

// readState reads what MarshalState writes; false: it is something else.
func readState(data []byte) (s State, ok bool) {
	// Within a string the quotes would be escaped.
	head, rest, found := bytes.Cut(data, []byte(`,"presenters":[`))
	if !found || len(head) < len(`{""`) {
		return s, false
	}
	r := reader{rest: rest}
	s.Presenters = make([]Presenter, 0, len(rest)/96+1)
	for first := true; !r.skip("]"); first = false {
		if !first {
			r.want(",")
		}
		s.Presenters = append(s.Presenters, r.presenter())
		if r.failed {
			return s, false
		}
	}
	h, t := stateHead{}, stateTail{}
	if len(s.Presenters) == 0 || !exactly(append(bytes.Clone(head), '}'), &h) {
		return s, false
	}
	if string(r.rest) != "}" {
		if r.want(`,"`); r.failed || !exactly(append([]byte(`{"`), r.rest...), &t) {
			return s, false
		}
	}
	s.Seq, s.Now, s.Next, s.Epoch, s.Tries = h.Seq, h.Now, h.Next, h.Epoch, h.Tries
	s.Capacity, s.Gap, s.Versions, s.Verifiers = h.Capacity, h.Gap, h.Versions, h.Verifiers
	s.Rotations, s.Ended, s.Recovery, s.Floor = t.Rotations, t.Ended, t.Recovery, t.Floor
	return s, true
}

// exactly reports whether data is v, with no field that v does not have.
func exactly(data []byte, v any) bool {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	return decoder.Decode(v) == nil && decoder.InputOffset() == int64(len(data))
}

// reader reads the presenters that MarshalState writes.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) skip(text string) bool {
	if len(r.rest) < len(text) || string(r.rest[:len(text)]) != text {
		return false
	}
	r.rest = r.rest[len(text):]
	return true
}

func (r *reader) want(text string) {
	if !r.skip(text) {
		r.failed = true
	}
}

func (r *reader) presenter() (p Presenter) {
	r.want(`{"id":`)
	p.ID = r.text()
	if r.skip(`,"region":`) {
		p.Region = r.text()
	}
	r.want(`,"stage":`)
	negative := r.skip("-")
	if p.Stage = int(r.number(math.MaxInt32)); negative {
		p.Stage = -p.Stage
	}
	if r.skip(`,"told":`) {
		p.Told = key.Version(r.number(math.MaxUint64))
	}
	if r.skip(`,"epoch":`) {
		p.Epoch = r.number(math.MaxUint64)
	}
	if r.skip(`,"heard":`) {
		p.Heard = r.number(math.MaxUint64)
	}
	p.Acked = r.skip(`,"acked":true`)
	p.Failed = r.skip(`,"failed":true`)
	if r.skip(`,"detail":`) {
		p.Detail = r.text()
	}
	p.Maybe = r.versions(`,"maybe":[`)
	p.Also = r.versions(`,"also":[`)
	p.Silent = r.skip(`,"silent":true`)
	r.want("}")
	return p
}

// number reads an integer from 0 to most, without leading zeros.
func (r *reader) number(most uint64) uint64 {
	n := 0
	for n < len(r.rest) && '0' <= r.rest[n] && r.rest[n] <= '9' {
		n++
	}
	value, err := strconv.ParseUint(string(r.rest[:n]), 10, 64)
	if err != nil || value > most || n > 1 && r.rest[0] == '0' {
		r.failed = true
	}
	r.rest = r.rest[n:]
	return value
}

func (r *reader) versions(name string) (list []key.Version) {
	if !r.skip(name) {
		return nil
	}
	for {
		list = append(list, key.Version(r.number(math.MaxUint64)))
		if r.failed || r.skip("]") {
			return list
		}
		r.want(",")
	}
}

// text reads a JSON string. One with anything to unescape is left to encoding/json.
func (r *reader) text() string {
	for i := 1; i < len(r.rest) && r.rest[0] == '"'; i++ {
		switch c := r.rest[i]; {
		case c == '"':
			s := string(r.rest[1:i])
			r.rest = r.rest[i+1:]
			return s
		case c < ' ' || c > '~' || c == '\\':
			r.failed = true
			return ""
		}
	}
	r.failed = true
	return ""
}
