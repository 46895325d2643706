package forge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/provider"
)

// errHostKey: whoever answers at the forge's address is not the forge.
var errHostKey = errors.New("the host key is none of ssh.hostKeys")

// maxLine is the longest line of git's protocol (pkt-line), in bytes.
const maxLine = 65520

// dial connects to the forge by SSH. Its host key must be one of the config's. The
// connection ends with ctx; the caller calls end.
func (s *system) dial(ctx context.Context, auth ...ssh.AuthMethod) (client *ssh.Client, end func(), err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.settings.address)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // whatever waits ends
	end = func() {
		stop()
		_ = conn.Close()
	}
	var algorithms []string
	for _, k := range s.settings.hostKeys {
		if k.Type() == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			continue
		}
		algorithms = append(algorithms, k.Type())
	}
	var hostErr error
	secure, channels, requests, err := ssh.NewClientConn(conn, s.settings.address, &ssh.ClientConfig{
		User: s.settings.user, Auth: auth, HostKeyAlgorithms: algorithms, ClientVersion: "SSH-2.0-keyturn",
		HostKeyCallback: func(_ string, _ net.Addr, shown ssh.PublicKey) error {
			for _, k := range s.settings.hostKeys {
				if bytes.Equal(k.Marshal(), shown.Marshal()) {
					return nil
				}
			}
			hostErr = fmt.Errorf("%w: it is %s %s", errHostKey, shown.Type(), ssh.FingerprintSHA256(shown))
			return hostErr
		},
	})
	if err != nil {
		end()
		if hostErr != nil {
			err = hostErr
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, nil, err
	}
	return ssh.NewClient(secure, channels, requests), end, nil
}

// turnedAway reports whether the forge answered, proved to be the forge, was shown
// the key, and did not take it. The library has no error of its own for that.
func turnedAway(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unable to authenticate") && strings.Contains(text, "publickey")
}

// try lists the repository's branches with a version's key.
func (s *system) try(ctx context.Context, signer ssh.Signer) (provider.Verdict, error) {
	client, end, err := s.dial(ctx, ssh.PublicKeys(signer))
	switch {
	case err == nil:
	case errors.Is(err, errHostKey):
		return 0, provider.Permanent(err, "somebody is in the way, or the forge has a new host key: ask its administrator, then mend ssh.hostKeys")
	case turnedAway(err):
		return provider.Refused, nil
	default:
		return 0, err
	}
	defer end()
	session, err := client.NewSession()
	if err != nil {
		return 0, err
	}
	defer func() { _ = session.Close() }() // the connection ends with it
	said, err := session.StdoutPipe()
	if err != nil {
		return 0, err
	}
	complaint := &bounded{most: 200}
	session.Stderr = complaint
	if err := session.Start("git-upload-pack '" + s.settings.owner + "/" + s.settings.repo + ".git'"); err != nil {
		return 0, err
	}
	if err := firstLine(said); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, fmt.Errorf("the key was let in, and the repository not listed: %w: %q", err, complaint.text())
	}
	return provider.Accepted, nil
}

// firstLine reads the first line of what git-upload-pack says (gitprotocol-pack,
// "Reference Discovery").
func firstLine(r io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n, err := strconv.ParseUint(string(head[:]), 16, 16)
	if err != nil || n < 5 || n > maxLine {
		return errors.New("the answer is not git's")
	}
	line := make([]byte, n-4)
	if _, err := io.ReadFull(r, line); err != nil {
		return err
	}
	if id, _, ok := bytes.Cut(line, []byte(" ")); !ok || len(id) != 40 && len(id) != 64 || len(bytes.Trim(id, "0123456789abcdef")) > 0 {
		return errors.New("the answer lists no branch")
	}
	return nil
}

// bounded keeps the beginning of what is written.
type bounded struct {
	most int
	kept bytes.Buffer
}

func (b *bounded) Write(p []byte) (int, error) {
	b.kept.Write(p[:min(len(p), b.most-b.kept.Len())])
	return len(p), nil
}

func (b *bounded) text() string { return b.kept.String() }
