package awsiam_test

import (
	"testing"

	"github.com/keyturn/keyturn/provider/providertest"
)

// FuzzConfig: see providertest.FuzzConfig.
func FuzzConfig(f *testing.F) {
	providertest.FuzzConfig(
		f, driver(),
		`{"user":"ci-deployer","regions":["eu-central-1","us-east-1"],"role":{"arn":"arn:aws:iam::123456789012:role/keyturn","externalId":"keyturn-prod"},"usageDelay":"2d"}`,
		`{"user":"a","regions":["us-gov-west-1"],"admin":{"key":"ops/aws"},"endpoint":"http://[::1]:1"}`,
		`{"user":"","regions":["eu-central-1",7,"cn-north-1"],"role":[],"admin":{"profile":"a","key":"B"},"usageDelay":4,"endpoint":"http://a.example"}`,
	)
}
