package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/provider"
)

// Config says what to run. Path is required.
type Config struct {
	// Path of the program, absolute. Args follow it. Both are seen by every user of
	// the machine.
	Path string
	Args []string
	// Env is its whole environment.
	Env map[string]string
	// User to run as, a name or UID:GID; empty means the server's own. Another one
	// needs root.
	User string
	// Dir is where it runs; empty means "/".
	Dir string
	// Concurrency is how many of it may run at the same time; 0 means DefaultConcurrency.
	Concurrency int
	// Tell, if not nil, gets everything that each run wrote to standard error, as it
	// is, up to maxErrors bytes. It may hold secrets.
	Tell func(stderr []byte)
}

// DefaultConcurrency is how many processes of one plugin run at the same time.
const DefaultConcurrency = 16

// maxErrors is how much of standard error is kept, in bytes.
const maxErrors = 16 << 10

// maxQuoted is how much of it an error quotes, in bytes.
const maxQuoted = 300

// New returns a Transport that runs a program.
func New(config Config) plugin.Transport {
	if config.Concurrency <= 0 {
		config.Concurrency = DefaultConcurrency
	}
	if config.Dir == "" {
		config.Dir = "/"
	}
	return &transport{config: config, slots: make(chan struct{}, config.Concurrency)}
}

type transport struct {
	config   Config
	slots    chan struct{}
	launcher launcher
}

// Call implements plugin.Transport.
func (t *transport) Call(ctx context.Context, _ provider.Env, request plugin.Request) ([]byte, error) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%d processes of the plugin are running already: %w", t.config.Concurrency, ctx.Err())
	}
	if err := checkProgram(t.config.Path); err != nil {
		return nil, err
	}
	attributes, err := t.attributes()
	if err != nil {
		return nil, err
	}
	env := []string{} // not nil: nil would be the server's own
	for name, value := range t.config.Env {
		env = append(env, name+"="+value)
	}
	ended := t.launcher.run(ctx, command{
		path: t.config.Path, args: append([]string{t.config.Path}, t.config.Args...), env: env, dir: t.config.Dir, attributes: attributes, input: request.Body,
	})
	if t.config.Tell != nil && len(ended.stderr) > 0 {
		t.config.Tell(ended.stderr)
	}
	return ended.stdout, t.judge(ctx, ended, request.Scrub)
}

// judge says whether what a process did is an answer.
func (t *transport) judge(ctx context.Context, ended outcome, scrub *plugin.Scrubber) error {
	name := filepath.Base(t.config.Path)
	said := ""
	if text := scrub.Text(lastLine(ended.stderr), maxQuoted); text != "" {
		said = "; it wrote: " + text
	}
	var problem error
	switch {
	case ended.err != nil:
		return provider.Hint(fmt.Errorf("run %s: %w", name, ended.err), "see exec in plugins of the server's configuration")
	case ended.flooded:
		problem = fmt.Errorf("%w: %s wrote more than %d bytes to standard output", plugin.ErrAnswer, name, plugin.MaxAnswer)
	case ctx.Err() != nil:
		// It was killed, whatever it had said by then.
		problem = fmt.Errorf("%s did not end in time and was killed: %w", name, ctx.Err())
	case ended.status.Signaled():
		problem = fmt.Errorf("%s was ended by the signal %v", name, ended.status.Signal())
	case ended.status.ExitStatus() != 0:
		problem = fmt.Errorf("%s ended with exit code %d", name, ended.status.ExitStatus())
	case ended.held:
		problem = fmt.Errorf("%w: %s ended and left a process behind that holds its standard output", plugin.ErrAnswer, name)
	default:
		return nil
	}
	return fmt.Errorf("%w%s", problem, said)
}

// lastLine is the last line that is not empty, without one that may be cut off at
// its beginning.
func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// checkProgram refuses programs that somebody else could have put there.
func checkProgram(path string) error {
	const hint = "exec.path must be an absolute path of a program that only its owner, the server's user or root, may write to"
	info, err := os.Stat(path)
	if err != nil {
		return provider.Hint(fmt.Errorf("the plugin's program: %w", err), hint)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return provider.Hint(fmt.Errorf("the plugin's program %s is no executable file", path), hint)
	}
	parent, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return provider.Hint(fmt.Errorf("the plugin's program: %w", err), hint)
	}
	for _, place := range []fs.FileInfo{info, parent} {
		sticky := place.IsDir() && place.Mode()&fs.ModeSticky != 0
		if place.Mode()&0o022 != 0 && !sticky {
			return provider.Hint(fmt.Errorf("others may write to %s (mode %v)", place.Name(), place.Mode().Perm()), hint)
		}
		if stat, ok := place.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
			return provider.Hint(fmt.Errorf("%s belongs to the user %d", place.Name(), stat.Uid), hint)
		}
	}
	return nil
}

// attributes are those of the process to be.
func (t *transport) attributes() (*syscall.SysProcAttr, error) {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if t.config.User == "" {
		return a, nil
	}
	uid, gid, err := lookUp(t.config.User)
	if err != nil {
		return nil, provider.Hint(fmt.Errorf("the plugin's user: %w", err), "exec.user must be a user of this machine, or UID:GID")
	}
	if int(uid) != os.Geteuid() {
		a.Credential = &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{gid}}
	}
	return a, nil
}

func lookUp(name string) (uid, gid uint32, err error) {
	u, g, numeric := strings.Cut(name, ":")
	if !numeric {
		known, err := user.Lookup(name)
		if err != nil {
			return 0, 0, err
		}
		u, g = known.Uid, known.Gid
	}
	id, errU := strconv.ParseUint(u, 10, 32)
	group, errG := strconv.ParseUint(g, 10, 32)
	return uint32(id), uint32(group), errors.Join(errU, errG)
}
