package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/internal/policy"
)

func (a *app) tokenCommand() *cobra.Command {
	return a.group(&cobra.Command{Use: "token", Short: "Create, list and revoke tokens"},
		a.tokenCreateCommand(), a.tokenJoinCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
}

// tokenFlags are those of every command that makes a token.
type tokenFlags struct {
	keys     []string
	lifetime string
	file     string
}

func (f *tokenFlags) register(c *cobra.Command, lifetime string) {
	c.Flags().StringSliceVar(&f.keys, "keys", nil, "the `PATTERNS` of the keys it is for: * matches within a segment, ** across segments; for example 'prod/**'")
	c.Flags().StringVar(&f.lifetime, "lifetime", "", "the `TIME` for which it is valid, for example 30d; default: "+lifetime)
	c.Flags().StringVar(&f.file, "file", "", "write the token to this `FILE`, mode 0600, instead of printing it")
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var f tokenFlags
	request := &keyturnv1.CreateTokenRequest{}
	c := a.action("create NAME", "Create a token; it is shown once", func(cmd *cobra.Command, args []string) error {
		request.Name = args[0]
		if request.GetRole() == "join" {
			return usage("use keyturn token join", "--role: a join token is made by another command")
		}
		if err := oneOf("role", request.GetRole(), tokenRoles()...); err != nil {
			return err
		}
		return a.createToken(cmd, request, f)
	})
	c.Long = `The token is printed to standard output, once, and stored by the server as a hash.
NAME is who it stands for, in audit entries; a token of the role agent or gateway
may speak for the party NAME and those that begin with NAME/.

Roles: admin does everything; operator applies documents and runs rotations but
reads no secrets; approver approves rotations; viewer reads what is public; agent
presents keys; verifier verifies API keys that it was shown; scanner learns whether
what it found is a secret in use; gateway does what agent and verifier do, for a
region, and vouches for the addresses of its clients.`
	c.Example = "  keyturn token create ci --role operator --keys 'prod/**' --lifetime 90d\n  keyturn token create orders --role agent --keys prod/orders/db --file token"
	c.Flags().StringVar(&request.Role, "role", "", "the `ROLE`: admin, operator, approver, viewer, agent, verifier, scanner or gateway")
	f.register(c, "it does not expire")
	a.choices(c, "role", tokenRoles()...)
	return c
}

func tokenRoles() []string {
	return []string{"admin", "operator", "approver", "viewer", "agent", "verifier", "scanner", "gateway"}
}

func (a *app) tokenJoinCommand() *cobra.Command {
	var f tokenFlags
	var labels []string
	party := &keyturnv1.Party{Kind: keyturnv1.PartyKind_PARTY_KIND_AGENT}
	c := a.action("join PARTY", "Create a one-time token with which an agent joins", func(cmd *cobra.Command, args []string) error {
		var err error
		party.Id = args[0]
		if party.Labels, err = parsePairs("label", labels); err != nil {
			return err
		}
		return a.createToken(cmd, &keyturnv1.CreateTokenRequest{Name: args[0], Role: "join", Party: party}, f)
	})
	c.Long = `The agent exchanges the join token for one of its own when it starts for the first
time; the join token is void afterwards. Put it into the file that joinTokenFile of
the agent's configuration names, or into KEYTURN_JOIN_TOKEN.`
	c.Example = "  keyturn token join web-1 --region eu --label cohort=canary --keys prod/orders/db"
	c.Flags().StringVar(&party.Region, "region", "", "the `REGION`, or failure domain, of the agent")
	c.Flags().StringArrayVar(&labels, "label", nil, "a label `NAME=VALUE` that policies match; may be repeated")
	f.register(c, "1h")
	return c
}

func (a *app) createToken(cmd *cobra.Command, request *keyturnv1.CreateTokenRequest, f tokenFlags) error {
	if len(f.keys) == 0 {
		return usage("write for example --keys 'prod/**', or '**' for all", "--keys is missing")
	}
	request.Keys = f.keys
	if f.lifetime != "" {
		lifetime, err := policy.ParseDuration(f.lifetime)
		if err != nil {
			return usage("write for example 12h or 30d", "--lifetime: %w", err)
		}
		request.Lifetime = durationpb.New(lifetime.Std())
	}
	api, err := a.control()
	if err != nil {
		return err
	}
	response, err := api.CreateToken(cmd.Context(), request)
	if err != nil {
		return err
	}
	expires := "does not expire"
	if response.GetExpiresAt() != nil {
		expires = "expires " + a.since(response.GetExpiresAt())
	}
	if f.file != "" {
		if err := writePrivate(f.file, []byte(response.GetToken()+"\n")); err != nil {
			return fail(ExitFailed, "revoke it with keyturn token revoke "+response.GetId()+", and create another", "the token was created, but not written: %w", err)
		}
		response.Token = ""
	}
	a.note("token %s for %s, role %s, %s; revoke it with keyturn token revoke %s", response.GetId(), request.GetName(), request.GetRole(), expires, response.GetId())
	return a.result(response, func(w io.Writer) {
		if f.file != "" {
			fmt.Fprintf(w, "written to %s\n", clean(f.file))
			return
		}
		fmt.Fprintln(w, response.GetToken())
	})
}

func (a *app) tokenListCommand() *cobra.Command {
	return a.action("list", "List tokens, without their secrets", func(cmd *cobra.Command, _ []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		response, err := api.ListTokens(cmd.Context(), &keyturnv1.ListTokensRequest{})
		if err != nil {
			return err
		}
		return a.result(messages(response.GetTokens()), func(w io.Writer) {
			var rows [][]string
			for _, t := range response.GetTokens() {
				rows = append(rows, []string{t.GetId(), t.GetName(), t.GetRole(), strings.Join(t.GetKeys(), ","), stamp(t.GetCreatedAt()), a.since(t.GetExpiresAt()), a.since(t.GetLastUsedAt())})
			}
			a.list(w, "TOKEN|NAME|ROLE|KEYS|CREATED|EXPIRES|LAST USED", rows, "no tokens")
		})
	})
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return a.action("revoke TOKEN", "Revoke a token by its ID; it is refused from then on", func(cmd *cobra.Command, args []string) error {
		api, err := a.control()
		if err != nil {
			return err
		}
		if _, err := api.RevokeToken(cmd.Context(), &keyturnv1.RevokeTokenRequest{Id: args[0]}); err != nil {
			return err
		}
		return a.result(struct {
			ID string `json:"id"`
		}{args[0]}, func(w io.Writer) { fmt.Fprintf(w, "revoked %s\n", clean(args[0])) })
	})
}
