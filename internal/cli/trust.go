package cli

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// trust is what was trusted in earlier verifications of audit logs.
type trust struct {
	// path is where it is stored; empty when there is no place.
	path string
	logs []trustedLog
}

// trustedLog is one log, as seen at one server or, with an empty Server, in files.
type trustedLog struct {
	Server string   `json:"server,omitempty"`
	Log    string   `json:"log"`
	Keys   []string `json:"keys"`
	// Checkpoint is the newest signed one that was verified; may be empty.
	Checkpoint string `json:"checkpoint,omitempty"`
}

// readTrust reads what was trusted before.
func (a *app) readTrust() (trust, error) {
	dir, err := a.configDir()
	if err != nil {
		return trust{}, nil //nolint:nilerr // without a place nothing is remembered
	}
	t := trust{path: filepath.Join(dir, "audit.json")}
	content, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &t.logs)
	}
	if err != nil {
		return t, fail(ExitFailed, "find out who changed it; then remove it, and give --key", "%s cannot be used: %w", t.path, err)
	}
	return t, nil
}

// remember stores a log in place of what was known of it.
func (t *trust) remember(log trustedLog) error {
	t.logs = slices.DeleteFunc(t.logs, func(l trustedLog) bool {
		return l.Server == log.Server && (l.Server != "" || l.Log == log.Log)
	})
	t.logs = append(t.logs, log)
	if t.path == "" {
		return nil
	}
	return writeConfig(t.path, append(mustJSON(t.logs), '\n'))
}

// server returns what is known of the log at an address. A log that was met under
// the same name and keys elsewhere, because the server moved, is known as well.
func (t *trust) server(address string, h bundleHeader) (trustedLog, bool) {
	for _, l := range t.logs {
		if l.Server == address {
			return l, true
		}
	}
	return t.same(h)
}

// named returns every key that is known of logs of this name: a file that names
// a known log must be signed by one of them.
func (t *trust) named(name string) []string {
	var keys []string
	for _, l := range t.logs {
		if l.Log == name {
			keys = append(keys, l.Keys...)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// same returns the log with the name and one of the keys of a bundle.
func (t *trust) same(h bundleHeader) (trustedLog, bool) {
	for _, l := range t.logs {
		if l.Log == h.Origin && slices.ContainsFunc(l.Keys, func(k string) bool { return slices.Contains(h.Keys, k) }) {
			return l, true
		}
	}
	return trustedLog{}, false
}
