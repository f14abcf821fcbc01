package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	pools "penstock.dev/penstock/internal/live"
)

// Between two faults, and between two comparisons of one engine.
const (
	faultEvery = 300 * time.Millisecond
	auditEvery = 250 * time.Millisecond
)

// rig is a gateway before simulated engines, all in this process, over sockets.
type rig struct {
	*app.App
	fleet *app.Simulated
	pool  *pools.Pool

	sent, failed         atomic.Int64
	audits, unknown      int
	held, wrong, missing int
	lost                 map[string]time.Time
	longest              time.Duration
	losses               int
	faults               map[string]int
}

// live runs real gateway and engines for so long.
func live(ctx context.Context, span time.Duration, j *judge) error {
	ctx, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	r, err := start()
	if err != nil {
		return err
	}
	defer r.fleet.Close()
	defer r.Close()
	var work sync.WaitGroup
	work.Go(func() { r.send(ctx) })
	work.Go(func() { r.trouble(ctx) })
	tick := time.NewTicker(auditEvery / engines)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			work.Wait()
			return r.report(span, j)
		case <-tick.C:
		}
		if err := r.audit(r.fleet.Pool.Endpoints[i%engines]); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func start() (*rig, error) {
	r := &rig{lost: map[string]time.Time{}, faults: map[string]int{}}
	var err error
	o := server.Options{Speedup: 10, Seed: 1, KVTokens: 40_000, MaxModelLen: 16_000, KVBufferSteps: 10_000}
	if r.fleet, err = app.Simulate(o, app.Fleet{Replicas: engines}); err != nil {
		return nil, err
	}
	// Engines' keys are taken for those of the index, so that both can be compared.
	p := r.fleet.Pool
	p.KV.Keys = "direct"
	a := app.Options{
		Config: config.Default(), Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Version: "kvtruth",
		Log: slog.New(slog.DiscardHandler), DrainTimeout: 5 * time.Second,
	}
	a.Config.Pools = []config.Pool{p}
	if r.App, err = app.Start(a); err != nil {
		return nil, err
	}
	r.pool, _ = r.Pool(p.Model)
	return r, nil
}

// send sends requests at the rate until ctx ends.
func (r *rig) send(ctx context.Context) {
	var open sync.WaitGroup
	defer open.Wait()
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	rng := rand.New(rand.NewPCG(1, 2))
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		prompt := strings.Repeat(fmt.Sprintf("group %d says so. ", rng.IntN(60)), 250) + strings.Repeat(fmt.Sprint(" and ", rng.IntN(1000)), 40)
		body := fmt.Sprintf(`{"model":%q,"prompt":%q,"max_tokens":%d,"ignore_eos":true}`, r.fleet.Pool.Model, prompt, 8+rng.IntN(60))
		open.Go(func() {
			r.sent.Add(1)
			if err := post(ctx, r.URL()+"/v1/completions", body); err != nil && ctx.Err() == nil {
				r.failed.Add(1)
			}
		})
	}
}

func post(ctx context.Context, url, body string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return err
}

// troubles are the faults that befall engines in turn.
var troubles = []string{
	`{"kind":"kv-drop","count":1}`,
	`{"kind":"kv-swap","count":1}`,
	`{"kind":"kv-duplicate","count":2}`,
	`{"kind":"kv-corrupt","count":1}`,
	`{"kind":"kv-malformed","count":1}`,
	`{"kind":"kv-unknown","count":1}`,
	`{"kind":"kv-restart"}`,
	`{"kind":"kv-restart","clear":true}`,
}

func (r *rig) trouble(ctx context.Context) {
	tick := time.NewTicker(faultEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e := r.fleet.Pool.Endpoints[i%engines]
		what := troubles[i/engines%len(troubles)]
		if err := post(ctx, e.URL+"/sim/fault", what); err != nil && ctx.Err() == nil {
			fatal(err)
		}
		r.faults[what]++
	}
}

// truth is what an engine really has.
type truth struct {
	Keys map[string][]string `json:"keys"`
}

// audit compares what is said of one engine with what it has.
func (r *rig) audit(e config.Endpoint) error {
	resp, err := http.Get(e.URL + "/sim/kv?keys=true")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var t truth
	if err := json.NewDecoder(resp.Body).Decode(&t); err != nil {
		return err
	}
	keys := make([]kv.Key, 0, len(t.Keys["gpu"]))
	for _, text := range t.Keys["gpu"] {
		k, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			return err
		}
		keys = append(keys, kv.Key(k))
	}
	var at pools.Endpoint
	for _, x := range r.pool.Endpoints() {
		if x.Name == e.Name {
			at = x
		}
	}
	known, all, ok := r.pool.Holds(at, kv.TierGPU, keys)
	r.note(e.Name, ok)
	if !ok {
		r.unknown++
		return nil
	}
	r.audits++
	r.held += len(keys)
	r.missing += len(keys) - known
	r.wrong += all - known
	return nil
}

// note keeps count of how long an engine's cache is not known.
func (r *rig) note(name string, known bool) {
	since, lost := r.lost[name]
	switch {
	case !known && !lost:
		r.lost[name] = time.Now()
		r.losses++
	case known && lost:
		r.longest = max(r.longest, time.Since(since))
		delete(r.lost, name)
	}
}

func (r *rig) report(span time.Duration, j *judge) error {
	wrong := float64(r.wrong) / float64(max(r.held-r.missing+r.wrong, 1))
	missing := float64(r.missing) / float64(max(r.held, 1))
	var snap fleet.Snapshot
	r.pool.View(&snap)
	fmt.Printf("wall clock: %d engines for %v, %d requests sent, %d failed, %d faults\n", engines, span, r.sent.Load(), r.failed.Load(), sum(r.faults))
	fmt.Printf("  %d comparisons of %d blocks in all: false %.4f %%, missing %.4f %%; said unknown in %d; %d times unknown, for %v at most (seen every %v)\n",
		r.audits, r.held, 100*wrong, 100*missing, r.unknown, r.losses, r.longest.Round(time.Millisecond), auditEvery)
	j.index("wall clock", wrong, missing, r.audits)
	j.heal("wall clock", r.longest, healRestart+auditEvery)
	j.atMost("wall clock, requests failed", float64(r.failed.Load()), 0, "%.0f")
	return nil
}

func sum(m map[string]int) int {
	n := 0
	for _, x := range m {
		n += x
	}
	return n
}
