package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/charmbracelet/x/term"

	"github.com/keyturn/keyturn/internal/rotation"
)

// progress shows on standard error how a rotation proceeds: on a terminal the
// last line is redrawn while time passes, elsewhere every change is a line.
// With --output json it shows nothing. Its methods may be called concurrently.
type progress struct {
	w    io.Writer
	now  func() time.Time
	live bool
	// columns of the terminal.
	columns int

	mu    sync.Mutex
	last  string
	since time.Time
	drawn bool
	stop  chan struct{}
	done  chan struct{}
}

func (a *app) newProgress() *progress {
	p := &progress{w: a.config.Stderr, now: a.config.Now}
	if a.wantsJSON() {
		p.w = io.Discard
		return p
	}
	f, ok := a.config.Stderr.(interface{ Fd() uintptr })
	if !ok || !isTerminal(a.config.Stderr) || a.env["TERM"] == "dumb" {
		return p
	}
	p.live = true
	if p.columns, _, _ = term.GetSize(f.Fd()); p.columns < 20 {
		p.columns = 80
	}
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go p.tick()
	return p
}

// tick redraws the last line every second.
func (p *progress) tick() {
	defer close(p.done)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticker.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

// update shows a state of the rotation if it differs from the one before.
func (p *progress) update(r *keyturnv1.Rotation) { p.line(headline(r)) }

// say shows a line that is no state.
func (p *progress) say(text string) { p.line(text) }

func (p *progress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == p.last {
		return
	}
	now := p.now()
	if p.live {
		p.draw()
		if p.last != "" {
			fmt.Fprintln(p.w)
		}
		p.last, p.since, p.drawn = text, now, false
		p.draw()
		return
	}
	p.last = text
	fmt.Fprintf(p.w, "%s  %s\n", now.UTC().Format("15:04:05Z"), text)
}

// draw redraws the last line, with the time it has stood.
func (p *progress) draw() {
	if p.last == "" {
		return
	}
	text := []rune(p.since.Local().Format("15:04:05") + "  " + p.last)
	took := "  " + short(p.now().Sub(p.since).Truncate(time.Second))
	if room := p.columns - len(took) - 1; len(text) > room {
		text = append(text[:max(room-1, 0)], '…')
	}
	fmt.Fprintf(p.w, "\r\x1b[2K%s\x1b[2m%s\x1b[0m", string(text), took)
	p.drawn = true
}

// end leaves the last line as it is. It may be called once.
func (p *progress) end() {
	if !p.live {
		return
	}
	close(p.stop)
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		p.draw()
		fmt.Fprintln(p.w)
	}
}

// headline says in one line where a rotation is and what it waits for.
func headline(r *keyturnv1.Rotation) string {
	var b strings.Builder
	b.WriteString(r.GetPhase())
	if s := currentStage(r); s != nil && r.GetPhase() == rotation.Presenting.String() {
		fmt.Fprintf(&b, " %s: %d of %d acknowledged", s.GetName(), s.GetAcknowledged(), s.GetPresenters())
		if s.GetState() == "baking" && s.GetBakeEndsAt() != nil {
			fmt.Fprintf(&b, ", baking until %s", s.GetBakeEndsAt().AsTime().UTC().Format("15:04:05Z"))
		}
	}
	switch {
	case r.GetHold() != nil:
		fmt.Fprintf(&b, ", on hold: %s", r.GetHold().GetMessage())
		if r.GetHold().GetHuman() {
			fmt.Fprintf(&b, " (mend it, then keyturn rotation resume %s)", shortID(r.GetId()))
		}
	case len(r.GetWaiting()) > 0 && !r.GetEnded():
		fmt.Fprintf(&b, ", waiting: %s", waitingLine(r.GetWaiting()[0]))
	case len(r.GetHolders()) > 0 && r.GetPhase() == rotation.Draining.String():
		fmt.Fprintf(&b, ", version %d is held by %s", r.GetFrom(), plural(len(r.GetHolders()), "client"))
	}
	return clean(b.String())
}

func currentStage(r *keyturnv1.Rotation) *keyturnv1.StageProgress {
	for _, s := range r.GetStages() {
		if s.GetName() == r.GetStage() {
			return s
		}
	}
	return nil
}

func waitingLine(w *keyturnv1.Waiting) string {
	s := w.GetMessage()
	if w.GetRegion() != "" {
		s = "region " + w.GetRegion() + ": " + s
	}
	if len(w.GetNames()) > 0 {
		s += ": " + names(w.GetNames(), w.GetTotal())
	}
	return s
}
