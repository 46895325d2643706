package real

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// appVariable holds the path of the file that a file application reads, and
	// serversVariable the addresses it logs in to.
	appVariable     = "KEYTURN_TEST_APPLICATION"
	serversVariable = "KEYTURN_TEST_SERVERS"
)

// appFile is what the agents' template renders.
type appFile struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// appResult is what a file application prints when it ends.
type appResult struct {
	Queries  int64    `json:"queries"`
	Failures int64    `json:"failures"`
	Reloads  int64    `json:"reloads"`
	Errors   []string `json:"errors,omitempty"`
}

// fileApp is an application that knows nothing of Keyturn: it reads its
// credential from a file, at SIGHUP again, and opens new connections all the
// time.
type fileApp struct {
	path    string
	servers []string
	load    load
	reloads atomic.Int64

	mu   sync.Mutex
	file appFile
}

// fileApplication runs a file application until its standard input ends. It
// prints the address of its health check, and at the end an appResult.
func fileApplication(path string) int {
	app := &fileApp{path: path}
	if err := json.Unmarshal([]byte(os.Getenv(serversVariable)), &app.servers); err != nil {
		return app.give(err)
	}
	hup := make(chan os.Signal, 16)
	signal.Notify(hup, syscall.SIGHUP)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return app.give(err)
	}
	go func() {
		_ = http.Serve(listener, http.HandlerFunc(app.health)) // it ends with the process
	}()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-hup:
				app.reloads.Add(1)
				app.read()
			case <-ctx.Done():
				return
			}
		}
	})
	app.read()
	for _, addr := range app.servers {
		running.Go(func() { app.query(ctx, addr) })
	}
	fmt.Println(listener.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin) // ends when the test closes it
	cancel()
	running.Wait()
	result := appResult{Queries: app.load.queries.Load(), Failures: app.load.failures.Load(), Reloads: app.reloads.Load(), Errors: app.load.report()}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		return app.give(err)
	}
	return 0
}

func (a *fileApp) give(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// read takes what the file says. There is none before the first delivery.
func (a *fileApp) read() {
	file, err := readAppFile(a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		a.load.fail("read the file", err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.file = file
}

func readAppFile(path string) (appFile, error) {
	var file appFile
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &file)
	}
	return file, err
}

func (a *fileApp) credential() appFile {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.file
}

func (a *fileApp) query(ctx context.Context, addr string) {
	for ctx.Err() == nil {
		if cred := a.credential(); cred.Username != "" {
			err := a.once(ctx, addr, cred)
			if ctx.Err() != nil {
				return
			}
			a.load.queries.Add(1)
			if err != nil {
				a.load.fail(addr, err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * pauseBetween):
		}
	}
}

// once logs in, asks who it is, and logs out.
func (a *fileApp) once(ctx context.Context, addr string, cred appFile) error {
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", cred.Username, addr, database))
	if err != nil {
		return err
	}
	config.Password = cred.Password
	config.RuntimeParams["application_name"] = "file-application"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	var user string
	err = conn.QueryRow(ctx, "SELECT session_user").Scan(&user)
	if err == nil && user != cred.Username {
		err = fmt.Errorf("logged in as %s, not as %s", user, cred.Username)
	}
	return errors.Join(err, conn.Close(ctx))
}

// health is well when the application uses what its file says, and can log in
// with it.
func (a *fileApp) health(w http.ResponseWriter, r *http.Request) {
	file, err := readAppFile(a.path)
	if err == nil && file != a.credential() {
		err = errors.New("the file was not read again yet")
	}
	for _, addr := range a.servers {
		if err == nil {
			err = a.once(r.Context(), addr, file)
		}
	}
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, err) // the agent is gone if this fails
	}
}
