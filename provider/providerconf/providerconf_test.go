package providerconf_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
)

// settings is what the tests read.
type settings struct {
	text, choice string
	on           bool
	number       int
	wait         time.Duration
	admin        key.Name
	list, inner  []string
	names        []string
}

func read(config provider.Config) (settings, error) {
	b := providerconf.Read(config, "text", "choice", "on", "number", "wait", "admin", "list", "blocks", "map")
	s := settings{
		text: b.Text("text", 10, ""), choice: b.Choice("choice", "", "a", "b"), on: b.Bool("on", true, ""), number: b.Int("number", 1, 9, 5, ""),
		wait: b.Duration("wait", time.Second, 7*24*time.Hour, time.Minute, ""), admin: b.Block("admin", "", "key").Key("key", ""),
		names: b.Map("map", "").Names(),
	}
	for i, item := range b.List("list", 1, 3, "") {
		text, ok := item.(string)
		if !ok {
			b.Report(providerconf.Index("list", i), "it is no text", "write one")
		}
		s.list = append(s.list, text)
	}
	for i, item := range b.List("blocks", 0, 200, "") {
		one := b.Element(providerconf.Index("blocks", i), item, "", "name")
		if !one.Has("name") {
			one.Missing("name", "write name: a")
		}
		s.inner = append(s.inner, one.Text("name", 5, ""))
	}
	return s, b.Err()
}

func configOf(t testing.TB, text string) provider.Config {
	t.Helper()
	var config provider.Config
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestRead(t *testing.T) {
	s, err := read(configOf(t, `{"text":"ä","choice":"b","on":false,"number":9,"wait":"7d","admin":{"key":"ops/admin"},"list":["x","y"],"blocks":[{"name":"n"}],"map":{"z":1,"a":null}}`))
	want := settings{"ä", "b", false, 9, 168 * time.Hour, "ops/admin", []string{"x", "y"}, []string{"n"}, []string{"a", "z"}}
	if err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err := read(nil); err != nil || !reflect.DeepEqual(s, settings{on: true, number: 5, wait: time.Minute}) {
		t.Errorf("nothing: %+v, %v", s, err)
	}
}

// TestProblems: what is wrong is named by its path, reads as if it were absent, and
// is not shown.
func TestProblems(t *testing.T) {
	for text, want := range map[string]string{
		`{"txet":"hunter2"}`:               "txet: there is no such field; known are text, choice,",
		`{"text":5}`:                       "text: it is not a text; write 1 to 10",
		`{"text":null}`:                    "text: it is not a text",
		`{"text":""}`:                      "text: it is not a text",
		`{"text":"hunter2hunter2"}`:        "text: it has 14 bytes, allowed are 10",
		`{"text":"a\nb"}`:                  "text: it has control characters",
		`{"choice":"c"}`:                   `choice: "c" is unknown; write one of a, b`,
		`{"choice":["a"]}`:                 "choice: it is not a text",
		`{"on":"yes"}`:                     "on: it is neither true nor false; write true or false",
		`{"number":10}`:                    "number: it is not a whole number from 1 to 9; write for example 5",
		`{"number":1.5}`:                   "number: it is not a whole number",
		`{"number":1e300}`:                 "number: it is not a whole number",
		`{"number":"5"}`:                   "number: it is not a whole number",
		`{"wait":"8d"}`:                    "wait: it is not a time from 1s to 7d; write for example",
		`{"wait":"18446744073709551615d"}`: "wait: it is not a time",
		`{"wait":"213504d"}`:               "wait: it is not a time",
		`{"wait":"-1d"}`:                   "wait: it is not a time",
		`{"wait":60}`:                      "wait: it is not a time",
		`{"admin":"hunter2"}`:              "admin: it is not a block; write its fields",
		`{"admin":{"key":"No Name"}}`:      "admin.key: ",
		`{"admin":{"password":"hunter2"}}`: "admin.password: there is no such field; known are key",
		`{"list":"a"}`:                     "list: it is not a list; write it in brackets",
		`{"list":[]}`:                      "list: there are 0, allowed are 1 to 3",
		`{"list":["a","a","a","a"]}`:       "list: there are 4",
		`{"list":["a",5]}`:                 "list[1]: it is no text",
		`{"blocks":[{"name":"a"},5]}`:      "blocks[1]: it is not a block",
		`{"blocks":[{}]}`:                  "blocks[0].name: it is missing; write name: a",
		`{"map":[]}`:                       "map: it is not a block",
	} {
		s, err := read(configOf(t, text))
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
		if problem := new(provider.ConfigError); !errors.As(err, &problem) || problem.Hint == "" {
			t.Errorf("%s: %v has no hint", text, err)
		}
		if s.list, s.inner = nil, nil; !reflect.DeepEqual(s, settings{on: true, number: 5, wait: time.Minute}) {
			t.Errorf("%s reads as %+v", text, s)
		}
	}
}

// TestAllProblems: they are told at once, in the same order each time, and bounded.
func TestAllProblems(t *testing.T) {
	many := provider.Config{"text": 5, "blocks": []any{}}
	for i := range 2 * providerconf.MaxProblems {
		many[fmt.Sprintf("unknown%03d", i)] = true
	}
	_, err := read(many)
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != providerconf.MaxProblems+1 || lines[len(lines)-1] != fmt.Sprintf("there are %d more problems; mend these first", providerconf.MaxProblems+1) {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
	_, err = read(configOf(t, `{"wait":1,"admin":{"x":1},"blocks":[1,{}],"text":1}`))
	var paths []string
	for line := range strings.Lines(err.Error()) {
		path, _, _ := strings.Cut(line, ": ")
		paths = append(paths, path)
	}
	if !slices.Equal(paths, []string{"admin.x", "blocks[0]", "blocks[1].name", "text", "wait"}) {
		t.Errorf("got %q", paths)
	}
}

// FuzzRead: what is accepted is within its bounds, and reads the same when it is
// written down and read again; what is refused is refused twice alike, and the
// config stays as it was.
func FuzzRead(f *testing.F) {
	f.Add(`{"text":"ä","choice":"b","on":false,"number":9,"wait":"7d","admin":{"key":"ops/admin"},"list":["x","y"],"blocks":[{"name":"n"}],"map":{"z":1}}`)
	f.Add(`{"wait":"106751d","number":1e19,"blocks":[null,{"name":1}],"":0,"a.b":1}`)
	f.Fuzz(func(t *testing.T, text string) {
		var config, same provider.Config
		if json.Unmarshal([]byte(text), &config) != nil || json.Unmarshal([]byte(text), &same) != nil {
			return
		}
		s, err := read(config)
		if !reflect.DeepEqual(config, same) {
			t.Fatalf("%q was changed to %v", text, config)
		}
		again, err2 := read(same)
		if !reflect.DeepEqual(s, again) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("%q reads as %+v, %v, and then as %+v, %v", text, s, err, again, err2)
		}
		if len(s.text) > 10 || s.number < 1 || s.number > 9 || s.wait < time.Second || s.wait > 168*time.Hour || len(s.list) > 3 || !slices.Contains([]string{"", "a", "b"}, s.choice) {
			t.Fatalf("%q reads as %+v", text, s)
		}
		if s.admin != "" {
			if _, err := key.ParseName(string(s.admin)); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}
