package keytable

import (
	"encoding/json"
	"fmt"

	"github.com/keyturn/keyturn/key"
)

// Line is one line of a stream of snapshots: JSON objects, each with one of
//
//   - Pepper, first of all: what the keys are hashed with;
//   - Reset: what was known before is no longer true; everything follows;
//   - Key and what follows it: one version, or with Gone the end of one;
//   - Rev: everything up to this revision was sent, as of Age milliseconds ago.
type Line struct {
	Pepper []byte `json:"pepper,omitempty"`
	Reset  bool   `json:"reset,omitempty"`

	Key      key.Name    `json:"key,omitempty"`
	Version  key.Version `json:"version,omitempty"`
	Hash     string      `json:"hash,omitempty"`
	Accepted bool        `json:"accepted,omitempty"`
	Gone     bool        `json:"gone,omitempty"`
	Rules    *Rules      `json:"rules,omitempty"`

	Rev uint64 `json:"rev,omitempty"`
	Age int64  `json:"ageMs,omitempty"`
}

// MaxLine bounds a line, in bytes.
const MaxLine = 64 << 10

// LineOf returns the line of an entry. It is found there by its other hash.
func LineOf(e *Entry, gone bool) Line {
	l := Line{Key: e.Key, Version: e.Version, Hash: e.Other.String(), Accepted: e.Accepted && !gone, Gone: gone}
	if !gone {
		l.Rules = &e.Rules
	}
	return l
}

// Entry returns the entry of a line.
func (l *Line) Entry() (Entry, error) {
	hash, err := ParseHash(l.Hash)
	if err != nil {
		return Entry{}, err
	}
	if l.Version == 0 || l.Key == "" {
		return Entry{}, fmt.Errorf("a line names no version of an API key")
	}
	e := Entry{Key: l.Key, Version: l.Version, Hash: hash, Accepted: l.Accepted}
	if l.Rules != nil {
		e.Rules = *l.Rules
	}
	return e, nil
}

// Encode returns the line with its end.
func (l *Line) Encode() ([]byte, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode a line: %w", err)
	}
	return append(b, '\n'), nil
}

// DecodeLine reads a line; one longer than MaxLine is refused.
func DecodeLine(b []byte) (Line, error) {
	var l Line
	if len(b) > MaxLine {
		return l, fmt.Errorf("a line of %d bytes, %d are the most", len(b), MaxLine)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return Line{}, fmt.Errorf("decode a line: %w", err)
	}
	return l, nil
}

// Page returns entries from number from on, at most limit, and where to go on; 0
// when there are no more. What changes between two pages may be in none or both.
func (t *Table) Page(from uint32, limit int) (list []Entry, next uint32) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for at := max(from, 1); at < t.versions.n; at++ {
		if len(list) == limit {
			return list, at
		}
		if v := t.versions.at(at); v.present {
			list = append(list, t.entry(v))
		}
	}
	return list, 0
}
