package gateway

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var name = regexp.MustCompile(`keyturn_gateway_[a-z_]+`)

// TestMetricsAreDocumented: the page has each metric and no other, and the alerts use
// none that does not exist.
func TestMetricsAreDocumented(t *testing.T) {
	descs := make(chan *prometheus.Desc, 100)
	(&state{}).Describe(descs)
	close(descs)
	want := []string{"keyturn_gateway_decisions_total"} // that of package forward
	for desc := range descs {
		want = append(want, name.FindString(desc.String()))
	}
	page, err := os.ReadFile("../../docs/reference/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `keyturn_gateway_") {
			documented = append(documented, name.FindString(line))
		}
	}
	slices.Sort(want)
	slices.Sort(documented)
	if !slices.Equal(want, documented) {
		t.Errorf("the page has\n%s\nand there are\n%s", strings.Join(documented, "\n"), strings.Join(want, "\n"))
	}
	rules, err := os.ReadFile("../../deploy/prometheus/keyturn-gateway.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	used := name.FindAllString(string(rules), -1)
	if len(used) < 6 {
		t.Errorf("the rules use %v", used)
	}
	for _, one := range used {
		if !slices.Contains(want, one) {
			t.Errorf("the rules use %s, which does not exist", one)
		}
	}
}
