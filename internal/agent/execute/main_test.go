package execute_test

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// TestMain handles SIGHUP, as the command line does: a process that was started
// with it ignored, for instance by nohup, would hand that on to its programs.
func TestMain(m *testing.M) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(m.Run())
}
