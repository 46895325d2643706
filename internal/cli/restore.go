package cli

import "github.com/spf13/cobra"

func (a *app) restoreCommand() *cobra.Command {
	if a.config.Restore == nil {
		return nil
	}
	o := RestoreOptions{}
	c := a.action("restore FILE", "Make a server's store from a backup", func(cmd *cobra.Command, args []string) error {
		const example = "write for example keyturn restore keyturn.backup --identity backup.key --config /etc/keyturn/server.yaml"
		switch {
		case o.ConfigFile == "":
			return usage(example, "--config is missing")
		case o.IdentityFile == "":
			return usage(example, "--identity is missing")
		}
		o.File, o.JSON, o.Stdout = args[0], a.wantsJSON(), a.config.Stdout
		return a.config.Restore(cmd.Context(), o)
	})
	c.Long = `Verifies a backup, and makes from it the store that the configuration names:
keyturn.db in the data folder, or the PostgreSQL database store.postgres. The store
must be empty, and the data folder must hold the kek.json and audit.key of the server
that was backed up. Stop every server first. After an interruption, run it again:
no server starts on half of a restore.

The server that starts on it changes nothing outside until every key is reconciled
with what is really accepted; see docs/runbooks/restore.md.`
	c.Example = "  keyturn restore keyturn.backup --identity backup.key --config /etc/keyturn/server.yaml"
	c.Flags().StringVar(&o.ConfigFile, "config", "", "the configuration `FILE` of the server")
	c.Flags().StringVar(&o.IdentityFile, "identity", "", "the `FILE` with the age identity that decrypts it")
	c.Flags().StringArrayVar(&o.Keys, "key", nil, "a verifier `KEY` that signed the audit log before the one in the data folder; may be repeated")
	return c
}

// verifiedBackup adds the command that verifies a backup to the one that takes it.
func (a *app) verifiedBackup(backup *cobra.Command) *cobra.Command {
	if a.config.VerifyBackup == nil {
		return backup
	}
	o := VerifyBackupOptions{}
	c := a.action("verify FILE", "Verify a backup without restoring it", func(cmd *cobra.Command, args []string) error {
		if o.IdentityFile == "" {
			return usage("write for example keyturn backup verify keyturn.backup --identity backup.key", "--identity is missing")
		}
		o.File, o.JSON, o.Stdout = args[0], a.wantsJSON(), a.config.Stdout
		return a.config.VerifyBackup(cmd.Context(), o)
	})
	c.Long = `Decrypts a whole backup, counts and hashes every table, and checks the audit log in
it: its Merkle tree and, by the verifier keys of --key, every signed checkpoint. It
needs no server, and writes nothing.`
	c.Example = "  keyturn backup verify keyturn.backup --identity backup.key --key \"$AUDIT_KEY\""
	c.Flags().StringVar(&o.IdentityFile, "identity", "", "the `FILE` with the age identity that decrypts it")
	c.Flags().StringArrayVar(&o.Keys, "key", nil, "a verifier `KEY` of the audit log, as audit verify takes it; may be repeated")
	backup.AddCommand(c)
	return backup
}
