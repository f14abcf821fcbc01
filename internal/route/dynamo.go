package route

import (
	"math"

	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

// dynamo routes as Dynamo's KV router does (1.x, 2026) at its defaults:
// overlap credit 1.0, prefill load scale (once overlap_score_weight) 1.0,
// temperature 0, active blocks and prefill tokens tracked, output blocks not,
// reuse of blocks assumed. Blocks are of 64 tokens. The cost of a worker is
//
//	max((active prefill tokens + prompt)/64 − overlap blocks, 0) + decode blocks
//
// and the lowest wins, ties at random. Active prefill tokens are the uncached
// prompt tokens sent there that have had no first token yet. Decode blocks are
// the distinct full prompt blocks of all requests active there, this one
// included: what active requests share counts once.
//
// Overlap is the pool's own belief of what is cached, which is sized by the
// engine's cache: Dynamo hears it from the engines' events, a moment after the
// fact, where the belief already counts what was just sent. A policy is not told
// when requests end: the active ones are taken to be the last sent there, as many
// as are in flight, as if they ended in the order they came.
//
// Not reproduced: its queue in front of busy workers (the pool has its own),
// host and disk tiers, decay of credits, replicas that share their tracking,
// split prefill and decode. As a shadow it counts in flight what others sent.
type dynamo struct {
	active *blockLRU // blocks of active requests, with refs
	sent   []sentRing
	count  []int32 // scratch: blocks of the request that are active, by slot
}

const dynamoBlock = 64 // tokens

// sentRing is the blocks of each request active at a slot, oldest first.
type sentRing struct {
	blocks  [][]kv.Key
	head, n int
}

func newDynamo() *dynamo { return &dynamo{active: newBlockLRU()} }

func (p *dynamo) Pick(v *View, q *Query, r *stat.Rand, out *Plan) {
	p.active.grow(len(v.ID))
	for len(p.sent) < len(v.ID) {
		p.sent = append(p.sent, sentRing{})
		p.count = append(p.count, 0)
	}
	b := newBlocking(q.KeyTokens, dynamoBlock, math.MaxInt32)
	for _, c := range q.Candidates {
		for p.sent[c].n > max(v.InFlight[c], 0) {
			p.release(c, p.sent[c].pop())
		}
	}
	clear(p.count)
	p.active.match(b, q.Chain, p.count)
	blocks := b.full(q.Chain)
	for _, c := range q.Candidates {
		// The belief leaves out the last token of a prompt that is cached whole.
		overlap := (v.Matched[c] + 1) / dynamoBlock
		prefill := max(float64(v.Backlog[c]+q.Prompt)/dynamoBlock-float64(overlap), 0)
		decode := (p.active.slots[c].held + blocks - int(p.count[c])) * b.perKey
		out.Score[c] = 0 - (prefill + float64(decode))
	}
	pickBest(q, r, out)
	used := p.sent[out.Chosen].push()
	for i := range blocks {
		*used = append(*used, b.key(q.Chain, i))
		p.active.holds[p.active.touch(out.Chosen, (*used)[i])].refs++
	}
}

// release ends one request's use of its blocks.
func (p *dynamo) release(slot int, blocks []kv.Key) {
	for _, k := range blocks {
		h := p.active.hold(p.active.find(k), slot)
		if p.active.holds[h].refs--; p.active.holds[h].refs == 0 {
			p.active.drop(h)
		}
	}
}

// Leave forgets an endpoint.
func (p *dynamo) Leave(slot int) {
	p.active.clear(slot)
	if slot < len(p.sent) {
		p.sent[slot].head, p.sent[slot].n = 0, 0
	}
}

// push appends a request and returns its blocks, none yet.
func (s *sentRing) push() *[]kv.Key {
	if s.n == len(s.blocks) {
		grown := make([][]kv.Key, 2*s.n+4)
		for i := range s.n {
			grown[i] = s.blocks[(s.head+i)%s.n]
		}
		s.blocks, s.head = grown, 0
	}
	at := &s.blocks[(s.head+s.n)%len(s.blocks)]
	*at = (*at)[:0]
	s.n++
	return at
}

// pop returns the blocks of the oldest request, valid until the next push.
func (s *sentRing) pop() []kv.Key {
	b := s.blocks[s.head]
	s.head = (s.head + 1) % len(s.blocks)
	s.n--
	return b
}
