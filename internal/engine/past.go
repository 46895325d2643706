package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindUses is the kind of the documents of recorded uses, by "KEY@DAY".
const kindUses = "use-record"

const (
	// maxRecorded bounds the uses recorded of a key in one day.
	maxRecorded = 256
	// usesKept is how long uses are recorded.
	usesKept = 30 * 24 * time.Hour
)

// recordUses adds to the record of a key, day by day. Where a day is full, what is
// there already is counted on.
func (c *change) recordUses(name key.Name, uses []anomaly.Use) error {
	for len(uses) > 0 {
		day := uses[0].At.Truncate(24 * time.Hour)
		n := slices.IndexFunc(uses, func(u anomaly.Use) bool { return !u.At.Truncate(24 * time.Hour).Equal(day) })
		if n < 0 {
			n = len(uses)
		}
		id := string(name) + "@" + day.Format(time.DateOnly)
		doc, err := c.tx.Docs.Get(c.ctx, kindUses, id)
		if errors.Is(err, store.ErrNotFound) {
			doc, err = store.Doc{Kind: kindUses, Name: id}, nil
		}
		if err != nil {
			return err
		}
		var list []anomaly.Use
		if doc.Rev != 0 {
			if err := decodeInto(doc.Body, &list); err != nil {
				return err
			}
		}
		for i := range uses[:n] {
			list = record(list, uses[i])
		}
		if doc.Body, err = encode(list); err != nil {
			return err
		}
		doc.Due = day.Add(24*time.Hour + usesKept)
		if _, err := c.tx.Docs.Put(c.ctx, doc); err != nil {
			return err
		}
		uses = uses[n:]
	}
	return nil
}

func record(list []anomaly.Use, one anomaly.Use) []anomaly.Use {
	for i := len(list) - 1; i >= 0; i-- {
		same := one
		same.At, same.Count = list[i].At, list[i].Count
		if same == list[i] && (one.At.Sub(list[i].At) < recordSpan || len(list) >= maxRecorded) {
			list[i].Count += one.Count
			return list
		}
	}
	if len(list) < maxRecorded {
		list = append(list, one)
	}
	return list
}

// maxPast bounds the keys of which one dry run reads the past.
const maxPast = 2000

// tryRules adds what rules would have found in the recorded past to the problems of
// a dry run, as warnings.
func (c *change) tryRules(request ApplyRequest, resources []policy.Resource, result *ApplyResult) error {
	rules, err := c.triedRules(request, resources, result)
	if err != nil {
		return err
	}
	if len(rules) == 0 {
		return nil
	}
	found := map[string][]string{}
	counts := map[string]int{}
	keys, oldest := 0, c.now
	err = eachKeyDoc(c.ctx, c.tx, func(doc store.Doc) error {
		if !request.allows(key.Name(doc.Name)) {
			return nil
		}
		if keys++; keys > maxPast {
			return errEnough
		}
		_, k, err := c.e.decodeKey(doc)
		if err != nil {
			return err
		}
		uses, err := c.past(k.Metadata.Name)
		if err != nil {
			return err
		}
		if len(uses) > 0 && uses[0].At.Before(oldest) {
			oldest = uses[0].At
		}
		_, verdicts := anomaly.Fold(anomaly.Memory{}, rules, k.Info(), uses)
		for _, v := range verdicts {
			if v.Use.At.Before(request.PastSince) {
				continue
			}
			if counts[v.Rule]++; counts[v.Rule] <= maxExamples {
				found[v.Rule] = append(found[v.Rule], fmt.Sprintf("%s, key %s: %s", v.Use.At.Format(time.RFC3339), doc.Name, v))
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	for _, rule := range rules {
		name := rule.Name()
		over := fmt.Sprintf("over the recorded past (%d days at most)", int(usesKept.Hours()/24))
		if request.PastSince.After(c.now.Add(-usesKept)) {
			over = "since " + request.PastSince.UTC().Format(time.RFC3339)
		}
		anomalies := fmt.Sprintf("%d anomalies", counts[name])
		if counts[name] == 1 {
			anomalies = "1 anomaly"
		}
		message := fmt.Sprintf("rule %s would have found %s %s", name, anomalies, over)
		if spec := rule.Spec(); counts[name] == 0 && asksForNews(&spec) && oldest.Add(spec.Learn.Std()).After(c.now) {
			message += fmt.Sprintf("; it learns for %s, and no use is recorded from before %s", spec.Learn, oldest.UTC().Format(time.RFC3339))
		}
		if keys > maxPast {
			message += fmt.Sprintf(" at the first %d keys", maxPast)
		}
		result.Problems = append(result.Problems, past(name, message))
		for _, one := range found[name] {
			result.Problems = append(result.Problems, past(name, one))
		}
	}
	return err
}

// asksForNews reports whether a rule can depend on what it has learnt.
func asksForNews(spec *policy.RuleSpec) bool { return strings.Contains(spec.When, "use.new") }

// triedRules are those of the documents; without a document and with PastSince those
// that are in force.
func (c *change) triedRules(request ApplyRequest, resources []policy.Resource, result *ApplyResult) ([]*policy.CompiledRule, error) {
	if len(request.Documents) == 0 && !request.PastSince.IsZero() {
		return c.rules()
	}
	var rules []*policy.CompiledRule
	for i := range resources {
		if resources[i].Rule == nil || result.Problems.Err() != nil {
			continue
		}
		rule, err := policy.CompileRule(*resources[i].Rule)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// maxExamples bounds the anomalies of each rule that a dry run tells of.
const maxExamples = 20

func past(rule, message string) policy.Problem {
	return policy.Problem{Resource: policy.KindRule.String() + " " + rule, Severity: policy.Warning, Code: "rule-past", Message: message}
}

// past reads the recorded uses of a key.
func (c *change) past(name key.Name) ([]anomaly.Use, error) {
	docs, err := c.tx.Index.List(c.ctx, kindUses, string(name)+"@", "", int(usesKept.Hours()/24)+2)
	if err != nil {
		return nil, err
	}
	var uses []anomaly.Use
	for _, doc := range docs {
		var list []anomaly.Use
		if err := decodeInto(doc.Body, &list); err != nil {
			return nil, err
		}
		uses = append(uses, list...)
	}
	anomaly.Sort(uses)
	return uses, nil
}
