package server

import (
	"errors"
	"fmt"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// The engines whose surface can be shown.
const (
	VLLM   = "vllm"
	SGLang = "sglang"
)

// Options say which engine to simulate. The zero value is Qwen3-32B on two
// H100 at the speed of life, with vLLM's surface and defaults.
type Options struct {
	Engine      string // VLLM or SGLang; empty: VLLM
	Model       string // of the catalogue; empty: the first. Also the name it is served under.
	Accelerator string // of the catalogue; empty: the first
	TP          int    // tensor parallelism, in accelerators; 0: 2
	DP, EP      int    // data-parallel ranks behind this one surface, and groups of experts; 0: 1
	Precision   string // of weights and arithmetic, as catalog.ParsePrecision reads it; empty: as published
	Replica     int    // index among replicas of one fleet; gives each its own noise

	Speedup float64 // divides all times; 0: 1
	Factor  float64 // multiplies all times, a replica slower than its peers; 0: 1
	Noise   float64 // standard deviation of the log of a step's time, 0 (none) to 1
	// Seed makes text and noise. Replicas of one fleet share it, so that the same
	// prompt has the same answer everywhere.
	Seed uint64

	KVTokens     fleet.Tokens // KV capacity; 0: what fits beside the weights
	MaxSeqs      int          // sequences running at once; 0: 256
	BudgetTokens fleet.Tokens // tokens computed per step; 0: 8192
	MaxModelLen  fleet.Tokens // longest prompt plus output; 0: 131072, or KVTokens if that is less
	OutputMean   float64      // mean length in tokens of answers that end by themselves; 0: 200

	// LoRAs are the adapters served from the start: "name" or "name=path".
	LoRAs    []string
	MaxLoRAs int  // adapters running at once; 0: 1
	LoadLoRA bool // adapters can be loaded and unloaded

	// Parts of the surface that older engines lack.
	NoMessages  bool // Anthropic's API
	NoResponses bool // OpenAI's responses API
	NoMetrics   bool // SGLang shows them only if asked to

	HTTP1Only bool // a Node speaks no HTTP/2, with TLS or without

	DevMode      bool // vLLM's routes for sleeping, pausing and resetting
	RefuseAsleep bool // 503 while asleep; otherwise requests wait until it wakes
}

// hasLoRA reports whether the engine was started for adapters at all.
func (o Options) hasLoRA() bool { return len(o.LoRAs) > 0 || o.LoadLoRA }

// withDefaults fills in what was left open, as far as it is known.
func (o Options) withDefaults() Options {
	fill(&o.Engine, VLLM)
	fill(&o.TP, 2)
	fill(&o.Speedup, 1)
	fill(&o.Factor, 1)
	fill(&o.MaxSeqs, 256)
	fill(&o.BudgetTokens, 8192)
	fill(&o.OutputMean, 200)
	fill(&o.MaxLoRAs, 1)
	if s, err := o.serving(); err == nil {
		o.Model, o.Accelerator, o.DP, o.EP = s.Shape.Name, s.Accelerator.Name, s.DP, s.EP
		fill(&o.KVTokens, fleet.Tokens(s.KVTokens())/enginesim.BlockTokens*enginesim.BlockTokens)
		fill(&o.MaxModelLen, min(131_072, o.KVTokens))
	}
	return o
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serving returns the way of serving that the options describe.
func (o Options) Serving() (catalog.Serving, error) { return o.withDefaults().serving() }

func (o Options) serving() (catalog.Serving, error) {
	m, errModel := catalog.FindModel(o.Model)
	a, errAccelerator := catalog.FindAccelerator(o.Accelerator)
	p, errPrecision := catalog.ParsePrecision(o.Precision)
	if err := errors.Join(errModel, errAccelerator, errPrecision); err != nil {
		return catalog.Serving{}, err
	}
	s := catalog.Serving{Shape: m, Accelerator: a, TP: o.TP, DP: o.DP, EP: o.EP, Weights: p, Engine: o.Engine}.Normal()
	return s, s.Validate()
}

// Validate reports everything that is wrong with o, each with the option's
// name and what would be right.
func (o Options) Validate() error {
	o = o.withDefaults()
	_, err := o.serving()
	errs := []error{err}
	check := func(ok bool, name string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v is not possible; use %s", name, value, want))
		}
	}
	check(o.Engine == VLLM || o.Engine == SGLang, "engine", o.Engine, VLLM+" or "+SGLang)
	check(o.MaxLoRAs > 0, "max-loras", o.MaxLoRAs, "a number above 0")
	seen := map[string]bool{"": true, o.Model: true}
	for _, l := range o.LoRAs {
		name := parseLoRA(l).name
		check(!seen[name], "lora", l, "name or name=path, each name once and not the model's")
		seen[name] = true
	}
	check(o.Replica >= 0, "replica", o.Replica, "an index from 0")
	check(o.Speedup > 0 && o.Speedup <= 1e6, "speedup", o.Speedup, "a number above 0")
	check(o.Factor > 0 && o.Factor <= 1e6, "factor", o.Factor, "a number above 0; 1 is the speed of the hardware")
	check(o.Noise >= 0 && o.Noise <= 1, "noise", o.Noise, "0 to 1")
	check(o.MaxSeqs > 0, "max-seqs", o.MaxSeqs, "a number above 0")
	check(o.BudgetTokens > 0, "budget-tokens", o.BudgetTokens, "a number above 0")
	check(o.OutputMean >= 1, "output-mean", o.OutputMean, "at least 1")
	if err == nil {
		check(o.KVTokens >= 2*enginesim.BlockTokens, "kv-tokens", o.KVTokens, "at least 32")
		check(o.MaxModelLen > 1 && o.MaxModelLen <= o.KVTokens, "max-model-len", o.MaxModelLen,
			fmt.Sprintf("2 to the KV cache's %d tokens", o.KVTokens))
	}
	return errors.Join(errs...)
}

// Physics returns what a Server of these options runs on, and what it can hold,
// for running its engine in virtual time.
func (o Options) Physics() (enginesim.Physics, fleet.Limits, error) {
	if err := o.Validate(); err != nil {
		return nil, fleet.Limits{}, err
	}
	o = o.withDefaults()
	_, t, err := o.newEngine()
	if err != nil {
		return nil, fleet.Limits{}, err
	}
	return t.Speedup, o.Limits(), nil
}

// Limits returns what the engine can hold, defaults filled in.
func (o Options) Limits() fleet.Limits {
	o = o.withDefaults()
	return fleet.Limits{
		MaxModelLen: o.MaxModelLen, KVTokens: o.KVTokens, BlockTokens: enginesim.BlockTokens,
		MaxSeqs: o.MaxSeqs, BudgetTokens: o.BudgetTokens,
	}
}

// throttle is a Physics that can be slowed down while it is in use.
type throttle struct {
	enginesim.Speedup
	factor float64
}

// newEngine builds the engine of valid options with defaults filled in.
func (o Options) newEngine() (*enginesim.Engine, *throttle, error) {
	s, err := o.serving()
	if err != nil {
		return nil, nil, err
	}
	r := enginesim.NewRoofline(s)
	r.Factor, r.Noise, r.Seed = o.Factor, o.Noise, stat.Mix64(o.Seed+uint64(o.Replica))
	t := &throttle{Speedup: enginesim.Speedup{Physics: enginesim.Ranks{Rank: r, N: s.DP}, By: o.Speedup}, factor: 1}
	t.set(1)
	e, err := enginesim.New(enginesim.Config{
		Physics: t, KVTokens: o.KVTokens, MaxSeqs: o.MaxSeqs,
		BudgetTokens: o.BudgetTokens, MaxAdapters: o.MaxLoRAs, EveryToken: true,
	})
	return e, t, err
}

// set makes steps from the next on last factor times as long.
func (t *throttle) set(factor float64) {
	t.By *= t.factor / factor
	t.factor = factor
}
