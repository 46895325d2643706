package real

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// login logs in as anybody could who knows the version, with nothing of Keyturn
// between. The caller closes the session.
func login(ctx context.Context, addr string, material provider.Material, application string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable&connect_timeout=10", material.Attributes["username"], addr, database))
	if err != nil {
		return nil, err
	}
	config.Password = material.Secrets["password"].RevealString()
	config.RuntimeParams["application_name"] = application
	return pgx.ConnectConfig(ctx, config)
}

// tryLogin logs in and out.
func tryLogin(ctx context.Context, addr string, material provider.Material) error {
	conn, err := login(ctx, addr, material, "keyturn-test")
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// servers are the primary and the standby, by name.
func (w *world) servers() map[string]string {
	return map[string]string{"primary": w.primary.Addr(), "standby": w.standby.Addr()}
}

// mustAccept fails the test unless both servers let the version in.
func (w *world) mustAccept(t *testing.T, v key.Version) {
	t.Helper()
	material := w.tap.material(t, v)
	for name, addr := range w.servers() {
		if err := tryLogin(t.Context(), addr, material); err != nil {
			t.Errorf("the %s does not let %v in: %v", name, v, err)
		}
	}
}

// mustRefuse fails the test unless both servers answer, and turn the version away.
func (w *world) mustRefuse(t *testing.T, v key.Version) {
	t.Helper()
	material := w.tap.material(t, v)
	for name, addr := range w.servers() {
		switch err := tryLogin(t.Context(), addr, material); {
		case err == nil:
			t.Errorf("the %s lets %v in", name, v)
		case !isRefused(err):
			t.Errorf("the %s does not say that it refuses %v: %v", name, v, err)
		}
	}
}

// session opens a session of a version that lasts until the test ends, or until
// somebody ends it.
func (w *world) session(t *testing.T, addr string, v key.Version, application string) *pgx.Conn {
	t.Helper()
	conn, err := login(t.Context(), addr, w.tap.material(t, v), application)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it may be gone already
	})
	return conn
}

// ended reports whether a session was ended by the server.
func ended(ctx context.Context, conn *pgx.Conn) bool {
	_, err := conn.Exec(ctx, "SELECT 1")
	return err != nil && !errors.Is(err, ctx.Err())
}

// roles is what the primary stores of every role: its right to log in and its
// verifier. Two snapshots are equal when nothing was changed outside.
func (w *world) roles(t *testing.T) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.primary.SuperuserURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var all string
	err = conn.QueryRow(t.Context(), `SELECT coalesce(string_agg(rolname || ' ' || rolcanlogin || ' ' || coalesce(rolpassword, '-') || ' ' || coalesce(shobj_description(oid, 'pg_authid'), ''), E'\n' ORDER BY rolname), '')
		FROM pg_authid`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func logIn(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}
