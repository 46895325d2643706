package scan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"
)

// RuleManaged is the rule of findings that only a server recognised.
const (
	RuleManaged     = "keyturn-managed-secret"
	DescribeManaged = "A secret of a version that Keyturn manages."
)

// WriteSARIF writes findings in the Static Analysis Results Interchange Format 2.1.0
// of OASIS. No secret is in it. What identifies a result between runs is its rule and
// place; the keyed fingerprint is a property, comparable between runs with one key.
func WriteSARIF(w io.Writer, version string, report *Report) error {
	run := sarif.NewRunWithInformationURI("keyturn", "https://github.com/keyturn/keyturn")
	run.Tool.Driver.WithVersion(version)
	used := map[string]string{}
	for i := range report.Findings {
		used[report.Findings[i].Rule] = report.Findings[i].Description
	}
	for _, id := range slices.Sorted(maps.Keys(used)) {
		run.AddRule(id).WithDescription(used[id])
	}
	for i := range report.Findings {
		run.AddResult(resultOf(&report.Findings[i]))
	}
	invocation := sarif.NewInvocation().WithExecutionSuccessful(report.GapCount == 0)
	for _, gap := range report.Gaps {
		note := sarif.NewNotification().WithLevel("warning").WithMessage(sarif.NewTextMessage(gap.Path + ": " + gap.Reason))
		invocation.AddToolExecutionNotification(note)
	}
	run.AddInvocation(invocation)
	return sarif.NewReport().AddRun(run).PrettyWrite(w)
}

func resultOf(f *Finding) *sarif.Result {
	text, level := f.Description, "warning"
	if m := f.Managed; m != nil {
		text = fmt.Sprintf("This is version %d of key %s, in state %s, owned by %s.", m.Version, m.Key, m.State, cmp.Or(m.Owner, "nobody"))
		if m.Live {
			level = "error"
		}
	}
	properties := sarif.NewPropertyBag()
	properties.Add("fingerprint", f.Fingerprint)
	properties.Add("length", f.Length)
	if f.Commit != "" {
		properties.Add("commit", f.Commit)
	}
	if f.Managed != nil {
		properties.Add("managed", f.Managed)
	}
	region := sarif.NewRegion().WithStartLine(max(f.Line, 1))
	if f.Column > 0 {
		region.WithStartColumn(f.Column)
	}
	artifact := sarif.NewArtifactLocation().WithURI(uriOf(f.Path))
	place := sarif.NewPhysicalLocation().WithArtifactLocation(artifact).WithRegion(region)
	identity := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d", f.Rule, f.Path, f.Commit, f.Line))
	return sarif.NewRuleResult(f.Rule).WithLevel(level).WithMessage(sarif.NewTextMessage(text)).
		AddLocation(sarif.NewLocationWithPhysicalLocation(place)).
		WithPartialFingerprints(map[string]string{"rulePlace/v1": hex.EncodeToString(identity[:16])}).WithProperties(properties)
}

// uriOf is a path as a URI reference (RFC 3986).
func uriOf(path string) string {
	path = strings.ToValidUTF8(cmp.Or(path, "stdin"), "\uFFFD")
	return (&url.URL{Path: path}).String()
}
