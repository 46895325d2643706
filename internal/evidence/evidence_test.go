package evidence_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/evidence"
	"github.com/keyturn/keyturn/key"
)

var rotationID = key.RotationID{0xab}

const policyText = `{"kind":"Policy"}`

func policySum() string {
	sum := sha256.Sum256([]byte(policyText))
	return hex.EncodeToString(sum[:])
}

// logOf is a log as it is encoded.
func logOf(t testing.TB) audit.Batch {
	t.Helper()
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	alice := audit.Actor{ID: "alice", Kind: "user"}
	entries := []audit.Entry{
		{Actor: alice, Action: "emergency.declare", Target: "g1", Outcome: audit.OutcomeOK, Reason: "<script>|stolen|"},
		{Actor: alice, Action: "secret.read", Key: "prod/other", Version: 1, Outcome: audit.OutcomeOK},
		{Actor: alice, Action: "secret.read", Key: "prod/db", Version: 1, Outcome: audit.OutcomeOK},
		{Actor: alice, Action: "rotation.begun", Key: "prod/db", Rotation: rotationID, Outcome: audit.OutcomeOK, Detail: map[string]string{"policy": "p", "policy-sha256": policySum()}},
		{Actor: alice, Action: "emergency.member", Key: "prod/db", Rotation: rotationID, Outcome: audit.OutcomeOK, Detail: map[string]string{"group": "g1"}},
		{Actor: alice, Action: "verifier.acceptance", Key: "prod/db", Rotation: rotationID, Version: 1, Target: "primary", From: "refuse-probing", To: "refused", Outcome: audit.OutcomeOK},
		{Actor: alice, Action: audit.ActionPhase, Key: "prod/db", Rotation: rotationID, From: "revoking", To: "done", Outcome: audit.OutcomeOK},
	}
	for i := range entries {
		entries[i].At = at
	}
	batch, err := audit.Append(audit.Tail{}, tlog.HashReaderFunc(func([]int64) ([]tlog.Hash, error) { return nil, nil }), entries...)
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

func records(t testing.TB) [][]byte { return logOf(t).Records }

// signer signs the log of every test.
func signer(t testing.TB) *audit.Signer {
	t.Helper()
	key, _, err := audit.GenerateKey(bytes.NewReader(make([]byte, 1000)), "test.example/log")
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.ParseSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bundle is the exported log.
func bundle(t testing.TB) string {
	t.Helper()
	batch, s := logOf(t), signer(t)
	hashes := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var list []tlog.Hash
		for _, i := range indexes {
			list = append(list, batch.Hashes[i])
		}
		return list, nil
	})
	checkpoint, err := audit.CheckpointAt(s.Name(), uint64(len(batch.Records)), hashes)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := audit.SignCheckpoint(checkpoint, s)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	line := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(text, '\n'))
	}
	line(map[string]any{"keyturn_audit_bundle": 1, "keys": []string{s.VerifierKey()}})
	for i, r := range batch.Records {
		text, err := json.Marshal(batch.Hashes[tlog.StoredHashCount(int64(i)):tlog.StoredHashCount(int64(i+1))])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "{\"entry\":%s,\"hashes\":%s}\n", r, text)
	}
	line(map[string]string{"checkpoint": string(signed)})
	return b.String()
}

// scratch is a file in memory.
type scratch struct{ bytes.Buffer }

func (s *scratch) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(s.Bytes()).ReadAt(p, at)
}

func subject() evidence.Subject {
	return evidence.Subject{Kind: "emergency", ID: "g1", Keys: []string{"prod/db"}, Rotations: []string{rotationID.String()}}
}

// content is what a good pack holds.
func content(t testing.TB) map[string]string {
	t.Helper()
	list := records(t)
	lines := ""
	for i, r := range list {
		if i != 1 {
			lines += string(r) + "\n"
		}
	}
	about := subject()
	var proofs bytes.Buffer
	checkpoint, err := evidence.Prove(strings.NewReader(bundle(t)), &about, &scratch{}, &proofs)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := json.Marshal(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		evidence.Bundle: bundle(t), evidence.Entries: lines, evidence.Summary: "# Evidence\n",
		evidence.CheckpointFile: string(signed), evidence.Proofs: proofs.String(),
		evidence.PoliciesIn + policySum() + ".json":          policyText,
		evidence.RotationsIn + rotationID.String() + ".json": `{"rotation":{"id":"` + rotationID.String() + `","key":"prod/db","phase":"done"}}`,
	}
}

func pack(t testing.TB, files map[string]string, about evidence.Subject) []byte {
	t.Helper()
	var b bytes.Buffer
	w := evidence.NewWriter(&b)
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.Add(name, strings.NewReader(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	err := w.Close(about, func(manifest []byte) ([]byte, error) {
		return audit.SignStatement(&audit.Statement{
			Origin: signer(t).Name(), Subject: about.String(), Digest: sha256.Sum256(manifest), At: time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC), Actor: audit.Actor{ID: "alice", Kind: "user"},
		}, signer(t))
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func faults(t testing.TB, b []byte) []evidence.Fault {
	t.Helper()
	p, err := evidence.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if list := p.Check(); len(list) > 0 {
		return list
	}
	verifier, err := audit.ParseVerifier(signer(t).VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	made, list := p.CheckManifest(verifier)
	if len(list) > 0 {
		return list
	}
	if made.Actor.ID != "alice" || made.At.Hour() != 13 {
		t.Errorf("made at %v by %v", made.At, made.Actor)
	}
	_, list, err = p.CheckEntries()
	if err != nil {
		t.Fatal(err)
	}
	_, more, err := p.CheckProofs(verifier)
	if err != nil {
		t.Fatal(err)
	}
	return append(list, more...)
}

func TestGoodPack(t *testing.T) {
	b := pack(t, content(t), subject())
	if list := faults(t, b); len(list) > 0 {
		t.Error(list)
	}
	if !bytes.Equal(b, pack(t, content(t), subject())) {
		t.Error("the same content made other bytes")
	}
	// Without the log every entry is proven as well.
	lean := content(t)
	delete(lean, evidence.Bundle)
	b = pack(t, lean, subject())
	if list := faults(t, b); len(list) > 0 {
		t.Error(list)
	}
	if p, err := evidence.Open(bytes.NewReader(b), int64(len(b))); err != nil || p.HasLog() {
		t.Error("it has a log", err)
	}
}

// TestEveryFileIsGuarded: whichever byte of whichever file is flipped, in packs with
// and without the log, it is found.
func TestEveryFileIsGuarded(t *testing.T) {
	for _, lean := range []bool{false, true} {
		files := content(t)
		if lean {
			delete(files, evidence.Bundle)
		}
		parts := unpack(t, pack(t, files, subject()))
		for name, body := range parts {
			for at := 0; at < len(body); at += 1 + len(body)/97 {
				changed := maps.Clone(parts)
				flipped := []byte(body)
				flipped[at] ^= 1
				changed[name] = string(flipped)
				b := repack(t, changed)
				p, err := evidence.Open(bytes.NewReader(b), int64(len(b)))
				if err == nil && len(p.Check()) == 0 && len(faults(t, b)) == 0 {
					t.Errorf("byte %d of %s was flipped unseen", at, name)
				}
			}
		}
	}
}

// TestAlteredWithItsManifest: who alters a proven file and mends the manifest as well is found.
func TestAlteredWithItsManifest(t *testing.T) {
	for name, change := range map[string]func(string) string{
		evidence.Entries:                            func(s string) string { return strings.Replace(s, "alice", "clark", 1) },
		evidence.Proofs:                             func(s string) string { return strings.Replace(s, `"proof":["`, `"proof":["A`, 1) },
		evidence.CheckpointFile:                     func(s string) string { return strings.Replace(s, `log\n7\n`, `log\n8\n`, 1) },
		evidence.PoliciesIn + policySum() + ".json": func(string) string { return `{"kind":"Other"}` },
	} {
		for _, lean := range []bool{false, true} {
			files := content(t)
			if lean {
				delete(files, evidence.Bundle)
			}
			was := files[name]
			if files[name] = change(was); files[name] == was {
				t.Fatalf("%s was not altered: %s", name, was)
			}
			b := pack(t, files, subject())
			p, err := evidence.Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Check()) == 0 && len(faults(t, b)) == 0 {
				t.Errorf("%s was altered unseen", name)
			}
		}
	}
}

// TestSignedManifest: who alters what the log does not tell, and mends the manifest as
// well, is found; and so is one without a signature, or with that of another pack.
func TestSignedManifest(t *testing.T) {
	good := unpack(t, pack(t, content(t), subject()))
	mended := content(t)
	mended[evidence.Summary] = "# Nothing happened\n"
	forged := unpack(t, pack(t, mended, subject()))
	with := func(files map[string]string, change func(map[string]string)) map[string]string {
		files = maps.Clone(files)
		change(files)
		return files
	}
	for name, test := range map[string]struct {
		files map[string]string
		file  string
	}{
		"mended":             {with(forged, func(f map[string]string) { f[evidence.Signature] = good[evidence.Signature] }), evidence.Manifest},
		"not signed":         {with(good, func(f map[string]string) { delete(f, evidence.Signature) }), evidence.Signature},
		"signed by nobody":   {with(good, func(f map[string]string) { f[evidence.Signature] = "x" }), evidence.Signature},
		"an empty signature": {with(good, func(f map[string]string) { f[evidence.Signature] = "" }), evidence.Signature},
		"that of another log": {with(good, func(f map[string]string) {
			f[evidence.Signature] = strings.Replace(f[evidence.Signature], "test.example/log", "test.example/lag", 1)
		}), evidence.Signature},
	} {
		list := faults(t, repack(t, test.files))
		if len(list) != 1 || list[0].File != test.file {
			t.Errorf("%s: %v", name, list)
		}
	}
}

// unpack returns the files of a pack by name, its manifest included; repack makes a
// file of them, whatever they are.
func unpack(t testing.TB, b []byte) map[string]string {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(body)
	}
	return files
}

func repack(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, body := range files {
		part, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBadPacks: whatever is altered, missing or added is named.
func TestBadPacks(t *testing.T) {
	rotationFile := evidence.RotationsIn + rotationID.String() + ".json"
	for name, test := range map[string]struct {
		change func(files map[string]string, s *evidence.Subject)
		file   string
	}{
		"an entry is left out": {func(f map[string]string, _ *evidence.Subject) {
			f[evidence.Entries] = f[evidence.Entries][strings.Index(f[evidence.Entries], "\n")+1:]
		}, evidence.Entries},
		"an entry is added": {func(f map[string]string, _ *evidence.Subject) { f[evidence.Entries] += f[evidence.Entries] }, evidence.Entries},
		"an entry is altered": {func(f map[string]string, _ *evidence.Subject) {
			f[evidence.Entries] = strings.Replace(f[evidence.Entries], "alice", "clark", 1)
		}, evidence.Entries},
		"no rotation":     {func(f map[string]string, _ *evidence.Subject) { delete(f, rotationFile) }, rotationFile},
		"a rotation less": {func(f map[string]string, s *evidence.Subject) { delete(f, rotationFile); s.Rotations = nil }, rotationFile},
		"the rotation tells a lie": {func(f map[string]string, _ *evidence.Subject) {
			f[rotationFile] = strings.Replace(f[rotationFile], "done", "failed", 1)
		}, rotationFile},
		"that of another one": {func(f map[string]string, _ *evidence.Subject) { f[rotationFile] = `{"rotation":{"id":"x"}}` }, rotationFile},
		"no proofs":           {func(f map[string]string, _ *evidence.Subject) { delete(f, evidence.Proofs) }, evidence.Proofs},
		"no checkpoint":       {func(f map[string]string, _ *evidence.Subject) { delete(f, evidence.CheckpointFile) }, evidence.CheckpointFile},
		"no policy": {func(f map[string]string, _ *evidence.Subject) {
			delete(f, evidence.PoliciesIn+policySum()+".json")
		}, evidence.PoliciesIn + policySum() + ".json"},
		"no page": {func(f map[string]string, _ *evidence.Subject) { delete(f, evidence.Summary) }, evidence.Summary},
	} {
		files, about := content(t), subject()
		test.change(files, &about)
		list := faults(t, pack(t, files, about))
		if len(list) == 0 || list[0].File != test.file {
			t.Errorf("%s: %v", name, list)
		}
	}
}

// TestAlteredPack: a file that differs from the manifest is named, one that is not in
// it as well, and no byte can change unseen.
func TestAlteredPack(t *testing.T) {
	good := pack(t, content(t), subject())
	z, err := zip.NewReader(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(edit func(name, body string) (string, bool), more ...string) []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		add := func(name, body string) {
			part, err := w.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := part.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range z.File {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if changed, keep := edit(f.Name, string(body)); keep {
				add(f.Name, changed)
			}
		}
		for _, name := range more {
			add(name, "x")
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for _, victim := range []string{evidence.Bundle, evidence.Entries, evidence.Summary} {
		for how, edit := range map[string]func(string) (string, bool){
			"it was altered: its SHA": func(s string) (string, bool) { return strings.ToUpper(s), true },
			"it was altered: its len": func(s string) (string, bool) { return s + " ", true },
			"it is missing":           func(s string) (string, bool) { return s, false },
		} {
			list := faults(t, rewrite(func(name, body string) (string, bool) {
				if name != victim {
					return body, true
				}
				return edit(body)
			}))
			if len(list) != 1 || list[0].File != victim || !strings.HasPrefix(list[0].Problem, how) {
				t.Errorf("%s, %s: %v", victim, how, list)
			}
		}
	}
	same := func(_, body string) (string, bool) { return body, true }
	if list := faults(t, rewrite(same, "more.txt")); len(list) != 1 || list[0].File != "more.txt" {
		t.Error(list)
	}
	for _, bad := range [][]byte{nil, []byte("PK"), good[:len(good)/2], rewrite(same, evidence.Bundle), rewrite(func(name, body string) (string, bool) { return body, name != evidence.Manifest })} {
		if _, err := evidence.Open(bytes.NewReader(bad), int64(len(bad))); err == nil {
			t.Error("a file that is no pack was opened")
		}
	}
}

func TestSummary(t *testing.T) {
	s := evidence.NewSummarizer(subject())
	about := subject()
	if err := evidence.ReadRecords(strings.NewReader(bundle(t)), &about, func(r evidence.Record) error {
		s.Take(&r.Entry)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	text := s.Text([]string{"keys: prod/db"})
	for _, want := range []string{"# Evidence of emergency g1", "- keys: prod/db", "| 5 | prod/db | v1 | primary |", "| user alice | read it |", "emergency.declare", "&lt;script&gt;\\|stolen"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "prod/other") || strings.Contains(text, "<script>") {
		t.Error(text)
	}
}

// FuzzPack: no file makes the reader fail otherwise than by an error, and a pack
// without a fault has every file as its manifest says.
func FuzzPack(f *testing.F) {
	f.Add(pack(f, content(f), subject()))
	f.Add([]byte("PK\x05\x06"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := evidence.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil || len(p.Check()) > 0 {
			return
		}
		for _, file := range p.Files {
			r, err := p.Open(file.Name)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r)
			sum := sha256.Sum256(body)
			if err != nil || int64(len(body)) != file.Size || hex.EncodeToString(sum[:]) != file.SHA256 {
				t.Errorf("%s is not as the manifest says: %v", file.Name, err)
			}
		}
		_, _ = p.CheckManifest()   // it returns
		_, _, _ = p.CheckEntries() // it returns
		_, _, _ = p.CheckProofs()  // it returns
	})
}
