package lab

import (
	"errors"
	"fmt"
	"time"

	"penstock.dev/penstock/internal/workload"
)

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

// Scaled returns the load function of a described workload: load L multiplies the
// rates of its stages. A duration above 0 cuts it short.
func Scaled(spec *workload.Spec, duration time.Duration) (func(load float64, seed uint64) (workload.Source, error), error) {
	switch {
	case spec.Load.Kind == workload.ArrivalClosed:
		return nil, errors.New("load.type: concurrent has no rate, and is not simulated; use poisson or constant")
	case len(spec.Load.Stages) == 0:
		return nil, errors.New("load.stages: missing; want rate and duration of each")
	}
	return func(load float64, seed uint64) (workload.Source, error) {
		if !(load > 0) {
			return nil, fmt.Errorf("load: must be above 0, is %v", load)
		}
		l := spec.Load
		l.Stages = make([]workload.Stage, len(spec.Load.Stages))
		for i, st := range spec.Load.Stages {
			st.Rate *= load
			l.Stages[i] = st
		}
		return &workload.Limit{Source: spec.Source(l, seed), Until: duration}, nil
	}, nil
}
