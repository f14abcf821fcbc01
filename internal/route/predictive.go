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
//	own TTFT + output·TPOT                       what it waits for itself
//	+ sequences·(prefill + output·longer steps)  what those decoding wait for it
//	+ followers·prefill                          what those to come wait for it
//	+ full·prefill                               computing again what it pushes out of the cache
//	+ miss·(what missing the SLO weighs)
//
// where miss is the chance that the request misses its SLO, plus the expected
// number of others that miss theirs because of it. All times are predictions of
// the learnt step times; output lengths are those of the tenant's past answers.
// With an SLO, missing it weighs as much as all the time the SLO allows, so that
// meeting it comes first. Nothing is tuned but the two spreads below.
type predictive struct{}

const (
	// Spreads of measured over predicted times, as standard deviations of the
	// logarithm: how far from its target a prediction must be to be safe.
	ttftSpread = 0.35
	tpotSpread = 0.15

	// nearTie is the difference in cost, relative to the best, below which two
	// endpoints are equals: what is smaller than the error of any prediction must
	// not send every gateway to the same place.
	nearTie = 0.01
)

func (predictive) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = -cost(v, q, c)
	}
	pickNear(q, r, out)
}

// cost is the predicted cost of sending the request to c, in seconds.
func cost(v *View, q *Query, c int) float64 {
	s, l := v.Step[c], &v.Load[c]
	if !s.Known() {
		s = perf.Guess()
	}
	cached := min(v.Matched[c], q.Prompt)
	uncached := max(q.Prompt-cached, 1)
	output := float64(max(q.Output, 1))
	context := q.Prompt + q.Output/2

	ttft := s.FirstToken(l, cached, uncached)
	tpot := s.PerToken(l, q.Prompt, output)
	prefill := s.Prompt(uncached, perf.Pairs(cached, uncached))
	longer := s.PerSeq + s.PerKV*float64(context)
	others := float64(l.Decoding + l.Ahead)

	sec := ttft + output*tpot + others*(prefill+output*longer)
	sec += perf.Followers(l) * prefill
	sec += fullness(v, c, uncached) * prefill * (1 + others)
	if q.SLO.TTFT > 0 {
		target := q.SLO.TTFT.Seconds()
		after := perf.Followers(l)
		m := chance(ttft, target, ttftSpread) + after*(chance(ttft+prefill, target, ttftSpread)-chance(ttft, target, ttftSpread))
		sec += m * allowed(q)
	}
	if q.SLO.TPOT > 0 {
		target := q.SLO.TPOT.Seconds()
		before := s.PerToken(l, 0, output)
		after := tpot + prefill/output
		sec += (chance(tpot, target, tpotSpread) + others*(chance(after, target, tpotSpread)-chance(before, target, tpotSpread))) * allowed(q)
	}
	return sec
}

// allowed is the time that the SLO allows the whole answer, in seconds.
func allowed(q *Query) float64 {
	return q.SLO.TTFT.Seconds() + float64(max(q.Output, 1))*q.SLO.TPOT.Seconds()
}

// chance is the probability that a time of which so much is predicted exceeds a
// target: the logistic approximation of the log-normal tail.
func chance(predicted, target, spread float64) float64 {
	const logistic = 1.702 // scale at which the logistic is nearest to the normal
	return 1 / (1 + math.Pow(target/max(predicted, 1e-6), logistic/spread))
}

// fullness is the share of the endpoint's cache that would be in use.
func fullness(v *View, c int, uncached fleet.Tokens) float64 {
	capacity := v.KVTokens[c]
	if capacity <= 0 {
		capacity = assumedKV
	}
	return min(float64(v.Cached[c]+uncached)/float64(capacity), 1)
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
