package gateway

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyturn/keyturn/internal/gateway/relay"
)

const (
	maxScrapes    = 16
	scrapeTimeout = 10 * time.Second
)

// metrics are what the gateway tells of itself.
type metrics struct{ registry *prometheus.Registry }

func newMetrics(g *Gateway) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), (*state)(g))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout, EnableOpenMetrics: true})
}

// state collects what is read off when it is asked for. What is not known is absent.
type state Gateway

// reading is one metric of deliveries, and where it is read.
type reading struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(*relay.Stats) float64
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("keyturn_gateway_"+name, help, labels, nil)
}

var (
	versionsKnown = describe("apikey_versions", "Versions of API keys in the snapshot, absent before there is one.")
	snapshotAge   = describe("apikey_age_seconds", "Age of what is known of API keys, absent before there is a snapshot.")
	maxAge        = describe("apikey_max_age_seconds", "Age of what is known of API keys at which none is let in any more.")
	cacheFails    = describe("apikey_cache_failing", "Whether the snapshot cannot be kept on disk, so that no change is confirmed to the centre: 1 or 0.")
	lastWord      = describe("centre_age_seconds", "Time since the centre last answered, absent before it did.")
	streams       = describe("streams", "Open streams and polls, by who answers them: centre, or the gateway by itself.", "by")
)

// readings are those of deliveries.
func readings() []reading {
	gauge := func(name, help string, read func(*relay.Stats) float64) reading {
		return reading{describe(name, help), prometheus.GaugeValue, read}
	}
	return []reading{
		gauge("centre_up", "Whether the centre answers: 1 or 0.", func(s *relay.Stats) float64 { return truth(s.Up) }),
		gauge("refused", "Whether the centre refuses the gateway's own token, so that nothing is handed out: 1 or 0.", func(s *relay.Stats) float64 { return truth(s.Refused) }),
		{
			describe("handouts_total", "Versions that the gateway handed out by itself."), prometheus.CounterValue,
			func(s *relay.Stats) float64 { return float64(s.HandedOut) },
		},
		gauge("handouts_untold", "Hand-outs that the centre has not entered into its audit log yet.", func(s *relay.Stats) float64 { return float64(s.Untold) }),
		gauge("handouts_full", "Whether there is no room for more hand-outs, so that nothing is handed out: 1 or 0.", func(s *relay.Stats) float64 { return truth(s.Full) }),
		gauge("grants", "Pairs of token and key that may be served without the centre.", func(s *relay.Stats) float64 { return float64(s.Grants) }),
		gauge("keys", "Keys of which a version is kept.", func(s *relay.Stats) float64 { return float64(s.Keys) }),
		gauge("keys_relayed_only", "Keys that clients asked for and that are not kept: the gateway's token does not cover them, or there are too many.", func(s *relay.Stats) float64 { return float64(s.OnlyRelayed) }),
		gauge("acknowledgements_held", "Acknowledgements that wait for clients which were handed out another version and were not heard of by the centre since.", func(s *relay.Stats) float64 { return float64(s.Held) }),
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (s *state) Describe(to chan<- *prometheus.Desc) {
	for _, one := range []*prometheus.Desc{versionsKnown, snapshotAge, maxAge, cacheFails, lastWord, streams} {
		to <- one
	}
	for _, one := range readings() {
		to <- one.desc
	}
}

// Collect implements prometheus.Collector.
func (s *state) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	if s.apiKeys.late != nil {
		if checker := s.apiKeys.value.Load(); checker != nil {
			gauge(versionsKnown, float64(checker.Len()))
			gauge(snapshotAge, checker.Age().Seconds())
			gauge(maxAge, s.config.APIKeys.MaxAge.Seconds())
			gauge(cacheFails, truth(checker.CacheError() != nil))
		}
	}
	if s.relay == nil {
		return
	}
	stats := s.relay.Stats()
	gauge(streams, float64(stats.Relayed), "centre")
	gauge(streams, float64(stats.Own), "gateway")
	if !stats.LastWord.IsZero() {
		gauge(lastWord, s.monotonic().Sub(stats.LastWord).Seconds())
	}
	for _, one := range readings() {
		to <- prometheus.MustNewConstMetric(one.desc, one.kind, one.read(&stats))
	}
}
