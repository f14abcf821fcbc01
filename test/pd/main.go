// Command pd splits prefill from decode in virtual time: a published setup, and
// what an adaptive policy makes of a fleet that may do both. It exits with 1 when
// a goal is missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/lab"
	"penstock.dev/penstock/internal/pool"
	"penstock.dev/penstock/internal/sim"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// nic is the bandwidth at which each accelerator sends KV to others, in bytes per
// second: one card of 400 Gbit/s each.
const nic = 50e9

func main() {
	rate := flag.Float64("rate", 45, "requests per second")
	span := flag.Duration("span", 3*time.Minute, "of load")
	policy := flag.String("policy", "predictive", "")
	flag.Parse()
	for _, f := range []struct {
		name     string
		variants []lab.Variant
	}{
		{"16 whole", []lab.Variant{variant("agg", 1, 16, fleet.RoleBoth, 0)}},
		{"8 prefill TP1, 2 decode TP4", []lab.Variant{variant("prefill", 1, 8, fleet.RolePrefill, nic), variant("decode", 4, 2, fleet.RoleDecode, nic)}},
		{"4 prefill, 12 decode TP1", []lab.Variant{variant("prefill", 1, 4, fleet.RolePrefill, nic), variant("decode", 1, 12, fleet.RoleDecode, nic)}},
		{"6 prefill, 10 decode TP1", []lab.Variant{variant("prefill", 1, 6, fleet.RolePrefill, nic), variant("decode", 1, 10, fleet.RoleDecode, nic)}},
		{"8 prefill, 8 decode TP1", []lab.Variant{variant("prefill", 1, 8, fleet.RolePrefill, nic), variant("decode", 1, 8, fleet.RoleDecode, nic)}},
		{"10 prefill, 6 decode TP1", []lab.Variant{variant("prefill", 1, 10, fleet.RolePrefill, nic), variant("decode", 1, 6, fleet.RoleDecode, nic)}},
		{"16 both", []lab.Variant{variant("both", 1, 16, fleet.RoleBoth, nic)}},
	} {
		s := lab.Scene{
			Variants: f.variants, Pool: pool.Default(), Noise: 0.05, Scrape: time.Second, Hop: 500 * time.Microsecond,
			Load: func(load float64, seed uint64) (workload.Source, error) {
				a := workload.NewArrivals(workload.ArrivalPoisson, []workload.Stage{{Rate: *rate * load, Duration: *span}}, 0, stat.NewRand(seed, "arrivals"))
				return workload.Random{Input: workload.Fixed(5000), Output: workload.Fixed(250)}.Source(a, seed), nil
			},
		}
		r, err := s.Run(context.Background(), lab.Cell{Policy: *policy, Load: 1, Seed: 1})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		show(f.name, r)
	}
}

func show(name string, r *sim.Result) {
	ms := func(x float64) float64 { return x / 1e6 }
	fmt.Printf("%-30s done %d/%d, splits %d, TTFT mean %.0f p95 %.0f ms, TPOT mean %.1f p95 %.1f ms, E2E mean %.0f ms, TTFT err %.1f %%, TPOT err %.1f %%, preempt %d\n", name, r.Done, r.Arrived, r.Splits,
		ms(r.TTFT.Mean()), ms(r.TTFT.Quantile(0.95)), ms(r.TPOT.Mean()), ms(r.TPOT.Quantile(0.95)), ms(r.E2E.Mean()), r.TTFTError.Quantile(0.5)/1e4, r.TPOTError.Quantile(0.5)/1e4, r.Preemptions)
}

func variant(name string, tp, n int, role fleet.Role, nic float64) lab.Variant {
	m, err := catalog.FindModel("openai/gpt-oss-120b")
	if err != nil {
		panic(err)
	}
	a, err := catalog.FindAccelerator("H200")
	if err != nil {
		panic(err)
	}
	s := catalog.Serving{Shape: m, Accelerator: a, TP: tp, Engine: "vllm"}.Normal()
	return lab.Variant{Name: name, Serving: s, Replicas: n, Role: role, NIC: nic, Belief: lab.Belief(s)}
}
