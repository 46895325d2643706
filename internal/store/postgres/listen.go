package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/internal/store"
)

const (
	// channel is what Updates are announced on; the payload is the topics and the
	// node that wrote.
	channel = "keyturn"
	// pingEvery is how often the listening connection proves that it is alive, if
	// nothing is heard; pingTimeout is how long the proof may take.
	pingEvery   = 5 * time.Second
	pingTimeout = 5 * time.Second
	// pollEvery is how often watchers are woken while nothing can be heard.
	pollEvery = time.Second
)

// listen wakes watchers when other nodes commit, until ctx ends. ready is closed
// after the first attempt to listen. Its session holds the lock that says that
// this node is alive.
func (s *Store) listen(ctx context.Context, ready chan struct{}) {
	first := true
	for ctx.Err() == nil {
		conn, err := s.startListening(ctx)
		if first {
			first = false
			close(ready)
		}
		// What was announced before was not heard.
		s.watches.Wake(store.AllTopics)
		if err == nil {
			s.hear(ctx, conn)
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			_ = conn.Close(closing) // it is given up
			cancel()
			continue
		}
		timer := time.NewTimer(pollEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	if first {
		close(ready)
	}
}

func (s *Store) startListening(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	conn, err := s.settings.connect(ctx, s.settings.upkeep())
	if err != nil {
		return nil, err
	}
	// The server should notice soon when this node is gone.
	_, err = conn.Exec(ctx, `SET idle_session_timeout = 0; SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; LISTEN `+channel)
	if err == nil {
		_, err = conn.Exec(ctx, "SELECT pg_advisory_lock($1::integer, hashtext($2))", aliveClass, s.node)
	}
	if err != nil {
		_ = conn.Close(ctx) // it is given up
		return nil, err
	}
	return conn, nil
}

// hear returns when the connection can no longer be trusted, or ctx ends.
func (s *Store) hear(ctx context.Context, conn *pgx.Conn) {
	for {
		waiting, cancel := context.WithTimeout(ctx, pingEvery)
		notification, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
			var touched store.Topics
			var node string
			if _, err := fmt.Sscanf(notification.Payload, "%d %s", &touched, &node); err != nil {
				touched = store.AllTopics
			}
			if node != s.node { // its own were woken at the commit
				s.watches.Wake(touched)
			}
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) || conn.IsClosed():
			return
		default:
			pinging, cancel := context.WithTimeout(ctx, pingTimeout)
			err := conn.Ping(pinging)
			cancel()
			if err != nil {
				return
			}
		}
	}
}
