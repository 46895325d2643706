package ingress

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
)

// NewServer returns a server that bounds the headers of requests, idle connections
// and the streams of each connection. It has no TLS and bounds no bodies: give it a
// TLSConfig, and a handler inside Gate.Wrap. What it says of single connections is
// logged at level debug.
func NewServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 1000, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// AnswerHealth answers a question after health: ok, or 503 and why not.
func AnswerHealth(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, err) // the caller is gone if this fails
		return
	}
	_, _ = fmt.Fprintln(w, "ok") // the caller is gone if this fails
}
