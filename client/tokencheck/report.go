package tokencheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/dpop"
)

const (
	// reportPath is where refused tokens are reported, below the issuer.
	reportPath = "/oauth/report"
	// maxRefused bounds those that are told apart between two reports; the others are
	// counted together.
	maxRefused = 128
	// maxTold is how long a name may be in a report, in bytes.
	maxTold = 256
	// maxCount is how many refusals one line of a report may stand for.
	maxCount = 1_000_000
	// reportTime bounds one report, and lastTime the last one, of Close.
	reportTime = 10 * time.Second
	lastTime   = 2 * time.Second
)

// refusedOf is who was refused, as far as that is known. Replay: a good token came with
// a proof that was shown before.
type refusedOf struct {
	client, address string
	replay          bool
}

// refusals are those that were not reported yet.
type refusals struct {
	mu     sync.Mutex
	counts map[refusedOf]int
}

func (r *refusals) add(of refusedOf, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = map[refusedOf]int{}
	}
	if _, known := r.counts[of]; !known && len(r.counts) >= maxRefused {
		of.client, of.address = "", "" // nobody hides in a crowd
	}
	r.counts[of] = min(r.counts[of]+n, maxCount)
}

func (r *refusals) take() map[refusedOf]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := r.counts
	r.counts = nil
	return counts
}

// refused notes a token that was refused; claims are those of one that is good.
func (c *Checker) refused(claims *Claims, shown *Shown, err error) {
	if c.config.Report == nil || !errors.Is(err, ErrRefused) {
		return
	}
	of := refusedOf{client: claims.Client, replay: errors.Is(err, dpop.ErrReplayed)}
	if of.client == "" {
		of.client = claims.Subject
	}
	if len(of.client) > maxTold {
		of.client = ""
	}
	if ip := net.ParseIP(shown.Address); ip != nil {
		of.address = ip.String()
	}
	c.told.add(of, 1)
}

// refusedLine is one line of a report.
type refusedLine struct {
	Client  string `json:"client,omitempty"`
	Address string `json:"address,omitempty"`
	Count   int    `json:"count"`
	Replay  bool   `json:"replay,omitempty"`
}

// reportRefusals tells the server whom this service refused, until ctx ends, and then
// once more.
func (c *Checker) reportRefusals(ctx context.Context) {
	ticker := time.NewTicker(c.config.ReportEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			c.reportLast(ctx)
			return
		case <-ticker.C:
		}
		bounded, cancel := context.WithTimeout(ctx, reportTime)
		err := c.report(bounded)
		cancel()
		if err != nil && ctx.Err() == nil && !failing {
			c.config.Logger.WarnContext(ctx, "refused tokens could not be reported; they are kept", "error", err)
		}
		failing = err != nil
	}
}

// reportLast sends what is left.
func (c *Checker) reportLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	if err := c.report(ctx); err != nil {
		c.config.Logger.WarnContext(ctx, "the last refused tokens could not be reported", "error", err)
	}
}

// report sends what there is. What could not be sent is kept.
func (c *Checker) report(ctx context.Context) error {
	counts := c.told.take()
	if len(counts) == 0 {
		return nil
	}
	err := c.send(ctx, counts)
	if err != nil {
		for of, n := range counts {
			c.told.add(of, n)
		}
	}
	return err
}

func (c *Checker) send(ctx context.Context, counts map[refusedOf]int) error {
	var body struct {
		Refused []refusedLine `json:"refused"`
	}
	for of, n := range counts {
		body.Refused = append(body.Refused, refusedLine{of.client, of.address, n, of.replay})
	}
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode a report: %w", err)
	}
	token, err := c.config.Report.Token(ctx)
	if err != nil {
		return fmt.Errorf("the token for reports: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.config.ReportURL, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+token.RevealString())
	response, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // its status is enough
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4096))
	if response.StatusCode != http.StatusNoContent && response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", c.config.ReportURL, response.Status)
	}
	return nil
}
