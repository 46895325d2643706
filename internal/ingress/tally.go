package ingress

import (
	"log/slog"
	"sync"
	"time"
)

// tallyEvery is how often what was refused is told of.
const tallyEvery = time.Minute

// Tally logs what happens often with its number, and each thing at most once a
// minute: a flood must not fill the log's disk.
type Tally struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	lines map[string]*tallied
}

type tallied struct {
	n    int
	told time.Time
}

// NewTally returns a Tally that has counted nothing. It warns through the logger.
func NewTally(log *slog.Logger, now func() time.Time) *Tally {
	return &Tally{log: log, now: now, lines: map[string]*tallied{}}
}

// Add counts that something was refused. what is one of a fixed few, since all of
// them are kept; args are attributes of the line, as slog takes them.
func (t *Tally) Add(what string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := t.lines[what]
	if line == nil {
		line = &tallied{}
		t.lines[what] = line
	}
	line.n++
	now := t.now()
	if !line.told.IsZero() && now.Sub(line.told) < tallyEvery {
		return
	}
	t.log.Warn("refused", append([]any{"what", what, "times", line.n}, args...)...)
	line.n, line.told = 0, now
}
