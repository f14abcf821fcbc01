package enginesim

import (
	"math"
	"time"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
)

// BlockTokens is the number of tokens in one KV block of every simulated engine.
const BlockTokens fleet.Tokens = 16

// Roofline gives a step the time its slower resource needs (Williams, Waterman
// and Patterson, 2009), for the three families of kernels that take turns in a
// transformer:
//
//	linear    = max(weights read / bandwidth, FLOPs / peak)
//	experts   = max(experts touched / bandwidth, FLOPs of whole tiles x imbalance / peak)
//	attention = max(KV read / bandwidth, decodes' FLOPs / peak) + chunks' FLOPs / peak
//	step      = (linear + experts + attention + exchange + overhead) x factor x noise
//
// Within a kernel loading overlaps with multiplying, hence the max; kernels
// follow one another, hence the sum. A batch of t tokens, each through k of E
// experts, touches E(1-(1-k/E)^t) of them, and each of those multiplies tiles of
// a fixed number of rows: few tokens per expert fill them badly. All coefficients are seconds on one
// data-parallel rank: parallelism and efficiencies are divided out when it is
// made (see NewRoofline).
type Roofline struct {
	Weights float64 // s to read all weights but the routed experts once
	Linear  float64 // s of matrix multiplication per token, routed experts apart

	Experts float64 // s to read all routed experts that a device holds
	Expert  float64 // s of multiplication in routed experts per token of all ranks
	Touch   float64 // share of the routed experts that one token goes through, k/E
	Tile    float64 // tokens that would fill one tile of every routed expert

	KV        float64      // s to read one token's KV
	Again     float64      // share of KV's time that reading the same KV for another sequence of the step takes; 0 means 1
	Latent    float64      // s of arithmetic per token of context that latent attention decodes over
	Window    fleet.Tokens // tokens that sliding-window layers look back
	WindowKV  float64      // s to read one token's KV in those layers
	State     float64      // s per sequence to read and write recurrent states
	Attention float64      // s of attention arithmetic per token pair

	Exchange float64 // s per token of the rank: all-reduces, and all-to-all between ranks
	Overhead float64 // s per step: launches, scheduling, latencies of exchanges
	Sequence float64 // s per sequence in the step: sampling and input preparation

	Factor float64 // slowness of this replica; 0 means 1, 1.1 is 10 % slower
	Noise  float64 // standard deviation of the log of a step's time; 0 for none
	Seed   uint64  // of the noise; replicas need different ones
}

// StepTime returns the step's duration.
func (r *Roofline) StepTime(b Batch) time.Duration {
	s := r.seconds(b)
	if r.Factor > 0 {
		s *= r.Factor
	}
	if r.Noise > 0 {
		// The mean of the log-normal stays 1: noise must not slow a replica down.
		s *= math.Exp(r.Noise*normal(r.Seed, b.Step) - r.Noise*r.Noise/2)
	}
	return max(1, time.Duration(s*1e9))
}

// seconds is the step's duration without noise on a replica of factor 1.
func (r *Roofline) seconds(b Batch) float64 {
	tokens := float64(padded(int(b.Tokens())))
	sequences := float64(b.Decodes + b.Prefills)
	context := float64(b.Context)
	read := context
	if r.Again > 0 {
		read -= (1 - r.Again) * float64(b.Again)
	}
	s := max(r.Weights, r.Linear*tokens) +
		max(r.KV*read, r.Latent*context) + r.Attention*b.Attention +
		r.Exchange*tokens + r.Overhead + r.Sequence*sequences + r.State*sequences
	if r.Touch > 0 {
		all := tokens + float64(b.Others)
		touched := 1 - math.Exp(all*math.Log1p(-r.Touch))
		// Every expert that is touched multiplies whole tiles of rows.
		tiles := r.Tile * touched
		s += max(r.Experts*touched, r.Expert*max(tiles, all+tiles/2))
	}
	if r.WindowKV > 0 {
		s += r.WindowKV * min(context, sequences*float64(r.Window))
	}
	return s
}

// Ranks is the Physics of a replica whose data-parallel ranks are seen from
// outside as one engine that deals every batch evenly to them.
type Ranks struct {
	Rank Physics // of one rank
	N    int     // at least 1
}

// StepTime returns the time of the rank with the largest share.
func (r Ranks) StepTime(b Batch) time.Duration {
	return r.Rank.StepTime(b.share(r.N))
}

// share is the part of the one of n ranks that has most of b to do.
func (b Batch) share(n int) Batch {
	if n <= 1 {
		return b
	}
	m := fleet.Tokens(n)
	part := Batch{
		Step: b.Step, Decodes: ceilDiv(b.Decodes, n), Prefills: ceilDiv(b.Prefills, n),
		Context: (b.Context + m - 1) / m, Prompt: (b.Prompt + m - 1) / m, Attention: b.Attention / float64(n),
		Again: b.Again / m,
	}
	part.Others = max(b.Tokens()-part.Tokens(), 0) + b.Others
	return part
}

// efficiency is what separates a data sheet from a running engine: shares of
// peaks reached, and times that no peak explains.
type efficiency struct {
	weights float64 // of bandwidth, streaming weights through matrix multiplications
	experts float64 // of bandwidth, streaming routed experts
	kv      float64 // of bandwidth, gathering KV blocks

	linear16, linear8, linear4 float64 // of peak, large matrix multiplications, by precision
	expert                     float64 // of what large multiplications reach, grouped ones of routed experts
	tile                       float64 // rows of a tile of those
	attention                  float64 // of 16-bit peak, causal attention over chunks
	latent                     float64 // of 16-bit peak, decoding over latents

	link      float64 // of link bandwidth, exchanges
	network   float64 // of the network card's bandwidth, exchanges between domains of links
	hop       float64 // s per layer and doubling of the devices that exchange: latency of collectives
	imbalance float64 // by which the busiest of many expert groups exceeds the mean

	vllm, sglang, trtllm overheads
}

// overheads are an engine's own costs.
type overheads struct {
	step     float64 // s per step: scheduling
	layer    float64 // s per layer: launches, norms, what is not overlapped
	moe      float64 // s more per layer with experts: routing, sorting
	sequence float64 // s per sequence and step
}

// fitted is the efficiency that fits measured operating points best: 25 numbers
// for 114 ways to serve (see TestPhysicsAgainstMeasuredPoints, which can fit
// them again), rounded. Few points depend on attention over prompts and on
// decoding over latents: these two stand where kernels are published to be.
var fitted = efficiency{
	weights: 0.86, experts: 0.79, kv: 0.85,
	linear16: 0.64, linear8: 0.44, linear4: 0.35,
	expert: 0.40, tile: 16, attention: 0.40, latent: 0.80,
	link: 0.48, network: 0.70, hop: 8.4e-6, imbalance: 1,
	vllm:   overheads{step: 0.15e-3, layer: 45e-6, moe: 12e-6, sequence: 20e-6},
	sglang: overheads{step: 0.6e-3, layer: 25e-6, moe: 63e-6, sequence: 25e-6},
	trtllm: overheads{step: 0.4e-3, layer: 33e-6, moe: 8e-6, sequence: 16e-6},
}

// of returns the overheads of an engine by its name.
func (e *efficiency) of(engine string) overheads {
	switch engine {
	case "sglang":
		return e.sglang
	case "trtllm":
		return e.trtllm
	}
	return e.vllm
}

// linear returns the FLOP per second of large multiplications of weights in p
// on a. 4-bit weights are unpacked and multiplied in 16 bits where there is no
// 4-bit arithmetic.
func (e *efficiency) linear(a catalog.Accelerator, p catalog.Precision) (flops, share float64) {
	switch {
	case p == catalog.FP4 && a.FLOPs4 > 0:
		return a.FLOPs4, e.linear4
	case p == catalog.FP8 && a.FLOPs8 > 0:
		return a.FLOPs8, e.linear8
	}
	return a.FLOPs16, e.linear16
}

// NewRoofline returns the step times of one data-parallel rank of s, without
// noise and with factor 1. Of pipeline stages it takes that each works on one
// of PP parts of the batch at a time: a token passes all layers, so weights are
// read as if there were one stage, and all else is shared between them.
func NewRoofline(s catalog.Serving) *Roofline { return fitted.roofline(s.Normal()) }

func (e *efficiency) roofline(s catalog.Serving) *Roofline {
	m, a := s.Shape, s.Accelerator
	tp, stages := float64(s.TP), float64(s.PP)
	shared := tp * stages // devices among which a rank's work is shared
	layers, over := float64(m.Layers), e.of(s.Engine)
	dense := s.Compute
	if m.Experts > 0 && dense.Bytes() < 1 {
		dense = catalog.BF16
	}
	peak, share := e.linear(a, dense)
	split := tp // devices among which a token's KV is divided
	if m.KVRank > 0 {
		split = 1
	} else if m.KVHeads < s.TP {
		split = float64(m.KVHeads)
	}
	gather := a.Bandwidth * e.kv * split * stages
	r := &Roofline{
		// The input embedding is looked up, not read. The output embedding is read
		// each step but multiplied only for the last token of a sequence, which is
		// too little to count.
		Weights:   (s.OtherBytes() + s.EmbeddingBytes()) / (a.Bandwidth * e.weights * tp),
		Linear:    2 * (m.AttentionParams() + m.MLPParams()) / (peak * share * shared),
		KV:        m.KVBytes(s.KV.Bytes()) / gather,
		Again:     cached,
		Attention: m.PairFLOPs() / (a.FLOPs16 * e.attention * shared),
		Overhead:  stages*over.step + over.layer*layers + e.hop*layers*math.Log2(tp),
		Sequence:  over.sequence / stages,
		Factor:    1,
	}
	if m.KVRank > 0 {
		// Decoding multiplies each head's absorbed query with the latent and the
		// scores with the latent again.
		pair := 2 * float64(m.Heads) * float64(2*m.KVRank+m.RopeDim) * float64(m.AttentionLayers())
		r.Latent = pair / (a.FLOPs16 * e.latent * shared)
	}
	if m.WindowLayers > 0 {
		r.Window = fleet.Tokens(m.Window)
		// KVFixed is of a whole window, and of recurrent states where there are any.
		r.WindowKV = m.KVFixed(s.KV.Bytes()) / float64(m.Window) / gather
	} else if m.LinearLayers > 0 {
		r.State = 2 * m.KVFixed(s.KV.Bytes()) / (a.Bandwidth * e.kv * shared)
	}
	if s.TP > 1 {
		// Two all-reduces of 16-bit activations per layer; a ring sends and receives
		// each byte about twice.
		r.Exchange = layers * 2 * float64(m.Hidden) * 2 * 2 * (tp - 1) / tp / (a.Link * e.link * stages)
	}
	if m.Experts > 0 {
		e.experted(r, s)
	}
	return r
}

// cached is the share of the time that KV takes which another sequence of the
// same step has just read: it comes from the accelerator's L2 cache. That is
// measured to deliver 5.5 to 5.7 TB/s on H100, beside 2.8 TB/s of memory reached.
const cached = 0.5

// networkBytes is the bandwidth of one device's network card, in bytes per
// second, between devices that no link joins: 400 Gbit/s, as in HGX servers.
const networkBytes = 50e9

// experted adds what routed experts cost to r.
func (e *efficiency) experted(r *Roofline, s catalog.Serving) {
	m, a := s.Shape, s.Accelerator
	layers := float64(m.MoELayers())
	devices := float64(s.TP * s.DP)
	peak, share := e.linear(a, s.Compute)
	busiest := 1 + e.imbalance*(1-1/float64(s.EP))
	r.Touch = m.Touch()
	r.Tile = e.tile / m.Touch()
	r.Experts = s.ExpertBytes() / (a.Bandwidth * e.experts * devices)
	r.Expert = 2 * m.ExpertParams() * m.Touch() * busiest / (peak * share * e.expert * devices * float64(s.PP))
	r.Overhead += e.of(s.Engine).moe * layers
	if s.DP == 1 {
		return
	}
	// A token goes to its experts in 8 bits and comes back in 16, through links to
	// those of its domain and over the network to the others.
	copies := float64(min(m.TopK, max(s.EP, s.DP)))
	away := 1 - 1/devices
	far := max(1-float64(max(a.Domain, 1))/devices, 0)
	near := max(away-far, 0)
	bytes := layers * copies * float64(m.Hidden) * 3 / float64(s.TP)
	r.Exchange += bytes * max(near/(a.Link*e.link), far/(networkBytes*e.network)) / float64(s.PP)
	r.Overhead += e.hop * layers * math.Log2(devices)
}
