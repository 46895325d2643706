package awsiam

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
)

// Limits of a config.
const (
	maxRegions        = 16
	maxText           = 1224 // of an external ID
	defaultUsageDelay = 4 * time.Hour
	maxUsageDelay     = 7 * 24 * time.Hour
)

// settings is a decoded config:
//
//	config:
//	  user: ci-deployer
//	  regions: [eu-central-1, us-east-1]
//	  role: {arn: "arn:aws:iam::123456789012:role/keyturn", externalId: keyturn-prod}
//	  admin: {profile: keyturn}
//	  usageDelay: 4h
//	  endpoint: https://iam.example.com
type settings struct {
	user    string
	regions []string // never empty
	role    struct{ arn, externalID string }
	admin   struct {
		profile string
		key     key.Name
	}
	usageDelay time.Duration
	endpoint   string
}

var (
	userPattern   = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)
	regionPattern = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$`)
	rolePattern   = regexp.MustCompile(`^arn:[a-z-]+:iam::[0-9]{12}:role/[\x21-\x7e]{1,577}$`)
)

// parser collects every problem.
type parser struct{ problems []error }

func (p *parser) report(path, problem, hint string) {
	p.problems = append(p.problems, &provider.ConfigError{Path: path, Problem: problem, Hint: hint})
}

// block returns a block whose fields are among those named.
func (p *parser) block(path string, value any, fields ...string) map[string]any {
	if value == nil {
		return nil
	}
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

// text returns a text that is absent, or not empty and made of printable ASCII.
func (p *parser) text(path string, value any) string {
	if value == nil {
		return ""
	}
	text, ok := value.(string)
	if !ok || text == "" || len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		p.report(path, fmt.Sprintf("1 to %d printable characters without spaces are required", maxText), "put it in quotes, or leave it out")
		return ""
	}
	return text
}

// parse reports every problem at once, each with its place and its mend.
func parse(config provider.Config) (settings, error) {
	s := settings{usageDelay: defaultUsageDelay}
	var p parser
	fields := p.block("", map[string]any(config), "user", "regions", "role", "admin", "usageDelay", "endpoint")
	s.user, _ = fields["user"].(string)
	if !userPattern.MatchString(s.user) {
		p.report("user", "the name of an IAM user is required", "write its name without path, for example ci-deployer")
	}
	s.regions = p.regions(fields["regions"])
	if role := p.block("role", fields["role"], "arn", "externalId"); role != nil {
		s.role.arn, s.role.externalID = p.text("role.arn", role["arn"]), p.text("role.externalId", role["externalId"])
		if !rolePattern.MatchString(s.role.arn) {
			p.report("role.arn", "the ARN of a role is required", "write for example arn:aws:iam::123456789012:role/keyturn")
		}
		if len(s.role.externalID) == 1 {
			p.report("role.externalId", "AWS wants 2 characters at least", "write what the role's trust policy asks for")
		}
	}
	if admin := p.block("admin", fields["admin"], "profile", "key"); admin != nil {
		s.admin.profile = p.text("admin.profile", admin["profile"])
		name := p.text("admin.key", admin["key"])
		if name != "" {
			var err error
			if s.admin.key, err = key.ParseName(name); err != nil {
				p.report("admin.key", err.Error(), "write the name of a key of the provider aws-iam")
			}
		}
		if (s.admin.profile == "") == (name == "") {
			p.report("admin", "one of profile and key is required", "leave admin out to use the server's own environment")
		}
	}
	if value, has := fields["usageDelay"]; has {
		text, _ := value.(string)
		var err error
		if s.usageDelay, err = time.ParseDuration(text); err != nil || s.usageDelay < 0 || s.usageDelay > maxUsageDelay {
			p.report("usageDelay", fmt.Sprintf("a duration from 0s to %v is required", maxUsageDelay), "write for example 4h")
		}
	}
	if s.endpoint = p.text("endpoint", fields["endpoint"]); s.endpoint != "" && !safe(s.endpoint) {
		p.report("endpoint", "an https URL without user, path and query is required", "http is allowed on 127.0.0.1 and ::1 only: answers contain secrets")
	}
	slices.SortFunc(p.problems, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return s, errors.Join(p.problems...)
}

func (p *parser) regions(value any) []string {
	list, ok := value.([]any)
	if !ok || len(list) == 0 || len(list) > maxRegions {
		p.report("regions", fmt.Sprintf("a list of 1 to %d regions is required", maxRegions), "name the regions where the access key is used, for example [eu-central-1]")
		return nil
	}
	var regions []string
	for i, one := range list {
		region, _ := one.(string)
		if !regionPattern.MatchString(region) || slices.Contains(regions, region) {
			p.report(fmt.Sprintf("regions[%d]", i), fmt.Sprintf("%v is no region, or there twice", one), "write for example eu-central-1")
			continue
		}
		if len(regions) > 0 && partition(regions[0]) != partition(region) {
			p.report(fmt.Sprintf("regions[%d]", i), fmt.Sprintf("%s and %s are in different partitions", regions[0], region), "an access key is known in one partition only: write a key for each")
		}
		regions = append(regions, region)
	}
	return regions
}

// partition is what of AWS knows nothing of the rest, by the region's first part.
func partition(region string) string {
	first, rest, _ := strings.Cut(region, "-")
	if strings.HasPrefix(rest, "gov-") || strings.HasPrefix(rest, "iso") {
		kind, _, _ := strings.Cut(rest, "-")
		return first + "-" + kind
	}
	if first == "cn" || first == "eusc" {
		return first
	}
	return ""
}

// safe reports whether answers from there can be read by nobody else.
func safe(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	address, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && err == nil && address.IsLoopback()
}
