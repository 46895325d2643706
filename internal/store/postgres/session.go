package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/internal/passfile"
)

// The times after which what hangs ends.
const (
	// connectTimeout bounds one attempt to connect to one host.
	connectTimeout = 5 * time.Second
	// lockTimeout is how long a transaction waits for its turn among the nodes, or
	// for a table that is rewritten.
	lockTimeout = 20 * time.Second
	// serverTimeout is when the server ends a statement, statementTimeout when we no
	// longer wait for its answer.
	serverTimeout    = 30 * time.Second
	statementTimeout = 40 * time.Second
	// idleTimeout is how long a transaction may hold its turn without a statement:
	// a node that is frozen keeps the others waiting no longer.
	idleTimeout = 10 * time.Second
	// viewTimeout is the same for a View, which keeps nobody waiting.
	viewTimeout = 2 * time.Minute
)

// schema is where the tables are.
const schema = "keyturn"

const (
	defaultConnections = 8
	maxConnections     = 256
)

// settings make connections.
type settings struct {
	base         *pgx.ConnConfig
	node         string
	passwordFile string
	connections  int
}

func newSettings(config Config, node string) (*settings, error) {
	if config.URL == "" {
		return nil, fmt.Errorf("postgres: %w: Config.URL is required", ErrConfig)
	}
	if config.Connections < 0 || config.Connections > maxConnections {
		return nil, fmt.Errorf("postgres: %w: Config.Connections %d must be 0 to %d", ErrConfig, config.Connections, maxConnections)
	}
	if config.Connections == 0 {
		config.Connections = defaultConnections
	}
	base, err := pgx.ParseConfig(config.URL)
	if err != nil {
		// The parser's error repeats the URL, and with it what it could not tell from a password.
		if file := new(fs.PathError); errors.As(err, &file) {
			return nil, fmt.Errorf("postgres: %w: a file that the URL names: %w", ErrConfig, file)
		}
		return nil, fmt.Errorf("postgres: %w: the URL cannot be read; write for example postgres://keyturn@db.example.com/keyturn?sslmode=verify-full", ErrConfig)
	}
	if base.ConnectTimeout == 0 || base.ConnectTimeout > connectTimeout {
		base.ConnectTimeout = connectTimeout
	}
	if base.ValidateConnect == nil {
		base.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if base.RequireAuth == "" && !verified(&base.Config) {
		base.RequireAuth = "!password,!md5"
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}}
	base.DialFunc = dialer.DialContext
	return &settings{base: base, node: node, passwordFile: config.PasswordFile, connections: config.Connections}, nil
}

// verified reports whether a certificate is verified at every host that config leads
// to, before anything is sent. What is not may be told by no impostor to send the
// password, or a hash of it that can be guessed at leisure.
func verified(config *pgconn.Config) bool {
	checks := func(c *tls.Config) bool { return c != nil && (!c.InsecureSkipVerify || c.VerifyPeerCertificate != nil) }
	all := checks(config.TLSConfig)
	for _, f := range config.Fallbacks {
		all = all && checks(f.TLSConfig)
	}
	return all
}

// role says what a connection is for.
type role struct {
	name string
	idle time.Duration
	// statement is the server's limit for one statement; 0 means none.
	statement time.Duration
}

func (s *settings) writing() role {
	return role{name: "write", idle: idleTimeout, statement: serverTimeout}
}

func (s *settings) reading() role {
	return role{name: "read", idle: viewTimeout, statement: serverTimeout}
}
func (s *settings) upkeep() role { return role{name: "upkeep", idle: idleTimeout} }

// config returns what a connection of a role is made with.
func (s *settings) config(r role) (*pgx.ConnConfig, error) {
	config := s.base.Copy()
	if err := s.password(config); err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = "keyturn " + r.name + " " + s.node
	config.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		// In statements, because a connection pooler may refuse start-up parameters.
		//
		// Every query here is made for an index: with the planner's other choices off, its
		// plans do not hang on statistics of tables that have just grown.
		return conn.Exec(ctx, strings.Join([]string{
			"SET search_path = " + schema,
			"SET enable_seqscan = off", "SET enable_bitmapscan = off", "SET jit = off", "SET plan_cache_mode = force_generic_plan",
			"SET client_encoding = 'UTF8'", "SET client_min_messages = warning",
			millis("lock_timeout", lockTimeout), millis("statement_timeout", r.statement),
			millis("idle_in_transaction_session_timeout", r.idle),
			// What Update acknowledges is on disk; a stronger setting is left alone.
			"SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
		}, ";")).Close()
	}
	return config, nil
}

func millis(setting string, d time.Duration) string {
	return fmt.Sprintf("SET %s = %d", setting, d.Milliseconds())
}

// password reads the password file, so that a changed password needs no restart.
func (s *settings) password(config *pgx.ConnConfig) (err error) {
	if s.passwordFile == "" {
		return nil
	}
	if config.Password, err = passfile.Read(s.passwordFile, 0o007); err != nil {
		return fmt.Errorf("postgres: %w: the password: %w", ErrConfig, err)
	}
	return nil
}

// connect makes a connection that is not pooled.
func (s *settings) connect(ctx context.Context, r role) (*pgx.Conn, error) {
	config, err := s.config(r)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, s.connectFault("connect", err)
	}
	return conn, nil
}

// pool returns the connections for Views; they are made when they are needed.
func (s *settings) pool(ctx context.Context) (*pgxpool.Pool, error) {
	// The parser of the pool is the only way to its defaults.
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, fmt.Errorf("postgres: %w: an environment variable of PostgreSQL cannot be read", ErrConfig)
	}
	if config.ConnConfig, err = s.config(s.reading()); err != nil {
		return nil, err
	}
	config.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error { return s.password(config) }
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // the first query of a View sees to it
	config.MaxConns = int32(s.connections)
	config.MinConns, config.MinIdleConns = 0, 0
	config.MaxConnIdleTime = 5 * time.Minute
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), config)
	if err != nil {
		return nil, s.connectFault("connect", err)
	}
	return pool, nil
}

// connectFault turns an error of connecting into one that says what to do.
func (s *settings) connectFault(doing string, err error) error {
	if errors.Is(err, ErrConfig) || errors.Is(err, context.Canceled) {
		return err
	}
	where := fmt.Sprintf("%s:%d/%s", s.base.Host, s.base.Port, s.base.Database)
	for _, f := range s.base.Fallbacks {
		if at := fmt.Sprintf("%s:%d", f.Host, f.Port); !strings.Contains(where, at) {
			where = at + "," + where
		}
	}
	if readOnly(err) {
		return fmt.Errorf("postgres: %s: %w: %s: %w (name the primary, or all hosts, in the URL; after a failover the connection finds the new primary by itself)", doing, ErrReadOnlyServer, where, err)
	}
	if untrusted(err) {
		return fmt.Errorf("postgres: %s: %w: %s: %w (no password was sent; sslrootcert must name the CA of the server's certificate, and that the host of the URL)", doing, ErrConnect, where, err)
	}
	if asksTooMuch(err) {
		return fmt.Errorf("postgres: %s: %w: %s: %w (no password was sent: a server whose certificate is not verified gets none but by SCRAM-SHA-256; store it as such at the server, or set sslmode=verify-full and sslrootcert)", doing, ErrConnect, where, err)
	}
	return fmt.Errorf("postgres: %s: %w: %s: %w (nothing was written; is the server up, and do the host, user, password and certificate of the configuration fit?)", doing, ErrConnect, where, err)
}
