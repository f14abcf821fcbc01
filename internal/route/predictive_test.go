package route

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// plain is a step whose costs can be worked out by hand: 10 ms a step, 0.1 ms a
// prompt token, 0.1 ms a sequence.
var plainStep = perf.Step{Base: 10e-3, PerSeq: 0.1e-3, PerPrompt: 0.1e-3}

func priced(n int) *View {
	v := world(n)
	for i := range n {
		v.Step[i] = plainStep
		v.Load[i] = perf.Load{TTFTSpread: 0.3, TPOTSpread: 0.1, Budget: 100_000, MaxSeqs: 256, KVTokens: 300_000}
	}
	return v
}

func TestPredictiveCostByHand(t *testing.T) {
	ask := Query{Prompt: 1000, Output: 100}
	const reuse = 1
	for _, c := range []struct {
		name string
		set  func(v *View)
		q    Query
		want float64 // s
	}{
		// TTFT 10 ms + 1,000 x 0.1 ms = 0.11; 100 tokens of 10.1 ms = 1.01.
		{"idle", func(*View) {}, ask, 0.11 + 1.01},
		// All but 100 tokens cached: TTFT 0.02, prefill 0.01.
		{"mostly cached", func(v *View) { v.Matched[0] = 900 }, ask, 0.02 + 1.01},
		// 10 decode: a step takes 11 ms. TTFT: half a step 5.5 + 11 + 100 ms; TPOT 11.1
		// ms. Each of the 10 waits for the prefill of 100 ms and, half done, for 50
		// steps that are 0.1 ms longer: 10 x 0.105 s. The cache is 1,000 of 300,000 full: 1/300 of the
		// prefill will be needed again.
		{"ten decoding", func(v *View) { v.Load[0].Decoding = 10 }, ask, 0.1165 + 1.11 + 10*0.105 + 10*0.1/300},
		// A full cache, of which each token is found again once: the prefill counts twice.
		{
			"ten decoding, full cache", func(v *View) { v.Load[0].Decoding, v.Cached[0] = 10, 300_000 }, ask,
			0.1165 + 1.11 + 10*(0.2+0.005),
		},
		// 2,000 tokens ahead of one request: 10 + 200 ms, then 10 + 100 ms; the one
		// ahead waits for the prefill when it decodes, and for 50 steps of 0.1 ms.
		{
			"behind another", func(v *View) { v.Load[0].Ahead, v.Load[0].Backlog = 1, 2000 }, ask,
			0.21 + 0.11 + 1.01 + 0.105 + 0.1/300,
		},
		// Twice as slow an accelerator.
		{"slow", func(v *View) { v.Step[0] = plainStep.Scale(2) }, ask, 2 * (0.11 + 1.01)},
		// Prompts take half its time: TPOT doubles where one surely comes, and one
		// request is expected to wait behind this prompt.
		{
			"half taken by prompts", func(v *View) { v.Load[0].Prefill, v.Load[0].Arrivals = 0.5, 1e6 }, ask,
			0.11 + 2.02 + 0.1 + 0.1/300,
		},
	} {
		v := priced(1)
		c.set(v)
		c.q.Candidates = all(1)
		if got := cost(v, &c.q, 0, reuse); math.Abs(got-c.want) > 1e-6 {
			t.Errorf("%s: cost %.6f s, want %.6f", c.name, got, c.want)
		}
	}
}

func TestPredictiveMeetsTheSLOFirst(t *testing.T) {
	v := priced(2)
	// Endpoint 0 has the prompt cached but 40 sequences: tokens at 14.1 ms.
	// Endpoint 1 is idle and computes it all: tokens at 10.1 ms.
	v.Matched[0] = 1900
	v.Load[0].Decoding = 40
	q := Query{Prompt: 2000, Output: 50, SLO: fleet.SLO{TPOT: 12 * time.Millisecond}}
	if p := pick(t, &predictive{}, v, q); p.Chosen != 1 {
		t.Errorf("chose %d, which cannot keep 12 ms per token: scores %v", p.Chosen, p.Score)
	}
	// A target for the first token that only the cache can meet.
	v.Load[0].Decoding = 2
	q.SLO = fleet.SLO{TTFT: 100 * time.Millisecond}
	if p := pick(t, &predictive{}, v, q); p.Chosen != 0 {
		t.Errorf("chose %d, which needs 210 ms to the first token: scores %v", p.Chosen, p.Score)
	}
}

func TestPredictiveLeavesRoomForThoseWhoAreThere(t *testing.T) {
	v := priced(2)
	// At 0, twenty answers just keep 13 ms per token, and a long prompt would
	// break all of their promises; at 1 it must wait longer itself.
	v.Load[0].Decoding = 20
	v.Load[1].Ahead, v.Load[1].Backlog = 1, 5000
	q := Query{Prompt: 8000, Output: 20, SLO: fleet.SLO{TTFT: 5 * time.Second, TPOT: 13 * time.Millisecond}}
	if p := pick(t, &predictive{}, v, q); p.Chosen != 1 {
		t.Errorf("chose %d over the one where nobody decodes: scores %v", p.Chosen, p.Score)
	}
}

func TestPredictiveSpreadsNearTies(t *testing.T) {
	v, r := priced(4), stat.NewRand(1, "route")
	v.Step[3] = plainStep.Scale(1.3)
	v.Step[1] = plainStep.Scale(1.002) // less than any prediction is good for
	hits, p := make([]int, 4), &predictive{}
	q := Query{Prompt: 1000, Output: 100, Candidates: all(4)}
	out := Plan{Score: make([]float64, 4)}
	for range 3000 {
		p.Pick(v, &q, r, &out)
		hits[out.Chosen]++
	}
	for i, want := range []int{1000, 1000, 1000, 0} {
		if math.Abs(float64(hits[i]-want)) > 120 {
			t.Errorf("endpoint %d got %d of 3,000, want about %d", i, hits[i], want)
		}
	}
}

func TestPredictiveWithoutAnyBelief(t *testing.T) {
	v := world(3)
	v.Matched[2] = 900
	if p := pick(t, &predictive{}, v, Query{Prompt: 1000, Output: 100}); p.Chosen != 2 {
		t.Errorf("chose %d, not the one with the prompt cached", p.Chosen)
	}
	v.Load[2].Ahead, v.Load[2].Backlog = 3, 60_000
	if p := pick(t, &predictive{}, v, Query{Prompt: 1000, Output: 100}); p.Chosen == 2 {
		t.Error("chose the one with a backlog of 60,000 tokens")
	}
}

// The cost must not fall when an endpoint gets busier.
func TestPredictiveCostGrowsWithLoad(t *testing.T) {
	q := Query{Prompt: 3000, Output: 200, SLO: fleet.SLO{TTFT: time.Second, TPOT: 30 * time.Millisecond}}
	for name, more := range map[string]func(v *View, k int){
		"decoding": func(v *View, k int) { v.Load[0].Decoding, v.Load[0].Active = 4*k, fleet.Tokens(4000*k) },
		"backlog":  func(v *View, k int) { v.Load[0].Ahead, v.Load[0].Backlog = k, fleet.Tokens(1500*k) },
		"prompts":  func(v *View, k int) { v.Load[0].Prefill, v.Load[0].Arrivals = 0.03*float64(k), 0.1*float64(k) },
		"cache":    func(v *View, k int) { v.Cached[0] = fleet.Tokens(10_000 * k) },
		"speed":    func(v *View, k int) { v.Step[0] = plainStep.Scale(1 + 0.1*float64(k)) },
	} {
		last := 0.0
		for k := range 30 {
			v := priced(1)
			more(v, k)
			c := cost(v, &q, 0, 1)
			if c < last-1e-9 {
				t.Errorf("%s: cost falls from %.4f to %.4f at %d", name, last, c, k)
			}
			last = c
		}
	}
}
