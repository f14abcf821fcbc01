package kv

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"
	"pgregory.net/rapid"
)

// holdings is what changes add up to: for each tier the keys that are there.
type holdings [tiers]map[Key]bool

// applyAll carries changes out of which some may change nothing: without a map,
// removals of blocks that nobody has heard of are passed on.
func (h *holdings) applyAll(changes []Change) { h.apply(changes, func(string, ...any) {}) }

// apply carries changes out, and fails at one that changes nothing or whose keys
// do not hang together.
func (h *holdings) apply(changes []Change, fail func(string, ...any)) {
	for _, c := range changes {
		if c.Kind == ChangeClear {
			*h = holdings{}
			continue
		}
		if len(c.Keys) == 0 {
			fail("%+v: no keys", c)
		}
		for _, k := range c.Keys {
			if h[c.Tier][k] == (c.Kind == ChangeStore) {
				fail("%+v: key %x is there: %v", c, k, h[c.Tier][k])
			}
			if h[c.Tier] == nil {
				h[c.Tier] = map[Key]bool{}
			}
			if delete(h[c.Tier], k); c.Kind == ChangeStore {
				h[c.Tier][k] = true
			}
		}
	}
}

// prompt is a request as both sides see it.
type prompt struct {
	tokens        []uint32
	adapter, salt string
	x             Extras
}

func (p *prompt) keys(block int) []Key {
	return ChainTokens(nil, TokenSeed([]byte(p.adapter), []byte(p.salt)), block, p.tokens, &p.x)
}

// engineKeys names the blocks of size tokens as some engine would.
func (p *prompt) engineKeys(size int) []EngineKey {
	var keys []EngineKey
	at := xxhash.Sum64String(p.adapter + "/" + p.salt + fmt.Sprint(p.x.Media, p.x.Embeds))
	for i := 0; (i+1)*size <= len(p.tokens); i++ {
		for _, t := range p.tokens[i*size : (i+1)*size] {
			at = xxhash.Sum64(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, at), t))
		}
		keys = append(keys, EngineKey(at))
	}
	return keys
}

// event returns the store of blocks [from, to) as an engine of encoding c tells
// of it.
func (p *prompt) event(c Encoding, size, from, to int) Event {
	keys := p.engineKeys(size)
	e := Event{Kind: Stored, Blocks: keys[from:to], Tokens: p.tokens[from*size : to*size], BlockSize: size}
	if from > 0 {
		e.HasParent, e.Parent = true, keys[from-1]
	}
	if p.adapter != "" {
		e.LoRA, e.HasLoRAID, e.LoRAID = []byte(p.adapter), true, 7
	}
	if c > VLLMMapBytes {
		if p.salt != "" {
			e.Salt = []byte(p.salt)
		}
		return e
	}
	for b := from; b < to; b++ {
		x := func(k ExtraKind, offset int, value string) {
			e.Extra = append(e.Extra, Extra{Block: int32(b - from), Kind: k, Offset: int64(offset), Value: []byte(value)})
		}
		if p.adapter != "" {
			x(ExtraLoRA, 0, p.adapter)
		}
		for _, m := range p.x.Media {
			if m.Offset < (b+1)*size && m.Offset+m.Length > b*size {
				x(ExtraMedia, m.Offset-b*size, m.ID)
			}
		}
		if b == 0 && p.salt != "" {
			x(ExtraSalt, 0, p.salt)
		}
		if b < len(p.x.Embeds) && len(p.x.Embeds[b]) > 0 {
			x(ExtraEmbeds, 0, string(p.x.Embeds[b]))
		}
	}
	return e
}

// drawPrompt draws a prompt that engines of encoding c can tell of in full.
func drawPrompt(t *rapid.T, c Encoding, size, block int) prompt {
	p := prompt{tokens: rapid.SliceOfN(rapid.Uint32Range(0, 200_000), 0, 300).Draw(t, "tokens")}
	p.salt = rapid.SampledFrom([]string{"", "salt"}).Draw(t, "salt")
	if c <= VLLMMapBytes || c == Mooncake {
		p.adapter = rapid.SampledFrom([]string{"", "adapter"}).Draw(t, "adapter")
	}
	if c > VLLMMapBytes {
		return p
	}
	at := 0
	for range rapid.IntRange(0, 4).Draw(t, "media") {
		at += rapid.IntRange(0, 60).Draw(t, "gap")
		m := Media{ID: fmt.Sprint("medium ", rapid.IntRange(0, 3).Draw(t, "id")), Offset: at, Length: rapid.IntRange(1, 70).Draw(t, "length")}
		p.x.Media = append(p.x.Media, m)
		at += m.Length
	}
	if size == block && rapid.Bool().Draw(t, "embeds") {
		p.x.Embeds = [][]byte{nil, []byte("a digest of a block's embeddings")}
	}
	return p
}

var ratios = []int{1, 2, 3, 4, 6, 8, 16, 24, 32, 64}

// TestNamesAgreeWithRequests tells the blocks of prompts as engines do, in
// pieces and in any order, and finds the keys that requests have.
func TestNamesAgreeWithRequests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Encoding(rapid.IntRange(0, int(Encodings)-1).Draw(t, "encoding"))
		size, block := rapid.SampledFrom(ratios).Draw(t, "size"), rapid.SampledFrom([]int{1, 7, 16, 64}).Draw(t, "block")
		p := drawPrompt(t, c, size, block)
		var events []Event
		blocks := len(p.tokens) / size
		for from := 0; from < blocks; {
			to := rapid.IntRange(from+1, blocks).Draw(t, "to")
			events = append(events, p.event(c, size, from, to))
			from = to
		}
		n := NewNames(KeySpace{Block: block}, 1000)
		var h holdings
		var b Batch
		for _, i := range rapid.Permutation(indices(len(events))).Draw(t, "order") {
			if err := b.Decode(c.AppendBatch(nil, 1, 0, events[i:i+1])); err != nil || len(b.Events) != 1 {
				t.Fatalf("%v, %v", err, b.Dropped)
			}
			h.apply(n.Apply(&b, nil), t.Fatalf)
		}
		want := p.keys(block)[:blocks*size/block]
		for i, k := range want {
			if !h[TierGPU][k] {
				t.Fatalf("%v of %d on %d: key %d of %d is missing; %+v", c, size, block, i, len(want), n.Counts())
			}
		}
		if len(h[TierGPU]) != len(want) || !n.Complete() || n.Held() != blocks {
			t.Fatalf("%d keys, want %d; complete %v, %d of %d held", len(h[TierGPU]), len(want), n.Complete(), n.Held(), blocks)
		}
	})
}

func indices(n int) []int {
	x := make([]int, n)
	for i := range x {
		x[i] = i
	}
	return x
}

// TestChainTokensTellsApart changes one thing at a time.
func TestChainTokensTellsApart(t *testing.T) {
	p := prompt{tokens: make([]uint32, 64)}
	plain := p.keys(16)
	for name, change := range map[string]func(*prompt){
		"adapter":          func(p *prompt) { p.adapter = "a" },
		"salt":             func(p *prompt) { p.salt = "a" },
		"medium":           func(p *prompt) { p.x.Media = []Media{{ID: "a", Offset: 3, Length: 5}} },
		"another place":    func(p *prompt) { p.x.Media = []Media{{ID: "a", Offset: 4, Length: 5}} },
		"embeddings":       func(p *prompt) { p.x.Embeds = [][]byte{[]byte("a")} },
		"a token":          func(p *prompt) { p.tokens[15] = 1 },
		"an earlier token": func(p *prompt) { p.tokens[14] = 1 },
	} {
		q := prompt{tokens: slices.Clone(p.tokens)}
		change(&q)
		for i, k := range q.keys(16) {
			if slices.Contains(plain, k) {
				t.Errorf("%s: key %d is as before", name, i)
			}
		}
	}
	long := prompt{tokens: make([]uint32, 160)}
	if got := ChainTokens(nil, plain[3], 16, long.tokens[64:], nil); !slices.Equal(got, long.keys(16)[4:]) {
		t.Error("a chain does not go on from its last key")
	}
	late := prompt{tokens: p.tokens, x: Extras{Media: []Media{{ID: "a", Offset: 20, Length: 30}}}}
	if got := late.keys(16); got[0] != plain[0] || got[1] == plain[1] {
		t.Error("a medium belongs to the chain from where it begins")
	}
}

// script applies events one batch at a time.
type script struct {
	t *testing.T
	n *Names
	h holdings
}

func (s *script) apply(events ...Event) []Change {
	s.t.Helper()
	changes := s.n.Apply(&Batch{Rank: -1, Events: events}, nil)
	s.h.apply(changes, s.t.Fatalf)
	return changes
}

func (s *script) want(tier Tier, keys ...Key) {
	s.t.Helper()
	if len(s.h[tier]) != len(keys) {
		s.t.Errorf("tier %d: %d keys, want %d", tier, len(s.h[tier]), len(keys))
	}
	for i, k := range keys {
		if !s.h[tier][k] {
			s.t.Errorf("tier %d: key %d is missing", tier, i)
		}
	}
}

func newScript(t *testing.T, s KeySpace, most int) *script {
	return &script{t: t, n: NewNames(s, most)}
}

func sequence(n int) prompt {
	p := prompt{tokens: make([]uint32, n)}
	for i := range p.tokens {
		p.tokens[i] = uint32(1000 + i)
	}
	return p
}

func gone(tier Tier, keys ...EngineKey) Event { return Event{Kind: Removed, Tier: tier, Blocks: keys} }

func copies(tier Tier, keys ...EngineKey) Event { return Event{Kind: Stored, Tier: tier, Blocks: keys} }

func TestNamesCountCopies(t *testing.T) {
	p := sequence(64)
	ek, own := p.engineKeys(16), p.keys(16)
	s := newScript(t, KeySpace{}, 100)
	if c := s.apply(p.event(VLLMMap, 16, 0, 2), p.event(VLLMMap, 16, 2, 4)); len(c) != 1 || c[0].Parent != 0 || !slices.Equal(c[0].Keys, own) {
		t.Errorf("a run of two events: %+v", c)
	}
	if c := s.apply(p.event(VLLMMap, 16, 1, 3)); len(c) != 0 {
		t.Errorf("copies: %+v", c)
	}
	if c := s.apply(copies(TierCPU, ek[1], ek[2])); len(c) != 1 || c[0].Parent != own[0] || c[0].Tier != TierCPU {
		t.Errorf("copies at another tier: %+v", c)
	}
	s.apply(gone(TierGPU, ek[1], ek[3]))
	s.want(TierGPU, own[0], own[1], own[2])
	s.apply(gone(TierGPU, ek[1], ek[0], ek[2]))
	s.want(TierGPU, own[2])
	s.want(TierCPU, own[1], own[2])
	s.apply(gone(TierCPU, ek[1]), copies(TierDisk, ek[1])) // gone everywhere, and then told by its key alone
	s.want(TierDisk, own[1])
	s.apply(Event{Kind: Cleared}, p.event(VLLMMap, 16, 0, 1))
	s.apply(gone(TierGPU, ek[0]))
	s.want(TierGPU) // copies from before the clear do not count
	s.apply(gone(TierGPU, ek[0], 99), copies(TierCPU, 99))
	if c := s.n.Counts(); c.Drops[DropNotHeld] != 2 || c.Drops[DropUnknown] != 1 || s.n.Complete() {
		t.Errorf("%+v", c)
	}
}

func TestNamesDropWhatTheyCannotTell(t *testing.T) {
	p := sequence(64)
	ek, own := p.engineKeys(16), p.keys(16)
	odd := p.event(VLLMMap, 16, 0, 3)
	odd.Extra = []Extra{{Block: 1, Kind: ExtraOther}}
	adapter := p.event(VLLMMap, 16, 0, 1)
	adapter.HasLoRAID, adapter.LoRAID = true, 3
	remote := p.event(VLLMMap, 16, 0, 4)
	remote.Remote = true
	window := p.event(VLLMMap, 16, 0, 4)
	window.Spec, window.Group = SpecSliding, 1
	second := p.event(VLLMMap, 16, 0, 4)
	second.Group = 2
	away := gone(TierGPU, ek...)
	away.Group = 2
	s := newScript(t, KeySpace{}, 100)
	s.apply(odd, p.event(VLLMMap, 16, 3, 4)) // what follows has no key either, and is no orphan
	s.want(TierGPU, own[0])
	s.apply(gone(TierGPU, ek[1], ek[2], ek[3]), remote, window, second, away)
	s.want(TierGPU, own[0])
	s.apply(gone(TierGPU, ek[0]), adapter)
	s.want(TierGPU)
	if c := s.n.Counts(); c.Drops != [Drops]uint64{DropUnkeyable: 4, DropRemote: 4, DropGroup: 12} || c.Orphans != 0 {
		t.Errorf("%+v", c)
	}
}

func TestNamesFollowTheLowestGroup(t *testing.T) {
	p := sequence(32)
	s := newScript(t, KeySpace{}, 100)
	high := p.event(VLLMMap, 16, 0, 2)
	high.Group = 3
	s.apply(high, copies(TierCPU, p.engineKeys(16)[0])) // of which group, it does not say
	s.want(TierCPU)
	s.want(TierGPU, p.keys(16)...)
	if c := s.apply(p.event(VLLMMap, 16, 0, 1), high); len(c) != 2 || c[0].Kind != ChangeClear {
		t.Errorf("%+v", c)
	}
	s.want(TierGPU, p.keys(16)[0])
}

func TestNamesOrphans(t *testing.T) {
	p := sequence(16 * 8)
	ek, own := p.engineKeys(16), p.keys(16)
	s := newScript(t, KeySpace{}, 100)
	s.apply(p.event(VLLMMap, 16, 6, 8), p.event(VLLMMap, 16, 2, 6), p.event(VLLMMap, 16, 2, 3), copies(TierCPU, ek[4]))
	s.want(TierGPU)
	if s.n.Complete() || s.n.Held() != 6 {
		t.Errorf("%d held, complete: %v", s.n.Held(), s.n.Complete())
	}
	s.apply(gone(TierGPU, ek[3], ek[7]))
	s.apply(p.event(VLLMMap, 16, 0, 2))
	s.want(TierGPU, own[0], own[1], own[2], own[4], own[5], own[6])
	s.want(TierCPU, own[4])
	s.apply(gone(TierGPU, ek[2]))
	s.want(TierGPU, own[0], own[1], own[2], own[4], own[5], own[6])
	if c := s.n.Counts(); c.Orphans != 3 || c.Reunited != 3 || !s.n.Complete() {
		t.Errorf("%+v, complete: %v", c, s.n.Complete())
	}
}

func TestNamesGiveOldOrphansUp(t *testing.T) {
	s := newScript(t, KeySpace{}, 10_000)
	for i := range maxOrphans + 10 {
		s.apply(Event{
			Kind: Stored, Blocks: []EngineKey{EngineKey(10_000 + i)}, Tokens: sequence(16 + i).tokens[i:], BlockSize: 16, HasParent: true, Parent: EngineKey(100 + i%7),
		})
	}
	if s.n.orphans.waiting > maxOrphans || s.n.Held() != s.n.orphans.waiting || s.n.Counts().Drops[DropOrphan] == 0 {
		t.Errorf("%d wait, %d held", s.n.orphans.waiting, s.n.Held())
	}
	s.apply(Event{Kind: Stored, Blocks: []EngineKey{100, 101, 102, 103, 104, 105, 106}, Tokens: make([]uint32, 16*7), BlockSize: 16})
	if s.n.orphans.waiting != 0 || s.n.orphans.tokens != 0 || len(s.n.orphans.byKey) != 0 {
		t.Errorf("%d wait, %d tokens", s.n.orphans.waiting, s.n.orphans.tokens)
	}
	// Those that are gone for good still count against completeness.
	if s.n.Complete() {
		t.Error("complete, though some were given up")
	}
}

func TestNamesNewestContentWins(t *testing.T) {
	p, q := sequence(32), sequence(32)
	q.tokens[0] = 1
	s := newScript(t, KeySpace{}, 100)
	s.apply(p.event(VLLMMap, 16, 0, 2))
	s.apply(copies(TierCPU, p.engineKeys(16)[0]))
	e := q.event(VLLMMap, 16, 0, 1)
	e.Blocks = p.engineKeys(16)[:1]
	s.apply(e)
	s.want(TierGPU, q.keys(16)[0], p.keys(16)[1])
	s.want(TierCPU)
	if c := s.n.Counts(); c.Conflicts != 1 {
		t.Errorf("%+v", c)
	}
}

// TestNamesOfChunks offloads chunks of four blocks, named by their last.
func TestNamesOfChunks(t *testing.T) {
	p := sequence(128)
	small, own := p.engineKeys(16), p.keys(16)
	chunk := p.event(VLLMMap, 64, 0, 2)
	chunk.Tier, chunk.Blocks = TierCPU, []EngineKey{small[3], small[7]}
	for name, order := range map[string][]Event{"small first": {p.event(VLLMMap, 16, 0, 8), chunk}, "chunks first": {chunk, p.event(VLLMMap, 16, 0, 8)}} {
		s := newScript(t, KeySpace{}, 100)
		s.apply(order...)
		s.want(TierCPU, own...)
		s.want(TierGPU, own...)
		s.apply(gone(TierGPU, small[3]))
		s.want(TierGPU, slices.Delete(slices.Clone(own), 3, 4)...)
		s.apply(gone(TierCPU, small[3]))
		s.want(TierCPU, own[4:]...)
		if c := s.n.Counts(); c.Conflicts != 0 || c.Drops != [Drops]uint64{} {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestNamesDirect(t *testing.T) {
	root := VLLMRoot("42")
	p := sequence(64)
	digests := NewHasher(root, 16).Chain(nil, p.tokens, nil)
	keys := make([]EngineKey, len(digests))
	own := make([]Key, len(digests))
	for i := range digests {
		own[i] = digests[i].Low()
		keys[i] = EngineKey(own[i])
	}
	e := p.event(VLLMMap, 16, 0, 2)
	e.Blocks = keys[:2]
	late := p.event(VLLMMap, 16, 3, 4)
	late.Blocks, late.Parent = keys[3:], keys[2]
	for _, mode := range []KeyMode{KeysDirect, KeysMapped} {
		s := newScript(t, KeySpace{Mode: mode, Root: root}, 100)
		s.apply(e, e, late)
		if !s.n.Provable() || s.n.Counts().Equal != 2 {
			t.Errorf("mode %d: %+v", mode, s.n.Counts())
		}
		if mode == KeysDirect {
			s.want(TierGPU, own[0], own[1], own[3])
			s.apply(gone(TierGPU, keys[0], keys[3]))
			s.want(TierGPU, own[0], own[1])
			c := s.n.Apply(&Batch{Events: []Event{gone(TierGPU, 77)}}, nil)
			if len(c) != 1 || c[0].Keys[0] != 77 {
				t.Errorf("a removal means something by itself: %+v", c)
			}
		}
		wrong := e
		wrong.Blocks = []EngineKey{5, 6}
		s.n.Apply(&Batch{Events: []Event{wrong}}, nil)
		if s.n.Provable() || s.n.Counts().Unequal != 1 {
			t.Errorf("mode %d: %+v", mode, s.n.Counts())
		}
		s.n.Clear()
		if s.n.Counts().Unequal != 1 || s.n.Held() != 0 {
			t.Errorf("mode %d after a clear: %+v", mode, s.n.Counts())
		}
	}
}

// TestNamesAreBounded fills names beyond their limit: what they say stays true,
// and what is gone makes room.
func TestNamesAreBounded(t *testing.T) {
	s := newScript(t, KeySpace{}, 32)
	p := sequence(16 * 64)
	ek, own := p.engineKeys(16), p.keys(16)
	s.apply(p.event(VLLMMap, 16, 0, 40))
	s.want(TierGPU, own[:32]...)
	s.apply(gone(TierGPU, ek[20:40]...))
	s.want(TierGPU, own[:20]...)
	if c := s.n.Counts(); c.Drops[DropFull] != 8 || c.Drops[DropNotHeld] != 8 || s.n.Complete() {
		t.Errorf("%+v", c)
	}
	s.apply(p.event(VLLMMap, 16, 10, 30))
	s.want(TierGPU, own[:30]...)
	if n := s.n.tab.n; n > 32 {
		t.Errorf("%d names, want 32 at most", n)
	}
	// Large blocks, with many keys each, count for more.
	big := newScript(t, KeySpace{Block: 1}, 10_000)
	q := sequence(200 * 100)
	big.apply(q.event(VLLMMap, 200, 0, 100))
	if len(big.n.tab.more) > 8*10_000 || big.n.Held() == 0 {
		t.Errorf("%d keys beside the table, %d held", len(big.n.tab.more), big.n.Held())
	}
}

// TestNamesAgainstModel stores and removes copies at random of the blocks of a
// few chains that share their beginnings.
func TestNamesAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom(ratios).Draw(t, "size")
		a, b := sequence(192), sequence(192)
		b.tokens[100] = 5
		prompts := []prompt{a, b}
		owned := map[EngineKey][]Key{}
		for _, p := range prompts {
			own := p.keys(16)
			for i, k := range p.engineKeys(size) {
				owned[k] = own[i*size/16 : (i+1)*size/16]
			}
		}
		n := NewNames(KeySpace{}, 1000)
		var h holdings
		refs := map[EngineKey]*[tiers]int{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			p := &prompts[rapid.IntRange(0, 1).Draw(t, "prompt")]
			keys := p.engineKeys(size)
			to := rapid.IntRange(1, len(keys)).Draw(t, "to")
			from := rapid.IntRange(0, to-1).Draw(t, "from")
			tier := Tier(rapid.IntRange(0, tiers-1).Draw(t, "tier"))
			var e Event
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				if from > 0 && (refs[keys[from-1]] == nil || *refs[keys[from-1]] == [tiers]int{}) {
					from = 0 // engines store behind what they have
				}
				e = p.event(VLLMMap, size, from, to)
				e.Tier = tier
				for _, k := range e.Blocks {
					if refs[k] == nil {
						refs[k] = &[tiers]int{}
					}
					refs[k][tier]++
				}
			case 2, 3:
				e = gone(tier, keys[from:to]...)
				for _, k := range e.Blocks {
					if r := refs[k]; r != nil {
						r[tier] = max(r[tier]-1, 0)
					}
				}
			default:
				if r := refs[keys[from]]; r != nil && *r != [tiers]int{} {
					e = copies(tier, keys[from])
					r[tier]++
				}
			}
			if e.Kind != 0 {
				h.apply(n.Apply(&Batch{Events: []Event{e}}, nil), t.Fatalf)
			}
		}
		var want holdings
		for tier := range tiers {
			want[tier] = map[Key]bool{}
			for k, r := range refs {
				for _, own := range owned[k] {
					if r[tier] > 0 {
						want[tier][own] = true
					}
				}
			}
			if len(want[tier]) != len(h[tier]) {
				t.Fatalf("tier %d: %d keys, want %d", tier, len(h[tier]), len(want[tier]))
			}
			for own := range want[tier] {
				if !h[tier][own] {
					t.Fatalf("tier %d: key %x is missing", tier, own)
				}
			}
		}
	})
}

// stream is what an engine of encoding c says while it serves: chains of 64
// blocks stored and, after a while, removed. It returns payloads that can be
// said in a circle.
func stream(c Encoding, size int) (payloads [][]byte, blocks int) {
	for i := range 64 {
		p := sequence(64 * size)
		p.tokens[0] = uint32(i)
		store := p.event(c, size, 0, 64)
		q := sequence(64 * size)
		q.tokens[0] = uint32((i + 32) % 64)
		payloads = append(payloads, c.AppendBatch(nil, 1, 0, []Event{gone(TierGPU, q.engineKeys(size)...), store}))
		blocks += 64
	}
	return payloads, blocks
}

func TestNamesAllocateNothing(t *testing.T) {
	for _, c := range []Encoding{VLLMArray, VLLMMap, SGLangMap} {
		payloads, _ := stream(c, 16)
		var b Batch
		n := NewNames(KeySpace{}, 10_000)
		var out []Change
		all := func() {
			for _, p := range payloads {
				_ = b.Decode(p)
				out = n.Apply(&b, out[:0])
			}
		}
		all()
		if got := testing.AllocsPerRun(10, all); got > 0 {
			t.Errorf("%v: %v allocations", c, got)
		}
	}
}

func BenchmarkNames(b *testing.B) {
	for _, size := range []int{1, 16, 64} {
		payloads, blocks := stream(VLLMMap, size)
		batches := make([]Batch, len(payloads))
		for i := range payloads {
			if err := batches[i].Decode(payloads[i]); err != nil {
				b.Fatal(err)
			}
		}
		run := func(name string, decode bool) {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				n := NewNames(KeySpace{}, 10_000)
				var out []Change
				b.ReportAllocs()
				for b.Loop() {
					for i := range batches {
						if decode {
							_ = batches[i].Decode(payloads[i])
						}
						out = n.Apply(&batches[i], out[:0])
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*blocks), "ns/block")
			})
		}
		run("apply", false)
		run("decode+apply", true)
	}
}

func BenchmarkChainTokens(b *testing.B) {
	p := sequence(16 * 1024)
	var dst []Key
	b.ReportAllocs()
	for b.Loop() {
		dst = ChainTokens(dst[:0], TokenSeed(nil, nil), 16, p.tokens, nil)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1024), "ns/block")
}
