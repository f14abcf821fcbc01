package workload

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// Dist is a distribution of lengths, in tokens (or seconds, where said so).
type Dist struct {
	Kind DistKind // empty means DistNormal
	Mean float64  // of the distribution before clipping
	Std  float64  // standard deviation, at least 0; unused by fixed and uniform
	Min  int      // draws below are raised to it
	Max  int      // draws above are lowered to it; at least Min
}

// DistKind names the form of a distribution.
type DistKind string

// The forms of a distribution.
const (
	DistNormal    DistKind = "normal"
	DistLogNormal DistKind = "lognormal" // Mean and Std are those of the value, not of its logarithm
	DistUniform   DistKind = "uniform"   // on Min..Max, both included
	DistFixed     DistKind = "fixed"     // always Mean
)

// Fixed returns the distribution that always gives n.
func Fixed(n int) Dist { return Dist{Kind: DistFixed, Mean: float64(n), Min: n, Max: n} }

// Draw returns one length, at least 0.
func (d Dist) Draw(r *stat.Rand) int { return max(int(math.Round(d.draw(r))), 0) }

// DrawSeconds returns one duration from a distribution given in seconds.
func (d Dist) DrawSeconds(r *stat.Rand) time.Duration {
	return time.Duration(max(d.draw(r), 0) * float64(time.Second))
}

func (d Dist) draw(r *stat.Rand) float64 {
	var x float64
	switch d.Kind {
	case DistFixed:
		return d.Mean
	case DistUniform:
		return float64(d.Min + r.IntN(d.Max-d.Min+1))
	case DistLogNormal:
		// A lognormal with mean m and deviation s has sigma^2 = ln(1 + (s/m)^2).
		cv := d.Std / d.Mean
		x = r.LogNormal(d.Mean, math.Sqrt(math.Log1p(cv*cv)))
	default:
		x = r.Normal(d.Mean, d.Std)
	}
	return min(max(x, float64(d.Min)), float64(d.Max))
}

// ceiling is the largest length the distribution can give.
func (d Dist) ceiling() int {
	if d.Kind == DistFixed {
		return int(math.Round(d.Mean))
	}
	return d.Max
}
