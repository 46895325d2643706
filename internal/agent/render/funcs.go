package render

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"unicode"
	"unicode/utf8"
)

// expansion bounds how many bytes an escaping function makes of one byte.
const expansion = 6

// funcs returns the functions of a template, bound to this execution. Those of
// package text/template that could run without bound are replaced or refused.
func (x *execution) funcs() template.FuncMap {
	f := template.FuncMap{
		stepName:     x.step,
		"key":        x.key,
		"keyversion": x.keyversion,
		"index":      field,
		"print":      x.print,
		"printf":     x.printf,
		"indent":     x.indent,
	}
	for name, escape := range escapes() {
		f[name] = func(s string) (string, error) {
			if err := x.spend(expansion*len(s) + 2); err != nil {
				return "", err
			}
			return escape(s)
		}
	}
	return f
}

// functionNames returns every function that a template may call, sorted. The
// comparisons and "len", "slice" are those of package text/template.
func functionNames() []string {
	names := []string{
		"and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "slice",
		"key", "keyversion", "index", "print", "printf", "indent",
	}
	return slices.Sorted(slices.Values(slices.AppendSeq(names, maps.Keys(escapes()))))
}

// escapes returns the functions from text to text.
func escapes() map[string]func(string) (string, error) {
	return map[string]func(string) (string, error){
		"shell":    shell,
		"json":     quoteJSON,
		"yaml":     quoteJSON,
		"urlquery": func(s string) (string, error) { return url.QueryEscape(s), nil },
		"userinfo": userinfo,
		"pgpass":   pgpass,
		"ini":      ini,
		"base64":   func(s string) (string, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil },
		"trim":     func(s string) (string, error) { return strings.TrimSpace(s), nil },
		"upper":    func(s string) (string, error) { return strings.ToUpper(s), nil },
		"lower":    func(s string) (string, error) { return strings.ToLower(s), nil },
	}
}

// shell quotes s as one word of a POSIX shell.
func shell(s string) (string, error) {
	if strings.ContainsRune(s, 0) {
		return "", refuse("a value with a NUL byte cannot be a shell word; use base64")
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'", nil
}

// quoteJSON quotes s as a JSON string (RFC 8259), which is also a YAML 1.2
// double-quoted scalar.
func quoteJSON(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", refuse("a value that is not UTF-8 cannot be a JSON or YAML string; use base64")
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "", refuse("a value cannot be a JSON string")
	}
	return string(b), nil
}

// userinfo escapes s for the part of a URL before the "@" (RFC 3986, section
// 3.2.1): everything outside the unreserved characters is percent-encoded.
func userinfo(s string) (string, error) {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', hex[c>>4], hex[c&15]})
	}
	return b.String(), nil
}

// pgpass escapes s as a field of PostgreSQL's password file.
func pgpass(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", refuse("a value with a line break or NUL byte cannot stand in a .pgpass file")
	}
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(s), nil
}

// ini quotes s in double quotes with backslash escapes, as MySQL option files
// and systemd environment files read it.
func ini(s string) (string, error) {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return "", refuse("a value with a line break or control character cannot stand in an INI file")
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`, nil
}

// indent puts n spaces before every line of s but the first.
func (x *execution) indent(n int, s string) (string, error) {
	if n < 0 || n > 64 {
		return "", refuse("indent takes 0 to 64 spaces")
	}
	if err := x.spend(len(s) + n*strings.Count(s, "\n")); err != nil {
		return "", err
	}
	return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", n)), nil
}

// print joins texts and numbers.
func (x *execution) print(args ...any) (string, error) {
	var b strings.Builder
	for _, arg := range args {
		s, err := plain(arg)
		if err != nil {
			return "", err
		}
		if err := x.spend(len(s)); err != nil {
			return "", err
		}
		b.WriteString(s)
	}
	return b.String(), nil
}

// printf knows the verbs %s, %d, %v, %q and %% without flags, so that the
// length of its result is bounded by its arguments.
func (x *execution) printf(format string, args ...any) (string, error) {
	if err := x.spend(len(format)); err != nil {
		return "", err
	}
	var b strings.Builder
	next := 0
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		if i == len(format) || strings.IndexByte("sdvq%", format[i]) < 0 {
			return "", refuse("printf knows %%s, %%d, %%v, %%q and %%%% without flags or width")
		}
		if format[i] == '%' {
			b.WriteByte('%')
			continue
		}
		if next == len(args) {
			return "", refuse("printf has more verbs than arguments")
		}
		s, err := plain(args[next])
		if err != nil {
			return "", err
		}
		next++
		if err := x.spend(expansion * len(s)); err != nil {
			return "", err
		}
		if format[i] == 'q' {
			s = strconv.Quote(s)
		}
		b.WriteString(s)
	}
	if next != len(args) {
		return "", refuse("printf has fewer verbs than arguments")
	}
	return b.String(), nil
}

func plain(arg any) (string, error) {
	switch v := arg.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case int:
		return strconv.Itoa(v), nil
	case uint64:
		return strconv.FormatUint(v, 10), nil
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), nil
	default:
		return "", refuse("only texts and numbers can be printed; name a field, for example (key \"prod/orders/db\").password")
	}
}
