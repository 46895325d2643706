package server

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/keyturn/keyturn/internal/egress"
)

func (c *WebhooksConfig) check() []problem {
	var problems []problem
	wrong := func(field, message string) {
		problems = append(problems, problem{Field: "apiKeys.webhooks." + field, Message: message})
	}
	for i, text := range c.Allow {
		if _, err := netip.ParsePrefix(text); err != nil {
			wrong(fmt.Sprintf("allow[%d]", i), fmt.Sprintf("%q is no network; write for example 10.1.0.0/16", text))
		}
	}
	if c.Proxy != "" && !isProxy(c.Proxy) {
		wrong("proxy", "it is no address of a proxy; write for example http://proxy.example:3128, and who you are as proxyUsername and proxyPasswordFile")
	}
	for i, name := range c.ProxyNames {
		if !isHost(strings.TrimPrefix(name, "*.")) {
			wrong(fmt.Sprintf("proxyNames[%d]", i), fmt.Sprintf("%q is no host; write for example hooks.acme.example or *.acme.example", name))
		}
	}
	if c.Proxy == "" && len(c.ProxyNames)+len(c.ProxyUsername)+len(c.ProxyPasswordFile) > 0 {
		wrong("proxy", "it is missing, and there is more about a proxy")
	}
	if (c.ProxyUsername == "") != (c.ProxyPasswordFile == "") {
		wrong("proxyUsername", "proxyUsername and proxyPasswordFile belong together; give both or none")
	}
	return problems
}

func isProxy(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil && strings.Trim(u.Path, "/") == "" && u.RawQuery == "" && u.Fragment == ""
}

// isHost reports whether a text is a DNS name, and no address.
func isHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil || !strings.Contains(text, ".") || len(text) > 253 {
		return false
	}
	for label := range strings.SplitSeq(text, ".") {
		if label == "" || strings.ContainsFunc(label, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_'
		}) {
			return false
		}
	}
	return true
}

// guard keeps webhooks away from the inner network.
func (c *WebhooksConfig) guard() egress.Guard {
	var guard egress.Guard
	for _, text := range c.Allow {
		network, _ := netip.ParsePrefix(text) // it was checked
		guard.Allow = append(guard.Allow, network)
	}
	if c.Proxy == "" {
		return guard
	}
	at, _ := url.Parse(c.Proxy) // it was checked
	guard.Proxy = &egress.Proxy{URL: at, Names: c.ProxyNames}
	if c.ProxyUsername != "" {
		username, file := c.ProxyUsername, c.ProxyPasswordFile
		guard.Proxy.Authorization = func() (string, error) {
			password, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+strings.TrimSpace(string(password)))), nil
		}
	}
	return guard
}
