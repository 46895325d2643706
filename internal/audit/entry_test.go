package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/key"
)

// golden is the format: it must never change for entries that were written once.
const golden = `{"seq":0,"at":"2026-11-23T01:02:03.456789Z","actor":{"id":"operator \"x\"\\y","kind":"user"},` +
	`"action":"rotation.phase","key":"prod/orders/db","rotation":"019aae2d0ec07000800000000000000f","event":1,"version":1,` +
	`"from":"accepting","to":"presenting","target":"replica db2:5432","outcome":"ok",` +
	`"reason":"all 12 verifiers acknowledged – ✓","detail":{"region":"eu","stage":"canary"}}`

func TestGolden(t *testing.T) {
	id, err := key.ParseRotationID("019aae2d0ec07000800000000000000f")
	if err != nil {
		t.Fatal(err)
	}
	e := entry(0)
	e.Rotation = id
	b, err := audit.Encode(e)
	if err != nil || string(b) != golden {
		t.Errorf("got  %s, %v\nwant %s", b, err, golden)
	}
	smallest := audit.Entry{At: start, Actor: audit.Actor{ID: "a", Kind: "b"}, Action: "c.d", Outcome: "e"}
	const want = `{"seq":0,"at":"2026-11-23T01:02:03.456789Z","actor":{"id":"a","kind":"b"},"action":"c.d","outcome":"e"}`
	if b, err := audit.Encode(smallest); err != nil || string(b) != want {
		t.Errorf("got  %s, %v\nwant %s", b, err, want)
	}
}

// TestDecodeIsStrict changes a record in ways that a lenient decoder would take.
func TestDecodeIsStrict(t *testing.T) {
	if _, err := audit.Decode([]byte(golden)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"unknown member":       {`"key":`, `"color":"red","key":`},
		"repeated member":      {`"event":1,`, `"event":1,"event":1,`},
		"other order":          {`"event":1,"version":1`, `"version":1,"event":1`},
		"other case":           {`"key":`, `"Key":`},
		"space":                {`"seq":0`, `"seq": 0`},
		"leading zero":         {`"event":1`, `"event":01`},
		"zero member":          {`"event":1`, `"event":0`},
		"fraction":             {`"event":1`, `"event":1.0`},
		"too large":            {`"event":1`, `"event":18446744073709551616`},
		"empty member":         {`"from":"accepting"`, `"from":""`},
		"empty detail":         {`{"region":"eu","stage":"canary"}`, `{}`},
		"empty detail value":   {`"region":"eu"`, `"region":""`},
		"unsorted detail":      {`"region":"eu","stage":"canary"`, `"stage":"canary","region":"eu"`},
		"repeated detail":      {`"region":"eu"`, `"region":"eu","region":"eu"`},
		"detail's comma":       {`"canary"}`, `"canary",}`},
		"needless escape":      {`"to":"presenting"`, `"to":"\u0070resenting"`},
		"escaped slash":        {`prod/orders`, `prod\/orders`},
		"control character":    {`canary`, "can\tary"},
		"terminal escape":      {`canary`, "can\x1b[2Jary"},
		"direction override":   {`canary`, "can\u202eary"},
		"not UTF-8":            {`canary`, "can\xffary"},
		"rotation upper case":  {`019aae2d`, `019AAE2D`},
		"rotation zero":        {`019aae2d0ec07000800000000000000f`, strings.Repeat("0", 32)},
		"time zone":            {`456789Z`, `456789+00:00`},
		"nanoseconds":          {`456789Z`, `456789000Z`},
		"no such day":          {`2026-11-23`, `2026-11-31`},
		"no such hour":         {`T01:`, `T24:`},
		"no such second":       {`:03.`, `:60.`},
		"before 1970":          {`2026-11-23`, `1969-11-23`},
		"clock not before at":  {`"actor":{`, `"clock":"2026-11-23T01:02:03.456789Z","actor":{`},
		"key name":             {`prod/orders/db`, `../db`},
		"action":               {`rotation.phase`, `rotation`},
		"outcome":              {`"outcome":"ok"`, `"outcome":"OK"`},
		"required member":      {`"outcome":"ok",`, ``},
		"trailing data":        {`"canary"}}`, `"canary"}} `},
		"null":                 {`"key":"prod/orders/db"`, `"key":null`},
		"sequence number":      {`"seq":0`, `"seq":-1`},
		"huge sequence number": {`"seq":0`, `"seq":9007199254740993`},
	} {
		b := strings.Replace(golden, change[0], change[1], 1)
		if b == golden {
			t.Errorf("%s: the change changes nothing", name)
		}
		if e, err := audit.Decode([]byte(b)); !errors.Is(err, audit.ErrEntry) {
			t.Errorf("%s: got %+v, %v, want ErrEntry", name, e, err)
		}
	}
}

// TestEncodeNamesTheField breaks one rule at a time.
func TestEncodeNamesTheField(t *testing.T) {
	for field, change := range map[string]func(*audit.Entry){
		"seq":        func(e *audit.Entry) { e.Seq = 1 << 53 },
		"at":         func(e *audit.Entry) { e.At = time.Time{} },
		"clock":      func(e *audit.Entry) { e.Clock = e.At },
		"actor.id":   func(e *audit.Entry) { e.Actor.ID = "" },
		"actor.kind": func(e *audit.Entry) { e.Actor.Kind = "a b" },
		"action":     func(e *audit.Entry) { e.Action = "Rotation.Phase" },
		"key":        func(e *audit.Entry) { e.Key = "/" },
		"from":       func(e *audit.Entry) { e.From = strings.Repeat("x", audit.MaxState+1) },
		"to":         func(e *audit.Entry) { e.To = "\n" },
		"outcome":    func(e *audit.Entry) { e.Outcome = "" },
		"reason":     func(e *audit.Entry) { e.Reason = "\xff" },
		"target":     func(e *audit.Entry) { e.Target = "\u2028" },
		"detail":     func(e *audit.Entry) { e.Detail = map[string]string{"a b": "c"} },
	} {
		e := entry(1)
		change(&e)
		if _, err := audit.Encode(e); !errors.Is(err, audit.ErrEntry) || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

// texts draws strings that Append must clean.
func texts() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.String(),
		rapid.StringN(0, 3000, 4000),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 2000), func(b []byte) string { return string(b) }),
		rapid.SampledFrom([]string{"", `"`, `\`, "\u202e", "é", strings.Repeat("\"", 3000), strings.Repeat("€", 400)}),
	)
}

func entries() *rapid.Generator[audit.Entry] {
	return rapid.Custom(func(t *rapid.T) audit.Entry {
		e := entry(rapid.IntRange(0, 50).Draw(t, "i"))
		e.At = time.Unix(rapid.Int64Range(0, 1<<37).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns"))
		e.Event = rapid.Uint64().Draw(t, "event")
		e.Version = key.Version(rapid.Uint64().Draw(t, "version"))
		e.Reason = texts().Draw(t, "reason")
		e.Target = texts().Draw(t, "target")
		if rapid.Bool().Draw(t, "bare") {
			e.Key, e.From, e.To, e.Rotation = "", "", "", key.RotationID{}
		}
		e.Detail = rapid.MapOfN(rapid.StringMatching(`[a-z][a-z0-9._-]{0,63}`), texts(), 0, audit.MaxDetails).Draw(t, "detail")
		return e
	})
}

// TestAppendNeverFailsOnText: what Append writes decodes, is small, is what
// encoding/json reads, and encodes to the same bytes.
func TestAppendNeverFailsOnText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := entries().Draw(t, "entry")
		before := maps.Clone(e.Detail)
		batch, err := audit.Append(audit.Tail{}, emptyLog(), e)
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(before, e.Detail) {
			t.Fatal("Append changed the caller's entry")
		}
		record := batch.Records[0]
		if len(record) > audit.MaxRecordSize || !utf8.Valid(record) || bytes.ContainsRune(record, '\n') {
			t.Fatalf("bad record %q", record)
		}
		back, err := audit.Decode(record)
		if err != nil {
			t.Fatal(err)
		}
		again, err := audit.Encode(back)
		if err != nil || !bytes.Equal(again, record) {
			t.Fatalf("encodes to %s, %v\nwas %s", again, err, record)
		}
		var generic map[string]any
		if err := json.Unmarshal(record, &generic); err != nil {
			t.Fatal(err)
		}
		if reason, _ := generic["reason"].(string); reason != back.Reason {
			t.Fatalf("encoding/json reads the reason %q, Decode %q", reason, back.Reason)
		}
	})
}

// TestLargestEntryFits fills every field with what takes most room.
func TestLargestEntryFits(t *testing.T) {
	e := entry(0)
	quotes := func(n int) string { return strings.Repeat(`"`, n) }
	e.Seq = 1<<53 - 1
	e.Clock = e.At.Add(-time.Second)
	e.Actor = audit.Actor{ID: quotes(audit.MaxActorID), Kind: strings.Repeat("k", audit.MaxName)}
	e.Action = audit.Action("a." + strings.Repeat("b", audit.MaxName-2))
	e.Key = key.Name(strings.Repeat("a/", key.MaxNameLength/2) + "a")
	e.Event, e.Version = 1<<64-1, 1<<64-1
	e.From, e.To = quotes(audit.MaxState), quotes(audit.MaxState)
	e.Target, e.Reason = quotes(audit.MaxTarget), quotes(audit.MaxReason)
	e.Outcome = audit.Outcome(strings.Repeat("o", audit.MaxName))
	e.Detail = map[string]string{}
	for i := range audit.MaxDetails {
		e.Detail[string(rune('a'+i))+strings.Repeat("n", audit.MaxName-1)] = quotes(audit.MaxDetail)
	}
	b, err := audit.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > audit.MaxRecordSize {
		t.Errorf("the largest entry has %d bytes, MaxRecordSize is %d", len(b), audit.MaxRecordSize)
	}
	if _, err := audit.Decode(b); err != nil {
		t.Error(err)
	}
}

func TestCleanCuts(t *testing.T) {
	e := entry(0)
	e.Reason = strings.Repeat("€", 1000) + "end"
	e.Target = "a\x00b\xffc"
	batch, err := audit.Append(audit.Tail{}, emptyLog(), e)
	if err != nil {
		t.Fatal(err)
	}
	back, err := audit.Decode(batch.Records[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(back.Reason, "€…") || len(back.Reason) < audit.MaxReason-3 {
		t.Errorf("the reason was cut to %d bytes: %q", len(back.Reason), back.Reason)
	}
	if back.Target != "a\ufffdb\ufffdc" {
		t.Errorf("the target became %q", back.Target)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(strings.Replace(golden, `"actor":{`, `"clock":"2026-11-23T01:02:02.456789Z","actor":{`, 1)))
	f.Add([]byte(`{"seq":0,"at":"2026-11-23T01:02:03.456789Z","actor":{"id":"a","kind":"b"},"action":"c.d","outcome":"e"}`))
	f.Add([]byte(strings.Replace(golden, "canary", `\"\\`, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := audit.Decode(b)
		if err != nil {
			if !errors.Is(err, audit.ErrEntry) {
				t.Errorf("the error %v does not wrap ErrEntry", err)
			}
			return
		}
		again, err := audit.Encode(e)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("encodes to %q, %v\nwas        %q", again, err, b)
		}
		if !json.Valid(b) {
			t.Errorf("accepted what is not JSON: %q", b)
		}
	})
}
