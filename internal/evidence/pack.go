package evidence

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/internal/audit"
)

// The files that every pack has.
const (
	Manifest = "manifest.json"
	Bundle   = "audit.bundle"
	Entries  = "entries.jsonl"
	Summary  = "summary.md"
	// CheckpointFile is a signed checkpoint of the log; Proofs proves of each of Entries
	// that it is in the log.
	CheckpointFile = "checkpoint.json"
	Proofs         = "proofs.jsonl"
	// Signature is what the log's key signed about Manifest.
	Signature = "manifest.note"
	// PoliciesIn is the folder of the policies by which rotations began, by their SHA-256.
	PoliciesIn = "policies/"
	// RotationsIn is the folder of rotations, as the API shows them.
	RotationsIn = "rotations/"
)

const (
	// version is that of the form.
	version = 2
	// MaxFiles is how many files a pack holds.
	MaxFiles = 5000
	// maxManifest bounds the manifest, in bytes.
	maxManifest = 4 << 20
	// maxSignature bounds what is signed about it.
	maxSignature = 16 << 10
	// maxName bounds the name of a file.
	maxName = 300
)

// ErrPack is wrapped by every error about a file that is no pack.
var ErrPack = errors.New("no evidence pack")

// Subject is what a pack is about.
type Subject struct {
	// Kind is "emergency" or "rotation", ID its ID.
	Kind string `json:"kind"`
	ID   string `json:"id"`
	// Keys are the names of the keys, sorted; Rotations the IDs of their rotations.
	Keys      []string `json:"keys"`
	Rotations []string `json:"rotations"`
}

// String is what the log's key signs for: the kind and the ID.
func (s *Subject) String() string { return s.Kind + " " + s.ID }

// Concerns reports whether an audit entry is about the subject.
func (s *Subject) Concerns(e *audit.Entry) bool {
	if e.Key != "" {
		_, found := slices.BinarySearch(s.Keys, string(e.Key))
		return found
	}
	return e.Target == s.ID
}

// File is one file of a pack.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

type manifest struct {
	Version int     `json:"keyturn_evidence"`
	Subject Subject `json:"subject"`
	Files   []File  `json:"files"`
}

// encode is the manifest in its only form.
func (m manifest) encode() ([]byte, error) { return json.MarshalIndent(m, "", " ") }

// The kinds of subjects.
const (
	kindGroup    = "emergency"
	kindRotation = "rotation"
)

// Writer writes a pack.
type Writer struct {
	zip   *zip.Writer
	files []File
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer {
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	return &Writer{zip: z}
}

// Add writes a file.
func (w *Writer) Add(name string, content io.Reader) error {
	if !validName(name) || name == Manifest || name == Signature || len(w.files) == MaxFiles || slices.ContainsFunc(w.files, func(f File) bool { return f.Name == name }) {
		return fmt.Errorf("evidence: %q cannot be a file of a pack of %d files", name, len(w.files))
	}
	sum := sha256.New()
	size, err := w.add(name, io.TeeReader(content, sum))
	if err != nil {
		return fmt.Errorf("write %s into the pack: %w", name, err)
	}
	w.files = append(w.files, File{Name: name, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

func (w *Writer) add(name string, content io.Reader) (int64, error) {
	// No time: the same content makes the same bytes.
	part, err := w.zip.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate})
	if err != nil {
		return 0, err
	}
	return io.Copy(part, content)
}

// Close writes the manifest and what sign makes of it, and ends the pack.
func (w *Writer) Close(subject Subject, sign func(manifest []byte) ([]byte, error)) error {
	slices.SortFunc(w.files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	body, err := manifest{Version: version, Subject: subject, Files: w.files}.encode()
	if err != nil {
		return err
	}
	if len(body) > maxManifest {
		return fmt.Errorf("evidence: the manifest would have %d bytes, at most %d are allowed", len(body), maxManifest)
	}
	signed, err := sign(body)
	if err != nil {
		return fmt.Errorf("have the manifest signed: %w", err)
	}
	if _, err := w.add(Manifest, bytes.NewReader(body)); err != nil {
		return err
	}
	if _, err := w.add(Signature, bytes.NewReader(signed)); err != nil {
		return err
	}
	return w.zip.Close()
}

func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			return false
		}
	}
	return true
}
