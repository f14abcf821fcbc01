package enginesim

import "penstock.dev/penstock/internal/kv"

// run is an extent of consecutive full blocks in the radix tree: the keys of
// one chain, or of several chains as far as they agree. Because keys are
// cumulative, equal keys at a depth mean equal chains up to there.
type run struct {
	keys   []uint64 // a part of chain
	chain  []uint64 // of the request that published it, from its first block on
	start  int      // depth in blocks of keys[0]
	parent *run     // the run before it; nil at depth 0
	kids   int      // runs that follow directly
	refs   int      // sequences whose chain runs through the whole of it
	owner  uint64   // serial of the sequence that may extend it in place; 0 for none

	older, newer *run // neighbours in the list of idle runs, when refs is 0
}

// blocks is the KV memory of one engine. Every block is in one of four states:
// private to a sequence (partly filled, or not yet published), used (published
// and referenced), idle (published, referenced by nobody, may be evicted) or
// free. Counts move between states run by run, never block by block.
type blocks struct {
	total, private, used, idle int
	held                       int // published blocks that sequences hold, one that several hold counted for each

	heads map[uint64]*run // each run under its first key
	// lru is the sentinel of the ring of idle runs; lru.newer is evicted first.
	// Release adds a sequence's deepest run first, and a run in use keeps all its
	// ancestors in use. So an idle run is always older in the ring than its
	// parent, the first one has no children, and eviction is leaf-first without
	// a search.
	lru     run
	spare   *run // recycled runs, linked by parent
	stored  uint64
	evicted uint64

	tier   kv.Tier
	log    *blockLog // nil: nobody wants to know
	below  *blocks   // where evicted blocks are kept; nil: nowhere
	keeper sequence  // see keep
}

func newBlocks(total int) *blocks {
	b := &blocks{total: total, heads: make(map[uint64]*run)}
	b.lru.older, b.lru.newer = &b.lru, &b.lru
	return b
}

// room is how many blocks a sequence could be given now: the free and the idle.
func (b *blocks) room() int { return b.total - b.private - b.used }

// again is how many of the blocks that sequences hold are held by others too,
// one of the holders apart.
func (b *blocks) again() int { return b.held - b.used }

func (b *blocks) free() int { return b.room() - b.idle }

// agree returns how many leading keys r has in common with chain. Keys are
// cumulative, so the first difference can be found by bisection.
func (r *run) agree(chain []uint64) int {
	n := min(len(r.keys), len(chain))
	if r.keys[n-1] == chain[n-1] {
		return n
	}
	lo, hi := 1, n-1 // keys[0] agrees, keys[n-1] does not
	for lo < hi {
		mid := (lo + hi) / 2
		if r.keys[mid] == chain[mid] {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// match returns how many leading blocks of chain are cached, and how many of
// those are idle. It changes nothing.
func (b *blocks) match(chain []uint64) (n, idle int) {
	for n < len(chain) {
		r := b.heads[chain[n]]
		if r == nil {
			break
		}
		m := r.agree(chain[n:])
		n += m
		if r.refs == 0 {
			idle += m
		}
		if m < len(r.keys) {
			break
		}
	}
	return n, idle
}

// acquire makes s hold the first n blocks of its chain, which match found.
func (b *blocks) acquire(s *sequence, n int) {
	for s.published < n {
		r := b.heads[s.chain[s.published]]
		if left := n - s.published; left < len(r.keys) {
			r = b.split(r, left)
		}
		b.ref(s, r)
	}
	s.held = n
}

// ref adds r to the end of what s holds.
func (b *blocks) ref(s *sequence, r *run) {
	if r.refs == 0 {
		r.unlink()
		b.idle -= len(r.keys)
		b.used += len(r.keys)
	}
	r.refs++
	s.tail = r
	s.published += len(r.keys)
	b.held += len(r.keys)
}

// split cuts r after its first n blocks and returns the upper part. r itself
// stays the lower part, so that sequences that end in it still do.
func (b *blocks) split(r *run, n int) *run {
	upper := b.take()
	*upper = run{keys: r.keys[:n], chain: r.chain, start: r.start, parent: r.parent, kids: 1, refs: r.refs}
	r.keys, r.start, r.parent = r.keys[n:], r.start+n, upper
	b.heads[upper.keys[0]] = upper
	b.heads[r.keys[0]] = r
	if r.refs == 0 {
		upper.link(r) // directly after its child keeps children older than parents
	}
	return upper
}

// grow gives s private blocks until it holds n, evicting idle ones when none
// is free. The caller has checked that there is room.
func (b *blocks) grow(s *sequence, n int) {
	more := n - s.held
	if short := more - b.free(); short > 0 {
		b.evict(short)
	}
	b.private += more
	s.held = n
}

// evict frees n idle blocks: from the end of the chain that was released
// longest ago.
func (b *blocks) evict(n int) {
	b.evicted += uint64(n)
	for n > 0 {
		r := b.lru.newer
		k := min(n, len(r.keys))
		n -= k
		if b.log != nil || b.below != nil {
			b.leave(r, k)
		}
		b.idle -= k
		if k < len(r.keys) {
			r.keys = r.keys[:len(r.keys)-k]
			return
		}
		delete(b.heads, r.keys[0])
		r.unlink()
		if r.parent != nil {
			r.parent.kids--
		}
		*r = run{parent: b.spare}
		b.spare = r
	}
}

// leave tells of the last k blocks of r, which are to be evicted, and hands them
// down. They are stored below before they are gone here.
func (b *blocks) leave(r *run, k int) {
	end := r.start + len(r.keys)
	if b.below != nil {
		b.below.keep(nobody, 0, r.chain[:end])
	}
	if b.log != nil {
		b.log.removed(b.tier, r.keys[len(r.keys)-k:])
	}
}

// clear evicts all idle blocks for good, and does not tell.
func (b *blocks) clear() {
	log, below := b.log, b.below
	b.log, b.below = nil, nil
	b.evict(b.idle)
	b.log, b.below = log, below
}

// publish turns s's first n blocks, all full, from private into shared. A
// block that another sequence has published meanwhile is kept once: s gives up
// its own copy and refers to the other.
func (b *blocks) publish(s *sequence, n int) {
	for s.published < n {
		chain := s.chain[s.published:n]
		if r := b.heads[chain[0]]; r != nil {
			m := r.agree(chain)
			if m < len(r.keys) {
				r = b.split(r, m)
			}
			b.private -= m
			b.ref(s, r)
			continue
		}
		// The tree is closed under prefixes: none of the later keys is in it.
		b.private -= len(chain)
		b.used += len(chain)
		b.held += len(chain)
		b.stored += uint64(len(chain))
		if b.log != nil {
			b.log.stored(b.tier, s.id, s.chain[:n], s.published)
		}
		s.published = n
		if t := s.tail; t != nil && t.owner == s.serial && t.refs == 1 && t.kids == 0 {
			t.keys, t.chain = s.chain[t.start:n], s.chain
			return
		}
		r := b.take()
		*r = run{keys: chain, chain: s.chain, start: n - len(chain), parent: s.tail, refs: 1, owner: s.serial}
		if s.tail != nil {
			s.tail.kids++
		}
		b.heads[chain[0]] = r
		s.tail = r
	}
}

// release takes everything from s. Its published blocks stay cached.
func (b *blocks) release(s *sequence) {
	b.private -= s.held - s.published
	b.held -= s.published
	for r := s.tail; r != nil; r = r.parent {
		r.refs--
		if r.refs == 0 {
			b.used -= len(r.keys)
			b.idle += len(r.keys)
			r.link(b.lru.older)
		}
	}
	s.tail, s.held, s.published = nil, 0, 0
}

// take returns a run to be overwritten.
func (b *blocks) take() *run {
	r := b.spare
	if r == nil {
		return new(run)
	}
	b.spare = r.parent
	return r
}

// link puts r into the ring directly after at.
func (r *run) link(at *run) {
	r.older, r.newer = at, at.newer
	at.newer.older = r
	at.newer = r
}

func (r *run) unlink() {
	r.older.newer, r.newer.older = r.newer, r.older
	r.older, r.newer = nil, nil
}
