package cli_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyturn/keyturn/internal/cli"
)

const referenceFile = "../../docs/reference/cli.md"

// TestReference: docs/reference/cli.md is what the commands say. Write it with
// go test ./internal/cli -run TestReference -update.
func TestReference(t *testing.T) {
	var b bytes.Buffer
	writeReference(&b, cli.Root(hooks()))
	if *update {
		if err := os.WriteFile(referenceFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Error("docs/reference/cli.md is not what the commands say; run: go test ./internal/cli -run TestReference -update")
	}
}

// TestFlagsMeanOneThing: no command has a flag of its own with the name of one that all
// have.
func TestFlagsMeanOneThing(t *testing.T) {
	root := cli.Root(hooks())
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if global := root.PersistentFlags().Lookup(f.Name); global != nil && global != f {
				t.Errorf("%s has a --%s of its own", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
}

func writeReference(w io.Writer, root *cobra.Command) {
	fmt.Fprint(w, `# The command line

Generated from the commands; `+"`keyturn COMMAND --help`"+` prints the same.

Results go to standard output, everything else to standard error. With `+"`--output json`"+` the result is one JSON value, or one
a line for what is a stream (`+"`rotation watch`, `audit tail`"+`), and an error is an object with `+"`code`, `message` and `hint`"+`.

## Exit codes

| code | name in JSON | meaning |
|---|---|---|
| 0 | | it was done |
| 1 | `+"`failed`"+` | it was not; or a check found something |
| 2 | `+"`usage`"+` | the command line is wrong, or the server finds the request wrong |
| 3 | `+"`not-found`"+` | the key, version, rotation, party or token does not exist |
| 4 | `+"`denied`"+` | the token is missing, unknown, or may not do that |
| 5 | `+"`unreachable`"+` | no server answered in time |
| 6 | `+"`not-done`"+` | the rotation ended otherwise than done, for example rolled back |
| 7 | `+"`found`"+` | `+"`keyturn scan`"+` has found secrets |
| 8 | `+"`live-key`"+` | `+"`keyturn scan`"+` has found the secret of a key in use |
| 130 | `+"`interrupted`"+` | a signal ended the command; a rotation goes on |

`+"`keyturn exec`"+` returns the exit code of its program.

## How the server is found

| what | flag | environment | else |
|---|---|---|---|
| address | `+"`--address` | `KEYTURN_ADDR`"+` | what `+"`keyturn login`"+` stored |
| token | `+"`--token-file` | `KEYTURN_TOKEN`, or `KEYTURN_TOKEN_FILE`"+` | what `+"`keyturn login`"+` stored for that address |
| CA of the server's certificate | `+"`--ca-cert` | `KEYTURN_CACERT`"+` | what `+"`keyturn login`"+` stored for that address; else the system's |

A flag comes before the environment, and that before what was stored. There is no flag for the token itself: every user of a
machine can read the arguments of its processes. Without TLS only loopback addresses are called.

## Flags of every command

`)
	writeFlags(w, root.PersistentFlags())
	for _, c := range root.Commands() {
		writeCommand(w, c, 2)
	}
}

func writeCommand(w io.Writer, c *cobra.Command, level int) {
	if c.Name() == "help" || c.Hidden {
		return
	}
	fmt.Fprintf(w, "\n%s %s\n\n%s.\n", strings.Repeat("#", level), c.CommandPath(), c.Short)
	if c.Long != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.Long))
	}
	if !c.HasSubCommands() {
		fmt.Fprintf(w, "\n```\n%s\n```\n", c.UseLine())
	}
	if c.Example != "" {
		fmt.Fprintf(w, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
	}
	if c.LocalNonPersistentFlags().HasFlags() {
		fmt.Fprintln(w)
		writeFlags(w, c.LocalNonPersistentFlags())
	}
	for _, sub := range c.Commands() {
		writeCommand(w, sub, level+1)
	}
}

func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	fmt.Fprint(w, "| flag | meaning | default |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		switch {
		case f.NoOptDefVal != "" && f.Value.Type() != "bool":
			name += "[=" + kind + "]"
		case kind != "":
			name += " " + kind
		}
		standard := ""
		switch f.DefValue {
		case "", "false", "0", "0s", "[]":
		default:
			standard = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(w, "| `%s` | %s | %s |\n", name, strings.ReplaceAll(usage, "|", `\|`), standard)
	})
}
