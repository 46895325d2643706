package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/secret"
)

// Config says what to call. URL and one source of signing secrets are required.
type Config struct {
	// URL is https, or http on a loopback address.
	URL string
	// CA is a PEM file of the authorities that may have issued the service's
	// certificate; empty means those of the machine.
	CA string
	// Cert and Key are PEM files of a client certificate; empty means none.
	Cert, Key string
	// SecretFile holds signing secrets, one a line, at most MaxSecrets: several while
	// they rotate. SecretKey is a key of Keyturn with the signing secret; the version
	// before the present one goes on signing too for a while.
	SecretFile string
	SecretKey  key.Name
	// Concurrency is how many calls may be under way at the same time; 0 means
	// DefaultConcurrency.
	Concurrency int
	// Now is the clock of signatures; default: time.Now.
	Now func() time.Time
}

const (
	// DefaultConcurrency is how many calls of one plugin are under way at the same time.
	DefaultConcurrency = 64
	// MaxSecrets is how many signing secrets there may be at the same time.
	MaxSecrets = 4

	maxSecretFile = 4096
	// The standard wants 24 to 64 bytes.
	minSecret, maxSecret = 24, 64
	secretPrefix         = "whsec_"

	dialTimeout = 5 * time.Second
	idleTimeout = 30 * time.Second
	maxQuoted   = 300
	// askAgain is after how long a service that has too many requests is asked again,
	// if it does not say so itself.
	askAgain = 5 * time.Second
)

// New returns a Transport that calls a service. Where CheckURL refuses the URL every
// call fails.
func New(config Config) plugin.Transport {
	if config.Concurrency <= 0 {
		config.Concurrency = DefaultConcurrency
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	t := &transport{config: config, slots: make(chan struct{}, config.Concurrency)}
	t.where, t.invalid = CheckURL(config.URL)
	t.client = &http.Client{
		Transport: &http.Transport{
			DialContext: t.dial, DialTLSContext: t.dialTLS, MaxConnsPerHost: config.Concurrency, MaxIdleConnsPerHost: 4,
			IdleConnTimeout: idleTimeout, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t
}

// CheckURL parses the address of a service. Its errors do not repeat it.
func CheckURL(address string) (*url.URL, error) {
	const example = "write for example https://keys.example.com/keyturn"
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("it is no address of a service; " + example)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("it has a user, a query or a fragment; requests are signed instead: " + example)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, errors.New("it is not encrypted; http is for loopback addresses only: " + example)
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

type transport struct {
	config Config
	where  *url.URL
	// invalid says why the URL may not be called.
	invalid error
	client  *http.Client
	slots   chan struct{}

	mu sync.Mutex
	// present and before are the last two secrets that SecretKey had.
	present, before secret.Value
}

// Call implements plugin.Transport.
func (t *transport) Call(ctx context.Context, env provider.Env, request plugin.Request) ([]byte, error) {
	if t.invalid != nil {
		return nil, provider.Permanent(fmt.Errorf("webhook.url: %w", t.invalid), "correct it in the server's configuration")
	}
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%d calls of the plugin are under way already: %w", t.config.Concurrency, ctx.Err())
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, t.where.String(), bytes.NewReader(request.Body))
	if err != nil {
		return nil, bare(err)
	}
	post.Header.Set("Content-Type", "application/json")
	post.Header.Set("User-Agent", "keyturn")
	if err := t.sign(ctx, env, post, request); err != nil {
		return nil, err
	}
	response, err := t.client.Do(post)
	if err != nil {
		return nil, bare(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, plugin.MaxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", bare(err))
	case response.StatusCode != http.StatusOK:
		return nil, t.refused(response, request.Scrub.Text(string(body), maxQuoted))
	case len(body) > plugin.MaxAnswer:
		return nil, fmt.Errorf("%w: the response has more than %d bytes", plugin.ErrAnswer, plugin.MaxAnswer)
	}
	return body, nil
}

// bare leaves out the URL, which package net/http puts into every error.
func bare(err error) error {
	if with := new(url.Error); errors.As(err, &with) {
		return with.Err
	}
	return err
}

// refused tells of a response that is no answer.
func (t *transport) refused(response *http.Response, said string) error {
	err := fmt.Errorf("%s answered with status %d", t.where.Host, response.StatusCode)
	if said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	switch response.StatusCode {
	case http.StatusTooManyRequests:
		return provider.Later(t.after(response.Header.Get("Retry-After")), err)
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fmt.Errorf("%w: %w", provider.ErrSilent, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return provider.Hint(fmt.Errorf("%w: %w", provider.ErrDenied, err), "the service must know the signing secret of webhook.secretFile or webhook.secretKey, and clocks must agree within five minutes")
	}
	if response.StatusCode/100 == 3 {
		return provider.Permanent(err, "redirects are not followed: write the final address as webhook.url in the server's configuration")
	}
	return provider.Hint(err, "a plugin answers every call with status 200, errors too; see docs/reference/plugins.md")
}

// after reads Retry-After: seconds, or a date (RFC 9110, section 10.2.3).
func (t *transport) after(header string) time.Duration {
	const most = 15 * time.Minute
	after := askAgain
	if seconds, err := strconv.ParseUint(strings.TrimSpace(header), 10, 31); err == nil {
		after = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(header); err == nil {
		after = date.Sub(t.config.Now())
	}
	return min(max(after, time.Second), most)
}

// sign sets the headers of Standard Webhooks.
func (t *transport) sign(ctx context.Context, env provider.Env, post *http.Request, request plugin.Request) error {
	secrets, err := t.secrets(ctx, env)
	if err != nil {
		return err
	}
	now := t.config.Now()
	var signatures []string
	for _, s := range secrets {
		signer, err := signerOf(s)
		if err != nil {
			return err
		}
		signature, err := signer.Sign(request.ID, now, request.Body)
		if err != nil {
			return fmt.Errorf("sign the request: %w", err)
		}
		signatures = append(signatures, signature)
	}
	post.Header.Set(standardwebhooks.HeaderWebhookID, request.ID)
	post.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	post.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return nil
}

func signerOf(s secret.Value) (*standardwebhooks.Webhook, error) {
	const hint = `a signing secret is "whsec_" and 24 to 64 random bytes in base64: printf 'whsec_%s\n' "$(head -c 32 /dev/urandom | base64)"`
	text := s.RevealString()
	signer, err := standardwebhooks.NewWebhook(text)
	// Three bytes are four characters.
	bytes := len(strings.TrimRight(strings.TrimPrefix(text, secretPrefix), "=")) * 3 / 4
	if err != nil || !strings.HasPrefix(text, secretPrefix) || bytes < minSecret || bytes > maxSecret {
		return nil, provider.Hint(errors.New("a signing secret has another form than Standard Webhooks says"), hint)
	}
	return signer, nil
}

// secrets are the signing secrets of now, the newest first.
func (t *transport) secrets(ctx context.Context, env provider.Env) ([]secret.Value, error) {
	if t.config.SecretKey != "" {
		return t.managed(ctx, env)
	}
	const hint = "webhook.secretFile must be a file with the signing secret, that only the server's user can read"
	info, err := os.Stat(t.config.SecretFile)
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("the signing secret: %w", err), hint)
	}
	if info.Mode()&0o007 != 0 || info.Size() > maxSecretFile {
		return nil, provider.Hint(fmt.Errorf("the signing secret: %s is open to everybody (mode %v), or has more than %d bytes", t.config.SecretFile, info.Mode().Perm(), maxSecretFile), hint)
	}
	text, err := os.ReadFile(t.config.SecretFile)
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("the signing secret: %w", err), hint)
	}
	defer clear(text)
	var secrets []secret.Value
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			secrets = append(secrets, secret.New(line))
		}
	}
	if len(secrets) == 0 || len(secrets) > MaxSecrets {
		return nil, provider.Hint(fmt.Errorf("the signing secret: %s has %d lines, 1 to %d are allowed", t.config.SecretFile, len(secrets), MaxSecrets), hint)
	}
	return secrets, nil
}

// managed is the current signing secret of a key of Keyturn, and the one before.
func (t *transport) managed(ctx context.Context, env provider.Env) ([]secret.Value, error) {
	if env.Resolve == nil {
		return nil, provider.Permanent(errors.New("webhook.secretKey names a key, but no keys are lent here"), "use webhook.secretFile")
	}
	material, err := env.Resolve(ctx, t.config.SecretKey)
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("the signing secret from key %s: %w", t.config.SecretKey, err), "webhook.secretKey must be a key that has a current version")
	}
	current, ok := material.Secrets["secret"]
	if !ok && len(material.Secrets) == 1 {
		for _, only := range material.Secrets {
			current, ok = only, true
		}
	}
	if !ok {
		return nil, provider.Permanent(fmt.Errorf("key %s has no field \"secret\"", t.config.SecretKey), "name a key with one secret, or one called secret")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.present.Equal(current) {
		t.before, t.present = t.present, current
	}
	if t.before.Len() == 0 {
		return []secret.Value{t.present}, nil
	}
	return []secret.Value{t.present, t.before}, nil
}

// dial serves plain HTTP. A host that is a loopback address stays one.
func (*transport) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
}

// dialTLS reads the certificates anew for each connection.
func (t *transport) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	config := &tls.Config{ServerName: t.where.Hostname(), MinVersion: tls.VersionTLS12}
	if t.config.CA != "" {
		pem, err := os.ReadFile(t.config.CA)
		if err != nil {
			return nil, provider.Hint(fmt.Errorf("the authorities of the service: %w", err), "webhook.ca must be a PEM file")
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, provider.Hint(fmt.Errorf("%s holds no certificate", t.config.CA), "webhook.ca must be a PEM file")
		}
	}
	if t.config.Cert != "" {
		certificate, err := tls.LoadX509KeyPair(t.config.Cert, t.config.Key)
		if err != nil {
			return nil, provider.Hint(fmt.Errorf("the client certificate: %w", err), "webhook.cert and webhook.key must be PEM files that belong together")
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	plain, err := t.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, err
	}
	return conn, nil
}
