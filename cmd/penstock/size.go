package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/lab"
)

type sizeCmd struct {
	Model       string `group:"What" default:"Qwen/Qwen3-32B" help:"The model."`
	Accelerator string `group:"What" default:"H100" placeholder:"NAME" help:"The accelerator."`
	Devices     int    `group:"What" default:"8" help:"How many of them, all to be used."`
	Replica     []int  `group:"What" placeholder:"N,..." help:"Devices that one replica may take (default: powers of two up to 8, then whole eights)."`
	Weights     string `group:"What" placeholder:"PRECISION" help:"Of the weights: bf16, fp8, fp4, ... (default: as the model is published)."`
	NIC         string `group:"What" name:"nic" default:"50" placeholder:"GB/S" help:"With which each device sends KV to others; 0: prompts cannot be computed apart."`
	MaxSeqs     int    `group:"What" name:"max-seqs" default:"256" help:"Sequences that each engine process decodes at once."`

	Input  int           `group:"Load" default:"2000" placeholder:"TOKENS" help:"Length of prompts, of which nothing is cached."`
	Output int           `group:"Load" default:"250" placeholder:"TOKENS" help:"Length of answers."`
	TTFT   time.Duration `group:"Load" name:"ttft" default:"2s" help:"Target of the time to the first token."`
	TPOT   time.Duration `group:"Load" name:"tpot" default:"50ms" help:"Target of the mean time between the others."`
	Share  float64       `group:"Load" default:"0.9" help:"Share of the requests that must have both, between 0 and 1."`

	Whole  bool    `help:"Only layouts in which every replica serves whole."`
	Seeds  int     `default:"2" help:"Runs of each rate."`
	Within float64 `default:"0.02" help:"How near the highest rate is found, as a share of it."`
	Noise  float64 `default:"0.05" help:"Spread of step times, 0 to 1."`
	Top    int     `default:"8" help:"Layouts to print."`
	JSON   bool    `name:"json" help:"Print JSON, of all layouts."`
}

// Help shows examples.
func (sizeCmd) Help() string {
	return `Lays a model out on a number of devices in every way there is: replicas of several
sizes that serve whole, and xPyD, where some compute prompts for others that decode.
Of each it finds, in virtual time, the highest rate of requests at which the targets
are held, and says what gives way beyond it.

Examples:
  penstock size --model openai/gpt-oss-120b --accelerator H200 --devices 16 --input 5000 --output 250
  penstock size --model deepseek-ai/DeepSeek-R1 --accelerator H200 --devices 32 --input 2000 --output 2000
  penstock size --devices 8 --ttft 500ms --tpot 25ms --share 0.99 --whole
  penstock size --devices 16 --json

A layout is named by its replicas: 2xTP8 are two of eight devices each that share every
matrix; 2xEP16 are two of sixteen devices each of which has attention and KV of its own
and a sixteenth of the experts, all in lockstep (wide EP). Larger replicas than eight
devices are only tried so. "by its model" is what the step times believed of the data
sheets promise on average, which decides what is tried first; the rates are simulated,
with engines whose step times follow other formulas, arrivals as they like (Poisson),
and the routing policy predictive. Layouts that do not hold half of the best rate are
not searched further.

Not looked at: cached prefixes (they spare prompts: give a shorter --input), lengths
that vary, pipeline parallelism, replicas of several kinds of accelerators.`
}

// sizing is the question that the flags ask.
func (c *sizeCmd) sizing() (*lab.Sizing, error) {
	model, err := catalog.FindModel(c.Model)
	if err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	accelerator, err := catalog.FindAccelerator(c.Accelerator)
	if err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	z := &lab.Sizing{
		Serving: catalog.Serving{Shape: model, Accelerator: accelerator}, Devices: c.Devices, Sizes: c.Replica,
		Input: c.Input, Output: c.Output, TTFT: c.TTFT, TPOT: c.TPOT, Share: c.Share, MaxSeqs: c.MaxSeqs,
		Whole: c.Whole, Seeds: c.Seeds, Noise: c.Noise, Within: c.Within,
	}
	if c.Weights != "" {
		if z.Serving.Weights, err = catalog.ParsePrecision(c.Weights); err != nil {
			return nil, fmt.Errorf("--weights: %w", err)
		}
	}
	nic := 0.0
	if _, err := fmt.Sscan(c.NIC, &nic); err != nil {
		return nil, fmt.Errorf("--nic: want a number of GB/s, such as 50 for 400 Gbit/s, not %q", c.NIC)
	}
	z.NIC = nic * 1e9
	if c.Top < 1 {
		return nil, fmt.Errorf("--top must be at least 1, is %d", c.Top)
	}
	return z, z.Validate()
}

// Run searches and prints.
func (c *sizeCmd) Run(ctx context.Context, s streams) error {
	z, err := c.sizing()
	if err != nil {
		return err
	}
	p := newProgress(s.Err, len(z.Layouts()), nil)
	all, err := z.Size(ctx, func(done int, _ *lab.Layout) { p.show(done) })
	p.end()
	if err != nil {
		return err
	}
	if c.JSON {
		return c.printJSON(s.Out, all)
	}
	c.print(s.Out, z, all)
	return nil
}

// print tells which layout is best, why, and what others are worth.
func (c *sizeCmd) print(w io.Writer, z *lab.Sizing, all []lab.Sized) {
	fmt.Fprintf(w, "%s on %d %s: %d in, %d out, TTFT %v and TPOT %v for %g %% of requests\n\n",
		z.Serving.Shape.Name, z.Devices, z.Serving.Accelerator.Name, z.Input, z.Output, z.TTFT, z.TPOT, 100*z.Share)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "req/s\tlayout\tTTFT p50, p90\tTPOT p50, p90\tby its model\tbeyond it\t")
	shown, left := 0, 0
	for i := range all {
		if r := &all[i]; r.Rate > 0 && shown < c.Top {
			shown++
			fmt.Fprintf(t, "%.2f\t%v\t%s\t%s\t%.2f\t%s\t\n", r.Rate, &r.Layout, pair(r.At.TTFT), pair(r.At.TPOT), r.Estimate, r.GivesWay())
		} else {
			left++
		}
	}
	t.Flush()
	if left > 0 {
		fmt.Fprintf(w, "and %d more that serve less, or less than half as much; --json has them all\n", left)
	}
	best := &all[0]
	if best.Rate == 0 {
		fmt.Fprintf(w, "\nNo layout holds the targets at any rate. Longer targets, other accelerators or larger replicas would.\n")
		return
	}
	fmt.Fprintf(w, "\nBest: %v at %.2f req/s (%.0f output tok/s, %.3f req/s for each device).\n", &best.Layout, best.Rate, best.Rate*float64(z.Output), best.Rate/float64(z.Devices))
	for _, line := range best.Why(z) {
		fmt.Fprintln(w, "  "+line)
	}
	for i := range all {
		if other := &all[i]; other.Split() != best.Split() && other.Rate > 0 {
			fmt.Fprintf(w, "  The best that %s is %v: %.2f req/s.\n", map[bool]string{true: "splits", false: "serves whole"}[other.Split()], &other.Layout, other.Rate)
			break
		}
	}
	fmt.Fprintf(w, "Simulated from data sheets; penstock profile measures yours.\n")
}

// pair is a median and a 90th percentile.
func pair(d [2]time.Duration) string {
	return fmt.Sprintf("%s, %s", short(d[0]), short(d[1]))
}

func short(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// sizedJSON is a layout and what came of it, as JSON.
type sizedJSON struct {
	Layout   string     `json:"layout"`
	Prefill  groupJSON  `json:"prefill"`
	Decode   groupJSON  `json:"decode"`
	Estimate float64    `json:"estimate_rps"`
	Rate     float64    `json:"rate_rps"`
	Searched bool       `json:"searched"`
	At       *trialJSON `json:"at,omitempty"`
	Beyond   *trialJSON `json:"beyond,omitempty"`
}

type groupJSON struct {
	Replicas int `json:"replicas"`
	TP       int `json:"tp,omitempty"`
	DP       int `json:"dp,omitempty"`
	EP       int `json:"ep,omitempty"`
}

type trialJSON struct {
	Rate   float64    `json:"rate_rps"`
	TTFT   [2]float64 `json:"ttft_s_p50_p90"`
	TPOT   [2]float64 `json:"tpot_s_p50_p90"`
	Good   float64    `json:"good"`
	InTTFT float64    `json:"in_ttft"`
	InTPOT float64    `json:"in_tpot"`
}

func (c *sizeCmd) printJSON(w io.Writer, all []lab.Sized) error {
	group := func(g lab.Group) groupJSON {
		if g.Replicas == 0 {
			return groupJSON{}
		}
		s := g.Serving.Normal()
		return groupJSON{g.Replicas, s.TP, s.DP, s.EP}
	}
	trial := func(t lab.Trial) *trialJSON {
		if t.Rate == 0 {
			return nil
		}
		return &trialJSON{
			t.Rate,
			[2]float64{t.TTFT[0].Seconds(), t.TTFT[1].Seconds()},
			[2]float64{t.TPOT[0].Seconds(), t.TPOT[1].Seconds()},
			t.Good, t.InTTFT, t.InTPOT,
		}
	}
	out := make([]sizedJSON, 0, len(all))
	for i := range all {
		r := &all[i]
		out = append(out, sizedJSON{r.Layout.String(), group(r.Prefill), group(r.Decode), r.Estimate, r.Rate, !r.Skipped, trial(r.At), trial(r.Above)})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(out)
}
