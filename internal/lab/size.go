package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// Sizing asks how to lay out a model on so many devices, and how many requests per
// second they then serve as they should.
type Sizing struct {
	Serving catalog.Serving // the model, its accelerator, precisions and engine; its parallelism does not count
	Devices int             // all of which are used
	Sizes   []int           // devices of one replica that are tried; nil for what Sizes returns
	Input   int             // tokens of each prompt
	Output  int             // tokens of each answer
	TTFT    time.Duration   // at most
	TPOT    time.Duration   // at most
	Share   float64         // of requests that must have both, above 0 and below 1
	NIC     float64         // bytes per second with which each device sends KV to others
	MaxSeqs int             // sequences that each engine process decodes at once
	Whole   bool            // only layouts that serve whole
	Seeds   int             // runs of each rate
	Noise   float64         // as Scene's
	Within  float64         // how near the highest rate is found, as a share of it
}

// Group is so many replicas that are served alike.
type Group struct {
	Replicas int
	Serving  catalog.Serving
}

// String names the group as people do: 2xEP16, 4xTP8.
func (g Group) String() string {
	s, way := g.Serving.Normal(), ""
	switch {
	case s.DP > 1:
		way = fmt.Sprintf("EP%d", s.DP)
	default:
		way = fmt.Sprintf("TP%d", s.TP)
	}
	return fmt.Sprintf("%dx%s", g.Replicas, way)
}

func (g Group) devices() int { return g.Replicas * g.Serving.Devices() }

// Layout is a way to use the devices: some compute prompts for those that decode, or
// all serve whole.
type Layout struct {
	Prefill Group // of 0 replicas where all serve whole
	Decode  Group
}

// Split reports whether prompts are computed apart.
func (l *Layout) Split() bool { return l.Prefill.Replicas > 0 }

// String names the layout.
func (l *Layout) String() string {
	if !l.Split() {
		return l.Decode.String() + " whole"
	}
	return fmt.Sprintf("%v prefill + %v decode", l.Prefill, l.Decode)
}

// Sized is what came of a layout.
type Sized struct {
	Layout
	Estimate float64 // requests per second that the model of step times promises
	Rate     float64 // highest that held in simulation; 0 where none did
	At       Trial   // that rate
	Above    Trial   // the lowest rate that did not hold
	Skipped  bool    // not even half of another layout's rate held: its own was not searched for
	Bounds   Bounds
}

// Trial is how a rate was served in simulation.
type Trial struct {
	Rate                 float64 // requests per second
	TTFT, TPOT           [2]time.Duration
	Good, InTTFT, InTPOT float64 // shares of requests that had both, and each
}

// Bounds are the requests per second that each side of a layout could take if the
// other cost nothing.
type Bounds struct {
	Prompts float64 // computed
	Answers float64 // decoded in the target of the time per token
	KV      float64 // held in the caches at that pace
	Batch   float64 // sequences that an engine process decodes at that pace
}

// Validate returns what is wrong with the question.
func (z *Sizing) Validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(z.Devices < 1 || z.Devices > maxSizedDevices, "devices: must be at least 1 and at most %d, are %d", maxSizedDevices, z.Devices)
	bad(z.Input < 1, "input: must be at least 1 token, is %d", z.Input)
	bad(z.Output < 2, "output: must be at least 2 tokens, is %d", z.Output)
	bad(z.TTFT <= 0, "ttft: must be more than 0, is %v", z.TTFT)
	bad(z.TPOT <= 0, "tpot: must be more than 0, is %v", z.TPOT)
	bad(!(z.Share > 0 && z.Share < 1), "share: must be between 0 and 1, is %v", z.Share)
	bad(z.NIC < 0, "nic: must not be negative, is %v", z.NIC)
	bad(z.MaxSeqs < 1, "max-seqs: must be at least 1, is %d", z.MaxSeqs)
	bad(z.Seeds < 1, "seeds: must be at least 1, is %d", z.Seeds)
	bad(!(z.Within > 0 && z.Within < 1), "within: must be between 0 and 1, is %v", z.Within)
	for _, n := range z.Sizes {
		bad(n < 1 || n > z.Devices, "sizes: a replica takes at least 1 and at most all %d devices, not %d", z.Devices, n)
	}
	if len(errs) == 0 && len(z.Layouts()) == 0 {
		_, err := z.way(min(z.Devices, node), false)
		if err == nil {
			err = fmt.Errorf("no replicas of %v devices fill them", z.sizes())
		}
		errs = append(errs, fmt.Errorf("%s cannot be laid out on %d %s: %w", z.Serving.Shape.Name, z.Devices, z.Serving.Accelerator.Name, err))
	}
	return errors.Join(errs...)
}

const (
	maxSizedDevices = 1024
	node            = 8 // devices with fast links to each other: more share no matrix
)

// way is a replica of so many devices: they share each matrix, or, wide, each has
// attention and KV of its own and a part of the experts.
func (z *Sizing) way(devices int, wide bool) (catalog.Serving, error) {
	s := z.Serving
	s.TP, s.PP, s.DP, s.EP = devices, 1, 1, 1
	if wide {
		s.TP, s.DP, s.EP = 1, devices, devices
	}
	s = s.Normal()
	return s, s.Validate()
}

// sizes returns the devices that a replica may take: powers of two up to a node, then
// whole nodes.
func (z *Sizing) sizes() []int {
	if len(z.Sizes) > 0 {
		return z.Sizes
	}
	var all []int
	for n := 1; n <= z.Devices; {
		all = append(all, n)
		if n < node {
			n *= 2
		} else {
			n += node
		}
	}
	return all
}

// groups returns the ways to use exactly so many devices alike.
func (z *Sizing) groups(devices int) []Group {
	var all []Group
	for _, n := range z.sizes() {
		if n > devices || devices%n != 0 {
			continue
		}
		if n <= node {
			if s, err := z.way(n, false); err == nil {
				all = append(all, Group{devices / n, s})
			}
		}
		if n > 1 && z.Serving.Shape.Experts > 0 {
			if s, err := z.way(n, true); err == nil {
				all = append(all, Group{devices / n, s})
			}
		}
	}
	return all
}

// Layouts returns all the ways that there are to use the devices.
func (z *Sizing) Layouts() []Layout {
	var all []Layout
	for _, g := range z.groups(z.Devices) {
		all = append(all, Layout{Decode: g})
	}
	if z.Whole || z.NIC == 0 {
		return all
	}
	for p := 1; p < z.Devices; p++ {
		for _, pre := range z.groups(p) {
			for _, dec := range z.groups(z.Devices - p) {
				all = append(all, Layout{pre, dec})
			}
		}
	}
	return all
}

// Size lays the model out in every way, the most promising first, and finds the
// highest rate that each one serves as it should, unless that is less than half of
// another's.
// Progress hears before each layout. The result is sorted, best first.
func (z *Sizing) Size(ctx context.Context, progress func(done int, next *Layout)) ([]Sized, error) {
	if err := z.Validate(); err != nil {
		return nil, err
	}
	var all []Sized
	for _, l := range z.Layouts() {
		all = append(all, Sized{Layout: l, Estimate: z.estimate(&l), Bounds: z.bounds(&l)})
	}
	slices.SortStableFunc(all, func(a, b Sized) int { return cmp.Compare(b.Estimate, a.Estimate) })
	best := 0.0
	for i := range all {
		progress(i, &all[i].Layout)
		if err := z.search(ctx, &all[i], best); err != nil {
			return nil, err
		}
		best = max(best, all[i].Rate)
	}
	slices.SortStableFunc(all, func(a, b Sized) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(b.Estimate, a.Estimate))
	})
	return all, nil
}

// least is the rate, in requests per second, below which none is looked for.
const least = 0.01

// search finds the highest rate of a layout, if it is above half of best.
func (z *Sizing) search(ctx context.Context, s *Sized, best float64) error {
	try := func(rate float64) (bool, error) {
		r, err := z.play(ctx, &s.Layout, rate)
		if err != nil {
			return false, err
		}
		if r.Good >= z.Share {
			s.Rate, s.At = rate, r
			return true, nil
		}
		if s.Above.Rate == 0 || rate < s.Above.Rate {
			s.Above = r
		}
		return false, nil
	}
	low, high := 0.0, math.Inf(1)
	rate := max(s.Estimate, least)
	if best > 0 {
		low = best / 2
		held, err := try(low)
		if err != nil {
			return err
		}
		if !held {
			s.Skipped = true
			return nil
		}
		rate = max(low*1.2, min(rate, best))
	}
	for high > low*(1+z.Within) && rate >= least {
		held, err := try(rate)
		if err != nil {
			return err
		}
		if held {
			low = rate
		} else {
			high = rate
		}
		switch {
		case math.IsInf(high, 1):
			rate = low * 1.2
		case low == 0:
			rate = high / 1.5
		default:
			rate = math.Sqrt(low * high)
		}
	}
	return nil
}

// variant is a group in the lab's terms.
func (z *Sizing) variant(name string, g Group, role fleet.Role) Variant {
	v := Variant{Name: name, Serving: g.Serving, Replicas: g.Replicas, Role: role, NIC: z.NIC, Lockstep: g.Serving.DP > 1, Belief: Belief(g.Serving)}
	v.Limits.MaxSeqs = z.MaxSeqs * g.Serving.DP
	return v
}

// play simulates a layout at a rate: Poisson arrivals, of which those count that come
// after the first answers have ended and before the last begin to.
func (z *Sizing) play(ctx context.Context, l *Layout, rate float64) (Trial, error) {
	answer := z.TTFT + time.Duration(z.Output)*z.TPOT
	warm, span := answer, max(answer, time.Minute, time.Duration(sizedFew/rate*float64(time.Second)))
	s := Scene{
		Pool: pool.Default(), Noise: z.Noise, Scrape: time.Second, Hop: 500 * time.Microsecond,
		Load: func(load float64, seed uint64) (workload.Source, error) {
			a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: rate * load, Duration: warm + span + answer}}, 0, stat.NewRand(seed, "arrivals"))
			return workload.Random{Input: workload.Fixed(z.Input), Output: workload.Fixed(z.Output)}.Source(a, seed), nil
		},
	}
	if l.Split() {
		s.Pool.Split = pool.SplitAlways
		s.Variants = []Variant{z.variant("prefill", l.Prefill, fleet.RolePrefill), z.variant("decode", l.Decode, fleet.RoleDecode)}
	} else {
		s.Pool.Split = pool.SplitNever
		s.Variants = []Variant{z.variant("whole", l.Decode, fleet.RoleBoth)}
	}
	tallies := make([]tally, z.Seeds)
	s.Ended = func(c Cell, o sim.Outcome) {
		if o.Start >= fleet.Time(warm) && o.Start < fleet.Time(warm+span) {
			tallies[c.Seed-1].add(o, z.TTFT, z.TPOT)
		}
	}
	if _, err := s.RunAll(ctx, Grid([]string{"predictive"}, []float64{1}, z.Seeds), runtime.NumCPU(), func(int) {}); err != nil {
		return Trial{}, err
	}
	var sum tally
	for i := range tallies {
		sum.join(&tallies[i])
	}
	return sum.trial(rate), nil
}

// sizedFew is how many requests must count for a share of them to tell something.
const sizedFew = 300

// tally counts how requests were served.
type tally struct {
	n, good, inTTFT, inTPOT float64
	ttft, tpot              []time.Duration
}

func (t *tally) add(o sim.Outcome, ttft, tpot time.Duration) {
	t.n++
	if !o.Done {
		return
	}
	first := o.First.Sub(o.Start)
	each := o.End.Sub(o.First) / time.Duration(max(o.Output-1, 1))
	t.ttft, t.tpot = append(t.ttft, first), append(t.tpot, each)
	if first <= ttft {
		t.inTTFT++
	}
	if each <= tpot {
		t.inTPOT++
	}
	if first <= ttft && each <= tpot {
		t.good++
	}
}

func (t *tally) join(o *tally) {
	t.n, t.good, t.inTTFT, t.inTPOT = t.n+o.n, t.good+o.good, t.inTTFT+o.inTTFT, t.inTPOT+o.inTPOT
	t.ttft, t.tpot = append(t.ttft, o.ttft...), append(t.tpot, o.tpot...)
}

func (t *tally) trial(rate float64) Trial {
	n := max(t.n, 1)
	s := Trial{Rate: rate, Good: t.good / n, InTTFT: t.inTTFT / n, InTPOT: t.inTPOT / n}
	for i, q := range []float64{0.5, 0.9} {
		s.TTFT[i], s.TPOT[i] = quantile(t.ttft, q), quantile(t.tpot, q)
	}
	return s
}

func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[int(q*float64(len(all)-1))]
}

// stream is the load at a rate.
func (z *Sizing) stream(rate float64) perf.Stream {
	return perf.Stream{Rate: rate, Prompt: float64(z.Input), Uncached: float64(z.Input), Output: float64(z.Output)}
}

// moving is what moving the KV of a prompt takes, in seconds, between devices that
// each send what they have.
func (z *Sizing) moving(g Group) float64 {
	v := Variant{Serving: g.Serving, NIC: z.NIC}
	l := v.leaves()
	return l.Latency + l.PerToken*float64(z.Input)
}

// estimate is the highest rate at which the model of step times promises the targets
// on average.
func (z *Sizing) estimate(l *Layout) float64 {
	dec, kv := Belief(l.Decode.Serving), float64(l.Decode.Serving.KVTokens())
	holds := func(rate float64) bool {
		s := dec.Whole(z.stream(rate), float64(l.Decode.Replicas), kv)
		if l.Split() {
			pre := Belief(l.Prefill.Serving)
			s = pre.Split(z.stream(rate), float64(l.Prefill.Replicas), float64(l.Decode.Replicas), &dec, z.moving(l.Prefill), kv)
		}
		return s.TTFT <= z.TTFT.Seconds() && s.TPOT <= z.TPOT.Seconds()
	}
	low, high := 0.0, 1.0
	for holds(high) && high < 1e6 {
		low, high = high, 2*high
	}
	for range 30 {
		if mid := (low + high) / 2; holds(mid) {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}

// steps returns how long a step of an engine process of a group takes in simulation,
// where the other ranks of its set do the same.
func (z *Sizing) steps(g Group) func(b enginesim.Batch) float64 {
	truth := enginesim.NewRoofline(g.Serving)
	others := fleet.Tokens(max(g.Serving.DP, 1) - 1)
	return func(b enginesim.Batch) float64 {
		b.Others = others * b.Tokens()
		return truth.StepTime(b).Seconds()
	}
}

// bounds works out what each side could do if the other cost nothing, by the step
// times that are simulated.
func (z *Sizing) bounds(l *Layout) Bounds {
	step := z.steps(l.Decode)
	context, lasts := float64(z.Input)+float64(z.Output)/2, float64(z.Output)*z.TPOT.Seconds()
	ranks := float64(max(l.Decode.Serving.DP, 1) * l.Decode.Replicas)
	b := Bounds{KV: float64(l.Decode.Replicas) * float64(l.Decode.Serving.KVTokens()) / context / lasts}
	b.Batch = float64(sort.Search(z.MaxSeqs, func(n int) bool {
		return step(enginesim.Batch{Decodes: n + 1, Context: fleet.Tokens(float64(n+1) * context)}) > z.TPOT.Seconds()
	}))
	b.Answers = ranks * b.Batch / lasts
	at := l.Decode
	if l.Split() {
		at = l.Prefill
	}
	side := float64(max(at.Serving.DP, 1) * at.Replicas)
	b.Prompts = side / z.steps(at)(enginesim.Batch{Prefills: 1, Prompt: fleet.Tokens(z.Input), Attention: perf.Pairs(0, fleet.Tokens(z.Input))})
	return b
}

// GivesWay tells what is missed at the lowest rate that did not hold.
func (s *Sized) GivesWay() string {
	switch a := &s.Above; {
	case a.Rate == 0:
		return ""
	case a.InTTFT < a.InTPOT:
		return fmt.Sprintf("TTFT (%.1f %% in time at %.2f, %.1f %% good)", 100*a.InTTFT, a.Rate, 100*a.Good)
	default:
		return fmt.Sprintf("TPOT (%.1f %% in time at %.2f, %.1f %% good)", 100*a.InTPOT, a.Rate, 100*a.Good)
	}
}

// Why tells, line by line, what limits a layout.
func (s *Sized) Why(z *Sizing) []string {
	b := &s.Bounds
	prompts, answers := "The replicas", "they"
	if s.Split() {
		prompts, answers = fmt.Sprintf("%v", s.Prefill), fmt.Sprintf("%v", s.Decode)
	}
	lines := []string{
		fmt.Sprintf("%s could compute the prompts of %.1f req/s if each always had one;", prompts, b.Prompts),
		fmt.Sprintf("%s could answer %.1f req/s within %v a token if they did nothing else, by %.0f sequences in each engine process,", answers, b.Answers, z.TPOT, b.Batch),
		fmt.Sprintf("and hold the KV of %.1f req/s at that pace.", b.KV),
	}
	if s.Split() {
		lines = append(lines, fmt.Sprintf("The KV of a prompt moves in %s.", time.Duration(z.moving(s.Prefill)*float64(time.Second)).Round(time.Millisecond)))
	}
	if a := &s.Above; a.Rate > 0 {
		lines = append(lines, fmt.Sprintf("In simulation %s is missed first: at %.2f req/s by %.1f %% of requests; %.1f %% hold both targets.", map[bool]string{true: "TTFT", false: "TPOT"}[a.InTTFT < a.InTPOT], a.Rate, 100*(1-min(a.InTTFT, a.InTPOT)), 100*a.Good))
	}
	return lines
}
