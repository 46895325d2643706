// Package client is outside.
package client // want reach

import _ "fake.example/m/middle"
