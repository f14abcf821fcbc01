// Package perf believes how long things take. A Step holds the few physical
// parameters of one variant's step time; from it follow predictions of time to
// first token and time per output token. It is belief: engines, real or
// simulated, are the truth it is compared with.
package perf

import "math"

// Step is the linear form of an engine step's duration in seconds:
//
//	T = Base + PerSeq·n + PerKV·K + PerPrompt·p + PerPair·A + Experts·(1 − (1 − Touch)^(n+p))
//
// for n decoding sequences with K tokens of context in all, and p prompt tokens
// whose attention work is A pairs (the sum over prompt tokens of the tokens
// before each). The last term is a mixture of experts' weights: each token
// touches the share Touch of the experts, and those touched are read once. The
// form is chosen by its error on measured points (docs/decisions/0010). The zero
// Step is "unknown": it predicts nothing.
type Step struct {
	Base      float64 // s per step: weights that every step reads, launch overhead
	PerSeq    float64 // s per decoding sequence
	PerKV     float64 // s per token of context read
	PerPrompt float64 // s per prompt token computed
	PerPair   float64 // s per pair of prompt token and token before it
	Experts   float64 // s to read the weights of all experts; 0 for dense models
	Touch     float64 // share of the experts that one token touches, 0 to 1
	// Shadow is how many prompt tokens a step computes in the time in which it
	// reads the weights anyway: beside so few, a step takes no longer.
	Shadow float64

	// PerRequest is s per request that is no step's work: network, HTTP,
	// tokenising, the way back of the first token.
	PerRequest float64
}

// Known reports whether the step has parameters: a step that takes no time is
// unknown.
func (s *Step) Known() bool { return s.Base > 0 || s.PerSeq > 0 || s.PerPrompt > 0 }

// Scale returns the step of hardware that is factor times as slow.
func (s Step) Scale(factor float64) Step {
	return Step{
		Base: s.Base * factor, PerSeq: s.PerSeq * factor, PerKV: s.PerKV * factor, PerPrompt: s.PerPrompt * factor,
		PerPair: s.PerPair * factor, Experts: s.Experts * factor, Touch: s.Touch,
		PerRequest: s.PerRequest * factor, Shadow: s.Shadow,
	}
}

// Plus adds the times of two steps, of models that touch as many experts.
func (s Step) Plus(o Step) Step {
	return Step{
		Base: s.Base + o.Base, PerSeq: s.PerSeq + o.PerSeq, PerKV: s.PerKV + o.PerKV, PerPrompt: s.PerPrompt + o.PerPrompt,
		PerPair: s.PerPair + o.PerPair, Experts: s.Experts + o.Experts, Touch: max(s.Touch, o.Touch),
		PerRequest: s.PerRequest + o.PerRequest, Shadow: max(s.Shadow, o.Shadow),
	}
}

// Work is what one step computes.
type Work struct {
	Seqs   float64 // sequences that decode a token each (n)
	KV     float64 // tokens of context they read (K)
	Prompt float64 // prompt tokens (p)
	Pairs  float64 // attention pairs of the prompt tokens (A)
}

// Rank returns the step of one of n ranks that share a clock, s being that of all of
// them, where the others do as much as it does.
func (s Step) Rank(n int) Step {
	k := float64(n)
	s.PerSeq, s.PerKV, s.PerPrompt, s.PerPair = s.PerSeq*k, s.PerKV*k, s.PerPrompt*k, s.PerPair*k
	s.Shadow /= k
	if s.Experts > 0 {
		s.Touch = -math.Expm1(k * math.Log1p(-s.Touch))
	}
	return s
}

// Time returns the duration of a step in seconds.
func (s Step) Time(w Work) float64 { return s.time(&w) }

// time is Time without copies.
func (s *Step) time(w *Work) float64 {
	t := s.Base + s.PerSeq*w.Seqs + s.PerKV*w.KV + s.PerPrompt*w.Prompt + s.PerPair*w.Pairs
	if s.Experts > 0 {
		t += s.Experts * s.touched(w.Seqs+w.Prompt)
	}
	return t
}

// touched returns the share of the experts that a step of so many tokens reads.
func (s *Step) touched(tokens float64) float64 {
	return -math.Expm1(tokens * math.Log1p(-s.Touch))
}
