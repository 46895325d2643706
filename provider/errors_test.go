package provider_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/provider"
)

// TestEndpoints: what At marked is found through wrapping and joining, and
// marking changes neither the text nor what the error is.
func TestEndpoints(t *testing.T) {
	down := errors.New("connection refused")
	err := errors.Join(
		fmt.Errorf("usage: %w", provider.At("replica us", provider.Hint(down, "start it"))),
		provider.Permanent(provider.At("primary", provider.At("primary", down)), "mend it"),
		down,
	)
	if got := provider.Endpoints(err); !slices.Equal(got, []string{"primary", "replica us"}) {
		t.Errorf("endpoints %v", got)
	}
	if !errors.Is(err, down) || !provider.IsPermanent(provider.At("primary", provider.Permanent(down, ""))) {
		t.Error("marking hides what the error is")
	}
	if got := provider.At("primary", down).Error(); got != down.Error() {
		t.Errorf("marking changes the text to %q", got)
	}
	if provider.At("primary", nil) != nil || len(provider.Endpoints(nil)) != 0 || len(provider.Endpoints(down)) != 0 {
		t.Error("no error has an endpoint, or none has")
	}
	for i := range 2 * provider.MaxEndpoints {
		err = errors.Join(err, provider.At(fmt.Sprintf("replica %d", i), down))
	}
	if n := len(provider.Endpoints(err)); n != provider.MaxEndpoints {
		t.Errorf("%d endpoints, the bound is %d", n, provider.MaxEndpoints)
	}
}
