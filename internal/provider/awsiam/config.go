package awsiam

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
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
	userPattern     = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)
	regionPattern   = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$`)
	externalPattern = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	rolePattern     = regexp.MustCompile(`^arn:[a-z-]+:iam::[0-9]{12}:role/[\x21-\x7e]{1,577}$`)
)

// parse reports every problem at once, each with its place and its mend.
func parse(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "user", "regions", "role", "admin", "usageDelay", "endpoint")
	s := settings{regions: regions(b), usageDelay: b.Duration("usageDelay", 0, maxUsageDelay, defaultUsageDelay, "write for example 4h")}
	s.user, _ = b.Value("user").(string)
	if !userPattern.MatchString(s.user) {
		b.Report("user", "the name of an IAM user is required", "write its name without path, for example ci-deployer")
	}
	if b.Has("role") {
		role := b.Block("role", "", "arn", "externalId")
		s.role.arn, s.role.externalID = role.Text("arn", maxText, ""), role.Text("externalId", maxText, "")
		if !rolePattern.MatchString(s.role.arn) {
			role.Report("arn", "the ARN of a role is required", "write for example arn:aws:iam::123456789012:role/keyturn")
		}
		if s.role.externalID != "" && !externalPattern.MatchString(s.role.externalID) {
			role.Report("externalId", "AWS wants 2 to 1224 letters, digits and characters of +=,.@:/_-", "write what the role's trust policy asks for")
		}
	}
	if b.Has("admin") {
		admin := b.Block("admin", "", "profile", "key")
		s.admin.profile, s.admin.key = admin.Text("profile", maxText, ""), admin.Key("key", "write the name of a key of the provider aws-iam")
		if admin.Has("profile") == admin.Has("key") {
			admin.Report("", "one of profile and key is required", "leave admin out to use the server's own environment")
		}
	}
	if s.endpoint = b.Text("endpoint", maxText, ""); s.endpoint != "" && !safe(s.endpoint) {
		b.Report("endpoint", "an https URL without user, path and query is required", "http is allowed on 127.0.0.1 and ::1 only: answers contain secrets")
	}
	return s, b.Err()
}

func regions(b *providerconf.Block) []string {
	const hint = "name the regions where the access key is used, for example [eu-central-1]"
	if !b.Has("regions") {
		b.Missing("regions", hint)
	}
	var regions []string
	for i, one := range b.List("regions", 1, maxRegions, hint) {
		place := providerconf.Index("regions", i)
		region, _ := one.(string)
		if !regionPattern.MatchString(region) || slices.Contains(regions, region) {
			b.Report(place, fmt.Sprintf("%.40q is no region, or there twice", region), "write for example eu-central-1")
			continue
		}
		if len(regions) > 0 && partition(regions[0]) != partition(region) {
			b.Report(place, fmt.Sprintf("%s and %s are in different partitions", regions[0], region), "an access key is known in one partition only: write a key for each")
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
