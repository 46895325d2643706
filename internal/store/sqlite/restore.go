package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyturn/keyturn/internal/store"
)

var (
	// ErrRestoring: a restore into the file has begun and is not finished.
	ErrRestoring = errors.New("a restore is not finished")
	// ErrNotEmpty: there is a database already.
	ErrNotEmpty = errors.New("there is a database already")
	// ErrDiffers: what was written is not what was read.
	ErrDiffers = errors.New("the copy differs from the original")
)

// Restoring is what the path of a database that is being restored ends in.
const Restoring = ".restoring"

// checkRestored refuses a path that a restore has begun for.
func checkRestored(path string) error {
	switch _, err := os.Lstat(path + Restoring); {
	case err == nil:
		return fmt.Errorf("sqlite: %w: there is %s (run the same keyturn restore again; to give it up, remove that file)", ErrRestoring, path+Restoring)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("sqlite: look for a restore: %w", err)
	}
	return nil
}

// Restore makes the database file at path, which must not exist, from all that
// another store holds, compares both, and runs finish on it. Only then it gets its
// name: until then Open fails with ErrRestoring. Repeating it, after any error or
// crash, begins anew. It fails with ErrNotEmpty, ErrLocked or ErrDiffers.
func Restore(ctx context.Context, path string, from store.Dumper, finish func(store.Store) error) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("sqlite: path of the database: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("sqlite: create the database's folder: %w", err)
	}
	lock, err := lockFile(path)
	if err != nil {
		return err
	}
	return errors.Join(restore(ctx, path, from, finish), lock.Close())
}

func restore(ctx context.Context, path string, from store.Dumper, finish func(store.Store) error) error {
	if err := checkAbsent(path); err != nil {
		return err
	}
	temp := path + Restoring
	if err := removeAll(temp, temp+"-wal", temp+"-shm"); err != nil {
		return err
	}
	s, err := Open(ctx, Config{Path: temp})
	if err != nil {
		return err
	}
	err = s.receive(ctx, from)
	if err == nil {
		err = finish(s)
	}
	// Closing empties the log into the file and flushes it.
	if err := errors.Join(err, s.Stop()); err != nil {
		return err
	}
	if err := removeAll(temp+"-wal", temp+"-shm", temp+".lock"); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("sqlite: name the restored database: %w", err)
	}
	return syncFolder(filepath.Dir(path))
}

// checkAbsent takes an empty file for none: a server that was refused may have
// left one.
func checkAbsent(path string) error {
	for _, name := range []string{path, path + "-wal"} {
		info, err := os.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("sqlite: look for a database: %w", err)
		case !info.Mode().IsRegular() || info.Size() > 0:
			return fmt.Errorf("sqlite: %w: %s (nothing was changed; move it, its -wal and its -shm away if it is given up)", ErrNotEmpty, name)
		}
	}
	return nil
}

func removeAll(names ...string) error {
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sqlite: remove what a restore left: %w", err)
		}
	}
	return nil
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sqlite: flush the folder: %w", err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("sqlite: flush the folder: %w", err)
	}
	return nil
}

// receive copies everything from another store into this one, which must be new,
// in one transaction, and compares the copy with the original.
func (s *Store) receive(ctx context.Context, from store.Dumper) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.writer.turns.Take(ctx, true); err != nil {
		return err
	}
	sent, err := s.load(ctx, s.writer.conn, from)
	s.writer.turns.Pass()
	if err != nil {
		return err
	}
	got, err := store.DigestOf(ctx, s)
	if err != nil {
		return err
	}
	if difference := sent.Difference(got); difference != "" {
		return fmt.Errorf("sqlite: %w: %s", ErrDiffers, difference)
	}
	return nil
}

// load copies the tables and returns the digest of what was sent.
func (s *Store) load(ctx context.Context, c *conn, from store.Dumper) (store.Digest, error) {
	if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return nil, s.fault("begin to restore", err)
	}
	digest := store.Digest{}
	err := from.Dump(ctx, func(rows func(store.Table) store.Rows) error {
		for _, table := range store.Tables() {
			tally := store.NewTally()
			if err := s.loadTable(ctx, c, table, rows(table), tally); err != nil {
				return err
			}
			digest[table.Name] = tally.Digest()
		}
		return nil
	})
	if err == nil {
		_, err = c.exec("COMMIT")
		err = s.fault("restore", err)
	}
	if err != nil {
		_, _ = c.exec("ROLLBACK") // nothing is of use
		return nil, err
	}
	return digest, nil
}

func (s *Store) loadTable(ctx context.Context, c *conn, table store.Table, rows store.Rows, tally *store.Tally) error {
	insert := insertion(table)
	for row, err := range rows {
		if err == nil {
			err = errors.Join(ctx.Err(), tally.Add(row))
		}
		if err != nil {
			return err
		}
		if _, err := c.exec(insert, row...); err != nil {
			return s.fault("restore the table "+table.Name, err)
		}
	}
	return nil
}

// insertion is the statement that writes a row of a dump.
func insertion(table store.Table) string {
	if table.Name == "counters" {
		return "UPDATE counters SET rev = ?, fence = ?"
	}
	columns, values := strings.Join(table.Columns, ", "), strings.Repeat(", ?", len(table.Columns))[2:]
	if table.Name == "materials" {
		columns, values = columns+", pad", values+", zeroblob(1024)"
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table.Name, columns, values)
}
