package enginetest

import (
	"context"
	"crypto/rand"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/internal/store/sqlite"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Database is the path of the store in the folder of a test.
func Database(dir string) string { return filepath.Join(dir, "keyturn.db") }

// Config returns the configuration of an engine that logs to the test, on an empty
// store and with keys of its own in a folder. The driver is called memory. Nobody
// presents and nobody observes; who sets a Fleet or an Observer does. The caller stops
// the store, after the engine.
func Config(t *testing.T, dir string, driver provider.Driver) (engine.Config, *sqlite.Store) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: Database(dir)})
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := file.Open(file.Config{Path: filepath.Join(dir, "keys", "kek.json")})
	if err != nil {
		t.Fatal(err)
	}
	signing, _, err := audit.GenerateKey(rand.Reader, "keyturn.test/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		t.Fatal(err)
	}
	return engine.Config{
		Store: s, Keeper: keeper, Drivers: map[string]provider.Driver{"memory": driver}, Signer: signer, Fleet: Nobody{}, Observer: Nobody{},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: time.Now, Random: rand.Reader,
	}, s
}

// Nobody is a fleet without presenters, and an observer who does nothing.
type Nobody struct{}

// Tell implements engine.Fleet.
func (Nobody) Tell(key.Name, []engine.Tell) {}

// Present implements engine.Fleet.
func (Nobody) Present(key.Name) bool { return false }

// Samples implements engine.Fleet.
func (Nobody) Samples(context.Context, key.Name, key.Version, time.Time) ([]engine.Sample, error) {
	return nil, nil
}

// Moved implements engine.Observer.
func (Nobody) Moved(engine.Moved) {}

// Attempted implements engine.Observer.
func (Nobody) Attempted(engine.Attempted) {}
