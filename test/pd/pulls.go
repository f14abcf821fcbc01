package main

import (
	"context"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// A pull is worth it when load pushes requests off the endpoints that hold their
// prefixes; it must cost nothing where it is not. What is held to goals is the
// mean time of a request from the first event on, beside affinity alone; runs of the
// same scene that differ in nothing are within the 2 % between them.
const (
	pullWins    = 0.98 // of it, at most, where pulls must help
	pullUseless = 1.02 // of it, at most, where they are of no use
)

// pullScene is one of them: how it comes about, and whether pulls must win.
type pullScene struct {
	name   string
	before float64 // requests per second until the event
	rate   float64 // and after it
	nic    float64 // bytes per second of each device
	groups int     // of requests that share a prefix of so many tokens
	prefix int
	faults []sim.Fault // the event
	later  int         // replicas that are added
	wins   bool
}

func pullScenes(event time.Duration) []pullScene {
	var added, died []sim.Fault
	for i := 4; i < 8; i++ {
		added = append(added, sim.Fault{At: event, Replica: i, Kind: sim.Add})
	}
	for i := range 3 {
		died = append(died, sim.Fault{At: event, Replica: i, Kind: sim.Crash})
	}
	for i := range 3 {
		died = append(died, sim.Fault{At: event + 5*time.Second, Replica: i, Kind: sim.Restart, Delay: 15 * time.Second})
	}
	return []pullScene{
		{name: "scale-out from 4 to 8", before: 6, rate: 18, nic: 50e9, groups: 60, prefix: 16_000, faults: added, later: 4, wins: true},
		{name: "failover of 3 of 8", before: 12, rate: 16, nic: 50e9, groups: 60, prefix: 16_000, faults: died, wins: true},
		{name: "nothing is shared", before: 8, rate: 8, nic: 50e9, groups: 1_000_000, prefix: 4_000},
		{name: "short prompts", before: 40, rate: 40, nic: 50e9, groups: 200, prefix: 100},
		{name: "a link slower than computing", before: 6, rate: 18, nic: 2.5e9, groups: 60, prefix: 16_000, faults: added, later: 4},
		{name: "every prefix where it is wanted", before: 6, rate: 6, nic: 50e9, groups: 8, prefix: 16_000},
	}
}

// scene is the lab's, on Qwen3-32B over two H100 each, with pulls or without.
func (p *pullScene) scene(event, span time.Duration, when pool.Pull) (*lab.Scene, error) {
	s, err := serving("Qwen/Qwen3-32B", "H100", 2)
	if err != nil {
		return nil, err
	}
	v := lab.Variant{Name: "h100", Serving: s, Replicas: 8 - p.later, Later: p.later, NIC: p.nic, Pulls: true, Belief: lab.Belief(s)}
	out := &lab.Scene{
		Variants: []lab.Variant{v}, Pool: pool.Default(), Noise: 0.05, Spread: 0.1, Scrape: 200 * time.Millisecond, Hop: 500 * time.Microsecond,
		Events: &sim.Events{Lag: 2 * time.Millisecond, Ring: 10_000}, Faults: p.faults,
		Load: func(load float64, seed uint64) (workload.Source, error) {
			a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{
				{Rate: p.before * load, Duration: event}, {Rate: p.rate * load, Duration: span},
			}, 0, stat.NewRand(seed, "arrivals"))
			return workload.SharedPrefix{
				Groups: p.groups, PromptsPerGroup: 1_000_000 / p.groups, System: workload.Fixed(p.prefix), Question: workload.Fixed(200), Output: workload.Fixed(150),
			}.Source(a, seed), nil
		},
	}
	out.Pool.Split, out.Pool.Pull = pool.SplitNever, when
	return out, nil
}

// after are the means of the requests that came after an event, in seconds.
type after struct {
	n, failed int
	ttft, e2e float64
	pulls     int
}

// measure plays a scene and returns what became of the requests after the event.
func (p *pullScene) measure(ctx context.Context, event, span time.Duration, when pool.Pull, seeds int) (after, error) {
	s, err := p.scene(event, span, when)
	if err != nil {
		return after{}, err
	}
	of := make([]after, seeds)
	s.Ended = func(c lab.Cell, o sim.Outcome) {
		a := &of[c.Seed-1]
		switch {
		case o.Start < fleet.Time(event):
		case !o.Done:
			a.failed++
		default:
			a.n++
			a.ttft += o.First.Sub(o.Start).Seconds()
			a.e2e += o.End.Sub(o.Start).Seconds()
		}
	}
	results, err := play(ctx, s, "predictive", seeds)
	if err != nil {
		return after{}, err
	}
	var sum after
	for i, a := range of {
		sum.n, sum.failed, sum.pulls = sum.n+a.n, sum.failed+a.failed, sum.pulls+results[i].Pulls
		sum.ttft, sum.e2e = sum.ttft+a.ttft, sum.e2e+a.e2e
	}
	sum.ttft, sum.e2e = sum.ttft/float64(sum.n), sum.e2e/float64(sum.n)
	return sum, nil
}

// pulls compares fetching with affinity alone.
func pulls(ctx context.Context, o options, g *goals) error {
	event, span, seeds := 3*time.Minute, 2*time.Minute, 5
	if o.quick {
		span, seeds = time.Minute, 2
	}
	g.printf("%-34s %28s %28s %8s %8s\n", "", "without: TTFT, whole", "with: TTFT, whole", "ratio", "pulls")
	for _, p := range pullScenes(event) {
		without, err := p.measure(ctx, event, span, pool.PullNever, seeds)
		if err != nil {
			return err
		}
		with, err := p.measure(ctx, event, span, pool.PullAuto, seeds)
		if err != nil {
			return err
		}
		ratio := with.e2e / without.e2e
		g.printf("%-34s %12.0f ms %10.0f ms %12.0f ms %10.0f ms %8.3f %8d\n", p.name,
			1e3*without.ttft, 1e3*without.e2e, 1e3*with.ttft, 1e3*with.e2e, ratio, with.pulls/seeds)
		most := pullUseless
		if p.wins {
			most = pullWins
		}
		g.hold(ratio <= most, "%s: with pulls a request takes %.3f of its time without, want at most %v", p.name, ratio, most)
	}
	return nil
}
