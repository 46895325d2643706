//go:build noaws

package server

import (
	"time"

	"github.com/keyturn/keyturn/provider"
)

// awsDrivers: this program was built without the SDK of AWS.
func awsDrivers(func() time.Time) map[string]provider.Driver { return nil }
