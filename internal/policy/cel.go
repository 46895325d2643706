package policy

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
	"cel.dev/cel-go/parser"
)

// Limits on expressions.
const (
	// MaxExpression is the length of a CEL expression, in characters.
	MaxExpression = 2048
	// maxCost bounds one evaluation, in CEL's cost units (roughly one operation
	// each). An expression that could exceed it for labels of permitted size is
	// refused when it is compiled; one that does is stopped.
	maxCost = 100_000
	// maxPattern bounds a regular expression, in instructions of its compiled program.
	maxPattern = 500
	// maxLabelText is the size of a label's name or value that costs are estimated for, in bytes.
	maxLabelText = 256
)

// fieldsOf returns the fields of a variable of CEL expressions.
func fieldsOf(variable string) []string {
	switch variable {
	case "key":
		return []string{"name", "owner", "labels"}
	case "use":
		return useFields()
	case "party":
		return []string{"id", "name", "kind", "region", "labels"}
	}
	return nil
}

// compiler checks and compiles CEL expressions. It may be used concurrently.
type compiler struct {
	key, party *cel.Env // party sees key as well
	// use sees uses and key; it is made by useEnv.
	use *cel.Env
}

func newCompiler() (*compiler, error) {
	options := append(commonOptions(), textVariables("key")...)
	keyEnv, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	partyEnv, err := cel.NewEnv(append(options, textVariables("party")...)...)
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	return &compiler{key: keyEnv, party: partyEnv}, nil
}

// commonOptions are those of every environment.
func commonOptions() []cel.EnvOption {
	return []cel.EnvOption{
		cel.ClearMacros(),
		cel.Macros(cel.AllMacro, cel.ExistsMacro, cel.ExistsOneMacro, cel.GlobalMacro("has", 1, expandHas)),
		cel.ParserExpressionSizeLimit(MaxExpression),
		cel.ParserRecursionLimit(MaxDepth),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateComprehensionNestingLimit(1), cel.ValidateRegexProgramSizeLimit(maxPattern)),
	}
}

// textVariables declares the fields of key or party: texts and labels.
func textVariables(variable string) []cel.EnvOption {
	var options []cel.EnvOption
	for _, f := range fieldsOf(variable) {
		t := cel.StringType
		if f == "labels" {
			t = cel.MapType(cel.StringType, cel.StringType)
		}
		options = append(options, cel.Variable(variable+"."+f, t))
	}
	return options
}

// expandHas makes has(party.labels.x) mean "x" in party.labels: an absent label
// reads as empty text, so that only the map itself knows whether it is there.
func expandHas(eh parser.ExprHelper, _ ast.Expr, args []ast.Expr) (ast.Expr, *common.Error) {
	if args[0].Kind() != ast.SelectKind {
		return nil, eh.NewError(args[0].ID(), "has() needs a label, as in has(party.labels.cohort)")
	}
	s := args[0].AsSelect()
	return eh.NewCall(operators.In, eh.NewLiteral(types.String(s.FieldName())), s.Operand()), nil
}

// expression is a compiled CEL expression; nil stands for one that is always true.
type expression struct {
	program cel.Program
	// literal says that the expression is just true or false, which value says.
	literal, value bool
}

// compile checks an expression, reporting what is wrong with it. It returns nil
// when the source is empty or wrong.
func (c *compiler) compile(env *cel.Env, src, path string, r reporter) *expression {
	if strings.TrimSpace(src) == "" {
		if src != "" {
			r.err(path, "expression", "the expression is blank", "leave the field out to match everything")
		}
		return nil
	}
	if len(src) > MaxExpression {
		r.err(path, "expression", fmt.Sprintf("the expression has %d bytes, at most %d are allowed", len(src), MaxExpression), "")
		return nil
	}
	parsed, issues := env.Parse(src)
	if issues.Err() != nil {
		c.issues(issues, path, r)
		return nil
	}
	if c.unknownFields(parsed, path, r) || c.foreignPatterns(parsed, path, r) {
		return nil
	}
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		c.issues(issues, path, r)
		return nil
	}
	if checked.OutputType() != cel.BoolType {
		r.err(path, "expression", fmt.Sprintf("the expression yields %s, but must yield true or false", checked.OutputType()), "compare it, for example with ==")
		return nil
	}
	estimate, err := env.EstimateCost(checked, sizes{})
	if err != nil || estimate.Max > maxCost {
		r.err(path, "expression", "the expression could take too long to evaluate", "use fewer loops over labels")
		return nil
	}
	program, err := env.Program(checked, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		r.err(path, "expression", "the expression cannot be prepared: "+err.Error(), "")
		return nil
	}
	out := &expression{program: program}
	if root := checked.NativeRep().Expr(); root.Kind() == ast.LiteralKind {
		out.literal, out.value = true, root.AsLiteral() == types.True
	}
	return out
}

func (c *compiler) issues(issues *cel.Issues, path string, r reporter) {
	for _, e := range issues.Errors() {
		message, _, _ := strings.Cut(e.Message, "\n")
		message = shorten(message, 200)
		f := finding{severity: Error, path: path, code: "expression", message: message, hint: expressionHint(message)}
		if e.Location != nil && e.Location.Line() > 0 {
			f.line, f.col = e.Location.Line(), e.Location.Column()+1
		}
		r(f)
	}
}

// expressionHint returns advice on a message of the CEL compiler.
func expressionHint(message string) string {
	switch {
	case strings.Contains(message, "undeclared reference to 'party'"):
		return "only key.name, key.owner and key.labels are known here"
	case strings.Contains(message, "undeclared reference"):
		return "known are party.id, party.name, party.kind, party.region, party.labels, key.name, key.owner and key.labels; texts stand in double quotes"
	case strings.Contains(message, "nesting limit"):
		return "loops over labels may not be nested"
	case strings.Contains(message, "no matching overload"):
		return "labels and all other fields are texts: compare them with texts in double quotes"
	case strings.Contains(message, "regex program size"):
		return "write a shorter pattern"
	case strings.Contains(message, "matches argument"):
		return "write a regular expression as RE2 defines it"
	}
	return `write CEL, for example party.labels.cohort == "canary"`
}

// unknownFields reports fields such as party.lables, better than CEL would.
func (c *compiler) unknownFields(parsed *cel.Ast, path string, r reporter) bool {
	rep, found := parsed.NativeRep(), false
	ast.PreOrderVisit(rep.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.SelectKind || e.AsSelect().Operand().Kind() != ast.IdentKind {
			return
		}
		variable, name := e.AsSelect().Operand().AsIdent(), e.AsSelect().FieldName()
		known := fieldsOf(variable)
		for _, k := range known {
			if k == name {
				return
			}
		}
		if known == nil {
			return
		}
		found = true
		at := rep.SourceInfo().GetStartLocation(e.AsSelect().Operand().ID())
		r(finding{
			severity: Error, path: path, code: "expression", line: at.Line(), col: at.Column() + 1,
			message: fmt.Sprintf("%s has no field %s", variable, quote(name)), hint: suggest(name, known),
		})
	}))
	return found
}

// foreignPatterns reports regular expressions that are not written out: one that
// a party brings along could not be bounded here.
func (c *compiler) foreignPatterns(parsed *cel.Ast, path string, r reporter) bool {
	rep, found := parsed.NativeRep(), false
	ast.PreOrderVisit(rep.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != "matches" {
			return
		}
		for i, arg := range e.AsCall().Args() {
			if i == len(e.AsCall().Args())-1 && arg.Kind() != ast.LiteralKind {
				found = true
				at := rep.SourceInfo().GetStartLocation(arg.ID())
				r(finding{
					severity: Error, path: path, code: "expression", line: at.Line(), col: at.Column() + 1,
					message: "a regular expression must be written out", hint: "put it in double quotes",
				})
			}
		}
	}))
	return found
}

// eval evaluates the expression; a nil expression is true.
func (e *expression) eval(k KeyInfo, p Party) (bool, error) {
	if e == nil {
		return true, nil
	}
	out, _, err := e.program.Eval(activation{key: k, party: p})
	if err != nil {
		return false, fmt.Errorf("evaluate expression: %w", err)
	}
	b, ok := out.Value().(bool)
	if !ok {
		return false, errors.New("evaluate expression: it yields neither true nor false")
	}
	return b, nil
}

// activation gives expressions their variables.
type activation struct {
	key   KeyInfo
	party Party
}

// ResolveName implements interpreter.Activation.
func (a activation) ResolveName(name string) (any, bool) {
	switch name {
	case "key.name":
		return a.key.Name.String(), true
	case "key.owner":
		return a.key.Owner, true
	case "key.labels":
		return newLabels(a.key.Labels), true
	case "party.id":
		return a.party.ID, true
	case "party.name":
		return a.party.Name, true
	case "party.kind":
		return a.party.Kind, true
	case "party.region":
		return a.party.Region, true
	case "party.labels":
		return newLabels(a.party.Labels), true
	}
	return nil, false
}

// Parent implements interpreter.Activation.
func (activation) Parent() interpreter.Activation { return nil }

// labels is a map in which an absent label reads as empty text, so that an
// expression over parties with different labels never fails.
type labels struct{ traits.Mapper }

func newLabels(m map[string]string) labels {
	return labels{types.NewMap(types.DefaultTypeAdapter, m)}
}

// Find implements traits.Mapper.
func (l labels) Find(name ref.Val) (ref.Val, bool) {
	v, ok := l.Mapper.Find(name)
	if _, text := name.(types.String); !ok && text {
		return types.String(""), true
	}
	return v, ok
}

// Get implements traits.Indexer.
func (l labels) Get(name ref.Val) ref.Val {
	if v, ok := l.Find(name); ok {
		return v
	}
	return l.Mapper.Get(name)
}

// sizes bounds the variables for cost estimates.
type sizes struct{}

// EstimateCallCost implements cost.Estimator.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// EstimateSize implements cost.Estimator.
func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	switch path := n.Path(); {
	case len(path) == 0:
		return nil
	case strings.HasSuffix(path[len(path)-1], "labels"):
		text := func() *cost.SizeEstimate { return &cost.SizeEstimate{Max: maxLabelText} }
		return &cost.SizeEstimate{Max: MaxLabels, Key: text(), Elem: text()}
	default:
		return &cost.SizeEstimate{Max: maxLabelText}
	}
}
