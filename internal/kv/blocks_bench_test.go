package kv

import (
	"fmt"
	"testing"
)

// benchBlocks is an index of chains of 512 blocks, stored 16 at a time, each
// held by some of so many holders.
func benchBlocks(chains, holders int) *Blocks {
	x := NewBlocks(1 << 26)
	for c := range chains {
		keys := randomChain(1, uint64(c), 512)
		for copies := range 1 + c%3 {
			storeBy(x, (c*7+copies)%holders, keys, 16)
		}
	}
	return x
}

// storeBy stores keys n at a time, as an engine tells of a prompt's blocks.
func storeBy(x *Blocks, holder int, keys []Key, n int) {
	parent := Key(0)
	for i := 0; i < len(keys); i += n {
		part := keys[i:min(i+n, len(keys))]
		x.Store(holder, TierGPU, parent, part)
		parent = part[len(part)-1]
	}
}

const benchChains = 2000 // a million blocks

func BenchmarkBlocksMatch(b *testing.B) {
	for _, holders := range []int{8, 64, 1000} {
		x := benchBlocks(benchChains, holders)
		held := make([]Held, holders)
		for _, length := range []int{64, 512} {
			b.Run(fmt.Sprintf("blocks=%d/holders=%d", length, holders), func(b *testing.B) {
				chains := make([][]Key, 256)
				for i := range chains {
					chains[i] = randomChain(1, uint64(i*benchChains/256), length)
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					x.Match(chains[i%256], nil, held)
					i++
				}
			})
		}
	}
}

func BenchmarkBlocksMatchAllHold(b *testing.B) {
	for _, holders := range []int{64, 1000} {
		for _, stores := range [][]int{nil, {holders}} {
			b.Run(fmt.Sprintf("holders=%d/stores=%d", holders, len(stores)), func(b *testing.B) {
				x := NewBlocks(1 << 20)
				chain := randomChain(1, 1, 512)
				for h := range holders + 1 {
					x.Store(h, TierGPU, 0, chain)
				}
				held := make([]Held, holders)
				b.ReportAllocs()
				for b.Loop() {
					x.Match(chain, stores, held)
				}
			})
		}
	}
}

// BenchmarkBlocksChurn stores chains and removes older ones, 16 blocks at a
// time, in an index of constant size; one op is one block stored or removed.
func BenchmarkBlocksChurn(b *testing.B) {
	for _, event := range []int{1, 16} {
		b.Run(fmt.Sprintf("event=%d", event), func(b *testing.B) {
			x := benchBlocks(benchChains, 64)
			chains := make([][]Key, 1024)
			for i := range chains {
				chains[i] = randomChain(2, uint64(i), 512)
			}
			b.ReportAllocs()
			i, n := 0, 0
			for b.Loop() {
				if n--; n > 0 {
					continue
				}
				storeBy(x, i%64, chains[i%1024], event)
				if i >= 512 {
					old := chains[(i-512)%1024]
					for at := 512; at > 0; at -= event {
						x.Remove((i-512)%64, TierGPU, old[at-event:at])
					}
				}
				i++
				n = 1024
			}
		})
	}
}

func BenchmarkBlocksClear(b *testing.B) {
	x := benchBlocks(benchChains, 64)
	k := randomChain(3, 1, 1)
	b.ReportAllocs()
	for b.Loop() {
		x.Store(5, TierGPU, 0, k)
		x.Clear(5)
	}
}
