package archtest

// exceptions adds to the rules what they leave out, each with its reason.
// The fewer the better.
func exceptions(r Rules) Rules {
	r.Plaintext = []Exception{
		{"secret", "it defines the methods"},
		{"internal/keeper", "sealing encrypts the plaintext"},
		{"internal/audit", "the signing key of checkpoints is parsed and used here"},
		{"internal/provider", "a provider hands the credential to its system"},
		{"provider/conformance", "the suite searches errors and logs for plaintext"},
		{"internal/rpc", "delivery puts the credential into the answer"},
		{"internal/identity", "a token is hashed when it is issued and when it is checked"},
		{"internal/server", "the first token and the log's signing key are written to files of mode 0600"},
		{"internal/signals", "the credential of a webhook is sent as a header"},
		{"internal/apikey", "a key is hashed to be found, and shown once to its client"},
		{"internal/compat/apikeys", "a client is shown its next key"},
		{"internal/notices", "a notice is signed by the secret of its webhook"},
		{"internal/broker", "what a client proves by is verified, once"},
		{"internal/compat/oauth", "a token is shown to the client that asked for it"},
		{"internal/token", "tokens are shown once, when they are created"},
		{"client", "the SDK sends its token and hands credentials to the application"},
		{"internal/agent", "templates are rendered with the plaintext"},
		{"internal/cli", "get and exec hand the credential to the user's process"},
		{"internal/gateway/relay", "the gateway hands credentials out as the server does, and sends tokens on"},
		{"internal/demo", "the fleet logs in with the credentials"},
		{"test", "tests search for leaks by plaintext"},
		{"examples", "they show what an application does"},
	}
	r.Clock = []Exception{
		{"cmd", "the outermost shell"},
		{"provider/conformance", "the suite measures whether real systems keep deadlines"},
		{"client", "silence and the age of connections are measured on the monotonic clock, as net does"},
		{"internal/rpc", "deadlines of connections are in real time, whatever the server's clock says"},
		{"internal/ingress", "deadlines of connections are in real time, whatever the server's clock says"},
		{"internal/server", "how long the clock of the store took to answer is in real time"},
		{"internal/cli", "progress display"},
		{"internal/demo", "progress display"},
		{"internal/pgserver", "it waits for a real process in real time"},
	}
	r.Variables = []Exception{
		{"cmd/keyturn", "the linker sets main.version"},
	}
	r.Skip = []Exception{
		{"test/real", "some sandboxes withhold the right to mount a tmpfs even from root; nothing can be installed against that"},
		{"provider/providertest", "a provider need not implement the optional interfaces"},
		{"test/pgtest", "without PostgreSQL it fails under CI=true and names scripts/install-parts elsewhere"},
	}
	return r
}
