package ingress

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A flood leaves one line a minute.
func TestTallyIsBounded(t *testing.T) {
	var log strings.Builder
	now := time.Unix(0, 0)
	tally := NewTally(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	for range 10_000 {
		tally.Add("refused", "lastFrom", "192.0.2.1")
	}
	now = now.Add(time.Minute)
	tally.Add("refused")
	if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "times=10000") {
		t.Errorf("%d lines:\n%s", lines, log.String())
	}
}
