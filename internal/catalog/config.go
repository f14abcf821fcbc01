package catalog

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// ParseConfig reads the shape from the config.json that a model is published
// with: Llama, Mistral, Qwen 2 to 3.5 with and without experts, Mixtral,
// DeepSeek V2 and V3, Kimi K2, GLM, gpt-oss, Gemma 2 and 3, MiniMax M2,
// Nemotron-4, and others that use the same fields. Fields nested in text_config
// count; vision and speech towers do not. Name is left empty: the file does not
// tell. Errors name the first field that is missing or bad.
func ParseConfig(text []byte) (Shape, error) {
	root := &fields{}
	if err := json.Unmarshal(text, &root.values); err != nil {
		return Shape{}, fmt.Errorf("config.json: %w", err)
	}
	o := root
	if nested := root.object("text_config"); nested != nil {
		o = nested
	}
	kind := o.text("model_type")
	s := Shape{
		Layers: o.int("num_hidden_layers", "n_layer"),
		Hidden: o.int("hidden_size", "n_embd"),
		Vocab:  o.int("vocab_size"),
		Tied:   o.bool("tie_word_embeddings", root.bool("tie_word_embeddings", strings.HasPrefix(kind, "gemma"))),
		Heads:  o.int("num_attention_heads", "n_head"),
		// Nemotron-4 squares a ReLU where others gate.
		Ungated: kind == "nemotron",
		Width:   o.int("intermediate_size"),
	}
	if s.Vocab == 0 && strings.HasPrefix(kind, "gemma3") {
		s.Vocab = 262208 // the published files of Gemma 3 leave it to the code's default
	}
	readAttention(o, &s)
	if s.Layers <= maxLayers { // what follows goes through the layers
		readLayers(o, kind, &s)
		readExperts(o, &s)
	}
	s.Native = readPrecision(root, o)
	for _, err := range []error{o.err, root.err} {
		if err != nil {
			return Shape{}, err
		}
	}
	if err := s.Validate(); err != nil {
		return Shape{}, err
	}
	return s, nil
}

// readAttention reads the widths of heads.
func readAttention(o *fields, s *Shape) {
	if s.KVRank = o.int("kv_lora_rank"); s.KVRank != 0 {
		s.QRank = o.int("q_lora_rank")
		s.RopeDim, s.NopeDim, s.ValueDim = o.int("qk_rope_head_dim"), o.int("qk_nope_head_dim"), o.int("v_head_dim")
		return
	}
	s.KVHeads = s.Heads
	if n, ok := o.maybe("num_key_value_heads"); ok {
		s.KVHeads = n
	}
	if s.HeadDim = o.int("head_dim"); s.HeadDim == 0 && s.Heads > 0 {
		s.HeadDim = s.Hidden / s.Heads
	}
	s.Gated = o.bool("attn_output_gate", strings.HasPrefix(o.text("model_type"), "qwen3_next"))
}

// readLayers reads which layers look back only so far, or keep a state instead
// of KV.
func readLayers(o *fields, kind string, s *Shape) {
	kinds := o.texts("layer_types")
	window, windowed := o.maybe("sliding_window")
	windowed = windowed && window > 0 && o.bool("use_sliding_window", true)
	every := o.int("sliding_window_pattern", "_sliding_window_pattern")
	if kind == "gemma2" && every == 0 {
		every = 2
	}
	if strings.HasPrefix(kind, "gemma3") && every == 0 {
		every = 6
	}
	interval := o.int("full_attention_interval")
	for i := range max(s.Layers, 0) {
		switch {
		case len(kinds) > 0:
			if i >= len(kinds) {
				o.fail("layer_types", fmt.Sprintf("%d entries for %d layers", len(kinds), s.Layers))
				return
			}
			switch kinds[i] {
			case "sliding_attention":
				s.WindowLayers++
			case "linear_attention":
				s.LinearLayers++
			case "full_attention":
			default:
				o.fail("layer_types", fmt.Sprintf("%q is not known", kinds[i]))
				return
			}
		case interval > 0:
			if (i+1)%interval != 0 {
				s.LinearLayers++
			}
		case windowed && (every <= 0 || (i+1)%every != 0):
			s.WindowLayers++
		}
	}
	if !windowed && len(kinds) == 0 {
		s.WindowLayers = 0
	}
	if s.WindowLayers > 0 {
		s.Window = window
	}
	if s.LinearLayers > 0 {
		s.LinearHeads = o.int("linear_num_value_heads")
		s.LinearKeys = product(o.int("linear_num_key_heads"), o.int("linear_key_head_dim"))
		s.LinearValues = product(s.LinearHeads, o.int("linear_value_head_dim"))
	}
}

// product multiplies without overflow; what is too large stays too large, and
// what is negative negative.
func product(a, b int) int {
	p := float64(a) * float64(b)
	return int(math.Max(-1, math.Min(p, math.MaxInt32)))
}

// readExperts reads the mixture of experts and which layers have it.
func readExperts(o *fields, s *Shape) {
	s.Experts = o.int("num_experts", "n_routed_experts", "num_local_experts")
	if s.Experts == 0 {
		return
	}
	s.TopK = o.int("num_experts_per_tok", "experts_per_token")
	if s.ExpertWidth = o.int("moe_intermediate_size"); s.ExpertWidth == 0 {
		s.ExpertWidth, s.Width = s.Width, 0 // Mixtral, gpt-oss and MiniMax have experts in all layers
	}
	if s.SharedWidth = o.int("shared_expert_intermediate_size"); s.SharedWidth == 0 {
		s.SharedWidth = product(o.int("n_shared_experts", "num_shared_experts"), s.ExpertWidth)
	}
	first, step := o.int("first_k_dense_replace"), o.int("decoder_sparse_step")
	if step <= 0 {
		step = max(o.int("moe_layer_freq"), 1)
		if step > 1 {
			o.fail("moe_layer_freq", fmt.Sprintf("%d is not supported; want 1", step))
		}
	}
	dense := map[int]bool{}
	for _, layer := range o.ints("mlp_only_layers") {
		dense[layer] = true
	}
	if first < 0 {
		s.DenseLayers = first
		return
	}
	for i := range max(s.Layers, 0) {
		if i < first || dense[i] || (i+1)%step != 0 {
			s.DenseLayers++
		}
	}
	if s.DenseLayers == 0 {
		s.Width = 0 // Qwen publishes a width that no layer has
	}
}

// readPrecision reads the format of the published weights.
func readPrecision(root, o *fields) Precision {
	for _, at := range []*fields{root, o} {
		if q := at.object("quantization_config"); q != nil {
			p := q.quantised()
			if root.err == nil {
				root.err = q.err
			}
			return p
		}
	}
	p, err := ParsePrecision(o.text("torch_dtype", "dtype"))
	if err != nil || p == Unstated {
		return BF16 // float32 checkpoints are served in 16 bits too
	}
	return p
}

// quantised reads a quantization_config.
func (o *fields) quantised() Precision {
	method := strings.ToLower(o.text("quant_method"))
	bits := o.int("bits", "w_bit")
	switch method {
	case "compressed-tensors":
		bits = 0
		groups := o.object("config_groups")
		if groups == nil {
			break
		}
		for name := range groups.values {
			weights := groups.object(name).object("weights")
			if weights == nil {
				continue
			}
			bits = max(bits, weights.int("num_bits"))
			if weights.text("type") == "float" {
				method = "float"
			}
		}
	case "modelopt":
		if algo := strings.ToLower(o.text("quant_algo")); algo != "" {
			method = algo
		}
	}
	switch {
	case bits == 8 && method == "float":
		return FP8
	case bits == 4 && method == "float":
		return FP4
	case bits == 8:
		return INT8
	case bits == 4:
		return INT4
	}
	p, err := ParsePrecision(method)
	if err != nil || p == Unstated {
		o.fail("quantization_config.quant_method", fmt.Sprintf("%q is not known", method))
	}
	return p
}

// fields is a JSON object that is read by name and remembers its first fault.
type fields struct {
	values map[string]json.RawMessage
	err    error
}

func (o *fields) fail(name, why string) {
	if o.err == nil {
		o.err = fmt.Errorf("%s: %s", name, why)
	}
}

// read decodes the first of names that is there and not null.
func (o *fields) read(into any, want string, names ...string) bool {
	if o == nil {
		return false
	}
	for _, name := range names {
		raw, ok := o.values[name]
		if !ok || string(raw) == "null" {
			continue
		}
		if err := json.Unmarshal(raw, into); err != nil {
			o.fail(name, "want "+want)
			return false
		}
		return true
	}
	return false
}

// maybe returns the whole number of that name and whether it is there.
func (o *fields) maybe(names ...string) (int, bool) {
	var n int
	if !o.read(&n, "a whole number", names...) {
		return 0, false
	}
	return max(-math.MaxInt32, min(n, math.MaxInt32)), true
}

// int returns the whole number of the first name that is there, 0 without one.
func (o *fields) int(names ...string) int {
	n, _ := o.maybe(names...)
	return n
}

func (o *fields) text(names ...string) string {
	var s string
	o.read(&s, "a string", names...)
	return s
}

func (o *fields) texts(name string) []string {
	var list []string
	o.read(&list, "a list of strings", name)
	return list
}

func (o *fields) ints(name string) []int {
	var list []int
	o.read(&list, "a list of whole numbers", name)
	return list
}

func (o *fields) bool(name string, otherwise bool) bool {
	b := otherwise
	o.read(&b, "true or false", name)
	return b
}

// object returns the object of that name, nil without one.
func (o *fields) object(name string) *fields {
	inner := &fields{}
	if !o.read(&inner.values, "an object", name) {
		return nil
	}
	return inner
}
