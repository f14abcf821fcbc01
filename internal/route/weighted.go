package route

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// weighted sums named scorers, each between 0 (worst candidate) and 1 (best),
// times their weights. A scorer that does not know a candidate's figure gives
// it the mean of those it knows: unknown is neither idle nor full.
type weighted struct {
	terms []term
}

type term struct {
	score  scorer
	weight float64
}

// scorer returns a candidate's raw figure and whether it is known. Higher is
// better; figures are scaled to 0..1 over the candidates unless absolute.
type scorer struct {
	raw      func(v *View, q *Query, c int) (float64, bool)
	absolute bool // the figure is in 0..1 already
}

// scorers is every scorer of the weighted policy by name.
var scorers = map[string]scorer{
	// prefix: share of the prompt believed cached.
	"prefix": {absolute: true, raw: func(v *View, q *Query, c int) (float64, bool) {
		return float64(v.Matched[c]) / float64(max(q.Prompt, 1)), true
	}},
	// queue: fewest requests waiting in the engine, by its own gauge.
	"queue": {raw: func(v *View, _ *Query, c int) (float64, bool) {
		return -float64(v.Gauges[c].Waiting), v.Gauges[c].Known.Has(fleet.KnownWaiting)
	}},
	// kv-usage: most KV cache free, by the engine's gauge.
	"kv-usage": {absolute: true, raw: func(v *View, _ *Query, c int) (float64, bool) {
		return 1 - min(max(v.Gauges[c].KVUsage, 0), 1), v.Gauges[c].Known.Has(fleet.KnownKVUsage)
	}},
	// in-flight: fewest requests in flight, by the ledger.
	"in-flight": {raw: func(v *View, _ *Query, c int) (float64, bool) {
		return -float64(v.InFlight[c]), true
	}},
	// lora: the request's adapter loaded, or else room for it.
	"lora": {absolute: true, raw: func(v *View, _ *Query, c int) (float64, bool) {
		switch v.Adapter[c] {
		case fleet.AdapterFull:
			return 0, true
		case fleet.AdapterRoom:
			return 0.5, true
		}
		return 1, true
	}},
	// tokens: fewest tokens in flight, by the ledger.
	"tokens": {raw: func(v *View, _ *Query, c int) (float64, bool) {
		return -float64(v.Backlog[c] + v.Active[c]), true
	}},
}

// ScorerNames returns the scorers' names, sorted.
func ScorerNames() []string { return slices.Sorted(maps.Keys(scorers)) }

func newWeighted(s Spec) (Policy, error) {
	if len(s.Weights) == 0 {
		return nil, fmt.Errorf("weights: the weighted policy needs at least one of %s", strings.Join(ScorerNames(), ", "))
	}
	p := &weighted{}
	var errs []error
	// Sorted, so that sums round alike in every run.
	for _, name := range slices.Sorted(maps.Keys(s.Weights)) {
		sc, ok := scorers[name]
		if !ok {
			errs = append(errs, fmt.Errorf("weights.%s: no such scorer; known: %s", name, strings.Join(ScorerNames(), ", ")))
		}
		w := s.Weights[name]
		if w < 0 || w != w || w > 1e6 {
			errs = append(errs, fmt.Errorf("weights.%s: must be between 0 and 1e6, is %v", name, w))
		}
		p.terms = append(p.terms, term{sc, w})
	}
	return p, errors.Join(errs...)
}

func (p *weighted) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	for _, c := range q.Candidates {
		out.Score[c] = 0
	}
	for _, t := range p.terms {
		t.add(v, q, out)
	}
	pickBest(q, r, out)
}

// add adds the term's share to every candidate's score.
func (t term) add(v *View, q *Query, out *Plan) {
	lo, hi, sum, n := 0.0, 0.0, 0.0, 0
	for _, c := range q.Candidates {
		if x, ok := t.score.raw(v, q, c); ok {
			if n == 0 {
				lo, hi = x, x
			}
			lo, hi, sum = min(lo, x), max(hi, x), sum+x
			n++
		}
	}
	for _, c := range q.Candidates {
		x, ok := t.score.raw(v, q, c)
		if !ok {
			if n == 0 {
				continue // nothing is known of anyone: the term says nothing
			}
			x = sum / float64(n)
		}
		if !t.score.absolute {
			if hi == lo {
				x = 1
			} else {
				x = (x - lo) / (hi - lo)
			}
		}
		out.Score[c] += t.weight * x
	}
}
