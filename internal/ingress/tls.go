package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/datadir"
)

// How long the certificates that are made here are valid.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 90 * 24 * time.Hour
)

// Certificate is the block of a configuration that names PEM files. Names are what the
// certificate that the process makes itself is valid for, beside loopback and the host's
// name.
type Certificate struct {
	Cert  string   `yaml:"cert"`
	Key   string   `yaml:"key"`
	Names []string `yaml:"names"`
}

// maxName is the longest name in a certificate, in bytes.
const maxName = 253

// Check returns what is wrong with a block that the file calls tls.
func (c *Certificate) Check() []configfile.Problem {
	p := configfile.Problems{}
	if (c.Cert == "") != (c.Key == "") {
		p.Add("tls", "cert and key belong together; give both, or neither")
	}
	for i, name := range c.Names {
		if name == "" || len(name) > maxName || strings.ContainsAny(name, " /") || net.ParseIP(name) == nil && strings.Contains(name, ":") {
			p.Add(fmt.Sprintf("tls.names[%d]", i), "%q is neither a host name nor an IP address; write for example keyturn.example.com, without scheme and port", name)
		}
	}
	return p.List()
}

// TLSConfig says by which certificate a process is known. What has no default is
// required.
type TLSConfig struct {
	// Cert and Key are PEM files of the operator's, both or neither. They are read for
	// every handshake, so that a renewed certificate needs no restart; while they do not
	// fit together, because they are just being replaced, the last pair holds.
	Cert, Key string

	// What follows is for a process without a certificate of the operator's. Its CA is
	// made at the first start and kept in ca.pem and ca.key; certificates are kept in
	// memory only, and renewed in time.

	// Dir is the folder of the CA, in which nobody else can replace files.
	Dir string
	// Subject is the common name in certificates, for example Keyturn server.
	Subject string
	// Names are DNS names and IP addresses that certificates are valid for, beside those
	// of loopback, the host's name and the host of Listen. Default: none.
	Names []string
	// Listen is the host and port that is listened on.
	Listen string

	// ClientAuth says whether clients are asked for a certificate. Default: they are not.
	ClientAuth tls.ClientAuthType
	// Now is the clock by which certificates are made: the machine's own, as others read
	// them by theirs.
	Now func() time.Time
}

// NewTLS returns the configuration of the side that is connected to, and the PEM file
// of the CA that clients should trust; empty if the certificate is the operator's
// own. Connections of TLS 1.3 can be resumed across restarts, and at every process
// that has the same private key.
func NewTLS(config TLSConfig) (_ *tls.Config, caFile string, err error) {
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, ClientAuth: config.ClientAuth}
	if config.Cert != "" {
		own := &ownPair{cert: config.Cert, key: config.Key}
		if err := own.load(); err != nil {
			return nil, "", fmt.Errorf("tls: %w", err)
		}
		base.GetCertificate = own.get
		return resumable(base, own.last.Load().PrivateKey, config.Now), "", nil
	}
	caPath := filepath.Join(config.Dir, "ca.pem")
	ca, err := ownCA(config.Dir, caPath, config.Now())
	if err != nil {
		return nil, "", fmt.Errorf("make a CA: %w", err)
	}
	leaves := &leaves{ca: ca, config: &config}
	if _, err := leaves.get(nil); err != nil {
		return nil, "", fmt.Errorf("make a certificate: %w", err)
	}
	base.GetCertificate = leaves.get
	return resumable(base, ca.PrivateKey, config.Now), caPath, nil
}

// ownPair hands out the operator's certificate.
type ownPair struct {
	cert, key string
	last      atomic.Pointer[tls.Certificate]
}

func (p *ownPair) load() error {
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err == nil {
		p.last.Store(&pair)
	}
	return err
}

func (p *ownPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	_ = p.load() // the last pair holds, and a client sees when it expires
	return p.last.Load(), nil
}

// leaves hands out certificates of the own CA, each until it is time for the next.
type leaves struct {
	ca     tls.Certificate
	config *TLSConfig

	mu     sync.Mutex
	leaf   *tls.Certificate
	issued time.Time
}

func (l *leaves) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.config.Now()
	if l.leaf != nil && now.Sub(l.issued).Abs() < leafLifetime/3 {
		return l.leaf, nil
	}
	leaf, err := issueLeaf(l.ca, l.config, now)
	if err != nil {
		return nil, err
	}
	l.leaf, l.issued = &leaf, now
	return l.leaf, nil
}

// ownCA reads the own CA, creating it on the first start.
func ownCA(dir, certPath string, now time.Time) (tls.Certificate, error) {
	keyPath := filepath.Join(dir, "ca.key")
	keyPEM, err := datadir.ReadPrivate(keyPath)
	if err == nil {
		certPEM, err := os.ReadFile(certPath)
		if err != nil {
			return tls.Certificate{}, err
		}
		return tls.X509KeyPair(certPEM, keyPEM)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return tls.Certificate{}, err
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template, err := certificate("Keyturn CA", now, caLifetime)
	if err != nil {
		return tls.Certificate{}, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	defer clear(keyPEM)
	defer clear(keyDER)
	// The certificate first: a key without one would not be read again.
	if err := os.Remove(certPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return tls.Certificate{}, err
	}
	if err := errors.Join(datadir.WriteNew(certPath, certPEM, 0o644), datadir.WriteNew(keyPath, keyPEM, 0o600)); err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}

// issueLeaf makes a certificate; it is kept in memory only.
func issueLeaf(ca tls.Certificate, config *TLSConfig, now time.Time) (tls.Certificate, error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template, err := certificate(config.Subject, now, leafLifetime)
	if err != nil {
		return tls.Certificate{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames = []string{"localhost"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	names := slices.Clone(config.Names)
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	if host, _, err := net.SplitHostPort(config.Listen); err == nil && host != "" {
		names = append(names, host)
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	parent, err := x509.ParseCertificate(ca.Certificate[0])
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, signer.Public(), ca.PrivateKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.Certificate[0]}, PrivateKey: signer}, nil
}

// backdated is how far a client's clock may be behind ours.
const backdated = time.Hour

func certificate(name string, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(lifetime),
	}, nil
}
