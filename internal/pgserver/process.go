package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// startTries bounds the attempts to start: the chosen port may be taken by
	// somebody else in between, and a killed server's children need a moment.
	startTries = 20
	pollEvery  = 20 * time.Millisecond
	logTail    = 2048
)

// process is one run of the server program. A nil process is not running.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop asks for a fast shutdown: sessions are ended, a checkpoint is written.
func (p *process) stop(ctx context.Context) error {
	if !p.running() {
		return nil
	}
	if err := p.signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop PostgreSQL: %w", ctx.Err())
	}
}

func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal PostgreSQL: %w", err)
	}
	return nil
}

// run runs one of the programs to its end.
func (s *Server) run(ctx context.Context, env []string, program string, args ...string) error {
	cmd := s.command(ctx, program, args...)
	cmd.Env = append(cmd.Env, env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, errors.Join(err, ctx.Err()), bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// command prepares a program. No PG* variable of this process reaches it.
func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.config.Bin, program), args...)
	cmd.Dir = s.root
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "PG") })
	cmd.Env = append(cmd.Env, "LC_ALL=C", "HOME="+s.root)
	cmd.SysProcAttr = s.account.attributes()
	return cmd
}

// initdb makes the cluster. The password travels in a file that only the
// server's user can read.
func (s *Server) initdb(ctx context.Context) error {
	file := filepath.Join(s.root, "superuser-password")
	if err := os.WriteFile(file, []byte(s.password), 0o600); err != nil {
		return fmt.Errorf("write the superuser's password: %w", err)
	}
	if err := s.account.chown(file); err != nil {
		return err
	}
	err := s.run(ctx, nil, "initdb", "--pgdata", s.data, "--username", Superuser, "--pwfile", file,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	if err := errors.Join(err, os.Remove(file)); err != nil {
		return err
	}
	hba := "# TYPE DATABASE USER ADDRESS METHOD\n" +
		"host all all 127.0.0.1/32 scram-sha-256\n" +
		"host replication " + replicator + " 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(s.data, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		return fmt.Errorf("write pg_hba.conf: %w", err)
	}
	return s.writeSettings()
}

func (s *Server) writeSettings() error {
	settings := map[string]string{ //nolint:gosec // no password is among them
		"listen_addresses":             "127.0.0.1",
		"unix_socket_directories":      "",
		"max_connections":              strconv.Itoa(s.config.MaxConnections),
		"password_encryption":          "scram-sha-256",
		"shared_buffers":               "32MB",
		"log_destination":              "stderr",
		"hot_standby_feedback":         "on",
		"wal_receiver_status_interval": "1s",
		"wal_retrieve_retry_interval":  "200ms",
	}
	if !s.config.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	if s.config.LogStatements {
		settings["log_statement"] = "all"
		settings["log_connections"] = "on"
		settings["log_line_prefix"] = "%m [%p] %q%u@%d "
	}
	for name, value := range s.config.Settings {
		settings[name] = value
	}
	file, err := os.OpenFile(filepath.Join(s.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open postgresql.conf: %w", err)
	}
	for name, value := range settings {
		_, err = fmt.Fprintf(file, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
		if err != nil {
			break
		}
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write postgresql.conf: %w", err)
	}
	return nil
}

// start starts the program and returns when it takes logins. s.mu is held, or s
// is not shared yet.
func (s *Server) start(ctx context.Context) error {
	fixed := s.port != 0
	for try := 1; ; try++ {
		if !fixed {
			port, err := freePort(ctx)
			if err != nil {
				return err
			}
			s.port = port
		}
		before := s.logSize()
		if err := s.spawn(ctx); err != nil {
			return err
		}
		err := s.waitReady(ctx)
		if err == nil {
			return nil
		}
		said := s.tail(before)
		if s.process.running() || try == startTries || ctx.Err() != nil || !mayPass(said) {
			return errors.Join(fmt.Errorf("start PostgreSQL at port %d: %w\n%s", s.port, err, said), s.process.kill())
		}
		if err := wait(ctx, pollEvery*time.Duration(try)); err != nil {
			return err
		}
	}
}

func (s *Server) spawn(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer log.Close() // the child has its own descriptor
	// The server outlives the call that starts it.
	cmd := s.command(context.WithoutCancel(ctx), "postgres", "-D", s.data, "-c", "port="+strconv.Itoa(s.port))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in the log
	}()
	s.process = p
	return nil
}

var errEnded = errors.New("the server ended while starting")

func (s *Server) waitReady(ctx context.Context) error {
	for {
		conn, err := s.connect(ctx)
		if err == nil {
			closeNow(ctx, conn)
			return nil
		}
		if !s.process.running() {
			return errEnded
		}
		if waitErr := wait(ctx, pollEvery); waitErr != nil {
			return errors.Join(waitErr, err)
		}
	}
}

// connect logs in as the superuser.
func (s *Server) connect(ctx context.Context) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(fmt.Sprintf(
		"host=127.0.0.1 port=%d user=%s dbname=postgres sslmode=disable connect_timeout=5 passfile='' require_auth=scram-sha-256 application_name=keyturn-pgserver",
		s.port, Superuser))
	if err != nil {
		return nil, err
	}
	config.Password = s.password
	return pgconn.ConnectConfig(ctx, config)
}

func closeNow(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is pending on it
}

// mayPass reports whether the reason for which a server ended may be gone at the
// next try: a port taken in between, or the children of a killed server that
// have not noticed yet.
func mayPass(said string) bool {
	return strings.Contains(said, "Address already in use") || strings.Contains(said, "is still in use") ||
		strings.Contains(said, "lock file \"postmaster.pid\" already exists")
}

func (s *Server) logSize() int64 {
	info, err := os.Stat(s.LogFile())
	if err != nil {
		return 0 // there is none yet
	}
	return info.Size()
}

// tail returns the end of what the log says after an offset.
func (s *Server) tail(after int64) string {
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, min(after, int64(len(log))), int64(len(log))-logTail):])
}

func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	addr, ok := listener.Addr().(*net.TCPAddr)
	if err := listener.Close(); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	if !ok {
		return 0, errors.New("find a free port: not a TCP address")
	}
	return addr.Port, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
