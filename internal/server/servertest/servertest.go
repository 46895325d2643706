// Package servertest is what tests share that start several servers on one store.
package servertest

import (
	"os"
	"path/filepath"
	"testing"
)

// CopyKeys gives another server the keys, the authority and the first token of the one
// whose data folder from is. It makes the folder to if it is missing.
func CopyKeys(tb testing.TB, from, to string) {
	tb.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"kek.json", "audit.key", "ca.pem", "ca.key", "root.token"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			tb.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if name == "ca.pem" {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(to, name), data, mode); err != nil {
			tb.Fatal(err)
		}
	}
}
