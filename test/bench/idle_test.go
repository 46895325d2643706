package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	idleLimit  = 60  // MiB
	startLimit = 300 // ms
	starts     = 7
	idleFor    = 10 * time.Second
	readyEvery = time.Millisecond
	readyIn    = 30 * time.Second
)

// program is a server that can be started on a folder.
type program struct {
	command func(dir, listen string) []string
	// ready is the URL that answers 200; the default is /readyz over TLS.
	ready string
}

// BenchmarkIdle starts the built server, on an empty folder and on one that it
// has used, and looks at its memory when it has been idle for 10 s.
func BenchmarkIdle(b *testing.B) {
	keyturn := program{command: keyturnCommand(b, builtProgram(b, "KEYTURN_BENCH_BIN", "github.com/keyturn/keyturn/cmd/keyturn"))}
	floorServer := builtProgram(b, "", "github.com/keyturn/keyturn/test/bench/floorserver")
	floor := program{command: func(dir, listen string) []string { return []string{floorServer, "-dir", dir, "-listen", listen} }}
	peer := peerProgram()

	var ours, least, theirs [2][]time.Duration // on an empty folder, on a used one
	for range starts {
		measureStarts(b, &keyturn, &ours)
		measureStarts(b, &floor, &least)
		if peer != nil {
			measureStarts(b, peer, &theirs)
		}
	}
	for i, name := range []string{"start_empty", "start_existing"} {
		r := result{Name: name, Unit: "ms", Ours: milliseconds(median(ours[i])), Floor: milliseconds(median(least[i])), limit: startLimit}
		if peer != nil {
			value := milliseconds(median(theirs[i]))
			r.Peer = &value
		}
		scoreboard.add(b, r)
	}
	programs := []*program{&keyturn, &floor}
	if peer != nil {
		programs = append(programs, peer)
	}
	memory := idleMemory(b, programs)
	r := result{Name: "idle_resident", Unit: "MiB", Ours: memory[0], Floor: memory[1], limit: idleLimit}
	if peer != nil {
		r.Peer = &memory[2]
	}
	scoreboard.add(b, r)
}

// builtProgram is the program that the environment names, or one that is built.
func builtProgram(b *testing.B, variable, pkg string) string {
	b.Helper()
	if path := os.Getenv(variable); variable != "" && path != "" {
		path, err := filepath.Abs(path)
		if err != nil {
			b.Fatal(err)
		}
		return path
	}
	path := filepath.Join(b.TempDir(), filepath.Base(pkg))
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

func keyturnCommand(b *testing.B, path string) func(dir, listen string) []string {
	return func(dir, listen string) []string {
		config := filepath.Join(dir, "server.yaml")
		if err := os.WriteFile(config, fmt.Appendf(nil, "listen: %s\ndataDir: %s\n", listen, filepath.Join(dir, "data")), 0o600); err != nil {
			b.Fatal(err)
		}
		return []string{path, "server", "--config", config}
	}
}

// peerProgram is what the environment names, nil for none.
func peerProgram() *program {
	command, ready := os.Getenv("KEYTURN_BENCH_PEER"), os.Getenv("KEYTURN_BENCH_PEER_READY")
	if command == "" || ready == "" {
		return nil
	}
	return &program{command: func(string, string) []string { return strings.Fields(command) }, ready: ready}
}

// measureStarts starts the program twice on one folder.
func measureStarts(b *testing.B, p *program, took *[2][]time.Duration) {
	b.Helper()
	dir := b.TempDir()
	for i := range took {
		s := p.start(b, dir)
		took[i] = append(took[i], s.took)
		s.stop(b)
	}
}

// started is a running program.
type started struct {
	process *exec.Cmd
	output  *bytes.Buffer
	took    time.Duration
}

// start starts the program and waits until it is ready.
func (p *program) start(b *testing.B, dir string) *started {
	b.Helper()
	listen := freeAddress(b)
	command := p.command(dir, listen)
	url := p.ready
	if url == "" {
		url = "https://" + listen + "/readyz"
	}
	s := &started{process: exec.Command(command[0], command[1:]...), output: &bytes.Buffer{}}
	s.process.Stdout, s.process.Stderr = s.output, s.output
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it makes its CA while it starts; nothing secret is sent
	}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(b.Context(), readyIn)
	defer cancel()
	began := time.Now()
	if err := s.process.Start(); err != nil {
		b.Fatal(err)
	}
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		err := ask(ctx, client, url)
		if err == nil {
			s.took = time.Since(began)
			return s
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = s.process.Process.Kill() // the benchmark has failed
			_ = s.process.Wait()         // likewise
			b.Fatalf("%v is not ready after %v: %v\n%s", command, readyIn, err, s.output)
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

func (s *started) stop(b *testing.B) {
	b.Helper()
	if err := s.process.Process.Signal(os.Interrupt); err != nil {
		b.Fatal(err)
	}
	if err := s.process.Wait(); err != nil {
		b.Fatalf("the server ended with %v\n%s", err, s.output)
	}
}

func freeAddress(b *testing.B) string {
	b.Helper()
	listener, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		b.Fatal(err)
	}
	return address
}

// idleMemory is the resident memory of each program, in MiB, when all have been
// left alone for idleFor.
func idleMemory(b *testing.B, programs []*program) []float64 {
	b.Helper()
	running := make([]*started, 0, len(programs))
	for _, p := range programs {
		dir := b.TempDir()
		p.start(b, dir).stop(b) // the folder has been used
		running = append(running, p.start(b, dir))
	}
	<-time.After(idleFor)
	memory := make([]float64, 0, len(running))
	for _, s := range running {
		mib, err := resident(s.process.Process.Pid)
		if err != nil {
			b.Fatal(err)
		}
		memory = append(memory, mib)
		s.stop(b)
	}
	return memory
}

// resident is VmRSS of a process in MiB.
func resident(pid int) (float64, error) { return statusOf(pid, "VmRSS:") }

// statusOf is a figure of a process that the kernel tells in KiB, in MiB.
func statusOf(pid int, figure string) (float64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == figure {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("the process has no %s", figure)
}
