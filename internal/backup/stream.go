package backup

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/internal/store"
)

// The plaintext: the magic, then for each table of store.Tables in order one 'T'
// with its name and its rows, each an 'R' with its values, and at the end one 'M'
// with the manifest. Names and values are a letter for the type, the length in 8
// bytes, big-endian, and the content, as store.Tally hashes them.
const (
	magic  = "keyturn-backup\x00"
	format = 1

	markTable    = 'T'
	markRow      = 'R'
	markManifest = 'M'
)

const (
	// chunk is the size of buffers.
	chunk = 64 << 10
	// maxRow bounds the values of a row: one body, and some names and numbers.
	maxRow = store.MaxBody + 8*store.MaxName
	// maxManifest bounds the manifest.
	maxManifest = 64 << 10
)

// encoder writes the plaintext; err is its first error.
type encoder struct {
	w   io.Writer
	err error
}

func (e *encoder) write(b []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

func (e *encoder) begin() { e.write(append([]byte(magic), format)) }

func (e *encoder) value(letter byte, content []byte) {
	head := [9]byte{0: letter}
	binary.BigEndian.PutUint64(head[1:], uint64(len(content)))
	e.write(head[:])
	e.write(content)
}

func (e *encoder) table(name string) {
	e.write([]byte{markTable})
	e.value('t', []byte(name))
}

// row writes a row that checkRow has seen.
func (e *encoder) row(row []any) {
	e.write([]byte{markRow})
	for _, value := range row {
		switch value := value.(type) {
		case nil:
			e.value('n', nil)
		case int64:
			e.value('i', binary.BigEndian.AppendUint64(nil, uint64(value)))
		case string:
			e.value('t', []byte(value))
		case []byte:
			e.value('b', value)
		}
	}
}

func (e *encoder) end(manifest []byte) {
	e.write([]byte{markManifest})
	e.value('b', manifest)
}

// letters are the types of the columns of a table.
func letters(table store.Table) string {
	types := map[string]string{
		"counters": "ii", "docs": "ttiib", "events": "tibtib", "jobs": "ittttiiiiiiib",
		"log_records": "ib", "log_hashes": "ib", "materials": "tib",
	}
	return types[table.Name]
}

// mayLack says which columns may be absent.
func mayLack(column string) bool { return column == "due" || column == "until" }

// checkRow refuses what no reader would take.
func checkRow(table store.Table, row []any) error {
	types := letters(table)
	if len(row) != len(types) {
		return fmt.Errorf("%w: a row of %d columns, %d are known", ErrInvalid, len(row), len(types))
	}
	size := 0
	for i, value := range row {
		letter := byte(0)
		switch value := value.(type) {
		case nil:
			letter = 'n'
		case int64:
			letter = 'i'
			size += 8
		case string:
			letter = 't'
			size += len(value)
			if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
				return fmt.Errorf("%w: column %s is not UTF-8 without NUL", ErrInvalid, table.Columns[i])
			}
		case []byte:
			letter = 'b'
			size += len(value)
			if value == nil {
				return fmt.Errorf("%w: column %s is absent", ErrInvalid, table.Columns[i])
			}
		}
		if letter != types[i] && (letter != 'n' || !mayLack(table.Columns[i])) {
			return fmt.Errorf("%w: column %s holds %T", ErrInvalid, table.Columns[i], value)
		}
	}
	if size > maxRow {
		return fmt.Errorf("%w: a row of %d bytes, at most %d are allowed", ErrInvalid, size, maxRow)
	}
	return nil
}

// decoder reads the plaintext.
type decoder struct {
	r   io.Reader
	buf bytes.Buffer
	row []any
}

func (d *decoder) begin() error {
	head := make([]byte, len(magic)+1)
	if err := d.full(head); err != nil {
		return err
	}
	if string(head[:len(magic)]) != magic {
		return fmt.Errorf("%w: what was encrypted is something else", ErrInvalid)
	}
	if got := head[len(magic)]; got != format {
		return fmt.Errorf("%w: %d, this program reads %d; use the program that made it, or a newer one", ErrFormat, got, format)
	}
	return nil
}

// full reads all of b.
func (d *decoder) full(b []byte) error {
	_, err := io.ReadFull(d.r, b)
	return cutOff(err)
}

// cutOff says that the file ends too early.
func cutOff(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it was cut off", ErrInvalid)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (d *decoder) mark() (byte, error) {
	var b [1]byte
	err := d.full(b[:])
	return b[0], err
}

// value reads one value into the buffer, behind what is there.
func (d *decoder) value(left int) (letter byte, err error) {
	var head [9]byte
	if err := d.full(head[:]); err != nil {
		return 0, err
	}
	size := binary.BigEndian.Uint64(head[1:])
	if size > uint64(left) {
		return 0, fmt.Errorf("%w: a value of %d bytes, at most %d are allowed here", ErrInvalid, size, left)
	}
	// It grows with what is there, not with what is promised.
	_, err = io.CopyN(&d.buf, d.r, int64(size))
	return head[0], cutOff(err)
}

// name reads the name of a table.
func (d *decoder) name(want string) error {
	d.buf.Reset()
	letter, err := d.value(store.MaxName)
	if err == nil && (letter != 't' || d.buf.String() != want) {
		err = fmt.Errorf("%w: a table %q where %s belongs", ErrInvalid, d.buf.String(), want)
	}
	return err
}

// values reads a row. It is valid until the next call.
func (d *decoder) values(table store.Table) ([]any, error) {
	d.buf.Reset()
	var found [16]byte
	var ends [16]int
	for i := range table.Columns {
		var err error
		if found[i], err = d.value(maxRow - d.buf.Len()); err != nil {
			return nil, err
		}
		ends[i] = d.buf.Len()
	}
	d.row = slices.Grow(d.row[:0], len(table.Columns))
	all, from := d.buf.Bytes(), 0
	for i, end := range ends[:len(table.Columns)] {
		value, err := parse(found[i], all[from:end:end])
		if err != nil {
			return nil, err
		}
		d.row, from = append(d.row, value), end
	}
	return d.row, checkRow(table, d.row)
}

func parse(letter byte, content []byte) (any, error) {
	switch {
	case letter == 'n' && len(content) == 0:
		return nil, nil
	case letter == 'i' && len(content) == 8:
		return int64(binary.BigEndian.Uint64(content)), nil
	case letter == 't':
		return string(content), nil
	case letter == 'b':
		if content == nil {
			content = []byte{}
		}
		return content, nil
	}
	return nil, fmt.Errorf("%w: a value of type %q with %d bytes", ErrInvalid, letter, len(content))
}

// manifest reads the manifest, and wants nothing to follow.
func (d *decoder) manifest() (Manifest, error) {
	d.buf.Reset()
	letter, err := d.value(maxManifest)
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	body := d.buf.Bytes()
	if err := json.Unmarshal(body, &m); err != nil {
		return Manifest{}, fmt.Errorf("%w: its manifest: %w", ErrInvalid, err)
	}
	// Whoever reads the file must see the same as whoever reads what was decoded.
	if again, err := json.Marshal(m); err != nil || letter != 'b' || !bytes.Equal(body, again) {
		return Manifest{}, fmt.Errorf("%w: its manifest is not in the form that is written", ErrInvalid)
	}
	var more [1]byte
	switch _, err := io.ReadFull(d.r, more[:]); {
	case err == nil:
		return Manifest{}, fmt.Errorf("%w: something follows its end", ErrInvalid)
	case !errors.Is(err, io.EOF):
		return Manifest{}, cutOff(err)
	}
	if m.Format != format || m.Log.Size > math.MaxInt64 {
		return Manifest{}, fmt.Errorf("%w: its manifest is of format %d", ErrInvalid, m.Format)
	}
	return m, nil
}
