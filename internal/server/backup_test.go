package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/backup"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/server"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/test/pgtest"
)

type backupStream = *connect.ServerStreamForClient[keyturnv1.BackupResponse]

// slow is the same server for a client that takes little at a time.
func (w *world) slow(tb testing.TB) *world {
	tb.Helper()
	transport := w.http.Transport.(*http.Transport).Clone()
	transport.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 64 << 10}
	tb.Cleanup(transport.CloseIdleConnections)
	return &world{Server: w.Server, dir: w.dir, http: &http.Client{Transport: transport}, root: w.root}
}

// fill makes the store so large that a client of slow holds a backup up.
func (w *world) fill(tb testing.TB) {
	tb.Helper()
	for i := range 40 {
		source := fmt.Sprintf("apiVersion: keyturn/v1\nkind: Key\nmetadata: {name: fill/k%d}\nspec: {provider: memory, policy: dev-only, config: {secretname: %s}}\n", i, strings.Repeat("x", 60_000))
		for _, p := range w.apply(tb, w.root, source).GetProblems() {
			if p.GetSeverity() == "error" {
				tb.Fatal(p)
			}
		}
	}
}

func recipient(tb testing.TB) *age.X25519Identity {
	tb.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		tb.Fatal(err)
	}
	return identity
}

// begun is a backup whose first piece has come.
func (w *world) begun(tb testing.TB, ctx context.Context, identity *age.X25519Identity) (backupStream, []byte) {
	tb.Helper()
	stream, err := w.control(w.root).Backup(ctx, &keyturnv1.BackupRequest{Recipients: []string{identity.Recipient().String()}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = stream.Close() })
	if !stream.Receive() {
		tb.Fatal(stream.Err())
	}
	return stream, bytes.Clone(stream.Msg().GetPiece())
}

// rest reads on and wants the stream to end well.
func rest(tb testing.TB, stream backupStream, file []byte) ([]byte, *keyturnv1.BackupManifest) {
	tb.Helper()
	var manifest *keyturnv1.BackupManifest
	for stream.Receive() {
		if manifest != nil {
			tb.Error("there is more after the manifest")
		}
		file = append(file, stream.Msg().GetPiece()...)
		manifest = stream.Msg().GetManifest()
	}
	if stream.Err() != nil || manifest == nil {
		tb.Fatalf("the stream ended with %v, manifest %v", stream.Err(), manifest)
	}
	sum := sha256.Sum256(file)
	if manifest.GetBytes() != int64(len(file)) || !bytes.Equal(manifest.GetSha256(), sum[:]) {
		tb.Errorf("the manifest tells of %d bytes, SHA-256 %x, got %d, %x", manifest.GetBytes(), manifest.GetSha256(), len(file), sum)
	}
	return file, manifest
}

// held is what a backup holds: how many tokens are stored and how many were
// entered into the log, which is one transaction, and the actions in the log.
func held(tb testing.TB, file []byte, identity age.Identity) (stored, logged int, actions string) {
	tb.Helper()
	reader, err := backup.Open(bytes.NewReader(file), identity)
	if err != nil {
		tb.Fatal(err)
	}
	err = reader.Dump(tb.Context(), func(rows func(store.Table) store.Rows) error {
		for _, table := range store.Tables() {
			for row, err := range rows(table) {
				switch {
				case err != nil:
					return err
				case table.Name == "docs" && row[0] == "token":
					stored++
				case table.Name == "log_records":
					entry, err := audit.Decode(row[1].([]byte))
					if err != nil {
						return err
					}
					if entry.Action == audit.ActionToken {
						logged++
					}
					actions += string(entry.Action) + " "
				}
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return stored, logged, actions
}

// TestBackup takes backups of a server that is written to meanwhile.
func TestBackup(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	for name, config := range map[string]server.Config{"sqlite": configOf(t.TempDir()), "postgres": onPostgres(t, t.TempDir(), database)} {
		t.Run(name, func(t *testing.T) {
			w := startServer(t, config)
			w.mustApply(t)
			w.fill(t)
			_, version := w.rotateNow(t)
			if err := first(w.control(w.root).ExportLog(t.Context(), &keyturnv1.ExportLogRequest{})); err != nil { // it signs the log
				t.Fatal(err)
			}
			identity := recipient(t)
			stream, file := w.slow(t).begun(t, t.Context(), identity)
			// Nobody waits for the backup, and the backup sees none of it.
			for i := range 20 {
				w.token(t, fmt.Sprintf("late%d", i), "viewer", "**")
			}
			w.rotateNow(t)
			err := first(w.control(w.root).Backup(t.Context(), &keyturnv1.BackupRequest{Recipients: []string{identity.Recipient().String()}}))
			wantCode(t, "a second one", err, connect.CodeResourceExhausted)
			if !strings.Contains(fmt.Sprint(err), w.Address()) {
				t.Errorf("where the first one is under way is not told: %v", err)
			}
			file, manifest := rest(t, stream, file)

			verifier, err := note.NewVerifier(w.VerifierKey())
			if err != nil {
				t.Fatal(err)
			}
			whole, report, err := backup.Verify(t.Context(), bytes.NewReader(file), []age.Identity{identity}, verifier)
			if err != nil || report.Proven == 0 {
				t.Fatalf("%+v, %v", report, err)
			}
			if whole.Rows() != manifest.GetRows() || whole.Log.Size != manifest.GetLogSize() || whole.Time.UnixMicro() != manifest.GetCreatedAt().AsTime().UnixMicro() {
				t.Errorf("the server tells of %v, the file holds %+v", manifest, whole)
			}
			stored, logged, actions := held(t, file, identity)
			if stored != logged || stored != 1 {
				t.Errorf("the backup holds %d tokens and %d entries about them, want 1 of each", stored, logged)
			}
			if !strings.Contains(actions, "backup.begin") || strings.Contains(actions, "backup.end") {
				t.Errorf("its log holds %s", actions)
			}
			password := []byte(fmt.Sprintf("dev/db %d", version))
			if plain := decrypted(t, file, identity); bytes.Contains(plain, password) || bytes.Contains(plain, []byte(w.root)) || bytes.Contains(file, []byte("secretname")) {
				t.Error("the backup holds a secret")
			}
			log := w.log(t)
			for _, want := range []string{
				`"action":"backup.begin"`, `"action":"backup.end"`, identity.Recipient().String(),
				fmt.Sprintf(`"sha256":"%x"`, manifest.GetSha256()), fmt.Sprintf(`"log-size":"%d"`, manifest.GetLogSize()),
			} {
				if !strings.Contains(log, want) {
					t.Errorf("the audit log lacks %s", want)
				}
			}

			// At rest, the backup is the store.
			pgtest.Eventually(t, "the store is at rest", func() bool {
				before, copied, after := digests(t, w, identity)
				if before.Difference(after) != "" {
					return false
				}
				if different := before.Difference(copied); different != "" {
					t.Errorf("the backup is not the store: %s", different)
				}
				return true
			})
		})
	}
}

// digests are those of the store, of a backup, and of the store again.
func digests(tb testing.TB, w *world, identity *age.X25519Identity) (before, copied, after store.Digest) {
	tb.Helper()
	of := func(source store.Dumper) store.Digest {
		digest, err := store.DigestOf(tb.Context(), source)
		if err != nil {
			tb.Fatal(err)
		}
		return digest
	}
	before = of(w.Dumper())
	var file bytes.Buffer
	if _, err := w.Backups().Write(tb.Context(), &file, []string{identity.Recipient().String()}); err != nil {
		tb.Fatal(err)
	}
	after = of(w.Dumper())
	reader, err := backup.Open(&file, identity)
	if err != nil {
		tb.Fatal(err)
	}
	return before, of(reader), after
}

// log is the audit log.
func (w *world) log(tb testing.TB) string {
	tb.Helper()
	var text strings.Builder
	for from := uint64(0); ; {
		page, err := w.control(w.root).ReadLog(tb.Context(), &keyturnv1.ReadLogRequest{From: from, Limit: 1000})
		if err != nil {
			tb.Fatal(err)
		}
		text.WriteString(strings.Join(page.GetEntries(), "\n"))
		if from = page.GetNext(); from >= page.GetSize() {
			return text.String()
		}
	}
}

// decrypted is what the recipient sees.
func decrypted(tb testing.TB, file []byte, identity age.Identity) []byte {
	tb.Helper()
	plain, err := age.Decrypt(bytes.NewReader(file), identity)
	if err != nil {
		tb.Fatal(err)
	}
	content, err := io.ReadAll(plain)
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

// TestBackupRefuses: what is refused is audited, and names no identity.
func TestBackupRefuses(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	identity := recipient(t)
	good := []string{identity.Recipient().String()}
	ask := func(token string, recipients ...string) error {
		return first(w.control(token).Backup(t.Context(), &keyturnv1.BackupRequest{Recipients: recipients}))
	}
	for _, role := range []string{"operator", "approver", "viewer", "agent", "join"} {
		wantCode(t, role, ask(w.token(t, role, role, "**"), good...), connect.CodePermissionDenied)
	}
	wantCode(t, "an admin of some keys", ask(w.token(t, "half", "admin", "prod/**"), good...), connect.CodePermissionDenied)
	wantCode(t, "nobody", ask("nonsense", good...), connect.CodeUnauthenticated)
	log := w.log(t)
	if n := strings.Count(log, `"action":"backup"`); n != 6 || strings.Contains(log, "backup.begin") {
		t.Errorf("the log holds %d denials, want 6: %s", n, log)
	}
	for what, recipients := range map[string][]string{
		"none": nil, "an empty one": {""}, "another word": {good[0], "me"}, "an identity": {identity.String()},
		"a long one": {good[0], "age1" + strings.Repeat("q", 5000)}, "too many": slices.Repeat(good, 9),
	} {
		err := ask(w.root, recipients...)
		wantCode(t, what, err, connect.CodeInvalidArgument)
		if err != nil && strings.Contains(err.Error(), identity.String()) {
			t.Errorf("%s: the error shows it: %v", what, err)
		}
	}
	if log := w.log(t); strings.Contains(log, "backup.begin") || strings.Contains(log, identity.String()) {
		t.Errorf("the log holds %s", log)
	}
}

// TestBackupForLongRecipients: of recipients that no audit entry can hold it holds
// the SHA-256.
func TestBackupForLongRecipients(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	name := identity.Recipient().String()
	stream, err := w.control(w.root).Backup(t.Context(), &keyturnv1.BackupRequest{Recipients: slices.Repeat([]string{name}, 8)})
	if err != nil {
		t.Fatal(err)
	}
	file, _ := rest(t, stream, nil)
	held(t, file, identity)
	if log, want := w.log(t), fmt.Sprintf(`"recipient.8":"sha256:%x"`, sha256.Sum256([]byte(name))); strings.Count(log, want) != 2 {
		t.Errorf("the log lacks %s: %s", want, log)
	}
}

// TestBackupEnds: a backup ends with its caller, its token and the server; that it
// failed is audited, and the next one may begin.
func TestBackupEnds(t *testing.T) {
	w := startServer(t, configOf(t.TempDir()))
	w.mustApply(t)
	w.fill(t)
	identity := recipient(t)
	failed := func() int { return strings.Count(w.log(t), `"action":"backup.end","outcome":"failed"`) }
	ctx, cancel := context.WithCancel(t.Context())
	w.slow(t).begun(t, ctx, identity)
	cancel()
	pgtest.Eventually(t, "its end is recorded", func() bool { return failed() == 1 })
	stream, file := w.begun(t, t.Context(), identity)
	rest(t, stream, file)

	token, err := w.control(w.root).CreateToken(t.Context(), &keyturnv1.CreateTokenRequest{Name: "brief", Role: "admin", Keys: []string{"**"}})
	if err != nil {
		t.Fatal(err)
	}
	brief := w.slow(t)
	brief.root = token.GetToken()
	stream, _ = brief.begun(t, t.Context(), identity)
	if _, err := w.control(w.root).RevokeToken(t.Context(), &keyturnv1.RevokeTokenRequest{Id: token.GetId()}); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		if stream.Msg().GetManifest() != nil {
			t.Error("a backup whose token was revoked has a manifest")
		}
	}
	wantCode(t, "a backup whose token was revoked", stream.Err(), connect.CodeUnauthenticated)
	pgtest.Eventually(t, "its end is recorded", func() bool { return failed() == 2 })

	stream, _ = w.slow(t).begun(t, t.Context(), identity)
	stopped := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		stopped <- w.Stop(ctx)
	}()
	for stream.Receive() {
		if stream.Msg().GetManifest() != nil {
			t.Error("a backup that the server's stop cut off has a manifest")
		}
	}
	wantCode(t, "a backup when the server stops", stream.Err(), connect.CodeUnavailable)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestOneBackupOfAnInstallation: while one server backs up, no other on the same store
// does, and who asks is told where and since when.
func TestOneBackupOfAnInstallation(t *testing.T) {
	database := pgtest.Start(t, pgserver.Config{})
	pgtest.Exec(t, database, "postgres", "CREATE DATABASE keyturn")
	config := onPostgres(t, t.TempDir(), database)
	one := startServer(t, config)
	one.mustApply(t)
	one.fill(t)
	two := secondNode(t, one, config)
	identity := recipient(t)
	begun := time.Now().UTC()
	stream, file := one.slow(t).begun(t, t.Context(), identity)
	err := first(two.control(two.root).Backup(t.Context(), &keyturnv1.BackupRequest{Recipients: []string{identity.Recipient().String()}}))
	wantCode(t, "a backup at another server", err, connect.CodeResourceExhausted)
	if said := fmt.Sprint(err); !strings.Contains(said, one.Address()) || !strings.Contains(said, " since "+begun.Format("2006-01-02")) {
		t.Errorf("it is not told where and since when: %v", err)
	}
	rest(t, stream, file)
	stream, file = two.begun(t, t.Context(), identity)
	rest(t, stream, file)
}
