package cli

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/rotation"
)

// groupFlags say which keys "rotate --emergency" means, when it is not one by name.
type groupFlags struct {
	request keyturnv1.DeclareEmergencyRequest
	since   string
	yes     bool
}

func (g *groupFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&g.request.Selector, "selector", "", "all keys with these `LABELS`, for example tier=1,team=orders, also name!=value, name and !name; with --emergency")
	c.Flags().StringVar(&g.request.ReadBy, "read-by", "", "all keys that this `PARTY` was told, or that the token of this name or ID read; with --emergency")
	c.Flags().StringVar(&g.request.Host, "host", "", "the same for every party and token named after this `HOST`, or with the label host")
	c.Flags().StringVar(&g.request.Address, "read-from", "", "all keys that were read from this IP `ADDRESS` or network, or told to parties that connected from there")
	c.Flags().StringVar(&g.since, "since", "", "look at what was read since this `TIME`, for example 72h or 2026-11-24T08:00:00Z; default: 30 days")
	c.Flags().BoolVar(&g.request.CouldRead, "could-read", false, "also the keys that they could have read, whether or not they did")
	c.Flags().BoolVar(&g.request.AcceptIncomplete, "accept-incomplete", false, "declare the keys that were found although not all that was read is known")
	c.Flags().BoolVar(&g.request.DryRun, "dry-run", false, "only list the keys that the selection holds, and why")
	c.Flags().BoolVarP(&g.yes, "yes", "y", false, "do not ask before many keys are declared compromised")
}

func (g *groupFlags) selects() bool { return g.request.GetSelector() != "" || g.readers() > 0 }

// readers is how many flags say by whom keys were read.
func (g *groupFlags) readers() int {
	n := 0
	for _, by := range []string{g.request.GetReadBy(), g.request.GetHost(), g.request.GetAddress()} {
		if by != "" {
			n++
		}
	}
	return n
}

// check refuses what does not fit together.
func (g *groupFlags) check(args []string, request *keyturnv1.RotateRequest) error {
	switch {
	case len(args) == 1 && g.selects():
		return usage("name one of them", "NAME and a selection of keys exclude each other")
	case len(args) == 0 && !g.selects():
		return usage("see keyturn rotate --help", "NAME is missing: keyturn rotate NAME")
	case !g.selects() && (g.request.GetDryRun() || g.yes):
		return usage("add for example --selector tier=1", "--dry-run and --yes belong to a selection of keys")
	case g.readers() > 1:
		return usage("declare several groups", "--read-by, --host and --read-from exclude each other")
	case g.readers() == 0 && (g.since != "" || g.request.GetCouldRead() || g.request.GetAcceptIncomplete()):
		return usage("add for example --host web-1", "--since, --could-read and --accept-incomplete belong to --read-by, --host and --read-from")
	case g.selects() && !request.GetEmergency():
		return usage("add --emergency", "many keys are rotated together in an emergency only")
	case g.selects() && len(request.GetCompromised()) > 0:
		return usage("leave it out: all versions that are accepted somewhere are meant", "--compromised belongs to one key")
	}
	return g.readSince()
}

// readSince reads --since, a time or how long ago it is.
func (g *groupFlags) readSince() error {
	if g.since == "" {
		return nil
	}
	if back, err := time.ParseDuration(g.since); err == nil && back > 0 {
		g.request.Since = durationpb.New(back)
		return nil
	}
	at, err := time.Parse(time.RFC3339, g.since)
	if err != nil {
		return usage("write for example 72h or 2026-11-24T08:00:00Z", "--since: %q is no time, and not how long ago", g.since)
	}
	g.request.SinceTime = timestamppb.New(at)
	return nil
}

// declare declares the keys of a selection.
func (a *app) declare(cmd *cobra.Command, g *groupFlags, rotate *keyturnv1.RotateRequest, w waitFlags) error {
	if err := w.check(); err != nil {
		return err
	}
	if err := checkStrategy(rotate); err != nil {
		return err
	}
	api, err := a.control()
	if err != nil {
		return err
	}
	request := &g.request
	request.Reason, request.Strategy, request.RequestId = rotate.GetReason(), rotate.GetStrategy(), rotate.GetRequestId()
	if request.GetDryRun() {
		response, err := api.DeclareEmergency(cmd.Context(), request)
		if err != nil {
			return err
		}
		return a.result(response.GetEmergency(), func(out io.Writer) { printSelection(out, response.GetEmergency()) })
	}
	if !g.yes {
		if err := a.confirm(cmd.Context(), api, request); err != nil {
			return err
		}
	}
	if request.GetRequestId() == "" {
		request.RequestId = rand.Text()
	}
	response, err := api.DeclareEmergency(cmd.Context(), request)
	if err != nil && passing(err) && !connect.IsWireError(err) {
		// The call may have arrived; the request ID makes sure that one group is declared.
		response, err = api.DeclareEmergency(cmd.Context(), request)
	}
	if err != nil {
		return err
	}
	return a.declared(cmd.Context(), api, response.GetEmergency(), w)
}

// confirm shows what would be declared, asks, and leaves the keys that were shown in
// the request: no other is declared.
func (a *app) confirm(ctx context.Context, api keyturnv1connect.ControlServiceClient, request *keyturnv1.DeclareEmergencyRequest) error {
	dry := proto.CloneOf(request)
	dry.DryRun = true
	response, err := api.DeclareEmergency(ctx, dry)
	if err != nil {
		return err
	}
	found := response.GetEmergency()
	printSelection(a.config.Stderr, found)
	fmt.Fprintf(a.config.Stderr, "declare the versions of %s compromised? Type yes: ", plural(len(found.GetKeys()), "key"))
	line, err := bufio.NewReader(io.LimitReader(a.config.Stdin, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != "yes" {
		return fail(ExitFailed, "answer yes, or add --yes", "nothing was declared")
	}
	// What was not known was shown as well.
	request.AcceptIncomplete = request.GetAcceptIncomplete() || len(found.GetIncomplete()) > 0
	request.Keys = nil
	for _, k := range found.GetKeys() {
		request.Keys = append(request.Keys, k.GetKey())
	}
	return nil
}

func printSelection(w io.Writer, e *keyturnv1.Emergency) {
	var rows [][]string
	for _, k := range e.GetKeys() {
		rows = append(rows, []string{k.GetKey(), strings.Join(k.GetWhy(), "; ")})
	}
	table(w, "", "KEY|WHY", rows)
	if e.GetSince() != nil {
		fmt.Fprintf(w, "\nfrom the entries %d to %d of the audit log, since %s, and from what is registered now\n", e.GetLookedFrom(), e.GetLookedTo(), stamp(e.GetSince()))
	}
	for _, lack := range e.GetIncomplete() {
		fmt.Fprintf(w, "INCOMPLETE: %s\n", clean(lack))
	}
}

// declared tells of a group that was declared, and waits if asked to.
func (a *app) declared(ctx context.Context, api keyturnv1connect.ControlServiceClient, e *keyturnv1.Emergency, w waitFlags) error {
	text := func(out io.Writer) {
		fmt.Fprintf(out, "emergency %s of %s declared\n", e.GetId(), plural(int(e.GetTotal()), "key"))
		for _, k := range e.GetKeys() {
			if k.GetTrouble() != "" {
				fmt.Fprintf(out, "  %s could not be declared: %s\n", clean(k.GetKey()), clean(k.GetTrouble()))
			}
		}
	}
	if w.goal != "" {
		if !a.wantsJSON() {
			text(a.config.Stderr)
		}
		return a.waitGroup(ctx, api, e.GetId(), w)
	}
	err := a.result(e, func(out io.Writer) {
		text(out)
		fmt.Fprintf(out, "follow it with: keyturn emergency watch %s\n", shortID(e.GetId()))
	})
	if err == nil && e.GetFailed() > 0 {
		err = undeclared(e)
	}
	return err
}

func undeclared(e *keyturnv1.Emergency) error {
	return fail(ExitNotDone, "keyturn emergency show "+shortID(e.GetId()), "%s could not be declared", plural(int(e.GetFailed()), "key"))
}

func (a *app) emergencyCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use: "emergency", Short: "List and watch emergencies of many keys",
		Long: "A group of keys is declared compromised by keyturn rotate --emergency --selector LABELS, --read-by\nPARTY or --host HOST. It is named by its ID or by the beginning of one that is unique.",
	}, a.emergencyListCommand(), a.emergencyShowCommand(), a.emergencyWatchCommand())
}

func (a *app) emergencyListCommand() *cobra.Command {
	limit := 0
	c := a.action("list", "List emergencies of many keys, the newest first", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		list, err := everyPage(limit, func(token string) ([]*keyturnv1.Emergency, string, error) {
			response, err := api.ListEmergencies(cmd.Context(), &keyturnv1.ListEmergenciesRequest{PageToken: token})
			return response.GetEmergencies(), response.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		return a.result(messages(list), func(w io.Writer) {
			var rows [][]string
			for _, e := range list {
				rows = append(rows, []string{shortID(e.GetId()), a.since(e.GetStartedAt()), selection(e), groupHeadline(e), e.GetActor(), e.GetReason()})
			}
			a.list(w, "EMERGENCY|DECLARED|KEYS|STATE|BY|REASON", rows, "no emergencies of many keys")
		})
	})
	c.Flags().IntVar(&limit, "limit", defaultList, "the `NUMBER` to list; 0: all")
	return c
}

func selection(e *keyturnv1.Emergency) string {
	var parts []string
	for _, p := range [][2]string{{"", e.GetSelector()}, {"read by ", e.GetReadBy()}, {"host ", e.GetHost()}, {"address ", e.GetAddress()}} {
		if p[1] != "" {
			parts = append(parts, p[0]+p[1])
		}
	}
	return strings.Join(parts, ", ")
}

// groupHeadline says in one line how far a group is.
func groupHeadline(e *keyturnv1.Emergency) string {
	s := fmt.Sprintf("%d of %d refused", e.GetRefused(), e.GetTotal())
	if e.GetRefusedAt() != nil {
		s = fmt.Sprintf("all %d refused after %s", e.GetTotal(), took(e, e.GetRefusedAt().AsTime()))
	}
	if e.GetEnded() {
		s += ", ended"
	}
	if e.GetHeld() > 0 {
		s += fmt.Sprintf(", %d wait for somebody", e.GetHeld())
	}
	if e.GetFailed() > 0 {
		s += fmt.Sprintf(", %d could not be declared", e.GetFailed())
	}
	return s
}

// took is the time from the declaration until then.
func took(e *keyturnv1.Emergency, then time.Time) string {
	return then.Sub(e.GetStartedAt().AsTime()).Round(time.Millisecond).String()
}

func (a *app) emergencyShowCommand() *cobra.Command {
	c := a.action("show EMERGENCY", "Show a group: each key's phase, when it was refused, who still uses it, what waits", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.GetEmergency(cmd.Context(), &keyturnv1.GetEmergencyRequest{Id: args[0]})
		if err != nil {
			return err
		}
		return a.result(response.GetEmergency(), func(w io.Writer) { a.printEmergency(w, response.GetEmergency()) })
	})
	c.Example = "  keyturn emergency show 4f2a9c01"
	return c
}

// printEmergency prints a group for people.
func (a *app) printEmergency(w io.Writer, e *keyturnv1.Emergency) {
	strategy := e.GetStrategy()
	if strategy == "" {
		strategy = "each key's policy's"
	}
	fields(w, "emergency", e.GetId(), "keys", selection(e), "strategy", strategy, "declared", a.since(e.GetStartedAt()), "by", e.GetActor(),
		"reason", e.GetReason(), "state", groupHeadline(e), "still used by", stillUsed(e))
	for _, lack := range e.GetIncomplete() {
		fmt.Fprintf(w, "INCOMPLETE: %s\n", clean(lack))
	}
	var rows [][]string
	for _, k := range e.GetKeys() {
		r := k.GetRotation()
		phase, refused := r.GetPhase(), ""
		switch {
		case k.GetTrouble() != "":
			phase = "not declared"
		case r == nil:
			phase = "to be declared"
		case r.GetHold() != nil:
			phase += " (on hold)"
		}
		if k.GetRefusedAt() != nil {
			refused = took(e, k.GetRefusedAt().AsTime())
		}
		rows = append(rows, []string{k.GetKey(), shortID(k.GetRotationId()), phase, refused, residual(r)})
	}
	fmt.Fprintln(w)
	table(w, "", "KEY|ROTATION|PHASE|REFUSED AFTER|STILL USED BY", rows)
	for _, k := range e.GetKeys() {
		for _, line := range whyWaits(k) {
			fmt.Fprintf(w, "\n%s: %s", clean(k.GetKey()), clean(line))
		}
	}
	fmt.Fprintln(w)
}

// residual names who still uses the old version, by the last measurement.
func residual(r *keyturnv1.Rotation) string {
	var parts []string
	if len(r.GetHolders()) > 0 {
		var list []string
		for _, h := range r.GetHolders() {
			list = append(list, fmt.Sprintf("%s (%d)", holder(h), h.GetSessions()))
		}
		parts = append(parts, names(list, int32(len(list))))
	}
	if len(r.GetBehind()) > 0 {
		parts = append(parts, "without the new version: "+names(r.GetBehind(), r.GetBehindTotal()))
	}
	if len(parts) == 0 && r.GetMeasuredAt() != nil {
		return "nobody"
	}
	return strings.Join(parts, "; ")
}

func holder(h *keyturnv1.Holder) string {
	return strings.TrimSpace(h.GetAddress() + " " + h.GetApplication())
}

// maxUsers is how many users of compromised versions a line names.
const maxUsers = 5

// stillUsed names over all keys of a group who still uses old versions: by the last
// measurement, or because it has no newer one. Those of the most keys come first.
func stillUsed(e *keyturnv1.Emergency) string {
	keys := map[string]int{}
	unnamed := 0 // at least
	for _, k := range e.GetKeys() {
		unnamed = max(unnamed, int(k.GetRotation().GetBehindTotal())-len(k.GetRotation().GetBehind()))
		users := map[string]bool{}
		for _, h := range k.GetRotation().GetHolders() {
			users[holder(h)] = true
		}
		for _, party := range k.GetRotation().GetBehind() {
			users[party] = true
		}
		for user := range users {
			keys[user]++
		}
	}
	list := slices.SortedFunc(maps.Keys(keys), func(a, b string) int {
		return cmp.Or(cmp.Compare(keys[b], keys[a]), cmp.Compare(a, b))
	})
	total := len(list) + unnamed
	list = list[:min(len(list), maxUsers)]
	for i, user := range list {
		list[i] = fmt.Sprintf("%s (%s)", user, plural(keys[user], "key"))
	}
	return names(list, int32(total))
}

// live is one line of progress.
func live(e *keyturnv1.Emergency) string {
	s := groupHeadline(e) + phases(e)
	if users := stillUsed(e); users != "" {
		s += "; still used by " + users
	}
	return s
}

// whyWaits says what a key of a group waits for.
func whyWaits(k *keyturnv1.EmergencyKey) []string {
	if k.GetTrouble() != "" {
		return []string{k.GetTrouble()}
	}
	r := k.GetRotation()
	if r.GetEnded() {
		return nil
	}
	var lines []string
	if h := r.GetHold(); h != nil {
		line := "on hold: " + h.GetMessage()
		if h.GetHuman() {
			line += "; mend it, then keyturn rotation resume " + shortID(r.GetId())
		}
		lines = append(lines, line)
	}
	for _, each := range r.GetWaiting() {
		lines = append(lines, "waiting: "+waitingLine(each))
	}
	return lines
}

func (a *app) emergencyWatchCommand() *cobra.Command {
	c := a.action("watch EMERGENCY", "Follow a group until every rotation has ended", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		if !a.wantsJSON() {
			return a.waitGroup(cmd.Context(), api, args[0], waitFlags{goal: goalDone})
		}
		var last *keyturnv1.Emergency
		err = a.followGroup(cmd.Context(), api, args[0], a.newProgress(), func(e *keyturnv1.Emergency) error {
			last = e
			_, err := a.config.Stdout.Write(jsonLine(e))
			return err
		})
		if err != nil {
			return err
		}
		return groupOutcome(last)
	})
	c.Long = `Shows every change until every rotation of the group has ended. The exit code is 6
when a key could not be declared, or its rotation ended otherwise than done. With
--output json every change is one JSON object a line.`
	return c
}

// waitGroup follows a group until each of its keys has reached the goal or ended.
func (a *app) waitGroup(ctx context.Context, api keyturnv1connect.ControlServiceClient, id string, w waitFlags) error {
	waiting := ctx
	if w.most > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, w.most)
		defer cancel()
	}
	show := a.newProgress()
	var last *keyturnv1.Emergency
	err := a.followGroup(waiting, api, id, show, func(e *keyturnv1.Emergency) error {
		last = e
		show.line(live(e))
		if e.GetEnded() || groupReached(e, w) {
			return errReached
		}
		return nil
	})
	show.end()
	switch {
	case err == nil, errors.Is(err, errReached):
	case ctx.Err() != nil:
		return &failure{exit: ExitInterrupted, message: "interrupted; the emergency goes on", hint: "keyturn emergency watch " + shortID(id), err: ctx.Err()}
	case ranOut(waiting, err):
		state := "unknown"
		if last != nil {
			state = groupHeadline(last)
		}
		return fail(ExitFailed, "keyturn emergency show "+shortID(id), "after %v the group has not got as far as %s: %s; it goes on", w.most, w.goal, state)
	default:
		return err
	}
	if err := a.result(last, func(out io.Writer) { a.printEmergency(out, last) }); err != nil {
		return err
	}
	return groupOutcome(last)
}

// phases counts the open rotations of a group by phase, in the order of the protocol.
func phases(e *keyturnv1.Emergency) string {
	counts := map[string]int{}
	for _, k := range e.GetKeys() {
		if k.GetRotation() != nil && !k.GetRotation().GetEnded() {
			counts[k.GetRotation().GetPhase()]++
		}
	}
	s := ""
	for _, p := range rotation.Phases() {
		if n := counts[p.String()]; n > 0 {
			s += fmt.Sprintf(", %d %s", n, p)
		}
	}
	return s
}

// groupReached reports whether every key has got as far as the goal, or will not.
func groupReached(e *keyturnv1.Emergency, w waitFlags) bool {
	for _, k := range e.GetKeys() {
		r := k.GetRotation()
		switch {
		case k.GetTrouble() != "" || r.GetEnded():
		case r == nil, w.goal == goalDone:
			return false
		case w.goal == goalRevoked && k.GetRefusedAt() == nil:
			return false
		case w.goal == goalCutOver && !reached(r, w):
			return false
		}
	}
	return e.GetDeclaredAt() != nil
}

// groupOutcome is an error when a key was not declared, or ended otherwise than done.
func groupOutcome(e *keyturnv1.Emergency) error {
	if e.GetFailed() > 0 {
		return undeclared(e)
	}
	for _, k := range e.GetKeys() {
		if r := k.GetRotation(); r.GetEnded() && !succeeded(r, waitFlags{}) {
			return fail(ExitNotDone, "keyturn rotation show "+shortID(r.GetId()), "the rotation of %s ended %s", r.GetKey(), r.GetPhase())
		}
	}
	return nil
}

// followGroup hands every state of a group to visit until that returns an error,
// which followGroup returns, or the group has ended.
func (a *app) followGroup(ctx context.Context, api keyturnv1connect.ControlServiceClient, id string, show *progress, visit func(*keyturnv1.Emergency) error) error {
	return a.followAny(ctx, show, func(ctx context.Context, seen func(ended bool)) error {
		stream, err := api.WatchEmergency(ctx, &keyturnv1.WatchEmergencyRequest{Id: id})
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }() // all is read, or the context ended
		for stream.Receive() {
			e := stream.Msg().GetEmergency()
			seen(e.GetEnded())
			if err := visit(e); err != nil {
				return err
			}
		}
		return stream.Err()
	})
}
