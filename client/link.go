package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

const (
	// firstAnswerSoon is how long a stream may take for its first answer before
	// a poll asks for the same, or to connect before another server is asked.
	firstAnswerSoon = 3 * time.Second
	// connectLate is how long connecting may take when there is no other server to go
	// to: it is a little more than what its parts may take.
	connectLate = handshakeLate + 35*time.Second
	// comeBackMost bounds the time that a server which stops may state, and restartLate
	// is how much later it may be there again without anybody being troubled.
	comeBackMost, restartLate = time.Minute, 30 * time.Second
	// answerLate is how long a connection may stand without an answer to anything.
	answerLate = time.Minute
	// firstAnswerLate is when a stream without any answer counts as blocked, although
	// polls get through, and when a server that connected is left for another one.
	firstAnswerLate = 10 * time.Second
	// heartbeatDefault applies when the server states no heartbeat.
	heartbeatDefault = time.Minute
	// heartbeatLeast and heartbeatMost bound what the server may state.
	heartbeatLeast, heartbeatMost = time.Second, 10 * time.Minute
	// ackSpreadMost bounds the spread of acknowledgements that the server may state.
	ackSpreadMost = 10 * time.Second
	// stable is how long a connection must last to count as a good one.
	stable = 10 * time.Second
	// strikesToFallBack is how many failures in a row make a party try the next
	// mode. It does so only if a poll gets through: otherwise the server is down.
	strikesToFallBack = 3
	// homeAfter is after how long on average a party that had to leave a server goes
	// back: else one that was restarted stays empty, and the others full.
	homeAfter = 30 * time.Minute
	// homeLate is how long it has to answer.
	homeLate = 10 * time.Second
	// refreshEvery is the least time between two polls that the party asks for itself.
	refreshEvery = time.Second
)

// link keeps one connection to the server, in the best mode that works. All its
// methods run in one goroutine.
type link struct {
	*Client
	box     *inbox
	refresh <-chan struct{}

	mode Mode
	// resume is the mode to return to when the stream is tried again in vain.
	resume Mode
	// failures counts the tries in a row that brought no stable connection.
	failures int
	// strikes counts them per mode, without those that reached no server.
	strikes int
	// reached: the present stream has a connection.
	reached atomic.Bool
	// answers counts what came over the present stream or since polling began.
	answers     int
	streamAt    time.Time
	refreshedAt time.Time
	told        Status
	// quiet is until when what fails is part of a restart that was announced, to be
	// over within the time that was stated.
	quiet  time.Time
	within time.Duration
}

func newLink(c *Client, box *inbox, refresh <-chan struct{}) *link {
	return &link{Client: c, box: box, refresh: refresh, mode: ModeStream}
}

// run connects, and reconnects, until ctx ends.
func (l *link) run(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		l.answers = 0
		var err error
		if l.mode == ModeStream {
			l.wire.patience(patienceFor(l.wire.nodes().number(), l.failures) + l.crowded())
			err = l.runStream(ctx)
		} else {
			err = l.runPoll(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			continue
		}
		if errors.Is(err, errHome) {
			l.wire.renew()
			l.wire.nodes().goHome()
			continue
		}
		var stops *stopsError
		if errors.As(err, &stops) {
			l.stayAway(ctx, stops.within)
			continue
		}
		if time.Since(began) >= stable && l.answers > 1 {
			l.failures, l.strikes, l.resume = 0, 0, 0
		}
		l.failures++
		l.strikes++
		if l.mode == ModeStream && l.patient() && !l.reached.Load() {
			// A server that is down says nothing about streams, and one that has just
			// stopped said nothing about them before.
			l.strikes = 0
		}
		restarting := !permanent(err) && time.Now().Before(l.quiet)
		if restarting {
			l.strikes = 0
		} else if !permanent(err) && l.fallBack(ctx, err) {
			continue
		}
		wait := l.retryIn(err, l.failures)
		if restarting {
			// The server needs the longer, the more parties it has.
			wait = max(wait, around(l.within/2, l.random()))
			l.cfg.Logger.DebugContext(ctx, "the server is not there again yet", "retry_in", wait, "error", err)
		} else {
			l.tell(Status{Err: err, Permanent: permanent(err), RetryIn: wait})
		}
		_ = sleep(ctx, wait)
	}
}

// errHome is why a stream ended whose party goes back to the server that it left.
var errHome = errors.New("the server that was left serves again")

// stopsError is why a stream ended whose server stops in good order.
type stopsError struct{ within time.Duration }

func (e *stopsError) Error() string {
	return fmt.Sprintf("the server stops; it asks to come back within %v", e.within)
}

// stayAway waits as long as a server asked for that stops. All its parties were
// told the same, so that each takes a random part of it.
func (l *link) stayAway(ctx context.Context, within time.Duration) {
	l.failures, l.strikes, l.resume = 0, 0, 0
	l.quiet, l.within = time.Now().Add(within+restartLate), within
	wait := within/4 + time.Duration(l.random()*float64(within)*3/4)
	l.tell(Status{RetryIn: wait})
	_ = sleep(ctx, wait)
}

// fallBack moves to the next mode when this one has failed often enough while
// requests get through.
func (l *link) fallBack(ctx context.Context, err error) bool {
	if l.mode == ModePoll || retryAfter(err, l.cfg.Now()) > 0 {
		return false
	}
	if l.strikes < strikesToFallBack && l.resume == 0 && !errors.Is(err, ErrStreamBlocked) {
		return false
	}
	if _, pollErr := l.pollOnce(ctx, 0); pollErr != nil {
		return false
	}
	next := ModeLongPoll
	if l.mode == ModeLongPoll || l.resume == ModePoll {
		next = ModePoll
	}
	l.mode, l.resume, l.strikes, l.failures = next, 0, 0, 0
	l.streamAt = time.Now().Add(around(l.cfg.StreamRetry, l.random()))
	l.tell(Status{Mode: next, Err: err})
	return true
}

// runStream serves one stream until it ends and says why it did.
func (l *link) runStream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	answers, ended := make(chan *keyturnv1.WatchResponse), make(chan error, 1)
	connected := make(chan time.Duration, 1)
	began := time.Now()
	l.reached.Store(false)
	tracing := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		l.reached.Store(true)
		select {
		case connected <- time.Since(began):
		default: // it is tried once more on another connection
		}
	}})
	go func() { ended <- l.receive(tracing, answers) }()
	err := l.serveStream(ctx, connected, answers, ended)
	cancel()
	for range answers { // until the receiver has gone
	}
	return err
}

// receive passes the answers of one stream on until it ends.
func (l *link) receive(ctx context.Context, answers chan<- *keyturnv1.WatchResponse) error {
	defer close(answers)
	req := &keyturnv1.WatchRequest{Party: partyToWire(l.cfg.Party), Keys: knownToWire(l.box.known())}
	s, err := l.wire.watch(ctx, req)
	if err != nil {
		return err
	}
	defer s.close()
	for {
		answer, err := s.next()
		if errors.Is(err, io.EOF) {
			return errEnded
		}
		if err != nil {
			return err
		}
		select {
		case answers <- answer:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *link) serveStream(ctx context.Context, connected <-chan time.Duration, answers <-chan *keyturnv1.WatchResponse, ended <-chan error) error {
	heartbeat, probed := heartbeatDefault, false
	server := l.wire.nodes().current()
	soon, began := firstAnswerSoon+l.crowded(), time.Now()
	watchdog := time.NewTimer(soon)
	defer watchdog.Stop()
	homeward := time.NewTimer(around(homeAfter, l.random()))
	defer homeward.Stop()
	ready := make(chan error, 1)
	if l.patient() {
		watchdog.Reset(connectLate)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case took := <-connected:
			// A server that was slow to connect has many others to answer as well: asking
			// it a second time would only add to them, and so would asking another server
			// that has the same to do.
			if l.answers == 0 && !probed {
				if soon, began = max(firstAnswerSoon, took), time.Now(); !l.patient() {
					soon = firstAnswerLate
				}
				watchdog.Reset(soon)
			}
		case answer, open := <-answers:
			if !open {
				return <-ended
			}
			if d := answer.GetHeartbeat(); d.IsValid() && d.AsDuration() > 0 {
				heartbeat = min(max(d.AsDuration(), heartbeatLeast), heartbeatMost)
			}
			if d := answer.GetComeBack(); d.IsValid() && d.AsDuration() > 0 {
				l.wire.nodes().leave(server)
				return &stopsError{min(d.AsDuration(), comeBackMost)}
			}
			l.answers++
			if l.answers == 1 {
				l.tell(Status{Mode: ModeStream})
			}
			if d := answer.GetAckSpread(); d.IsValid() && d.AsDuration() > 0 {
				l.acks.spread(min(d.AsDuration(), ackSpreadMost), l.random())
			}
			l.deliver(answer.GetAssignments())
			watchdog.Reset(heartbeat)
		case <-watchdog.C:
			switch {
			case l.answers > 0:
				l.wire.renew() // a request over the same connection would hang as well
				l.wire.nodes().leave(server)
				return fmt.Errorf("%w for %v", ErrSilent, heartbeat)
			case probed:
				return ErrStreamBlocked
			case l.failures < l.wire.nodes().number()-1:
				l.wire.renew()
				l.wire.nodes().leave(server) // another one may answer at once
				return fmt.Errorf("no answer within %v", soon)
			}
			_, err := l.pollOnce(ctx, 0)
			if err != nil && l.patient() && errors.Is(err, context.DeadlineExceeded) && time.Since(began) < answerLate {
				// Nothing is answered on a connection that stands: the server is busy, and
				// pings tell when it is dead. Another connection would only add to its work.
				soon *= 2
				watchdog.Reset(soon)
				continue
			}
			if err != nil {
				l.wire.renew()
				return fmt.Errorf("no answer within %v: %w", soon, err)
			}
			probed = true
			watchdog.Reset(firstAnswerLate - firstAnswerSoon)
		case <-homeward.C:
			homeward.Reset(around(homeAfter, l.random()))
			if home := l.wire.nodes().home(); home != nil && l.answers > 0 {
				go func() { ready <- l.isReady(ctx, home) }()
			}
		case err := <-ready:
			if err == nil {
				return errHome
			}
			l.cfg.Logger.DebugContext(ctx, "the server that was left does not serve yet", "error", err)
		case <-l.refreshDue():
			l.refreshNow(ctx)
		}
	}
}

// isReady asks a server before the one that serves is left for it.
func (l *link) isReady(ctx context.Context, server *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, homeLate)
	defer cancel()
	return l.wire.ready(ctx, server)
}

// crowded is how much longer than usual a server may take to connect: those who were
// at one that stops come to the others within the time that it stated.
func (l *link) crowded() time.Duration {
	if time.Now().Before(l.quiet) {
		return l.within
	}
	return 0
}

// patient reports whether the time to connect does not count as time to answer:
// there is no other server to go to, or all were late already, and it is known when
// the connection stands.
func (l *link) patient() bool {
	if n := l.wire.nodes().number(); n > 1 && l.failures < n {
		return false
	}
	if l.cfg.HTTPClient == nil {
		return true
	}
	_, known := l.cfg.HTTPClient.Transport.(*http.Transport)
	return known
}

// runPoll serves the polling modes. It returns nil when the stream should be
// tried again.
func (l *link) runPoll(ctx context.Context) error {
	idle := 0
	for ctx.Err() == nil {
		if !time.Now().Before(l.streamAt) {
			l.resume, l.mode = l.mode, ModeStream
			return nil
		}
		wait := time.Duration(0)
		if l.mode == ModeLongPoll {
			wait = l.cfg.LongPollWait
		}
		asked := time.Now()
		fresh, err := l.pollOnce(ctx, wait)
		if err != nil {
			return err
		}
		l.failures, l.strikes = 0, 0
		l.answers++
		l.tell(Status{Mode: l.mode, Err: l.told.Err})
		pause := around(l.cfg.PollInterval, l.random())
		if l.mode == ModeLongPoll {
			// An answer that is early and empty must not become a busy loop.
			if fresh > 0 || time.Since(asked) >= wait/2 {
				idle = 0
				continue
			}
			idle++
			pause = backoff{l.cfg.BackoffMin, l.cfg.PollInterval}.wait(idle, 2, l.random())
		}
		l.pause(ctx, pause)
	}
	return ctx.Err()
}

// pause waits for d; a refresh ends it early.
func (l *link) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-l.refreshDue():
	}
}

// refreshDue returns the channel of refreshes, or nil as long as one is too recent.
func (l *link) refreshDue() <-chan struct{} {
	if time.Since(l.refreshedAt) < refreshEvery {
		return nil
	}
	return l.refresh
}

// refreshNow polls outside the usual order because the party has reason to
// believe that it missed something.
func (l *link) refreshNow(ctx context.Context) {
	if _, err := l.pollOnce(ctx, 0); err != nil {
		l.cfg.Logger.DebugContext(ctx, "refresh failed; the connection goes on", "error", err)
	}
}

// pollOnce asks once and delivers what came. It returns how much of it is new.
func (l *link) pollOnce(ctx context.Context, wait time.Duration) (int, error) {
	l.refreshedAt = time.Now()
	ctx, cancel := context.WithTimeout(ctx, wait+l.cfg.RequestTimeout)
	defer cancel()
	answer, err := l.wire.poll(ctx, pollToWire(l.cfg.Party, l.box.known(), durationpb.New(wait)))
	if err != nil {
		if ctx.Err() != nil && (l.mode != ModeStream || l.answers > 0 || !l.patient()) {
			l.wire.renew() // nothing came back: the connection may be dead
		}
		return 0, err
	}
	return l.deliver(answer.GetAssignments()), nil
}

// deliver puts assignments into the inbox. One that makes no sense is left out
// and does not hold up the others.
func (l *link) deliver(wire []*keyturnv1.Assignment) int {
	batch := make([]Assignment, 0, len(wire))
	for _, w := range wire {
		a, err := assignmentFromWire(w)
		if err != nil {
			l.cfg.Logger.Error("the server sent an assignment that makes no sense; it is left out", "error", err)
			continue
		}
		batch = append(batch, a)
	}
	fresh, again := l.box.add(batch)
	if len(again) > 0 {
		if _, err := l.acks.add(again, nil); err != nil {
			l.cfg.Logger.Error("outcomes are not acknowledged again", "error", err)
		}
	}
	return fresh
}

// tell passes a status on unless it says nothing new.
func (l *link) tell(s Status) {
	if s.Mode == l.told.Mode && s.RetryIn == l.told.RetryIn && s.Permanent == l.told.Permanent && errorText(s.Err) == errorText(l.told.Err) {
		return
	}
	l.told = s
	switch {
	case s.Err != nil:
		l.cfg.Logger.Warn("connection to the server", "mode", s.Mode.String(), "permanent", s.Permanent, "retry_in", s.RetryIn, "error", s.Err)
	case s.Mode == 0:
		l.cfg.Logger.Info("the server stops; coming back", "retry_in", s.RetryIn)
	default:
		l.cfg.Logger.Debug("connection to the server", "mode", s.Mode.String())
	}
	l.cfg.OnStatus(s)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
