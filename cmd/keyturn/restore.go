package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/backup"
	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/server"
)

// runRestore makes a store from a backup.
func runRestore(ctx context.Context, o cli.RestoreOptions) error {
	if err := protect(); err != nil {
		return err
	}
	config, err := server.LoadConfig(o.ConfigFile)
	if err != nil {
		return err
	}
	identities, verifiers, err := openers(o.IdentityFile, o.Keys)
	if err != nil {
		return err
	}
	report, err := server.Restore(ctx, config, server.RestoreOptions{File: o.File, Identities: identities, Earlier: verifiers, Now: time.Now()})
	if err != nil {
		return err
	}
	if o.JSON {
		return writeJSON(o.Stdout, report)
	}
	if err := describeBackup(o.Stdout, report.Manifest, report.Log); err != nil {
		return err
	}
	_, err = fmt.Fprintf(o.Stdout, `It is restored to %s.
Start the server with the same configuration: it changes nothing outside until every
key is reconciled. Then: keyturn doctor lists the keys that stand still, keyturn
reconcile NAME --replace settles one. See docs/runbooks/restore.md.
`, report.Destination)
	return err
}

// runVerifyBackup verifies a backup.
func runVerifyBackup(ctx context.Context, o cli.VerifyBackupOptions) error {
	if err := protect(); err != nil {
		return err
	}
	identities, verifiers, err := openers(o.IdentityFile, o.Keys)
	if err != nil {
		return err
	}
	file, err := os.Open(o.File)
	if err != nil {
		return err
	}
	defer file.Close()
	manifest, report, err := backup.Verify(ctx, file, identities, verifiers...)
	if err != nil {
		return fmt.Errorf("%s: %w", o.File, err)
	}
	if o.JSON {
		return writeJSON(o.Stdout, struct {
			Verified bool            `json:"verified"`
			Manifest backup.Manifest `json:"manifest"`
			Log      backup.Report   `json:"log"`
		}{true, manifest, report})
	}
	return describeBackup(o.Stdout, manifest, report)
}

// openers reads what opens a backup, and the keys that prove its audit log.
func openers(path string, keys []string) ([]age.Identity, []note.Verifier, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: %w", err)
	}
	defer file.Close()
	identities, err := age.ParseIdentities(file)
	if err != nil {
		return nil, nil, fmt.Errorf("identity %s: %w; age-keygen makes such a file", path, err)
	}
	verifiers := make([]note.Verifier, len(keys))
	for i, key := range keys {
		if verifiers[i], err = audit.ParseVerifier(key); err != nil {
			return nil, nil, fmt.Errorf("--key: %w", err)
		}
	}
	return identities, verifiers, nil
}

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func describeBackup(w io.Writer, m backup.Manifest, report backup.Report) error {
	fmt.Fprintf(w, "Backup of %s, taken %s by keyturn %q\n", m.Log.Name, m.Time.Format(time.RFC3339), m.Version)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tROWS\tSHA-256")
	for _, t := range m.Tables {
		fmt.Fprintf(table, "%s\t%d\t%s\n", t.Name, t.Rows, t.SHA256)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	signed := "no signature was checked: give the verifier key with --key"
	if report.Trusted {
		signed = fmt.Sprintf("%d of them are signed", report.Proven)
	}
	_, err := fmt.Fprintf(w, "The audit log of %d entries is whole; %s.\nIt needs the key-encryption key %s and the signing key of %s.\n", report.Entries, signed, m.Keys.KEK, m.Keys.Log)
	return err
}
