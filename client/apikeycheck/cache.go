package apikeycheck

import (
	"context"
	"iter"
)

// Cache keeps what a Checker knows over restarts of its process, so that keys are let
// in before a server answers. It does not look into what it keeps. Its methods are not
// called concurrently, and return soon after ctx has ended. A cache belongs to one
// process at a time.
//
// Package cachetest is the suite that every implementation should run.
type Cache interface {
	// Load calls each with every record, in the byte order of their names, until each
	// fails, and then fails with its error. Nothing was kept yet: each is not called. It is
	// called before everything else.
	Load(ctx context.Context, each func(Record) error) error

	// Replace keeps records, and none beside them. It is durable when it returns nil. When
	// it fails, when ctx ends before records does, or when the process ends meanwhile, what
	// was kept before is there, whole. records is ranged over once; 1,000,000 versions are
	// some 100 MB.
	Replace(ctx context.Context, records iter.Seq[Record]) error

	// Update keeps records beside those that are there, or in place of those with their
	// names; one without Data is removed. It is durable when it returns nil, and never
	// there in part. When it fails it may have been done.
	Update(ctx context.Context, records ...Record) error
}

// Record is what a Cache keeps under a name.
type Record struct {
	// Name is 1 to 32 characters a-z, 0-9 and "-".
	Name string
	// Data is at most MaxRecord bytes. It is not changed afterwards.
	Data []byte
}

// SecretRecord is the name of the record that is to be kept as secrets are: with it
// whoever has the others can verify keys (and make none). The others hold hashes,
// which are worth nothing without it, the names of clients, and addresses of callers.
const SecretRecord = "secret"

// MaxRecord bounds the Data of a record, in bytes.
const MaxRecord = 1 << 20
