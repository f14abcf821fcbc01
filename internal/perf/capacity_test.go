package perf

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/fleet"
)

// plain is a step with round numbers: 10 ms, and 0.1 ms per sequence.
var plain = Step{Base: 10e-3, PerSeq: 0.1e-3}

func near(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > share*math.Abs(want) {
		t.Errorf("%s = %.6g, want %.6g", what, got, want)
	}
}

func TestChargeByHand(t *testing.T) {
	s := Step{Base: 10e-3, PerSeq: 50e-6, PerKV: 50e-9, PerPrompt: 60e-6, PerPair: 1e-9}
	// 400 of 1000 tokens to compute after 600: 24 ms, and 400·(600 + 200) pairs:
	// 0.32 ms; 200 tokens of 50 µs and 50 ns of 1100: 21 ms.
	near(t, "charge", s.Charge(1000, 600, 200), 24e-3+0.32e-3+21e-3, 1e-9)
	near(t, "charge of a mix", s.charge(Mix{Input: 1000, Cached: 0.6, Output: 200}), s.Charge(1000, 600, 200), 1e-9)
}

func TestSteadyByHand(t *testing.T) {
	// 100 tokens of 0.1 ms are 10 ms of the engine; at 50 a second rho = 0.5:
	// T = (10 + 0.1)/0.5 ms, and 50·100·T sequences.
	m := Mix{Input: 1, Output: 100}
	got := plain.Steady(m, 50, fleet.Limits{}, fleet.SLO{}, 0.5)
	near(t, "rho", got.Rho, 0.5, 1e-9)
	near(t, "TPOT", got.TPOT, 20.2e-3, 1e-9)
	near(t, "sequences", got.Seqs, 101, 1e-9)
	near(t, "median TPOT", got.TPOTq, got.TPOT, 1e-9)
	// r = 10/0.1 + 1 = 101; the deviation of n is sqrt(101·0.5)/0.5, of T 0.1 ms of it.
	q := plain.Steady(m, 50, fleet.Limits{}, fleet.SLO{}, 0.95)
	near(t, "95 % of TPOT", q.TPOTq, 20.2e-3+1.644854*0.1e-3*math.Sqrt(50.5)/0.5, 1e-6)
	if over := plain.Steady(m, 100, fleet.Limits{}, fleet.SLO{}, 0.5); !math.IsInf(over.TPOT, 1) {
		t.Errorf("TPOT at rho 1: %g", over.TPOT)
	}
}

func TestExpertsAreReadForPromptsToo(t *testing.T) {
	// 100 tokens of 0.1 ms, and a step of 20 ms for the prompt: 30 ms, 30 % of the
	// time at 10 a second. All experts are touched: T = (20 + 0.3)/0.7 = 29 ms.
	s := Step{Base: 10e-3, PerSeq: 0.1e-3, Experts: 10e-3, Touch: 0.5}
	got := s.Steady(Mix{Input: 1, Output: 100}, 10, fleet.Limits{}, fleet.SLO{}, 0.5)
	near(t, "rho", got.Rho, 0.3, 1e-9)
	near(t, "TPOT", got.TPOT, 29e-3, 1e-6)
	// A lone request: half of the experts, (15 + 0.3) ms.
	near(t, "TPOT alone", s.Steady(Mix{Input: 1, Output: 100}, 1e-6, fleet.Limits{}, fleet.SLO{}, 0.5).TPOT, 15.3e-3, 1e-4)
}

func TestWaitByHand(t *testing.T) {
	// A prompt of 1000 tokens of 0.1 ms: 100 ms, and 1000/2000 of a step of 10 ms:
	// service 105 ms. At 4 a second 42 % of the time; Poisson, all alike:
	// E[W] = 0.42·105/2/0.58 = 38.017 ms.
	s := Step{Base: 10e-3, PerPrompt: 0.1e-3}
	m := Mix{Input: 1000, Output: 1}
	l := fleet.Limits{BudgetTokens: 2000}
	got := s.Steady(m, 4, l, fleet.SLO{TTFT: 400 * time.Millisecond}, 0.9)
	near(t, "wait", got.Wait, 0.42*105e-3/2/0.58, 1e-9)
	// T = (10 + 100)/(1 − 0.4) = 183.3 ms, half of which is under way; then one
	// step of 10 ms and the prompt's 100: 198.3 ms are left to wait.
	left := 0.400 - 0.11/0.6/2 - 0.110
	near(t, "chance to meet the TTFT", got.TTFTMet, 1-0.42*math.Exp(-0.42*left/got.Wait), 1e-9)
	m.InputSCV, m.Burst = 1, 2
	near(t, "wait of bursts and unlike prompts", s.Steady(m, 4, l, fleet.SLO{}, 0.9).Wait, 3*got.Wait, 1e-9)
}

func TestCapacityByHand(t *testing.T) {
	m := Mix{Input: 1, Output: 100}
	// 1 − 10.1/20.2 of the time, of 10 ms each.
	rate, at, bound := Capacity(plain, m, fleet.Limits{}, fleet.SLO{TPOT: 20200 * time.Microsecond}, 0.5)
	near(t, "rate at 20.2 ms", rate, 50, 1e-6)
	near(t, "TPOT there", at.TPOT, 20.2e-3, 1e-6)
	if bound != LatencyBound {
		t.Errorf("bound by %v", bound)
	}
	// n = rate·100·10.1 ms/(1 − rate/100) = 20 at 16.53 a second.
	rate, at, bound = Capacity(plain, m, fleet.Limits{MaxSeqs: 20}, fleet.SLO{}, 0.5)
	near(t, "rate with 20 seats", rate, 20/(1.01+0.2), 1e-6)
	near(t, "sequences there", at.Seqs, 20, 1e-6)
	if bound != SeatBound {
		t.Errorf("bound by %v", bound)
	}
	// A sequence holds 51 tokens: 90 % of 11333 are 200 of them.
	rate, _, bound = Capacity(plain, m, fleet.Limits{KVTokens: 11333}, fleet.SLO{}, 0.5)
	near(t, "rate with KV for 200", rate, 11333*0.9/51/(1.01+11333*0.9/51/100), 1e-6)
	if bound != KVBound {
		t.Errorf("bound by %v", bound)
	}
	rate, _, bound = Capacity(plain, m, fleet.Limits{}, fleet.SLO{}, 0.5)
	near(t, "rate without targets", rate, 95, 1e-6)
	if bound != Overload {
		t.Errorf("bound by %v", bound)
	}
	for _, c := range []struct {
		slo  fleet.SLO
		want Regime
	}{{fleet.SLO{TPOT: 9 * time.Millisecond}, LatencyBound}, {fleet.SLO{TTFT: 5 * time.Millisecond}, PrefillBound}} {
		if rate, _, bound := Capacity(plain, m, fleet.Limits{}, c.slo, 0.9); rate != 0 || bound != c.want {
			t.Errorf("%+v: rate %g, %v", c.slo, rate, bound)
		}
	}
	if rate, _, _ := Capacity(Step{}, m, fleet.Limits{}, fleet.SLO{}, 0.9); rate != 0 {
		t.Errorf("an unknown step can do %g a second", rate)
	}
	prompts := Mix{Input: 4000, Output: 2}
	if _, _, bound := Capacity(Step{Base: 5e-3, PerPrompt: 50e-6}, prompts, fleet.Limits{}, fleet.SLO{TTFT: time.Second}, 0.9); bound != PrefillBound {
		t.Errorf("long prompts, short answers: bound by %v", bound)
	}
}

func TestCapacityFallsWithHarderTerms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawStep(t)
		m := Mix{
			Input: rapid.Float64Range(1, 20_000).Draw(t, "input"), Cached: rapid.Float64Range(0, 0.9).Draw(t, "cached"),
			Output: rapid.Float64Range(1, 4000).Draw(t, "output"), InputSCV: rapid.Float64Range(0, 2).Draw(t, "scv"),
		}
		l := fleet.Limits{KVTokens: fleet.Tokens(rapid.IntRange(50_000, 2_000_000).Draw(t, "kv")), MaxSeqs: rapid.IntRange(8, 512).Draw(t, "seats")}
		slo := fleet.SLO{TPOT: time.Duration(rapid.IntRange(10, 200).Draw(t, "tpot")) * time.Millisecond, TTFT: time.Duration(rapid.IntRange(100, 10_000).Draw(t, "ttft")) * time.Millisecond}
		rate, at, bound := Capacity(s, m, l, slo, 0.9)
		if rate < 0 || math.IsNaN(rate) || bound == Idle || bound == Linear {
			t.Fatalf("rate %g bound by %v", rate, bound)
		}
		if rate > 0 && (at.TPOTq > slo.TPOT.Seconds() || at.TTFTMet < 0.9 || at.Seqs > float64(l.MaxSeqs)) {
			t.Fatalf("at its capacity it breaks its terms: %+v", at)
		}
		harder := func(what string, got float64) {
			if got > rate*(1+1e-6) {
				t.Fatalf("%s: %g a second instead of %g", what, got, rate)
			}
		}
		strict := slo
		strict.TPOT /= 2
		r, _, _ := Capacity(s, m, l, strict, 0.9)
		harder("half the TPOT", r)
		r, _, _ = Capacity(s, m, l, slo, 0.99)
		harder("99 % instead of 90", r)
		small := l
		small.KVTokens /= 2
		r, _, _ = Capacity(s, m, small, slo, 0.9)
		harder("half the KV", r)
		r, _, _ = Capacity(s.Scale(2), m, l, slo, 0.9)
		harder("half the speed", r)
	})
}

func TestSaturationAndItsRegimes(t *testing.T) {
	slo := fleet.SLO{TPOT: 20 * time.Millisecond, TTFT: time.Second}
	l := fleet.Limits{KVTokens: 100_000, MaxSeqs: 256}
	for _, c := range []struct {
		now    Now
		want   float64
		regime Regime
	}{
		{Now{}, 0, Idle},
		{Now{Running: 25}, 0.2 / 0.5, Linear},            // 12.5 ms, of which 2.5 are theirs; half may be
		{Now{Running: 100}, 1, LatencyBound},             // 20 ms
		{Now{Running: 10, KV: 90_000}, 1, KVBound},       // nine tenths
		{Now{Running: 10, Wait: 1.5}, 1.5, PrefillBound}, // of 1 s
		{Now{Running: 300}, 1.5, LatencyBound},           // rho 0.75 of 0.5; seats 300/256
		{Now{Running: 300, KV: 180_000}, 2, KVBound},     // more than it holds
	} {
		got, regime := Saturation(plain, c.now, l, slo)
		near(t, c.regime.String(), got, c.want, 1e-9)
		if regime != c.regime {
			t.Errorf("%+v: %v, want %v", c.now, regime, c.regime)
		}
	}
	if got, regime := Saturation(plain, Now{Running: 256}, l, fleet.SLO{}); got != 1 || regime != SeatBound {
		t.Errorf("all seats taken: %g, %v", got, regime)
	}
	if got, regime := Saturation(plain, Now{Running: 2000}, fleet.Limits{}, fleet.SLO{}); got < 1 || regime != Overload {
		t.Errorf("2000 sequences: %g, %v", got, regime)
	}
	// All that was learnt is of prompts, and nothing decodes: no share is no number.
	if got, _ := Saturation(Step{PerPrompt: 1e-5}, Now{Waiting: 1, Prompts: 100}, fleet.Limits{}, fleet.SLO{}); got != got || got < 0 {
		t.Errorf("a step without a base: %v", got)
	}
	if got, _ := Saturation(Step{}, Now{Running: 128}, l, slo); got != 0.5 {
		t.Errorf("unknown step, half the seats: %g", got)
	}
}

func TestLockstepWaitsForTheSlowest(t *testing.T) {
	got := plain.Lockstep([]Work{{Seqs: 10}, {Seqs: 90}, {}}, 1e-3)
	near(t, "lockstep", got, 10e-3+9e-3+1e-3, 1e-9)
}
