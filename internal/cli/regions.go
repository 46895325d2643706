package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
)

// printRegions prints how far the rotation is in each region, where there is
// more than the default one.
func (a *app) printRegions(w io.Writer, r *keyturnv1.Rotation) {
	var rows [][]string
	named := false
	for _, p := range r.GetRegions() {
		named = named || p.GetRegion() != ""
		rows = append(rows, []string{
			cmp.Or(p.GetRegion(), "(none)"),
			fmt.Sprintf("%d of %d", p.GetAccepting(), p.GetVerifiers()), fmt.Sprintf("%d of %d", p.GetUsing(), p.GetPresenters()),
			oldUses(r, p), fmt.Sprintf("%d of %d", p.GetRefusing(), p.GetVerifiers()), a.lateness(p),
		})
	}
	if !named {
		return
	}
	fmt.Fprintln(w, "\nregions")
	table(w, "  ", "REGION|ACCEPTED|PRESENTING|OLD USES|REFUSED|WAITS FOR", rows)
}

// oldUses is the measured use of the old version, as far as it was measured.
func oldUses(r *keyturnv1.Rotation, p *keyturnv1.RegionProgress) string {
	if r.GetMeasuredAt() == nil {
		return "-"
	}
	return fmt.Sprint(p.GetOldUses())
}

// lateness says whom the rotation waits for in a region, and since when.
func (a *app) lateness(p *keyturnv1.RegionProgress) string {
	var whom []string
	if n := p.GetLateVerifiers(); n > 0 {
		whom = append(whom, plural(int(n), "verifier"))
	}
	if n := p.GetLatePresenters(); n > 0 {
		whom = append(whom, plural(int(n), "presenter"))
	}
	if len(whom) == 0 {
		return "-"
	}
	return strings.Join(whom, ", ") + " since " + a.since(p.GetLateSince())
}
