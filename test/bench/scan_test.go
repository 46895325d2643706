package bench

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/sources"

	"github.com/keyturn/keyturn/internal/scan"
)

const (
	// scanFiles files of scanSize bytes are scanned: source text of this repository.
	scanFiles = 4
	scanSize  = 2 << 20
	// scanLimit is the aim, in MB/s.
	scanLimit = 100
)

// BenchmarkScan scans ordinary text, by the library alone for the floor: one detector
// over all files at once, in pieces as it makes them. What counts is processor time,
// as if one processor did all. More is better. The third figure looks besides for all
// that could be a secret of a managed key.
func BenchmarkScan(b *testing.B) {
	dir := b.TempDir()
	text := sourceText(b, scanFiles*scanSize)
	var paths []string
	for i := range scanFiles {
		path := filepath.Join(dir, string(rune('a'+i))+".txt")
		if err := os.WriteFile(path, text[i*scanSize:(i+1)*scanSize], 0o600); err != nil {
			b.Fatal(err)
		}
		paths = append(paths, path)
	}
	library, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		b.Fatal(err)
	}
	used := cpu(b)
	var working sync.WaitGroup
	for _, path := range paths {
		working.Go(func() {
			content, err := os.ReadFile(path)
			if err == nil {
				_, err = library.DetectSource(b.Context(), &sources.File{Content: bytes.NewReader(content), Path: path, Config: &library.Config})
			}
			if err != nil {
				b.Error(err)
			}
		})
	}
	working.Wait()
	floor := cpu(b) - used

	ours := func(c scan.Config) (time.Duration, time.Duration, scan.Report) {
		scanner, err := scan.New(c)
		if err != nil {
			b.Fatal(err)
		}
		best, wall := time.Hour, time.Hour
		var report scan.Report
		for range 3 {
			used, begun := cpu(b), time.Now()
			report, err = scanner.Run(b.Context(), scanner.Paths(dir))
			best, wall = min(best, cpu(b)-used), min(wall, time.Since(begun))
			if err != nil || report.Bytes < scanFiles*scanSize || report.Files != scanFiles {
				b.Fatalf("%d bytes scanned, %v, %v", report.Bytes, report.Gaps, err)
			}
		}
		return best, wall, report
	}
	perSecond := func(d time.Duration) float64 { return scanFiles * scanSize / 1e6 / d.Seconds() }
	used, wall, report := ours(scan.Config{})
	matching, _, _ := ours(scan.Config{Candidates: true})
	scoreboard.add(b, result{Name: "scan", Unit: "MB/s", Ours: perSecond(used), Floor: perSecond(floor), limit: scanLimit, more: true})
	b.Logf("%d findings, the library has %d; %.0f MB/s by the clock; %.0f MB/s of one processor with candidates for matching",
		len(report.Findings), len(library.Findings()), perSecond(wall), perSecond(matching))
}

// sourceText is source of this repository, as often as is needed.
func sourceText(b *testing.B, size int) []byte {
	b.Helper()
	var all bytes.Buffer
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".md") {
			return err
		}
		content, err := os.ReadFile(path)
		all.Write(content)
		return err
	})
	if err != nil || all.Len() == 0 {
		b.Fatal(err, "no source is there")
	}
	return bytes.Repeat(all.Bytes(), size/all.Len()+1)[:size]
}
