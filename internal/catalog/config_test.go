package catalog

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

// published are the parts of config.json that tell a shape, as published.
var published = map[string]string{
	"meta-llama/Llama-3.1-8B-Instruct": `{"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,
		"num_hidden_layers":32,"num_key_value_heads":8,"tie_word_embeddings":false,"torch_dtype":"bfloat16","vocab_size":128256}`,
	"Qwen/Qwen3-32B": `{"model_type":"qwen3","head_dim":128,"hidden_size":5120,"intermediate_size":25600,"max_window_layers":64,
		"num_attention_heads":64,"num_hidden_layers":64,"num_key_value_heads":8,"sliding_window":null,"tie_word_embeddings":false,
		"torch_dtype":"bfloat16","use_sliding_window":false,"vocab_size":151936}`,
	"Qwen/Qwen2.5-14B-Instruct": `{"model_type":"qwen2","hidden_size":5120,"intermediate_size":13824,"num_attention_heads":40,
		"num_hidden_layers":48,"num_key_value_heads":8,"sliding_window":131072,"use_sliding_window":false,"vocab_size":152064}`,
	"Qwen/Qwen3-235B-A22B": `{"model_type":"qwen3_moe","decoder_sparse_step":1,"head_dim":128,"hidden_size":4096,"intermediate_size":12288,
		"mlp_only_layers":[],"moe_intermediate_size":1536,"num_attention_heads":64,"num_experts":128,"num_experts_per_tok":8,
		"num_hidden_layers":94,"num_key_value_heads":4,"torch_dtype":"bfloat16","vocab_size":151936}`,
	"mistralai/Mixtral-8x7B-Instruct-v0.1": `{"model_type":"mixtral","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,
		"num_experts_per_tok":2,"num_hidden_layers":32,"num_key_value_heads":8,"num_local_experts":8,"sliding_window":null,"vocab_size":32000}`,
	"deepseek-ai/DeepSeek-R1": `{"model_type":"deepseek_v3","first_k_dense_replace":3,"hidden_size":7168,"intermediate_size":18432,
		"kv_lora_rank":512,"moe_intermediate_size":2048,"moe_layer_freq":1,"n_routed_experts":256,"n_shared_experts":1,
		"num_attention_heads":128,"num_experts_per_tok":8,"num_hidden_layers":61,"num_key_value_heads":128,"q_lora_rank":1536,
		"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,"vocab_size":129280,
		"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}`,
	"moonshotai/Kimi-K2-Instruct": `{"model_type":"kimi_k2","first_k_dense_replace":1,"hidden_size":7168,"intermediate_size":18432,
		"kv_lora_rank":512,"moe_intermediate_size":2048,"n_routed_experts":384,"n_shared_experts":1,"num_attention_heads":64,
		"num_experts_per_tok":8,"num_hidden_layers":61,"q_lora_rank":1536,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
		"v_head_dim":128,"vocab_size":163840,"quantization_config":{"quant_method":"fp8"}}`,
	"openai/gpt-oss-20b": `{"model_type":"gpt_oss","head_dim":64,"hidden_size":2880,"intermediate_size":2880,"layer_types":[` +
		strings.Repeat(`"sliding_attention","full_attention",`, 11) + `"sliding_attention","full_attention"],
		"num_attention_heads":64,"num_experts_per_tok":4,"experts_per_token":4,"num_hidden_layers":24,"num_key_value_heads":8,
		"num_local_experts":32,"sliding_window":128,"tie_word_embeddings":false,"vocab_size":201088,
		"quantization_config":{"quant_method":"mxfp4"}}`,
	"google/gemma-3-27b-it": `{"model_type":"gemma3","torch_dtype":"bfloat16","vision_config":{"hidden_size":1152,"num_hidden_layers":27},
		"text_config":{"model_type":"gemma3_text","head_dim":128,"hidden_size":5376,"intermediate_size":21504,"num_attention_heads":32,
		"num_hidden_layers":62,"num_key_value_heads":16,"sliding_window":1024}}`,
	"MiniMaxAI/MiniMax-M2.5": `{"model_type":"minimax_m2","head_dim":128,"hidden_size":3072,"intermediate_size":1536,
		"num_attention_heads":48,"num_experts_per_tok":8,"num_hidden_layers":62,"num_key_value_heads":8,"num_local_experts":256,
		"vocab_size":200064,"quantization_config":{"quant_method":"fp8"}}`,
	"Qwen/Qwen3.5-397B-A17B": `{"model_type":"qwen3_5_moe","tie_word_embeddings":false,"text_config":{"model_type":"qwen3_5_moe_text",
		"attn_output_gate":true,"full_attention_interval":4,"head_dim":256,"hidden_size":4096,"linear_key_head_dim":128,
		"linear_num_key_heads":16,"linear_num_value_heads":64,"linear_value_head_dim":128,"moe_intermediate_size":1024,
		"num_attention_heads":32,"num_experts":512,"num_experts_per_tok":10,"num_hidden_layers":60,"num_key_value_heads":2,
		"shared_expert_intermediate_size":1024,"dtype":"bfloat16","vocab_size":248320}}`,
}

func TestParseConfigAgreesWithTheCatalogue(t *testing.T) {
	for name, text := range published {
		want, err := FindModel(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseConfig([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Name = name; got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestParseConfigOtherManners(t *testing.T) {
	edit := func(name string, changes map[string]any) []byte {
		var c map[string]any
		if err := json.Unmarshal([]byte(published[name]), &c); err != nil {
			t.Fatal(err)
		}
		for k, v := range changes {
			c[k] = v
			if v == nil {
				delete(c, k)
			}
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	const llama = "meta-llama/Llama-3.1-8B-Instruct"
	for name, c := range map[string]struct {
		text []byte
		ok   func(Shape) bool
	}{
		"nothing shared between heads": {edit(llama, map[string]any{"num_key_value_heads": nil}), func(s Shape) bool { return s.KVHeads == 32 }},
		"two matrices":                 {edit(llama, map[string]any{"model_type": "nemotron"}), func(s Shape) bool { return s.Ungated }},
		"NVFP4": {edit(llama, map[string]any{"quantization_config": map[string]any{"quant_method": "modelopt", "quant_algo": "NVFP4"}}), func(s Shape) bool {
			return s.Native == FP4
		}},
		"compressed tensors": {
			edit(llama, map[string]any{"quantization_config": map[string]any{"quant_method": "compressed-tensors", "config_groups": map[string]any{
				"group_0": map[string]any{"weights": map[string]any{"num_bits": 8, "type": "float"}},
			}}}), func(s Shape) bool { return s.Native == FP8 },
		},
		"AWQ":            {edit(llama, map[string]any{"quantization_config": map[string]any{"quant_method": "awq", "bits": 4}}), func(s Shape) bool { return s.Native == INT4 }},
		"all windows":    {edit(llama, map[string]any{"sliding_window": 4096}), func(s Shape) bool { return s.WindowLayers == 32 && s.Window == 4096 }},
		"Gemma 2":        {edit(llama, map[string]any{"model_type": "gemma2", "sliding_window": 4096, "tie_word_embeddings": nil}), func(s Shape) bool { return s.WindowLayers == 16 && s.Tied }},
		"every second":   {edit("Qwen/Qwen3-235B-A22B", map[string]any{"decoder_sparse_step": 2}), func(s Shape) bool { return s.DenseLayers == 47 && s.Width == 12288 }},
		"some are dense": {edit("Qwen/Qwen3-235B-A22B", map[string]any{"mlp_only_layers": []int{0, 5}}), func(s Shape) bool { return s.DenseLayers == 2 }},
	} {
		s, err := ParseConfig(c.text)
		if err != nil || !c.ok(s) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	for want, changes := range map[string]map[string]any{
		"num_hidden_layers: missing":       {"num_hidden_layers": nil},
		"num_hidden_layers: -3":            {"num_hidden_layers": -3},
		"num_hidden_layers: 1000000":       {"num_hidden_layers": 1000000},
		"num_hidden_layers: want a whole":  {"num_hidden_layers": "32"},
		"hidden_size: want a whole":        {"hidden_size": 40.5},
		"vocab_size: missing":              {"vocab_size": 0},
		"num_key_value_heads: 5 does not":  {"num_key_value_heads": 5},
		"num_key_value_heads: missing":     {"num_key_value_heads": 0},
		"intermediate_size: missing":       {"intermediate_size": nil},
		"num_experts_per_tok: 9":           {"num_local_experts": 8, "num_experts_per_tok": 9},
		"num_experts: -1":                  {"num_local_experts": -1},
		"layer_types: 1 entries for 32":    {"layer_types": []string{"full_attention"}},
		"layer_types: \"magic\"":           {"layer_types": []string{"magic"}},
		"quantization_config.quant_method": {"quantization_config": map[string]any{"quant_method": "magic"}},
		"qk_rope_head_dim: missing":        {"kv_lora_rank": 512},
		"moe_layer_freq: 2":                {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_layer_freq": 2},
	} {
		if s, err := ParseConfig(edit(llama, changes)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: %+v, %v; want an error that begins with %q", changes, s, err, want)
		}
	}
	for _, text := range []string{"", "[]", "null", "{", `{"text_config":3}`} {
		if s, err := ParseConfig([]byte(text)); err == nil {
			t.Errorf("%q gave %+v", text, s)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, text := range published {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseConfig(text)
		if err != nil {
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("parsed, but %v", err)
		}
		for _, v := range []float64{s.Params(), s.ActiveParams(), s.FLOPs(), s.PairFLOPs(), s.KVBytes(2), s.KVFixed(2), s.Touch()} {
			if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
				t.Fatalf("%+v: a size of %g", s, v)
			}
		}
		if s.Params() <= 0 || s.ActiveParams() > s.Params()+s.EmbeddingParams() || s.Touch() > 1 {
			t.Fatalf("%+v: %g of %g parameters at work", s, s.ActiveParams(), s.Params())
		}
	})
}
