package keytable_test

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
)

func now() time.Time { return time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC) }

func hashOf(i int) (h keytable.Hash) {
	binary.LittleEndian.PutUint64(h[:], uint64(i)*0x9E3779B97F4A7C15)
	binary.LittleEndian.PutUint64(h[8:], uint64(i))
	return h
}

func put(t testing.TB, table *keytable.Table, i int, accepted bool, rules keytable.Rules) {
	t.Helper()
	err := table.Put(&keytable.Entry{
		Key: key.Name(fmt.Sprintf("prod/clients/c%d", i/2)), Version: key.Version(i%2 + 1), Hash: hashOf(i), Other: hashOf(-i), Accepted: accepted, Rules: rules,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForm: a key is recognised by its form alone, its checksum is that of
// GitHub's tokens, and every typing error is found without a look-up.
func TestForm(t *testing.T) {
	text, err := keytable.Draw("kt_live", rand.Reader)
	if err != nil || len(text) != len("kt_live_")+keytable.RandomLength+keytable.SumLength || keytable.Check(text) != nil {
		t.Fatalf("drew %d characters, %v", len(text), err)
	}
	rest, ok := strings.CutPrefix(string(text), "kt_live_")
	if !ok {
		t.Fatal("the prefix is missing")
	}
	sum := ""
	for n := crc32.ChecksumIEEE([]byte(rest[:30])); len(sum) < 6; n /= 62 {
		sum = string("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[n%62]) + sum
	}
	if rest[30:] != sum {
		t.Errorf("the checksum is %s, want %s", rest[30:], sum)
	}
	for i := len("kt_live_"); i < len(text); i++ {
		typo := slices.Clone(text)
		if typo[i] = 'x'; text[i] == 'x' {
			typo[i] = 'y'
		}
		if keytable.Check(typo) == nil {
			t.Errorf("character %d mistyped is not noticed", i)
		}
	}
	for i := range text {
		if keytable.Check(text[:i]) == nil {
			t.Errorf("cut to %d characters it is taken", i)
		}
	}
	for _, prefix := range []string{"", "a", "1a", "Kt", "kt__live", "kt_", "_kt", "kt-live", strings.Repeat("a", 25)} {
		if _, err := keytable.Draw(prefix, rand.Reader); err == nil {
			t.Errorf("prefix %q was taken", prefix)
		}
	}
}

// FuzzCheck: what is taken has the form, bit by bit; what is hashed is what was taken.
func FuzzCheck(f *testing.F) {
	text, err := keytable.Draw("kt_live", rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("ghp_000000000000000000000000000000000000"))
	f.Add([]byte(""))
	hasher := keytable.NewHasher([]byte("pepper"))
	f.Fuzz(func(t *testing.T, text []byte) {
		before := slices.Clone(text)
		err := keytable.Check(text)
		sum, hashErr := hasher.Sum(text)
		if (err == nil) != (hashErr == nil) || !slices.Equal(before, text) {
			t.Fatalf("check says %v, hashing %v", err, hashErr)
		}
		again, _ := hasher.SumString(string(text))
		if again != sum {
			t.Fatal("a string has another hash than its bytes")
		}
		if err != nil {
			if sum != (keytable.Hash{}) {
				t.Fatal("what is no key has a hash")
			}
			return
		}
		if len(text) > keytable.MaxLength || strings.Count(string(text), "_") == 0 || keytable.CheckPrefix(string(text[:len(text)-37])) != nil {
			t.Fatalf("%q was taken", text)
		}
	})
}

func TestTable(t *testing.T) {
	table := keytable.New()
	const n = 5000
	for i := 2; i < n; i++ {
		put(t, table, i, i%3 != 0, keytable.Rules{Client: fmt.Sprint("client ", i/2), Scopes: []string{"read", fmt.Sprint(i / 2 % 10)}})
	}
	check := func(gone func(int) bool) {
		t.Helper()
		for i := 2; i < n; i++ {
			h := hashOf(i)
			f := table.Look(&h, now())
			want := keytable.Good
			switch {
			case gone(i):
				want = keytable.Unknown
			case i%3 == 0:
				want = keytable.Suspended
			}
			if f.Reason != want {
				t.Fatalf("version %d is %v, want %v", i, f.Reason, want)
			}
			if want == keytable.Good && (f.Key != key.Name(fmt.Sprintf("prod/clients/c%d", i/2)) || f.Version != key.Version(i%2+1) || f.Client != fmt.Sprint("client ", i/2) || len(f.Scopes) != 2 || f.Scopes[1] != fmt.Sprint(i/2%10)) {
				t.Fatalf("version %d is found as %+v", i, f)
			}
		}
	}
	check(func(int) bool { return false })
	for i := 2; i < n; i += 5 {
		h := hashOf(i)
		table.Delete(&h)
		table.Delete(&h)
	}
	check(func(i int) bool { return i%5 == 2 })
	for i := 2; i < n; i += 5 {
		put(t, table, i, i%3 != 0, keytable.Rules{Client: fmt.Sprint("client ", i/2), Scopes: []string{"read", fmt.Sprint(i / 2 % 10)}})
	}
	check(func(int) bool { return false })
	if table.Len() != n-2 {
		t.Errorf("%d versions, want %d", table.Len(), n-2)
	}
}

// TestEqualHashes: a version never takes the place of another one's hash.
func TestEqualHashes(t *testing.T) {
	table := keytable.New()
	put(t, table, 2, true, keytable.Rules{Client: "first"})
	err := table.Put(&keytable.Entry{Key: "prod/clients/other", Version: 1, Hash: hashOf(2), Accepted: true, Rules: keytable.Rules{Client: "second"}})
	h := hashOf(2)
	if f := table.Look(&h, now()); !errors.Is(err, keytable.ErrTaken) || f.Client != "first" {
		t.Errorf("got %v, and the hash belongs to %q", err, f.Client)
	}
}

func TestRateAndExpiry(t *testing.T) {
	table := keytable.New()
	put(t, table, 2, true, keytable.Rules{PerSecond: 10, Burst: 5, Expires: now().Add(time.Hour)})
	put(t, table, 3, true, keytable.Rules{PerSecond: 10, Burst: 5, Expires: now().Add(time.Hour)}) // the same client
	a, b := hashOf(2), hashOf(3)
	for i := range 5 {
		h := []*keytable.Hash{&a, &b}[i%2]
		if f := table.Look(h, now()); f.Reason != keytable.Good || f.Left != 4-i {
			t.Fatalf("use %d is %v, %d left", i, f.Reason, f.Left)
		}
	}
	if f := table.Look(&b, now()); f.Reason != keytable.Limited || f.Retry != 100*time.Millisecond {
		t.Errorf("after the burst: %v, retry in %v", f.Reason, f.Retry)
	}
	if f := table.Look(&b, now().Add(f0(100))); f.Reason != keytable.Good {
		t.Errorf("after the wait: %v", f.Reason)
	}
	if f := table.Look(&a, now().Add(time.Hour)); f.Reason != keytable.Expired {
		t.Errorf("after it has expired: %v", f.Reason)
	}
}

func f0(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }

// TestDrain: no use is lost or counted twice, whoever counts at the same time.
func TestDrain(t *testing.T) {
	table := keytable.New()
	for i := 2; i < 100; i++ {
		put(t, table, i, true, keytable.Rules{})
	}
	var counting sync.WaitGroup
	for range 4 {
		counting.Go(func() {
			for i := range 9800 {
				h := hashOf(2 + i%98)
				table.Used(table.Look(&h, now()).ID, 1, now())
			}
		})
	}
	counts := map[string]int{}
	drain := func() {
		for more := true; more; {
			var uses []keytable.Use
			uses, more = table.Drain(10)
			for _, u := range uses {
				counts[fmt.Sprint(u.Key, u.Version)] += int(u.Count)
			}
		}
	}
	for range 50 {
		drain()
	}
	counting.Wait()
	drain()
	if len(counts) != 98 {
		t.Errorf("%d versions were used, want 98", len(counts))
	}
	for of, n := range counts {
		if n != 400 {
			t.Errorf("%s was used %d times, want 400", of, n)
		}
	}
}

// TestLookingUpTakesNoMemory: neither checking the form, nor hashing, nor the look-up allocates.
func TestLookingUpTakesNoMemory(t *testing.T) {
	hasher, table := keytable.NewHasher([]byte("pepper")), keytable.New()
	text, _ := keytable.Draw("kt_live", rand.Reader)
	h, err := hasher.Sum(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Put(&keytable.Entry{Key: "prod/a", Version: 1, Hash: h, Accepted: true, Rules: keytable.Rules{PerSecond: 1e9, Burst: 1e9}}); err != nil {
		t.Fatal(err)
	}
	s := string(text)
	if n := testing.AllocsPerRun(1000, func() {
		h, err := hasher.SumString(s)
		if f := table.Look(&h, now()); err != nil || f.Reason != keytable.Good {
			t.Fatal(f.Reason, err)
		}
	}); n != 0 && !underRaceDetector {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkMillionKeys: what a million versions of as many clients take.
func BenchmarkMillionKeys(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		table := keytable.New()
		for i := range 1_000_000 {
			e := keytable.Entry{
				Key: key.Name(fmt.Sprintf("prod/clients/client-%d", i)), Version: 1, Hash: hashOf(i), Other: hashOf(-i), Accepted: true,
				Rules: keytable.Rules{Client: fmt.Sprintf("Client Number %d", i), Scopes: []string{"orders:read", "orders:write"}, PerSecond: 10, Burst: 20},
			}
			if err := table.Put(&e); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/(1<<20), "MiB")
		runtime.KeepAlive(table)
	}
}

func BenchmarkLook(b *testing.B) {
	hasher, table := keytable.NewHasher([]byte("pepper")), keytable.New()
	texts := make([]string, 1000)
	for i := range texts {
		text, _ := keytable.Draw("kt_live", rand.Reader)
		texts[i] = string(text)
		h, err := hasher.Sum(text)
		if err != nil {
			b.Fatal(err)
		}
		if err := table.Put(&keytable.Entry{Key: key.Name(fmt.Sprint("prod/c", i)), Version: 1, Hash: h, Accepted: true}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		h, _ := hasher.SumString(texts[i%len(texts)])
		if f := table.Look(&h, now()); f.Reason != keytable.Good {
			b.Fatal(f.Reason)
		}
		i++
	}
}

// FuzzDecodeLine: a line that is taken says the same after it was written again, and
// one that names a version has its hash.
func FuzzDecodeLine(f *testing.F) {
	e := keytable.Entry{Key: "prod/a", Version: 3, Hash: hashOf(1), Other: hashOf(2), Accepted: true, Rules: keytable.Rules{Client: "A", Scopes: []string{"x"}}}
	for _, line := range []keytable.Line{keytable.LineOf(&e, false), keytable.LineOf(&e, true), {Reset: true}, {Rev: 7, Age: 3}, {Pepper: []byte("p")}} {
		b, err := line.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		line, err := keytable.DecodeLine(b)
		if err != nil {
			if !reflect.DeepEqual(line, keytable.Line{}) {
				t.Fatalf("refused, and still %+v", line)
			}
			return
		}
		again, err := line.Encode()
		if err != nil {
			t.Fatal(err)
		}
		same, err := keytable.DecodeLine(again)
		third, _ := same.Encode()
		if err != nil || !slices.Equal(again, third) {
			t.Fatalf("%s became %s, %v", again, third, err)
		}
		if entry, err := line.Entry(); err == nil && (entry.Hash.String() != line.Hash || entry.Version == 0 || entry.Key == "") {
			t.Fatalf("%s is entry %+v", b, entry)
		}
	})
}

// TestPage: paging through a table that does not change finds everything once.
func TestPage(t *testing.T) {
	table := keytable.New()
	for i := 2; i < 3000; i++ {
		put(t, table, i, true, keytable.Rules{Client: "c"})
	}
	gone := hashOf(77)
	table.Delete(&gone)
	seen := map[keytable.Hash]bool{}
	for from := uint32(1); from != 0; {
		var list []keytable.Entry
		list, from = table.Page(from, 100)
		for i := range list {
			if seen[list[i].Hash] || list[i].Rules.Client != "c" {
				t.Fatalf("%+v is there twice, or without its rules", list[i])
			}
			seen[list[i].Hash] = true
		}
	}
	if len(seen) != table.Len() || seen[gone] {
		t.Errorf("%d of %d were found", len(seen), table.Len())
	}
}

// TestEntriesAreStable: what the table gives of a version leads to the same rules when it
// is put into another table, and from there again.
func TestEntriesAreStable(t *testing.T) {
	hash := keytable.Hash{1}
	for _, rate := range []float64{0, 0.001, 0.7, 1, 3, 7, 999, 1e6, 3e8} {
		e := keytable.Entry{Key: "a", Version: 1, Hash: hash, Rules: keytable.Rules{Client: "A", PerSecond: rate, Burst: 5}}
		var got [3]keytable.Entry
		for i := range got {
			table := keytable.New()
			if err := table.Put(&e); err != nil {
				t.Fatal(err)
			}
			var ok bool
			if got[i], ok = table.Get(&hash); !ok {
				t.Fatal("it is not there")
			}
			e = got[i]
		}
		if !reflect.DeepEqual(got[1], got[0]) || !reflect.DeepEqual(got[2], got[0]) {
			t.Errorf("%v a second: %+v", rate, got)
		}
	}
	if _, ok := keytable.New().Get(&hash); ok {
		t.Error("an empty table has it")
	}
}
