package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// The load: so many engines and requests per second.
const (
	engines = 8
	rate    = 50
)

// down is how long a restarted engine is away in virtual time.
const down = time.Second

// mishaps are shares of batches that get lost, come twice, are swapped with the
// next and are cut short.
const mishaps = 0.002

// simulated runs every kind of trouble in virtual time.
func simulated(span time.Duration, j *judge) error {
	fmt.Printf("virtual time: %d engines, %d requests/s, %v each; %.1f %% each of batches lost, doubled, swapped, cut short; every engine restarts twice a minute\n", engines, rate, span, 100*mishaps)
	fmt.Println("  engines                        blocks compared   false %  missing %   said unknown  gaps  replays  lost  restarts  longest to heal")
	for _, c := range []struct {
		name   string
		ring   int
		clear  bool
		format kv.Encoding
		heal   time.Duration
	}{
		{"vllm, ring 10,000", 10_000, false, kv.VLLMMap, down + healGap},
		{"vllm before 2026, ring 10,000", 10_000, false, kv.VLLMArray, down + healGap},
		{"sglang, clear first, ring 10,000", 10_000, true, kv.SGLangMap, down + healGap},
		{"trtllm, clear first, no replay", 0, true, kv.TRTLLM, never},
		{"vllm, ring of 5", 5, false, kv.VLLMMap, never},
		{"vllm, no replay", 0, false, kv.VLLMMap, never},
	} {
		e := sim.Events{
			Encoding: c.format, Lag: time.Millisecond, Ring: c.ring, Mapped: true, ClearFirst: c.clear, Audit: time.Second,
			Lose: mishaps, Double: mishaps, Swap: mishaps, Corrupt: mishaps,
		}
		r, err := runOne(span, e)
		if err != nil {
			return err
		}
		a := &r.Index
		fmt.Printf("  %-32s %13d  %8.4f  %9.4f  %11.1f %%  %4d  %7d  %4d  %8d  %v\n", c.name, a.Held, 100*a.FalseShare(), 100*a.MissingShare(),
			100*float64(a.Unknown)/float64(max(a.Unknown+a.Audits, 1)), a.Feed.Gaps, a.Feed.Replays, a.Feed.Lost, a.Feed.Restarts, a.Heal.Round(time.Millisecond))
		j.index("virtual, "+c.name, a.FalseShare(), a.MissingShare(), a.Audits)
		j.heal("virtual, "+c.name, a.Heal, c.heal)
	}
	return nil
}

func runOne(span time.Duration, e sim.Events) (*sim.Result, error) {
	model, err := catalog.FindModel("")
	if err != nil {
		return nil, err
	}
	accelerator, err := catalog.FindAccelerator("")
	if err != nil {
		return nil, err
	}
	c := sim.Config{Pool: pool.Default(), Seed: 1, Scrape: time.Second, Hop: 500 * time.Microsecond, Events: &e}
	c.Pool.Policy = route.Spec{Name: route.DefaultPolicy}
	for i := range engines {
		physics := enginesim.NewRoofline(catalog.Serving{Shape: model, Accelerator: accelerator, TP: 2})
		physics.Factor, physics.Noise, physics.Seed = 1, 0.05, uint64(i)
		c.Replicas = append(c.Replicas, sim.Replica{Physics: physics, Limits: fleet.Limits{KVTokens: 100_000, MaxSeqs: 256, BudgetTokens: 8192}})
		for at := time.Duration(5+3*i) * time.Second; at < span; at += 30 * time.Second {
			c.Faults = append(c.Faults, sim.Fault{At: at, Replica: i, Kind: sim.Crash}, sim.Fault{At: at + down, Replica: i, Kind: sim.Restart})
		}
	}
	slices.SortStableFunc(c.Faults, func(a, b sim.Fault) int { return cmp.Compare(a.At, b.At) })
	a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: rate, Duration: span}}, 0, stat.NewRand(1, "arrivals"))
	load := workload.SharedPrefix{
		Groups: 200, PromptsPerGroup: 50, System: workload.Fixed(2000), Question: workload.Fixed(300), Output: workload.Fixed(100),
	}
	return sim.Run(c, load.Source(a, 1))
}
