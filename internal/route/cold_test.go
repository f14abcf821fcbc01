package route

import (
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// dealt is how often each of n idle endpoints gets one of so many prompts, of which
// nobody has anything, while the first has always least to do; found is what was
// found of prompts before.
func dealt(v *View, n, prompts int, found float64) []int {
	p := &predictive{asked: 1000, found: found}
	q := Query{Prompt: 1000, Output: 100}
	for c := range n {
		q.Candidates = append(q.Candidates, c)
	}
	got := make([]int, n)
	r := stat.NewRand(1, "ties")
	for range prompts {
		out := Plan{Score: make([]float64, n), Chosen: NoSlot}
		p.Pick(v, &q, r, &out)
		got[out.Chosen]++
	}
	return got
}

// TestColdPromptsAreDealt: what will be found again is given to equals evenly, even
// where one has a little less to do; what will not, and where endpoints differ, goes
// where it costs least.
func TestColdPromptsAreDealt(t *testing.T) {
	busy := func() *View {
		v := priced(4)
		for c := range 4 {
			v.Told[c] = plainStep
			v.Load[c].Decoding = 2
		}
		v.Load[0].Decoding = 0
		return v
	}
	// A few that are found again while cold ones come make the reuse.
	if got := dealt(busy(), 4, 40, 900); got[0] != 10 || got[1] != 10 || got[2] != 10 || got[3] != 10 {
		t.Errorf("found again: dealt %v, want ten each", got)
	}
	if got := dealt(busy(), 4, 40, 0); got[0] != 40 {
		t.Errorf("never found again: dealt %v, want all to the first", got)
	}
	other := busy()
	other.Told[3] = plainStep.Scale(2)
	if got := dealt(other, 4, 40, 900); got[0] != 40 {
		t.Errorf("with another kind among them: dealt %v, want all to the first", got)
	}
	far := busy()
	for c := 1; c < 4; c++ {
		far.Load[c].Decoding, far.Load[c].Ahead, far.Load[c].Backlog = 40, 20, fleet.Tokens(40_000)
	}
	if got := dealt(far, 4, 40, 900); got[0] != 40 {
		t.Errorf("where others cost far more: dealt %v, want all to the first", got)
	}
	p := &predictive{}
	p.cold.given = []float64{5, 6}
	p.Leave(1)
	if p.cold.given[0] != 5 || p.cold.given[1] != 0 {
		t.Errorf("after slot 1 left: %v", p.cold.given)
	}
}
