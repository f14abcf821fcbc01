package kv

// pageWords is the size of a page: 32 KiB, which the runtime hands out without
// rounding up.
const pageWords = 1 << pageBits

const pageBits = 12

// blockPage is the unit in which memory is taken from the runtime and given
// back to it.
type blockPage [pageWords]uint64

// blockPages keeps a few pages that are not in use, an eighth of those that
// are, so that taking one seldom costs more than finding it.
type blockPages struct {
	spare []*blockPage
	out   int // pages in use
	large int // words of items larger than a page
}

// take returns a page with anything in it.
func (p *blockPages) take() *blockPage {
	p.out++
	if n := len(p.spare) - 1; n >= 0 {
		page := p.spare[n]
		p.spare[n] = nil
		p.spare = p.spare[:n]
		return page
	}
	return new(blockPage)
}

func (p *blockPages) give(page *blockPage) {
	p.out--
	if len(p.spare) < 16+p.out/8 {
		p.spare = append(p.spare, page)
	}
}

// itemClasses is how many sizes of items there are: 1<<class words. The largest
// are records of 32,768 slots.
const itemClasses = 17

// blockAddr is where an item is: chunk<<pageBits | word.
type blockAddr uint32

// blockArena hands out items of 1, 2, 4 ... words. A chunk is a page of items
// of one size, or one item that is larger than a page; when its last item is
// freed it serves other sizes.
type blockArena struct {
	pages  *blockPages
	memory [][]uint64 // by chunk; nil when the chunk is not in use
	chunks []blockChunk
	open   [itemClasses]int32 // first chunk with room; none
	unused []int32            // chunk numbers
}

// blockChunk keeps the books of one chunk.
type blockChunk struct {
	next, prev int32  // chunks of the class that have room; none at the ends
	freed      uint16 // last item freed, plus 1; it leads to the one before; 0 ends
	fresh      uint16 // items from this one on were never handed out
	live       uint16 // items handed out
	class      uint8
}

func (a *blockArena) begin(pages *blockPages) {
	a.pages = pages
	for i := range a.open {
		a.open[i] = none
	}
}

// words returns the item at addr and what lies behind it.
func (a *blockArena) words(addr blockAddr) []uint64 {
	return a.memory[addr>>pageBits][addr&(pageWords-1):]
}

// itemsIn returns how many items of a class fill a chunk.
func itemsIn(class uint8) uint16 { return uint16(max(pageWords>>class, 1)) }

// classFor returns the class that holds n words, of which there is at least one.
func classFor(n int) uint8 {
	class := uint8(0)
	for 1<<class < n {
		class++
	}
	return class
}

// take returns an item with anything in it.
func (a *blockArena) take(class uint8) blockAddr {
	id := a.open[class]
	if id == none {
		id = a.openChunk(class)
	}
	c := &a.chunks[id]
	item := c.fresh
	if c.freed != 0 {
		item = c.freed - 1
		c.freed = uint16(a.memory[id][int(item)<<class])
	} else {
		c.fresh++
	}
	c.live++
	if c.live == itemsIn(class) {
		a.unlink(id)
	}
	return blockAddr(id)<<pageBits | blockAddr(item)<<class
}

func (a *blockArena) give(addr blockAddr, class uint8) {
	id := int32(addr >> pageBits)
	c := &a.chunks[id]
	if c.live == itemsIn(class) {
		a.link(id)
	}
	item := (addr & (pageWords - 1)) >> class
	a.memory[id][int(item)<<class] = uint64(c.freed)
	c.freed = uint16(item) + 1
	c.live--
	if c.live == 0 {
		a.closeChunk(id)
	}
}

func (a *blockArena) openChunk(class uint8) int32 {
	id := int32(len(a.chunks))
	if n := len(a.unused) - 1; n >= 0 {
		id = a.unused[n]
		a.unused = a.unused[:n]
	} else {
		a.chunks = append(a.chunks, blockChunk{})
		a.memory = append(a.memory, nil)
	}
	if class > pageBits {
		a.memory[id] = make([]uint64, 1<<class)
		a.pages.large += 1 << class
	} else {
		a.memory[id] = a.pages.take()[:]
	}
	a.chunks[id] = blockChunk{class: class}
	a.link(id)
	return id
}

func (a *blockArena) closeChunk(id int32) {
	a.unlink(id)
	if class := a.chunks[id].class; class > pageBits {
		a.pages.large -= 1 << class
	} else {
		a.pages.give((*blockPage)(a.memory[id]))
	}
	a.memory[id] = nil
	a.unused = append(a.unused, id)
}

// link puts a chunk before the others of its class that have room.
func (a *blockArena) link(id int32) {
	c := &a.chunks[id]
	c.next, c.prev = a.open[c.class], none
	if c.next != none {
		a.chunks[c.next].prev = id
	}
	a.open[c.class] = id
}

func (a *blockArena) unlink(id int32) {
	c := &a.chunks[id]
	if c.prev != none {
		a.chunks[c.prev].next = c.next
	} else {
		a.open[c.class] = c.next
	}
	if c.next != none {
		a.chunks[c.next].prev = c.prev
	}
}
