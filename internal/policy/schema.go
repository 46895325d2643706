package policy

import (
	_ "embed" // for the schema
	"slices"
)

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema (draft 2020-12) of one resource document, for
// editors and other tools. It is generated from the types of this package.
func Schema() []byte { return slices.Clone(schema) }
