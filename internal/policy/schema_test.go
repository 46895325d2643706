package policy_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/invopop/jsonschema"

	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/key"
)

// published is where the schema is published for editors.
const published = "../../docs/reference/schema/keyturn-v1.json"

// TestSchema generates the schema from the types and compares it with the
// embedded and the published copy; -update writes both.
func TestSchema(t *testing.T) {
	generated, err := json.MarshalIndent(generateSchema(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	generated = append(generated, '\n')
	if *update {
		if err := os.MkdirAll(filepath.Dir(published), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "schema.json", generated)
	golden(t, published, generated)
	if !*update && !bytes.Equal(policy.Schema(), generated) {
		t.Error("Schema() returns something else")
	}
}

// TestSchemaKnowsEveryField checks the schema against the files that Parse accepts.
func TestSchemaKnowsEveryField(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(policy.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	for _, file := range glob(t, "testdata/good/*.yaml") {
		for _, r := range load(t, file) {
			text, err := r.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			var doc map[string]any
			if err := json.Unmarshal(text, &doc); err != nil {
				t.Fatal(err)
			}
			var branch map[string]any
			for _, b := range schema["oneOf"].([]any) {
				b := b.(map[string]any)
				if b["properties"].(map[string]any)["kind"].(map[string]any)["const"] == doc["kind"] {
					branch = b
				}
			}
			checkSchema(t, r.String(), schema, branch, doc)
		}
	}
}

// checkSchema checks fields and required fields, which is what editors help with.
func checkSchema(t *testing.T, path string, root, schema map[string]any, value any) {
	t.Helper()
	if ref, ok := schema["$ref"].(string); ok {
		schema = root["$defs"].(map[string]any)[filepath.Base(ref)].(map[string]any)
	}
	switch value := value.(type) {
	case map[string]any:
		properties, _ := schema["properties"].(map[string]any)
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := value[name.(string)]; !ok {
				t.Errorf("%s: the schema requires %s", path, name)
			}
		}
		if properties == nil {
			return // a free mapping
		}
		if closed, ok := schema["additionalProperties"].(bool); !ok || closed {
			t.Errorf("%s: the schema allows unknown fields", path)
		}
		for name, v := range value {
			property, ok := properties[name].(map[string]any)
			if !ok {
				t.Errorf("%s: the schema does not know %s", path, name)
				continue
			}
			if path != "" && property["description"] == nil && property["const"] == nil && property["$ref"] == nil {
				t.Errorf("%s: %s has no description", path, name)
			}
			checkSchema(t, path+"."+name, root, property, v)
		}
	case []any:
		for _, v := range value {
			checkSchema(t, path+"[]", root, schema["items"].(map[string]any), v)
		}
	}
}

func generateSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	reflector := &jsonschema.Reflector{
		Anonymous:                  true,
		RequiredFromJSONSchemaTags: true,
		ExpandedStruct:             true,
		Mapper:                     mapType,
	}
	if err := reflector.AddGoComments("github.com/keyturn/keyturn/internal/policy", ".", jsonschema.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	// AddGoComments names packages by their folder, which is "." here.
	root := &jsonschema.Schema{
		Version:     jsonschema.Version,
		ID:          "https://keyturn.github.io/schema/keyturn-v1.json",
		Title:       "Keyturn resource",
		Definitions: jsonschema.Definitions{},
	}
	for kind, v := range map[string]any{"Policy": policy.Policy{}, "Freeze": policy.Freeze{}, "Rule": policy.Rule{}, "Key": policy.Key{}} {
		s := reflector.Reflect(v)
		maps.Copy(root.Definitions, s.Definitions)
		s.Version, s.Definitions, s.Title = "", nil, kind
		properties := jsonschema.NewProperties()
		properties.Set("apiVersion", &jsonschema.Schema{Const: policy.APIVersion})
		properties.Set("kind", &jsonschema.Schema{Const: kind})
		for pair := s.Properties.Oldest(); pair != nil; pair = pair.Next() {
			properties.Set(pair.Key, pair.Value)
		}
		s.Properties = properties
		s.Required = []string{"apiVersion", "kind", "metadata", "spec"}
		root.OneOf = append(root.OneOf, s)
	}
	slices.SortFunc(root.OneOf, func(a, b *jsonschema.Schema) int { return bytes.Compare([]byte(a.Title), []byte(b.Title)) })
	return root
}

// mapType gives the schema of types that are written as text.
func mapType(t reflect.Type) *jsonschema.Schema {
	enum := func(values ...any) *jsonschema.Schema { return &jsonschema.Schema{Type: "string", Enum: values} }
	switch t {
	case reflect.TypeFor[policy.Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(w|d|h|m|s|ms|us|ns))+$`, Examples: []any{"30d", "12h", "90s"}}
	case reflect.TypeFor[time.Time]():
		return &jsonschema.Schema{Type: "string", Format: "date-time"}
	case reflect.TypeFor[key.Name]():
		return &jsonschema.Schema{Type: "string", MaxLength: new(uint64(key.MaxNameLength)), Examples: []any{"prod/orders/db"}}
	case reflect.TypeFor[policy.OnEmpty]():
		return enum("hold", "skip")
	case reflect.TypeFor[policy.OnFailure]():
		return enum("rollback", "hold")
	case reflect.TypeFor[policy.OnMax]():
		return enum("hold", "revoke")
	case reflect.TypeFor[policy.Strategy]():
		return enum("replace-first", "contain-first")
	case reflect.TypeFor[policy.Reaction]():
		return enum("alert", "suspend", "emergency")
	case reflect.TypeFor[policy.Mode]():
		return enum("dry-run", "enforce")
	case reflect.TypeFor[policy.LeakAction]():
		return enum("page", "approval", "emergency")
	case reflect.TypeFor[policy.Signal]():
		return enum("auth_failures")
	}
	return nil
}
