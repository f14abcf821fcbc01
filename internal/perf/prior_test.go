package perf

import (
	"math"
	"testing"

	"penstock.dev/penstock/internal/catalog"
)

func serving(t *testing.T, model, accelerator string, tp int) catalog.Serving {
	t.Helper()
	m, err := catalog.FindModel(model)
	if err != nil {
		t.Fatal(err)
	}
	a, err := catalog.FindAccelerator(accelerator)
	if err != nil {
		t.Fatal(err)
	}
	s := catalog.Serving{Shape: m, Accelerator: a, TP: tp}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPriorFollowsFromTheDataSheet(t *testing.T) {
	s := serving(t, "llama-3.1-8b", "h100", 1)
	got := Prior(s).Step
	// By hand: 8.03e9 weights less one of two tables of 0.525e9, in 16 bits.
	weights := (8.03e9 - 0.525e9) * 2 / (3.35e12 * weightShare)
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"base", got.Base, vllmLaunch + 32*layerSeconds + weights},
		{"per token of context", got.PerKV, 2 * 32 * 8 * 128 * 2 / (3.35e12 * kvShare)},
		{"per prompt token", got.PerPrompt, 2 * (8.03e9 - 2*0.525e9) / (989.5e12 * linearShare)},
	} {
		if math.Abs(c.got-c.want) > 0.01*c.want {
			t.Errorf("%s = %g s, want %g", c.name, c.got, c.want)
		}
	}
	if got.Experts != 0 || Prior(s).Spread[5] != 0 {
		t.Errorf("a dense model has experts: %+v", got)
	}
}

func TestPriorOfMoreHardwareIsFaster(t *testing.T) {
	busy := Work{Seqs: 64, KV: 200_000, Prompt: 500, Pairs: 1e6}
	for _, m := range []string{"llama-3.1-70b", "qwen3-32b", "qwen3-30b-a3b", "mixtral-8x7b"} {
		last := math.Inf(1)
		for _, tp := range []int{4, 8} {
			for _, a := range []string{"a100", "h100", "h200", "b200"} {
				if got := Prior(serving(t, m, a, tp)).Step.Time(busy); a == "a100" && got >= last*2 || a != "a100" && got >= last {
					t.Errorf("%s on %d x %s: %g s, the accelerator before took %g", m, tp, a, got, last)
				} else {
					last = got
				}
			}
			last = math.Inf(1)
		}
	}
	one, four := Prior(serving(t, "llama-3.1-8b", "h100", 1)).Step, Prior(serving(t, "llama-3.1-8b", "h100", 4)).Step
	if four.Time(busy) >= one.Time(busy) || four.Time(busy) <= one.Time(busy)/4 {
		t.Errorf("four GPUs take %g s, one %g", four.Time(busy), one.Time(busy))
	}
}

func TestPriorKnowsLatentAttentionAndExperts(t *testing.T) {
	s := serving(t, "deepseek-r1", "h200", 8)
	got := Prior(s).Step
	// 61 layers of 512 + 64 elements in 16 bits, whole on every device.
	if want := 61 * 576 * 2 / (4.8e12 * kvShare); math.Abs(got.PerKV-want) > 0.01*want {
		t.Errorf("per token of context %g s, want %g", got.PerKV, want)
	}
	if got.Touch != 8./256 {
		t.Errorf("a token touches %g of the experts", got.Touch)
	}
	// 58 layers of 256 experts of 3 · 7168 · 2048 in 8 bits, on eight devices.
	if want := 58 * 256 * 3 * 7168 * 2048 / (8 * 4.8e12 * expertShare); math.Abs(got.Experts-want) > 0.01*want {
		t.Errorf("experts %g s, want %g", got.Experts, want)
	}
	if alone, many := got.Time(Work{Seqs: 1}), got.Time(Work{Seqs: 128}); many < 1.5*alone {
		t.Errorf("128 sequences take %g s, one %g: experts must tell", many, alone)
	}
}
