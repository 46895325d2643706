package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/provider/postgres"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
)

func TestConformance(t *testing.T) {
	for _, strategy := range []string{"alternating-users", "single-user"} {
		t.Run(strategy, func(t *testing.T) {
			p := sharedPair(t)
			providertest.Run(t, func(t *testing.T) providertest.Target { return conformanceTarget(t, p, strategy) })
		})
	}
}

func conformanceTarget(t *testing.T, p pair, strategy string) providertest.Target {
	t.Parallel()
	tg := newTarget(t, p, strategy)
	return providertest.Target{
		Driver: postgres.New(), Config: tg.config, Env: tg.env, Key: tg.name,
		Use: func(ctx context.Context, endpoint string, v provider.Version) (providertest.Use, error) {
			conn, err := connect(ctx, tg.server(endpoint), v, "conformance")
			return use{conn}, err
		},
		Silence: func(_ *testing.T, endpoint string) func() {
			tg.proxies[endpoint].Cut()
			return tg.proxies[endpoint].Restore
		},
		Output: p.logs,
	}
}

type use struct{ conn *pgx.Conn }

func (u use) Alive(ctx context.Context) bool {
	_, err := u.conn.Exec(ctx, "SELECT 1")
	return err == nil
}

func (u use) Close() error { return u.conn.Close(context.Background()) }
