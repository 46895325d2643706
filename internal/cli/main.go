package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/secret"
)

// Config is what the command line takes from its process. Args, Stdout and
// Stderr are required.
type Config struct {
	// Args are the arguments without the program's name.
	Args []string
	// Stdin is empty when nil. Stdin, Stdout and Stderr are handed to programs
	// that "exec" runs if they are files.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Environ is the environment, as NAME=value.
	Environ []string
	// Version is that of the program; empty means "unknown".
	Version string
	// Now is the clock; time.Now when nil.
	Now func() time.Time

	// Server, Gateway, MoveStore, KEKs, Restore, VerifyBackup, TestProvider, Dev and Demo run what the command line may not import.
	// Server, Gateway, Dev and Demo return nil when ctx ends them. A command whose function
	// is nil does not exist.
	Server       func(ctx context.Context, o ServerOptions) error
	Gateway      func(ctx context.Context, o ServerOptions) error
	MoveStore    func(ctx context.Context, o MoveOptions) error
	KEKs         func(ctx context.Context, o KEKOptions) error
	Restore      func(ctx context.Context, o RestoreOptions) error
	VerifyBackup func(ctx context.Context, o VerifyBackupOptions) error
	TestProvider func(ctx context.Context, o ProviderTestOptions) error
	Dev          func(ctx context.Context, o DevOptions) error
	Demo         func(ctx context.Context, o DemoOptions) error

	// CheckConfig and Providers are what "policy lint" knows of providers; see
	// policy.LintOptions.
	CheckConfig func(provider string, config map[string]any) (policy.Topology, []policy.ConfigProblem)
	Providers   []string
}

// ServerOptions say how to run a server, or a gateway.
type ServerOptions struct {
	// ConfigFile is the path of the configuration.
	ConfigFile string
	Version    string
	// Stderr takes the log.
	Stderr io.Writer
}

// MoveOptions say how to move an installation to another store.
type MoveOptions struct {
	// ConfigFile is the path of the configuration that names both stores.
	ConfigFile string
	JSON       bool
	// Stdout takes what was done.
	Stdout io.Writer
}

// RestoreOptions say what to restore, and where to.
type RestoreOptions struct {
	// File is the backup, IdentityFile holds age identities, ConfigFile is the
	// server's configuration.
	File, IdentityFile, ConfigFile string
	// Keys are verifier keys that signed the audit log earlier.
	Keys []string
	JSON bool
	// Stdout takes what was done.
	Stdout io.Writer
}

// VerifyBackupOptions say what to verify.
type VerifyBackupOptions struct {
	File, IdentityFile string
	// Keys are verifier keys of the audit log; none means that no signature is checked.
	Keys []string
	JSON bool
	// Stdout takes the outcome.
	Stdout io.Writer
}

// ProviderTestOptions say which plugins to try.
type ProviderTestOptions struct {
	// ConfigFile is the server's configuration; KeyFile, Plugin and Key may be empty.
	ConfigFile, KeyFile, Plugin, Key string
	JSON                             bool
	// Stdout takes the outcome.
	Stdout io.Writer
}

// DevOptions say how to run a throw-away server.
type DevOptions struct {
	// Listen is a loopback address with a port; port 0 takes a free one.
	Listen string
	// Dir keeps the data; empty means a temporary folder that is removed at the end.
	Dir     string
	Version string
	// Stderr takes the log.
	Stderr io.Writer
	// Ready must be called once, when the server answers. Its error ends the server.
	Ready func(DevServer) error
}

// DevServer is how to reach a throw-away server.
type DevServer struct {
	// Address is its base URL.
	Address string
	// CACert is the PEM file of the authority that it made.
	CACert string
	// Token has the role admin for every key.
	Token secret.Value
	// Dir is where its data is.
	Dir string
	// AuditKey is the verifier key of its audit log.
	AuditKey string
}

// DemoOptions say how to show the demonstration.
type DemoOptions struct {
	// JSON asks for one JSON object on Stdout, and nothing else there.
	JSON bool
	// Progress takes what happens, for people; Live says that it is a terminal on
	// which a line can be written again.
	Progress io.Writer
	Live     bool
	// Target is what to rotate; empty chooses. Applications is the size of the fleet.
	Target       string
	Applications int
	Stdout       io.Writer
}

// ErrFailed is returned by a hook that has told the user already what failed:
// the exit code says so, and nothing more is printed.
var ErrFailed = errors.New("failed")

// Main runs one command and returns the exit code. It returns when ctx ends;
// what waits is then left to go on without it.
func Main(ctx context.Context, config Config) Exit {
	a := newApp(config)
	root := a.root()
	root.SetArgs(a.config.Args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	var ended programEnded
	if errors.As(err, &ended) {
		return Exit(ended)
	}
	var f *failure
	var ran *failureOf
	if errors.As(err, &f) || errors.As(err, &ran) {
		f = a.explain(ctx, err)
	} else {
		f = usage("see keyturn --help", "%w", err) // cobra's own: no command ran
	}
	if !errors.Is(err, ErrFailed) {
		a.printFailure(f)
	}
	return f.exit
}

// app is one run of the command line.
type app struct {
	config Config
	env    map[string]string
	flags  globalFlags
	// parsed says that flags holds what the command line says.
	parsed bool
}

func newApp(config Config) *app {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Stdin == nil {
		config.Stdin = strings.NewReader("")
	}
	if config.Version == "" {
		config.Version = "unknown"
	}
	a := &app{config: config, env: map[string]string{}}
	for _, entry := range config.Environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			a.env[name] = value
		}
	}
	return a
}
