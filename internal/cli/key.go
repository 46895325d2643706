package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) keyCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "key", Short: "List and show keys and their versions"},
		a.keyListCommand(),
		a.onKey("show NAME", "Show a key", a.printKey),
		a.onKey("versions NAME", "List the versions of a key", nil),
	)
}

func (a *app) keyListCommand() *cobra.Command {
	var prefix string
	c := a.action("list", "List keys", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		list, err := everyPage(0, func(token string) ([]*keyturnv1.Key, string, error) {
			response, err := api.ListKeys(cmd.Context(), &keyturnv1.ListKeysRequest{Prefix: prefix, PageSize: maxPage, PageToken: token})
			return response.GetKeys(), response.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		return a.result(messages(list), func(w io.Writer) {
			var rows [][]string
			for _, k := range list {
				rows = append(rows, []string{k.GetName(), k.GetProvider(), k.GetPolicy(), version(k.GetCurrent()), a.since(k.GetCurrentSince()), a.next(k), fmt.Sprint(len(k.GetRotationIds()))})
			}
			a.list(w, "KEY|PROVIDER|POLICY|CURRENT|SINCE|NEXT ROTATION|OPEN ROTATIONS", rows, "no keys; apply some with keyturn apply -f DIR")
		})
	})
	c.Flags().StringVar(&prefix, "prefix", "", "only keys whose names begin with `TEXT`")
	a.completeFlag(c, "prefix", a.keyNames)
	return c
}

// next says when a key is due.
func (a *app) next(k *keyturnv1.Key) string {
	if k.GetNextRotation() == nil {
		return ""
	}
	return a.since(k.GetNextRotation())
}

// onKey makes a command that prints a key: by text, or only its versions.
func (a *app) onKey(use, short string, text func(io.Writer, *keyturnv1.Key)) *cobra.Command {
	c := a.action(use, short, func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.GetKey(cmd.Context(), &keyturnv1.GetKeyRequest{Name: args[0]})
		if err != nil {
			return err
		}
		if text != nil {
			return a.result(response.GetKey(), func(w io.Writer) { text(w, response.GetKey()) })
		}
		return a.result(messages(response.GetKey().GetVersions()), func(w io.Writer) {
			a.list(w, versionHeader, a.versionRows(response.GetKey()), "no versions yet; keyturn rotate "+args[0]+" makes one")
		})
	})
	c.ValidArgsFunction = a.completeKeys
	return c
}

const versionHeader = "VERSION|STATE|LABEL|CREATED|ATTRIBUTES|ROTATION"

func (a *app) versionRows(k *keyturnv1.Key) [][]string {
	var rows [][]string
	for _, v := range k.GetVersions() {
		rows = append(rows, []string{version(v.GetNumber()), v.GetState(), v.GetLabel(), a.since(v.GetCreatedAt()), pairsOf(v.GetAttributes()), shortID(v.GetRotationId())})
	}
	return rows
}

func (a *app) printKey(w io.Writer, k *keyturnv1.Key) {
	fields(w,
		"key", k.GetName(), "owner", k.GetOwner(), "labels", pairsOf(k.GetLabels()), "provider", k.GetProvider(),
		"policy", k.GetPolicy(), "current", version(k.GetCurrent()), "since", a.since(k.GetCurrentSince()), "next rotation", a.next(k),
	)
	if k.GetStanding() != "" {
		fmt.Fprintf(w, "\nit stands still after a restore: %s\n", clean(k.GetStanding()))
		for _, difference := range k.GetDifferences() {
			fmt.Fprintf(w, "  %s\n", clean(difference))
		}
		if len(k.GetDifferences()) > 0 {
			fmt.Fprintf(w, "  settle it: keyturn reconcile %s --replace, --as-found or --as-remembered\n", clean(k.GetName()))
		}
	}
	if len(k.GetVersions()) > 0 {
		fmt.Fprintln(w, "\nversions")
		table(w, "  ", versionHeader, a.versionRows(k))
	}
	if len(k.GetRotationIds()) > 0 {
		fmt.Fprintln(w, "\nrotations that have not ended")
		for _, id := range k.GetRotationIds() {
			fmt.Fprintf(w, "  keyturn rotation show %s\n", shortID(clean(id)))
		}
	}
}
