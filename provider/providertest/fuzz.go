package providertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/provider"
)

// maxFuzzed bounds the configs that FuzzConfig tries, in bytes.
const maxFuzzed = 1 << 16

// unknownField is no field of any config.
const unknownField = "noSuchFieldInAnyConfig"

// FuzzConfig fuzzes Check and Open of a driver from seeds in JSON: good configs and
// bad ones. It is called by a fuzz target:
//
//	func FuzzConfig(f *testing.F) { providertest.FuzzConfig(f, New(), `{"url": "https://a.example"}`) }
//
// Whatever a config says, it stays as it was, and is judged the same twice. What is
// refused names problems, each with a hint and a path that leads to a field of the
// config, or to one that is missing. What is accepted has endpoints that can be told
// apart, can be opened as far as its text is concerned, and is refused, by name, once
// it has a field more.
func FuzzConfig(f *testing.F, driver provider.Driver, seeds ...string) {
	f.Helper()
	for _, seed := range seeds {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var config, same provider.Config
		if len(text) > maxFuzzed || json.Unmarshal([]byte(text), &config) != nil || json.Unmarshal([]byte(text), &same) != nil || config == nil {
			return
		}
		topology, err := driver.Check(config)
		if !reflect.DeepEqual(config, same) {
			t.Fatalf("Check changed %q to %v", text, config)
		}
		again, err2 := driver.Check(same)
		if !reflect.DeepEqual(topology, again) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("%q is %+v, %v, and then %+v, %v", text, topology, err, again, err2)
		}
		if err != nil {
			for _, problem := range problemsIn(t, err) {
				if problem.Problem == "" || problem.Hint == "" || !leads(map[string]any(config), problem.Path) {
					t.Errorf("%q: the problem %q at %q has no hint, or leads nowhere", text, problem.Problem, problem.Path)
				}
			}
			return
		}
		sound(t, text, topology)
		system, err := driver.Open(t.Context(), config, provider.Env{})
		if problem := new(provider.ConfigError); errors.As(err, &problem) {
			t.Fatalf("%q passes, and cannot be opened: %v", text, err)
		}
		if closer, is := system.(io.Closer); is && err == nil {
			if err := closer.Close(); err != nil {
				t.Fatalf("%q: close: %v", text, err)
			}
		}
		same[unknownField] = true
		_, err = driver.Check(same)
		if err == nil {
			t.Fatalf("%q passes with a field that nobody knows", text)
		}
		for _, problem := range problemsIn(t, err) {
			if problem.Path != unknownField {
				t.Errorf("%q passes, and with a field more has the problem %v", text, problem)
			}
		}
	})
}

func sound(t *testing.T, text string, topology provider.Topology) {
	t.Helper()
	names := map[string]bool{}
	for _, e := range topology.Endpoints {
		if e.Name == "" || names[e.Name] {
			t.Fatalf("%q has the endpoint %q twice, or one without a name", text, e.Name)
		}
		names[e.Name] = true
	}
	if len(names) == 0 || topology.Capacity < 0 || topology.Capacity == 1 && !topology.Gap {
		t.Fatalf("%q could never rotate: %+v", text, topology)
	}
}

// problemsIn returns every error that err joins, each of which must be a
// *provider.ConfigError.
func problemsIn(t *testing.T, err error) []*provider.ConfigError {
	t.Helper()
	if joined, is := err.(interface{ Unwrap() []error }); is {
		var all []*provider.ConfigError
		for _, inner := range joined.Unwrap() {
			all = append(all, problemsIn(t, inner)...)
		}
		return all
	}
	problem := new(provider.ConfigError)
	if !errors.As(err, &problem) {
		t.Fatalf("%v is no *provider.ConfigError", err)
	}
	return []*provider.ConfigError{problem}
}

// leads reports whether path leads to something in value, or to a field that a block
// in value has not. Names of fields may have dots and brackets themselves.
func leads(value any, path string) bool {
	if path == "" {
		return true
	}
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			rest, is := strings.CutPrefix(path, name)
			if is && (rest == "" || rest[0] == '.' && leads(inner, rest[1:]) || rest[0] == '[' && leads(inner, rest)) {
				return true
			}
		}
		return !strings.ContainsAny(path, ".[")
	case []any:
		number, rest, closed := strings.Cut(strings.TrimPrefix(path, "["), "]")
		i, err := strconv.Atoi(number)
		return path[0] == '[' && closed && err == nil && i >= 0 && i < len(v) && leads(v[i], strings.TrimPrefix(rest, "."))
	}
	return false
}
