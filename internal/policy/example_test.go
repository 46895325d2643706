package policy_test

import (
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/policy"
)

func Example() {
	resources, err := policy.Parse("policy.yaml", []byte(`
apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  rotate: {every: 30d, jitter: 0s, windows: [{cron: "0 2 * * 1-5", duration: 3h}]}
  stages:
    - {name: canary, match: 'party.labels.cohort == "canary"'}
    - {name: rest}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := policy.Lint(resources, policy.LintOptions{}).Err(); err != nil {
		fmt.Println(err)
		return
	}
	compiled, err := policy.Compile(*resources[0].Policy)
	if err != nil {
		fmt.Println(err)
		return
	}
	created := time.Date(2026, 10, 24, 2, 0, 0, 0, time.UTC)
	decision := compiled.Due(created.AddDate(0, 0, 29), policy.Facts{Key: "prod/orders/db", Created: created})
	fmt.Println(decision.Due, decision.Reason, decision.At.Format(time.DateTime))
	stage, _, _ := compiled.Stage(policy.KeyInfo{}, policy.Party{Labels: map[string]string{"cohort": "canary"}})
	fmt.Println("stage", stage)
	// Output:
	// false not-yet 2026-11-23 02:00:00
	// stage 0
}

func ExampleParse_problems() {
	_, err := policy.Parse("policy.yaml", []byte(`
apiVersion: keyturn/v1
kind: Policy
metadata: {name: database}
spec:
  quarantine: 24
  stages:
    - {name: all, bak: 1m}
`))
	fmt.Println(err)
	// Output:
	// policy.yaml:6:15: spec.quarantine: it is the number 24, but must be a duration; write whole numbers with units, such as 30d, 12h, 5m, 90s or 1d12h
	// policy.yaml:8:19: spec.stages[0]: unknown field "bak"; did you mean "bake"?
}
