package catalog

import (
	"math"
	"strings"
	"testing"
)

func TestModelsHaveThePublishedNumbersOfParameters(t *testing.T) {
	// Billions as the model cards state them: total, and active per token where
	// the model has experts.
	published := map[string][2]float64{
		"Qwen/Qwen3-32B": {32.76}, "Qwen/Qwen3-8B": {8.19}, "meta-llama/Llama-3.1-8B-Instruct": {8.03},
		"meta-llama/Llama-3.1-70B-Instruct": {70.55}, "meta-llama/Llama-3.3-70B-Instruct": {70.55}, "Qwen/Qwen2.5-14B-Instruct": {14.77},
		"google/gemma-3-27b-it": {27.4}, "mistralai/Mixtral-8x7B-Instruct-v0.1": {46.7, 12.9}, "Qwen/Qwen3-30B-A3B": {30.53, 3.3},
		"Qwen/Qwen3-235B-A22B": {235.1, 22}, "Qwen/Qwen3-Coder-480B-A35B-Instruct": {480.2, 35}, "Qwen/Qwen3.5-397B-A17B": {397, 17},
		"deepseek-ai/DeepSeek-V3": {671, 37}, "deepseek-ai/DeepSeek-R1": {671, 37}, "deepseek-ai/DeepSeek-V3.1": {671, 37},
		"moonshotai/Kimi-K2-Instruct": {1026, 32}, "zhipuai/GLM-5": {744, 40}, "MiniMaxAI/MiniMax-M2.5": {229, 10},
		"openai/gpt-oss-20b": {20.9, 3.6}, "openai/gpt-oss-120b": {116.8, 5.1}, "penstock/tiny": {0.11},
	}
	for _, m := range Models() {
		want, ok := published[m.Name]
		if !ok {
			t.Errorf("%s: no published number to check against", m.Name)
			continue
		}
		if err := m.Validate(); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
		if got := m.Params() / 1e9; math.Abs(got-want[0]) > 0.02*want[0] {
			t.Errorf("%s has %.4g billion parameters, published are %.4g", m.Name, got, want[0])
		}
		// Cards round the active number, and differ in whether embeddings count.
		if got := m.ActiveParams() / 1e9; want[1] > 0 && math.Abs(got-want[1]) > 0.08*want[1] {
			t.Errorf("%s has %.4g billion active parameters, published are %.4g", m.Name, got, want[1])
		}
	}
}

func TestFindModel(t *testing.T) {
	for name, want := range map[string]string{
		"": "Qwen/Qwen3-32B", "qwen3-32b": "Qwen/Qwen3-32B", "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
		"llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct", "unsloth/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
		"Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": "Qwen/Qwen3-235B-A22B", "deepseek-r1-0528": "deepseek-ai/DeepSeek-R1",
	} {
		if m, err := FindModel(name); err != nil || m.Name != want {
			t.Errorf("FindModel(%q) = %q, %v; want %q", name, m.Name, err, want)
		}
	}
	if _, err := FindModel("gpt-7"); err == nil || !strings.Contains(err.Error(), "model:") || !strings.Contains(err.Error(), "Qwen/Qwen3-32B") {
		t.Errorf("unknown model: %v", err)
	}
}

func TestFindAccelerator(t *testing.T) {
	for name, want := range map[string]string{
		"": "H100", "h100": "H100", "H100-SXM-80GB": "H100", "H200-SXM-141GB": "H200", "B200-SXM": "B200", "GB200": "GB200",
		"NVIDIA-L40S": "L40S", "AMD Instinct MI300X": "MI300X", "tpu-v6e": "TPU v6e", "gaudi 3": "Gaudi 3", "A100-SXM4-80GB": "A100",
	} {
		if a, err := FindAccelerator(name); err != nil || a.Name != want {
			t.Errorf("FindAccelerator(%q) = %q, %v; want %q", name, a.Name, err, want)
		}
	}
	for _, name := range []string{"abacus", "H100-PCIe-80GB", "A100-SXM4-40GB", "H1000", "--"} {
		if a, err := FindAccelerator(name); err == nil || !strings.Contains(err.Error(), "H200") {
			t.Errorf("FindAccelerator(%q) = %q, %v; want an error that lists what is known", name, a.Name, err)
		}
	}
}
