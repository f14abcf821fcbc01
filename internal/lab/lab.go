// Package lab asks "what if": it runs one fleet under many policies, loads and
// seeds in virtual time, and compares what came of each.
package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// Variant is one way to serve the model, and how many replicas of it there are.
type Variant struct {
	Name     string
	Serving  catalog.Serving
	Replicas int
	Later    int          // more replicas, which Scene.Faults add; they come after those of all variants
	Limits   fleet.Limits // zero fields: what the engine would take by default
	Belief   perf.Step    // what the gateway believes before it has measured; zero for nothing
	Slower   float64      // how much slower its replicas really are than the catalogue says; 0 means 1
	Cost     float64      // of one replica, US dollars per hour; 0 is the price of its accelerators
	Measured *perf.Step   // its truth, where answers showed it; nil takes the catalogue's
	Factors  []float64    // of its replicas in turn, how much slower each is beside that; nil for 1
	CPU      fleet.Tokens // that each replica keeps in host memory below its GPUs'; 0 for none
	Disk     fleet.Tokens // and on disk below that
	Role     fleet.Role
	NIC      float64 // bytes per second with which each device can send KV to others; 0 for none
	Pulls    bool    // its replicas fetch from each other's caches, with a NIC
	Lockstep bool    // each data-parallel rank is an endpoint of its own, in step with the others of its replica; else a replica is one, its work even over ranks
}

// CostPerHour returns the cost of one replica, in US dollars per hour; 0 when
// nothing is known of it.
func (v *Variant) CostPerHour() float64 {
	if v.Cost > 0 {
		return v.Cost
	}
	return v.Serving.Accelerator.Price * float64(v.Serving.Devices())
}

// Belief returns what to believe of a way to serve before anything is measured.
func Belief(s catalog.Serving) perf.Step { return perf.Prior(s).Step }

// Limits of simulated engines that a variant leaves open, as vLLM has them.
const (
	defaultMaxSeqs      = 256
	defaultBudgetTokens = perf.DefaultBudget
)

// Scene is all that the cells of an experiment have in common.
type Scene struct {
	Variants []Variant
	Pool     pool.Config
	Noise    float64 // standard deviation of the logarithm of a step's time
	Spread   float64 // replicas are up to so much faster or slower than their variant
	Scrape   time.Duration
	Hop      time.Duration
	Gateways int  // 0 is one; see sim.Config
	Tokens   bool // has the times between tokens measured; see sim.Config
	Faults   []sim.Fault
	Events   *sim.Events // what engines publish of their caches; nil for nothing
	Targets  sim.Targets
	// Load makes the requests of one run anew; load 1 is the workload as it is.
	Load func(load float64, seed uint64) (workload.Source, error) `json:"-"`
	// LoadID stands for all that Load depends on beside its arguments. Without one
	// the cells are not kept.
	LoadID string
	// Ended hears of each request of a cell at its end, in the goroutine that runs the
	// cell; nil for nobody. Cells of whose requests somebody hears are not kept.
	Ended func(Cell, sim.Outcome) `json:"-"`
	Cache *Cache                  `json:"-"` // of cells that have run; nil for none
}

// Cell is one run: a policy, a load and a seed.
type Cell struct {
	Policy string
	Load   float64
	Seed   uint64
}

// Validate returns what is wrong with the scene.
func (s *Scene) Validate() error {
	var errs []error
	if len(s.Variants) == 0 {
		errs = append(errs, errors.New("variants: must be at least one"))
	}
	replicas := 0
	for i, v := range s.Variants {
		replicas += max(v.Replicas, 0) + max(v.Later, 0)
		if v.Measured == nil {
			if err := v.Serving.Validate(); err != nil {
				errs = append(errs, fmt.Errorf("variants[%d] (%s): %w", i, v.Name, err))
			}
		}
		if v.CPU < 0 || v.Disk < 0 || v.Disk > 0 && v.CPU == 0 {
			errs = append(errs, fmt.Errorf("variants[%d] (%s): tokens in host memory and on disk must not be negative, and a disk needs host memory above it", i, v.Name))
		}
		if v.Replicas < 0 || v.Slower < 0 || v.Cost < 0 {
			errs = append(errs, fmt.Errorf("variants[%d] (%s): replicas, slower and cost must not be negative", i, v.Name))
		}
	}
	if replicas < 1 || replicas > maxReplicas {
		errs = append(errs, fmt.Errorf("replicas: must be at least 1 and at most %d in all, are %d", maxReplicas, replicas))
	}
	if !(s.Noise >= 0 && s.Noise <= 1) {
		errs = append(errs, fmt.Errorf("noise: must be between 0 and 1, is %v", s.Noise))
	}
	if !(s.Spread >= 0 && s.Spread <= 0.9) {
		errs = append(errs, fmt.Errorf("spread: must be between 0 and 0.9, is %v", s.Spread))
	}
	if s.Gateways < 0 || s.Gateways > maxGateways {
		errs = append(errs, fmt.Errorf("gateways: must be at least 1 and at most %d, are %d", maxGateways, s.Gateways))
	}
	if s.Scrape < 0 || s.Hop < 0 {
		errs = append(errs, fmt.Errorf("scrape and hop: must not be negative, are %v and %v", s.Scrape, s.Hop))
	}
	return errors.Join(errs...)
}

// The bounds of a scene.
const (
	maxReplicas = 1 << 14
	maxGateways = 1 << 10
)

// Run simulates one cell. It stops early, with ctx's error, when ctx ends.
func (s *Scene) Run(ctx context.Context, c Cell) (*sim.Result, error) {
	src, err := s.Load(c.Load, c.Seed)
	if err != nil {
		return nil, err
	}
	r, err := sim.Run(s.config(c), stopping{ctx, src})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return r, err
}

// config is what a cell is simulated with.
func (s *Scene) config(c Cell) sim.Config {
	cfg := sim.Config{
		Pool: s.Pool, Gateways: s.Gateways, Seed: c.Seed, Scrape: s.Scrape, Hop: s.Hop, Faults: s.Faults, Events: s.Events, Targets: s.Targets, Tokens: s.Tokens,
	}
	if c.Policy != s.Pool.Policy.Name { // that of the pool has its weights
		cfg.Pool.Policy = route.Spec{Name: c.Policy}
	}
	if s.Ended != nil {
		cfg.Ended = func(o sim.Outcome) { s.Ended(c, o) }
	}
	speeds := stat.NewRand(c.Seed, "speeds")
	sets := 0
	add := func(i, k int) {
		v := &s.Variants[i]
		factor := 1 + s.Spread*(2*speeds.Float64()-1)
		if v.Slower > 0 {
			factor *= v.Slower
		}
		if k < len(v.Factors) {
			factor *= v.Factors[k]
		}
		rep := sim.Replica{
			Limits: v.limits(), Variant: uint64(i + 1), Step: v.Belief, Offload: v.offload(), Links: v.links(),
			Role: v.Role, Connector: v.connector(), Pulls: v.Pulls && v.NIC > 0, Wire: v.wire(), Leaves: v.leaves(),
		}
		ranks := 1
		if v.Lockstep && v.Serving.DP > 1 {
			ranks = v.Serving.DP
			sets++
			rep.Set, rep.Limits, rep.Step = sets, v.rankLimits(), v.Belief.Rank(ranks)
		}
		for range ranks {
			rep.Physics = v.physics(factor, s.Noise, stat.Mix64(c.Seed<<20+uint64(len(cfg.Replicas))))
			cfg.Replicas = append(cfg.Replicas, rep)
		}
	}
	for i := range s.Variants {
		for k := range s.Variants[i].Replicas {
			add(i, k)
		}
	}
	for i := range s.Variants {
		for k := range s.Variants[i].Later {
			add(i, s.Variants[i].Replicas+k)
		}
	}
	return cfg
}

// stopping is a source that runs dry when its context ends, which is what ends a
// simulation soon.
type stopping struct {
	ctx    context.Context //nolint:containedctx // sources are asked without one
	source workload.Source
}

// Next implements workload.Source.
func (s stopping) Next() (workload.Request, bool) {
	if s.ctx.Err() != nil {
		return workload.Request{}, false
	}
	return s.source.Next()
}

// physics is the truth of one replica: the catalogue's roofline, or what was
// measured, times what no data sheet tells.
func (v *Variant) physics(factor, noise float64, seed uint64) enginesim.Physics {
	if v.Measured != nil {
		return &measured{step: *v.Measured, factor: factor, noise: noise, seed: seed}
	}
	r := enginesim.NewRoofline(v.Serving)
	r.Factor, r.Noise, r.Seed = factor, noise, seed
	if v.Serving.DP > 1 && !v.Lockstep {
		return enginesim.Ranks{Rank: r, N: v.Serving.DP}
	}
	return r
}

// What memory below the GPU's can do in truth: PCIe 4 and one NVMe drive per
// device, as far as they are seen to be used.
const (
	cpuBandwidth  = 20e9 // bytes per second
	diskBandwidth = 5e9
	cpuLatency    = 1500 * time.Microsecond
	diskLatency   = 8 * time.Millisecond
)

func (v *Variant) offload() enginesim.Offload {
	if v.CPU == 0 {
		return enginesim.Offload{}
	}
	o := enginesim.Offload{CPU: enginesim.Store{Tokens: v.CPU, Bandwidth: cpuBandwidth, Latency: cpuLatency}, KVBytes: v.Serving.KVBytes()}
	if v.Disk > 0 {
		o.Disk = enginesim.Store{Tokens: v.Disk, Bandwidth: diskBandwidth, Latency: diskLatency}
	}
	return o
}

// connector is the same for all replicas that can exchange KV.
func (v *Variant) connector() uint64 {
	if v.NIC > 0 {
		return 1
	}
	return 0
}

// What moving KV takes beside the bytes: a question to the other side and an
// answer, memory to be registered and a notice at the end.
const (
	wireLatency = 10 * time.Millisecond
	wireShare   = 0.7 // of a link's bandwidth that transfers are seen to use
)

func (v *Variant) wire() sim.Wire {
	if v.NIC == 0 {
		return sim.Wire{}
	}
	return sim.Wire{Bandwidth: wireShare * v.NIC, Latency: wireLatency, KVBytes: v.Serving.KVBytes()}
}

// leaves is what is believed of that before it is measured: the data sheet.
func (v *Variant) leaves() fleet.Link {
	if v.NIC == 0 {
		return fleet.Link{}
	}
	return fleet.Link{Latency: wireLatency.Seconds(), PerToken: v.Serving.KVBytes() / v.NIC}
}

// links is what is believed of that before it is measured: what data sheets say.
func (v *Variant) links() fleet.Links {
	if v.CPU == 0 {
		return fleet.Links{}
	}
	const pcie, nvme = 25e9, 6e9 // bytes per second
	bytes := v.Serving.KVBytes()
	return fleet.Links{CPU: fleet.Link{Latency: 1e-3, PerToken: bytes / pcie}, Disk: fleet.Link{Latency: 5e-3, PerToken: bytes / nvme}}
}

func (v *Variant) limits() fleet.Limits {
	ranks := max(v.Serving.DP, 1)
	most := fleet.Limits{MaxSeqs: defaultMaxSeqs * ranks, BudgetTokens: defaultBudgetTokens * fleet.Tokens(ranks)}
	if v.Serving.Shape.Layers > 0 {
		most.KVTokens = fleet.Tokens(v.Serving.KVTokens())
	}
	return v.Limits.Merge(most)
}

// rankLimits are those of one rank of a replica.
func (v *Variant) rankLimits() fleet.Limits {
	l, n := v.limits(), v.Serving.DP
	l.MaxSeqs, l.BudgetTokens, l.KVTokens = max(l.MaxSeqs/n, 1), max(l.BudgetTokens/fleet.Tokens(n), 1), l.KVTokens/fleet.Tokens(n)
	return l
}

// RunAll runs cells, so many at once, and tells progress after each. The results
// are in the order of the cells. Those that the scene's cache has are taken from
// it, and the others are kept there.
func (s *Scene) RunAll(ctx context.Context, cells []Cell, workers int, progress func(done int)) ([]*sim.Result, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	results, errs := make([]*sim.Result, len(cells)), make([]error, len(cells))
	kept := s.Cache.of(s)
	var missing []int
	for i, c := range cells {
		if results[i] = kept.load(c); results[i] == nil {
			missing = append(missing, i)
		}
	}
	have := len(cells) - len(missing)
	progress(have)
	next, done := make(chan int), make(chan struct{}, len(missing))
	var wg sync.WaitGroup
	for range min(max(workers, 1), len(missing)) {
		wg.Go(func() {
			for i := range next {
				if results[i], errs[i] = s.Run(ctx, cells[i]); errs[i] != nil {
					errs[i] = fmt.Errorf("%s, load %v, seed %d: %w", cells[i].Policy, cells[i].Load, cells[i].Seed, errs[i])
				} else {
					kept.save(cells[i], results[i])
				}
				done <- struct{}{}
			}
		})
	}
	go func() {
		defer close(next)
		for _, i := range missing {
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	for n := range missing {
		select {
		case <-done:
			progress(have + n + 1)
		case <-ctx.Done():
			wg.Wait()
			return nil, context.Cause(ctx)
		}
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

// Grid returns the cells of every policy under every load with seeds 1 to seeds,
// loads first.
func Grid(policies []string, loads []float64, seeds int) []Cell {
	var cells []Cell
	for _, load := range loads {
		for _, policy := range policies {
			for seed := range seeds {
				cells = append(cells, Cell{Policy: policy, Load: load, Seed: uint64(seed + 1)})
			}
		}
	}
	return cells
}
