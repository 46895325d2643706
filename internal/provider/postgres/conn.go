package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/provider"
)

const (
	// adminApplication and probeApplication are what pg_stat_activity shows.
	adminApplication = "keyturn"
	probeApplication = "keyturn-probe"

	// maxConns bounds the connections of one key to one server for one purpose.
	maxConns = 4

	connectTimeout   = 10 * time.Second
	closeTimeout     = time.Second
	lockTimeout      = 5 * time.Second
	statementTimeout = 15 * time.Second
)

// SQLSTATE codes that decide what a failure means.
const (
	codeInvalidPassword      = "28P01"
	codeInvalidAuthorization = "28000"
	codeReadOnly             = "25006"
	codeUnsupported          = "0A000"
	codeInsufficient         = "42501"
	codeDuplicateObject      = "42710"
	codeUniqueViolation      = "23505"
	codeSerialization        = "40001"
	codeDeadlock             = "40P01"
	codeInternal             = "XX000"
)

// connectError says where a login failed. It keeps no connection config, which
// would hold the password.
type connectError struct {
	node, user string
	err        error
}

func (e *connectError) Error() string {
	// pgx puts each attempt on a line of its own.
	return fmt.Sprintf("log in to %s as %q: %s", e.node, e.user, strings.ReplaceAll(e.err.Error(), "\n", "; "))
}

func (e *connectError) Unwrap() error { return e.err }

// dial makes one connection, which the caller closes with hangUp. Only
// SCRAM-SHA-256 gets a password.
func dial(ctx context.Context, n node, database string, c credential, application string) (*pgx.Conn, error) {
	config, err := connConfig(n, database, c.user)
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("postgres: %s: %w", n.name, err), "check the sslmode, sslrootcert, sslcert and sslkey of its URL")
	}
	config.Password = c.password.RevealString()
	// Nothing of the environment (PGOPTIONS, PGAPPNAME) is taken over.
	config.RuntimeParams = map[string]string{"application_name": application, "client_encoding": "UTF8"}
	if application == adminApplication {
		config.RuntimeParams["lock_timeout"] = milliseconds(lockTimeout)
		config.RuntimeParams["statement_timeout"] = milliseconds(statementTimeout)
		config.RuntimeParams["standard_conforming_strings"] = "on"
		config.RuntimeParams["search_path"] = "pg_catalog"
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		return conn, nil
	}
	if outer := new(pgconn.ConnectError); errors.As(err, &outer) {
		err = outer.Unwrap()
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return nil, &connectError{node: n.describe(), user: c.user, err: err}
}

func connConfig(n node, database, user string) (*pgx.ConnConfig, error) {
	timeout := n.tls.connectTimeout
	if timeout == 0 {
		timeout = connectTimeout
	}
	var b strings.Builder
	for _, setting := range [][2]string{
		{"host", n.host},
		{"port", strconv.Itoa(int(n.port))},
		{"dbname", database},
		{"user", user},
		{"sslmode", orElse(n.tls.mode, "prefer")},
		{"connect_timeout", strconv.Itoa(int(timeout / time.Second))},
		{"target_session_attrs", "any"},
		{"passfile", "/dev/null"},
		{"require_auth", "scram-sha-256"},
	} {
		writeSetting(&b, setting[0], setting[1])
	}
	for _, setting := range [][2]string{{"sslrootcert", n.tls.rootCert}, {"sslcert", n.tls.cert}, {"sslkey", n.tls.key}} {
		if setting[1] != "" {
			writeSetting(&b, setting[0], setting[1])
		}
	}
	config, err := pgx.ParseConfig(b.String())
	if err != nil {
		return nil, err
	}
	// Statements run once per connection: preparing them would only add round trips.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	return config, nil
}

func writeSetting(b *strings.Builder, name, value string) {
	b.WriteString(name + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "' ")
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// hangUp closes a connection in order, so that its session is gone from
// pg_stat_activity soon, but waits for a dead server only briefly.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // everything that mattered is committed
}

// describe names a server for people.
func (n node) describe() string {
	s := n.name
	if n.name == primaryName {
		s += " " + net.JoinHostPort(n.host, strconv.Itoa(int(n.port)))
	}
	if n.region != "" {
		s += " (region " + n.region + ")"
	}
	return s
}

// admin runs fn with an administrator's connection to n; what fails, fails at n.
func (s *system) admin(ctx context.Context, n node, fn func(*pgx.Conn) error) error {
	return provider.At(n.name, s.withAdmin(ctx, n, fn))
}

func (s *system) withAdmin(ctx context.Context, n node, fn func(*pgx.Conn) error) error {
	release, err := s.take(ctx, n, adminApplication)
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	defer release()
	conn, err := s.adminConn(ctx, n)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	return fn(conn)
}

// take waits for room for one more connection.
func (s *system) take(ctx context.Context, n node, application string) (release func(), err error) {
	slots := s.slots[slot{n.name, application}]
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a connection to %s: %w", n.describe(), ctx.Err())
	}
}

// adminConn logs in. When the password is refused it is read once more: its key
// or its file may have changed in between.
func (s *system) adminConn(ctx context.Context, n node) (*pgx.Conn, error) {
	for try := 1; ; try++ {
		c, err := s.administrator(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := dial(ctx, n, s.settings.adminDatabase, c, adminApplication)
		if err == nil {
			return conn, nil
		}
		if !refusesLogin(err) {
			return nil, fmt.Errorf("postgres: administrator: %w", err)
		}
		if try == 2 {
			return nil, provider.Hint(fmt.Errorf("postgres: administrator: %w: %w", provider.ErrDenied, err), "check the user of admin and the password that adminPassword leads to")
		}
	}
}

// refusesLogin reports whether PostgreSQL turned a login away for the credential
// itself: a wrong password, an unknown role, NOLOGIN. A rule of pg_hba.conf that
// turns this client away has the same SQLSTATE as NOLOGIN and says nothing about
// the credential, hence the look at the routine that reported it. Every failed
// attempt in err must be such a refusal.
func refusesLogin(err error) bool {
	refused, other := 0, 0
	var walk func(error)
	walk = func(err error) {
		if pg, ok := err.(*pgconn.PgError); ok { //nolint:errorlint // the tree is walked here
			if pg.Code == codeInvalidPassword || pg.Code == codeInvalidAuthorization && pg.Routine == "InitializeSessionUserId" {
				refused++
			} else {
				other++
			}
			return
		}
		switch e := err.(type) { //nolint:errorlint // the tree is walked here
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				walk(inner)
				return
			}
			other++
		default:
			// With sslmode=prefer the attempt over TLS fails first on a server without TLS.
			if !strings.Contains(err.Error(), "server refused TLS connection") {
				other++
			}
		}
	}
	if err != nil {
		walk(err)
	}
	return refused > 0 && other == 0
}

// sqlState returns the code of the PostgreSQL error in err, or "".
func sqlState(err error) string {
	if pg := new(pgconn.PgError); errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// explain adds what to do about a failed administrator's statement.
func explain(err error) error {
	switch sqlState(err) {
	case codeReadOnly:
		return provider.Hint(err, "the server that admin leads to is a standby; point admin at the primary")
	case codeInsufficient:
		return provider.Permanent(err, "the administrator lacks a privilege; docs/reference/provider-postgres.md lists the GRANTs it needs")
	}
	return err
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
