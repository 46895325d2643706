package engine

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindFindings is the kind of the documents of what a rule found, by its name.
const kindFindings = "anomaly-findings"

// findingsKept is how long it is known after the last finding what a rule found.
const findingsKept = 90 * 24 * time.Hour

// RuleView is a rule that is in force, and what it found.
type RuleView struct {
	Name string
	Spec policy.RuleSpec
	// Results counts what became of its findings, as Finding says, since Since; both
	// are zero when it found nothing within 90 days.
	Results map[string]uint64
	Since   time.Time
	// Last is its last finding; nil without one.
	Last *LastFinding
}

// LastFinding is the last finding of a rule.
type LastFinding struct {
	At      time.Time   `json:"at"`
	Key     key.Name    `json:"key"`
	Version key.Version `json:"version"`
	Result  string      `json:"result"`
	Message string      `json:"message"`
}

// findings is what is stored of a rule.
type findings struct {
	Since   time.Time         `json:"since"`
	Results map[string]uint64 `json:"results"`
	Last    LastFinding       `json:"last"`
}

func (c *change) findings(rule string) (store.Doc, findings, error) {
	doc, err := c.tx.Docs.Get(c.ctx, kindFindings, rule)
	if errors.Is(err, store.ErrNotFound) {
		return store.Doc{Kind: kindFindings, Name: rule}, findings{Since: c.now, Results: map[string]uint64{}}, nil
	}
	var found findings
	if err == nil {
		err = decodeInto(doc.Body, &found)
	}
	if found.Results == nil {
		found.Results = map[string]uint64{}
	}
	return doc, found, err
}

// countFinding counts what a rule found.
func (c *change) countFinding(v *anomaly.Verdict, last LastFinding) error {
	doc, found, err := c.findings(v.Rule)
	if err != nil {
		return err
	}
	found.Results[last.Result]++
	found.Last = last
	if doc.Body, err = encode(found); err != nil {
		return err
	}
	doc.Due = c.now.Add(findingsKept)
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return err
}

// Rules returns the rules that are in force, by name, and what they found.
func (e *Engine) Rules(ctx context.Context) (list []RuleView, err error) {
	err = e.store.View(ctx, func(tx store.Tx) error {
		list = nil
		c := &change{e: e, ctx: ctx, tx: tx, now: e.now()}
		rules, err := c.rules()
		if err != nil {
			return err
		}
		for _, rule := range rules {
			view := RuleView{Name: rule.Name(), Spec: rule.Spec()}
			_, found, err := c.findings(view.Name)
			if err != nil {
				return err
			}
			if len(found.Results) > 0 {
				view.Results, view.Since, view.Last = maps.Clone(found.Results), found.Since, &found.Last
			}
			list = append(list, view)
		}
		return nil
	})
	return list, err
}
