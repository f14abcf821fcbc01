package sim

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/route"
	"penstock.dev/penstock/internal/stat"
	"penstock.dev/penstock/internal/workload"
)

// recorder keeps what the clairvoyant rule was shown.
type recorder struct {
	rule route.Policy
	step perf.Step
	load perf.Load
	q    route.Query
	view route.View
}

func (p *recorder) Pick(v *route.View, q *route.Query, r *stat.Rand, out *route.Plan) {
	p.rule.Pick(v, q, r, out)
	p.step, p.load, p.q, p.view = v.Step[out.Chosen], v.Load[out.Chosen], *q, *v
}

func TestTheClairvoyantIsTold(t *testing.T) {
	c := quiet(t, 1, Clairvoyant)
	p := &recorder{}
	r := &run{c: c}
	var ended []Outcome
	r.c.Ended = func(o Outcome) { ended = append(ended, o) }
	if err := r.openGateways(); err != nil {
		t.Fatal(err)
	}
	knower := r.gateways[0].policy.(*clairvoyant)
	p.rule, knower.rule = knower.rule, p
	load := &stages{}
	for i := range 2 {
		load.left = append(load.left, workload.Request{
			Index: i, At: time.Duration(i) * 3 * time.Second, After: workload.NoRequest,
			Prompt: []workload.Segment{{ID: 1, Tokens: 3200}, {ID: uint64(2 + i), Tokens: 800}}, Input: 4000, Output: 300 + i,
		})
	}
	if _, err := r.all(load); err != nil {
		t.Fatal(err)
	}
	// The second met the first, which was decoding, and its prefix.
	last := ended[0]
	if ended[1].Start > last.Start {
		last = ended[1]
	}
	if p.q.Output != 301 || p.view.Matched[0] != 3200 || p.load.Decoding != 1 || p.load.Ahead != 0 || p.load.Output != 300 {
		t.Errorf("told of %d output, %d matched, %+v", p.q.Output, p.view.Matched[0], p.load)
	}
	if want := fleet.Tokens(4000 + 190); p.load.Active < want-60 || p.load.Active > want+60 {
		t.Errorf("told of %d tokens of context, about %d are there", p.load.Active, want)
	}
	ttft := p.step.FirstToken(&p.load, 3200, 800)
	if got := last.First.Sub(last.Start).Seconds(); math.Abs(ttft-got) > 0.02 {
		t.Errorf("first token after %v s, foreseen %v: want them apart by at most half a step", got, ttft)
	}
	tpot := p.step.PerToken(&p.load, 4000, 301)
	if got := last.End.Sub(last.First).Seconds() / 300; math.Abs(tpot-got) > 0.05*got {
		t.Errorf("time per token %v s, foreseen %v", got, tpot)
	}
}

func TestTheClairvoyantSeesWhatNobodyTells(t *testing.T) {
	// Half of the fleet takes three times as long; gateways believe all are equal.
	c := qwen(t, 4, "predictive")
	for i := range 2 {
		c.Replicas[i].Physics.(*enginesim.Roofline).Factor = 3
	}
	c.Targets = Targets{TTFT: 500 * time.Millisecond, TPOT: 40 * time.Millisecond}
	blind := mustRun(t, c, shared(60, 24, 90*time.Second))
	c.Pool.Policy.Name = Clairvoyant
	seeing := mustRun(t, c, shared(60, 24, 90*time.Second))
	if seeing.TTFT.Mean() > 0.85*blind.TTFT.Mean() {
		t.Errorf("mean TTFT %v when all is known, %v when it must be learnt", time.Duration(seeing.TTFT.Mean()), time.Duration(blind.TTFT.Mean()))
	}
	if _, err := route.New(route.Spec{Name: Clairvoyant}); err == nil {
		t.Error("a gateway can have it")
	}
}
