package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/internal/policy"
)

func (a *app) policyCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "policy", Short: "Check documents, and see what a rotation would do"},
		a.policyLintCommand(), a.policyPlanCommand())
}

func (a *app) policyLintCommand() *cobra.Command {
	c := a.action("lint FILE...", "Check documents on this machine, without a server", func(_ *cobra.Command, args []string) error {
		return a.policyLint(args)
	})
	c.Long = `Checks files, folders, or - for standard input, and prints every problem with file,
line and column. The exit code is 1 if one of them is an error. Policies that exist
only on the server are not known here; keyturn apply --dry-run knows them.`
	return c
}

func (a *app) policyLint(paths []string) error {
	sources, err := a.readSources(paths)
	if err != nil {
		return err
	}
	problems := policy.Problems{}
	var resources []policy.Resource
	for _, s := range sources {
		parsed, err := policy.Parse(s.name, s.content)
		resources = append(resources, parsed...)
		var list policy.Problems
		if errors.As(err, &list) {
			problems = append(problems, list...)
		} else if err != nil {
			return err
		}
	}
	problems = append(problems, policy.Lint(resources, policy.LintOptions{Providers: a.config.Providers, CheckConfig: a.config.CheckConfig, Now: a.config.Now()})...)
	wrong := 0
	for _, p := range problems {
		if p.Severity == policy.Error {
			wrong++
		}
	}
	err = a.result(problems, func(w io.Writer) {
		for _, p := range problems {
			fmt.Fprintln(w, problemLine(&keyturnv1.Problem{
				Severity: p.Severity.String(), File: p.File, Line: int32(p.Line), Column: int32(p.Col), Path: p.Path, Message: p.Message, Hint: p.Hint,
			}))
		}
		if wrong == 0 {
			fmt.Fprintf(w, "%s in %s: no errors, %s\n", plural(len(resources), "document"), plural(len(sources), "file"), plural(len(problems), "warning"))
		}
	})
	if wrong > 0 && err == nil {
		err = fail(ExitFailed, "", "%s in %s", plural(wrong, "error"), plural(len(sources), "file"))
	}
	return err
}

func (a *app) policyPlanCommand() *cobra.Command {
	c := a.action("plan NAME", "Show what a rotation of a key would do, when, and to whom", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.Plan(cmd.Context(), &keyturnv1.PlanRequest{Name: args[0]})
		if err != nil {
			return err
		}
		wrong := 0
		for _, p := range response.GetProblems() {
			if p.GetSeverity() != "warning" {
				wrong++
			}
		}
		err = a.result(response, func(w io.Writer) { printPlan(w, response) })
		if wrong > 0 && err == nil {
			err = fail(ExitFailed, "mend them before the next rotation", "%s would keep the rotation from passing", plural(wrong, "problem"))
		}
		return err
	})
	c.ValidArgsFunction = a.completeKeys
	return c
}

func printPlan(w io.Writer, plan *keyturnv1.PlanResponse) {
	var rows [][]string
	for _, s := range plan.GetSteps() {
		lasts := "as long as it takes"
		if d := s.GetLasts().AsDuration(); d > 0 {
			lasts = policy.Duration(d).String()
		}
		rows = append(rows, []string{s.GetPhase(), s.GetStage(), stamp(s.GetEarliest()), lasts, s.GetMessage(), names(s.GetNames(), s.GetTotal())})
	}
	table(w, "", "PHASE|STAGE|EARLIEST|AT LEAST|WHAT|WHO", rows)
	for _, p := range plan.GetProblems() {
		fmt.Fprintln(w, problemLine(p))
	}
}
