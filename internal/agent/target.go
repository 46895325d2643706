package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/internal/agent/place"
	"github.com/keyturn/keyturn/internal/agent/render"
	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// target is a Target at work. Its fields but cfg, tmpl and keys are guarded by
// worker.mu.
type target struct {
	cfg  Target
	tmpl *render.Template
	keys []key.Name
	// unsettled: the file may hold content that its application has not been
	// told of, or that has not proven healthy.
	unsettled bool
	// told: the application was told of the content in the file.
	told bool
	// changedAt is when the application was last switched.
	changedAt time.Time
	// changed has room for one token: the sampler begins anew.
	changed chan struct{}
}

// newTargets parses the templates and sorts by order.
func newTargets(cfgs []Target) ([]*target, error) {
	if len(cfgs) == 0 {
		return nil, fmt.Errorf("%w: it has no target", ErrConfig)
	}
	targets := make([]*target, 0, len(cfgs))
	var all []key.Name
	for _, c := range cfgs {
		tmpl, err := render.Parse(c.Template, c.Keys)
		if err != nil {
			return nil, fmt.Errorf("%w: target %s: %w", ErrConfig, c.Name, err)
		}
		if c.Health != nil {
			h := *c.Health
			h.Env = append(slices.Clip(h.Env), c.env()...)
			c.Health = &h
		}
		t := &target{cfg: c, tmpl: tmpl, keys: tmpl.Keys(), changed: make(chan struct{}, 1)}
		targets = append(targets, t)
		all = append(all, t.keys...)
	}
	slices.Sort(all)
	if n := len(slices.Compact(all)); n > client.MaxKeys {
		return nil, fmt.Errorf("%w: the targets name %d keys, one agent can watch %d; split them between agents", ErrConfig, n, client.MaxKeys)
	}
	slices.SortStableFunc(targets, func(a, b *target) int { return cmp.Compare(a.cfg.Order, b.cfg.Order) })
	return targets, nil
}

// env tells commands what they are run for.
func (t Target) env() []string {
	return []string{"KEYTURN_TARGET=" + t.Name, "KEYTURN_PATH=" + t.Path}
}

func (t *target) place() place.Spec {
	return place.Spec{Path: t.cfg.Path, Mode: t.cfg.Mode, UID: t.cfg.UID, GID: t.cfg.GID}
}

// reloadID is equal for targets whose applications are told by the same act.
func (t *target) reloadID() string {
	switch {
	case t.cfg.Reload.Signal != nil:
		return fmt.Sprintf("signal %+v", *t.cfg.Reload.Signal)
	case len(t.cfg.Reload.Command) > 0:
		return "command " + strings.Join(t.cfg.Reload.Command, "\x00")
	}
	return ""
}

// healthID is equal for targets whose health is found out by the same check.
func (t *target) healthID() string {
	if t.cfg.Health == nil {
		return ""
	}
	return strings.Join(t.cfg.Health.Command, "\x00") + "\x00" + t.cfg.Health.HTTP + "\x00" + t.cfg.Health.TCP
}

// execute renders the target from assignments.
func (t *target) execute(from map[key.Name]client.Assignment) (secret.Value, error) {
	in := make(map[key.Name]render.Material, len(t.keys))
	for _, k := range t.keys {
		a, ok := from[k]
		if !ok {
			return secret.Value{}, fmt.Errorf("target %s: %w: %s", t.cfg.Name, errNotDelivered, k)
		}
		in[k] = render.Material{Version: a.Version, Attributes: a.Attributes, Secrets: a.Secrets}
	}
	v, err := t.tmpl.Execute(in)
	if err != nil {
		return secret.Value{}, fmt.Errorf("target %s: %w", t.cfg.Name, err)
	}
	return v, nil
}

// errNotDelivered: a target waits for a key that the server has not sent.
var errNotDelivered = errors.New("the key has not been delivered yet")

// component is a set of keys that must change together, because targets share
// them, and those targets in their order.
type component struct {
	keys    []key.Name
	targets []*target
}

// components splits changing keys into sets that share no target.
func components(targets []*target, changing map[key.Name]bool) []component {
	var out []component
	done := make(map[key.Name]bool)
	for _, first := range sortedKeys(changing) {
		if done[first] {
			continue
		}
		members, reached := map[key.Name]bool{first: true}, make(map[*target]bool)
		for grew := true; grew; {
			grew = false
			for _, t := range targets {
				if reached[t] || !slices.ContainsFunc(t.keys, func(k key.Name) bool { return members[k] }) {
					continue
				}
				reached[t], grew = true, true
				for _, k := range t.keys {
					if changing[k] {
						members[k] = true
					}
				}
			}
		}
		c := component{keys: sortedKeys(members)}
		for _, t := range targets {
			if reached[t] {
				c.targets = append(c.targets, t)
			}
		}
		for k := range members {
			done[k] = true
		}
		out = append(out, c)
	}
	return out
}

func sortedKeys(set map[key.Name]bool) []key.Name {
	out := make([]key.Name, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// redactor knows the secrets of the given assignments.
func redactor(sets ...map[key.Name]client.Assignment) run.Redactor {
	var values []secret.Value
	for _, set := range sets {
		for _, a := range set {
			for _, v := range a.Secrets {
				values = append(values, v)
			}
		}
	}
	return run.NewRedactor(values...)
}
