package real

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/test/pgtest"
)

// storeVariable holds a storeCommand as JSON.
const storeVariable = "KEYTURN_TEST_STORE"

// storeCommand is keyturn restore or keyturn migrate-store.
type storeCommand struct {
	Server server.Config
	// File is the backup to restore, and Identity opens it; without a file the store
	// is moved.
	File, Identity string
	At             time.Time
}

func (c *storeCommand) run(ctx context.Context) error {
	if c.File == "" {
		_, err := server.Move(ctx, c.Server)
		return err
	}
	id, err := age.ParseX25519Identity(c.Identity)
	if err == nil {
		_, err = server.Restore(ctx, c.Server, server.RestoreOptions{File: c.File, Identities: []age.Identity{id}, Now: c.At})
	}
	return err
}

// storing are the calls of a database and its client that change something.
var storing = []uint32{unix.SYS_PWRITE64, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_UNLINK, unix.SYS_RENAME, unix.SYS_WRITE}

func childStore(encoded string) int {
	var c storeCommand
	err := json.Unmarshal([]byte(encoded), &c)
	if err == nil {
		err = superviseMe(supervisorSocket, storing...)
	}
	if err == nil {
		err = c.run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// place is a data folder, and a database if the store is to be there.
type place struct {
	dir, database string
	command       storeCommand
}

func (p *place) file() string { return filepath.Join(p.dir, "keyturn.db") }

// mover makes places for one of the commands.
type mover struct {
	// from is the folder that is copied for each of them.
	from     string
	names    []string
	postgres *pgserver.Server
	command  storeCommand
	places   int
}

func (m *mover) place(t *testing.T) *place {
	t.Helper()
	m.places++
	p := &place{dir: t.TempDir(), command: m.command}
	for _, name := range m.names {
		data, err := os.ReadFile(filepath.Join(m.from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(p.dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.command.Server = server.Config{Listen: "127.0.0.1:0", DataDir: p.dir}
	if m.postgres != nil {
		p.database = fmt.Sprintf("restored%d", m.places)
		if m.command.File == "" {
			p.database = fmt.Sprintf("moved%d", m.places)
		}
		pgtest.Exec(t, m.postgres, "postgres", "CREATE DATABASE "+p.database)
		p.command.Server.Store.Postgres = &server.PostgresConfig{URL: m.postgres.URL(pgserver.Superuser, "", p.database), PasswordFile: filepath.Join(p.dir, "store.password")}
		if err := os.WriteFile(p.command.Server.Store.Postgres.PasswordFile, []byte(m.postgres.Password()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// The states of a store, as the server that starts on it would find it.
const (
	absent = "absent" // it has nothing of the installation
	whole  = "whole"
	half   = "half"  // no server starts on it; the command is to be repeated
	moved  = "moved" // no server starts on it; everything is elsewhere
)

// file is the state of the SQLite file; want is what is in it when it is whole.
func (m *mover) file(t *testing.T, p *place, want store.Digest) string {
	t.Helper()
	_, missing := os.Lstat(p.file())
	_, none := os.Lstat(p.file() + sqlite.Restoring)
	if errors.Is(missing, fs.ErrNotExist) && errors.Is(none, fs.ErrNotExist) {
		return absent
	}
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: p.file()})
	switch {
	case errors.Is(err, sqlite.ErrRestoring):
		return half
	case errors.Is(err, sqlite.ErrMoved):
		return moved
	case err != nil:
		t.Fatal(err)
	}
	got, err := store.DigestOf(t.Context(), s)
	if err := errors.Join(err, s.Stop()); err != nil {
		t.Fatal(err)
	}
	if difference := want.Difference(got); difference != "" {
		t.Errorf("a server starts on a part of it: %s", difference)
	}
	return whole
}

// base is the state of the PostgreSQL database.
func (m *mover) base(t *testing.T, p *place, want store.Digest) string {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: m.postgres.SuperuserURL(p.database)})
	if errors.Is(err, postgres.ErrArriving) {
		return half
	}
	if err != nil {
		t.Fatal(err)
	}
	_, found, err := s.Moved(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.DigestOf(t.Context(), s)
	if err := errors.Join(err, s.Stop()); err != nil {
		t.Fatal(err)
	}
	if p.command.File != "" && got["docs"].Rows == want["docs"].Rows {
		// The mark of the restore may have been written twice, with another revision.
		got["counters"], got["docs"] = want["counters"], want["docs"]
	}
	if !found && got["log_records"].Rows == 0 && got["docs"].Rows == 0 {
		return absent
	}
	if difference := want.Difference(got); difference != "" {
		t.Errorf("a server starts on a part of it: %s", difference)
	}
	return whole
}

// moments are the calls of one undisturbed run.
func (m *mover) moments(t *testing.T, p *place) []call {
	t.Helper()
	var (
		mu   sync.Mutex
		seen []call
	)
	m.run(t, p, func(c call, _ func()) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c)
	})
	mu.Lock()
	defer mu.Unlock()
	return seen
}

// run runs the command as a process of its own; visit is told of each call before
// it is made, and may kill it.
func (m *mover) run(t *testing.T, p *place, visit func(c call, kill func())) {
	t.Helper()
	encoded, err := json.Marshal(p.command)
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{}
	var process *supervised
	started := make(chan struct{})
	s.look(func(c call) {
		if c.what == "write" && c.to != "socket" {
			return // to standard error, or to wake itself
		}
		<-started
		visit(c, process.kill)
	})
	process = supervise(t, s, io.Discard, storeVariable+"="+string(encoded))
	close(started)
	<-process.done
}

// chosen are the moments to kill at: some that are spread over the whole run, and
// more of its last quarter, where the steps are that decide; every one when soaking.
func chosen(all []call) (at []int) {
	const early, late = 2, 6
	if soaking {
		return slices.Collect(maps.Keys(maps.Collect(slices.All(all))))
	}
	for i := range early {
		at = append(at, (2*i+1)*len(all)/(2*early))
	}
	for i := range late {
		at = append(at, len(all)-1-i*len(all)/(4*late))
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// killedAt kills the command before its nth call.
func (m *mover) killedAt(t *testing.T, p *place, n int) {
	t.Helper()
	var mu sync.Mutex
	m.run(t, p, func(_ call, kill func()) {
		mu.Lock()
		defer mu.Unlock()
		if n--; n == -1 {
			kill()
		}
	})
}

// origin is an installation that was stopped, and a backup of it.
func origin(t *testing.T) (dir string, command storeCommand) {
	t.Helper()
	w := &world{dir: t.TempDir(), logs: &logBuffer{}}
	w.config = server.Config{Listen: "127.0.0.1:0", DataDir: filepath.Join(w.dir, "data")}
	w.options = server.Options{LogTo: w.logs}
	w.start(t)
	w.apply(t, quickPolicy)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	command = storeCommand{File: filepath.Join(w.dir, "keyturn.backup"), Identity: id.String(), At: time.Now().UTC().Truncate(time.Second)}
	w.backUp(t, command.File, id)
	w.stop(t)
	return w.config.DataDir, command
}

// TestStoreCommandsKilledAtEveryCall kills keyturn restore and keyturn migrate-store
// before their system calls. No server starts on a part of an installation, nor do
// two on one; and repeating the command makes it whole, or says that it is.
func TestStoreCommandsKilledAtEveryCall(t *testing.T) {
	t.Parallel()
	database := pgtest.Start(t, pgserver.Config{})
	dir, command := origin(t)
	keys := []string{"kek.json", "audit.key"}
	restored := store.Digest(nil)
	t.Run("restore into a file", func(t *testing.T) {
		m := &mover{from: dir, names: keys, command: command}
		m.restores(t, m.file, &restored)
	})
	t.Run("restore into PostgreSQL", func(t *testing.T) {
		m := &mover{from: dir, names: keys, command: command, postgres: database}
		m.restores(t, m.base, &restored)
	})
	t.Run("move", func(t *testing.T) {
		m := &mover{from: dir, names: append(keys, "keyturn.db"), postgres: database}
		m.moves(t, digestOf(t, filepath.Join(dir, "keyturn.db")))
	})
}

func (m *mover) restores(t *testing.T, look func(*testing.T, *place, store.Digest) string, want *store.Digest) {
	t.Helper()
	undisturbed := m.place(t)
	all := m.moments(t, undisturbed)
	if *want == nil {
		*want = digestOf(t, undisturbed.file())
	}
	if state := look(t, undisturbed, *want); state != whole {
		t.Fatalf("undisturbed it is %s", state)
	}
	at, count := chosen(all), map[string]int{}
	for _, n := range at {
		p := m.place(t)
		m.killedAt(t, p, n)
		state := look(t, p, *want)
		count[state]++
		err := p.command.run(t.Context())
		if state != whole && err != nil {
			t.Errorf("killed before %v (%d), and repeated: %v", all[n], n, err)
		}
		if state == whole && (err == nil || !strings.Contains(err.Error(), "is given up")) {
			t.Errorf("killed before %v (%d), and repeated when it was whole already: %v", all[n], n, err)
		}
		if after := look(t, p, *want); after != whole {
			t.Errorf("killed before %v (%d), and repeated: it is %s", all[n], n, after)
		}
	}
	t.Logf("killed before %d of %d calls: %v", len(at), len(all), count)
	if count[half] == 0 {
		t.Error("none was killed half way")
	}
}

func (m *mover) moves(t *testing.T, want store.Digest) {
	t.Helper()
	look := func(p *place) string { return m.file(t, p, want) + " and " + m.base(t, p, want) }
	all := m.moments(t, m.place(t))
	at, count := chosen(all), map[string]int{}
	for _, n := range at {
		p := m.place(t)
		m.killedAt(t, p, n)
		state := look(p)
		count[state]++
		switch state {
		case whole + " and " + absent, whole + " and " + half, moved + " and " + half, moved + " and " + whole:
		default:
			t.Errorf("killed before %v (%d): the file is %s", all[n], n, state)
		}
		if err := p.command.run(t.Context()); err != nil {
			t.Errorf("killed before %v (%d), and repeated: %v", all[n], n, err)
		}
		if after := look(p); after != moved+" and "+whole {
			t.Errorf("killed before %v (%d), and repeated: the file is %s", all[n], n, after)
		}
	}
	t.Logf("killed before %d of %d calls: %v", len(at), len(all), count)
	if count[whole+" and "+half]+count[moved+" and "+half] == 0 {
		t.Error("none was killed half way")
	}
}

func digestOf(t *testing.T, path string) store.Digest {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.DigestOf(t.Context(), s)
	if err := errors.Join(err, s.Stop()); err != nil {
		t.Fatal(err)
	}
	return digest
}
