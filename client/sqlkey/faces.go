package sqlkey

import (
	"context"
	"database/sql/driver"
	"errors"
)

// An optional interface is hidden or shown where its presence matters: with an
// ExecerContext or a QueryerContext, database/sql converts the arguments before
// it asks; without, a statement converts them, perhaps by rules of its own.

type (
	execConn      struct{ *conn }
	queryConn     struct{ *conn }
	execQueryConn struct {
		*conn
		execConn
		queryConn
	}
)

// face returns the wrapper with the interfaces that the driver's connection has.
func (c *conn) face() driver.Conn {
	exec, query := canExec(c.inner), canQuery(c.inner)
	switch {
	case exec && query:
		return execQueryConn{c, execConn{c}, queryConn{c}}
	case exec:
		return execConn{c}
	case query:
		return queryConn{c}
	default:
		return c
	}
}

func canExec(inner driver.Conn) bool {
	_, modern := inner.(driver.ExecerContext)
	_, old := inner.(driver.Execer) //nolint:staticcheck // old drivers have nothing else
	return modern || old
}

func canQuery(inner driver.Conn) bool {
	_, modern := inner.(driver.QueryerContext)
	_, old := inner.(driver.Queryer) //nolint:staticcheck // old drivers have nothing else
	return modern || old
}

// ExecContext implements driver.ExecerContext.
func (c execConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	inner, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	if execer, ok := inner.(driver.ExecerContext); ok {
		return execer.ExecContext(ctx, query, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	execer, ok := inner.(driver.Execer) //nolint:staticcheck // old drivers have nothing else
	if !ok {
		return nil, driver.ErrSkip
	}
	return execer.Exec(query, values)
}

// QueryContext implements driver.QueryerContext.
func (c queryConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	inner, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	if queryer, ok := inner.(driver.QueryerContext); ok {
		return queryer.QueryContext(ctx, query, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	queryer, ok := inner.(driver.Queryer) //nolint:staticcheck // old drivers have nothing else
	if !ok {
		return nil, driver.ErrSkip
	}
	return queryer.Query(query, values)
}

// positional returns the values for a driver that knows neither names nor contexts.
func positional(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sqlkey: the driver does not support named parameters")
		}
		values[i] = arg.Value
	}
	return values, ctx.Err()
}

// stmt is a statement of the driver. Its Close may be called while the
// connection is idle and so excludes the retirement.
type stmt struct {
	driver.Stmt
	conn *conn
}

// columnStmt is a stmt whose driver converts arguments per column.
type columnStmt struct {
	*stmt
	driver.ColumnConverter
}

func (c *conn) wrap(s driver.Stmt, err error) (driver.Stmt, error) {
	if err != nil {
		return nil, err
	}
	wrapped := &stmt{s, c}
	if converter, ok := s.(driver.ColumnConverter); ok { //nolint:staticcheck // see columnStmt
		return columnStmt{wrapped, converter}, nil
	}
	return wrapped, nil
}

// Close implements driver.Stmt. The statements of a retired connection ended with it.
func (s *stmt) Close() error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.conn.state == retired || s.conn.state == ended {
		return nil
	}
	return s.Stmt.Close()
}

// ExecContext implements driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if execer, ok := s.Stmt.(driver.StmtExecContext); ok {
		return execer.ExecContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.Stmt.Exec(values) //nolint:staticcheck // old drivers have nothing else
}

// QueryContext implements driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if queryer, ok := s.Stmt.(driver.StmtQueryContext); ok {
		return queryer.QueryContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.Stmt.Query(values) //nolint:staticcheck // old drivers have nothing else
}

// CheckNamedValue implements driver.NamedValueChecker: the statement's own
// checker, or else the connection's, as database/sql would choose.
func (s *stmt) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := s.Stmt.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return s.conn.CheckNamedValue(value)
}
