// Package passfile reads files that hold one password.
//
// It guarantees that reading neither waits nor fills the memory, whatever the path
// leads to, that a file with more than one password is refused, and that no error
// repeats a word of what is in the file.
package passfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Max bounds a password, in bytes: PostgreSQL's own clients take no longer one.
const Max = 1024

// Read returns the one line of a regular file, without its end. It refuses a file
// whose mode has one of the forbidden bits. Its errors name the path and say what to
// do; those of the system are wrapped. It may be called concurrently.
func Read(path string, forbidden fs.FileMode) (string, error) {
	// A pipe would be waited for, if it were opened like a file.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return "", fmt.Errorf("%s can be read by everybody (mode %04o; run: chmod 0600 %s)", path, mode, path)
	}
	content, err := io.ReadAll(io.LimitReader(file, Max+3)) // with its line's end, and one more
	defer clear(content)
	if err != nil {
		return "", err
	}
	password, err := parse(content)
	if err != nil {
		return "", fmt.Errorf("%s %w", path, err)
	}
	return password, nil
}

// parse takes the one line of a password file. Errors do not repeat it.
func parse(content []byte) (string, error) {
	line := bytes.TrimSuffix(bytes.TrimSuffix(content, []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return "", errors.New("is empty; write the password into it, in one line")
	case len(line) > Max:
		return "", fmt.Errorf("has more than %d bytes; is it the right file?", Max)
	case bytes.ContainsAny(line, "\r\n\x00"):
		return "", errors.New("has more than one line, or is not text; write nothing but the password into it")
	}
	return string(line), nil
}
