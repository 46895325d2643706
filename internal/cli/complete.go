package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

func (a *app) completionCommand() *cobra.Command {
	c := a.action("completion SHELL", "Print the completion script of bash, zsh or fish", func(cmd *cobra.Command, args []string) error {
		switch args[0] {
		case "bash":
			return cmd.Root().GenBashCompletionV2(a.config.Stdout, true)
		case "zsh":
			return cmd.Root().GenZshCompletion(a.config.Stdout)
		case "fish":
			return cmd.Root().GenFishCompletion(a.config.Stdout, true)
		}
		return usage("use bash, zsh or fish", "there is no completion for %q", args[0])
	})
	c.Example = `  source <(keyturn completion bash)
  keyturn completion zsh > "${fpath[1]}/_keyturn"
  keyturn completion fish > ~/.config/fish/completions/keyturn.fish`
	c.ValidArgs = []string{"bash", "zsh", "fish"}
	return c
}

// choices lets the values of a flag be completed.
func (a *app) choices(c *cobra.Command, flag string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("cli: " + err.Error()) // the flag does not exist: a mistake of this package
	}
}

// completionTime bounds a look-up while the user waits for a completion.
const completionTime = 2 * time.Second

// completeKeys completes the name of a key as the first argument.
func (a *app) completeKeys(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.keyNames(cmd, args, prefix)
}

// keyNames completes the name of a key anywhere.
func (a *app) keyNames(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	api, err := a.control()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	response, err := api.ListKeys(ctx, &keyturnv1.ListKeysRequest{Prefix: prefix})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []string
	for _, k := range response.GetKeys() {
		list = append(list, k.GetName())
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// completeRotations completes the ID of a rotation as the first argument.
func (a *app) completeRotations(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	api, err := a.control()
	if len(args) > 0 || err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	response, err := api.ListRotations(ctx, &keyturnv1.ListRotationsRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []string
	for _, r := range response.GetRotations() {
		list = append(list, r.GetId()+"\t"+r.GetKey()+" "+r.GetPhase())
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// everyPage calls page with one page token after the other until there is none, or
// until it has most elements, and returns what it read; with 0 it reads all. The list
// is not nil unless it fails.
func everyPage[T any](most int, page func(token string) (list []T, next string, err error)) ([]T, error) {
	all := []T{}
	for token := ""; ; {
		list, next, err := page(token)
		if err != nil {
			return nil, err
		}
		if all = append(all, list...); most > 0 && len(all) >= most {
			return all[:most], nil
		}
		if next == "" {
			return all, nil
		}
		if next == token {
			return nil, io.ErrNoProgress
		}
		token = next
	}
}
