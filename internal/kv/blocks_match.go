package kv

import (
	"math/bits"
	"slices"
)

// Match sets held[h], for every holder h below len(held), to what h has of the
// beginning of chain. stores are holders whose blocks all others can read, too:
// a block that a holder lacks and a store has counts for it at TierShared, and
// its prefix goes on; to a store itself other stores mean nothing.
//
// It costs a search for every run that the chain passes through, and a look at
// the records of those who have it.
func (x *Blocks) Match(chain []Key, stores []int, held []Held) {
	clear(held)
	x.mark(stores, len(held), true)
	for at := 0; at < len(chain); {
		loc := x.find(chain[at])
		if loc == 0 {
			break
		}
		n := x.shared64(loc, chain[at:])
		if !x.extend(blockSpan{loc: loc, n: n, at: int32(at)}, stores, held) {
			break
		}
		at += n
	}
	x.mark(stores, len(held), false)
}

// mark notes which of the first n holders are stores.
func (x *Blocks) mark(stores []int, n int, are bool) {
	if len(stores) == 0 {
		return
	}
	x.shared = slices.Grow(x.shared, max(n-len(x.shared), 0))[:max(n, len(x.shared))]
	for _, s := range stores {
		if 0 <= s && s < n {
			x.shared[s] = are
		}
	}
}

// shared64 returns how many blocks the run at loc and the chain have in common
// from there. Equal keys mean equal prefixes: most runs need one comparison.
func (x *Blocks) shared64(loc blockLoc, chain []Key) int {
	r := x.run(loc.run())
	words := x.arena.words(r.keys)[loc.offset():r.count]
	most := min(len(words), len(chain))
	if words[most-1] == uint64(chain[most-1]) {
		return most
	}
	same, differ := 1, most-1 // that many do; that many and one do not
	for same < differ {
		if mid := (same + differ) / 2; words[mid] == uint64(chain[mid]) {
			same = mid + 1
		} else {
			differ = mid
		}
	}
	return same
}

// blockSpan is n blocks of a run, from loc on, which are those of a chain from
// position at on.
type blockSpan struct {
	loc blockLoc
	n   int
	at  int32
}

// cut returns the part of a run's mask that s is about, from its lowest bit on.
func (s blockSpan) cut(mask uint64) uint64 { return mask >> s.loc.offset() & lowMask(s.n) }

// leading returns how many blocks mask begins with.
func leading(mask uint64) int32 { return int32(bits.TrailingZeros64(^mask)) }

// extend adds to each holder that has all of the chain before s what it has of
// s, and reports whether one has all of it.
func (x *Blocks) extend(s blockSpan, stores []int, held []Held) bool {
	r := x.run(s.loc.run())
	if !r.used {
		r.used = true
	}
	recs := x.records(r)
	if union := x.union(s, recs, stores); union != 0 {
		return x.extendAll(s, recs, union, held)
	}
	whole := false
	for i := 0; i < len(recs); i += 2 {
		tag := recs[i]
		h := tag >> (genBits + tierBits)
		if h >= uint64(len(held)) {
			break
		}
		if i+2 < len(recs) && recs[i+2]>>(genBits+tierBits) == h {
			end := endOf(recs, i, int(h))
			whole = x.extendOne(s, recs[i:end], 0, &held[h]) || whole
			i = end - 2
			continue
		}
		to := &held[h]
		if to.Blocks != s.at || x.tags[tag>>genBits] != tag {
			continue
		}
		n := leading(s.cut(recs[i+1]))
		to.Blocks += n
		to.At[tag>>genBits&(1<<tierBits-1)] += n
		whole = whole || int(n) == s.n
	}
	return whole
}

// union returns what stores together have of s.
func (x *Blocks) union(s blockSpan, recs []uint64, stores []int) uint64 {
	union := uint64(0)
	for _, store := range stores {
		i, _ := searchRecords(recs, uint32(store)<<tierBits)
		for end := endOf(recs, i, store); i < end; i += 2 {
			if x.tags[recs[i]>>genBits] == recs[i] {
				union |= s.cut(recs[i+1])
			}
		}
	}
	return union
}

// extendAll is extend where stores have blocks of s, with which anyone may go
// on.
func (x *Blocks) extendAll(s blockSpan, recs []uint64, union uint64, held []Held) bool {
	whole, i := false, 0
	for h := range held {
		end := endOf(recs, i, h)
		if x.shared[h] {
			whole = x.extendOne(s, recs[i:end], 0, &held[h]) || whole
		} else {
			whole = x.extendOne(s, recs[i:end], union, &held[h]) || whole
		}
		i = end
	}
	return whole
}

// endOf returns where the records of a holder, which begin at word i, end.
func endOf(recs []uint64, i, holder int) int {
	for i < len(recs) && recs[i]>>(genBits+tierBits) == uint64(holder) {
		i += 2
	}
	return i
}

// extendOne adds to what a holder has, by its records (fastest tier first) and
// by what the stores have, and reports whether it has all of s.
func (x *Blocks) extendOne(s blockSpan, recs []uint64, union uint64, to *Held) bool {
	if to.Blocks != s.at {
		return false
	}
	if len(recs) <= 2 {
		return x.extendBy(s, recs, union, to)
	}
	var at [1 << tierBits]uint64
	have := uint64(0)
	for i := 0; i < len(recs); i += 2 {
		slot := recs[i] >> genBits
		if x.tags[slot] == recs[i] {
			mask := s.cut(recs[i+1]) &^ have
			at[slot&(1<<tierBits-1)] = mask
			have |= mask
		}
	}
	at[TierShared] |= union &^ have
	n := leading(have | union)
	to.Blocks += n
	for tier := range to.At {
		to.At[tier] += int32(bits.OnesCount64(at[tier] & lowMask(int(n))))
	}
	return int(n) == s.n
}

// extendBy is extendOne for the many holders that have one record, or none.
func (x *Blocks) extendBy(s blockSpan, recs []uint64, union uint64, to *Held) bool {
	have, tier := uint64(0), TierShared
	if len(recs) > 0 && x.tags[recs[0]>>genBits] == recs[0] {
		have, tier = s.cut(recs[1]), Tier(recs[0]>>genBits&(1<<tierBits-1))
	}
	n := leading(have | union)
	own := int32(bits.OnesCount64(have & lowMask(int(n))))
	to.Blocks += n
	to.At[tier] += own
	to.At[TierShared] += n - own
	return int(n) == s.n
}
