package cli_test

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyturn/keyturn/client/clienttest"
)

// TestDelivery runs exec and agent against the delivery API.
func TestDelivery(t *testing.T) {
	cmds := commands()
	// parties NUMBER: so many are registered.
	cmds["parties"] = func(ts *testscript.TestScript, _ bool, args []string) {
		if n := len(ts.Value("server").(*clienttest.Server).Parties()); fmt.Sprint(n) != args[0] {
			ts.Fatalf("%d parties are registered, want %s", n, args[0])
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/delivery", RequireExplicitExec: true, RequireUniqueNames: true, Cmds: cmds,
		Setup: func(e *testscript.Env) error {
			s := clienttest.New(t)
			s.Set(clienttest.Value{
				Key: "prod/orders/db", Attributes: map[string]string{"username": "orders_a"}, Secrets: map[string]string{"password": "pa55"},
			})
			e.Values["server"] = s
			config := s.Config()
			token, err := config.Token.Token(t.Context())
			if err != nil {
				return err
			}
			conn, err := tls.Dial("tcp", strings.TrimPrefix(config.Address, "https://"), &tls.Config{RootCAs: config.RootCAs})
			if err != nil {
				return err
			}
			defer conn.Close()
			authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conn.ConnectionState().PeerCertificates[0].Raw})
			e.Setenv("KEYTURN_ADDR", config.Address)
			e.Setenv("KEYTURN_TOKEN", token.RevealString())
			e.Setenv("KEYTURN_CACERT", filepath.Join(e.WorkDir, "ca.pem"))
			e.Setenv("HOME", e.WorkDir+"/home")
			agent := fmt.Sprintf(`server: %s
caFile: %s/ca.pem
stateDir: %[2]s/state
targets:
  - name: db
    path: %[2]s/out/db.env
    template: |
      {{ with key "prod/orders/db" }}{{ .username }} {{ .password }}{{ end }}
`, config.Address, e.WorkDir)
			for name, content := range map[string]string{"ca.pem": string(authority), "agent.yaml": agent, "bad.yaml": "servr: x\n"} {
				if err := os.WriteFile(filepath.Join(e.WorkDir, name), []byte(content), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	})
}
