package kv

import "math/bits"

// runBlocks is the length of a run: one bit of a mask per block.
const runBlocks = 64

const (
	runsPerChunk = 1024
	offsetBits   = 6
	maxRuns      = 1<<(placeBits-offsetBits) - 1
)

// runRef names a run; 0 is none.
type runRef uint32

// blockLoc is the place of a block: its run, and its offset there. 0 is none.
type blockLoc uint64

func locOf(ref runRef, offset int) blockLoc { return blockLoc(ref)<<offsetBits | blockLoc(offset) }

func (l blockLoc) run() runRef { return runRef(l >> offsetBits) }

func (l blockLoc) offset() int { return int(l & (runBlocks - 1)) }

// blockRun is blocks that follow each other, and who has them.
type blockRun struct {
	parent     Key // of the first block; 0 none or unknown
	keys       blockAddr
	owners     blockAddr // records of two words: tag, mask; in a free run the next free one
	owned      uint16    // records
	count      uint8     // blocks; 0 only in a free run
	keyClass   uint8
	ownerClass uint8
	used       bool // since the clock's hand came by
}

// roomAfter reports whether the block at offset is the last and another fits
// behind it.
func (r *blockRun) roomAfter(offset int) bool {
	return offset+1 == int(r.count) && r.count < runBlocks
}

// lowMask returns n ones, n from 0 to 64.
func lowMask(n int) uint64 { return 1<<n - 1 }

func (x *Blocks) run(ref runRef) *blockRun {
	return &x.runs[ref/runsPerChunk][ref%runsPerChunk]
}

func (x *Blocks) key(loc blockLoc) Key {
	return Key(x.arena.words(x.run(loc.run()).keys)[loc.offset()])
}

func (x *Blocks) records(r *blockRun) []uint64 {
	if r.owned == 0 {
		return nil
	}
	return x.arena.words(r.owners)[:2*int(r.owned)]
}

// next returns the place behind at when k is what is there, or else 0.
func (x *Blocks) next(at blockLoc, k Key) blockLoc {
	if at == 0 || at.offset()+1 >= int(x.run(at.run()).count) || x.key(at+1) != k {
		return 0
	}
	return at + 1
}

// common returns how many of keys, of which the first is at loc, follow each
// other in its run.
func (x *Blocks) common(loc blockLoc, keys []Key) int {
	r := x.run(loc.run())
	words := x.arena.words(r.keys)[loc.offset():r.count]
	n := 1
	for n < min(len(words), len(keys)) && words[n] == uint64(keys[n]) {
		n++
	}
	return n
}

// together returns the blocks of one run that the first of keys name, up or
// down from the first, which is at loc, and how many keys these are.
func (x *Blocks) together(loc blockLoc, keys []Key) (mask uint64, n int) {
	if n = x.common(loc, keys); n > 1 {
		return lowMask(n) << loc.offset(), n
	}
	at := loc.offset()
	words := x.arena.words(x.run(loc.run()).keys)
	for n < len(keys) && n <= at && words[at-n] == uint64(keys[n]) {
		n++
	}
	return lowMask(n) << (at + 1 - n), n
}

// newRun returns an empty run, which the caller fills, or 0 when there are too
// many.
func (x *Blocks) newRun(parent Key) runRef {
	ref := x.free
	switch {
	case ref != 0:
		x.free = runRef(x.run(ref).owners)
	case x.end > maxRuns:
		return 0
	default:
		ref = x.end
		if int(ref/runsPerChunk) == len(x.runs) {
			x.runs = append(x.runs, new([runsPerChunk]blockRun))
		}
		x.end++
		if x.unswept > 0 {
			x.unswept++ // the round is longer now
		}
	}
	*x.run(ref) = blockRun{parent: parent, keys: x.arena.take(0)}
	x.live++
	return ref
}

// fit makes room for n keys in r, or gives back what n keys do not need.
func (x *Blocks) fit(r *blockRun, n int) {
	class := classFor(n)
	if class == r.keyClass {
		return
	}
	addr := x.arena.take(class)
	copy(x.arena.words(addr)[:1<<min(class, r.keyClass)], x.arena.words(r.keys))
	x.arena.give(r.keys, r.keyClass)
	r.keys, r.keyClass = addr, class
}

// cut takes the blocks from offset n on out of the table and their run, and
// frees the run when none is left. Nobody has these blocks.
func (x *Blocks) cut(ref runRef, n int) {
	r := x.run(ref)
	for i, k := range x.arena.words(r.keys)[n:r.count] {
		x.table.remove(x.table.hash(Key(k)), locOf(ref, n+i))
	}
	x.blocks -= int(r.count) - n
	r.count = uint8(n)
	if n > 0 {
		if n <= 1<<r.keyClass/4 {
			x.fit(r, 2*n)
		}
		return
	}
	x.arena.give(r.keys, r.keyClass)
	if r.owned > 0 {
		x.arena.give(r.owners, r.ownerClass)
	}
	*r = blockRun{owners: blockAddr(x.free)}
	x.free = ref
	x.live--
}

// searchRecords returns the word at which the record of slot begins, or would.
func searchRecords(recs []uint64, slot uint32) (at int, found bool) {
	lo, hi := 0, len(recs)/2
	for lo < hi {
		if mid := (lo + hi) / 2; uint32(recs[2*mid]>>genBits) < slot {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return 2 * lo, 2*lo < len(recs) && uint32(recs[2*lo]>>genBits) == slot
}

// credit gives slot the blocks of a run that mask names.
func (x *Blocks) credit(ref runRef, slot uint32, mask uint64) {
	r := x.run(ref)
	recs := x.records(r)
	i, found := searchRecords(recs, slot)
	if !found {
		if i = x.addRecord(r, i, slot); i == none {
			x.refused += uint64(bits.OnesCount64(mask))
			x.unswept = int(x.end) - 1 // nobody may have them
			return
		}
		recs = x.records(r)
	}
	if recs[i] != x.tags[slot] {
		recs[i], recs[i+1] = x.tags[slot], 0
	}
	x.counts[slot] += bits.OnesCount64(mask &^ recs[i+1])
	recs[i+1] |= mask
}

// addRecord makes an empty record of slot at word i of r's records and returns
// where it came to be, or none when there are too many.
func (x *Blocks) addRecord(r *blockRun, i int, slot uint32) int {
	if r.owned == 0 {
		r.owners, r.ownerClass = x.arena.take(1), 1
	} else if 2*int(r.owned) == 1<<r.ownerClass {
		x.purge(r)
		if r.owned == 0 {
			return x.addRecord(r, 0, slot)
		}
		i, _ = searchRecords(x.records(r), slot)
		if 2*int(r.owned) == 1<<r.ownerClass && !x.fitOwners(r, r.ownerClass+1) {
			return none
		}
	}
	r.owned++
	recs := x.records(r)
	copy(recs[i+2:], recs[i:])
	recs[i], recs[i+1] = x.tags[slot], 0
	return i
}

// fitOwners moves r's records to an item of another size.
func (x *Blocks) fitOwners(r *blockRun, class uint8) bool {
	if class >= itemClasses {
		return false
	}
	addr := x.arena.take(class)
	copy(x.arena.words(addr), x.records(r))
	x.arena.give(r.owners, r.ownerClass)
	r.owners, r.ownerClass = addr, class
	return true
}

// shrinkOwners gives back what r's records do not need.
func (x *Blocks) shrinkOwners(r *blockRun) {
	if r.owned == 0 {
		x.arena.give(r.owners, r.ownerClass)
		r.owners, r.ownerClass = 0, 0
	} else if 2*int(r.owned) <= 1<<r.ownerClass/4 {
		x.fitOwners(r, classFor(4*int(r.owned)))
	}
}

// purge takes stale records out of r.
func (x *Blocks) purge(r *blockRun) {
	recs := x.records(r)
	n := 0
	for i := 0; i < len(recs); i += 2 {
		if x.tags[recs[i]>>genBits] == recs[i] {
			recs[n], recs[n+1] = recs[i], recs[i+1]
			n += 2
		}
	}
	if n < len(recs) {
		r.owned = uint16(n / 2)
		x.shrinkOwners(r)
	}
}

// debit takes the blocks of a run that mask names from slot.
func (x *Blocks) debit(ref runRef, slot uint32, mask uint64) {
	r := x.run(ref)
	recs := x.records(r)
	i, found := searchRecords(recs, slot)
	if !found || recs[i] != x.tags[slot] {
		return
	}
	gone := recs[i+1] & mask
	recs[i+1] &^= mask
	x.counts[slot] -= bits.OnesCount64(gone)
	if recs[i+1] == 0 {
		copy(recs[i:], recs[i+2:])
		r.owned--
		x.shrinkOwners(r)
	}
	if gone>>(r.count-1) != 0 {
		x.trim(ref)
	}
}

// trim cuts off the end of a run that nobody has.
func (x *Blocks) trim(ref runRef) {
	r := x.run(ref)
	recs := x.records(r)
	held := uint64(0)
	for i := 0; i < len(recs); i += 2 {
		if x.tags[recs[i]>>genBits] != recs[i] {
			continue
		}
		if held |= recs[i+1]; held>>(r.count-1) != 0 {
			return
		}
	}
	x.cut(ref, bits.Len64(held))
}
