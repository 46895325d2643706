package main

import (
	"context"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/server"
)

// runKEKs works on the key-encryption keys of a server.
func runKEKs(ctx context.Context, o cli.KEKOptions) error {
	if err := protect(); err != nil {
		return err
	}
	config, err := server.LoadConfig(o.ConfigFile)
	if err != nil {
		return err
	}
	said := ""
	switch o.Task {
	case cli.KEKList:
		return listKEKs(ctx, &o, config)
	case cli.KEKAdd:
		o.ID, err = server.AddKEK(ctx, config, o.Use)
		if said = "is added; copy the file to the other servers, then: keyturn kek use " + o.ID; o.Use {
			said = "is added, and wraps from now on"
		}
	case cli.KEKUse:
		err, said = server.UseKEK(ctx, config, o.ID), "wraps from now on"
	case cli.KEKRemove:
		err, said = server.RemoveKEK(ctx, config, o.ID), "is removed; what only backups hold under it is destroyed with the last copy of it"
	}
	if err != nil {
		return err
	}
	if o.JSON {
		return writeJSON(o.Stdout, struct {
			ID string `json:"id"`
		}{o.ID})
	}
	_, err = fmt.Fprintf(o.Stdout, "The key-encryption key %s %s.\n", o.ID, said)
	return err
}

func listKEKs(ctx context.Context, o *cli.KEKOptions, config server.Config) error {
	list, counted, err := server.ListKEKs(ctx, config)
	if err != nil {
		return err
	}
	if o.JSON {
		return writeJSON(o.Stdout, list)
	}
	table := tabwriter.NewWriter(o.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KEK\tPRIMARY\tENVELOPES")
	for _, kek := range list {
		primary, envelopes := "", "-"
		if kek.Primary {
			primary = "yes"
		}
		if kek.Envelopes != nil {
			envelopes = strconv.Itoa(*kek.Envelopes)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", kek.ID, primary, envelopes)
	}
	if err := table.Flush(); err != nil || counted {
		return err
	}
	_, err = fmt.Fprintln(o.Stdout, "Envelopes are not counted while a server has the database open.")
	return err
}
