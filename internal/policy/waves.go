package policy

import "fmt"

// MaxRegions is how many regions a stage may order.
const MaxRegions = 16

// wave is one step of the cut-over: a stage, or the part of it in one region.
type wave struct {
	// stage is as in the policy, under the name of the wave.
	stage Stage
	// of is the index of the policy's stage.
	of int
	// region is whose parties belong to it, all those of no other wave when empty.
	region string
}

// waves returns the steps of the cut-over in their order. A stage that orders
// regions has a wave for each of them, "STAGE/REGION", and one for parties of all
// other regions, which is skipped when there are none.
func (s *Spec) waves() []wave {
	var list []wave
	for i, stage := range s.Stages {
		regions := stage.Regions
		stage.Regions = nil
		for _, region := range regions {
			part := stage
			part.Name += "/" + region
			list = append(list, wave{stage: part, of: i, region: region})
		}
		if len(regions) > 0 {
			stage.OnEmpty = EmptySkip
		}
		list = append(list, wave{stage: stage, of: i})
	}
	return list
}

// takes reports whether a party of the wave's stage belongs to the wave, having
// belonged to none before.
func (w wave) takes(p Party) bool { return w.region == "" || w.region == p.Region }

// Stages returns the steps of a cut-over: the policy's stages, those that order
// regions taken apart into one for each region. The caller must not change them.
func (c *Compiled) Stages() []Stage {
	stages := make([]Stage, len(c.waves))
	for i, w := range c.waves {
		stages[i] = w.stage
	}
	return stages
}

// checkRegions reports what is wrong with the order of regions of one stage.
func (s *Stage) checkRegions(r reporter) {
	checkCount(r, "regions", len(s.Regions), MaxRegions)
	seen := map[string]int{}
	for i, region := range s.Regions {
		at := indexPath("regions", i)
		checkText(r, at, region, 253)
		if region == "" {
			r.err(at, "invalid-name", "the region has no name", "write the region as parties call it, for example eu; parties without a region come last in any case")
		}
		if first, twice := seen[region]; twice {
			r.err(at, "duplicate-name", fmt.Sprintf("region %s is there already as regions[%d]", quote(region), first), "name each region once")
			continue
		}
		seen[region] = i
	}
}
