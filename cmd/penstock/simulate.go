package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/app"
	"penstock.dev/penstock/internal/bench"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

type simulateCmd struct {
	Trace       string        `type:"existingfile" placeholder:"FILE" help:"Recorded trace: Mooncake JSONL or Azure CSV."`
	Workload    string        `type:"existingfile" placeholder:"FILE.yaml" help:"Workload in inference-perf's YAML shape, with its load."`
	Duration    time.Duration `placeholder:"D" help:"Only the first D of the trace."`
	TraceCopies int           `default:"1" help:"Lay so many copies of the trace over each other: more load, with text of their own."`
	Policy      []string      `default:"prefix-affinity,least-request,round-robin" help:"Policies to compare: ${policies}."`
	Seeds       int           `default:"3" help:"Runs of each policy, each with its own noise and ties."`
	Replicas    int           `default:"8" help:"Engines."`
	Model       string        `help:"Their model (default Qwen/Qwen3-32B)."`
	Accelerator string        `help:"Their accelerator (default H100)."`
	TP          int           `name:"tp" default:"2" help:"Their tensor parallelism."`
	KVTokens    int           `name:"kv-tokens" placeholder:"N" help:"Their KV cache in tokens (default: what the accelerators hold)."`
	Noise       float64       `default:"0.05" help:"Spread of their step times, 0 to 1."`
	Spread      float64       `default:"0" help:"Spread of their speeds: replicas are up to so much faster or slower, 0 to 0.9."`
	Scrape      time.Duration `default:"1s" help:"Between two readings of an engine's gauges."`
	Hop         time.Duration `default:"500us" help:"One way between gateway and engine."`
	Goodput     []string      `placeholder:"METRIC:MS" help:"Target a good request meets, in ms; repeat for more: --goodput ttft:5000 --goodput tpot:100."`
	JSON        bool          `name:"json" help:"Print JSON."`
}

// Help shows examples.
func (simulateCmd) Help() string {
	return `Runs the code that serves live, in virtual time, against simulated engines.

Examples:
  penstock simulate --trace conversation.jsonl --duration 10m --goodput ttft:5000 --goodput tpot:100
  penstock simulate --trace conversation.jsonl --trace-copies 2 --replicas 12 --policy prefix-affinity,p2c --seeds 5
  penstock simulate --workload shared_prefix.yaml --replicas 4 --json`
}

// cell is one policy with one seed.
type cell struct {
	policy string
	seed   uint64
	result *sim.Result
	err    error
}

// Run simulates every cell and prints the comparison.
func (c *simulateCmd) Run(ctx context.Context, s streams) error {
	if c.Seeds < 1 || c.Seeds > 1000 || c.Spread < 0 || c.Spread > 0.9 {
		return errors.New("--seeds must be between 1 and 1000, --spread between 0 and 0.9")
	}
	targets, err := bench.ParseGoodput(c.Goodput)
	if err != nil {
		return err
	}
	load, err := c.loads()
	if err != nil {
		return err
	}
	var cells []*cell
	for _, p := range c.Policy {
		for seed := range c.Seeds {
			cells = append(cells, &cell{policy: p, seed: uint64(seed + 1)})
		}
	}
	if err := c.runAll(ctx, cells, load, sim.Targets{TTFT: targets.TTFT, TPOT: targets.TPOT, E2E: targets.E2E}, s.Err); err != nil {
		return err
	}
	rows := summarise(c.Policy, cells, len(c.Goodput) > 0)
	if c.JSON {
		e := json.NewEncoder(s.Out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"schema": "penstock.dev/simulate/v1", "replicas": c.Replicas, "seeds": c.Seeds, "policies": rows})
	}
	comparison(s.Out, rows)
	return nil
}

// loads returns a function that makes the load anew for a run.
func (c *simulateCmd) loads() (func(seed uint64) (workload.Source, error), error) {
	switch {
	case (c.Trace == "") == (c.Workload == ""):
		return nil, errors.New("give --trace FILE or --workload FILE")
	case c.Workload != "":
		text, err := os.ReadFile(c.Workload)
		if err != nil {
			return nil, err
		}
		spec, err := workload.ParseSpec(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Workload, err)
		}
		return func(seed uint64) (workload.Source, error) { return spec.Source(spec.Load, seed), nil }, nil
	}
	file, err := os.Open(c.Trace)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	trace, err := workload.ReadTrace(file, workload.FormatAuto)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Trace, err)
	}
	// The slice is the same for every seed: only noise and ties differ.
	return func(uint64) (workload.Source, error) {
		return trace.Replay(workload.ReplayOptions{Speed: 1, Duration: c.Duration, Copies: c.TraceCopies, Seed: 1})
	}, nil
}

// runAll runs the cells, as many at once as there are processors.
func (c *simulateCmd) runAll(ctx context.Context, cells []*cell, load func(uint64) (workload.Source, error), targets sim.Targets, progress io.Writer) error {
	var wg sync.WaitGroup
	next := make(chan *cell)
	done := make(chan struct{}, len(cells))
	for range min(runtime.NumCPU(), len(cells)) {
		wg.Go(func() {
			for x := range next {
				x.result, x.err = c.one(x, load, targets)
				done <- struct{}{}
			}
		})
	}
	go func() {
		defer close(next)
		for _, x := range cells {
			select {
			case next <- x:
			case <-ctx.Done():
				return
			}
		}
	}()
	tty := bench.IsTerminal(os.Stderr)
	for n := range cells {
		select {
		case <-done:
			if tty {
				fmt.Fprintf(progress, "\r%d of %d runs", n+1, len(cells))
			}
		case <-ctx.Done():
			wg.Wait()
			return context.Cause(ctx)
		}
	}
	if tty {
		fmt.Fprint(progress, "\r\033[K")
	}
	wg.Wait()
	var errs []error
	for _, x := range cells {
		if x.err != nil {
			errs = append(errs, fmt.Errorf("%s, seed %d: %w", x.policy, x.seed, x.err))
		}
	}
	return errors.Join(errs...)
}

// one runs one cell.
func (c *simulateCmd) one(x *cell, load func(uint64) (workload.Source, error), targets sim.Targets) (*sim.Result, error) {
	o := server.Options{Model: c.Model, Accelerator: c.Accelerator, TP: c.TP, KVTokens: fleet.Tokens(c.KVTokens), Noise: c.Noise, Seed: x.seed}
	cfg := sim.Config{Pool: pool.Default(), Seed: x.seed, Scrape: c.Scrape, Hop: c.Hop, Targets: targets}
	cfg.Pool.Policy = route.Spec{Name: x.policy}
	speeds := stat.NewRand(x.seed, "speeds")
	for i := range c.Replicas {
		o.Replica, o.Factor = i, 1+c.Spread*(2*speeds.Float64()-1)
		physics, limits, err := o.Physics()
		if err != nil {
			return nil, err
		}
		cfg.Replicas = append(cfg.Replicas, sim.Replica{Physics: physics, Limits: limits, Step: app.Belief(o)})
	}
	src, err := load(x.seed)
	if err != nil {
		return nil, err
	}
	return sim.Run(cfg, src)
}

// interval is a mean over seeds and the half-width of its 95 % confidence
// interval; NaN, printed as nothing, with one seed.
type interval struct{ Mean, Half float64 }

// MarshalJSON leaves out what is not known.
func (v interval) MarshalJSON() ([]byte, error) {
	if math.IsNaN(v.Half) {
		return json.Marshal(map[string]float64{"mean": v.Mean})
	}
	return json.Marshal(map[string]float64{"mean": v.Mean, "ci95": v.Half})
}

// row is one policy's results over all seeds. Times are in seconds.
type row struct {
	Policy     string    `json:"policy"`
	Requests   int       `json:"requests"` // of one run
	Failed     interval  `json:"failed"`
	Refused    interval  `json:"refused"`
	Rate       interval  `json:"requests_per_s"`
	Output     interval  `json:"output_tokens_per_s"`
	Cached     interval  `json:"cached_share"`
	TTFTMean   interval  `json:"ttft_mean_s"`
	TTFT90     interval  `json:"ttft_p90_s"`
	TTFT99     interval  `json:"ttft_p99_s"`
	TPOTMean   interval  `json:"tpot_mean_s"`
	TPOT90     interval  `json:"tpot_p90_s"`
	E2E90      interval  `json:"e2e_p90_s"`
	Goodput    *interval `json:"good_share,omitempty"`
	Preempted  interval  `json:"preemptions"`
	Imbalanced interval  `json:"imbalance"` // requests of the busiest replica over the mean
}

func summarise(policies []string, cells []*cell, goodput bool) []row {
	var rows []row
	for _, p := range policies {
		var of []*sim.Result
		for _, x := range cells {
			if x.policy == p {
				of = append(of, x.result)
			}
		}
		over := func(f func(*sim.Result) float64) interval {
			var xs []float64
			for _, r := range of {
				xs = append(xs, f(r))
			}
			m, h := stat.MeanCI(xs)
			return interval{m, h}
		}
		const ns = 1e-9
		quantile := func(h func(*sim.Result) *stat.Hist, q float64) interval {
			return over(func(r *sim.Result) float64 { return h(r).Quantile(q) * ns })
		}
		ttft := func(r *sim.Result) *stat.Hist { return &r.TTFT }
		tpot := func(r *sim.Result) *stat.Hist { return &r.TPOT }
		one := row{
			Policy: p, Requests: of[0].Arrived,
			Failed:   over(func(r *sim.Result) float64 { return float64(r.Failed) }),
			Refused:  over(func(r *sim.Result) float64 { return float64(r.Refused) }),
			Rate:     over(func(r *sim.Result) float64 { return float64(r.Done) / r.Span.Seconds() }),
			Output:   over(func(r *sim.Result) float64 { return float64(r.OutputTokens) / r.Span.Seconds() }),
			Cached:   over((*sim.Result).CachedShare),
			TTFTMean: over(func(r *sim.Result) float64 { return r.TTFT.Mean() * ns }),
			TTFT90:   quantile(ttft, 0.9), TTFT99: quantile(ttft, 0.99),
			TPOTMean: over(func(r *sim.Result) float64 { return r.TPOT.Mean() * ns }),
			TPOT90:   quantile(tpot, 0.9),
			E2E90:    quantile(func(r *sim.Result) *stat.Hist { return &r.E2E }, 0.9),

			Preempted:  over(func(r *sim.Result) float64 { return float64(r.Preemptions) }),
			Imbalanced: over((*sim.Result).Imbalance),
		}
		if goodput {
			one.Goodput = new(over(func(r *sim.Result) float64 { return float64(r.Good) / float64(r.Arrived) }))
		}
		rows = append(rows, one)
	}
	return rows
}

// comparison prints a table of the policies.
func comparison(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "policy\treq/s\tcached\tTTFT mean\tp90\tp99\tTPOT mean\tp90\tE2E p90\tgood\tfailed\trefused\tpreempted\timbalance\t")
	for _, r := range rows {
		good := ""
		if r.Goodput != nil {
			good = r.Goodput.text(100, "%.1f", " %")
		}
		fmt.Fprintln(t, strings.Join([]string{
			r.Policy, r.Rate.text(1, "%.2f", ""), r.Cached.text(100, "%.2f", " %"), r.TTFTMean.text(1, "%.2f", " s"), r.TTFT90.text(1, "%.2f", " s"),
			r.TTFT99.text(1, "%.1f", " s"), r.TPOTMean.text(1000, "%.1f", " ms"), r.TPOT90.text(1000, "%.1f", " ms"), r.E2E90.text(1, "%.1f", " s"), good,
			r.Failed.text(1, "%.0f", ""), r.Refused.text(1, "%.0f", ""), r.Preempted.text(1, "%.0f", ""), r.Imbalanced.text(1, "%.2f", ""), "",
		}, "\t"))
	}
	t.Flush()
	fmt.Fprintf(w, "%d requests a run; mean over seeds ± half of the 95 %% confidence interval; virtual time\n", rows[0].Requests)
}

// text prints the interval in another unit; a half-width that rounds to nothing
// is left out.
func (v interval) text(scale float64, format, unit string) string {
	s := fmt.Sprintf(format, v.Mean*scale)
	zero := fmt.Sprintf(format, 0.0)
	if half := fmt.Sprintf(format, v.Half*scale); !math.IsNaN(v.Half) && half != zero {
		s += "±" + half
	}
	return s + unit
}
