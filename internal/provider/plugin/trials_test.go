package plugin_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/provider/plugin"
)

// TestTrials: a plugin that keeps to the protocol passes, and each trial catches one
// that does not.
func TestTrials(t *testing.T) {
	known := func(request, answer message) {
		refuse := func() {
			for _, result := range []string{"ok", "verdict", "describe"} {
				delete(answer, result)
			}
			answer["error"] = message{"message": "not known", "code": "unsupported"}
		}
		if request["protocol"] != plugin.Protocol || request["method"] == "of-tomorrow" || request["endpoint"] == "no such endpoint" {
			refuse()
		}
	}
	for name, spoil := range map[string]func(request, answer message){
		"": func(message, message) {},
		"Describe": func(_, answer message) {
			if d, ok := answer["describe"].(message); ok {
				d["gap"] = true
			}
		},
		"UnknownMembersAreIgnored": func(request, answer message) {
			if request["ofTomorrow"] != nil {
				delete(answer, "describe")
				answer["error"] = message{"message": "unknown member"}
			}
		},
		"UnknownMethodIsUnsupported": func(request, answer message) {
			if request["method"] == "of-tomorrow" {
				answer["error"] = message{"message": "internal error"}
			}
		},
		"UnknownProtocolIsUnsupported": func(request, answer message) {
			if request["protocol"] != plugin.Protocol {
				delete(answer, "error")
				answer["describe"] = message{"name": "x", "protocols": []string{plugin.Protocol}, "methods": []string{"accept", "refuse", "probe"}}
			}
		},
		"UnknownEndpointHasNoVerdict": func(request, answer message) {
			if request["method"] == "probe" {
				delete(answer, "error")
				answer["verdict"] = "refused"
			}
		},
	} {
		v := newVault(t)
		v.request = nil // trials break the schema on purpose
		v.tweak = func(request, answer message) {
			known(request, answer)
			spoil(request, answer)
		}
		for _, trial := range plugin.Trials() {
			err := trial.Run(t.Context(), v, config(), "keyturn/provider-test", 1000)
			if (err != nil) != (trial.Name == name) {
				t.Errorf("spoilt %q: %s says %v", name, trial.Name, err)
			}
			if err != nil && strings.Contains(err.Error(), "correct-horse") {
				t.Errorf("%s shows a secret: %v", trial.Name, err)
			}
		}
	}
}
