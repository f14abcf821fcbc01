package kv

import "math/bits"

// Tiers is how many tiers there are.
const Tiers = int(TierOther) + 1

// Held is what one holder has of a chain's beginning.
type Held struct {
	Blocks int32        // leading blocks of the chain that the holder has at some tier, without a hole
	At     [Tiers]int32 // of these, those whose fastest tier is this one; sums to Blocks
}

// Blocks is the index of what engines say they hold: for every holder (a small
// dense number) and tier, which blocks.
//
// Blocks that came together, each following the one before, are a run of at
// most 64. A run grows in place when what follows its last block is stored, and
// is never split: a table leads from every key to its run and its place in it,
// which it keeps for as long as the run lives, so that a chain may enter a run in
// its middle, and another that parts from it there begins a run of its own.
//
// Who has what of a run is a list of records sorted by holder and tier, each a
// mask with one bit per block and the generation in which it was written. To
// clear a holder is to begin a new generation; what is older counts for nothing
// and is taken away when something comes by: another use of the run, or Sweep.
//
// Memory is pages without pointers that the garbage collector does not look
// into, and nothing is ever copied as a whole when it grows: no call takes
// longer for the index being large. A block costs about 25 bytes, a holder's
// record of a run 16.
//
// Blocks serves one caller at a time: Match, too, notes what is used.
type Blocks struct {
	pages blockPages
	arena blockArena // keys and records
	table blockTable

	runs    []*[runsPerChunk]blockRun
	end     runRef // runs below it were made once; 0 is none
	free    runRef // freed runs, chained through owners
	live    int    // runs
	blocks  int    // in runs
	max     int    // blocks
	hand    runRef // of the clock that looks for what to evict
	cursor  runRef // of Sweep
	unswept int    // runs to visit before everything stale is gone

	tags    []uint64 // by slot: the first word of its live records
	counts  []int    // by slot: blocks
	shared  []bool   // scratch of Match, by holder
	sink    uint64   // keeps warm's loads
	evicted uint64
	refused uint64
}

// BlocksStats says how large an index is and what it had to give up.
type BlocksStats struct {
	Blocks  int    // distinct blocks
	Runs    int    // the runs they lie in
	Max     int    // distinct blocks allowed
	Bytes   int64  // memory held
	Stale   int    // runs that Sweep has yet to visit after clears
	Evicted uint64 // blocks given up because of Max, ever
	Refused uint64 // blocks that could not be stored, ever: see Store
}

// The parts of a slot, which is a holder and a tier: holder<<3 | tier.
const (
	tierBits   = 3
	maxHolders = 1 << 20
)

// genBits is how much of a tag is its generation. It does not run out: at a
// thousand clears a second it lasts 30 years.
const genBits = 40

// NewBlocks returns an empty index of at most limit distinct blocks, of which
// each also costs memory for every holder.
func NewBlocks(limit int) *Blocks {
	x := &Blocks{end: 1, hand: 1, cursor: 1}
	x.SetMax(limit)
	x.arena.begin(&x.pages)
	x.table.begin(&x.pages)
	return x
}

// Seed makes the table's layout depend on seed, so that nobody can choose keys
// that crowd one part of it. The index must be empty and new.
func (x *Blocks) Seed(seed uint64) { x.table.seed(seed) }

// SetMax changes how many distinct blocks there may be. When there are more,
// Sweep and later Stores evict them in small portions.
func (x *Blocks) SetMax(limit int) { x.max = min(limit, maxRuns) }

// Store says that holder has keys at tier. They follow each other, the first
// follows parent; a parent of 0 is none, or unknown. Beyond the maximum, runs
// that neither Match nor Store has come by for long are evicted.
//
// Refused and counted are holders of 1<<20 and more, more than 32,768 records
// of one run, and blocks whose keys collide in 30 bits by the thousand.
func (x *Blocks) Store(holder int, tier Tier, parent Key, keys []Key) {
	if uint(holder) >= maxHolders || tier > TierOther {
		x.refused += uint64(len(keys))
		return
	}
	slot := x.slot(holder, tier)
	x.warm(keys)
	work := len(keys)
	var at blockLoc
	if parent != 0 {
		at = x.find(parent)
	}
	for len(keys) > 0 {
		n := 0
		if at, n = x.storeSome(slot, at, parent, keys); n == 0 {
			x.refused += uint64(len(keys))
			break
		}
		parent, keys = keys[n-1], keys[n:]
	}
	x.tidy(work)
}

// storeSome stores the first of keys, as many as lie in one run, and returns
// the place of the last of these. The first follows the block at.
func (x *Blocks) storeSome(slot uint32, at blockLoc, parent Key, keys []Key) (last blockLoc, n int) {
	loc := x.next(at, keys[0])
	if loc == 0 {
		loc = x.find(keys[0])
	}
	if loc == 0 {
		if loc, n = x.append(at, parent, keys); n == 0 {
			return 0, 0
		}
	} else {
		n = x.common(loc, keys)
	}
	// What is new is not used yet: the clock's hand has just been where it lies.
	if r := x.run(loc.run()); r.owned > 0 {
		r.used = true
	}
	x.credit(loc.run(), slot, lowMask(n)<<loc.offset())
	return loc + blockLoc(n-1), n
}

// append makes places for keys, of which the first is in none: behind the
// block at when nothing follows it, or else in a new run. It ends at a key that
// is somewhere already.
func (x *Blocks) append(at blockLoc, parent Key, keys []Key) (first blockLoc, n int) {
	ref := at.run()
	if at == 0 || !x.run(ref).roomAfter(at.offset()) {
		if ref = x.newRun(parent); ref == 0 {
			return 0, 0
		}
	}
	r := x.run(ref)
	from := int(r.count)
	room := min(runBlocks-from, len(keys))
	x.fit(r, from+room)
	words := x.arena.words(r.keys)
	for n < room {
		words[from+n] = uint64(keys[n])
		if !x.put(keys[n], locOf(ref, from+n)) {
			break
		}
		n++
	}
	r.count += uint8(n)
	x.blocks += n
	if n < room {
		x.cut(ref, from+n)
	}
	return locOf(ref, from), n
}

// Remove says that holder no longer has keys at tier. They may come in any
// order; those of one run cost least together.
func (x *Blocks) Remove(holder int, tier Tier, keys []Key) {
	slot := uint32(holder)<<tierBits | uint32(tier)
	if uint(holder) >= maxHolders || int(slot) >= len(x.tags) || tier > TierOther {
		return
	}
	x.warm(keys)
	work := len(keys)
	for len(keys) > 0 {
		n := 1
		if loc := x.find(keys[0]); loc != 0 {
			var mask uint64
			mask, n = x.together(loc, keys)
			x.debit(loc.run(), slot, mask)
		}
		keys = keys[n:]
	}
	x.tidy(work)
}

// Clear says that holder has nothing any more. It costs the same whatever it
// had; Sweep does the rest.
func (x *Blocks) Clear(holder int) {
	for tier := range Tier(Tiers) {
		x.ClearTier(holder, tier)
	}
}

// ClearTier says that holder has nothing at tier any more, at the same cost.
func (x *Blocks) ClearTier(holder int, tier Tier) {
	if x.Count(holder, tier) == 0 {
		return
	}
	slot := holder<<tierBits | int(tier)
	x.tags[slot]++
	x.counts[slot] = 0
	x.unswept = int(x.end) - 1
}

// Has reports whether holder has key at tier.
func (x *Blocks) Has(holder int, tier Tier, key Key) bool {
	if x.Count(holder, tier) == 0 {
		return false
	}
	loc := x.find(key)
	if loc == 0 {
		return false
	}
	slot := uint32(holder)<<tierBits | uint32(tier)
	recs := x.records(x.run(loc.run()))
	i, found := searchRecords(recs, slot)
	return found && recs[i] == x.tags[slot] && recs[i+1]>>loc.offset()&1 != 0
}

// Count returns how many blocks holder has at tier.
func (x *Blocks) Count(holder int, tier Tier) int {
	slot := holder<<tierBits | int(tier)
	if holder < 0 || tier > TierOther || slot >= len(x.counts) {
		return 0
	}
	return x.counts[slot]
}

// Runs yields what holder has, in pieces that Store can take again in the
// same order, and stops when yield returns false. The keys are good until yield
// returns; the index must not change meanwhile.
func (x *Blocks) Runs(holder int, yield func(parent Key, tier Tier, keys []Key) bool) {
	if holder < 0 || holder >= maxHolders {
		return
	}
	var keys [runBlocks]Key
	for ref := runRef(1); ref < x.end; ref++ {
		r := x.run(ref)
		if r.count == 0 {
			continue
		}
		recs := x.records(r)
		i, _ := searchRecords(recs, uint32(holder)<<tierBits)
		for ; i < len(recs) && int(recs[i]>>(genBits+tierBits)) == holder; i += 2 {
			slot := recs[i] >> genBits
			if x.tags[slot] == recs[i] && !x.pieces(r, recs[i+1], &keys, Tier(slot&(1<<tierBits-1)), yield) {
				return
			}
		}
	}
}

// pieces yields what mask says of r, hole by hole.
func (x *Blocks) pieces(r *blockRun, mask uint64, keys *[runBlocks]Key, tier Tier, yield func(Key, Tier, []Key) bool) bool {
	words, parent := x.arena.words(r.keys), r.parent
	for at := 0; mask>>at != 0; {
		at += bits.TrailingZeros64(mask >> at)
		if at > 0 {
			parent = Key(words[at-1])
		}
		n := bits.TrailingZeros64(^(mask >> at))
		for i := range n {
			keys[i] = Key(words[at+i])
		}
		if !yield(parent, tier, keys[:n]) {
			return false
		}
		at += n
	}
	return true
}

// Stats returns how large the index is. It costs next to nothing.
func (x *Blocks) Stats() BlocksStats {
	return BlocksStats{
		Blocks:  x.blocks,
		Runs:    x.live,
		Max:     x.max,
		Bytes:   x.bytes(),
		Stale:   x.unswept,
		Evicted: x.evicted,
		Refused: x.refused,
	}
}

// slot returns the slot of holder and tier, making room for the holder.
func (x *Blocks) slot(holder int, tier Tier) uint32 {
	for len(x.tags) <= holder<<tierBits|int(tier) {
		x.tags = append(x.tags, uint64(len(x.tags))<<genBits)
		x.counts = append(x.counts, 0)
	}
	return uint32(holder)<<tierBits | uint32(tier)
}
