// Package execute runs a program with credentials, and with the new ones after
// a rotation: the core of "keyturn exec".
//
// Guarantees:
//   - The program starts only when every credential is there, and user name and
//     password always belong to one version.
//   - Secrets travel by environment or by a file in memory, never in arguments
//     and never on a disk.
//   - A version is acknowledged as applied only after the program has run with it
//     for the settling period and is healthy; when it does not, the program is
//     started again with the version before, and the server hears of the failure.
//   - Signals reach the program; the exit code is the program's.
//   - The program gets none of Keyturn's own tokens.
//
// Linux only.
package execute

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

var (
	// ErrOptions is wrapped by every error about Options or a flag's value.
	ErrOptions = errors.New("invalid options")
	// ErrNoCredential: the credentials did not arrive in time.
	ErrNoCredential = errors.New("no credential")
	// ErrStart: the program could not be started.
	ErrStart = errors.New("cannot start the program")
)

// Defaults of Options.
const (
	DefaultKillAfter = 10 * time.Second
	DefaultSettle    = time.Second
	DefaultWait      = 30 * time.Second
)

// OnChange says what happens when a credential changes. The zero value is invalid.
type OnChange uint8

// What may happen.
const (
	// Restart ends the program and starts it with the new credentials.
	Restart OnChange = iota + 1
	// Signal replaces the files and sends Options.Signal.
	Signal
	// None replaces the files and leaves it to the program to notice. Without
	// files the program keeps what it has: nothing is acknowledged then, so that
	// its version stays accepted until it ends.
	None
)

// Delivery is what Run needs of a server; *client.Client implements it.
type Delivery interface {
	Watch(ctx context.Context, known []client.Known, handle client.HandleFunc) error
	Ack(ctx context.Context, outcomes []client.Outcome) error
}

// Env puts one field of a key into an environment variable.
type Env struct {
	Name  string
	Key   key.Name
	Field string
}

// File puts a rendering into a file in memory, whose path is in an environment
// variable.
type File struct {
	// Name is the environment variable that holds the path.
	Name string
	// Template is the content, as in an agent's target.
	Template string
}

// Options say what to run and with what. Delivery, Command, OnChange and at
// least one of Keys, Env and Files are required.
type Options struct {
	Delivery Delivery
	// Keys are delivered whole unless Env or Files name them: each field as
	// SEGMENT_FIELD in upper case, where SEGMENT is the last one of the key's name
	// (prod/orders/db gives DB_USERNAME and DB_PASSWORD).
	Keys  []key.Name
	Env   []Env
	Files []File
	// Command is the program, looked up in PATH, and its arguments.
	Command []string
	// Environ is what the program inherits, as NAME=value.
	Environ []string
	// Stdin, Stdout and Stderr are handed to the program as they are.
	Stdin, Stdout, Stderr *os.File
	OnChange              OnChange
	// Signal is sent when OnChange is Signal.
	Signal syscall.Signal
	// KillAfter is how long a program may take to end after SIGTERM. Here and
	// below, zero means the default.
	KillAfter time.Duration
	// Settle is how long a program must run with a new version to count as well.
	Settle time.Duration
	// Wait is how long the first credentials are awaited.
	Wait time.Duration
	// Health, if set, must pass after the settling period.
	Health *run.Health
	// Signals are forwarded to the program. May be nil.
	Signals <-chan os.Signal
	// Logger takes what an operator should know; nil discards it.
	Logger *slog.Logger
	// Dumpable leaves out harden.Process, which Run calls otherwise.
	Dumpable bool
}
