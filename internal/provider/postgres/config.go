package postgres

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// strategy says how versions share roles. The zero value is invalid.
type strategy uint8

const (
	alternatingUsers strategy = iota + 1
	singleUser
)

const (
	primaryName        = "primary"
	defaultPort        = 5432
	defaultReplicaWait = time.Minute
	// maxName is the longest name of a role in PostgreSQL, in bytes; longer ones
	// would be cut off silently.
	maxName     = 63
	maxReplicas = 200
)

// settings is a checked config.
type settings struct {
	primary  node
	replicas []node
	// adminUser is the administrator's role unless its key names another.
	adminUser string
	password  passwordSource
	strategy  strategy
	// users are the login roles, one for singleUser.
	users []string
	// group is the role they become; empty for singleUser.
	group string
	// memberOf are roles that the group (or the single user) is a member of.
	memberOf []string
	// adminDatabase is where the administrator connects, database where the
	// applications, and therefore probes, do.
	adminDatabase string
	database      string
	replicaWait   time.Duration
	terminate     bool
}

// node is one server.
type node struct {
	name, region string
	host         string
	port         uint16
	tls          tlsSettings
}

// tlsSettings are libpq's parameters of the same names; empty means unset.
type tlsSettings struct {
	mode, rootCert, cert, key string
	connectTimeout            time.Duration
}

// owner is the role that holds grants and objects.
func (s settings) owner() string {
	if s.strategy == singleUser {
		return s.users[0]
	}
	return s.group
}

// parse checks a config and reports every problem in it as *provider.ConfigError.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "admin", "adminPassword", "strategy", "users", "user", "group", "memberOf",
		"replicas", "region", "database", "replicaWait", "terminate")
	s := settings{
		replicaWait: b.Duration("replicaWait", time.Millisecond, time.Hour, defaultReplicaWait, "write for example 30s or 2m"),
		terminate:   b.Bool("terminate", true, ""),
		memberOf:    roleNames(b, "memberOf", true),
	}
	s.parseAdmin(b)
	s.password = parsePassword(b)
	s.parseStrategy(b)
	s.parseReplicas(b)
	if database := b.Text("database", maxText, ""); database != "" {
		s.database = database
	}
	if slices.Contains(s.users, s.adminUser) && s.adminUser != "" && s.password.key == "" {
		b.Report("admin", fmt.Sprintf("the administrator %q is one of the roles it rotates", s.adminUser), "rotate it as a key of its own and refer to that: adminPassword: {key: NAME}")
	}
	if s.strategy == singleUser && len(s.users) == 1 && s.users[0] == s.adminUser && s.password.key != "" {
		b.Report("user", "a single user cannot replace the password it is logged in with", "use strategy: alternating-users for the administrator's own key")
	}
	if err := b.Err(); err != nil {
		return settings{}, err
	}
	return s, nil
}

func (s *settings) parseAdmin(b *providerconf.Block) {
	raw := required(b, "admin", "write for example postgres://rotator@db1.example:5432/orders")
	if raw == "" {
		return
	}
	location, ok := parseURL(b, "admin", raw)
	if !ok {
		return
	}
	if location.user == "" {
		b.Report("admin", "it names no user", "write for example postgres://rotator@db1.example:5432/orders")
	}
	if location.database == "" {
		b.Report("admin", "it names no database", "append it, for example /orders or /postgres")
	}
	s.adminUser, s.adminDatabase, s.database = location.user, location.database, location.database
	s.primary = location.node
	s.primary.name, s.primary.region = primaryName, b.Text("region", maxText, "")
}

func (s *settings) parseStrategy(b *providerconf.Block) {
	name, users, user := b.Text("strategy", maxText, ""), roleNames(b, "users", false), roleName(b, "user")
	switch {
	case name == "alternating-users", name == "" && b.Has("users"):
		s.strategy = alternatingUsers
	case name == "single-user", name == "" && b.Has("user"):
		s.strategy = singleUser
	case name == "":
		b.Report("strategy", "it is missing", "write alternating-users with users: [a, b], or single-user with user: a")
		return
	default:
		b.Report("strategy", fmt.Sprintf("%q is unknown", name), "write alternating-users or single-user")
		return
	}
	switch s.strategy {
	case alternatingUsers:
		s.users = users
		if b.Has("user") {
			b.Report("user", "it does not go with alternating users", "list every role under users")
		}
		if len(users) < 2 && listOK(b, "users") {
			b.Report("users", fmt.Sprintf("alternating needs at least two roles, there are %d", len(users)), "write for example users: [orders_a, orders_b]")
		}
		for i, u := range users {
			if slices.Contains(users[:i], u) {
				b.Report(fmt.Sprintf("users[%d]", i), fmt.Sprintf("%q is there twice", u), "each login role once")
			}
		}
		s.group = roleName(b, "group")
		if s.group == "" && !b.Has("group") && len(users) >= 2 {
			s.group = defaultGroup(users)
			if s.group == "" {
				b.Report("group", "the users' names have no common beginning to derive the group role from", "name the role that holds the grants, for example group: orders_owner")
			}
		}
		if s.group != "" && slices.Contains(users, s.group) {
			b.Report("group", fmt.Sprintf("%q is also one of the users", s.group), "the group must be a role of its own")
		}
	case singleUser:
		if user == "" && len(users) == 1 {
			user = users[0]
		}
		if user == "" && !b.Has("user") {
			b.Report("user", "it is missing", "write for example user: orders")
		}
		if len(users) > 1 {
			b.Report("users", "a single user has one role", "write user: NAME, or strategy: alternating-users")
		}
		if b.Has("group") {
			b.Report("group", "it does not go with a single user", "remove it; memberOf lists the roles that the user is a member of")
		}
		s.users = []string{user}
	}
}

// defaultGroup is the common beginning of the names, without a separator at its
// end, and "_owner"; it is empty when there is none.
func defaultGroup(users []string) string {
	prefix := users[0]
	for _, u := range users[1:] {
		for !strings.HasPrefix(u, prefix) {
			_, size := utf8.DecodeLastRuneInString(prefix)
			prefix = prefix[:len(prefix)-size]
		}
	}
	prefix = strings.TrimRight(prefix, "_-. ")
	if prefix == "" || len(prefix)+len("_owner") > maxName {
		return ""
	}
	return prefix + "_owner"
}

func (s *settings) parseReplicas(b *providerconf.Block) {
	names := map[string]bool{primaryName: true}
	for i, item := range b.List("replicas", 0, maxReplicas, "") {
		path := providerconf.Index("replicas", i)
		var n node
		var ok bool
		switch v := item.(type) {
		case string:
			n, ok = s.parseReplica(b, path, v)
		case map[string]any:
			n, ok = s.replicaBlock(b.Element(path, v, "", "url", "host", "region"))
		default:
			b.Report(path, "it is neither a text nor a block", "write {host: \"db2.example:5432\", region: b}")
		}
		if !ok {
			continue
		}
		n.name = "replica " + net.JoinHostPort(n.host, strconv.Itoa(int(n.port)))
		if names[n.name] || n.host == s.primary.host && n.port == s.primary.port {
			b.Report(path, fmt.Sprintf("%s:%d is there twice", n.host, n.port), "list every server once, the primary only in admin")
		}
		names[n.name] = true
		s.replicas = append(s.replicas, n)
	}
}

func (s *settings) replicaBlock(b *providerconf.Block) (node, bool) {
	target, host := b.Text("url", maxText, ""), b.Text("host", maxText, "")
	if (target == "") == (host == "") {
		b.Report("", "it needs either url or host", "write {host: \"db2.example:5432\", region: b}")
		return node{}, false
	}
	field, value := "url", target
	if host != "" {
		field, value = "host", host
	}
	n, ok := s.parseReplica(b, field, value)
	n.region = b.Text("region", maxText, "")
	return n, ok
}

// parseReplica reads a URL or host[:port]. What it does not say is as on the primary.
func (s *settings) parseReplica(b *providerconf.Block, path, value string) (node, bool) {
	if !strings.Contains(value, "://") {
		value = "postgres://" + value
	}
	location, ok := parseURL(b, path, value)
	if !ok {
		return node{}, false
	}
	if location.user != "" && location.user != s.adminUser || location.database != "" && location.database != s.adminDatabase {
		b.Report(path, "user and database of a replica are those of admin", "leave them out")
	}
	if location.node.tls == (tlsSettings{}) {
		location.node.tls = s.primary.tls
	}
	return location.node, true
}

// location is what a connection URL says.
type location struct {
	node           node
	user, database string
}

var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// parseURL reads a connection URL. No problem it reports quotes the URL, which
// may carry a password where none should be.
func parseURL(b *providerconf.Block, path, raw string) (location, bool) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.Opaque != "" || u.Fragment != "" {
		b.Report(path, "it is not a PostgreSQL URL of one server", "write postgres://USER@HOST:PORT/DATABASE; for several hosts list the standbys under replicas")
		return location{}, false
	}
	before := b.Problems()
	if _, has := u.User.Password(); has {
		b.Report(path, "it carries a password", "remove it, change it, and name where the new one is: adminPassword: {file: PATH}, {env: NAME} or {key: NAME}")
	}
	port := uint64(defaultPort)
	if text := u.Port(); text != "" {
		if port, err = strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
			b.Report(path, "the port is not a number from 1 to 65535", "write for example :5432")
		}
	}
	host := u.Hostname()
	switch {
	case host == "":
		b.Report(path, "it names no host", "write postgres://USER@HOST:PORT/DATABASE; Unix sockets are not supported, since SCRAM must be in use")
	case strings.ContainsAny(host, ",/ \x00"):
		b.Report(path, "it names more than one host", "name the one that is, or leads to, the primary, and list the standbys under replicas")
	}
	l := location{node: node{host: host, port: uint16(port)}, database: strings.TrimPrefix(u.Path, "/")}
	if strings.Contains(l.database, "\x00") {
		b.Report(path, "the database's name has a NUL character", "remove it")
	}
	if u.User != nil {
		l.user = u.User.Username()
		if problem, hint := roleNameProblem(l.user); problem != "" {
			b.Report(path, "user: "+problem, hint)
		}
	}
	parseParameters(b, path, u.RawQuery, &l.node.tls)
	return l, b.Problems() == before
}

func parseParameters(b *providerconf.Block, path, query string, tls *tlsSettings) {
	values, err := url.ParseQuery(query)
	if err != nil {
		b.Report(path, "its parameters cannot be read", "write for example ?sslmode=verify-full&sslrootcert=/etc/ssl/db-ca.pem")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values.Get(name)
		if len(values[name]) > 1 {
			b.Report(path, fmt.Sprintf("parameter %q is there twice", name), "write it once")
		}
		switch name {
		case "sslmode":
			if !slices.Contains(sslModes, value) {
				b.Report(path, "sslmode is unknown", "write one of "+strings.Join(sslModes, ", "))
			}
			tls.mode = value
		case "sslrootcert":
			tls.rootCert = value
		case "sslcert":
			tls.cert = value
		case "sslkey":
			tls.key = value
		case "connect_timeout":
			seconds, err := strconv.Atoi(value)
			if err != nil || seconds < 1 || seconds > 300 {
				b.Report(path, "connect_timeout is not a number of seconds from 1 to 300", "write for example connect_timeout=10")
			}
			tls.connectTimeout = time.Duration(seconds) * time.Second
		case "password", "passfile", "sslpassword":
			b.Report(path, fmt.Sprintf("parameter %q does not belong here", name), "name where the password is: adminPassword: {file: PATH}, {env: NAME} or {key: NAME}")
		default:
			b.Report(path, fmt.Sprintf("parameter %q is unknown", name), "sslmode, sslrootcert, sslcert, sslkey and connect_timeout are known")
		}
	}
}

// passwordSource says where the administrator's password comes from.
type passwordSource struct {
	// key is another key of Keyturn; file or env are its fall-back while it has no
	// version yet, or the only source.
	key  key.Name
	file string
	env  string
}

func parsePassword(b *providerconf.Block) passwordSource {
	const hint = "write adminPassword: {file: /run/secrets/rotator}, {env: ROTATOR_PASSWORD} or {key: prod/rotator}"
	if !b.Has("adminPassword") {
		b.Missing("adminPassword", hint)
		return passwordSource{}
	}
	before := b.Problems()
	p := b.Block("adminPassword", "a password is never written into a document; "+hint, "file", "env", "key")
	wrong := b.Problems() > before
	source := passwordSource{file: p.Text("file", maxText, ""), env: p.Text("env", maxText, ""), key: p.Key("key", "write the name of another key")}
	if source.file != "" && source.env != "" {
		p.Report("", "file and env are both there", "keep one")
	}
	if !wrong && len(p.Names()) == 0 {
		p.Report("", "it names no source", hint)
	}
	return source
}
