package awsiam_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/awsiam"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/test/awstest"
)

const name = "ci/deployer"

// newCloud starts the emulator, and gives this process its administrator's access key.
func newCloud(t *testing.T) (*awstest.Cloud, provider.Config) {
	t.Helper()
	cloud := awstest.New(t)
	t.Setenv("AWS_ACCESS_KEY_ID", cloud.Admin.ID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", cloud.Admin.Secret)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	return cloud, provider.Config{"user": awstest.User, "regions": []any{"eu-central-1", "us-east-1"}, "endpoint": cloud.URL, "usageDelay": "0s"}
}

func driver() provider.Driver { return awsiam.New(awsiam.Config{Now: time.Now}) }

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		cloud, config := newCloud(t)
		return providertest.Target{Driver: driver(), Config: config, Key: name, Silence: func(*testing.T, string) func() {
			cloud.Silence()
			return cloud.Speak
		}}
	})
}

// TestConformanceInAnotherAccount: the same by a role of another account, in which
// the administrator's own access key may do nothing.
func TestConformanceInAnotherAccount(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Target {
		cloud, config := newCloud(t)
		cloud.Foreign()
		config["role"] = map[string]any{"arn": awstest.Role, "externalId": awstest.ExternalID}
		return providertest.Target{Driver: driver(), Config: config, Key: name}
	})
}
