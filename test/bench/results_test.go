package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// wideMargin is by how much a limit may be missed before a strict run fails:
// machines are noisy, and the limits are those of a quiet one.
const wideMargin = 2

// result is one line of bench.json. Ratios are ours divided by the other's.
type result struct {
	Name       string   `json:"name"`
	Unit       string   `json:"unit"`
	Ours       float64  `json:"ours"`
	Floor      float64  `json:"floor"`
	Peer       *float64 `json:"peer"`
	RatioFloor float64  `json:"ratio_floor"`
	RatioPeer  *float64 `json:"ratio_peer"`
	// Failed is how much of what was done meanwhile failed, where that was counted.
	Failed *int64 `json:"failed,omitempty"`

	// limit is what ours is to stay below; 0 means that none is stated. With more
	// set, ours is to stay above it.
	limit float64
	more  bool
}

// board collects results.
type board struct {
	mu      sync.Mutex
	results []result
}

// add completes a result, keeps it, and judges it by its limit.
func (t *board) add(b *testing.B, r result) {
	b.Helper()
	if r.Ours <= 0 || r.Floor <= 0 || math.IsNaN(r.Ours+r.Floor) {
		b.Fatalf("%s: ours is %v and the floor %v: nothing was measured", r.Name, r.Ours, r.Floor)
	}
	r.RatioFloor = r.Ours / r.Floor
	if r.Peer != nil {
		ratio := r.Ours / *r.Peer
		r.RatioPeer = &ratio
	}
	b.ReportMetric(r.Ours, r.Name+"-"+r.Unit)
	b.ReportMetric(r.RatioFloor, r.Name+"-ratio")
	t.mu.Lock()
	defer t.mu.Unlock()
	t.results = append(t.results, r)
	if !r.missed(wideMargin) {
		return
	}
	complain := b.Logf
	if os.Getenv("KEYTURN_BENCH_STRICT") == "1" {
		complain = b.Errorf
	}
	complain("%s: %.4g %s misses the limit of %.4g by more than %d times", r.Name, r.Ours, r.Unit, r.limit, wideMargin)
}

func (r *result) missed(margin float64) bool {
	switch {
	case r.limit == 0:
		return false
	case r.more:
		return r.Ours*margin < r.limit
	}
	return r.Ours > r.limit*margin
}

// print writes the table.
func (t *board) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "benchmark\tunit\tours\tfloor\tratio\tpeer\tratio\tlimit\t")
	for i := range t.results {
		r := &t.results[i]
		peer, ratioPeer, limit := "-", "-", "-"
		if r.Peer != nil {
			peer, ratioPeer = figure(*r.Peer), figure(*r.RatioPeer)
		}
		if r.limit != 0 {
			limit = map[bool]string{false: "< ", true: "> "}[r.more] + figure(r.limit)
			if r.missed(1) {
				limit += " MISSED"
			}
		}
		if r.Failed != nil {
			limit = strings.TrimPrefix(limit+", ", "-, ") + fmt.Sprint(*r.Failed, " failed")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n",
			r.Name, r.Unit, figure(r.Ours), figure(r.Floor), figure(r.RatioFloor), peer, ratioPeer, limit)
	}
	return table.Flush()
}

func figure(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// save appends the results to a file, one object a line.
func (t *board) save(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	encoder := json.NewEncoder(f)
	for i := range t.results {
		if err := encoder.Encode(&t.results[i]); err != nil {
			return err
		}
	}
	return nil
}

// quantile is the value below which the given part of the values lies.
func quantile(values []time.Duration, part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(math.Ceil(part*float64(len(sorted))))-1)]
}

func median(values []time.Duration) time.Duration { return quantile(values, 0.5) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpu is the processor time that this process has used, in user and kernel mode.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
