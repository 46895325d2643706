package client

import (
	"context"
	"errors"

	"github.com/keyturn/keyturn/secret"
)

// HandleFunc takes assignments into use and returns one outcome for each. The
// keys that changed together arrive in one call; calls never overlap. What
// arrives in the meantime is collected, and of each key only the newest is
// handed over next. An assignment without an outcome is not acknowledged.
type HandleFunc func(ctx context.Context, assignments []Assignment) []Outcome

// Client calls the delivery API as one party. It is safe for concurrent use.
type Client struct{ cfg Config }

// New returns a client; it does not connect yet. The error wraps ErrConfig.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg}, nil
}

var errNotYet = errors.New("not implemented")

// Party returns who the client speaks for, with its defaults filled in.
func (c *Client) Party() Party { return c.cfg.Party }

// Watch hands every change of the known keys to handle and acknowledges the
// outcomes. It blocks until ctx ends.
func (c *Client) Watch(ctx context.Context, known []Known, handle HandleFunc) error { return errNotYet }

// Ack sends outcomes and returns when they are durable.
func (c *Client) Ack(ctx context.Context, outcomes []Outcome) error { return errNotYet }

// Report sends samples, once.
func (c *Client) Report(ctx context.Context, samples []Sample) error { return errNotYet }

// Leave removes the party from its keys, once.
func (c *Client) Leave(ctx context.Context) error { return errNotYet }

// Join exchanges a one-time join token for the party's own token, once.
func Join(ctx context.Context, cfg Config, joinToken secret.Value, party Party) (partyID string, token secret.Value, err error) {
	return "", secret.Value{}, errNotYet
}
