package pgtest

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Impostor is a server that everybody is led to and that asks for the password by a
// method of its own choice. It lets nobody in. Its certificate, for 127.0.0.1, is
// vouched for by CAFile alone.
type Impostor struct {
	listener net.Listener
	tls      *tls.Config
	caFile   string
	ask      pgproto3.BackendMessage

	mu    sync.Mutex
	asked int
	heard []string
}

// NewImpostor listens on a free port of 127.0.0.1 until the test ends, and answers
// whoever logs in by ask.
func NewImpostor(t testing.TB, ask pgproto3.BackendMessage) *Impostor {
	t.Helper()
	certified := httptest.NewTLSServer(nil)
	certified.Close()
	i := &Impostor{ask: ask, tls: &tls.Config{Certificates: certified.TLS.Certificates, MinVersion: tls.VersionTLS12}}
	i.caFile = filepath.Join(t.TempDir(), "impostor.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw}
	if err := os.WriteFile(i.caFile, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if i.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := i.listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				if err := i.serve(conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Log("the impostor: ", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = i.listener.Close() // nothing is left to do
		running.Wait()
	})
	return i
}

// Addr is where it listens, host:port.
func (i *Impostor) Addr() string { return i.listener.Addr().String() }

// CAFile is the PEM file of what vouches for its certificate.
func (i *Impostor) CAFile() string { return i.caFile }

// Heard returns how often it has asked, and all that it was answered.
func (i *Impostor) Heard() (asked int, answers []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked, append([]string(nil), i.heard...)
}

func (i *Impostor) serve(conn net.Conn) error {
	backend := pgproto3.NewBackend(conn, conn)
	message, err := backend.ReceiveStartupMessage()
	if err != nil {
		return err
	}
	if _, secure := message.(*pgproto3.SSLRequest); secure {
		if _, err := conn.Write([]byte("S")); err != nil {
			return err
		}
		conn = tls.Server(conn, i.tls)
		backend = pgproto3.NewBackend(conn, conn)
		if _, err := backend.ReceiveStartupMessage(); err != nil {
			return err
		}
	}
	i.mu.Lock()
	i.asked++
	i.mu.Unlock()
	backend.Send(i.ask)
	if err := backend.Flush(); err != nil {
		return err
	}
	if err := backend.SetAuthType(pgproto3.AuthTypeCleartextPassword); err != nil {
		return err
	}
	answer, err := backend.Receive()
	if err != nil {
		return err
	}
	if password, ok := answer.(*pgproto3.PasswordMessage); ok {
		i.mu.Lock()
		i.heard = append(i.heard, password.Password)
		i.mu.Unlock()
	}
	backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "thank you"})
	return backend.Flush()
}
