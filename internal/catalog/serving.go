package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// Serving is one way to serve a model: a shape on accelerators, split in some
// way, in some precision, by some engine. A replica takes TP·PP·DP devices.
// Parallelisms of 0 count as 1.
type Serving struct {
	Shape       Shape
	Accelerator Accelerator
	TP          int // devices that share each matrix
	PP          int // stages of layers, one after another
	DP          int // ranks with attention and KV of their own; they share the experts
	EP          int // groups that the experts are dealt to; 1 splits each expert by TP·DP
	// Weights are stored in Weights and multiplied in Compute. Unstated weights
	// are in the shape's native precision; unstated compute is that of the
	// weights, unstated KV is 16-bit.
	Weights, Compute, KV Precision
	Engine               string // "vllm", "sglang", "trtllm"; "" counts as "vllm"
}

// MemoryShare is the share of a device's memory that an engine may use: vLLM's
// default gpu_memory_utilization.
const MemoryShare = 0.90

// activationShare is the share of a device's memory kept for activations and
// captured graphs, from the KV capacity that vLLM reports for Qwen3-32B on two
// H100.
const activationShare = 0.06

// typicalContext is the length, in tokens, of the sequences over which what a
// sequence keeps apart from its length is shared out.
const typicalContext = 4096

// Normal returns s with all that is unstated filled in.
func (s Serving) Normal() Serving {
	s.TP, s.PP, s.DP, s.EP = max(s.TP, 1), max(s.PP, 1), max(s.DP, 1), max(s.EP, 1)
	if s.Weights == Unstated {
		s.Weights = s.Shape.Native
	}
	if s.Weights == Unstated {
		s.Weights = BF16
	}
	if s.Compute == Unstated {
		s.Compute = s.Weights
	}
	if s.KV == Unstated {
		s.KV = BF16
	}
	return s
}

// Devices returns how many accelerators one replica takes.
func (s Serving) Devices() int { return max(s.TP, 1) * max(s.PP, 1) * max(s.DP, 1) }

// ExpertBytes returns the bytes of all routed experts of all layers.
func (s Serving) ExpertBytes() float64 {
	s = s.Normal()
	return s.Shape.ExpertParams() * s.Weights.Bytes()
}

// OtherBytes returns the bytes of all weights but the routed experts and the
// embeddings: attention, shared experts and dense MLPs. Mixtures of experts
// published in 4 bits keep these in 16.
func (s Serving) OtherBytes() float64 {
	s = s.Normal()
	p := s.Weights
	if s.Shape.Experts > 0 && p.Bytes() < 1 {
		p = BF16
	}
	return (s.Shape.AttentionParams() + s.Shape.MLPParams()) * p.Bytes()
}

// EmbeddingBytes returns the bytes of one embedding table; these are always of
// 16 bits.
func (s Serving) EmbeddingBytes() float64 { return s.Shape.EmbeddingParams() * BF16.Bytes() }

// WeightBytes returns the bytes of weights that one device of the replica holds.
func (s Serving) WeightBytes() float64 {
	s = s.Normal()
	tables := 2.0
	if s.Shape.Tied {
		tables = 1
	}
	// Attention is split by TP only: every DP rank has a copy.
	own := (s.OtherBytes() + tables*s.EmbeddingBytes()) / float64(s.TP*s.PP)
	return own + s.ExpertBytes()/float64(s.Devices())
}

// KVBytes returns the bytes of KV that one token takes on one device of the
// rank that holds it. Heads that are fewer than TP, and the latents of MLA, are
// held by several devices at once.
func (s Serving) KVBytes() float64 { return s.kvShare() * s.Shape.KVBytes(s.Normal().KV.Bytes()) }

// kvShare is the part of a token's KV that one device holds.
func (s Serving) kvShare() float64 {
	s = s.Normal()
	if s.Shape.KVRank > 0 {
		return 1 / float64(s.PP)
	}
	return 1 / float64(s.PP*min(s.TP, s.Shape.KVHeads))
}

// KVTokens returns how many tokens of KV the whole replica holds, its DP ranks
// together; 0 when the weights leave no room. Windows and recurrent states are
// counted as for sequences of 4,096 tokens.
func (s Serving) KVTokens() int {
	s = s.Normal()
	left := s.Accelerator.Memory*(MemoryShare-activationShare) - s.WeightBytes()
	token := s.KVBytes() + s.kvShare()*s.Shape.KVFixed(s.KV.Bytes())/typicalContext
	if left <= 0 || token <= 0 {
		return 0
	}
	return int(left / token * float64(s.DP))
}

// leastKV is the number of tokens that a replica needs room for to be of use.
const leastKV = 1024

// engines are the engines told apart.
var engines = [...]string{"", "vllm", "sglang", "trtllm"}

// Validate says what is wrong with s and how to mend it; errors begin with the
// field's name.
func (s Serving) Validate() error {
	if err := s.Shape.Validate(); err != nil {
		return fmt.Errorf("model: %s: %w", s.Shape.Name, err)
	}
	if s.Accelerator.Memory <= 0 || s.Accelerator.Bandwidth <= 0 || s.Accelerator.FLOPs16 <= 0 {
		return fmt.Errorf("accelerator: %q has no data sheet", s.Accelerator.Name)
	}
	for _, p := range []struct {
		name  string
		value int
	}{{"tp", s.TP}, {"pp", s.PP}, {"dp", s.DP}, {"ep", s.EP}} {
		if p.value < 0 || p.value > maxCount {
			return fmt.Errorf("%s: %d is not possible; want 1 to %d", p.name, p.value, maxCount)
		}
	}
	if !slices.Contains(engines[:], strings.ToLower(s.Engine)) {
		return fmt.Errorf("engine: %q is not known; use one of %s", s.Engine, strings.Join(engines[1:], ", "))
	}
	s = s.Normal()
	switch {
	case s.EP > 1 && s.Shape.Experts == 0:
		return fmt.Errorf("ep: %s has no experts to deal out", s.Shape.Name)
	case s.EP > s.TP*s.DP:
		return fmt.Errorf("ep: %d groups on %d devices of a stage; want at most tp·dp", s.EP, s.TP*s.DP)
	case s.PP > s.Shape.Layers:
		return fmt.Errorf("pp: %d stages of %d layers", s.PP, s.Shape.Layers)
	case s.Shape.Heads%s.TP != 0 && s.TP%s.Shape.Heads != 0:
		return fmt.Errorf("tp: %d does not divide the %d attention heads of %s", s.TP, s.Shape.Heads, s.Shape.Name)
	case s.KVTokens() < leastKV:
		return fmt.Errorf("tp: %s in %s does not fit on %d x %s beside a KV cache; raise tp or take an accelerator with more memory",
			s.Shape.Name, s.Weights, s.Devices(), s.Accelerator.Name)
	}
	return nil
}
