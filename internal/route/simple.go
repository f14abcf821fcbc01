package route

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// roundRobin takes endpoints in turn of their ids, skipping those that are not
// candidates. The score is minus the distance from the turn, counted along the
// ids, so the runner-up is who comes next.
type roundRobin struct{ last fleet.EndpointID }

func (p *roundRobin) Pick(v *View, q *Query, _ *stat.Rand, out *Plan) {
	wrap := fleet.EndpointID(0)
	out.Chosen = q.Candidates[0]
	for _, c := range q.Candidates {
		wrap = max(wrap, v.ID[c]+1)
		// Unsigned: the ids behind the last one chosen wrap to the far end.
		if v.ID[c]-p.last-1 < v.ID[out.Chosen]-p.last-1 {
			out.Chosen = c
		}
	}
	turn := v.ID[out.Chosen]
	for _, c := range q.Candidates {
		out.Score[c] = 0 - float64((v.ID[c]+wrap-turn)%wrap)
	}
	p.last = turn
}

// random takes any candidate; the score is the draw.
type random struct{}

func (random) Pick(_ *View, q *Query, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = r.Float64()
	}
	pickBest(q, r, out)
}

// leastRequest takes the endpoint with the fewest requests in flight; the score
// is minus that number.
type leastRequest struct{}

func (leastRequest) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = 0 - float64(v.InFlight[c])
	}
	pickBest(q, r, out)
}

// p2c draws two candidates and takes the one with fewer requests in flight
// (Mitzenmacher, "The power of two choices", 2001). Candidates that were not
// drawn have no score.
type p2c struct{}

func (p2c) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = math.NaN()
	}
	n := len(q.Candidates)
	a := q.Candidates[r.IntN(n)]
	b := a
	if n > 1 {
		// One of the n-1 others, all equally likely.
		i := r.IntN(n - 1)
		if b = q.Candidates[i]; b == a {
			b = q.Candidates[n-1]
		}
	}
	out.Score[a], out.Score[b] = 0-float64(v.InFlight[a]), 0-float64(v.InFlight[b])
	out.Chosen = a
	if out.Score[b] > out.Score[a] {
		out.Chosen = b
	}
}
