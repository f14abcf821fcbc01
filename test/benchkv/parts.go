//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/stat"
)

// bench is one index under one workload.
type bench struct {
	*options
	w      *workload
	x      *kv.Blocks
	r      *report
	random *stat.Rand
	held   []kv.Held
	flush  []uint64 // larger than the processor's caches

	applier applier
}

// goal reports whether goals are for this number of endpoints.
func (b *bench) goal() bool { return b.w.endpoints == goalEndpoints }

// measure fills an index and measures it in rounds, each of all parts in turn.
func measure(o *options, w *workload, r *report) error {
	b := &bench{options: o, w: w, r: r, random: stat.NewRand(o.seed, "rounds"), held: make([]kv.Held, w.endpoints), flush: make([]uint64, 8<<20)}
	before := heap()
	b.x = kv.NewBlocks(1 << 27)
	b.x.Seed(o.seed)
	b.applier.x = b.x
	begun := time.Now()
	w.fill(b.x)
	b.memory(heap() - before)
	fmt.Fprintf(os.Stderr, "bench-kv: %d endpoints, %d blocks in %d runs, filled in %.1f s\n",
		w.endpoints, b.x.Stats().Blocks, b.x.Stats().Runs, time.Since(begun).Seconds())
	if err := b.verify(); err != nil {
		return err
	}
	for range o.rounds {
		for _, n := range lengths {
			b.match(n)
		}
		if !b.goal() {
			continue
		}
		for _, n := range []int{1, 16, 512} {
			b.add(n)
		}
		b.apply()
		b.evictTails()
		b.clear()
		b.decode()
	}
	if b.goal() {
		b.behind("paced", o.blocksPerSecond)
		b.behind("without a pause", 0)
		for range min(o.rounds, 5) { // last: it evicts what queries ask for
			b.worst()
		}
	}
	return nil
}

// heap returns the bytes of the heap in use.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapInuse)
}

// row adds a sample to the row of this number of endpoints.
func (b *bench) row(name, unit string, sample float64) *row {
	return b.r.add(fmt.Sprintf("%4d endpoints: %s", b.w.endpoints, name), unit, sample)
}

func (b *bench) memory(bytes float64) {
	s := b.x.Stats()
	pairs := 0
	for h := range b.w.endpoints {
		pairs += b.x.Count(h, kv.TierGPU)
	}
	b.row("distinct blocks", "million", float64(s.Blocks)/1e6)
	b.row("pairs of block and endpoint", "million", float64(pairs)/1e6)
	w := b.row("memory per distinct block", "bytes", bytes/float64(s.Blocks))
	if b.goal() {
		w.toBeAtMost(48)
	}
	b.row("memory per pair", "bytes", bytes/float64(pairs))
	b.row("memory as the index itself counts it", "ratio", float64(s.Bytes)/bytes)
}

// verify compares some answers with what the stores say.
func (b *bench) verify() error {
	type at struct {
		endpoint int32
		key      kv.Key
	}
	asked := map[kv.Key]bool{}
	for i := 0; i < len(b.w.queries); i += 1 + len(b.w.queries)/40 {
		for _, k := range b.chain(b.w.queries[i]) {
			asked[k] = true
		}
	}
	have := map[at]bool{}
	for _, p := range b.w.stores {
		_, keys := b.w.keys(p)
		for _, k := range keys {
			if asked[k] {
				have[at{p.endpoint, k}] = true
			}
		}
	}
	for i := 0; i < len(b.w.queries); i += 1 + len(b.w.queries)/40 {
		chain := b.chain(b.w.queries[i])
		b.x.Match(chain, nil, b.held)
		for h := range b.held {
			n := 0
			for n < len(chain) && have[at{int32(h), chain[n]}] {
				n++
			}
			if int(b.held[h].Blocks) != n {
				return fmt.Errorf("query %d: endpoint %d has %d blocks, the index says %d", i, h, n, b.held[h].Blocks)
			}
		}
	}
	return nil
}

func (b *bench) chain(q query) []kv.Key { return b.w.chains[q.chain].keys[:q.n] }

// cool fills the processor's caches with something else.
func (b *bench) cool() {
	for i := range b.flush {
		b.flush[i]++
	}
}

// match asks every query of n blocks once.
func (b *bench) match(n int) {
	b.cool()
	asked := 0
	cost := costOf(func() {
		for _, q := range b.w.queries {
			if int(q.n) == n {
				b.x.Match(b.chain(q), nil, b.held)
				asked++
			}
		}
	})
	if asked == 0 {
		return
	}
	w := b.row(fmt.Sprintf("match %d blocks, cold", n), "µs", micros(cost, asked))
	if !b.goal() || n != 512 {
		return
	}
	w.toBeAtMost(15)
	chain := b.chain(b.w.queries[len(b.w.queries)/2])
	b.row("match, allocations", "", testing.AllocsPerRun(10, func() { b.x.Match(chain, nil, b.held) })).toBeAtMost(1e-9)
}

func micros(d time.Duration, n int) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(n) }

// fresh returns new chains of n blocks, so many blocks in all.
func (b *bench) fresh(blocks, n int) [][]kv.Key {
	chains := make([][]kv.Key, blocks/n)
	for i := range chains {
		chains[i] = freshKeys(b.random, nil, n)
	}
	return chains
}

const partBlocks = 200_000 // that a part adds and takes away again

// add stores new chains of n blocks, each with one call.
func (b *bench) add(n int) {
	chains := b.fresh(partBlocks, n)
	b.cool()
	cost := costOf(func() {
		for i, c := range chains {
			b.x.Store(i%b.w.endpoints, kv.TierGPU, 0, c)
		}
	})
	b.row(fmt.Sprintf("add a chain of %d", n), "µs", micros(cost, len(chains)))
	b.row(fmt.Sprintf("add a chain of %d, per block", n), "µs", micros(cost, partBlocks))
	for i, c := range chains {
		b.x.Remove(i%b.w.endpoints, kv.TierGPU, c)
	}
}

// change is one event.
type change struct {
	remove   bool
	endpoint int
	parent   kv.Key
	keys     []kv.Key
}

// changes are stores and removals of new chains of so many endpoints in turn, n
// blocks at a time; removals come tail first, as engines evict. Nothing is left
// at the end.
func (b *bench) changes(blocks, n, endpoints int) []change {
	const length, behind = 512, 64
	chains := b.fresh(blocks, length)
	var out []change
	store := func(c, at int) {
		s := change{endpoint: c % endpoints, keys: chains[c][at:][:n]}
		if at > 0 {
			s.parent = chains[c][at-1]
		}
		out = append(out, s)
	}
	for c := 0; c < len(chains)+behind; c += behind {
		for i := length; i > 0; i -= n {
			for k := range behind {
				if c+k < len(chains) {
					store(c+k, length-i)
				}
				if old := c + k - behind; old >= 0 && old < len(chains) {
					keys := slices.Clone(chains[old][i-n : i])
					slices.Reverse(keys)
					out = append(out, change{remove: true, endpoint: old % endpoints, keys: keys})
				}
			}
		}
	}
	return out
}

func (b *bench) do(c *change) {
	if c.remove {
		b.x.Remove(c.endpoint, kv.TierGPU, c.keys)
	} else {
		b.x.Store(c.endpoint, kv.TierGPU, c.parent, c.keys)
	}
}

// apply stores and removes, 16 blocks and one at a time.
func (b *bench) apply() {
	for _, n := range []int{1, storeBlocks} {
		changes := b.changes(partBlocks, n, b.w.endpoints)
		b.cool()
		cost := costOf(func() {
			for i := range changes {
				b.do(&changes[i])
			}
		})
		rate := float64(len(changes)*n) / cost.Seconds() / 1e6
		w := b.row(fmt.Sprintf("blocks stored or removed, %d per event, per second", n), "million", rate)
		if n == storeBlocks {
			w.toBeAtLeast(5)
		}
	}
}

// evictTails removes the last blocks of what endpoints have, one by one and
// last first, and puts them back.
func (b *bench) evictTails() {
	const tail = 32
	var pieces []piece
	for range partBlocks / tail {
		p := b.w.stores[b.random.IntN(len(b.w.stores))]
		p.to = int32(len(b.w.chains[p.chain].keys))
		p.from = max(p.to-tail, 0)
		if _, keys := b.w.keys(p); b.x.Has(int(p.endpoint), kv.TierGPU, keys[len(keys)-1]) {
			pieces = append(pieces, p)
		}
	}
	b.cool()
	n := 0
	cost := costOf(func() {
		for _, p := range pieces {
			_, keys := b.w.keys(p)
			for i := range slices.Backward(keys) {
				b.x.Remove(int(p.endpoint), kv.TierGPU, keys[i:i+1])
				n++
			}
		}
	})
	b.row("evict a tail, block by block, per block", "µs", micros(cost, n))
	for _, p := range pieces {
		parent, keys := b.w.keys(p)
		b.x.Store(int(p.endpoint), kv.TierGPU, parent, keys)
	}
}

// clear clears an endpoint, sweeps, and stores again what it had.
func (b *bench) clear() {
	h := b.random.IntN(b.w.endpoints)
	b.row("clear an endpoint", "µs", micros(costOf(func() { b.x.Clear(h) }), 1)).toBeAtMost(100)
	total, longest := time.Duration(0), time.Duration(0)
	for more := true; more; {
		cost := costOf(func() { more = b.x.Sweep(256) })
		total, longest = total+cost, max(longest, cost)
	}
	b.row("sweep after it, in all", "ms", total.Seconds()*1e3)
	b.row("longest sweep of 256 runs", "µs", micros(longest, 1)).toBeAtMost(1000)
	for _, p := range b.w.stores {
		if int(p.endpoint) == h {
			parent, keys := b.w.keys(p)
			b.x.Store(h, kv.TierGPU, parent, keys)
		}
	}
}
