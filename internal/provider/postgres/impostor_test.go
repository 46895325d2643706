package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/test/pgtest"
)

// asRotator logs in to addr as the administrator of a key, with the password in file.
func asRotator(t *testing.T, addr, options, file string) error {
	t.Helper()
	config := provider.Config{
		"admin": "postgres://rotator@" + addr + "/orders" + options, "adminPassword": map[string]any{"file": file},
		"strategy": "alternating-users", "users": []any{"orders_a", "orders_b"},
	}
	opened, err := New().Open(t.Context(), config, provider.Env{})
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*system)
	conn, err := s.adminConn(t.Context(), s.settings.primary)
	if err == nil {
		hangUp(t.Context(), conn)
	}
	return err
}

// TestAdministratorMeetsImpostor: whatever the URL says, no server is told the
// administrator's password, nor a hash of it.
func TestAdministratorMeetsImpostor(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for method, ask := range map[string]pgproto3.BackendMessage{
		"password": &pgproto3.AuthenticationCleartextPassword{},
		"md5":      &pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}},
		"none":     &pgproto3.AuthenticationOk{},
	} {
		for _, options := range []string{"", "?sslmode=disable", "?sslmode=require"} {
			impostor := pgtest.NewImpostor(t, ask)
			err := asRotator(t, impostor.Addr(), options, file)
			asked, answers := impostor.Heard()
			if asked == 0 || len(answers) != 0 || err == nil || !strings.Contains(err.Error(), "require_auth") || strings.Contains(err.Error(), secret) {
				t.Errorf("%s, %q: it asked %d times and heard %q, and %v", method, options, asked, answers, err)
			}
		}
	}
}

// TestAdministratorsPasswordFile: what is no password file is told before anybody is
// asked, and neither waited for nor read into memory.
func TestAdministratorsPasswordFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	huge, pipe := write("huge", ""), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Truncate(huge, 1<<40), syscall.Mkfifo(pipe, 0o600)); err != nil { // holes: it takes no space
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		pipe: "not a regular file", "/dev/zero": "not a regular file", dir: "not a regular file", huge: "more than 1024 bytes",
		write("empty", "\n"): "is empty", write("lines", "hunter2\nhunter3\n"): "more than one line", pipe + "x": "no such file",
	} {
		err := asRotator(t, "127.0.0.1:1", "?sslmode=disable", path)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: %v; want an error that says %q", path, err, says)
		}
	}
}
