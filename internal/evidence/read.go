package evidence

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/internal/audit"
)

// Fault is something wrong with a pack.
type Fault struct {
	// File is the one concerned, empty for the pack as a whole.
	File string `json:"file,omitempty"`
	// Problem is for people.
	Problem string `json:"problem"`
}

// String is the fault as one line.
func (f Fault) String() string {
	if f.File == "" {
		return f.Problem
	}
	return f.File + ": " + f.Problem
}

// Pack is a pack that is read.
type Pack struct {
	Subject Subject
	// Files are those of the manifest.
	Files []File

	parts map[string]*zip.File
	extra []string
	// manifest is what signed is about.
	manifest, signed []byte
}

// Open reads the manifest of a pack. It fails with ErrPack when there is none, or not
// in its form.
func Open(r io.ReaderAt, size int64) (*Pack, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPack, err)
	}
	if len(z.File) > MaxFiles+2 {
		return nil, fmt.Errorf("%w: it has %d files, at most %d are allowed", ErrPack, len(z.File), MaxFiles+2)
	}
	p := &Pack{parts: make(map[string]*zip.File, len(z.File))}
	for _, f := range z.File {
		if _, twice := p.parts[f.Name]; twice {
			return nil, fmt.Errorf("%w: it has %q twice", ErrPack, f.Name)
		}
		p.parts[f.Name] = f
	}
	part := p.parts[Manifest]
	if part == nil {
		return nil, fmt.Errorf("%w: it has no %s", ErrPack, Manifest)
	}
	body, err := readPart(part, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPack, Manifest, err)
	}
	var m manifest
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPack, Manifest, err)
	}
	if m.Version != version {
		return nil, fmt.Errorf("%w: its form is version %d, this program knows version %d", ErrPack, m.Version, version)
	}
	if only, err := m.encode(); err != nil || !bytes.Equal(only, body) {
		return nil, fmt.Errorf("%w: %s is not in its only form: it was altered", ErrPack, Manifest)
	}
	if s := &m.Subject; s.Kind != kindGroup && (s.Kind != kindRotation || !slices.Contains(s.Rotations, s.ID)) {
		return nil, fmt.Errorf("%w: %s: it is about neither an emergency nor a rotation in it", ErrPack, Manifest)
	}
	if len(m.Files) > MaxFiles || !slices.IsSorted(m.Subject.Keys) {
		return nil, fmt.Errorf("%w: %s: its files or keys are not in order", ErrPack, Manifest)
	}
	p.Subject, p.Files, p.manifest = m.Subject, m.Files, body
	if part := p.parts[Signature]; part != nil {
		if p.signed, err = readPart(part, maxSignature); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrPack, Signature, err)
		}
	}
	listed := map[string]bool{Manifest: true, Signature: true}
	for _, f := range m.Files {
		if !validName(f.Name) || listed[f.Name] || f.Size < 0 {
			return nil, fmt.Errorf("%w: %s: it cannot list %q", ErrPack, Manifest, f.Name)
		}
		listed[f.Name] = true
	}
	for _, f := range z.File {
		if !listed[f.Name] {
			p.extra = append(p.extra, f.Name)
		}
	}
	return p, nil
}

func readPart(part *zip.File, most int64) ([]byte, error) {
	r, err := part.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(body)) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	return body, err
}

// HasLog reports whether the whole log is in the pack. Without it nothing proves that
// no entry was left out.
func (p *Pack) HasLog() bool {
	return slices.ContainsFunc(p.Files, func(f File) bool { return f.Name == Bundle })
}

// CheckManifest checks that the manifest was signed by one of the verifiers, about this
// subject. It returns by whom and when it was brought to the log's server.
func (p *Pack) CheckManifest(verifiers ...note.Verifier) (audit.Statement, []Fault) {
	if p.signed == nil {
		return audit.Statement{}, []Fault{{File: Signature, Problem: "it is missing: nothing proves that the manifest is the one that was made"}}
	}
	s, err := audit.OpenStatement(p.signed, verifiers...)
	switch {
	case err != nil:
		return s, []Fault{{File: Signature, Problem: err.Error()}}
	case s.Digest != sha256.Sum256(p.manifest) || s.Subject != p.Subject.String():
		return s, []Fault{{File: Manifest, Problem: "it was altered: it is not the one that was signed"}}
	}
	return s, nil
}

// Check compares every file with the manifest.
func (p *Pack) Check() []Fault {
	var faults []Fault
	for _, name := range p.extra {
		faults = append(faults, Fault{File: name, Problem: "it is not in the manifest"})
	}
	listed := map[string]bool{}
	for _, f := range p.Files {
		listed[f.Name] = true
		if problem := p.compare(f); problem != "" {
			faults = append(faults, Fault{File: f.Name, Problem: problem})
		}
	}
	for _, name := range []string{Entries, Proofs, CheckpointFile, Summary} {
		if !listed[name] {
			faults = append(faults, Fault{File: name, Problem: "it is missing, and in the manifest as well"})
		}
	}
	for _, id := range p.Subject.Rotations {
		if name := RotationsIn + id + ".json"; !listed[name] {
			faults = append(faults, Fault{File: name, Problem: "it is missing, and in the manifest as well"})
		}
	}
	return faults
}

func (p *Pack) compare(f File) string {
	part := p.parts[f.Name]
	if part == nil {
		return "it is missing"
	}
	r, err := part.Open()
	if err != nil {
		return "it was altered: " + err.Error()
	}
	defer r.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, io.LimitReader(r, f.Size+1))
	switch {
	case err != nil:
		return "it was altered: " + err.Error()
	case size != f.Size:
		return fmt.Sprintf("it was altered: its length is not %d bytes", f.Size)
	case hex.EncodeToString(sum.Sum(nil)) != f.SHA256:
		return "it was altered: its SHA-256 is not that of the manifest"
	}
	return ""
}

// Open returns the content of a file, as far as the manifest says.
func (p *Pack) Open(name string) (io.ReadCloser, error) {
	i := slices.IndexFunc(p.Files, func(f File) bool { return f.Name == name })
	part := p.parts[name]
	if i < 0 || part == nil {
		return nil, fmt.Errorf("%w: %s is missing", ErrPack, name)
	}
	r, err := part.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPack, name, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, p.Files[i].Size), r}, nil
}
