package kv

import "github.com/cespare/xxhash/v2"

// ChangeKind is what a Change does.
type ChangeKind uint8

// The kinds of changes.
const (
	ChangeStore  ChangeKind = 1 + iota // blocks are now at a tier
	ChangeRemove                       // blocks are no longer at a tier
	ChangeClear                        // nothing is held any more, at any tier
)

// Change is one thing to apply to the index of blocks, in own keys.
type Change struct {
	Kind   ChangeKind
	Tier   Tier
	Parent Key   // of the first key; 0 none. ChangeStore only
	Keys   []Key // of a store a chain, of a removal in the order told; good until the next call
}

// KeyMode is how own keys are made.
type KeyMode uint8

// The modes.
const (
	KeysMapped KeyMode = iota // hashed from the tokens in events
	KeysDirect                // the engine's own: requests are hashed as the engine does
)

// KeySpace says how keys of the index are made.
type KeySpace struct {
	// Block is the tokens per own key. Under KeysMapped they are 1 to 256, and 0 is
	// DefaultBlock; under KeysDirect they are those of the engine's blocks, and 0 is
	// any.
	Block int
	Mode  KeyMode // KeysDirect needs engines that hash with sha256_cbor from Root
	Root  Digest  // what engines' keys are compared with; zero is VLLMUnseeded's
}

// Names is one rank's translation from engine keys to own keys. It follows one
// group of layers, the lowest that is chained, and counts copies: a block is
// stored with its first copy at a tier and removed with its last.
//
// What the engine has dropped is remembered for a while, so that a copy at a
// slower tier, which is told by engine key alone, may come after.
type Names struct {
	space   KeySpace
	max     int // engine keys known, whether held or not
	tab     nameTable
	group   int32     // followed; -1 none yet
	others  int       // blocks of a second size that were ever added
	own     nameTable // copies by own key, once several engine keys may have the same
	counted bool      // own is in use
	held    int       // engine keys that the engine has
	gone    keyQueue
	orphans orphanage
	ready   []uint32 // records whose parent has come
	parity  parity
	missed  bool // something held is not known, until the next clear
	counts  NameCounts

	misfit      Misfit // of this process
	engineBlock int

	out   []Change
	run   openRun
	keys  []Key // of the changes handed out
	ended []Key // that end inside the block being named
	told  []Key // scratch of tell
	marks []mark
}

// NewNames returns names of an engine that holds nothing; most bounds the engine
// keys known at a time.
func NewNames(s KeySpace, most int) *Names {
	if s.Block <= 0 && s.Mode == KeysMapped {
		s.Block = DefaultBlock
	}
	if s.Mode == KeysMapped {
		s.Block = min(s.Block, maxBlock)
	}
	if s.Root == (Digest{}) {
		s.Root = VLLMRoot(VLLMUnseeded)
	}
	return &Names{space: s, max: most, group: -1, parity: parity{root: s.Root}}
}

// Apply appends to out what b changes.
func (n *Names) Apply(b *Batch, out []Change) []Change {
	n.keys = n.keys[:0]
	return n.apply(b, out)
}

// apply is Apply that leaves the keys of earlier changes alone.
func (n *Names) apply(b *Batch, out []Change) []Change {
	n.out = out
	for f, dropped := range b.Dropped {
		n.counts.Faults[f] += uint64(dropped)
	}
	for i := range b.Events {
		switch e := &b.Events[i]; e.Kind {
		case Stored:
			n.stored(e)
		case Removed:
			n.removed(e)
		case Cleared:
			n.close()
			n.forget()
			n.out = append(n.out, Change{Kind: ChangeClear})
		}
	}
	n.close()
	out, n.out = n.out, nil
	return out
}

// Clear forgets what the engine held, and what is known of it: another process
// may take its place.
func (n *Names) Clear() {
	n.counts = n.Counts()
	n.forget()
	n.group, n.parity = -1, parity{root: n.space.Root}
	n.misfit, n.engineBlock = MisfitNone, 0
}

// Lose forgets what the engine holds, of which part was missed. Its keys mean what
// they meant, so that blocks stored from now on still find their parents.
func (n *Names) Lose() {
	n.orphans.clear()
	n.own.clear()
	n.held, n.missed, n.gone.n = 0, false, 0
	for i := 0; i < len(n.tab.slots); {
		switch s := &n.tab.slots[i]; {
		case s.flags&nameUsed == 0:
		case !s.keyed():
			n.tab.remove(i)
			continue // another may have moved here
		default:
			s.refs = [tiers]uint8{}
		}
		i++
	}
	for i := range n.tab.slots {
		if s := &n.tab.slots[i]; s.flags&nameUsed != 0 {
			n.gone.push(s.engine)
		}
	}
}

// forget empties the tables.
func (n *Names) forget() {
	n.tab.clear()
	n.own.clear()
	n.orphans.clear()
	n.others, n.held, n.gone, n.missed, n.counted = 0, 0, keyQueue{ring: n.gone.ring}, false, false
}

// Complete reports whether all that the engine said it holds is known by key.
func (n *Names) Complete() bool {
	return !n.missed && n.orphans.waiting == 0 && n.Misfit() == MisfitNone
}

// Held returns how many engine keys the engine has, in any number of copies.
func (n *Names) Held() int { return n.held }

// stored takes blocks that the engine now has.
func (n *Names) stored(e *Event) {
	direct := n.space.Mode == KeysDirect
	if e.Tier == TierGPU && len(e.Tokens) > 0 && e.Spec.Chained() {
		n.engineBlock = e.BlockSize
	}
	switch {
	case e.Remote:
		n.drop(DropRemote, len(e.Blocks))
	case !e.Spec.Chained():
		n.drop(DropGroup, len(e.Blocks))
	case len(e.Tokens) == 0 && (!direct || !e.HasParent):
		n.placed(e)
	case !n.follows(e.Group):
		n.drop(DropGroup, len(e.Blocks))
	case direct && n.proves(e):
		n.direct(e)
	case direct:
		n.drop(DropMisfit, len(e.Blocks))
	case !n.fits(e):
		n.drop(DropBlockSize, len(e.Blocks))
		n.missed = true
	default:
		n.parity.check(e)
		n.chained(e)
	}
}

// follows reports whether group is the one followed: the lowest so far. A lower
// one takes the place of what is known.
func (n *Names) follows(group int32) bool {
	if n.group >= 0 && group < n.group {
		n.close()
		n.forget()
		n.out = append(n.out, Change{Kind: ChangeClear})
		n.group = -1
	}
	if n.group < 0 {
		n.group = group
	}
	return group == n.group
}

// fits reports whether a name can tell of blocks of e's size.
func (n *Names) fits(e *Event) bool {
	ends := e.BlockSize / n.space.Block
	return e.BlockSize > 0 && ends < 255 && n.wide(ends-1) && len(e.Tokens) == len(e.Blocks)*e.BlockSize
}

// limit returns how many engine keys there is room for. Large blocks take more
// of it, for the own keys that end inside them.
func (n *Names) limit() int { return min(n.max, 3*n.max/max(n.tab.stride, 1)) }

// wide reports whether there may be room for so many keys beside each name.
func (n *Names) wide(keys int) bool {
	return keys <= n.tab.stride || keys*max(len(n.tab.slots), firstSlots) <= 8*max(n.max, firstSlots)
}

// placed takes copies of blocks that are told by their keys alone. Such events
// often do not name their group, so they do not decide which one is followed.
func (n *Names) placed(e *Event) {
	if n.group >= 0 && e.Group != n.group {
		n.drop(DropGroup, len(e.Blocks))
		return
	}
	if n.misfit != MisfitNone {
		n.drop(DropMisfit, len(e.Blocks))
		return
	}
	for _, k := range e.Blocks {
		if i := n.tab.find(k); i >= 0 {
			n.retain(i, e.Tier)
			continue
		}
		n.drop(DropUnknown, 1)
		n.missed = true
	}
}

// direct takes blocks whose engine keys are the own keys.
func (n *Names) direct(e *Event) {
	prev := Key(0)
	if e.HasParent {
		prev = Key(e.Parent)
	}
	for b, k := range e.Blocks {
		if b%touchAhead == 0 {
			n.tab.touch(e.Blocks[b:])
		}
		i := n.tab.find(k)
		if i < 0 && n.room() {
			i = n.tab.add(k)
			s := &n.tab.slots[i]
			s.hash, s.prev, s.ends = uint64(k), prev, 1
		}
		if i >= 0 {
			n.retain(i, e.Tier)
		} else { // its removal is told by its key, copies are not
			n.drop(DropFull, 1)
			n.put(ChangeStore, e.Tier, prev, Key(k))
		}
		prev = Key(k)
	}
}

// chained takes blocks with their tokens.
func (n *Names) chained(e *Event) {
	cut := n.readMarks(e)
	if !e.HasParent {
		adapter, salt := e.rootNames()
		n.link(e, link{hash: uint64(TokenSeed(adapter, salt)), dead: e.unnamed(adapter)}, cut)
	} else if i := n.known(e.Parent); i >= 0 {
		n.link(e, n.tab.link(i), cut)
	} else {
		n.adopt(e, cut)
	}
	n.reunite()
}

// known returns the slot of a block that others can go on from, or -1.
func (n *Names) known(k EngineKey) int {
	i := n.tab.find(k)
	if i < 0 && n.others > 0 {
		i = n.tab.find(otherSize(k))
	}
	if i >= 0 && n.tab.slots[i].flags&nameOrphan != 0 {
		return -1
	}
	return i
}

// link names the blocks of e, which go on from l; those from the cut-th on
// cannot be keyed.
func (n *Names) link(e *Event, l link, cut int) {
	marks := n.marks
	for b, k := range e.Blocks {
		if b%touchAhead == 0 {
			n.tab.touch(e.Blocks[b:])
		}
		prev, from := l.last, b*e.BlockSize
		l.dead = l.dead || b >= cut
		n.ended = n.ended[:0]
		if !l.dead {
			marks, n.ended = l.walk(n.space.Block, e.Tokens[from:from+e.BlockSize], int32(from), marks, n.ended)
		}
		n.have(k, e.Tier, l, prev)
	}
}

// have takes one copy of block k, which ends at l and in which n.ended end.
func (n *Names) have(k EngineKey, tier Tier, l link, prev Key) {
	i := n.tab.find(k)
	if n.others > 0 && !n.same(i, l) {
		if j := n.tab.find(otherSize(k)); n.same(j, l) {
			n.retain(j, tier)
			return
		}
	}
	switch {
	case n.same(i, l):
		n.retain(i, tier)
		return
	case i < 0 || !n.tab.slots[i].keyed() || l.dead:
	case n.tab.slots[i].hash == l.hash:
		n.others++
		k = otherSize(k)
		i = n.tab.find(k)
		n.replace(i)
	default:
		n.replace(i)
	}
	n.name(i, k, tier, l, prev)
}

// same reports whether slot i, which may be -1, is the block that ends at l and
// in which n.ended end.
func (n *Names) same(i int, l link) bool {
	if i < 0 || l.dead {
		return false
	}
	s := &n.tab.slots[i]
	return s.keyed() && s.hash == l.hash && s.phase == l.phase && int(s.ends) == len(n.ended)
}

// replace ends what slot i was, if it was anything: its key has come back with
// other content.
func (n *Names) replace(i int) {
	if i >= 0 {
		n.counts.Conflicts++
		n.release(i)
	}
}

// otherSize is where a block is kept that the engine has in a second size, as
// offloaded chunks of several blocks are, named by their last.
func otherSize(k EngineKey) EngineKey { return k ^ 0x5bd1e995a5b85c5d }

// name gives slot i, or a new one of k, what l says, and takes one more copy.
func (n *Names) name(i int, k EngineKey, tier Tier, l link, prev Key) {
	if l.dead {
		n.drop(DropUnkeyable, 1)
		n.missed = true
		if i >= 0 && n.tab.slots[i].keyed() {
			n.release(i)
		}
	}
	fresh := i < 0
	if fresh {
		if !n.room() {
			n.drop(DropFull, 1)
			n.missed = true
			return
		}
		i = n.tab.add(k)
	}
	n.label(i, l, prev)
	if !fresh {
		n.shown(i)
	}
	n.retain(i, tier)
	n.awaited(k)
}

// label writes down where slot i is in a chain.
func (n *Names) label(i int, l link, prev Key) {
	s := &n.tab.slots[i]
	if !n.counted && len(n.ended) > 0 && (len(n.ended) > 1 || l.phase != 0) {
		n.countOwn()
	}
	s.flags &^= nameOrphan | nameDead
	if l.dead {
		s.flags |= nameDead
	}
	s.hash, s.prev, s.phase, s.ends = l.hash, prev, l.phase, uint8(len(n.ended))
	beside := s.beside()
	n.tab.widen(beside)
	copy(n.tab.beside(i), n.ended[:beside])
}

// shown stores slot i, just keyed, at the tiers where copies were before.
func (n *Names) shown(i int) {
	if s := &n.tab.slots[i]; s.keyed() {
		for t, refs := range s.refs {
			if refs > 0 {
				n.tell(ChangeStore, Tier(t), i)
			}
		}
	}
}

// release takes away all copies of slot i.
func (n *Names) release(i int) {
	s := &n.tab.slots[i]
	if !s.held() {
		return
	}
	for t := range s.refs {
		if s.refs[t] > 0 && s.keyed() {
			n.tell(ChangeRemove, Tier(t), i)
		}
		s.refs[t] = 0
	}
	n.held--
}

// retain takes one more copy of slot i at a tier.
func (n *Names) retain(i int, tier Tier) {
	s := &n.tab.slots[i]
	if !s.held() {
		n.held++
	}
	if s.refs[tier] == 255 {
		n.drop(DropCopies, 1)
		return
	}
	if s.refs[tier]++; s.refs[tier] == 1 && s.keyed() {
		n.tell(ChangeStore, tier, i)
	}
}

// removed takes blocks that the engine no longer has at a tier.
func (n *Names) removed(e *Event) {
	if n.group >= 0 && e.Group != n.group {
		n.drop(DropGroup, len(e.Blocks))
		return
	}
	if n.misfit != MisfitNone {
		return // nothing is believed that could be taken back
	}
	for b, k := range e.Blocks {
		if b%touchAhead == 0 {
			n.tab.touch(e.Blocks[b:])
		}
		i := n.tab.find(k)
		if (i < 0 || n.tab.slots[i].refs[e.Tier] == 0) && n.others > 0 {
			i = n.tab.find(otherSize(k))
		}
		if i >= 0 && n.tab.slots[i].refs[e.Tier] > 0 {
			n.part(i, e.Tier)
			continue
		}
		n.drop(DropNotHeld, 1)
		if n.space.Mode == KeysDirect {
			n.put(ChangeRemove, e.Tier, 0, Key(k))
		}
	}
}

// part takes one copy away.
func (n *Names) part(i int, tier Tier) {
	s := &n.tab.slots[i]
	if s.refs[tier]--; s.refs[tier] == 0 && s.keyed() {
		n.tell(ChangeRemove, tier, i)
	}
	if s.held() {
		return
	}
	n.held--
	if s.flags&nameOrphan != 0 {
		n.tab.remove(i)
		return
	}
	n.gone.push(s.engine)
	if n.gone.n > max(min(n.max/8, maxGone), 16) {
		n.evict()
	}
}

// maxGone bounds the blocks remembered that the engine has no more: those of its
// last few steps are what copies come late of.
const maxGone = 8192

// room makes room for one more engine key, and reports whether there is any.
func (n *Names) room() bool {
	for n.tab.n >= n.limit() {
		if n.gone.n == 0 {
			return false
		}
		n.evict()
	}
	return true
}

// evict forgets the block that has been gone for longest, unless it came back.
func (n *Names) evict() {
	if i := n.tab.find(n.gone.pop()); i >= 0 && !n.tab.slots[i].held() {
		n.tab.remove(i)
	}
}

// openRun is a change that is still growing.
type openRun struct {
	Change
	from int // in keys
	last Key
}

// tell says that the own keys of slot i are stored or removed.
func (n *Names) tell(kind ChangeKind, tier Tier, i int) {
	s := &n.tab.slots[i]
	if s.ends == 1 && s.phase == 0 && !n.counted {
		n.put(kind, tier, s.prev, Key(s.hash))
		return
	}
	prev := s.prev
	n.told = n.tab.keys(n.told[:0], i)
	for _, k := range n.told {
		if !n.counted || n.count(kind, tier, k) {
			n.put(kind, tier, prev, k)
		}
		prev = k
	}
}

// countOwn begins to count copies by own key. Until then every own key ends with
// a block of the engine's, which alone has it; blocks that differ only behind an
// own key's end share it.
func (n *Names) countOwn() {
	n.counted = true
	for i := range n.tab.slots {
		s := &n.tab.slots[i]
		for t, refs := range s.refs {
			if refs == 0 || !s.keyed() {
				continue
			}
			n.told = n.tab.keys(n.told[:0], i)
			for _, k := range n.told {
				n.count(ChangeStore, Tier(t), k)
			}
		}
	}
}

// count takes one more block, or one less, that has own key k at a tier, and
// reports whether that is the first, or was the last.
func (n *Names) count(kind ChangeKind, tier Tier, k Key) bool {
	at := EngineKey(uint64(k) ^ uint64(tier)*0x9e3779b97f4a7c15) // one count for each tier
	i := n.own.find(at)
	if i < 0 {
		i = n.own.add(at)
	}
	s := &n.own.slots[i]
	if kind == ChangeStore {
		s.hash++
		return s.hash == 1
	}
	if s.hash--; s.hash > 0 {
		return false
	}
	n.own.remove(i)
	return true
}

// put adds a key to the open run, or begins another.
func (n *Names) put(kind ChangeKind, tier Tier, parent, k Key) {
	if r := &n.run; r.Kind != kind || r.Tier != tier || (kind == ChangeStore && r.last != parent) {
		n.close()
		n.run = openRun{Change: Change{Kind: kind, Tier: tier}, from: len(n.keys)}
		if kind == ChangeStore {
			n.run.Parent = parent
		}
	}
	n.keys, n.run.last = append(n.keys, k), k
}

// close hands the open run over.
func (n *Names) close() {
	if n.run.Kind != 0 {
		n.run.Keys = n.keys[n.run.from:len(n.keys):len(n.keys)]
		n.out = append(n.out, n.run.Change)
	}
	n.run = openRun{}
}

// readMarks reads what beside tokens goes into the keys of e, in order of place,
// and returns the first block that cannot be keyed.
func (n *Names) readMarks(e *Event) (cut int) {
	n.marks, cut = n.marks[:0], len(e.Blocks)
	for i := range e.Extra {
		x := &e.Extra[i]
		m := mark{at: x.Block * int32(e.BlockSize), hash: xxhash.Sum64(x.Value)}
		switch {
		case int(x.Block) >= len(e.Blocks), x.Kind == ExtraMedia && x.Offset < 0:
			continue // the medium began in an earlier block
		case x.Kind == ExtraMedia && x.Offset < int64(e.BlockSize):
			m.at += int32(x.Offset)
		case x.Kind == ExtraEmbeds && e.BlockSize == n.space.Block:
			m.embeds = true
		case x.Kind == ExtraLoRA, x.Kind == ExtraSalt:
			continue // in the seed
		default:
			cut = min(cut, int(x.Block))
			continue
		}
		n.marks = append(n.marks, m)
		for j := len(n.marks) - 1; j > 0 && n.marks[j].before(n.marks[j-1]); j-- {
			n.marks[j], n.marks[j-1] = n.marks[j-1], n.marks[j]
		}
	}
	return cut
}

func (m mark) before(o mark) bool {
	return m.at < o.at || (m.at == o.at && m.embeds && !o.embeds)
}

// rootNames returns adapter and salt of a chain that e begins.
func (e *Event) rootNames() (adapter, salt []byte) {
	adapter, salt = e.LoRA, e.Salt
	for i := 0; i < len(e.Extra) && e.Extra[i].Block == 0; i++ {
		switch x := &e.Extra[i]; {
		case x.Kind == ExtraSalt && salt == nil:
			salt = x.Value
		case x.Kind == ExtraLoRA && adapter == nil:
			adapter = x.Value
		}
	}
	return adapter, salt
}

// unnamed reports whether e is of an adapter that only the engine knows, by
// number.
func (e *Event) unnamed(adapter []byte) bool {
	return len(adapter) == 0 && e.HasLoRAID && e.LoRAID > 0
}

func (n *Names) drop(d Drop, blocks int) { n.counts.Drops[d] += uint64(blocks) }
