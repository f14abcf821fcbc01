package kv

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"penstock.dev/penstock/internal/stat"
)

// chainOf builds a chain from letters: chains share keys as far as their
// letters agree.
func chainOf(letters string) []Key {
	var c []Key
	prev := uint64(1)
	for i := range len(letters) {
		prev = stat.Mix64(prev*31 + uint64(letters[i]))
		c = append(c, Key(prev))
	}
	return c
}

func match(x *Index, letters string, slots int) []int32 {
	d := make([]int32, slots)
	x.Match(chainOf(letters), d)
	return d
}

func TestMatchCountsLeadingKeysPerSlot(t *testing.T) {
	x := NewIndex(100)
	x.Insert(0, chainOf("abcdef"))
	x.Insert(1, chainOf("abcxyz"))
	x.Insert(2, chainOf("q"))
	for _, c := range []struct {
		prompt string
		want   []int32
	}{
		{"abcdef", []int32{6, 3, 0}},
		{"abcdefgh", []int32{6, 3, 0}},
		{"abcxy", []int32{3, 5, 0}},
		{"ab", []int32{2, 2, 0}},
		{"q", []int32{0, 0, 1}},
		{"zzz", []int32{0, 0, 0}},
		{"", []int32{0, 0, 0}},
	} {
		if got := match(x, c.prompt, 3); !slices.Equal(got, c.want) {
			t.Errorf("match %q = %v, want %v", c.prompt, got, c.want)
		}
	}
	if x.Keys() != 10 {
		t.Errorf("distinct keys = %d, want 10", x.Keys())
	}
}

func TestEvictionForgetsLeavesOfTheLeastRecentChain(t *testing.T) {
	x := NewIndex(8)
	x.Insert(0, chainOf("abcd"))
	x.Insert(0, chainOf("abxy")) // 6 keys held
	x.Insert(0, chainOf("pqr"))  // 9 wanted: one key must go, the d of abcd
	if got := match(x, "abcd", 1)[0]; got != 3 {
		t.Errorf("abcd matches %d keys, want 3: the leaf goes first, and only as much as must", got)
	}
	if got := match(x, "abxy", 1)[0]; got != 4 {
		t.Errorf("abxy matches %d keys, want 4", got)
	}
	x.Insert(0, chainOf("stuvw"))
	if got := match(x, "ab", 1)[0]; got != 0 && x.Held(0) > 8 {
		t.Errorf("held %d keys of at most 8", x.Held(0))
	}
}

func TestClearForgetsOneSlotOnly(t *testing.T) {
	x := NewIndex(100)
	x.Insert(0, chainOf("abc"))
	x.Insert(1, chainOf("abd"))
	x.Clear(0)
	if got := match(x, "abcd", 2); !slices.Equal(got, []int32{0, 2}) {
		t.Errorf("after clear: %v, want [0 2]", got)
	}
	x.Clear(1)
	if x.Keys() != 0 || len(x.first) != 0 {
		t.Errorf("empty index still has %d keys, %d nodes", x.Keys(), len(x.first))
	}
}

// TestIndexAgainstModel compares the radix index with the plainest model: per
// slot a list of (prefix, last use), evicted by age with leaves first.
func TestIndexAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const slots = 3
		capacity := rapid.IntRange(1, 12).Draw(t, "capacity")
		x := NewIndex(capacity)
		held := make([]map[string]int, slots) // prefix -> stamp
		for i := range held {
			held[i] = map[string]int{}
		}
		stamp := 0
		letters := rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 0, 8, -1)
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) {
				s, c := rapid.IntRange(0, slots-1).Draw(t, "slot"), letters.Draw(t, "chain")
				x.Insert(s, chainOf(c))
				// Leaf first: deeper prefixes of one insert are older.
				for n := len(c); n > 0; n-- {
					stamp++
					held[s][c[:n]] = stamp
				}
				evictModel(held[s], capacity)
			},
			"clear": func(t *rapid.T) {
				s := rapid.IntRange(0, slots-1).Draw(t, "slot")
				x.Clear(s)
				clear(held[s])
			},
			"": func(t *rapid.T) {
				c := letters.Draw(t, "probe")
				got := match(x, c, slots)
				for s := range slots {
					want := 0
					for n := 1; n <= len(c) && held[s][c[:n]] != 0; n++ {
						want = n
					}
					if int(got[s]) != want || x.Held(s) != len(held[s]) {
						t.Fatalf("slot %d, probe %q: depth %d held %d, want %d and %d", s, c, got[s], x.Held(s), want, len(held[s]))
					}
				}
			},
		})
	})
}

func evictModel(held map[string]int, capacity int) {
	for len(held) > capacity {
		oldest, at := "", 0
		for p, st := range held {
			if at == 0 || st < at {
				oldest, at = p, st
			}
		}
		delete(held, oldest)
	}
}

func TestChainKeysImplyTheirPrefix(t *testing.T) {
	text := make([]byte, 5*ChunkBytes+17)
	for i := range text {
		text[i] = byte(i * 7)
	}
	a := Chain(nil, Seed([]byte("m")), text)
	if len(a) != 5 {
		t.Fatalf("%d keys for 5 full chunks", len(a))
	}
	text[ChunkBytes+3]++
	b := Chain(nil, Seed([]byte("m")), text)
	if a[0] != b[0] {
		t.Error("a change in chunk 1 moved the key of chunk 0")
	}
	for i := 1; i < 5; i++ {
		if a[i] == b[i] {
			t.Errorf("key %d does not depend on chunk 1", i)
		}
	}
	if Seed([]byte("ab"), []byte("c")) == Seed([]byte("a"), []byte("bc")) {
		t.Error("seed does not separate its parts")
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, slots := range []int{8, 64, 512} {
		b.Run(fmt.Sprintf("keys=188/slots=%d", slots), func(b *testing.B) {
			x := NewIndex(1 << 20)
			base := benchChain(1, 188)
			for s := range slots {
				for i := range 20 {
					c := append(slices.Clone(base[:20]), benchChain(uint64(s*100+i+7), 168)...)
					x.Insert(s, c)
				}
			}
			depth := make([]int32, slots)
			probe := append(slices.Clone(base[:20]), benchChain(107, 168)...)
			b.ReportAllocs()
			for b.Loop() {
				x.Match(probe, depth)
			}
		})
	}
}

func BenchmarkInsertSteadyState(b *testing.B) {
	x := NewIndex(4600)
	var chains [][]Key
	for i := range 200 {
		chains = append(chains, benchChain(uint64(i), 188))
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		x.Insert(i%8, chains[i%len(chains)])
		i++
	}
}

func benchChain(seed uint64, n int) []Key {
	c := make([]Key, n)
	for i := range c {
		seed = stat.Mix64(seed + 1)
		c[i] = Key(seed)
	}
	return c
}
