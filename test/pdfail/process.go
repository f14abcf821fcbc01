package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/config"
)

// process is a gateway that can be killed: this program, started again.
type process struct {
	pool []byte
	cmd  *exec.Cmd
	at   [3]string // public, admin, transfer
}

// startProcess starts one on free ports. It keeps the first two when it is started
// again.
func startProcess(p config.Pool) (*process, error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	g := &process{pool: raw}
	return g, g.start("127.0.0.1:0", "127.0.0.1:0")
}

// serveArgument is that with which this program is only a gateway.
const serveArgument = "serve"

func (g *process) start(listen, adminListen string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	g.cmd = exec.Command(self, serveArgument, listen, adminListen)
	g.cmd.Stdin, g.cmd.Stderr = strings.NewReader(string(g.pool)), os.Stderr
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := g.cmd.Start(); err != nil {
		return err
	}
	told := newLines(out)
	for i := range g.at {
		line, err := told.next()
		if err != nil {
			return fmt.Errorf("a gateway did not start: %w", err)
		}
		if g.at[i] == "" { // whoever sends requests reads these meanwhile
			g.at[i] = line
		}
	}
	return nil
}

// kill ends it as nothing else does: it cannot say farewell to anybody.
func (g *process) kill() {
	_ = g.cmd.Process.Kill()
	_ = g.cmd.Wait()
}

// restart starts it again at its addresses, and waits until it serves.
func (g *process) restart(ctx context.Context, client *http.Client) error {
	if err := g.start(strings.TrimPrefix(g.at[0], "http://"), strings.TrimPrefix(g.at[1], "http://")); err != nil {
		return err
	}
	for ctx.Err() == nil {
		resp, err := client.Get(g.URL() + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}

// URL implements gate.
func (g *process) URL() string { return g.at[0] }

// AdminURL implements gate.
func (g *process) AdminURL() string { return g.at[1] }

// TransferURL implements gate.
func (g *process) TransferURL() string { return g.at[2] }

// Close implements gate.
func (g *process) Close() error {
	g.kill()
	return nil
}

// serveOnly is the gateway in the other process: it reads its pool, tells its
// addresses and serves until it is killed.
func serveOnly(listen, adminListen string) error {
	var p config.Pool
	if err := json.NewDecoder(os.Stdin).Decode(&p); err != nil {
		return err
	}
	a, err := app.Start(gatewayOptions(p, listen, adminListen))
	if err != nil {
		return err
	}
	for _, u := range []string{a.URL(), a.AdminURL(), a.TransferURL()} {
		fmt.Println(u)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return a.Wait(ctx)
}
