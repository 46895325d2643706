package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/server"
)

// runMove moves an installation to another store.
func runMove(ctx context.Context, o cli.MoveOptions) error {
	if err := protect(); err != nil {
		return err
	}
	config, err := server.LoadConfig(o.ConfigFile)
	if err != nil {
		return err
	}
	report, err := server.Move(ctx, config)
	if err != nil {
		return err
	}
	if o.JSON {
		encoder := json.NewEncoder(o.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	if len(report.Tables) == 0 {
		_, err := fmt.Fprintf(o.Stdout, "%s had been copied to %s before; the move is finished.\n", report.Source, report.Destination)
		return err
	}
	table := tabwriter.NewWriter(o.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tSOURCE\tDESTINATION\tSHA-256 OF BOTH")
	for _, t := range report.Tables {
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", t.Name, t.Source, t.Destination, t.SHA256)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(o.Stdout, "The audit log of %d entries is verified at the destination; %d of them are signed.\n%s has moved to %s and cannot be started any more.\nStart the server with the same configuration.\n",
		report.Entries, report.Proven, report.Source, report.Destination)
	return err
}
