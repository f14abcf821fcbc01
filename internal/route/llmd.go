package route

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/stat"
)

// llmd routes as the llm-d router does with no configuration at all (v0.10.0,
// August 2026): prefix-cache-scorer 3, queue-scorer 2,
// kv-cache-utilization-scorer 2, max-score-picker. With noHit it is the
// "optimized baseline" of their guides: the same and no-hit-lru-scorer 2.
//
//   - Prefix: matched/total blocks, by an index of the router's own dispatches:
//     one LRU per server of chained hashes of 64 tokens at 4 bytes a token, of at
//     most 131,072 tokens of a prompt; a trailing part of a block counts among
//     the total. It holds as many blocks as the engine says it has when its first
//     request is sent (autoTune, on by default), else 31,250. A block there is an
//     engine's, mostly of 16 tokens, and one of 64 here, as in the original: it
//     remembers about four times what the engine can hold.
//   - Queue: waiting requests by the engine's gauge, min-max over the candidates,
//     inverted; all equal is 1. KV: 1 − usage by the engine's gauge.
//   - Gauges are the last ones read, however old; one never read is zero, which
//     looks idle. Requests in flight are not looked at: between two scrapes, and
//     while the gauges tie, the prefix score alone decides.
//   - The highest sum wins; equal ones are shuffled.
//
// Not reproduced: their scrape is every 50 ms, here gauges are as old as the pool
// reads them; an index that outlives an engine's restart in place (here it is
// cleared, in their favour) and that is updated a moment after the request; the
// hash of a trailing part of a block (no key has it: prompts sent again are
// believed cached but for that part); block sizes above 64 tokens.
type llmd struct {
	index  *blockLRU
	gauges memory
	count  []int32 // scratch: blocks matched, by slot
	noHit  *noHitLRU
}

const (
	llmdBlock     = 64      // tokens; smaller sizes are raised to it
	llmdMaxPrefix = 131_072 // tokens of a prompt that are hashed
	llmdCapacity  = 31_250  // blocks per server

	llmdPrefix, llmdQueue, llmdKV, llmdNoHit = 3.0, 2.0, 2.0, 2.0
)

func newLLMD() *llmd { return &llmd{index: newBlockLRU()} }

func newLLMDOptimized() *llmd { return &llmd{index: newBlockLRU(), noHit: &noHitLRU{size: 1024}} }

func (p *llmd) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	p.gauges.update(v, q)
	b := newBlocking(q.KeyTokens, llmdBlock, llmdMaxPrefix)
	total := p.match(v, q, b)
	least, most := p.gauges.waiting(q)
	warm := false
	for _, c := range q.Candidates {
		g := p.gauges.last[c]
		queue, prefix := 1.0, 0.0
		if most > least {
			queue = float64(most-g.Waiting) / float64(most-least)
		}
		if total > 0 {
			prefix = float64(p.count[c]) / float64(total)
		}
		warm = warm || p.count[c] > 0
		out.Score[c] = llmdQueue*queue + llmdKV*(1-min(max(g.KVUsage, 0), 1)) + llmdPrefix*min(prefix, 1)
	}
	if p.noHit != nil {
		p.noHit.add(q, warm, out)
	}
	pickBest(q, r, out)
	p.index.insert(out.Chosen, p.capacity(out.Chosen)/b.perKey, b, q.Chain)
	if p.noHit != nil && !warm {
		p.noHit.touch(out.Chosen)
	}
}

// match sets count for every slot and returns the blocks, or keys that stand for
// several, of the whole prompt.
func (p *llmd) match(v *View, q *Query, b blocking) int {
	for len(p.count) < len(v.ID) {
		p.count = append(p.count, 0)
	}
	clear(p.count)
	p.index.match(b, q.Chain, p.count)
	return b.total(q)
}

// total returns the blocks of the whole prompt, a part of one included.
func (b blocking) total(q *Query) int {
	n := b.full(q.Chain)
	if n == b.maxBlock || q.KeyTokens <= 0 {
		return n
	}
	whole := math.Ceil(float64(q.Prompt) / q.KeyTokens / float64(b.stride))
	return min(max(n, int(whole)), b.maxBlock)
}

// capacity is how many blocks the index holds of a server that gets its first
// request now.
func (p *llmd) capacity(slot int) int {
	if n := p.gauges.last[slot].KVBlocks; n > 0 {
		return n
	}
	return llmdCapacity
}

// Leave forgets an endpoint.
func (p *llmd) Leave(slot int) {
	p.index.clear(slot)
	p.gauges.leave(slot)
	if p.noHit != nil {
		p.noHit.leave(slot)
	}
}

// memory is the last gauges seen of every slot, kept however old they grow. The
// fields of gauges that were never seen are zero.
type memory struct{ last []fleet.Gauges }

func (m *memory) update(v *View, q *Query) {
	for len(m.last) < len(v.ID) {
		m.last = append(m.last, fleet.Gauges{})
	}
	for _, c := range q.Candidates {
		g, last := &v.Gauges[c], &m.last[c]
		last.Known |= g.Known
		if g.Known.Has(fleet.KnownWaiting) {
			last.Waiting = g.Waiting
		}
		if g.Known.Has(fleet.KnownRunning) {
			last.Running = g.Running
		}
		if g.Known.Has(fleet.KnownKVUsage) {
			last.KVUsage = g.KVUsage
		}
		if g.Known.Has(fleet.KnownKVCapacity) {
			last.KVBlocks, last.KVBlock = g.KVBlocks, g.KVBlock
		}
	}
}

// waiting returns the fewest and the most requests waiting at a candidate.
func (m *memory) waiting(q *Query) (least, most int) {
	least, most = math.MaxInt, math.MinInt
	for _, c := range q.Candidates {
		least, most = min(least, m.last[c].Waiting), max(most, m.last[c].Waiting)
	}
	return least, most
}

func (m *memory) leave(slot int) {
	if slot < len(m.last) {
		m.last[slot] = fleet.Gauges{}
	}
}

// noHitLRU is llm-d's no-hit-lru-scorer. A warm request, of which some candidate
// has a block, scores 0.5 everywhere. A cold one goes where no cold one has gone
// or longest ago: endpoints that never had one score from 1 down in their
// order, then come the others by age.
type noHitLRU struct {
	size  int     // endpoints remembered
	order []int32 // slots that had a cold request, oldest first
	rank  []int32 // scratch: position in order, by slot, or none
}

func (l *noHitLRU) add(q *Query, warm bool, out *Plan) {
	n := len(q.Candidates)
	if warm || n == 1 {
		neutral := 1.0
		if warm {
			neutral = 0.5
		}
		for _, c := range q.Candidates {
			out.Score[c] += llmdNoHit * neutral
		}
		return
	}
	for len(l.rank) < len(out.Score) {
		l.rank = append(l.rank, none)
	}
	for i, s := range l.order {
		l.rank[s] = int32(i)
	}
	unused := 0
	for _, c := range q.Candidates {
		if l.rank[c] == none {
			unused++
		}
	}
	fresh := 0
	for _, c := range q.Candidates {
		at := fresh
		if l.rank[c] == none {
			fresh++
		} else {
			at = unused + int(l.rank[c])
		}
		out.Score[c] += llmdNoHit * max(1-float64(at)/float64(n-1), 0)
	}
	for _, s := range l.order {
		l.rank[s] = none
	}
}

// touch records that slot got a cold request.
func (l *noHitLRU) touch(slot int) {
	l.leave(slot)
	if len(l.order) == l.size {
		l.leave(int(l.order[0]))
	}
	l.order = append(l.order, int32(slot))
}

// leave forgets slot. Rivals keep names of servers that are gone until others
// push them out, which spreads cold requests less well.
func (l *noHitLRU) leave(slot int) {
	for i, s := range l.order {
		if int(s) == slot {
			l.order = append(l.order[:i], l.order[i+1:]...)
			return
		}
	}
}
