package cli

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) getCommand() *cobra.Command {
	var version uint64
	var label, field string
	c := a.action("get NAME", "Print the fields of a version, secrets included", func(cmd *cobra.Command, args []string) error {
		return a.get(cmd, &keyturnv1.GetSecretRequest{Name: args[0], Version: version, Label: label}, field)
	})
	c.Long = `Prints the public and the secret fields of one version to standard output, and
nothing else there. The server enters every read into the audit log.

With --field the bare value is printed, followed by a line feed only on a
terminal. Applications should rather use keyturn agent, keyturn exec or the SDK,
which also bring them the next version.`
	c.Example = "  keyturn get prod/orders/db\n  PGPASSWORD=$(keyturn get prod/orders/db --field password) psql"
	c.Flags().Uint64Var(&version, "version", 0, "the `NUMBER` of the version; default: the current one")
	c.Flags().StringVar(&label, "label", "", "the version with this `LABEL`: current, previous or pending")
	c.Flags().StringVar(&field, "field", "", "only the field `NAME`")
	c.ValidArgsFunction = a.completeKeys
	a.choices(c, "label", "current", "previous", "pending")
	return c
}

// material is a version in JSON. A secret that is no text is in SecretsBase64.
type material struct {
	Key           string            `json:"key"`
	Version       uint64            `json:"version"`
	Attributes    map[string]string `json:"attributes"`
	Secrets       map[string]string `json:"secrets"`
	SecretsBase64 map[string]string `json:"secretsBase64,omitempty"`
}

func (a *app) get(cmd *cobra.Command, request *keyturnv1.GetSecretRequest, field string) error {
	if cmd.Flags().Changed("version") && request.GetVersion() == 0 {
		return usage("see keyturn key versions "+request.GetName(), "--version: versions count from 1")
	}
	if request.GetLabel() != "" {
		if request.GetVersion() != 0 {
			return usage("name one of them", "--version and --label exclude each other")
		}
		if err := oneOf("label", request.GetLabel(), "current", "previous", "pending"); err != nil {
			return err
		}
	}
	api, err := a.control()
	if err != nil {
		return err
	}
	response, err := api.GetSecret(cmd.Context(), request)
	if err != nil {
		return err
	}
	if field != "" {
		return a.getField(request.GetName(), response, field)
	}
	m := material{Key: request.GetName(), Version: response.GetVersion(), Attributes: map[string]string{}, Secrets: map[string]string{}, SecretsBase64: map[string]string{}}
	maps.Copy(m.Attributes, response.GetAttributes())
	for name, value := range response.GetSecrets() {
		if utf8.Valid(value) {
			m.Secrets[name] = string(value)
		} else {
			m.SecretsBase64[name] = base64.StdEncoding.EncodeToString(value)
		}
	}
	return a.result(m, func(w io.Writer) {
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(response.GetAttributes())) {
			pairs = append(pairs, name, shown(response.GetAttributes()[name]))
		}
		for _, name := range slices.Sorted(maps.Keys(response.GetSecrets())) {
			pairs = append(pairs, name, shown(string(response.GetSecrets()[name])))
		}
		fields(w, pairs...)
	})
}

// shown is a value in one line: as it is, or quoted as in Go when it would not fit.
func shown(s string) string {
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

func (a *app) getField(name string, response *keyturnv1.GetSecretResponse, field string) error {
	value, ok := response.GetSecrets()[field]
	if text, public := response.GetAttributes()[field]; public && !ok {
		value, ok = []byte(text), true
	}
	if !ok {
		known := slices.AppendSeq(slices.Collect(maps.Keys(response.GetAttributes())), maps.Keys(response.GetSecrets()))
		slices.Sort(known)
		return fail(ExitNotFound, "it has "+strings.Join(known, ", "), "version %d of %s has no field %q", response.GetVersion(), name, field)
	}
	if a.wantsJSON() {
		return a.result(struct {
			Key     string `json:"key"`
			Version uint64 `json:"version"`
			Field   string `json:"field"`
			Value   string `json:"value,omitempty"`
			Base64  string `json:"valueBase64,omitempty"`
		}{name, response.GetVersion(), field, textOnly(value), binaryOnly(value)}, nil)
	}
	if isTerminal(a.config.Stdout) {
		value = append([]byte(shown(string(value))), '\n')
	}
	if _, err := a.config.Stdout.Write(value); err != nil {
		return fmt.Errorf("write the field: %w", err)
	}
	return nil
}

func textOnly(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return ""
}

func binaryOnly(b []byte) string {
	if utf8.Valid(b) {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b)
}
