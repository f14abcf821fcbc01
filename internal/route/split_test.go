package route

import (
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// pair is a prefill endpoint, slot 0, and a decode endpoint, slot 1.
func pair(prompt, matched fleet.Tokens) (*View, *Query, *Plan) {
	step := perf.Step{Base: 14e-3, PerSeq: 50e-6, PerKV: 57e-9, PerPrompt: 60e-6, PerPair: 3e-9}
	v := &View{
		ID: []fleet.EndpointID{1, 2}, KVTokens: []fleet.Tokens{300_000, 300_000}, Cached: make([]fleet.Tokens, 2), Matched: []fleet.Tokens{0, matched},
		Adapter: make([]fleet.AdapterFit, 2), Step: []perf.Step{step, step}, Told: make([]perf.Step, 2), Load: make([]perf.Load, 2),
		Connector: []uint64{1, 1}, Wire: []fleet.Link{{Latency: 0.01, PerToken: 4e-6}, {Latency: 0.01, PerToken: 4e-6}}, Asked: make([]float64, 2),
	}
	v.Load[1] = perf.Load{Decoding: 20, Active: 40_000, KVTokens: 300_000}
	q := &Query{Prompt: prompt, Output: 200, Candidates: []int{1}, Prefills: []int{0}}
	p := &Plan{Score: make([]float64, 2)}
	p.Reset()
	return v, q, p
}

func TestSplitsWhereItPays(t *testing.T) {
	for _, x := range []struct {
		name            string
		prompt, matched fleet.Tokens
		tune            func(*View)
		split           bool
	}{
		{name: "a long prompt beside many answers", prompt: 6000, split: true},
		{name: "a short one", prompt: 60},
		{name: "a long one that is there already", prompt: 6000, matched: 5950},
		{name: "no way to move it", prompt: 6000, tune: func(v *View) { v.Connector[0] = 2 }},
		{name: "KV that the other cannot use", prompt: 6000, tune: func(v *View) { v.Barred = []Slots{nil, Slots{}.With(0)} }},
		{name: "a slow link", prompt: 6000, tune: func(v *View) { v.Wire[0].PerToken = 3e-3 }},
		{name: "a link with much to move", prompt: 6000, tune: func(v *View) { v.Asked[0] = 20 }},
		{name: "prompts waiting at the prefill endpoint", prompt: 6000, tune: func(v *View) {
			v.Load[0] = perf.Load{Ahead: 40, Backlog: 240_000, Pairs: 40 * 18e6}
		}},
	} {
		v, q, p := pair(x.prompt, x.matched)
		if x.tune != nil {
			x.tune(v)
		}
		new(predictive).Pick(v, q, stat.NewRand(1, "t"), p)
		if split := p.Prefill == 0; split != x.split || p.Chosen != 1 {
			t.Errorf("%s: chosen %d, prefill %d; whole %+v, split %+v", x.name, p.Chosen, p.Prefill, p.Whole, p.Split)
		}
	}
}

// Endpoints that can do both all serve whole while little is asked of them, and
// part of them lean to prompts when prompts hold up answers.
func TestEndpointsLean(t *testing.T) {
	const n = 16
	step := perf.Step{Base: 5e-3, PerSeq: 150e-6, PerKV: 40e-9, PerPrompt: 25e-6, PerPair: 1e-9}
	leaning := func(rate float64) int {
		v := &View{}
		q := &Query{Prompt: 5000, Output: 250}
		for i := range n {
			v.ID, v.Step, v.Connector = append(v.ID, fleet.EndpointID(i+1)), append(v.Step, step), append(v.Connector, 1)
			v.Told, v.Load = append(v.Told, step), append(v.Load, perf.Load{})
			v.KVTokens, v.Wire = append(v.KVTokens, 500_000), append(v.Wire, fleet.Link{Latency: 0.01, PerToken: 1e-6})
			q.Candidates, q.Prefills = append(q.Candidates, i), append(q.Prefills, i)
		}
		var l lean
		r := stat.NewRand(1, "lean")
		for i := range 6000 {
			q.Now = fleet.Time(float64(i) / rate * float64(time.Second))
			meets(v, &step, &l, rate, r)
			l.note(q, 0)
			l.think(v, q)
			l.meter.chose(l.prefills > 0)
		}
		if got := len(l.answering(q, nil)); got != n-l.prefills {
			t.Errorf("%d endpoints answer beside %d that lean", got, l.prefills)
		}
		return l.prefills
	}
	if got := leaning(5); got != 0 {
		t.Errorf("%d endpoints lean under a load that all serve well whole", got)
	}
	if got := leaning(50); got < 5 || got > 11 {
		t.Errorf("%d of %d endpoints lean to prompts, want about half", got, n)
	}
}

// meets sets v to what a request of 5000 tokens in and 250 out meets on average
// while as many endpoints lean to prompts as l has dealt.
func meets(v *View, step *perf.Step, l *lean, rate float64, r *stat.Rand) {
	n, x := float64(len(v.ID)), float64(l.prefills)
	m := perf.Stream{Rate: rate, Prompt: 5000, Uncached: 5000, Output: 250}
	served := step.Whole(m, n, 500_000)
	if x > 0 {
		served = step.Split(m, x, n-x, step, 0.015, 500_000)
	}
	busy := rate * step.Prompt(5000, 5000*2500) / max(x, 1)
	for c := range v.ID {
		v.Load[c] = perf.Load{Decoding: int(rate*250*served.TPOT/(n-x) + r.Float64())}
		if c < len(l.is) && l.is[c] {
			v.Load[c] = perf.Load{}
			if r.Float64() < busy {
				v.Load[c].Ahead = 1
			}
		}
	}
}

func TestSplittingAllocatesNothing(t *testing.T) {
	v, q, p := pair(6000, 0)
	policy, r := new(predictive), stat.NewRand(1, "t")
	if n := testing.AllocsPerRun(100, func() { p.Reset(); policy.Pick(v, q, r, p) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// When the cheapest slots of both kinds cannot exchange KV, the best pair that can
// is found all the same.
func TestPairsThatCannotExchangeArePassedOver(t *testing.T) {
	const n = 12
	v, q, p := pair(6000, 0)
	grow := func() {
		v.ID, v.KVTokens, v.Cached, v.Matched = append(v.ID, fleet.EndpointID(len(v.ID)+1)), append(v.KVTokens, 300_000), append(v.Cached, 0), append(v.Matched, 0)
		v.Adapter, v.Step, v.Load = append(v.Adapter, 0), append(v.Step, v.Step[0]), append(v.Load, perf.Load{})
		v.Connector, v.Wire, v.Asked = append(v.Connector, 1), append(v.Wire, v.Wire[0]), append(v.Asked, 0)
		v.Told = append(v.Told, v.Told[0])
	}
	for len(v.ID) < n {
		grow()
	}
	p.Score, v.Barred = make([]float64, n), make([]Slots, n)
	q.Prefills, q.Candidates = nil, nil
	for i := range n {
		// The first half computes prompts. Only the busiest of them can serve the
		// busiest of the others.
		if i < n/2 {
			q.Prefills = append(q.Prefills, i)
			v.Load[i] = perf.Load{Ahead: i, Backlog: fleet.Tokens(300 * i)}
			continue
		}
		q.Candidates = append(q.Candidates, i)
		v.Load[i] = perf.Load{Decoding: 20 + i, Active: 40_000, KVTokens: 300_000}
		for pre := range n / 2 {
			if i != n-1 || pre != n/2-1 {
				v.Barred[i] = v.Barred[i].With(pre)
			}
		}
	}
	new(predictive).Pick(v, q, stat.NewRand(1, "t"), p)
	if p.Split.Slot != n-1 || p.Split.Prefill != n/2-1 {
		t.Errorf("split: %+v", p.Split)
	}
	if p.Prefill != NoSlot && !v.Hands(p.Prefill, p.Chosen) {
		t.Errorf("prompt at %d, answer at %d", p.Prefill, p.Chosen)
	}
}
