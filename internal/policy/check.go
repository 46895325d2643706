package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/key"
)

// check reports what is wrong with the fields of a policy by themselves; what
// needs CEL, cron or other resources is found by compile and Lint.
func (s *Spec) check(r reporter) {
	s.Rotate.check(r.within("rotate"))
	checkCount(r, "stages", len(s.Stages), MaxStages)
	checkCount(r, "judge", len(s.Judge), MaxJudges)
	checkCount(r, "freeze", len(s.Freeze), MaxFreezes)

	seen := map[string]int{}
	for i, stage := range s.Stages {
		at := r.within(indexPath("stages", i))
		checkSegment(at, "name", stage.Name)
		if first, ok := seen[stage.Name]; ok && stage.Name != "" {
			at.err("name", "duplicate-name", fmt.Sprintf("stage %s exists already as stages[%d]", quote(stage.Name), first), "give each stage its own name")
		} else {
			seen[stage.Name] = i
		}
		stage.checkRegions(at)
		if stage.AckTimeout == 0 {
			at.err("ackTimeout", "out-of-range", "a timeout of zero lets no party acknowledge", "write for example 5m")
		}
	}
	seen = map[string]int{}
	for i, judge := range s.Judge {
		at := r.within(indexPath("judge", i))
		checkSegment(at, "name", judge.Name)
		if first, ok := seen[judge.Name]; ok && judge.Name != "" {
			at.err("name", "duplicate-name", fmt.Sprintf("judge %s exists already as judge[%d]", quote(judge.Name), first), "give each judge its own name")
		} else {
			seen[judge.Name] = i
		}
		checkRange(at, "max", judge.Max, 0, 1_000_000_000)
		checkRange(at, "minSamples", judge.MinSamples, 1, 1_000_000_000)
	}
	s.Drain.check(r.within("drain"))
	checkRange(r, "effects.maxTries", s.Effects.MaxTries, 1, 1000)
	checkRange(r, "approvals.required", s.Approvals.Required, 0, MaxApproval)
	for i, f := range s.Freeze {
		f.check(r.within(indexPath("freeze", i)))
	}
}

func (s *Rotate) check(r reporter) {
	if s.IsZero() {
		return
	}
	if s.Every < MinEvery {
		r.err("every", "out-of-range", fmt.Sprintf("a schedule of every %s is not possible", s.Every), "write how old a version may get, for example 30d; leave rotate out to rotate by hand only")
	}
	if s.Jitter > s.Every {
		r.err("jitter", "out-of-range", fmt.Sprintf("%s is longer than every (%s)", s.Jitter, s.Every), "write a part of every")
	}
	if !s.StartAt.IsZero() {
		checkTime(r, "startAt", s.StartAt)
	}
	checkCount(r, "windows", len(s.Windows), MaxWindows)
	for i, w := range s.Windows {
		at := r.within(indexPath("windows", i))
		if w.Duration <= 0 || w.Duration > 31*Day {
			at.err("duration", "out-of-range", fmt.Sprintf("a window of %s is not possible", w.Duration), "write a duration above 0s and up to 31d, for example 3h")
		}
	}
}

func (d *Drain) check(r reporter) {
	if d.Max < d.grace() {
		r.err("max", "out-of-range", fmt.Sprintf("%s is shorter than min (%s) or quiet (%s): the drain could never end by itself", d.Max, d.Min, d.Quiet), "make max the longest of the three")
	}
	if d.Every < Duration(time.Millisecond) {
		r.err("every", "out-of-range", "the measuring interval is too short", "write at least 1ms, for example 10s")
	}
}

func (f *Interval) check(r reporter) {
	checkTime(r, "from", f.From)
	checkTime(r, "to", f.To)
	if !f.To.After(f.From) {
		r.err("to", "out-of-range", "the freeze ends before it begins", "write a later time")
	}
}

func (f *FreezeSpec) interval() Interval {
	return Interval{From: f.From, To: f.To, Reason: f.Reason}
}

func (m *Metadata) check(r reporter) { checkSegment(r, "name", m.Name) }

func (m *KeyMetadata) check(r reporter) {
	if _, err := key.ParseName(string(m.Name)); err != nil {
		r.err("name", "invalid-name", err.Error(), "")
	}
	checkText(r, "owner", m.Owner, 253)
	checkCount(r, "labels", len(m.Labels), MaxLabels)
	for name, value := range m.Labels {
		at := mapPath("labels", name)
		if name == "" || len(name) > 128 {
			r.err(at, "invalid-name", "a label's name must have 1 to 128 bytes", "")
		}
		checkText(r, at, value, 256)
	}
}

func (s *KeySpec) check(r reporter) {
	checkSegment(r, "provider", s.Provider)
	if s.Policy != "" {
		checkSegment(r, "policy", s.Policy)
	}
}

// checkSegment checks a name that consists of one segment of a key name.
func checkSegment(r reporter, path, name string) {
	if name == "" {
		r.err(path, "invalid-name", "the name is empty", "write for example database")
	} else if _, err := key.ParseName(name); err != nil {
		message := strings.TrimPrefix(err.Error(), key.ErrName.Error()+" ")
		r.err(path, "invalid-name", "invalid name "+message, "")
	} else if strings.Contains(name, "/") {
		r.err(path, "invalid-name", fmt.Sprintf("invalid name %s: it has several segments", quote(name)), "leave out the slashes")
	}
}

func checkText(r reporter, path, text string, most int) {
	if len(text) > most {
		r.err(path, "too-long", fmt.Sprintf("it has %d bytes, at most %d are allowed", len(text), most), "")
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		r.err(path, "invalid-text", "it holds control characters", "write it on one line")
	}
}

func checkCount(r reporter, path string, n, most int) {
	if n > most {
		r.err(path, "too-many", fmt.Sprintf("it has %d entries, at most %d are allowed", n, most), "")
	}
}

func checkRange(r reporter, path string, n, least, most int) {
	if n < least || n > most {
		r.err(path, "out-of-range", fmt.Sprintf("%d is out of range", n), fmt.Sprintf("write a whole number from %d to %d", least, most))
	}
}

func checkTime(r reporter, path string, t time.Time) {
	if y := t.UTC().Year(); y < 2000 || y > 2200 {
		r.err(path, "out-of-range", fmt.Sprintf("the year %d is out of range", y), "write a time between 2000 and 2200")
	}
}

// sortedKeys returns the keys of m in order, for repeatable output.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
