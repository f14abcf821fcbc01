// Package stat holds the small statistics everything else leans on: named
// random streams, averages that forget, and a histogram with bounded relative
// error. All of it is deterministic and takes time as a parameter.
package stat

import (
	"math"
	"math/rand/v2"
)

// Rand is a deterministic random stream. Streams made from one seed under
// different names are independent, so that drawing more from one never shifts
// another.
type Rand struct{ r *rand.Rand }

// NewRand returns the stream called name of the given seed.
func NewRand(seed uint64, name string) *Rand {
	// FNV-1a over the name; the two PCG words differ by a fixed odd mix so that
	// seed 0 and the empty name still give a full state.
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return &Rand{rand.New(rand.NewPCG(seed^h, Mix64(seed+h)))}
}

// Uint64 returns a uniform 64-bit value.
func (r *Rand) Uint64() uint64 { return r.r.Uint64() }

// IntN returns a uniform integer in [0, n). n must be positive.
func (r *Rand) IntN(n int) int { return r.r.IntN(n) }

// Float64 returns a uniform value in [0, 1).
func (r *Rand) Float64() float64 { return r.r.Float64() }

// Exp returns an exponential variate with the given mean.
func (r *Rand) Exp(mean float64) float64 { return r.r.ExpFloat64() * mean }

// Normal returns a normal variate.
func (r *Rand) Normal(mean, sd float64) float64 { return mean + sd*r.r.NormFloat64() }

// LogNormal returns a variate whose logarithm is normal with standard deviation
// sigma, scaled to have the given mean.
func (r *Rand) LogNormal(mean, sigma float64) float64 {
	return mean * math.Exp(sigma*r.r.NormFloat64()-sigma*sigma/2)
}

// Perm returns a random permutation of [0, n).
func (r *Rand) Perm(n int) []int { return r.r.Perm(n) }

// Mix64 scrambles x with the splitmix64 finaliser (Steele, Lea and Flood,
// 2014): close inputs give unrelated outputs.
func Mix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
