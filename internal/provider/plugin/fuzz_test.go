package plugin_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/provider/plugin"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providertest"
	"github.com/keyturn/keyturn/secret"
)

// FuzzAnswer: whatever a plugin answers, a verdict, a success or a number comes only
// of an object that fits the published schema and says just that; errors are
// bounded and hold no secret of the call.
func FuzzAnswer(f *testing.F) {
	const begin = `{"protocol":"keyturn-provider/v1","id":"ID","method":"METHOD",`
	for _, end := range []string{
		`"verdict":"accepted"}`, `"verdict":"refused"}`, `"ok":true}`, `"usage":{"sessions":3,"holders":[{"endpoint":"eu","sessions":3}]}}`,
		`"usage":{"sessions":0,"lateSeconds":5400.5}}`, `"usage":{"sessions":0,"lateSeconds":1e308}}`,
		`"held":[{"endpoint":"eu","version":1,"accepted":true,"attributes":{"a":"b"}}]}`, `"findings":[{"code":"a","message":"b"}]}`,
		`"material":{"attributes":{"username":"x"},"secrets":{"password":"p"},"secretsBase64":{"raw":"/w=="}}}`,
		`"describe":{"name":"x","protocols":["keyturn-provider/v1"],"methods":["mint","accept","refuse","probe","usage","held","fence","destroy","preflight"],"capacity":0,"gap":false}}`,
		`"error":{"message":"it shows hunter2-hunter2","code":"later","retryAfterSeconds":1,"endpoints":["eu"]}}`,
		`"error":{"message":"68756e746572322d68756e74657232 aHVudGVyMi1odW50ZXIy","hint":"hunter2-h\nunter2"}}`,
		`"ok":null,"verdict":"accepted"}`, `"verdict":"refused","verdict":"accepted"}`, `"usage":{}}`,
	} {
		f.Add(begin + end)
	}
	schema := schemaOf(f, "response")
	f.Fuzz(func(t *testing.T, text string) {
		var said string
		system := open(t, fuzzed{text, &said}, config())
		call := provider.Call{Key: "k", Fence: 1}
		check := func(method, member string, err error) map[string]any {
			t.Helper()
			if err != nil {
				// Minting, listing and fencing know of no secret.
				told := method != "mint" && method != "held" && method != "fence" && (strings.Contains(err.Error(), "hunter2-hun") || strings.Contains(err.Error(), "aHVudGVyMi1"))
				if told || len(err.Error()) > 4096 {
					t.Fatalf("the error of %s: %.5000v", method, err)
				}
				return nil
			}
			if err := checkText(schema, said); err != nil {
				t.Fatalf("%s believed what does not fit the schema: %v\n%q", method, err, said)
			}
			var answer map[string]any
			if err := json.Unmarshal([]byte(said), &answer); err != nil || answer[member] == nil || answer["method"] != method {
				t.Fatalf("%s believed %q, %v", method, said, err)
			}
			return answer
		}
		verdict, err := system.Probe(t.Context(), call, "eu", version)
		if answer := check("probe", "verdict", err); (err == nil) != (verdict != 0) || answer != nil && answer["verdict"] != verdict.String() {
			t.Fatalf("the verdict of %q is %v, %v", said, verdict, err)
		}
		if err := system.(provider.Fencer).Fence(t.Context(), call, "eu"); check("fence", "ok", err) != nil && !strings.Contains(said, "true") {
			t.Fatalf("%q raised a fence", said)
		}
		check("accept", "ok", system.Accept(t.Context(), call, "eu", version))
		material, err := system.Mint(t.Context(), call, provider.MintRequest{Number: 1})
		if check("mint", "material", err); err == nil && len(material.Secrets) == 0 {
			t.Fatalf("%q has no secret", said)
		}
		usage, err := system.(provider.Meter).Usage(t.Context(), call, version)
		answer := check("usage", "usage", err)
		if err == nil && (usage.Sessions < 0 || len(usage.Holders) > provider.MaxHolders) {
			t.Fatalf("the usage of %q is %+v", said, usage)
		}
		// What is told late is never taken for what is so now, nor for later.
		if told, _ := answer["usage"].(map[string]any); told != nil {
			late, _ := told["lateSeconds"].(float64)
			if usage.Until.IsZero() != (late == 0) || usage.Until.After(time.Now()) {
				t.Fatalf("the usage of %q is known until %v", said, usage.Until)
			}
		}
		held, err := system.(provider.Lister).Held(t.Context(), call)
		check("held", "held", err)
		for _, h := range held {
			if h.Version == 0 || h.Endpoint != "eu" && h.Endpoint != "us" {
				t.Fatalf("%q holds %+v", said, h)
			}
		}
	})
}

func checkText(schema interface{ Validate(any) error }, text string) error {
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		return err
	}
	return schema.Validate(value)
}

// fuzzed answers with a text, in which ID and METHOD are replaced, and notes it.
type fuzzed struct {
	text string
	said *string
}

func (f fuzzed) Call(_ context.Context, _ provider.Env, r plugin.Request) ([]byte, error) {
	*f.said = strings.NewReplacer("ID", r.ID, "METHOD", r.Method).Replace(f.text)
	return []byte(*f.said), nil
}

// FuzzExecConfig: see providertest.FuzzConfig; FuzzConfig adds what Keyturn mints.
func FuzzExecConfig(f *testing.F) { fuzzConfig(f, "exec") }

// FuzzWebhookConfig: the same.
func FuzzWebhookConfig(f *testing.F) { fuzzConfig(f, "webhook") }

func fuzzConfig(f *testing.F, kind string) {
	f.Helper()
	providertest.FuzzConfig(
		f, plugin.New(plugin.Config{Kind: kind, Plugins: map[string]plugin.Transport{"vault": raw("")}}),
		`{"plugin":"vault","endpoints":["eu",{"name":"us","region":"us","host":"db:1"}],"methods":["usage","held"],"settings":{"a":[1]},"capacity":2}`,
		`{"plugin":"vault","endpoints":["eu"],"capacity":1,"gap":true,"mint":{"secrets":{"p":{"length":40,"alphabet":"hex","prefix":"k_"}},"attributes":{"u":"x{slot}"}}}`,
		`{"plugin":"other","endpoints":[7,{"host":"x"},"eu","eu",""],"gap":1,"mint":{"secrets":{"p":7,"a.b":{"length":1}}},"capacity":1.5,"methods":["x"]}`,
		`{"plugin":"vault","endpoints":{},"mint":[],"settings":7}`,
	)
}

// FuzzScrub: no part of a secret of eight bytes or more is left, in any encoding it
// knows, at any place and alignment; a text without it stays as it is.
func FuzzScrub(f *testing.F) {
	f.Add("hunter2-hunter2", "before ", " after")
	f.Add("short", "x", "y")
	f.Add("\xff\x00binary\x01secret", "a", "bc")
	f.Add("-----BEGIN PRIVATE KEY-----\nMIIB\n", "", "")
	f.Fuzz(func(t *testing.T, plain, before, after string) {
		if plain == "" || len(plain)+len(before)+len(after) > 1<<12 {
			return
		}
		scrub := plugin.NewScrubber(secret.NewString(plain))
		for _, encoded := range []string{
			plain, hex.EncodeToString([]byte(plain)), strings.ToUpper(hex.EncodeToString([]byte(plain))),
			base64.StdEncoding.EncodeToString([]byte(before + plain + after)), base64.RawURLEncoding.EncodeToString([]byte(before + plain + after)),
		} {
			got := scrub.Scrub(before + encoded + after)
			// What was taken out leaves a mark; what the marks part holds no secret.
			for _, part := range strings.Split(got, secret.Redacted) {
				if scrub.Finds(part) || len(plain) >= 8 && strings.Contains(part, plain) {
					t.Fatalf("%q is left in %q", plain, got)
				}
			}
			if text := scrub.Text(before+encoded+after, 100); len(text) > 100 {
				t.Fatalf("%d bytes are left of 100", len(text))
			}
		}
		if clean := strings.Repeat("0", 3) + strings.Repeat(" ", 8); !strings.Contains(clean, plain) && !scrub.Finds(clean) && scrub.Scrub(clean) != clean {
			t.Fatal("a text without the secret was changed")
		}
	})
}

// TestScrubberBlotsOutParts: a text that is cut in the middle of a secret.
func TestScrubberBlotsOutParts(t *testing.T) {
	scrub := plugin.NewScrubber(secret.NewString("correct-horse-battery-staple"))
	for _, text := range []string{
		"correct-horse-batt", "tery-staple", "horse-battery", "636f72726563742d686f7273652d", "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5",
		"xY29ycmVjdC1ob3JzZS1iYXR0ZXJ5", base64.StdEncoding.EncodeToString([]byte("user:correct-horse-battery-staple")),
		base64.StdEncoding.EncodeToString([]byte("a:correct-horse-battery-staple")),
	} {
		if got := scrub.Scrub(">" + text + "<"); !strings.Contains(got, secret.Redacted) || strings.Contains(got, text[2:10]) {
			t.Errorf("%q became %q", text, got)
		}
	}
	const clean = "connection to redis-eu:6379 refused, the horse is not correct"
	if got := scrub.Scrub(clean); got != clean {
		t.Errorf("a text without the secret became %q", got)
	}
}
