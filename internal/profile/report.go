package profile

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/engine"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// quantile is the share of requests that capacity keeps within their targets.
const quantile = 0.9

const (
	perMs    = 1e3  // ms in a second
	normal95 = 1.96 // standard errors on either side of a 95 % interval
)

// Report is what profiling found. Times are in milliseconds; errors are shares,
// 0.05 for 5 %.
type Report struct {
	Combination []Assumption `json:"combinationAndArtefacts"`
	Range       []Bound      `json:"range"`
	Points      []Point      `json:"dataPoints"`
	Parameters  []Parameter  `json:"parameters"`
	Curve       []CurvePoint `json:"performanceCurve"`
	MaxKV       MaxKV        `json:"maxKVCache"`
	MinCycle    MinCycle     `json:"minimumCycleLatency"`
	Concurrency Concurrency  `json:"maxConcurrency"`
	Check       *Check       `json:"check,omitempty"` // set where a known profile was checked

	Error   float64  `json:"predictedError"` // relative standard error of predictions at the goal
	Pace    float64  `json:"pace"`           // by how much slower than the prior the engine is, where that is far from 1
	Stopped string   `json:"stopped"`        // why no further probe was sent
	Seconds float64  `json:"seconds"`        // that it all took
	Notes   []string `json:"notes,omitempty"`

	Fit    perf.Fitted  `json:"-"`
	Limits fleet.Limits `json:"-"` // as stated or told, without estimates
}

// Assumption is something that was taken to be so, and from what.
type Assumption struct {
	What   string `json:"what"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// Bound is what the server can hold of something; Value 0 is unknown.
type Bound struct {
	What   string `json:"what"`
	Value  int    `json:"value,omitempty"`
	Source string `json:"source"`
}

// Point is one probe and what was predicted of it. Zero times are unknown.
type Point struct {
	Streams    int     `json:"n"`
	Input      float64 `json:"input"`   // tokens computed of each prompt
	Cached     float64 `json:"cached"`  // tokens of each that were in a cache
	Context    float64 `json:"context"` // tokens of each stream in the middle of the measured stretch
	TTFT       float64 `json:"ttftMs"`
	TPOT       float64 `json:"tpotMs"`
	PriorTTFT  float64 `json:"priorTtftMs,omitempty"`
	PriorTPOT  float64 `json:"priorTpotMs,omitempty"`
	FittedTTFT float64 `json:"fittedTtftMs,omitempty"`
	FittedTPOT float64 `json:"fittedTpotMs,omitempty"`
	Error      float64 `json:"error"` // of what was fitted, the larger of the two
}

// Parameter is one parameter of the step time with its 95 % interval.
type Parameter struct {
	Name  string  `json:"name"`
	Ms    float64 `json:"ms"`
	Lo    float64 `json:"loMs"`
	Hi    float64 `json:"hiMs"`
	Prior float64 `json:"priorMs"`
	Kept  string  `json:"kept,omitempty"` // why it stands as the prior has it
}

// CurvePoint is the step time of n sequences of the goal's shape.
type CurvePoint struct {
	Streams      int     `json:"n"`
	Ms           float64 `json:"ms"`
	Plus         float64 `json:"plusMinusMs"` // 95 %
	TokensPerSec float64 `json:"tokensPerSecond"`
}

// MaxKV is how much the KV cache holds.
type MaxKV struct {
	Tokens    int    `json:"tokens"` // 0 unknown
	Source    string `json:"source"`
	Sequences int    `json:"sequences"` // of the goal's shape that it holds
}

// MinCycle is the shortest step there is: one sequence, hardly any context.
type MinCycle struct {
	Ms       float64 `json:"ms"`
	Measured float64 `json:"measuredMs"` // 0: it was not probed
}

// Concurrency is how many requests of the goal's shape may be served at once, and
// how many per second.
type Concurrency struct {
	Input      float64 `json:"input"`
	Output     float64 `json:"output"`
	TTFTMs     float64 `json:"sloTtftMs,omitempty"` // targets; 0 for none
	TPOTMs     float64 `json:"sloTpotMs,omitempty"`
	Sequences  int     `json:"sequences"` // 0: nothing known binds, or even one misses the target
	Binds      string  `json:"binds"`
	StepMs     float64 `json:"stepMs"` // of so many
	Rate       float64 `json:"requestsPerSecond"`
	RateBinds  string  `json:"rateBinds"`
	Mean       float64 `json:"meanSequences"` // at that rate
	MeanTPOTMs float64 `json:"meanTpotMs"`
	Quantile   float64 `json:"quantile"` // of requests within their targets
}

// Check compares one probe with a known profile.
type Check struct {
	Holds bool    `json:"holds"`
	Error float64 `json:"error"` // the larger of those of TTFT and TPOT
	Most  float64 `json:"most"`  // up to which it holds
}

// report puts together what is known.
func (r *run) report(took time.Duration) *Report {
	survey := r.survey
	if r.o.Known != nil {
		survey.Done = nil // what is known is checked, not changed
	}
	at := survey.Outlook()
	out := &Report{
		Combination: r.combination(), Range: r.ranges(), Points: r.points(&at), Parameters: parameters(&at),
		MaxKV: r.maxKV(), MinCycle: r.minCycle(&at), Concurrency: r.concurrency(&at),
		Error: at.Error(), Pace: at.Pace, Stopped: string(r.stopped), Seconds: took.Seconds(), Notes: r.notes,
		Fit: at.Fit, Limits: r.o.Stated.Merge(r.d.Limits()),
	}
	if was := r.survey.Prior.Step.Shadow; was > 0 && at.Prior.Shadow != was {
		out.Notes = append(out.Notes, fmt.Sprintf("prompts take no longer than their first step up to %.0f tokens, not %.0f as the prior has it", at.Prior.Shadow, was))
	}
	for _, n := range r.rungs(out.Concurrency.Sequences) {
		t, sigma := at.At(n)
		out.Curve = append(out.Curve, CurvePoint{Streams: n, Ms: t * perMs, Plus: normal95 * sigma * perMs, TokensPerSec: float64(n) / t})
	}
	if r.o.Known != nil && len(out.Points) > 0 {
		out.Error = r.o.KnownError
		c := Check{Error: out.Points[0].Error, Most: max(checkOff, normal95*out.Error)}
		c.Holds = math.Abs(c.Error) <= c.Most
		out.Check = &c
	}
	return out
}

// combination is what was assumed, and what was found of the engine.
func (r *run) combination() []Assumption {
	version := Assumption{"version", cmp.Or(r.d.Version, "unknown"), "the server"}
	return append([]Assumption{
		{"model", r.d.Model.ID, "/v1/models"},
		{"engine", r.d.Dialect.Name, r.d.Because},
		version,
	}, r.o.Assumed...)
}

// ranges is what the server says of itself.
func (r *run) ranges() []Bound {
	var out []Bound
	add := func(what string, stated int, f engine.Fact) {
		b := Bound{What: what, Value: f.Value, Source: cmp.Or(f.Source, "not told")}
		if stated > 0 {
			b.Value, b.Source = stated, "stated"
		}
		out = append(out, b)
	}
	s, d := r.o.Stated, r.d
	add("max length, tokens", int(s.MaxModelLen), d.MaxModelLen)
	add("blocks", 0, d.Blocks)
	add("block size, tokens", int(s.BlockTokens), d.BlockTokens)
	add("KV cache, tokens", int(s.KVTokens), d.KVTokens)
	add("max sequences", s.MaxSeqs, d.MaxSeqs)
	add("token budget per step", int(s.BudgetTokens), d.BudgetTokens)
	return out
}

// points are the probes beside what the prior and the fit say of them.
func (r *run) points(at *perf.Outlook) []Point {
	out := make([]Point, 0, len(r.survey.Done))
	for _, m := range r.survey.Done {
		p := Point{Streams: m.Probe.Streams, Input: m.Prompt, Cached: m.Cached, Context: m.Context, TTFT: m.TTFT * perMs, TPOT: m.Step * perMs}
		if prior := r.survey.Prior.Step; prior.Known() {
			ttft, step := prior.Expect(m, r.limits)
			p.PriorTTFT, p.PriorTPOT = ttft*perMs, step*perMs
		}
		ttft, step := at.Fit.Step.Expect(m, r.limits)
		p.FittedTTFT, p.FittedTPOT = ttft*perMs, step*perMs
		for _, pair := range [][2]float64{{p.FittedTTFT, p.TTFT}, {p.FittedTPOT, p.TPOT}} {
			if pair[0] <= 0 || pair[1] <= 0 {
				continue
			}
			if e := pair[0]/pair[1] - 1; math.Abs(e) > math.Abs(p.Error) {
				p.Error = e
			}
		}
		out = append(out, p)
	}
	return out
}

// parameters are those of the step that matter.
func parameters(at *perf.Outlook) []Parameter {
	var out []Parameter
	fit, prior := at.Fit.Step.Vector(), at.Prior.Vector()
	for j, name := range perf.ParamNames() {
		if fit[j] == 0 && prior[j] == 0 {
			continue
		}
		p := Parameter{Name: name, Ms: fit[j] * perMs, Lo: at.Fit.Lo[j] * perMs, Hi: at.Fit.Hi[j] * perMs, Prior: prior[j] * perMs}
		if at.Fit.Kept[j] {
			p.Kept = "the probes do not tell it"
		}
		out = append(out, p)
	}
	return out
}

func (r *run) maxKV() MaxKV {
	k := MaxKV{Tokens: int(r.limits.KVTokens), Source: cmp.Or(r.d.KVTokens.Source, "unknown")}
	switch {
	case r.o.Stated.KVTokens > 0:
		k.Source = "stated"
	case r.d.KVTokens.Value == 0 && k.Tokens > 0:
		k.Source = "estimated from the data sheet"
	}
	k.Sequences = int(float64(k.Tokens) / (r.o.Goal.Input + r.o.Goal.Output/2))
	return k
}

// shortest is the context of the shortest probe's step, in tokens.
const shortest = 32

func (r *run) minCycle(at *perf.Outlook) MinCycle {
	c := MinCycle{Ms: at.Fit.Step.Time(perf.Work{Seqs: 1, KV: shortest}) * perMs}
	for _, m := range r.survey.Done {
		if m.Probe.Streams == 1 && m.Context <= 2*shortest && m.Step > 0 {
			c.Measured = m.Step * perMs
		}
	}
	return c
}

func (r *run) concurrency(at *perf.Outlook) Concurrency {
	g, step := r.o.Goal, at.Fit.Step
	mix := perf.Mix{Input: g.Input, Output: g.Output}
	c := Concurrency{
		Input: g.Input, Output: g.Output, Quantile: quantile,
		TTFTMs: g.SLO.TTFT.Seconds() * perMs, TPOTMs: g.SLO.TPOT.Seconds() * perMs,
	}
	n, bound := perf.Concurrency(step, mix, r.limits, g.SLO)
	c.Sequences, c.Binds = n, bound.String()
	if n == 0 && bound == perf.Linear {
		c.Binds = "unknown: neither seats, KV cache nor a TPOT target are known"
	}
	if n > 0 {
		t, _ := at.At(n)
		c.StepMs = t * perMs
	}
	rate, steady, regime := perf.Capacity(step, mix, r.limits, g.SLO, quantile)
	c.Rate, c.RateBinds, c.Mean, c.MeanTPOTMs = rate, regime.String(), steady.Seqs, steady.TPOT*perMs
	return c
}

// rungs are the numbers of sequences that the curve is shown at, up to as many as
// may run.
func (r *run) rungs(most int) []int {
	if most == 0 {
		most = 64
	}
	var out []int
	for _, n := range []int{1, 8, 32, 64, 128, 256, 512} {
		if n < most {
			out = append(out, n)
		}
	}
	return slices.Compact(append(out, most))
}
