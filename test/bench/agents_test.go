package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/secret"
)

// The roles of child processes.
const (
	roleKeyturn = "keyturn" // the agents are clients of Keyturn
	roleBare    = "bare"    // they read fixed messages from HTTP/2 streams
)

// orders tell a child process what to do, on its standard input.
type orders struct {
	Address string
	CAFile  string
	Token   string
	First   int
	Count   int
}

// news is a line of a child's standard output: what one agent got, or that so
// many are connected.
type news struct {
	Version   uint64        `json:"version,omitempty"`
	Published time.Time     `json:"published,omitzero"`
	Took      time.Duration `json:"took,omitempty"`
	Connected int           `json:"connected,omitempty"`
}

// runAgents is the main function of a child process.
func runAgents(role string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var o orders
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	// A child ends with its parent, however that ended: its standard input closes.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	tell := &reporter{out: json.NewEncoder(os.Stdout), joining: make(chan struct{}, joinTogether)}
	var running sync.WaitGroup
	for i := range o.Count {
		select {
		case tell.joining <- struct{}{}:
		case <-ctx.Done():
		}
		running.Go(func() {
			id := fmt.Sprintf("agent-%04d", o.First+i)
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

// joinTogether is how many agents of one process connect at the same time. On a
// machine that is busy with handshakes a client would otherwise believe that
// streams are blocked on its way, and fall back to polling.
const joinTogether = 25

type reporter struct {
	// joining holds an element for each agent that is not connected yet.
	joining chan struct{}

	mu        sync.Mutex
	out       *json.Encoder
	connected atomic.Int64
}

func (r *reporter) tell(n news) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.out.Encode(n) // the parent is gone if this fails
}

// join tells that one more agent is connected.
func (r *reporter) join() {
	<-r.joining
	r.tell(news{Connected: int(r.connected.Add(1))})
}

// watchKeyturn is one agent on a connection of its own.
func watchKeyturn(ctx context.Context, o *orders, roots *x509.CertPool, id string, tell *reporter) error {
	var once sync.Once
	c, err := client.New(client.Config{
		Address: o.Address, Token: client.StaticToken(secret.NewString(o.Token)), RootCAs: roots,
		Party: client.Party{ID: id, Kind: client.KindAgent, Labels: map[string]string{"cohort": "all"}},
		OnStatus: func(s client.Status) {
			if s.Mode == client.ModeStream {
				once.Do(tell.join)
			}
		},
	})
	if err != nil {
		return err
	}
	return c.Watch(ctx, []client.Known{{Key: keyName}}, func(_ context.Context, assignments []client.Assignment) []client.Outcome {
		held := time.Now()
		outcomes := make([]client.Outcome, 0, len(assignments))
		for _, a := range assignments {
			outcomes = append(outcomes, client.Outcome{Key: a.Key, Code: client.Applied})
			if !a.PublishedAt.IsZero() {
				tell.tell(news{Version: uint64(a.Version), Published: a.PublishedAt, Took: held.Sub(a.PublishedAt)})
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
	tell.join()
	message := make([]byte, messageSize)
	for {
		if _, err := io.ReadFull(stream.Body, message); err != nil {
			return err
		}
		held := time.Now()
		published := time.Unix(0, int64(binary.BigEndian.Uint64(message)))
		tell.tell(news{Version: binary.BigEndian.Uint64(message[8:]), Published: published, Took: held.Sub(published)})
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
	news chan news
	// connected is how many there are in each process.
	connected []atomic.Int64
	changed   chan struct{}
}

// startAgents starts agents in child processes and returns when all are
// connected, and how long that took.
func startAgents(b *testing.B, role string, o orders, processes int) (*agents, time.Duration) {
	b.Helper()
	a := &agents{news: make(chan news, 16*o.Count), connected: make([]atomic.Int64, processes), changed: make(chan struct{}, 1)}
	began := time.Now()
	each := o.Count / processes
	for p := range processes {
		part := o
		part.First, part.Count = p*each, each
		a.start(b, role, part, &a.connected[p])
	}
	timeout := time.After(time.Minute)
	for a.total() < int64(each*processes) {
		select {
		case <-a.changed:
		case <-timeout:
			b.Fatalf("%d agents of %d have a stream after a minute", a.total(), each*processes)
		}
	}
	return a, time.Since(began)
}

func (a *agents) total() (sum int64) {
	for i := range a.connected {
		sum += a.connected[i].Load()
	}
	return sum
}

func (a *agents) start(b *testing.B, role string, o orders, connected *atomic.Int64) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childVariable+"="+role)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(o); err != nil {
		b.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var n news
			if json.Unmarshal(lines.Bytes(), &n) != nil {
				continue // the last line of a child that was ended
			}
			if n.Connected == 0 {
				a.news <- n
				continue
			}
			connected.Store(int64(n.Connected))
			select {
			case a.changed <- struct{}{}:
			default:
			}
		}
	}()
	b.Cleanup(func() {
		_ = in.Close() // tells it to end
		<-read
		_ = child.Wait() // it was told to end
	})
}

// hold waits until count agents hold the version and returns when it was
// published, and how long after that each of them held it.
func (a *agents) hold(b *testing.B, version uint64, count int) (published time.Time, took []time.Duration) {
	b.Helper()
	timeout := time.After(time.Minute)
	for len(took) < count {
		select {
		case n := <-a.news:
			if n.Version == version {
				published = n.Published
				took = append(took, n.Took)
			}
		case <-timeout:
			b.Fatalf("%d agents of %d hold version %d after a minute", len(took), count, version)
		}
	}
	return published, took
}
