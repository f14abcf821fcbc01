package route

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// Of two endpoints that have the same prompt, the one that has it on its GPU is
// taken; one that has to fetch it is better than one that has to compute it.
func TestAffinityKnowsWhatFetchingCosts(t *testing.T) {
	v := world(3)
	v.Cache = make([]fleet.Cached, 3)
	for i := range 3 {
		v.Step[i] = perf.Step{Base: 10e-3, PerPrompt: 50e-6}
	}
	v.Matched = []fleet.Tokens{8000, 8000, 0}
	v.Cache[0] = fleet.Cached{Tokens: 8000, CPU: 8000, Fetch: 40 * time.Millisecond}
	q := &Query{Prompt: 8100, Candidates: []int{0, 1, 2}}
	p := &Plan{Score: make([]float64, 3)}
	prefixAffinity{}.Pick(v, q, stat.NewRand(1, "t"), p)
	if p.Chosen != 1 || p.Score[0] <= p.Score[2] {
		t.Errorf("chosen %d, scores %v; want what is on the GPU, then what is in host memory", p.Chosen, p.Score)
	}
	q.Candidates = []int{0, 2}
	prefixAffinity{}.Pick(v, q, stat.NewRand(1, "t"), p)
	if p.Chosen != 0 {
		t.Errorf("chosen %d, scores %v", p.Chosen, p.Score)
	}
}
