package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/perf"
)

// Simulated is an embedded fleet of simulated engines, each a real server on a
// loopback port.
type Simulated struct {
	nodes []*server.Node
	// Pool is the configuration that fronts it.
	Pool config.Pool
}

// knownSteps are published fits of step times (milliseconds), the belief with
// which the gateway meets the simulated engines. They come from measurements of
// real engines, not from the simulation: what is not listed is unknown.
var knownSteps = map[string]config.StepMs{
	// llm-d guides and InferenceX points for vLLM, June 2026; PerPrompt from the
	// measured peak prefill of 15,928 tok/s.
	"Qwen/Qwen3-32B H100 2": {Base: 14.0, PerSeq: 0.0496, PerKV: 5.67e-5, PerPrompt: 0.0628},
}

// Simulate starts replicas engines, alike but for their noise.
func Simulate(o server.Options, replicas int) (*Simulated, error) {
	if replicas < 1 || replicas > maxReplicas {
		return nil, fmt.Errorf("--replicas must be between 1 and %d, is %d", maxReplicas, replicas)
	}
	s := &Simulated{Pool: config.DefaultPool()}
	s.Pool.Name = "sim"
	for i := range replicas {
		o.Replica = i
		n, err := server.Listen("127.0.0.1:0", server.Config{Options: o})
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("simulated engine: %w", err)
		}
		s.nodes = append(s.nodes, n)
		s.Pool.Endpoints = append(s.Pool.Endpoints, config.Endpoint{Name: fmt.Sprintf("sim-%d", i), URL: n.URL()})
	}
	o = s.nodes[0].Server.Options()
	s.Pool.Model = o.Model
	s.Pool.Engine.MaxSeqs, s.Pool.Engine.BudgetTokens = o.MaxSeqs, o.BudgetTokens
	s.Pool.Engine.StepMs = config.StepMs(perf.Step(known(o)).Scale(1 / o.Speedup))
	return s, nil
}

// known returns the published fit for an engine whose options are complete, zero
// when there is none.
func known(o server.Options) config.StepMs {
	return knownSteps[fmt.Sprintf("%s %s %d", o.Model, o.Accelerator, o.TP)]
}

// Belief returns what a gateway believes of a simulated engine's step time
// before it has seen any; zero when nothing is known.
func Belief(o server.Options) perf.Step { return known(o.Complete()).Step() }

// maxReplicas bounds the servers of one process.
const maxReplicas = 256

// Options returns the engines' options, defaults filled in.
func (s *Simulated) Options() server.Options { return s.nodes[0].Server.Options() }

// closeTimeout is for connections of simulated engines to end.
const closeTimeout = 2 * time.Second

// Close stops the engines.
func (s *Simulated) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, n := range s.nodes {
		if err := n.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
