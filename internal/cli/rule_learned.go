package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) ruleLearnedCommand() *cobra.Command {
	c := a.action("learned KEY", "Show what rules know of the use of a key, and what they doubt", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		learned, err := api.GetLearned(cmd.Context(), &keyturnv1.GetLearnedRequest{Name: args[0]})
		if err != nil {
			return err
		}
		return a.result(learned, func(w io.Writer) { a.learned(w, learned) })
	})
	c.Args = cobra.ExactArgs(1)
	c.Long = `Shows since when the use of a key is known, from which networks and by which
applications it is used, and what rules fired on because it was new: that stays new
to them until somebody accepts it, or until the time that the rule's confirm says.`
	c.Example = "  keyturn rule learned prod/orders/api"
	return c
}

func (a *app) learned(w io.Writer, learned *keyturnv1.GetLearnedResponse) {
	if learned.GetSince() == nil {
		fmt.Fprintln(w, "no use of the key is known")
		return
	}
	var doubts [][]string
	var roaming []string
	for _, r := range learned.GetRules() {
		if r.GetRoaming() {
			roaming = append(roaming, r.GetName())
		}
		for _, d := range r.GetDoubts() {
			doubts = append(doubts, []string{d.GetKind(), d.GetName(), d.GetSource(), r.GetName(), a.since(d.GetFirst()), a.since(d.GetUntil())})
		}
	}
	fmt.Fprintf(w, "known since %s\n", a.since(learned.GetSince()))
	for _, source := range slices.Sorted(maps.Keys(learned.GetSources())) {
		fmt.Fprintf(w, "%s tells since %s\n", clean(source), a.since(learned.GetSources()[source]))
	}
	for _, r := range learned.GetRules() {
		if r.GetLearnsUntil() != nil {
			fmt.Fprintf(w, "rule %s learns until %s: nothing is new to it before\n", clean(r.GetName()), a.since(r.GetLearnsUntil()))
		}
	}
	switch {
	case learned.GetRoaming():
		fmt.Fprintln(w, "new networks are usual for it: use.newNetwork is false")
	case len(roaming) > 0:
		fmt.Fprintf(w, "new networks are usual for it, by what was accepted, to %s\n", clean(strings.Join(roaming, ", ")))
	}
	if len(doubts) > 0 {
		fmt.Fprintln(w, "\nfound, and confirmed by nobody:")
		a.list(w, "KIND|NAME|SOURCE|RULE|MET|NEW UNTIL", doubts, "")
	}
	var uses [][]string
	for _, u := range learned.GetUses() {
		first := a.since(u.GetFirst())
		if u.GetFirst() == nil {
			first = "before"
		}
		uses = append(uses, []string{u.GetKind(), u.GetName(), u.GetSource(), first, a.since(u.GetLast())})
	}
	fmt.Fprintln(w)
	a.list(w, "KIND|NAME|SOURCE|FIRST|LAST", uses, "no network or application")
	if n := learned.GetMoreNetworks(); n > 0 {
		fmt.Fprintf(w, "%s more, known by hash\n", plural(int(n), "network"))
	}
}

// learnedFlags are what rule accept and rule forget take.
type learnedFlags struct {
	request keyturnv1.ChangeLearnedRequest
}

func (a *app) changeLearned(use, short string, forget bool) *cobra.Command {
	f := &learnedFlags{}
	f.request.Forget = forget
	c := a.action(use, short, func(cmd *cobra.Command, args []string) error {
		f.request.Name = args[0]
		if !f.request.GetAll() && !f.request.GetRoaming() && len(f.request.GetNetworks())+len(f.request.GetApplications()) == 0 {
			return usage("keyturn rule learned "+args[0]+" shows what there is", "name what is meant: --network, --application or --all")
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.ChangeLearned(cmd.Context(), &f.request)
		if err != nil {
			return err
		}
		return a.result(response, func(w io.Writer) {
			done := "accepted"
			if forget {
				done = "forgot"
			}
			for _, name := range response.GetNames() {
				fmt.Fprintln(w, done, clean(name))
			}
			if len(response.GetNames()) == 0 {
				fmt.Fprintln(w, done, "it")
			}
		})
	})
	c.Args = cobra.ExactArgs(1)
	c.Flags().StringArrayVar(&f.request.Networks, "network", nil, "a `NETWORK`, as keyturn rule learned shows it; may be repeated")
	c.Flags().StringArrayVar(&f.request.Applications, "application", nil, "an application's `NAME`; may be repeated")
	c.Flags().BoolVar(&f.request.All, "all", false, "everything")
	c.Flags().StringVar(&f.request.Reason, "reason", "", "`WHY`; for the audit log")
	if forget {
		c.Flags().BoolVar(&f.request.Roaming, "roaming", false, "that new networks are usual for the key")
	}
	return c
}

func (a *app) ruleAcceptCommand() *cobra.Command {
	c := a.changeLearned("accept KEY", "Confirm what rules found: it is rightful use", false)
	c.Long = `Says that networks or applications that rules fired on are rightful: they are known
from now on, and no rule fires on them for being new. Who may rotate the key may do so.`
	c.Example = `  keyturn rule accept prod/orders/api --network 203.0.113.0/24 --reason "new office"`
	return c
}

func (a *app) ruleForgetCommand() *cobra.Command {
	c := a.changeLearned("forget KEY", "Forget what rules know of the use of a key, so that it is new again", true)
	c.Long = `Makes networks or applications new again that rules take for known, for example
because a thief used them before there was a rule. With --roaming the key is no longer
one for which new networks are usual. With --all its use is learnt anew: nothing is new
until each rule's learn is over.`
	c.Example = "  keyturn rule forget prod/orders/api --network 203.0.113.0/24"
	return c
}
