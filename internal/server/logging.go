package server

import (
	"fmt"
	"io"
	"log/slog"
)

func parseLevel(s string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s)); err != nil {
		return level, fmt.Errorf("%q is unknown; use debug, info, warn or error", s)
	}
	return level, nil
}

func newLogger(config *Config, to io.Writer) *slog.Logger {
	level, err := parseLevel(config.Log.Level)
	if err != nil {
		level = slog.LevelInfo // complete has refused it already
	}
	options := &slog.HandlerOptions{Level: level}
	if config.Log.Format == "text" {
		return slog.New(slog.NewTextHandler(to, options))
	}
	return slog.New(slog.NewJSONHandler(to, options))
}
