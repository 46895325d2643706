package forge

import (
	"bytes"
	"cmp"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// Limits of a config.
const (
	maxHostKeys       = 8
	maxText           = 1024
	defaultUsageDelay = 48 * time.Hour
	maxUsageDelay     = 30 * 24 * time.Hour
	defaultField      = "token"
)

// The forges.
const (
	gitea  = "gitea"
	github = "github"
)

// settings is a decoded config:
//
//	config:
//	  forge: gitea
//	  api: https://git.example.com/api/v1
//	  repository: acme/shop
//	  readOnly: true
//	  admin: {file: /run/secrets/forge-token}
//	  ssh: {address: "git.example.com:22", user: git, hostKeys: ["ssh-ed25519 AAAA…"]}
type settings struct {
	forge       string
	api         *url.URL
	owner, repo string
	readOnly    bool
	admin       struct {
		file  string
		key   key.Name
		field string
	}
	address, user string
	hostKeys      []ssh.PublicKey // never empty
	usageDelay    time.Duration
}

var (
	repositoryPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}$`)
	userPattern       = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
)

// parse reports every problem at once, each with its place and its mend.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "forge", "api", "repository", "readOnly", "admin", "ssh", "usageDelay")
	const forgeHint = "write gitea, also for Forgejo, or github, also for GitHub Enterprise"
	s := settings{
		forge:      b.Choice("forge", forgeHint, gitea, github),
		readOnly:   b.Bool("readOnly", true, "leave it out for true"),
		usageDelay: b.Duration("usageDelay", 0, maxUsageDelay, defaultUsageDelay, "write for example 48h"),
	}
	if !b.Has("forge") {
		b.Missing("forge", forgeHint)
	}
	var err error
	if s.api, err = url.Parse(b.Text("api", maxText, "")); err != nil || !safe(s.api) {
		b.Report("api", "an https URL without user and query is required", "write for example https://git.example.com/api/v1 or https://api.github.com; http is allowed on 127.0.0.1 and ::1 only")
	}
	repository := b.Text("repository", maxText, "")
	s.owner, s.repo, _ = strings.Cut(repository, "/")
	if !repositoryPattern.MatchString(repository) || strings.Trim(s.owner, ".") == "" || strings.Trim(s.repo, ".") == "" {
		b.Report("repository", "owner and name are required", "write for example acme/shop")
	}
	s.parseAdmin(b)
	s.parseSSH(b)
	return s, b.Err()
}

func (s *settings) parseAdmin(b *providerconf.Block) {
	const hint = "say where the forge's access token is, for example admin: {file: /run/secrets/forge-token}"
	if !b.Has("admin") {
		b.Missing("admin", hint)
		return
	}
	admin := b.Block("admin", hint, "file", "key", "field")
	s.admin.file, s.admin.key = admin.Text("file", maxText, ""), admin.Key("key", "write the name of the key that holds the token")
	if s.admin.file != "" && !filepath.IsAbs(s.admin.file) {
		admin.Report("file", "an absolute path is required", "write for example /run/secrets/forge-token")
	}
	if admin.Has("file") == admin.Has("key") {
		admin.Report("", "one of file and key is required", hint)
	}
	s.admin.field = cmp.Or(admin.Text("field", maxText, ""), defaultField)
	if admin.Has("field") && !admin.Has("key") {
		admin.Report("field", "it is a field of a key", "remove it, or write key instead of file")
	}
}

func (s *settings) parseSSH(b *providerconf.Block) {
	const hint = `write for example ssh: {address: "git.example.com:22", hostKeys: ["ssh-ed25519 AAAA…"]}`
	if !b.Has("ssh") {
		b.Missing("ssh", hint)
		return
	}
	block := b.Block("ssh", hint, "address", "user", "hostKeys")
	s.address = block.Text("address", maxText, "")
	if host, port, err := net.SplitHostPort(s.address); err != nil || host == "" || port == "" {
		block.Report("address", "host and port are required", "write for example git.example.com:22")
	}
	s.user = cmp.Or(block.Text("user", maxText, ""), "git")
	if !userPattern.MatchString(s.user) {
		block.Report("user", "it is no name of a user", "leave it out for git")
	}
	const keysHint = "take them from the forge's own documentation, or its administrator: ssh-keyscan believes whoever answers"
	if !block.Has("hostKeys") {
		block.Missing("hostKeys", keysHint)
	}
	for i, one := range block.List("hostKeys", 1, maxHostKeys, keysHint) {
		line, _ := one.(string)
		public, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(bytes.TrimSpace(rest)) > 0 {
			block.Report(providerconf.Index("hostKeys", i), "it is no public key", "write its kind and the key, for example ssh-ed25519 AAAA…, without a host")
			continue
		}
		s.hostKeys = append(s.hostKeys, public)
	}
}

// safe reports whether nobody else sees the token that is sent there.
func safe(u *url.URL) bool {
	if u == nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	address, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && err == nil && address.IsLoopback()
}
