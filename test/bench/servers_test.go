package bench

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/provider"
)

// serverOrders tell a child process which server it is.
type serverOrders struct {
	Config server.Config
	// Accepted is the folder of what the instant systems of all servers accept.
	Accepted string
}

// serving is what a server in a child process prints once it is ready.
type serving struct{ Address, CAFile string }

// runServer is the main function of a child process that is a server.
func runServer(ctx context.Context, o serverOrders) error {
	o.Config.Listen, o.Config.Log.Level = "127.0.0.1:0", "warn"
	srv, err := server.Start(ctx, o.Config, server.Options{
		Drivers: map[string]provider.Driver{"instant": &instant{accepted: folder(o.Accepted)}}, LogTo: io.Discard,
	})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(serving{srv.Address(), srv.CAFile()}); err != nil {
		return err
	}
	<-ctx.Done()
	// As long as keyturn server gives calls under way.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := srv.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop the server: %w", err)
	}
	return nil
}

// startServerProcess starts a server in a process of its own.
func startServerProcess(b *testing.B, o serverOrders) *world {
	b.Helper()
	ready := make(chan serving, 1)
	ended := make(chan struct{})
	c := startChild(b, roleServer, o, func(decoder *json.Decoder) error {
		var s serving
		if err := decoder.Decode(&s); err != nil {
			close(ended)
			return err
		}
		ready <- s
		return nil
	})
	select {
	case s := <-ready:
		w := operate(b, s.Address, s.CAFile, filepath.Join(o.Config.DataDir, "root.token"))
		w.pid, w.stop = c.pid, c.stop
		return w
	case <-ended:
		b.Fatal("the server ended before it was ready")
	case <-time.After(time.Minute):
		b.Fatal("the server is not ready after a minute")
	}
	return nil
}

// folder is a set that several processes share: a file for each element.
type folder string

func (f folder) path(element string) string {
	return filepath.Join(string(f), fmt.Sprintf("%x", sha256.Sum256([]byte(element))))
}

func (f folder) put(element string, in bool) error {
	if in {
		return os.WriteFile(f.path(element), nil, 0o600)
	}
	if err := os.Remove(f.path(element)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f folder) has(element string) (bool, error) {
	_, err := os.Stat(f.path(element))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
