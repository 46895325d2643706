package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Health says how to find out whether an application is well. Exactly one of
// Command, HTTP and TCP is set.
type Health struct {
	// Command is healthy when it exits with 0.
	Command []string
	// HTTP is a URL that must answer a GET with a status from 200 to 299;
	// redirects are not followed.
	HTTP string
	// TCP is host:port that must accept a connection.
	TCP string
	// Timeout bounds one try.
	Timeout time.Duration
	// Retries is how many more tries Check makes after the first, and Interval
	// the time between them.
	Retries  int
	Interval time.Duration
	// Env is added to the command's environment.
	Env []string
}

// Once tries once. The error wraps ErrUnhealthy.
func (h Health) Once(ctx context.Context, redact Redactor) error {
	var err error
	switch {
	case len(h.Command) > 0:
		err = Command{Args: h.Command, Timeout: h.Timeout, Env: h.Env}.Run(ctx, redact)
	case h.HTTP != "":
		err = h.get(ctx, redact)
	default:
		err = h.dial(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnhealthy, err)
	}
	return nil
}

// Check tries until it is healthy, or the tries are used up, or ctx ends.
func (h Health) Check(ctx context.Context, redact Redactor) error {
	for left := h.Retries; ; left-- {
		err := h.Once(ctx, redact)
		if err == nil {
			return nil
		}
		if left == 0 {
			return fmt.Errorf("%w (%d tries)", err, h.Retries+1)
		}
		timer := time.NewTimer(h.Interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
	}
}

func (h Health) get(ctx context.Context, redact Redactor) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.HTTP, nil)
	if err != nil {
		return fmt.Errorf("health URL: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, int64(MaxOutput+redact.Longest())))
	return fmt.Errorf("GET %s answered %s: %s", h.HTTP, resp.Status, redact.Text(body, MaxOutput))
}

func (h Health) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", h.TCP)
	if err != nil {
		return err
	}
	return conn.Close()
}
