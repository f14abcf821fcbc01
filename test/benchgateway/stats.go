//go:build linux

package main

import (
	"math/rand/v2"
	"slices"
)

// figure is a median over rounds with the 95 % interval of its bootstrap.
type figure struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Rounds int     `json:"rounds"`
}

// resamples is how often the bootstrap draws.
const resamples = 2000

// figureOf sums up one value per round.
func figureOf(v []float64) figure {
	if len(v) == 0 {
		return figure{}
	}
	r := rand.New(rand.NewPCG(1, uint64(len(v))))
	medians := make([]float64, resamples)
	draw := make([]float64, len(v))
	for i := range medians {
		for k := range draw {
			draw[k] = v[r.IntN(len(v))]
		}
		medians[i] = quantile(draw, 0.5)
	}
	return figure{Median: quantile(v, 0.5), Low: quantile(medians, 0.025), High: quantile(medians, 0.975), Rounds: len(v)}
}

// quantile returns the q-quantile of v, interpolated; 0 of nothing.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 == len(s) {
		return s[i]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

// pairwise combines two series round by round.
func pairwise(a, b []float64, f func(a, b float64) float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = f(a[i], b[i])
	}
	return out
}

func ratio(a, b float64) float64 { return a / b }
func minus(a, b float64) float64 { return a - b }
