package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/gen/keyturn/v1/keyturnv1connect"
	"github.com/keyturn/keyturn/internal/rotation"
)

// kindAPIKey is the provider of API keys.
const kindAPIKey = "apikey"

func (a *app) apiKeyCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use: "apikey", Short: "Hand out API keys, see who uses them, revoke them",
		Long: "An API key is a key whose provider is apikey. It is described in a document, see\nkeyturn apply; these commands concern its versions and its client.",
	},
		a.apiKeyIssueCommand(), a.apiKeyListCommand(), a.apiKeyShowCommand(), a.apiKeyVerifyCommand(), a.apiKeyRevokeCommand(),
		a.apiKeyNoticesCommand(), a.apiKeyNotifyCommand(), a.webhookSecretCommand(),
	)
}

// handOver says where a secret goes that is shown.
type handOver struct {
	out  string
	show bool
}

func (h *handOver) register(c *cobra.Command) {
	c.Flags().StringVar(&h.out, "out", "", "write it to this new `FILE`, mode 0600")
	c.Flags().BoolVar(&h.show, "show", false, "print it although standard output is no terminal")
}

// check refuses, before anything is read, what would put a secret into a log.
func (h *handOver) check(a *app) error {
	switch {
	case h.out != "" && h.show:
		return usage("name one of them", "--out and --show exclude each other")
	case h.out != "":
		if _, err := os.Lstat(h.out); err == nil {
			return usage("name a file that does not exist", "--out: %s is there already", h.out)
		}
	case !h.show && !isTerminal(a.config.Stdout):
		return usage("add --out FILE, or --show if it may be read by whatever takes the output", "standard output is no terminal")
	}
	return nil
}

// give prints or writes a secret; v is the result without it, withIt adds it.
func (h *handOver) give(a *app, secret string, v any, withIt func()) error {
	if h.out != "" {
		if err := writeNew(h.out, secret+"\n"); err != nil {
			return fail(ExitFailed, "it is kept; run the command again", "it was not written: %w", err)
		}
		return a.result(v, func(w io.Writer) { fmt.Fprintf(w, "written to %s\n", clean(h.out)) })
	}
	withIt()
	return a.result(v, func(w io.Writer) { fmt.Fprintln(w, secret) })
}

// writeNew writes a file that did not exist.
func writeNew(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(path) // the first error counts
	}
	return err
}

// apiKeyOf returns a key, which must be an API key.
func apiKeyOf(ctx context.Context, api keyturnv1connect.ControlServiceClient, name string) (*keyturnv1.Key, error) {
	response, err := api.GetKey(ctx, &keyturnv1.GetKeyRequest{Name: name})
	if err != nil {
		return nil, err
	}
	if kind := response.GetKey().GetProvider(); kind != kindAPIKey {
		return nil, usage("see keyturn apikey list", "%s is no API key: its provider is %s", name, kind)
	}
	return response.GetKey(), nil
}

func (a *app) apiKeyIssueCommand() *cobra.Command {
	var to handOver
	var version uint64
	var patience time.Duration
	c := a.action("issue NAME", "Hand out an API key to pass on to its client", func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("version") && version == 0 {
			return usage("see keyturn apikey show "+args[0], "--version: versions count from 1")
		}
		if err := to.check(a); err != nil {
			return err
		}
		return a.issue(cmd.Context(), args[0], version, patience, to)
	})
	c.Long = `Prints the version that the client is to use: the next one while a rotation brings
it in, else the current one. A key without a version gets its first one, and is
handed out once every server accepts it.

A version can be handed out until somebody has used it: then Keyturn's own copy is
shredded (unless the key's config says keep: sealed), and this command fails. The
key is printed on a terminal, or with --show; with --out it goes to a new file of
mode 0600. Every hand-out is in the audit log.

A client that has a key fetches the next one itself, see
docs/reference/provider-apikey.md.`
	c.Example = "  keyturn apikey issue partners/acme\n  keyturn apikey issue partners/acme --out acme.key"
	c.Flags().Uint64Var(&version, "version", 0, "the `NUMBER` of the version; default: the one that the client is to use")
	c.Flags().DurationVar(&patience, "wait-timeout", 2*time.Minute, "the longest `TIME` to wait for the first version")
	to.register(c)
	c.ValidArgsFunction = a.completeKeys
	return c
}

// issued is the result of issue. Key is absent when it went to a file.
type issued struct {
	Name    string `json:"name"`
	Version uint64 `json:"version"`
	Client  string `json:"client"`
	Key     string `json:"key,omitempty"`
	File    string `json:"file,omitempty"`
}

func (a *app) issue(ctx context.Context, name string, version uint64, patience time.Duration, to handOver) error {
	api, err := a.control()
	if err != nil {
		return err
	}
	k, err := apiKeyOf(ctx, api, name)
	if err != nil {
		return err
	}
	if version == 0 {
		if version, err = a.toIssue(ctx, api, k, patience); err != nil {
			return err
		}
	}
	response, err := api.GetSecret(ctx, &keyturnv1.GetSecretRequest{Name: name, Version: version})
	if err != nil {
		return err
	}
	text := string(response.GetSecrets()["key"])
	if text == "" {
		return fail(ExitFailed, "see keyturn get "+name, "version %d of %s holds no API key", version, name)
	}
	result := &issued{Name: name, Version: response.GetVersion(), Client: response.GetAttributes()["client"], File: to.out}
	if err := to.give(a, text, result, func() { result.Key = text }); err != nil {
		return err
	}
	a.note("version %d of %s, for %s; it can be handed out again until somebody has used it", result.Version, name, result.Client)
	return nil
}

// toIssue is the version that the client of a key is to use; if there is none, the
// first one is made.
func (a *app) toIssue(ctx context.Context, api keyturnv1connect.ControlServiceClient, k *keyturnv1.Key, patience time.Duration) (uint64, error) {
	open, err := api.ListRotations(ctx, &keyturnv1.ListRotationsRequest{Key: k.GetName(), OpenOnly: true, PageSize: maxPage})
	if err != nil {
		return 0, err
	}
	for _, r := range open.GetRotations() {
		if r.GetPhase() == rotation.Presenting.String() {
			return r.GetTo(), nil
		}
	}
	if k.GetCurrent() != 0 {
		return k.GetCurrent(), nil
	}
	var id string
	if len(open.GetRotations()) > 0 {
		id = open.GetRotations()[0].GetId()
	} else {
		request := &keyturnv1.RotateRequest{Name: k.GetName(), Reason: "first API key", RequestId: rand.Text()}
		response, err := api.Rotate(ctx, request)
		if err != nil && passing(err) && !connect.IsWireError(err) {
			response, err = api.Rotate(ctx, request) // the call may have arrived
		}
		if err != nil {
			return 0, err
		}
		id = response.GetRotationId()
	}
	return a.firstVersion(ctx, api, id, patience)
}

// firstVersion waits until the first version of a key is accepted everywhere.
func (a *app) firstVersion(ctx context.Context, api keyturnv1connect.ControlServiceClient, id string, patience time.Duration) (uint64, error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	show := a.newProgress()
	var last *keyturnv1.Rotation
	err := a.follow(waiting, api, id, func(r *keyturnv1.Rotation) error {
		last = r
		show.update(r)
		if r.GetEnded() || r.GetCutOverAt() != nil {
			return errReached
		}
		return nil
	}, show)
	show.end()
	switch {
	case errors.Is(err, errReached) && last.GetCutOverAt() != nil && (!last.GetEnded() || last.GetPhase() == rotation.Done.String()):
		return last.GetTo(), nil
	case errors.Is(err, errReached):
		return 0, fail(ExitNotDone, "keyturn rotation show "+shortID(id)+" tells the whole story", "the first version was not made: the rotation ended %s", last.GetPhase())
	case ctx.Err() == nil && ranOut(waiting, err):
		return 0, fail(ExitFailed, "keyturn rotation watch "+shortID(id)+", then run this command again", "after %v the first version is not accepted everywhere", patience)
	}
	return 0, err
}

// keyUse is what the server tells of one version; see docs/reference/provider-apikey.md.
type keyUse struct {
	Key       string    `json:"key,omitempty"`
	Client    string    `json:"client,omitempty"`
	Expires   time.Time `json:"expires,omitzero"`
	Version   uint64    `json:"version"`
	Accepted  bool      `json:"accepted"`
	Destroyed bool      `json:"destroyed,omitempty"`
	LastSeen  time.Time `json:"lastSeen,omitzero"`
	Uses      uint64    `json:"uses"`
	By        []userOf  `json:"by,omitempty"`
	Refused   uint64    `json:"refused,omitempty"`
	Tried     time.Time `json:"lastRefused,omitzero"`
	TriedBy   []userOf  `json:"refusedBy,omitempty"`
}

// userOf is somebody who used a version.
type userOf struct {
	Address     string    `json:"address,omitempty"`
	Application string    `json:"application,omitempty"`
	LastSeen    time.Time `json:"lastSeen"`
	Uses        uint64    `json:"uses"`
}

func (u *keyUse) state() string {
	switch {
	case u.Destroyed:
		return "destroyed"
	case u.Accepted:
		return "accepted"
	}
	return "refused"
}

// sinceTime is since for times of the plain interface.
func (a *app) sinceTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return a.since(timestamppb.New(t))
}

func count(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func (a *app) apiKeyListCommand() *cobra.Command {
	var prefix string
	c := a.action("list", "List clients, their versions, and their last use", func(cmd *cobra.Command, _ []string) error {
		list, err := everyPage(0, func(after string) ([]keyUse, string, error) {
			var page struct {
				Versions []keyUse `json:"versions"`
				Next     string   `json:"next"`
			}
			err := a.plain(cmd.Context(), http.MethodGet, "/v1/apikeys/clients", url.Values{"prefix": {prefix}, "after": {after}}, nil, &page)
			return page.Versions, page.Next, err
		})
		if err != nil {
			return err
		}
		return a.result(list, func(w io.Writer) {
			var rows [][]string
			for i := range list {
				u := &list[i]
				rows = append(rows, []string{u.Key, u.Client, version(u.Version), u.state(), a.sinceTime(u.LastSeen), count(u.Uses), a.sinceTime(u.Tried), count(u.Refused)})
			}
			a.list(w, "KEY|CLIENT|VERSION|STATE|LAST USE|USES|LAST REFUSED|REFUSED", rows, "no API keys; apply some with keyturn apply -f DIR")
		})
	})
	c.Long = `Lists every version of every API key that the token covers: whether it is let in,
when it was used last, and when it was last shown although it is refused. Destroyed
versions are listed for 35 days.`
	c.Flags().StringVar(&prefix, "prefix", "", "only keys whose names begin with `TEXT`")
	a.completeFlag(c, "prefix", a.keyNames)
	return c
}

// keyState is the result of show.
type keyState struct {
	Key       string   `json:"key"`
	Client    string   `json:"client"`
	Current   uint64   `json:"current"`
	Successor uint64   `json:"successor,omitempty"`
	Next      string   `json:"nextRotation,omitempty"`
	Waiting   []string `json:"waiting,omitempty"`
	Rotation  string   `json:"rotation,omitempty"`
	Phase     string   `json:"phase,omitempty"`
	Emergency bool     `json:"emergency,omitempty"`
	Hold      string   `json:"hold,omitempty"`
	Versions  []keyUse `json:"versions"`
}

func (a *app) apiKeyShowCommand() *cobra.Command {
	c := a.action("show NAME", "Show how far a client is: its versions, its successor, who uses what", func(cmd *cobra.Command, args []string) error {
		s, err := a.keyState(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return a.result(s, func(w io.Writer) { a.printKeyState(w, s) })
	})
	c.ValidArgsFunction = a.completeKeys
	return c
}

func (a *app) keyState(ctx context.Context, name string) (*keyState, error) {
	api, err := a.control()
	if err != nil {
		return nil, err
	}
	k, err := apiKeyOf(ctx, api, name)
	if err != nil {
		return nil, err
	}
	s := &keyState{Key: name, Current: k.GetCurrent(), Next: a.next(k), Versions: []keyUse{}}
	for _, v := range k.GetVersions() {
		if client := v.GetAttributes()["client"]; client != "" {
			s.Client = client
		}
	}
	open, err := api.ListRotations(ctx, &keyturnv1.ListRotationsRequest{Key: name, OpenOnly: true, PageSize: maxPage})
	if err != nil {
		return nil, err
	}
	if len(open.GetRotations()) > 0 {
		detail, err := api.GetRotation(ctx, &keyturnv1.GetRotationRequest{Id: open.GetRotations()[0].GetId()})
		if err != nil {
			return nil, err
		}
		r := detail.GetRotation()
		s.Rotation, s.Phase, s.Hold, s.Emergency = r.GetId(), r.GetPhase(), r.GetHold().GetMessage(), r.GetKind() == "emergency"
		if r.GetFrom() != 0 && r.GetTo() != 0 {
			s.Successor = r.GetTo()
		}
		for _, waiting := range r.GetWaiting() {
			s.Waiting = append(s.Waiting, strings.TrimSpace(waiting.GetMessage()+" "+names(waiting.GetNames(), waiting.GetTotal())))
		}
	}
	if k.GetCurrent() == 0 && s.Rotation == "" {
		return s, nil // there is no version to have uses of
	}
	var uses struct {
		Versions []keyUse `json:"versions"`
	}
	err = a.plain(ctx, http.MethodGet, "/v1/apikeys/uses", url.Values{"key": {name}}, nil, &uses)
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		return nil, err
	}
	s.Versions = append(s.Versions, uses.Versions...)
	return s, nil
}

func (a *app) printKeyState(w io.Writer, s *keyState) {
	fields(w, "key", s.Key, "client", s.Client, "current", version(s.Current), "successor", version(s.Successor), "next rotation", s.Next,
		"rotation", shortID(s.Rotation), "phase", s.Phase, "on hold", s.Hold, "waits for", strings.Join(s.Waiting, "; "))
	if len(s.Versions) > 0 {
		fmt.Fprintln(w, "\nversions")
		var rows [][]string
		for i := range s.Versions {
			u := &s.Versions[i]
			rows = append(rows, []string{version(u.Version), u.state(), a.sinceTime(u.LastSeen), count(u.Uses), a.sinceTime(u.Tried), count(u.Refused)})
		}
		table(w, "  ", "VERSION|STATE|LAST USE|USES|LAST REFUSED|REFUSED", rows)
	}
	var rows [][]string
	for i := range s.Versions {
		u := &s.Versions[i]
		for _, by := range u.By {
			rows = append(rows, []string{version(u.Version), "let in", by.Application, by.Address, a.sinceTime(by.LastSeen), count(by.Uses)})
		}
		for _, by := range u.TriedBy {
			rows = append(rows, []string{version(u.Version), "refused", by.Application, by.Address, a.sinceTime(by.LastSeen), count(by.Uses)})
		}
	}
	if len(rows) > 0 {
		fmt.Fprintln(w, "\nshown by")
		table(w, "  ", "VERSION|WAS|APPLICATION|ADDRESS|LAST|TIMES", rows)
	}
	if next := s.toDo(); next != "" {
		fmt.Fprintf(w, "\n%s\n", cleanLines(next))
	}
}

// toDo says what the operator, or the client, does next.
func (s *keyState) toDo() string {
	switch {
	case s.Current == 0 && s.Rotation == "":
		return "no version yet: keyturn apikey issue " + s.Key
	case s.Phase == rotation.Presenting.String() && s.Successor != 0:
		return fmt.Sprintf("the client is to fetch v%d, take it into use, and show it once; v%d stays good until then", s.Successor, s.Current)
	case s.Phase == rotation.Draining.String() && s.Emergency:
		return "the old version is compromised: it is refused when nobody uses it, or the emergency's grace is over; keyturn rotation show " + shortID(s.Rotation) + " says when"
	case s.Phase == rotation.Draining.String():
		return "the old version is refused when nobody uses it any more; keyturn rotation show " + shortID(s.Rotation) + " names who does"
	}
	return ""
}

// maxAPIKey bounds what is read as an API key, in bytes.
const maxAPIKey = 1 << 10

func (a *app) apiKeyVerifyCommand() *cobra.Command {
	c := a.action("verify", "Tell whose an API key is, read from standard input", func(cmd *cobra.Command, _ []string) error {
		return a.verifyAPIKey(cmd.Context())
	})
	c.Long = `Reads a key from standard input: it is never an argument, which every user of the
machine could see. It is not counted as a use, and is no proof of possession. The
token needs the role verifier (or admin), and covers the key.

A key that is not let in ends with exit code 1; the answer does not say why.`
	c.Example = "  keyturn apikey verify < acme.key"
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 { // it may be a key, and is not repeated
			return usage("pipe the key in, and replace it if it was an argument: others may have seen it", "keyturn apikey verify takes no arguments")
		}
		return nil
	}
	return c
}

func (a *app) verifyAPIKey(ctx context.Context) error {
	if isTerminal(a.config.Stdin) {
		a.note("paste the API key, then press return and Ctrl-D:")
	}
	raw, err := io.ReadAll(io.LimitReader(a.config.Stdin, maxAPIKey+1))
	if err != nil {
		return fmt.Errorf("read the API key: %w", err)
	}
	text := strings.TrimSpace(string(raw))
	if text == "" || len(raw) > maxAPIKey {
		return usage("pipe it in: keyturn apikey verify < FILE", "standard input holds no API key")
	}
	var answer struct {
		Valid   bool      `json:"valid"`
		Limited bool      `json:"limited"`
		Key     string    `json:"key,omitempty"`
		Version uint64    `json:"version,omitempty"`
		Client  string    `json:"client,omitempty"`
		Scopes  []string  `json:"scopes,omitempty"`
		Expires time.Time `json:"expires,omitzero"`
	}
	if err := a.plain(ctx, http.MethodPost, "/v1/apikeys/verify", nil, map[string]any{"key": text, "probe": true}, &answer); err != nil {
		return err
	}
	if !answer.Valid && !answer.Limited {
		return fail(ExitFailed, "it is malformed, unknown, refused or expired, or the token does not cover it", "the API key is not valid")
	}
	return a.result(answer, func(w io.Writer) {
		limited := ""
		if answer.Limited {
			limited = "its rate is used up at present"
		}
		fields(w, "key", answer.Key, "version", version(answer.Version), "client", answer.Client, "scopes", strings.Join(answer.Scopes, " "),
			"expires", a.sinceTime(answer.Expires), "limited", limited)
	})
}

func (a *app) apiKeyRevokeCommand() *cobra.Command {
	request := &keyturnv1.RotateRequest{Emergency: true}
	var compromised uint64
	var w waitFlags
	c := a.action("revoke NAME", "Have versions of an API key refused, and bring in another one", func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("version") {
			if compromised == 0 {
				return usage("see keyturn apikey show "+args[0], "--version: versions count from 1")
			}
			request.Compromised = []uint64{compromised}
		}
		if request.GetReason() == "" {
			return usage("write for example --reason 'found in a public repository'", "--reason is missing: the audit log and the client want to know")
		}
		api, err := a.control()
		if err != nil {
			return err
		}
		if _, err := apiKeyOf(cmd.Context(), api, args[0]); err != nil {
			return err
		}
		request.Name = args[0]
		return a.rotate(cmd, request, w)
	})
	c.Long = `Begins an emergency rotation: replace-first makes a new version, waits until every
server accepts it, and then refuses the old ones; contain-first refuses them at once.
Either way it is proven that every server and verifier refuses them before the
rotation ends. The client gets the new one from keyturn apikey issue, or fetches it
while its old key is let in.

A version that is only to be replaced needs no revocation: keyturn rotate NAME.`
	c.Example = "  keyturn apikey revoke partners/acme --reason 'found in a public repository' --strategy contain-first --wait"
	c.Flags().StringVar(&request.Reason, "reason", "", "the `TEXT` that tells the audit log why; required")
	c.Flags().Uint64Var(&compromised, "version", 0, "only the version with this `NUMBER`; default: all that are accepted somewhere")
	c.Flags().StringVar(&request.Strategy, "strategy", "", "the `STRATEGY`: replace-first or contain-first; default: the policy's")
	w.register(a, c)
	c.ValidArgsFunction = a.completeKeys
	a.choices(c, "strategy", "replace-first", "contain-first")
	return c
}
