package demo

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/provider"
)

// target is the system whose credential is rotated.
type target interface {
	name() string
	drivers() map[string]provider.Driver
	keyDocument() string
	// user returns what an application does with the credential.
	user(a *app) user
	close() error
}

// user uses a credential as an application does. request is called by one
// goroutine at a time.
type user interface {
	request(ctx context.Context) error
	close()
}

// The names of the targets.
const (
	targetPostgres = "postgresql"
	targetAPIKeys  = "http-api-keys" //nolint:gosec // the name of a target, no key
)

// chooseTarget starts the system to rotate: a private PostgreSQL where its
// programs are found, else an HTTP server that checks API keys.
func chooseTarget(ctx context.Context, wanted, dir string, show *display) (chosen target, why string, err error) {
	bin, missing := pgserver.Find()
	switch {
	case wanted == targetAPIKeys:
		why = "it was asked for"
	case wanted != "" && wanted != targetPostgres:
		return nil, "", fmt.Errorf("unknown target %q; use %s or %s", wanted, targetPostgres, targetAPIKeys)
	case missing != nil && wanted == targetPostgres:
		return nil, "", missing
	case missing != nil:
		why = missing.Error()
	default:
		show.step("Starting a private PostgreSQL primary and a hot standby from %s", bin)
		chosen, err := startPostgres(ctx, dir, bin)
		if err == nil {
			return chosen, "its programs are in " + bin, nil
		}
		if wanted == targetPostgres || errors.Is(err, context.Canceled) {
			return nil, "", err
		}
		why = "PostgreSQL did not start: " + err.Error()
	}
	show.step("Starting an HTTP server that checks API keys (%s)", why)
	chosen, err = startAPI(ctx)
	return chosen, why, err
}
