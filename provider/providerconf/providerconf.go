// Package providerconf reads the config block of a key, for the Check of a provider.
//
//	b := providerconf.Read(config, "user", "regions", "timeout")
//	s := settings{
//		user:    b.Text("user", 64, "write for example deployer"),
//		timeout: b.Duration("timeout", time.Second, time.Hour, time.Minute, ""),
//	}
//	if !b.Has("user") {
//		b.Missing("user", "write for example deployer")
//	}
//	return s, b.Err()
//
// Guarantees:
//
//   - Err tells every problem at once, each as a *provider.ConfigError with the path
//     of the field, what is wrong and what would be right, in the same order each
//     time; above MaxProblems it tells how many more there are.
//   - A field that is not known is a problem: a typing error becomes no default.
//   - A field that is absent reads as what the caller says or as the zero value. One
//     that is there and is wrong, null included, reads so as well and is reported; of
//     what should be a block and is none nothing further is said.
//   - The config is never changed. No problem shows a value, so that a password in the
//     wrong field stays out of logs, but a choice that is unknown, the name of a key,
//     and what the caller shows.
//
// A Block is for one goroutine.
package providerconf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// MaxProblems bounds the problems that Err tells one by one.
const MaxProblems = 100

// Block is a config or a block within one. Its methods take names of fields.
type Block struct {
	path   string
	fields map[string]any
	found  *problems
	// broken: it is no block, which was reported.
	broken bool
}

// problems are those of the whole config.
type problems struct {
	told []*provider.ConfigError
	more int
}

// Read begins to read a config, whose fields are among those that are known.
func Read(config provider.Config, known ...string) *Block {
	b := &Block{fields: config, found: &problems{}}
	b.only(known)
	return b
}

// Err returns every problem that was found in the whole config, sorted by path and
// joined by errors.Join, or nil.
func (b *Block) Err() error {
	list := slices.Clone(b.found.told)
	slices.SortStableFunc(list, func(a, b *provider.ConfigError) int { return cmp.Compare(a.Path, b.Path) })
	if b.found.more > 0 {
		list = append(list, &provider.ConfigError{Problem: fmt.Sprintf("there are %d more problems", b.found.more), Hint: "mend these first"})
	}
	all := make([]error, 0, len(list))
	for _, problem := range list {
		all = append(all, problem)
	}
	return errors.Join(all...)
}

// Problems is how many problems were found so far, in the whole config.
func (b *Block) Problems() int { return len(b.found.told) + b.found.more }

// Report notes a problem of a field, such as "users" or "users[1]"; "" is the block
// itself. problem says what is wrong, hint what would be right.
func (b *Block) Report(field, problem, hint string) {
	switch {
	case b.broken:
		return
	case len(b.found.told) == MaxProblems:
		b.found.more++
		return
	}
	b.found.told = append(b.found.told, &provider.ConfigError{Path: b.at(field), Problem: problem, Hint: hint})
}

// Missing reports that a field is not there.
func (b *Block) Missing(field, hint string) { b.Report(field, "it is missing", hint) }

func (b *Block) at(field string) string {
	switch {
	case b.path == "":
		return field
	case field == "":
		return b.path
	}
	return b.path + "." + field
}

// Index is the place of an element of a list: the field "users" and 1 are "users[1]".
func Index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// only reports every field that is not known.
func (b *Block) only(known []string) {
	hint := "known are " + strings.Join(known, ", ")
	if len(known) == 0 {
		hint = "remove it"
	}
	for _, field := range b.Names() {
		if !slices.Contains(known, field) {
			b.Report(field, "there is no such field", hint)
		}
	}
}

// Has reports whether a field is there, with whatever value.
func (b *Block) Has(field string) bool {
	_, has := b.fields[field]
	return has
}

// Names returns the names of the fields that are there, sorted.
func (b *Block) Names() []string { return slices.Sorted(maps.Keys(b.fields)) }

// Value returns a field as it is written, nil when it is absent.
func (b *Block) Value(field string) any { return b.fields[field] }

// Text reads a text of 1 to most bytes: UTF-8 without control characters. Absent: "".
// An empty hint means one of this package's, here and below.
func (b *Block) Text(field string, most int, hint string) string {
	if !b.Has(field) {
		return ""
	}
	hint = cmp.Or(hint, fmt.Sprintf("write 1 to %d characters, in quotes if they look like a number", most))
	text, ok := b.fields[field].(string)
	switch {
	case !ok || text == "":
		b.Report(field, "it is not a text", hint)
		return ""
	case len(text) > most:
		b.Report(field, fmt.Sprintf("it has %d bytes, allowed are %d", len(text), most), hint)
		return ""
	case !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
		b.Report(field, "it has control characters", hint)
		return ""
	}
	return text
}

// Choice reads one of the texts that are allowed. Absent: "".
func (b *Block) Choice(field, hint string, allowed ...string) string {
	if !b.Has(field) {
		return ""
	}
	text, ok := b.fields[field].(string)
	if !ok || !slices.Contains(allowed, text) {
		problem := "it is not a text"
		if ok {
			problem = fmt.Sprintf("%.40q is unknown", text)
		}
		b.Report(field, problem, cmp.Or(hint, "write one of "+strings.Join(allowed, ", ")))
		return ""
	}
	return text
}

// Key reads the name of a key. Absent: "".
func (b *Block) Key(field, hint string) key.Name {
	if !b.Has(field) {
		return ""
	}
	text, _ := b.fields[field].(string)
	name, err := key.ParseName(text)
	if err != nil {
		b.Report(field, err.Error(), cmp.Or(hint, "write the name of a key, for example ops/admin"))
		return ""
	}
	return name
}

// Bool reads true or false.
func (b *Block) Bool(field string, otherwise bool, hint string) bool {
	if !b.Has(field) {
		return otherwise
	}
	on, ok := b.fields[field].(bool)
	if !ok {
		b.Report(field, "it is neither true nor false", cmp.Or(hint, "write true or false"))
		return otherwise
	}
	return on
}

// Int reads a whole number within bounds, both included.
func (b *Block) Int(field string, least, most, otherwise int, hint string) int {
	if !b.Has(field) {
		return otherwise
	}
	n, ok := b.fields[field].(float64)
	if whole, is := b.fields[field].(int); is {
		n, ok = float64(whole), true
	}
	if !ok || n != math.Trunc(n) || n < float64(least) || n > float64(most) {
		b.Report(field, fmt.Sprintf("it is not a whole number from %d to %d", least, most), cmp.Or(hint, fmt.Sprintf("write for example %d", max(least, otherwise))))
		return otherwise
	}
	return int(n)
}

// Duration reads a time such as 90s, 1h30m or, of whole days, 7d, within bounds,
// both included.
func (b *Block) Duration(field string, least, most, otherwise time.Duration, hint string) time.Duration {
	if !b.Has(field) {
		return otherwise
	}
	text, _ := b.fields[field].(string)
	d, err := parseDuration(text)
	if err != nil || d < least || d > most {
		b.Report(field, fmt.Sprintf("it is not a time from %s to %s", show(least), show(most)), cmp.Or(hint, "write for example 30s, 4h or 7d"))
		return otherwise
	}
	return d
}

const (
	day     = 24 * time.Hour
	maxDays = uint64(math.MaxInt64 / day)
)

func parseDuration(text string) (time.Duration, error) {
	whole, ofDays := strings.CutSuffix(text, "d")
	if !ofDays {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseUint(whole, 10, 64)
	if err == nil && n > maxDays {
		err = strconv.ErrRange
	}
	return time.Duration(n) * day, err
}

// show writes a duration as people do.
func show(d time.Duration) string {
	switch {
	case d != 0 && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d != 0 && d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	}
	return d.String()
}

// List reads a list of least to most elements. Absent or wrong: none. A list that is
// required has to be looked for by Has.
func (b *Block) List(field string, least, most int, hint string) []any {
	if !b.Has(field) {
		return nil
	}
	list, ok := b.fields[field].([]any)
	switch {
	case !ok:
		b.Report(field, "it is not a list", cmp.Or(hint, "write it in brackets: [a, b]"))
		return nil
	case len(list) < least || len(list) > most:
		b.Report(field, fmt.Sprintf("there are %d, allowed are %d to %d", len(list), least, most), cmp.Or(hint, "add or remove some"))
		return nil
	}
	return list
}

// Block reads a block whose fields are among those that are known. Absent or wrong:
// a block without fields; Has tells the two from an empty one.
func (b *Block) Block(field, hint string, known ...string) *Block {
	if !b.Has(field) {
		return b.part(field, nil)
	}
	return b.Element(field, b.fields[field], hint, known...)
}

// Map reads a block whose names are the user's own.
func (b *Block) Map(field, hint string) *Block {
	if !b.Has(field) {
		return b.part(field, nil)
	}
	return b.open(field, b.fields[field], hint)
}

// Element reads a value at a place of this block, such as an element of a list at
// Index("users", 1), as a block whose fields are among those that are known.
func (b *Block) Element(place string, value any, hint string, known ...string) *Block {
	inner := b.open(place, value, hint)
	inner.only(known)
	return inner
}

func (b *Block) open(place string, value any, hint string) *Block {
	fields, ok := value.(map[string]any)
	if !ok {
		b.Report(place, "it is not a block", cmp.Or(hint, "write its fields in braces or indented below it"))
	}
	inner := b.part(place, fields)
	inner.broken = inner.broken || !ok
	return inner
}

func (b *Block) part(place string, fields map[string]any) *Block {
	return &Block{path: b.at(place), fields: fields, found: b.found, broken: b.broken}
}
