package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/secret"
)

// login is what the login file holds.
type login struct {
	Address string `json:"address"`
	CACert  string `json:"caCert,omitempty"`
	Token   string `json:"token"`
}

// writeConfig replaces a file of the command line's own.
func writeConfig(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return writePrivate(path, content)
}

// configDir is where files of the command line are kept.
func (a *app) configDir() (string, error) {
	if dir := a.env["XDG_CONFIG_HOME"]; filepath.IsAbs(dir) {
		return filepath.Join(dir, "keyturn"), nil
	}
	if home := a.env["HOME"]; home != "" {
		return filepath.Join(home, ".config", "keyturn"), nil
	}
	return "", errors.New("neither XDG_CONFIG_HOME nor HOME is set, so that there is no place for configuration")
}

// readLogin reads the login file; a missing one is the zero login.
func (a *app) readLogin() (login, error) {
	dir, err := a.configDir()
	if err != nil {
		return login{}, nil // without a place there is no login
	}
	path := filepath.Join(dir, "login.json")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return login{}, nil
	}
	if err != nil {
		return login{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return login{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return login{}, fail(ExitFailed, "chmod 600 "+path+", and revoke the token if others may have read it", "%s can be read by others (mode %04o)", path, info.Mode().Perm())
	}
	var l login
	if err := json.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&l); err != nil {
		return login{}, fail(ExitFailed, "run keyturn login again", "%s is damaged: %w", path, err)
	}
	return l, nil
}

// writePrivate replaces a file of mode 0600 in one step.
func writePrivate(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".keyturn-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is gone when all went well
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (a *app) loginCommand() *cobra.Command {
	c := a.action("login [ADDRESS]", "Store address, CA and token of a server", a.login)
	c.Long = `Stores how to reach a server in a file with mode 0600 below XDG_CONFIG_HOME or
~/.config, after trying it. The token is asked for, or read from standard input;
it is never an argument. Flags and environment variables come before the file.`
	c.Example = "  keyturn login https://keyturn.example:7447 --ca-cert ca.pem\n  keyturn login https://keyturn.example:7447 < token"
	return c
}

func (a *app) login(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		a.flags.address = args[0]
	}
	c := a.connection()
	if c.address == "" {
		return usage("write for example keyturn login https://keyturn.example:7447", "ADDRESS is missing")
	}
	if c.err != nil {
		return c.err
	}
	token, err := a.askToken(c)
	if err != nil {
		return err
	}
	if c.caCert != "" {
		if c.caCert, err = filepath.Abs(c.caCert); err != nil {
			return err
		}
	}
	c.token, c.tokenFrom = client.StaticToken(secret.NewString(token)), "what was read"
	api, err := a.controlOf(c)
	if err != nil {
		return err
	}
	// A denial is good enough: the server knows the token. Agents' may not list keys.
	_, err = api.ListKeys(cmd.Context(), &keyturnv1.ListKeysRequest{PageSize: 1})
	if connect.CodeOf(err) == connect.CodeUnauthenticated {
		return fail(ExitDenied, "check that the whole token was read, and that it has not expired", "%s refuses the token: %w", c.address, err)
	}
	if err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
		return err
	}
	dir, err := a.configDir()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "login.json")
	if err := writeConfig(path, jsonLine(login{Address: c.address, CACert: c.caCert, Token: token})); err != nil {
		return err
	}
	return a.result(struct {
		Address string `json:"address"`
		CACert  string `json:"caCert,omitempty"`
		File    string `json:"file"`
	}{c.address, c.caCert, path}, func(w io.Writer) {
		fmt.Fprintf(w, "logged in to %s; stored in %s\n", clean(c.address), path)
	})
}

func (a *app) askToken(c connection) (string, error) {
	if f, ok := a.config.Stdin.(*os.File); ok && term.IsTerminal(f.Fd()) {
		fmt.Fprintf(a.config.Stderr, "Token for %s: ", clean(c.address))
		raw, err := term.ReadPassword(f.Fd())
		fmt.Fprintln(a.config.Stderr)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		return string(raw), nil
	}
	return readToken(a.config.Stdin)
}
