package kv

import (
	"slices"
	"testing"
)

// hashed returns an event of the first blocks of p, with the keys of an engine that
// hashes with sha256_cbor from root.
func (p *prompt) hashed(root Digest, size, from, to int) Event {
	x := Extras{Form: p.x.Form, Adapter: p.adapter, Salt: p.salt}
	digests := NewHasher(root, size).Chain(nil, p.tokens, &x)
	e := p.event(VLLMMap, size, from, to)
	e.Blocks = nil
	for _, d := range digests[from:to] {
		e.Blocks = append(e.Blocks, EngineKey(d.Low()))
	}
	if from > 0 {
		e.Parent = EngineKey(digests[from-1].Low())
	}
	return e
}

func TestDirectKeysThatDiffer(t *testing.T) {
	root := VLLMRoot("42")
	p := sequence(128)
	for name, c := range map[string]struct {
		space KeySpace
		event Event
		want  Misfit
	}{
		"as configured":     {KeySpace{Mode: KeysDirect, Root: root, Block: 16}, p.hashed(root, 16, 0, 4), MisfitNone},
		"any size":          {KeySpace{Mode: KeysDirect, Root: root}, p.hashed(root, 32, 0, 4), MisfitNone},
		"another seed":      {KeySpace{Mode: KeysDirect, Root: root, Block: 16}, p.hashed(VLLMRoot("0"), 16, 0, 4), MisfitKeys},
		"another algorithm": {KeySpace{Mode: KeysDirect, Root: root, Block: 16}, p.event(VLLMMap, 16, 0, 4), MisfitKeys},
		"larger blocks":     {KeySpace{Mode: KeysDirect, Root: root, Block: 16}, p.hashed(root, 32, 0, 4), MisfitBlock},
		"mapped":            {KeySpace{Block: 16}, p.hashed(root, 16, 0, 4), MisfitNone},
	} {
		t.Run(name, func(t *testing.T) {
			n := NewNames(c.space, 100)
			rest := p.hashed(root, 16, 4, 8) // no first block, so nothing to compare
			var h holdings
			h.applyAll(n.Apply(&Batch{Events: []Event{rest}}, nil))
			if got := n.Misfit(); c.space.Mode == KeysDirect && (got != MisfitUnproven || n.Complete()) {
				t.Errorf("before a chain's first block: %v, complete %v", got, n.Complete())
			}
			h.applyAll(n.Apply(&Batch{Events: []Event{c.event}}, nil))
			if n.Misfit() != c.want || (n.Misfit().String() == "") != (c.want == MisfitNone) || n.EngineBlock() != c.event.BlockSize {
				t.Fatalf("%v, blocks of %d; want %v", n.Misfit(), n.EngineBlock(), c.want)
			}
			if c.want == MisfitNone {
				if c.space.Mode == KeysDirect && !h[TierGPU][Key(c.event.Blocks[0])] {
					t.Errorf("what fits is not taken: %v", h)
				}
				return
			}
			if !sameHoldings(&h, &holdings{}) || n.Complete() || n.Held() != 0 || n.Counts().Drops[DropMisfit] != 4 {
				t.Errorf("what does not fit is believed: %v, %+v", h, n.Counts())
			}
			away := gone(TierGPU, c.event.Blocks...)
			if out := n.Apply(&Batch{Events: []Event{rest, copies(TierCPU, c.event.Blocks[0]), away}}, nil); len(out) != 0 {
				t.Errorf("and still is: %+v", out)
			}
			n.Lose() // of the same process
			if n.Misfit() != c.want {
				t.Errorf("a gap makes it fit")
			}
			n.Clear() // another one may have been set right
			if n.Misfit() != MisfitNone || !n.Complete() {
				t.Errorf("a new process has no chance: %v", n.Misfit())
			}
			h.applyAll(n.Apply(&Batch{Events: []Event{p.hashed(root, 16, 0, 4)}}, nil))
			if len(h[TierGPU]) != 4 {
				t.Errorf("%v", h)
			}
		})
	}
}

// TestUnprovenKeysAreKept: what comes before anything can be compared is believed
// once it can be, and at once where events have no tokens.
func TestUnprovenKeysAreKept(t *testing.T) {
	root := VLLMRoot("42")
	p := sequence(128)
	f := NewFollower(KeySpace{Mode: KeysDirect, Root: root, Block: 16}, false, 100, 1000)
	f.Connected()
	var h holdings
	live := func(seq uint64, e Event) FollowerStatus {
		h.applyAll(f.Live(seq, VLLMMap.AppendBatch(nil, float64(seq), 0, []Event{e})).Changes)
		return f.Status()
	}
	if s := live(5, p.hashed(root, 16, 4, 8)); s.State != FeedMisfit || s.Misfit != MisfitUnproven {
		t.Errorf("%+v", s)
	}
	if s := live(6, p.hashed(root, 16, 0, 4)); s.State != FeedLive || s.Misfit != MisfitNone || len(h[TierGPU]) != 8 {
		t.Errorf("%+v, %v", s, h)
	}
	bare := p.hashed(root, 16, 4, 8)
	bare.Tokens, bare.BlockSize = nil, 0
	f = NewFollower(KeySpace{Mode: KeysDirect, Root: root, Block: 16}, false, 100, 1000)
	f.Connected()
	if s := live(5, bare); s.State != FeedLive || s.Misfit != MisfitNone {
		t.Errorf("%+v", s)
	}
}

func sameHoldings(a, b *holdings) bool {
	for t := range tiers {
		if len(a[t]) != len(b[t]) {
			return false
		}
	}
	return true
}

// TestParityOfExtras: salts and adapters take part, as far as all that is in a key
// is told, and tell how an engine writes them.
func TestParityOfExtras(t *testing.T) {
	root := VLLMRoot(VLLMUnseeded)
	for name, c := range map[string]struct {
		salt, adapter  string
		form           ExtraForm
		equal, unequal uint64
		want           ExtraForm
	}{
		"plain":               {"", "", ExtraPaired, 1, 0, ExtraPaired},
		"salted":              {"s", "", ExtraPaired, 1, 0, ExtraPaired},
		"salted, tagged":      {"s", "", ExtraTagged, 1, 0, ExtraTagged},
		"adapter":             {"", "a", ExtraPaired, 1, 0, ExtraPaired},
		"adapter and salt":    {"s", "a", ExtraBare, 1, 0, ExtraPaired},
		"adapter of a path":   {"", "a", ExtraTagged, 0, 0, ExtraPaired},
		"adapter and a salt?": {"s", "a", ExtraTagged, 0, 0, ExtraPaired},
	} {
		p := sequence(32)
		p.adapter, p.salt, p.x.Form = c.adapter, c.salt, c.form
		n := NewNames(KeySpace{Mode: KeysDirect, Block: 16}, 100)
		n.Apply(&Batch{Events: []Event{p.hashed(root, 16, 0, 2)}}, nil)
		if k := n.Counts(); k.Equal != c.equal || k.Unequal != c.unequal || n.Form() != c.want {
			t.Errorf("%s: %d equal, %d unequal, form %d", name, k.Equal, k.Unequal, n.Form())
		}
	}
	p := sequence(32)
	p.salt = "s"
	wrong := p.hashed(VLLMRoot("0"), 16, 0, 2)
	n := NewNames(KeySpace{Mode: KeysDirect, Block: 16}, 100)
	n.Apply(&Batch{Events: []Event{wrong}}, nil)
	if n.Misfit() != MisfitKeys {
		t.Errorf("a salted prompt's keys of another seed: %v", n.Misfit())
	}
}

// TestAFeedThatDoesNotFitVouchesForNothing: it is in sequence and whole, and yet
// history is believed; what a peer saved of it is believed no more.
func TestAFeedThatDoesNotFitVouchesForNothing(t *testing.T) {
	p := sequence(64)
	f := NewFollower(KeySpace{Mode: KeysDirect, Root: VLLMRoot("0"), Block: 16}, true, 100, 1000)
	f.Connected()
	f.Ended()
	e := p.hashed(VLLMRoot("42"), 16, 0, 4)
	d := f.Live(0, VLLMMap.AppendBatch(nil, 1, 0, []Event{e}))
	if s := f.Status(); s.State != FeedMisfit || s.State.String() != "misfit" || s.Misfit != MisfitKeys || s.Whole || s.Names.Unequal != 1 || s.Block != 16 {
		t.Errorf("%+v", s)
	}
	if len(d.Changes) == 0 || d.Changes[len(d.Changes)-1].Kind != ChangeClear {
		t.Errorf("%+v", d.Changes)
	}
	own := make([]Key, len(e.Blocks))
	for i, k := range e.Blocks {
		own[i] = Key(k)
	}
	b := NewBook(Default())
	b.Apply(1, 0, &Update{State: f.Status().State, Whole: f.Status().Whole, Changes: slices.Clone(d.Changes)})
	if b.Whole(0) || b.Standing(0).Feed != "misfit" || b.Standing(0).Source != 0 || b.Blocks().Has(0, TierGPU, own[0]) {
		t.Errorf("%+v", b.Standing(0))
	}
	again := NewFollower(KeySpace{Mode: KeysDirect, Root: VLLMRoot("0"), Block: 16}, true, 100, 1000)
	if err := again.LoadState(f.AppendState(nil)); err != nil {
		t.Fatal(err)
	}
	if s := again.Status(); s.Whole || s.Held != 0 {
		t.Errorf("%+v", s)
	}
}
