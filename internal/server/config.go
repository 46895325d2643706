package server

import (
	"errors"
	"time"

	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/ingress"
	"github.com/keyturn/keyturn/internal/logging"
)

// Config is the configuration of a server, as in the file that
// keyturn server --config names.
type Config struct {
	// Listen is the address of the API. Default: 127.0.0.1:7447.
	Listen string `yaml:"listen"`
	// DataDir holds the database and, unless said otherwise, keys. Required.
	DataDir string `yaml:"dataDir"`
	// Store says where the data is. Default: keyturn.db in the data folder.
	Store StoreConfig `yaml:"store"`
	// TLS is the server's certificate; without it the server makes a CA of its own
	// in the data folder.
	TLS TLSConfig `yaml:"tls"`
	// Keeper says where the key-encryption key is. Default: kek.json in the data folder.
	Keeper KeeperConfig `yaml:"keeper"`
	Log    LogConfig    `yaml:"log"`
	// Telemetry says where traces and pages go.
	Telemetry TelemetryConfig `yaml:"telemetry"`
	Limits    LimitsConfig    `yaml:"limits"`
	// APIKeys says how API keys are verified.
	APIKeys APIKeysConfig `yaml:"apiKeys"`
	// Plugins are the programs and services that keys of the providers exec and
	// webhook may name.
	Plugins map[string]PluginConfig `yaml:"plugins"`
	// Tokens is about signing keys and the tokens signed with them.
	Tokens TokensConfig `yaml:"tokens"`
	// Leaks says from whom leaks are heard of.
	Leaks LeaksConfig `yaml:"leaks"`
	// LogName is the name of the audit log, in its checkpoints. Default: keyturn.
	LogName string `yaml:"logName"`
}

// TLSConfig names PEM files.
type TLSConfig = ingress.Certificate

// StoreConfig says where the data is.
type StoreConfig struct {
	// Postgres is a PostgreSQL database; without it the data is in an SQLite file.
	Postgres *PostgresConfig `yaml:"postgres"`
}

// PostgresConfig names a database that several servers may share.
type PostgresConfig struct {
	// URL of the database, without a password. Required.
	URL string `yaml:"url"`
	// PasswordFile holds the password; read whenever a connection is made.
	PasswordFile string `yaml:"passwordFile"`
	// Connections for reading; 0 means 8.
	Connections int `yaml:"connections"`
}

// KeeperConfig says where the key-encryption key is.
type KeeperConfig struct {
	File string `yaml:"file"`
}

// LogConfig says how to log.
type LogConfig = logging.Config

// TelemetryConfig says where traces and pages go.
type TelemetryConfig struct {
	// Traces is an OTLP/HTTP address, for example https://collector:4318; empty: none.
	Traces string `yaml:"traces"`
	// Pages are webhooks that hear of holds; Alertmanagers those that take alerts.
	Pages         []string `yaml:"pages"`
	Alertmanagers []string `yaml:"alertmanagers"`
	// Insecure allows http:// in the addresses above.
	Insecure bool `yaml:"insecure"`
	// MetricsListen serves /metrics without a token on an address of its own, for
	// example 127.0.0.1:7448; empty: only on the API's address, with a token.
	MetricsListen string `yaml:"metricsListen"`
	// RegionBehind is after how long a region that a rotation waits for pages; in an
	// emergency a fifth of it. Default: 5m.
	RegionBehind time.Duration `yaml:"regionBehind"`
}

// LimitsConfig bounds what clients can ask for.
type LimitsConfig struct {
	// Body is the largest request, in bytes. Default: 4 MiB.
	Body int64 `yaml:"body"`
	// Parties is how many may be connected. Default: 20,000.
	Parties int `yaml:"parties"`
	// Connections is how many may be open, ConnectionsPerAddress how many of them from
	// one address. Defaults: 1,000 more than twice Parties, and than Parties.
	Connections           int `yaml:"connections"`
	ConnectionsPerAddress int `yaml:"connectionsPerAddress"`
	// StreamsPerToken is how many parties may be connected with one token. Default:
	// nine tenths of Parties.
	StreamsPerToken int `yaml:"streamsPerToken"`
	// PerSecond is how many calls one token may make per second, Burst at once.
	// Defaults: 200 and 2,000.
	PerSecond float64 `yaml:"perSecond"`
	Burst     int     `yaml:"burst"`
	// ForgetClients is after how long a client that stays away is forgotten.
	// Default: 2m.
	ForgetClients time.Duration `yaml:"forgetClients"`
	// RuleEmergencies is how many emergencies all rules about anomalous use together may
	// declare per hour, RuleEmergenciesPerKey how many of one key. Defaults: 10 and 2.
	RuleEmergencies       int `yaml:"ruleEmergencies"`
	RuleEmergenciesPerKey int `yaml:"ruleEmergenciesPerKey"`
}

// ErrConfig is wrapped by every error about a configuration.
var ErrConfig = errors.New("invalid server configuration")

// form is how configurations are read.
var form = configfile.Form{Err: ErrConfig, Page: "docs/reference/server.md"}

// LoadConfig reads a configuration file. Errors name the file, the line and
// what would be right.
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
	err := form.Decode(file, source, &config, func() []problem {
		config.fill()
		return config.check()
	})
	if err != nil {
		return Config{}, err
	}
	return config, nil
}
