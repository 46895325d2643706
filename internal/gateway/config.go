package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/gateway/forward"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/logging"
)

// Config is the configuration of a gateway, as in the file that keyturn gateway
// --config names.
type Config struct {
	// Name is that of the gateway's token at the centre. It names the gateway in
	// rotations, so no two may share it, and it must stay. Required.
	Name string `yaml:"name"`
	// Listen is the address for the region. Default: 127.0.0.1:7449.
	Listen string `yaml:"listen"`
	// DataDir holds the sealed cache and, unless said otherwise, its key. Required.
	DataDir string `yaml:"dataDir"`
	// Serve is what is served: delivery, apikeys, or both, which is the default.
	Serve []string `yaml:"serve"`
	// Centre is the server, or the servers on one store, that the gateway stands for.
	Centre CentreConfig `yaml:"centre"`
	// Region and Labels are those of the gateway as a party; policies match them.
	Region string            `yaml:"region"`
	Labels map[string]string `yaml:"labels"`
	// TLS is the gateway's certificate; without it the gateway makes a CA of its own in
	// the data folder.
	TLS ingress.Certificate `yaml:"tls"`
	// Keeper says where the key-encryption key of the cache is. Default: kek.json in the
	// data folder.
	Keeper KeeperConfig   `yaml:"keeper"`
	Log    logging.Config `yaml:"log"`
	// MetricsListen serves /metrics without a token, for example 127.0.0.1:7450; empty:
	// nowhere.
	MetricsListen string         `yaml:"metricsListen"`
	Delivery      DeliveryConfig `yaml:"delivery"`
	APIKeys       APIKeysConfig  `yaml:"apiKeys"`
	// Forward says which proxies may ask about requests, and what they ask for.
	Forward ForwardConfig `yaml:"forward"`
	Limits  LimitsConfig  `yaml:"limits"`
}

// What a gateway can serve.
const (
	ServeDelivery = "delivery"
	ServeAPIKeys  = "apikeys"
)

// CentreConfig says how to reach the centre. Address and TokenFile are required.
type CentreConfig struct {
	// Address is the server's base URL; several on one store are separated by commas.
	Address string `yaml:"address"`
	// CAFile is a PEM file of the authorities of its certificate; empty: the system's.
	CAFile string `yaml:"caFile"`
	// TokenFile holds a token of role gateway; it is read again when it changes.
	TokenFile string `yaml:"tokenFile"`
}

// KeeperConfig says where the key-encryption key is.
type KeeperConfig struct {
	File string `yaml:"file"`
}

// DeliveryConfig bounds what is handed out while the centre does not answer.
type DeliveryConfig struct {
	// ServeFor is for how long a token counts that the centre accepted last. Default: 24h.
	ServeFor time.Duration `yaml:"serveFor"`
	// KeepKeys is for how long a key is kept that nobody asks for; until then the gateway
	// is a party of it. Default: twice ServeFor, since nobody can be served after that.
	KeepKeys time.Duration `yaml:"keepKeys"`
}

// APIKeysConfig says how API keys are verified.
type APIKeysConfig struct {
	// MaxAge is for how long API keys are let in without news of the centre. Revoking a
	// key waits so long for a gateway that cannot be reached. Default: 1h.
	MaxAge time.Duration `yaml:"maxAge"`
	// ReportEvery is how often the centre is told of uses; a drain that waits for the end
	// of use waits for three of them. Default: 3s.
	ReportEvery time.Duration `yaml:"reportEvery"`
}

// ForwardConfig is about proxies that ask whether a request may pass.
type ForwardConfig struct {
	// Listen is a second address, without TLS, for proxies on this machine: loopback, or
	// unix:PATH for a socket of mode 0660. Empty: only Config.Listen, with a token.
	Listen string `yaml:"listen"`
	// Settings say what a request must show, and who may ask at Config.Listen.
	forward.Settings `yaml:",inline"`
}

// LimitsConfig bounds what clients can ask for.
type LimitsConfig struct {
	// Parties is how many may be connected. Default: 20,000.
	Parties int `yaml:"parties"`
	// Connections is how many may be open, ConnectionsPerAddress how many of them from
	// one address. Defaults: 1,000 more than twice Parties, and than Parties.
	Connections           int `yaml:"connections"`
	ConnectionsPerAddress int `yaml:"connectionsPerAddress"`
	// PerSecond is how many calls of deliveries one token may make per second, Burst at
	// once. Defaults: 200 and 2,000.
	PerSecond float64 `yaml:"perSecond"`
	Burst     int     `yaml:"burst"`
}

// ErrConfig is wrapped by every error about a configuration.
var ErrConfig = errors.New("invalid gateway configuration")

var form = configfile.Form{Err: ErrConfig, Page: "docs/reference/gateway.md"}

// LoadConfig reads a configuration file. Errors name the file, the line and what would
// be right.
func LoadConfig(path string) (Config, error) {
	source, err := form.Read(path)
	if err != nil {
		return Config{}, err
	}
	return ParseConfig(path, source)
}

// ParseConfig reads a configuration; the file name is used for messages.
func ParseConfig(file string, source []byte) (Config, error) {
	var config Config
	err := form.Decode(file, source, &config, func() []configfile.Problem {
		config.fill()
		return config.check()
	})
	if err != nil {
		return Config{}, err
	}
	return config, nil
}

// complete fills in defaults and checks the configuration.
func (c *Config) complete() error {
	c.fill()
	var errs []error
	for _, p := range c.check() {
		errs = append(errs, fmt.Errorf("%w: %w", ErrConfig, p))
	}
	return errors.Join(errs...)
}

func (c *Config) fill() {
	configfile.Fill(&c.Listen, "127.0.0.1:7449")
	configfile.Fill(&c.Keeper.File, filepath.Join(c.DataDir, "kek.json"))
	configfile.Fill(&c.Delivery.ServeFor, 24*time.Hour)
	configfile.Fill(&c.Delivery.KeepKeys, 2*c.Delivery.ServeFor)
	configfile.Fill(&c.APIKeys.MaxAge, time.Hour)
	configfile.Fill(&c.APIKeys.ReportEvery, 3*time.Second)
	configfile.Fill(&c.Limits.Parties, 20_000)
	configfile.Fill(&c.Limits.Connections, 2*c.Limits.Parties+1000)
	configfile.Fill(&c.Limits.ConnectionsPerAddress, c.Limits.Parties+1000)
	configfile.Fill(&c.Limits.PerSecond, 200)
	configfile.Fill(&c.Limits.Burst, 2000)
	c.Log.Fill()
	if len(c.Serve) == 0 {
		c.Serve = []string{ServeDelivery, ServeAPIKeys}
	}
}

// serves reports whether something of the constants above is served.
func (c *Config) serves(what string) bool { return slices.Contains(c.Serve, what) }

// Bounds of fields.
const (
	minServeFor, maxServeFor = time.Minute, 7 * 24 * time.Hour
	minKeepKeys, maxKeepKeys = time.Hour, 365 * 24 * time.Hour
	minMaxAge, maxMaxAge     = 15 * time.Second, 24 * time.Hour
	minReport, maxReport     = 100 * time.Millisecond, 10 * time.Second
	maxParties               = 1_000_000
	leastPerSecond, maxRate  = 0.001, 1_000_000
	maxName                  = 100
	maxLabels, maxLabel      = 64, 253
)

// check returns all that is wrong with a configuration whose defaults are set.
func (c *Config) check() []configfile.Problem {
	p := configfile.Problems{}
	if c.Name == "" || len(c.Name) > maxName || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
		p.Add("name", "%q is no name; write that of the gateway's token, letters, digits, '.', '_' and '-', for example gateway-eu-1", c.Name)
	}
	if c.DataDir == "" {
		p.Add("dataDir", "it is missing; write for example dataDir: /var/lib/keyturn-gateway")
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		p.Add("listen", "%v; write for example 0.0.0.0:7449", err)
	}
	for i, what := range c.Serve {
		if what != ServeDelivery && what != ServeAPIKeys {
			p.Add(fmt.Sprintf("serve[%d]", i), "%q is unknown; use %s and %s", what, ServeDelivery, ServeAPIKeys)
		}
	}
	if c.MetricsListen != "" {
		if _, _, err := net.SplitHostPort(c.MetricsListen); err != nil {
			p.Add("metricsListen", "%v; write for example 127.0.0.1:7450", err)
		}
	}
	if len(c.Region) > maxLabel {
		p.Add("region", "it has %d characters, at most %d are allowed", len(c.Region), maxLabel)
	}
	if len(c.Labels) > maxLabels {
		p.Add("labels", "there are %d, at most %d are allowed", len(c.Labels), maxLabels)
	}
	for name, value := range c.Labels {
		if name == "" || len(name) > maxLabel || len(value) > maxLabel {
			p.Add("labels", "label %q and its value have at most %d bytes each", name, maxLabel)
		}
	}
	between(&p, "delivery.serveFor", c.Delivery.ServeFor, minServeFor, maxServeFor)
	between(&p, "delivery.keepKeys", c.Delivery.KeepKeys, minKeepKeys, maxKeepKeys)
	between(&p, "apiKeys.maxAge", c.APIKeys.MaxAge, minMaxAge, maxMaxAge)
	between(&p, "apiKeys.reportEvery", c.APIKeys.ReportEvery, minReport, maxReport)
	between(&p, "limits.parties", c.Limits.Parties, 1, maxParties)
	between(&p, "limits.connections", c.Limits.Connections, 1, 2*maxParties)
	between(&p, "limits.connectionsPerAddress", c.Limits.ConnectionsPerAddress, 1, 2*maxParties)
	between(&p, "limits.perSecond", c.Limits.PerSecond, leastPerSecond, maxRate)
	between(&p, "limits.burst", c.Limits.Burst, 1, maxRate)
	return slices.Concat(p.List(), c.TLS.Check(), c.Centre.check(), c.Log.Check(), c.Forward.check(c.serves(ServeAPIKeys)))
}

func between[T int | float64 | time.Duration](p *configfile.Problems, field string, value, least, most T) {
	if value < least || value > most {
		p.Add(field, "%v is not between %v and %v", value, least, most)
	}
}

const maxAddresses = 16

// addresses are those of the servers.
func (c *CentreConfig) addresses() []string {
	list := strings.Split(c.Address, ",")
	for i := range list {
		list[i] = strings.TrimSuffix(strings.TrimSpace(list[i]), "/")
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (c *CentreConfig) check() []configfile.Problem {
	p := configfile.Problems{In: "centre."}
	addresses := c.addresses()
	if len(addresses) > maxAddresses {
		p.Add("address", "it names %d servers, at most %d are allowed", len(addresses), maxAddresses)
	}
	for _, address := range addresses {
		u, err := url.Parse(address)
		switch {
		case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
			// An address that cannot be read may hold a password.
			p.Add("address", "it is no https:// address; write for example https://keyturn.example.com:7447, several separated by commas")
		case u.User != nil:
			p.Add("address", "it contains a user; credentials belong into tokenFile")
		}
	}
	if c.TokenFile == "" {
		p.Add("tokenFile", "it is missing; make a token with keyturn token create NAME --role gateway --keys 'prod/**', and write it into a file of mode 0600")
	}
	return p.List()
}

func (c *ForwardConfig) check(apiKeys bool) []configfile.Problem {
	p := configfile.Problems{In: "forward."}
	if c.Listen != "" && !isLocal(c.Listen) {
		p.Add("listen", "%q is neither a loopback address with a port nor unix: and an absolute path; proxies on other machines use the address of listen, with a token of forward.proxyTokenFiles", c.Listen)
	}
	if !apiKeys && (c.Listen != "" || len(c.Gates) > 0) {
		p.Add("gates", "serve has no %s; add it, or leave forward out", ServeAPIKeys)
	}
	for _, one := range c.Settings.Check() {
		p.Add(one.Field, "%s", one.Message)
	}
	return p.List()
}

// unixPrefix begins the address of a socket.
const unixPrefix = "unix:"

// isLocal reports whether an address can be reached from this machine only.
func isLocal(listen string) bool {
	if path, ok := strings.CutPrefix(listen, unixPrefix); ok {
		return filepath.IsAbs(path)
	}
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}
