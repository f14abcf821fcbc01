package route

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// blockLRU is a prefix index as rival routers keep it: for every slot a plain
// LRU of block keys. Unlike kv.Index it evicts block by block in the order of
// insertion, so that the head of a chain goes before its tail, and it does not
// know that a key implies its prefix. Beside a rival that is the point.
//
// A key costs one map-like lookup and a walk over the slots that hold it.
// Nothing is allocated once the arrays have grown to the capacity in use.
type blockLRU struct {
	buckets  []int32 // heads of chains of nodes, a power of two; none where empty
	nodes    []blockNode
	holds    []blockHold
	freeNode int32 // free nodes, chained through next
	freeHold int32 // free holds, chained through nextHolder
	live     int   // nodes in use
	slots    []blockSlot
}

// blockNode is one block key and the list of slots that hold it.
type blockNode struct {
	key     kv.Key
	next    int32 // in the bucket
	holders int32
	used    fleet.Time // for indexes that forget by age
}

// blockHold says that a slot holds a block, and where it is in the slot's LRU.
type blockHold struct {
	node         int32
	slot         int32
	nextHolder   int32
	newer, older int32
	refs         int32 // for indexes that count who uses a block
}

type blockSlot struct {
	newest, oldest int32
	held           int
	capacity       int // 0 until the first insertion
}

func newBlockLRU() *blockLRU {
	x := &blockLRU{buckets: make([]int32, 1<<10), freeNode: none, freeHold: none}
	for i := range x.buckets {
		x.buckets[i] = none
	}
	return x
}

// none ends the lists of this package that are chained by index.
const none = -1

// grow makes room for slots below n.
func (x *blockLRU) grow(n int) {
	for len(x.slots) < n {
		x.slots = append(x.slots, blockSlot{newest: none, oldest: none})
	}
}

// blocking says how the keys of a chain make blocks of a rival's size: every
// stride-th key ends a block, or each key stands for several blocks.
type blocking struct {
	stride   int // keys per block
	perKey   int // blocks per key; one of the two is 1
	maxBlock int // blocks of a prompt that are looked at
}

// newBlocking returns how keys of keyTokens tokens make blocks of blockTokens
// tokens, to the nearest whole number of either; of a prompt the first
// maxTokens count.
func newBlocking(keyTokens, blockTokens float64, maxTokens int) blocking {
	if keyTokens <= 0 {
		keyTokens = blockTokens
	}
	b := blocking{stride: max(int(math.Round(blockTokens/keyTokens)), 1), perKey: max(int(math.Round(keyTokens/blockTokens)), 1)}
	b.maxBlock = max(maxTokens/int(blockTokens)/b.perKey, 1)
	return b
}

// full returns how many full blocks, or keys where they stand for several, the
// chain has.
func (b blocking) full(chain []kv.Key) int { return min(len(chain)/b.stride, b.maxBlock) }

// key returns the key of the i-th block: that of its last part, which implies
// all before it.
func (b blocking) key(chain []kv.Key, i int) kv.Key { return chain[(i+1)*b.stride-1] }

// match adds to count, by slot, the blocks of the chain that the slot holds. It
// ends at the first block that nobody holds; a slot that lacks one in the middle
// is credited with what comes after.
func (x *blockLRU) match(b blocking, chain []kv.Key, count []int32) {
	for i := range b.full(chain) {
		ref := x.find(b.key(chain, i))
		if ref == none {
			return
		}
		for h := x.nodes[ref].holders; h != none; h = x.holds[h].nextHolder {
			if s := int(x.holds[h].slot); s < len(count) {
				count[s]++
			}
		}
	}
}

// insert makes the chain's blocks the most recent of slot, the last block most
// of all, and evicts what is too much. The capacity, in keys, is fixed by the
// slot's first insertion.
func (x *blockLRU) insert(slot, capacity int, b blocking, chain []kv.Key) {
	x.grow(slot + 1)
	s := &x.slots[slot]
	if s.capacity == 0 {
		s.capacity = max(capacity, 1)
	}
	for i := range b.full(chain) {
		x.touch(slot, b.key(chain, i))
		if s.held > s.capacity {
			x.drop(s.oldest)
		}
	}
}

// shrink evicts slot's oldest blocks until it holds at most capacity.
func (x *blockLRU) shrink(slot, capacity int) {
	for x.slots[slot].held > capacity {
		x.drop(x.slots[slot].oldest)
	}
}

// evict makes every slot forget a block.
func (x *blockLRU) evict(ref int32) {
	for h := x.nodes[ref].holders; h != none; {
		next := x.holds[h].nextHolder
		x.drop(h)
		h = next
	}
}

// clear forgets everything slot holds, and its capacity.
func (x *blockLRU) clear(slot int) {
	if slot >= len(x.slots) {
		return
	}
	for x.slots[slot].oldest != none {
		x.drop(x.slots[slot].oldest)
	}
	x.slots[slot].capacity = 0
}

func (x *blockLRU) bucket(k kv.Key) *int32 { return &x.buckets[uint64(k)&uint64(len(x.buckets)-1)] }

func (x *blockLRU) find(k kv.Key) int32 {
	ref := *x.bucket(k)
	for ref != none && x.nodes[ref].key != k {
		ref = x.nodes[ref].next
	}
	return ref
}

// touch makes k the most recent of slot, and returns the hold.
func (x *blockLRU) touch(slot int, k kv.Key) int32 {
	ref := x.find(k)
	if ref == none {
		ref = x.addNode(k)
	}
	if h := x.hold(ref, slot); h != none {
		x.unlink(h)
		x.linkNewest(h)
		return h
	}
	h := x.freeHold
	if h == none {
		x.holds = append(x.holds, blockHold{})
		h = int32(len(x.holds) - 1)
	} else {
		x.freeHold = x.holds[h].nextHolder
	}
	x.holds[h] = blockHold{node: ref, slot: int32(slot), nextHolder: x.nodes[ref].holders}
	x.nodes[ref].holders = h
	x.slots[slot].held++
	x.linkNewest(h)
	return h
}

// hold returns slot's hold of a block.
func (x *blockLRU) hold(ref int32, slot int) int32 {
	h := x.nodes[ref].holders
	for h != none && int(x.holds[h].slot) != slot {
		h = x.holds[h].nextHolder
	}
	return h
}

func (x *blockLRU) addNode(k kv.Key) int32 {
	if x.live >= len(x.buckets) {
		x.rehash(2 * len(x.buckets))
	}
	ref := x.freeNode
	if ref == none {
		x.nodes = append(x.nodes, blockNode{})
		ref = int32(len(x.nodes) - 1)
	} else {
		x.freeNode = x.nodes[ref].next
	}
	head := x.bucket(k)
	x.nodes[ref] = blockNode{key: k, next: *head, holders: none}
	*head = ref
	x.live++
	return ref
}

func (x *blockLRU) rehash(n int) {
	old := x.buckets
	x.buckets = make([]int32, n)
	for i := range x.buckets {
		x.buckets[i] = none
	}
	for _, ref := range old {
		for ref != none {
			next := x.nodes[ref].next
			head := x.bucket(x.nodes[ref].key)
			x.nodes[ref].next = *head
			*head = ref
			ref = next
		}
	}
}

func (x *blockLRU) linkNewest(h int32) {
	s := &x.slots[x.holds[h].slot]
	x.holds[h].newer, x.holds[h].older = none, s.newest
	if s.newest != none {
		x.holds[s.newest].newer = h
	} else {
		s.oldest = h
	}
	s.newest = h
}

func (x *blockLRU) unlink(h int32) {
	e := &x.holds[h]
	s := &x.slots[e.slot]
	if e.newer != none {
		x.holds[e.newer].older = e.older
	} else {
		s.newest = e.older
	}
	if e.older != none {
		x.holds[e.older].newer = e.newer
	} else {
		s.oldest = e.newer
	}
}

// drop ends one hold, and its node with the last one.
func (x *blockLRU) drop(h int32) {
	x.unlink(h)
	e := x.holds[h]
	x.slots[e.slot].held--
	n := &x.nodes[e.node]
	at := &n.holders
	for *at != h {
		at = &x.holds[*at].nextHolder
	}
	*at = e.nextHolder
	x.holds[h].nextHolder, x.freeHold = x.freeHold, h
	if n.holders != none {
		return
	}
	link := x.bucket(n.key)
	for *link != e.node {
		link = &x.nodes[*link].next
	}
	*link = n.next
	n.next, x.freeNode = x.freeNode, e.node
	x.live--
}
