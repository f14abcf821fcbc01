package stat

import (
	"math"
	"math/bits"
)

// subBits fixes the relative error of Hist: 2^subBits buckets per power of two
// bound it by 2^-(subBits+1), about 0.8 %.
const (
	subBits   = 6
	subCount  = 1 << subBits
	histTotal = (64 - subBits + 1) * subCount
)

// Hist is a histogram of non-negative integers (nanoseconds, tokens, bytes)
// with log-linear buckets: quantiles are right to within 0.8 % of the value,
// whatever its magnitude. It holds no samples, merges exactly and never
// allocates after the first observation. The zero value is ready to use.
type Hist struct {
	counts   []uint64
	n        uint64
	sum      float64
	min, max int64
}

func bucketOf(v int64) int {
	if v < subCount {
		return int(v)
	}
	shift := bits.Len64(uint64(v)) - subBits - 1
	return (shift+1)*subCount + int(uint64(v)>>shift) - subCount
}

// midOf is the value reported for bucket i: the middle of its range.
func midOf(i int) int64 {
	if i < subCount {
		return int64(i)
	}
	shift := i/subCount - 1
	low := int64(subCount+i%subCount) << shift
	return low + (int64(1)<<shift)/2
}

// Observe adds v; negative values count as 0.
func (h *Hist) Observe(v int64) {
	v = max(v, 0)
	if h.counts == nil {
		h.counts = make([]uint64, histTotal)
	}
	if h.n == 0 || v < h.min {
		h.min = v
	}
	h.max = max(h.max, v)
	h.counts[bucketOf(v)]++
	h.n++
	h.sum += float64(v)
}

// Count returns the number of observations.
func (h *Hist) Count() uint64 { return h.n }

// Mean returns the exact mean, or NaN when empty.
func (h *Hist) Mean() float64 {
	if h.n == 0 {
		return math.NaN()
	}
	return h.sum / float64(h.n)
}

// Sum returns the exact sum.
func (h *Hist) Sum() float64 { return h.sum }

// Max returns the largest observation, 0 when empty.
func (h *Hist) Max() int64 { return h.max }

// Quantile returns the value at rank q in [0, 1] by the nearest-rank rule, or
// NaN when empty. Quantile(1) is the exact maximum.
func (h *Hist) Quantile(q float64) float64 {
	if h.n == 0 {
		return math.NaN()
	}
	rank := uint64(math.Ceil(q * float64(h.n)))
	rank = max(rank, 1)
	if rank >= h.n {
		return float64(h.max)
	}
	var seen uint64
	for i, c := range h.counts {
		seen += c
		if seen >= rank {
			return float64(min(max(midOf(i), h.min), h.max))
		}
	}
	return float64(h.max)
}

// Merge adds all of o's observations to h.
func (h *Hist) Merge(o *Hist) {
	if o.n == 0 {
		return
	}
	if h.counts == nil {
		h.counts = make([]uint64, histTotal)
	}
	if h.n == 0 || o.min < h.min {
		h.min = o.min
	}
	h.max = max(h.max, o.max)
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.sum += o.sum
}
