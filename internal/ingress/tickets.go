package ingress

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// ticketDay is how long tickets are issued under one key.
	ticketDay  = 24 * time.Hour
	ticketInfo = "keyturn tls session tickets, day "
)

// resumable makes connections resumable across restarts, and at every node that
// has the same private key: the keys of session tickets are derived from it, a new
// one each day. A fleet that comes back at once costs the server no signature for
// each agent then.
//
// Tickets are for TLS 1.3 only, where every resumed connection has an exchange of
// keys of its own: who learns a ticket key reads nothing that was said before. A
// client that knows no TLS 1.3 gets none.
func resumable(base *tls.Config, private any, now func() time.Time) *tls.Config {
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return base // a key in hardware cannot be derived from: every connection is a new one
	}
	without := base.Clone()
	without.SessionTicketsDisabled = true
	var today atomic.Pointer[ticketConfig]
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return without, nil
		}
		day := now().Unix() / int64(ticketDay/time.Second)
		current := today.Load()
		if current != nil && current.day == day {
			return current.config, nil
		}
		keys, err := ticketKeys(secret, day)
		if err != nil {
			return nil, err
		}
		current = &ticketConfig{day: day, config: without.Clone()}
		current.config.SessionTicketsDisabled = false
		current.config.SetSessionTicketKeys(keys)
		today.Store(current)
		return current.config, nil
	}
	return base
}

// ticketConfig is the configuration of one day.
type ticketConfig struct {
	day    int64
	config *tls.Config
}

// ticketKeys are the keys of a day: its own, which issues, those of the days before,
// and that of the next day, at a node whose clock is ahead.
func ticketKeys(secret []byte, day int64) ([][32]byte, error) {
	var keys [][32]byte
	for _, of := range []int64{day, day - 1, day - 2, day + 1} {
		derived, err := hkdf.Key(sha256.New, secret, nil, ticketInfo+strconv.FormatInt(of, 10), 32)
		if err != nil {
			return nil, err
		}
		keys = append(keys, [32]byte(derived))
	}
	return keys, nil
}
