package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"

	"github.com/keyturn/keyturn/internal/policy"
)

// maxSources is how many files one command reads.
const maxSources = 1000

// source is a file with documents.
type source struct {
	name    string
	content []byte
}

// readSources reads the files that the paths name: files, folders with everything
// below them that ends in .yaml, .yml or .json, and "-" for standard input.
func (a *app) readSources(paths []string) ([]source, error) {
	var list []source
	for _, path := range paths {
		found, err := a.readSource(path)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
		if len(list) > maxSources {
			return nil, usage("name a smaller folder", "%s: more than %d files", path, maxSources)
		}
	}
	return list, nil
}

func (a *app) readSource(path string) ([]source, error) {
	if path == "-" {
		content, err := readBounded(a.config.Stdin, "standard input")
		return []source{{"standard input", content}}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return readFiles(path)
	}
	var files []string
	err = filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case at != path && strings.HasPrefix(d.Name(), ".") && d.IsDir():
			return fs.SkipDir
		case d.IsDir() || strings.HasPrefix(d.Name(), "."):
			return nil
		case slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(at)):
			files = append(files, at)
		}
		if len(files) > maxSources {
			return usage("name a smaller folder", "%s: more than %d files", path, maxSources)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, usage("name a file, or a folder that holds some", "%s: there is no file that ends in .yaml, .yml or .json", path)
	}
	return readFiles(files...)
}

func readFiles(paths ...string) ([]source, error) {
	var list []source
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		content, err := readBounded(f, path)
		f.Close()
		if err != nil {
			return nil, err
		}
		list = append(list, source{path, content})
	}
	return list, nil
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, policy.MaxSource+1))
	if err != nil {
		return nil, err
	}
	if len(content) > policy.MaxSource {
		return nil, usage("split it", "%s: it is larger than %d bytes", name, policy.MaxSource)
	}
	return content, nil
}

func (a *app) applyCommand() *cobra.Command {
	var paths []string
	var dryRun, prune bool
	c := a.action("apply", "Create or change policies, freezes, rules and keys from files", func(cmd *cobra.Command, _ []string) error {
		return a.apply(cmd, paths, dryRun, prune)
	})
	c.Long = `Sends documents to the server, which checks all of them and then stores all or
nothing. Problems are printed with file, line and column.`
	c.Example = "  keyturn apply -f keys/ --dry-run\n  keyturn apply -f policy.yaml -f keys.yaml"
	c.Flags().StringArrayVarP(&paths, "file", "f", nil, "the `PATH` of a file or folder, or - for standard input; may be repeated")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change, field by field, and what rules would have found")
	c.Flags().BoolVar(&prune, "prune", false, "also delete what exists on the server and is in none of the files")
	return c
}

func (a *app) apply(cmd *cobra.Command, paths []string, dryRun, prune bool) error {
	if len(paths) == 0 {
		return usage("write for example keyturn apply -f keys/", "-f is missing")
	}
	api, err := a.control()
	if err != nil {
		return err
	}
	sources, err := a.readSources(paths)
	if err != nil {
		return err
	}
	request := &keyturnv1.ApplyRequest{DryRun: dryRun, Prune: prune}
	for _, s := range sources {
		request.Documents = append(request.Documents, &keyturnv1.Document{Name: s.name, Content: s.content})
	}
	response, err := api.Apply(cmd.Context(), request)
	if err != nil {
		return err
	}
	wrong := 0
	for _, p := range response.GetProblems() {
		if p.GetSeverity() != "warning" {
			wrong++
		}
		a.note("%s", problemLine(p))
	}
	err = a.result(response, func(w io.Writer) {
		if wrong == 0 {
			printChanges(w, response.GetChanges(), dryRun)
		}
	})
	if wrong > 0 {
		return errors.Join(fail(ExitFailed, "mend the files and apply again", "%s; nothing was stored", plural(wrong, "problem")), err)
	}
	return err
}

// problemLine is "FILE:LINE:COLUMN: severity: PATH: MESSAGE; HINT".
func problemLine(p *keyturnv1.Problem) string {
	var b strings.Builder
	if p.GetFile() != "" {
		b.WriteString(p.GetFile())
		if p.GetLine() > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.GetLine(), p.GetColumn())
		}
		b.WriteString(": ")
	}
	b.WriteString(p.GetSeverity() + ": ")
	if p.GetPath() != "" {
		b.WriteString(p.GetPath() + ": ")
	}
	b.WriteString(p.GetMessage())
	if p.GetHint() != "" {
		b.WriteString("; " + p.GetHint())
	}
	return clean(b.String())
}

// printChanges prints what was done or would be; fields as a difference.
func printChanges(w io.Writer, changes []*keyturnv1.Change, dryRun bool) {
	count := map[string]int{}
	for _, c := range changes {
		count[c.GetAction()]++
		if c.GetAction() == "unchanged" {
			continue
		}
		fmt.Fprintf(w, "%s %s %s\n", c.GetAction(), c.GetKind(), clean(c.GetName()))
		if !dryRun {
			continue
		}
		for _, f := range c.GetFields() {
			switch {
			case f.GetOld() == "":
				fmt.Fprintf(w, "  + %s: %s\n", clean(f.GetPath()), clean(f.GetNew()))
			case f.GetNew() == "":
				fmt.Fprintf(w, "  - %s: %s\n", clean(f.GetPath()), clean(f.GetOld()))
			default:
				fmt.Fprintf(w, "  ~ %s: %s -> %s\n", clean(f.GetPath()), clean(f.GetOld()), clean(f.GetNew()))
			}
		}
	}
	prefix := ""
	if dryRun {
		prefix = "dry run, nothing was stored: "
	}
	fmt.Fprintf(w, "%s%d created, %d changed, %d deleted, %d unchanged\n", prefix, count["created"], count["changed"], count["deleted"], count["unchanged"])
}
