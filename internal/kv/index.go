package kv

import (
	"iter"
	"math"
	"slices"

	"penstock.dev/penstock/internal/fleet"
)

// Index is the approximate prefix index: for every endpoint (by slot, a small
// dense number) the chains that were sent to it, as many keys as it can cache,
// forgotten in the order an engine would evict them.
//
// Chains are stored as a radix tree of runs, split only where chains or owners
// diverge. Since a key implies its prefix, one map from the first key of a run
// to its node replaces per-node child tables. What an endpoint holds is closed
// under prefixes: it is touched from leaf to root and evicted leaf first.
//
// Match costs O(keys compared + owners of the nodes on the path) and does not
// allocate.
type Index struct {
	first    map[Key]nodeRef
	nodes    []node
	free     nodeRef // free nodes, chained through owners
	holds    []hold
	freeHold holdRef // free holds, chained through nextOwner
	slots    []slotState
	keys     int
	path     []nodeRef // scratch of Insert
	capacity int       // of a slot that was given none
}

type (
	nodeRef int32
	holdRef int32
)

const none = -1

// node is one run of keys and the list of slots that hold it.
type node struct {
	keys   []Key
	owners holdRef
}

// hold says that a slot has a node; it sits in the node's owner list and in
// the slot's recency list.
type hold struct {
	node         nodeRef
	slot         int32
	nextOwner    holdRef
	newer, older holdRef
	awaited      int32      // prompts on their way that go through it
	came         fleet.Time // when the latest of those had come; longAgo for never
}

// longAgo is before everything.
const longAgo fleet.Time = math.MinInt64

type slotState struct {
	newest, oldest holdRef
	keys           int // keys held
	capacity       int // keys that may be held
}

// NewIndex returns an empty index whose slots hold at most capacity keys until
// SetCapacity says otherwise.
func NewIndex(capacity int) *Index {
	return &Index{first: map[Key]nodeRef{}, free: none, freeHold: none, capacity: capacity}
}

// SetCapacity bounds slot to keys and evicts what no longer fits.
func (x *Index) SetCapacity(slot, keys int) {
	s := x.slot(slot)
	s.capacity = keys
	x.shrink(slot)
}

// Held returns how many keys slot holds.
func (x *Index) Held(slot int) int {
	if slot >= len(x.slots) {
		return 0
	}
	return x.slots[slot].keys
}

// Keys returns the number of distinct keys in the index.
func (x *Index) Keys() int { return x.keys }

func (x *Index) slot(i int) *slotState {
	for len(x.slots) <= i {
		x.slots = append(x.slots, slotState{newest: none, oldest: none, capacity: x.capacity})
	}
	return &x.slots[i]
}

// Match sets depth[slot], for every slot below len(depth), to the number of
// leading keys of chain that the slot holds.
func (x *Index) Match(chain []Key, depth []int32) { x.MatchAwaited(chain, nil, depth, nil, nil) }

// MatchAwaited is Match, and sets fresh[slot] to the number of leading keys that
// are on their way to the slot, or have come at since[slot] or later, and
// ready[slot] to the number of those that have come then.
func (x *Index) MatchAwaited(chain []Key, since []fleet.Time, depth, fresh, ready []int32) {
	clear(depth)
	clear(fresh)
	clear(ready)
	for at := 0; at < len(chain); {
		ref, ok := x.first[chain[at]]
		if !ok {
			return
		}
		n := &x.nodes[ref]
		common := commonPrefix(n.keys, chain[at:])
		at += common
		for h := n.owners; h != none; h = x.holds[h].nextOwner {
			s := int(x.holds[h].slot)
			if s >= len(depth) {
				continue
			}
			depth[s] = int32(at)
			if fresh == nil {
				continue
			}
			if x.holds[h].came >= since[s] {
				fresh[s], ready[s] = int32(at), int32(at)
			} else if x.holds[h].awaited > 0 {
				fresh[s] = int32(at)
			}
		}
		if common < len(n.keys) {
			return
		}
	}
}

// Insert records that slot holds chain from now on, as the most recently used,
// and evicts what no longer fits.
func (x *Index) Insert(slot int, chain []Key) {
	if len(chain) == 0 {
		return
	}
	x.slot(slot)
	x.path = x.path[:0]
	for at := 0; at < len(chain); {
		ref, ok := x.first[chain[at]]
		if !ok {
			ref = x.addNode(slices.Clone(chain[at:]))
		} else if c := commonPrefix(x.nodes[ref].keys, chain[at:]); c < len(x.nodes[ref].keys) {
			x.split(ref, c)
		}
		x.path = append(x.path, ref)
		at += len(x.nodes[ref].keys)
	}
	for _, ref := range slices.Backward(x.path) {
		x.touch(slot, ref)
	}
	x.shrink(slot)
}

// Await notes that chain, just inserted, is on its way to slot, until Come or
// Lost says otherwise.
func (x *Index) Await(slot int, chain []Key) {
	for h := range x.along(slot, chain) {
		h.awaited++
	}
}

// Come ends an Await: the chain is there now.
func (x *Index) Come(slot int, chain []Key, now fleet.Time) {
	for h := range x.along(slot, chain) {
		h.awaited, h.came = max(h.awaited-1, 0), now
	}
}

// Lost ends an Await of a chain that will not come.
func (x *Index) Lost(slot int, chain []Key) {
	for h := range x.along(slot, chain) {
		h.awaited = max(h.awaited-1, 0)
	}
}

// along yields what slot holds of chain in whole nodes, from its start. What has
// been evicted since chain was inserted is left out.
func (x *Index) along(slot int, chain []Key) iter.Seq[*hold] {
	return func(yield func(*hold) bool) {
		for at := 0; at < len(chain); {
			ref, ok := x.first[chain[at]]
			if !ok {
				return
			}
			keys := x.nodes[ref].keys
			if commonPrefix(keys, chain[at:]) < len(keys) {
				return
			}
			h := x.holdOf(slot, ref)
			if h == none || !yield(&x.holds[h]) {
				return
			}
			at += len(keys)
		}
	}
}

// Clear forgets everything slot holds. It costs O(nodes held).
func (x *Index) Clear(slot int) {
	if slot >= len(x.slots) {
		return
	}
	for x.slots[slot].oldest != none {
		x.drop(x.slots[slot].oldest)
	}
}

func commonPrefix(a, b []Key) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func (x *Index) addNode(keys []Key) nodeRef {
	ref := x.free
	if ref == none {
		x.nodes = append(x.nodes, node{})
		ref = nodeRef(len(x.nodes) - 1)
	} else {
		x.free = nodeRef(x.nodes[ref].owners)
	}
	x.nodes[ref] = node{keys: keys, owners: none}
	x.first[keys[0]] = ref
	x.keys += len(keys)
	return ref
}

// split cuts ref after at keys: ref keeps the head, a new node takes the tail
// with the same owners. Each owner's tail sits just behind its head in recency,
// so that leaves still go first.
func (x *Index) split(ref nodeRef, at int) {
	keys := x.nodes[ref].keys
	x.keys -= len(keys) - at
	tail := x.addNode(keys[at:])
	x.nodes[ref].keys = keys[:at:at]
	for h := x.nodes[ref].owners; h != none; h = x.holds[h].nextOwner {
		t := x.newHold(tail, x.holds[h].slot)
		x.holds[t].awaited, x.holds[t].came = x.holds[h].awaited, x.holds[h].came
		x.linkBehind(t, h)
	}
}

func (x *Index) newHold(ref nodeRef, slot int32) holdRef {
	h := x.freeHold
	if h == none {
		x.holds = append(x.holds, hold{})
		h = holdRef(len(x.holds) - 1)
	} else {
		x.freeHold = x.holds[h].nextOwner
	}
	x.holds[h] = hold{node: ref, slot: slot, nextOwner: x.nodes[ref].owners, newer: none, older: none, came: longAgo}
	x.nodes[ref].owners = h
	return h
}

// holdOf returns the slot's hold of ref, none when it has none.
func (x *Index) holdOf(slot int, ref nodeRef) holdRef {
	h := x.nodes[ref].owners
	for h != none && int(x.holds[h].slot) != slot {
		h = x.holds[h].nextOwner
	}
	return h
}

// touch makes ref the slot's most recent node, taking it on if the slot does
// not hold it yet.
func (x *Index) touch(slot int, ref nodeRef) {
	if h := x.holdOf(slot, ref); h != none {
		x.unlink(h)
		x.linkNewest(h)
		return
	}
	h := x.newHold(ref, int32(slot))
	x.linkNewest(h)
	x.slots[slot].keys += len(x.nodes[ref].keys)
}

func (x *Index) linkNewest(h holdRef) {
	s := &x.slots[x.holds[h].slot]
	x.holds[h].newer, x.holds[h].older = none, s.newest
	if s.newest != none {
		x.holds[s.newest].newer = h
	} else {
		s.oldest = h
	}
	s.newest = h
}

// linkBehind puts h just older than at in the same slot's recency list.
func (x *Index) linkBehind(h, at holdRef) {
	older := x.holds[at].older
	x.holds[h].newer, x.holds[h].older = at, older
	x.holds[at].older = h
	if older != none {
		x.holds[older].newer = h
	} else {
		x.slots[x.holds[h].slot].oldest = h
	}
}

func (x *Index) unlink(h holdRef) {
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

// shrink evicts the slot's oldest nodes until it is within its capacity,
// cutting the last one so that no more is forgotten than must be.
func (x *Index) shrink(slot int) {
	s := &x.slots[slot]
	for s.keys > s.capacity && s.oldest != none {
		ref := x.holds[s.oldest].node
		if over, n := s.keys-s.capacity, len(x.nodes[ref].keys); over < n {
			x.split(ref, n-over)
		}
		x.drop(s.oldest)
	}
}

// drop ends one hold and frees its node with the last owner. A node without
// owners has no owned descendants, because holdings are closed under prefixes.
func (x *Index) drop(h holdRef) {
	x.unlink(h)
	e := x.holds[h]
	n := &x.nodes[e.node]
	x.slots[e.slot].keys -= len(n.keys)
	at := &n.owners
	for *at != h {
		at = &x.holds[*at].nextOwner
	}
	*at = e.nextOwner
	x.holds[h].nextOwner, x.freeHold = x.freeHold, h
	if n.owners == none {
		delete(x.first, n.keys[0])
		x.keys -= len(n.keys)
		*n = node{owners: holdRef(x.free)}
		x.free = e.node
	}
}
