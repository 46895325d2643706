package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) rotateCommand() *cobra.Command {
	request := &keyturnv1.RotateRequest{}
	var compromised []uint
	var w waitFlags
	group := &groupFlags{}
	c := a.action("rotate [NAME]", "Begin a rotation of a key, or an emergency of many", func(cmd *cobra.Command, args []string) error {
		for _, v := range compromised {
			request.Compromised = append(request.Compromised, uint64(v))
		}
		if err := group.check(args, request); err != nil {
			return err
		}
		if group.selects() {
			return a.declare(cmd, group, request, w)
		}
		request.Name = args[0]
		return a.rotate(cmd, request, w)
	})
	c.Long = `Begins a rotation, by the key's policy. It goes on in the server, whatever becomes
of this command.

An emergency marks versions as compromised and supersedes a rotation under way:
replace-first brings in a new version at once and then refuses the old one;
contain-first refuses the old one at once, whoever still uses it.

With a selection instead of NAME an emergency is declared for every key in it, as one
group. The keys are listed with the reasons, and declared once that is confirmed;
keyturn emergency watch follows the group.`
	c.Example = "  keyturn rotate prod/orders/db --wait\n  keyturn rotate prod/orders/db --emergency --reason \"leaked in a log\" --wait\n" +
		"  keyturn rotate --emergency --selector tier=1,team=orders --strategy contain-first --reason \"laptop stolen\" --wait\n" +
		"  keyturn rotate --emergency --host web-1 --since 2026-11-24T08:00:00Z --could-read --dry-run"
	c.Flags().StringVar(&request.Reason, "reason", "", "the `TEXT` that tells the audit log why")
	c.Flags().BoolVar(&request.Emergency, "emergency", false, "a version is known or suspected to be compromised")
	c.Flags().StringVar(&request.Strategy, "strategy", "", "the `STRATEGY` of an emergency: replace-first or contain-first; default: the policy's")
	c.Flags().UintSliceVar(&compromised, "compromised", nil, "the compromised `VERSIONS`, for example 3,4; default: all that are accepted somewhere")
	c.Flags().StringVar(&request.RequestId, "request-id", "", "an `ID` that makes a repeated command begin one rotation only")
	c.Flags().Lookup("compromised").DefValue = ""
	group.register(c)
	w.register(a, c)
	c.ValidArgsFunction = a.completeKeys
	a.choices(c, "strategy", "replace-first", "contain-first")
	return c
}

func (a *app) rotate(cmd *cobra.Command, request *keyturnv1.RotateRequest, w waitFlags) error {
	if err := w.check(); err != nil {
		return err
	}
	if !request.GetEmergency() && (request.GetStrategy() != "" || len(request.GetCompromised()) > 0) {
		return usage("add --emergency", "--strategy and --compromised belong to an emergency")
	}
	if err := checkStrategy(request); err != nil {
		return err
	}
	api, err := a.control()
	if err != nil {
		return err
	}
	if request.GetRequestId() == "" {
		request.RequestId = rand.Text()
	}
	response, err := api.Rotate(cmd.Context(), request)
	if err != nil && passing(err) && !connect.IsWireError(err) {
		// The call may have arrived; the request ID makes sure that one rotation begins.
		response, err = api.Rotate(cmd.Context(), request)
	}
	if err != nil {
		return err
	}
	return a.begun(cmd.Context(), response.GetRotationId(), w, func(out io.Writer) {
		fmt.Fprintf(out, "rotation %s of %s began\n", response.GetRotationId(), clean(request.GetName()))
	})
}

func checkStrategy(request *keyturnv1.RotateRequest) error {
	if request.GetStrategy() == "" {
		return nil
	}
	return oneOf("strategy", request.GetStrategy(), "replace-first", "contain-first")
}

func (a *app) rollbackCommand() *cobra.Command {
	request := &keyturnv1.RollbackRequest{}
	var w waitFlags
	c := a.action("rollback ROTATION", "Return to the version before a rotation", func(cmd *cobra.Command, args []string) error {
		if err := w.check(); err != nil {
			return err
		}
		request.RotationId = args[0]
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.Rollback(cmd.Context(), request)
		if err != nil {
			return err
		}
		w.back = true
		return a.begun(cmd.Context(), response.GetRotationId(), w, func(out io.Writer) {
			fmt.Fprintf(out, "rotation %s returns to the version before\n", response.GetRotationId())
		})
	})
	c.Long = `Before the cut-over is complete the rotation itself turns back. Afterwards, and as
long as the old version is in quarantine, a new rotation brings it back.`
	c.Flags().StringVar(&request.Reason, "reason", "", "the `TEXT` that tells the audit log why")
	w.register(a, c)
	c.ValidArgsFunction = a.completeRotations
	return c
}

// begun tells of a rotation that began, and waits if asked to.
func (a *app) begun(ctx context.Context, id string, w waitFlags, text func(io.Writer)) error {
	if w.goal != "" {
		if !a.wantsJSON() {
			text(a.config.Stderr)
		}
		return a.wait(ctx, id, w)
	}
	return a.result(struct {
		RotationID string `json:"rotationId"`
	}{id}, func(out io.Writer) {
		text(out)
		fmt.Fprintf(out, "follow it with: keyturn rotation watch %s\n", shortID(id))
	})
}

// shortID is as much of an ID as is unique in practice.
func shortID(id string) string { return id[:min(len(id), 12)] }

// waitFlags say what to wait for.
type waitFlags struct {
	goal string
	most time.Duration
	// back says that rolled-back is what is hoped for.
	back bool
}

// The goals of --wait.
const (
	goalCutOver = "cut-over"
	goalRevoked = "revoked"
	goalDone    = "done"
)

func waitGoals() []string { return []string{goalCutOver, goalRevoked, goalDone} }

func (w *waitFlags) register(a *app, c *cobra.Command) {
	c.Flags().StringVar(&w.goal, "wait", "", "wait until the `GOAL` is reached: cut-over (the new version is current), revoked (the old one is refused), or done (the old one is gone)")
	c.Flags().Lookup("wait").NoOptDefVal = goalRevoked
	c.Flags().DurationVar(&w.most, "wait-timeout", 0, "give up waiting after this `TIME`, for example 10m; the rotation goes on")
	a.choices(c, "wait", waitGoals()...)
}

func (w *waitFlags) check() error {
	if w.goal == "" {
		if w.most != 0 {
			return usage("add --wait", "--wait-timeout belongs to --wait")
		}
		return nil
	}
	if w.most < 0 {
		return usage("write for example 10m", "--wait-timeout: %v is negative", w.most)
	}
	return oneOf("wait", w.goal, waitGoals()...)
}
