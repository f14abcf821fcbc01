package server

import (
	"crypto/sha256"
	"encoding/binary"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/kv"
)

// The ways to name blocks.
const (
	HashInternal = "internal"    // the simulation's own keys, which nobody can compute
	HashCBOR     = "sha256_cbor" // as vLLM's --prefix-caching-hash-algo does
)

// digests names blocks as vLLM does under sha256_cbor, beside the simulation's own
// keys. Server.mu guards it.
type digests struct {
	root    kv.Digest
	hasher  *kv.Hasher
	known   map[kv.EngineKey]*digest // by own key
	emptied []kv.EngineKey           // that may have no copies any more
	tokens  []uint32
}

// digest is the name of one block, which is at so many tiers.
type digest struct {
	name   kv.Digest
	copies int
}

func newDigests(o Options) *digests {
	if o.KVHash != HashCBOR {
		return nil
	}
	seed := o.KVHashSeed
	if seed == "" {
		seed = kv.VLLMUnseeded
	}
	root := kv.VLLMRoot(seed)
	return &digests{root: root, hasher: kv.NewHasher(root, int(enginesim.BlockTokens)), known: map[kv.EngineKey]*digest{}}
}

// learn names the blocks of an event, which begin at a depth of a choice's chain,
// and their parent.
func (d *digests) learn(c *choice, depth int, ev *kv.Event) {
	n := (depth + len(ev.Blocks)) * int(enginesim.BlockTokens)
	d.tokens = d.tokens[:0]
	for i := range n {
		d.tokens = append(d.tokens, c.token(i))
	}
	c.digests = d.hasher.Chain(c.digests[:min(len(c.digests), depth)], d.tokens, &kv.Extras{Form: kv.ExtraPaired, Adapter: c.adapter, Salt: c.salt})
	if ev.HasParent {
		d.set(ev.Parent, c.digests[depth-1])
	}
	for i, k := range ev.Blocks {
		d.set(k, c.digests[depth+i])
	}
}

func (d *digests) set(k kv.EngineKey, name kv.Digest) {
	if b := d.known[k]; b != nil {
		b.name = name
		return
	}
	d.known[k] = &digest{name: name}
	d.emptied = append(d.emptied, k)
}

// of returns the digest of a block. One that no request is known to have stored has
// a name that nobody can compute.
func (d *digests) of(k kv.EngineKey) *digest {
	b := d.known[k]
	if b == nil {
		b = &digest{name: sha256.Sum256(binary.BigEndian.AppendUint64([]byte("unknown"), uint64(k)))}
		d.known[k] = b
		d.emptied = append(d.emptied, k)
	}
	return b
}

// rename puts the digests in the place of an event's own keys, and counts copies.
func (d *digests) rename(ev *kv.Event) {
	if ev.HasParent {
		ev.FullParent = d.of(ev.Parent).name
		ev.Parent = kv.EngineKey(ev.FullParent.Low())
	}
	ev.Full = make([]kv.Digest, len(ev.Blocks))
	for i, k := range ev.Blocks {
		b := d.of(k)
		if ev.Kind == kv.Stored {
			b.copies++
		} else if b.copies--; b.copies <= 0 {
			d.emptied = append(d.emptied, k)
		}
		ev.Full[i] = b.name
		ev.Blocks[i] = kv.EngineKey(b.name.Low())
	}
}

// tidy forgets the names of blocks that are nowhere any more.
func (d *digests) tidy() {
	for _, k := range d.emptied {
		if b := d.known[k]; b != nil && b.copies <= 0 {
			delete(d.known, k)
		}
	}
	d.emptied = d.emptied[:0]
}

// low returns what events call a block that is somewhere.
func (d *digests) low(k uint64) uint64 { return uint64(d.of(kv.EngineKey(k)).name.Low()) }
