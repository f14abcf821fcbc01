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
// meeting it comes first.
type predictive struct{}

const (
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
		m := late(ttft/target) + after*(late((ttft+prefill)/target)-late(ttft/target))
		sec += m * allowed(q)
	}
	if q.SLO.TPOT > 0 {
		target := q.SLO.TPOT.Seconds()
		before := s.PerToken(l, 0, output)
		after := tpot + prefill/output
		sec += (slow(tpot/target) + others*(slow(after/target)-slow(before/target))) * allowed(q)
	}
	return sec
}

// allowed is the time that the SLO allows the whole answer, in seconds.
func allowed(q *Query) float64 {
	return q.SLO.TTFT.Seconds() + float64(max(q.Output, 1))*q.SLO.TPOT.Seconds()
}

// late is the probability that a first token comes after its target when x times
// the target is predicted, and slow the same of the time per token: log-logistic,
// which is near to log-normal with a spread of 1.702 over the power. Measured
// times to first token spread around predictions by about a third, times per
// token by about a sixth.
func late(x float64) float64 {
	x2 := x * x
	x5 := x2 * x2 * x
	return 1 - 1/(1+x5)
}

func slow(x float64) float64 {
	x2 := x * x
	x5 := x2 * x2 * x
	return 1 - 1/(1+x5*x5*x)
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
