package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// models are the shapes known without asking, from the config.json each
// publisher gives; the first is the default.
var models = []Shape{
	{Name: "Qwen/Qwen3-32B", Layers: 64, Hidden: 5120, Vocab: 151936, Heads: 64, KVHeads: 8, HeadDim: 128, Width: 25600, Native: BF16},
	{Name: "Qwen/Qwen3-8B", Layers: 36, Hidden: 4096, Vocab: 151936, Heads: 32, KVHeads: 8, HeadDim: 128, Width: 12288, Native: BF16},
	{Name: "meta-llama/Llama-3.1-8B-Instruct", Layers: 32, Hidden: 4096, Vocab: 128256, Heads: 32, KVHeads: 8, HeadDim: 128, Width: 14336, Native: BF16},
	{Name: "meta-llama/Llama-3.1-70B-Instruct", Layers: 80, Hidden: 8192, Vocab: 128256, Heads: 64, KVHeads: 8, HeadDim: 128, Width: 28672, Native: BF16},
	{Name: "meta-llama/Llama-3.3-70B-Instruct", Layers: 80, Hidden: 8192, Vocab: 128256, Heads: 64, KVHeads: 8, HeadDim: 128, Width: 28672, Native: BF16},
	{Name: "Qwen/Qwen2.5-14B-Instruct", Layers: 48, Hidden: 5120, Vocab: 152064, Heads: 40, KVHeads: 8, HeadDim: 128, Width: 13824, Native: BF16},
	{
		Name: "google/gemma-3-27b-it", Layers: 62, Hidden: 5376, Vocab: 262208, Tied: true, Heads: 32, KVHeads: 16, HeadDim: 128,
		Window: 1024, WindowLayers: 52, Width: 21504, Native: BF16,
	},
	{
		Name: "mistralai/Mixtral-8x7B-Instruct-v0.1", Layers: 32, Hidden: 4096, Vocab: 32000, Heads: 32, KVHeads: 8, HeadDim: 128,
		Experts: 8, TopK: 2, ExpertWidth: 14336, Native: BF16,
	},
	{
		Name: "Qwen/Qwen3-30B-A3B", Layers: 48, Hidden: 2048, Vocab: 151936, Heads: 32, KVHeads: 4, HeadDim: 128,
		Experts: 128, TopK: 8, ExpertWidth: 768, Native: BF16,
	},
	{
		Name: "Qwen/Qwen3-235B-A22B", Layers: 94, Hidden: 4096, Vocab: 151936, Heads: 64, KVHeads: 4, HeadDim: 128,
		Experts: 128, TopK: 8, ExpertWidth: 1536, Native: BF16,
	},
	{
		Name: "Qwen/Qwen3-Coder-480B-A35B-Instruct", Layers: 62, Hidden: 6144, Vocab: 151936, Heads: 96, KVHeads: 8, HeadDim: 128,
		Experts: 160, TopK: 8, ExpertWidth: 2560, Native: BF16,
	},
	{
		Name: "Qwen/Qwen3.5-397B-A17B", Layers: 60, Hidden: 4096, Vocab: 248320, Heads: 32, KVHeads: 2, HeadDim: 256, Gated: true,
		LinearLayers: 45, LinearKeys: 2048, LinearValues: 8192, LinearHeads: 64,
		Experts: 512, TopK: 10, ExpertWidth: 1024, SharedWidth: 1024, Native: BF16,
	},
	{
		Name: "deepseek-ai/DeepSeek-V3", Layers: 61, Hidden: 7168, Vocab: 129280, Heads: 128,
		KVRank: 512, QRank: 1536, RopeDim: 64, NopeDim: 128, ValueDim: 128,
		Width: 18432, Experts: 256, TopK: 8, ExpertWidth: 2048, SharedWidth: 2048, DenseLayers: 3, Native: FP8,
	},
	{
		Name: "deepseek-ai/DeepSeek-R1", Layers: 61, Hidden: 7168, Vocab: 129280, Heads: 128,
		KVRank: 512, QRank: 1536, RopeDim: 64, NopeDim: 128, ValueDim: 128,
		Width: 18432, Experts: 256, TopK: 8, ExpertWidth: 2048, SharedWidth: 2048, DenseLayers: 3, Native: FP8,
	},
	{
		Name: "deepseek-ai/DeepSeek-V3.1", Layers: 61, Hidden: 7168, Vocab: 129280, Heads: 128,
		KVRank: 512, QRank: 1536, RopeDim: 64, NopeDim: 128, ValueDim: 128,
		Width: 18432, Experts: 256, TopK: 8, ExpertWidth: 2048, SharedWidth: 2048, DenseLayers: 3, Native: FP8,
	},
	{
		Name: "moonshotai/Kimi-K2-Instruct", Layers: 61, Hidden: 7168, Vocab: 163840, Heads: 64,
		KVRank: 512, QRank: 1536, RopeDim: 64, NopeDim: 128, ValueDim: 128,
		Width: 18432, Experts: 384, TopK: 8, ExpertWidth: 2048, SharedWidth: 2048, DenseLayers: 1, Native: FP8,
	},
	{
		Name: "zhipuai/GLM-5", Layers: 78, Hidden: 6144, Vocab: 154880, Heads: 64,
		KVRank: 512, QRank: 2048, RopeDim: 64, NopeDim: 192, ValueDim: 256,
		Width: 12288, Experts: 256, TopK: 8, ExpertWidth: 2048, SharedWidth: 2048, DenseLayers: 3, Native: BF16,
	},
	{
		Name: "MiniMaxAI/MiniMax-M2.5", Layers: 62, Hidden: 3072, Vocab: 200064, Heads: 48, KVHeads: 8, HeadDim: 128,
		Experts: 256, TopK: 8, ExpertWidth: 1536, Native: FP8,
	},
	{
		Name: "openai/gpt-oss-20b", Layers: 24, Hidden: 2880, Vocab: 201088, Heads: 64, KVHeads: 8, HeadDim: 64,
		Window: 128, WindowLayers: 12, Experts: 32, TopK: 4, ExpertWidth: 2880, Native: FP4,
	},
	{
		Name: "openai/gpt-oss-120b", Layers: 36, Hidden: 2880, Vocab: 201088, Heads: 64, KVHeads: 8, HeadDim: 64,
		Window: 128, WindowLayers: 18, Experts: 128, TopK: 4, ExpertWidth: 2880, Native: FP4,
	},
	{Name: "penstock/tiny", Layers: 8, Hidden: 768, Vocab: 32000, Heads: 12, KVHeads: 4, HeadDim: 64, Width: 2560, Native: BF16},
}

// Models returns the shapes known without asking, the default first.
func Models() []Shape { return slices.Clone(models) }

// ModelNames returns the names of Models, the default first.
func ModelNames() []string {
	names := make([]string, len(models))
	for i, m := range models {
		names[i] = m.Name
	}
	return names
}

// FindModel returns the known shape of a model by the name it is published
// under, compared without regard to case. The name may leave out the
// organisation, and whatever says how a model was tuned or quantised but not
// how it is shaped ("-Instruct", "-FP8", "-0528"). The empty name finds the
// default.
func FindModel(name string) (Shape, error) {
	for _, m := range models {
		if name == "" || strings.EqualFold(name, m.Name) || bare(name) == bare(m.Name) {
			return m, nil
		}
	}
	return Shape{}, fmt.Errorf("model: %q is not known; use one of %s, or give its config.json", name, strings.Join(ModelNames(), ", "))
}

// sameShape lists endings of names that do not change a model's shape.
var sameShape = [...]string{
	"-instruct", "-it", "-base", "-chat", "-thinking", "-fp8", "-nvfp4", "-mxfp4", "-fp4", "-bf16", "-awq", "-gptq",
	"-dynamic", "-v0.1", "-2507", "-0324", "-0528", "-0711", "-0905",
}

// bare is a model's name without organisation and without endings that do not
// change its shape, in lower case.
func bare(name string) string {
	name = strings.ToLower(name[strings.LastIndexByte(name, '/')+1:])
	name = strings.TrimPrefix(name, "meta-")
	for cut := true; cut; {
		cut = false
		for _, end := range sameShape {
			if rest, ok := strings.CutSuffix(name, end); ok {
				name, cut = rest, true
			}
		}
	}
	return name
}
