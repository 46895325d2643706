package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

// Dump implements store.Dumper.
func (s *Store) Dump(ctx context.Context, fn func(table func(store.Table) store.Rows) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	conn, err := s.settings.connect(ctx, s.settings.upkeep()) // no limit for a statement
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // there is nothing to lose
	if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return fault("begin to read", err)
	}
	return fn(func(table store.Table) store.Rows { return dumpTable(ctx, conn, table) })
}

// dumpOrder is what identifies the rows of each table.
func dumpOrder(table string) string {
	return map[string]string{
		"counters": "id", "docs": "kind, name", "events": "key, seq", "jobs": "seq",
		"log_records": "number", "log_hashes": "number", "materials": "key, version",
	}[table]
}

func dumpTable(ctx context.Context, conn *pgx.Conn, table store.Table) store.Rows {
	return func(yield func([]any, error) bool) {
		rows, err := conn.Query(ctx, fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", dumpColumns(table), table.Name, dumpOrder(table.Name)))
		if err != nil {
			yield(nil, fault("read the table "+table.Name, err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			row, err := rows.Values()
			if err != nil {
				yield(nil, fault("read the table "+table.Name, err))
				return
			}
			if !yield(row, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, fault("read the table "+table.Name, err))
		}
	}
}

// dumpColumns gives all numbers the type of a dump.
func dumpColumns(table store.Table) string {
	columns := make([]string, len(table.Columns))
	for i, column := range table.Columns {
		switch column {
		case "priority", "attempt", "state":
			column += "::bigint"
		case "front":
			column += "::integer::bigint"
		}
		columns[i] = column
	}
	return strings.Join(columns, ", ")
}
