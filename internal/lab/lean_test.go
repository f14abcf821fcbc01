package lab

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// TestEndpointsLeanWhereThatPays: 16 endpoints that may all do both gain a quarter
// where prompts are long, and lose next to nothing where splitting is worse.
func TestEndpointsLeanWhereThatPays(t *testing.T) {
	m, errModel := catalog.FindModel("openai/gpt-oss-120b")
	a, errAccelerator := catalog.FindAccelerator("H200")
	if errModel != nil || errAccelerator != nil {
		t.Fatal(errModel, errAccelerator)
	}
	one := catalog.Serving{Shape: m, Accelerator: a, TP: 1}
	const warm, span = time.Minute, time.Minute
	mean := func(input int, rate float64, when pool.Split) float64 {
		s := Scene{
			Variants: []Variant{{Name: "both", Serving: one, Replicas: 16, NIC: 50e9, Belief: Belief(one)}},
			Pool:     pool.Default(), Noise: 0.05, Scrape: time.Second, Hop: 500 * time.Microsecond,
			Load: func(_ float64, seed uint64) (workload.Source, error) {
				a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: rate, Duration: warm + span}}, 0, stat.NewRand(seed, "arrivals"))
				return workload.Random{Input: workload.Fixed(input), Output: workload.Fixed(250)}.Source(a, seed), nil
			},
		}
		s.Pool.Split = when
		n, sum := 0.0, 0.0
		s.Ended = func(_ Cell, o sim.Outcome) {
			if o.Done && o.Start >= fleet.Time(warm) {
				n++
				sum += o.End.Sub(o.Start).Seconds()
			}
		}
		if _, err := s.Run(t.Context(), Cell{Policy: "predictive", Load: 1, Seed: 1}); err != nil {
			t.Fatal(err)
		}
		return sum / n
	}
	for _, c := range []struct {
		input int
		rate  float64
		most  float64 // of the mean time when all serve whole
	}{{5000, 45, 0.8}, {500, 60, 1.1}, {3000, 75, 0.8}} {
		whole, own := mean(c.input, c.rate, pool.SplitNever), mean(c.input, c.rate, pool.SplitAuto)
		if own > c.most*whole {
			t.Errorf("%d/250 at %v req/s: %.2f s a request, %.2f s whole: want at most %v of it", c.input, c.rate, own, whole, c.most)
		}
	}
}
