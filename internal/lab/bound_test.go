package lab

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

func TestNoPolicyBeatsTheFluidBound(t *testing.T) {
	outer := t
	rapid.Check(t, func(t *rapid.T) {
		s := scene(outer, 0)
		s.Variants[0].Replicas, s.Variants[1].Replicas = rapid.IntRange(0, 2).Draw(t, "h100"), rapid.IntRange(1, 2).Draw(t, "a100")
		s.Noise, s.Spread = rapid.SampledFrom([]float64{0, 0.05, 0.2}).Draw(t, "noise"), rapid.SampledFrom([]float64{0, 0.3}).Draw(t, "spread")
		ms := func(name string, of ...int) time.Duration {
			return time.Duration(rapid.SampledFrom(of).Draw(t, name)) * time.Millisecond
		}
		s.Targets = sim.Targets{TTFT: ms("ttft", 0, 300, 1000, 5000), TPOT: ms("tpot", 0, 20, 30, 60), E2E: ms("e2e", 0, 0, 2000, 20000)}
		prompt, output := rapid.SampledFrom([]int{40, 1000, 9000}).Draw(t, "prompt"), rapid.SampledFrom([]int{1, 40, 300}).Draw(t, "output")
		common := rapid.SampledFrom([]int{0, 500, 4000}).Draw(t, "common")
		rate := rapid.SampledFrom([]float64{2, 10, 40}).Draw(t, "rate")
		turns := rapid.Bool().Draw(t, "turns")
		s.Load = func(_ float64, seed uint64) (workload.Source, error) {
			r := stat.NewRand(seed, "load")
			list := &listed{}
			at := time.Duration(0)
			for i := range 100 {
				at += time.Duration(-math.Log(1-r.Float64()) / rate * 1e9)
				q := workload.Request{Index: i, At: at, After: workload.NoRequest, Output: output}
				q.Prompt = []workload.Segment{{ID: uint64(r.IntN(3)), Tokens: common}, {ID: uint64(1000 + i), Tokens: 1 + r.IntN(prompt)}}
				q.Input = q.Prompt[0].Tokens + q.Prompt[1].Tokens
				if turns && i >= 10 {
					q.After = i - 10
				}
				list.left = append(list.left, q)
			}
			return list, nil
		}
		if rapid.Bool().Draw(t, "faults") {
			s.Faults = []sim.Fault{{At: time.Second, Replica: 0, Kind: sim.Slow, Factor: 0.5}}
		}
		for _, policy := range []string{"round-robin", "predictive", sim.Clairvoyant} {
			res, err := s.Run(outer.Context(), Cell{Policy: policy, Load: 1, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			most, err := s.FluidBound(1, 3, res.Span)
			if err != nil {
				t.Fatal(err)
			}
			if float64(res.Good) > most+1e-6 {
				t.Errorf("%s: %d of %d are good, the bound is %v", policy, res.Good, res.Arrived, most)
			}
			if open, err := s.FluidBound(1, 3, 0); err != nil || open < most-1e-6 {
				t.Errorf("the bound is %v, and %v of a run of a certain length: %v", open, most, err)
			}
		}
	})
}

// listed is a load that is a list.
type listed struct{ left []workload.Request }

func (l *listed) Next() (workload.Request, bool) {
	if len(l.left) == 0 {
		return workload.Request{}, false
	}
	q := l.left[0]
	l.left = l.left[1:]
	return q, true
}

func TestTheFluidBoundBinds(t *testing.T) {
	s := scene(t, 60)
	s.Targets = sim.Targets{TTFT: 2 * time.Second, TPOT: 40 * time.Millisecond}
	good := func(load float64) (bound, got, offered float64) {
		res, err := s.Run(t.Context(), Cell{Policy: sim.Clairvoyant, Load: load, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		bound, err = s.FluidBound(load, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		return bound, float64(res.Good), float64(res.Arrived)
	}
	if bound, _, offered := good(1); math.Abs(bound-offered) > 0.5 {
		t.Errorf("a light load of %v is bounded by %v", offered, bound)
	}
	_, best, _ := good(12) // about what the fleet can do
	if bound, _, offered := good(40); bound > 0.8*offered || bound < best || bound > 4*best {
		t.Errorf("a load of %v that is too much is bounded by %v; of one that is not %v are good", offered, bound, best)
	}
	s.Targets.TPOT = time.Millisecond
	if bound, _, _ := good(1); bound != 0 {
		t.Errorf("%v can be good, though no replica is that fast", bound)
	}
}
