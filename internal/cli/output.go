package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/charmbracelet/x/term"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The values of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

// wantsJSON reports whether --output json was given, also when the command line
// is too wrong for the flags to be parsed.
func (a *app) wantsJSON() bool {
	if a.parsed || a.flags.output == outputJSON {
		return a.flags.output == outputJSON
	}
	for i, arg := range a.config.Args {
		switch {
		case arg == "--":
			return false
		case arg == "--output=json", arg == "--output" && slices.Contains(a.config.Args[i+1:min(i+2, len(a.config.Args))], "json"):
			return true
		}
	}
	return false
}

// isTerminal reports whether a stream of the Config is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

// result prints a result: v as JSON, or what text writes.
func (a *app) result(v any, text func(w io.Writer)) error {
	var b bytes.Buffer
	if a.wantsJSON() {
		a.writeJSON(&b, v)
	} else {
		text(&b)
	}
	if _, err := a.config.Stdout.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// note tells the user something that is no result; not with --output json.
func (a *app) note(format string, args ...any) {
	if !a.wantsJSON() {
		fmt.Fprintln(a.config.Stderr, cleanLines(fmt.Sprintf(format, args...)))
	}
}

// writeJSON writes v, indented, and a line feed.
func (a *app) writeJSON(w io.Writer, v any) {
	var b bytes.Buffer
	if err := json.Indent(&b, mustJSON(v), "", "  "); err != nil {
		panic(fmt.Sprintf("cli: indent JSON: %v", err)) // mustJSON makes valid JSON only
	}
	b.WriteByte('\n')
	_, _ = w.Write(b.Bytes()) // nothing is left to say it with
}

// jsonLine returns v as one line.
func jsonLine(v any) []byte { return append(mustJSON(v), '\n') }

// mustJSON encodes messages of the API and plain structs of this package.
func mustJSON(v any) []byte {
	if m, ok := v.(proto.Message); ok {
		return appendMessage(nil, m.ProtoReflect())
	}
	b, err := encodeJSON(v)
	if err != nil {
		panic(fmt.Sprintf("cli: encode %T: %v", v, err)) // types that cannot be encoded are a mistake of this package
	}
	return b
}

func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// messages returns a list of messages as a JSON array, for result.
func messages[M proto.Message](list []M) json.RawMessage {
	b := []byte{'['}
	for i, m := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendMessage(b, m.ProtoReflect())
	}
	return append(b, ']')
}

// clean makes text of others harmless in one line of a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// cleanLines is clean for text of several lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// table prints rows below a header, whose cells are separated by bars, in
// columns; indent stands before each line.
func table(w io.Writer, indent, header string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(cells []string) {
		for i, c := range cells {
			if c = clean(c); c == "" {
				c = "-"
			}
			cells[i] = c
		}
		fmt.Fprintln(t, indent+strings.Join(cells, "\t"))
	}
	line(strings.Split(header, "|"))
	for _, row := range rows {
		line(row)
	}
	_ = t.Flush() // w is a buffer
}

// fields prints names and values in two columns; pairs with an empty value are
// left out.
func fields(w io.Writer, pairs ...string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", pairs[i], clean(pairs[i+1]))
		}
	}
	_ = t.Flush() // w is a buffer
}

// stamp prints a time, empty when there is none.
func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return stampTime(t.AsTime())
}

func stampTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// since prints a time and how long ago, or how far ahead, it is.
func (a *app) since(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	d := a.config.Now().Sub(t.AsTime())
	if d < 0 {
		return fmt.Sprintf("%s (in %s)", stamp(t), short(-d))
	}
	return fmt.Sprintf("%s (%s ago)", stamp(t), short(d))
}

// short prints a length of time by its two largest units.
func short(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Truncate(100 * time.Millisecond).String()
	case d < time.Hour:
		return pair(d, time.Minute, "m", time.Second, "s")
	case d < day:
		return pair(d, time.Hour, "h", time.Minute, "m")
	}
	return pair(d, day, "d", time.Hour, "h")
}

func pair(d, large time.Duration, largeUnit string, small time.Duration, smallUnit string) string {
	s := fmt.Sprintf("%d%s", d/large, largeUnit)
	if rest := d % large / small; rest > 0 {
		s += fmt.Sprintf("%d%s", rest, smallUnit)
	}
	return s
}

// names joins names, and says how many more there are.
func names(list []string, total int32) string {
	s := strings.Join(list, ", ")
	if more := int(total) - len(list); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// pairsOf prints labels in a fixed order.
func pairsOf(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for name, value := range labels {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// version prints a version's number, empty for none.
func version(v uint64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("v%d", v)
}

// plural is "1 key" or "2 keys".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
