// Package backup writes a whole installation into one encrypted file, and reads it.
//
// It guarantees:
//
//   - A backup is one snapshot of the store, streamed: neither writing nor reading
//     holds more than a few rows in memory.
//   - What is read is what was written. Every table is counted and hashed, and a
//     file that was cut off, continued or changed is refused: what reads it gets an
//     error at the latest at its end, never a part as if it were the whole.
//   - It does not depend on the kind of store.
//   - The keys that open what it holds are not in it; the manifest names them.
//
// Anybody who knows a recipient can encrypt to it: that a file can be decrypted
// does not say who made it. Of its audit log, the signed checkpoints say it.
//
// docs/reference/backup.md describes the format.
package backup

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/keyturn/keyturn/internal/store"
)

var (
	// ErrRecipient: a recipient is none, or there are too few or too many.
	ErrRecipient = errors.New("no recipients for a backup")
	// ErrIdentity: none of the identities opens the file.
	ErrIdentity = errors.New("no identity opens the backup")
	// ErrInvalid: the file is no whole, unchanged backup.
	ErrInvalid = errors.New("not a whole backup")
	// ErrFormat: another version of the program made the file.
	ErrFormat = errors.New("unknown format of a backup")
)

// MaxRecipients bounds Config.Recipients.
const MaxRecipients = 8

// Config says how to write a backup.
type Config struct {
	// Recipients can open it, each alone: recipients of age (age1…), at least one,
	// at most MaxRecipients.
	Recipients []string
	// Log is the name of the audit log.
	Log string
	// Version is that of the program.
	Version string
	// Now is the time of the backup.
	Now time.Time
}

// Manifest says what a backup holds. It is the end of the file.
type Manifest struct {
	Format  int       `json:"format"`
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Tables  []Table   `json:"tables"`
	Log     Log       `json:"log"`
	// Keys are those that the store was made with; empty if no server has used it.
	Keys Keys `json:"keys"`
}

// Table is what a table comes to.
type Table struct {
	Name   string `json:"name"`
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

// Log is the audit log, as its records make it.
type Log struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
	// Root is the root of the Merkle tree in base64.
	Root string `json:"root"`
}

// Keys names the keys that a restored installation needs. None of it is secret.
type Keys struct {
	// KEK is the ID of the key-encryption key, Log the public key of the audit log.
	KEK string `json:"kek"`
	Log string `json:"log"`
}

// Rows is the number of rows of all tables.
func (m Manifest) Rows() (rows int64) {
	for _, table := range m.Tables {
		rows += table.Rows
	}
	return rows
}

// ParseRecipients parses recipients of age. It fails with ErrRecipient.
func ParseRecipients(recipients []string) ([]age.Recipient, error) {
	const mend = "age-keygen -o backup.key makes an identity and prints its recipient, age1…"
	if n := len(recipients); n == 0 || n > MaxRecipients {
		return nil, fmt.Errorf("%w: there are %d, 1 to %d are allowed; %s", ErrRecipient, n, MaxRecipients, mend)
	}
	parsed := make([]age.Recipient, len(recipients))
	post := 0
	for i, recipient := range recipients {
		var err error
		switch {
		case strings.HasPrefix(recipient, "age1pq1"):
			parsed[i], err = age.ParseHybridRecipient(recipient)
			post++
		case strings.HasPrefix(recipient, "age1"):
			parsed[i], err = age.ParseX25519Recipient(recipient)
		default:
			// It may be an identity: it is not repeated.
			err = errors.New("it does not begin with age1")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: number %d of %d: %w; %s", ErrRecipient, i+1, len(recipients), err, mend)
		}
	}
	if post != 0 && post != len(parsed) {
		return nil, fmt.Errorf("%w: %d of %d begin with age1pq1: name only such or none, since a file is as weak as its weakest recipient", ErrRecipient, post, len(parsed))
	}
	return parsed, nil
}

// Write writes one snapshot of source to w, encrypted to all recipients. When it
// fails, what was written is refused by whatever reads it.
func Write(ctx context.Context, w io.Writer, source store.Dumper, config Config) (Manifest, error) {
	recipients, err := ParseRecipients(config.Recipients)
	if err != nil {
		return Manifest{}, err
	}
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return Manifest{}, fmt.Errorf("encrypt the backup: %w", err)
	}
	buffered := bufio.NewWriterSize(sealed, chunk)
	manifest := Manifest{Format: format, Time: config.Now.UTC().Round(0), Version: config.Version, Log: Log{Name: config.Log}}
	if err := writeStream(ctx, buffered, source, &manifest); err != nil {
		return Manifest{}, err
	}
	if err := errors.Join(buffered.Flush(), sealed.Close()); err != nil {
		return Manifest{}, fmt.Errorf("write the backup: %w", err)
	}
	return manifest, nil
}

// writeStream writes the plaintext, and completes the manifest.
func writeStream(ctx context.Context, w io.Writer, source store.Dumper, manifest *Manifest) error {
	e := encoder{w: w}
	e.begin()
	var seen observer
	err := source.Dump(ctx, func(rows func(store.Table) store.Rows) error {
		for _, table := range store.Tables() {
			e.table(table.Name)
			tally := store.NewTally()
			for row, err := range rows(table) {
				if err == nil {
					err = ctx.Err()
				}
				if err == nil {
					err = checkRow(table, row)
				}
				if err == nil {
					err = tally.Add(row)
				}
				if err == nil {
					err = seen.row(table.Name, row)
				}
				if err == nil {
					e.row(row)
					err = e.err
				}
				if err != nil {
					return fmt.Errorf("back up the table %s: %w", table.Name, err)
				}
			}
			manifest.Tables = append(manifest.Tables, describe(table.Name, tally))
		}
		return nil
	})
	if err != nil {
		return err
	}
	manifest.Log.Size, manifest.Log.Root = seen.log.size, seen.log.root()
	manifest.Keys = seen.keys
	body, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	e.end(body)
	return e.err
}

func describe(name string, tally *store.Tally) Table {
	digest := tally.Digest()
	return Table{Name: name, Rows: digest.Rows, SHA256: hex.EncodeToString(digest.Hash[:])}
}

// observer looks at the rows that pass by.
type observer struct {
	log  tree
	keys Keys
}

// The document in which a server notes the keys of its store.
const (
	kindOfInstallation = "installation"
	nameOfKeys         = "keys"
)

// row looks at a row that checkRow has seen.
func (o *observer) row(table string, row []any) error {
	switch {
	case table == "docs" && row[0] == kindOfInstallation && row[1] == nameOfKeys:
		body, _ := row[4].([]byte)
		if err := json.Unmarshal(body, &o.keys); err != nil {
			return fmt.Errorf("%w: the store's note of its keys: %w", ErrInvalid, err)
		}
	case table == "log_records":
		record, _ := row[1].([]byte)
		return o.log.add(record)
	}
	return nil
}

func encodeRoot(root [32]byte) string { return base64.StdEncoding.EncodeToString(root[:]) }
