// Package postgres keeps a store in a PostgreSQL database (version 15 or later),
// for several servers at once.
//
// Beyond what package store promises, it guarantees:
//
//   - Update is serialisable with respect to every Update of every node: each
//     transaction holds one advisory lock from its first statement to its end.
//     The Updates of one node that wait share a transaction, and with it the flush
//     to disk and the turn among the nodes; its size is bounded, and PostgreSQL
//     gives the turns in order, so that a busy node starves none.
//   - A connection that is cut during a commit does not make the outcome a guess:
//     Update returns once the database has said whether it was committed. Only
//     Stop ends that wait early (ErrUnknown).
//   - Updates wake the watchers of all nodes, by NOTIFY; while a node cannot
//     listen, its watchers are woken every second.
//   - The leases of a process that has died can be claimed again within seconds.
//   - Events and the audit log are append-only by the schema itself. Whoever owns
//     the tables can change the schema.
//   - Nothing waits for ever: see the times in session.go.
//   - Passwords are in no error.
//
// Deleted material: PostgreSQL overwrites nothing in place. A deletion marks the
// row, and its bytes stay in the table's file. Soon after the commit, the part of
// the table (one of sixteen) is therefore rewritten (VACUUM FULL), so that after
// the next checkpoint no file of a table or index contains them. Parts larger than
// 256 MiB are not: there freed space is only used again. The write-ahead log, its archive,
// replicas, snapshots and backups keep what was written for as long as they are
// kept. There, destroying the key-encryption key is what destroys.
//
// An Update must not run another Update of the same store inside its function:
// it would wait for itself. A View inside it is fine, and does not see its writes.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/internal/store"
)

// Config says where the database is.
type Config struct {
	// URL as libpq takes it, several hosts included, for example
	// postgres://keyturn@db1,db2/keyturn?sslmode=verify-full. Unless it says
	// otherwise, target_session_attrs is read-write, and a server whose certificate is
	// not verified is told neither the password nor its MD5 (require_auth). Required.
	URL string
	// PasswordFile holds the password, in one line; it is read whenever a connection
	// is made. Empty: the password of the URL or of the environment, if any.
	PasswordFile string
	// Connections bounds how many Views run at the same time, 1 to 256; 0 means 8.
	// More wait for their turn. A store uses up to four connections beside.
	Connections int
	// Mover opens a database also while an installation is moved into it.
	Mover bool
}

// Store is a store.Store in a PostgreSQL database. Its methods may be called
// concurrently.
type Store struct {
	settings *settings
	node     string
	pool     *pgxpool.Pool
	writer   *writer
	// endless is for statements: one that is interrupted takes the connection along.
	endless context.Context
	watches store.Watches

	// shred asks for the rewriting of what material was deleted from.
	shred chan struct{}
	stop  context.CancelFunc
	// stopping is closed when Stop begins.
	stopping   chan struct{}
	background sync.WaitGroup

	mu      sync.RWMutex // guards closed, and orders Add before Wait
	closed  bool
	running sync.WaitGroup
	stopped func() error // runs once
}

var _ store.Store = (*Store)(nil)

// Open connects to the database and brings its schema up to date, while other
// nodes may be at work. It fails with ErrConfig, ErrConnect, ErrReadOnlyServer,
// ErrForeign, ErrNewer, ErrArriving or store.ErrFull, each with a hint. ctx bounds Open only.
// Stop must be called.
func Open(ctx context.Context, config Config) (_ *Store, err error) {
	node := rand.Text()
	settings, err := newSettings(config, node)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, settings, migrations, config.Mover); err != nil {
		return nil, err
	}
	s := &Store{
		settings: settings, node: node, endless: context.WithoutCancel(ctx),
		shred: make(chan struct{}, 1), stopping: make(chan struct{}),
	}
	if s.pool, err = settings.pool(ctx); err != nil {
		return nil, err
	}
	s.writer = newWriter(s)
	if err := s.writer.register(ctx); err != nil {
		s.pool.Close()
		return nil, err
	}
	s.stopped = sync.OnceValue(s.shutdown)
	background, stop := context.WithCancel(s.endless)
	s.stop = stop
	listening := make(chan struct{})
	s.background.Go(func() { s.listen(background, listening) })
	s.background.Go(func() { s.shredder(background) })
	s.background.Go(func() { s.reaper(background) })
	select {
	case <-listening: // or it was tried once
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.Stop())
	}
	return s, nil
}

// Stop waits for what is under way and closes the connections. Everything that
// begins later fails with store.ErrClosed. Repeating it is harmless and returns
// the same error.
func (s *Store) Stop() error { return s.stopped() }

func (s *Store) shutdown() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.stopping)
	s.running.Wait()
	s.stop()
	s.background.Wait()
	err := s.writer.close()
	s.pool.Close()
	return err
}

// enter holds off Stop until leave.
func (s *Store) enter() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("postgres: %w", store.ErrClosed)
	}
	s.running.Add(1)
	return nil
}

func (s *Store) leave() { s.running.Done() }

// Update implements store.Store. It returns ctx's error when ctx ends before its
// turn; from then on the outcome of the commit is waited for. When fn fails, or a
// statement of the Tx failed for another reason than store.ErrNotFound,
// store.ErrConflict, store.ErrFenced or store.ErrInvalid, nothing is written.
//
// Writes whose outcome is known beforehand are sent without waiting for it.
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
	v := &view{store: s}
	if err := v.acquire(ctx); err != nil {
		return err
	}
	t := &tx{store: s, reader: v}
	defer func() {
		t.done = true
		v.end()
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
