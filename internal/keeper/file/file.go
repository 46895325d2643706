// Package file keeps key-encryption keys in a file of the server.
//
// Guarantees:
//
//   - The file is created on the first start with mode 0600, whole or not at all,
//     and never over an existing one.
//   - A file that others could read or replace is refused: mode wider than 0600,
//     another owner, a symbolic link, a folder that everybody may write to.
//   - The file may hold several KEKs. The primary one wraps, all unwrap, so that
//     the KEK itself can be rotated and its data rewrapped at leisure.
//   - A process that has the file open wraps by the primary KEK of the file as it is
//     now, whoever has changed it. While it cannot be read, by the one before.
//
// The format is Tink's JSON keyset (AES-256-GCM). Whoever holds a copy of the
// file and of the database reads every secret: back them up apart.
package file

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/keyturn/keyturn/internal/keeper"
)

var (
	// ErrPermissions: others could read or replace the key file.
	ErrPermissions = errors.New("key file is not safe")
	// ErrFormat: the file does not hold KEKs.
	ErrFormat = errors.New("key file is not valid")
	// ErrPrimary: the primary KEK cannot be removed.
	ErrPrimary = errors.New("KEK is the primary one")
)

// Config says where the key file is.
type Config struct {
	// Path of the key file. It and its folder are created when missing. Required.
	Path string
	// MustExist makes Open fail rather than create the file: for a server whose
	// database exists, a new KEK would open nothing.
	MustExist bool
}

// Keeper is a keeper.Keeper whose KEKs are in a file. Its methods may be called
// concurrently, and by several processes that share the file.
type Keeper struct {
	path string

	mu   sync.RWMutex
	keys *keys
}

var _ keeper.Keeper = (*Keeper)(nil)

// keys is what the file held when it was read.
type keys struct {
	handle  *keyset.Handle
	aead    tink.AEAD
	primary uint32
	ids     map[uint32]bool // the enabled ones
	file    identity
}

// Open reads the key file, creating it first when there is none. It fails with
// ErrPermissions or ErrFormat, each with a hint, or with fs.ErrNotExist when
// Config.MustExist says so.
func Open(config Config) (*Keeper, error) {
	if config.Path == "" {
		return nil, errors.New("key file: Config.Path is required")
	}
	k := &Keeper{path: config.Path}
	if !config.MustExist {
		if err := create(config.Path); err != nil {
			return nil, err
		}
	}
	if err := k.reload(); err != nil {
		return nil, err
	}
	return k, nil
}

// Wrap implements keeper.Keeper.
func (k *Keeper) Wrap(_ context.Context, dek, aad []byte) (string, []byte, error) {
	keys := k.newest()
	wrapped, err := keys.aead.Encrypt(dek, aad)
	if err != nil {
		return "", nil, fmt.Errorf("key file: wrap: %w", err)
	}
	return format(keys.primary), wrapped, nil
}

// Unwrap implements keeper.Keeper. A KEK that it does not know is looked for in
// the file again: another process may have added it.
func (k *Keeper) Unwrap(_ context.Context, kek string, wrapped, aad []byte) ([]byte, error) {
	id, err := parse(kek)
	if err != nil {
		return nil, err
	}
	keys := k.current()
	if !keys.ids[id] {
		if err := k.reload(); err != nil {
			return nil, err
		}
		keys = k.current()
	}
	if !keys.ids[id] {
		return nil, fmt.Errorf("key file: %w: %s is not in %s (restore the key file that belongs to this database)", keeper.ErrUnknownKEK, kek, k.path)
	}
	// Tink finds the key by the ID in front of the ciphertext: it must be the one
	// that the caller named.
	if len(wrapped) < 5 || wrapped[0] != 1 || binary.BigEndian.Uint32(wrapped[1:]) != id {
		return nil, fmt.Errorf("key file: %w", keeper.ErrCorrupt)
	}
	dek, err := keys.aead.Decrypt(wrapped, aad)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", keeper.ErrCorrupt) // Tink's error says no more
	}
	return dek, nil
}

// Primary returns the ID of the KEK that wraps.
func (k *Keeper) Primary() string { return format(k.newest().primary) }

// KEKs returns the IDs of all KEKs in the file, the primary one first.
func (k *Keeper) KEKs() []string {
	keys := k.newest()
	all := []string{format(keys.primary)}
	for i := range keys.handle.Len() {
		if entry, err := keys.handle.Entry(i); err == nil && entry.KeyID() != keys.primary && keys.ids[entry.KeyID()] {
			all = append(all, format(entry.KeyID()))
		}
	}
	return all
}

// Rotate adds a KEK, makes it the primary one, and returns its ID. Those before
// stay until Remove. When it fails, the file is as it was.
func (k *Keeper) Rotate(context.Context) (string, error) {
	var added uint32
	err := k.change(func(manager *keyset.Manager, _ *keys) (err error) {
		if added, err = manager.Add(aead.AES256GCMKeyTemplate()); err != nil {
			return err
		}
		return manager.SetPrimary(added)
	})
	if err != nil {
		return "", err
	}
	return format(added), nil
}

// Add adds a KEK that wraps nothing until Use, and returns its ID: where several
// servers have a copy of the file each, all must have it before one wraps by it. When
// it fails, the file is as it was.
func (k *Keeper) Add(context.Context) (string, error) {
	var added uint32
	err := k.change(func(manager *keyset.Manager, _ *keys) (err error) {
		added, err = manager.Add(aead.AES256GCMKeyTemplate())
		return err
	})
	if err != nil {
		return "", err
	}
	return format(added), nil
}

// Use makes a KEK of the file the primary one. It fails with keeper.ErrUnknownKEK for
// one that is not there.
func (k *Keeper) Use(_ context.Context, kek string) error {
	id, err := parse(kek)
	if err != nil {
		return err
	}
	return k.change(func(manager *keyset.Manager, keys *keys) error {
		if !keys.ids[id] {
			return fmt.Errorf("%w: %s", keeper.ErrUnknownKEK, kek)
		}
		return manager.SetPrimary(id)
	})
}

// Remove deletes a KEK for ever: what it wrapped and nobody rewrapped is lost,
// as crypto-shredding means it to be. It fails with ErrPrimary for the primary
// one, and with keeper.ErrUnknownKEK for one that is not there.
func (k *Keeper) Remove(_ context.Context, kek string) error {
	id, err := parse(kek)
	if err != nil {
		return err
	}
	return k.change(func(manager *keyset.Manager, keys *keys) error {
		switch {
		case !keys.ids[id]:
			return fmt.Errorf("%w: %s", keeper.ErrUnknownKEK, kek)
		case keys.primary == id:
			return fmt.Errorf("%w: %s (rotate, rewrap, then remove it)", ErrPrimary, kek)
		}
		return manager.Delete(id)
	})
}

// change applies edit to what the file holds now, under its lock.
func (k *Keeper) change(edit func(*keyset.Manager, *keys) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	unlock, err := lock(k.path)
	if err != nil {
		return err
	}
	defer unlock()
	present, err := load(k.path)
	if err != nil {
		return err
	}
	manager := keyset.NewManagerFromHandle(present.handle)
	if err := edit(manager, present); err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	handle, err := manager.Handle()
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if err := replace(k.path, handle); err != nil {
		return err
	}
	changed, err := load(k.path)
	if err != nil {
		return err
	}
	k.keys = changed
	return nil
}

func (k *Keeper) current() *keys {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.keys
}

// newest is what the file holds now, as far as it can be read: another process may
// have made another KEK the primary one.
func (k *Keeper) newest() *keys {
	keys := k.current()
	if file, err := identityAt(k.path); err != nil || file == keys.file || k.reload() != nil {
		return keys
	}
	return k.current()
}

func (k *Keeper) reload() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys, err := load(k.path)
	if err != nil {
		return err
	}
	k.keys = keys
	return nil
}

// inspect checks a keyset and prepares it for use.
func inspect(handle *keyset.Handle) (*keys, error) {
	primary, err := handle.Primary()
	if err != nil {
		return nil, fmt.Errorf("key file: %w: it has no primary key: %w", ErrFormat, err)
	}
	k := &keys{handle: handle, primary: primary.KeyID(), ids: make(map[uint32]bool)}
	for _, info := range handle.KeysetInfo().GetKeyInfo() {
		if info.GetTypeUrl() != aead.AES256GCMKeyTemplate().GetTypeUrl() || info.GetOutputPrefixType() != aead.AES256GCMKeyTemplate().GetOutputPrefixType() {
			return nil, fmt.Errorf("key file: %w: key %d is not an AES-GCM key with Tink's prefix", ErrFormat, info.GetKeyId())
		}
	}
	for i := range handle.Len() {
		entry, err := handle.Entry(i)
		if err != nil {
			return nil, fmt.Errorf("key file: %w: %w", ErrFormat, err)
		}
		k.ids[entry.KeyID()] = entry.KeyStatus() == keyset.Enabled
	}
	if k.aead, err = aead.New(handle); err != nil {
		return nil, fmt.Errorf("key file: %w: %w", ErrFormat, err)
	}
	return k, nil
}

const prefix = "file:"

func format(id uint32) string { return prefix + strconv.FormatUint(uint64(id), 10) }

// parse accepts exactly what format writes.
func parse(kek string) (uint32, error) {
	if len(kek) > len(prefix) && kek[:len(prefix)] == prefix {
		id, err := strconv.ParseUint(kek[len(prefix):], 10, 32)
		if err == nil && format(uint32(id)) == kek {
			return uint32(id), nil
		}
	}
	return 0, fmt.Errorf("key file: %w: %q is not the ID of a KEK in a key file", keeper.ErrUnknownKEK, kek)
}
