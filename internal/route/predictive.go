package route

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
	"penstock.dev/penstock/internal/stat"
)

// predictive picks the endpoint where a request costs least, in seconds of
// waiting, its own and that of others. The score is minus
//
//	own TTFT + output·TPOT                    what it waits for itself
//	+ others·(work + output/2·longer steps)   what those who are there wait for it,
//	                                          who on average are half done
//	+ followers·work                          what those to come wait for it
//	+ misses·allowed                          what missing the SLO weighs
//
// work is the time to compute what is not cached of the prompt, and to compute
// again, as often as it is found, what that pushes out of a full cache. misses is
// the chance that the request misses its SLO, plus the number of others that are
// expected to miss theirs because of it; missing it weighs as much as all the
// time it allows, so that meeting it comes first. All times are predictions of
// the learnt step times, with the spread that predictions are seen to have;
// output lengths are those of the tenant's past answers.
// docs/decisions/0014-predictive.md has what was tried and measured.
type predictive struct {
	asked, found float64 // prompt tokens, and those that some endpoint had cached, fading
	lean         lean
	cold         cold
	pull         puller
	whole, first []int // scratch
}

const (
	// leastSpread is the spread of measured about predicted times below which
	// predictions are not trusted.
	leastSpread = 0.06

	// reuseMemory is over how many requests the reuse of prompts is averaged.
	reuseMemory = 200

	// mostReuse bounds what a cached token is worth: what is found very often would
	// be computed again once, and then be there.
	mostReuse = 4.0

	// nearTie is the difference in cost, relative to the best, below which two
	// endpoints are equals: what is smaller than the error of any prediction must
	// not send every gateway to the same place.
	nearTie = 0.01
)

func (p *predictive) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	best := fleet.Tokens(0)
	for _, c := range q.Candidates {
		best = max(best, v.Matched[c])
	}
	p.cold.is = float64(best) < coldShare*float64(q.Prompt)
	p.asked += (float64(q.Prompt) - p.asked) / reuseMemory
	p.found += (float64(min(best, q.Prompt)) - p.found) / reuseMemory
	reuse := min(p.found/max(p.asked-p.found, 1), mostReuse)
	if len(q.Prefills) > 0 {
		p.pickEither(v, q, reuse, best, r, out)
		return
	}
	p.pickWhole(v, q, reuse, r, out)
}

// pickWhole picks the candidate that serves the request whole at the least cost.
func (p *predictive) pickWhole(v *View, q *Query, reuse float64, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = -cost(v, q, c, reuse)
	}
	if len(q.Sources) > 0 {
		p.pull.consider(v, q, reuse, out)
	}
	pickNear(q, r, out)
	if p.cold.is {
		p.cold.deal(v, q, reuse, out)
	}
	if len(q.Sources) > 0 {
		p.pull.settle(v, q, out)
	}
}

// pickEither picks the best way to serve the request, whole or split, of which some
// endpoint has best tokens cached.
func (p *predictive) pickEither(v *View, q *Query, reuse float64, best fleet.Tokens, r *stat.Rand, out *Plan) {
	p.lean.note(q, best)
	p.lean.think(v, q)
	for _, c := range q.Candidates {
		out.Score[c] = math.NaN()
	}
	part := *q
	part.Candidates = p.lean.answering(q, p.whole)
	part.Prefills = p.lean.computing(q, p.first)
	p.whole, p.first = room(p.whole, part.Candidates, q.Candidates), room(p.first, part.Prefills, q.Prefills)
	p.pickWhole(v, &part, reuse, r, out)
	p.compare(v, &part, reuse, out)
	p.lean.meter.chose(out.Prefill != NoSlot)
}

// room returns the scratch memory that used lies in, unless that is given.
func room(scratch, used, given []int) []int {
	if len(used) > 0 && len(given) > 0 && &used[0] == &given[0] {
		return scratch
	}
	return used[:0]
}

// Leave implements Leaver.
func (p *predictive) Leave(slot int) {
	p.lean.leave(slot)
	p.cold.leave(slot)
}

// Leans implements Leaner.
func (p *predictive) Leans(slot int) fleet.Role { return p.lean.of(slot) }

// bill is what a request is predicted to cost at one endpoint, in seconds.
type bill struct {
	s          *perf.Step
	l          *perf.Load
	uncached   float64 // prompt tokens
	output     float64 // tokens
	ttft, tpot float64
	work       float64
	others     float64 // requests that are there
}

// cost is the predicted cost of sending the request to c, in seconds; a token
// computed is found again reuse times before it leaves a cache.
func cost(v *View, q *Query, c int, reuse float64) float64 {
	b := bill{s: stepOf(v, c), l: &v.Load[c]}
	return b.of(v, q, c, reuse, min(v.Matched[c], q.Prompt), 0)
}

// of makes out the bill of a request at c that finds so many tokens of its prompt
// cached, of which so many have come from elsewhere and push others out.
func (b *bill) of(v *View, q *Query, c int, reuse float64, cached, come fleet.Tokens) float64 {
	s, l := b.s, b.l
	uncached := max(q.Prompt-cached, 1)
	b.uncached, b.output, b.others = float64(uncached), float64(max(q.Output, 1)), float64(l.Decoding+l.Ahead+l.Promised)
	b.ttft = s.FirstToken(l, cached, uncached) + s.PerPrompt*adapterCost(v.Adapter[c])
	b.tpot = s.PerToken(l, q.Prompt, b.output)
	again := reuse * fullness(v, c, uncached+come)
	b.work = s.Prompt(uncached, perf.Pairs(cached, uncached)) * (1 + again)
	if come > 0 {
		b.work += s.Prompt(come, perf.Pairs(0, come)) * again
	}
	longer := s.PerSeq + s.PerKV*(float64(q.Prompt)+b.output/2)
	sec := b.ttft + b.output*b.tpot + b.others*(b.work+b.output/2*longer) + perf.Followers(l)*b.work
	ttft, tpot := q.SLO.TTFT.Seconds(), q.SLO.TPOT.Seconds()
	allowed := ttft + b.output*tpot
	if ttft > 0 {
		sec += b.late(ttft) * allowed
	}
	if tpot > 0 {
		sec += b.slow(tpot) * allowed
	}
	return sec
}

// late is the number of first tokens that are expected to miss a target, in
// seconds, because of the request, its own included. One that is late for sure
// counts the more the later it is, so that no request is given up.
func (b *bill) late(target float64) float64 {
	chance := over(b.ttft/target, b.l.TTFTSpread)
	n := chance + max(b.ttft/target-1, 0)
	if after := perf.Followers(b.l); after > 0 {
		n += after * (over((b.ttft+b.work)/target, b.l.TTFTSpread) - chance)
	}
	// Where the target is missed already, one more keeps it so for longer: those
	// who come meanwhile miss it too.
	hold := b.work
	if b.l.KVTokens > 0 && b.s.Admission(b.l, fleet.Tokens(b.uncached)) > 0 {
		hold += (b.uncached + b.output/2) * b.output * b.tpot / float64(b.l.KVTokens)
	}
	return n + b.l.Arrivals*hold*chance
}

// slow is the number of answers that are expected to miss a target of the time
// per token, in seconds, because of the request, its own included.
func (b *bill) slow(target float64) float64 {
	own := over(b.tpot/target, b.l.TPOTSpread)
	if b.others == 0 {
		return own
	}
	before := over(b.s.PerToken(b.l, 0, b.output)/target, b.l.TPOTSpread)
	after := over((b.tpot+b.work/b.output)/target, b.l.TPOTSpread)
	return own + b.others*(after-before)
}

// fullness is the share of the endpoint's cache that would be in use.
func fullness(v *View, c int, uncached fleet.Tokens) float64 {
	capacity := v.KVTokens[c]
	if capacity <= 0 {
		capacity = assumedKV
	}
	return min(float64(v.Cached[c]+uncached)/float64(capacity), 1)
}

// over is the probability that a time exceeds its target when x times the target
// is predicted, and measured times spread so about predictions: log-logistic,
// which is near to log-normal, of the whole power next to what the spread asks.
func over(x, spread float64) float64 {
	const logistic = 1.702 // scale at which the logistic is nearest to the normal
	odds := 1.0
	for n := int(logistic/max(spread, leastSpread) + 0.5); n > 0; n >>= 1 {
		if n&1 == 1 {
			odds *= x
		}
		x *= x
	}
	return 1 - 1/(1+odds)
}

// pickNear picks at random among the candidates that are as good as the best.
func pickNear(q *Query, r *stat.Rand, p *Plan) {
	best := math.Inf(-1)
	for _, c := range q.Candidates {
		best = max(best, p.Score[c])
	}
	bound := best - nearTie*math.Abs(best)
	ties := 0
	for _, c := range q.Candidates {
		if p.Score[c] >= bound {
			if ties++; r.IntN(ties) == 0 {
				p.Chosen = c
			}
		}
	}
}
