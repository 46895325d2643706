package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) doctorCommand() *cobra.Command {
	var strict bool
	c := a.action("doctor", "Check the invariants against the live state of the server", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.Doctor(cmd.Context(), &keyturnv1.DoctorRequest{})
		if err != nil {
			return err
		}
		count := map[string]int{}
		for _, check := range response.GetChecks() {
			count[check.GetStatus()]++
		}
		err = a.result(messages(response.GetChecks()), func(w io.Writer) {
			for _, check := range response.GetChecks() {
				fmt.Fprintf(w, "%-8s %s: %s\n", clean(check.GetStatus()), clean(check.GetName()), clean(check.GetMessage()))
				if check.GetHint() != "" && check.GetStatus() != "ok" {
					fmt.Fprintf(w, "         hint: %s\n", clean(check.GetHint()))
				}
			}
		})
		// A status that is not known here is not taken for success.
		good := count["ok"]
		if !strict {
			good += count["warning"] + count["no-data"]
		}
		if bad := len(response.GetChecks()) - good; bad > 0 && err == nil {
			return fail(ExitFailed, "", "%d of %s did not pass", bad, plural(len(response.GetChecks()), "check"))
		}
		return err
	})
	c.Long = "The exit code is 1 if a check failed; with --strict also if one warned or had no\ndata to judge by."
	c.Flags().BoolVar(&strict, "strict", false, "fail on warnings and missing data too")
	return c
}
