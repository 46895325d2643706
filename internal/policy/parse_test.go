package policy_test

import (
	"testing"

	"github.com/keyturn/keyturn/internal/policy"
)

func TestX(t *testing.T) {
	rs, err := policy.Parse("a.yaml", []byte(design))
	if err != nil {
		t.Fatal(err)
	}
	out, err := policy.Marshal(rs...)
	t.Logf("%s %v", out, err)
	_, err = policy.Parse("b.yaml", []byte("apiVersion: keyturn/v1\nkind: Polici\nmetadata: {nam: x, name: X}\nspec:\n  stage: []\n  quarantine: 5\n"))
	t.Log(err)
	_, err = policy.Parse("b.yaml", []byte("apiVersion: keyturn/v1\nkind: Policy\nmetadata: {nam: x, name: X}\nspec:\n  stage: []\n  quarantine: 5\n  judge: [{name: a, signl: 1}]\n  onFailure: roll\n---\na: [\n---\nb: 1"))
	t.Log(err)
}

const design = `apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  rotate: {every: 30d, jitter: 2h, windows: [{cron: "0 2 * * 1-5", duration: 3h, timezone: Europe/Berlin}]}
  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"', bake: 2m}
    - {name: rest, bake: 1m}
  judge: [{name: auth-failures, signal: auth_failures, max: 0}]
  drain: {min: 10m, quiet: 5m, max: 7d, onMax: hold}
  quarantine: 24h
  retain: {destroyAfter: 30d}
  approvals: {required: 1, when: 'key.labels.tier == "0"'}
  emergency: {strategy: replace-first, grace: 60s}
---
apiVersion: keyturn/v1
kind: Key
metadata: {name: prod/orders/db, owner: team-orders, labels: {tier: "1"}}
spec:
  provider: postgres
  policy: database
  config: {admin: "postgres://rotator@127.0.0.1:5432/orders", strategy: alternating-users, users: [orders_a, orders_b]}
`
