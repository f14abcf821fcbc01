package route

import (
	"testing"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// holder is an endpoint that has the beginning of a prompt, slot 0, and one that
// has nothing, slot 1.
func holder(has fleet.Tokens) (*View, *Query, *Plan) {
	v, q, p := pair(8000, 0)
	v.Matched[0] = has
	v.Cache = []fleet.Cached{{Ready: has}, {}}
	v.Load[1] = perf.Load{}
	v.Busy = make([]float64, 2)
	q.Candidates, q.Prefills, q.Sources = []int{0, 1}, nil, []int{0, 1}
	return v, q, p
}

func TestFetchesWhereItPays(t *testing.T) {
	busy := perf.Load{Ahead: 10, Backlog: 60_000, Pairs: 10 * 18e6, Decoding: 40, Active: 100_000, KVTokens: 300_000}
	for _, x := range []struct {
		name   string
		has    fleet.Tokens
		tune   func(*View, *Query)
		chosen int
		pull   bool
	}{
		{name: "the holder is idle", has: 7000},
		{name: "the holder is busy", has: 7000, tune: func(v *View, _ *Query) { v.Load[0] = busy }, chosen: 1, pull: true},
		{name: "there is hardly anything to fetch", has: 60, tune: func(v *View, _ *Query) { v.Load[0] = busy }, chosen: 1},
		{name: "the link is slower than computing", has: 7000, chosen: 1, tune: func(v *View, _ *Query) { v.Load[0] = busy; v.Wire[0].PerToken = 1e-3 }},
		{name: "much is asked of the link", has: 7000, chosen: 1, tune: func(v *View, _ *Query) { v.Load[0] = busy; v.Asked[0] = 5 }},
		{name: "the link is never free", has: 7000, chosen: 1, tune: func(v *View, _ *Query) { v.Load[0] = busy; v.Wire[0].PerToken = 50e-6; v.Busy[0] = 1 }},
		{name: "another connector", has: 7000, chosen: 1, tune: func(v *View, _ *Query) { v.Load[0] = busy; v.Connector[0] = 9 }},
		{name: "nobody may be asked", has: 7000, chosen: 1, tune: func(v *View, q *Query) { v.Load[0] = busy; q.Sources = nil }},
		{name: "the holder cannot take more, and gives", has: 7000, chosen: 1, pull: true, tune: func(_ *View, q *Query) { q.Candidates = []int{1} }},
	} {
		v, q, p := holder(x.has)
		if x.tune != nil {
			x.tune(v, q)
		}
		new(predictive).Pick(v, q, stat.NewRand(1, "t"), p)
		if p.Chosen != x.chosen || (p.Source == 0) != x.pull {
			t.Errorf("%s: chosen %d, source %d; whole %+v, pull %+v", x.name, p.Chosen, p.Source, p.Whole, p.Pull)
		}
		if x.pull && (p.Pull.Cost >= p.Whole.Cost || p.Pull.Move <= 0 || p.Pull.TTFT < p.Pull.Move) {
			t.Errorf("%s: whole %+v, pull %+v", x.name, p.Whole, p.Pull)
		}
	}
}

// Of two that have the same, the one is asked whose link is free; of two free
// ones, the one that has more.
func TestAsksWhoGivesMostSoonest(t *testing.T) {
	v, q, _ := holder(7000)
	v.Cache[1].Ready = 7000
	v.Asked[0] = 0.2
	if s := source(v, q); s != 1 {
		t.Errorf("asked %d, whose link is taken", s)
	}
	v.Asked[0], v.Cache[1].Ready = 0, 3000
	if s := source(v, q); s != 0 {
		t.Errorf("asked %d, which has less", s)
	}
}

// The tokens from which on fetching takes less than computing, as predicted, are
// those of the closed form L/(1/R - b/B), where computing takes time in
// proportion to tokens.
func TestCrossoverAgreesWithTheClosedForm(t *testing.T) {
	const latency, rate, bytes = 0.010, 15_926.0, 262_144.0
	for _, x := range []struct {
		link float64 // bytes per second
		want float64 // tokens; 0 for never
	}{{2.5e9, 0}, {12.5e9, 10e-3 / (1/rate - bytes/12.5e9)}, {50e9, 10e-3 / (1/rate - bytes/50e9)}} {
		crossover := 0.0
		for n := fleet.Tokens(32); n <= 32_768; n++ {
			v, q, _ := holder(n)
			v.Step[1] = perf.Step{Base: 0, PerPrompt: 1 / rate}
			q.Prompt = n + 1
			v.Wire[0] = fleet.Link{Latency: latency, PerToken: bytes / x.link}
			compute := v.Step[1].FirstToken(&v.Load[1], 0, n+1)
			o := Option{Slot: 1, Prefill: NoSlot, Source: 0, Move: fetchTime(v, 0, n)}
			if fetchedTokenAt(v, q, &o) < compute {
				crossover = float64(n)
				break
			}
		}
		if crossover < x.want*0.98 || crossover > x.want*1.02 {
			t.Errorf("at %.1f GB/s fetching pays from %.0f tokens on, want %.0f", x.link/1e9, crossover, x.want)
		}
	}
}

func TestFetchingAllocatesNothing(t *testing.T) {
	v, q, p := holder(7000)
	policy, r := new(predictive), stat.NewRand(1, "t")
	policy.Pick(v, q, r, p)
	if n := testing.AllocsPerRun(100, func() { p.Reset(); policy.Pick(v, q, r, p) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
