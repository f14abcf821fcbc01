package token

// pairs is a hash table from two numbers to two numbers. It is filled once and
// then only read, and a look-up costs one cache miss, which is what encoding
// costs in the end.
type pairs struct {
	slots []pairSlot
	mask  uint64
	n     int
}

type pairSlot struct {
	key         uint64 // two numbers plus 1; 0 is free
	first, then uint32
}

func newPairs(n int) *pairs {
	size := 8
	for size < 2*n {
		size *= 2
	}
	return &pairs{slots: make([]pairSlot, size), mask: uint64(size - 1)}
}

// slot returns where a and b are, or belong.
func (p *pairs) slot(a, b uint32) (*pairSlot, uint64) {
	key := (uint64(a)<<32 | uint64(b)) + 1
	h := key * 0x9e3779b97f4a7c15
	for i := h ^ h>>32; ; i++ {
		if s := &p.slots[i&p.mask]; s.key == key || s.key == 0 {
			return s, key
		}
	}
}

func (p *pairs) get(a, b uint32) (first, then uint32, ok bool) {
	s, _ := p.slot(a, b)
	return s.first, s.then, s.key != 0
}

func (p *pairs) put(a, b, first, then uint32) {
	if 2*(p.n+1) > len(p.slots) {
		old := p.slots
		*p = *newPairs(2 * len(old))
		for _, s := range old {
			if s.key != 0 {
				to, _ := p.slot(uint32((s.key-1)>>32), uint32(s.key-1))
				*to = s
				p.n++
			}
		}
	}
	s, key := p.slot(a, b)
	if s.key == 0 {
		p.n++
	}
	*s = pairSlot{key, first, then}
}

// shortWord is the number of symbols up to which looking at all neighbours for
// the best merge is faster than keeping them in order.
const shortWord = 24

// noRank stands for neighbours that do not merge.
const noRank = ^uint32(0)

// symbol is one part of a word while it is merged, linked to its neighbours.
type symbol struct {
	id         uint32
	prev, next int32
}

// offer is a merge that was possible when it was noted.
type offer struct {
	rank uint32
	at   int32 // the left one of the two
	id   uint32
}

func (a offer) before(b offer) bool { return a.rank < b.rank || a.rank == b.rank && a.at < b.at }

// merge appends to dst what e.ids becomes when the neighbours of the lowest rank
// are merged, leftmost first, until none merge.
func (e *Encoder) merge(dst []uint32) []uint32 {
	if len(e.ids) > shortWord {
		return e.mergeLong(dst)
	}
	ids := e.ids
	var ranks, into [shortWord]uint32
	for i := 0; i+1 < len(ids); i++ {
		ranks[i], into[i] = e.t.rank(ids[i], ids[i+1])
	}
	for len(ids) > 1 {
		best := 0
		for i := 1; i+1 < len(ids); i++ {
			if ranks[i] < ranks[best] {
				best = i
			}
		}
		if ranks[best] == noRank {
			break
		}
		ids[best] = into[best]
		copy(ids[best+1:], ids[best+2:])
		copy(ranks[best+1:len(ids)-1], ranks[best+2:len(ids)])
		copy(into[best+1:len(ids)-1], into[best+2:len(ids)])
		ids = ids[:len(ids)-1]
		ranks[len(ids)-1] = noRank
		if best+1 < len(ids) {
			ranks[best], into[best] = e.t.rank(ids[best], ids[best+1])
		}
		if best > 0 {
			ranks[best-1], into[best-1] = e.t.rank(ids[best-1], ids[best])
		}
	}
	return append(dst, ids...)
}

// rank returns the rank of merging a and b and what they become.
func (t *Tokenizer) rank(a, b uint32) (rank, id uint32) {
	if rank, id, ok := t.merges.get(a, b); ok {
		return rank, id
	}
	return noRank, 0
}

// mergeLong is merge for words of any length, in n log n.
func (e *Encoder) mergeLong(dst []uint32) []uint32 {
	e.word, e.heap = e.word[:0], e.heap[:0]
	n := int32(len(e.ids))
	for i, id := range e.ids {
		e.word = append(e.word, symbol{id, int32(i) - 1, int32(i) + 1})
	}
	for i := range n - 1 {
		e.offer(i)
	}
	for len(e.heap) > 0 {
		top := e.pop()
		left := &e.word[top.at]
		if left.next < 0 || left.next >= n {
			continue // merged into another, or the last
		}
		right := &e.word[left.next]
		if rank, _ := e.t.rank(left.id, right.id); rank != top.rank {
			continue // one of the two has changed
		}
		left.id = top.id
		next := right.next
		right.next = -1
		left.next = next
		if next < n {
			e.word[next].prev = top.at
			e.offer(top.at)
		}
		if left.prev >= 0 {
			e.offer(left.prev)
		}
	}
	for i := int32(0); i < n; i = e.word[i].next {
		dst = append(dst, e.word[i].id)
	}
	return dst
}

// offer notes the merge of the i-th symbol and its neighbour, if they merge.
func (e *Encoder) offer(i int32) {
	s := &e.word[i]
	rank, id := e.t.rank(s.id, e.word[s.next].id)
	if rank == noRank {
		return
	}
	e.heap = append(e.heap, offer{rank, i, id})
	h := e.heap
	for at := len(h) - 1; at > 0; {
		up := (at - 1) / 2
		if !h[at].before(h[up]) {
			break
		}
		h[at], h[up] = h[up], h[at]
		at = up
	}
}

// pop takes the best offer.
func (e *Encoder) pop() offer {
	h := e.heap
	top := h[0]
	h[0] = h[len(h)-1]
	h = h[:len(h)-1]
	e.heap = h
	for at := 0; ; {
		least := at
		for _, down := range [2]int{2*at + 1, 2*at + 2} {
			if down < len(h) && h[down].before(h[least]) {
				least = down
			}
		}
		if least == at {
			return top
		}
		h[at], h[least] = h[least], h[at]
		at = least
	}
}
