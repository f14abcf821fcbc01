package kv

import "math/bits"

// blockTable leads from hashes of keys to places of blocks. It is extendible
// hashing: a directory of segments, each a page with open addressing that is
// split in two when it fills up and joined with its other half when both are
// nearly empty, so that the table never grows as a whole.
//
// An entry is the first 30 bits of the hash and the place. The first of these
// bits, as many as the segment is deep, choose the segment, the last 12 where
// in it the entry would like to be; so a segment is split and joined without
// looking at a key.
type blockTable struct {
	pages *blockPages
	dir   []uint32 // by the hash's first bits; segments
	shift uint8    // of a hash, to its place in dir: 64 minus log2(len(dir))
	segs  []blockSegment
	gone  []uint32 // segments not in use
	mix   [2]uint64
}

type blockSegment struct {
	page  *blockPage
	count int32
	depth uint8
}

const (
	hashBits  = 64 - placeBits // of a hash that an entry keeps
	placeBits = 34             // of a place
	maxDepth  = hashBits - pageBits

	// Above this many entries a segment is split: a search for what is not there
	// then looks at 13 entries, and at half of that load at 2.
	segmentFull = pageWords * 4 / 5
	// Two halves with this many entries together are joined.
	segmentEmpty = pageWords / 4
)

func (t *blockTable) begin(pages *blockPages) {
	t.pages = pages
	t.seed(0)
	t.dir, t.shift = []uint32{t.newSegment(0)}, 64
}

// seed takes two odd numbers from seed, any will do.
func (t *blockTable) seed(seed uint64) {
	t.mix = [2]uint64{seed*0x9e3779b97f4a7c15 ^ 0xa0761d6478bd642f, (seed^0x8ebc6af09c88c6e3)*0xd6e8feb86659fd93 | 1}
}

// hash spreads keys, which engines may choose badly and clients on purpose.
func (t *blockTable) hash(k Key) uint64 {
	hi, lo := bits.Mul64(uint64(k)^t.mix[0], t.mix[1])
	hi, lo = bits.Mul64(hi^lo^t.mix[0], 0xe7037ed1a0b428db)
	return hi ^ lo
}

// segment returns which segment a hash belongs to.
func (t *blockTable) segment(hash uint64) uint32 { return t.dir[hash>>t.shift] }

// home returns where in a segment an entry or a hash would like to be.
func home(entry uint64) uint64 { return entry >> placeBits & (pageWords - 1) }

func (t *blockTable) newSegment(depth uint8) uint32 {
	page := t.pages.take()
	clear(page[:])
	s := blockSegment{page: page, depth: depth}
	if n := len(t.gone) - 1; n >= 0 {
		id := t.gone[n]
		t.gone = t.gone[:n]
		t.segs[id] = s
		return id
	}
	t.segs = append(t.segs, s)
	return uint32(len(t.segs) - 1)
}

// room returns the segment in which hash can be entered, splitting it when it
// is full. It fails when the segment cannot be split any more.
func (t *blockTable) room(hash uint64) (*blockSegment, bool) {
	for {
		id := t.segment(hash)
		s := &t.segs[id]
		if s.count < segmentFull {
			return s, true
		}
		if s.depth == maxDepth {
			return s, s.count < pageWords-1
		}
		t.split(id, hash)
	}
}

// enter adds an entry to a segment with room.
func (s *blockSegment) enter(entry uint64) {
	i := home(entry)
	for s.page[i] != 0 {
		i = (i + 1) & (pageWords - 1)
	}
	s.page[i] = entry
	s.count++
}

// split gives half of the entries of segment id, in which hash falls, to a new
// one.
func (t *blockTable) split(id uint32, hash uint64) {
	depth := t.segs[id].depth + 1
	if 64-t.shift < depth {
		t.double()
	}
	page := t.segs[id].page
	halves := [2]uint32{id, t.newSegment(depth)}
	fresh := t.pages.take()
	clear(fresh[:])
	t.segs[id] = blockSegment{page: fresh, depth: depth}
	for _, e := range page {
		if e != 0 {
			t.segs[halves[e>>(64-depth)&1]].enter(e)
		}
	}
	t.pages.give(page)
	span := 1 << (64 - t.shift - depth) // directory places of a half
	first := int(hash>>(64-depth)|1) * span
	for i := range span {
		t.dir[first+i] = halves[1]
	}
}

func (t *blockTable) double() {
	dir := make([]uint32, 2*len(t.dir))
	for i, id := range t.dir {
		dir[2*i], dir[2*i+1] = id, id
	}
	t.dir, t.shift = dir, t.shift-1
}

// remove takes out the entry of hash and loc. What was pushed aside moves up,
// so that no search stops too soon.
func (t *blockTable) remove(hash uint64, loc blockLoc) {
	id := t.segment(hash)
	s := &t.segs[id]
	entry := hash>>placeBits<<placeBits | uint64(loc)
	i := home(entry)
	for s.page[i] != entry {
		i = (i + 1) & (pageWords - 1)
	}
	for j := i; ; {
		j = (j + 1) & (pageWords - 1)
		e := s.page[j]
		if e == 0 {
			break
		}
		if (j-home(e))&(pageWords-1) >= (j-i)&(pageWords-1) {
			s.page[i] = e
			i = j
		}
	}
	s.page[i] = 0
	s.count--
	if s.count < segmentEmpty && s.count%64 == 0 && s.depth > 0 {
		t.join(id, hash)
	}
}

// join puts the other half of segment id, in which hash falls, into it when
// both are nearly empty. The directory keeps its size.
func (t *blockTable) join(id uint32, hash uint64) {
	s := &t.segs[id]
	span := 1 << (64 - t.shift - s.depth)
	first := int(hash>>(64-s.depth)^1) * span
	other := t.dir[first]
	o := &t.segs[other]
	if o.depth != s.depth || o.count+s.count > segmentEmpty {
		return
	}
	for _, e := range o.page {
		if e != 0 {
			s.enter(e)
		}
	}
	s.depth--
	for i := range span {
		t.dir[first+i] = id
	}
	t.pages.give(o.page)
	*o = blockSegment{}
	t.gone = append(t.gone, other)
}

// find returns the place of a key, or 0.
func (x *Blocks) find(k Key) blockLoc {
	hash := x.table.hash(k)
	page := x.table.segs[x.table.segment(hash)].page
	for i := home(hash); ; i = (i + 1) & (pageWords - 1) {
		e := page[i]
		if e == 0 {
			return 0
		}
		if (e^hash)>>placeBits == 0 {
			if loc := blockLoc(e & (1<<placeBits - 1)); x.key(loc) == k {
				return loc
			}
		}
	}
}

// put enters a key that is at loc, unless it is somewhere already or there is
// no room.
func (x *Blocks) put(k Key, loc blockLoc) bool {
	hash := x.table.hash(k)
	s, ok := x.table.room(hash)
	if !ok {
		return false
	}
	for i := home(hash); ; i = (i + 1) & (pageWords - 1) {
		e := s.page[i]
		if e == 0 {
			s.page[i] = hash>>placeBits<<placeBits | uint64(loc)
			s.count++
			return true
		}
		if (e^hash)>>placeBits == 0 && x.key(blockLoc(e&(1<<placeBits-1))) == k {
			return false
		}
	}
}

// warm reads where keys would like to be, all at once: the waits for memory
// overlap, which those of one search after another do not.
func (x *Blocks) warm(keys []Key) {
	for _, k := range keys {
		hash := x.table.hash(k)
		x.sink ^= x.table.segs[x.table.segment(hash)].page[home(hash)]
	}
}
