package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/secret"
)

// schemaFile is the published schema of the protocol.
const schemaFile = "../../../docs/reference/schema/keyturn-provider-v1.json"

// schemaOf compiles a part of the published schema: request or response.
func schemaOf(tb testing.TB, part string) *jsonschema.Schema {
	tb.Helper()
	source, err := os.ReadFile(schemaFile)
	if err != nil {
		tb.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(source))
	if err != nil {
		tb.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("https://keyturn.test/schema.json", document); err != nil {
		tb.Fatal(err)
	}
	schema, err := compiler.Compile("https://keyturn.test/schema.json#/$defs/" + part)
	if err != nil {
		tb.Fatal(err)
	}
	return schema
}

func check(schema *jsonschema.Schema, message []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(message))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// message is a request or an answer, as any language would see it.
type message = map[string]any

// vault is a plugin in this process: it knows passwords by endpoint and number, and
// reads requests as any language would.
type vault struct {
	t         *testing.T
	request   *jsonschema.Schema
	mu        sync.Mutex
	passwords map[string]string
	accepted  map[string]bool
	floors    map[string]float64 // the fence of each endpoint
	// tweak changes an answer, or what was asked.
	tweak func(request, answer message)
	// seen are the methods that were called.
	seen []string
}

func newVault(t *testing.T) *vault {
	return &vault{t: t, request: schemaOf(t, "request"), passwords: map[string]string{}, accepted: map[string]bool{}, floors: map[string]float64{}}
}

func (v *vault) Call(_ context.Context, _ provider.Env, r plugin.Request) ([]byte, error) {
	if v.request == nil { // whatever comes
	} else if err := check(v.request, r.Body); err != nil {
		v.t.Errorf("%s does not fit the schema: %v", r.Method, err)
	}
	var request message
	if err := json.Unmarshal(r.Body, &request); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen = append(v.seen, r.Method)
	answer := v.answer(request)
	answer["protocol"], answer["id"], answer["method"] = plugin.Protocol, request["id"], request["method"]
	answer["notice"] = "members that are not known are ignored"
	if v.tweak != nil {
		v.tweak(request, answer)
	}
	return json.Marshal(answer)
}

func (v *vault) answer(request message) message {
	version, _ := request["version"].(message)
	endpoint, _ := request["endpoint"].(string)
	at := fmt.Sprint(endpoint, " ", version["number"])
	secrets, _ := version["secrets"].(message)
	password, _ := secrets["password"].(string)
	call, _ := request["call"].(message)
	fence, _ := call["fence"].(float64)
	switch request["method"] {
	case "describe":
		return message{"describe": message{
			"name": "vault", "version": "1", "protocols": []string{plugin.Protocol},
			"methods": []string{"mint", "accept", "refuse", "probe", "usage", "held", "fence", "destroy", "preflight"},
		}}
	case "mint":
		return message{"material": message{"secrets": message{"password": fmt.Sprintf("correct-horse-%v", version["number"])}}}
	case "fence":
		v.floors[endpoint] = max(v.floors[endpoint], fence)
		return message{"ok": true}
	case "accept", "refuse":
		if fence < v.floors[endpoint] {
			return message{"error": message{"message": "a later call was here already"}}
		}
	}
	switch request["method"] {
	case "accept":
		v.passwords[at], v.accepted[at] = password, true
		return message{"ok": true}
	case "refuse":
		v.accepted[at] = false
		return message{"ok": true}
	case "probe":
		if v.accepted[at] && v.passwords[at] == password {
			return message{"verdict": "accepted"}
		}
		return message{"verdict": "refused"}
	case "usage":
		return message{"usage": message{"sessions": 0}}
	case "held":
		held := []message{}
		for at, accepted := range v.accepted {
			var number int
			var name string
			if _, err := fmt.Sscan(at, &name, &number); err != nil {
				v.t.Error(err)
			}
			held = append(held, message{"endpoint": name, "version": number, "accepted": accepted})
		}
		return message{"held": held}
	case "preflight":
		return message{"findings": []message{{"code": "old", "message": "an old release"}}}
	}
	return message{"ok": true}
}

// config is a key's.
func config(more ...any) provider.Config {
	c := provider.Config{"plugin": "vault", "endpoints": []any{map[string]any{"name": "eu", "region": "eu"}, "us"}, "methods": []any{"usage", "held", "fence", "destroy", "preflight"}}
	for i := 0; i < len(more); i += 2 {
		name, _ := more[i].(string)
		if c[name] = more[i+1]; more[i+1] == nil {
			delete(c, name)
		}
	}
	return c
}

func driverOf(t plugin.Transport) provider.Driver {
	return plugin.New(plugin.Config{Kind: "exec", Plugins: map[string]plugin.Transport{"vault": t}})
}

func open(t *testing.T, transport plugin.Transport, c provider.Config) provider.System {
	t.Helper()
	system, err := driverOf(transport).Open(t.Context(), c, provider.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return system
}

// TestConformance also checks every request against the published schema.
func TestConformance(t *testing.T) {
	for kind, c := range map[string]provider.Config{
		"minted by the plugin":  config(),
		"minted by Keyturn":     config("mint", map[string]any{"secrets": map[string]any{"password": map[string]any{}}, "attributes": map[string]any{"username": "orders-{version}"}}),
		"two slots":             config("capacity", 2.0, "mint", map[string]any{"secrets": map[string]any{"password": map[string]any{}}, "attributes": map[string]any{"username": "orders_{slot}"}}),
		"two places":            config("capacity", 2.0),
		"only what is required": config("methods", nil),
		"a fence alone":         config("methods", []any{"fence"}),
		"a fence and use":       config("methods", []any{"fence", "usage"}),
		"a fence and a list":    config("methods", []any{"fence", "held"}),
	} {
		t.Run(kind, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Target {
				return providertest.Target{Driver: driverOf(newVault(t)), Config: c, Key: "prod/orders/api"}
			})
		})
	}
}

var version = provider.Version{Number: 7, Material: provider.Material{
	Attributes: map[string]string{"username": "orders-7"},
	Secrets:    map[string]secret.Value{"password": secret.NewString("hunter2-hunter2"), "binary": secret.New([]byte{0xff, 0xfe, 0, 1, 2, 3, 4, 5, 6})},
}}

// TestLiesAreErrors: whatever an answer says that is not the answer to the call, no
// verdict, no success and no number comes of it.
func TestLiesAreErrors(t *testing.T) {
	only := func(pairs ...any) func(_, answer message) {
		return func(_, answer message) {
			for _, result := range []string{"ok", "verdict", "material", "usage", "findings", "held", "describe", "error"} {
				delete(answer, result)
			}
			for i := 0; i < len(pairs); i += 2 {
				answer[pairs[i].(string)] = pairs[i+1]
			}
		}
	}
	for name, tweak := range map[string]func(request, answer message){
		"another call":          func(_, a message) { a["id"] = "stale" },
		"another method":        func(_, a message) { a["method"] = "describe" },
		"another protocol":      func(_, a message) { a["protocol"] = "keyturn-provider/v2" },
		"no id":                 func(_, a message) { delete(a, "id") },
		"null id":               func(_, a message) { a["id"] = nil },
		"a number for an id":    func(_, a message) { a["id"] = 7 },
		"nothing":               only(),
		"null":                  only("ok", nil, "verdict", nil, "usage", nil),
		"a verdict and a use":   only("verdict", "accepted", "ok", true, "usage", message{"sessions": 0}),
		"a result and an error": func(_, a message) { a["error"] = message{"message": "no"} },
		"false":                 only("ok", false),
		"text":                  only("ok", "true"),
		"a verdict of another":  only("verdict", "Accepted"),
		"a bad verdict":         only("verdict", true),
		"a use without number":  only("usage", message{"holders": []any{}}),
		"a negative use":        only("usage", message{"sessions": -1}),
		"more holders than use": only("usage", message{"sessions": 1, "holders": []message{{"sessions": 2}}}),
		"use of tomorrow":       only("usage", message{"sessions": 0, "lateSeconds": -1}),
		"use of long ago":       only("usage", message{"sessions": 0, "lateSeconds": 1e300}),
		"use late by null":      only("usage", message{"sessions": 0, "lateSeconds": nil}),
		"use late in words":     only("usage", message{"sessions": 0, "lateSeconds": "3600"}),
		"a part of a session":   only("usage", message{"sessions": 0.5}),
		"held without accepted": only("held", []message{{"endpoint": "eu", "version": 1}}),
		"held elsewhere":        only("held", []message{{"endpoint": "mars", "version": 1, "accepted": true}}),
		"an empty error":        only("error", message{}),
		"an error without text": only("error", message{"message": ""}),
		"a finding of nothing":  only("findings", []message{{}}),
		"no secret":             only("material", message{"attributes": message{"a": "b"}}),
		"an empty secret":       only("material", message{"secrets": message{"password": ""}}),
		"a secret shown":        only("material", message{"secrets": message{"password": "correct-horse-battery"}, "attributes": message{"note": "it is correct-horse-battery"}}),
		"bad base64":            only("material", message{"secretsBase64": message{"password": "?"}}),
		"a field of two kinds":  only("material", message{"secrets": message{"a": "b"}, "attributes": message{"a": "c"}}),
		"a name with a newline": only("material", message{"secrets": message{"a\nb": "c"}}),
	} {
		v := newVault(t)
		system := open(t, v, config())
		v.tweak = tweak
		call := provider.Call{Key: "prod/orders/api", Fence: 1}
		bad := map[string]error{}
		verdict, err := system.Probe(t.Context(), call, "eu", version)
		bad["probe"] = err
		if verdict != 0 {
			t.Errorf("%s: the verdict is %v", name, verdict)
		}
		bad["accept"] = system.Accept(t.Context(), call, "eu", version)
		bad["refuse"] = system.Refuse(t.Context(), call, "eu", version)
		bad["fence"] = system.(provider.Fencer).Fence(t.Context(), call, "eu")
		bad["destroy"] = system.(provider.Destroyer).Destroy(t.Context(), call, version, nil)
		_, bad["mint"] = system.Mint(t.Context(), call, provider.MintRequest{Number: 8})
		_, bad["usage"] = system.(provider.Meter).Usage(t.Context(), call, version)
		_, bad["held"] = system.(provider.Lister).Held(t.Context(), call)
		_, bad["preflight"] = system.(provider.Preflighter).Preflight(t.Context(), call, nil)
		for method, err := range bad {
			if err == nil {
				t.Errorf("%s: %s believed it", name, method)
			} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "battery") {
				t.Errorf("%s: %s shows a secret: %v", name, method, err)
			}
		}
		if !errors.Is(bad["usage"], provider.ErrNoData) {
			t.Errorf("%s: usage failed otherwise than without data: %v", name, bad["usage"])
		}
	}
}

// raw is a plugin that always says the same.
type raw string

func (r raw) Call(_ context.Context, _ provider.Env, request plugin.Request) ([]byte, error) {
	return []byte(strings.ReplaceAll(string(r), "ID", request.ID)), nil
}

// TestAmbiguousAnswers: what two readers of JSON could read differently is refused.
func TestAmbiguousAnswers(t *testing.T) {
	const begin = `{"protocol":"keyturn-provider/v1","id":"ID","method":"probe",`
	for name, answer := range map[string]string{
		"twice":           begin + `"verdict":"refused","verdict":"accepted"}`,
		"twice, escaped":  begin + `"verdict":"refused","\u0076erdict":"accepted"}`,
		"twice within":    begin + `"verdict":"accepted","x":{"a":1,"a":2}}`,
		"two values":      begin + `"verdict":"accepted"}{}`,
		"noise before":    "ready\n" + begin + `"verdict":"accepted"}`,
		"noise after":     begin + `"verdict":"accepted"} done`,
		"cut":             begin + `"verdict":"accept`,
		"another case":    begin + `"Verdict":"accepted"}`,
		"a list":          `["accepted"]`,
		"a word":          `"accepted"`,
		"nothing":         "\n",
		"not UTF-8":       begin + `"verdict":"accepted","x":"` + "\xff" + `"}`,
		"deep":            begin + `"verdict":"accepted","x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		"too long":        begin + `"verdict":"accepted","x":"` + strings.Repeat("x", plugin.MaxAnswer) + `"}`,
		"protocol absent": `{"id":"ID","method":"probe","verdict":"accepted"}`,
	} {
		verdict, err := open(t, raw(answer), config()).Probe(t.Context(), provider.Call{Key: "k"}, "eu", version)
		if verdict != 0 || !errors.Is(err, plugin.ErrAnswer) {
			t.Errorf("%s: got %v, %v", name, verdict, err)
		}
	}
	if verdict, err := open(t, raw(begin+`"verdict":"accepted"}`), config()).Probe(t.Context(), provider.Call{Key: "k"}, "eu", version); verdict != provider.Accepted || err != nil {
		t.Errorf("a right answer: got %v, %v", verdict, err)
	}
}

// TestErrorsOfPlugins: each code becomes the error that Keyturn acts on, and no
// secret of the call is in any.
func TestErrorsOfPlugins(t *testing.T) {
	const leak = "it said hunter2-hunter2 and aHVudGVyMi1odW50ZXIy and 68756E746572322D68756E74657232\x1b[2J\nnext"
	for code, is := range map[string]func(error) bool{
		"permanent":   provider.IsPermanent,
		"silent":      provider.IsSilent,
		"denied":      func(err error) bool { return errors.Is(err, provider.ErrDenied) },
		"no-room":     func(err error) bool { return errors.Is(err, provider.ErrNoRoom) },
		"no-data":     func(err error) bool { return errors.Is(err, provider.ErrNoData) },
		"unsupported": provider.IsPermanent,
		"later":       later,
		"":            func(err error) bool { return !provider.IsPermanent(err) && !provider.IsSilent(err) },
		"of-tomorrow": func(err error) bool { return !provider.IsPermanent(err) && !provider.IsSilent(err) },
	} {
		v := newVault(t)
		v.tweak = func(_, answer message) {
			delete(answer, "ok")
			answer["error"] = message{"code": code, "message": leak, "hint": "try hunter2-hunter2", "endpoints": []string{"us", "mars"}, "retryAfterSeconds": 2}
		}
		err := open(t, v, config()).Accept(t.Context(), provider.Call{Key: "k"}, "eu", version)
		if err == nil || !is(err) {
			t.Errorf("%q became %v", code, err)
			continue
		}
		if at := provider.Endpoints(err); !slices.Equal(at, []string{"us"}) {
			t.Errorf("%q failed at %v", code, at)
		}
		for _, bad := range []string{"hunter2", "aHVudGVy", "68756E", "\x1b", "\n"} {
			if strings.Contains(err.Error(), bad) {
				t.Errorf("%q shows %q: %v", code, bad, err)
			}
		}
		if !strings.Contains(err.Error(), secret.Redacted) {
			t.Errorf("%q says nothing of what was blotted out: %v", code, err)
		}
	}
}

// later reports whether the call is to be repeated after the two seconds that were asked for.
func later(err error) bool {
	after, is := provider.IsLater(err)
	return is && after == 2*time.Second
}

// TestPreflightComparesWithDescribe: what the key's config says of the system must
// fit what the plugin knows.
func TestPreflightComparesWithDescribe(t *testing.T) {
	for name, test := range map[string]struct {
		config  provider.Config
		change  message
		says    string
		finding string
	}{
		"fits":               {config: config(), finding: "old"},
		"a method is absent": {config: config(), change: message{"methods": []string{"mint", "accept", "refuse", "probe"}}, says: "does not know the method usage"},
		"no minting":         {config: config("methods", nil), change: message{"methods": []string{"accept", "refuse", "probe"}}, says: "does not know the method mint"},
		"an unused method":   {config: config("methods", nil), finding: "method-unused"},
		"a gap":              {config: config(), change: message{"gap": true}, says: "gap: true"},
		"less room":          {config: config("capacity", 3.0), change: message{"capacity": 2}, says: "capacity: 2"},
		"no room stated":     {config: config(), change: message{"capacity": 2}, says: "capacity: 2"},
		"an endpoint more":   {config: config(), change: message{"endpoints": []message{{"name": "eu"}, {"name": "us"}, {"name": "ap"}}}, says: `leaves out: "ap"`},
		"an endpoint less":   {config: config(), change: message{"endpoints": []message{{"name": "eu"}}}, says: `does not know endpoints of the key's config: "us"`},
	} {
		v := newVault(t)
		v.tweak = func(_, answer message) {
			if d, ok := answer["describe"].(message); ok {
				for member, value := range test.change {
					d[member] = value
				}
			}
		}
		findings, err := open(t, v, test.config).(provider.Preflighter).Preflight(t.Context(), provider.Call{Key: "k"}, nil)
		switch {
		case test.says == "" && err != nil, test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says) || !provider.IsPermanent(err)):
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		case test.finding != "" && !slices.ContainsFunc(findings, func(f provider.Finding) bool { return f.Code == test.finding }):
			t.Errorf("%s: findings %+v, want %s", name, findings, test.finding)
		}
	}
}

// TestLeastIsSent: versions that a call is not about go without secrets.
func TestLeastIsSent(t *testing.T) {
	v := newVault(t)
	other := provider.Version{Number: 6, Material: provider.Material{Secrets: map[string]secret.Value{"password": secret.NewString("of another version")}}}
	v.tweak = func(request, _ message) {
		if text, err := json.Marshal(request); err != nil || strings.Contains(string(text), "of another version") {
			t.Errorf("%v was sent another version's secret, %v", request["method"], err)
		}
	}
	system := open(t, v, config())
	call := provider.Call{Key: key.Name("k"), Fence: 3}
	if _, err := system.Mint(t.Context(), call, provider.MintRequest{Number: 8, Live: []provider.Version{other}}); err != nil {
		t.Error(err)
	}
	if _, err := system.(provider.Preflighter).Preflight(t.Context(), call, []provider.Version{other}); err != nil {
		t.Error(err)
	}
	if err := system.(provider.Destroyer).Destroy(t.Context(), call, version, []provider.Version{other}); err != nil {
		t.Error(err)
	}
	if want := []string{"mint", "describe", "preflight", "destroy"}; !slices.Equal(v.seen, want) {
		t.Errorf("called %v, want %v", v.seen, want)
	}
}

// TestUseIsToldLate: how late a plugin tells of use is counted back from the moment
// at which it was asked, by the server's clock alone.
func TestUseIsToldLate(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for late, want := range map[any]time.Time{nil: {}, 0: {}, 0.5: now.Add(-500 * time.Millisecond), 5400: now.Add(-90 * time.Minute)} {
		v := newVault(t)
		v.tweak = func(_, answer message) {
			answer["usage"] = message{"sessions": 0}
			if late != nil {
				answer["usage"] = message{"sessions": 0, "lateSeconds": late}
			}
		}
		driver := plugin.New(plugin.Config{Kind: "exec", Plugins: map[string]plugin.Transport{"vault": v}, Now: func() time.Time { return now }})
		system, err := driver.Open(t.Context(), config(), provider.Env{})
		if err != nil {
			t.Fatal(err)
		}
		usage, err := system.(provider.Meter).Usage(t.Context(), provider.Call{Key: "k"}, version)
		if err != nil || !usage.Until.Equal(want) {
			t.Errorf("late by %v: known until %v, want %v, %v", late, usage.Until, want, err)
		}
	}
}

// TestOptionalMethods: a system can do what its key's config says, and no more.
func TestOptionalMethods(t *testing.T) {
	for set := range 8 {
		var methods []any
		for i, method := range []any{"usage", "held", "fence"} {
			if set>>i&1 == 1 {
				methods = append(methods, method)
			}
		}
		system := open(t, newVault(t), config("methods", methods))
		_, usage := system.(provider.Meter)
		_, held := system.(provider.Lister)
		_, fence := system.(provider.Fencer)
		if usage != (set&1 > 0) || held != (set&2 > 0) || fence != (set&4 > 0) {
			t.Errorf("%v: usage %t, held %t, fence %t", methods, usage, held, fence)
		}
	}
}
