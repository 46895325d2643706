package agent

import (
	"fmt"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/keyturn/keyturn/client"
	"github.com/keyturn/keyturn/client/tokensource"
	"github.com/keyturn/keyturn/internal/agent/metadata"
)

// maxMetadataTokens bounds the tokens of one agent.
const maxMetadataTokens = 32

type documentMetadata struct {
	Listen            string                  `yaml:"listen"`
	AuthorizationFile string                  `yaml:"authorizationFile"`
	Mode              literal                 `yaml:"mode"`
	Owner             string                  `yaml:"owner"`
	Group             string                  `yaml:"group"`
	Google            bool                    `yaml:"google"`
	Azure             bool                    `yaml:"azure"`
	Tokens            []documentMetadataToken `yaml:"tokens"`
}

type documentMetadataToken struct {
	Name             string   `yaml:"name"`
	Issuer           string   `yaml:"issuer"`
	Audiences        []string `yaml:"audiences"`
	Scopes           []string `yaml:"scopes"`
	SubjectTokenFile string   `yaml:"subjectTokenFile"`
	SubjectTokenType string   `yaml:"subjectTokenType"`
}

// metadata checks the endpoint for tokens.
func (r *reader) metadata(d *documentMetadata, cfg Config) *Metadata {
	const at = "metadata"
	m := &Metadata{AuthorizationFile: d.AuthorizationFile, Google: d.Google, Azure: d.Azure}
	var err error
	if m.Listen, err = metadata.ParseAddress(d.Listen); err != nil {
		r.fail(at+".listen", fmt.Sprintf("%q could be reached by others, or is no address", d.Listen), err.Error())
	}
	m.Mode = r.mode(at, documentTarget{Mode: d.Mode})
	m.UID, m.GID = r.userOf(at, d.Owner), r.groupOf(at, d.Group)
	if d.AuthorizationFile != "" {
		if !filepath.IsAbs(d.AuthorizationFile) || filepath.Clean(d.AuthorizationFile) != d.AuthorizationFile {
			r.fail(at+".authorizationFile", fmt.Sprintf("%q is no absolute, clean path of a file", d.AuthorizationFile), "write for example /run/keyturn/tokens.auth")
		}
		if d.Google {
			r.fail(at+".google", "Google's clients cannot show what is in authorizationFile", "leave one of the two out, or listen on a unix socket")
		}
	}
	if len(d.Tokens) == 0 || len(d.Tokens) > maxMetadataTokens {
		r.fail(at+".tokens", fmt.Sprintf("there are %d", len(d.Tokens)), fmt.Sprintf("name 1 to %d, each with name and issuer", maxMetadataTokens))
	}
	names := map[string]bool{}
	for i, t := range d.Tokens {
		at := fmt.Sprintf("%s.tokens[%d]", at, i)
		if !targetName.MatchString(t.Name) || names[t.Name] {
			r.fail(at+".name", fmt.Sprintf("%q is no name, or there twice", t.Name), "use 1 to 63 letters, digits, '.', '_' and '-'")
		}
		names[t.Name] = true
		one := MetadataToken{Name: t.Name, Issuer: t.Issuer, Audiences: t.Audiences, Scopes: t.Scopes, SubjectFile: t.SubjectTokenFile, SubjectType: t.SubjectTokenType}
		switch t.SubjectTokenType {
		case "jwt", "":
			one.SubjectType = tokensource.TypeJWT
		case "id_token":
			one.SubjectType = tokensource.TypeID
		case "api-key":
			one.SubjectType = tokensource.TypeAPIKey
		default:
			r.fail(at+".subjectTokenType", fmt.Sprintf("%q is unknown", t.SubjectTokenType), "write jwt, id_token or api-key")
		}
		if t.SubjectTokenFile != "" && !filepath.IsAbs(t.SubjectTokenFile) {
			r.fail(at+".subjectTokenFile", fmt.Sprintf("%q is relative", t.SubjectTokenFile), "write an absolute path")
		}
		r.tokenSource(at, &one, cfg)
		m.Tokens = append(m.Tokens, one)
	}
	return m
}

// tokenSource lets package tokensource check what it will be given.
func (r *reader) tokenSource(at string, t *MetadataToken, cfg Config) {
	cfg.CAFile = "" // it is read at the start
	config := t.source(cfg, client.TokenFile(cfg.TokenFile))
	err := config.Check()
	switch {
	case err == nil:
		return
	case strings.Contains(err.Error(), "Issuer"):
		at += ".issuer"
	case strings.Contains(err.Error(), "scope"):
		at += ".scopes"
	case strings.Contains(err.Error(), "Addresses"):
		at = "server"
	}
	r.fail(at, strings.TrimPrefix(err.Error(), tokensource.ErrConfig.Error()+": "), "")
}

func (r *reader) userOf(at, name string) int {
	return r.account(at+".owner", name, func() (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func (r *reader) groupOf(at, name string) int {
	return r.account(at+".group", name, func() (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}
