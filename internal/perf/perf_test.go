package perf

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// qwen is the published fit of Qwen3-32B, TP2 on H100 (seconds).
var qwen = Step{Base: 14e-3, PerSeq: 49.6e-6, PerKV: 56.7e-9, PerPrompt: 49.6e-6}

func TestTTFT(t *testing.T) {
	for _, c := range []struct {
		name     string
		load     Load
		uncached int
		want     float64 // ms, by hand
	}{
		{"idle, one step", Load{}, 1000, 14 + 49.6},
		{"idle, two steps of 8192", Load{}, 12000, 2*14 + 595.2},
		{"behind a backlog", Load{Ahead: 1, Backlog: 7192}, 1000, 14 + 7192*.0496 + 14 + 1000*.0496},
		{"budget of 512", Load{Budget: 512}, 1024, 2*14 + 1024*.0496},
		{"ten decoding, half a step under way", Load{Decoding: 10, Active: 10000}, 1000, 1.5*(14+.496+.567) + 49.6},
		{"all cached still computes a token", Load{}, 0, 14 + .0496},
	} {
		got := qwen.TTFT(c.load, 0, fleet.Tokens(c.uncached)).Seconds() * 1e3
		if math.Abs(got-c.want) > 1e-3 {
			t.Errorf("%s: %.4f ms, want %.4f", c.name, got, c.want)
		}
	}
}

func TestTPOTGrowsWithTheBatch(t *testing.T) {
	alone := qwen.TPOT(Load{}, 1000, 0)
	busy := qwen.TPOT(Load{Decoding: 63, Active: 63000}, 1000, 0)
	if want := 14e-3 + 49.6e-6 + 56.7e-6; math.Abs(alone.Seconds()-want) > 1e-8 {
		t.Errorf("alone %v, want %v s", alone, want)
	}
	if busy <= alone {
		t.Errorf("TPOT %v in a batch of 64, %v alone", busy, alone)
	}
}

func TestUnknownStepPredictsNothing(t *testing.T) {
	if (Step{}).TTFT(Load{}, 0, 100) != 0 || (Step{}).TPOT(Load{}, 100, 1) != 0 {
		t.Error("a zero step predicted something")
	}
	if got := qwen.Scale(2).TPOT(Load{}, 0, 0); got != 2*qwen.TPOT(Load{}, 0, 0).Round(time.Nanosecond) && math.Abs(float64(got-2*qwen.TPOT(Load{}, 0, 0))) > 2 {
		t.Errorf("scale by 2: %v", got)
	}
}

func BenchmarkTTFT(b *testing.B) {
	l := Load{Decoding: 20, Active: 250000, Ahead: 3, Backlog: 30000, Budget: 8192}
	b.ReportAllocs()
	for b.Loop() {
		_ = qwen.TTFT(l, 0, 12000)
	}
}

func TestARankTakesAsLongAsItsSet(t *testing.T) {
	set := Step{Base: 5e-3, PerSeq: 1e-5, PerKV: 1e-8, PerPrompt: 4e-6, PerPair: 1e-9, Experts: 20e-3, Touch: 1.0 / 32}
	rank := set.Rank(8)
	for _, w := range []Work{{Seqs: 1, KV: 100}, {Seqs: 30, KV: 90_000}, {Seqs: 4, KV: 9000, Prompt: 2000, Pairs: 2e6}} {
		all := Work{Seqs: 8 * w.Seqs, KV: 8 * w.KV, Prompt: 8 * w.Prompt, Pairs: 8 * w.Pairs}
		if a, b := rank.Time(w), set.Time(all); math.Abs(a/b-1) > 1e-9 {
			t.Errorf("%+v: %v, of the set %v", w, a, b)
		}
	}
}
