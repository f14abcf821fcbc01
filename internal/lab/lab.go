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
	Limits   fleet.Limits // zero fields: what the engine would take by default
	Belief   perf.Step    // what the gateway believes before it has measured; zero for nothing
	Slower   float64      // how much slower its replicas really are than the catalogue says; 0 means 1
	Cost     float64      // of one replica, US dollars per hour; 0 unknown
}

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
	Faults   []sim.Fault
	Targets  sim.Targets
	// Load makes the requests of one run anew; load 1 is the workload as it is.
	Load func(load float64, seed uint64) (workload.Source, error)
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
	for i, v := range s.Variants {
		if err := v.Serving.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("variants[%d] (%s): %w", i, v.Name, err))
		}
		if v.Replicas < 0 || v.Slower < 0 || v.Cost < 0 {
			errs = append(errs, fmt.Errorf("variants[%d] (%s): replicas, slower and cost must not be negative", i, v.Name))
		}
	}
	if !(s.Noise >= 0 && s.Noise <= 1) {
		errs = append(errs, fmt.Errorf("noise: must be between 0 and 1, is %v", s.Noise))
	}
	if !(s.Spread >= 0 && s.Spread <= 0.9) {
		errs = append(errs, fmt.Errorf("spread: must be between 0 and 0.9, is %v", s.Spread))
	}
	return errors.Join(errs...)
}

// Run simulates one cell.
func (s *Scene) Run(c Cell) (*sim.Result, error) {
	cfg := sim.Config{Pool: s.Pool, Seed: c.Seed, Scrape: s.Scrape, Hop: s.Hop, Faults: s.Faults, Targets: s.Targets}
	cfg.Pool.Policy = route.Spec{Name: c.Policy}
	speeds := stat.NewRand(c.Seed, "speeds")
	for i, v := range s.Variants {
		limits := v.limits()
		for range v.Replicas {
			// Truth: the catalogue's roofline, times what no data sheet tells.
			physics := enginesim.NewRoofline(v.Serving)
			physics.Factor = max(v.Slower, 0) * (1 + s.Spread*(2*speeds.Float64()-1))
			if v.Slower == 0 {
				physics.Factor = 1 + s.Spread*(2*speeds.Float64()-1)
			}
			physics.Noise, physics.Seed = s.Noise, stat.Mix64(c.Seed<<20+uint64(len(cfg.Replicas)))
			cfg.Replicas = append(cfg.Replicas, sim.Replica{Physics: physics, Limits: limits, Variant: uint64(i + 1), Step: v.Belief})
		}
	}
	src, err := s.Load(c.Load, c.Seed)
	if err != nil {
		return nil, err
	}
	return sim.Run(cfg, src)
}

func (v *Variant) limits() fleet.Limits {
	return v.Limits.Merge(fleet.Limits{
		KVTokens: fleet.Tokens(v.Serving.KVTokens()), MaxSeqs: defaultMaxSeqs, BudgetTokens: defaultBudgetTokens,
	})
}

// RunAll runs cells, so many at once, and tells progress after each. The results
// are in the order of the cells.
func (s *Scene) RunAll(ctx context.Context, cells []Cell, workers int, progress func(done int)) ([]*sim.Result, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	results, errs := make([]*sim.Result, len(cells)), make([]error, len(cells))
	next, done := make(chan int), make(chan struct{}, len(cells))
	var wg sync.WaitGroup
	for range min(workers, len(cells)) {
		wg.Go(func() {
			for i := range next {
				if results[i], errs[i] = s.Run(cells[i]); errs[i] != nil {
					errs[i] = fmt.Errorf("%s, load %v, seed %d: %w", cells[i].Policy, cells[i].Load, cells[i].Seed, errs[i])
				}
				done <- struct{}{}
			}
		})
	}
	go func() {
		defer close(next)
		for i := range cells {
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	for n := range cells {
		select {
		case <-done:
			progress(n + 1)
		case <-ctx.Done():
			wg.Wait()
			return nil, context.Cause(ctx)
		}
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

// Replay returns the load function of a trace: load L lays ⌈L⌉ copies over each
// other, each with conversations of its own, and slows them down to L in all.
func Replay(t *workload.Trace, duration time.Duration) func(load float64, seed uint64) (workload.Source, error) {
	return func(load float64, _ uint64) (workload.Source, error) {
		if !(load > 0) {
			return nil, fmt.Errorf("load: must be above 0, is %v", load)
		}
		copies := int(load)
		if float64(copies) < load {
			copies++
		}
		// The same requests for every seed: only noise and ties differ.
		return t.Replay(workload.ReplayOptions{Speed: load / float64(copies), Duration: duration, Copies: copies, Seed: 1})
	}
}
