package enginesim

import (
	"testing"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
)

func TestNoStepFallsShortOfItsFloor(t *testing.T) {
	var physics []Physics
	for _, name := range []string{"Qwen/Qwen3-32B", "deepseek-ai/DeepSeek-V3"} {
		m, err := catalog.FindModel(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := catalog.FindAccelerator("H200")
		if err != nil {
			t.Fatal(err)
		}
		r := NewRoofline(catalog.Serving{Shape: m, Accelerator: a, TP: 8})
		r.Factor = 1.1
		physics = append(physics, r, Ranks{Rank: r, N: 4})
	}
	const budget = 8192
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(physics).Draw(t, "physics")
		b := Batch{Decodes: rapid.IntRange(0, 300).Draw(t, "decodes"), Prefills: rapid.IntRange(0, 4).Draw(t, "prefills")}
		if b.Prefills > 0 {
			b.Prompt = fleet.Tokens(rapid.IntRange(b.Prefills, budget-b.Decodes).Draw(t, "prompt"))
			b.Attention = float64(b.Prompt) * float64(rapid.IntRange(0, 50_000).Draw(t, "before"))
		}
		b.Context = fleet.Tokens(b.Decodes * rapid.IntRange(0, 20_000).Draw(t, "context"))
		b.Again = fleet.Tokens(rapid.IntRange(0, int(b.Context)).Draw(t, "again"))
		f := p.(Floored).Floor(rapid.SampledFrom([]float64{0, 0.3, 1}).Draw(t, "split"), budget)
		// Of what is read again, the first reader's counts whole: own is at least
		// the context less twice what is read again.
		own := float64(max(b.Context-2*b.Again, 0))
		shared := float64(b.Context) - own
		least := f.Base + f.Decode*float64(b.Decodes) + f.KV*(own+f.Again*shared) + f.Prompt*float64(b.Prompt) + f.Pair*b.Attention
		if got := p.StepTime(b).Seconds(); got < least*(1-1e-9)-2e-9 {
			t.Errorf("%+v takes %v s, floor %v", b, got, least)
		}
	})
}
