package pgserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Superuser is the role that initdb creates.
const Superuser = "postgres"

// replicator is the role that standbys follow the primary with.
const replicator = "replicator"

// defaultMaxConnections is what Config.MaxConnections becomes when it is zero.
const defaultMaxConnections = 300

// Config says how to run the servers. The zero value is usable.
type Config struct {
	// Dir is the folder in which the temporary folder is made; empty means
	// os.TempDir. Run as root, every folder above must be enterable by the
	// unprivileged user.
	Dir string
	// Bin is the folder of the programs; empty means Find.
	Bin string
	// MaxConnections per server; 0 means 300.
	MaxConnections int
	// Durable keeps fsync on. Without it a crash of the machine (not of the server)
	// may lose what was committed, and everything is faster.
	Durable bool
	// LogStatements writes every statement and every login to the log file, so that
	// a test can look for what should not be there.
	LogStatements bool
	// Settings are further lines of postgresql.conf.
	Settings map[string]string
	// Region is a label of the primary; see Server.Region.
	Region string
}

// Server is one running PostgreSQL server. Its methods may be called
// concurrently, except that Close ends every other use.
type Server struct {
	config  Config
	account account
	// root is the temporary folder, the same for a primary and its standbys.
	root     string
	data     string
	region   string
	standby  bool
	password string
	// replication is the password of the role replicator.
	replication string

	mu       sync.Mutex
	port     int
	process  *process
	replicas []*Server
}

// Start makes a new database cluster and starts its primary. It returns when the
// server takes logins. It fails with ErrNotInstalled where there is no
// PostgreSQL; after any error nothing is left behind.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.Bin == "" {
		bin, err := Find()
		if err != nil {
			return nil, err
		}
		config.Bin = bin
	}
	if config.MaxConnections == 0 {
		config.MaxConnections = defaultMaxConnections
	}
	owner, err := currentAccount()
	if err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp(config.Dir, "keyturn-postgres-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for PostgreSQL: %w", err)
	}
	s := &Server{
		config: config, account: owner, root: root, data: filepath.Join(root, "primary"), region: config.Region,
		password: rand.Text(), replication: rand.Text(),
	}
	if err := s.create(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// create makes the cluster in s.data, starts it, and adds the replication role.
func (s *Server) create(ctx context.Context) error {
	if err := s.account.chown(s.root); err != nil {
		return err
	}
	if err := s.account.checkTraversable(s.root); err != nil {
		return err
	}
	if err := s.initdb(ctx); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer closeNow(ctx, conn)
	// Both words are generated here and need no quoting.
	if _, err := conn.Exec(ctx, "CREATE ROLE "+replicator+" LOGIN REPLICATION PASSWORD '"+s.replication+"'").ReadAll(); err != nil {
		return fmt.Errorf("create the replication role: %w", err)
	}
	return nil
}

// StartReplica adds a hot standby of s and returns when it takes logins. region
// is a label. s must be a primary.
func (s *Server) StartReplica(ctx context.Context, region string) (*Server, error) {
	if s.standby {
		return nil, errors.New("a standby cannot be followed; start the replica from its primary")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	replica := &Server{
		config: s.config, account: s.account, root: s.root, region: region, standby: true, password: s.password,
		data: filepath.Join(s.root, "replica"+strconv.Itoa(len(s.replicas)+1)),
	}
	slot := "replica" + strconv.Itoa(len(s.replicas)+1)
	err := replica.run(ctx, []string{"PGPASSWORD=" + s.replication}, "pg_basebackup",
		"--host", "127.0.0.1", "--port", strconv.Itoa(s.port), "--username", replicator, "--no-password",
		"--pgdata", replica.data, "--write-recovery-conf", "--create-slot", "--slot", slot, "--checkpoint", "fast", "--no-sync")
	if err != nil {
		return nil, err
	}
	if err := replica.start(ctx); err != nil {
		return nil, errors.Join(err, replica.Kill())
	}
	s.replicas = append(s.replicas, replica)
	return replica, nil
}

// Stop ends the server in order, closing its sessions. Stopping a stopped server
// does nothing.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.stop(ctx)
}

// Kill ends the server as SIGKILL does, without a checkpoint.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.kill()
}

// Restart stops the server if it runs and starts it again, at the same port.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.process.stop(ctx); err != nil {
		return err
	}
	return s.start(ctx)
}

// Close ends the server. Closing a primary ends its standbys too and removes the
// temporary folder.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, replica := range s.replicas {
		errs = append(errs, replica.Close())
	}
	errs = append(errs, s.process.kill())
	if !s.standby {
		errs = append(errs, s.removeFolder())
	}
	return errors.Join(errs...)
}

// removeFolder retries for a moment: the children of a killed server may still
// be writing when it is gone.
func (s *Server) removeFolder() error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := os.RemoveAll(s.root)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Host is always 127.0.0.1.
func (s *Server) Host() string { return "127.0.0.1" }

// Port is where the server listens; it stays the same over restarts.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

// Addr is host:port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host(), strconv.Itoa(s.Port())) }

// Region is the label given to Start or StartReplica.
func (s *Server) Region() string { return s.region }

// Password is the superuser's.
func (s *Server) Password() string { return s.password }

// LogFile is the path of the server's log; it grows over restarts.
func (s *Server) LogFile() string { return s.data + ".log" }

// DataDir is the path of the database cluster.
func (s *Server) DataDir() string { return s.data }

// URL returns a connection URL. An empty password is left out.
func (s *Server) URL(user, password, database string) string {
	u := url.URL{Scheme: "postgres", Host: s.Addr(), Path: "/" + database, User: url.User(user), RawQuery: "sslmode=disable"}
	if password != "" {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// SuperuserURL is URL for the superuser with its password.
func (s *Server) SuperuserURL(database string) string { return s.URL(Superuser, s.password, database) }
