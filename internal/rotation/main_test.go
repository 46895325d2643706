package rotation

import (
	"flag"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write docs/state-machine.md and histories that are missing")
	os.Exit(m.Run())
}
