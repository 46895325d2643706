package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/evidence"
)

func (a *app) reportCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "report", Short: "Write evidence of what happened, and verify it"},
		a.reportEvidenceCommand(), a.reportVerifyCommand())
}

func (a *app) evidenceCommand() *cobra.Command {
	pack := a.reportEvidenceCommand()
	pack.Use = strings.Replace(pack.Use, "evidence", "pack", 1)
	pack.Example = strings.ReplaceAll(strings.ReplaceAll(pack.Example, "report evidence", "evidence pack"), "report verify", "evidence verify")
	verify := a.reportVerifyCommand()
	return a.group(&cobra.Command{Use: "evidence", Short: "The same as report: write evidence packs, and verify them"}, pack, verify)
}

func (a *app) reportEvidenceCommand() *cobra.Command {
	var out string
	var lean bool
	c := a.action("evidence ID", "Write what happened in a rotation or an emergency of many keys into one file", func(cmd *cobra.Command, args []string) error {
		if out == "" {
			return usage("write for example -o evidence.zip", "--out is missing")
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "keyturn-evidence-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }() // what is left is public
		g := &gathering{a: a, api: api, dir: dir, lean: lean}
		if err := g.gather(cmd.Context(), args[0]); err != nil {
			return err
		}
		r, w := io.Pipe()
		go func() { w.CloseWithError(g.write(cmd.Context(), w)) }()
		size, err := writeStream(out, r)
		if err != nil {
			return err
		}
		return a.result(struct {
			File    string           `json:"file"`
			Bytes   int64            `json:"bytes"`
			Subject evidence.Subject `json:"subject"`
		}{out, size, g.subject}, func(w io.Writer) {
			fmt.Fprintf(w, "evidence of %s %s about %s written to %s (%d bytes)\n", g.subject.Kind, shortID(g.subject.ID), plural(len(g.subject.Keys), "key"), clean(out), size)
		})
	})
	c.Long = `The file is a ZIP: a page for people, the rotations with their timelines and approvals,
the policies by which the rotations began, the keys with their versions, the audit entries
about them, each with the proof that it is in the signed log, and the log itself. It holds
no secret. It needs a token that covers every key, since the log is read. Its form is
described in docs/reference/evidence.md.`
	c.Example = "  keyturn report evidence 4f2a9c01 -o evidence.zip\n  keyturn report verify evidence.zip"
	c.Flags().BoolVar(&lean, "without-log", false, "leave out the audit log, for somebody who may not see the rest of it: each entry is proven, not that none was left out")
	c.Flags().StringVarP(&out, "out", "o", "", "write to this `FILE`, which is replaced only when all is there")
	return c
}

// gathering collects what goes into a pack.
type gathering struct {
	a   *app
	api keyturnv1connect.ControlServiceClient
	dir string
	// lean: the log is left out.
	lean bool

	subject   evidence.Subject
	group     *keyturnv1.Emergency
	rotations []*keyturnv1.GetRotationResponse
	keys      []*keyturnv1.Key
}

func (g *gathering) bundle() string  { return g.dir + "/" + evidence.Bundle }
func (g *gathering) entries() string { return g.dir + "/" + evidence.Entries }
func (g *gathering) proofs() string  { return g.dir + "/" + evidence.Proofs }

// gatherTries is how often it is gathered anew because something moved meanwhile.
const gatherTries = 5

func (g *gathering) gather(ctx context.Context, id string) error {
	for range gatherTries {
		if err := g.read(ctx, id); err != nil {
			return err
		}
		f, err := os.Create(g.bundle())
		if err != nil {
			return err
		}
		log := exported(ctx, g.api)
		_, err = io.Copy(f, log)
		if err = errors.Join(err, log.Close(), f.Close()); err != nil {
			return err
		}
		// The log must tell of the rotations what they say of themselves.
		before := g.phases()
		if err := g.read(ctx, g.subject.ID); err != nil {
			return err
		}
		if slices.Equal(before, g.phases()) {
			return nil
		}
	}
	return fail(ExitFailed, "wait a moment, or until it is done", "the rotations move too fast for a consistent report")
}

func (g *gathering) phases() []string {
	var list []string
	for _, r := range g.rotations {
		list = append(list, r.GetRotation().GetId()+r.GetRotation().GetPhase())
	}
	return list
}

// read reads the subject from the server.
func (g *gathering) read(ctx context.Context, id string) error {
	g.subject, g.rotations, g.keys = evidence.Subject{Kind: "emergency"}, nil, nil
	response, err := g.api.GetEmergency(ctx, &keyturnv1.GetEmergencyRequest{Id: id})
	var ids []string
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound:
		g.subject.Kind = "rotation"
		ids = []string{id}
	case err != nil:
		return err
	default:
		g.group = response.GetEmergency()
		g.subject.ID = g.group.GetId()
		for _, k := range g.group.GetKeys() {
			if k.GetRotation() != nil {
				ids = append(ids, k.GetRotationId())
			}
		}
	}
	for _, id := range ids {
		r, err := g.api.GetRotation(ctx, &keyturnv1.GetRotationRequest{Id: id})
		if err != nil {
			return err
		}
		g.rotations = append(g.rotations, r)
		g.subject.Rotations = append(g.subject.Rotations, r.GetRotation().GetId())
		g.subject.Keys = append(g.subject.Keys, r.GetRotation().GetKey())
	}
	if g.group == nil {
		g.subject.ID = g.subject.Rotations[0]
	}
	slices.Sort(g.subject.Keys)
	g.subject.Keys = slices.Compact(g.subject.Keys)
	slices.Sort(g.subject.Rotations)
	for _, name := range g.subject.Keys {
		k, err := g.api.GetKey(ctx, &keyturnv1.GetKeyRequest{Name: name})
		if connect.CodeOf(err) == connect.CodeNotFound {
			continue // it was deleted meanwhile
		}
		if err != nil {
			return err
		}
		g.keys = append(g.keys, k.GetKey())
	}
	return nil
}

// write writes the pack.
func (g *gathering) write(ctx context.Context, w io.Writer) error {
	pack := evidence.NewWriter(w)
	summary, err := g.sift()
	if err != nil {
		return err
	}
	if err := pack.Add(evidence.Summary, strings.NewReader(summary.Text(g.about()))); err != nil {
		return err
	}
	if g.group != nil {
		if err := pack.Add("emergency.json", bytes.NewReader(jsonLine(g.group))); err != nil {
			return err
		}
	}
	for _, r := range g.rotations {
		if err := pack.Add(evidence.RotationsIn+r.GetRotation().GetId()+".json", bytes.NewReader(jsonLine(r))); err != nil {
			return err
		}
	}
	for i, k := range g.keys {
		if err := pack.Add(fmt.Sprintf("keys/%04d.json", i), bytes.NewReader(jsonLine(k))); err != nil {
			return err
		}
	}
	if err := g.writePolicies(pack); err != nil {
		return err
	}
	checkpoint, err := g.prove()
	if err != nil {
		return err
	}
	if err := pack.Add(evidence.CheckpointFile, bytes.NewReader(checkpoint)); err != nil {
		return err
	}
	files := [][2]string{{evidence.Entries, g.entries()}, {evidence.Proofs, g.proofs()}, {evidence.Bundle, g.bundle()}}
	if g.lean {
		files = files[:2]
	}
	for _, file := range files {
		if err := addFile(pack, file[0], file[1]); err != nil {
			return err
		}
	}
	return pack.Close(g.subject, func(manifest []byte) ([]byte, error) {
		sum := sha256.Sum256(manifest)
		signed, err := g.api.SignEvidence(ctx, &keyturnv1.SignEvidenceRequest{Id: g.subject.ID, ManifestSha256: sum[:]})
		return signed.GetNote(), err
	})
}

// writePolicies writes each policy by which a rotation began once.
func (g *gathering) writePolicies(pack *evidence.Writer) error {
	written := map[string]bool{}
	for _, r := range g.rotations {
		p := r.GetPolicy()
		if len(p.GetDocument()) == 0 || written[p.GetSha256()] {
			continue
		}
		written[p.GetSha256()] = true
		if err := pack.Add(evidence.PoliciesIn+p.GetSha256()+".json", bytes.NewReader(p.GetDocument())); err != nil {
			return err
		}
	}
	return nil
}

// prove writes the proofs of the entries, and returns the file of the checkpoint.
func (g *gathering) prove() (checkpoint []byte, err error) {
	bundle, err := os.Open(g.bundle())
	if err != nil {
		return nil, err
	}
	defer bundle.Close()
	scratch, err := os.Create(g.dir + "/hashes")
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	proofs, err := os.Create(g.proofs())
	if err != nil {
		return nil, err
	}
	signed, err := evidence.Prove(bundle, &g.subject, scratch, proofs)
	if err := errors.Join(err, proofs.Close()); err != nil {
		return nil, err
	}
	return json.Marshal(signed)
}

func addFile(pack *evidence.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return pack.Add(name, f)
}

// sift writes the entries about the subject into a file of their own.
func (g *gathering) sift() (*evidence.Summarizer, error) {
	bundle, err := os.Open(g.bundle())
	if err != nil {
		return nil, err
	}
	defer bundle.Close()
	entries, err := os.Create(g.entries())
	if err != nil {
		return nil, err
	}
	defer entries.Close()
	summary := evidence.NewSummarizer(g.subject)
	err = evidence.ReadRecords(bundle, &g.subject, func(r evidence.Record) error {
		summary.Take(&r.Entry)
		_, err := entries.Write(append(slices.Clone(r.Raw), '\n'))
		return err
	})
	return summary, errors.Join(err, entries.Close())
}

// about are lines on what is not in the log.
func (g *gathering) about() []string {
	lines := []string{"keys: " + strings.Join(g.subject.Keys, ", ")}
	if g.group != nil {
		lines = append(lines, "selected by: "+selection(g.group), "reason: "+g.group.GetReason(), "declared "+stamp(g.group.GetStartedAt())+" by "+g.group.GetActor(), "state: "+groupHeadline(g.group))
		if g.group.GetSince() != nil {
			lines = append(lines, fmt.Sprintf("looked at: entries %d to %d of the log, since %s", g.group.GetLookedFrom(), g.group.GetLookedTo(), stamp(g.group.GetSince())))
		}
		for _, lack := range g.group.GetIncomplete() {
			lines = append(lines, "INCOMPLETE: "+lack)
		}
		for _, k := range g.group.GetKeys() {
			lines = append(lines, k.GetKey()+" because of: "+strings.Join(k.GetWhy(), "; "))
			if k.GetTrouble() != "" {
				lines = append(lines, k.GetKey()+" could not be declared: "+k.GetTrouble())
			}
		}
	}
	for _, r := range g.rotations {
		line := r.GetRotation().GetKey() + ": " + r.GetRotation().GetPhase()
		if use := residual(r.GetRotation()); use != "" {
			line += ", version " + fmt.Sprint(r.GetRotation().GetFrom()) + " still used by " + use
		}
		if len(r.GetRotation().GetApprovals()) > 0 {
			line += ", approved by " + strings.Join(r.GetRotation().GetApprovals(), ", ")
		}
		lines = append(lines, line)
	}
	return lines
}

func (a *app) reportVerifyCommand() *cobra.Command {
	var keys []string
	c := a.action("verify FILE", "Verify an evidence file without a server", func(_ *cobra.Command, args []string) error {
		v, err := a.newVerification(keys)
		if err != nil {
			return err
		}
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		return v.evidence(f)
	})
	c.Long = `Names every file in it that is missing, altered or added, verifies the signed audit log
in it as keyturn audit verify does, and checks that the entries and rotations in the file
are those of the log. The list of files has to be signed by the log's key: it says when the
file was made, and by whom. It exits with 1 when anything is wrong.`
	c.Flags().StringArrayVar(&keys, "key", nil, "a `VERIFIER` key of the log, got by another way than the file; may be repeated")
	return c
}

// verifiedEvidence is the outcome in JSON.
type verifiedEvidence struct {
	Verified bool             `json:"verified"`
	Subject  evidence.Subject `json:"subject"`
	Entries  int              `json:"entries"`
	// Whole: the log is in the pack, which proves that no entry was left out.
	Whole bool `json:"whole"`
	// MadeAt and MadeBy are when and by whom, as the log's key signed it.
	MadeAt time.Time        `json:"madeAt,omitzero"`
	MadeBy string           `json:"madeBy,omitempty"`
	Faults []evidence.Fault `json:"faults"`
	Log    verified         `json:"log"`
}

// evidence verifies a pack.
func (v *verification) evidence(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pack, err := evidence.Open(f, info.Size())
	if err != nil {
		return err
	}
	result := verifiedEvidence{Subject: pack.Subject, Whole: pack.HasLog(), Faults: pack.Check()}
	if len(result.Faults) == 0 {
		if err := v.evidenceLog(pack, &result); err != nil {
			return err
		}
	}
	result.Verified = len(result.Faults) == 0
	if result.Faults == nil {
		result.Faults = []evidence.Fault{}
	}
	err = v.a.result(result, func(w io.Writer) {
		if result.Verified {
			fmt.Fprintf(w, "verified: %s %s, %s about %s, in the log %s\n", clean(pack.Subject.Kind), clean(pack.Subject.ID), entries(uint64(result.Entries)),
				plural(len(pack.Subject.Keys), "key"), clean(result.Log.Log))
			trust := trustText(result.Log.Trust, v.trust.path)
			if result.Log.Trust == trustFirstUse {
				trust = "the keys in the file itself; compare them with --key to be sure"
			}
			fields(w, "root", result.Log.Root, "made", stampTime(result.MadeAt)+" by "+result.MadeBy, "trust", trust)
			if !result.Whole {
				fmt.Fprintln(w, "each entry is proven; that none was left out is not, since the log is not in the file")
			}
		}
		for _, fault := range result.Faults {
			fmt.Fprintln(w, clean(fault.String()))
		}
	})
	if err == nil && !result.Verified {
		err = fail(ExitFailed, "get the file anew from where it was written", "%s in the evidence", plural(len(result.Faults), "fault"))
	}
	return err
}

// evidenceLog verifies the log in a pack, and the pack against it.
func (v *verification) evidenceLog(pack *evidence.Pack, result *verifiedEvidence) error {
	checkpoint, err := pack.Checkpoint()
	if err != nil {
		return err
	}
	origin, _, _ := strings.Cut(checkpoint.Signed, "\n")
	how, keys := trustFirstUse, checkpoint.Keys
	if known := v.trust.named(origin); len(known) > 0 {
		how, keys = trustStored, known
	}
	if len(v.given) > 0 {
		how, keys = trustGiven, v.given
	}
	if result.Whole {
		err := v.wholeLog(pack, how, keys, result)
		if err != nil || len(result.Faults) > 0 {
			return err
		}
	}
	verifiers, err := parseVerifiers(keys)
	if err != nil {
		return err
	}
	made, faults := pack.CheckManifest(verifiers...)
	if len(faults) > 0 {
		result.Faults = append(result.Faults, faults...)
		return nil
	}
	result.MadeAt, result.MadeBy = made.At, made.Actor.Kind+" "+made.Actor.ID
	signed, faults, err := pack.CheckProofs(verifiers...)
	if err != nil || len(faults) > 0 {
		result.Faults = append(result.Faults, faults...)
		return err
	}
	if result.Whole && result.Log.Root != signed.Root.String() {
		result.Faults = append(result.Faults, evidence.Fault{File: evidence.CheckpointFile, Problem: "it is not the last one of the log"})
		return nil
	}
	if !result.Whole {
		result.Log = verified{Log: signed.Origin, Entries: signed.Size, Proven: signed.Size, Checkpoints: 1, Root: signed.Root.String(), Keys: keys, Trust: how}
	}
	result.Log.Verified = true
	facts, faults, err := pack.CheckEntries()
	result.Entries, result.Faults = facts.Entries, append(result.Faults, faults...)
	return err
}

// wholeLog verifies the whole log in a pack.
func (v *verification) wholeLog(pack *evidence.Pack, how string, keys []string, result *verifiedEvidence) error {
	bundle, err := pack.Open(evidence.Bundle)
	if err != nil {
		return err
	}
	defer bundle.Close()
	report, err := v.check(bundle, how, keys, "")
	result.Log = outcomeOf(report, how)
	if err != nil {
		result.Faults = append(result.Faults, evidence.Fault{File: evidence.Bundle, Problem: err.Error()})
	}
	return nil
}
