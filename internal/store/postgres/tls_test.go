package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/internal/store/postgres"
	"github.com/keyturn/keyturn/test/pgtest"
)

// authority is a CA made for a test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of a test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var a authority
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	must(t, err)
	a.certificate, err = x509.ParseCertificate(der)
	must(t, err)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// file writes the certificate of the CA.
func (a authority) file(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}), 0o600))
	return path
}

// certify makes a server answer with a certificate for its IP address alone, and
// take nobody without TLS.
func (a authority) certify(t *testing.T, server *pgserver.Server) {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.certificate, &key.PublicKey, a.key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	info, err := os.Stat(server.DataDir())
	must(t, err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("the folder has no owner")
	}
	for name, block := range map[string]*pem.Block{"server.crt": {Type: "CERTIFICATE", Bytes: der}, "server.key": {Type: "PRIVATE KEY", Bytes: private}} {
		path := filepath.Join(server.DataDir(), name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
		must(t, os.Chown(path, int(owner.Uid), int(owner.Gid)))
	}
	rules := filepath.Join(server.DataDir(), "pg_hba.conf")
	must(t, os.WriteFile(rules, []byte("hostssl all all 127.0.0.1/32 scram-sha-256\n"), 0o600))
	pgtest.Exec(t, server, "postgres", "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
}

// TestVerifiedTLS: with sslmode=verify-full every connection is encrypted and to the
// server that the CA vouches for; to any other no password is sent.
func TestVerifiedTLS(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, server, "postgres", "CREATE DATABASE keyturn")
	password := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(password, []byte(server.Password()+"\n"), 0o600))
	a := newAuthority(t)
	at := func(host, mode, ca string) postgres.Config {
		u, err := url.Parse(server.URL(pgserver.Superuser, "", "keyturn"))
		must(t, err)
		u.Host = net.JoinHostPort(host, u.Port())
		q := url.Values{"sslmode": {mode}}
		if ca != "" {
			q.Set("sslrootcert", ca)
		}
		u.RawQuery = q.Encode()
		return postgres.Config{URL: u.String(), PasswordFile: password}
	}
	ca := a.file(t)
	refuse := func(name string, config postgres.Config, want error, says ...string) {
		t.Helper()
		s, err := postgres.Open(t.Context(), config)
		if err == nil {
			must(t, s.Stop())
		}
		for _, words := range says {
			if !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: got %v, want an error that wraps %q and says %q", name, err, want, words)
			}
		}
		if err != nil && strings.Contains(err.Error(), server.Password()) {
			t.Errorf("%s: the password is in the error: %v", name, err)
		}
	}
	refuse("a server without TLS", at("127.0.0.1", "verify-full", ca), postgres.ErrConnect, "no password was sent")
	a.certify(t, server)
	var s *postgres.Store
	pgtest.Eventually(t, "the server has its certificate", func() (ready bool) {
		var err error
		s, err = postgres.Open(t.Context(), at("127.0.0.1", "verify-full", ca))
		return err == nil
	})
	defer func() { must(t, s.Stop()) }()
	update(t, s, func(tx store.Tx) error { _, err := increment(t.Context(), tx, "a"); return err })
	if n := counted(t, s, "a"); n != 1 {
		t.Errorf("counted to %d", n)
	}
	observer := pgtest.Connect(t, at("127.0.0.1", "verify-full", ca).URL+"&password="+url.QueryEscape(server.Password()))
	var encrypted, all int
	must(t, observer.QueryRow(t.Context(), "SELECT count(*) FILTER (WHERE s.ssl), count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE 'keyturn %'").Scan(&encrypted, &all))
	if all < 3 || encrypted != all {
		t.Errorf("%d of %d connections are encrypted", encrypted, all)
	}

	const hint = "sslrootcert must name the CA"
	refuse("another CA", at("127.0.0.1", "verify-full", newAuthority(t).file(t)), postgres.ErrConnect, hint, "unknown authority")
	refuse("the CAs of the machine", at("127.0.0.1", "verify-full", ""), postgres.ErrConnect, hint, "unknown authority")
	refuse("another host", at("localhost", "verify-full", ca), postgres.ErrConnect, hint, "not valid for", "localhost")
	refuse("no TLS", at("127.0.0.1", "disable", ""), postgres.ErrConnect, "pg_hba.conf")
	refuse("no such file", at("127.0.0.1", "verify-full", ca+"x"), postgres.ErrConfig, ca+"x")
}
