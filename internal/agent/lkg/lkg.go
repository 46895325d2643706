// Package lkg keeps the last known good key versions of an agent sealed on
// disk, so that it can serve its applications after a restart while the server
// is away.
//
// Guarantees:
//   - What is on disk is encrypted and authenticated (AES-256-GCM) under a key
//     that never leaves the directory. It protects backups and copies of the
//     sealed file alone, not against a reader of the whole directory: that is
//     what the modes 0700 and 0600 are for, which are checked.
//   - It opens only on behalf of the same party and server address.
//   - A file that is corrupt, foreign or of another format is reported, never
//     served, and never a crash.
//   - Writing is atomic and durable; the old file survives a failed write. What a
//     crash left of one is removed by the next Open.
//   - One agent at a time uses a directory.
//
// A Store may be used by several goroutines, but one call of Save, MarkSwitching
// and ClearSwitching at a time.
package lkg

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const (
	keyFile       = "seal.key"
	sealedFile    = "last-known-good"
	switchingFile = "switching.json"
	lockFile      = "lock"

	// magic begins every sealed file; the digit is the format.
	magic = "keyturn-lkg-1\n"
	// maxSealed bounds what Load reads, in bytes.
	maxSealed = 64 << 20
)

var (
	// ErrNone: nothing has been saved yet.
	ErrNone = errors.New("no last-known-good state")
	// ErrCorrupt: what was saved is damaged or belongs to another agent. It should
	// be ignored; the next Save replaces it.
	ErrCorrupt = errors.New("last-known-good state does not authenticate")
	// ErrDirectory: the state directory must be mended by an operator.
	ErrDirectory = errors.New("unusable state directory")
	// ErrInUse: another agent uses the state directory.
	ErrInUse = errors.New("state directory is in use")
)

// Store is an open state directory.
type Store struct {
	dir  string
	aead cipher.AEAD
	lock *os.File
}

// Open opens the directory, which is made with mode 0700 when it is missing. The
// error wraps ErrDirectory or ErrInUse, and says how to mend it.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDirectory, err)
	}
	if err := private(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := acquire(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	if err := clean(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	aead, err := openKey(dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Store{dir: dir, aead: aead, lock: lock}, nil
}

// Close lets another agent use the directory.
func (s *Store) Close() error { return s.lock.Close() }

func private(path string, mode fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDirectory, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: %s is open to others (mode %04o); chmod %04o %s", ErrDirectory, path, info.Mode().Perm(), mode, path)
	}
	return nil
}

func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDirectory, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: another agent holds %s; stop it, or give each agent its own stateDir", ErrInUse, path)
	}
	return f, nil
}

// clean removes what a crash left of files that were being written; the lock is held.
func clean(dir string) error {
	for _, name := range []string{keyFile, sealedFile, switchingFile} {
		if err := place.Clean(spec(filepath.Join(dir, name))); err != nil {
			return fmt.Errorf("%w: %w", ErrDirectory, err)
		}
	}
	return nil
}

func spec(path string) place.Spec { return place.Spec{Path: path, Mode: 0o600, UID: -1, GID: -1} }

// openKey reads the sealing key, or makes one.
func openKey(dir string) (cipher.AEAD, error) {
	path := filepath.Join(dir, keyFile)
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		raw = make([]byte, 32)
		_, _ = rand.Read(raw) // never fails since Go 1.24
		if err := write(path, raw); err != nil {
			return nil, fmt.Errorf("%w: make the sealing key: %w", ErrDirectory, err)
		}
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDirectory, err)
	}
	defer clear(raw)
	if err := private(path, 0o600); err != nil {
		return nil, err
	}
	if len(raw) != 32 {
		return nil, fmt.Errorf("%w: %s has %d bytes instead of 32; remove it, and the sealed state with it", ErrDirectory, path, len(raw))
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	return aead, nil
}

func write(path string, content []byte) error {
	st, err := place.Stage(spec(path), secret.New(content))
	if err != nil {
		return err
	}
	return errors.Join(st.Commit(), st.Release())
}

// record is the stored form of an assignment, before sealing.
type record struct {
	Key        key.Name          `json:"key"`
	Version    key.Version       `json:"version"`
	Epoch      uint64            `json:"epoch"`
	Rotation   key.RotationID    `json:"rotation,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Secrets    map[string][]byte `json:"secrets,omitempty"`
	Published  time.Time         `json:"published"`
}

func aad(binding string) []byte { return []byte(magic + binding) }

// Save replaces what is stored by the given assignments. The binding names the
// party and the server; under another one nothing opens.
func (s *Store) Save(binding string, assignments []client.Assignment) error {
	records := make([]record, 0, len(assignments))
	for _, a := range assignments {
		r := record{Key: a.Key, Version: a.Version, Epoch: a.Epoch, Rotation: a.Rotation, Attributes: a.Attributes, Published: a.PublishedAt, Secrets: make(map[string][]byte, len(a.Secrets))}
		for name, v := range a.Secrets {
			r.Secrets[name] = v.Reveal()
		}
		records = append(records, r)
	}
	plain, err := json.Marshal(records)
	if err != nil {
		return fmt.Errorf("encode the last-known-good state: %w", err)
	}
	defer clear(plain)
	sealed := s.aead.Seal([]byte(magic), nil, plain, aad(binding)) //nolint:gosec // the AEAD draws the nonce itself
	if err := write(filepath.Join(s.dir, sealedFile), sealed); err != nil {
		return fmt.Errorf("save the last-known-good state: %w", err)
	}
	return nil
}

// Load returns what was saved last, at most one assignment per key. The error
// is ErrNone, wraps ErrCorrupt, or is of the operating system.
func (s *Store) Load(binding string) ([]client.Assignment, error) {
	path := filepath.Join(s.dir, sealedFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("load the last-known-good state: %w", err)
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, maxSealed+1))
	if err != nil {
		return nil, fmt.Errorf("load the last-known-good state: %w", err)
	}
	assignments, err := s.open(binding, sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return assignments, nil
}

func (s *Store) open(binding string, sealed []byte) ([]client.Assignment, error) {
	body, ok := bytes.CutPrefix(sealed, []byte(magic))
	if !ok || len(sealed) > maxSealed {
		return nil, fmt.Errorf("%w: it has another format", ErrCorrupt)
	}
	plain, err := s.aead.Open(nil, nil, body, aad(binding))
	if err != nil {
		return nil, fmt.Errorf("%w: it was damaged, or written by another agent or for another server", ErrCorrupt)
	}
	defer clear(plain)
	var records []record
	if err := json.Unmarshal(plain, &records); err != nil {
		return nil, fmt.Errorf("%w: its content cannot be read", ErrCorrupt)
	}
	seen := make(map[key.Name]bool)
	out := make([]client.Assignment, 0, len(records))
	for _, r := range records {
		if !r.Key.Valid() || seen[r.Key] {
			return nil, fmt.Errorf("%w: its content is not consistent", ErrCorrupt)
		}
		seen[r.Key] = true
		a := client.Assignment{Key: r.Key, Version: r.Version, Epoch: r.Epoch, Rotation: r.Rotation, Attributes: r.Attributes, PublishedAt: r.Published, Secrets: make(map[string]secret.Value, len(r.Secrets))}
		for name, v := range r.Secrets {
			a.Secrets[name] = secret.New(v)
			clear(v)
		}
		out = append(out, a)
	}
	return out, nil
}

// MarkSwitching notes, durably, that the files of the named targets are about to
// be changed and their applications to be told. A crash leaves the note.
func (s *Store) MarkSwitching(targets []string) error {
	b, err := json.Marshal(targets)
	if err != nil {
		return fmt.Errorf("note the switch: %w", err)
	}
	if err := write(filepath.Join(s.dir, switchingFile), b); err != nil {
		return fmt.Errorf("note the switch: %w", err)
	}
	return nil
}

// ClearSwitching removes the note of MarkSwitching.
func (s *Store) ClearSwitching() error {
	if err := os.Remove(filepath.Join(s.dir, switchingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear the note of the switch: %w", err)
	}
	return nil
}

// Switching returns the targets of the last MarkSwitching that was not cleared.
// A note that cannot be read names no target.
func (s *Store) Switching() []string {
	b, err := os.ReadFile(filepath.Join(s.dir, switchingFile))
	if err != nil {
		return nil
	}
	var targets []string
	if json.Unmarshal(b, &targets) != nil {
		return nil
	}
	slices.Sort(targets)
	return slices.Compact(targets)
}

// Binding joins a party and a server address into the binding of Save and Load.
func Binding(party, address string) string { return strings.Join([]string{party, address}, "\n") }
