package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/cespare/xxhash/v2"
)

// ErrState says that bytes are not the state of a follower like this one.
var ErrState = errors.New("not the state of such a follower")

const (
	stateVersion = 1
	stateHead    = 1 + 1 + 2 + 32 + 1 + 8 + 8 + 4 + 4 // bytes before the names
	stateName    = 3*8 + tiers + 3                    // bytes of a name
	stateTail    = 8                                  // a checksum
)

// The flags of a state.
const (
	stateKnown = 1 << iota
	stateWhole
	stateMissed
)

// AppendState appends to dst what a new follower needs to go on from here: the
// place in the sequence and what the engine is believed to hold. Little-endian:
// version, mode, block (u16), root, flags, next (u64), time of the last batch
// (f64), group (i32), number of names (u32), the names, xxhash64 of all before.
func (f *Follower) AppendState(dst []byte) []byte {
	n, from, flags := f.names, len(dst), byte(0)
	for i, set := range [...]bool{f.feed.known, f.feed.whole, !n.Complete()} {
		if set {
			flags |= 1 << i
		}
	}
	dst = append(dst, stateVersion, byte(n.space.Mode))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(n.space.Block))
	dst = append(append(dst, n.space.Root[:]...), flags)
	dst = binary.LittleEndian.AppendUint64(dst, f.feed.next)
	dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(f.feed.last))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n.group))
	at, count := len(dst), uint32(0)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	for i := range n.tab.slots {
		if e := &n.tab.slots[i]; e.held() && e.flags&nameOrphan == 0 {
			dst = n.tab.appendName(dst, i)
			count++
		}
	}
	binary.LittleEndian.PutUint32(dst[at:], count)
	return binary.LittleEndian.AppendUint64(dst, xxhash.Sum64(dst[from:]))
}

func (t *nameTable) appendName(dst []byte, i int) []byte {
	e := &t.slots[i]
	for _, n := range [...]uint64{uint64(e.engine), e.hash, uint64(e.prev)} {
		dst = binary.LittleEndian.AppendUint64(dst, n)
	}
	dst = append(append(dst, e.refs[:]...), e.flags, e.phase, e.ends)
	for _, k := range t.beside(i)[:e.beside()] {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(k))
	}
	return dst
}

// LoadState takes up what AppendState of a follower of the same key space wrote.
// It is for a follower that has not been connected yet. What is loaded (see
// Known) is not vouched for: after Connected, the publisher must replay the last
// batch as proof that it is still the same process. With an error the follower
// is as new.
func (f *Follower) LoadState(state []byte) error {
	err := f.load(state)
	if err != nil {
		f.names.Clear()
		f.feed = NewFeed(f.feed.canReplay)
	}
	return err
}

func (f *Follower) load(state []byte) error {
	n, end := f.names, len(state)-stateTail
	if end < stateHead || binary.LittleEndian.Uint64(state[end:]) != xxhash.Sum64(state[:end]) {
		return fmt.Errorf("%d bytes cut short or changed: %w", len(state), ErrState)
	}
	s, rest := state[:stateHead], state[stateHead:end]
	block := int(binary.LittleEndian.Uint16(s[2:]))
	if s[0] != stateVersion || s[1] != byte(n.space.Mode) || block != n.space.Block || Digest(s[4:36]) != n.space.Root {
		return fmt.Errorf("version %d, mode %d, block %d: %w", s[0], s[1], block, ErrState)
	}
	n.Clear()
	n.group = int32(binary.LittleEndian.Uint32(s[53:]))
	count := binary.LittleEndian.Uint32(s[57:])
	n.tab.reserve(min(int(count), len(rest)/stateName, n.max))
	for range count {
		var ok bool
		if rest, ok = n.loadName(rest); !ok {
			return fmt.Errorf("a name that cannot be: %w", ErrState)
		}
	}
	if len(rest) > 0 || n.group < -1 {
		return fmt.Errorf("%d bytes too many, group %d: %w", len(rest), n.group, ErrState)
	}
	if n.tab.stride > 0 {
		n.countOwn()
	}
	flags := s[36]
	n.missed = n.missed || flags&stateMissed != 0
	f.feed = NewFeed(f.feed.canReplay)
	f.feed.known, f.feed.whole = flags&stateKnown != 0, flags&stateWhole != 0
	f.feed.next, f.feed.last = binary.LittleEndian.Uint64(s[37:]), math.Float64frombits(binary.LittleEndian.Uint64(s[45:]))
	return nil
}

// loadName reads one name. One for which there is no room is left out.
func (n *Names) loadName(b []byte) (rest []byte, ok bool) {
	if len(b) < stateName {
		return nil, false
	}
	e := name{
		engine: EngineKey(binary.LittleEndian.Uint64(b)), hash: binary.LittleEndian.Uint64(b[8:]), prev: Key(binary.LittleEndian.Uint64(b[16:])),
		refs: [tiers]uint8(b[24:]), flags: b[24+tiers], phase: b[25+tiers], ends: b[26+tiers],
	}
	b = b[stateName:]
	beside := e.beside()
	if e.flags&^nameDead != nameUsed || !e.held() || int(e.phase) >= max(n.space.Block, 1) || len(b) < 8*beside || n.tab.find(e.engine) >= 0 {
		return nil, false
	}
	rest = b[8*beside:]
	if n.tab.n >= n.limit() || !n.wide(beside) {
		n.drop(DropFull, 1)
		n.missed = true
		return rest, true
	}
	i := n.tab.add(e.engine)
	n.tab.slots[i] = e
	n.tab.widen(beside)
	for j := range beside {
		n.tab.beside(i)[j] = Key(binary.LittleEndian.Uint64(b[8*j:]))
	}
	n.held++
	n.others++ // it may be a second size
	return rest, true
}

// Known yields what the follower believes the rank to hold, as changes that
// store it, parents first: for an index that is to be filled after LoadState.
// Keys are good until the next.
func (f *Follower) Known() iter.Seq[Change] {
	return func(yield func(Change) bool) {
		n := f.names
		t := n.family()
		var stack []int32
		for i := range n.tab.slots {
			if e := &n.tab.slots[i]; t.named(e) && !t.ends[e.prev] {
				stack = t.move(stack, e.prev)
			}
			for len(stack) > 0 {
				at := int(stack[len(stack)-1])
				stack = stack[:len(stack)-1]
				if !n.yield(at, yield) {
					return
				}
				t.keys = n.tab.keys(t.keys[:0], at)
				for _, k := range t.keys {
					stack = t.move(stack, k)
				}
			}
		}
	}
}

// family is which names come after which.
type family struct {
	first map[Key]int32 // slot of the first name after a key
	next  []int32       // slot of the next after the same; -1 none
	ends  map[Key]bool  // keys that are there
	keys  []Key
}

func (f *family) named(e *name) bool { return e.held() && e.keyed() && e.ends > 0 }

func (n *Names) family() *family {
	f := &family{first: make(map[Key]int32, n.held), next: make([]int32, len(n.tab.slots)), ends: make(map[Key]bool, n.held)}
	for i := range n.tab.slots {
		e := &n.tab.slots[i]
		if !f.named(e) {
			continue
		}
		f.next[i] = -1
		if first, ok := f.first[e.prev]; ok {
			f.next[i] = first
		}
		f.first[e.prev] = int32(i)
		f.keys = n.tab.keys(f.keys[:0], i)
		for _, k := range f.keys {
			f.ends[k] = true
		}
	}
	return f
}

// move puts the names after k on the stack, once.
func (f *family) move(stack []int32, k Key) []int32 {
	i, ok := f.first[k]
	if !ok {
		return stack
	}
	delete(f.first, k)
	for ; i >= 0; i = f.next[i] {
		stack = append(stack, i)
	}
	return stack
}

// yield yields one store of slot i for each tier that has it.
func (n *Names) yield(i int, yield func(Change) bool) bool {
	e := &n.tab.slots[i]
	n.told = n.tab.keys(n.told[:0], i)
	for t, refs := range e.refs {
		if refs > 0 && !yield(Change{Kind: ChangeStore, Tier: Tier(t), Parent: e.prev, Keys: n.told}) {
			return false
		}
	}
	return true
}
