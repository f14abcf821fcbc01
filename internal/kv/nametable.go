package kv

import "penstock.dev/penstock/internal/stat"

// tiers is how many tiers there are.
const tiers = int(TierOther) + 1

// name is what is known of one engine key: where its block is in a chain of own
// keys, and how many copies the engine has of it at each tier. Keys of own
// blocks that end inside it are kept beside the table, except one that ends with
// it, which is hash.
type name struct {
	engine EngineKey
	hash   uint64 // at the block's end; of an orphan, the number of its record
	prev   Key    // last own key to end before the block; 0 none
	refs   [tiers]uint8
	flags  uint8
	phase  uint8 // tokens since the last own key, at the block's end
	ends   uint8 // own keys that end inside the block
}

// What a slot of the table is.
const (
	nameUsed   = 1 << iota
	nameOrphan // waits for its parent
	nameDead   // cannot be keyed
)

// keyed reports whether the own keys of e are known.
func (e *name) keyed() bool { return e.flags&(nameOrphan|nameDead) == 0 }

// held reports whether the engine has e at any tier.
func (e *name) held() bool { return e.refs != [tiers]uint8{} }

// beside returns how many of e's keys are kept beside the table.
func (e *name) beside() int {
	if e.ends > 0 && e.phase == 0 {
		return int(e.ends) - 1
	}
	return int(e.ends)
}

// nameTable is an open-addressing table without pointers: linear probing, and
// deletion by shifting back, so that it never has to be cleaned.
type nameTable struct {
	slots  []name // a power of two
	more   []Key  // stride for each slot
	stride int
	shift  int
	n      int
	seen   uint8 // of touch, so that it is not optimised away
}

const firstSlots = 64

// A table larger than caches is touched ahead, for so many keys at a time.
const (
	touchAhead = 128
	touchSlots = 1 << 13
)

// touch reads where keys would be, all at once: the processor then waits for
// memory once, and not for each key in turn.
func (t *nameTable) touch(keys []EngineKey) {
	if len(t.slots) < touchSlots || len(keys) < 4 {
		return
	}
	var seen uint8
	for _, k := range keys[:min(len(keys), touchAhead)] {
		seen |= t.slots[t.home(k)].flags
	}
	t.seen = seen
}

func (t *nameTable) home(k EngineKey) int { return int(stat.Mix64(uint64(k)) >> t.shift) }

// find returns the slot of k, or -1.
func (t *nameTable) find(k EngineKey) int {
	if t.n == 0 {
		return -1
	}
	mask := len(t.slots) - 1
	for i := t.home(k); ; i = (i + 1) & mask {
		switch e := &t.slots[i]; {
		case e.flags == 0:
			return -1
		case e.engine == k:
			return i
		}
	}
}

// add returns a slot for k, which has none yet. Slots found before are no longer
// good.
func (t *nameTable) add(k EngineKey) int {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.grow()
	}
	t.n++
	i := t.free(k)
	t.slots[i] = name{engine: k, flags: nameUsed}
	return i
}

func (t *nameTable) free(k EngineKey) int {
	i := t.home(k)
	for t.slots[i].flags != 0 {
		i = (i + 1) & (len(t.slots) - 1)
	}
	return i
}

func (t *nameTable) grow() { t.resize(max(2*len(t.slots), firstSlots)) }

// reserve makes room for n keys in all. Keys that come in the order of another
// table must have it: in a smaller one they would all be at the front.
func (t *nameTable) reserve(n int) {
	size := firstSlots
	for 3*size < 4*(n+1) {
		size *= 2
	}
	if size > len(t.slots) {
		t.resize(size)
	}
}

func (t *nameTable) resize(size int) {
	slots, more := t.slots, t.more
	t.slots, t.more, t.shift = make([]name, size), make([]Key, size*t.stride), 64
	for ; size > 1; size /= 2 {
		t.shift--
	}
	for from := range slots {
		if slots[from].flags != 0 {
			to := t.free(slots[from].engine)
			t.slots[to] = slots[from]
			copy(t.beside(to), more[from*t.stride:(from+1)*t.stride])
		}
	}
}

// widen makes room for n keys beside each slot.
func (t *nameTable) widen(n int) {
	if n <= t.stride {
		return
	}
	more := make([]Key, len(t.slots)*n)
	for i := range t.slots {
		copy(more[i*n:], t.beside(i))
	}
	t.more, t.stride = more, n
}

func (t *nameTable) beside(i int) []Key { return t.more[i*t.stride : (i+1)*t.stride] }

// remove empties slot i. Slots found before are no longer good.
func (t *nameTable) remove(i int) {
	mask := len(t.slots) - 1
	for j := (i + 1) & mask; t.slots[j].flags != 0; j = (j + 1) & mask {
		if home := t.home(t.slots[j].engine); (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			copy(t.beside(i), t.beside(j))
			i = j
		}
	}
	t.slots[i] = name{}
	t.n--
}

// clear empties the table and keeps its memory.
func (t *nameTable) clear() {
	if t.n > 0 {
		clear(t.slots)
		t.n = 0
	}
}

// keys appends the own keys of slot i to dst.
func (t *nameTable) keys(dst []Key, i int) []Key {
	e := &t.slots[i]
	n := e.beside()
	dst = append(dst, t.beside(i)[:n]...)
	if int(e.ends) > n {
		dst = append(dst, Key(e.hash))
	}
	return dst
}

// link returns the place at the end of slot i.
func (t *nameTable) link(i int) link {
	e := &t.slots[i]
	l := link{hash: e.hash, last: e.prev, phase: e.phase, dead: e.flags&nameDead != 0}
	if n := e.beside(); int(e.ends) > n {
		l.last = Key(e.hash)
	} else if n > 0 {
		l.last = t.beside(i)[n-1]
	}
	return l
}

// keyQueue is a ring of engine keys, oldest first, that grows to what is put in.
type keyQueue struct {
	ring []EngineKey // a power of two
	head int
	n    int
}

func (q *keyQueue) push(k EngineKey) {
	if q.n == len(q.ring) {
		ring := make([]EngineKey, max(2*len(q.ring), 16))
		for i := range q.n {
			ring[i] = q.ring[(q.head+i)&(len(q.ring)-1)]
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)&(len(q.ring)-1)] = k
	q.n++
}

func (q *keyQueue) pop() EngineKey {
	k := q.ring[q.head]
	q.head, q.n = (q.head+1)&(len(q.ring)-1), q.n-1
	return k
}
