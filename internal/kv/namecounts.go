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
	Drops                     // how many there are
)

// String names d for logs and metrics.
func (d Drop) String() string {
	return [Drops]string{
		"remote", "group", "unkeyable", "unknown", "not_held", "orphan", "full", "block_size", "copies",
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
}

// check looks at the first block of a chain that tokens alone make.
func (p *parity) check(e *Event) {
	if e.HasParent || len(e.Tokens) < e.BlockSize || e.BlockSize <= 0 || len(e.Blocks) == 0 || len(e.Extra) > 0 || e.LoRA != nil || e.Salt != nil || e.HasLoRAID {
		return
	}
	if p.seen++; p.seen > parityFirst && p.seen%parityEvery != 0 {
		return
	}
	if p.hasher == nil || p.hasher.block != e.BlockSize {
		p.hasher = NewHasher(p.root, e.BlockSize)
	}
	if d := p.hasher.Chain(p.digest[:0], e.Tokens[:e.BlockSize], nil); EngineKey(d[0].Low()) == e.Blocks[0] {
		p.equal++
	} else {
		p.unequal++
	}
}
