package agent

import (
	"io/fs"
	"time"

	"github.com/keyturn/keyturn/internal/agent/run"
	"github.com/keyturn/keyturn/key"
)

// Defaults of a configuration.
const (
	DefaultStateDir       = "/var/lib/keyturn-agent"
	DefaultMode           = fs.FileMode(0o600)
	DefaultReloadTimeout  = 10 * time.Second
	DefaultHealthTimeout  = 5 * time.Second
	DefaultHealthInterval = time.Second
	DefaultHealthRetries  = 5
	DefaultSampleEvery    = 2 * time.Second
	DefaultSampleFor      = 10 * time.Minute
	DefaultSampleThen     = 30 * time.Second
)

// Config is a checked configuration. Make one with LoadConfig or ParseConfig, or
// fill it in and call nothing: Run takes it as it is.
type Config struct {
	// Server is the server's base URL.
	Server string
	// CAFile is a PEM file with the authorities of the server's certificate; empty
	// means the system's.
	CAFile string
	// TokenFile holds the party's token, mode 0600; joining writes it.
	TokenFile string
	// JoinTokenFile holds a one-time join token; it is removed after joining.
	JoinTokenFile string
	// PartyID names this agent to the server. After joining, the name that the
	// server gave counts.
	PartyID string
	// Region and Labels are what policies match.
	Region string
	Labels map[string]string
	// StateDir holds the sealed last-known-good state, mode 0700.
	StateDir string
	// Targets are the files; there may be none beside Metadata.
	Targets []Target
	// Metadata is the endpoint by which processes get tokens; nil: there is none.
	Metadata *Metadata
	// MetricsListen is host and port where metrics are served; empty: nowhere.
	MetricsListen string
}

// Target is a file that is rendered from keys.
type Target struct {
	// Name is unique; it appears in logs and in details.
	Name string
	// Keys limits the keys that the template may name; empty means no limit.
	Keys []key.Name
	// Template is the text of the template.
	Template string
	// Path is absolute and unique.
	Path string
	// Mode holds permission bits.
	Mode fs.FileMode
	// UID and GID are the owner and group; -1 leaves the agent's own.
	UID, GID int
	// Order: of targets that change together, those with a smaller one are
	// written, reloaded and checked first. Equal ones keep the order of the file.
	Order int
	// Reload says how the application is told; the zero value means not at all.
	Reload Reload
	// Health is nil when there is no check: then the agent also sends no samples.
	Health *Health
}

// Reload is how an application is told of a new file. At most one field of
// Signal and Command is set.
type Reload struct {
	Signal  *run.Signal
	Command []string
	// Timeout bounds the command.
	Timeout time.Duration
}

func (r Reload) none() bool { return r.Signal == nil && len(r.Command) == 0 }

// Health is how an application's health is found out.
type Health struct {
	run.Health
	// A sample is taken every SampleEvery during SampleFor after a change, and
	// every SampleThen afterwards.
	SampleEvery, SampleFor, SampleThen time.Duration
}
