package perf

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/stat"
)

// drawStep draws a step of the size of real ones.
func drawStep(t *rapid.T) Step {
	s := Step{
		Base:      rapid.Float64Range(2e-3, 30e-3).Draw(t, "base"),
		PerSeq:    rapid.Float64Range(5e-6, 200e-6).Draw(t, "perSeq"),
		PerKV:     rapid.Float64Range(5e-9, 200e-9).Draw(t, "perKV"),
		PerPrompt: rapid.Float64Range(5e-6, 200e-6).Draw(t, "perPrompt"),
		PerPair:   rapid.Float64Range(1e-10, 5e-9).Draw(t, "perPair"),
	}
	if rapid.Bool().Draw(t, "experts") {
		s.Experts, s.Touch = rapid.Float64Range(2e-3, 30e-3).Draw(t, "read"), rapid.SampledFrom([]float64{4. / 128, 8. / 256, 2. / 8}).Draw(t, "touch")
	}
	return s
}

// design is work that tells all of a step's parameters apart.
func design() []Observation {
	var obs []Observation
	for _, n := range []float64{1, 2, 4, 8, 16, 64, 256} {
		for _, context := range []float64{100, 2000, 20_000} {
			obs = append(obs, Observation{Work: Work{Seqs: n, KV: n * context}})
			for _, p := range []float64{500, 4000} {
				obs = append(
					obs, Observation{Work: Work{Seqs: n, KV: n * context, Prompt: p, Pairs: p * p / 2}, Mixed: 1},
					Observation{Work: Work{Seqs: n, KV: n * context, Prompt: p, Pairs: p * 9 * p}, Mixed: 1},
				)
			}
		}
	}
	return obs
}

// measure fills in how long work takes, with a relative noise.
func measure(s Step, obs []Observation, noise float64, r *stat.Rand) []Observation {
	obs = slices.Clone(obs)
	for i := range obs {
		obs[i].Seconds = dot(s.Vector(), s.Row(obs[i])) * (1 + noise*(2*r.Float64()-1))
	}
	return obs
}

func TestFitRecoversWhatMadeTheData(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		truth := drawStep(t)
		r := stat.NewRand(rapid.Uint64().Draw(t, "seed"), "noise")
		noise := rapid.SampledFrom([]float64{0, 0.05}).Draw(t, "noise")
		obs := measure(truth, design(), noise, r)
		f, err := Fit(Belief{}, truth.Touch, obs)
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range obs {
			if got, want := dot(f.Step.Vector(), f.Step.Row(o)), dot(truth.Vector(), truth.Row(o)); math.Abs(got-want) > (1.5*noise+1e-6)*want {
				t.Fatalf("observation %d: %g s, truth %g", i, got, want)
			}
		}
		got, want := f.Step.Vector(), truth.Vector()
		for j, name := range ParamNames() {
			if got[j] < 0 {
				t.Fatalf("%s is negative: %g", name, got[j])
			}
			if noise == 0 && math.Abs(got[j]-want[j]) > 1e-3*want[j] {
				t.Fatalf("%s = %g, truth %g", name, got[j], want[j])
			}
		}
	})
}

func TestConfidenceIntervalsHoldTheTruth(t *testing.T) {
	truth := Step{Base: 8e-3, PerSeq: 50e-6, PerKV: 40e-9, PerPrompt: 60e-6, PerPair: 1e-9}
	held, all := 0, 0
	for seed := range uint64(200) {
		f, err := Fit(Belief{}, 0, measure(truth, design(), 0.1, stat.NewRand(seed, "noise")))
		if err != nil {
			t.Fatal(err)
		}
		want := truth.Vector()
		for j := range 5 {
			all++
			if f.Lo[j] <= want[j] && want[j] <= f.Hi[j] {
				held++
			}
		}
	}
	if share := float64(held) / float64(all); share < 0.90 {
		t.Errorf("95 %% intervals hold the truth in %.1f %% of fits", 100*share)
	}
}

func TestFitDoesNotDependOnUnits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		truth := drawStep(t)
		factor := rapid.Float64Range(1e-3, 1e3).Draw(t, "factor")
		obs := measure(truth, design(), 0.1, stat.NewRand(1, "noise"))
		prior := Belief{Step: drawStep(t), Spread: Vector{.5, 1, 1, 1, 1, .5, 1}}
		prior.Step.Touch = truth.Touch
		a, err := Fit(prior, 0, obs)
		if err != nil {
			t.Fatal(err)
		}
		for i := range obs {
			obs[i].Seconds *= factor
		}
		prior.Step = prior.Step.Scale(factor)
		b, err := Fit(prior, 0, obs)
		if err != nil {
			t.Fatal(err)
		}
		for j, name := range ParamNames() {
			if x, y := a.Step.Vector()[j]*factor, b.Step.Vector()[j]; math.Abs(x-y) > 1e-6*max(x, y) {
				t.Fatalf("%s: %g against %g when time is measured in other units", name, x, y)
			}
		}
	})
}

func TestFitLeavesOutliersAside(t *testing.T) {
	truth := Step{Base: 8e-3, PerSeq: 50e-6, PerKV: 40e-9, PerPrompt: 60e-6, PerPair: 1e-9}
	obs := measure(truth, design(), 0.02, stat.NewRand(1, "noise"))
	for i := 0; i < len(obs); i += 20 {
		obs[i].Seconds *= 3
	}
	f, err := Fit(Belief{}, 0, obs)
	if err != nil {
		t.Fatal(err)
	}
	for j, want := range truth.Vector() {
		if math.Abs(f.Step.Vector()[j]-want) > 0.06*want {
			t.Errorf("%s = %g, truth %g", ParamNames()[j], f.Step.Vector()[j], want)
		}
	}
}

func TestFitKeepsWhatItCannotTell(t *testing.T) {
	truth := Step{Base: 10e-3, PerSeq: 80e-6, PerKV: 50e-9}
	var obs []Observation
	for _, n := range []float64{1, 4, 16, 64, 256} {
		for _, context := range []float64{200, 8000} {
			obs = append(obs, Observation{Work: Work{Seqs: n, KV: n * context}}) // never a prompt
		}
	}
	obs = measure(truth, obs, 0, stat.NewRand(1, ""))
	prior := Belief{
		Step:   Step{Base: 14e-3, PerSeq: 50e-6, PerKV: 30e-9, PerPrompt: 70e-6, PerPair: 2e-9, PerRequest: 5e-3},
		Spread: Vector{.5, 1, 1, 1, 1, 1, 1},
	}
	f, err := Fit(prior, 0, obs)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Untold(); !slices.Equal(got, []string{"perPrompt", "perPair", "perRequest"}) {
		t.Errorf("kept %v", got)
	}
	if f.Step.PerPrompt != prior.Step.PerPrompt || f.Sigma[3] != prior.Step.PerPrompt {
		t.Errorf("perPrompt = %g ± %g, want the prior", f.Step.PerPrompt, f.Sigma[3])
	}
	if math.Abs(f.Step.Base-truth.Base) > 0.02*truth.Base || math.Abs(f.Step.PerKV-truth.PerKV) > 0.05*truth.PerKV {
		t.Errorf("fitted %+v, truth %+v", f.Step, truth)
	}
	// Two columns in step: without a prior only one of them can be told.
	for i := range obs {
		obs[i].Work.KV = 1000 * obs[i].Work.Seqs
		obs[i].Seconds = truth.Time(obs[i].Work)
	}
	f, err = Fit(Belief{}, 0, obs)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Untold(); len(got) != 1 || (got[0] != "perSeq" && got[0] != "perKV") {
		t.Errorf("kept %v, want one of perSeq and perKV", got)
	}
	for _, o := range obs {
		if got := f.Step.Time(o.Work); math.Abs(got-o.Seconds) > 1e-6*o.Seconds {
			t.Errorf("%g s for a step of %g", got, o.Seconds)
		}
	}
}

func TestFitRefusesNonsense(t *testing.T) {
	if _, err := Fit(Belief{}, 0, []Observation{{Seconds: 0}}); !errors.Is(err, ErrNothingToFit) {
		t.Errorf("no duration: %v", err)
	}
	for _, o := range []Observation{{Seconds: math.NaN()}, {Seconds: 1, Weight: -1}, {Seconds: 1, Work: Work{KV: math.Inf(1)}}, {Seconds: 1, Work: Work{Seqs: -1}}} {
		if _, err := Fit(Belief{}, 0, []Observation{o}); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestNonNegativeIsOptimal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Matrix
		var b Vector
		free := [Params]bool{true, true, true, true, true, true, true}
		for range rapid.IntRange(1, 12).Draw(t, "rows") {
			var row Vector
			for j := range row {
				row[j] = rapid.Float64Range(-2, 2).Draw(t, "x")
			}
			y := rapid.Float64Range(-2, 2).Draw(t, "y")
			m.add(row, 1)
			for j := range row {
				b[j] += y * row[j]
			}
		}
		for j := range m {
			m[j][j] += 0.01
		}
		x := m.nonNegative(b, free)
		// Karush, Kuhn and Tucker: no slope where x > 0, none that helps at 0.
		for j := range x {
			slope := dot(m[j], x) - b[j]
			if x[j] < 0 || slope < -1e-6 || x[j] > 0 && math.Abs(slope) > 1e-6 {
				t.Fatalf("x[%d] = %g with slope %g", j, x[j], slope)
			}
		}
	})
}

func BenchmarkFit(b *testing.B) {
	truth := Step{Base: 8e-3, PerSeq: 50e-6, PerKV: 40e-9, PerPrompt: 60e-6, PerPair: 1e-9}
	obs := measure(truth, design(), 0.05, stat.NewRand(1, "noise"))
	for b.Loop() {
		if _, err := Fit(Belief{}, 0, obs); err != nil {
			b.Fatal(err)
		}
	}
}
