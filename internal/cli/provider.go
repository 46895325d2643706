package cli

import "github.com/spf13/cobra"

// providerCommand holds what concerns systems whose keys are rotated.
func (a *app) providerCommand() *cobra.Command {
	if a.config.TestProvider == nil {
		return nil
	}
	o := ProviderTestOptions{}
	c := a.action("test", "Try plugins with the conformance suite", func(cmd *cobra.Command, _ []string) error {
		if o.ConfigFile == "" {
			return usage("write for example keyturn provider test --config /etc/keyturn/server.yaml --file key.yaml", "--config is missing")
		}
		o.JSON, o.Stdout = a.wantsJSON(), a.config.Stdout
		return a.config.TestProvider(cmd.Context(), o)
	})
	c.Long = `Tries the plugins of a server's configuration as the server would call them, prints
what passed, what failed and why, and ends with exit code 1 if anything failed. It
needs no server.

It works on the real system behind a plugin: versions with numbers beyond any in use
are accepted there for moments, and refused and, where the plugin can, destroyed
after each test. Where the system has few places, use one of its own for the test.`
	c.Example = "  keyturn provider test --config server.yaml --file key.yaml\n  keyturn provider test --config server.yaml --plugin redis"
	c.Flags().StringVar(&o.ConfigFile, "config", "", "the server's configuration `FILE`, with plugins")
	c.Flags().StringVar(&o.Plugin, "plugin", "", "the `NAME` of the plugin; default: all that --file names, without it all")
	c.Flags().StringVar(&o.KeyFile, "file", "", "a `FILE` of key documents to take endpoints and settings from; default: what the plugin describes")
	c.Flags().StringVar(&o.Key, "key", "keyturn/provider-test", "the `NAME` of the key that plugins are told, none of a real key")
	return a.group(&cobra.Command{Use: "provider", Short: "Look after systems whose keys are rotated"}, c)
}
