package kv

import (
	"math"
	"slices"

	"penstock.dev/penstock/internal/stat"
)

// Curve is the miss-ratio curve of one cache: which share of the blocks asked for
// a cache of any size would hold, if it evicts what was used least recently. It
// looks at a sample of the keys (Waldspurger et al., SHARDS, FAST 2015): a key is
// in the sample or never, so the distances between two uses of sampled keys,
// counted in sampled keys, are those of all keys times the rate.
//
// Chained keys need no rule for prefixes: a block's ancestors are used whenever
// it is, so their distances are no longer.
type Curve struct {
	bound  uint64 // keys whose hash is below are in the sample
	rate   float64
	at     map[Key]int32 // when each was used last, as a position in order
	order  []Key         // by time of use; 0 where it was used again
	counts []int32       // a Fenwick tree over order: how many positions are in use
	hits   []float64     // sampled uses by bucket of distance
	cold   float64       // of keys not seen before
	most   int           // sampled keys kept
	uses   uint64        // of all keys
}

// NewCurve returns the curve of an unused cache, from a sample of the given rate,
// above 0 and at most 1. Distances beyond most blocks count as misses.
func NewCurve(rate float64, most int) *Curve {
	bound := uint64(math.MaxUint64)
	if rate < 1 {
		bound = uint64(rate * math.MaxUint64)
	}
	return &Curve{bound: bound, rate: rate, at: map[Key]int32{}, counts: []int32{0}, most: max(int(min(float64(most)*rate, math.MaxInt32)), 1)}
}

// Use counts a request's use of its prompt's blocks.
func (c *Curve) Use(chain []Key) {
	c.uses += uint64(len(chain))
	// Ends first: what follows a block must not outlive it.
	for _, k := range slices.Backward(chain) {
		if stat.Mix64(uint64(k)) <= c.bound {
			c.use(k, true)
		}
	}
}

// Fill counts blocks that take room and were not asked for, such as those of an
// answer.
func (c *Curve) Fill(chain []Key) {
	for _, k := range slices.Backward(chain) {
		if stat.Mix64(uint64(k)) <= c.bound {
			c.use(k, false)
		}
	}
}

func (c *Curve) use(k Key, asked bool) {
	last, seen := c.at[k]
	switch {
	case seen && asked:
		c.hit(c.newer(last) + 1)
	case asked:
		c.cold++
	}
	if seen {
		c.mark(last, -1)
		c.order[last] = 0
	}
	if len(c.order) >= 2*len(c.at)+1024 || len(c.at) >= 2*c.most+1024 {
		c.compact()
	}
	c.at[k] = int32(len(c.order))
	c.order = append(c.order, k)
	c.push()
}

// bucketsPerDoubling is how finely distances are told apart: 4 %.
const bucketsPerDoubling = 16

func bucketOf(blocks float64) int { return int(math.Log2(blocks+1) * bucketsPerDoubling) }

// hit counts a use whose key is the n-th of the sample by time of use.
func (c *Curve) hit(n int) {
	i := bucketOf(float64(n) / c.rate)
	for len(c.hits) <= i {
		c.hits = append(c.hits, 0)
	}
	c.hits[i]++
}

// newer returns how many keys were used after position i.
func (c *Curve) newer(i int32) int {
	older := int32(0)
	for p := i + 1; p > 0; p &= p - 1 {
		older += c.counts[p]
	}
	return len(c.at) - int(older)
}

func (c *Curve) mark(i, by int32) {
	for p := i + 1; int(p) < len(c.counts); p += p & -p {
		c.counts[p] += by
	}
}

// push adds one position, in use, to the tree.
func (c *Curve) push() {
	p := len(c.counts)
	sum := int32(1)
	for k := 1; k < p&-p; k <<= 1 {
		sum += c.counts[p-k]
	}
	c.counts = append(c.counts, sum)
}

// compact drops positions that are not in use, and keys beyond the most.
func (c *Curve) compact() {
	kept := c.order[:0]
	for _, k := range c.order {
		if k != 0 {
			kept = append(kept, k)
		}
	}
	if over := len(kept) - c.most; over > 0 {
		for _, k := range kept[:over] {
			delete(c.at, k)
		}
		kept = kept[:copy(kept, kept[over:])]
	}
	c.order, c.counts = kept, c.counts[:1]
	for i, k := range kept {
		c.at[k] = int32(i)
		c.push()
	}
}

// HitShare returns the share of the blocks asked for that a cache of so many
// blocks would have held.
func (c *Curve) HitShare(blocks float64) float64 {
	asked, near := c.asked()
	if asked == 0 {
		return 0
	}
	end, held := bucketOf(blocks), near
	for i, n := range c.hits {
		switch {
		case i < end:
			held += n
		case i == end: // part of the bucket
			low := math.Exp2(float64(i)/bucketsPerDoubling) - 1
			high := math.Exp2(float64(i+1)/bucketsPerDoubling) - 1
			held += n * (blocks - low) / (high - low)
		}
	}
	return min(max(held/asked, 0), 1)
}

// Ceiling returns the share that a cache without end would have held.
func (c *Curve) Ceiling() float64 {
	asked, _ := c.asked()
	if asked == 0 {
		return 0
	}
	return (asked - c.cold) / asked
}

// asked returns how many uses the sample stands for, and how many of these it
// lacks: a few keys that are used all the time are in the sample or not. As in
// SHARDS-adj, what is missing is taken for uses of such keys.
func (c *Curve) asked() (uses, near float64) {
	seen := c.cold
	for _, n := range c.hits {
		seen += n
	}
	uses = float64(c.uses) * c.rate
	return uses, uses - seen
}

// Uses returns how many blocks were asked for.
func (c *Curve) Uses() uint64 { return c.uses }

// Add takes in what another cache of the same rate was asked for.
func (c *Curve) Add(o *Curve) {
	c.rate = o.rate
	for len(c.hits) < len(o.hits) {
		c.hits = append(c.hits, 0)
	}
	for i, n := range o.hits {
		c.hits[i] += n
	}
	c.cold += o.cold
	c.uses += o.uses
}
