package sqlite

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/storetest"
)

var record = flag.Bool("record", false, "record the present schema, unless it is recorded already")

// TestMigrations opens a recorded database of every schema there has been, and
// wants the schema of a new one and every row.
func TestMigrations(t *testing.T) {
	ctx := t.Context()
	if *record {
		recordSchema(t)
	}
	fresh := openInternal(t)
	want := schemaOf(t, fresh.path)
	files, err := filepath.Glob("testdata/schema/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	steps, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(files) != len(steps) {
		t.Fatalf("%d of %d schemas are recorded (%v); run: go test ./internal/store/sqlite -run TestMigrations -record", len(files), len(steps), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "keyturn.db")
			execScript(t, path, string(script))
			s, err := Open(ctx, Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			digest, err := store.DigestOf(ctx, s)
			if err != nil {
				t.Error(err)
			}
			if line := "-- " + digestLine(digest); !strings.HasPrefix(string(script), line+"\n") {
				t.Errorf("%s after the migration, recorded was\n%.1000s", line, script)
			}
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			if got := schemaOf(t, path); !maps.Equal(got, want) {
				t.Errorf("the schema is\n%v\nthat of a new database\n%v", got, want)
			}
		})
	}
}

// digestLine is a digest in one line.
func digestLine(digest store.Digest) string {
	var b strings.Builder
	for _, table := range store.Tables() {
		one := digest[table.Name]
		fmt.Fprintf(&b, "%s %d %x; ", table.Name, one.Rows, one.Hash[:8])
	}
	return strings.TrimSuffix(b.String(), "; ")
}

func openRaw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func execScript(t *testing.T, path, script string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), script); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// schemaOf is what sqlite_schema says, by name.
func schemaOf(t *testing.T, path string) map[string]string {
	t.Helper()
	db := openRaw(t, path)
	schema := map[string]string{}
	each(t.Context(), t, db, "SELECT name, coalesce(sql, '') FROM sqlite_schema", func(row []any) {
		schema[fmt.Sprint(row[0])] = strings.Join(strings.Fields(fmt.Sprint(row[1])), " ")
	})
	return schema
}

func each(ctx context.Context, t *testing.T, db *sql.DB, query string, do func(row []any)) {
	t.Helper()
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
	}()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row := make([]any, len(columns))
		into := make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		do(row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// recordSchema writes, for each step that is not recorded yet, a database of that
// schema as a script. Its rows are those of the present schema; a step that
// changes columns needs rows of its own.
func recordSchema(t *testing.T) {
	t.Helper()
	s := openInternal(t)
	storetest.Fill(t, s)
	// As the next Open does.
	if _, err := s.writer.conn.exec("UPDATE jobs SET until = 0 WHERE state = 3"); err != nil {
		t.Fatal(err)
	}
	steps, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		file := filepath.Join("testdata", "schema", filepath.Base(step))
		if _, err := os.Stat(file); err == nil {
			continue
		}
		path := filepath.Join(t.TempDir(), "record.db")
		db := openRaw(t, path)
		folder, err := fs.Sub(migrations, "migrations")
		if err != nil {
			t.Fatal(err)
		}
		provider, err := goose.NewProvider(goose.DialectSQLite3, db, folder, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := provider.UpTo(t.Context(), int64(i+1)); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		digest, err := store.DigestOf(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "-- %s\nPRAGMA application_id = %d;\n", digestLine(digest), applicationID)
		each(t.Context(), t, db, "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type <> 'table', rowid", func(row []any) {
			fmt.Fprintf(&b, "%s;\n", row[2])
		})
		each(t.Context(), t, db, "SELECT id, version_id, is_applied, tstamp FROM goose_db_version", func(row []any) {
			fmt.Fprintf(&b, "INSERT INTO goose_db_version (id, version_id, is_applied, tstamp) VALUES (%v, %v, 1, '2026-11-26 00:00:00');\n", row[0], row[1])
		})
		dumpInserts(t, &b, s)
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func dumpInserts(t *testing.T, b *strings.Builder, s *Store) {
	t.Helper()
	err := s.Dump(t.Context(), func(rows func(store.Table) store.Rows) error {
		for _, table := range store.Tables() {
			columns := slices.Clone(table.Columns)
			switch table.Name {
			case "materials":
				columns = append(columns, "pad")
			case "counters":
				columns = append(columns, "id")
			}
			for row, err := range rows(table) {
				if err != nil {
					return err
				}
				values := make([]string, 0, len(columns))
				for _, value := range row {
					values = append(values, literal(value))
				}
				switch table.Name {
				case "materials":
					values = append(values, "zeroblob(1024)")
				case "counters":
					values = append(values, "1")
				}
				fmt.Fprintf(b, "INSERT OR REPLACE INTO %s (%s) VALUES (%s);\n", table.Name, strings.Join(columns, ", "), strings.Join(values, ", "))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func literal(value any) string {
	switch value := value.(type) {
	case nil:
		return "NULL"
	case []byte:
		return fmt.Sprintf("X'%x'", value)
	case string:
		return "'" + strings.ReplaceAll(value, "'", "''") + "'"
	}
	return fmt.Sprint(value)
}
