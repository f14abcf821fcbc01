package perf

import (
	"math"
	"testing"
)

// What prompts take and how many endpoints compute them says how many spill over:
// fewer where those that wait share steps, none where there is time for all.
func TestPromptsSpillOver(t *testing.T) {
	step := Step{Base: 10e-3, PerSeq: 50e-6, PerKV: 10e-9, PerPrompt: 20e-6, PerRequest: 5e-3}
	m := Stream{Rate: 30, Prompt: 2000, Uncached: 2000, Output: 200} // 50 ms of an endpoint alone
	for _, c := range []struct {
		prefills, share, spilt float64
	}{
		{4, 0, 0},
		{1, 0, 1 - 0.97/1.5},
		{1, 4, 1 - 0.97/1.275}, // three quarters of the 10 ms are saved
		{1, 1, 1 - 0.97/1.5},
	} {
		m.Share = c.share
		got := step.Split(m, c.prefills, 4, &step, 0, 0)
		if math.Abs(got.Spilt-c.spilt) > 1e-9 {
			t.Errorf("%v endpoints, %v prompts to a step: %.3f spill over, want %.3f", c.prefills, c.share, got.Spilt, c.spilt)
		}
	}
	all, none := step.Split(m, 1, 4, &step, 0, 0), step.Split(m, 4, 4, &step, 0, 0)
	if all.TPOT <= none.TPOT {
		t.Errorf("tokens take %.4f s beside prompts that spill over, %.4f s beside none", all.TPOT, none.TPOT)
	}
}
