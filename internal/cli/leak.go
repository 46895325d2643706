package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) leakCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "leak", Short: "List secrets in use that were found where they should not be"}, a.leakListCommand())
}

func (a *app) leakListCommand() *cobra.Command {
	limit := 0
	c := a.action("list", "List leaked versions that may still be accepted somewhere", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		list, err := everyPage(limit, func(token string) ([]*keyturnv1.Leak, string, error) {
			response, err := api.ListLeaks(cmd.Context(), &keyturnv1.ListLeaksRequest{PageSize: maxPage, PageToken: token})
			return response.GetLeaks(), response.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		return a.result(messages(list), func(w io.Writer) {
			var rows [][]string
			for _, l := range list {
				does := l.GetAction()
				if l.GetRotationId() != "" {
					does += " " + shortID(l.GetRotationId())
				}
				rows = append(rows, []string{l.GetKey(), version(l.GetVersion()), a.since(l.GetFirstAt()), a.since(l.GetLastAt()), fmt.Sprint(l.GetTimes()), does, l.GetPlace()})
			}
			a.list(w, "KEY|VERSION|FOUND|LAST|TIMES|THEN|PLACE", rows, "no leaked version is accepted anywhere")
		})
	})
	c.Long = `Scans with --match and GitHub's messages find them. THEN is what the key's policy had
done, with the rotation that replaces the version. What is refused everywhere is not
listed; the audit log keeps it (leak.found).`
	c.Flags().IntVar(&limit, "limit", defaultList, "the `NUMBER` to list; 0: all")
	return c
}
