package lkg_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/lkg"
	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

const mine = "party\nserver"

const password = "a-password-nobody-may-find"

func open(t *testing.T, dir string) *lkg.Store {
	t.Helper()
	s, err := lkg.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func sample() []client.Assignment {
	return []client.Assignment{{
		Key: "prod/orders/db", Version: 7, Epoch: 12, Rotation: key.RotationID{1, 2},
		Attributes:  map[string]string{"username": "orders_a"},
		Secrets:     map[string]secret.Value{"password": secret.NewString(password), "blob": secret.New([]byte{0, 255, 1})},
		PublishedAt: time.Date(2026, 11, 23, 1, 2, 3, 4, time.UTC),
	}}
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	if _, err := s.Load(mine); !errors.Is(err, lkg.ErrNone) {
		t.Errorf("Load of nothing: %v", err)
	}
	if err := s.Save(mine, sample()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	got, err := open(t, dir).Load(mine)
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	a, want := got[0], sample()[0]
	for name, v := range want.Secrets {
		if !a.Secrets[name].Equal(v) {
			t.Errorf("secret %s differs", name)
		}
	}
	a.Secrets, want.Secrets = nil, nil
	if !reflect.DeepEqual(a, want) {
		t.Errorf("got %+v, want %+v", a, want)
	}
	for _, name := range []string{"seal.key", "last-known-good", "lock"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || bytes.Contains(b, []byte(password)) || bytes.Contains(b, []byte("orders")) {
			t.Errorf("%s shows its content, or %v", name, err)
		}
	}
}

// TestCorruptOrForeign: every damage is noticed, none is a crash, and a new
// Save mends it.
func TestCorruptOrForeign(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	if err := s.Save(mine, sample()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "last-known-good")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i <= len(good); i += 5 {
		bad := slices.Clone(good)
		if i < len(good) {
			bad[i] ^= 1
		} else {
			bad = bad[:len(bad)/2]
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(mine); !errors.Is(err, lkg.ErrCorrupt) {
			t.Errorf("byte %d altered: %v", i, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	foreign := open(t, dir)
	if _, err := foreign.Load("party\nanother server"); !errors.Is(err, lkg.ErrCorrupt) {
		t.Errorf("another server: %v", err)
	}
	if err := foreign.Save(mine, sample()); err != nil {
		t.Error(err)
	}
	if _, err := foreign.Load(mine); err != nil {
		t.Error(err)
	}
}

func TestDirectoryIsChecked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	if _, err := lkg.Open(dir); !errors.Is(err, lkg.ErrInUse) {
		t.Errorf("second agent: %v", err)
	}
	s.Close()
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := lkg.Open(dir); !errors.Is(err, lkg.ErrDirectory) {
		t.Errorf("open directory: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "seal.key")
	if err := os.Chmod(keyFile, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := lkg.Open(dir); !errors.Is(err, lkg.ErrDirectory) {
		t.Errorf("open key: %v", err)
	}
	if err := os.WriteFile(keyFile, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(keyFile, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lkg.Open(dir); !errors.Is(err, lkg.ErrDirectory) {
		t.Errorf("short key: %v", err)
	}
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestSwitchingNote(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	if got := s.Switching(); got != nil {
		t.Errorf("at first: %v", got)
	}
	if err := s.MarkSwitching([]string{"b", "a"}); err != nil {
		t.Fatal(err)
	}
	if got := s.Switching(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("marked: %v", got)
	}
	if err := errors.Join(s.ClearSwitching(), s.ClearSwitching()); err != nil {
		t.Error(err)
	}
	if got := s.Switching(); got != nil {
		t.Errorf("cleared: %v", got)
	}
}

// FuzzLoad: no content of the file is a crash, and none but our own opens.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("keyturn-lkg-1\n"))
	f.Add([]byte("keyturn-lkg-1\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))
	dir := filepath.Join(f.TempDir(), "state")
	s, err := lkg.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, "last-known-good"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load(mine); !errors.Is(err, lkg.ErrCorrupt) || got != nil {
			t.Fatalf("got %v, %v", got, err)
		}
	})
}

// TestOpenRemovesWhatACrashLeft: a kill in the middle of a write leaves a
// temporary file, which once stayed for ever, one for each kill.
func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	if err := s.Save(mine, sample()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"seal.key", "last-known-good", "switching.json"} {
		at := place.Spec{Path: filepath.Join(dir, name), Mode: 0o600, UID: -1, GID: -1}
		if _, err := place.Stage(at, secret.NewString("cut off")); err != nil { // and never released
			t.Fatal(err)
		}
	}
	s.Close()
	s = open(t, dir)
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if got, err := s.Load(mine); err != nil || len(got) != 1 {
		t.Errorf("after the crash: %v, %v", got, err)
	}
}
