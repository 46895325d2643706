package gateway

import (
	"context"
	"fmt"
	"math"

	"connectrpc.com/connect"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/gateway/relay"
	"github.com/keyturn/keyturn/internal/ingress"
)

// startDelivery begins to relay, and to keep what clients ask for.
func (g *Gateway) startDelivery(ctx context.Context) error {
	route, err := client.NewRoute(client.Config{Address: g.config.Centre.Address, CACertFile: g.config.Centre.CAFile, Now: g.now, Logger: g.log})
	if err != nil {
		return fmt.Errorf("%w: centre: %w", ErrConfig, err)
	}
	g.relay, err = relay.Open(ctx, relay.Config{
		Name: g.config.Name, Region: g.config.Region, Labels: g.config.Labels, Centre: route, CentreName: g.centre, Token: g.token,
		Store: g.cache, Keeper: g.keys, Now: g.now, Monotonic: g.monotonic, Logger: g.log,
		ServeFor: g.config.Delivery.ServeFor, KeepKeys: g.config.Delivery.KeepKeys, MaxStreams: g.config.Limits.Parties,
		Refused: func(context.Context) {
			g.tally.Add("tokens that the centre has not let in here before, while it does not answer")
		},
	})
	if err != nil {
		return err
	}
	g.relay.Start(ctx)
	return nil
}

// deliveryOptions bound what is read; answers hold secrets, and are not compressed.
func deliveryOptions() connect.HandlerOption {
	return connect.WithHandlerOptions(ingress.ReadAtMost(maxBody), connect.WithCompressMinBytes(math.MaxInt))
}
