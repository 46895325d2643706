package cli_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/secret"
)

var update = flag.Bool("update", false, "write what is expected")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keyturn": keyturn})
}

// keyturn is the program of the scripts: the real command line, with the time of
// the tests and hooks that only tell what they were given.
func keyturn() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	config := hooks()
	config.Args, config.Environ = os.Args[1:], os.Environ()
	config.Stdin, config.Stdout, config.Stderr = os.Stdin, os.Stdout, os.Stderr
	code := cli.Main(ctx, config)
	stop()
	os.Exit(int(code))
}

func hooks() cli.Config {
	return cli.Config{
		Version: "v1.2.3-test", Now: noon, Providers: []string{"postgres"},
		Server: func(_ context.Context, o cli.ServerOptions) error {
			fmt.Fprintf(o.Stderr, "server with %s\n", o.ConfigFile)
			return nil
		},
		Gateway: func(_ context.Context, o cli.ServerOptions) error {
			fmt.Fprintf(o.Stderr, "gateway with %s\n", o.ConfigFile)
			return nil
		},
		MoveStore: func(_ context.Context, o cli.MoveOptions) error {
			fmt.Fprintf(o.Stdout, "{\"config\":%q,\"json\":%v}\n", o.ConfigFile, o.JSON)
			return nil
		},
		KEKs: func(_ context.Context, o cli.KEKOptions) error {
			fmt.Fprintf(o.Stdout, "%d %s %q %v %v\n", o.Task, o.ConfigFile, o.ID, o.Use, o.JSON)
			return nil
		},
		Restore: func(_ context.Context, o cli.RestoreOptions) error {
			fmt.Fprintf(o.Stdout, "%s %s %s %s %v\n", o.File, o.IdentityFile, o.ConfigFile, o.Keys, o.JSON)
			return nil
		},
		VerifyBackup: func(_ context.Context, o cli.VerifyBackupOptions) error {
			fmt.Fprintf(o.Stdout, "%s %s %s %v\n", o.File, o.IdentityFile, o.Keys, o.JSON)
			return nil
		},
		TestProvider: func(_ context.Context, o cli.ProviderTestOptions) error {
			fmt.Fprintf(o.Stdout, "%s %s %s %s %v\n", o.ConfigFile, o.KeyFile, o.Plugin, o.Key, o.JSON)
			return nil
		},
		Dev: func(_ context.Context, o cli.DevOptions) error {
			return o.Ready(cli.DevServer{Address: "https://" + o.Listen, CACert: "/tmp/it's/ca.pem", Token: secret.NewString("kt-root"), Dir: o.Dir, AuditKey: "log+0+key"})
		},
		Demo: func(_ context.Context, o cli.DemoOptions) error {
			fmt.Fprintf(o.Stdout, "{\"json\":%v}\n", o.JSON)
			return errors.Join(cli.ErrFailed)
		},
		CheckConfig: func(_ string, config map[string]any) (policy.Topology, []policy.ConfigProblem) {
			if config["admin"] == nil {
				return policy.Topology{}, []policy.ConfigProblem{{Path: "admin", Problem: "it is missing", Hint: "write an address"}}
			}
			return policy.Topology{}, nil
		},
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true, UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			f, address, caCert := startFake(t, e.WorkDir)
			e.Setenv("VERIFIER", f.log.signer.VerifierKey())
			e.Setenv("FOREIGN", newMemoryLog(t).signer.VerifierKey())
			e.Setenv("KEYTURN_ADDR", address)
			e.Setenv("KEYTURN_CACERT", caCert)
			e.Setenv("KEYTURN_TOKEN", adminToken)
			e.Setenv("HOME", e.WorkDir+"/home")
			e.Setenv("VIEWER", viewerToken)
			return nil
		},
		Cmds: commands(),
	})
}

// commands are what scripts may use beside the usual.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		// exitcode CODE COMMAND...: the command ends with that code.
		"exitcode": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < 2 {
				ts.Fatalf("usage: exitcode CODE COMMAND...")
			}
			err := ts.Exec(args[1], args[2:]...)
			code := 0
			if exit := (interface{ ExitCode() int })(nil); errors.As(err, &exit) {
				code = exit.ExitCode()
			}
			if fmt.Sprint(code) != args[0] {
				ts.Fatalf("exit code %d (%v), want %s", code, err, args[0])
			}
		},
		// replace FILE OLD NEW changes a file.
		"replace": func(ts *testscript.TestScript, _ bool, args []string) {
			content := ts.ReadFile(args[0])
			if !strings.Contains(content, args[1]) {
				ts.Fatalf("%s does not contain %q", args[0], args[1])
			}
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(content, args[1], args[2], 1)), 0o600))
		},
		// mode FILE MODE checks permissions.
		"mode": func(ts *testscript.TestScript, _ bool, args []string) {
			info, err := os.Stat(ts.MkAbs(args[0]))
			ts.Check(err)
			if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
				ts.Fatalf("mode of %s is %s, want %s", args[0], got, args[1])
			}
		},
	}
}

// output is what a command printed.
type output struct {
	code           cli.Exit
	stdout, stderr string
}

// runIn runs one command in this process.
func runIn(ctx context.Context, environ []string, args ...string) output {
	var stdout, stderr bytes.Buffer
	config := hooks()
	config.Args, config.Environ, config.Stdout, config.Stderr = args, environ, &stdout, &stderr
	code := cli.Main(ctx, config)
	return output{code, stdout.String(), stderr.String()}
}
