package client

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrConfig is wrapped by every error about a Config.
var ErrConfig = errors.New("invalid client configuration")

// Config says how to reach the server, and as whom. Address and Token are
// required; every other field has a default.
type Config struct {
	// Address is the server's base URL, for example https://keyturn.example:8443.
	// https:// may be left out. http:// is accepted for loopback addresses only,
	// because the requests carry a bearer token. Several servers on one store are
	// separated by commas: the client stays with one, chosen at random, and goes to
	// the next when it does not answer. They need certificates of the same authority.
	Address string
	// Token supplies the party's bearer token. Join alone does without.
	Token TokenSource
	// RootCAs are the authorities that may have signed the server's certificate.
	// Nil means CACertFile, or else the system's.
	RootCAs *x509.CertPool
	// CACertFile is a PEM file of such authorities; read once, by New.
	CACertFile string
	// Party is who presents the keys.
	Party Party
	// HTTPClient replaces the built-in client; RootCAs and CACertFile are then
	// ignored. So are its Timeout, which would end the stream, and its redirect
	// policy: no redirect is followed, because that would carry the token away.
	HTTPClient *http.Client
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Logger takes what is worth telling an operator, never a secret. Nil discards.
	Logger *slog.Logger
	// OnStatus is told when the connection's state changes. It is called from one
	// goroutine of each Watch and must return quickly. May be nil.
	OnStatus func(Status)

	// BackoffMin and BackoffMax bound the time between two tries to connect:
	// 1 s and 10 s when zero. Each wait is drawn at random (full jitter).
	BackoffMin, BackoffMax time.Duration
	// PermanentRetry is the mean time between two tries after an error that will
	// not pass by itself; 60 s when zero.
	PermanentRetry time.Duration
	// PollInterval is the mean time between two plain polls; 10 s when zero.
	PollInterval time.Duration
	// LongPollWait is how long the server may hold a long poll; 30 s when zero,
	// at most 60 s.
	LongPollWait time.Duration
	// StreamRetry is the mean time after which a party that has fallen back to
	// polling tries the stream again; 5 min when zero.
	StreamRetry time.Duration
	// RequestTimeout bounds each request that is no stream; 10 s when zero. Outcomes may
	// take three times as long to become durable.
	RequestTimeout time.Duration
	// ApplyTimeout bounds the appliers of one change (see Handle.OnApply); 30 s when zero.
	ApplyTimeout time.Duration
	// ReportInterval is the time between two reports of samples by Keys; 2 s when zero.
	ReportInterval time.Duration
}

// withDefaults returns the configuration with every zero field filled in, or
// an error that wraps ErrConfig.
func (c Config) withDefaults() (Config, error) {
	address, err := checkAddresses(c.Address)
	if err != nil {
		return Config{}, err
	}
	c.Address = address
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnStatus == nil {
		c.OnStatus = func(Status) {}
	}
	for _, d := range []struct {
		name     string
		value    *time.Duration
		fallback time.Duration
		most     time.Duration
	}{
		{"BackoffMin", &c.BackoffMin, time.Second, time.Hour},
		{"BackoffMax", &c.BackoffMax, 10 * time.Second, 24 * time.Hour},
		{"PermanentRetry", &c.PermanentRetry, time.Minute, 24 * time.Hour},
		{"PollInterval", &c.PollInterval, 10 * time.Second, 24 * time.Hour},
		{"LongPollWait", &c.LongPollWait, 30 * time.Second, time.Minute},
		{"StreamRetry", &c.StreamRetry, 5 * time.Minute, 24 * time.Hour},
		{"RequestTimeout", &c.RequestTimeout, 10 * time.Second, time.Hour},
		{"ApplyTimeout", &c.ApplyTimeout, 30 * time.Second, time.Hour},
		{"ReportInterval", &c.ReportInterval, 2 * time.Second, time.Hour},
	} {
		if *d.value < 0 || *d.value > d.most {
			return Config{}, fmt.Errorf("%w: %s is %v; it must lie between 0 and %v", ErrConfig, d.name, *d.value, d.most)
		}
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if c.BackoffMin > c.BackoffMax {
		return Config{}, fmt.Errorf("%w: BackoffMin %v is greater than BackoffMax %v", ErrConfig, c.BackoffMin, c.BackoffMax)
	}
	if c.Party, err = c.Party.withDefaults(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// checkAddress returns the base URL without a trailing slash.
func checkAddress(address string) (string, error) {
	if address == "" {
		return "", fmt.Errorf("%w: Address is empty; write for example https://keyturn.example:8443", ErrConfig)
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		// The error would repeat the address, and with it a password.
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return "", fmt.Errorf("%w: Address: %w", ErrConfig, err)
	}
	switch {
	case u.Hostname() == "":
		return "", fmt.Errorf("%w: Address %q names no host", ErrConfig, u.Redacted())
	case u.User != nil:
		return "", fmt.Errorf("%w: Address %q contains a user; credentials belong into Token", ErrConfig, u.Redacted())
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", fmt.Errorf("%w: Address %q must have no query and no fragment", ErrConfig, address)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return "", fmt.Errorf("%w: Address %q would send the token in the clear; use https://", ErrConfig, address)
	case u.Scheme != "https" && u.Scheme != "http":
		return "", fmt.Errorf("%w: Address %q has scheme %q; use https://", ErrConfig, address, u.Scheme)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

const partyIDCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/"

func (p Party) withDefaults() (Party, error) {
	switch p.Kind {
	case 0:
		p.Kind = KindClient
	case KindAgent, KindClient:
	default:
		return Party{}, fmt.Errorf("%w: Party.Kind %d is unknown", ErrConfig, p.Kind)
	}
	if p.ID == "" {
		if p.Kind == KindAgent {
			return Party{}, fmt.Errorf("%w: Party.ID is empty; an agent needs a name that survives a restart, for example its host name", ErrConfig)
		}
		p.ID = defaultPartyID()
	}
	if len(p.ID) > 128 {
		return Party{}, fmt.Errorf("%w: Party.ID has %d characters, at most 128 are allowed", ErrConfig, len(p.ID))
	}
	if strings.IndexFunc(p.ID, func(r rune) bool { return !strings.ContainsRune(partyIDCharacters, r) }) >= 0 {
		return Party{}, fmt.Errorf("%w: Party.ID %q: use letters, digits, '.', '_', '-', ':' and '/'", ErrConfig, p.ID)
	}
	return p, nil
}

// defaultPartyID names the process so that an operator finds it.
func defaultPartyID() string {
	clean := func(s string) string {
		s = strings.Map(func(r rune) rune {
			if strings.ContainsRune(partyIDCharacters, r) && r != '/' {
				return r
			}
			return '-'
		}, s)
		return s[:min(len(s), 50)]
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	return clean(host) + "/" + clean(filepath.Base(os.Args[0])) + "/" + hex.EncodeToString(random[:])
}
