package perf

import (
	"math"
	"strings"

	"penstock.dev/penstock/internal/catalog"
)

// What real engines make of a data sheet, fitted to measured operating points of
// eight families of models on five accelerators (docs/decisions/0010).
const (
	vllmLaunch   = 0.91e-3 // s per step: scheduling, launches, sampling
	sglangLaunch = 3.1e-3
	trtllmLaunch = 0.39e-3
	layerSeconds = 50e-6  // per layer and step: launches and kernels too small to fill the device
	hopSeconds   = 3.5e-6 // per all-reduce and doubling of the devices it joins
	seqSeconds   = 19e-6  // per sequence and step: sampling, detokenising, bookkeeping
	askSeconds   = 6.1e-3 // per request: HTTP, tokenising, the first token's way back

	weightShare    = 0.99 // of bandwidth, streaming weights that every step reads
	expertShare    = 0.73 // of bandwidth, gathering the experts that a step touches
	kvShare        = 0.99 // of bandwidth, reading KV blocks
	linearShare    = 0.80 // of peak, matrix multiplications
	attentionShare = 0.14 // of 16-bit peak, causal attention over a prompt

	reduces  = 2    // all-reduces per layer
	slowLink = 32e9 // bytes/s between devices of which no link is stated: PCIe 4 x16
)

// priorSpreads are the relative standard deviations of the measured groups'
// parameters around their priors, in the order of a Vector. The sums in which
// parameters enter a step's time are far better known than each of them.
var priorSpreads = Vector{0.5, 2, 1.5, 1.5, 1.5, 1, 1}

// Prior returns what to believe of a way to serve before anything is measured:
// the time to read weights and KV and to compute, from the shape and the data
// sheet, each at the share of the data sheet that engines were measured to
// reach. Its error on models that had no part in the fit is 18 % of TPOT in the
// median. Work is that of the whole replica; over DP ranks it is taken to be even.
// The serving must be valid.
func Prior(s catalog.Serving) Belief {
	s = s.Normal()
	m, a := s.Shape, s.Accelerator
	layers, group := float64(m.Layers), float64(s.TP*s.DP) // devices that compute a layer together
	link := a.Link
	if link <= 0 {
		link = slowLink
	}
	// A ring passes all but a device's own part twice, in 16 bits.
	reduce := reduces * layers * float64(m.Hidden) * 2 * 2 * (group - 1) / group / link
	linear := group * a.Peak(s.Compute) * linearShare
	step := Step{
		// Stages of a pipeline follow one another: they divide memory, not time.
		Base: launchSeconds(s.Engine) + layers*(layerSeconds+reduces*hopSeconds*math.Log2(group)) +
			(s.OtherBytes()+s.EmbeddingBytes())/(float64(s.TP)*a.Bandwidth*weightShare),
		PerSeq:     m.FLOPs()/linear + reduce + seqSeconds,
		PerKV:      s.KVBytes() * float64(s.PP) / (float64(s.DP) * a.Bandwidth * kvShare),
		PerPrompt:  m.FLOPs()/linear + reduce,
		PerPair:    m.PairFLOPs() / (group * a.Peak(catalog.BF16) * attentionShare),
		Experts:    s.ExpertBytes() / (group * a.Bandwidth * expertShare),
		Touch:      m.Touch(),
		PerRequest: askSeconds,
	}
	weights := s.OtherBytes()/(float64(s.TP)*a.Bandwidth*weightShare) + step.Experts
	step.Shadow = weights / step.PerPrompt
	b := Belief{Step: step, Spread: priorSpreads}
	if step.Experts == 0 {
		b.Spread[5] = 0
	}
	return b
}

// launchSeconds is what a step costs before it computes anything.
func launchSeconds(engine string) float64 {
	switch strings.ToLower(engine) {
	case "sglang":
		return sglangLaunch
	case "trtllm":
		return trtllmLaunch
	default:
		return vllmLaunch
	}
}
