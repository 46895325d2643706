package postgres_test

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/storetest"
	"github.com/keyturn/keyturn/test/pgtest"
)

var record = flag.Bool("record", false, "record the present schema, unless it is recorded already")

// emptyDatabase returns the URL of a database without a schema.
func emptyDatabase(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	must(t, execIn(t.Context(), shared, "postgres", "CREATE DATABASE "+name))
	return shared.SuperuserURL(name)
}

func steps(t testing.TB) []string {
	t.Helper()
	names, err := fs.Glob(postgres.Migrations(), "migrations/*.sql")
	must(t, err)
	return names
}

// TestMigrations opens a recorded database of every schema there has been, and
// wants the schema of a new one and every row.
func TestMigrations(t *testing.T) {
	if *record {
		recordSchemas(t)
	}
	want := schemaOf(t, newDatabase(t))
	files, err := filepath.Glob("testdata/schema/*.sql")
	must(t, err)
	if len(files) != len(steps(t)) {
		t.Fatalf("%d of %d schemas are recorded; run: go test ./internal/store/postgres -run TestMigrations -record", len(files), len(steps(t)))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			script, err := os.ReadFile(file)
			must(t, err)
			url := emptyDatabase(t)
			_, err = pgtest.Connect(t, url).PgConn().Exec(t.Context(), string(script)).ReadAll()
			must(t, err)
			s := open(t, url)
			digest, err := store.DigestOf(t.Context(), s)
			must(t, err)
			if line := "-- " + digestLine(digest); !strings.HasPrefix(string(script), line+"\n") {
				t.Errorf("%s after the migration, recorded was\n%.1000s", line, script)
			}
			got := schemaOf(t, url)
			for name := range maps.Keys(want) {
				if got[name] != want[name] {
					t.Errorf("%s is\n%s\nin a new database\n%s", name, got[name], want[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d things are in the schema, %d in a new one", len(got), len(want))
			}
			update(t, s, func(tx store.Tx) error { _, err := increment(t.Context(), tx, "after"); return err })
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

// schemaOf is everything that the schema holds, by name.
func schemaOf(t *testing.T, url string) map[string]string {
	t.Helper()
	rows, err := pgtest.Connect(t, url).Query(t.Context(), `
		SELECT 'column ' || table_name || '.' || column_name, concat_ws(' ', data_type, collation_name, is_nullable, column_default, is_identity)
			FROM information_schema.columns WHERE table_schema = 'keyturn'
		UNION ALL SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'keyturn'
		UNION ALL SELECT 'constraint ' || conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'keyturn'::regnamespace
		UNION ALL SELECT 'trigger ' || tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
		UNION ALL SELECT 'function ' || oid::regprocedure, prosrc FROM pg_proc WHERE pronamespace = 'keyturn'::regnamespace
		UNION ALL SELECT 'table ' || relname, concat_ws(' ', relkind, reloptions::text, pg_get_expr(relpartbound, oid)) FROM pg_class
			WHERE relnamespace = 'keyturn'::regnamespace AND relkind IN ('r', 'p')
		UNION ALL SELECT 'storage ' || attrelid::regclass || '.' || attname, attstorage::text FROM pg_attribute
			JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'keyturn'::regnamespace AND relkind = 'r' AND attnum > 0`)
	must(t, err)
	schema := map[string]string{}
	var name, is string
	_, err = pgx.ForEachRow(rows, []any{&name, &is}, func() error { schema[name] = is; return nil })
	must(t, err)
	if len(schema) < 50 {
		t.Fatalf("the schema has %d things: it was not read", len(schema))
	}
	return schema
}

// recordSchemas writes, for each step that is not recorded yet, a database of
// that schema as a script. Its rows are those of the present schema; a step that
// changes columns needs rows of its own.
func recordSchemas(t *testing.T) {
	t.Helper()
	s := open(t, newDatabase(t))
	storetest.Fill(t, s)
	digest, err := store.DigestOf(t.Context(), s)
	must(t, err)
	bin, err := pgserver.Find()
	must(t, err)
	local := regexp.MustCompile(`(?m)^(\\.*|-- Dumped.*|SET (transaction_timeout|default_table_access_method).*)\n`)
	for i, step := range steps(t) {
		file := filepath.Join("testdata", "schema", filepath.Base(step))
		if _, err := os.Stat(file); err == nil {
			continue
		}
		url := emptyDatabase(t)
		must(t, postgres.MigrateWith(t.Context(), url, postgres.Migrations(), int64(i+1)))
		must(t, postgres.LoadInto(t.Context(), url, s))
		dump := exec.CommandContext(t.Context(), filepath.Join(bin, "pg_dump"), "--inserts", "--no-owner", "--no-comments", "--schema=keyturn", "--dbname="+url)
		out, err := dump.Output()
		must(t, err)
		must(t, os.WriteFile(file, append([]byte("-- "+digestLine(digest)+"\n"), local.ReplaceAll(out, nil)...), 0o600))
	}
}

// TestMigrationsTakeTheLock: a step that does not would meet Updates by halves.
func TestMigrationsTakeTheLock(t *testing.T) {
	for _, name := range steps(t) {
		content, err := fs.ReadFile(postgres.Migrations(), name)
		must(t, err)
		var first string
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--") {
				first = line
				break
			}
		}
		if first != "SELECT pg_advisory_xact_lock(1263817294, 1);" {
			t.Errorf("%s begins with %q, not with the commit lock", name, first)
		}
		if !strings.HasPrefix(string(content), "-- +goose Up\n") || strings.Contains(string(content), "NO TRANSACTION") {
			t.Errorf("%s is not one transaction", name)
		}
	}
}

// nextStep is a migration as a later release may bring it: it adds a column, an
// index and a table, and changes rows.
const nextStep = `-- +goose Up
SELECT pg_advisory_xact_lock(1263817294, 1);
ALTER TABLE docs ADD COLUMN region text NOT NULL DEFAULT '';
CREATE INDEX docs_by_region ON docs (region, kind, name);
CREATE TABLE gateways (name text PRIMARY KEY, seen timestamptz NOT NULL);
UPDATE docs SET region = 'eu' WHERE kind = 'counter';
UPDATE counters SET writer = '';
`

// TestMigrationUnderLoad migrates while two nodes of the schema before write and
// read without a pause: none of them fails, and nothing is lost.
func TestMigrationUnderLoad(t *testing.T) {
	url := newDatabase(t)
	next := fstest.MapFS{fmt.Sprintf("migrations/%05d_next.sql", len(steps(t))+1): {Data: []byte(nextStep)}}
	for _, name := range steps(t) {
		content, err := fs.ReadFile(postgres.Migrations(), name)
		must(t, err)
		next[name] = &fstest.MapFile{Data: content}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	var done, views, workers atomic.Int64
	var nodes []*postgres.Store
	for node := range 2 {
		s := open(t, url)
		nodes = append(nodes, s)
		for worker := range 4 {
			running.Go(func() {
				for first := true; ctx.Err() == nil; first = false {
					err := s.Update(t.Context(), func(tx store.Tx) error {
						_, err := increment(t.Context(), tx, "all")
						if err == nil {
							_, err = increment(t.Context(), tx, fmt.Sprint(node, worker))
						}
						return err
					})
					if err != nil {
						t.Errorf("Update: %v", err)
						return
					}
					done.Add(1)
					if first {
						workers.Add(1)
					}
				}
			})
		}
		running.Go(func() {
			for ctx.Err() == nil {
				err := s.View(t.Context(), func(tx store.Tx) error {
					for range 3 {
						if _, err := tx.Index.List(t.Context(), "counter", "", "", 100); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Errorf("View: %v", err)
					return
				}
				views.Add(1)
			}
		})
	}
	pgtest.Eventually(t, "the nodes are at work", func() bool { return workers.Load() == 8 && done.Load() > 50 && views.Load() > 5 })
	// Two new nodes at once: one migrates, the other waits or finds it done.
	migrated := make(chan error, 2)
	for range 2 {
		go func() { migrated <- postgres.MigrateWith(t.Context(), url, next, 0) }()
	}
	for range 2 {
		must(t, <-migrated)
	}
	before, viewed := done.Load(), views.Load()
	pgtest.Eventually(t, "the nodes go on", func() bool { return done.Load() > before+50 && views.Load() > viewed+5 })
	stop()
	running.Wait()
	if n := counted(t, nodes[0], "all"); int64(n) != done.Load() {
		t.Errorf("%d Updates succeeded, %d counted", done.Load(), n)
	}
	conn := pgtest.Connect(t, url)
	var regions int
	must(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM keyturn.docs WHERE region = 'eu'").Scan(&regions))
	if regions < 9 {
		t.Errorf("the migration changed %d rows", regions)
	}
	if _, err := postgres.Open(t.Context(), postgres.Config{URL: url}); err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("a node of the schema before starts on the newer one: %v", err)
	}
}
