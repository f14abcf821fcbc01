package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/obs"
)

// row is one way for things to go wrong.
type row struct {
	key, name string
	inject    func(ctx context.Context, r *rig, n int) (hurt, error)
	// breaks says that streams which have begun break off: their engine dies.
	breaks bool
	bound  time.Duration // for recovery
	leaves bool          // clients leave: what they leave must end within cancelBound

	process    bool            // the gateway is one of its own
	maxSeqs    int             // of engines; 0: as they like it
	link       float64         // bytes per second that leave an engine; 0: as it likes it
	connectors map[string]bool // that it is for; nil for all
}

// hurt is a fault that has befallen someone.
type hurt struct {
	at     time.Time // since when
	alive  time.Time // since when all could be as before
	befell []string  // endpoints that must serve again
	cancel time.Duration
	missed bool // it befell nobody
	// excused are requests that arrived before and ended after the fault: there was
	// nobody else to serve them until alive.
	excused bool
	note    string
}

// Bounds. One that dies is away for 300 ms, is found out and left alone, and is
// asked half a second later, or once more after twice that, whether it is back.
const (
	boundDeath  = 4 * time.Second
	boundOther  = 2 * time.Second
	cancelBound = time.Second
)

// first and both are the connectors whose legs follow each other, and are sent at once.
func first() map[string]bool { return map[string]bool{server.NIXL: true, server.Offload: true} }

func rows() []row {
	atPrefill, atDecode := 0, prefills
	return []row{
		{key: "prefill-dies-before", name: "prefill dies before its answer", inject: dies("pd-die-before", atPrefill, prefills), bound: boundDeath},
		{key: "prefill-dies-after", name: "prefill dies after its answer, before the pull", inject: dies("pd-die-after", atPrefill, prefills), bound: boundDeath},
		{key: "decode-dies-before", name: "decode dies before the pull", inject: dies("pd-die-before-pull", atDecode, decodes), bound: boundDeath, breaks: true},
		{key: "decode-dies-after", name: "decode dies after the pull, before its answer", inject: dies("pd-die-after-pull", atDecode, decodes), bound: boundDeath, breaks: true},
		{key: "decode-dies-stream", name: "decode dies in the middle of streams", inject: crashes(atDecode, decodes), bound: boundDeath, breaks: true},
		{key: "prefill-restarts", name: "prefill is another process between the legs", inject: fault(server.Fault{Kind: "pd-restart-after", Count: 1}, atPrefill, prefills), bound: boundOther},
		{key: "prefill-restarts-any", name: "prefill is another process at any time", inject: restarts(atPrefill, prefills), bound: boundOther},
		{key: "gone-queue", name: "client leaves in the queue", inject: leavesQueue, bound: boundOther, leaves: true, maxSeqs: 8},
		{key: "gone-prefill", name: "client leaves during prefill", inject: leavesAt("prefilling", 30_000), bound: boundOther, leaves: true},
		{key: "gone-between", name: "client leaves between the legs", inject: leavesAt("pulling", 12_000), bound: boundOther, leaves: true, link: 2.5e9, connectors: first()},
		{key: "gone-decode", name: "client leaves during decode", inject: leavesAt("", promptTokens), bound: boundOther, leaves: true},
		{key: "lease", name: "the lease ends before the pull", inject: fault(server.Fault{Kind: "pd-expire", Count: 1}, atPrefill, prefills), bound: boundOther},
		{key: "pair-registered", name: "an incompatible pair registers", inject: registers, bound: boundOther, connectors: map[string]bool{server.NIXL: true}},
		{key: "pair-silent", name: "an incompatible pair, not registered", inject: fault(server.Fault{Kind: "pd-incompatible", Count: 1}, atPrefill, prefills), bound: boundOther},
		{key: "wrong-block", name: "a block that is not what it should be", inject: fault(server.Fault{Kind: "pd-wrong-block", Count: 1}, atPrefill, prefills), bound: boundOther},
		{key: "side-gone", name: "the side channel closes connections", inject: fault(server.Fault{Kind: "pd-side-gone", Count: 1}, atPrefill, prefills), bound: boundOther},
		{key: "slow-link", name: "a slow link", inject: fault(server.Fault{Kind: "pd-slow-link", Count: 1, Factor: 1000}, atPrefill, prefills), bound: boundOther},
		{key: "gateway-dies", name: "the gateway dies", inject: gatewayDies, bound: boundDeath, breaks: true, process: true},
	}
}

// strike is how long a fault may wait for a request to hit.
const strike = 3 * time.Second

// awaitFor looks every few milliseconds whether something is so.
func awaitFor(ctx context.Context, most time.Duration, so func() bool) bool {
	const every = 3 * time.Millisecond
	for until := time.Now().Add(most); ctx.Err() == nil; time.Sleep(every) {
		if so() {
			return true
		}
		if time.Now().After(until) {
			break
		}
	}
	return false
}

// dies has one of some engines die at a point of a request, and come back.
func dies(kind string, from, of int) func(context.Context, *rig, int) (hurt, error) {
	return func(ctx context.Context, r *rig, n int) (hurt, error) {
		i := from + n%of
		node := r.fleet.Node(i)
		h := hurt{at: time.Now(), befell: []string{r.name(i)}}
		if err := node.Server.SetFault(server.Fault{Kind: kind, Count: 1}); err != nil {
			return h, err
		}
		select {
		case <-node.Done():
		case <-ctx.Done():
			return h, ctx.Err()
		case <-time.After(strike):
			node.Server.ClearFault(kind)
			h.missed, h.alive = true, time.Now()
			return h, nil
		}
		return h.back(ctx, r, i)
	}
}

// back has a dead engine started again.
func (h hurt) back(ctx context.Context, r *rig, i int) (hurt, error) {
	time.Sleep(down)
	var err error
	// Another connection may have the port for a moment.
	awaitFor(ctx, strike, func() bool {
		err = r.fleet.Restart(i)
		return err == nil
	})
	h.alive = time.Now()
	return h, err
}

// crashes has one of some engines die at any time, and come back.
func crashes(from, of int) func(context.Context, *rig, int) (hurt, error) {
	return func(ctx context.Context, r *rig, n int) (hurt, error) {
		i := from + n%of
		h := hurt{at: time.Now(), befell: []string{r.name(i)}}
		if err := r.fleet.Node(i).Close(); err != nil {
			return h, err
		}
		return h.back(ctx, r, i)
	}
}

// restarts has one of some engines become another process at any time.
func restarts(from, of int) func(context.Context, *rig, int) (hurt, error) {
	return func(_ context.Context, r *rig, n int) (hurt, error) {
		i := from + n%of
		h := hurt{at: time.Now(), befell: []string{r.name(i)}}
		err := r.fleet.Node(i).Server.SetFault(server.Fault{Kind: "pd-restart"})
		h.alive = time.Now()
		return h, err
	}
}

// fault has something befall one request at one of some engines.
func fault(f server.Fault, from, of int) func(context.Context, *rig, int) (hurt, error) {
	return func(ctx context.Context, r *rig, n int) (hurt, error) {
		i := from + n%of
		h := hurt{at: time.Now(), befell: []string{r.name(i)}}
		s := r.fleet.Node(i).Server
		if err := s.SetFault(f); err != nil {
			return h, err
		}
		h.missed = !awaitFor(ctx, strike, func() bool { return !s.Suffers(f.Kind) })
		s.ClearFault(f.Kind)
		h.alive = time.Now()
		return h, nil
	}
}

// leaver is a request whose client leaves.
type leaver struct {
	id    string
	leave context.CancelFunc
	begun chan struct{} // closed when text has come
	ended chan struct{}
}

// long is an answer that does not end by itself while anybody watches.
const long = 20_000

func (r *rig) leaver(ctx context.Context, id string, prompt int) *leaver {
	ctx, cancel := context.WithCancel(ctx)
	l := &leaver{id: id, leave: cancel, begun: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		resp, err := r.post(ctx, r.gate.URL()+"/v1/completions", id, body(r.model, promptOf(id, prompt), long))
		if err != nil {
			return
		}
		defer resp.Body.Close()
		_, _ = readStream(resp.Body, func() { close(l.begun) })
	}()
	return l
}

// gone waits until nobody works for those who have left, and notes how long that
// took.
func (r *rig) gone(ctx context.Context, h *hurt, left ...*leaver) {
	h.alive = time.Now()
	for _, l := range left {
		<-l.ended
		if !awaitFor(ctx, cancelBound*2, func() bool { return !r.underWay(l.id) }) {
			h.note = l.id + " is worked on still"
		}
	}
	h.cancel = time.Since(h.alive)
}

// leavesAt has a client leave when its transfer is at a stage; "" is when its answer
// has begun.
func leavesAt(stage string, prompt int) func(context.Context, *rig, int) (hurt, error) {
	return func(ctx context.Context, r *rig, n int) (hurt, error) {
		h := hurt{at: time.Now()}
		l := r.leaver(ctx, fmt.Sprintf("leaver-%d", n), prompt)
		if stage == "" {
			select {
			case <-l.begun:
			case <-time.After(strike):
				h.missed = true
			}
		} else {
			h.missed = !awaitFor(ctx, strike, func() bool { return r.stage(l.id) == stage })
		}
		l.leave()
		r.gone(ctx, &h, l)
		return h, nil
	}
}

// leavesQueue has clients leave that wait for room.
func leavesQueue(ctx context.Context, r *rig, n int) (hurt, error) {
	const crowd = 24
	h := hurt{at: time.Now()}
	all := make([]*leaver, crowd)
	for i := range all {
		all[i] = r.leaver(ctx, fmt.Sprintf("leaver-%d-%d", n, i), promptTokens)
	}
	awaitFor(ctx, 150*time.Millisecond, func() bool { return false }) // long enough to be queued
	for _, l := range all {
		l.leave()
	}
	r.gone(ctx, &h, all...)
	h.missed = true
	for _, l := range all {
		var found obs.Record
		if r.read(r.gate.AdminURL()+"/api/decisions/"+l.id, &found) == nil && found.Outcome.Attempts == 0 {
			h.missed = false // it never went anywhere
		}
	}
	return h, nil
}

// told is what an engine of the fleet says of itself.
func (r *rig) told(i int, incarnation, cache string) exchange.Instance {
	role := server.RolePrefill
	if i >= prefills {
		role = server.RoleDecode
	}
	return exchange.Instance{
		ID: r.name(i), Incarnation: incarnation, Role: role, Engine: "vllm", EngineVersion: "0.21.0",
		Weights: exchange.Weights{Model: r.model, Revision: "1", DType: "bfloat16"},
		Cache:   exchange.Cache{DType: cache, Layers: 64, KVHeads: 8, HeadSize: 128, BlockTokens: 16},
		Ranks:   []exchange.Rank{{Host: "127.0.0.1", Port: 5600 + i}}, Connector: exchange.Connector{Name: "NixlConnector", Version: "12"},
	}
}

func (r *rig) register(ctx context.Context, i exchange.Instance) error {
	raw, err := json.Marshal(i)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.gate.TransferURL()+"/v1/transfer/instances", bytes.NewReader(raw))
	if err != nil {
		return err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("registering %s: %s", i.ID, resp.Status)
	}
	return nil
}

// registers has an engine come back with another type of cache than those that
// answer, stay for a while, and then as it was.
func registers(ctx context.Context, r *rig, n int) (hurt, error) {
	const stay = 400 * time.Millisecond
	const good, bad = "bfloat16", "fp8_e4m3"
	i := n % prefills
	h := hurt{at: time.Now(), befell: []string{r.name(i)}}
	var errs []error
	for d := range decodes {
		errs = append(errs, r.register(ctx, r.told(prefills+d, "only", good)))
	}
	errs = append(errs, r.register(ctx, r.told(i, fmt.Sprint("bad-", n), bad)))
	time.Sleep(stay)
	errs = append(errs, r.register(ctx, r.told(i, fmt.Sprint("good-", n), good)))
	h.alive = time.Now()
	return h, errors.Join(errs...)
}

// gatewayDies kills the gateway and starts it again.
func gatewayDies(ctx context.Context, r *rig, _ int) (hurt, error) {
	g, ok := r.gate.(*process)
	if !ok {
		return hurt{}, errors.New("the gateway is no process of its own")
	}
	h := hurt{at: time.Now(), excused: true}
	for i := range r.fleet.Engines() {
		h.befell = append(h.befell, r.name(i))
	}
	g.kill()
	time.Sleep(down)
	err := g.restart(ctx, r.client)
	h.alive = time.Now()
	return h, err
}

// names lists the rows there are.
func names() string {
	var keys []string
	for _, x := range rows() {
		keys = append(keys, x.key)
	}
	return strings.Join(keys, ", ")
}
