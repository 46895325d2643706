package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/keyturn/keyturn/internal/datadir"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/notices"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
)

// ErrKEK: a key-encryption key is needed still.
var ErrKEK = errors.New("the key-encryption key is needed")

// KEK is a key-encryption key of the key file.
type KEK struct {
	ID string `json:"id"`
	// Primary: it wraps.
	Primary bool `json:"primary"`
	// Envelopes are how many in the store are under it; nil if they were not counted.
	Envelopes *int `json:"envelopes,omitempty"`
}

func openKEKs(config *Config) (*file.Keeper, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return file.Open(file.Config{Path: config.Keeper.File, MustExist: true})
}

// AddKEK adds a key-encryption key to the key file, and makes it the primary one if use
// is set. Running servers go by that within seconds.
func AddKEK(ctx context.Context, config Config, use bool) (id string, err error) {
	keys, err := openKEKs(&config)
	if err != nil {
		return "", err
	}
	if use {
		return keys.Rotate(ctx)
	}
	return keys.Add(ctx)
}

// UseKEK makes a key-encryption key of the key file the primary one.
func UseKEK(ctx context.Context, config Config, id string) error {
	keys, err := openKEKs(&config)
	if err != nil {
		return err
	}
	return keys.Use(ctx, id)
}

// ListKEKs returns the key-encryption keys of the key file, the primary one first. What
// is under each is counted unless a server has the database in the data folder open:
// counted says so.
func ListKEKs(ctx context.Context, config Config) (list []KEK, counted bool, err error) {
	keys, err := openKEKs(&config)
	if err != nil {
		return nil, false, err
	}
	counts, err := countKEKs(ctx, &config)
	if err != nil && !errors.Is(err, sqlite.ErrLocked) {
		return nil, false, err
	}
	primary := keys.Primary()
	for _, id := range keys.KEKs() {
		kek := KEK{ID: id, Primary: id == primary}
		if err == nil {
			n := counts.under[id]
			kek.Envelopes = &n
		}
		list = append(list, kek)
	}
	return list, err == nil, nil
}

// RemoveKEK deletes a key-encryption key from the key file for ever. It fails with
// ErrKEK while anything in the store is under it, and cannot tell that of backups.
func RemoveKEK(ctx context.Context, config Config, id string) error {
	keys, err := openKEKs(&config)
	if err != nil {
		return err
	}
	if id == keys.Primary() {
		return keys.Remove(ctx, id) // it says why not
	}
	counts, err := countKEKs(ctx, &config)
	if errors.Is(err, sqlite.ErrLocked) {
		return fmt.Errorf("what is under %s can be counted while no server has the database open; stop it, remove the key, and start it again: %w", id, err)
	}
	if err != nil {
		return err
	}
	if n := counts.under[id]; n > 0 || counts.noted == id {
		return fmt.Errorf("%w: %d envelopes in the store are under %s; start a server, which brings them under %s, and try again when its log says that everything is", ErrKEK, n, id, keys.Primary())
	}
	return keys.Remove(ctx, id)
}

// kekCounts is how many envelopes are under each KEK, and which one the store notes as
// that of its servers.
type kekCounts struct {
	under map[string]int
	noted string
}

// countKEKs reads a whole store.
func countKEKs(ctx context.Context, config *Config) (counts kekCounts, err error) {
	in, err := openExisting(ctx, config)
	if err != nil {
		return counts, err
	}
	defer func() { err = errors.Join(err, in.Stop()) }()
	counts.under = map[string]int{}
	err = in.Dump(ctx, func(table func(store.Table) store.Rows) error {
		for _, t := range store.Tables() {
			var count func(row []any) error
			switch t.Name {
			case "docs":
				count = counts.document
			case "materials":
				count = counts.material
			default:
				continue
			}
			for row, err := range table(t) {
				if err == nil {
					err = count(row)
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	return counts, err
}

// openExisting opens the store of a configuration, which must have been used.
func openExisting(ctx context.Context, config *Config) (storage, error) {
	if p := config.Store.Postgres; p != nil {
		return postgres.Open(ctx, postgres.Config{URL: p.URL, PasswordFile: p.PasswordFile})
	}
	database := filepath.Join(config.DataDir, "keyturn.db")
	if gone, err := datadir.Missing(database); err != nil || gone {
		return nil, errors.Join(err, fmt.Errorf("%w: there is no %s; name the configuration of the server", ErrConfig, database))
	}
	return sqlite.Open(ctx, sqlite.Config{Path: database})
}

func (c *kekCounts) material(row []any) error {
	name, _ := row[0].(string)
	version, _ := row[1].(int64)
	envelope, _ := row[2].([]byte)
	kek, err := keeper.KEK(envelope)
	if err != nil {
		return fmt.Errorf("the material of %s %s: %w", name, key.Version(version), err)
	}
	c.under[kek]++
	return nil
}

// document counts the envelopes in a document, of whatever kind that is.
func (c *kekCounts) document(row []any) error {
	var doc store.Doc
	doc.Kind, _ = row[0].(string)
	doc.Name, _ = row[1].(string)
	doc.Body, _ = row[4].([]byte)
	if doc.Kind == kindOfInstallation && doc.Name == nameOfKeys {
		var keys keysDocument
		if err := json.Unmarshal(doc.Body, &keys); err != nil {
			return fmt.Errorf("the store's note of its keys: %w", err)
		}
		c.noted = keys.KEK
		return nil
	}
	envelopes, err := notices.Envelopes(&doc)
	if err != nil {
		return err
	}
	if keeper.IsEnvelope(doc.Body) {
		envelopes = append(envelopes, doc.Body)
	}
	for _, envelope := range envelopes {
		kek, err := keeper.KEK(envelope)
		if err != nil {
			return fmt.Errorf("document %s %s: %w", doc.Kind, doc.Name, err)
		}
		c.under[kek]++
	}
	return nil
}
