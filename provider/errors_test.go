package provider_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

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

// TestLater: what takes its time is found through wrapping, hides nothing, and is
// no silence.
func TestLater(t *testing.T) {
	cause := fmt.Errorf("the cache: %w", provider.ErrSilent)
	err := fmt.Errorf("accept: %w", provider.Later(time.Second, cause))
	if after, later := provider.IsLater(err); !later || after != time.Second {
		t.Errorf("%v %v", after, later)
	}
	if provider.IsSilent(err) || !errors.Is(err, cause) || err.Error() != "accept: the cache: no answer" {
		t.Errorf("%v, silent: %v", err, provider.IsSilent(err))
	}
	if _, later := provider.IsLater(cause); later || provider.Later(time.Second, nil) != nil {
		t.Error("what is done, or fails, takes its time")
	}
}
