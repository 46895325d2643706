package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/audit"
)

func (a *app) auditCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "audit", Short: "Read, export and verify the audit log"},
		a.auditTailCommand(), a.auditExportCommand(), a.auditVerifyCommand())
}

// tailInterval is how often "audit tail -f" asks for new entries.
const tailInterval = time.Second

func (a *app) auditTailCommand() *cobra.Command {
	request := &keyturnv1.ReadLogRequest{}
	var lines int
	var follow bool
	c := a.action("tail", "Print the last entries", func(cmd *cobra.Command, _ []string) error {
		if lines < 0 {
			return usage("write for example -n 20", "--lines: %d is negative", lines)
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		return a.tail(cmd.Context(), api, request, lines, follow)
	})
	c.Long = "With --output json every entry is one JSON object a line, as in the log; its form is\ndescribed in docs/reference/audit-bundle.md."
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing entries as they come")
	c.Flags().IntVarP(&lines, "lines", "n", 20, "the `NUMBER` of entries")
	c.Flags().StringVar(&request.Key, "key", "", "only entries of the key `NAME`")
	c.Flags().StringVar(&request.RotationId, "rotation", "", "only entries of the rotation with this `ID`")
	a.completeFlag(c, "key", a.keyNames)
	return c
}

func (a *app) tail(ctx context.Context, api keyturnv1connect.ControlServiceClient, request *keyturnv1.ReadLogRequest, lines int, follow bool) error {
	request.Limit = 1
	first, err := api.ReadLog(ctx, request)
	if err != nil {
		return err
	}
	request.Limit = maxPage
	if request.GetKey() == "" && request.GetRotationId() == "" {
		request.From = first.GetSize() - min(first.GetSize(), uint64(lines))
	}
	var last []string
	if err := readLog(ctx, api, request, func(entry string) error {
		if last = append(last, entry); len(last) > lines {
			last = last[1:]
		}
		return nil
	}); err != nil {
		return err
	}
	for _, entry := range last {
		if err := a.printEntry(entry); err != nil {
			return err
		}
	}
	for follow {
		timer := time.NewTimer(tailInterval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		if err := readLog(ctx, api, request, a.printEntry); err != nil && !passing(err) {
			return err
		}
	}
	return nil
}

// readLog visits the entries from request.From to the end of the log, and leaves
// From behind the last one.
func readLog(ctx context.Context, api keyturnv1connect.ControlServiceClient, request *keyturnv1.ReadLogRequest, visit func(entry string) error) error {
	for {
		page, err := api.ReadLog(ctx, request)
		if err != nil {
			return err
		}
		for _, entry := range page.GetEntries() {
			if err := visit(entry); err != nil {
				return err
			}
		}
		if page.GetNext() <= request.GetFrom() {
			return nil
		}
		request.From = page.GetNext()
		if page.GetNext() >= page.GetSize() {
			return nil
		}
	}
}

func (a *app) printEntry(entry string) error {
	line := entry
	if !a.wantsJSON() {
		line = entryLine(entry)
	}
	_, err := fmt.Fprintln(a.config.Stdout, line)
	return err
}

// entryLine is an entry for people; one that does not decode is shown as it is.
func entryLine(entry string) string {
	e, err := audit.Decode([]byte(entry))
	if err != nil {
		return clean(entry)
	}
	s := fmt.Sprintf("%s  %d  %s %s  %s", stampTime(e.At), e.Seq, e.Actor.Kind, e.Actor.ID, e.Action)
	if e.Key != "" {
		s += "  " + string(e.Key)
	}
	if e.Version != 0 {
		s += " " + version(uint64(e.Version))
	}
	if e.From != "" || e.To != "" {
		s += "  " + e.From + " -> " + e.To
	}
	if e.Target != "" {
		s += "  " + e.Target
	}
	if e.Action == audit.ActionHandout {
		s += fmt.Sprintf(" at %s, %s times from %s to %s", e.Detail[audit.DetailAddress], e.Detail["count"], e.Detail["first"], e.Detail["last"])
	}
	if e.Outcome != audit.OutcomeOK {
		s += "  " + string(e.Outcome)
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return clean(s)
}

func (a *app) auditExportCommand() *cobra.Command {
	var out string
	c := a.action("export", "Write the log into a bundle that can be verified anywhere", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		bundle := exported(cmd.Context(), api)
		defer bundle.Close()
		if out == "" || out == "-" {
			_, err := io.Copy(a.config.Stdout, bundle)
			return err
		}
		size, err := writeStream(out, bundle)
		if err != nil {
			return err
		}
		return a.result(struct {
			File  string `json:"file"`
			Bytes int64  `json:"bytes"`
		}{out, size}, func(w io.Writer) { fmt.Fprintf(w, "written to %s (%d bytes)\n", clean(out), size) })
	})
	c.Long = "The form of the bundle is described in docs/reference/audit-bundle.md."
	c.Flags().StringVarP(&out, "out", "o", "", "write to this `FILE`, which is replaced only when all is there; default: standard output")
	return c
}

// exported is the bundle as the server sends it.
func exported(ctx context.Context, api keyturnv1connect.ControlServiceClient) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	go func() {
		defer cancel()
		stream, err := api.ExportLog(ctx, &keyturnv1.ExportLogRequest{})
		if err != nil {
			w.CloseWithError(err)
			return
		}
		defer func() { _ = stream.Close() }() // all is read, or the context ended
		for stream.Receive() {
			if _, err := w.Write(stream.Msg().GetPiece()); err != nil {
				return // the reader has closed the pipe
			}
		}
		w.CloseWithError(stream.Err()) // io.EOF when that is nil
	}()
	return r
}

// writeStream replaces a file by what r delivers, when all of it has come.
func writeStream(path string, r io.Reader) (int64, error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".keyturn-*")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is gone when all went well
	defer f.Close()
	size, err := io.Copy(f, r)
	if err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return size, os.Rename(f.Name(), path)
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var keys []string
	c := a.action("verify [BUNDLE]", "Verify the log of the server, or an exported bundle without one", func(cmd *cobra.Command, args []string) error {
		v, err := a.newVerification(keys)
		if err != nil {
			return err
		}
		if len(args) == 1 {
			return v.file(args[0])
		}
		return v.online(cmd.Context())
	})
	c.Long = `Checks every entry, hash and signature, names the first entry that was altered, is
missing or out of order, and exits with 1 then.

The keys to trust are given with --key, or those that were trusted before. The first
time, the keys that the log names are trusted and remembered: that proves only that
nobody changes the log from then on. Every verification of a server remembers its
last checkpoint, which the next one must agree with.`
	c.Example = "  keyturn audit verify\n  keyturn audit verify audit.bundle --key keyturn+1a2b3c4d+AbCd..."
	c.Flags().StringArrayVar(&keys, "key", nil, "a `VERIFIER` key of the log, got by another way than the log; may be repeated")
	return c
}
