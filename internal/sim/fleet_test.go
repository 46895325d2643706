package sim

import (
	"crypto/rand"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
)

// The variables that TestFleet reads. KEYTURN_SIM_SEED is the first seed,
// KEYTURN_SIM_SEEDS their number, KEYTURN_SIM_FOR runs for so long instead, and
// KEYTURN_SIM_FIRST ends the run with the first violation, without its timeline.
// KEYTURN_SIM_TALE prints the timelines of seeds that violate nothing as well.
// KEYTURN_SIM_STEP leaves out the seeds between: 6 from seed 3 on takes fleets with
// gateways only.
const (
	envSeed  = "KEYTURN_SIM_SEED"
	envSeeds = "KEYTURN_SIM_SEEDS"
	envFor   = "KEYTURN_SIM_FOR"
	envFirst = "KEYTURN_SIM_FIRST"
	envTale  = "KEYTURN_SIM_TALE"
	envStep  = "KEYTURN_SIM_STEP"
)

// ciSeeds is how many seeds are run when nothing else is asked for.
const ciSeeds = 2000

func testSigner(t testing.TB) *audit.Signer {
	t.Helper()
	signing, _, err := audit.GenerateKey(rand.Reader, "keyturn.test/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.ParseSigner(signing)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func envUint(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// tally sums up what seeds led to.
type tally struct {
	t  *testing.T
	mu sync.Mutex

	seeds, rotations, steps, violations int
	// gateways are the fleets with one, handed what they handed out, held how often an
	// acknowledgement of one had to wait.
	gateways, handed, held int
	faults                 [faultKinds]int
	simulated              time.Duration
	// enough is the number of violations that end the run.
	enough int
}

func (s *tally) add(o *outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds++
	s.rotations += o.rotations
	s.steps += o.steps
	s.simulated += o.simulated
	s.handed += o.handed
	s.held += o.held
	if o.gateway {
		s.gateways++
	}
	for f, n := range o.faults {
		s.faults[f] += n
	}
	if o.violation != nil {
		s.violations++
		s.t.Errorf("seed %d: %v", o.seed, o.violation)
	}
	if o.violation != nil && s.violations == 1 && s.enough > 1 || os.Getenv(envTale) != "" {
		for _, l := range o.tale {
			if !l.idle {
				s.t.Log(l)
			}
		}
		s.t.Logf("again: %s=%d %s=1 go test ./internal/sim -run TestFleet -v", envSeed, o.seed, envSeeds)
	}
}

func (s *tally) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.violations >= s.enough
}

func (s *tally) print() {
	sum := 0
	for f := fault(1); f < faultKinds; f++ {
		s.t.Logf("%8d %v", s.faults[f], f)
		sum += s.faults[f]
	}
	s.t.Logf("%d fleets with gateways, %d versions handed out by these, %d acknowledgements that waited", s.gateways, s.handed, s.held)
	s.t.Logf("%d steps, %v simulated", s.steps, s.simulated.Round(time.Hour))
	s.t.Logf("seeds: %d rotations: %d faults: %d violations: %d", s.seeds, s.rotations, sum, s.violations)
}

// TestFleet runs one fleet for every seed.
func TestFleet(t *testing.T) {
	step := envUint(t, envStep, 1)
	first, count := envUint(t, envSeed, 1), envUint(t, envSeeds, ciSeeds)
	var until time.Time
	if text := os.Getenv(envFor); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", envFor, err)
		}
		until, count = time.Now().Add(d), 1<<62
	}
	sum := &tally{t: t, enough: 10}
	if os.Getenv(envFirst) != "" {
		sum.enough = 1
	}
	o := options{signer: testSigner(t)}
	seeds := make(chan uint64)
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for seed := range seeds {
				result := runSeed(t, seed, o)
				sum.add(&result)
			}
		})
	}
	for i := uint64(0); i < count && !sum.full() && (until.IsZero() || time.Now().Before(until)); i++ {
		seeds <- first + i*step
	}
	close(seeds)
	group.Wait()
	sum.print()
}

// TestSameSeedSameRun: a seed reproduces its run, line by line.
func TestSameSeedSameRun(t *testing.T) {
	o := options{signer: testSigner(t)}
	for seed := envUint(t, "KEYTURN_SIM_FROM", 1); seed <= envUint(t, "KEYTURN_SIM_TWICE", 100); seed++ {
		one, two := runSeed(t, seed, o), runSeed(t, seed, o)
		for i := range max(len(one.tale), len(two.tale)) {
			switch {
			case i >= len(one.tale) || i >= len(two.tale):
				t.Errorf("seed %d: one run has %d lines, the other %d", seed, len(one.tale), len(two.tale))
			case one.tale[i].String() == two.tale[i].String():
				continue
			default:
				t.Errorf("seed %d: line %d is\n%v\nin one run and\n%v\nin the other, after\n%v", seed, i, one.tale[i], two.tale[i], one.tale[max(i-1, 0)])
			}
			break
		}
	}
}
