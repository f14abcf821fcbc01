package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// adaptiveWithin is how much worse than the better of the fixed ways the adaptive
// one may be, in good requests or in the mean time of a request.
const adaptiveWithin = 0.03

// devices is how many endpoints the fleet has, of one H200 each.
const devices = 16

// nic is the bandwidth at which each accelerator sends KV to others, in bytes per
// second: one card of 400 Gbit/s each.
const nic = 50e9

// What a good request has.
const (
	goodTTFT = 2.0  // s, at most
	goodTPOT = 0.05 // s, at most
)

// point is a load of one length and rate.
type point struct {
	input, output int
	rate          float64 // requests per second
}

func grid(quick bool) []point {
	var all []point
	for _, x := range []struct {
		input int
		rates []float64
	}{{500, []float64{60, 140}}, {2000, []float64{40, 80, 110}}, {5000, []float64{20, 35, 45, 55}}, {10_000, []float64{10, 20, 26}}} {
		for i, r := range x.rates {
			if !quick || i == len(x.rates)-2 {
				all = append(all, point{x.input, 250, r})
			}
		}
	}
	return all
}

// settled are the means and the share of good ones of requests after a warm-up.
type settled struct{ n, ttft, tpot, e2e, good float64 }

func (s settled) String() string {
	return fmt.Sprintf("%6.0f ms %5.1f ms %6.2f s %5.1f %%", 1e3*s.ttft, 1e3*s.tpot, s.e2e, 100*s.good)
}

// fleetOf is the endpoints, of which so many compute prompts for the others; 0 has
// all do both.
func fleetOf(prefills int) ([]lab.Variant, error) {
	s, err := serving("openai/gpt-oss-120b", "H200", 1)
	if err != nil {
		return nil, err
	}
	v := lab.Variant{Name: "both", Serving: s, Replicas: devices, NIC: nic, Belief: lab.Belief(s)}
	if prefills == 0 {
		return []lab.Variant{v}, nil
	}
	p, d := v, v
	p.Name, p.Role, p.Replicas = "prefill", fleet.RolePrefill, prefills
	d.Name, d.Role, d.Replicas = "decode", fleet.RoleDecode, devices-prefills
	return []lab.Variant{p, d}, nil
}

// run plays one way to serve a load.
func (p point) run(ctx context.Context, prefills int, when pool.Split, warm, span time.Duration, seeds int) (settled, error) {
	variants, err := fleetOf(prefills)
	if err != nil {
		return settled{}, err
	}
	s := lab.Scene{
		Variants: variants, Pool: pool.Default(), Noise: 0.05, Scrape: time.Second, Hop: 500 * time.Microsecond,
		Load: func(load float64, seed uint64) (workload.Source, error) {
			a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: p.rate * load, Duration: warm + span}}, 0, stat.NewRand(seed, "arrivals"))
			return workload.Random{Input: workload.Fixed(p.input), Output: workload.Fixed(p.output)}.Source(a, seed), nil
		},
	}
	s.Pool.Split = when
	of := make([]settled, seeds)
	s.Ended = func(c lab.Cell, o sim.Outcome) {
		if o.Start < fleet.Time(warm) {
			return
		}
		r := &of[c.Seed-1]
		if r.n++; !o.Done {
			return
		}
		ttft, e2e := o.First.Sub(o.Start).Seconds(), o.End.Sub(o.Start).Seconds()
		tpot := (e2e - ttft) / float64(max(o.Output-1, 1))
		r.ttft, r.tpot, r.e2e = r.ttft+ttft, r.tpot+tpot, r.e2e+e2e
		if ttft <= goodTTFT && tpot <= goodTPOT {
			r.good++
		}
	}
	if _, err := play(ctx, &s, "predictive", seeds); err != nil {
		return settled{}, err
	}
	var sum settled
	for _, r := range of {
		sum.n, sum.ttft, sum.tpot, sum.e2e, sum.good = sum.n+r.n, sum.ttft+r.ttft, sum.tpot+r.tpot, sum.e2e+r.e2e, sum.good+r.good
	}
	return settled{n: sum.n, ttft: sum.ttft / sum.n, tpot: sum.tpot / sum.n, e2e: sum.e2e / sum.n, good: sum.good / sum.n}, nil
}

// adaptive holds endpoints that do both, as the policy likes, beside fixed ways.
func adaptive(ctx context.Context, o options, g *goals) error {
	warm, span, seeds := 90*time.Second, 3*time.Minute, 8
	if o.quick {
		span, seeds = 2*time.Minute, 2
	}
	g.printf("%-24s %34s %42s %34s %8s\n", "", "whole: TTFT, TPOT, whole, good", "best split: TTFT, TPOT, whole, good", "adaptive", "beside")
	for _, p := range grid(o.quick) {
		whole, err := p.run(ctx, 0, pool.SplitNever, warm, span, seeds)
		if err != nil {
			return err
		}
		split, at, err := p.bestSplit(ctx, warm, span, seeds)
		if err != nil {
			return err
		}
		own, err := p.run(ctx, 0, pool.SplitAuto, warm, span, seeds)
		if err != nil {
			return err
		}
		most, ratio := max(whole.good, split.good), own.e2e/min(whole.e2e, split.e2e)
		g.printf("%5d/%d at %5.1f req/s %s   %2dP%2dD %s %s %8.3f\n", p.input, p.output, p.rate, whole, at, devices-at, split, own, ratio)
		g.hold(ratio <= 1+adaptiveWithin || own.good >= most*(1-adaptiveWithin) && most < 0.99,
			"%d/%d at %.0f req/s: adaptive takes %.3f of the better fixed way, with %.1f %% good beside %.1f %%", p.input, p.output, p.rate, ratio, 100*own.good, 100*most)
	}
	return nil
}

// scanSeeds is with how many seeds every division is tried; the best and those beside
// it are then played with all.
const scanSeeds = 2

// bestSplit finds the number of endpoints for prompts with which requests that are
// all split take least.
func (p point) bestSplit(ctx context.Context, warm, span time.Duration, seeds int) (best settled, at int, err error) {
	best, at, err = p.bestOf(ctx, 1, devices-3, warm, span, scanSeeds)
	if err != nil {
		return best, at, err
	}
	return p.bestOf(ctx, max(at-1, 1), min(at+1, devices-3), warm, span, seeds)
}

// bestOf is the best of so many endpoints for prompts.
func (p point) bestOf(ctx context.Context, from, to int, warm, span time.Duration, seeds int) (best settled, at int, err error) {
	best.e2e = math.Inf(1)
	for x := from; x <= to; x++ {
		r, err := p.run(ctx, x, pool.SplitAlways, warm, span, seeds)
		if err != nil {
			return best, at, err
		}
		if r.e2e < best.e2e {
			best, at = r, x
		}
	}
	return best, at, nil
}
