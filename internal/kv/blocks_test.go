package kv

import (
	"fmt"
	"maps"
	"math/bits"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/stat"
)

// randomChain returns n keys that continue from parent as letter says: equal
// ways lead to equal keys.
func randomChain(parent Key, letter uint64, n int) []Key {
	keys := make([]Key, n)
	for i := range keys {
		parent = Key(stat.Mix64(uint64(parent)*31 + letter))
		keys[i] = parent
	}
	return keys
}

// check returns what does not fit together inside the index.
func (x *Blocks) check() error {
	blocks, live := 0, 0
	counts := make([]int, len(x.counts))
	for ref := runRef(1); ref < x.end; ref++ {
		r := x.run(ref)
		if r.count == 0 {
			continue
		}
		live++
		blocks += int(r.count)
		if err := x.checkRun(ref, counts); err != nil {
			return fmt.Errorf("run %d: %w", ref, err)
		}
	}
	if blocks != x.blocks || live != x.live {
		return fmt.Errorf("%d blocks in %d runs, books say %d in %d", blocks, live, x.blocks, x.live)
	}
	if !slices.Equal(counts, x.counts) {
		return fmt.Errorf("counts are %v, books say %v", counts, x.counts)
	}
	free := 0
	for ref := x.free; ref != 0; ref = runRef(x.run(ref).owners) {
		free++
	}
	if live+free != int(x.end)-1 {
		return fmt.Errorf("%d runs live, %d free, %d made", live, free, x.end-1)
	}
	if err := x.table.check(x.blocks); err != nil {
		return err
	}
	return x.checkArena()
}

func (x *Blocks) checkRun(ref runRef, counts []int) error {
	r := x.run(ref)
	for i := range int(r.count) {
		loc := locOf(ref, i)
		if got := x.find(x.key(loc)); got != loc {
			return fmt.Errorf("block %d is found at %d", i, got)
		}
	}
	recs := x.records(r)
	for i := 0; i < len(recs); i += 2 {
		if i > 0 && recs[i]>>genBits <= recs[i-2]>>genBits {
			return fmt.Errorf("record %d is out of order", i/2)
		}
		if recs[i+1] == 0 || bits.Len64(recs[i+1]) > int(r.count) && x.tags[recs[i]>>genBits] == recs[i] {
			return fmt.Errorf("record %d has mask %#x of %d blocks", i/2, recs[i+1], r.count)
		}
		if slot := recs[i] >> genBits; x.tags[slot] == recs[i] {
			counts[slot] += bits.OnesCount64(recs[i+1])
		}
	}
	return nil
}

func (t *blockTable) check(blocks int) error {
	entries, seen := 0, map[uint32]int{}
	for at, id := range t.dir {
		s := t.segs[id]
		seen[id]++
		if s.page == nil {
			return fmt.Errorf("directory leads to segment %d, which is gone", id)
		}
		n := int32(0)
		for _, e := range s.page {
			if e == 0 {
				continue
			}
			n++
			if s.depth > 0 && e>>(64-s.depth) != uint64(at)>>(64-t.shift-s.depth) {
				return fmt.Errorf("segment %d has an entry of another", id)
			}
		}
		if n != s.count {
			return fmt.Errorf("segment %d has %d entries, books say %d", id, n, s.count)
		}
		if seen[id] == 1 {
			entries += int(n)
		}
	}
	for id, n := range seen {
		if want := 1 << (64 - t.shift - t.segs[id].depth); n != want {
			return fmt.Errorf("segment %d is in %d places of the directory, want %d", id, n, want)
		}
	}
	if entries != blocks {
		return fmt.Errorf("%d entries for %d blocks", entries, blocks)
	}
	return nil
}

// checkArena compares what was handed out with what the runs have.
func (x *Blocks) checkArena() error {
	taken := map[uint8]int{}
	for ref := runRef(1); ref < x.end; ref++ {
		if r := x.run(ref); r.count > 0 {
			taken[r.keyClass]++
			if r.owned > 0 {
				taken[r.ownerClass]++
			}
		}
	}
	out, pages, large := map[uint8]int{}, 0, 0
	for id, c := range x.arena.chunks {
		if x.arena.memory[id] == nil {
			continue
		}
		out[c.class] += int(c.live)
		if c.class > pageBits {
			large += 1 << c.class
		} else {
			pages++
		}
	}
	if !maps.Equal(taken, out) {
		return fmt.Errorf("runs have items %v, the arena says %v", taken, out)
	}
	segments := len(x.table.segs) - len(x.table.gone)
	if pages+segments != x.pages.out || large != x.pages.large {
		return fmt.Errorf("%d pages and %d words out, books say %d and %d", pages+segments, large, x.pages.out, x.pages.large)
	}
	return nil
}

// blockModel is the index as one would write it on a blackboard.
type blockModel map[[2]int]map[Key]bool // by holder and tier

func (m blockModel) at(holder int, tier Tier) map[Key]bool {
	at := [2]int{holder, int(tier)}
	if m[at] == nil {
		m[at] = map[Key]bool{}
	}
	return m[at]
}

func (m blockModel) match(chain []Key, stores []int, holder int) (h Held) {
	for _, k := range chain {
		tier := Tiers
		for t := range Tiers {
			if m.at(holder, Tier(t))[k] {
				tier = min(tier, t)
			}
		}
		for _, s := range stores {
			for t := range Tiers {
				if tier == Tiers && !slices.Contains(stores, holder) && m.at(s, Tier(t))[k] {
					tier = int(TierShared)
				}
			}
		}
		if tier == Tiers {
			return h
		}
		h.Blocks++
		h.At[tier]++
	}
	return h
}

// blockWorld is an index, its model, and chains that part from each other.
type blockWorld struct {
	x      *Blocks
	m      blockModel
	chains [][]Key
}

const worldHolders = 6

func drawWorld(t *rapid.T, limit int) *blockWorld {
	w := &blockWorld{x: NewBlocks(limit), m: blockModel{}}
	w.x.Seed(rapid.Uint64().Draw(t, "seed"))
	for i := range rapid.IntRange(1, 8).Draw(t, "chains") {
		var head []Key
		parent := Key(1)
		if i > 0 {
			from := rapid.SampledFrom(w.chains).Draw(t, "from")
			head = from[:rapid.IntRange(0, len(from)).Draw(t, "shared")]
			if len(head) > 0 {
				parent = head[len(head)-1]
			}
		}
		tail := randomChain(parent, uint64(i), rapid.IntRange(1, 150).Draw(t, "own"))
		w.chains = append(w.chains, slices.Concat(head, tail))
	}
	return w
}

// piece draws a part of a chain and what comes before it.
func (w *blockWorld) piece(t *rapid.T) (parent Key, keys []Key) {
	c := rapid.SampledFrom(w.chains).Draw(t, "chain")
	from := rapid.IntRange(0, len(c)-1).Draw(t, "from")
	if rapid.Bool().Draw(t, "whole") {
		from = 0
	}
	to := rapid.IntRange(from, len(c)).Draw(t, "to")
	if from > 0 && rapid.Bool().Draw(t, "parent known") {
		parent = c[from-1]
	}
	return parent, c[from:to]
}

func drawSlot(t *rapid.T) (int, Tier) {
	return rapid.IntRange(0, worldHolders-1).Draw(t, "holder"), Tier(rapid.IntRange(0, Tiers-1).Draw(t, "tier"))
}

// actions are what may happen to the world.
func (w *blockWorld) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"store": func(t *rapid.T) {
			h, tier := drawSlot(t)
			parent, keys := w.piece(t)
			w.x.Store(h, tier, parent, keys)
			for _, k := range keys {
				w.m.at(h, tier)[k] = true
			}
		},
		"remove": func(t *rapid.T) {
			h, tier := drawSlot(t)
			_, keys := w.piece(t)
			keys = slices.Clone(keys)
			switch rapid.IntRange(0, 3).Draw(t, "order") {
			case 0:
				slices.Reverse(keys)
			case 1:
				keys = rapid.Permutation(keys).Draw(t, "keys")
			}
			w.x.Remove(h, tier, keys)
			for _, k := range keys {
				delete(w.m.at(h, tier), k)
			}
		},
		"clear": func(t *rapid.T) {
			h, _ := drawSlot(t)
			w.x.Clear(h)
			for tier := range Tiers {
				clear(w.m.at(h, Tier(tier)))
			}
		},
		"clear tier": func(t *rapid.T) {
			h, tier := drawSlot(t)
			w.x.ClearTier(h, tier)
			clear(w.m.at(h, tier))
		},
		"sweep": func(t *rapid.T) { w.x.Sweep(rapid.IntRange(0, 8).Draw(t, "n")) },
		"match": w.checkMatch,
		"":      w.checkAll,
	}
}

func (w *blockWorld) checkMatch(t *rapid.T) {
	chain := rapid.SampledFrom(w.chains).Draw(t, "chain")
	chain = chain[:rapid.IntRange(0, len(chain)).Draw(t, "length")]
	stores := rapid.SliceOfNDistinct(rapid.IntRange(0, worldHolders+1), 0, 3, rapid.ID).Draw(t, "stores")
	held := make([]Held, rapid.IntRange(0, worldHolders+2).Draw(t, "holders"))
	for h := range held {
		held[h].Blocks = 99
	}
	w.x.Match(chain, stores, held)
	for h := range held {
		if want := w.m.match(chain, stores, h); held[h] != want {
			t.Fatalf("holder %d with stores %v has %v of %d blocks, want %v", h, stores, held[h], len(chain), want)
		}
	}
}

func (w *blockWorld) checkAll(t *rapid.T) {
	if err := w.x.check(); err != nil {
		t.Fatal(err)
	}
	for h := range worldHolders {
		got := blockModel{}
		w.x.Runs(h, func(_ Key, tier Tier, keys []Key) bool {
			for _, k := range keys {
				got.at(h, tier)[k] = true
			}
			return true
		})
		for tier := range Tier(Tiers) {
			want := w.m.at(h, tier)
			if n := w.x.Count(h, tier); n != len(want) {
				t.Fatalf("holder %d has %d blocks at tier %d, want %d", h, n, tier, len(want))
			}
			if !maps.Equal(got.at(h, tier), want) {
				t.Fatalf("runs of holder %d at tier %d are not what it has", h, tier)
			}
			for _, k := range w.chains[0] {
				if w.x.Has(h, tier, k) != want[k] {
					t.Fatalf("holder %d has %d at tier %d: %v, want %v", h, k, tier, !want[k], want[k])
				}
			}
		}
	}
}

func TestBlocksAgreeWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, 1<<20)
		t.Repeat(w.actions())
		for h := range worldHolders {
			for tier := range Tier(Tiers) {
				for _, c := range w.chains {
					w.x.Remove(h, tier, c)
				}
				clear(w.m.at(h, tier))
			}
		}
		for w.x.Sweep(1) {
		}
		w.checkAll(t)
		if s := w.x.Stats(); s.Blocks != 0 || s.Runs != 0 {
			t.Fatalf("with nobody having anything there are %d blocks in %d runs", s.Blocks, s.Runs)
		}
	})
}

// TestBlocksKeepTheirMaximum drives an index that is too small: it believes
// nothing that is not so, and stays within bounds.
func TestBlocksKeepTheirMaximum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, rapid.IntRange(0, 300).Draw(t, "max"))
		act := w.actions()
		act["max"] = func(t *rapid.T) {
			w.x.SetMax(rapid.IntRange(0, 300).Draw(t, "max"))
			for w.x.Sweep(3) {
			}
		}
		delete(act, "match")
		act[""] = func(t *rapid.T) {
			if err := w.x.check(); err != nil {
				t.Fatal(err)
			}
			if s := w.x.Stats(); s.Blocks > s.Max {
				t.Fatalf("%d blocks, at most %d allowed", s.Blocks, s.Max)
			}
			for h := range worldHolders {
				w.x.Runs(h, func(_ Key, tier Tier, keys []Key) bool {
					for _, k := range keys {
						if !w.m.at(h, tier)[k] {
							t.Fatalf("holder %d is said to have %d at tier %d", h, k, tier)
						}
					}
					return true
				})
			}
		}
		t.Repeat(act)
	})
}

func TestBlocksEvictWhatIsNotUsed(t *testing.T) {
	x := NewBlocks(1000)
	hot := randomChain(1, 1, 100)
	x.Store(0, TierGPU, 0, hot)
	held := make([]Held, 1)
	for i := range uint64(200) {
		x.Store(0, TierGPU, 0, randomChain(1, 100+i, 50))
		x.Match(hot, nil, held)
		if held[0].Blocks != 100 {
			t.Fatalf("after %d other chains %d blocks of the one in use are left", i+1, held[0].Blocks)
		}
	}
	s := x.Stats()
	if want := uint64(100 + 200*50 - s.Blocks); s.Blocks > 1000 || s.Blocks < 900 || s.Evicted != want {
		t.Errorf("%d blocks and %d evicted, want up to 1000 and %d", s.Blocks, s.Evicted, want)
	}
}

// TestBlocksTableGrowsAndShrinks fills the table until its segments have been
// split many times, and empties it again.
func TestBlocksTableGrowsAndShrinks(t *testing.T) {
	x := NewBlocks(1 << 20)
	const chains, length = 400, 300
	for i := range uint64(chains) {
		x.Store(int(i%7), TierCPU, 0, randomChain(1, i, length))
	}
	if err := x.check(); err != nil {
		t.Fatal(err)
	}
	full := x.Stats()
	if full.Blocks != chains*length || full.Bytes > 40*chains*length {
		t.Errorf("%d blocks in %d bytes", full.Blocks, full.Bytes)
	}
	for h := range 7 {
		x.Clear(h)
	}
	for x.Sweep(100) {
	}
	if err := x.check(); err != nil {
		t.Fatal(err)
	}
	if s := x.Stats(); s.Blocks != 0 || s.Bytes > full.Bytes/2 {
		t.Errorf("after clearing there are %d blocks in %d bytes of %d", s.Blocks, s.Bytes, full.Bytes)
	}
}

func TestBlocksStoreAndRemoveTidyUp(t *testing.T) {
	x := NewBlocks(1 << 20)
	for i := range uint64(100) {
		x.Store(1, TierGPU, 0, randomChain(1, i, 10))
	}
	x.Clear(1)
	for i := range uint64(200) {
		x.Store(2, TierGPU, 0, randomChain(1, 1000+i%2, 10))
	}
	if s := x.Stats(); s.Blocks != 20 || s.Stale != 0 {
		t.Errorf("%d blocks, %d runs to visit; want 20 and 0", s.Blocks, s.Stale)
	}
}

func TestBlocksWithManyHolders(t *testing.T) {
	x := NewBlocks(1 << 20)
	chain := randomChain(1, 1, 70)
	const holders = 3000
	for h := range holders {
		x.Store(h, Tier(h%2), 0, chain[:1+h%70])
	}
	if err := x.check(); err != nil {
		t.Fatal(err)
	}
	held := make([]Held, holders)
	x.Match(chain, nil, held)
	for h := range holders {
		want := Held{Blocks: int32(1 + h%70)}
		want.At[h%2] = want.Blocks
		if held[h] != want {
			t.Fatalf("holder %d has %v, want %v", h, held[h], want)
		}
	}
	for h := range holders {
		x.Remove(h, Tier(h%2), chain)
	}
	if err := x.check(); err != nil || x.Stats().Blocks != 0 {
		t.Fatalf("%d blocks left: %v", x.Stats().Blocks, err)
	}
}

// TestBlocksWithTooManyHolders holds that what cannot be recorded is refused and
// that nothing else is lost.
func TestBlocksWithTooManyHolders(t *testing.T) {
	x := NewBlocks(1 << 20)
	const room, extra = 32768, 5
	for h := range room + extra {
		x.Store(h, TierGPU, 0, []Key{7})
	}
	if err := x.check(); err != nil {
		t.Fatal(err)
	}
	if s := x.Stats(); s.Refused != extra || !x.Has(room-1, TierGPU, 7) || x.Has(room, TierGPU, 7) {
		t.Errorf("%d refused, want %d", s.Refused, extra)
	}
	x.Clear(3)
	x.Store(room, TierGPU, 0, []Key{7})
	if !x.Has(room, TierGPU, 7) {
		t.Error("the place of one who was cleared is not taken")
	}
}

// TestBlocksGrowInPlace holds that decoding, which adds block by block, does
// not make a run of each.
func TestBlocksGrowInPlace(t *testing.T) {
	x := NewBlocks(1 << 20)
	parent := Key(0)
	for _, k := range randomChain(1, 1, 640) {
		x.Store(0, TierGPU, parent, []Key{k})
		parent = k
	}
	if s := x.Stats(); s.Runs != 10 || s.Blocks != 640 {
		t.Errorf("%d blocks in %d runs, want 640 in 10", s.Blocks, s.Runs)
	}
}

func TestBlocksKnowTheirSizes(t *testing.T) {
	for _, c := range []struct {
		is   reflect.Type
		want uintptr
	}{
		{reflect.TypeFor[blockRun](), bytesOfRun},
		{reflect.TypeFor[blockChunk](), bytesOfChunk - 24},
		{reflect.TypeFor[blockSegment](), bytesOfSegment},
	} {
		if c.is.Size() != c.want {
			t.Errorf("%s takes %d bytes, the books say %d", c.is, c.is.Size(), c.want)
		}
	}
}

func TestBlocksBounds(t *testing.T) {
	x := NewBlocks(1 << 20)
	k := []Key{1, 2}
	x.Store(-1, TierGPU, 0, k)
	x.Store(maxHolders, TierGPU, 0, k)
	x.Store(0, TierOther+1, 0, k)
	if s := x.Stats(); s.Refused != 6 || s.Blocks != 0 {
		t.Errorf("%d refused, %d stored; want 6 and 0", s.Refused, s.Blocks)
	}
	x.Store(0, TierGPU, 0, nil)
	x.Remove(-1, TierGPU, k)
	x.Remove(7, TierGPU, k)
	x.Clear(-1)
	x.Clear(7)
	x.Match(nil, nil, nil)
	x.Match(k, []int{3, -1}, make([]Held, 2))
	x.Runs(-1, nil)
	if x.Has(-1, TierGPU, 1) || x.Has(0, TierOther+1, 1) || x.Count(-1, TierGPU) != 0 {
		t.Error("nobody has something")
	}
}

// TestBlocksCrowded fills one segment that cannot be split any more: keys whose
// hashes agree in all bits that an entry keeps are refused, not lost in a loop.
func TestBlocksCrowded(t *testing.T) {
	x := NewBlocks(1 << 20)
	x.table.mix = [2]uint64{0, 0} // all hashes are 0
	keys := randomChain(1, 1, pageWords+100)
	x.Store(0, TierGPU, 0, keys)
	if s := x.Stats(); s.Blocks != pageWords-1 || s.Refused != 101 {
		t.Errorf("%d blocks, %d refused", s.Blocks, s.Refused)
	}
	if err := x.check(); err != nil {
		t.Fatal(err)
	}
	x.Remove(0, TierGPU, keys)
	if err := x.check(); err != nil || x.Stats().Blocks != 0 {
		t.Fatalf("%d blocks left: %v", x.Stats().Blocks, err)
	}
}

func TestBlocksDoNotAllocate(t *testing.T) {
	x := NewBlocks(1 << 20)
	chain := randomChain(1, 1, 500)
	for h := range 64 {
		x.Store(h, TierGPU, 0, chain[:h*7])
		x.Store(h, TierCPU, 0, chain[:h*3])
	}
	held, stores := make([]Held, 66), []int{65}
	x.Store(65, TierShared, 0, chain)
	other := randomChain(2, 1, 100)
	for name, f := range map[string]func(){
		"match":  func() { x.Match(chain, nil, held) },
		"stores": func() { x.Match(chain, stores, held) },
		"store and remove": func() {
			x.Store(3, TierGPU, 0, other)
			x.Store(4, TierGPU, 0, other[:50])
			x.Remove(3, TierGPU, other)
			x.Remove(4, TierGPU, other)
		},
		"clear": func() {
			x.Store(3, TierGPU, 0, other)
			x.Clear(3)
			x.Sweep(1 << 20)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
