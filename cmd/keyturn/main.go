// Command keyturn rotates keys without outages: server, gateway, agent and command line
// in one program.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	_ "time/tzdata" // windows name time zones, whatever the machine knows

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/engine"
	"github.com/keyturn/keyturn/internal/harden"
	"github.com/keyturn/keyturn/internal/server"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	drivers := server.Drivers()
	names := make([]string, 0, len(drivers))
	for name := range drivers {
		names = append(names, name)
	}
	slices.Sort(names)
	return int(cli.Main(ctx, cli.Config{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(), Version: version,
		Server: runServer, Gateway: runGateway, MoveStore: runMove, KEKs: runKEKs, Restore: runRestore, VerifyBackup: runVerifyBackup, TestProvider: runProviderTest, Dev: runDev, Demo: runDemo,
		CheckConfig: engine.CheckConfig(drivers), Providers: names,
	}))
}

// protect keeps secrets out of core dumps.
func protect() error { return harden.Process() }
