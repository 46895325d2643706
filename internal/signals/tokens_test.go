package signals

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/key"
)

// TestFetchesAreBounded: a key has one series, that of its newest version; keys beyond
// the bound share one.
func TestFetchesAreBounded(t *testing.T) {
	s := &Signals{metrics: newMetrics(3)}
	for v := range key.Version(50) {
		for range 2 {
			s.SetFetched("a", v+1)
		}
	}
	s.SetFetched("a", 1) // of a node that is behind
	for i := range 20 {
		s.SetFetched(key.Name(fmt.Sprint("k", i)), 1)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.metrics.fetches)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%v, %v", families, err)
	}
	got := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()+" "+m.GetLabel()[1].GetValue()] = m.GetCounter().GetValue()
	}
	if len(got) != 4 || got["a 50"] != 2 || got["other other"] != 19 {
		t.Errorf("%v", got)
	}
}
