package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/internal/anomaly"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
)

// kindActs is the kind of the documents of which emergencies rules declared: of one
// rule ("rule/NAME"), of one key ("key/NAME"), and of all ("all").
const kindActs = "anomaly-acts"

const (
	// DefaultActsOfKey is how many emergencies rules declare for one key within an hour,
	// where Config says nothing else.
	DefaultActsOfKey = 2
	// DefaultActs is how many they declare for all keys together. A rule has a bound of
	// its own.
	DefaultActs = 10
	// settling is for how long no rule replaces a version that an emergency of a rule
	// brought in: a rule that finds in the new version what it found in the old one
	// would replace it for ever.
	settling = 24 * time.Hour
)

// act is an emergency that a rule declared.
type act struct {
	Rule     string         `json:"rule"`
	Rotation key.RotationID `json:"rotation"`
	At       time.Time      `json:"at"`
}

// limit bounds acts of one kind.
type limit struct {
	doc  store.Doc
	acts []act
	most int
	// kept is how long acts are remembered, what what they are counted of.
	kept time.Duration
	what string
}

// limits are those of one rule and key.
type limits struct{ rule, key, all limit }

// limits reads how often rules acted.
func (c *change) limits(name key.Name, v *anomaly.Verdict) (*limits, error) {
	l := &limits{
		rule: limit{doc: store.Doc{Name: "rule/" + v.Rule}, most: v.Spec.MaxPerHour, kept: time.Hour, what: "the rule"},
		key:  limit{doc: store.Doc{Name: "key/" + string(name)}, most: c.e.config.ActsOfKey, kept: settling, what: "rules of this key"},
		all:  limit{doc: store.Doc{Name: "all"}, most: c.e.config.Acts, kept: time.Hour, what: "all rules together"},
	}
	for _, one := range l.each() {
		doc, err := c.tx.Docs.Get(c.ctx, kindActs, one.doc.Name)
		switch {
		case errors.Is(err, store.ErrNotFound):
			one.doc.Kind = kindActs
		case err != nil:
			return nil, err
		default:
			one.doc = doc
			if err := decodeInto(doc.Body, &one.acts); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

func (l *limits) each() []*limit { return []*limit{&l.rule, &l.key, &l.all} }

// broughtIn reports which rule's emergency brought a version in, while that settles.
func (l *limits) broughtIn(minted key.RotationID, now time.Time) (rule string, is bool) {
	for _, a := range l.key.acts {
		if a.Rotation == minted && now.Sub(a.At) < settling {
			return a.Rule, true
		}
	}
	return "", false
}

// reached says which limit is reached; empty if none is.
func (l *limits) reached(now time.Time) string {
	for _, one := range l.each() {
		n := 0
		for _, a := range one.acts {
			if now.Sub(a.At) < time.Hour {
				n++
			}
		}
		if n >= one.most {
			return fmt.Sprintf("%s declared %d emergencies within an hour, as many as may be", one.what, n)
		}
	}
	return ""
}

// acted notes an emergency.
func (c *change) acted(l *limits, a act) error {
	for _, one := range l.each() {
		one.acts = slices.DeleteFunc(one.acts, func(a act) bool { return c.now.Sub(a.At) >= one.kept })
		var err error
		if one.doc.Body, err = encode(append(one.acts, a)); err != nil {
			return err
		}
		one.doc.Due = c.now.Add(one.kept)
		if _, err := c.tx.Docs.Put(c.ctx, one.doc); err != nil {
			return err
		}
	}
	return nil
}
