package httpkeys_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	httpkeys "github.com/keyturn/keyturn/examples/provider-httpkeys"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
)

// start runs a gateway in each region and returns the config of a key there.
func start(t *testing.T, regions ...string) (map[string]*gateway, provider.Config) {
	t.Helper()
	const adminToken = "only-for-admins"
	file := filepath.Join(t.TempDir(), "admin")
	if err := os.WriteFile(file, []byte(adminToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gateways, urls := map[string]*gateway{}, map[string]any{}
	for _, region := range regions {
		gateways[region] = newGateway(adminToken)
		server := httptest.NewServer(gateways[region])
		t.Cleanup(server.Close)
		urls[region] = server.URL
	}
	return gateways, provider.Config{"adminTokenFile": file, "regions": urls}
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		gateways, config := start(t, "eu", "us")
		return providertest.Target{
			Driver: httpkeys.Driver{}, Config: config, Key: "prod/orders/api",
			Silence: func(t *testing.T, endpoint string) func() {
				restore := gateways[endpoint].silence()
				t.Cleanup(restore)
				return restore
			},
		}
	})
}
