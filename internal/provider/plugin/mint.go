package plugin

import (
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
	"github.com/keyturn/keyturn/provider/providerconf"
	"github.com/keyturn/keyturn/secret"
)

// recipe says how Keyturn itself mints versions, so that a plugin need not.
type recipe struct {
	secrets map[string]draw
	// attributes are texts in which {version}, {key} and {slot} are replaced.
	attributes map[string]string
	// slots is how many versions there can be; 0 means any number.
	slots int
}

// draw says how to draw one secret.
type draw struct {
	prefix   string
	length   int
	alphabet string
}

const (
	minBits       = 128
	defaultLength = 32
	maxLength     = 4096
	maxPrefix     = 64
	slotAttribute = "slot"

	digits    = "0123456789"
	lower     = "abcdefghijklmnopqrstuvwxyz"
	upper     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	defaultOf = "alphanumeric"
)

// alphabet returns the characters of a named alphabet, or those that are written out.
func alphabet(name string) string {
	switch name {
	case defaultOf:
		return digits + lower + upper
	case "hex":
		return digits + "abcdef"
	case "digits":
		return digits
	case "base64url":
		return digits + lower + upper + "-_"
	}
	return name
}

func parseRecipe(b *providerconf.Block, capacity int) *recipe {
	if !b.Has("mint") {
		return nil
	}
	block := b.Block("mint", "", "secrets", "attributes")
	out := &recipe{secrets: map[string]draw{}, attributes: map[string]string{}, slots: capacity}
	secrets := block.Map("secrets", "")
	if len(secrets.Names()) == 0 {
		block.Report("secrets", "at least one secret is required", "write for example mint: {secrets: {password: {length: 32}}}; without mint the plugin mints")
	}
	for _, name := range secrets.Names() {
		if err := checkField(name, 0, 0); err != nil {
			secrets.Report(name, err.Error(), "write for example password")
		}
		out.secrets[name] = parseDraw(secrets.Block(name, "", "length", "alphabet", "prefix"))
	}
	attributes := block.Map("attributes", "")
	for _, name := range attributes.Names() {
		value := attributes.Text(name, maxName, "")
		if err := checkField(name, 0, 0); err != nil {
			attributes.Report(name, err.Error(), "write for example username")
		}
		if _, twice := out.secrets[name]; twice || name == slotAttribute {
			attributes.Report(name, "the name is taken", "give it another one")
		}
		if strings.Contains(value, "{slot}") && capacity == 0 {
			attributes.Report(name, "there are no slots without capacity", "set capacity, or write {version}")
		}
		out.attributes[name] = value
	}
	return out
}

func parseDraw(how *providerconf.Block) draw {
	d := draw{length: how.Int("length", 1, maxLength, defaultLength, ""), alphabet: alphabet(defaultOf), prefix: how.Text("prefix", maxPrefix, "")}
	if chosen := how.Text("alphabet", 256, ""); chosen != "" {
		d.alphabet = alphabet(chosen)
	}
	distinct := map[rune]bool{}
	for _, c := range d.alphabet {
		distinct[c] = true
		if c <= ' ' || c > '~' {
			how.Report("alphabet", "it has characters other than printable ASCII", "write alphanumeric, hex, digits, base64url, or the characters themselves")
			break
		}
	}
	if len(distinct) != len(d.alphabet) {
		how.Report("alphabet", "a character is there twice", "write every character once")
	} else if bits := float64(d.length) * math.Log2(float64(len(d.alphabet))); bits < minBits {
		how.Report("length", fmt.Sprintf("%d characters of this alphabet are %.0f bits", d.length, bits), fmt.Sprintf("%d bits are needed: write at least %d", minBits, needed(len(d.alphabet))))
	}
	return d
}

// needed is how many characters of an alphabet of n have minBits.
func needed(n int) int {
	if n < 2 {
		return maxLength
	}
	return int(math.Ceil(minBits / math.Log2(float64(n))))
}

// make mints one version. random must be cryptographically secure.
func (m *recipe) make(random io.Reader, name key.Name, request provider.MintRequest) (provider.Material, error) {
	out := provider.Material{Attributes: map[string]string{}, Secrets: map[string]secret.Value{}}
	slot := ""
	if m.slots > 0 {
		taken := map[string]bool{}
		for _, v := range request.Live {
			taken[v.Material.Attributes[slotAttribute]] = true
		}
		for i := 1; i <= m.slots && slot == ""; i++ {
			if !taken[strconv.Itoa(i)] {
				slot = strconv.Itoa(i)
			}
		}
		if slot == "" || len(request.Live) >= m.slots && m.slots > 1 {
			return provider.Material{}, fmt.Errorf("%w: %d versions hold all of %d slots", provider.ErrNoRoom, len(request.Live), m.slots)
		}
		out.Attributes[slotAttribute] = slot
	}
	replace := strings.NewReplacer("{version}", strconv.FormatUint(uint64(request.Number), 10), "{key}", string(name), "{slot}", slot)
	for attribute, text := range m.attributes {
		out.Attributes[attribute] = replace.Replace(text)
	}
	for field, d := range m.secrets {
		text := make([]byte, 0, len(d.prefix)+d.length)
		text = append(text, d.prefix...)
		most := big.NewInt(int64(len(d.alphabet)))
		for range d.length {
			i, err := rand.Int(random, most)
			if err != nil {
				return provider.Material{}, fmt.Errorf("draw a secret: %w", err)
			}
			text = append(text, d.alphabet[i.Int64()])
		}
		out.Secrets[field] = secret.New(text)
		clear(text)
	}
	return out, nil
}
