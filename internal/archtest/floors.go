package archtest

// Keyturn returns the rules of Keyturn itself. docs/design/0002-floors.md gives
// the reasons; a new folder gets a line here first.
func Keyturn() Rules {
	return exceptions(Rules{MaxLines: 800, Floors: floors()})
}

func floors() []Place {
	none := []string{}
	words := []string{"key", "secret"}
	return []Place{
		// 0: the words that everything else is said in.
		{Path: "key", Floor: 0, Only: none, Foreign: none, Pure: true, NoContext: true},
		{Path: "secret", Floor: 0, Only: none, Foreign: none},

		// 1: what is decided, as functions of values.
		{Path: "internal/rotation", Floor: 1, Only: []string{"key"}, Foreign: none, Pure: true, NoContext: true},
		{Path: "internal/policy", Floor: 1, Only: words, Beside: []string{"internal/spelling"}, Pure: true, Foreign: []string{
			"github.com/goccy/go-yaml", "cel.dev", "github.com/google/cel-go", "google.golang.org/protobuf",
			"google.golang.org/genproto", "github.com/netresearch/go-cron", "github.com/invopop/jsonschema", "github.com/pb33f/ordered-map",
		}},
		{Path: "internal/anomaly", Floor: 1, Only: words, Beside: []string{"internal/policy"}, Foreign: none, Pure: true, NoContext: true},
		{Path: "internal/audit", Floor: 1, Only: words, Pure: true, Foreign: []string{"golang.org/x/mod"}},
		{Path: "internal/evidence", Floor: 1, Only: []string{"key"}, Beside: []string{"internal/audit"}, Foreign: []string{"golang.org/x/mod"}},
		{Path: "internal/authz", Floor: 1, Only: words, Foreign: none, Pure: true, NoContext: true},
		// Beside them, what knows nothing of keys.
		{Path: "internal/keytable", Floor: 1, Only: []string{"key"}, Foreign: none, Pure: true, NoContext: true},
		{Path: "internal/grant", Floor: 1, Only: none, Foreign: none, Pure: true, NoContext: true},
		{Path: "internal/dpop", Floor: 1, Only: none, Foreign: []string{"github.com/go-jose/go-jose"}, Pure: true, NoContext: true},
		{Path: "internal/webtoken", Floor: 1, Only: none, Foreign: []string{"github.com/go-jose/go-jose"}, Pure: true, NoContext: true},
		{Path: "internal/spelling", Floor: 1, Only: none, Foreign: none, Pure: true, NoContext: true},
		{Path: "internal/forwarded", Floor: 1, Only: []string{"secret"}, Foreign: none, NoContext: true},
		{Path: "internal/configfile", Floor: 1, Only: none, Foreign: []string{"github.com/goccy/go-yaml"}},
		{Path: "internal/egress", Floor: 1, Only: none, Foreign: none},
		{Path: "internal/harden", Floor: 1, Only: none, Foreign: []string{"golang.org/x/sys"}},
		{Path: "internal/logging", Floor: 1, Only: none, Beside: []string{"internal/configfile"}, Foreign: none},
		{Path: "internal/passfile", Floor: 1, Only: none, Foreign: none},
		{Path: "internal/datadir", Floor: 1, Only: none, Foreign: none},
		{Path: "internal/pgserver", Floor: 1, Only: none},
		{Path: "internal/mutant", Floor: 1, Only: none, Foreign: none, ForTests: true},

		// 2: interfaces to the world, and what implements them.
		{Path: "provider", Floor: 2, Only: words, Foreign: none},
		{Path: "provider/providerconf", Floor: 2, Only: words, Beside: []string{"provider"}, Foreign: none},
		{Path: "provider/conformance", Floor: 2, Only: words, Beside: []string{"provider"}, Foreign: none},
		{Path: "provider/providertest", Floor: 2, Only: words, Beside: []string{"provider", "provider/conformance"}, Foreign: none, ForTests: true},
		{Path: "internal/provider", Floor: 2, Only: append([]string{"internal/keytable", "internal/passfile", "internal/grant"}, words...), Beside: []string{"provider", "provider/providerconf"}, Apart: true},
		{Path: "internal/store", Floor: 2, Only: []string{"key", "internal/passfile"}, Apart: true},
		{Path: "internal/store/storetest", Floor: 2, Only: []string{"key"}, Beside: []string{"internal/store"}, ForTests: true},
		{Path: "internal/keeper", Floor: 2, Only: words, Apart: true},
		{Path: "internal/sealed", Floor: 2, Only: words, Beside: []string{"internal/store", "internal/keeper"}, Foreign: none},
		{Path: "internal/keeper/keepertest", Floor: 2, Only: words, Beside: []string{"internal/keeper"}, ForTests: true},

		// 3: where the decisions take effect. The engine knows interfaces only; the hub
		// and the data-plane services meet it in the store.
		{Path: "internal/engine", Floor: 3, Only: interfaces()},
		{Path: "internal/engine/enginetest", Floor: 3, Beside: []string{"internal/engine"}, ForTests: true},
		{Path: "internal/hub", Floor: 3, Only: interfaces(), Beside: []string{"internal/engine"}},
		{Path: "internal/identity", Floor: 3, Only: interfaces()},
		{Path: "internal/backup", Floor: 3, Only: []string{"key", "internal/audit", "internal/store"}},
		{Path: "internal/emergency", Floor: 3, Only: interfaces(), Beside: []string{"internal/engine"}},
		{Path: "internal/transit", Floor: 3, Only: interfaces()},
		{Path: "internal/pki", Floor: 3, Only: interfaces()},
		{Path: "internal/token", Floor: 3, Only: append([]string{"internal/webtoken"}, interfaces()...)},
		{Path: "internal/apikey", Floor: 3, Only: interfaces()},
		{Path: "internal/notices", Floor: 3, Only: interfaces()},
		{Path: "internal/handout", Floor: 3, Only: interfaces()},
		{Path: "internal/broker", Floor: 3, Only: append([]string{"internal/grant", "internal/dpop", "internal/webtoken"}, interfaces()...), Beside: []string{"internal/token"}},
		{Path: "gen", Floor: 3, Only: none},

		// 4: thin transports.
		{Path: "internal/rpc", Floor: 4, Only: append([]string{"gen/...", "internal/forwarded"}, transports()...)},
		{Path: "internal/compat", Floor: 4, Only: append([]string{"internal/keytable"}, transports()...), Apart: true},
		{Path: "internal/console", Floor: 4, Only: transports()},
		{Path: "internal/ingress", Floor: 4, Only: []string{"internal/configfile", "internal/datadir"}, Foreign: []string{"connectrpc.com/connect", "golang.org/x/time", "golang.org/x/sys"}},
		{Path: "internal/signals", Floor: 4, Only: transports()},

		// 5: the wiring, the only place that names implementations.
		{Path: "internal/server", Floor: 5},
		{Path: "internal/server/servertest", Floor: 5, Only: none, Foreign: none, ForTests: true},

		// The outer side: it speaks to the server through gen and the network alone.
		{Path: "client", Floor: 6, Only: append([]string{"gen/...", "internal/keytable", "internal/dpop", "internal/webtoken"}, words...), Never: inner()},
		{Path: "client/clienttest", Floor: 6, Only: append([]string{"gen/..."}, words...), Beside: []string{"client"}, Never: inner(), ForTests: true},
		{Path: "client/apikeycheck/cachetest", Floor: 6, Only: none, Foreign: none, Beside: []string{"client/apikeycheck"}, Never: inner(), ForTests: true},
		{Path: "internal/scan", Floor: 7, Only: append([]string{"internal/keytable"}, words...), Never: inner()},
		{Path: "internal/agent", Floor: 7, Only: append([]string{"client", "client/tokensource", "internal/harden", "internal/spelling", "gen/..."}, words...), Never: inner()},
		// The gateway is a client of the centre, and to its region what the server is: it
		// keeps a store of its own, and reaches the engine over the network only.
		{Path: "internal/gateway", Floor: 7, Only: append([]string{
			"client/...", "gen/...", "internal/apikey", "internal/authz", "internal/compat/apikeys", "internal/configfile", "internal/datadir", "internal/forwarded", "internal/harden", "internal/ingress",
			"internal/keeper/...", "internal/keytable", "internal/logging", "internal/sealed", "internal/spelling", "internal/store/...", "internal/webtoken",
		}, words...)},
		{
			Path: "internal/cli", Floor: 8, Never: inner(),
			Only: append([]string{"client", "gen/...", "internal/agent/...", "internal/scan", "internal/harden", "internal/spelling", "internal/policy", "internal/audit", "internal/authz", "internal/evidence", "internal/rotation"}, words...),
		},
		{Path: "internal/demo", Floor: 8},
		{Path: "cmd", Floor: 9},
		{Path: "internal/sim", Floor: 9, ForTests: true},

		// Beside the floors: tests across packages, and what looks after the source.
		{Path: "test", Floor: 10, ForTests: true},
		{Path: "examples", Floor: 10, Only: append([]string{"client/...", "client/clienttest", "provider", "provider/providerconf", "provider/providertest", "gen/..."}, words...)},
		{Path: "internal/archtest", Floor: 10, Only: none, Foreign: none},
		{Path: "internal/doccheck", Floor: 10, Only: none, Foreign: none},
		{Path: "scripts", Floor: 10, Only: none, Foreign: none},
	}
}

// interfaces is what the engine and its neighbours may import: decisions and
// interfaces, no implementation of any.
func interfaces() []string {
	return []string{
		"key", "secret", "internal/rotation", "internal/policy", "internal/anomaly", "internal/audit", "internal/authz",
		"internal/keytable", "provider", "internal/store", "internal/keeper", "internal/sealed",
	}
}

// transports is what transports may import: no store, no keeper, no provider.
func transports() []string {
	return []string{
		"key", "secret", "internal/rotation", "internal/policy", "internal/anomaly", "internal/audit", "internal/authz",
		"internal/engine", "internal/hub", "internal/identity", "internal/emergency", "internal/transit", "internal/pki", "internal/token", "internal/apikey", "internal/broker", "internal/notices", "internal/handout",
	}
}

// inner is what the outer side must never reach, not even through others.
func inner() []string {
	return []string{
		"internal/engine", "internal/hub", "internal/identity", "internal/emergency", "internal/store", "internal/keeper", "internal/provider",
		"internal/rpc", "internal/server", "internal/gateway",
	}
}
