package perf

import (
	"math"
	"testing"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// legs is an endpoint that computes prompts for others, some in one step, and takes
// as long as takes says.
type legs struct {
	book  *Book
	now   fleet.Time
	takes func(prompt, pairs float64) float64
}

// step has prompts computed in one step; each is closed as its own answer comes.
func (s *legs) step(prompts ...fleet.Tokens) {
	jobs := make([]Job, len(prompts))
	var l Load
	prompt, pairs := 0.0, 0.0
	for i, p := range prompts {
		s.book.Load(s.now, 0, 0, UsageUnknown, &l)
		s.book.Sent(s.now, 0, Ask{Prompt: p}, 0, &l, &jobs[i])
		prompt, pairs = prompt+float64(p), pairs+Pairs(0, p)
	}
	s.now = s.now.Add(seconds(s.takes(prompt, pairs)))
	for i := range jobs {
		s.book.Prefilled(s.now, &jobs[i], fleet.Usage{Known: true, Output: 1})
		s.now = s.now.Add(100 * time.Microsecond) // one answer after the other
	}
	s.now = s.now.Add(time.Second)
}

// wantSteps compares what is believed of prompts with what they take.
func (s *legs) wantSteps(t *testing.T, within float64, prompts ...fleet.Tokens) {
	t.Helper()
	for _, p := range prompts {
		want := s.takes(float64(p), Pairs(0, p))
		got := s.book.StepAt(0).FirstToken(&Load{Budget: 8192}, 0, p)
		if e := got/want - 1; math.Abs(e) > within {
			t.Errorf("%d tokens: %.1f ms, take %.1f: %+.0f %%", p, 1e3*got, 1e3*want, 100*e)
		}
	}
}

// mixture is a mixture of experts as its data sheet has it.
var mixture = Step{
	Base: 3e-3, PerSeq: 25e-6, PerKV: 8e-9, PerPrompt: 6e-6, PerPair: 2e-9, Experts: 18e-3, Touch: 0.03, PerRequest: 5e-3,
	Shadow: 3500, // 21 ms of weights
}

// Weights are read while prompts are computed. When those take five times as long as
// the data sheet has it, fewer of their tokens fit in that time, which no parameter
// of a linear form tells.
func TestAnotherShadowTakesOver(t *testing.T) {
	b, _ := rig(mixture, mixture)
	s := legs{book: b, takes: func(prompt, pairs float64) float64 {
		return 5e-3 + 3e-3 + max(18e-3, 30e-6*prompt) + 2e-9*pairs
	}}
	r := stat.NewRand(1, "prompts")
	for range 300 {
		s.step(fleet.Tokens(100 + r.IntN(1900)))
	}
	if got := b.StepAt(0).Shadow; got > 1000 {
		t.Errorf("%.0f tokens are taken to be in the shadow of the weights; 600 are", got)
	}
	s.wantSteps(t, 0.15, 200, 500, 1000, 1900)
}

// One that explains what comes keeps its place.
func TestTheToldShadowStays(t *testing.T) {
	b, _ := rig(mixture, mixture)
	s := legs{book: b, takes: func(prompt, _ float64) float64 {
		return mixture.FirstToken(&Load{Budget: 8192}, 0, fleet.Tokens(prompt))
	}}
	r := stat.NewRand(1, "prompts")
	for range 300 {
		s.step(fleet.Tokens(100 + r.IntN(7000)))
	}
	if got := b.StepAt(0).Shadow; got != mixture.Shadow {
		t.Errorf("a shadow of %.0f tokens, want that of the prior, %.0f", got, mixture.Shadow)
	}
	s.wantSteps(t, 0.05, 200, 1000, 3000, 7000)
}

// The prompts of a step tell of it together, though each is closed as its first token
// comes, and is not known then to share the step: the first to come would look as slow
// as all of them.
func TestPromptsOfOneStepTellTogether(t *testing.T) {
	prior := Step{Base: 15e-3, PerPrompt: 50e-6, PerPair: 1e-12, PerRequest: 5e-3}
	b, _ := rig(prior, prior)
	s := legs{book: b, takes: func(prompt, _ float64) float64 { return 5e-3 + 20e-3 + 30e-6*prompt }}
	for i := range 200 {
		s.step(500)
		s.step(500, 500, 500)
		if i%4 == 0 {
			s.step(2000, 500)
		}
	}
	s.wantSteps(t, 0.05, 250, 500, 1500, 2500)
}

// A step that also brings the first token of a request that stays does not tell what
// its prompts took before that request has ended.
func TestStepsSharedWithOthersTellNothing(t *testing.T) {
	prior := Step{Base: 15e-3, PerPrompt: 50e-6, PerPair: 1e-12, PerRequest: 5e-3}
	b, _ := rig(prior, prior)
	var l Load
	now := fleet.Time(0)
	for range 50 {
		var leg, whole Job
		b.Load(now, 0, 0, UsageUnknown, &l)
		b.Sent(now, 0, Ask{Prompt: 500}, 0, &l, &leg)
		b.Sent(now, 0, Ask{Prompt: 4000}, 0, &l, &whole)
		now = now.Add(300 * time.Millisecond)
		b.Prefilled(now, &leg, fleet.Usage{Known: true, Output: 1})
		b.First(now, &whole)
		now = now.Add(time.Second)
		b.Drop(now, &whole)
	}
	if got := b.Standing(0).Lessons; got != 0 {
		t.Errorf("%d lessons of steps of which half is not known", got)
	}
}

func BenchmarkBookOfMixture(b *testing.B) {
	book, _ := rig(mixture, mixture)
	benchmark(b, book)
}
