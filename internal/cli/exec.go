package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/execute"
	"github.com/keyturn/keyturn/key"
)

// execFlags are those of "exec".
type execFlags struct {
	keys, env, files, labels []string
	onChange, party, region  string
	logFormat                string
	options                  execute.Options
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := a.action("exec -- COMMAND...", "Run a program with keys, and with the new ones after a rotation", func(cmd *cobra.Command, args []string) error {
		return a.exec(cmd.Context(), f, args)
	})
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage("write for example keyturn exec --key prod/orders/db -- ./orders", "the program is missing")
		}
		return nil
	}
	c.Long = `Hands keys to a program by environment or by files in memory, and tells the server
which version it uses. --key NAME alone gives each field as SEGMENT_FIELD, where
SEGMENT is the last one of the name: prod/orders/db gives DB_USERNAME and
DB_PASSWORD. The exit code is the program's; docs/reference/exec.md tells more.`
	c.Example = `  keyturn exec --key prod/orders/db -- ./orders
  keyturn exec --env PGUSER=prod/orders/db:username --env PGPASSWORD=prod/orders/db:password -- psql
  keyturn exec --file TOKEN_FILE=prod/api:token --on-change signal=HUP -- ./orders`
	c.Flags().SetInterspersed(false)
	c.Flags().StringArrayVar(&f.keys, "key", nil, "the `NAME` of a key whose fields go into the environment; may be repeated")
	c.Flags().StringArrayVar(&f.env, "env", nil, "`NAME=KEY:FIELD` puts a field into the environment variable NAME; may be repeated")
	c.Flags().StringArrayVar(&f.files, "file", nil, "`NAME=KEY:FIELD` or NAME=TEMPLATE makes a file in memory whose path is in NAME; may be repeated")
	c.Flags().StringVar(&f.onChange, "on-change", "restart", "the `ACTION` when a key changes: restart, none, or signal=NAME")
	c.Flags().DurationVar(&f.options.KillAfter, "kill-after", execute.DefaultKillAfter, "the `TIME` that the program may take to end before it is killed")
	c.Flags().DurationVar(&f.options.Settle, "settle", execute.DefaultSettle, "the `TIME` that it must run with a new version to count as well")
	c.Flags().DurationVar(&f.options.Wait, "wait", execute.DefaultWait, "the longest `TIME` to wait for the first keys")
	c.Flags().StringVar(&f.party, "party", "", "the `ID` by which rotations name this process; default: host/keyturn/random")
	c.Flags().StringVar(&f.region, "region", "", "the `REGION`, or failure domain, of this process")
	c.Flags().StringArrayVar(&f.labels, "label", nil, "a label `NAME=VALUE` that policies match; may be repeated")
	c.Flags().StringVar(&f.logFormat, "log-format", outputText, "the `FORMAT` of the log on standard error: text or json")
	a.completeFlag(c, "key", a.keyNames)
	a.choices(c, "on-change", "restart", "none", "signal=HUP", "signal=USR1")
	a.choices(c, "log-format", outputText, outputJSON)
	return c
}

func (a *app) exec(ctx context.Context, f execFlags, command []string) error {
	o := f.options
	o.Command, o.Environ = command, a.config.Environ
	o.Stdin, _ = a.config.Stdin.(*os.File)
	o.Stdout, _ = a.config.Stdout.(*os.File)
	o.Stderr, _ = a.config.Stderr.(*os.File)
	if len(f.keys)+len(f.env)+len(f.files) == 0 {
		return usage("write for example keyturn exec --key prod/orders/db -- ./orders", "none of --key, --env and --file is there")
	}
	if err := f.parse(&o); err != nil {
		return err
	}
	var err error
	if o.Logger, err = a.logger(f.logFormat); err != nil {
		return err
	}
	server := a.connection()
	if err := server.check(); err != nil {
		return err
	}
	party := client.Party{ID: f.party, Kind: client.KindClient, Region: f.region}
	if party.Labels, err = parsePairs("label", f.labels); err != nil {
		return err
	}
	delivery, err := client.New(client.Config{
		Address: server.address, Token: server.token, CACertFile: server.caCert, Party: party, Now: a.config.Now, Logger: o.Logger,
	})
	if err != nil {
		return usage("see keyturn exec --help", "%w", err)
	}
	o.Delivery = delivery

	// Signals are the program's, not ours: it decides when to end.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	o.Signals = signals
	code, err := execute.Run(context.WithoutCancel(ctx), o)
	a.leave(ctx, delivery, o.Logger)
	switch {
	case errors.Is(err, execute.ErrOptions):
		return usage("see keyturn exec --help", "%w", err)
	case errors.Is(err, execute.ErrNoCredential):
		return fail(ExitUnreachable, "are the server and the keys there, and may the token present them? keyturn key show NAME tells", "%w", err)
	case err != nil:
		return err
	case code != 0:
		return programEnded(code)
	}
	return nil
}

// leaveTime bounds how long a program that has ended is signed off.
const leaveTime = 3 * time.Second

// leave tells the server that the program presents nothing any more, so that
// rotations do not wait for it.
func (a *app) leave(ctx context.Context, delivery *client.Client, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	if err := delivery.Leave(ctx); err != nil {
		log.DebugContext(ctx, "the server did not hear that the program has ended; it forgets it after a while", "error", err)
	}
}

// parse reads the flags that name keys.
func (f execFlags) parse(o *execute.Options) error {
	for _, text := range f.keys {
		name, err := key.ParseName(text)
		if err != nil {
			return usage("write for example --key prod/orders/db", "--key: %w", err)
		}
		o.Keys = append(o.Keys, name)
	}
	for _, text := range f.env {
		env, err := execute.ParseEnv(text)
		if err != nil {
			return usage("write for example --env PGUSER=prod/orders/db:username", "--env: %w", err)
		}
		o.Env = append(o.Env, env)
	}
	for _, text := range f.files {
		file, err := execute.ParseFile(text)
		if err != nil {
			return usage("write for example --file PGPASSFILE=prod/orders/db:password", "--file: %w", err)
		}
		o.Files = append(o.Files, file)
	}
	var err error
	if o.OnChange, o.Signal, err = execute.ParseOnChange(f.onChange); err != nil {
		return usage("use restart, none or signal=HUP", "--on-change: %w", err)
	}
	return nil
}
