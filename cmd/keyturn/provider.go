package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/server"
)

// runProviderTest tries plugins.
func runProviderTest(ctx context.Context, o cli.ProviderTestOptions) error {
	if err := protect(); err != nil {
		return err
	}
	config, err := server.LoadConfig(o.ConfigFile)
	if err != nil {
		return err
	}
	test := server.PluginTest{Plugin: o.Plugin, File: o.KeyFile, Key: o.Key}
	var printErr error
	if !o.JSON {
		test.Done = func(r server.PluginResult) {
			printErr = errors.Join(printErr, server.PrintPluginResult(o.Stdout, r))
		}
	}
	results, err := server.TestPlugins(ctx, config, test)
	if err = errors.Join(err, printErr); err != nil {
		return err
	}
	count := map[string]int{}
	for _, r := range results {
		count[r.Outcome]++
	}
	if o.JSON {
		err = writeJSON(o.Stdout, results)
	} else {
		_, err = fmt.Fprintf(o.Stdout, "%d passed, %d failed, %d skipped\n", count["passed"], count["failed"], count["skipped"])
	}
	if err != nil {
		return err
	}
	if count["failed"] > 0 {
		return cli.ErrFailed
	}
	return nil
}
