package main

import (
	"cmp"
	"context"
	_ "embed" // the workloads
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/workload"
)

//go:embed agentic.yaml
var agentic []byte

//go:embed mixed.yaml
var lengths []byte

//go:embed shared.yaml
var prefixes []byte

// scene is a fleet under a kind of load.
type scene struct {
	name   string
	mixed  bool // of accelerators
	judged bool // for the lead that predictive must have on mixed fleets
	guess  float64
	lab    lab.Scene
}

// fleets are mixes by size; the larger ones are the smallest several times.
var fleets = []struct {
	name  string
	mix   string
	mixed bool
}{
	{"h100", "H100:8", false},
	{"mixed", "H100:3,A100:3,L40S:2", true},
}

// scenes returns all of them.
func scenes(o options) ([]*scene, error) {
	var all []*scene
	conversation, err := mooncake(o)
	if err != nil {
		return nil, err
	}
	long := sim.Targets{TTFT: 10 * time.Second, TPOT: 100 * time.Millisecond}
	usual := sim.Targets{TTFT: 3 * time.Second, TPOT: 100 * time.Millisecond}
	for _, f := range fleets {
		for _, times := range []int{1, 2, 8} {
			if o.quick && times > 2 {
				continue
			}
			name := fmt.Sprintf("mooncake/%s/%d", f.name, 8*times)
			s, err := newScene(name, f.mix, times, long, conversation(o, times))
			if err != nil {
				return nil, err
			}
			s.mixed, s.judged, s.guess = f.mixed, f.mixed, 0.8*float64(times)
			all = append(all, s)
		}
		for name, text := range map[string][]byte{"shared": prefixes, "agentic": agentic, "lengths": lengths} {
			load, err := described(text, o)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			s, err := newScene(name+"/"+f.name+"/8", f.mix, 1, usual, load)
			if err != nil {
				return nil, err
			}
			s.mixed, s.guess = f.mixed, 1
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *scene) int { return cmp.Compare(a.name, b.name) }) // not as the map gave them
	return all, nil
}

type loadFunc = func(load float64, seed uint64) (workload.Source, error)

// mooncake reads the conversation trace.
func mooncake(o options) (func(o options, times int) loadFunc, error) {
	f, err := os.Open(filepath.Join(o.shared, "traces", "mooncake_conversation_trace.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("%w; say where traces/ is with --shared DIR", err)
	}
	defer f.Close()
	trace, err := workload.ReadTrace(f, workload.FormatAuto)
	if err != nil {
		return nil, err
	}
	return func(o options, times int) loadFunc {
		slice := 10 * time.Minute
		if times > 2 {
			slice = 5 * time.Minute
		}
		return lab.Replay(trace, o.shorter(slice))
	}, nil
}

// described reads a workload.
func described(text []byte, o options) (loadFunc, error) {
	spec, err := workload.ParseSpec(text)
	if err != nil {
		return nil, err
	}
	return lab.Scaled(spec, o.shorter(10*time.Minute))
}

func (o options) shorter(d time.Duration) time.Duration {
	if o.quick {
		return d / 3
	}
	return d
}

// newScene is a fleet of Qwen3-32B, every replica on two accelerators: the same
// queue, SLO, gauges and cold start for every policy.
func newScene(name, mix string, times int, targets sim.Targets, load loadFunc) (*scene, error) {
	model, err := catalog.FindModel("Qwen/Qwen3-32B")
	if err != nil {
		return nil, err
	}
	variants, err := lab.ParseMix(mix, 8, catalog.Serving{Shape: model, TP: 2, Engine: "vllm"}.Normal())
	if err != nil {
		return nil, err
	}
	for i := range variants {
		variants[i].Replicas *= times
	}
	return &scene{name: name, lab: lab.Scene{
		Variants: variants, Pool: pool.Default(), Noise: 0.05, Spread: 0.2, Targets: targets, Load: load,
		Scrape: 100 * time.Millisecond, // llm-d's gauges are about as old
		Hop:    500 * time.Microsecond,
	}}, nil
}

// bout is what came of one scene under one load.
type bout struct {
	load  float64 // relative to that at which the best baseline has 90 % good
	ratio float64 // good requests over those of the best baseline
	rival string  // the best baseline
	known float64 // good requests over those of the policy that knows the truth
}

// play finds the load that the best baseline just manages, runs all policies
// below, at and above it, and prints what came of it.
func (s *scene) play(ctx context.Context, o options, w io.Writer) ([]bout, error) {
	base, err := s.reference(ctx)
	if err != nil {
		return nil, err
	}
	loads := []float64{0.7, 1, 1.3}
	all := append([]string{ours, clairvoyant}, baselines()...)
	var cells []lab.Cell
	for _, l := range loads {
		cells = append(cells, lab.Grid(all, []float64{l * base}, o.seeds)...)
	}
	results, err := s.lab.RunAll(ctx, cells, workers(), func(int) {})
	if err != nil {
		return nil, err
	}
	c, err := s.lab.Compare(cells, results)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "\n== %s: TTFT %v, TPOT %v; load 1 is %.3f of the workload's own\n", s.name, s.lab.Targets.TTFT, s.lab.Targets.TPOT, base)
	var bouts []bout
	for i, l := range loads {
		b := judge(c.Rows[i*len(all):(i+1)*len(all)], l)
		bouts = append(bouts, b)
	}
	table(w, c.Rows, base)
	for _, b := range bouts {
		fmt.Fprintf(w, "x %.1f: predictive has %.3f times the good requests of %s, the best baseline, and %.3f of %s\n", b.load, b.ratio, b.rival, b.known, clairvoyant)
	}
	return bouts, nil
}

// reference returns the load at which the best baseline serves 90 % well.
func (s *scene) reference(ctx context.Context) (float64, error) {
	const share, precise = 0.9, 0.03
	good := func(load float64) (float64, error) {
		results, err := s.lab.RunAll(ctx, lab.Grid(baselines(), []float64{load}, 1), workers(), func(int) {})
		best := 0.0
		for _, r := range results {
			if r != nil {
				best = max(best, float64(r.Good)/float64(r.Arrived))
			}
		}
		return best, err
	}
	lo, hi := 0.0, 0.0
	for load := s.guess; lo == 0 || hi == 0; {
		g, err := good(load)
		if err != nil {
			return 0, err
		}
		if g >= share {
			lo = load
			load *= 1.5
		} else {
			hi = load
			load /= 1.5
		}
		if load < s.guess/100 {
			return 0, fmt.Errorf("no baseline serves %.0f %% well at any load: the targets are out of reach", 100*share)
		}
	}
	for hi/lo > 1+precise {
		mid := (lo + hi) / 2
		g, err := good(mid)
		if err != nil {
			return 0, err
		}
		if g >= share {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// judge compares ours with the others under one load.
func judge(rows []lab.Row, load float64) bout {
	b := bout{load: load}
	var mine, best, known float64
	for _, r := range rows {
		switch g := r.GoodShare.Mean; r.Policy {
		case ours:
			mine = g
		case clairvoyant:
			known = g
		default:
			if g > best {
				best, b.rival = g, r.Policy
			}
		}
	}
	b.ratio, b.known = mine/best, mine/known
	return b
}

func table(w io.Writer, rows []lab.Row, base float64) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "load\tpolicy\tgood\tTTFT mean\tp90\tp99\tTPOT mean\tp90\tE2E p90\tcached\tof at most\timbalance\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%.1f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Load/base, r.Policy, r.GoodShare.Text(100, "%.1f", " %"),
			r.TTFT.Mean.Text(1, "%.2f", " s"), r.TTFT.P90.Text(1, "%.2f", " s"), r.TTFT.P99.Text(1, "%.1f", " s"),
			r.TPOT.Mean.Text(1e3, "%.1f", " ms"), r.TPOT.P90.Text(1e3, "%.1f", " ms"), r.E2E.P90.Text(1, "%.1f", " s"),
			r.Cached.Text(100, "%.1f", " %"), r.Ceiling.Text(100, "%.1f", " %"), r.Imbalance.Text(1, "%.2f", ""))
	}
	t.Flush()
}
