package server_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// rotateNow rotates dev/db and waits until its new version is the current one.
func (w *world) rotateNow(t *testing.T) (from, to uint64) {
	t.Helper()
	answer, err := w.control(w.root).Rotate(t.Context(), &keyturnv1.RotateRequest{Name: "dev/db"})
	if err != nil {
		t.Fatal(err)
	}
	var rotation *keyturnv1.Rotation
	pgtest.Eventually(t, "the new version is current", func() bool {
		answer, err := w.control(w.root).GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: answer.GetRotationId()})
		if err != nil {
			t.Fatal(err)
		}
		rotation = answer.GetRotation()
		return rotation.GetCutOverAt() != nil
	})
	return rotation.GetFrom(), rotation.GetTo()
}

// verified wants the audit log to prove itself, and the doctor to find no failure.
func (w *world) verified(t *testing.T) {
	t.Helper()
	answer, err := w.control(w.root).Doctor(t.Context(), &keyturnv1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range answer.GetChecks() {
		if check.GetStatus() == "failed" {
			t.Errorf("doctor: %v", check)
		}
	}
}

// TestMoveStore moves an installation with rotations under way from SQLite to
// PostgreSQL, cut off after each step, and goes on rotating there.
func TestMoveStore(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn", "CREATE DATABASE used", "CREATE DATABASE other")
	dir := t.TempDir()
	drivers := map[string]provider.Driver{"memory": &memory{accepted: map[string]bool{}}}
	on := onPostgres(t, dir, database)
	there := func(name string) server.Config {
		config := on
		p := *on.Store.Postgres
		p.URL = strings.Replace(p.URL, "/keyturn?", "/"+name+"?", 1)
		config.Store.Postgres = &p
		return config
	}
	refused := func(what string, config server.Config, want error, says string) {
		t.Helper()
		_, err := server.Move(t.Context(), config)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want an error that wraps %q and says %q", what, err, want, says)
		}
	}
	refused("nothing to move", onPostgres(t, t.TempDir(), database), server.ErrMove, "there is no")
	refused("nowhere to go", configOf(dir), server.ErrMove, "store.postgres")

	w := startServerWith(t, configOf(dir), drivers)
	root := w.root
	w.mustApply(t)
	w.rotateNow(t)
	_, current := w.rotateNow(t) // what it replaced is in quarantine when it moves
	w.verified(t)
	refused("while it runs", on, sqlite.ErrLocked, "stop the other server")
	must(t, w.Stop(t.Context()))

	must(t, startServer(t, onPostgresNamed(t, database, "used")).Stop(t.Context()))
	refused("to a database in use", there("used"), postgres.ErrNotEmpty, "DROP SCHEMA")

	// As if the process had ended before the source was marked.
	source, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "keyturn.db")})
	must(t, err)
	url := database.SuperuserURL("keyturn")
	destination, err := postgres.Open(t.Context(), postgres.Config{URL: url, Mover: true})
	must(t, err)
	sent, err := destination.Receive(t.Context(), postgres.Move{ID: "first", Source: "keyturn.db"}, source)
	must(t, err)
	must(t, errors.Join(destination.Stop(), source.Stop()))
	if err := refuse(t, on, "migrate-store"); !errors.Is(err, postgres.ErrArriving) {
		t.Error(err)
	}
	// As if it had ended before the destination was released.
	source, err = sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "keyturn.db")})
	must(t, err)
	must(t, errors.Join(source.MarkMoved(t.Context(), "first", "PostgreSQL"), source.Stop()))
	if err := refuse(t, configOf(dir), "store.postgres"); !errors.Is(err, sqlite.ErrMoved) {
		t.Error(err)
	}
	if err := refuse(t, on, "migrate-store"); !errors.Is(err, postgres.ErrArriving) {
		t.Error(err)
	}
	refused("to yet another database", there("other"), sqlite.ErrMoved, "store.postgres")
	for _, before := range []bool{false, true} {
		report, err := server.Move(t.Context(), on)
		must(t, err)
		if report.Before != before {
			t.Errorf("%+v, want Before to be %v", report, before)
		}
	}
	if sent["events"].Rows < 10 || sent["materials"].Rows < 2 || sent["log_records"].Rows < 10 {
		t.Errorf("little was moved: %v", sent)
	}
	if err := refuse(t, configOf(dir), "store.postgres"); !errors.Is(err, sqlite.ErrMoved) {
		t.Error(err)
	}
	w = startServerWith(t, on, drivers)
	if w.TokenFile() != "" || w.root != root {
		t.Error("another first token was made")
	}
	if from, _ := w.rotateNow(t); from != current {
		t.Errorf("version %d was current before the move, %d after", current, from)
	}
	w.verified(t)
}

// TestMoveStoreAtOnce is the way without interruptions: the report shows both sides.
func TestMoveStoreAtOnce(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	dir := t.TempDir()
	w := startServer(t, configOf(dir))
	w.mustApply(t)
	must(t, w.Stop(t.Context()))
	config := onPostgres(t, dir, database)
	report, err := server.Move(t.Context(), config)
	must(t, err)
	if report.Before || report.Entries == 0 || len(report.Tables) != 7 {
		t.Errorf("%+v", report)
	}
	for _, table := range report.Tables {
		if table.Source != table.Destination || table.Name == "docs" && table.Source < 5 {
			t.Errorf("%+v", table)
		}
	}
	w = startServer(t, config)
	w.mustApply(t)
	w.verified(t)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
