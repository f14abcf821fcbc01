package main

import (
	"context"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

const (
	// publishedWithin is how far a figure may be from the published one.
	publishedWithin = 0.25

	// publishedBy is the policy whose figures are held to the published ones: what the
	// project that published them gives as its own weights now, prompts that hit no
	// cache dealt out in turn. The others are told.
	publishedBy = "llm-d-optimized"
)

// figure is one that was published of both fleets: gpt-oss-120b on 16 H200, 5,000
// tokens in and 250 out, 45 requests per second for 120 s
// (llm-d, guides/pd-disaggregation).
type figure struct {
	name         string
	whole, split float64 // s
	of           func(*sim.Result) float64
}

func figures() []figure {
	return []figure{
		{"whole time, mean", 6.7, 3.5, e2e},
		{"between tokens, mean", 0.025, 0.008, func(r *sim.Result) float64 { return r.ITL.Mean() * 1e-9 }},
		{"between tokens, p95", 0.197, 0.067, func(r *sim.Result) float64 { return r.ITL.Quantile(0.95) * 1e-9 }},
		{"first token, mean", 0.53, 1.40, ttft},
	}
}

// publishedFleets are 16 replicas that serve whole, and 8 that compute prompts for 2
// of four devices each.
func publishedFleets() (whole, split []lab.Variant, err error) {
	one, err := serving("openai/gpt-oss-120b", "H200", 1)
	if err != nil {
		return nil, nil, err
	}
	four, err := serving("openai/gpt-oss-120b", "H200", 4)
	if err != nil {
		return nil, nil, err
	}
	whole = []lab.Variant{{Name: "whole", Serving: one, Replicas: devices, Belief: lab.Belief(one)}}
	split = []lab.Variant{
		{Name: "prefill", Serving: one, Replicas: 8, Role: fleet.RolePrefill, NIC: nic, Belief: lab.Belief(one)},
		{Name: "decode", Serving: four, Replicas: 2, Role: fleet.RoleDecode, NIC: nic, Belief: lab.Belief(four)},
	}
	return whole, split, nil
}

// published sets the simulated fleets beside the published ones.
func published(ctx context.Context, o options, g *goals) error {
	whole, split, err := publishedFleets()
	if err != nil {
		return err
	}
	seeds := 3
	if o.quick {
		seeds = 1
	}
	for _, policy := range []string{publishedBy, "llm-d", "round-robin", "predictive"} {
		var r [2][]*sim.Result
		for i, variants := range [][]lab.Variant{whole, split} {
			s := lab.Scene{
				Variants: variants, Pool: pool.Default(), Noise: 0.05, Scrape: 200 * time.Millisecond, Hop: 500 * time.Microsecond, Tokens: true,
				Load: func(load float64, seed uint64) (workload.Source, error) {
					a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: 45 * load, Duration: 2 * time.Minute}}, 0, stat.NewRand(seed, "arrivals"))
					return workload.Random{Input: workload.Fixed(5000), Output: workload.Fixed(250)}.Source(a, seed), nil
				},
			}
			s.Pool.Split = pool.SplitAlways
			if r[i], err = play(ctx, &s, policy, seeds); err != nil {
				return err
			}
		}
		g.printf("%s, 45 req/s of 5,000/250     whole: published, simulated     8 TP1 + 2 TP4: published, simulated\n", policy)
		for _, f := range figures() {
			w, s := mean(r[0], f.of), mean(r[1], f.of)
			g.printf("  %-24s %14.3f s %9.3f s %+5.0f %% %17.3f s %9.3f s %+5.0f %%\n", f.name, f.whole, w, 100*(w/f.whole-1), f.split, s, 100*(s/f.split-1))
			if policy != publishedBy {
				continue
			}
			g.hold((s-w)*(f.split-f.whole) > 0, "%s goes the other way: %.3f -> %.3f s, published %.3f -> %.3f", f.name, w, s, f.whole, f.split)
			g.hold(math.Abs(w/f.whole-1) <= publishedWithin, "%s whole: %.3f s, published %.3f", f.name, w, f.whole)
			g.hold(math.Abs(s/f.split-1) <= publishedWithin, "%s split: %.3f s, published %.3f", f.name, s, f.split)
		}
	}
	return nil
}
