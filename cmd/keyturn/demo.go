package main

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/demo"
)

func runDemo(ctx context.Context, o cli.DemoOptions) error {
	options := demo.Options{Progress: o.Stdout, Live: o.Live}
	if o.JSON {
		options.Progress, options.Live = nil, false
	}
	summary, err := demo.Run(ctx, options)
	if o.JSON {
		encoder := json.NewEncoder(o.Stdout)
		encoder.SetIndent("", "  ")
		if printErr := encoder.Encode(summary); printErr != nil {
			return printErr
		}
	} else if printErr := summary.Print(o.Stdout); printErr != nil {
		return printErr
	}
	if err != nil {
		return errors.Join(cli.ErrFailed, err)
	}
	return nil
}
