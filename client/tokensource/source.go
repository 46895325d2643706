package tokensource

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/keyturn/keyturn/secret"
)

// Token is an access token.
type Token struct {
	Value secret.Value
	// Type is the scheme of the header Authorization: Bearer or DPoP.
	Type string
	// Issued is when it was asked for, Expires when it ends, by this process's clock.
	Issued, Expires time.Time
	// Scopes are those that were granted, as far as the broker says. They must not be changed.
	Scopes []string
}

// Status is how the source fares.
type Status struct {
	// Expires is when the token that is held ends, zero without one; Success when the
	// last one was given.
	Expires, Success time.Time
	// Failures is how many requests in a row have failed, Err why the last one did.
	Failures int
	Err      error
	// Next is when the broker is asked again.
	Next time.Time
}

// Source has a token. Its methods may be called concurrently.
type Source struct {
	config    Config
	endpoints []string
	http      *http.Client
	prover    *prover

	// Only the goroutine that asks uses these: the server that is asked, and the nonce.
	turn  int
	nonce string

	mu   sync.Mutex
	held Token
	// refused is the value that Renew wants to be rid of.
	refused secret.Value
	status  Status
	// asked is when the last request began, asking that it goes on.
	asked   time.Time
	asking  bool
	stopped bool
	// changed is closed at the end of each request.
	changed chan struct{}
	// wanted asks for a request now.
	wanted chan struct{}

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// renewEvery is how often a token that was refused is replaced before its time.
const renewEvery = 5 * time.Second

// Open returns a source that asks for its first token at once, without waiting for
// it. The error wraps ErrConfig. Close must be called.
func Open(ctx context.Context, config Config) (*Source, error) {
	endpoints, err := config.complete()
	if err != nil {
		return nil, err
	}
	s := &Source{config: config, endpoints: endpoints, changed: make(chan struct{}), wanted: make(chan struct{}, 1)}
	if s.http, err = config.newHTTPClient(); err != nil {
		return nil, err
	}
	if config.DPoP {
		if s.prover, err = newProver(); err != nil {
			return nil, err
		}
	}
	s.turn = rand.IntN(len(endpoints)) //nolint:gosec // it spreads clients and guards no secret
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.running.Go(func() { s.run(running) })
	return s, nil
}

// Close ends the requests and forgets the token. Callers that wait get ErrClosed.
func (s *Source) Close() {
	s.cancel()
	s.running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.changed)
	}
	s.held = Token{}
	s.http.CloseIdleConnections()
}

// Status tells how the source fares.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Token returns a valid token: at once if one is held, else as soon as the broker
// gives one. It fails with ErrNoToken when ctx or Config.MaxWait ends before, at once
// when the broker refuses for a reason that does not pass by itself, and with ErrClosed.
func (s *Source) Token(ctx context.Context) (Token, error) {
	return s.await(ctx, func() (Token, bool, error) {
		if usable(s.held, s.config.Now()) {
			return s.held, true, nil
		}
		if s.status.Failures == 0 && !s.asking {
			s.wake() // the process was frozen
		}
		if lasting(s.status.Err) {
			return Token{}, true, fmt.Errorf("%w: %w; the broker is asked again in %v", ErrNoToken, s.status.Err, s.status.Next.Sub(s.config.Now()).Round(time.Second))
		}
		return Token{}, false, nil
	})
}

// Renew returns another token than one that was refused, and asks the broker for it
// if need be, though at most every few seconds: a resource that refuses every token
// costs the broker little. Until another one is there, Token returns the one held:
// other resources may accept it. It fails like Token, and when it is too early.
func (s *Source) Renew(ctx context.Context, refused Token) (Token, error) {
	woken := false
	return s.await(ctx, func() (Token, bool, error) {
		now := s.config.Now()
		switch {
		case !s.held.Value.Equal(refused.Value) && usable(s.held, now):
			return s.held, true, nil
		case s.status.Failures > 0, !woken && !s.asking && now.Sub(s.asked) < renewEvery:
			return Token{}, true, fmt.Errorf("%w: another one is not to be had now: %w", ErrNoToken, errors.Join(s.status.Err, errEarly))
		case !woken:
			woken, s.refused = true, refused.Value
			if !s.asking {
				s.wake()
			}
		}
		return Token{}, false, nil
	})
}

// errEarly is why Renew may fail without a request.
var errEarly = errors.New("one was asked for a moment ago")

// await calls look, with the lock held, until it is done.
func (s *Source) await(ctx context.Context, look func() (Token, bool, error)) (Token, error) {
	if ctx.Err() != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrNoToken, ctx.Err())
	}
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		s.mu.Lock()
		changed, stopped, last := s.changed, s.stopped, s.status.Err
		token, done, err := Token{}, false, error(nil)
		if !stopped {
			token, done, err = look()
		}
		s.mu.Unlock()
		if stopped {
			return Token{}, ErrClosed
		}
		if done {
			return token, err
		}
		if timer == nil {
			timer = time.NewTimer(s.config.MaxWait)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Token{}, fmt.Errorf("%w: %w", ErrNoToken, errors.Join(ctx.Err(), last))
		case <-timer.C:
			return Token{}, fmt.Errorf("%w after %v: %w", ErrNoToken, s.config.MaxWait, errors.Join(context.DeadlineExceeded, last))
		}
	}
}

// margin is how long before its end a token is not handed out any more: a request
// takes time, and clocks of verifiers may be ahead.
func margin(life time.Duration) time.Duration { return min(life/20, 10*time.Second) }

// usable reports whether a token is valid by the monotonic and by the wall clock.
func usable(t Token, now time.Time) bool {
	if t.Type == "" {
		return false
	}
	end := t.Expires.Add(-margin(t.Expires.Sub(t.Issued)))
	return now.Before(end) && now.Round(0).Before(end.Round(0))
}

// wake makes run ask now.
func (s *Source) wake() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// run asks for tokens until ctx ends.
func (s *Source) run(ctx context.Context) {
	for ctx.Err() == nil {
		began := s.config.Now()
		s.mu.Lock()
		s.asked, s.asking = began, true
		s.mu.Unlock()
		a, err := s.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		timer := time.NewTimer(s.took(ctx, &a, err, began))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.wanted:
		}
		timer.Stop()
	}
}

// took notes the outcome of a request and returns the pause after it.
func (s *Source) took(ctx context.Context, a *answer, err error, began time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		s.asking = false
		close(s.changed)
		s.changed = make(chan struct{})
	}()
	select { // a wish from before is granted, or waits like everybody
	case <-s.wanted:
	default:
	}
	now, failed := s.config.Now(), s.status.Failures
	if err != nil {
		s.status.Failures, s.status.Err = failed+1, err
		wait := max(s.pause(err, failed+1, now), a.retryAfter+time.Duration(float64(a.retryAfter)*rand.Float64()/2)) //nolint:gosec // it spreads clients
		s.status.Next = now.Add(wait)
		if failed == 0 {
			s.config.Logger.WarnContext(ctx, "no new access token; the one that is held is used on", "issuer", s.config.Issuer, "expires", s.status.Expires, "error", err)
		}
		return wait
	}
	// A broker whose store is down gives tokens that live short: the later end counts,
	// unless the one that is held was refused somewhere.
	if s.held.Value.Equal(s.refused) || a.token.Expires.After(s.held.Expires) {
		s.held = a.token
	}
	s.refused = secret.Value{}
	life := a.token.Expires.Sub(began)
	wait := max(life/2+time.Duration(float64(life)*rand.Float64()/6)-now.Sub(began), time.Second) //nolint:gosec // it spreads clients
	s.status = Status{Expires: s.held.Expires, Success: began, Next: now.Add(wait)}
	if failed > 0 {
		s.config.Logger.InfoContext(ctx, "the broker gives access tokens again", "issuer", s.config.Issuer, "failures", failed)
	}
	return wait
}

// pause is that after so many failures in a row: full jitter below a ceiling that
// grows (see package client). The nearer the end of the token that is held, the lower
// it is: who comes back after an issuer's outage must not come too late.
func (s *Source) pause(err error, failures int, now time.Time) time.Duration {
	least, most, factor := s.config.BackoffMin, s.config.BackoffMax, 2.0
	if lasting(err) {
		most, factor = 2*s.config.BackoffMax, 4
	}
	ceiling := min(float64(most), float64(least)*math.Pow(factor, float64(min(failures-1, 40))))
	if usable(s.held, now) {
		ceiling = max(min(ceiling, float64(s.held.Expires.Sub(now)/4)), min(ceiling, float64(least)))
	}
	floor := float64(least) / 4
	return time.Duration(floor + (ceiling-floor)*rand.Float64()) //nolint:gosec // it spreads clients and guards no secret
}
