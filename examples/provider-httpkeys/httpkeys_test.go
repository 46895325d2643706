package httpkeys_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	httpkeys "github.com/keyturn/keyturn/examples/provider-httpkeys"
	"github.com/keyturn/keyturn/provider"
)

func open(t *testing.T, config provider.Config) provider.System {
	t.Helper()
	system, err := httpkeys.Driver{}.Open(t.Context(), config, provider.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return system
}

// accepted mints version 1 and has every region accept it.
func accepted(t *testing.T, system provider.System, regions ...string) provider.Version {
	t.Helper()
	call := provider.Call{Key: "prod/orders/api", Fence: 1}
	material, err := system.Mint(t.Context(), call, provider.MintRequest{Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	version := provider.Version{Number: 1, Material: material}
	for _, region := range regions {
		if err := system.Accept(t.Context(), call, region, version); err != nil {
			t.Fatal(err)
		}
	}
	return version
}

// The suite cannot know how a client uses a key that has no sessions, so this is
// tested here: clients are counted and named, our own tries are not.
func TestUsageNamesClients(t *testing.T) {
	_, config := start(t, "eu", "us")
	system := open(t, config)
	version := accepted(t, system, "eu", "us")
	call := provider.Call{Key: "prod/orders/api", Fence: 2}

	url, _ := config["regions"].(map[string]any)["us"].(string)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/whoami", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Api-Key", version.Material.Secrets["key"].RevealString())
	request.Header.Set("User-Agent", "billing")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("the client got status %d, %v", response.StatusCode, err)
	}
	if _, err := system.Probe(t.Context(), call, "us", version); err != nil {
		t.Fatal(err)
	}

	usage, err := system.(provider.Meter).Usage(t.Context(), call, version)
	want := provider.Holder{Endpoint: "us", Application: "billing", Sessions: 1}
	if err != nil || usage.Sessions != 1 || len(usage.Holders) != 1 || usage.Holders[0] != want {
		t.Errorf("got %+v, %v; want one use, by %+v", usage, err, want)
	}
}

// A call that lost its lease and wakes up late must not undo a newer one.
func TestLateCallIsFenced(t *testing.T) {
	_, config := start(t, "eu")
	system := open(t, config)
	version := accepted(t, system, "eu")
	newer := provider.Call{Key: "prod/orders/api", Fence: 9}
	if err := system.Accept(t.Context(), newer, "eu", version); err != nil {
		t.Fatal(err)
	}
	late := provider.Call{Key: "prod/orders/api", Fence: 8}
	if err := system.Refuse(t.Context(), late, "eu", version); err == nil {
		t.Error("a late Refuse was carried out")
	}
	if verdict, err := system.Probe(t.Context(), newer, "eu", version); verdict != provider.Accepted {
		t.Errorf("after the late call the version is %v, %v", verdict, err)
	}
}

func TestOtherAnswersAreNoVerdict(t *testing.T) {
	system := open(t, provider.Config{"adminTokenFile": "unused", "regions": map[string]any{"eu": "http://127.0.0.1:1"}})
	verdict, err := system.Probe(context.Background(), provider.Call{}, "eu", provider.Version{})
	if verdict != 0 || err == nil {
		t.Errorf("a service that is not there: got %v, %v; want an error", verdict, err)
	}
}

func TestConfigProblemsAreAllNamed(t *testing.T) {
	_, err := httpkeys.Driver{}.Check(provider.Config{"regionz": 1.0, "regions": map[string]any{"eu": "ftp://x", "us": 7.0}})
	for _, place := range []string{"adminTokenFile", "regionz", "regions.eu", "regions.us"} {
		if err == nil || !strings.Contains(err.Error(), place+": ") {
			t.Errorf("%s is not named in: %v", place, err)
		}
	}
	if problem := new(provider.ConfigError); !errors.As(err, &problem) || problem.Hint == "" {
		t.Errorf("got %T, want *provider.ConfigError with a hint", err)
	}
}

// The admin API refuses us: repeating cannot help, and the hint says what would.
func TestRefusedAdminIsPermanent(t *testing.T) {
	gateways, config := start(t, "eu")
	gateways["eu"].adminToken = "another"
	system := open(t, config)
	err := system.Accept(t.Context(), provider.Call{Key: "prod/orders/api", Fence: 1}, "eu", provider.Version{Number: 1})
	if !provider.IsPermanent(err) || !strings.Contains(err.Error(), "adminTokenFile") {
		t.Errorf("got %v, want a permanent error with a hint", err)
	}
}
