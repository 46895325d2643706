package signals

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/key"
)

// gauges shows the last sweep. Ages are computed at every scrape.
type gauges struct {
	view    *atomic.Pointer[view]
	now     func() time.Time
	maxKeys int
}

var (
	descSwept      = gaugeDesc("sweep_timestamp_seconds", "When the gauges were last read from the engine, in seconds since 1970.")
	descKeyAge     = gaugeDesc("key_age_seconds", "Time since the current version of a key was minted, for the first keys by name, 10,000 unless configured otherwise.", "key")
	descKeyAges    = gaugeDesc("keys_age_seconds", "Time since the current version was minted, over all keys as of now, to the hour.")
	descUnkeyed    = gaugeDesc("keys_without_version", "Keys that have no current version.")
	descOpen       = gaugeDesc("open_rotations", "Rotations that have not ended, by phase.", "phase")
	descOldest     = gaugeDesc("open_rotation_phase_age_seconds", "How long the oldest open rotation has been in its phase, by phase; 0 when there is none.", "phase")
	descHeld       = gaugeDesc("held_rotations", "Rotations on hold, by reason and whether only a human can end the hold.", "reason", "human")
	descPresenters = gaugeDesc("presenters", "Presenters over all keys by region and state: acknowledged (uses what it was told), behind, failed.", "region", "state")
	descUses       = gaugeDesc("retiring_version_uses", "Measured uses of old versions that are not revoked yet, by key and whether the grace is over (M3).", "key", "grace")
	descRetiring   = gaugeDesc("retiring_version_presenters", "Presenters that may still use an old version that is not revoked yet, by whether its grace is over (M3).", "grace")
	descRegionLag  = gaugeDesc("region_lag_seconds", "How long a rotation has waited for a verifier or presenter of the region, the longest of all rotations; 0 when none waits. By region, for the first 50 by name.", "region")
	descRegionLate = gaugeDesc("region_late", "Verifiers and presenters that rotations wait for, by region, for the first 50 by name.", "region", "role")
	descSilent     = gaugeDesc("targets_silent", "Hosts that do not answer this server node; what concerns them waits.")
	descSilence    = gaugeDesc("target_silence_seconds", "For how long a host has not answered, for the first 100 by name.", "target")
	descFull       = gaugeDesc("store_full_seconds", "For how long the store has taken no writes from this server node, because its disk or quota is full; 0 while it takes them.")
	descStanding   = gaugeDesc("keys_standing", "Keys that stand still after a restore of the server's database, until what verifiers accept is reconciled.")
	descLeaks      = gaugeDesc("secrets_exposed", "Versions that may be accepted somewhere and whose secret was found where it should not be (M9), up to 100.")
	descPartners   = gaugeDesc("partners_late", "Partners that show an old API key: late (it is let in, and the stated time is over) or refused; and those whose key ends soon (expiring); up to 100 in all.", "state")
	descUnrefused  = gaugeDesc("compromised_versions_accepted", "Compromised versions that some verifier may still accept.")
)

func gaugeDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("keyturn_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (*gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		descSwept, descKeyAge, descKeyAges, descUnkeyed, descOpen, descOldest, descHeld, descPresenters, descUses, descRetiring, descRegionLag, descRegionLate, descUnrefused, descStanding,
		descSilent, descSilence, descFull, descLeaks, descPartners,
	} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector. Before the first sweep there is
// nothing: no data is not zero.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	v := g.view.Load()
	if v == nil {
		return
	}
	now := g.now()
	put := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	put(descSwept, float64(v.began.UnixMilli())/1000)
	put(descUnkeyed, float64(v.unkeyed))
	put(descUnrefused, float64(v.unrefused))
	put(descStanding, float64(v.standing))
	put(descLeaks, float64(v.leaks))
	put(descPartners, float64(v.partners.late), "late")
	put(descPartners, float64(v.partners.refused), "refused")
	put(descPartners, float64(v.partners.expiring), "expiring")
	g.ages(v, now, ch, put)
	for _, phase := range rotation.Phases() {
		if phase.Ended() {
			continue
		}
		age := 0.0
		if oldest, known := v.oldest[phase]; known {
			age = max(0, now.Sub(oldest).Seconds())
		}
		put(descOpen, float64(v.phases[phase]), phase.String())
		put(descOldest, age, phase.String())
	}
	for _, reason := range HoldReasons() {
		for _, human := range []bool{false, true} {
			put(descHeld, float64(v.held[heldBy{reason: reason, human: human}]), string(reason), boolLabel(human))
		}
	}
	g.parties(v, put)
	v.regions.show(now, put)
	g.targets(v, now, put)
	for _, grace := range []string{"within", "over"} {
		put(descRetiring, float64(v.retiring[grace]), grace)
	}
	g.uses(v, put)
}

type put func(desc *prometheus.Desc, value float64, labels ...string)

// ages shows the age of the first keys each, and the distribution over all.
func (g *gauges) ages(v *view, now time.Time, ch chan<- prometheus.Metric, put put) {
	buckets := map[float64]uint64{}
	for _, days := range []float64{1, 7, 30, 60, 90, 180, 365, 730} {
		buckets[days*24*3600] = 0
	}
	sum, count := 0.0, 0
	for hour, n := range v.hours {
		// The middle of the hour stands for all of it.
		age := max(0, now.Sub(time.Unix(hour*3600+1800, 0)).Seconds())
		sum += float64(n) * age
		count += n
		for bound := range buckets {
			if age <= bound {
				buckets[bound] += uint64(n)
			}
		}
	}
	for _, m := range v.minted {
		put(descKeyAge, max(0, now.Sub(m.at).Seconds()), string(m.key))
	}
	ch <- prometheus.MustNewConstHistogram(descKeyAges, uint64(count), sum, buckets)
}

func (g *gauges) parties(v *view, put put) {
	regions := newBound(maxRegions)
	sums := map[presenterGroup]int{}
	inOrder := slices.SortedFunc(maps.Keys(v.presenters), func(a, b presenterGroup) int { return cmp.Compare(a.region, b.region) })
	for _, group := range inOrder {
		region := regions.of(orNone(group.region))
		for _, state := range []string{"acknowledged", "behind", "failed"} {
			sums[presenterGroup{region: region, state: state}] += 0
		}
		sums[presenterGroup{region: region, state: group.state}] += v.presenters[group]
	}
	for group, n := range sums {
		put(descPresenters, float64(n), group.region, group.state)
	}
}

func (g *gauges) uses(v *view, put put) {
	sums := map[oldUse]int{}
	keys := newBound(g.maxKeys)
	for _, use := range v.uses {
		sums[oldUse{key: key.Name(keys.of(string(use.key))), grace: use.grace}] += use.uses
	}
	for use, n := range sums {
		put(descUses, float64(n), string(use.key), use.grace)
	}
}
