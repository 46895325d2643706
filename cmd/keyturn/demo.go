package main

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/demo"
)

func runDemo(ctx context.Context, o cli.DemoOptions) error {
	summary, err := demo.Run(ctx, demo.Options{Progress: o.Progress, Live: o.Live, Target: o.Target, Applications: o.Applications})
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
