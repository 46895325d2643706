package plugin

import (
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/provider"
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

func parseRecipe(r *reader, fields map[string]any, capacity int) *recipe {
	if _, has := fields["mint"]; !has {
		return nil
	}
	const path = "mint"
	block := r.block("", fields, path)
	r.only(path, block, "secrets", "attributes")
	out := &recipe{secrets: map[string]draw{}, attributes: map[string]string{}, slots: capacity}
	secrets := r.block(path, block, "secrets")
	if len(secrets) == 0 {
		r.add("mint.secrets", "at least one secret is required", "write for example mint: {secrets: {password: {length: 32}}}; without mint the plugin mints")
	}
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		at := "mint.secrets." + name
		if err := checkField(name, 0, 0); err != nil {
			r.add(at, err.Error(), "write for example password")
		}
		how := r.block("mint.secrets", secrets, name)
		r.only(at, how, "length", "alphabet", "prefix")
		d := draw{length: r.number(at, how, "length", 1, maxLength, defaultLength), alphabet: alphabet(defaultOf), prefix: r.text(at, how, "prefix", maxPrefix)}
		if chosen := r.text(at, how, "alphabet", 256); chosen != "" {
			d.alphabet = alphabet(chosen)
		}
		distinct := map[rune]bool{}
		for _, c := range d.alphabet {
			distinct[c] = true
			if c <= ' ' || c > '~' {
				r.add(join(at, "alphabet"), "it has characters other than printable ASCII", "write alphanumeric, hex, digits, base64url, or the characters themselves")
				break
			}
		}
		if len(distinct) != len(d.alphabet) {
			r.add(join(at, "alphabet"), "a character is there twice", "write every character once")
		} else if bits := float64(d.length) * math.Log2(float64(len(d.alphabet))); bits < minBits {
			r.add(join(at, "length"), fmt.Sprintf("%d characters of this alphabet are %.0f bits", d.length, bits), fmt.Sprintf("%d bits are needed: write at least %d", minBits, needed(len(d.alphabet))))
		}
		out.secrets[name] = d
	}
	attributes := r.block(path, block, "attributes")
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		at := "mint.attributes." + name
		value := r.text("mint.attributes", attributes, name, maxName)
		if err := checkField(name, 0, 0); err != nil {
			r.add(at, err.Error(), "write for example username")
		}
		if _, twice := out.secrets[name]; twice || name == slotAttribute {
			r.add(at, "the name is taken", "give it another one")
		}
		if strings.Contains(value, "{slot}") && capacity == 0 {
			r.add(at, "there are no slots without capacity", "set capacity, or write {version}")
		}
		out.attributes[name] = value
	}
	return out
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
