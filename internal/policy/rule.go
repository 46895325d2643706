package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"github.com/keyturn/keyturn/key"
)

// Rule says which use of keys is anomalous, and what follows.
type Rule struct {
	Metadata Metadata `json:"metadata"`
	Spec     RuleSpec `json:"spec"`
}

// RuleSpec is what a Rule consists of.
type RuleSpec struct {
	// Which keys it watches, as a CEL expression over key; empty means all.
	Match string `json:"match,omitzero"`
	// Which uses are anomalous, as a CEL expression over use and key, for example
	// use.newNetwork && !inNetwork(use.address, "10.0.0.0/8").
	When string `json:"when" jsonschema:"required"`
	// Over what time uses are counted, and for how long something new counts as new. Default: 5m.
	Window Duration `json:"window"`
	// How many anomalous uses of one version within the window make the rule fire. Default: 1.
	AtLeast int `json:"atLeast"`
	// How long a key must have been watched before a network or an application that
	// was not seen before counts as new. Default: 1d.
	Learn Duration `json:"learn"`
	// For how long a network or an application that the rule fired on stays new to it,
	// unless somebody confirms it by keyturn rule accept. Default: 7d.
	Confirm Duration `json:"confirm"`
	// What follows: alert, suspend (refuse the version at once) or emergency (as declared by an operator).
	Then Reaction `json:"then" jsonschema:"required"`
	// The strategy of an emergency: replace-first or contain-first. Default: that of the key's policy.
	Strategy Strategy `json:"strategy,omitzero"`
	// Whether it acts: dry-run (default; it only notes what it would have done) or enforce.
	Mode Mode `json:"mode"`
	// How many emergencies it may cause per hour, over all keys; beyond that it pages a human instead. Default: 3.
	MaxPerHour int `json:"maxPerHour"`
}

// Reaction is what follows when a rule fires. The zero value is invalid.
type Reaction uint8

// The reactions.
const (
	// ReactAlert pages a human.
	ReactAlert Reaction = iota + 1
	// ReactSuspend refuses the version that was used at once.
	ReactSuspend
	// ReactEmergency begins an emergency, by the strategy of the rule or the policy.
	ReactEmergency
)

// Mode says whether a rule acts. The zero value is invalid.
type Mode uint8

// The modes.
const (
	// ModeDryRun notes what the rule would have done.
	ModeDryRun Mode = iota + 1
	// ModeEnforce acts.
	ModeEnforce
)

func reactionNames() []string {
	return []string{ReactAlert: "alert", ReactSuspend: "suspend", ReactEmergency: "emergency"}
}
func modeNames() []string { return []string{ModeDryRun: "dry-run", ModeEnforce: "enforce"} }

// String returns "alert", "suspend", "emergency" or "invalid".
func (v Reaction) String() string { return enumString(v, reactionNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Reaction) MarshalText() ([]byte, error) { return enumMarshal(v, reactionNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Reaction) UnmarshalText(text []byte) error { return enumParse(v, text, reactionNames()) }

// String returns "dry-run", "enforce" or "invalid".
func (v Mode) String() string { return enumString(v, modeNames()) }

// MarshalText implements encoding.TextMarshaler; the zero value fails.
func (v Mode) MarshalText() ([]byte, error) { return enumMarshal(v, modeNames()) }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses unknown names.
func (v *Mode) UnmarshalText(text []byte) error { return enumParse(v, text, modeNames()) }

// Limits on rules.
const (
	// MaxRules bounds the rules that a server evaluates.
	MaxRules = 200
	// MaxRuleWindow bounds the window of a rule.
	MaxRuleWindow = Day
)

func defaultRule() RuleSpec {
	return RuleSpec{Window: 5 * minute, AtLeast: 1, Learn: Day, Confirm: 7 * Day, Mode: ModeDryRun, MaxPerHour: 3}
}

func (s *RuleSpec) check(r reporter) {
	if strings.TrimSpace(s.When) == "" {
		r.err("when", "expression", "a rule without a condition would match every use", `write for example use.newNetwork`)
	}
	if s.Window < Duration(time.Second) || s.Window > MaxRuleWindow {
		r.err("window", "out-of-range", fmt.Sprintf("a window of %s is not possible", s.Window), fmt.Sprintf("write a duration from 1s to %s, for example 5m", MaxRuleWindow))
	}
	if s.Learn > 30*Day {
		r.err("learn", "out-of-range", fmt.Sprintf("%s is longer than uses are remembered", s.Learn), "write at most 30d")
	}
	if s.Confirm > 30*Day {
		r.err("confirm", "out-of-range", fmt.Sprintf("%s is longer than networks are remembered", s.Confirm), "write at most 30d")
	}
	checkRange(r, "atLeast", s.AtLeast, 1, 1_000_000_000)
	checkRange(r, "maxPerHour", s.MaxPerHour, 1, 100)
	if s.Strategy != 0 && s.Then != ReactEmergency {
		r.err("strategy", "strategy-without-emergency", "only an emergency has a strategy", "write then: emergency, or leave strategy out")
	}
}

// Use is the variable "use" of CEL expressions: one observation of a version
// being used, or tried. What is not known of it is empty; an expression that
// needs it fails.
type Use struct {
	// Source is who observed it, for example "api-key".
	Source  string
	Version key.Version
	// State and Label are those of the version at that time; empty without one.
	State, Label string
	// Application is what the user calls itself, Address its IP address, Network the
	// network of that.
	Application, Address, Network, Region string
	// Count is how many uses the observation sums up.
	Count int
	At    time.Time
	// Refused: the verifier let nobody in. AfterRevocation: the version had been
	// accepted once and is not any more.
	Refused, AfterRevocation bool
	// Replay: a proof or token that may be used once was shown again. The zero value
	// means that the source cannot tell.
	Replay Known
	// Known says whether a known party presents the key so.
	Known Known
	// NewNetwork and NewApplication: not seen before the window, by the same source; a
	// network not while the key is Roaming, for which new networks are usual.
	NewNetwork, NewApplication Known
	Roaming                    bool
	// Total is how often the version was used within the window, as the same source
	// tells, Networks from how many networks the key was, both this observation included.
	Total, Networks int
	// Rate is Total per minute.
	Rate float64
}

// Known is a truth that may be unknown. The zero value is Unknown.
type Known uint8

// The truths.
const (
	Unknown Known = iota
	No
	Yes
)

// Truth turns what is known into Yes or No.
func Truth(is bool) Known {
	if is {
		return Yes
	}
	return No
}

// useFields are the fields of use, in the order in which the reference lists them.
func useFields() []string {
	return []string{
		"source", "version", "state", "label", "application", "address", "network", "region", "count", "at", "refused",
		"afterRevocation", "replay", "known", "newNetwork", "newApplication", "roaming", "total", "networks", "rate",
	}
}

func useType(field string) *cel.Type {
	switch field {
	case "version", "count", "total", "networks":
		return cel.IntType
	case "rate":
		return cel.DoubleType
	case "at":
		return cel.TimestampType
	case "refused", "afterRevocation", "replay", "known", "newNetwork", "newApplication", "roaming":
		return cel.BoolType
	}
	return cel.StringType
}

// useActivation gives rules their variables.
type useActivation struct {
	activation

	use *Use
}

// ResolveName implements interpreter.Activation. A field that is not known is not
// found: the evaluation fails, unless its result does not depend on it.
func (a useActivation) ResolveName(name string) (any, bool) {
	field, ok := strings.CutPrefix(name, "use.")
	if !ok {
		return a.activation.ResolveName(name)
	}
	u := a.use
	switch field {
	case "source":
		return text(u.Source)
	case "version":
		return int64(u.Version), u.Version != 0
	case "state":
		return text(u.State)
	case "label":
		return u.Label, u.State != ""
	case "application":
		return u.Application, true
	case "address":
		return text(u.Address)
	case "network":
		return text(u.Network)
	case "region":
		return u.Region, true
	case "count":
		return int64(u.Count), true
	case "at":
		return u.At, !u.At.IsZero()
	case "refused":
		return u.Refused, true
	case "afterRevocation":
		return u.AfterRevocation, u.State != ""
	case "replay":
		return u.Replay.value()
	case "known":
		return u.Known.value()
	case "newNetwork":
		return u.NewNetwork.value()
	case "newApplication":
		return u.NewApplication.value()
	case "roaming":
		return u.Roaming, true
	case "total":
		return int64(u.Total), true
	case "networks":
		return int64(u.Networks), true
	case "rate":
		return u.Rate, true
	}
	return nil, false
}

func text(s string) (any, bool) { return s, s != "" }

func (k Known) value() (any, bool) { return k == Yes, k != Unknown }

// Parent implements interpreter.Activation.
func (useActivation) Parent() interpreter.Activation { return nil }

// useEnv returns the environment of rules' conditions.
func (c *compiler) useEnv() (*cel.Env, error) {
	if c.use != nil {
		return c.use, nil
	}
	options := append(commonOptions(), textVariables("key")...)
	for _, field := range useFields() {
		options = append(options, cel.Variable("use."+field, useType(field)))
	}
	options = append(options, cel.Function("inNetwork",
		cel.Overload("in_network_string_string", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType, cel.BinaryBinding(inNetwork))))
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	c.use = env
	return env, nil
}

// inNetwork is the function inNetwork(address, prefix) of conditions.
func inNetwork(address, network ref.Val) ref.Val {
	a, ok := address.(types.String)
	n, is := network.(types.String)
	if !ok || !is {
		return types.NewErr("inNetwork takes two texts")
	}
	prefix, err := netip.ParsePrefix(string(n))
	if err != nil {
		return types.NewErr("%q is no network", string(n))
	}
	at, err := netip.ParseAddr(string(a))
	if err != nil {
		return types.NewErr("%q is no address", string(a))
	}
	return types.Bool(prefix.Contains(at.Unmap().WithZone("")))
}

// condition compiles a rule's condition; nil when it is wrong.
func (c *compiler) condition(src string, r reporter) *expression {
	env, err := c.useEnv()
	if err != nil {
		r.err("when", "internal", err.Error(), "")
		return nil
	}
	if strings.TrimSpace(src) == "" {
		return nil // check has told
	}
	parsed, issues := env.Parse(src)
	if issues.Err() == nil && c.wrongNetworks(parsed, r) {
		c.unknownFields(parsed, "when", r)
		return nil
	}
	return c.compile(env, src, "when", func(f finding) {
		if strings.Contains(f.message, "undeclared reference") {
			f.hint = "known are key.name, key.owner, key.labels and use." + strings.Join(useFields(), ", use.")
		}
		r(f)
	})
}

// wrongNetworks reports networks that are not written out, or wrongly.
func (c *compiler) wrongNetworks(parsed *cel.Ast, r reporter) bool {
	rep, found := parsed.NativeRep(), false
	ast.PreOrderVisit(rep.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != "inNetwork" || len(e.AsCall().Args()) != 2 {
			return
		}
		arg := e.AsCall().Args()[1]
		problem := "a network must be written out"
		if arg.Kind() == ast.LiteralKind {
			s, _ := arg.AsLiteral().(types.String)
			prefix, err := netip.ParsePrefix(string(s))
			if err == nil && prefix == prefix.Masked() {
				return
			}
			problem = quote(string(s)) + " is no network"
			if err == nil {
				problem = fmt.Sprintf("%s has bits set beyond its length", quote(string(s)))
			}
		}
		found = true
		at := rep.SourceInfo().GetStartLocation(arg.ID())
		r(finding{
			severity: Error, path: "when", code: "expression", line: at.Line(), col: at.Column() + 1,
			message: problem, hint: `write for example inNetwork(use.address, "10.0.0.0/8")`,
		})
	}))
	return found
}

// CompiledRule is a rule ready for use. It is immutable and may be used concurrently.
type CompiledRule struct {
	rule        Rule
	match, when *expression
}

// CompileRule checks a rule and prepares it. Its error is as that of Compile.
func CompileRule(rule Rule) (*CompiledRule, error) {
	c, err := newCompiler()
	if err != nil {
		return nil, err
	}
	res := Resource{Rule: &rule}
	var problems Problems
	report := reporter(func(f finding) { problems = append(problems, res.problem(f)) })
	res.check(report)
	out := c.rule(&rule, report.within("spec"))
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

func (c *compiler) rule(rule *Rule, r reporter) *CompiledRule {
	return &CompiledRule{rule: *rule, match: c.compile(c.key, rule.Spec.Match, "match", r), when: c.condition(rule.Spec.When, r)}
}

// Name returns the rule's name.
func (c *CompiledRule) Name() string { return c.rule.Metadata.Name }

// Spec returns the effective rule.
func (c *CompiledRule) Spec() RuleSpec { return c.rule.Spec }

// Watches reports whether the rule watches a key. An error means that the
// expression could not be evaluated; nothing may be concluded from it.
func (c *CompiledRule) Watches(k KeyInfo) (bool, error) {
	watches, err := c.match.eval(k, Party{})
	if err != nil {
		return false, fmt.Errorf("rule %s: match: %w", c.Name(), err)
	}
	return watches, nil
}

// Anomalous reports whether a use meets the rule's condition. An error means that
// there is no data: something that the condition needs is not known, or it takes
// too long; nothing may be concluded from it.
func (c *CompiledRule) Anomalous(k KeyInfo, use *Use) (bool, error) {
	if c.when == nil {
		return false, fmt.Errorf("rule %s: %w: it has no condition", c.Name(), ErrInvalid)
	}
	out, _, err := c.when.program.Eval(useActivation{activation: activation{key: k}, use: use})
	if err != nil {
		return false, fmt.Errorf("rule %s: when: %w", c.Name(), err)
	}
	is, ok := out.Value().(bool)
	if !ok {
		return false, fmt.Errorf("rule %s: when: %w", c.Name(), errors.New("it yields neither true nor false"))
	}
	return is, nil
}

// rule warns about rules that probably do not do what was meant.
func (l *linter) rule(rule *Rule, r reporter) {
	before := len(l.problems)
	compiled := l.compiler.rule(rule, r)
	if l.problems[before:].Err() != nil {
		return
	}
	switch when := compiled.when; {
	case when != nil && when.literal && when.value:
		r.err("when", "rule-matches-all", "every use would be anomalous", "write a condition, for example use.newNetwork")
	case when != nil && when.literal:
		r.err("when", "rule-matches-nothing", "no use would ever be anomalous", "write a condition, for example use.newNetwork")
	}
	if rule.Spec.Mode == ModeEnforce && rule.Spec.Then != ReactAlert && rule.Spec.AtLeast == 1 && rule.Spec.Learn == 0 &&
		strings.Contains(rule.Spec.When, "use.new") {
		r.warn("learn", "rule-without-learning", "it acts on the second network or application of a key, however short it was watched", "write for example learn: 7d")
	}
}
