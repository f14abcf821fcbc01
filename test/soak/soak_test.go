package soak

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
)

var soakFor = flag.Duration("soak", 3*time.Second, "how long the traffic lasts")

// The traffic: how many clients send, and the share of them that leave early.
const (
	clients    = 12
	abortShare = 0.3
)

// rig is a gateway before simulated engines, all in this process.
type rig struct {
	*app.App
	nodes  []*server.Node
	model  string
	client *http.Client

	sent, aborted, answered, refused atomic.Int64
	wrong                            sync.Map // what no client should have seen
}

func start(t *testing.T) *rig {
	t.Helper()
	r := &rig{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients, IdleConnTimeout: time.Second}}}
	o := app.Options{
		Config: config.Default(), Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Version: "soak",
		Log: slog.New(slog.DiscardHandler), DrainTimeout: 10 * time.Second,
	}
	p := config.DefaultPool()
	p.Name, p.API, p.DrainTimeout = "soak", true, 2*time.Second
	for i := range 4 {
		n, err := server.Listen("127.0.0.1:0", server.Config{Options: server.Options{Speedup: 30, Seed: 1, Replica: i, KVTokens: 40_000, MaxModelLen: 16_000, Noise: 0.1}})
		if err != nil {
			t.Fatal(err)
		}
		r.nodes = append(r.nodes, n)
		p.Endpoints = append(p.Endpoints, config.Endpoint{Name: fmt.Sprint("sim-", i), URL: n.URL()})
	}
	r.model = r.nodes[0].Server.Options().Model
	p.Model = r.model
	o.Config.Pools = []config.Pool{p}
	o.Config.Limits.FirstByteTimeout, o.Config.Limits.IdleTimeout = 5*time.Second, 5*time.Second
	a, err := app.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	r.App = a
	return r
}

// one sends one request of some kind and perhaps leaves in the middle.
func (r *rig) one(ctx context.Context, rng *rand.Rand) {
	leave := rng.Float64() < abortShare
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	prompt := strings.Repeat(fmt.Sprintf("group %d says so. ", rng.IntN(8)), 1+rng.IntN(300))
	stream := rng.IntN(4) > 0
	path, body := "/v1/completions", fmt.Sprintf(`{"model":%q,"prompt":%q,"max_tokens":%d,"ignore_eos":true,"stream":%v}`, r.model, prompt, 1+rng.IntN(120), stream)
	switch rng.IntN(10) {
	case 0:
		body = body[:rng.IntN(len(body))] // broken JSON
	case 1:
		body = strings.Replace(body, r.model, "nobody", 1)
	case 2, 3, 4:
		path, body = "/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}],"max_tokens":%d,"stream":%v}`, r.model, prompt, 1+rng.IntN(60), stream)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+path, strings.NewReader(body))
	if err != nil {
		r.wrong.Store(err.Error(), true)
		return
	}
	r.sent.Add(1)
	if leave && rng.IntN(2) == 0 {
		// Before the answer, or just in it.
		time.AfterFunc(time.Duration(rng.IntN(20_000))*time.Microsecond, cancel)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.ended(ctx, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests {
		r.refused.Add(1)
	}
	if leave {
		_, _ = io.CopyN(io.Discard, resp.Body, int64(rng.IntN(2000))) // then the body is closed
		r.aborted.Add(1)
		return
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		r.ended(ctx, err)
		return
	}
	r.answered.Add(1)
}

// ended tells a client that left from one that was let down.
func (r *rig) ended(ctx context.Context, err error) {
	if ctx.Err() != nil {
		r.aborted.Add(1)
		return
	}
	r.wrong.Store(err.Error(), true)
}

// faults are what engines are made to do, each to a few requests.
var faults = []server.Fault{
	{Kind: "refuse", Count: 2, Status: 503},
	{Kind: "refuse", Count: 2, Status: 500},
	{Kind: "cut", Count: 2, Tokens: 3},
	{Kind: "cut-event", Count: 2, Tokens: 5},
	{Kind: "garbage-body", Count: 1},
	{Kind: "delay", Count: 3, DelayMS: 50},
	{Kind: "metrics-missing", Count: 3},
}

// trouble makes engines misbehave and endpoints come and go until ctx ends.
func (r *rig) trouble(ctx context.Context, rng *rand.Rand) {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n := r.nodes[rng.IntN(len(r.nodes))]
		if err := n.Server.SetFault(faults[rng.IntN(len(faults))]); err != nil {
			r.wrong.Store(err.Error(), true)
		}
		name := fmt.Sprintf("/api/endpoints/soak/sim-%d/drain", rng.IntN(len(r.nodes)))
		for _, method := range []string{http.MethodPost, http.MethodDelete} {
			req, err := http.NewRequestWithContext(ctx, method, r.AdminURL()+name, nil)
			if err != nil {
				continue
			}
			if resp, err := r.client.Do(req); err == nil {
				resp.Body.Close()
			}
		}
	}
}

// traffic runs clients for d.
func (r *rig) traffic(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { r.trouble(ctx, rand.New(rand.NewPCG(9, 9))) })
	for i := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for ctx.Err() == nil {
				r.one(context.Background(), rng)
			}
		})
	}
	wg.Wait()
	for _, n := range r.nodes {
		n.Server.ClearFault("")
	}
	r.client.CloseIdleConnections()
}

// left is what a process holds.
type left struct {
	goroutines, files int
	heap              uint64
}

func holds() left {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		fds = nil // not on this system: not counted
	}
	return left{goroutines: runtime.NumGoroutine(), files: len(fds), heap: m.HeapAlloc}
}

// ledger returns what the pool believes to be open.
func (r *rig) ledger() (inFlight, queued int, backlog, active fleet.Tokens) {
	p, ok := r.Pool(r.model)
	if !ok {
		return -1, -1, -1, -1
	}
	var s fleet.Snapshot
	p.View(&s)
	for _, e := range s.Endpoints {
		inFlight += e.InFlight
		backlog += e.Backlog
		active += e.Active
	}
	return inFlight, s.Queued, backlog, active
}

// settled waits until what is held is back within the base, and returns the
// last look.
func settled(base left) (now left) {
	for range 100 {
		now = holds()
		if now.goroutines <= base.goroutines+goroutineSlack && now.files <= base.files+fileSlack {
			return now
		}
		runtime.Gosched()
		<-time.After(100 * time.Millisecond)
	}
	return now
}

// What may be held beyond the base: idle connections that have not timed out
// yet, and the ring of decision records, which fills up to its 32 MB.
const (
	goroutineSlack = 10
	fileSlack      = 10
	heapSlack      = 64 << 20
)

func TestSoak(t *testing.T) {
	r := start(t)
	r.traffic(max(*soakFor/20, time.Second)) // warm: pools filled, connections made
	base := settled(holds())
	t.Logf("base: %d goroutines, %d files, %d KiB heap", base.goroutines, base.files, base.heap>>10)
	r.traffic(*soakFor)
	now := settled(base)
	t.Logf("after %v: %d goroutines, %d files, %d KiB heap; %d sent, %d answered, %d aborted, %d refused with 429 or 5xx",
		*soakFor, now.goroutines, now.files, now.heap>>10, r.sent.Load(), r.answered.Load(), r.aborted.Load(), r.refused.Load())
	if now.goroutines > base.goroutines+goroutineSlack {
		t.Errorf("goroutines: %d, base %d", now.goroutines, base.goroutines)
	}
	if now.files > base.files+fileSlack {
		t.Errorf("open files: %d, base %d", now.files, base.files)
	}
	if now.heap > base.heap+heapSlack {
		t.Errorf("heap: %d KiB, base %d KiB", now.heap>>10, base.heap>>10)
	}
	if inFlight, queued, backlog, active := r.ledger(); inFlight != 0 || queued != 0 || backlog != 0 || active != 0 {
		t.Errorf("the ledger holds %d in flight, %d queued, %d backlog, %d active", inFlight, queued, backlog, active)
	}
	p, _ := r.Pool(r.model)
	y := p.Tally()
	if y.Arrived != y.Done+y.Shed+y.Expired+y.Failed+y.Cancelled || y.Cancelled == 0 || y.Retried == 0 {
		t.Errorf("tally %+v", y)
	}
	r.wrong.Range(func(k, _ any) bool { t.Errorf("a client saw: %v", k); return true })
	for i, n := range r.nodes {
		if s := n.Server.Stats(); s.Running != 0 || s.Waiting != 0 {
			t.Errorf("engine %d still has %d running, %d waiting", i, s.Running, s.Waiting)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, n := range r.nodes {
		_ = n.Close() // its streams were cut on purpose
	}
}
