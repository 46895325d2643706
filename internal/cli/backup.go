package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

func (a *app) backupCommand() *cobra.Command {
	var to string
	var force bool
	request := &keyturnv1.BackupRequest{}
	c := a.action("backup", "Take an encrypted backup of a running server", func(cmd *cobra.Command, _ []string) error {
		if err := checkBackup(to, force, request.GetRecipients()); err != nil {
			return err
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		var manifest *keyturnv1.BackupManifest
		err = createFile(to, force, func(w io.Writer) error {
			manifest, err = receiveBackup(cmd.Context(), api, request, w)
			return err
		})
		if err != nil {
			return err
		}
		return a.backedUp(to, manifest, request.GetRecipients())
	})
	c.Long = `Writes one consistent copy of all that the server stores, as it is at one moment,
encrypted to age recipients (https://age-encryption.org). The server goes on
meanwhile, and enters into the audit log who took it and who can decrypt it. Needs
the role admin and a token that covers every key.

The keys kek.json, audit.key, ca.pem and ca.key of the server's data folder are not
part of it: without kek.json no secret in a backup can be read. Keep copies of them
apart from the backups.`
	c.Example = "  keyturn backup --to keyturn.backup --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
	c.Flags().StringVar(&to, "to", "", "write to this `FILE`, which is there only when all of the backup is")
	c.Flags().StringArrayVar(&request.Recipients, "recipient", nil, "an age `RECIPIENT` who can decrypt it, age1...; may be repeated")
	c.Flags().BoolVar(&force, "force", false, "replace the file if there is one")
	return c
}

// checkBackup refuses what the server need not be asked for.
func checkBackup(to string, force bool, recipients []string) error {
	switch {
	case to == "":
		return usage("write for example --to keyturn.backup", "--to is missing")
	case len(recipients) == 0:
		return usage("make a key pair with age-keygen, keep it where the server is not, and give its age1... part", "--recipient is missing")
	}
	for _, recipient := range recipients {
		if strings.HasPrefix(strings.ToUpper(recipient), "AGE-SECRET-KEY-") || strings.HasPrefix(strings.ToUpper(recipient), "AGE-PLUGIN-") {
			return usage("give its age1... part, and replace the key pair: arguments can be read by others on this machine",
				"--recipient: it is an identity, which decrypts backups; it was sent nowhere")
		}
	}
	if _, err := os.Lstat(to); err == nil && !force {
		return exists(to)
	}
	return nil
}

func exists(path string) error {
	return fail(ExitFailed, "write to another file, or replace it with --force", "%s exists already", path)
}

func (a *app) backedUp(to string, m *keyturnv1.BackupManifest, recipients []string) error {
	sum := hex.EncodeToString(m.GetSha256())
	return a.result(struct {
		File       string   `json:"file"`
		CreatedAt  string   `json:"createdAt"`
		Rows       int64    `json:"rows"`
		LogSize    uint64   `json:"logSize"`
		Bytes      int64    `json:"bytes"`
		SHA256     string   `json:"sha256"`
		Recipients []string `json:"recipients"`
	}{to, m.GetCreatedAt().AsTime().Format(time.RFC3339Nano), m.GetRows(), m.GetLogSize(), m.GetBytes(), sum, recipients}, func(w io.Writer) {
		fmt.Fprintf(w, "written to %s: %s, %d entries of the audit log, %s\n", clean(to), plural(int(m.GetRows()), "row"), m.GetLogSize(), plural(int(m.GetBytes()), "byte"))
		fmt.Fprintf(w, "SHA-256 %s\n", sum)
		fmt.Fprintln(w, "kek.json, audit.key, ca.pem and ca.key are not part of it: keep copies of them apart from it")
	})
}

// receiveBackup writes what the server sends. It fails unless all has come.
func receiveBackup(ctx context.Context, api keyturnv1connect.ControlServiceClient, request *keyturnv1.BackupRequest, w io.Writer) (*keyturnv1.BackupManifest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.Backup(ctx, request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }() // all is read, or the context ends
	sum, size := sha256.New(), int64(0)
	var manifest *keyturnv1.BackupManifest
	for stream.Receive() {
		if manifest != nil {
			return nil, incomplete("the server sent more after its end")
		}
		piece := stream.Msg().GetPiece()
		sum.Write(piece)
		size += int64(len(piece))
		if _, err := w.Write(piece); err != nil {
			return nil, err
		}
		manifest = stream.Msg().GetManifest()
	}
	switch {
	case stream.Err() != nil:
		return nil, stream.Err()
	case manifest == nil:
		return nil, incomplete("the server sent no end")
	case manifest.GetBytes() != size || size == 0 || !bytes.Equal(manifest.GetSha256(), sum.Sum(nil)):
		return nil, incomplete(fmt.Sprintf("%d bytes arrived, and differ from the %d that the server sent", size, manifest.GetBytes()))
	}
	return manifest, nil
}

func incomplete(why string) error {
	return fail(ExitFailed, "take it again", "the backup is incomplete, and nothing was kept of it: %s", why)
}

// createFile makes a file of mode 0600 of what fill writes, or none at all. It
// replaces one only by force, also when that appears meanwhile.
func createFile(path string, force bool, fill func(io.Writer) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".keyturn-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is gone after a rename
	defer f.Close()
	if err := fill(f); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := putInPlace(f.Name(), path, force); err != nil {
		return err
	}
	return syncDir(dir)
}

func putInPlace(from, path string, force bool) error {
	if !force {
		// A link is never made where something is.
		err := os.Link(from, path)
		if err == nil {
			return nil
		}
		if _, there := os.Lstat(path); errors.Is(err, fs.ErrExist) || there == nil {
			return exists(path)
		}
		// This file system has no hard links.
	}
	return os.Rename(from, path)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
