package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) partyCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use: "party", Short: "List and remove agents and clients",
		Long: "A party presents keys: an agent, a client of the SDK, or keyturn exec. Rotations\nwait for those that are registered.",
	}, a.partyListCommand(), a.partyRemoveCommand())
}

func (a *app) partyListCommand() *cobra.Command {
	var key string
	c := a.action("list", "List parties, and which version each uses", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		list, err := everyPage(0, func(token string) ([]*keyturnv1.PartyStatus, string, error) {
			response, err := api.ListParties(cmd.Context(), &keyturnv1.ListPartiesRequest{Key: key, PageSize: maxPage, PageToken: token})
			return response.GetParties(), response.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		return a.result(messages(list), func(w io.Writer) {
			var rows [][]string
			for _, p := range list {
				rows = append(rows, a.partyRows(p)...)
			}
			a.list(w, "PARTY|KIND|REGION|LABELS|CONNECTION|KEY|TOLD|USES|TROUBLE", rows, "no parties")
		})
	})
	c.Flags().StringVar(&key, "key", "", "only parties of the key `NAME`")
	a.completeFlag(c, "key", a.keyNames)
	return c
}

// partyRows is a row for each key of a party, at least one.
func (a *app) partyRows(p *keyturnv1.PartyStatus) [][]string {
	connection := "connected"
	if !p.GetConnected() {
		connection = "away"
		if p.GetLastSeen() != nil {
			connection = "away since " + a.since(p.GetLastSeen())
		}
	}
	if p.GetGateway() != "" {
		connection += ", through " + p.GetGateway()
	}
	party := p.GetParty()
	kind := strings.ToLower(strings.TrimPrefix(party.GetKind().String(), "PARTY_KIND_"))
	start := []string{party.GetId(), kind, party.GetRegion(), pairsOf(party.GetLabels()), connection}
	var rows [][]string
	for _, k := range p.GetKeys() {
		rows = append(rows, append(start[:len(start):len(start)], k.GetKey(), version(k.GetTold()), version(k.GetUsing()), k.GetTrouble()))
	}
	if len(rows) == 0 {
		rows = append(rows, append(start, "", "", "", ""))
	}
	return rows
}

func (a *app) partyRemoveCommand() *cobra.Command {
	var reason string
	c := a.action("remove PARTY", "Remove a party that will not come back; rotations no longer wait for it", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		if _, err := api.RemoveParty(cmd.Context(), &keyturnv1.RemovePartyRequest{Id: args[0], Reason: reason}); err != nil {
			return err
		}
		return a.result(struct {
			Party string `json:"party"`
		}{args[0]}, func(w io.Writer) { fmt.Fprintf(w, "removed %s\n", clean(args[0])) })
	})
	c.Flags().StringVar(&reason, "reason", "", "the `TEXT` that tells the audit log why")
	return c
}
