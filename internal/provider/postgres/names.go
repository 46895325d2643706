package postgres

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/provider/providerconf"
)

// maxText bounds the texts of a config, in bytes.
const maxText = 4096

// maxRoles bounds the roles of a config.
const maxRoles = 1000

// required reads a text that must be there.
func required(b *providerconf.Block, field, hint string) string {
	if !b.Has(field) {
		b.Missing(field, hint)
	}
	return b.Text(field, maxText, "")
}

// listOK reports whether the field is absent or a list of texts, so that no second
// problem is reported about it.
func listOK(b *providerconf.Block, field string) bool {
	list, ok := b.Value(field).([]any)
	return !b.Has(field) || ok && !slices.ContainsFunc(list, func(v any) bool { _, text := v.(string); return !text })
}

// roleNames reads a list of roles. Only where predefined says so may they be among
// those that PostgreSQL brings along.
func roleNames(b *providerconf.Block, field string, predefined bool) []string {
	var names []string
	for i, item := range b.List(field, 0, maxRoles, "") {
		name, _ := item.(string)
		if predefined && strings.HasPrefix(name, "pg_") && len(name) <= maxName && utf8.ValidString(name) && !strings.Contains(name, "\x00") {
			names = append(names, name)
			continue
		}
		if problem, hint := roleNameProblem(name); problem != "" {
			b.Report(providerconf.Index(field, i), problem, hint)
			continue
		}
		names = append(names, name)
	}
	return names
}

// roleName reads one role.
func roleName(b *providerconf.Block, field string) string {
	if !b.Has(field) {
		return ""
	}
	name, _ := b.Value(field).(string)
	if problem, hint := roleNameProblem(name); problem != "" {
		b.Report(field, problem, hint)
		return ""
	}
	return name
}

// roleNameProblem says why PostgreSQL would not take name as that of a login or
// group role. Names are used exactly as written, upper case included.
func roleNameProblem(name string) (problem, hint string) {
	switch {
	case name == "" || !utf8.ValidString(name) || strings.Contains(name, "\x00"):
		return "it is not the name of a role", "write a text that is not empty"
	case len(name) > maxName:
		return fmt.Sprintf("the name has %d bytes, PostgreSQL keeps %d", len(name), maxName), "choose a shorter name"
	case name == "public" || name == "none":
		return fmt.Sprintf("%q is reserved by PostgreSQL", name), "choose another name"
	case strings.HasPrefix(name, "pg_"):
		return fmt.Sprintf("%q begins with pg_, which PostgreSQL reserves", name), "choose another name"
	}
	return "", ""
}
