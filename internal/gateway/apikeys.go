package gateway

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/keyturn/keyturn/client/apikeycheck"
	"github.com/keyturn/keyturn/internal/gateway/snapshot"
)

// startAPIKeys begins to verify API keys, with what the cache holds until the centre
// answers.
func (g *Gateway) startAPIKeys(ctx context.Context) error {
	roots, err := g.roots()
	if err != nil {
		return err
	}
	config := apikeycheck.Config{
		Address: g.config.Centre.Address, Token: g.token, RootCAs: roots, Name: g.config.Name, MaxAge: g.config.APIKeys.MaxAge,
		ReportEvery: g.config.APIKeys.ReportEvery, Now: g.now, Logger: g.log,
		Cache: snapshot.New(snapshot.Config{Store: g.cache, Keeper: g.keys}),
	}
	g.apiKeys = apiKeys{openLate(ctx, func(ctx context.Context) (*apikeycheck.Checker, error) { return apikeycheck.Open(ctx, config) })}
	return nil
}

func (g *Gateway) stopAPIKeys(ctx context.Context) {
	if g.apiKeys.late == nil {
		return
	}
	if checker := g.apiKeys.end(); checker != nil {
		if err := checker.Close(ctx); err != nil {
			g.log.WarnContext(ctx, "the last uses of API keys were not reported", "error", err)
		}
	}
}

// roots are the authorities of the centre; nil for the system's.
func (g *Gateway) roots() (*x509.CertPool, error) {
	path := g.config.Centre.CAFile
	if path == "" {
		return nil, nil //nolint:nilnil // that is how crypto/tls says the system's
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: centre.caFile: %w", ErrConfig, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: centre.caFile: %s holds no PEM certificate; it must hold the authority of the servers' certificates", ErrConfig, path)
	}
	return roots, nil
}
