package cli

import (
	"io"

	"github.com/spf13/cobra"
)

// KEKTask is what is to be done with key-encryption keys. The zero value is invalid.
type KEKTask uint8

// The tasks.
const (
	KEKList KEKTask = iota + 1
	KEKAdd
	KEKUse
	KEKRemove
)

// KEKOptions say what to do with the key-encryption keys of a server.
type KEKOptions struct {
	Task       KEKTask
	ConfigFile string
	// ID is the key to use or to remove.
	ID string
	// Use makes the key that is added the primary one.
	Use  bool
	JSON bool
	// Stdout takes what was done.
	Stdout io.Writer
}

// kekCommand works on a server's files; it needs no running server.
func (a *app) kekCommand() *cobra.Command {
	if a.config.KEKs == nil {
		return nil
	}
	return a.group(&cobra.Command{
		Use: "kek", Short: "List, add, use and remove key-encryption keys of a server",
		Long: `Works on the key file of a server, keeper.file of its configuration. What a server
seals is wrapped by the primary key-encryption key of that file; the others open what
they have wrapped before. A running server notices within seconds that another one is
the primary, and brings everything in its store under that, at leisure. See
docs/reference/kek.md.`,
	}, a.kekListCommand(), a.kekAddCommand(), a.kekUseCommand(), a.kekRemoveCommand())
}

// kekAction is a command that gets the configuration by a flag.
func (a *app) kekAction(o *KEKOptions, use, short string) *cobra.Command {
	c := a.action(use, short, func(cmd *cobra.Command, args []string) error {
		if o.ConfigFile == "" {
			return usage("name the configuration of the server: --config /etc/keyturn/server.yaml", "--config is missing")
		}
		if len(args) > 0 {
			o.ID = args[0]
		}
		o.JSON, o.Stdout = a.wantsJSON(), a.config.Stdout
		return a.config.KEKs(cmd.Context(), *o)
	})
	c.Flags().StringVar(&o.ConfigFile, "config", "", "the configuration `FILE` of the server")
	return c
}

func (a *app) kekListCommand() *cobra.Command {
	c := a.kekAction(&KEKOptions{Task: KEKList}, "list", "List the key-encryption keys, and what is under each")
	c.Long = `Lists the key-encryption keys of the key file, the primary one first, and how many
envelopes in the store are under each. A database in the data folder that a running
server has open is not counted.`
	c.Example = "  keyturn kek list --config /etc/keyturn/server.yaml"
	return c
}

func (a *app) kekAddCommand() *cobra.Command {
	o := &KEKOptions{Task: KEKAdd}
	c := a.kekAction(o, "add", "Add a key-encryption key")
	c.Long = `Adds a key-encryption key to the key file. With --use it is the primary one at once:
right for one server, and for several that share the file. Where each server has a copy
of the file, add it without, copy the file to all of them, and only then use it.`
	c.Example = "  keyturn kek add --use --config /etc/keyturn/server.yaml"
	c.Flags().BoolVar(&o.Use, "use", false, "make it the primary one")
	return c
}

func (a *app) kekUseCommand() *cobra.Command {
	c := a.kekAction(&KEKOptions{Task: KEKUse}, "use ID", "Make a key-encryption key the primary one")
	c.Example = "  keyturn kek use file:1234567890 --config /etc/keyturn/server.yaml"
	return c
}

func (a *app) kekRemoveCommand() *cobra.Command {
	c := a.kekAction(&KEKOptions{Task: KEKRemove}, "remove ID", "Remove a key-encryption key for ever")
	c.Long = `Removes a key-encryption key from the key file. It is refused for the primary one, and
while anything in the store is under it. Backups that were made before can be restored
no more without a copy of the file as it was: that is how what they hold is destroyed.
A server that has its database in the data folder must be stopped for it.`
	c.Example = "  keyturn kek remove file:1234567890 --config /etc/keyturn/server.yaml"
	return c
}
