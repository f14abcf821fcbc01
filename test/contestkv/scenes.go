package main

import (
	_ "embed" // the workloads
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/workload"
)

//go:embed prefixes.yaml
var prefixes []byte

//go:embed agents.yaml
var agents []byte

// scene is a load, the gateways it comes through, and what goes wrong meanwhile.
type scene struct {
	name     string
	kind     string // of load
	load     float64
	gateways int
	fault    string
	long     bool
	lasts    time.Duration
	source   loadFunc
}

// loadFunc makes the requests of one run.
type loadFunc = func(load float64, seed uint64) (workload.Source, error)

// What goes wrong.
const (
	noFault   = "calm"
	restarted = "restart" // an engine dies with its cache and is back half a minute later
	lossy     = "loss"    // 1 % of the batches of events do not come, and are asked for again
	torn      = "torn"    // the same, and nobody can be asked
)

// kinds are the loads and how hard they press: the knee of the best way without
// memory below the GPU is at the second or third.
type kind struct {
	name  string
	loads []float64
	hard  []float64     // of these, those under which things go wrong, too
	long  bool          // its prompts may take their time
	lasts time.Duration // when it is not the usual time; then only one gateway and no faults
	of    func(o options, lasts time.Duration) (loadFunc, error)
}

func kinds() []kind {
	return []kind{
		{"conversation", []float64{0.7, 1, 1.3}, []float64{1}, true, 0, conversation},
		{"hour", []float64{1}, nil, true, 40 * time.Minute, conversation},
		{"prefixes", []float64{4, 8, 9.5, 11, 16}, []float64{4, 9.5}, false, 0, described(prefixes)},
		{"agents", []float64{6, 10}, []float64{6}, false, 0, described(agents)},
	}
}

// scenes returns all of them.
func scenes(o options) ([]*scene, error) {
	var all []*scene
	for _, k := range kinds() {
		lasts := o.lasts()
		if k.lasts > 0 {
			lasts = k.lasts
		}
		source, err := k.of(o, lasts)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
		for _, gateways := range []int{1, 4} {
			for _, fault := range []string{noFault, restarted, lossy, torn} {
				for i, load := range k.loads {
					switch {
					case fault != noFault && !slices.Contains(k.hard, load),
						k.lasts > 0 && (o.quick || gateways > 1),
						o.quick && (i%2 == 1 || fault == torn || gateways > 1 && fault != noFault):
						continue
					}
					all = append(all, &scene{
						name: fmt.Sprintf("%s/%v/%dgw/%s", k.name, load, gateways, fault), kind: k.name, load: load, gateways: gateways, fault: fault,
						long: k.long, lasts: lasts, source: source,
					})
				}
			}
		}
	}
	return all, nil
}

// lasts is how long a load lasts.
func (o options) lasts() time.Duration {
	if o.quick {
		return 200 * time.Second
	}
	return 6 * time.Minute
}

// conversation is the Mooncake trace, a slice of its own for every seed. Load L is
// ⌈L⌉ places of it laid over each other, slowed down to L in all.
func conversation(o options, lasts time.Duration) (loadFunc, error) {
	f, err := os.Open(filepath.Join(o.shared, "traces", "mooncake_conversation_trace.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("%w; say where traces/ is with --shared DIR", err)
	}
	defer f.Close()
	trace, err := workload.ReadTrace(f, workload.FormatAuto)
	if err != nil {
		return nil, err
	}
	return func(load float64, seed uint64) (workload.Source, error) {
		const step = 7 * time.Minute
		cut := from(trace, time.Duration(seed-1)*step%(trace.Span()/2))
		return lab.Replay(cut, lasts)(load, seed)
	}, nil
}

// from is a trace without its beginning.
func from(t *workload.Trace, at time.Duration) *workload.Trace {
	first := sort.Search(len(t.Rows), func(i int) bool { return t.Rows[i].At-t.Rows[0].At >= at })
	cut := *t
	cut.Rows = append([]workload.Row(nil), t.Rows[first:]...)
	for i := range cut.Rows {
		if r := &cut.Rows[i]; r.Parent != workload.NoRequest {
			if r.Parent -= first; r.Parent < 0 {
				r.Parent = workload.NoRequest
			}
		}
	}
	return &cut
}

// described returns what makes the loads of a workload.
func described(text []byte) func(options, time.Duration) (loadFunc, error) {
	return func(_ options, lasts time.Duration) (loadFunc, error) {
		spec, err := workload.ParseSpec(text)
		if err != nil {
			return nil, err
		}
		return lab.Scaled(spec, lasts)
	}
}

// way is how requests are routed, and what stands behind it.
type way struct {
	name   string
	policy string
	events bool
	cpu    bool
	disk   bool
	always bool   // in all scenes, not only in calm ones
	only   string // the kind of load that it is tried on; empty for all
}

// The tiers of an engine below its GPUs, in tokens.
const (
	cpuTokens  = 1_200_000
	diskTokens = 6_000_000
)

// ways are those that are compared. The first has no affinity.
func ways() []way {
	return []way{
		{name: "none", policy: "least-request"},
		{name: "approx", policy: "predictive", always: true},
		{name: "events", policy: "predictive", events: true, always: true},
		{name: "affinity-approx", policy: "prefix-affinity"},
		{name: "affinity-events", policy: "prefix-affinity", events: true},
		{name: "none+cpu", policy: "least-request", cpu: true},
		{name: "approx+cpu", policy: "predictive", cpu: true, always: true},
		{name: "events+cpu", policy: "predictive", events: true, cpu: true, always: true},
		{name: "events+cpu+disk", policy: "predictive", events: true, cpu: true, disk: true, only: "hour"},
	}
}

// engines is how many there are: Qwen3-32B on two H100 each, with room for about
// 298,000 tokens.
const engines = 8

// lab is the scene as one way meets it.
func (s *scene) lab(w *way) (*lab.Scene, error) {
	model, err := catalog.FindModel("Qwen/Qwen3-32B")
	if err != nil {
		return nil, err
	}
	variants, err := lab.ParseMix("H100", engines, catalog.Serving{Shape: model, TP: 2, Engine: "vllm"}.Normal())
	if err != nil {
		return nil, err
	}
	if w.cpu {
		variants[0].CPU = cpuTokens
	}
	if w.disk {
		variants[0].Disk = diskTokens
	}
	out := &lab.Scene{
		Variants: variants, Pool: pool.Default(), Noise: 0.05, Spread: 0.1, Load: s.source, Gateways: s.gateways,
		Scrape: 200 * time.Millisecond, Hop: 500 * time.Microsecond,
		Targets: sim.Targets{TTFT: 2 * time.Second, TPOT: 100 * time.Millisecond},
	}
	if s.long {
		out.Targets.TTFT = 8 * time.Second
	}
	if w.events {
		out.Events = &sim.Events{Lag: 2 * time.Millisecond, Ring: 10_000}
	}
	switch s.fault {
	case restarted:
		out.Faults = []sim.Fault{
			{At: s.lasts / 3, Replica: engines / 2, Kind: sim.Crash},
			{At: s.lasts/3 + 5*time.Second, Replica: engines / 2, Kind: sim.Restart, Delay: 25 * time.Second},
		}
	case lossy, torn:
		if !w.events {
			break
		}
		out.Events.Lose = 0.01
		if s.fault == torn {
			out.Events.Ring = 0
		}
	}
	return out, nil
}
