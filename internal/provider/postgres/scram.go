package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"github.com/keyturn/keyturn/secret"
)

const (
	// passwordLength and the 62 letters of passwordAlphabet give 238 bits.
	passwordLength   = 40
	passwordAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

	// scramIterations is the least that RFC 7677, section 4, allows, and PostgreSQL's
	// default. More would slow down every login and add nothing to 238 bits.
	scramIterations = 4096
	scramSaltLength = 16
)

// newPassword returns letters and digits only, so that a password needs no
// quoting in a URL, a shell, an INI or YAML file, and SASLprep leaves it as it is.
func newPassword() secret.Value {
	// Bytes from 248 on would make the first letters likelier than the others.
	const fair = 256 - 256%len(passwordAlphabet)
	password := make([]byte, 0, passwordLength)
	var random [2 * passwordLength]byte
	for {
		_, _ = rand.Read(random[:]) // never fails, see package crypto/rand
		for _, b := range random {
			if int(b) < fair {
				password = append(password, passwordAlphabet[int(b)%len(passwordAlphabet)])
			}
			if len(password) == passwordLength {
				value := secret.New(password)
				clear(password)
				clear(random[:])
				return value
			}
		}
	}
}

// errNotASCII: SASLprep (RFC 4013) leaves only printable ASCII as it is, and a
// password that it would change must not be hashed here without it.
var errNotASCII = errors.New("the password is empty or has characters beyond printable ASCII")

// newVerifier computes what PostgreSQL stores for a password, with a new salt.
func newVerifier(password secret.Value) (string, error) {
	salt := make([]byte, scramSaltLength)
	_, _ = rand.Read(salt) // never fails, see package crypto/rand
	return verifier(password, salt, scramIterations)
}

// verifier formats StoredKey and ServerKey (RFC 5802, section 3) as PostgreSQL
// does: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey.
func verifier(password secret.Value, salt []byte, iterations int) (string, error) {
	if password.Len() == 0 {
		return "", errNotASCII
	}
	for _, b := range password.Reveal() {
		if b < ' ' || b > '~' {
			return "", errNotASCII
		}
	}
	salted, err := pbkdf2.Key(sha256.New, password.RevealString(), salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive the SCRAM keys: %w", err)
	}
	clientKey := hmacSHA256(salted, "Client Key")
	storedKey := sha256.Sum256(clientKey)
	serverKey := hmacSHA256(salted, "Server Key")
	encode := base64.StdEncoding.EncodeToString
	return "SCRAM-SHA-256$" + strconv.Itoa(iterations) + ":" + encode(salt) + "$" + encode(storedKey[:]) + ":" + encode(serverKey), nil
}

func hmacSHA256(key []byte, message string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(message))
	return mac.Sum(nil)
}
