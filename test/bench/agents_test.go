package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// orders tell a child process what to do, on its standard input.
type orders struct {
	Address string
	CAFile  string
	Token   string
	// Key is what the agents present.
	Key   string
	First int
	Count int
	// Together is how many connect at the same time when they do so first.
	Together int
	// Processes is how many such children share the machine.
	Processes int
}

// news is a line of a child's standard output.
type news struct {
	// Version is one that all agents of the child hold by now, Published when the
	// server told them, and Took after how long each of them held it.
	Version   uint64          `json:"version,omitempty"`
	Published time.Time       `json:"published,omitzero"`
	Took      []time.Duration `json:"took,omitempty"`
	// Status is how the agents are connected.
	Status *connections `json:"status,omitempty"`
}

// connections are those of the agents of one child.
type connections struct {
	// Connected have a stream now, Polling had to do without.
	Connected, Polling int
	// Streams is how many were opened, Failures how often connecting failed, Errors how
	// often a user was told of it, and Permanent how often in a way that does not pass
	// by itself.
	Streams, Failures, Errors, Permanent int
}

// runAgents is the main function of a child process that is agents.
func runAgents(ctx context.Context, role string, o orders) error {
	// A collector that believes to be on an idle machine takes the time of the servers.
	runtime.GOMAXPROCS(max(1, runtime.NumCPU()/max(1, o.Processes)))
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tell := &reporter{out: json.NewEncoder(os.Stdout), joining: make(chan struct{}, o.Together), count: o.Count, held: map[uint64]*news{}}
	go tell.statuses(ctx)
	var running sync.WaitGroup
	for i := range o.Count {
		select {
		case tell.joining <- struct{}{}:
		case <-ctx.Done():
		}
		running.Go(func() {
			id := fmt.Sprintf("agent-%05d", o.First+i)
			run := watchBare
			if role == roleKeyturn {
				run = watchKeyturn
			}
			if err := run(ctx, &o, roots, id, tell); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, id, err)
			}
		})
	}
	running.Wait()
	return nil
}

// joinTogether is how many agents connect at the same time to each server when they do
// so first.
// On a machine that is busy with handshakes a client would otherwise believe that
// streams are blocked on its way, and fall back to polling.
const joinTogether = 500

type reporter struct {
	// joining holds an element for each agent that is not connected yet.
	joining chan struct{}
	count   int

	mu     sync.Mutex
	out    *json.Encoder
	held   map[uint64]*news
	status connections
	told   connections
	// kinds are the tries that failed, by why.
	kinds map[string]int
}

// address is what differs between failures of one kind.
var address = regexp.MustCompile(`127\.0\.0\.1:\d+|[0-9.]+m?s\b`)

func (r *reporter) hold(version uint64, published time.Time) {
	took := time.Since(published)
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.held[version]
	if n == nil {
		n = &news{Version: version, Published: published, Took: make([]time.Duration, 0, r.count)}
		r.held[version] = n
	}
	n.Took = append(n.Took, took)
	if len(n.Took) == r.count {
		_ = r.out.Encode(n) // the parent is gone if this fails
		delete(r.held, version)
	}
}

// fail counts what went wrong, by kind, and prints each kind when it has doubled.
func (r *reporter) fail(what string) {
	kind := address.ReplaceAllString(what, "…")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kinds == nil {
		r.kinds = map[string]int{}
	}
	r.kinds[kind]++
	if n := r.kinds[kind]; n >= 64 && n&(n-1) == 0 {
		fmt.Fprintln(os.Stderr, n, "times:", kind)
	}
}

func (r *reporter) change(edit func(*connections)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	edit(&r.status)
}

// statuses tells how the agents are connected, whenever that has changed.
func (r *reporter) statuses(ctx context.Context) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		r.mu.Lock()
		if status := r.status; status != r.told {
			r.told = status
			_ = r.out.Encode(news{Status: &status}) // the parent is gone if this fails
		}
		r.mu.Unlock()
	}
}

// tries counts failed tries to connect by what the client logs of them: users are
// not told of all.
type tries struct{ tell *reporter }

func (tries) Enabled(context.Context, slog.Level) bool { return true }

func (h tries) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "error" {
			h.tell.change(func(all *connections) { all.Failures++ })
			h.tell.fail(a.Value.String())
		}
		return a.Key != "error"
	})
	return nil
}

func (h tries) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h tries) WithGroup(string) slog.Handler      { return h }

// watchKeyturn is one agent on a connection of its own.
func watchKeyturn(ctx context.Context, o *orders, roots *x509.CertPool, id string, tell *reporter) error {
	var once sync.Once
	var mode client.Mode
	c, err := client.New(client.Config{
		Logger:  slog.New(tries{tell}),
		Address: o.Address, Token: client.StaticToken(secret.NewString(o.Token)), RootCAs: roots,
		Party: client.Party{ID: id, Kind: client.KindAgent, Labels: map[string]string{"cohort": "all"}},
		OnStatus: func(s client.Status) {
			tell.change(func(all *connections) {
				all.Connected -= map[bool]int{true: 1}[mode == client.ModeStream]
				all.Polling -= map[bool]int{true: 1}[mode == client.ModeLongPoll || mode == client.ModePoll]
				mode = s.Mode
				all.Polling += map[bool]int{true: 1}[mode == client.ModeLongPoll || mode == client.ModePoll]
				switch {
				case mode == client.ModeStream:
					all.Connected++
					all.Streams++
				case s.Err != nil:
					if all.Errors++; all.Errors == 1 {
						fmt.Fprintln(os.Stderr, "the first error:", id, s.Err)
					}
				}
				if s.Permanent {
					all.Permanent++
				}
			})
			if s.Mode == client.ModeStream {
				once.Do(func() { <-tell.joining })
			}
		},
	})
	if err != nil {
		return err
	}
	return c.Watch(ctx, []client.Known{{Key: key.Name(o.Key)}}, func(_ context.Context, assignments []client.Assignment) []client.Outcome {
		outcomes := make([]client.Outcome, 0, len(assignments))
		for _, a := range assignments {
			outcomes = append(outcomes, client.Outcome{Key: a.Key, Code: client.Applied})
			if !a.PublishedAt.IsZero() {
				tell.hold(uint64(a.Version), a.PublishedAt)
			}
		}
		return outcomes
	})
}

// messageSize is that of an assignment of a user name and a password on the wire.
const messageSize = 320

// watchBare does the same with nothing around it.
func watchBare(ctx context.Context, o *orders, roots *x509.CertPool, _ string, tell *reporter) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	call := func(path string) (*http.Response, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, o.Address+path, http.NoBody)
		if err != nil {
			return nil, err
		}
		return transport.RoundTrip(request)
	}
	stream, err := call("/stream")
	if err != nil {
		return err
	}
	defer stream.Body.Close()
	<-tell.joining
	tell.change(func(all *connections) { all.Connected++; all.Streams++ })
	message := make([]byte, messageSize)
	for {
		if _, err := io.ReadFull(stream.Body, message); err != nil {
			return err
		}
		tell.hold(binary.BigEndian.Uint64(message[8:]), time.Unix(0, int64(binary.BigEndian.Uint64(message))))
		ack, err := call("/ack")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, ack.Body)
		if err := errors.Join(err, ack.Body.Close()); err != nil {
			return err
		}
	}
}

// agents are those of several child processes.
type agents struct {
	news     chan news
	changed  chan struct{}
	each     int
	children []*child

	mu       sync.Mutex
	statuses []connections
	// last is when the latest status came.
	last time.Time
}

// startAgents starts agents in child processes and returns when all are
// connected, and how long that took.
func startAgents(b *testing.B, role string, o orders, processes int) (*agents, time.Duration) {
	b.Helper()
	a := &agents{news: make(chan news, 16*processes), changed: make(chan struct{}, 1), each: o.Count / processes, statuses: make([]connections, processes)}
	began := time.Now()
	for p := range processes {
		part := o
		part.First, part.Count, part.Processes = o.First+p*a.each, a.each, processes
		part.Together = joinTogether * (1 + strings.Count(o.Address, ",")) / processes
		if part.Key == "" {
			part.Key = keyName
		}
		if strings.Contains(part.Key, "%d") {
			part.Key = fmt.Sprintf(part.Key, p)
		}
		a.start(b, role, part, p)
	}
	a.wait(b, 15*time.Minute, func(all connections) bool { return all.Connected == a.each*processes })
	return a, time.Since(began)
}

// wait waits until the connections are as wanted.
func (a *agents) wait(b *testing.B, within time.Duration, met func(connections) bool) {
	b.Helper()
	timeout := time.After(within)
	for !met(a.total()) {
		select {
		case <-a.changed:
		case <-timeout:
			b.Fatalf("after %v: %+v", within, a.total())
		}
	}
}

// settled is when the connections changed last.
func (a *agents) settled() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

func (a *agents) total() (sum connections) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.statuses {
		sum.Connected += s.Connected
		sum.Polling += s.Polling
		sum.Streams += s.Streams
		sum.Failures += s.Failures
		sum.Errors += s.Errors
		sum.Permanent += s.Permanent
	}
	return sum
}

func (a *agents) start(b *testing.B, role string, o orders, place int) {
	b.Helper()
	c := startChild(b, role, o, func(decoder *json.Decoder) error {
		var n news
		if err := decoder.Decode(&n); err != nil {
			return err
		}
		if n.Status == nil {
			a.news <- n
			return nil
		}
		a.mu.Lock()
		a.statuses[place], a.last = *n.Status, time.Now()
		a.mu.Unlock()
		select {
		case a.changed <- struct{}{}:
		default:
		}
		return nil
	})
	a.children = append(a.children, c)
}

// end ends the agents of the last processes.
func (a *agents) end(processes int) {
	rest := len(a.children) - processes
	for _, c := range a.children[rest:] {
		c.stop()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.children, a.statuses = a.children[:rest], a.statuses[:rest]
}

// hold waits until all agents hold the version and returns when it was published,
// and how long after that each of them held it.
func (a *agents) hold(b *testing.B, version uint64) (published time.Time, took []time.Duration) {
	b.Helper()
	timeout := time.After(3 * time.Minute)
	for missing := len(a.statuses); missing > 0; {
		select {
		case n := <-a.news:
			if n.Version == version {
				published = n.Published
				took = append(took, n.Took...)
				missing--
			}
		case <-timeout:
			b.Fatalf("%d agents of %d hold version %d after three minutes; %+v", len(took), a.each*len(a.statuses), version, a.total())
		}
	}
	return published, took
}
