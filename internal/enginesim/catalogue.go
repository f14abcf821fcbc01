package enginesim

import (
	"fmt"
	"math"
	"strings"

	"penstock.dev/penstock/internal/fleet"
)

// BlockTokens is the number of tokens in one KV block of every simulated engine.
const BlockTokens fleet.Tokens = 16

// Model is the shape of a dense transformer with grouped-query attention, as
// its config.json states it; weights and KV are 16-bit.
type Model struct {
	Name    string
	Params  float64 // weights
	Layers  int
	Hidden  int
	Heads   int // query heads
	KVHeads int
	HeadDim int
	Vocab   int
}

// Accelerator is one GPU's data sheet.
type Accelerator struct {
	Name      string
	Memory    float64 // bytes as the driver reports them
	Bandwidth float64 // bytes per second
	Peak      float64 // dense 16-bit FLOP per second
}

// models and accelerators are the catalogue; the first of each is the default.
var models = []Model{
	{"Qwen/Qwen3-32B", 32.76e9, 64, 5120, 64, 8, 128, 151936},
	{"Qwen/Qwen3-8B", 8.19e9, 36, 4096, 32, 8, 128, 151936},
	{"meta-llama/Llama-3.1-8B-Instruct", 8.03e9, 32, 4096, 32, 8, 128, 128256},
	{"meta-llama/Llama-3.1-70B-Instruct", 70.55e9, 80, 8192, 64, 8, 128, 128256},
	{"penstock/tiny", 0.11e9, 8, 768, 12, 4, 64, 32000},
}

var accelerators = []Accelerator{
	{"H100", 85.5e9, 3.35e12, 989.5e12},
	{"A100", 85.1e9, 2.04e12, 312e12},
	{"L40S", 48.3e9, 0.864e12, 362e12},
	{"H200", 150.1e9, 4.8e12, 989.5e12},
}

// ModelNames returns the models of the catalogue, the default first.
func ModelNames() []string {
	names := make([]string, len(models))
	for i, m := range models {
		names[i] = m.Name
	}
	return names
}

// AcceleratorNames returns the accelerators of the catalogue, the default first.
func AcceleratorNames() []string {
	names := make([]string, len(accelerators))
	for i, a := range accelerators {
		names[i] = a.Name
	}
	return names
}

// FindModel returns the catalogue's model of that name, which may leave out
// the organisation and the "-Instruct" and is compared without regard to case;
// the empty name finds the default.
func FindModel(name string) (Model, error) {
	short := func(s string) string {
		s = strings.ToLower(s)
		return strings.TrimSuffix(s[strings.IndexByte(s, '/')+1:], "-instruct")
	}
	for _, m := range models {
		if name == "" || strings.EqualFold(name, m.Name) || short(name) == short(m.Name) {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("model: %q is not known; use one of %s", name, strings.Join(ModelNames(), ", "))
}

// FindAccelerator returns the catalogue's accelerator of that name, compared
// without regard to case; the empty name finds the default.
func FindAccelerator(name string) (Accelerator, error) {
	for _, a := range accelerators {
		if name == "" || strings.EqualFold(name, a.Name) {
			return a, nil
		}
	}
	return Accelerator{}, fmt.Errorf("accelerator: %q is not known; use one of %s", name, strings.Join(AcceleratorNames(), ", "))
}

// Spec is one way to serve a model: what a replica's speed and KV capacity
// follow from.
type Spec struct {
	Model       Model
	Accelerator Accelerator
	TP          int // GPUs per replica: 1, 2, 4 or 8
}

// Efficiencies against the data sheet and fixed costs, fitted to measured
// operating points of vLLM serving Qwen3-32B on 2, 4 and 8 H100 (see
// TestRooflineAgainstMeasurements).
const (
	weightEfficiency    = 0.80    // of bandwidth, streaming weights through matrix multiplications
	kvEfficiency        = 0.69    // of bandwidth, gathering KV blocks
	linearEfficiency    = 0.64    // of peak, large matrix multiplications with their all-reduces
	attentionEfficiency = 0.29    // of peak, causal attention over chunks
	launchSeconds       = 0.85e-3 // per step: scheduling and launches
	reduceSeconds       = 19e-6   // per layer and doubling of TP: all-reduce latency
	sequenceSeconds     = 50e-6   // per sequence and step
	memoryShare         = 0.90    // of a GPU's memory that the engine may use
	activationShare     = 0.06    // of a GPU's memory kept for activations and graphs
)

// KVBytes returns the bytes of KV one token takes, over all GPUs of a replica.
func (m Model) KVBytes() float64 { return float64(2 * m.Layers * m.KVHeads * m.HeadDim * 2) }

// Roofline returns the spec's step times, without noise and with factor 1.
func (s Spec) Roofline() *Roofline {
	m, a, tp := s.Model, s.Accelerator, float64(s.TP)
	// The input embedding is looked up, not multiplied: it is neither read whole
	// nor computed. The output embedding is read each step but multiplied only
	// for the last token of a sequence, which is too little to count.
	embedding := float64(m.Vocab) * float64(m.Hidden)
	pairFLOPs := 4 * float64(m.Layers) * float64(m.Heads) * float64(m.HeadDim)
	return &Roofline{
		Weights:   2 * (m.Params - embedding) / (a.Bandwidth * weightEfficiency * tp),
		Linear:    2 * (m.Params - 2*embedding) / (a.Peak * linearEfficiency * tp),
		KV:        m.KVBytes() / (a.Bandwidth * kvEfficiency * tp),
		Attention: pairFLOPs / (a.Peak * attentionEfficiency * tp),
		Overhead:  launchSeconds + reduceSeconds*float64(m.Layers)*math.Log2(tp),
		Sequence:  sequenceSeconds,
		Factor:    1,
	}
}

// KVTokens returns the tokens whose KV fits beside the weights, in whole
// blocks; 0 when not even the weights fit.
func (s Spec) KVTokens() fleet.Tokens {
	perGPU := s.Accelerator.Memory * (memoryShare - activationShare)
	left := perGPU*float64(s.TP) - 2*s.Model.Params
	if left <= 0 {
		return 0
	}
	return fleet.Tokens(left/s.Model.KVBytes()) / BlockTokens * BlockTokens
}

// Validate says what is wrong with the spec and how to mend it.
func (s Spec) Validate() error {
	switch s.TP {
	case 1, 2, 4, 8:
	default:
		return fmt.Errorf("tp: %d is not possible; use 1, 2, 4 or 8", s.TP)
	}
	if s.KVTokens() < 1024 {
		return fmt.Errorf("tp: %s does not fit on %d x %s beside a KV cache; raise tp or take an accelerator with more memory",
			s.Model.Name, s.TP, s.Accelerator.Name)
	}
	return nil
}
