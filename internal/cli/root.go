package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyturn/keyturn/internal/spelling"
)

// globalFlags are the flags that every command takes.
type globalFlags struct {
	output    string
	address   string
	tokenFile string
	caCert    string
	timeout   time.Duration
}

// The groups of commands, as help lists them.
const (
	groupTry     = "try"
	groupKeys    = "keys"
	groupRun     = "run"
	groupInspect = "inspect"
)

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyturn",
		Short: "Rotate keys without outages",
		Long: `Keyturn rotates keys without outages: a new version is accepted everywhere
before anybody presents it, and the old one is revoked only when nobody uses it.

Try it:     keyturn demo
Learn it:   keyturn dev, then keyturn apply -f DIR and keyturn rotate NAME --wait`,
		Version:           a.config.Version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	a.group(root)
	root.SetVersionTemplate("keyturn {{.Version}}\n")
	root.SetIn(a.config.Stdin)
	root.SetOut(a.config.Stdout)
	root.SetErr(a.config.Stderr)
	root.SetFlagErrorFunc(a.flagError)
	root.SetHelpCommandGroupID(groupInspect)
	root.AddGroup(
		&cobra.Group{ID: groupTry, Title: "Try and run:"},
		&cobra.Group{ID: groupKeys, Title: "Keys and rotations:"},
		&cobra.Group{ID: groupRun, Title: "Deliver to applications:"},
		&cobra.Group{ID: groupInspect, Title: "Look and look after:"},
	)
	flags := root.PersistentFlags()
	flags.StringVar(&a.flags.output, "output", "text", "the `FORMAT` of results: text or json")
	flags.StringVar(&a.flags.address, "address", "", "the server's `URL`, or those of several separated by commas (KEYTURN_ADDR)")
	flags.StringVar(&a.flags.tokenFile, "token-file", "", "a `FILE` that holds the token (KEYTURN_TOKEN_FILE, or the token itself in KEYTURN_TOKEN)")
	flags.StringVar(&a.flags.caCert, "ca-cert", "", "a PEM `FILE` with the authority of the server's certificate (KEYTURN_CACERT)")
	flags.DurationVar(&a.flags.timeout, "timeout", 30*time.Second, "the longest `TIME` to wait for one answer of the server")
	a.choices(root, "output", outputText, outputJSON)
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.checkGlobals() }

	for _, list := range []struct {
		group    string
		commands []*cobra.Command
	}{
		{groupTry, []*cobra.Command{a.demoCommand(), a.devCommand(), a.serverCommand(), a.gatewayCommand(), a.moveCommand(), a.restoreCommand(), a.kekCommand(), a.loginCommand()}},
		{groupKeys, []*cobra.Command{a.applyCommand(), a.policyCommand(), a.ruleCommand(), a.keyCommand(), a.getCommand(), a.apiKeyCommand(), a.rotateCommand(), a.rotationCommand(), a.emergencyCommand(), a.rollbackCommand(), a.reconcileCommand()}},
		{groupRun, []*cobra.Command{a.agentCommand(), a.execCommand(), a.partyCommand()}},
		{groupInspect, []*cobra.Command{a.auditCommand(), a.reportCommand(), a.evidenceCommand(), a.doctorCommand(), a.scanCommand(), a.leakCommand(), a.verifiedBackup(a.backupCommand()), a.providerCommand(), a.tokenCommand(), a.completionCommand(), a.versionCommand()}},
	} {
		for _, c := range list.commands {
			if c != nil {
				c.GroupID = list.group
				root.AddCommand(c)
			}
		}
	}
	return root
}

func (a *app) checkGlobals() error {
	a.parsed = true
	if a.flags.output != outputText && a.flags.output != outputJSON {
		return usage("use --output text or --output json", "--output: %q is unknown", a.flags.output)
	}
	if a.flags.timeout <= 0 {
		return usage("write for example --timeout 30s", "--timeout: %v is not positive", a.flags.timeout)
	}
	return nil
}

// action makes a command of a function that gets the positional arguments.
// Each word of params is one of them; [WORD] is optional and WORD... takes the rest.
func (a *app) action(use, short string, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	name, params, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use:                   strings.TrimSpace(use + " [flags]"),
		DisableFlagsInUseLine: true,
		Short:                 short,
		Args:                  positional(name, strings.Fields(params)),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := run(cmd, args)
			var f *failure
			var ended programEnded
			if err == nil || errors.As(err, &ended) || errors.As(err, &f) {
				return err
			}
			return &failureOf{err}
		},
	}
}

// failureOf marks an error as one of a command that ran: it is no wrong usage.
type failureOf struct{ error }

func (f *failureOf) Unwrap() error { return f.error }

// positional checks the number of positional arguments.
func positional(name string, params []string) cobra.PositionalArgs {
	required := 0
	rest := false
	for _, p := range params {
		if !strings.HasPrefix(p, "[") {
			required++
		}
		rest = rest || strings.HasSuffix(strings.Trim(p, "[]"), "...")
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < required:
			return usage("see "+cmd.CommandPath()+" --help", "%s is missing: %s %s", strings.TrimSuffix(params[len(args)], "..."), cmd.CommandPath(), strings.Join(params, " "))
		case !rest && len(args) > len(params):
			extra := args[len(params)]
			if f := cmd.Flags().Lookup("wait"); f != nil && slices.Contains(waitGoals(), extra) {
				return usage("write --wait="+extra, "%q is one argument too many for %s", extra, name)
			}
			return usage("see "+cmd.CommandPath()+" --help", "%q is one argument too many for %s", extra, name)
		}
		return nil
	}
}

// group makes c a command that only holds others.
func (a *app) group(c *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	c.AddCommand(commands...)
	c.SuggestionsMinimumDistance = 2
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return nil
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if !a.wantsJSON() {
			cmd.SetOut(a.config.Stderr)
			if err := cmd.Help(); err != nil {
				return err
			}
		}
		return usage("", "a command is missing: %s COMMAND", cmd.CommandPath())
	}
	return c
}

func unknownCommand(parent *cobra.Command, name string) *failure {
	hint := "see " + parent.CommandPath() + " --help"
	if similar := parent.SuggestionsFor(name); len(similar) > 0 {
		hint = "did you mean " + parent.CommandPath() + " " + strings.Join(similar, " or "+parent.CommandPath()+" ") + "?"
	}
	return usage(hint, "there is no command %s %s", parent.CommandPath(), name)
}

// flagError explains a wrong flag. Where a command that only holds others gets
// one, the mistake is rather in the name of the command.
func (a *app) flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if cmd.HasSubCommands() {
		if _, rest, findErr := cmd.Root().Find(a.config.Args); findErr == nil {
			for _, arg := range rest {
				if !strings.HasPrefix(arg, "-") {
					return unknownCommand(cmd, arg)
				}
			}
		}
	}
	see := "see " + cmd.CommandPath() + " --help"
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return usage(see, "%s: %s", cmd.CommandPath(), err.Error())
	}
	name := missing.GetSpecifiedName()
	if name == "token" {
		return usage("put it into KEYTURN_TOKEN, name a file with --token-file, or run keyturn login",
			"there is no flag --token: every user of this machine could read the token among the arguments of processes")
	}
	var known []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			known = append(known, f.Name)
		}
	})
	if best := spelling.Nearest(name, known, 2); best != "" {
		see = "did you mean --" + best + "?"
	}
	return usage(see, "%s has no flag %s", cmd.CommandPath(), dashed(name))
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// oneOf checks the value of a flag.
func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usage("use "+strings.Join(allowed, ", "), "--%s: %q is unknown", flag, value)
}

// parsePairs reads NAME=VALUE of a repeated flag.
func parsePairs(flag string, list []string) (map[string]string, error) {
	pairs := map[string]string{}
	for _, entry := range list {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			return nil, usage(fmt.Sprintf("write for example --%s cohort=canary", flag), "--%s: %q is not NAME=VALUE", flag, entry)
		}
		pairs[name] = value
	}
	return pairs, nil
}
