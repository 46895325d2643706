package real

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/keyturn/keyturn/client"
	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/test/awstest"
	"github.com/keyturn/keyturn/test/forgetest"
)

// example reads an example's document and changes it.
func example(t *testing.T, path string, changes ...string) string {
	t.Helper()
	document, err := os.ReadFile(filepath.Join("../../examples", path))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(string(document), changes[i]) {
			t.Fatalf("%s has no %q", path, changes[i])
		}
	}
	return strings.NewReplacer(changes...).Replace(string(document))
}

// user uses the present version of a key all the time, and pauses after each use.
func (w *world) user(t *testing.T, l *load, name key.Name, id string, pause time.Duration, use func(ctx context.Context, c client.Credential) error) {
	t.Helper()
	keys, err := client.Open(t.Context(), w.party(client.KindClient, id, "", ""), name)
	if err != nil {
		t.Fatal(err)
	}
	handle := keys.Key(name)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
		keys.Close()
	})
	running.Go(func() {
		for ctx.Err() == nil {
			err := use(ctx, handle.Current())
			if ctx.Err() != nil {
				return
			}
			l.queries.Add(1)
			if err != nil {
				l.fail(id, err)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	})
}

// TestIAMKeyRotatesUnderUse (U9): the access key of a user in another account is
// rotated twice by a role, while somebody uses it. No request is refused, the old
// access key is proven refused and deleted, so that the third finds room. A partner
// who stays with the old one (F9) is named and let in, for as long as he does.
func TestIAMKeyRotatesUnderUse(t *testing.T) {
	const name = "ci/deployer"
	cloud := awstest.New(t)
	cloud.Foreign()
	t.Setenv("AWS_ACCESS_KEY_ID", cloud.Admin.ID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", cloud.Admin.Secret)
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	policy := strings.NewReplacer("name: partners", "name: third-party", "min: 0s", "min: 1s").Replace(apiKeyPolicy)
	w := newAPIKeyWorld(t, apiKeyPolicy, "")
	w.apply(t, policy+"---\n"+example(t, "aws-iam/deployer.yaml", "usageDelay: 4h", "usageDelay: 200ms\n    endpoint: "+cloud.URL))
	w.finish(t, w.rotateKey(t, name, "first"), "done")
	var mu sync.Mutex
	var shown []string
	var present client.Credential
	use := func(ctx context.Context, c client.Credential) error {
		mu.Lock()
		shown, present = append(shown, c.Secret("secretAccessKey").RevealString()), c
		mu.Unlock()
		_, err := sts.NewFromConfig(aws.Config{
			Region: "eu-central-1", BaseEndpoint: aws.String(cloud.URL), Retryer: func() aws.Retryer { return aws.NopRetryer{} },
			Credentials: credentials.NewStaticCredentialsProvider(c.Attribute("accessKeyId"), c.Secret("secretAccessKey").RevealString(), ""),
		}).GetCallerIdentity(ctx, nil)
		return err
	}
	l := &load{}
	w.user(t, l, name, "deployer", 100*time.Millisecond, use)
	for turn := range 2 {
		l.more(t, 5)
		before, _ := cloud.IDs()
		mu.Lock()
		old := present
		mu.Unlock()
		id := w.rotateKey(t, name, "quarterly")
		if turn == 1 {
			stay(t, w, id, func() error {
				_, err := sts.NewFromConfig(aws.Config{
					Region: "eu-central-1", BaseEndpoint: aws.String(cloud.URL), Retryer: func() aws.Retryer { return aws.NopRetryer{} },
					Credentials: credentials.NewStaticCredentialsProvider(old.Attribute("accessKeyId"), old.Secret("secretAccessKey").RevealString(), ""),
				}).GetCallerIdentity(t.Context(), nil)
				return err
			})
		}
		w.finish(t, id, "done")
		after, active := cloud.IDs()
		if len(before) != 1 || len(after) != 1 || len(active) != 1 || slices.Equal(before, after) {
			t.Errorf("access keys before %v, after %v, active %v", before, after, active)
		}
	}
	l.more(t, 5)
	l.check(t)
	mu.Lock()
	defer mu.Unlock()
	for _, secret := range slices.Compact(shown) {
		if strings.Contains(w.logs.String(), secret) {
			t.Error("a secret is in the server's log")
		}
	}
}

// stay uses the old version until the rotation names it, and for the time after which
// it would have been refused had nobody used it.
func stay(t *testing.T, w *world, id string, use func() error) {
	t.Helper()
	var named time.Time
	for began := time.Now(); named.IsZero() || time.Since(named) < 1500*time.Millisecond; {
		if err := use(); err != nil {
			t.Fatalf("a partner who uses the old access key is cut off: %v\n%s", err, w.timeline(t, id))
		}
		response, err := w.control.GetRotation(t.Context(), &keyturnv1.GetRotationRequest{Id: id})
		if err != nil {
			t.Fatal(err)
		}
		r := response.GetRotation()
		if named.IsZero() && r.GetPhase() == "draining" && len(r.GetHolders()) == 1 && strings.HasPrefix(r.GetHolders()[0].GetApplication(), "service s3, last at ") {
			named = time.Now()
		}
		if named.IsZero() && time.Since(began) > 30*time.Second {
			t.Fatalf("a partner who uses the old access key is not named: %v %v", r.GetPhase(), r.GetHolders())
		}
		<-time.After(50 * time.Millisecond)
	}
}

// TestDeployKeyRotatesUnderUse (L6, U3): the deploy key of a repository is rotated
// while git uses it through a real OpenSSH server. No request is refused, and with
// the old key git is not let in any more.
func TestDeployKeyRotatesUnderUse(t *testing.T) {
	t.Parallel()
	forge := forgetest.New(t)
	deployKeyUnderUse(t, forgetest.Repository, forge.User, forge.SSH, forge.HostKey, example(t, "deploy-key/shop.yaml",
		"https://git.example.com/api/v1", forge.API, "/run/secrets/forge-token", forge.TokenFile,
		`address: "git.example.com:22"`, fmt.Sprintf("address: %q\n      user: %s", forge.SSH, forge.User),
		exampleHostKey(t), forge.HostKey))
	if keys := forge.Keys(); len(keys) != 1 || keys[0].Title != "keyturn ci/shop-deploy v2" || !keys[0].ReadOnly {
		t.Errorf("the forge has %+v", keys)
	}
}

// exampleHostKey is the host key in the example.
func exampleHostKey(t *testing.T) string {
	t.Helper()
	_, rest, _ := strings.Cut(example(t, "deploy-key/shop.yaml"), `hostKeys: ["`)
	line, _, found := strings.Cut(rest, `"`)
	if !found {
		t.Fatal("the example has no host key")
	}
	return line
}

func deployKeyUnderUse(t *testing.T, repository, user, address, hostKey, document string) {
	t.Helper()
	const name = "ci/shop-deploy"
	policy := strings.NewReplacer("name: partners", "name: third-party", "max: 1m", "max: 300ms, onMax: revoke").Replace(apiKeyPolicy)
	w := newAPIKeyWorld(t, apiKeyPolicy, "")
	w.apply(t, policy+"---\n"+document)
	w.finish(t, w.rotateKey(t, name, "first"), "done")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, []byte(fmt.Sprintf("[%s]:%s %s\n", host, port, hostKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	git := func(ctx context.Context, file string, private []byte, args ...string) ([]byte, error) {
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, private, 0o600); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_SSH_COMMAND=ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile="+known+" -i "+file)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return out, fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
		return out, nil
	}
	where := fmt.Sprintf("ssh://%s@%s/%s.git", user, address, repository)
	list := func(ctx context.Context, file string, private []byte) error {
		out, err := git(ctx, file, private, "ls-remote", where)
		if err != nil {
			return err
		}
		if !strings.Contains(string(out), "HEAD") {
			return errors.New("git lists no branch")
		}
		return nil
	}
	l := &load{}
	var mu sync.Mutex
	versions := map[uint64][]byte{}
	w.user(t, l, name, "deployer", 100*time.Millisecond, func(ctx context.Context, c client.Credential) error {
		private := c.Secret("privateKey").Reveal()
		mu.Lock()
		versions[uint64(c.Version)] = private
		mu.Unlock()
		return list(ctx, fmt.Sprint("key-", c.Version), private)
	})
	l.more(t, 3)
	w.finish(t, w.rotateKey(t, name, "quarterly"), "done")
	l.more(t, 3)
	l.check(t)
	mu.Lock()
	defer mu.Unlock()
	if err := list(t.Context(), "old", versions[1]); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("git with the old key: %v", err)
	}
	for version, private := range versions {
		if lines := strings.Split(string(private), "\n"); strings.Contains(w.logs.String(), lines[len(lines)/2]) {
			t.Errorf("the private key of v%d is in the server's log", version)
		}
	}
	copied := filepath.Join(dir, "copy")
	if _, err := git(t.Context(), "new", versions[2], "clone", where, copied); err != nil {
		t.Fatalf("git with the new key: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), "git", "-C", copied, "log", "--oneline").CombinedOutput(); err != nil || len(out) == 0 {
		t.Errorf("what was cloned has no history: %s, %v", out, err)
	}
}
