package apikey_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/internal/apikey"
	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// processorTime is what this thread has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

const (
	// timed keys of each kind are shown in turn, in so many rounds.
	timedKeys   = 64
	timedRounds = 201
	// timedMargin is how much the medians may differ. Between two runs of one code
	// they differ by some percent; a lookup that is left out makes a fifth.
	timedMargin = 1.10
)

// TestFailuresTakeAsLong: by the processor's time, nobody can tell an unknown key from
// one that is known and refused, or expired. Kinds are measured in turn, so that what
// else the machine does hits all of them, and medians are compared; of three
// measurements one has to agree.
func TestFailuresTakeAsLong(t *testing.T) {
	w := newWorld(t)
	s := w.alone()
	kinds := []string{"unknown", "refused", "expired"}
	keys := map[string][]string{}
	for i := range timedKeys {
		for _, kind := range kinds {
			text, e := w.mint(s, key.Name(fmt.Sprint("partners/", kind, i)), 1, keytable.Rules{Client: "C"})
			if kind == "expired" {
				e.Rules.Expires = time.Now().Add(-time.Hour)
			}
			if kind != "unknown" {
				w.set(s, 1, e, kind == "expired")
			}
			keys[kind] = append(keys[kind], text)
		}
	}
	measure := func(kind string) time.Duration {
		began := processorTime(t)
		for _, text := range keys[kind] {
			if _, err := s.Verify(text, apikey.Caller{Address: "192.0.2.1"}); !errors.Is(err, apikey.ErrRefused) {
				t.Fatalf("%s: %v", kind, err)
			}
		}
		return processorTime(t) - began
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var told string
	for range 3 {
		samples := map[string][]time.Duration{}
		for range timedRounds {
			for _, i := range rand.Perm(len(kinds)) {
				samples[kinds[i]] = append(samples[kinds[i]], measure(kinds[i]))
			}
		}
		var medians []time.Duration
		told = ""
		for _, kind := range kinds {
			slices.Sort(samples[kind])
			median := samples[kind][timedRounds/2] / timedKeys
			medians = append(medians, median)
			told += fmt.Sprintf("%s %v ", kind, median)
		}
		if float64(slices.Max(medians)) <= timedMargin*float64(slices.Min(medians)) {
			t.Logf("medians: %s", told)
			return
		}
	}
	t.Errorf("the answers take different times: %s", told)
}

// seeded is a source of bytes that are the same in every run.
func seeded() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

// TestEqualChecksums: a key with the same checksum as a good one, or with the same
// random part under another prefix, is of the right form and refused.
func TestEqualChecksums(t *testing.T) {
	w := newWorld(t)
	s := w.alone()
	random, seen := seeded(), map[string][]byte{}
	var good, other []byte
	for other == nil {
		text, err := keytable.Draw("kt_test", random)
		if err != nil {
			t.Fatal(err)
		}
		sum := string(text[len(text)-keytable.SumLength:])
		if before, there := seen[sum]; there {
			good, other = before, text
		}
		seen[sum] = text
	}
	prefixed := append([]byte("kt_other"), good[len("kt_test"):]...)
	for _, text := range [][]byte{good, other, prefixed} {
		if err := keytable.Check(text); err != nil {
			t.Fatal(err)
		}
	}
	e := keytable.Entry{Key: "partners/acme", Version: 1, Rules: keytable.Rules{Client: "ACME"}}
	var err error
	if e.Hash, e.Other, err = s.Hashes(t.Context(), secret.New(bytes.Clone(good))); err != nil {
		t.Fatal(err)
	}
	w.set(s, 1, e, true)
	if v, err := s.Verify(string(good), apikey.Caller{}); err != nil || v.Key != e.Key {
		t.Fatalf("the good key: %+v, %v", v, err)
	}
	for what, text := range map[string][]byte{"the same checksum": other, "another prefix": prefixed} {
		if v, err := s.Verify(string(text), apikey.Caller{}); !errors.Is(err, apikey.ErrRefused) || v.Key != "" {
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
}

// TestRateIsPerNode: what holds of a rate on several nodes is that each node lets in
// as many as the rate says, to all versions of the client together.
func TestRateIsPerNode(t *testing.T) {
	w := newWorld(t)
	a, _ := w.node("a")
	b, _ := w.node("b")
	rules := keytable.Rules{Client: "ACME", PerSecond: 0.001, Burst: 3}
	first, e := w.mint(a, "partners/acme", 1, rules)
	w.set(a, 1, e, true)
	second, e := w.mint(a, "partners/acme", 2, rules)
	w.set(a, 2, e, true)
	letIn := func(s *apikey.Service) (n int) {
		for i := range 10 {
			v, err := s.Verify([]string{first, second}[i%2], apikey.Caller{})
			if err == nil {
				n++
			} else if !errors.Is(err, apikey.ErrLimited) || v.Retry <= 0 || v.Client != "ACME" {
				t.Errorf("%+v, %v", v, err)
			}
		}
		return n
	}
	if got := [2]int{letIn(a), letIn(b)}; got != [2]int{3, 3} {
		t.Errorf("let in %v times, want 3 at each of two nodes", got)
	}
}
