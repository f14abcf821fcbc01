package route

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// aibrix routes as AIBrix's prefix-cache strategy does (gateway plugin, main of
// August 2026), which is what its documentation advises in general, at its
// defaults.
//
//   - Load is requests in flight, by the gateway. When the busiest pod has over
//     2·(mean+1) and at least 8 more than the least busy, only the least busy pods
//     are looked at for a match.
//   - One hash table over all pods, of 200,000 blocks of 128 characters at most,
//     LRU by block, forgotten after 20 minutes unused: here keys of 4 characters a
//     token, so many as make the same text. A match is the unbroken run of blocks
//     from the prompt's start, as a whole percentage of its full blocks.
//   - Of the pods with any match, by falling percentage, then rising load, then at
//     random, the first with at most mean + 1 standard deviation requests takes it.
//   - Else the pod with the fewest requests, ties at random.
//
// The score is the percentage plus 1/(1 + load) for pods that have a match and are
// not too busy, and minus the load for the others.
//
// Its README still says block 128, gap 16 and factor 2, its code says 4 characters,
// 8 with 2·(mean+1), and factor 1. The load rules follow the code and the block
// size the README: 200,000 blocks of 4 characters would hold one long
// prompt each of a handful of sessions.
//
// Not reproduced: a restarted pod's blocks, which are kept there and cleared here.
type aibrix struct {
	index *blockLRU // slot 0 stands for the whole table, slot s+1 for pod s
	depth []int32   // scratch: keys matched, by slot; -1 where not looked at
}

const (
	aibrixBlocks = 200_000
	aibrixBlock  = 128 / charsPerToken // tokens
	aibrixAge    = 20 * time.Minute

	aibrixBusyFactor = 2.0
	aibrixBusyGap    = 8
	aibrixDeviations = 1.0
)

func newAIBrix() *aibrix { return &aibrix{index: newBlockLRU()} }

func (p *aibrix) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	p.index.grow(len(v.ID) + 1)
	for len(p.depth) < len(v.ID) {
		p.depth = append(p.depth, -1)
	}
	p.forget(q)
	least, most := loads(v, q)
	mean, deviation := spread(v, q)
	only := most + 1 // pods with fewer requests are looked at
	if float64(most) > aibrixBusyFactor*(mean+1) && most-least >= aibrixBusyGap {
		only = least + 1
	}
	for i := range p.depth {
		p.depth[i] = -1
	}
	for _, c := range q.Candidates {
		if v.InFlight[c] < only {
			p.depth[c] = 0
		}
	}
	p.match(q)
	for _, c := range q.Candidates {
		load := float64(v.InFlight[c])
		out.Score[c] = 0 - load
		if p.depth[c] > 0 && load <= mean+aibrixDeviations*deviation {
			percent := int(p.depth[c]) * 100 / len(q.Chain)
			out.Score[c] = float64(percent) + 1/(1+load)
		}
	}
	pickBest(q, r, out)
	p.insert(q, out.Chosen)
}

// match sets depth of the candidates that have a depth of zero.
func (p *aibrix) match(q *Query) {
	for i, k := range q.Chain {
		ref := p.index.find(k)
		if ref == none {
			return
		}
		found := false
		for h := p.index.nodes[ref].holders; h != none; h = p.index.holds[h].nextHolder {
			s := int(p.index.holds[h].slot) - 1
			if s >= 0 && s < len(p.depth) && int(p.depth[s]) == i {
				p.depth[s]++
				found = true
			}
		}
		if !found {
			return
		}
	}
}

func (p *aibrix) insert(q *Query, chosen int) {
	capacity := aibrixBlocks / newBlocking(q.KeyTokens, aibrixBlock, math.MaxInt32).perKey
	for _, k := range q.Chain {
		h := p.index.touch(0, k)
		p.index.nodes[p.index.holds[h].node].used = q.Now
		p.index.touch(chosen+1, k)
		if p.index.slots[0].held > capacity {
			p.index.evict(p.index.holds[p.index.slots[0].oldest].node)
		}
	}
}

// forget drops blocks that nobody asked for in a long time.
func (p *aibrix) forget(q *Query) {
	for p.index.slots[0].oldest != none {
		ref := p.index.holds[p.index.slots[0].oldest].node
		if q.Now.Sub(p.index.nodes[ref].used) < aibrixAge {
			return
		}
		p.index.evict(ref)
	}
}

// Leave forgets an endpoint.
func (p *aibrix) Leave(slot int) { p.index.clear(slot + 1) }

// spread returns the mean and the sample standard deviation of the requests in
// flight at the candidates.
func spread(v *View, q *Query) (mean, deviation float64) {
	n := float64(len(q.Candidates))
	for _, c := range q.Candidates {
		mean += float64(v.InFlight[c])
	}
	mean /= n
	if n < 2 {
		return mean, 0
	}
	for _, c := range q.Candidates {
		d := float64(v.InFlight[c]) - mean
		deviation += d * d
	}
	return mean, math.Sqrt(deviation / (n - 1))
}

// aibrixLeastLatency routes as AIBrix's least-latency strategy does: the pod with
// the lowest expected latency, which is its queue time, and the time of a prompt and
// an answer of the average lengths there. It knows neither this request's length
// nor caches. Pods without figures are passed over; where no pod has any, any pod.
//
// There the three times are means of the engine's own histograms, long behind;
// here they are predicted from the believed step and the present load, which is
// in its favour: TTFT of a prompt of the mean length, nothing of it cached, and
// TPOT times the mean output. The means are of the requests so far. Ties, where
// the original takes the last pod of a list, are broken at random.
//
// The score is minus the seconds, NaN for pods without figures.
type aibrixLeastLatency struct {
	requests, prompts, outputs float64 // sums
}

func (p *aibrixLeastLatency) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	p.requests++
	p.prompts += float64(max(q.Prompt, 1))
	p.outputs += float64(max(q.Output, 1))
	prompt, output := fleet.Tokens(p.prompts/p.requests), p.outputs/p.requests
	known := false
	for _, c := range q.Candidates {
		out.Score[c] = math.NaN()
		if s, l := &v.Step[c], &v.Load[c]; s.Known() {
			out.Score[c] = 0 - (s.FirstToken(l, 0, prompt) + output*s.PerToken(l, prompt, output))
			known = true
		}
	}
	if !known {
		random{}.Pick(v, q, r, out)
		return
	}
	pickBest(q, r, out)
}
