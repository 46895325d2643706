// Package store is an interface.
package store

import _ "fake.example/m/base"
