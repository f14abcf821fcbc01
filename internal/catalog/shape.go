package catalog

import (
	"fmt"
	"math"
)

// Shape is a transformer as its config.json states it. Widths are numbers of
// elements. Fields of a feature the model lacks are 0.
type Shape struct {
	Name   string
	Layers int // all layers, of whatever kind
	Hidden int
	Vocab  int
	Tied   bool // the output embedding is the input embedding

	// Attention.
	Heads   int  // query heads
	KVHeads int  // heads of keys and values; Heads where nothing is shared
	HeadDim int  // elements of a query, key or value head
	Gated   bool // queries carry a gate of their own width (Qwen3-Next, Qwen3.5)

	// Latent attention (MLA); KVRank above 0 says that the model has it.
	KVRank   int // width of the latent that is cached
	QRank    int // width of the queries' latent; 0 projects queries at once
	RopeDim  int // rotary part of a head, cached once for all heads
	NopeDim  int // rest of a query or key head
	ValueDim int // a value head

	// Layers that keep less KV than all tokens.
	Window       int // tokens that a sliding-window layer looks back
	WindowLayers int // layers with that window
	LinearLayers int // layers with a recurrent state and no KV
	LinearKeys   int // width of all keys of a linear layer
	LinearValues int // width of all values of a linear layer
	LinearHeads  int // value heads of a linear layer

	// MLP.
	Width   int  // of the MLP of a dense layer
	Ungated bool // two matrices instead of three

	// Mixture of experts; Experts above 0 says that the model has it.
	Experts     int // routed experts of a layer
	TopK        int // routed experts a token goes through
	ExpertWidth int // of one routed expert
	SharedWidth int // of the experts that all tokens go through, together
	DenseLayers int // layers with an MLP of Width instead of experts

	Native Precision // in which the weights are published
}

// MoELayers returns how many layers have experts.
func (s Shape) MoELayers() int {
	if s.Experts == 0 {
		return 0
	}
	return s.Layers - s.DenseLayers
}

// AttentionLayers returns how many layers have softmax attention, and so KV.
func (s Shape) AttentionLayers() int { return s.Layers - s.LinearLayers }

// AttentionParams returns the weights of all attention projections, those of
// linear layers too.
func (s Shape) AttentionParams() float64 {
	h := float64(s.Hidden)
	var one float64
	if s.KVRank > 0 {
		query := float64(s.NopeDim + s.RopeDim)
		one = h*float64(s.KVRank+s.RopeDim) + float64(s.KVRank*s.Heads*(s.NopeDim+s.ValueDim)) + float64(s.Heads*s.ValueDim)*h
		if s.QRank > 0 {
			one += h*float64(s.QRank) + float64(s.QRank*s.Heads)*query
		} else {
			one += h * float64(s.Heads) * query
		}
	} else {
		queries := 2 * float64(s.Heads*s.HeadDim)
		if s.Gated {
			queries *= 1.5
		}
		one = h * (queries + 2*float64(s.KVHeads*s.HeadDim))
	}
	linear := h * (2*float64(s.LinearKeys) + 3*float64(s.LinearValues) + 2*float64(s.LinearHeads))
	return one*float64(s.AttentionLayers()) + linear*float64(s.LinearLayers)
}

// matrices is the number of matrices in an MLP.
func (s Shape) matrices() float64 {
	if s.Ungated {
		return 2
	}
	return 3
}

// ExpertParams returns the weights of all routed experts of all layers.
func (s Shape) ExpertParams() float64 {
	return s.matrices() * float64(s.Hidden) * float64(s.ExpertWidth) * float64(s.Experts) * float64(s.MoELayers())
}

// MLPParams returns the weights of the dense layers' MLPs, of the experts that
// all tokens share and of the routers.
func (s Shape) MLPParams() float64 {
	h, moe := float64(s.Hidden), float64(s.MoELayers())
	dense := float64(s.Layers) - moe
	return h * (s.matrices()*(float64(s.Width)*dense+float64(s.SharedWidth)*moe) + float64(s.Experts)*moe)
}

// EmbeddingParams returns the weights of one embedding table.
func (s Shape) EmbeddingParams() float64 { return float64(s.Vocab) * float64(s.Hidden) }

// Params returns the weights of the whole model; norms and biases are too few
// to count.
func (s Shape) Params() float64 {
	tables := 2.0
	if s.Tied {
		tables = 1
	}
	return s.AttentionParams() + s.MLPParams() + s.ExpertParams() + tables*s.EmbeddingParams()
}

// ActiveParams returns the weights that one token is multiplied with: all but
// the experts it does not go through and the input embedding, which is looked
// up.
func (s Shape) ActiveParams() float64 {
	return s.AttentionParams() + s.MLPParams() + s.ExpertParams()*s.Touch() + s.EmbeddingParams()
}

// Touch returns the share of the routed experts that one token goes through, 0
// for dense models.
func (s Shape) Touch() float64 {
	if s.Experts == 0 {
		return 0
	}
	return float64(s.TopK) / float64(s.Experts)
}

// FLOPs returns the floating-point operations of one token's way through the
// layers, attention to other tokens apart. The output embedding is left out: of
// a prompt only the last token goes through it.
func (s Shape) FLOPs() float64 { return 2 * (s.ActiveParams() - s.EmbeddingParams()) }

// PairFLOPs returns the floating-point operations of one pair of query and key
// token, over all heads and layers. Layers with a window see few pairs and
// linear layers none; both are left out.
func (s Shape) PairFLOPs() float64 {
	layers := float64(s.AttentionLayers() - s.WindowLayers)
	if s.KVRank > 0 {
		return 2 * layers * float64(s.Heads) * float64(s.NopeDim+s.RopeDim+s.ValueDim)
	}
	return 4 * layers * float64(s.Heads) * float64(s.HeadDim)
}

// layerKV is the number of elements one token leaves in the KV of one layer.
func (s Shape) layerKV() float64 {
	if s.KVRank > 0 {
		return float64(s.KVRank + s.RopeDim)
	}
	return 2 * float64(s.KVHeads) * float64(s.HeadDim)
}

// KVBytes returns the bytes by which each further token of a long sequence
// lengthens its KV, with so many bytes per element: what layers with a window
// or a recurrent state keep does not grow. It counts every head once, however
// many accelerators hold it.
func (s Shape) KVBytes(element float64) float64 {
	return s.layerKV() * float64(s.AttentionLayers()-s.WindowLayers) * element
}

// KVFixed returns the bytes of KV that a sequence of at least Window tokens
// keeps in layers with a window, and of recurrent state, at 16 bits, in linear
// layers.
func (s Shape) KVFixed(element float64) float64 {
	window := s.layerKV() * float64(s.WindowLayers) * float64(s.Window) * element
	if s.LinearHeads == 0 {
		return window
	}
	state := float64(s.LinearKeys) * float64(s.LinearValues) / float64(s.LinearHeads) * 2
	return window + state*float64(s.LinearLayers)
}

// Bounds of a shape's fields. The largest models published are three orders of
// magnitude below.
const (
	maxLayers = 4096
	maxWidth  = 1 << 22
	maxCount  = 1 << 16
	maxWindow = 1 << 30
)

// Validate reports the first field that is missing, negative, absurd or at odds
// with another. Its errors begin with the field's name in config.json.
func (s Shape) Validate() error {
	for _, f := range s.fields() {
		if f.value < f.least || f.value > f.most {
			if f.value == 0 {
				return fmt.Errorf("%s: missing; want %d to %d", f.name, f.least, f.most)
			}
			return fmt.Errorf("%s: %d is not possible; want %d to %d", f.name, f.value, f.least, f.most)
		}
	}
	if s.KVRank == 0 && s.Heads%s.KVHeads != 0 {
		return fmt.Errorf("num_key_value_heads: %d does not divide %d attention heads", s.KVHeads, s.Heads)
	}
	if s.WindowLayers+s.LinearLayers > s.Layers {
		return fmt.Errorf("layer_types: %d layers with a window or linear attention of %d layers", s.WindowLayers+s.LinearLayers, s.Layers)
	}
	if p := s.Params(); p > 1e15 || math.IsNaN(p) {
		return fmt.Errorf("hidden_size: the whole model would have %.3g parameters", p)
	}
	return nil
}

// bounded is a field of config.json with what it may be.
type bounded struct {
	name               string
	value, least, most int
}

// fields lists the bounds of s.
func (s Shape) fields() []bounded {
	list := []bounded{
		{"num_hidden_layers", s.Layers, 1, maxLayers},
		{"hidden_size", s.Hidden, 1, maxWidth},
		{"vocab_size", s.Vocab, 1, maxWidth},
		{"num_attention_heads", s.Heads, 1, maxCount},
		{"sliding_window", s.Window, 0, maxWindow},
		{"first_k_dense_replace", s.DenseLayers, 0, s.Layers},
	}
	if s.KVRank != 0 {
		list = append(
			list, bounded{"kv_lora_rank", s.KVRank, 1, maxWidth}, bounded{"q_lora_rank", s.QRank, 0, maxWidth},
			bounded{"qk_rope_head_dim", s.RopeDim, 1, maxWidth}, bounded{"qk_nope_head_dim", s.NopeDim, 1, maxWidth},
			bounded{"v_head_dim", s.ValueDim, 1, maxWidth},
		)
	} else {
		list = append(list, bounded{"num_key_value_heads", s.KVHeads, 1, maxCount}, bounded{"head_dim", s.HeadDim, 1, maxWidth})
	}
	if s.Experts != 0 {
		list = append(
			list, bounded{"num_experts", s.Experts, 1, maxCount}, bounded{"num_experts_per_tok", s.TopK, 1, s.Experts},
			bounded{"moe_intermediate_size", s.ExpertWidth, 1, maxWidth}, bounded{"shared_expert_intermediate_size", s.SharedWidth, 0, maxWidth},
		)
	}
	if s.MoELayers() < s.Layers {
		list = append(list, bounded{"intermediate_size", s.Width, 1, maxWidth})
	}
	if s.LinearLayers != 0 {
		list = append(
			list, bounded{"linear_key_head_dim", s.LinearKeys, 1, maxWidth}, bounded{"linear_value_head_dim", s.LinearValues, 1, maxWidth},
			bounded{"linear_num_value_heads", s.LinearHeads, 1, maxCount},
		)
	}
	if s.WindowLayers != 0 {
		list = append(list, bounded{"sliding_window", s.Window, 1, maxWindow})
	}
	return list
}
