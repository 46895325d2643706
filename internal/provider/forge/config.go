package forge

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
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

// parser collects every problem.
type parser struct{ problems []error }

func (p *parser) report(path, problem, hint string) {
	p.problems = append(p.problems, &provider.ConfigError{Path: path, Problem: problem, Hint: hint})
}

// block returns a block whose fields are among those named.
func (p *parser) block(path string, value any, fields ...string) map[string]any {
	block, ok := value.(map[string]any)
	if !ok {
		p.report(path, "a block is required", "its fields are "+strings.Join(fields, ", "))
		return nil
	}
	for _, field := range slices.Sorted(maps.Keys(block)) {
		if !slices.Contains(fields, field) {
			p.report(strings.TrimPrefix(path+"."+field, "."), "unknown field", "the fields are "+strings.Join(fields, ", "))
		}
	}
	return block
}

// text returns a text that is absent, or not empty, printable and not too long.
func (p *parser) text(path string, value any) string {
	if value == nil {
		return ""
	}
	text, ok := value.(string)
	if !ok || text == "" || len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		p.report(path, fmt.Sprintf("1 to %d printable characters are required", maxText), "put it in quotes, or leave it out")
		return ""
	}
	return text
}

// parse reports every problem at once, each with its place and its mend.
func parse(config provider.Config) (settings, error) {
	s := settings{readOnly: true, usageDelay: defaultUsageDelay}
	var p parser
	fields := p.block("", map[string]any(config), "forge", "api", "repository", "readOnly", "admin", "ssh", "usageDelay")
	if s.forge, _ = fields["forge"].(string); s.forge != gitea && s.forge != github {
		p.report("forge", fmt.Sprintf("%v is unknown", fields["forge"]), "write gitea, also for Forgejo, or github, also for GitHub Enterprise")
	}
	var err error
	if s.api, err = url.Parse(p.text("api", fields["api"])); err != nil || !safe(s.api) {
		p.report("api", "an https URL without user and query is required", "write for example https://git.example.com/api/v1 or https://api.github.com; http is allowed on 127.0.0.1 and ::1 only")
	}
	repository := p.text("repository", fields["repository"])
	s.owner, s.repo, _ = strings.Cut(repository, "/")
	if !repositoryPattern.MatchString(repository) || strings.Trim(s.owner, ".") == "" || strings.Trim(s.repo, ".") == "" {
		p.report("repository", "owner and name are required", "write for example acme/shop")
	}
	if value, has := fields["readOnly"]; has {
		var ok bool
		if s.readOnly, ok = value.(bool); !ok {
			p.report("readOnly", "true or false is required", "leave it out for true")
		}
	}
	p.admin(&s, fields["admin"])
	p.ssh(&s, fields["ssh"])
	if value, has := fields["usageDelay"]; has {
		text, _ := value.(string)
		if s.usageDelay, err = time.ParseDuration(text); err != nil || s.usageDelay < 0 || s.usageDelay > maxUsageDelay {
			p.report("usageDelay", fmt.Sprintf("a duration from 0s to %v is required", maxUsageDelay), "write for example 48h")
		}
	}
	slices.SortFunc(p.problems, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return s, errors.Join(p.problems...)
}

func (p *parser) admin(s *settings, value any) {
	admin := p.block("admin", value, "file", "key", "field")
	if admin == nil {
		return
	}
	s.admin.file = p.text("admin.file", admin["file"])
	if s.admin.file != "" && !filepath.IsAbs(s.admin.file) {
		p.report("admin.file", "an absolute path is required", "write for example /run/secrets/forge-token")
	}
	name := p.text("admin.key", admin["key"])
	if name != "" {
		var err error
		if s.admin.key, err = key.ParseName(name); err != nil {
			p.report("admin.key", err.Error(), "write the name of the key that holds the token")
		}
	}
	if (s.admin.file == "") == (name == "") {
		p.report("admin", "one of file and key is required", "say where the forge's access token is")
	}
	s.admin.field = cmp.Or(p.text("admin.field", admin["field"]), defaultField)
	if admin["field"] != nil && name == "" {
		p.report("admin.field", "it is a field of a key", "remove it, or write key instead of file")
	}
}

func (p *parser) ssh(s *settings, value any) {
	block := p.block("ssh", value, "address", "user", "hostKeys")
	if block == nil {
		return
	}
	s.address = p.text("ssh.address", block["address"])
	if host, port, err := net.SplitHostPort(s.address); err != nil || host == "" || port == "" {
		p.report("ssh.address", "host and port are required", "write for example git.example.com:22")
	}
	s.user = cmp.Or(p.text("ssh.user", block["user"]), "git")
	if !userPattern.MatchString(s.user) {
		p.report("ssh.user", "it is no name of a user", "leave it out for git")
	}
	list, ok := block["hostKeys"].([]any)
	if !ok || len(list) == 0 || len(list) > maxHostKeys {
		p.report("ssh.hostKeys", fmt.Sprintf("a list of 1 to %d public keys is required", maxHostKeys), "take them from the forge's own documentation, or its administrator: ssh-keyscan believes whoever answers")
		return
	}
	for i, one := range list {
		line, _ := one.(string)
		public, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(bytes.TrimSpace(rest)) > 0 {
			p.report(fmt.Sprintf("ssh.hostKeys[%d]", i), "it is no public key", "write its kind and the key, for example ssh-ed25519 AAAA…, without a host")
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
