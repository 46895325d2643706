package server

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/configfile"
	"github.com/keyturn/keyturn/internal/engine"
)

// problem is what is wrong with one field, and how to mend it.
type problem = configfile.Problem

// fill sets the defaults of fields that are absent.
func (c *Config) fill() {
	configfile.Fill(&c.Listen, "127.0.0.1:7447")
	configfile.Fill(&c.LogName, "keyturn")
	configfile.Fill(&c.Keeper.File, filepath.Join(c.DataDir, "kek.json"))
	c.Log.Fill()
	configfile.Fill(&c.Limits.Body, 4<<20)
	configfile.Fill(&c.Limits.Parties, 20_000)
	configfile.Fill(&c.Limits.Connections, 2*c.Limits.Parties+1000)
	configfile.Fill(&c.Limits.ConnectionsPerAddress, c.Limits.Parties+1000)
	configfile.Fill(&c.Limits.StreamsPerToken, max(1, c.Limits.Parties/10*9))
	configfile.Fill(&c.Limits.PerSecond, 200)
	configfile.Fill(&c.Limits.Burst, 2000)
	configfile.Fill(&c.Limits.ForgetClients, 2*time.Minute)
	configfile.Fill(&c.Limits.RuleEmergencies, engine.DefaultActs)
	configfile.Fill(&c.Limits.RuleEmergenciesPerKey, engine.DefaultActsOfKey)
	configfile.Fill(&c.Telemetry.RegionBehind, 5*time.Minute)
	c.APIKeys.fill()
	c.Tokens.fill()
}

// complete fills in defaults and checks the configuration.
func (c *Config) complete() error {
	c.fill()
	var errs []error
	for _, p := range c.check() {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// Bounds of the limits.
const (
	minBody, maxBody                             = 1 << 10, 64 << 20
	maxParties                                   = 1_000_000
	maxRate                                      = 1e6
	minForget, maxForget                         = time.Second, 365 * 24 * time.Hour
	minBehind                                    = time.Second
	maxRuleEmergencies, maxRuleEmergenciesPerKey = 1000, 100
	maxLogName                                   = 255
)

// check returns all that is wrong with a configuration whose defaults are set.
func (c *Config) check() []problem {
	var problems []problem
	wrong := func(field, format string, args ...any) {
		problems = append(problems, problem{Field: field, Message: fmt.Sprintf(format, args...)})
	}
	if c.DataDir == "" {
		wrong("dataDir", "it is missing; write for example dataDir: /var/lib/keyturn")
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		wrong("listen", "%v; write for example 127.0.0.1:7447", err)
	}
	if len(c.LogName) > maxLogName || strings.ContainsFunc(c.LogName, func(r rune) bool { return r <= ' ' || r == '+' || r > '~' }) {
		wrong("logName", "%q has characters other than letters, digits and punctuation, or a plus sign; use for example keyturn.example.com/log", c.LogName)
	}
	problems = append(problems, c.TLS.Check()...)
	problems = append(problems, c.Log.Check()...)
	problems = append(problems, c.Store.check()...)
	problems = append(problems, c.Telemetry.check()...)
	problems = append(problems, c.APIKeys.check()...)
	problems = append(problems, c.checkPlugins()...)
	problems = append(problems, c.Tokens.check()...)
	problems = append(problems, c.Leaks.check()...)
	return append(problems, c.Limits.check()...)
}

// maxStoreConnections is how many connections for reading a store may have.
const maxStoreConnections = 256

func (c *StoreConfig) check() []problem {
	if c.Postgres == nil {
		return nil
	}
	var problems []problem
	wrong := func(field, format string, args ...any) {
		problems = append(problems, problem{Field: "store.postgres." + field, Message: fmt.Sprintf(format, args...)})
	}
	const example = "postgres://keyturn@db.example.com/keyturn?sslmode=verify-full"
	// Messages never repeat the URL: it may hold a password, well-formed or not.
	u, err := url.Parse(c.Postgres.URL)
	switch {
	case c.Postgres.URL == "":
		wrong("url", "it is missing; write for example %s", example)
	case err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.Path == "" || u.Path == "/":
		wrong("url", "it is no URL of a PostgreSQL database; write for example %s", example)
	default:
		if _, has := u.User.Password(); has || u.Query().Has("password") {
			wrong("url", "it holds a password; write the password into a file of mode 0600 and name it as passwordFile")
		}
		mode := u.Query().Get("sslmode")
		if !localHosts(u) && (mode == "" || mode == "prefer" || mode == "allow") {
			wrong("url", "it allows connections in plain text; add sslmode=verify-full (and sslrootcert), or say sslmode=disable if that is what you want")
		}
	}
	if c.Postgres.Connections < 0 || c.Postgres.Connections > maxStoreConnections {
		wrong("connections", "%d is not between 0 and %d", c.Postgres.Connections, maxStoreConnections)
	}
	return problems
}

// localHosts reports whether the URL leads to this machine only.
func localHosts(u *url.URL) bool {
	hosts := strings.Split(u.Host, ",")
	if named := u.Query().Get("host"); named != "" {
		hosts = append(hosts, strings.Split(named, ",")...)
	}
	for _, host := range hosts {
		name := host
		if before, _, err := net.SplitHostPort(host); err == nil {
			name = before
		}
		ip := net.ParseIP(strings.Trim(name, "[]"))
		if name != "" && name != "localhost" && !strings.HasPrefix(name, "/") && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

func (c *TelemetryConfig) check() []problem {
	var problems []problem
	address := func(field, value string) {
		u, err := url.Parse(value)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			problems = append(problems, problem{Field: field, Message: fmt.Sprintf("%q is not an address; write for example https://collector:4318", value)})
		case u.Scheme == "http" && !c.Insecure:
			problems = append(problems, problem{Field: field, Message: fmt.Sprintf("%q is not encrypted; write https, or set telemetry.insecure: true", value)})
		}
	}
	if c.Traces != "" {
		address("telemetry.traces", c.Traces)
	}
	for i, value := range c.Pages {
		address(fmt.Sprintf("telemetry.pages[%d]", i), value)
	}
	for i, value := range c.Alertmanagers {
		address(fmt.Sprintf("telemetry.alertmanagers[%d]", i), value)
	}
	if c.MetricsListen != "" {
		if _, _, err := net.SplitHostPort(c.MetricsListen); err != nil {
			problems = append(problems, problem{Field: "telemetry.metricsListen", Message: fmt.Sprintf("%v; write for example 127.0.0.1:7448", err)})
		}
	}
	if c.RegionBehind < minBehind || c.RegionBehind > maxForget {
		problems = append(problems, problem{Field: "telemetry.regionBehind", Message: fmt.Sprintf("%v is not between %v and %v", c.RegionBehind, minBehind, maxForget)})
	}
	return problems
}

func (c *LimitsConfig) check() []problem {
	var problems []problem
	between := func(field string, ok bool, value, least, most any) {
		if !ok {
			problems = append(problems, problem{Field: "limits." + field, Message: fmt.Sprintf("%v is not between %v and %v", value, least, most)})
		}
	}
	between("body", c.Body >= minBody && c.Body <= maxBody, c.Body, minBody, maxBody)
	between("parties", c.Parties >= 1 && c.Parties <= maxParties, c.Parties, 1, maxParties)
	between("connections", c.Connections >= 1 && c.Connections <= 2*maxParties, c.Connections, 1, 2*maxParties)
	between("connectionsPerAddress", c.ConnectionsPerAddress >= 1 && c.ConnectionsPerAddress <= 2*maxParties, c.ConnectionsPerAddress, 1, 2*maxParties)
	between("streamsPerToken", c.StreamsPerToken >= 1 && c.StreamsPerToken <= maxParties, c.StreamsPerToken, 1, maxParties)
	between("perSecond", c.PerSecond > 0 && c.PerSecond <= maxRate, c.PerSecond, "more than 0", int(maxRate))
	between("burst", c.Burst >= 1 && c.Burst <= maxRate, c.Burst, 1, int(maxRate))
	between("ruleEmergencies", c.RuleEmergencies >= 1 && c.RuleEmergencies <= maxRuleEmergencies, c.RuleEmergencies, 1, maxRuleEmergencies)
	between("ruleEmergenciesPerKey", c.RuleEmergenciesPerKey >= 1 && c.RuleEmergenciesPerKey <= maxRuleEmergenciesPerKey, c.RuleEmergenciesPerKey, 1, maxRuleEmergenciesPerKey)
	between("forgetClients", c.ForgetClients >= minForget && c.ForgetClients <= maxForget, c.ForgetClients, minForget, maxForget)
	return problems
}
