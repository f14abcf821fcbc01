package route

import (
	"math"
	"slices"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// sglang routes as the cache_aware policy of SGLang's router does (sgl-router,
// later sgl-model-gateway, 0.2 to 0.3) at the defaults of its command line:
// cache_threshold 0.3, balance_abs_threshold 64, balance_rel_threshold 1.5,
// eviction every 120 s, max_tree_size 2^26 characters per worker.
//
//   - Load is requests in flight, by the router. When the most loaded worker has
//     over 64 requests more than the least loaded and over 1.5 times as many, the
//     least loaded takes the request, the first among equals.
//   - Else one radix tree over the prompts' text, in which each worker is marked on
//     what was sent to it, is asked for the longest match: over 0.3 of the prompt,
//     the request goes to a worker that is marked there, whichever the hash map
//     names first; here one of them at random.
//   - Else to the worker with the smallest tree, which is what its documentation
//     says, or with leastOnMiss to the one with the fewest requests in flight, as
//     later code does. Of equally small trees any, here at random.
//   - The tree forgets a worker's least recently used leaves, but only every 120 s
//     and only what exceeds the size; there whole leaves, here no more than must be.
//
// The score is minus the load, or the keys matched, or minus the size of the tree,
// by which of the three decided.
//
// Not reproduced: characters below a key (a match is a whole number of keys, of
// 4 characters a token, and a prompt of less than one key matches nothing);
// workers that are not eligible are not marked (there, a match at a worker that
// is out sends the request to the first that is not).
type sglang struct {
	leastOnMiss bool
	index       *blockLRU
	count       []int32 // scratch: keys matched, by slot
	evicted     fleet.Time
}

const (
	sglangMatch     = 0.3
	sglangAbs       = 64
	sglangRel       = 1.5
	sglangEvery     = 120 * time.Second
	sglangTreeChars = 1 << 26
	charsPerToken   = 4
)

func newSGLang(leastOnMiss bool) *sglang {
	return &sglang{leastOnMiss: leastOnMiss, index: newBlockLRU()}
}

func (p *sglang) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	p.forget(q, len(v.ID))
	least, most := loads(v, q)
	if most-least > sglangAbs && float64(most) > sglangRel*float64(least) {
		p.leastLoaded(v, q, out)
	} else if matched := p.match(v, q); matched > 0 && float64(matched)*q.KeyTokens/float64(max(q.Prompt, 1)) > sglangMatch {
		// Those on the deepest node are equal, whatever else they hold.
		for _, c := range q.Candidates {
			out.Score[c] = float64(p.count[c])
		}
		pickBest(q, r, out)
	} else if p.leastOnMiss {
		p.leastLoaded(v, q, out)
	} else {
		for _, c := range q.Candidates {
			out.Score[c] = 0 - float64(p.index.slots[c].held)
		}
		pickBest(q, r, out)
	}
	// From leaf to root, so that leaves are older and go first.
	for _, k := range slices.Backward(q.Chain) {
		p.index.touch(out.Chosen, k)
	}
}

// leastLoaded chooses the first candidate with the fewest requests in flight.
func (p *sglang) leastLoaded(v *View, q *Query, out *Plan) {
	out.Chosen = q.Candidates[0]
	for _, c := range q.Candidates {
		out.Score[c] = 0 - float64(v.InFlight[c])
		if v.InFlight[c] < v.InFlight[out.Chosen] {
			out.Chosen = c
		}
	}
}

// match sets count for every slot and returns the deepest match at a candidate.
func (p *sglang) match(v *View, q *Query) int32 {
	for len(p.count) < len(v.ID) {
		p.count = append(p.count, 0)
	}
	clear(p.count)
	p.index.match(blocking{stride: 1, perKey: 1, maxBlock: math.MaxInt}, q.Chain, p.count)
	deepest := int32(0)
	for _, c := range q.Candidates {
		deepest = max(deepest, p.count[c])
	}
	return deepest
}

// forget runs the eviction that is due, for slots below n.
func (p *sglang) forget(q *Query, n int) {
	p.index.grow(n)
	if q.Now.Sub(p.evicted) < sglangEvery || q.KeyTokens <= 0 {
		return
	}
	p.evicted = q.Now
	keys := int(sglangTreeChars / charsPerToken / q.KeyTokens)
	for slot := range p.index.slots {
		p.index.shrink(slot, keys)
	}
}

// Leave forgets an endpoint.
func (p *sglang) Leave(slot int) { p.index.clear(slot) }

// loads returns the fewest and the most requests in flight at a candidate.
func loads(v *View, q *Query) (least, most int) {
	least, most = math.MaxInt, 0
	for _, c := range q.Candidates {
		least, most = min(least, v.InFlight[c]), max(most, v.InFlight[c])
	}
	return least, most
}
