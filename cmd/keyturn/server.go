package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/keyturn/keyturn/internal/cli"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/secret"
)

// stopWithin is how long calls under way may take when the server stops.
const stopWithin = 10 * time.Second

func runServer(ctx context.Context, o cli.ServerOptions) error {
	config, err := server.LoadConfig(o.ConfigFile)
	if err != nil {
		return err
	}
	return serve(ctx, config, o.Stderr, func(srv *server.Server) error {
		text := fmt.Sprintf("Keyturn answers at %s. Auditors trust the key %s.\n", srv.Address(), srv.VerifierKey())
		if path := srv.TokenFile(); path != "" {
			text += fmt.Sprintf("The first token, of role admin, is in %s: use it with keyturn login, then delete the file.\n", path)
		}
		_, err := io.WriteString(o.Stderr, text)
		return err
	})
}

// serve runs a server until ctx ends or it fails; ready is called once it answers.
func serve(ctx context.Context, config server.Config, logTo io.Writer, ready func(*server.Server) error) (err error) {
	if err := protect(); err != nil {
		return err
	}
	srv, err := server.Start(ctx, config, server.Options{LogTo: logTo, Version: version})
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		err = errors.Join(err, srv.Stop(stopping))
	}()
	if err := ready(srv); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-srv.Failed():
		return fmt.Errorf("the server ended by itself: %w", err)
	}
}

func runDev(ctx context.Context, o cli.DevOptions) (err error) {
	if err := checkLoopback(o.Listen); err != nil {
		return err
	}
	dir := o.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "keyturn-dev-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	config := server.Config{
		Listen: o.Listen, DataDir: dir, LogName: "keyturn-dev", Log: server.LogConfig{Format: "text"},
	}
	return serve(ctx, config, o.Stderr, func(srv *server.Server) error {
		token, err := os.ReadFile(filepath.Join(dir, "root.token"))
		if err != nil {
			return fmt.Errorf("read the root token: %w", err)
		}
		return o.Ready(cli.DevServer{
			Address: srv.Address(), CACert: srv.CAFile(), Token: secret.New(bytes.TrimSpace(token)), Dir: dir, AuditKey: srv.VerifierKey(),
		})
	})
}

// checkLoopback keeps a throw-away server, whose token is on a screen, from the network.
func checkLoopback(listen string) error {
	host, _, err := net.SplitHostPort(listen)
	ip, parseErr := netip.ParseAddr(host)
	if err != nil || host != "localhost" && (parseErr != nil || !ip.IsLoopback()) {
		return fmt.Errorf("--listen: %q is no loopback address with a port; write for example 127.0.0.1:7447, or run keyturn server", listen)
	}
	return nil
}
