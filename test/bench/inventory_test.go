package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

const (
	inventoryKeys         = 1_000_000
	inventoryKeysPostgres = 100_000
	// applyPart is how many keys one call applies, at most 1,000 in a document.
	applyPart    = 10_000
	tickLimit    = 50   // ms
	restartLimit = 5000 // ms
	// residentLimit is in MiB.
	residentLimit = 600
	ticks         = 101
)

const inventoryPolicy = `
apiVersion: keyturn/v1
kind: Policy
metadata: {name: nightly}
spec:
  rotate: {every: 30d, windows: [{cron: "0 2 * * *", duration: 3h, timezone: UTC}]}
`

// BenchmarkInventory fills a server's folder with a million keys that follow a
// policy and have a version, none of them due, and measures what that costs the
// server. KEYTURN_BENCH_KEYS is another number of keys.
//
// Keys are applied as keyturn apply does it, 10,000 a call. Their first versions
// are written directly: the events and states that the machine says, and when the
// key is due next, without audit entries, materials and records of the rotations.
func BenchmarkInventory(b *testing.B) {
	count := keysFrom(b, "KEYTURN_BENCH_KEYS", inventoryKeys)
	path := builtProgram(b, "KEYTURN_BENCH_BIN", "github.com/keyturn/keyturn/cmd/keyturn")
	ours, floor := inventory(b, path, count, false), inventory(b, path, 1, false)
	of := func(name string) string { return fmt.Sprintf("inventory_%s_%d", name, count) }
	scoreboard.add(b, result{Name: of("apply_10000"), Unit: "ms", Ours: milliseconds(median(ours.applied)), Floor: milliseconds(insertFloor(b))})
	ours.add(b, of, &floor)
	b.Logf("%d keys: %.0f bytes each on disk; loaded in %v, with their versions in %v", count, ours.perKey, ours.load, ours.loadAll)
}

// BenchmarkInventoryPostgres is the same of a server whose store was moved to
// PostgreSQL, with fewer keys, since they are filled in and moved first.
// KEYTURN_BENCH_POSTGRES_KEYS is another number.
func BenchmarkInventoryPostgres(b *testing.B) {
	count := keysFrom(b, "KEYTURN_BENCH_POSTGRES_KEYS", inventoryKeysPostgres)
	path := builtProgram(b, "KEYTURN_BENCH_BIN", "github.com/keyturn/keyturn/cmd/keyturn")
	ours, floor := inventory(b, path, count, true), inventory(b, path, 1, true)
	ours.add(b, func(name string) string { return fmt.Sprintf("inventory_%s_%d_postgres", name, count) }, &floor)
	b.Logf("%d keys: moved to PostgreSQL in %v", count, ours.moved)
}

func keysFrom(b *testing.B, variable string, otherwise int) int {
	b.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s: %q is no number of keys", variable, text)
	}
	return n
}

// add puts what was measured beside the same with one key.
func (s *stocked) add(b *testing.B, of func(string) string, floor *stocked) {
	b.Helper()
	scoreboard.add(b, result{Name: of("tick"), Unit: "ms", Ours: milliseconds(s.tick), Floor: milliseconds(floor.tick), limit: tickLimit})
	scoreboard.add(b, result{Name: of("restart"), Unit: "ms", Ours: milliseconds(s.restart), Floor: milliseconds(floor.restart), limit: restartLimit})
	scoreboard.add(b, result{Name: of("resident"), Unit: "MiB", Ours: s.resident, Floor: floor.resident, limit: residentLimit})
	scoreboard.add(b, result{Name: of("resident_most"), Unit: "MiB", Ours: s.residentMost, Floor: floor.residentMost, limit: residentLimit})
	scoreboard.add(b, result{Name: of("gauges_after"), Unit: "ms", Ours: milliseconds(s.gauges), Floor: milliseconds(floor.gauges)})
	scoreboard.add(b, result{Name: of("idle_cpu"), Unit: "ms/min", Ours: s.idle, Floor: floor.idle})
}

// stocked is what an inventory was measured to cost.
type stocked struct {
	applied       []time.Duration
	load, loadAll time.Duration
	moved         time.Duration
	perKey        float64
	tick          time.Duration
	restart       time.Duration
	// gauges is after how long since its start the server shows figures of all keys.
	gauges                 time.Duration
	resident, residentMost float64
	// idle is the processor time of an idle minute in milliseconds.
	idle float64
}

func inventory(b *testing.B, path string, count int, inPostgres bool) (s stocked) {
	b.Helper()
	dir := b.TempDir()
	metrics := freeAddress(b)
	place := ""
	p := program{command: func(dir, listen string) []string {
		config := filepath.Join(dir, "server.yaml")
		text := fmt.Appendf(nil, "listen: %s\ndataDir: %s\ntelemetry: {metricsListen: %q}\n%s", listen, filepath.Join(dir, "data"), metrics, place)
		if err := os.WriteFile(config, text, 0o600); err != nil {
			b.Fatal(err)
		}
		return []string{path, "server", "--config", config}
	}}
	p.start(b, dir).stop(b) // makes the folder
	s.fill(b, filepath.Join(dir, "data"), count)
	if inPostgres {
		var url string
		place, url = emptyDatabase(b)
		s.move(b, p.command(dir, freeAddress(b)), filepath.Join(dir, "data"), url)
	}
	s.run(b, &p, dir, metrics, count)
	return s
}

// emptyDatabase starts the PostgreSQL to move to. It returns what the server's
// configuration says of it, and its URL.
func emptyDatabase(b *testing.B) (config, url string) {
	b.Helper()
	data, url := postgresStore(b)
	return fmt.Sprintf("store: {postgres: {url: %q, passwordFile: %q}}\n", data.Postgres.URL, data.Postgres.PasswordFile), url
}

// move moves the store as keyturn migrate-store does it, and asks for ticks there.
func (s *stocked) move(b *testing.B, command []string, dir, url string) {
	b.Helper()
	began := time.Now()
	// The command that starts the server names its configuration.
	move := append([]string{"migrate-store"}, command[2:]...)
	if output, err := exec.CommandContext(b.Context(), command[0], move...).CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", move, err, output)
	}
	s.moved = time.Since(began)
	db, err := postgres.Open(b.Context(), postgres.Config{URL: url})
	if err != nil {
		b.Fatal(err)
	}
	defer stopStore(b, db)
	s.tick = tickOf(b, newEngine(b, dir, db))
}

// run measures the built server.
func (s *stocked) run(b *testing.B, p *program, dir, metrics string, count int) {
	b.Helper()
	running := p.start(b, dir)
	defer running.stop(b)
	s.restart = running.took
	began := time.Now()
	s.gauges = s.restart + gaugesOf(b, "http://"+metrics+"/metrics", count, began)
	<-time.After(idleFor)
	before := cpuOf(b, running.process.Process.Pid)
	<-time.After(idleFor)
	s.idle = milliseconds(cpuOf(b, running.process.Process.Pid)-before) * float64(time.Minute/idleFor)
	var err, errMost error
	s.resident, err = statusOf(running.process.Process.Pid, "VmRSS:")
	s.residentMost, errMost = statusOf(running.process.Process.Pid, "VmHWM:")
	if err := errors.Join(err, errMost); err != nil {
		b.Fatal(err)
	}
}

// fill puts keys into the data folder of a server that is not running.
func (s *stocked) fill(b *testing.B, dir string, count int) {
	b.Helper()
	ctx := b.Context()
	path := filepath.Join(dir, "keyturn.db")
	db, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	e := newEngine(b, dir, db)
	applyAll(ctx, b, e, engine.ApplyRequest{Documents: []engine.Document{{Name: "policy.yaml", Content: []byte(inventoryPolicy)}}})
	if err := e.Tick(ctx); err != nil { // looks at the keys that follow it: none yet
		b.Fatal(err)
	}
	began := time.Now()
	for from := 0; from < count; from += applyPart {
		called := time.Now()
		apply(ctx, b, e, from, min(count, from+applyPart))
		if took := time.Since(called); min(count, from+applyPart)-from == applyPart || count < applyPart {
			s.applied = append(s.applied, took)
		}
	}
	s.load = time.Since(began)
	giveVersions(ctx, b, db)
	s.loadAll = time.Since(began)
	s.tick = tickOf(b, e)
	if _, err := e.Checkpoint(ctx); err != nil { // only what is signed can be moved
		b.Fatal(err)
	}
	if err := db.Stop(); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	s.perKey = float64(info.Size()) / float64(count)
}

// newEngine returns an engine that is never started: it only applies, and is asked
// for ticks.
func newEngine(b *testing.B, dir string, db store.Store) *engine.Engine {
	b.Helper()
	kek, err := file.Open(file.Config{Path: filepath.Join(dir, "kek.json"), MustExist: true})
	if err != nil {
		b.Fatal(err)
	}
	signing, err := os.ReadFile(filepath.Join(dir, "audit.key"))
	if err != nil {
		b.Fatal(err)
	}
	signer, err := audit.ParseSigner(secret.New(signing))
	if err != nil {
		b.Fatal(err)
	}
	// The keys name a provider that the server has.
	e, err := engine.New(engine.Config{
		Store: db, Keeper: kek, Signer: signer, Fleet: nobody{}, Observer: nobody{}, Logger: slog.New(slog.DiscardHandler),
		Drivers: map[string]provider.Driver{"postgres": &instant{}}, Now: time.Now, Random: rand.Reader,
	})
	if err != nil {
		b.Fatal(err)
	}
	return e
}

// tickOf is the 99th percentile of what the time-keepers do when nothing is due.
func tickOf(b *testing.B, e *engine.Engine) time.Duration {
	b.Helper()
	var took []time.Duration
	for range ticks {
		called := time.Now()
		if err := e.Tick(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(called))
	}
	return quantile(took, 0.99)
}

func inventoryName(i int) string {
	return fmt.Sprintf("team-%03d/service-%02d/key-%06d", i%500, i%37, i)
}

// apply applies the keys with the numbers from first to before last.
func apply(ctx context.Context, b *testing.B, e *engine.Engine, first, last int) {
	b.Helper()
	var request engine.ApplyRequest
	for from := first; from < last; from += 1000 {
		var text bytes.Buffer
		for i := from; i < min(last, from+1000); i++ {
			fmt.Fprintf(&text, "---\napiVersion: keyturn/v1\nkind: Key\nmetadata: {name: %s, owner: team-%03d}\nspec: {provider: postgres, policy: nightly}\n", inventoryName(i), i%500)
		}
		request.Documents = append(request.Documents, engine.Document{Name: fmt.Sprintf("keys-%d.yaml", from), Content: text.Bytes()})
	}
	applyAll(ctx, b, e, request)
}

func applyAll(ctx context.Context, b *testing.B, e *engine.Engine, request engine.ApplyRequest) {
	b.Helper()
	result, err := e.Apply(ctx, audit.Actor{ID: "bench", Kind: "user"}, request)
	if err != nil {
		b.Fatal(err)
	}
	for _, problem := range result.Problems {
		if problem.Severity == policy.Error {
			b.Fatal(problem)
		}
	}
}

// giveVersions writes the first rotation of every key, as the machine tells it.
func giveVersions(ctx context.Context, b *testing.B, db store.Store) {
	b.Helper()
	const page = 1000
	for after, more := "", true; more; {
		err := db.Update(ctx, func(tx store.Tx) error {
			docs, err := tx.Index.List(ctx, "state", "", after, page)
			if err != nil {
				return err
			}
			more = len(docs) == page
			for _, doc := range docs {
				after = doc.Name
				if err := giveVersion(ctx, tx, doc); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func giveVersion(ctx context.Context, tx store.Tx, doc store.Doc) error {
	var state rotation.State
	if err := json.Unmarshal(doc.Body, &state); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	id := key.NewRotationID(now, random)
	var events []store.Event
	next := []rotation.Body{rotation.Begin{Kind: rotation.Manual, Plan: rotation.Plan{Stages: []rotation.Stage{{Name: "all", SkipEmpty: true}}}}}
	for len(next) > 0 {
		after, effects, err := rotation.Step(state, rotation.Event{At: now, Rotation: id, Body: next[0]})
		if err != nil {
			return err
		}
		name, body, err := rotation.MarshalBody(next[0])
		if err != nil {
			return err
		}
		events = append(events, store.Event{Key: key.Name(doc.Name), Seq: after.Seq, Rotation: id, Type: name, At: now, Body: body})
		state, next = after, next[1:]
		for _, effect := range effects {
			next = append(next, rotation.Result{Effect: effect.EffectRef, Outcome: rotation.OK})
		}
	}
	if err := tx.Events.Append(ctx, events...); err != nil {
		return err
	}
	if state.Labelled(key.Current) == 0 {
		return fmt.Errorf("key %s has no current version: %+v", doc.Name, state)
	}
	var err error
	if doc.Body, err = json.Marshal(state); err != nil {
		return err
	}
	if _, err = tx.Docs.Put(ctx, doc); err != nil {
		return err
	}
	resource, err := tx.Docs.Get(ctx, "key", doc.Name)
	if err != nil {
		return err
	}
	resource.Due = now.Add(30*24*time.Hour + time.Duration(random[0])*time.Minute)
	_, err = tx.Docs.Put(ctx, resource)
	return err
}

// insertFloor is how long bare inserts of as many rows take as one call of apply
// writes: of each key a key, a state, an event, and two entries of the log.
func insertFloor(b *testing.B) time.Duration {
	b.Helper()
	log := newFloorLog(b)
	rows := make([][]byte, 5*applyPart)
	for i := range rows {
		rows[i] = make([]byte, 300)
	}
	began := time.Now()
	if err := log.append(rows); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// gaugesOf waits until the server shows figures of all keys.
func gaugesOf(b *testing.B, url string, count int, began time.Time) time.Duration {
	b.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Minute)
	want := fmt.Sprintf("keyturn_keys_age_seconds_count %d\n", count)
	if count >= 1_000_000 {
		want = "keyturn_keys_age_seconds_count " + strconv.FormatFloat(float64(count), 'g', -1, 64) + "\n"
	}
	for {
		if text, err := get(b.Context(), url); err == nil && strings.Contains(text, want) {
			return time.Since(began)
		}
		select {
		case <-tick.C:
		case <-deadline:
			b.Fatalf("the gauges show no %q", want)
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(response.Body)
	return string(text), errors.Join(err, response.Body.Close())
}

// cpuOf is the processor time of another process, of which the kernel counts
// hundredths of a second.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	sum := 10 * time.Millisecond // so that nothing is not nothing
	for _, field := range fields[11:13] {
		hundredths, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(hundredths) * 10 * time.Millisecond
	}
	return sum
}

// nobody is a fleet without presenters, and hears of nothing.
type nobody struct{}

func (nobody) Tell(key.Name, []engine.Tell) {}
func (nobody) Present(key.Name) bool        { return false }
func (nobody) Samples(context.Context, key.Name, key.Version, time.Time) ([]engine.Sample, error) {
	return nil, nil
}
func (nobody) Moved(engine.Moved)         {}
func (nobody) Attempted(engine.Attempted) {}
