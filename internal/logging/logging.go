// Package logging makes the loggers of processes, as their configurations say.
package logging

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/keyturn/keyturn/internal/configfile"
)

// Config says how to log.
type Config struct {
	// Level is debug, info, warn or error. Default: info.
	Level string `yaml:"level"`
	// Format is text or json. Default: json.
	Format string `yaml:"format"`
}

// Fill sets defaults.
func (c *Config) Fill() {
	configfile.Fill(&c.Level, "info")
	configfile.Fill(&c.Format, "json")
}

// Check returns what is wrong with a configuration of which the file calls the block log.
func (c *Config) Check() []configfile.Problem {
	p := configfile.Problems{In: "log."}
	if _, err := level(c.Level); err != nil {
		p.Add("level", "%v", err)
	}
	if c.Format != "text" && c.Format != "json" {
		p.Add("format", "%q is unknown; use text or json", c.Format)
	}
	return p.List()
}

func level(s string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s)); err != nil {
		return level, fmt.Errorf("%q is unknown; use debug, info, warn or error", s)
	}
	return level, nil
}

// New returns a logger that writes to to. The configuration was checked: a level that
// is wrong counts as info.
func (c *Config) New(to io.Writer) *slog.Logger {
	least, err := level(c.Level)
	if err != nil {
		least = slog.LevelInfo
	}
	options := &slog.HandlerOptions{Level: least}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(to, options))
	}
	return slog.New(slog.NewJSONHandler(to, options))
}
