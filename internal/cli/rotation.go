package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
)

func (a *app) rotationCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use: "rotation", Short: "List, watch and steer rotations",
		Long: "A rotation is named by its ID, by the beginning of one that is unique, or with\n--key by the key: then the newest one that has not ended is meant.",
	},
		a.rotationListCommand(), a.rotationShowCommand(), a.rotationWatchCommand(),
		a.steerCommand("approve", "Agree to a rotation that needs approval", "approved", keyturnv1.SteerAction_STEER_ACTION_APPROVE),
		a.steerCommand("pause", "Hold a rotation where it is", "paused", keyturnv1.SteerAction_STEER_ACTION_PAUSE),
		a.steerCommand("resume", "Let a rotation that is on hold go on", "resumed", keyturnv1.SteerAction_STEER_ACTION_RESUME),
		a.steerCommand("cancel", "Give a rotation up; presenters return to the old version", "cancelled", keyturnv1.SteerAction_STEER_ACTION_CANCEL),
	)
}

// defaultList is how many rotations are listed.
const defaultList = 50

// maxPage is the largest page that the server gives out.
const maxPage = 1000

func (a *app) rotationListCommand() *cobra.Command {
	request := &keyturnv1.ListRotationsRequest{PageSize: maxPage}
	limit := 0
	c := a.action("list", "List rotations, the newest first", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		if limit > 0 && !request.GetOpenOnly() {
			request.PageSize = int32(min(limit, maxPage))
		}
		list, err := everyPage(limit, func(token string) ([]*keyturnv1.Rotation, string, error) {
			request.PageToken = token
			response, err := api.ListRotations(cmd.Context(), request)
			return response.GetRotations(), response.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		return a.result(messages(list), func(w io.Writer) {
			var rows [][]string
			for _, r := range list {
				phase := r.GetPhase()
				if r.GetHold() != nil {
					phase += " (on hold)"
				}
				rows = append(rows, []string{shortID(r.GetId()), r.GetKey(), r.GetKind(), phase, version(r.GetFrom()), version(r.GetTo()), a.since(r.GetStartedAt()), stamp(r.GetEndedAt())})
			}
			a.list(w, "ROTATION|KEY|KIND|PHASE|FROM|TO|STARTED|ENDED", rows, "no rotations")
		})
	})
	c.Flags().StringVar(&request.Key, "key", "", "only those of the key `NAME`")
	c.Flags().BoolVar(&request.OpenOnly, "open", false, "only those that have not ended")
	c.Flags().IntVar(&limit, "limit", defaultList, "the `NUMBER` to list; 0: all")
	a.completeFlag(c, "key", a.keyNames)
	return c
}

// list prints a table, or a note when there is nothing to print.
func (a *app) list(w io.Writer, header string, rows [][]string, none string) {
	if len(rows) == 0 {
		a.note("%s", none)
		return
	}
	table(w, "", header, rows)
}

// rotationID is the rotation that a command means: its argument, or by --key the
// newest one of a key that has not ended; with ended also one that has.
func (a *app) rotationID(cmd *cobra.Command, api keyturnv1connect.ControlServiceClient, args []string, key string, ended bool) (string, error) {
	switch {
	case len(args) == 1 && key != "":
		return "", usage("name one of them", "ROTATION and --key exclude each other")
	case len(args) == 1:
		return args[0], nil
	case key == "":
		return "", usage("see keyturn rotation list", "ROTATION is missing, and so is --key")
	}
	open, err := api.ListRotations(cmd.Context(), &keyturnv1.ListRotationsRequest{Key: key, OpenOnly: true, PageSize: maxPage})
	if err != nil {
		return "", err
	}
	if len(open.GetRotations()) > 0 {
		return open.GetRotations()[0].GetId(), nil
	}
	if ended {
		all, err := api.ListRotations(cmd.Context(), &keyturnv1.ListRotationsRequest{Key: key, PageSize: 1})
		if err != nil {
			return "", err
		}
		if len(all.GetRotations()) > 0 {
			return all.GetRotations()[0].GetId(), nil
		}
		return "", fail(ExitNotFound, "begin one with keyturn rotate "+key, "%s has no rotation", key)
	}
	return "", fail(ExitNotFound, "see keyturn rotation list --key "+key, "%s has no rotation that has not ended", key)
}

// onRotation makes a command that is about one rotation.
func (a *app) onRotation(name, short string, ended bool, run func(cmd *cobra.Command, api keyturnv1connect.ControlServiceClient, id string) error) *cobra.Command {
	var key string
	c := a.action(name+" [ROTATION]", short, func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		id, err := a.rotationID(cmd, api, args, key, ended)
		if err != nil {
			return err
		}
		return run(cmd, api, id)
	})
	c.Flags().StringVar(&key, "key", "", "the newest rotation of the key `NAME` that has not ended")
	c.ValidArgsFunction = a.completeRotations
	a.completeFlag(c, "key", a.keyNames)
	return c
}

func (a *app) rotationShowCommand() *cobra.Command {
	c := a.onRotation("show", "Show a rotation: phase, stages, hold, who waits, who holds the old version", true,
		func(cmd *cobra.Command, api keyturnv1connect.ControlServiceClient, id string) error {
			response, err := api.GetRotation(cmd.Context(), &keyturnv1.GetRotationRequest{Id: id})
			if err != nil {
				return err
			}
			return a.result(response, func(w io.Writer) { a.printRotation(w, response) })
		})
	c.Example = "  keyturn rotation show 4f2a9c01\n  keyturn rotation show --key prod/orders/db"
	return c
}

func (a *app) rotationWatchCommand() *cobra.Command {
	c := a.onRotation("watch", "Follow a rotation until it has ended", true,
		func(cmd *cobra.Command, api keyturnv1connect.ControlServiceClient, id string) error {
			if !a.wantsJSON() {
				return a.wait(cmd.Context(), id, waitFlags{goal: goalDone})
			}
			var last *keyturnv1.Rotation
			err := a.follow(cmd.Context(), api, id, func(r *keyturnv1.Rotation) error {
				last = r
				_, err := a.config.Stdout.Write(jsonLine(r))
				return err
			}, a.newProgress())
			if err != nil {
				return err
			}
			if !succeeded(last, waitFlags{}) {
				return fail(ExitNotDone, "keyturn rotation show "+shortID(last.GetId()), "the rotation of %s ended %s", last.GetKey(), last.GetPhase())
			}
			return nil
		})
	c.Long = `Shows every change until the rotation has ended. The exit code is 6 when it ended
otherwise than done. With --output json every change is one JSON object a line.`
	return c
}

func (a *app) steerCommand(name, short, done string, action keyturnv1.SteerAction) *cobra.Command {
	var reason string
	c := a.onRotation(name, short, false, func(cmd *cobra.Command, api keyturnv1connect.ControlServiceClient, id string) error {
		if _, err := api.Steer(cmd.Context(), &keyturnv1.SteerRequest{RotationId: id, Action: action, Reason: reason}); err != nil {
			return err
		}
		response, err := api.GetRotation(cmd.Context(), &keyturnv1.GetRotationRequest{Id: id})
		if err != nil {
			return err
		}
		r := response.GetRotation()
		return a.result(r, func(w io.Writer) {
			fmt.Fprintf(w, "rotation %s of %s %s; it is %s\n", shortID(r.GetId()), clean(r.GetKey()), done, headline(r))
		})
	})
	c.Flags().StringVar(&reason, "reason", "", "the `TEXT` that tells the audit log why")
	return c
}

// completeFlag lets the value of a flag be completed by fn.
func (a *app) completeFlag(c *cobra.Command, flag string, fn cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, fn); err != nil {
		panic("cli: " + err.Error()) // the flag does not exist: a mistake of this package
	}
}

// printRotation prints a rotation for people.
func (a *app) printRotation(w io.Writer, response *keyturnv1.GetRotationResponse) {
	r := response.GetRotation()
	phase := r.GetPhase()
	if r.GetStage() != "" {
		phase += ", stage " + r.GetStage()
	}
	kind := r.GetKind()
	if r.GetStrategy() != "" {
		kind += ", " + r.GetStrategy()
	}
	fields(w,
		"rotation", r.GetId(), "key", r.GetKey(), "kind", kind, "versions", versions(r),
		"phase", phase, "since", a.since(r.GetPhaseSince()), "started", a.since(r.GetStartedAt()),
		"by", r.GetActor(), "reason", r.GetReason(), "approved by", names(r.GetApprovals(), int32(len(r.GetApprovals()))),
		"cut over", stamp(r.GetCutOverAt()), "ended", stamp(r.GetEndedAt()),
	)
	if h := r.GetHold(); h != nil {
		fmt.Fprintf(w, "\non hold since %s (%s): %s\n", stamp(h.GetSince()), clean(h.GetReason()), clean(h.GetMessage()))
		if h.GetHuman() {
			fmt.Fprintf(w, "  it waits for somebody: keyturn rotation resume %s, or rollback or cancel it\n", shortID(r.GetId()))
		} else {
			fmt.Fprintln(w, "  it goes on by itself when the cause is gone")
		}
	}
	a.printDetails(w, r)
	if len(response.GetTimeline()) > 0 {
		fmt.Fprintln(w, "\ntimeline")
		var rows [][]string
		for _, e := range response.GetTimeline() {
			rows = append(rows, []string{stamp(e.GetAt()), e.GetEvent(), e.GetMessage()})
		}
		table(w, "  ", "AT|EVENT|WHAT", rows)
	}
}

func versions(r *keyturnv1.Rotation) string {
	if r.GetTo() == 0 {
		return version(r.GetFrom())
	}
	if r.GetFrom() == 0 {
		return "none -> " + version(r.GetTo())
	}
	return version(r.GetFrom()) + " -> " + version(r.GetTo())
}

func (a *app) printDetails(w io.Writer, r *keyturnv1.Rotation) {
	var rows [][]string
	for _, s := range r.GetStages() {
		rows = append(rows, []string{s.GetName(), s.GetState(), fmt.Sprintf("%d of %d", s.GetAcknowledged(), s.GetPresenters()), stamp(s.GetBakeEndsAt())})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w, "\nstages")
		table(w, "  ", "STAGE|STATE|ACKNOWLEDGED|BAKES UNTIL", rows)
	}
	a.printRegions(w, r)
	if len(r.GetWaiting()) > 0 {
		fmt.Fprintln(w, "\nwaiting")
		for _, each := range r.GetWaiting() {
			fmt.Fprintf(w, "  %s\n", clean(waitingLine(each)))
		}
	}
	rows = nil
	for _, h := range r.GetHolders() {
		rows = append(rows, []string{h.GetEndpoint(), h.GetAddress(), h.GetApplication(), fmt.Sprint(h.GetSessions())})
	}
	switch {
	case len(rows) > 0:
		fmt.Fprintf(w, "\nwho still uses version %d, measured %s\n", r.GetFrom(), a.since(r.GetMeasuredAt()))
		table(w, "  ", "ENDPOINT|ADDRESS|APPLICATION|SESSIONS", rows)
	case r.GetMeasuredAt() != nil && !r.GetEnded():
		fmt.Fprintf(w, "\nnobody uses version %d, measured %s\n", r.GetFrom(), a.since(r.GetMeasuredAt()))
	}
}
