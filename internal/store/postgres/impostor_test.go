package postgres_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/test/pgtest"
)

// TestPasswordForNoImpostor: a server that nobody vouches for is not told the
// password, nor a hash of it, however it asks; one that is vouched for may ask.
func TestPasswordForNoImpostor(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte(secret), 0o600))
	for method, ask := range map[string]pgproto3.BackendMessage{
		"password": &pgproto3.AuthenticationCleartextPassword{},
		"md5":      &pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}},
	} {
		for _, options := range []string{"", "sslmode=disable", "sslmode=prefer", "sslmode=require"} {
			t.Run(method+" "+options, func(t *testing.T) {
				t.Parallel()
				impostor := pgtest.NewImpostor(t, ask)
				for _, config := range []postgres.Config{
					{URL: "postgres://keyturn@" + impostor.Addr() + "/keyturn?" + options, PasswordFile: file},
					{URL: "postgres://keyturn:" + secret + "@" + impostor.Addr() + "/keyturn?" + options},
				} {
					_, err := postgres.Open(t.Context(), config)
					asked, answers := impostor.Heard()
					if asked == 0 || len(answers) != 0 {
						t.Errorf("it asked %d times and heard %q", asked, answers)
					}
					if !errors.Is(err, postgres.ErrConnect) || !strings.Contains(err.Error(), "no password was sent") || !strings.Contains(err.Error(), "sslmode=verify-full") || strings.Contains(err.Error(), secret) {
						t.Errorf("got %v", err)
					}
				}
			})
		}
	}
	for _, trusted := range []string{"sslmode=verify-full&sslrootcert=", "sslmode=verify-ca&sslrootcert=", "sslmode=require&sslrootcert=", "sslmode=disable&require_auth=password&sslrootcert="} {
		server := pgtest.NewImpostor(t, &pgproto3.AuthenticationCleartextPassword{})
		_, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://keyturn@" + server.Addr() + "/keyturn?" + trusted + server.CAFile(), PasswordFile: file})
		if _, answers := server.Heard(); !slices.Contains(answers, secret) || !errors.Is(err, postgres.ErrConnect) {
			t.Errorf("%s: it heard %q, and %v", trusted, answers, err)
		}
	}
}
