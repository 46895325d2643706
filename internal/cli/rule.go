package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/policy"
)

func (a *app) ruleCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "rule", Short: "List and try rules about anomalous use of keys, and what they have learnt"}, a.ruleListCommand(), a.ruleTestCommand(), a.ruleLearnedCommand(), a.ruleAcceptCommand(), a.ruleForgetCommand())
}

func (a *app) ruleListCommand() *cobra.Command {
	c := a.action("list", "List the rules in force, and what they found", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.ListRules(cmd.Context(), &keyturnv1.ListRulesRequest{})
		if err != nil {
			return err
		}
		return a.result(messages(response.GetRules()), func(w io.Writer) {
			var rows [][]string
			for _, r := range response.GetRules() {
				last := a.since(r.GetLastAt())
				if r.GetLastKey() != "" {
					last += " " + r.GetLastKey() + " " + version(r.GetLastVersion())
				}
				rows = append(rows, []string{r.GetName(), r.GetMode(), r.GetThen(), findings(r), last, r.GetWhen()})
			}
			a.list(w, "RULE|MODE|THEN|FOUND|LAST|WHEN", rows, "no rules")
		})
	})
	c.Long = `Shows each rule with its mode, what follows when it fires, how many findings became
what since the first one (they are forgotten 90 days after the last one), and which
key it fired for last. keyturn rule test shows what the rules would find.`
	return c
}

// findings is for example "alert 3, limit 1".
func findings(r *keyturnv1.Rule) string {
	var list []string
	for _, result := range slices.Sorted(maps.Keys(r.GetFindings())) {
		list = append(list, fmt.Sprint(result, " ", r.GetFindings()[result]))
	}
	return strings.Join(list, ", ")
}

func (a *app) ruleTestCommand() *cobra.Command {
	var since string
	c := a.action("test [FILE...]", "Show what rules would have found in the recorded past, without doing anything", func(cmd *cobra.Command, args []string) error {
		request := &keyturnv1.ApplyRequest{DryRun: true}
		var err error
		if request.PastSince, err = a.sinceFlag(since); err != nil {
			return err
		}
		if request.PastSince == nil && len(args) == 0 {
			request.PastSince = timestamppb.New(time.Unix(0, 0)) // the rules in force, over all there is
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		if len(args) > 0 {
			sources, err := a.readSources(args)
			if err != nil {
				return err
			}
			for _, s := range sources {
				request.Documents = append(request.Documents, &keyturnv1.Document{Name: s.name, Content: s.content})
			}
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
			if len(args) == 0 {
				return usage("name a file with a document of kind: Rule, or apply one", "no rule is in force")
			}
			return usage("name a file with a document of kind: Rule", "there is no rule in these files")
		}
		return a.result(found, func(w io.Writer) {
			for _, p := range found.GetProblems() {
				fmt.Fprintln(w, clean(p.GetMessage()))
			}
		})
	})
	c.Flags().StringVar(&since, "since", "", "only tell what was since `WHEN`: for how long, as in 7d or 12h, or a time, as in 2026-03-01T08:00:00Z")
	c.Long = `Has the server evaluate the documents of kind: Rule in the files, or without a file the
rules in force, over the uses that it has recorded (30 days at most), and stores
nothing. What a key is used like is learnt from the first record on, also with --since.`
	c.Example = "  keyturn rule test rules.yaml --since 7d"
	return c
}

// sinceFlag reads a length of time or a time; nil for neither.
func (a *app) sinceFlag(text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return timestamppb.New(at), nil
	}
	d, err := policy.ParseDuration(text)
	if err != nil || d <= 0 {
		return nil, usage("write for example --since 7d or --since 2026-03-01T08:00:00Z", "--since %s: it is neither a time nor a length of time", text)
	}
	return timestamppb.New(a.config.Now().Add(-d.Std())), nil
}
