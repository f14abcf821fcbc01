package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"penstock.dev/penstock/internal/admin"
	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/pool"
)

// The fleet of every row.
const (
	prefills = 2
	decodes  = 2
)

// The engines: how much faster than life they are, how long they keep blocks, wait
// for each other, and are away when they have died.
const (
	speedup = 10
	lease   = 3 * time.Second
	wait    = 8 * time.Second
	down    = 300 * time.Millisecond
)

// gate is a gateway.
type gate interface {
	URL() string
	AdminURL() string
	TransferURL() string
	Close() error
}

// rig is a gateway before simulated engines, all over sockets, and one more engine
// that knows what must be answered.
type rig struct {
	fleet     *app.Simulated
	reference *server.Node
	gate      gate
	client    *http.Client
	model     string

	mu      sync.Mutex
	overdue int // most blocks seen that were kept beyond their lease
	audits  int
	auditor sync.WaitGroup
	stop    context.CancelFunc
}

// start starts engines with what a row wants of them, and a gateway.
func start(connector string, row *row) (*rig, error) {
	o := server.Options{Speedup: speedup, Seed: 1, MaxSeqs: row.maxSeqs}
	o.PD = server.PDOptions{Lease: lease, Wait: wait, Link: row.link}
	r := &rig{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	var err error
	if r.fleet, err = app.Simulate(o, app.Fleet{Prefill: prefills, Decode: decodes, Connector: connector}); err != nil {
		return nil, err
	}
	r.fleet.Pool.Split = pool.SplitAlways
	r.model = r.fleet.Pool.Model
	const atOnce = 100 // times faster: it is not what is measured
	if r.reference, err = server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Speedup: speedup * atOnce, Seed: 1}}); err != nil {
		return nil, errors.Join(err, r.fleet.Close())
	}
	if row.process {
		r.gate, err = startProcess(r.fleet.Pool)
	} else {
		r.gate, err = startHere(r.fleet.Pool)
	}
	if err != nil {
		return nil, errors.Join(err, r.fleet.Close(), r.reference.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.auditor.Go(func() { r.audit(ctx) })
	return r, nil
}

// startHere runs the gateway in this process.
func startHere(p config.Pool) (*app.App, error) {
	return app.Start(gatewayOptions(p, "127.0.0.1:0", "127.0.0.1:0"))
}

func gatewayOptions(p config.Pool, listen, adminListen string) app.Options {
	c := config.Default()
	c.Pools = []config.Pool{p}
	return app.Options{
		Config: c, Listen: listen, AdminListen: adminListen, Transfer: app.TransferPort{Listen: "127.0.0.1:0"},
		Version: "pdfail", Log: slog.New(slog.DiscardHandler), DrainTimeout: 2 * time.Second,
	}
}

func (r *rig) close() error {
	r.stop()
	r.auditor.Wait()
	r.client.CloseIdleConnections()
	return errors.Join(r.gate.Close(), r.fleet.Close(), r.reference.Close())
}

// name is that of engine i, by which the gateway knows it.
func (r *rig) name(i int) string { return r.fleet.Pool.Endpoints[i].Name }

// kept is what an engine tells of what it keeps for others.
type kept struct {
	Tickets []struct {
		ID      string  `json:"id"`
		State   string  `json:"state"`
		Blocks  int     `json:"blocks"`
		LeaseMS float64 `json:"lease_ms"`
	} `json:"tickets"`
	Counts struct {
		Expired      int `json:"expired"`
		ChecksFailed int `json:"checks_failed"`
	} `json:"counts"`
}

// How often engines are asked what they keep, and how long after the end of a lease
// they may keep it: timers are not exact on a busy machine.
const (
	auditEvery = 200 * time.Millisecond
	auditSlack = 500 * time.Millisecond
)

// audit looks for blocks that are kept beyond their lease, until ctx ends.
func (r *rig) audit(ctx context.Context) {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		blocks := 0
		for i := range r.fleet.Pool.Endpoints {
			var k kept
			if r.read(r.fleet.Pool.Endpoints[i].URL+"/sim/pd", &k) != nil {
				continue // it is away
			}
			for _, t := range k.Tickets {
				if t.LeaseMS < -float64(auditSlack.Milliseconds()) {
					blocks += t.Blocks
				}
			}
		}
		r.mu.Lock()
		r.overdue = max(r.overdue, blocks)
		r.audits++
		r.mu.Unlock()
	}
}

// left is what remains when nothing is asked for any more.
type left struct {
	blocks int    // at engines
	legs   int    // requests that engines still work on
	ledger string // what the gateway thinks is under way; empty for nothing
}

// settle waits until nothing is left, but no longer than leases and waits take.
func (r *rig) settle() left {
	var l left
	for until := time.Now().Add(wait + time.Second); ; {
		if l = r.look(); l == (left{}) || time.Now().After(until) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.blocks = max(l.blocks, r.overdue)
	if r.audits == 0 {
		l.ledger += " nobody has looked for leases"
	}
	return l
}

func (r *rig) look() left {
	var l left
	for i := range r.fleet.Engines() {
		st := r.fleet.Node(i).Server.Stats()
		l.blocks += st.UsedBlocks
		l.legs += st.Running + st.Waiting
	}
	var st admin.Status
	var t admin.TransferStatus
	if err := errors.Join(r.read(r.gate.AdminURL()+"/api/status", &st), r.read(r.gate.AdminURL()+"/api/transfers", &t)); err != nil {
		l.ledger = err.Error()
		return l
	}
	var on []string
	for _, p := range st.Pools {
		if y := p.Tally; y.Queued+y.InFlight != 0 || y.Arrived != y.Done+y.Shed+y.Expired+y.Failed+y.Cancelled {
			on = append(on, fmt.Sprintf("%+v", y))
		}
		for i := range p.Endpoints {
			if e := &p.Endpoints[i]; e.InFlight != 0 || e.Backlog != 0 || e.Active != 0 {
				on = append(on, fmt.Sprintf("%s has %d in flight, %d tokens to compute, %d in use", e.Name, e.InFlight, e.Backlog, e.Active))
			}
		}
	}
	for i := range t.Tickets {
		if s := t.Tickets[i].Stage; s != "done" && s != "aborted" && s != "expired" {
			on = append(on, fmt.Sprintf("transfer %s is %s", t.Tickets[i].ID, s))
		}
	}
	l.ledger = strings.Join(on, "; ")
	return l
}

// stage is how far the transfer of a request is, by the gateway; empty if it has
// none.
func (r *rig) stage(id string) string {
	var t admin.TransferStatus
	if r.read(r.gate.AdminURL()+"/api/transfers", &t) != nil {
		return ""
	}
	for i := range t.Tickets {
		if strings.HasPrefix(t.Tickets[i].ID, id+".") {
			return t.Tickets[i].Stage
		}
	}
	return ""
}

// underWay reports whether an engine works on a request, or fetches for it, or
// whether the gateway thinks that KV is moved for it.
func (r *rig) underWay(id string) bool {
	for i := range r.fleet.Engines() {
		if r.fleet.Node(i).Server.UnderWay(id) {
			return true
		}
	}
	switch r.stage(id) {
	case "planned", "prefilling", "ready", "pulling":
		return true
	}
	return false
}
