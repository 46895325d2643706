package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"strconv"

	driver "modernc.org/sqlite"
)

// conn is one connection with its prepared statements. One goroutine uses it at
// a time.
//
// No statement is given a context that can end: SQLite answers an interrupted
// write by rolling back the whole transaction, which other callers share here.
// Operations look at their context before they begin, and between rows.
type conn struct {
	sql        *sql.Conn
	endless    context.Context // for preparing statements
	statements map[string]*sql.Stmt
}

func newConn(ctx context.Context, db *sql.DB) (*conn, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{sql: c, endless: context.WithoutCancel(ctx), statements: make(map[string]*sql.Stmt)}, nil
}

// stmt returns the prepared form of query, which must be a constant.
func (c *conn) stmt(query string) (*sql.Stmt, error) {
	if s, ok := c.statements[query]; ok {
		return s, nil
	}
	s, err := c.sql.PrepareContext(c.endless, query)
	if err != nil {
		return nil, err
	}
	c.statements[query] = s
	return s, nil
}

// exec returns the number of rows changed.
func (c *conn) exec(query string, args ...any) (int64, error) {
	s, err := c.stmt(query)
	if err != nil {
		return 0, err
	}
	result, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// row scans the only row of a result into dest; false means there is none.
func (c *conn) row(query string, args []any, dest ...any) (bool, error) {
	s, err := c.stmt(query)
	if err != nil {
		return false, err
	}
	err = s.QueryRow(args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.statements {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.sql.Close())...)
}

// openDB returns a pool of at most size connections to the file at path.
func openDB(path string, size int, options url.Values) (*sql.DB, error) {
	options.Set("_busy_timeout", "5000") // milliseconds
	options.Set("_foreign_keys", "1")
	options.Set("_synchronous", "FULL")
	options.Set("_defensive", "1")
	options.Set("_dqs", "0")
	for _, pragma := range []string{
		"secure_delete(ON)",
		"temp_store(MEMORY)", // nothing spills into temporary files
		"mmap_size(0)",       // a disk error becomes an error, not a fatal signal
		"trusted_schema(OFF)",
		"cell_size_check(ON)",
	} {
		options.Add("_pragma", pragma)
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}
	connector, err := driver.NewConnector(dsn.String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

// writerOptions: the writer's transactions take the write lock when they begin.
func writerOptions() url.Values {
	return url.Values{
		"_txlock":       {"immediate"},
		"_auto_vacuum":  {"NONE"}, // freed pages are zeroed and used again
		"_journal_mode": {"WAL"},
		"_pragma":       {"cache_size(-8192)", "journal_size_limit(" + strconv.Itoa(64<<20) + ")"},
	}
}

func readerOptions() url.Values {
	return url.Values{"_query_only": {"1"}, "_pragma": {"cache_size(-2048)"}}
}
