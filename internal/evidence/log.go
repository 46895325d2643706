package evidence

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/keyturn/keyturn/internal/audit"
)

// maxLine bounds a line of a bundle, in bytes.
const maxLine = audit.MaxRecordSize + 16<<10

// Record is one record of the audit log, as it stands there.
type Record struct {
	Raw   []byte
	Entry audit.Entry
}

// ErrLog is wrapped when a log cannot be read; verifying its bundle says why.
var ErrLog = errors.New("the audit log in it cannot be read")

// ReadRecords calls visit for the records of a bundle that concern the subject, in
// order. What visit is given is valid until it returns.
func ReadRecords(bundle io.Reader, subject *Subject, visit func(Record) error) error {
	lines := bufio.NewScanner(bundle)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		if !bytes.HasPrefix(lines.Bytes(), []byte(`{"entry":`)) {
			continue
		}
		var line struct {
			Entry json.RawMessage `json:"entry"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("%w: %w", ErrLog, err)
		}
		entry, err := audit.Decode(line.Entry)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLog, err)
		}
		if !subject.Concerns(&entry) {
			continue
		}
		if err := visit(Record{Raw: line.Entry, Entry: entry}); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrLog, err)
	}
	return nil
}

// Facts is what the log proves of the subject.
type Facts struct {
	// Entries is how many concern it.
	Entries int
	// phases are the last ones of rotations, policies the SHA-256 of the policies by
	// which they began, members the rotations of the group.
	phases   map[string]string
	policies map[string]string
	members  []string
}

var errDiffers = errors.New("differs")

// CheckEntries compares what the pack says with its log, which the caller has verified,
// or, in a pack without the log, with its entries, which CheckProofs has checked.
func (p *Pack) CheckEntries() (Facts, []Fault, error) {
	facts := Facts{phases: map[string]string{}, policies: map[string]string{}}
	if !p.HasLog() {
		err := p.entries(func(_ []byte, entry *audit.Entry) error {
			facts.take(entry, p.Subject.ID)
			return nil
		})
		if err != nil {
			return facts, nil, err
		}
		faults := p.checkSubject(&facts)
		return facts, faults, nil
	}
	bundle, err := p.Open(Bundle)
	if err != nil {
		return facts, nil, err
	}
	defer bundle.Close()
	listed, err := p.Open(Entries)
	if err != nil {
		return facts, nil, err
	}
	defer listed.Close()
	lines := bufio.NewScanner(listed)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	var faults []Fault
	err = ReadRecords(bundle, &p.Subject, func(r Record) error {
		if !lines.Scan() || !bytes.Equal(lines.Bytes(), r.Raw) {
			faults = append(faults, Fault{File: Entries, Problem: fmt.Sprintf("entry %d of the log is not where it belongs", r.Entry.Seq)})
			return errDiffers
		}
		facts.take(&r.Entry, p.Subject.ID)
		return nil
	})
	switch {
	case errors.Is(err, errDiffers):
		return facts, faults, nil
	case err != nil:
		return facts, nil, err
	case lines.Scan():
		faults = append(faults, Fault{File: Entries, Problem: "it goes on behind the last entry that the log has"})
	case lines.Err() != nil:
		faults = append(faults, Fault{File: Entries, Problem: lines.Err().Error()})
	}
	faults = append(faults, p.checkSubject(&facts)...)
	return facts, faults, nil
}

// checkSubject compares the rotations and policies of a pack with its entries.
func (p *Pack) checkSubject(facts *Facts) (faults []Fault) {
	for _, id := range facts.members {
		if !slices.Contains(p.Subject.Rotations, id) {
			faults = append(faults, Fault{File: RotationsIn + id + ".json", Problem: "it is missing: by the log this rotation belongs to the group"})
		}
	}
	for _, id := range p.Subject.Rotations {
		if problem := p.checkRotation(id, facts); problem != "" {
			faults = append(faults, Fault{File: RotationsIn + id + ".json", Problem: problem})
		}
		sum := facts.policies[id]
		name := PoliciesIn + sum + ".json"
		i := slices.IndexFunc(p.Files, func(f File) bool { return f.Name == name })
		switch {
		case sum == "": // it began before the log named policies
		case i < 0:
			faults = append(faults, Fault{File: name, Problem: "it is missing: by the log rotation " + id + " began by this policy"})
		case p.Files[i].SHA256 != sum:
			faults = append(faults, Fault{File: name, Problem: "it is not the policy by which, by the log, rotation " + id + " began"})
		}
	}
	return faults
}

func (f *Facts) take(e *audit.Entry, id string) {
	f.Entries++
	switch {
	case e.Action == audit.ActionPhase:
		f.phases[e.Rotation.String()] = e.To
	case e.Action == "rotation.begun" && e.Detail["policy-sha256"] != "":
		f.policies[e.Rotation.String()] = e.Detail["policy-sha256"]
	case e.Action == "emergency.member" && e.Detail["group"] == id:
		f.members = append(f.members, e.Rotation.String())
	}
}

// maxRotation bounds a file of a rotation.
const maxRotation = 16 << 20

// checkRotation compares a rotation with the log.
func (p *Pack) checkRotation(id string, facts *Facts) string {
	r, err := p.Open(RotationsIn + id + ".json")
	if err != nil {
		return "it is missing"
	}
	defer r.Close()
	var shown struct {
		Rotation struct {
			ID    string `json:"id"`
			Key   string `json:"key"`
			Phase string `json:"phase"`
		} `json:"rotation"`
	}
	if err := json.NewDecoder(io.LimitReader(r, maxRotation)).Decode(&shown); err != nil {
		return "it is no rotation: " + err.Error()
	}
	if _, known := slices.BinarySearch(p.Subject.Keys, shown.Rotation.Key); shown.Rotation.ID != id || !known {
		return "it is that of another rotation"
	}
	if phase, told := facts.phases[id]; told && phase != shown.Rotation.Phase {
		return fmt.Sprintf("it says %q, and the log %q", shown.Rotation.Phase, phase)
	}
	return ""
}
