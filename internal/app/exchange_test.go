package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/exchange"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/gateway"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/transfer"
)

const token = "let me in"

// startExchange runs a gateway whose requests are all split, with a port for
// engines. change may alter the configuration.
func startExchange(t *testing.T, prefills, decodes int, change func(*config.Fleet, *Options)) (*App, *Simulated) {
	t.Helper()
	sim, err := Simulate(server.Options{Seed: 1, Speedup: 20}, Fleet{Prefill: prefills, Decode: decodes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	c := config.Default()
	c.Pools = []config.Pool{sim.Pool}
	c.Pools[0].Split, c.Pools[0].Policy = pool.SplitAlways, route.Spec{Name: "round-robin"}
	o := Options{
		Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Transfer: TransferPort{Listen: "127.0.0.1:0", Token: token}, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&c, &o)
	}
	o.Config = c
	a, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, sim
}

// told is an instance as an engine would tell of itself.
func told(id, incarnation, role string) exchange.Instance {
	return exchange.Instance{
		ID: id, Incarnation: incarnation, Role: role, Engine: "vllm", EngineVersion: "0.21.0",
		Weights: exchange.Weights{Model: "Qwen/Qwen3-32B", Revision: "1", DType: "bfloat16"},
		Cache:   exchange.Cache{DType: "bfloat16", Layers: 64, KVHeads: 8, HeadSize: 128, BlockTokens: 16},
		Ranks:   []exchange.Rank{{Host: "127.0.0.1", Port: 5600}}, Connector: exchange.Connector{Name: "NixlConnector", Version: "12"},
	}
}

// call asks the exchange and returns the status and the body.
func call(t *testing.T, a *App, method, path string, in, out any) (int, string) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, a.TransferURL()+"/v1/transfer"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
	}
	return resp.StatusCode, string(raw)
}

// register registers an instance, and has the pools told what follows.
func register(t *testing.T, a *App, i exchange.Instance) {
	t.Helper()
	if status, body := call(t, a, http.MethodPost, "/instances", i, nil); status != http.StatusOK {
		t.Fatalf("%d: %s", status, body)
	}
	a.exchange.refresh(t.Context(), false)
}

// A pair that cannot exchange KV is never used, and explain says why; when the
// engine comes back as it should be, it is.
func TestRegisteredPairsAreJudged(t *testing.T) {
	a, _ := startExchange(t, 2, 1, nil)
	bad := told("prefill-0", "a", "prefill")
	bad.Cache.DType = "fp8_e4m3"
	register(t, a, bad)
	register(t, a, told("sim/decode-2", "b", "decode"))
	for i := range 6 {
		id := fmt.Sprint("q", i)
		complete(t, a, id, fmt.Sprint(i, strings.Repeat(" a prompt of some length", 60)), i%2 == 0)
		at := explained(t, a, id).Attempts
		if len(at) != 1 || at[0].Prefill != "prefill-1" {
			t.Fatalf("%+v", at)
		}
		b := at[0].Barred
		if b == nil || b.Pairs != 1 || b.Prefill != "prefill-0" || b.Decode != "decode-2" || !strings.Contains(b.Why, "cache.dtype") {
			t.Errorf("barred: %+v", b)
		}
	}
	register(t, a, told("prefill-0", "c", "prefill"))
	used := map[string]bool{}
	for i := range 6 {
		id := fmt.Sprint("r", i)
		complete(t, a, id, fmt.Sprint(i, strings.Repeat(" another prompt of some length", 60)), i%2 == 0)
		at := explained(t, a, id).Attempts
		if used[at[0].Prefill] = true; at[0].Barred != nil {
			t.Errorf("barred still: %+v", at[0].Barred)
		}
	}
	if !used["prefill-0"] {
		t.Errorf("used: %v", used)
	}
}

// tickets are those of GET /tickets.
type tickets struct {
	Tickets []struct {
		ID, Source, Consumer, Stage, Reason, Failure string
		Moved, Tokens                                int64
		TookMs, ExpectedMs                           float64
		Prefilling, Ready, Pulling, Ended            *time.Time
	}
	Tally exchange.Tally
}

// Every split request has a ticket that goes through its stages to done, whether
// its engines have registered or not, with the bytes of its KV.
func TestEverySplitRequestHasATicket(t *testing.T) {
	a, sim := startExchange(t, 1, 2, nil)
	register(t, a, told("decode-1", "d", "decode"))
	const requests = 8
	tokens := map[string]int{}
	for i := range requests {
		id := fmt.Sprint("q", i)
		complete(t, a, id, fmt.Sprint(i, strings.Repeat(" a prompt of some length", 60)), i%2 == 0)
		tokens[id+".1"] = explained(t, a, id).Outcome.Moved.Tokens
	}
	serving := sim.Pool.Variants[0].Serving().Normal()
	perToken := serving.Shape.KVBytes(serving.KV.Bytes())
	var list tickets
	call(t, a, http.MethodGet, "/tickets", nil, &list)
	consumers := map[string]int{}
	for _, k := range list.Tickets {
		consumers[k.Consumer]++
		if k.Stage != "done" || k.Source != "@sim/prefill-0" || k.Prefilling == nil || k.Ready == nil || k.Pulling == nil || k.Ended == nil {
			t.Errorf("%+v", k)
		}
		if n := tokens[k.ID]; n < 100 || k.Tokens != int64(n) || k.Moved != int64(float64(n)*perToken) {
			t.Errorf("%s: %d tokens and %d bytes, recorded %d of %v bytes", k.ID, k.Tokens, k.Moved, n, perToken)
		}
	}
	if list.Tally.Done != requests || list.Tally.Open != 0 || consumers["decode-1"] != requests/2 || consumers["@sim/decode-2"] != requests/2 {
		t.Errorf("%+v, by consumer %v", list.Tally, consumers)
	}
	if y := a.fleet.all()[0].Tally(); y.Split != requests || y.Whole != 0 {
		t.Errorf("%+v", y)
	}
}

// behind puts a proxy in front of one simulated engine, whose handler may do
// something before it passes a request on.
func behind(t *testing.T, c *config.Fleet, name string, before func(w http.ResponseWriter, r *http.Request, body []byte, next http.Handler)) {
	t.Helper()
	for i := range c.Pools[0].Endpoints {
		e := &c.Pools[0].Endpoints[i]
		if e.Name != name {
			continue
		}
		base, err := url.Parse(e.URL)
		if err != nil {
			t.Fatal(err)
		}
		next := httputil.NewSingleHostReverseProxy(base)
		next.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/completions") {
				before(w, r, body, next)
				return
			}
			next.ServeHTTP(w, r)
		}))
		t.Cleanup(s.Close)
		e.URL = s.URL
	}
}

// What an engine has computed in one life is not read once it has begun another,
// though its answer has come.
func TestStaleIncarnationsAreNotRead(t *testing.T) {
	var a *App
	var asked, lives atomic.Int32
	a, _ = startExchange(t, 1, 1, func(c *config.Fleet, _ *Options) {
		behind(t, c, "prefill-0", func(w http.ResponseWriter, r *http.Request, _ []byte, next http.Handler) {
			next.ServeHTTP(w, r)
			// The answer is on its way; before it is there, another process has come.
			i := told("prefill-0", fmt.Sprint("life-", lives.Add(1)), "prefill")
			a.exchange.server.Do(func(now fleet.Time, b *exchange.Book) {
				if _, err := b.Register(now, i, 0); err != nil {
					t.Error(err)
				}
			})
		})
		behind(t, c, "decode-1", func(w http.ResponseWriter, r *http.Request, body []byte, next http.Handler) {
			if bytes.Contains(body, []byte("remote_block_ids")) {
				asked.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	})
	register(t, a, told("prefill-0", "life-0", "prefill"))
	register(t, a, told("decode-1", "d", "decode"))
	if text, _ := complete(t, a, "q", strings.Repeat("whose blocks are these? ", 60), true); text == "" {
		t.Error("no answer")
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the engine that answers was sent to read %d times", n)
	}
	at := explained(t, a, "q").Attempts
	if len(at) != 2 || at[0].Prefill != "prefill-0" || at[1].Prefill != "" {
		t.Errorf("%+v", at)
	}
	var list tickets
	call(t, a, http.MethodGet, "/tickets", nil, &list)
	if len(list.Tickets) != 1 || list.Tickets[0].Stage != "aborted" || !strings.Contains(list.Tickets[0].Reason, "has restarted") {
		t.Errorf("%+v", list.Tickets)
	}
}

// The abort verb ends both legs of a request, which is served elsewhere.
func TestAbortedTransfersAreServedElsewhere(t *testing.T) {
	var a *App
	ended := make(chan error, 1)
	a, _ = startExchange(t, 1, 2, func(c *config.Fleet, _ *Options) {
		var hung atomic.Bool
		hang := func(w http.ResponseWriter, r *http.Request, _ []byte, next http.Handler) {
			if hung.Swap(true) {
				next.ServeHTTP(w, r)
				return
			}
			if status, body := call(t, a, http.MethodPost, "/tickets/q.1/abort", map[string]string{"reason": "the operator says so"}, nil); status != http.StatusOK {
				t.Errorf("%d: %s", status, body)
			}
			<-r.Context().Done()
			ended <- context.Cause(r.Context())
		}
		behind(t, c, "decode-1", hang)
		behind(t, c, "decode-2", hang)
	})
	if text, _ := complete(t, a, "q", strings.Repeat("a prompt that is moved twice ", 60), true); text == "" {
		t.Error("no answer")
	}
	<-ended
	at := explained(t, a, "q").Attempts
	if len(at) != 2 || at[0].Chosen == at[1].Chosen || at[1].Prefill == "" {
		t.Errorf("%+v", at)
	}
	var list tickets
	call(t, a, http.MethodGet, "/tickets", nil, &list)
	if len(list.Tickets) != 2 || list.Tickets[0].Stage != "aborted" || list.Tickets[0].Reason != "the operator says so" || list.Tickets[1].Stage != "done" {
		t.Errorf("%+v", list.Tickets)
	}
	for _, e := range explained(t, a, "q").Attempts[1].Candidates {
		if e.Verdict == "ejected" {
			t.Errorf("%s is blamed", e.Endpoint)
		}
	}
}

// Nobody is sent to hosts that are not of the fleet, whoever asks for it.
func TestHostsOutsideTheFleetAreRefused(t *testing.T) {
	a, _ := startExchange(t, 1, 1, func(c *config.Fleet, _ *Options) { c.Transfer.Hosts = []string{"10.1.0.0/16", "gpu-7.example"} })
	for host, status := range map[string]int{
		"127.0.0.1": 200, "localhost": 200, "10.1.2.3": 200, "gpu-7.example": 200, "GPU-7.example.": 200,
		"169.254.169.254": 403, "10.2.0.1": 403, "gpu-8.example": 403, "::ffff:169.254.169.254": 403, "metadata.google.internal": 403, "2130706433": 403,
	} {
		i := told("prefill-0", "a", "prefill")
		i.Ranks[0].Host = host
		if got, body := call(t, a, http.MethodPost, "/instances", i, nil); got != status {
			t.Errorf("%s: %d, want %d: %s", host, got, status, body)
		}
	}
	if got, body := call(t, a, http.MethodPost, "/instances", told("@sim/prefill-0", "a", "prefill"), nil); got != http.StatusBadRequest {
		t.Errorf("an id of the gateway's own: %d %s", got, body)
	}
}

// An exchange that begins anew knows every instance within one heartbeat, a third
// of the lease; the rest of the lease is for busy machines.
func TestInstancesRegisterAgainAfterARestart(t *testing.T) {
	a, sim := startExchange(t, 1, 1, nil)
	const lease = 3 * time.Second
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	url, addr := a.TransferURL(), strings.TrimPrefix(a.TransferURL(), "http://")
	c := transfer.Client{URL: url, Token: token, Instance: told("prefill-0", "a", "prefill"), Lease: lease}
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	known := func(a *App, wait string) int {
		var list struct {
			Index     uint64
			Instances []exchange.Instance
		}
		if call(t, a, http.MethodGet, "/instances", nil, &list); len(list.Instances) == 0 {
			call(t, a, http.MethodGet, fmt.Sprint("/instances?watch=true&wait=", wait, "&index=", list.Index), nil, &list)
		}
		return len(list.Instances)
	}
	if n := known(a, "5s"); n != 1 {
		t.Fatalf("%d instances", n)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Pools = []config.Pool{sim.Pool}
	b, err := Start(Options{Config: cfg, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Transfer: TransferPort{Listen: addr, Token: token}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	began := time.Now()
	if n := known(b, lease.String()); n != 1 {
		t.Fatalf("%d instances after the restart", n)
	}
	t.Logf("known %v after the restart; a heartbeat is %v", time.Since(began), lease/3)
}

// A ticket asked for under an id that exists already has one of its own, and one
// that is given up tells who asked for it.
func TestTicketsAreTheGatewaysOwn(t *testing.T) {
	a, _ := startExchange(t, 1, 1, nil)
	p := a.fleet.all()[0]
	m := gateway.Move{ID: "same", Pool: p, Tokens: 1000, Within: time.Minute}
	for _, e := range p.Endpoints() {
		if e.Role == fleet.RolePrefill {
			m.From = e
		} else {
			m.To = e
		}
	}
	stopped := make(chan error, 2)
	first, err := a.exchange.Begin(m, func(err error) { stopped <- err })
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.exchange.Begin(m, func(err error) { stopped <- err })
	if err != nil || again.(*moving).id == first.(*moving).id {
		t.Fatal(err, again)
	}
	again.End(fleet.FailStream, io.ErrUnexpectedEOF)
	again.End(fleet.FailNone, nil) // has no effect
	if status, body := call(t, a, http.MethodPost, "/tickets/same/abort", map[string]string{"reason": "enough"}, nil); status != http.StatusOK {
		t.Fatal(body)
	}
	if err := <-stopped; !strings.Contains(err.Error(), "aborted: enough") {
		t.Error(err)
	}
	if err := first.Ready(); err == nil {
		t.Error("ready after it was aborted")
	}
	first.End(fleet.FailNone, nil)
	var list tickets
	call(t, a, http.MethodGet, "/tickets", nil, &list)
	if y := list.Tally; y.Opened != 2 || y.Aborted != 2 || y.Failed != 1 || y.Open != 0 {
		t.Errorf("%+v", y)
	}
	if len(stopped) != 0 {
		t.Error("told of what it has ended itself")
	}
}
