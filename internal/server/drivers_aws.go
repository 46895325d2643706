//go:build !noaws

package server

import (
	"time"

	"github.com/keyturn/keyturn/internal/provider/awsiam"
	"github.com/keyturn/keyturn/provider"
)

// awsDrivers are the providers that need the SDK of AWS, a fifth of the program. The
// build tag noaws leaves them out.
func awsDrivers(now func() time.Time) map[string]provider.Driver {
	return map[string]provider.Driver{"aws-iam": awsiam.New(awsiam.Config{Now: now})}
}
