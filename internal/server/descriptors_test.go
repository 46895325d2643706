package server

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
)

func TestTooFewDescriptorsAreTold(t *testing.T) {
	for parties, told := range map[int]bool{1: false, 1 << 62: true} {
		var out bytes.Buffer
		s := &Server{log: slog.New(slog.NewTextHandler(&out, nil))}
		s.config.Limits.Parties = parties
		s.checkDescriptors(context.Background())
		if strings.Contains(out.String(), "LimitNOFILE") != told {
			t.Errorf("%d parties: %s", parties, out.String())
		}
	}
}
