package kv

import "math/bits"

// Sweep visits at most n runs to take away what clears made stale and to evict
// what is beyond the maximum. It returns false when nothing is left to do.
// Store and Remove call it for a few runs each, so that an index that is used
// tidies itself; an idle one waits for its owner.
func (x *Blocks) Sweep(n int) bool {
	for ; n > 0 && x.unswept > 0; n-- {
		x.unswept--
		x.cursor = x.follow(x.cursor)
		if r := x.run(x.cursor); r.count > 0 {
			x.purge(r)
			x.trim(x.cursor)
		}
	}
	x.evict(n)
	return x.unswept > 0 || x.over()
}

// over reports whether there are more blocks than allowed.
func (x *Blocks) over() bool { return x.blocks > x.max && x.live > 0 }

// follow returns the run after ref, round and round.
func (x *Blocks) follow(ref runRef) runRef {
	if ref++; ref < x.end {
		return ref
	}
	return 1
}

// tidy does the share of the common work that falls to a call with n keys.
func (x *Blocks) tidy(n int) {
	if x.unswept > 0 {
		x.Sweep(1 + n/16)
	}
	if x.over() {
		x.evict(evictVisits * (2 + n))
	}
}

// evictVisits is how many runs in use the clock's hand passes before it takes
// one all the same.
const evictVisits = 64

// evict gives up runs until there are no more blocks than allowed, visiting at
// most n. Those used since the last visit are passed over.
func (x *Blocks) evict(n int) {
	passed := 0
	for ; n > 0 && x.over(); n-- {
		x.hand = x.follow(x.hand)
		r := x.run(x.hand)
		switch {
		case r.count == 0:
		case r.used && passed < evictVisits:
			r.used = false
			passed++
		default:
			x.drop(x.hand)
			passed = 0
		}
	}
}

// drop takes a run from all who have it.
func (x *Blocks) drop(ref runRef) {
	r := x.run(ref)
	recs := x.records(r)
	for i := 0; i < len(recs); i += 2 {
		if slot := recs[i] >> genBits; x.tags[slot] == recs[i] {
			x.counts[slot] -= bits.OnesCount64(recs[i+1])
		}
	}
	x.evicted += uint64(r.count)
	x.cut(ref, 0)
}

// The sizes of what there are many of.
const (
	bytesOfRun     = 24
	bytesOfChunk   = 16 + 24 // its books and its memory's slice
	bytesOfSegment = 16
)

// bytes returns the memory that the index holds.
func (x *Blocks) bytes() int64 {
	pages := x.pages.out + len(x.pages.spare)
	n := pages*pageWords*8 + x.pages.large*8
	n += len(x.runs) * runsPerChunk * bytesOfRun
	n += cap(x.arena.chunks)*bytesOfChunk + cap(x.table.segs)*bytesOfSegment
	n += 4 * (cap(x.table.dir) + cap(x.table.gone) + cap(x.arena.unused))
	n += 8 * (cap(x.tags) + cap(x.counts) + cap(x.pages.spare) + cap(x.runs))
	return int64(n)
}
