package evidence

import (
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
)

// Summarizer gathers records for the page that people read.
type Summarizer struct {
	subject Subject
	proofs, reads,
	decisions [][]string
	more int
}

// maxRows bounds each table of a summary.
const maxRows = 5000

// NewSummarizer returns one for a subject.
func NewSummarizer(subject Subject) *Summarizer { return &Summarizer{subject: subject} }

// Take takes one record.
func (s *Summarizer) Take(e *audit.Entry) {
	row := []string{e.At.UTC().Format(time.RFC3339Nano), fmt.Sprint(e.Seq), string(e.Key)}
	switch {
	case e.Action == "verifier.acceptance" && e.To == "refused":
		s.add(&s.proofs, append(row, e.Version.String(), e.Target))
	case e.Action == audit.ActionRead:
		s.add(&s.reads, append(row, e.Version.String(), e.Actor.Kind+" "+e.Actor.ID, strings.TrimSuffix("read it from "+e.Detail[audit.DetailAddress], " from ")))
	case e.Action == audit.ActionHandout:
		how := fmt.Sprintf("got it at %s from gateway %s, %s times from %s to %s", e.Detail[audit.DetailAddress], e.Detail[audit.DetailGateway], e.Detail["count"], e.Detail["first"], e.Detail["last"])
		s.add(&s.reads, append(row, e.Version.String(), e.Target, how))
	case e.Action == "presenter.told":
		who := e.Target
		if who == "" {
			who = e.Detail["presenters"] + " parties"
		}
		s.add(&s.reads, append(row, e.Version.String(), who, "was told it"))
	case strings.HasPrefix(string(e.Action), "emergency."), e.Action == "rotation.approve", e.Action == "rotation.begun", e.Action == audit.ActionPhase:
		what := string(e.Action)
		if e.To != "" {
			what += " " + e.To
		}
		s.add(&s.decisions, append(row, e.Actor.Kind+" "+e.Actor.ID, what, e.Reason))
	}
}

func (s *Summarizer) add(rows *[][]string, row []string) {
	if len(*rows) == maxRows {
		s.more++
		return
	}
	*rows = append(*rows, row)
}

// Text is the page, in Markdown. about are lines that say what is not in the log.
func (s *Summarizer) Text(about []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Evidence of %s %s\n\n", s.subject.Kind, s.subject.ID)
	for _, line := range about {
		fmt.Fprintf(&b, "- %s\n", cell(line))
	}
	b.WriteString("\nEvery row below is an entry of the audit log in this pack, by its number. `keyturn report verify` checks the pack and the log.\n")
	section(&b, "What was decided and done", "at|entry|key|by|what|why", s.decisions)
	section(&b, "Proven refused", "at|entry|key|version|verifier", s.proofs)
	section(&b, "Who was given what", "at|entry|key|version|who|how", s.reads)
	if s.more > 0 {
		fmt.Fprintf(&b, "\n%d further rows are in %s.\n", s.more, Entries)
	}
	return b.String()
}

func section(b *strings.Builder, title, header string, rows [][]string) {
	fmt.Fprintf(b, "\n## %s\n\n", title)
	if len(rows) == 0 {
		b.WriteString("Nothing.\n")
		return
	}
	names := strings.Split(header, "|")
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for _, row := range rows {
		for i := range row {
			row[i] = cell(row[i])
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
}

// cell makes text of others harmless in a table, and in a page that a browser renders.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;", ">", "&gt;", "`", "'", "[", "\\[", "]", "\\]").Replace(s)
}
