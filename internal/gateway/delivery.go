package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"

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

// admitted bounds how often one token may call; without one, how often one address may.
// Whether a token is good is for the centre to say.
func admitted(gate *ingress.Gate, next http.Handler) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, token := "", r.Header.Get("Authorization")
		if token != "" {
			sum := sha256.Sum256([]byte(token))
			caller = string(sum[:])
		} else if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			caller = host
		}
		if !gate.Admit(caller) {
			err := connect.NewError(connect.CodeResourceExhausted, errors.New("too many calls with this token; wait a second"))
			err.Meta().Set("Retry-After", "1")
			_ = writer.Write(w, r, err) // the caller is gone if this fails
			return
		}
		next.ServeHTTP(w, r)
	})
}

// deliveryOptions bound what is read; answers hold secrets, and are not compressed.
func deliveryOptions() connect.HandlerOption {
	return connect.WithHandlerOptions(ingress.ReadAtMost(maxBody), connect.WithCompressMinBytes(math.MaxInt))
}
