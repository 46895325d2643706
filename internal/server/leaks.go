package server

import (
	"net/http"
	"net/url"
	"time"

	"github.com/keyturn/keyturn/internal/compat/github"
)

// LeaksConfig says from whom leaks are heard of.
type LeaksConfig struct {
	// GitHub takes messages of GitHub's secret scanning at /v1/leaks/github; absent: no.
	GitHub *GitHubConfig `yaml:"github"`
}

// GitHubConfig says what proves that a message is GitHub's.
type GitHubConfig struct {
	// Keys is where the public keys are: an https:// address or a file. Default: where
	// GitHub publishes them.
	Keys string `yaml:"keys"`
	// Feedback: answer with which tokens are real, as GitHub asks partners to.
	Feedback bool `yaml:"feedback"`
}

func (c *LeaksConfig) check() []problem {
	if c.GitHub == nil || c.GitHub.Keys == "" {
		return nil
	}
	if u, err := url.Parse(c.GitHub.Keys); err == nil && u.Scheme != "" && (u.Scheme != "https" || u.Host == "") {
		return []problem{{field: "leaks.github.keys", message: "it is neither an https:// address nor a file; leave it out for the address of GitHub's"}}
	}
	return nil
}

// leakRoutes adds what hears of leaks. It has no token: a signature proves who speaks.
func (s *Server) leakRoutes(api *http.ServeMux, gate *gate, now func() time.Time) {
	if s.config.Leaks.GitHub == nil {
		return
	}
	receiver := github.New(github.Config{
		Matcher:  s.engine,
		Feedback: s.config.Leaks.GitHub.Feedback,
		Keys:     github.NewKeys(github.KeysConfig{Source: s.config.Leaks.GitHub.Keys, Now: now}),
		Refused: func(r *http.Request, why string) {
			gate.refused.of(addressOf(r)).AllowN(now(), 1)
			s.tally.add(why, "lastFrom", addressOf(r))
		},
	})
	api.Handle("POST /v1/leaks/github", s.service.Public(receiver, gate))
}
