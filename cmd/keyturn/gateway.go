package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/gateway"
)

func runGateway(ctx context.Context, o cli.ServerOptions) (err error) {
	config, err := gateway.LoadConfig(o.ConfigFile)
	if err != nil {
		return err
	}
	if err := protect(); err != nil {
		return err
	}
	g, err := gateway.Start(ctx, config, gateway.Options{LogTo: o.Stderr})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		err = errors.Join(err, g.Stop(stopping))
	}()
	if _, err := io.WriteString(o.Stderr, fmt.Sprintf("The gateway answers at %s.\n", g.Address())); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.Failed():
		return fmt.Errorf("the gateway ended by itself: %w", err)
	}
}
