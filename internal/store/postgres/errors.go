package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/internal/store"
)

var (
	// ErrConfig: the configuration cannot work.
	ErrConfig = errors.New("invalid configuration of the PostgreSQL store")
	// ErrConnect: the database cannot be reached, or does not let us in.
	ErrConnect = errors.New("no connection to PostgreSQL")
	// ErrReadOnlyServer: the server takes no writes; it is a standby, or was made
	// read-only.
	ErrReadOnlyServer = errors.New("the PostgreSQL server is read-only")
	// ErrForeign: the database is not one of Keyturn, or not one it can use.
	ErrForeign = errors.New("unsuitable database")
	// ErrNewer: the schema was written by a newer Keyturn.
	ErrNewer = errors.New("database was written by a newer version")
	// ErrUnknown: the store was stopped while the database could not say whether a
	// commit took place. What was written may be there or not.
	ErrUnknown = errors.New("the outcome of the commit is unknown")
)

// The SQLSTATEs that are told apart (PostgreSQL, appendix A).
const (
	divisionByZero   = "22012"
	uniqueViolation  = "23505"
	readOnlyState    = "25006"
	diskFull         = "53100"
	outOfMemory      = "53200"
	tooMany          = "53300"
	limitExceeded    = "53400"
	lockNotAvailable = "55P03"
	queryCanceled    = "57014"
	cannotConnectNow = "57P03"
	ioError          = "58030"
)

func stateOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func readOnly(err error) bool {
	return stateOf(err) == readOnlyState || strings.Contains(err.Error(), "read only connection") ||
		strings.Contains(err.Error(), "server is in recovery") || strings.Contains(err.Error(), "server is not in hot standby mode")
}

// untrusted reports whether the server showed a certificate that is not verified, or
// has none.
func untrusted(err error) bool {
	var verification *tls.CertificateVerificationError
	return errors.As(err, &verification) || stateOf(err) == "" && strings.Contains(err.Error(), "server refused TLS connection")
}

// asksTooMuch reports whether the server asked for the password by a method that is
// not allowed.
func asksTooMuch(err error) bool {
	return stateOf(err) == "" && strings.Contains(err.Error(), "authentication method requirement")
}

// isCut reports whether the connection is gone, and with it the transaction
// unless it was about to commit.
func isCut(err error) bool {
	if err == nil {
		return false
	}
	switch code := stateOf(err); {
	case strings.HasPrefix(code, "08"), code == "57P01", code == "57P02", code == cannotConnectNow, code == "57P05", code == "25P03", code == readOnlyState:
		return true
	case code != "":
		return false
	}
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "conn closed") ||
		pgconn.SafeToRetry(err)
}

// mayPass reports whether a failed transaction may succeed when it runs again,
// whoever its members are.
func mayPass(err error) bool {
	return isCut(err) || strings.HasPrefix(stateOf(err), "40")
}

// fault turns an error of PostgreSQL into one that says what to do about it.
// doing says what was attempted, as in "read a document". PostgreSQL's own
// messages are kept; details, which may repeat rows, are not.
func fault(doing string, err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("postgres: %s: %w", doing, err)
	}
	switch {
	case pg.Code == diskFull, pg.Code == outOfMemory, pg.Code == limitExceeded, pg.Code == ioError && strings.Contains(pg.Message, "No space left"):
		return fmt.Errorf("postgres: %s: %w: %w (nothing was written; free space at the database server, then repeat)", doing, store.ErrFull, pg)
	case pg.Code == readOnlyState:
		return fmt.Errorf("postgres: %s: %w: %w (nothing was written; after a failover the connection finds the new primary by itself)", doing, ErrReadOnlyServer, pg)
	case pg.Code == lockNotAvailable:
		return fmt.Errorf("postgres: %s: %w (nothing was written; something held the database for %v: look for long transactions in pg_stat_activity)", doing, pg, lockTimeout)
	case pg.Code == queryCanceled:
		return fmt.Errorf("postgres: %s: %w (nothing was written; the statement took more than %v or was cancelled)", doing, pg, serverTimeout)
	case pg.Code == tooMany:
		return fmt.Errorf("postgres: %s: %w: %w (nothing was written; raise max_connections, or lower the number of connections)", doing, ErrConnect, pg)
	}
	return fmt.Errorf("postgres: %s: %w", doing, pg)
}
