package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxPassword bounds the password file, in bytes: PostgreSQL's own clients take no
// longer password.
const maxPassword = 1024

// readPassword reads a password file that others cannot read.
func readPassword(path string) (string, error) {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("postgres: %w: the password: %w", ErrConfig, fmt.Errorf(format, args...))
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", wrong("%w", err)
	}
	if !info.Mode().IsRegular() {
		return "", wrong("%s is not a regular file", path) // reading it could wait for ever
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", wrong("%s can be read by everybody (mode %04o; run: chmod 0600 %s)", path, info.Mode().Perm(), path)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", wrong("%w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxPassword+3)) // with its line's end, and one more
	if err != nil {
		return "", wrong("%w", err)
	}
	defer clear(content)
	password, err := parsePassword(content)
	if err != nil {
		return "", wrong("%s %w", path, err)
	}
	return password, nil
}

// parsePassword takes the one line of a password file. Errors do not repeat it.
func parsePassword(content []byte) (string, error) {
	line := bytes.TrimSuffix(bytes.TrimSuffix(content, []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return "", errors.New("is empty; write the password of the database's user into it, in one line")
	case len(line) > maxPassword:
		return "", fmt.Errorf("has more than %d bytes; is it the right file?", maxPassword)
	case bytes.ContainsAny(line, "\r\n\x00"):
		return "", errors.New("has more than one line, or is not text; write nothing but the password into it")
	}
	return string(line), nil
}
