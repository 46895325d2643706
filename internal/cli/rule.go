package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) ruleCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "rule", Short: "Try rules about anomalous use of keys"}, a.ruleTestCommand())
}

func (a *app) ruleTestCommand() *cobra.Command {
	c := a.action("test FILE...", "Show what rules would have found in the recorded past, without doing anything", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		sources, err := a.readSources(args)
		if err != nil {
			return err
		}
		request := &keyturnv1.ApplyRequest{DryRun: true}
		for _, s := range sources {
			request.Documents = append(request.Documents, &keyturnv1.Document{Name: s.name, Content: s.content})
		}
		response, err := api.Apply(cmd.Context(), request)
		if err != nil {
			return err
		}
		wrong := 0
		found := &keyturnv1.ApplyResponse{}
		for _, p := range response.GetProblems() {
			switch {
			case p.GetCode() == "rule-past":
				found.Problems = append(found.Problems, p)
				continue
			case p.GetSeverity() != "warning":
				wrong++
			}
			a.note("%s", problemLine(p))
		}
		if wrong > 0 {
			return fail(ExitFailed, "mend the files and try again", "%s", plural(wrong, "problem"))
		}
		if len(found.GetProblems()) == 0 {
			return usage("name a file with a document of kind: Rule", "there is no rule in these files")
		}
		return a.result(found, func(w io.Writer) {
			for _, p := range found.GetProblems() {
				fmt.Fprintln(w, clean(p.GetMessage()))
			}
		})
	})
	c.Long = `Sends documents of kind: Rule to the server, which evaluates them over the uses that
it has recorded (30 days at most), from the first one on, and stores nothing.`
	c.Example = "  keyturn rule test rules.yaml"
	return c
}
