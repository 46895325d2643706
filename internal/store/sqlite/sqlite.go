// Package sqlite keeps a store in one SQLite file, for a single server.
//
// Beyond what package store promises, it guarantees:
//
//   - Concurrent Updates share a commit, and with it the flush to disk (WAL,
//     synchronous=FULL), each inside a savepoint of its own: one that fails
//     takes nothing of the others with it.
//   - Only one process has the file open for writing; a second one is refused.
//   - The file, its log and its lock belong to the owner alone (mode 0600).
//   - Deleted material is gone from the file and from its log soon after the
//     commit (see Checkpoint), whatever SQLite does with its pages.
//   - Events and the audit log are append-only by the schema itself.
//
// An Update must not run another Update of the same store inside its function:
// it would wait for itself. A View inside it is fine, and does not see its writes.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/internal/store"
)

// Config says where the database is.
type Config struct {
	// Path of the database file. It and its folder are created when missing, for
	// the owner alone. Required.
	Path string
	// Readers is how many Views run at the same time, 1 to 64; 0 means 4. More
	// wait for their turn.
	Readers int
	// MaxBytes bounds the size of the database file; what would exceed it fails
	// with store.ErrFull. 0 means that only the disk bounds it.
	MaxBytes int64
}

// Store is a store.Store in one SQLite file. Its methods may be called concurrently.
type Store struct {
	path    string
	lock    *os.File
	writer  *writer
	readers *readers
	watches store.Watches
	closeDB func() error

	// kick asks the background checkpointer to empty the log.
	kick chan struct{}
	stop context.CancelFunc
	done chan struct{}

	moved atomic.Pointer[MovedError] // set by MarkMoved

	mu      sync.RWMutex // guards closed, and orders Add before Wait
	closed  bool
	running sync.WaitGroup
	stopped func() error // runs once
}

var _ store.Store = (*Store)(nil)

// Open opens the database, creates it when missing, and brings its schema up to
// date. It fails with ErrLocked, ErrPermissions, ErrCorrupt, ErrNewer,
// ErrMoved, ErrRestoring or store.ErrFull, each with a hint. Leases that another process held have run out
// then. ctx bounds Open only. Stop must be called.
func Open(ctx context.Context, config Config) (_ *Store, err error) {
	if config.Path == "" {
		return nil, errors.New("sqlite: Config.Path is required")
	}
	if config.Readers < 0 || config.Readers > 64 || config.MaxBytes < 0 {
		return nil, fmt.Errorf("sqlite: Config.Readers %d must be 0 to 64, and Config.MaxBytes %d not negative", config.Readers, config.MaxBytes)
	}
	if config.Readers == 0 {
		config.Readers = 4
	}
	path, err := filepath.Abs(config.Path)
	if err != nil {
		return nil, fmt.Errorf("sqlite: path of the database: %w", err)
	}
	// Before anything is created, and again when nobody else can restore.
	if err := checkRestored(path); err != nil {
		return nil, err
	}
	if err := prepareFile(path); err != nil {
		return nil, err
	}
	lock, err := lockFile(path)
	if err != nil {
		return nil, err
	}
	if err := checkRestored(path); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Store{path: path, lock: lock, kick: make(chan struct{}, 1), done: make(chan struct{})}
	if err := s.connect(ctx, config); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s.stopped = sync.OnceValue(s.shutdown)
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	// A crash may have come between a deletion and its checkpoint.
	if emptied, err := s.writer.checkpoint(); err != nil || !emptied {
		s.emptyLogSoon()
	}
	go s.checkpointer(background)
	return s, nil
}

// connect opens the connections; when it fails none is left open.
func (s *Store) connect(ctx context.Context, config Config) (err error) {
	writeDB, err := openDB(s.path, 1, writerOptions())
	if err != nil {
		return s.fault("open the database", err)
	}
	readDB, err := openDB(s.path, config.Readers, readerOptions())
	if err != nil {
		return errors.Join(s.fault("open the database", err), writeDB.Close())
	}
	s.closeDB = func() error { return errors.Join(readDB.Close(), writeDB.Close()) }
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeDB())
		}
	}()
	if config.MaxBytes > 0 {
		if err := limitSize(ctx, writeDB, config.MaxBytes); err != nil {
			return s.fault("limit the size of the database", err)
		}
	}
	if err := s.migrate(ctx, writeDB); err != nil {
		return err
	}
	// The file belongs to this process alone, so whoever held a lease is gone: the
	// next claim may take over at once.
	if _, err := writeDB.ExecContext(ctx, "UPDATE jobs SET until = 0 WHERE state = 3"); err != nil {
		return s.fault("end the leases of the process before", err)
	}
	c, err := newConn(ctx, writeDB)
	if err != nil {
		return s.fault("open the database", err)
	}
	s.writer = newWriter(s, c)
	s.readers = newReaders(readDB, config.Readers)
	return nil
}

// limitSize sets the quota of the pool's only connection, which stays open.
func limitSize(ctx context.Context, db *sql.DB, bytes int64) error {
	var pageSize int64
	if err := db.QueryRowContext(ctx, "PRAGMA page_size").Scan(&pageSize); err != nil {
		return err
	}
	_, err := db.ExecContext(ctx, "PRAGMA max_page_count = "+strconv.FormatInt(max(1, bytes/pageSize), 10))
	return err
}

// Stop waits for what is under way, empties the log, and closes the file.
// Everything that begins later fails with store.ErrClosed. Repeating it is
// harmless and returns the same error.
func (s *Store) Stop() error { return s.stopped() }

func (s *Store) shutdown() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.running.Wait()
	s.stop()
	<-s.done
	_, err := s.writer.checkpoint() // as far as possible: the next Open does the rest
	return errors.Join(err, s.readers.close(), s.writer.conn.close(), s.closeDB(), s.lock.Close())
}

// enter holds off Stop until leave.
func (s *Store) enter() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("sqlite: %w: %s", store.ErrClosed, s.path)
	}
	s.running.Add(1)
	return nil
}

func (s *Store) leave() { s.running.Done() }

// Update implements store.Store. It returns ctx's error when ctx ends before its
// turn; from then on the outcome of the commit is waited for. When fn fails, or a
// statement of the Tx failed for another reason than store.ErrNotFound,
// store.ErrConflict, store.ErrFenced or store.ErrInvalid, nothing is written.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.writer.update(ctx, fn)
}

// View implements store.Store. The snapshot is the one of the first read.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	c, err := s.readers.take(ctx)
	if err != nil {
		return s.fault("open the database for reading", err)
	}
	defer s.readers.give(c)
	if _, err := c.exec("BEGIN"); err != nil {
		return s.fault("begin to read", err)
	}
	t := &tx{store: s, conn: c}
	defer func() {
		t.done = true
		_, _ = c.exec("ROLLBACK") // there is nothing to lose
	}()
	if err := fn(t.parts()); err != nil {
		return err
	}
	return t.doomed
}

// Watch implements store.Store. An unknown topic never wakes up.
func (s *Store) Watch(ctx context.Context, topic store.Topic) <-chan struct{} {
	return s.watches.Add(ctx, topic)
}
