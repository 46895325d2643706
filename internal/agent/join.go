package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/secret"
)

// maxTokenFile bounds what is read as a token, in bytes.
const maxTokenFile = 16 << 10

// identify finds the agent's token, or joins to get one.
func identify(ctx context.Context, cfg Config, deps Deps) (identity, error) {
	who := identity{party: cfg.PartyID, token: client.TokenFile(cfg.TokenFile)}
	info, err := os.Stat(cfg.TokenFile)
	switch {
	case err == nil:
		if info.Mode().Perm()&0o077 != 0 {
			return identity{}, fmt.Errorf("%w: token file %s is open to others (mode %04o); chmod 0600 %s, and revoke the token if somebody may have read it", ErrJoin, cfg.TokenFile, info.Mode().Perm(), cfg.TokenFile)
		}
		if joined, err := readBounded(partyFile(cfg), 256); err == nil {
			who.party = string(bytes.TrimSpace(joined))
		}
		return who, nil
	case !errors.Is(err, fs.ErrNotExist):
		return identity{}, fmt.Errorf("%w: %w", ErrJoin, err)
	}
	if token := deps.Getenv("KEYTURN_TOKEN"); token != "" {
		who.token = static(token)
		return who, nil
	}
	if who.party, err = join(ctx, cfg, deps); err != nil {
		return identity{}, err
	}
	return who, nil
}

func partyFile(cfg Config) string { return filepath.Join(cfg.StateDir, "party-id") }

// joinToken returns the one-time token, and the file it came from, if any.
func joinToken(cfg Config, deps Deps) (token secret.Value, file string, err error) {
	if cfg.JoinTokenFile != "" {
		raw, err := readBounded(cfg.JoinTokenFile, maxTokenFile)
		if err == nil && len(bytes.TrimSpace(raw)) > 0 {
			return secret.New(bytes.TrimSpace(raw)), cfg.JoinTokenFile, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return secret.Value{}, "", fmt.Errorf("%w: read the join token: %w", ErrJoin, err)
		}
	}
	if text := deps.Getenv("KEYTURN_JOIN_TOKEN"); text != "" {
		return secret.NewString(text), "", nil
	}
	return secret.Value{}, "", fmt.Errorf("%w: there is no token file %s and no join token; let an administrator create one (keyturn token create --role join) and put it into joinTokenFile or KEYTURN_JOIN_TOKEN", ErrJoin, cfg.TokenFile)
}

// join exchanges the join token for the party's own and stores that. It waits
// for the server as long as it takes, and gives up when the server says no.
func join(ctx context.Context, cfg Config, deps Deps) (party string, err error) {
	once, file, err := joinToken(cfg, deps)
	if err != nil {
		return "", err
	}
	// The answer is given once: be sure that it can be kept before asking.
	for _, path := range []string{partyFile(cfg), cfg.TokenFile} {
		if err := tryWrite(path); err != nil {
			return "", fmt.Errorf("%w: the join token was not used: %w", ErrJoin, err)
		}
	}
	wanted := client.Party{ID: cfg.PartyID, Kind: client.KindAgent, Region: cfg.Region, Labels: cfg.Labels}
	to := client.Config{Address: cfg.Server, CACertFile: cfg.CAFile, Now: deps.Now, Logger: deps.Logger}
	var token secret.Value
	for failures := 1; ; failures++ {
		party, token, err = client.Join(ctx, to, once, wanted)
		if err == nil {
			break
		}
		if refused(err) {
			return "", fmt.Errorf("%w: %w; a join token works once: if it was used before, create a new one", ErrJoin, err)
		}
		wait := deps.pacing.unchanged.after(failures)
		deps.Logger.WarnContext(ctx, "joining is tried again", "server", cfg.Server, "retry_in", wait, "error", err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return "", ctx.Err()
		case <-timer.C:
		}
	}
	// The name first: with the token alone, the next start would use another name.
	if err := writePrivate(partyFile(cfg), secret.NewString(party+"\n")); err != nil {
		return "", fmt.Errorf("%w: store the party's name: %w", ErrJoin, err)
	}
	if err := writePrivate(cfg.TokenFile, token); err != nil {
		return "", fmt.Errorf("%w: store the token: %w", ErrJoin, err)
	}
	deps.Logger.InfoContext(ctx, "the agent has joined", "party", party, "server", cfg.Server)
	if file != "" {
		if err := os.Remove(file); err != nil {
			deps.Logger.WarnContext(ctx, "the used join token's file stays", "error", err)
		}
	}
	return party, nil
}

func refused(err error) bool {
	return errors.Is(err, client.ErrUnauthenticated) || errors.Is(err, client.ErrDenied) || errors.Is(err, client.ErrRequest) || errors.Is(err, client.ErrConfig) || errors.Is(err, client.ErrToken)
}

func private(path string) place.Spec {
	return place.Spec{Path: path, Mode: 0o600, UID: -1, GID: -1}
}

// tryWrite makes sure that writePrivate will work, and removes what a crash left of it.
func tryWrite(path string) error {
	if err := place.Clean(private(path)); err != nil {
		return err
	}
	st, err := place.Stage(private(path), secret.Value{})
	if err != nil {
		return err
	}
	return st.Release()
}

func writePrivate(path string, content secret.Value) error {
	st, err := place.Stage(private(path), content)
	if err != nil {
		return err
	}
	return errors.Join(st.Commit(), st.Release())
}
