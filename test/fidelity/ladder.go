package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// rung is one rate of the published ladder and what was measured at it.
type rung struct {
	rate    float64       // requests per second
	length  time.Duration // for which they arrive
	figures map[string]figures
}

// figures are what one rung shows of a policy.
type figures struct {
	output float64 // tok/s over the stage, until its last request has ended
	mean   float64 // TTFT, s
	p90    float64
}

// ladderSetup is how the published run was made, as far as it is known, and
// what is assumed of the rest: see docs/decisions/0011-fidelity.md.
type ladderSetup struct {
	spread  [2]float64    // standard deviations of question and output lengths, tokens
	service string        // the policy that stands for a Kubernetes Service
	hop     time.Duration // one way between client and engine, with what a server does before its engine
	scrape  time.Duration // age of the gauges at most
}

// assumed is what is taken of the settings that are not published.
func assumed() ladderSetup {
	return ladderSetup{service: "random", hop: 25 * time.Millisecond, scrape: 100 * time.Millisecond}
}

// lengths are how long each rate of the ladder was kept up, in seconds.
var lengths = map[float64]int{
	3: 20, 10: 20, 15: 20, 20: 38, 22: 34, 25: 30, 30: 25, 35: 21, 40: 38, 43: 36, 46: 33, 49: 30, 52: 29, 55: 27, 57: 26, 60: 25,
}

// policies are the columns of the published table and the policies that run for
// them.
func (l ladderSetup) policies() [][2]string {
	return [][2]string{{"roundrobin", l.service}, {"approx_prefix", "llm-d-optimized"}}
}

// readLadder reads the published table.
func readLadder(shared string) ([]rung, error) {
	f, err := os.Open(filepath.Join(shared, "data", "published", "qwen3-32b_8xTP2_h100_vllm_routing.csv"))
	if err != nil {
		return nil, fmt.Errorf("opening the published ladder: %w", err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("reading the published ladder: %w", err)
	}
	var rungs []rung
	for _, row := range rows[1:] {
		r := rung{figures: map[string]figures{}}
		for i, name := range rows[0] {
			v, err := strconv.ParseFloat(row[i], 64)
			if err != nil {
				return nil, fmt.Errorf("reading the published ladder: column %s: %w", name, err)
			}
			if name == "rate_rps" {
				r.rate = v
				continue
			}
			policy, what, ok := cutAny(name, "_output_tok_s", "_ttft_mean_s", "_ttft_p90_s")
			if !ok {
				continue
			}
			g := r.figures[policy]
			switch what {
			case "_output_tok_s":
				g.output = v
			case "_ttft_mean_s":
				g.mean = v
			case "_ttft_p90_s":
				g.p90 = v
			}
			r.figures[policy] = g
		}
		r.length = time.Duration(lengths[r.rate]) * time.Second
		rungs = append(rungs, r)
	}
	return rungs, nil
}

func cutAny(name string, suffixes ...string) (before, suffix string, ok bool) {
	for _, s := range suffixes {
		if before, ok = strings.CutSuffix(name, s); ok {
			return before, s, true
		}
	}
	return name, "", false
}

// pause is the time between the last answer of a stage and the next stage.
const pause = 30 * time.Second

// load is the ladder's requests: a warm-up, then the rungs, as inference-perf
// makes them. A stage has exactly rate x length requests. In each of its seconds
// a Poisson number of them arrives, at exponential distances that together fill
// the second. The prompts of all groups are shuffled once, and each stage begins
// with the first. Times count from the beginning of each stage.
func (l ladderSetup) load(rungs []rung, seed uint64) workload.Source {
	r := stat.NewRand(seed, "ladder")
	type prompt struct {
		parts  []workload.Segment
		output int
	}
	var prompts []prompt
	question, output := spread(1200, l.spread[0]), spread(1000, l.spread[1])
	for g := range uint64(150) {
		for p := range uint64(5) {
			parts := []workload.Segment{{ID: stat.Mix64(g), Tokens: 6000}, {ID: stat.Mix64(1000 + 5*g + p), Tokens: question.Draw(r)}}
			prompts = append(prompts, prompt{parts, output.Draw(r)})
		}
	}
	order := r.Perm(len(prompts))
	s := &requests{}
	stages := append([]rung{{rate: 15, length: 50 * time.Second}}, rungs...)
	for i, st := range stages {
		left, sent := int(st.rate*st.length.Seconds()), 0
		for second := 0.0; left > 0; second++ {
			for _, at := range withinSecond(r, st.rate) {
				if left--; left < 0 {
					break
				}
				p := prompts[order[sent%len(prompts)]]
				sent++
				s.list = append(s.list, workload.Request{
					Index: len(s.list), At: time.Duration((second + at) * float64(time.Second)), Stage: i, After: workload.NoRequest,
					Prompt: p.parts, Input: p.parts[0].Tokens + p.parts[1].Tokens, Output: p.output,
				})
			}
		}
	}
	return s
}

// withinSecond returns when in a second the requests of a Poisson process
// arrive, of which the last stands at its end.
func withinSecond(r *stat.Rand, rate float64) []float64 {
	var gaps []float64
	n, sum := -1, 0.0 // a Poisson number is how many exponential gaps fit
	for t := 0.0; t < 1; n++ {
		t += r.Exp(1 / rate)
	}
	for range n {
		sum += r.Exp(1)
		gaps = append(gaps, sum)
	}
	for i := range gaps {
		gaps[i] /= sum
	}
	return gaps
}

func spread(mean, deviation float64) workload.Dist {
	if deviation == 0 {
		return workload.Fixed(int(mean))
	}
	return workload.Dist{Mean: mean, Std: deviation, Min: 1, Max: int(mean + 4*deviation)}
}

// requests is a workload.Source of a list.
type requests struct {
	list []workload.Request
	next int
}

// Next implements workload.Source.
func (s *requests) Next() (workload.Request, bool) {
	if s.next == len(s.list) {
		return workload.Request{}, false
	}
	s.next++
	return s.list[s.next-1], true
}

// run simulates the ladder under a policy and returns the figures of its rungs.
func (l ladderSetup) run(rungs []rung, policy string, seed uint64) ([]figures, error) {
	model, errModel := catalog.FindModel("Qwen/Qwen3-32B")
	gpu, errGPU := catalog.FindAccelerator("H100")
	if err := errors.Join(errModel, errGPU); err != nil {
		return nil, err
	}
	c := sim.Config{Pool: pool.Default(), Seed: seed, Scrape: l.scrape, Hop: l.hop, Pause: pause, Timeout: 300 * time.Second}
	c.Pool.Policy = route.Spec{Name: policy}
	for i := range 8 {
		physics := enginesim.NewRoofline(catalog.Serving{Shape: model, Accelerator: gpu, TP: 2, Engine: "vllm"})
		physics.Noise, physics.Seed = 0.05, seed*100+uint64(i)
		c.Replicas = append(c.Replicas, sim.Replica{Physics: physics, Limits: fleet.Limits{KVTokens: 298_000, MaxSeqs: 256, BudgetTokens: 8192}})
	}
	stages := make([]stage, len(rungs)+1)
	c.Ended = func(o sim.Outcome) { stages[o.Stage].add(o) }
	if _, err := sim.Run(c, l.load(rungs, seed)); err != nil {
		return nil, err
	}
	out := make([]figures, len(rungs))
	for i := range rungs {
		// A stage begins when all has ended that came before, and a pause later.
		out[i] = stages[i+1].figures(stages[i].end.Add(pause))
	}
	return out, nil
}

// seeds is how many runs with other arrivals and other noise are averaged.
const seeds = 5

// runs returns the mean figures over several runs.
func (l ladderSetup) runs(rungs []rung, policy string) ([]figures, error) {
	mean := make([]figures, len(rungs))
	for seed := range uint64(seeds) {
		got, err := l.run(rungs, policy, seed+1)
		if err != nil {
			return nil, err
		}
		for i, g := range got {
			mean[i].output += g.output / seeds
			mean[i].mean += g.mean / seeds
			mean[i].p90 += g.p90 / seeds
		}
	}
	return mean, nil
}

// stage gathers what became of a stage's requests.
type stage struct {
	end    fleet.Time
	tokens fleet.Tokens
	ttft   []float64 // s
}

func (s *stage) add(o sim.Outcome) {
	s.end = max(s.end, o.End)
	if o.First > 0 {
		s.ttft = append(s.ttft, o.First.Sub(o.Start).Seconds())
	}
	if o.Done {
		s.tokens += o.Output
	}
}

func (s *stage) figures(began fleet.Time) figures {
	if len(s.ttft) == 0 {
		return figures{}
	}
	slices.Sort(s.ttft)
	sum := 0.0
	for _, t := range s.ttft {
		sum += t
	}
	return figures{
		output: float64(s.tokens) / s.end.Sub(began).Seconds(), mean: sum / float64(len(s.ttft)), p90: s.ttft[len(s.ttft)*9/10],
	}
}

// knee returns the index of the first rung whose mean TTFT is above three times
// that of the lowest rate; len(f) when there is none.
func knee(f []figures) int {
	for i := range f {
		if f[i].mean > 3*f[0].mean {
			return i
		}
	}
	return len(f)
}

// ladder compares the simulator with the published routing ladder.
func ladder(w io.Writer, shared string) []goal {
	rungs, err := readLadder(shared)
	if err != nil {
		return []goal{failed("ladder: " + err.Error())}
	}
	l := assumed()
	var goals []goal
	var outputs, calm, full []float64
	for _, p := range l.policies() {
		got, err := l.runs(rungs, p[1])
		if err != nil {
			return append(goals, failed("ladder: "+err.Error()))
		}
		want := make([]figures, len(rungs))
		for i, r := range rungs {
			want[i] = r.figures[p[0]]
		}
		fmt.Fprintf(w, "%s (%s)\n  req/s   output tok/s: published  simulated         TTFT mean s: published  simulated         p90: published  simulated\n", p[0], p[1])
		k := knee(want)
		for i, r := range rungs {
			output, mean, p90 := got[i].output/want[i].output-1, got[i].mean/want[i].mean-1, got[i].p90/want[i].p90-1
			fmt.Fprintf(w, "  %5.0f %24.0f %10.0f %+5.0f %% %24.3f %10.3f %+5.0f %% %15.3f %10.3f %+5.0f %%\n",
				r.rate, want[i].output, got[i].output, 100*output, want[i].mean, got[i].mean, 100*mean, want[i].p90, got[i].p90, 100*p90)
			outputs = append(outputs, math.Abs(output))
			if i < k {
				calm = append(calm, math.Abs(mean))
			} else {
				full = append(full, math.Abs(mean))
			}
		}
		goals = append(goals, atMost(fmt.Sprintf("ladder, %s: rungs between the published and the simulated knee", p[0]), math.Abs(float64(knee(got)-k)), 0))
	}
	return append(goals,
		atMost("ladder: output tok/s, median error", middle(outputs), 0.08),
		atMost("ladder: output tok/s, largest error", slices.Max(outputs), 0.20),
		atMost("ladder: mean TTFT below saturation, largest error", slices.Max(calm), 0.25),
		atMost("ladder: mean TTFT in saturation, largest error", slices.Max(full), 0.35),
	)
}

func middle(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
