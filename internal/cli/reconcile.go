package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) reconcileCommand() *cobra.Command {
	request := &keyturnv1.ReconcileRequest{}
	ways := map[string]*bool{"as-remembered": new(bool), "as-found": new(bool), "replace": new(bool)}
	var w waitFlags
	c := a.action("reconcile NAME", "Settle what differs after the server's database was restored", func(cmd *cobra.Command, args []string) error {
		request.Name = args[0]
		for way, chosen := range ways {
			if *chosen {
				request.How = way
			}
		}
		if request.GetLockOut() && request.GetHow() != "as-remembered" {
			return usage("add --as-remembered", "--lock-out belongs to --as-remembered")
		}
		if w.goal != "" && request.GetHow() != "replace" {
			return usage("add --replace", "--wait waits for the rotation that --replace begins")
		}
		if err := w.check(); err != nil {
			return err
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.Reconcile(cmd.Context(), request)
		if err != nil {
			return err
		}
		name := clean(request.GetName())
		switch request.GetHow() {
		case "replace":
			return a.begun(cmd.Context(), response.GetRotationId(), w, func(out io.Writer) {
				fmt.Fprintf(out, "rotation %s replaces what %s has\n", response.GetRotationId(), name)
			})
		case "":
			return a.result(struct {
				Looking bool `json:"looking"`
			}{true}, func(out io.Writer) {
				fmt.Fprintf(out, "what verifiers accept is being found out again; see keyturn key show %s\n", name)
			})
		}
		return a.result(struct {
			Settled string `json:"settled"`
		}{request.GetHow()}, func(out io.Writer) { fmt.Fprintf(out, "%s goes on, %s\n", name, request.GetHow()) })
	})
	c.Long = `After its database was restored the server changes nothing outside before it knows what
is really accepted there. A key without a difference goes on by itself; one with
differences stands still until one of these settles them:

--replace brings in a fresh version by the ordinary protocol, and retires whatever else
is accepted once nobody uses it. It is possible whatever was found, and locks nobody out.

--as-found makes the server believe what it found.

--as-remembered makes the systems do what the server remembers. It is refused when
somebody would be locked out, unless --lock-out says so.

Without any of them the server looks again.`
	c.Example = "  keyturn doctor\n  keyturn key show prod/orders/db\n  keyturn reconcile prod/orders/db --replace --wait"
	c.Flags().BoolVar(ways["replace"], "replace", false, "bring in a fresh version, and retire all others")
	c.Flags().BoolVar(ways["as-found"], "as-found", false, "believe what was found")
	c.Flags().BoolVar(ways["as-remembered"], "as-remembered", false, "make the systems do what is remembered")
	c.MarkFlagsMutuallyExclusive("replace", "as-found", "as-remembered")
	c.Flags().BoolVar(&request.LockOut, "lock-out", false, "let --as-remembered lock out who uses what was not known")
	c.Flags().StringVar(&request.Reason, "reason", "", "the `TEXT` that tells the audit log why")
	w.register(a, c)
	c.ValidArgsFunction = a.completeKeys
	return c
}
