package kv

// Drop is why blocks that an engine told of are not in the index.
type Drop uint8

// The reasons, beside the faults of whole events.
const (
	DropRemote    Drop = iota // the bytes are not at the sender
	DropGroup                 // of a group of layers that is not followed
	DropUnkeyable             // something nobody here understands is in the key, or in one before
	DropUnknown               // a copy of a block that nobody has heard of
	DropNotHeld               // removed, but not held
	DropOrphan                // the parent never came
	DropFull                  // no room for another name
	DropBlockSize             // the engine's blocks are too large for own ones
	DropCopies                // more copies than can be counted
	DropMisfit                // the engine's keys are not what direct keys would be
	Drops                     // how many there are
)

// String names d for logs and metrics.
func (d Drop) String() string {
	return [Drops]string{
		"remote", "group", "unkeyable", "unknown", "not_held", "orphan", "full", "block_size", "copies", "misfit",
	}[min(d, Drops-1)]
}

// NameCounts counts what became of events and blocks.
type NameCounts struct {
	Faults    [Faults]uint64 // events left out of batches
	Drops     [Drops]uint64  // blocks
	Conflicts uint64         // engine keys that came back with other content
	Orphans   uint64         // events that had to wait for their parent
	Reunited  uint64         // those whose parent came
	Equal     uint64         // first blocks whose engine key is sha256_cbor of their tokens from the root
	Unequal   uint64         // those for which it is not
}

// Counts returns what became of events and blocks since the beginning.
func (n *Names) Counts() NameCounts {
	c := n.counts
	c.Equal, c.Unequal = c.Equal+n.parity.equal, c.Unequal+n.parity.unequal
	return c
}

// Provable reports whether the engine's keys are sha256_cbor from the root as far
// as has been seen of this process, so that KeysDirect would do.
func (n *Names) Provable() bool { return n.parity.equal > 0 && n.parity.unequal == 0 }

// How often parity is looked at: the first blocks, then few.
const (
	parityFirst = 16
	parityEvery = 64
)

// parity compares engine keys of first blocks with what they are under
// sha256_cbor.
type parity struct {
	root           Digest
	hasher         *Hasher
	digest         [1]Digest
	seen           uint64
	equal, unequal uint64
	tagged         bool // extras are written with their kinds
}

// check looks at the first block of a chain, if all that is in its key is told.
func (p *parity) check(e *Event) {
	if e.HasParent || len(e.Tokens) < e.BlockSize || e.BlockSize <= 0 || len(e.Blocks) == 0 {
		return
	}
	adapter, salt := e.rootNames()
	if e.unnamed(adapter) || e.firstHasMore() {
		return
	}
	if p.seen++; p.seen > parityFirst && p.seen%parityEvery != 0 {
		return
	}
	if p.hasher == nil || p.hasher.block != e.BlockSize {
		p.hasher = NewHasher(p.root, e.BlockSize)
	}
	x := Extras{Form: ExtraPaired, Adapter: string(adapter), Salt: string(salt)}
	switch {
	case p.is(e, &x):
		p.equal++
	case len(adapter) == 0 && len(salt) == 0:
		p.unequal++
	case len(adapter) == 0:
		// The newest engines write what a salt is beside it.
		if x.Form = ExtraTagged; p.is(e, &x) {
			p.equal, p.tagged = p.equal+1, true
		} else {
			p.unequal++
		}
	default: // where the adapter is may be in the key, and nobody tells
	}
}

// is reports whether the first block of e has the key of its tokens and x.
func (p *parity) is(e *Event, x *Extras) bool {
	d := p.hasher.Chain(p.digest[:0], e.Tokens[:e.BlockSize], x)
	return EngineKey(d[0].Low()) == e.Blocks[0]
}

// firstHasMore reports whether something else than an adapter and a salt is in the
// key of e's first block.
func (e *Event) firstHasMore() bool {
	for i := 0; i < len(e.Extra) && e.Extra[i].Block == 0; i++ {
		if k := e.Extra[i].Kind; k != ExtraLoRA && k != ExtraSalt {
			return true
		}
	}
	return false
}

// Form returns how the engine writes extras, as far as has been seen.
func (n *Names) Form() ExtraForm {
	if n.parity.tagged {
		return ExtraTagged
	}
	return ExtraPaired
}
