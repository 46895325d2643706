package engine

import (
	"cmp"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/provider"
)

// maxLate bounds the regions that are listed one by one.
const maxLate = 20

// LateRegion is a region that a rotation waits for.
type LateRegion struct {
	// Region is its name, empty for the default one.
	Region string
	// Verifiers and Presenters are how many of them are waited for.
	Verifiers, Presenters int
	// Trouble is the last error of one of them.
	Trouble string
	// Since is when the rotation began to wait for them.
	Since time.Time
}

// LateRegions returns the regions that an open rotation waits for, those it waits
// for longest first, at most 20. Those that take their time are not among them.
func LateRegions(state *rotation.State, r *rotation.Rotation) []LateRegion {
	var list []LateRegion
	for _, p := range state.Regions(r) {
		if p.Late() && !p.Since.IsZero() {
			list = append(list, LateRegion{
				Region: p.Region, Verifiers: len(p.LateVerifiers), Presenters: len(p.LatePresenters), Trouble: p.Trouble, Since: p.Since,
			})
		}
	}
	slices.SortStableFunc(list, func(a, b LateRegion) int { return a.Since.Compare(b.Since) })
	return list[:min(len(list), maxLate)]
}

// namesOf returns the names of regions that have one.
func namesOf(late []LateRegion) []string {
	var names []string
	for _, region := range late {
		if region.Region != "" {
			names = append(names, region.Region)
		}
	}
	return names
}

// RegionView is how far a rotation is in one region.
type RegionView struct {
	rotation.RegionProgress

	// Uses is how many uses of the old version were last measured there, at least:
	// only the largest are listed by endpoint.
	Uses int
}

// regionsOf says how far an open rotation is in each region.
func regionsOf(state *rotation.State, r *rotation.Rotation, holders []provider.Holder) []RegionView {
	var list []RegionView
	for _, p := range state.Regions(r) {
		list = append(list, RegionView{RegionProgress: p})
	}
	for _, h := range holders {
		region := state.RegionOf(h.Endpoint)
		if i, ok := slices.BinarySearchFunc(list, region, func(v RegionView, name string) int { return cmp.Compare(v.Region, name) }); ok {
			list[i].Uses += h.Sessions
		}
	}
	return list
}
