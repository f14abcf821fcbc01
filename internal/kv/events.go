package kv

// EngineKey is an engine's own name of one block together with everything
// before it. Engines hash in different ways and send 64-bit integers, signed or
// not, or whole digests; all become the same 64 bits, which mean something only
// among keys of the same engine.
type EngineKey uint64

// EventKind is what an engine says about blocks.
type EventKind uint8

// The kinds of events.
const (
	Stored  EventKind = 1 + iota // blocks are now at a tier
	Removed                      // blocks are no longer at a tier
	Cleared                      // the rank holds nothing any more, at any tier
)

// Tier is where a block's bytes are.
type Tier uint8

// The tiers, fastest first.
const (
	TierGPU    Tier = iota // also when an event names none
	TierCPU                // host memory
	TierDisk               // storage of the engine's own
	TierShared             // a store that others read too
	TierOther              // a name nobody knows
)

// Spec is the kind of attention that a group of layers has, as far as it
// decides whether blocks are chains of prefixes.
type Spec uint8

// What a group of layers keeps.
const (
	SpecUnsaid  Spec = iota // one group, all of the prefix
	SpecFull                // all of the prefix
	SpecMLA                 // all of it, compressed
	SpecSink                // all of it, beside sink tokens
	SpecSliding             // the tail only; tokens of an event cover more than its blocks
	SpecSlidingMLA
	SpecMamba
	SpecChunked
	SpecEncoder
	SpecCross
	SpecOther
)

// Chained reports whether a block implies those before it, so that it can be
// looked up by a prompt's beginning.
func (s Spec) Chained() bool { return s <= SpecSink }

// Event is one event of an engine. Texts are slices of the payload, numbers of
// the Batch: both are good until the next Decode.
type Event struct {
	Kind      EventKind
	Tier      Tier
	Spec      Spec
	Remote    bool // the bytes are not at the sender, which must not be credited
	HasParent bool
	HasLoRAID bool
	HasRank   bool
	Parent    EngineKey // of the first block, when HasParent
	Blocks    []EngineKey
	Tokens    []uint32 // empty when an offload tier only says where blocks are
	BlockSize int      // tokens of one block; 0 in events about places only
	LoRAID    int64    // deprecated by engines that send names
	LoRA      []byte   // adapter's name; nil: base model
	Salt      []byte   // cache salt, where the event has a field for it
	Extra     []Extra  // what beside tokens went into the keys, in order of blocks
	Group     int32    // KV cache group of hybrid models
	Window    int64    // tokens of the sliding window
	Rank      int32    // the event's own, when HasRank
	Medium    []byte   // the tier's name as sent
	Model     []byte   // where events name it
	Backend   []byte   // the holder, in events of a shared store

	// Full are the digests whose ends Blocks are, and FullParent that of Parent, for
	// who encodes them; decoding leaves them empty.
	Full       []Digest
	FullParent Digest
}

// ExtraKind is what an Extra is.
type ExtraKind uint8

// What may go into a block's key beside tokens.
const (
	ExtraLoRA   ExtraKind = 1 + iota // adapter's name
	ExtraMedia                       // an image's or other medium's hash; Offset is from the block's start, may be negative
	ExtraSalt                        // cache salt, at the first block only
	ExtraEmbeds                      // digest of prompt embeddings
	ExtraOther                       // something nobody here understands: the key cannot be computed
)

// Extra is something beside tokens that went into the key of one block.
type Extra struct {
	Block  int32 // index into the event's Blocks
	Kind   ExtraKind
	Offset int64
	Value  []byte
}

// Fault is why an event was dropped.
type Fault uint8

// The faults of single events; a payload can be bad as a whole as well.
const (
	FaultNone       Fault = iota
	FaultType             // a type of event nobody knows
	FaultMalformed        // a field of the wrong kind, or a required one missing
	FaultTokenCount       // tokens that do not fill the blocks
	FaultOwnParent        // a block that is its own parent
	Faults                // how many there are
)

// String names f for logs and metrics.
func (f Fault) String() string {
	return [Faults]string{"none", "unknown_type", "malformed", "token_count", "own_parent"}[min(f, Faults-1)]
}

// Batch is what an engine sent at once. It is read into again and again: its
// buffers grow to the largest payload seen and are kept.
type Batch struct {
	Time    float64 // s, on the publisher's clock
	Rank    int32   // data-parallel rank; -1 when not said
	Events  []Event
	Dropped [Faults]int // events left out, by why
	// Holes says that a removal may be among those left out: what it named
	// would be believed cached for ever.
	Holes bool

	hashes []EngineKey
	tokens []uint32
	extras []Extra
}

// Clears reports whether an event of b empties the cache, so that what follows
// is the whole of it.
func (b *Batch) Clears() bool {
	for i := range b.Events {
		if b.Events[i].Kind == Cleared {
			return true
		}
	}
	return false
}
