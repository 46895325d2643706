package real

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMain lets this program be other programs too: what a test starts as a
// process of its own says so in the environment.
func TestMain(m *testing.M) {
	if path := os.Getenv(appVariable); path != "" {
		os.Exit(fileApplication(path))
	}
	if config := os.Getenv(serverVariable); config != "" {
		os.Exit(childServer(config))
	}
	if path := os.Getenv(gatewayVariable); path != "" {
		os.Exit(childGateway(path))
	}
	if path := os.Getenv(agentVariable); path != "" {
		os.Exit(childAgent(path))
	}
	if command := os.Getenv(storeVariable); command != "" {
		os.Exit(childStore(command))
	}
	if argument := os.Getenv(callsVariable); argument != "" {
		os.Exit(makeCalls(argument))
	}
	if os.Getenv(commandVariable) != "" && filepath.Base(os.Args[0]) == "keyturn" {
		os.Exit(command())
	}
	os.Exit(m.Run())
}
