package tokens

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/kv"
)

// audit counts again what a cache holds.
func audit(t *rapid.T, c *cache) {
	holds, bytes := map[*run]int{}, int64(0)
	var hold func(r *run)
	hold = func(r *run) {
		if holds[r]++; holds[r] > 1 {
			return
		}
		bytes += runBytes + 8*int64(len(r.keys))
		if r.parent != nil {
			if r.shared > r.parent.total() {
				t.Fatalf("a run goes on from key %d of %d", r.shared, r.parent.total())
			}
			hold(r.parent)
		}
	}
	n := 0
	for p := c.oldest.newer; p != &c.oldest; p = p.newer {
		hold(p.run)
		bytes += placeBytes
		n++
		if c.places[p.at] != p || p.all != (digest{}) && c.exact[p.all] != p {
			t.Fatal("a place is not where it is looked for")
		}
	}
	for r, n := range holds {
		if r.holds != n {
			t.Fatalf("a run is held %d times and says %d", n, r.holds)
		}
	}
	switch {
	case n != len(c.places) || len(c.exact) > n:
		t.Fatalf("%d places in order, %d in the table, %d by all bytes", n, len(c.places), len(c.exact))
	case bytes != c.bytes || bytes > c.limit:
		t.Fatalf("holds %d bytes, says %d, limit %d", bytes, c.bytes, c.limit)
	}
}

// Whatever prompts come, those that are known have their own keys, what is said
// to be a beginning is one, and memory is bounded.
func TestCacheKeepsWhatItIsGiven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c cache
		c.init(rapid.Int64Range(2000, 60_000).Draw(t, "limit"))
		s := New(Options{})
		defer s.Close()
		for range rapid.IntRange(1, 60).Draw(t, "prompts") {
			// Messages of one to 40 tokens, the token being the message's name.
			messages := rapid.SliceOfN(rapid.IntRange(1, 3), 1, 8).Draw(t, "messages")
			var bounds []digest
			var d digest
			var tokens []uint32
			for _, m := range messages {
				d = s.sum(d, []byte{byte(m)})
				bounds = append(bounds, d)
				tokens = append(tokens, slices.Repeat([]uint32{uint32(m)}, []int{0, 1, 17, 40}[m])...)
				tokens = append(tokens, 99)
			}
			all := s.sum(d, []byte("all"))
			tokens = append(tokens, 50, 51) // ready for the answer
			keys := kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 4, tokens, nil)
			if got, n, ok := c.get(all, nil); ok && (!slices.Equal(got, keys) || n != len(tokens)) {
				t.Fatalf("%d tokens and keys %x, want %x", n, got, keys)
			}
			if got, n, ok := c.alike(all, d, nil); ok && (!slices.Equal(got, keys) || n != len(tokens)) {
				t.Fatalf("alike: %d tokens and keys %x, want %x", n, got, keys)
			}
			// What two prompts share may go on into the next message; no further.
			if got, ok := c.prefix(bounds, nil); ok && len(got) == 0 {
				t.Fatal("an empty beginning")
			}
			c.put(all, bounds, keys, len(tokens))
			audit(t, &c)
			if got, _, ok := c.get(all, nil); ok && !slices.Equal(got, keys) {
				t.Fatalf("keys %x, want %x", got, keys)
			}
		}
	})
}

// A conversation of many turns is kept once.
func TestConversationIsKeptOnce(t *testing.T) {
	var c cache
	c.init(1 << 20)
	s := start(t, Options{})
	var bounds []digest
	var d digest
	var tokens []uint32
	for turn := range 100 {
		for half := range 2 {
			d = s.sum(d, []byte{byte(turn), byte(half)})
			bounds = append(bounds, d)
			for range 160 {
				tokens = append(tokens, uint32(len(tokens)))
			}
		}
		c.put(s.sum(d, nil), bounds, kv.ChainTokens(nil, 1, 16, tokens, nil), len(tokens))
	}
	if most := int64(len(tokens)/16*8 + 100*runBytes + 200*placeBytes); c.bytes > most {
		t.Errorf("%d bytes for a conversation of %d tokens, want %d", c.bytes, len(tokens), most)
	}
	if c.counts.Parted > 0 || c.counts.Grown == 0 {
		t.Errorf("%+v", c.counts)
	}
}

func TestCacheGivesUpTheOldest(t *testing.T) {
	var c cache
	c.init(10_000)
	s := start(t, Options{})
	prompt := func(i int) digest { return s.sum(digest{}, []byte{byte(i)}) }
	keys := make([]kv.Key, 100)
	for i := range 50 {
		for k := range keys {
			keys[k] = kv.Key(1000*i + k)
		}
		c.put(prompt(i), []digest{prompt(i)}, keys, 1600)
		c.get(prompt(0), nil)
	}
	if _, _, ok := c.get(prompt(0), nil); !ok {
		t.Error("what was used last is gone")
	}
	if _, _, ok := c.get(prompt(1), nil); ok || c.bytes > 10_000 {
		t.Errorf("%d bytes, the oldest is there: %v", c.bytes, ok)
	}
	c.put(prompt(60), []digest{prompt(60)}, make([]kv.Key, 5000), 80_000)
	if _, _, ok := c.get(prompt(60), nil); ok {
		t.Error("a prompt takes more than a quarter of the cache")
	}
}

func TestBoundsAreBounded(t *testing.T) {
	s := start(t, Options{})
	body := []byte("[")
	for i := range 1000 {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, '1')
	}
	got := s.bounds(nil, digest{}, append(body, ']'))
	longer := s.bounds(nil, digest{}, append(body, ",1,1]"...))
	if len(got) != maxBounds || len(longer) != maxBounds || got[0] != longer[0] || longer[maxBounds-3] != got[maxBounds-1] {
		t.Errorf("%d and %d bounds", len(got), len(longer))
	}
}
