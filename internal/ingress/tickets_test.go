package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"testing"
	"time"
)

// node is a server's side of TLS with its own CA, at a settable time.
func node(t *testing.T, dir string, at *time.Time) *tls.Config {
	t.Helper()
	config, _, err := NewTLS(TLSConfig{Dir: dir, Subject: "test", Listen: "127.0.0.1:0", Now: func() time.Time { return *at }})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// shake connects once and reports whether the connection was resumed.
func shake(t *testing.T, server, client *tls.Config) bool {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		c := tls.Server(far, server)
		err := c.HandshakeContext(ctx)
		if err == nil {
			_, err = c.Write([]byte("x")) // carries the ticket along
		}
		served <- err
	}()
	c := tls.Client(near, client)
	if err := c.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().DidResume
}

// A server that was restarted, and another node with the same key, know the
// sessions of the one before, for three days.
func TestSessionsOutliveARestart(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	server := node(t, dir, &now)
	client := func() *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	}
	fleet := client()
	if shake(t, server, fleet) {
		t.Fatal("the first connection was resumed")
	}
	if restarted := node(t, dir, &now); !shake(t, restarted, fleet) {
		t.Error("a session did not outlive the restart")
	}
	if other := node(t, t.TempDir(), &now); shake(t, other, fleet) {
		t.Error("a node with another key resumed the session")
	}
	old := client()
	shake(t, server, old)
	now = now.Add(2 * ticketDay)
	if !shake(t, server, old) {
		t.Error("a session of two days ago is not known")
	}
	for day := range int64(10) {
		first, err := ticketKeys([]byte("secret"), day)
		if err != nil {
			t.Fatal(err)
		}
		for later := range int64(6) {
			keys, err := ticketKeys([]byte("secret"), day+later)
			if err != nil || slices.Contains(keys, first[0]) != (later < 3) {
				t.Errorf("tickets of day %d on day %d: %v, %v", day, day+later, slices.Contains(keys, first[0]), err)
			}
		}
	}
}

// In TLS 1.2 the key of a ticket opens what was said under it.
func TestOldProtocolGetsNoTickets(t *testing.T) {
	now := time.Now()
	server := node(t, t.TempDir(), &now)
	client := &tls.Config{
		InsecureSkipVerify: true, ServerName: "localhost", MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	for range 2 {
		if shake(t, server, client) {
			t.Error("a connection of TLS 1.2 was resumed")
		}
	}
}

func TestTicketsNeedAKeyThatCanBeRead(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.MarshalPKCS8PrivateKey(key); err != nil {
		t.Fatal(err)
	}
	if config := resumable(&tls.Config{}, "in hardware", time.Now); config.GetConfigForClient != nil {
		t.Error("keys were derived from nothing")
	}
}
