//go:build soak

package real

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/test/forgetest"
)

// TestDeployKeyOfGiteaRotatesUnderUse (L6, U3): the same at a real Gitea, where the
// repository has one deploy key, then two, then one.
func TestDeployKeyOfGiteaRotatesUnderUse(t *testing.T) {
	g := forgetest.NewGitea(t, "../../bin/parts")
	var counts []int
	var watching sync.WaitGroup
	done := make(chan struct{})
	watching.Go(func() {
		for {
			titles, err := g.Titles(t.Context())
			if err != nil {
				t.Errorf("list the deploy keys: %v", err)
				return
			}
			if counts = append(counts, len(titles)); len(counts) > 1 && counts[len(counts)-2] == len(titles) {
				counts = counts[:len(counts)-1]
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	deployKeyUnderUse(t, forgetest.Repository, g.User, g.SSH, g.HostKey, example(t, "deploy-key/shop.yaml",
		"https://git.example.com/api/v1", g.API, "/run/secrets/forge-token", g.TokenFile,
		`address: "git.example.com:22"`, fmt.Sprintf("address: %q", g.SSH), exampleHostKey(t), g.HostKey))
	close(done)
	watching.Wait()
	titles, err := g.Titles(t.Context())
	if want := []int{0, 1, 2, 1}; err != nil || !slices.Equal(counts, want) || !slices.Equal(titles, []string{"keyturn ci/shop-deploy v2"}) {
		t.Errorf("numbers of deploy keys %v, want %v; the last are %q, %v", counts, want, titles, err)
	}
}
