package kv

import "slices"

// Bounds of what waits for its parent, per rank.
const (
	maxOrphans      = 1024    // events
	maxOrphanTokens = 1 << 17 // tokens of all of them
)

// orphan is an event whose parent is not known. Its blocks are in the table, so
// that copies are counted while it waits.
type orphan struct {
	parent EngineKey
	tier   Tier
	size   int
	cut    int
	blocks []EngineKey
	tokens []uint32
	marks  []mark
	next   uint32 // an older one with the same parent; 0 none
	used   bool
}

// orphanage keeps orphans in a ring, by number from 1 on.
type orphanage struct {
	recs    []orphan // number i is at i % maxOrphans
	first   uint32   // oldest that may be in use
	last    uint32   // newest
	waiting int
	tokens  int
	byKey   map[EngineKey]uint32 // newest that waits for a parent
}

func (o *orphanage) at(id uint32) *orphan { return &o.recs[id%maxOrphans] }

func (o *orphanage) clear() {
	for i := range o.recs {
		o.recs[i] = orphan{}
	}
	clear(o.byKey)
	o.waiting, o.tokens, o.first = 0, 0, o.last+1
}

// adopt keeps e until its parent comes.
func (n *Names) adopt(e *Event, cut int) {
	o := &n.orphans
	if o.byKey == nil {
		o.byKey, o.recs, o.first = map[EngineKey]uint32{}, make([]orphan, maxOrphans), 1
	}
	if len(e.Tokens) > maxOrphanTokens {
		n.drop(DropOrphan, len(e.Blocks))
		n.missed = true
		return
	}
	for o.last-o.first+1 >= maxOrphans || o.tokens+len(e.Tokens) > maxOrphanTokens {
		n.abandon()
	}
	o.last++
	r := o.at(o.last)
	*r = orphan{
		parent: e.Parent, tier: e.Tier, size: e.BlockSize, cut: cut, used: true, next: o.byKey[e.Parent],
		blocks: append(r.blocks[:0], e.Blocks...), tokens: append(r.tokens[:0], e.Tokens...), marks: append(r.marks[:0], n.marks...),
	}
	o.byKey[e.Parent] = o.last
	o.waiting++
	o.tokens += len(e.Tokens)
	n.counts.Orphans++
	for _, k := range r.blocks {
		n.wait(k, o.last, e.Tier)
	}
}

// wait takes one copy of a block that orphan id will name.
func (n *Names) wait(k EngineKey, id uint32, tier Tier) {
	i := n.tab.find(k)
	if i < 0 {
		if !n.room() {
			n.drop(DropFull, 1)
			n.missed = true
			return
		}
		i = n.tab.add(k)
		n.tab.slots[i].hash, n.tab.slots[i].flags = uint64(id), nameUsed|nameOrphan
	}
	n.retain(i, tier)
}

// free ends a record and keeps its memory for the next.
func (o *orphanage) free(r *orphan) {
	if r.used = false; cap(r.tokens) > 4096 {
		r.blocks, r.tokens = nil, nil
	}
	o.waiting--
	o.tokens -= len(r.tokens)
}

// abandon gives up the oldest orphan.
func (n *Names) abandon() {
	id := n.orphans.first
	n.orphans.first++
	if n.orphans.at(id).used {
		n.giveUp(id)
	}
}

// giveUp ends an orphan, with the blocks that only it could name.
func (n *Names) giveUp(id uint32) {
	o := &n.orphans
	r := o.at(id)
	for _, k := range r.blocks {
		if i := n.waits(k, id); i >= 0 {
			n.tab.remove(i)
			n.held--
			n.drop(DropOrphan, 1)
			n.missed = true
		}
	}
	if o.byKey[r.parent] == id {
		delete(o.byKey, r.parent)
	}
	o.free(r)
}

// waits returns the slot of k if orphan id is to name it, or -1.
func (n *Names) waits(k EngineKey, id uint32) int {
	i := n.tab.find(k)
	if i < 0 || n.tab.slots[i].flags&nameOrphan == 0 || n.tab.slots[i].hash != uint64(id) {
		return -1
	}
	return i
}

// awaited makes ready the orphans that wait for k, which now has a name.
func (n *Names) awaited(k EngineKey) {
	o := &n.orphans
	if o.waiting == 0 {
		return
	}
	id, ok := o.byKey[k]
	if !ok {
		return
	}
	delete(o.byKey, k)
	from := len(n.ready)
	for ; id >= o.first && id != 0 && o.at(id).used; id = o.at(id).next {
		n.ready = append(n.ready, id)
	}
	slices.Reverse(n.ready[from:])
}

// reunite names the orphans whose parents have come, and those that this makes
// parents of others.
func (n *Names) reunite() {
	for len(n.ready) > 0 {
		id := n.ready[0]
		n.ready = slices.Delete(n.ready, 0, 1)
		i := n.known(n.orphans.at(id).parent)
		if i < 0 {
			n.giveUp(id)
			continue
		}
		n.counts.Reunited++
		n.welcome(n.orphans.at(id), id, n.tab.link(i))
		n.orphans.free(n.orphans.at(id))
	}
}

// welcome names the blocks of an orphan that are still there, from its parent's
// end on.
func (n *Names) welcome(r *orphan, id uint32, l link) {
	marks := r.marks
	for b, k := range r.blocks {
		prev, from := l.last, b*r.size
		l.dead = l.dead || b >= r.cut
		n.ended = n.ended[:0]
		if !l.dead {
			marks, n.ended = l.walk(n.space.Block, r.tokens[from:from+r.size], int32(from), marks, n.ended)
		}
		i := n.waits(k, id)
		if i < 0 {
			continue
		}
		if l.dead {
			n.drop(DropUnkeyable, 1)
			n.missed = true
		}
		n.label(i, l, prev)
		n.shown(i)
		n.awaited(k)
	}
}
