package clienttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// pipeListener accepts connections within the process. It can be opened again
// after it was closed.
type pipeListener struct {
	mu     sync.Mutex
	opened *openPipe
}

type openPipe struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener { return &pipeListener{} }

func (l *pipeListener) open() net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened = &openPipe{conns: make(chan net.Conn), closed: make(chan struct{})}
	return l.opened
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	l.mu.Lock()
	opened := l.opened
	l.mu.Unlock()
	near, far := net.Pipe()
	select {
	case opened.conns <- far:
		return near, nil
	case <-opened.closed:
		return nil, fmt.Errorf("clienttest: %w: the server is stopped", net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *openPipe) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *openPipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *openPipe) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// selfSigned returns a certificate for the loopback address that is its own authority.
func selfSigned() (tls.Certificate, *x509.CertPool, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}, roots, nil
}
