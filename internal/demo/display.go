package demo

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// display writes what happens: a line for each change and, on a terminal, one
// line at the bottom that is kept up to date.
type display struct {
	mu      sync.Mutex
	out     io.Writer
	live    bool
	begun   time.Time
	fleet   *fleet
	last    string
	stopped chan struct{}
	closing sync.Once
	running sync.WaitGroup
}

func newDisplay(out io.Writer, live bool) *display {
	return &display{out: out, live: live, begun: time.Now(), stopped: make(chan struct{})}
}

// step announces a part of the demonstration.
func (d *display) step(format string, args ...any) { d.line("\n"+d.bold("▸ "+format), args...) }

// say adds a detail.
func (d *display) say(format string, args ...any) { d.line("    "+format, args...) }

func (d *display) bold(s string) string {
	if !d.live {
		return s
	}
	return "\x1b[1m" + s + "\x1b[0m"
}

func (d *display) line(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live {
		_, _ = fmt.Fprint(d.out, "\r\x1b[K") // a display that fails hinders nobody
	}
	_, _ = fmt.Fprintf(d.out, format+"\n", args...)
	d.status()
}

// follow keeps the line at the bottom up to date with what the fleet does.
func (d *display) follow(f *fleet) {
	d.mu.Lock()
	d.fleet = f
	d.mu.Unlock()
	if !d.live {
		return
	}
	d.running.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-d.stopped:
				return
			case <-ticker.C:
			}
			d.mu.Lock()
			d.status()
			d.mu.Unlock()
		}
	})
}

// status writes the line at the bottom.
func (d *display) status() {
	if d.fleet == nil || !d.live {
		return
	}
	_, _ = fmt.Fprintf(d.out, "\r\x1b[K\x1b[2m%4.0fs  %s\x1b[0m", time.Since(d.begun).Seconds(), d.load())
}

// load says what the fleet has done and which versions it uses.
func (d *display) load() string {
	counts := d.fleet.versions()
	var uses []string
	for _, v := range slices.Sorted(maps.Keys(counts)) {
		uses = append(uses, fmt.Sprintf("%v ×%d", v, counts[v]))
	}
	return fmt.Sprintf("%d requests, %d failed · in use: %s", d.fleet.requests.Load(), d.fleet.failures.Load(), strings.Join(uses, ", "))
}

// rotation tells of a change of a rotation.
func (d *display) rotation(r *keyturnv1.Rotation) {
	text := r.GetPhase()
	switch {
	case r.GetFrom() != 0 && r.GetTo() != 0:
		text = fmt.Sprintf("%-12s v%d → v%d", r.GetPhase(), r.GetFrom(), r.GetTo())
	case r.GetFrom() != 0 || r.GetTo() != 0:
		text = fmt.Sprintf("%-12s v%d", r.GetPhase(), r.GetFrom()+r.GetTo())
	}
	if r.GetStage() != "" {
		for _, stage := range r.GetStages() {
			if stage.GetName() == r.GetStage() {
				text += fmt.Sprintf("  stage %s %s: %d of %d acknowledged", stage.GetName(), stage.GetState(), stage.GetAcknowledged(), stage.GetPresenters())
			}
		}
	}
	if phase := r.GetPhase(); phase == "rolling-back" || phase == "rolled-back" {
		text += "  " + r.GetReason()
	}
	if hold := r.GetHold(); hold != nil {
		text += "  on hold: " + hold.GetMessage()
	}
	d.mu.Lock()
	repeated := text == d.last
	d.last = text
	if d.fleet != nil && !d.live {
		text += "  [" + d.load() + "]"
	}
	d.mu.Unlock()
	if !repeated {
		d.say("%5.1fs  %s", time.Since(d.begun).Seconds(), text)
	}
}

func (d *display) close() {
	d.closing.Do(func() {
		close(d.stopped)
		d.running.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.fleet = nil
		if d.live {
			_, _ = fmt.Fprint(d.out, "\r\x1b[K")
		}
	})
}

// Print writes the summary for people.
func (s *Summary) Print(w io.Writer) error {
	verdict := "Not one request failed."
	if len(s.Failures) > 0 {
		verdict = "It did not go as it should:\n  " + strings.Join(s.Failures, "\n  ")
	}
	_, err := fmt.Fprintf(w, `
%s

  target            %s (%s)
  applications      %d
  requests          %d, %d failed
  rotations         %d, %d rolled back as it should be (service restored and version refused in %.1f s)
  new version used  within %.0f ms of its publication (p99 of %d)
  audit log         %d entries, verified offline: %v
  took              %.1f s
`, verdict, s.Target, s.Why, s.Applications, s.Requests, s.FailedRequests, s.Rotations, s.RolledBack, s.RollbackMS/1000,
		s.PropagationP99, s.Propagations, s.AuditEntries, s.AuditVerified, s.Seconds)
	return err
}
