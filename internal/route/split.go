package route

import (
	"math"
	"slices"

	"penstock.dev/penstock/internal/perf"
)

const (
	// fewPairs is how many prefill and how many decode slots, the best by their own
	// part of the cost, are paired.
	fewPairs = 3

	// splitGain is by what share a split must be cheaper than serving whole: it has
	// more that can go wrong.
	splitGain = 0.02

	// bothGain is the same where the one that computes the prompt could answer as well.
	bothGain = 0.1

	// leantGain is the same where endpoints lean to prompts: they have been left free
	// of answers, and the others of prompts, for requests to be split.
	leantGain = -0.25
)

// compare puts the best pair of slots that serve q split beside the best slot that
// serves it whole, which out has chosen, and takes the cheaper. The cost of a pair
// is
//
//	TTFT at P + moving the KV + a step at D + output·TPOT at D
//	+ others at P·work + followers at P·work + others at D·output/2·longer steps
//	+ misses·allowed
//
// as serving whole costs, but that the prompt delays those at P and the answer
// those at D.
func (p *predictive) compare(v *View, q *Query, reuse float64, out *Plan) {
	c := out.Chosen
	now := -out.Score[c]
	if len(q.Prefills) == 0 {
		return
	}
	if out.Pull.Slot == NoSlot {
		out.Whole = Option{Slot: c, Prefill: NoSlot, Source: NoSlot, TTFT: firstTokenAt(v, q, c), Cost: now}
	}
	s := splitter{v: v, q: q, reuse: reuse, output: float64(max(q.Output, 1))}
	best := s.bestPair(s.best(q.Prefills, s.prefillCost), s.best(q.Candidates, s.decodeCost))
	if best.Slot == NoSlot && s.barred() {
		// The best of both kinds cannot exchange KV, and others may.
		for _, dec := range q.Candidates {
			takes := func(pre int) float64 {
				if !v.Hands(pre, dec) {
					return math.Inf(1)
				}
				return s.prefillCost(pre)
			}
			if o := s.bestPair(s.best(q.Prefills, takes), [fewPairs]int{dec, NoSlot, NoSlot}); o.Cost < best.Cost {
				best = o
			}
		}
	}
	if best.Slot == NoSlot {
		return
	}
	out.Split = best
	gain := splitGain
	switch {
	case p.lean.prefills > 0:
		gain = leantGain
	case slices.Contains(q.Candidates, best.Prefill):
		gain = bothGain
	}
	if best.Cost < now*(1-gain) {
		out.Chosen, out.Prefill, out.Source = best.Slot, best.Prefill, NoSlot
		out.Score[best.Slot] = -best.Cost
	}
}

// firstTokenAt is the predicted time to the first token of q served whole at c, in
// seconds.
func firstTokenAt(v *View, q *Query, c int) float64 {
	cached := min(v.Matched[c], q.Prompt)
	return stepOf(v, c).FirstToken(&v.Load[c], cached, max(q.Prompt-cached, 1)) + stepOf(v, c).PerPrompt*adapterCost(v.Adapter[c])
}

// stepOf is the belief of a slot's step, or a guess.
func stepOf(v *View, c int) *perf.Step {
	if s := &v.Step[c]; s.Known() {
		return s
	}
	guess := perf.Guess()
	return &guess
}

// splitter works out what pairs of slots cost.
type splitter struct {
	v             *View
	q             *Query
	reuse, output float64
}

// barred reports whether some slot that can answer cannot use what another one of
// the same connector has computed.
func (s *splitter) barred() bool {
	for i := range s.v.Barred {
		if len(s.v.Barred[i]) > 0 {
			return true
		}
	}
	return false
}

// bestPair returns the cheapest of the pairs that can exchange KV; its Slot is
// NoSlot when there is none.
func (s *splitter) bestPair(prefills, decodes [fewPairs]int) Option {
	best := noOption
	best.Cost = math.Inf(1)
	for _, pre := range prefills {
		for _, dec := range decodes {
			if pre == NoSlot || dec == NoSlot || !s.v.Hands(pre, dec) {
				continue
			}
			if o := s.pair(pre, dec); o.Cost < best.Cost {
				best = o
			}
		}
	}
	return best
}

// best returns the few slots with the least cost.
func (s *splitter) best(slots []int, cost func(int) float64) [fewPairs]int {
	var found [fewPairs]int
	var costs [fewPairs]float64
	for i := range found {
		found[i], costs[i] = NoSlot, math.Inf(1)
	}
	for _, c := range slots {
		if s.v.Connector[c] == 0 {
			continue
		}
		x := cost(c)
		for i := range found {
			if x < costs[i] {
				copy(found[i+1:], found[i:])
				copy(costs[i+1:], costs[i:])
				found[i], costs[i] = c, x
				break
			}
		}
	}
	return found
}

// prompt is what computing the prompt at a slot takes, in seconds: until it is
// done, and of the slot's time.
func (s *splitter) prompt(c int) (ttft, work float64) {
	step, l := stepOf(s.v, c), &s.v.Load[c]
	cached := min(s.v.Matched[c], s.q.Prompt)
	uncached := max(s.q.Prompt-cached, 1)
	ttft = step.FirstToken(l, cached, uncached) + step.PerPrompt*adapterCost(s.v.Adapter[c])
	return ttft, step.Prompt(uncached, perf.Pairs(cached, uncached)) * (1 + s.reuse*fullness(s.v, c, uncached))
}

// prefillCost is a slot's part of the cost for computing the prompt.
func (s *splitter) prefillCost(c int) float64 {
	ttft, work := s.prompt(c)
	l := &s.v.Load[c]
	return ttft + s.v.Asked[c] + (float64(l.Decoding+l.Ahead+l.Promised)+perf.Followers(l))*work
}

// answer is what decoding the answer at a slot takes, in seconds: to its first
// step, per token, and of each step of the others.
func (s *splitter) answer(c int) (first, tpot, longer float64) {
	step, l := stepOf(s.v, c), s.v.Load[c]
	l.Fetch = 0
	first = step.FirstToken(&l, s.q.Prompt-1, 1)
	tpot = step.PerToken(&l, s.q.Prompt, s.output)
	return first, tpot, step.PerSeq + step.PerKV*(float64(s.q.Prompt)+s.output/2)
}

// decodeCost is a slot's part of the cost for decoding the answer.
func (s *splitter) decodeCost(c int) float64 {
	first, tpot, longer := s.answer(c)
	l := &s.v.Load[c]
	return first + s.output*tpot + float64(l.Decoding+l.Ahead+l.Promised)*s.output/2*longer
}

// pair is what serving q at two slots costs.
func (s *splitter) pair(pre, dec int) Option {
	v, q := s.v, s.q
	prompt, work := s.prompt(pre)
	first, tpot, longer := s.answer(dec)
	moved := max(q.Prompt-v.Matched[dec], 0)
	o := Option{Slot: dec, Prefill: pre, Source: NoSlot, Move: v.Wire[pre].Latency + v.Asked[pre] + v.Wire[pre].PerToken*float64(moved)}
	o.TTFT = prompt + o.Move + first
	lp, ld := &v.Load[pre], &v.Load[dec]
	atP, atD := float64(lp.Decoding+lp.Ahead+lp.Promised), float64(ld.Decoding+ld.Ahead+ld.Promised)
	o.Cost = o.TTFT + s.output*tpot + (atP+perf.Followers(lp))*work + atD*s.output/2*longer
	allowed := q.SLO.TTFT.Seconds() + s.output*q.SLO.TPOT.Seconds()
	uncached := float64(max(q.Prompt-v.Matched[pre], 1))
	if q.SLO.TTFT > 0 {
		b := bill{s: stepOf(v, pre), l: lp, uncached: uncached, output: s.output, ttft: o.TTFT, tpot: tpot, work: work, others: atP}
		o.Cost += b.late(q.SLO.TTFT.Seconds()) * allowed
	}
	if q.SLO.TPOT > 0 {
		b := bill{s: stepOf(v, dec), l: ld, uncached: 1, output: s.output, ttft: o.TTFT, tpot: tpot, others: atD}
		o.Cost += b.slow(q.SLO.TPOT.Seconds()) * allowed
	}
	return o
}
