package enginesim

import (
	"math"

	"penstock.dev/penstock/internal/fleet"
)

// Floor is a linear form, in seconds, that no step falls short of, noise apart:
//
//	Base + Decode·n + KV·(own + Again·shared) + Prompt·p + Pair·A
//
// for n sequences that decode, with own tokens of context that no other sequence
// reads and shared ones that others may, and p prompt tokens with A attention
// pairs.
type Floor struct{ Base, Decode, KV, Again, Prompt, Pair float64 }

// Times returns the floor of hardware that takes factor times as long.
func (f Floor) Times(factor float64) Floor {
	return Floor{Base: f.Base * factor, Decode: f.Decode * factor, KV: f.KV * factor, Again: f.Again, Prompt: f.Prompt * factor, Pair: f.Pair * factor}
}

// Floored is a Physics that knows a floor of its steps. Of two resources of which
// the slower one counts, split is the weight of the one that grows with tokens,
// 0 to 1: each value gives another floor, and all hold. Budget bounds the tokens of
// a step.
type Floored interface {
	Floor(split float64, budget fleet.Tokens) Floor
}

// Floor implements Floored.
func (r *Roofline) Floor(split float64, budget fleet.Tokens) Floor { return r.floor(split, budget, 1) }

// floor is that of a batch dealt to so many ranks: max(x, y) is at least
// (1-split)·x + split·y.
func (r *Roofline) floor(split float64, budget fleet.Tokens, ranks float64) Floor {
	token := split*r.Linear + r.Exchange
	f := Floor{
		Base: (1-split)*r.Weights + r.Overhead, KV: r.KV / ranks, Again: 1, Pair: r.Attention / ranks,
	}
	if r.Again > 0 {
		f.Again = r.Again
	}
	if r.Latent > r.KV {
		f.KV, f.Again = r.Latent/ranks, 1
	}
	f.Prompt = token / ranks
	if r.Touch > 0 {
		// The experts touched are a concave function of the tokens: up to the largest
		// step it lies above its chord.
		most := float64(max(budget, 1))
		touched := 1 - math.Exp(most*math.Log1p(-r.Touch))
		f.Prompt += (1-split)*r.Experts*touched/most + split*r.Expert
	}
	f.Decode = f.Prompt + (r.Sequence+r.State)/ranks
	if r.Factor > 0 {
		f = f.Times(r.Factor)
	}
	return f
}

// Floor implements Floored.
func (r Ranks) Floor(split float64, budget fleet.Tokens) Floor {
	if rank, ok := r.Rank.(*Roofline); ok {
		return rank.floor(split, budget, float64(max(r.N, 1)))
	}
	return Floor{Again: 1}
}
