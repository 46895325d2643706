package cli

import (
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/internal/agent"
)

func (a *app) serverCommand() *cobra.Command {
	if a.config.Server == nil {
		return nil
	}
	var config string
	c := a.action("server", "Run a server", func(cmd *cobra.Command, _ []string) error {
		if config == "" {
			return usage("write for example keyturn server --config /etc/keyturn/server.yaml; keyturn dev needs none", "--config is missing")
		}
		return a.config.Server(cmd.Context(), ServerOptions{ConfigFile: config, Version: a.config.Version, Stderr: a.config.Stderr})
	})
	c.Long = "Runs the server until a signal ends it; calls under way may end. The log goes to\nstandard error."
	c.Flags().StringVar(&config, "config", "", "the configuration `FILE`")
	return c
}

func (a *app) gatewayCommand() *cobra.Command {
	if a.config.Gateway == nil {
		return nil
	}
	var config string
	c := a.action("gateway", "Serve a region from a sealed cache", func(cmd *cobra.Command, _ []string) error {
		if config == "" {
			return usage("write for example keyturn gateway --config /etc/keyturn/gateway.yaml", "--config is missing")
		}
		return a.config.Gateway(cmd.Context(), ServerOptions{ConfigFile: config, Version: a.config.Version, Stderr: a.config.Stderr})
	})
	c.Long = `Stands between the applications of a region and the servers, until a signal ends
it. Agents and SDKs use its address as they would a server's; proxies and services
have it verify API keys and access tokens. While no server answers it goes on with
what its sealed cache holds, also after a restart. It needs a token of role
gateway. The log goes to standard error.`
	c.Flags().StringVar(&config, "config", "", "the configuration `FILE`")
	return c
}

func (a *app) moveCommand() *cobra.Command {
	if a.config.MoveStore == nil {
		return nil
	}
	var config string
	c := a.action("migrate-store", "Move a stopped server from SQLite to PostgreSQL", func(cmd *cobra.Command, _ []string) error {
		if config == "" {
			return usage("write for example keyturn migrate-store --config /etc/keyturn/server.yaml", "--config is missing")
		}
		return a.config.MoveStore(cmd.Context(), MoveOptions{ConfigFile: config, JSON: a.wantsJSON(), Stdout: a.config.Stdout})
	})
	c.Long = `Copies everything from keyturn.db in the data folder to the empty database that
the configuration names as store.postgres, in one transaction; compares both,
table by table; verifies the audit log; and marks keyturn.db, so that no server
opens it again. Stop the server first. After an interruption, run it again: it
finishes what was begun. The key files stay in the data folder.`
	c.Flags().StringVar(&config, "config", "", "the configuration `FILE`")
	return c
}

func (a *app) devCommand() *cobra.Command {
	if a.config.Dev == nil {
		return nil
	}
	o := DevOptions{Version: a.config.Version, Stderr: a.config.Stderr}
	c := a.action("dev", "Run a throw-away server on this machine, to try things out", func(cmd *cobra.Command, _ []string) error {
		o.Ready = a.devReady
		return a.config.Dev(cmd.Context(), o)
	})
	c.Long = `Starts a server on loopback with a CA of its own, and prints its address and a
token with the role admin as lines for a shell. When it ends, its data is gone
unless --dir names a folder.`
	c.Example = "  keyturn dev\n  keyturn dev --dir /tmp/keyturn"
	c.Flags().StringVar(&o.Listen, "listen", "127.0.0.1:0", "a loopback `ADDRESS`; port 0 takes a free one")
	c.Flags().StringVar(&o.Dir, "dir", "", "keep the data in this `FOLDER`")
	return c
}

// devReady prints how to reach a throw-away server.
func (a *app) devReady(s DevServer) error {
	return a.result(struct {
		Address  string `json:"address"`
		Token    string `json:"token"`
		CACert   string `json:"caCert"`
		Dir      string `json:"dir"`
		AuditKey string `json:"auditKey"`
	}{s.Address, s.Token.RevealString(), s.CACert, s.Dir, s.AuditKey}, func(w io.Writer) {
		fmt.Fprintf(w, "# Keyturn answers at %s; end it with Ctrl-C. In another terminal:\n", s.Address)
		fmt.Fprintf(w, "export %s=%s\n", envAddress, quoteShell(s.Address))
		fmt.Fprintf(w, "export %s=%s\n", envToken, quoteShell(s.Token.RevealString()))
		fmt.Fprintf(w, "export %s=%s\n", envCACert, quoteShell(s.CACert))
		fmt.Fprintf(w, "# Then for example: keyturn key list, or keyturn audit verify --key %s\n", s.AuditKey)
	})
}

// quoteShell quotes s for a POSIX shell if need be.
func quoteShell(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@[]+=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (a *app) demoCommand() *cobra.Command {
	if a.config.Demo == nil {
		return nil
	}
	o := DemoOptions{}
	c := a.action("demo", "Watch real keys rotate under load, within 90 seconds", func(cmd *cobra.Command, _ []string) error {
		if o.Target != "" {
			if err := oneOf("target", o.Target, demoTargets()...); err != nil {
				return err
			}
		}
		if o.Applications < 12 || o.Applications > 200 {
			return usage("write for example --applications 12", "--applications: %d is not between 12 and 200", o.Applications)
		}
		o.JSON, o.Stdout, o.Progress = a.wantsJSON(), a.config.Stdout, a.config.Stdout
		if o.JSON {
			o.Progress = a.config.Stderr
		}
		o.Live = isTerminal(o.Progress) && a.env["TERM"] != "dumb"
		return a.config.Demo(cmd.Context(), o)
	})
	c.Long = `Starts a server and a fleet of clients under load on this machine, and rotates:
once by schedule, once with a canary that fails and is rolled back, and once in
an emergency. It uses a private PostgreSQL where its programs are installed, else
API keys that a real HTTP server checks. The exit code is 0 only if no request
failed.`
	c.Flags().StringVar(&o.Target, "target", "", "the `SYSTEM` to rotate: postgresql or http-api-keys; default: postgresql where it is installed")
	c.Flags().IntVar(&o.Applications, "applications", 12, "the `SIZE` of the fleet")
	a.choices(c, "target", demoTargets()...)
	return c
}

func demoTargets() []string { return []string{"postgresql", "http-api-keys"} }

func (a *app) agentCommand() *cobra.Command {
	var config, format string
	c := a.action("agent", "Bring keys into files, and tell applications", func(cmd *cobra.Command, _ []string) error {
		if config == "" {
			return usage("write for example keyturn agent --config /etc/keyturn/agent.yaml", "--config is missing")
		}
		logger, err := a.logger(format)
		if err != nil {
			return err
		}
		loaded, err := agent.LoadConfig(config)
		if err != nil {
			return err
		}
		return agent.Run(cmd.Context(), loaded, agent.Deps{Logger: logger, Now: a.config.Now, Getenv: func(name string) string { return a.env[name] }})
	})
	c.Long = `Runs until a signal ends it. The configuration says how to reach the server, which
files to write, and how to tell applications; see docs/reference/agent.md. A token
for the first start comes from keyturn token join.`
	c.Flags().StringVar(&config, "config", "", "the configuration `FILE`")
	c.Flags().StringVar(&format, "log-format", outputText, "the `FORMAT` of the log on standard error: text or json")
	a.choices(c, "log-format", outputText, outputJSON)
	return c
}

// logger returns one that writes to standard error.
func (a *app) logger(format string) (*slog.Logger, error) {
	if format == outputJSON {
		return slog.New(slog.NewJSONHandler(a.config.Stderr, nil)), nil
	}
	return slog.New(slog.NewTextHandler(a.config.Stderr, nil)), oneOf("log-format", format, outputText, outputJSON)
}

func (a *app) versionCommand() *cobra.Command {
	return a.action("version", "Print the version", func(*cobra.Command, []string) error {
		v := struct {
			Version  string `json:"version"`
			Go       string `json:"go"`
			Platform string `json:"platform"`
		}{a.config.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
		return a.result(v, func(w io.Writer) { fmt.Fprintf(w, "keyturn %s (%s, %s)\n", v.Version, v.Go, v.Platform) })
	})
}
